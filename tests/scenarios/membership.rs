//! Joining and leaving without a restart (rows 1.3, 1.5, 1.7), and pods that stay out (1.6).

use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::{Mesh, PodSpec, eventually};

use crate::common::{echo_args, service};

const MARKER: &str = "MARKER-membership";

#[test]
fn running_pods_join_and_leave_and_old_connections_stay() -> Result<()> {
    let mesh = Mesh::new(2)?;
    mesh.enrol("default", false);
    let client = mesh.pod(PodSpec::new("client"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(service("server"));
    mesh.start()?;
    let mut echo = server.serve(&echo_args("server", "v1"))?;
    let pid = echo.pid();
    let url = format!("http://{}:8080/{MARKER}", server.ip());
    let tcp = format!("{}:9000", server.ip());

    // Plaintext before, over a connection that outlives the change.
    let mut old = client.spawn(&[
        "send",
        &tcp,
        "aaaabbbbcccc",
        "--piece",
        "4",
        "--pace-ms",
        "1500",
        "--half-close",
    ])?;
    let capture = mesh.capture()?;
    ensure!(client.get(&url, &[])?.status() == 200);
    ensure!(capture.stop()?.saw_plaintext(MARKER));

    mesh.enrol("default", true);
    mesh.sync()?;
    let before = mesh.metrics()?;
    let mtls = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    eventually("new connections to be carried", Duration::from_secs(5), || {
        let reply = client.get(&url, &[])?;
        ensure!(reply.status() == 200, "{}", reply.0);
        Ok((mesh.metrics()?.sum("istio_requests_total", &mtls)
            > before.sum("istio_requests_total", &mtls))
        .then_some(()))
    })?;
    let capture = mesh.capture()?;
    ensure!(client.get(&url, &[])?.status() == 200);
    capture.stop()?.assert_no_plaintext(MARKER)?;

    old.wait(Duration::from_secs(15))?;
    let told = fairlead_tests::client::last_json(&old.output())?;
    let received = told["received"].as_str().unwrap_or_default();
    ensure!(
        received.contains("aaaa") && received.contains("cccc") && received.contains("bye"),
        "{told}"
    );
    ensure!(echo.alive() && echo.pid() == pid, "the server was restarted");

    // Leaving: plaintext again, by each label that says so.
    mesh.label_namespace("default", "istio.io/dataplane-mode", Some("none"));
    mesh.sync()?;
    eventually("plaintext again", Duration::from_secs(5), || {
        let capture = mesh.capture()?;
        ensure!(client.get(&url, &[])?.status() == 200);
        Ok(capture.stop()?.saw_plaintext(MARKER).then_some(()))
    })
}

#[test]
fn each_label_that_people_use_enrols() -> Result<()> {
    let mesh = Mesh::new(2)?;
    mesh.enrol("default", false);
    let client = mesh.pod(PodSpec::new("client"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(service("server"));
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let labels = [
        ("istio-injection", "enabled"),
        ("istio.io/rev", "default"),
        ("fairlead.io/mesh", "enabled"),
        ("istio.io/dataplane-mode", "ambient"),
    ];
    for (key, value) in labels {
        mesh.label_namespace("default", key, Some(value));
        mesh.sync()?;
        let before = mesh.metrics()?;
        eventually(&format!("{key}={value} to enrol"), Duration::from_secs(5), || {
            ensure!(client.get("http://server/", &["--timeout-ms", "1000"])?.status() == 200);
            mesh.counted(&before, "istio_requests_total", &[("reporter", "destination")], 1.0)?;
            Ok(Some(()))
        })?;
        mesh.label_namespace("default", key, None);
        mesh.sync()?;
        eventually("the pods to leave", Duration::from_secs(5), || {
            // Nobody routes cluster addresses without a mesh.
            Ok((client.get("http://server/", &["--timeout-ms", "200"])?.status() == 0)
                .then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn a_pod_of_an_enrolled_namespace_can_stay_out() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let inside = mesh.pod(PodSpec::new("inside"))?;
    let outside = mesh.pod(PodSpec::new("outside").label("istio.io/dataplane-mode", "none"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(service("server"));
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let url = format!("http://{}:8080/{MARKER}", server.ip());
    let capture = mesh.capture()?;
    ensure!(inside.get(&url, &[])?.status() == 200);
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    ensure!(wire.assert_all_tls(&[&inside.ips[..], &server.ips].concat())? > 0);
    let capture = mesh.capture()?;
    ensure!(outside.get(&url, &[])?.status() == 200);
    ensure!(capture.stop()?.saw_plaintext(MARKER), "the excluded pod was captured");
    // And one pod can join alone.
    mesh.enrol("default", false);
    inside.label("istio.io/dataplane-mode", Some("ambient"));
    server.label("istio.io/dataplane-mode", Some("ambient"));
    mesh.sync()?;
    eventually("the pod to join alone", Duration::from_secs(5), || {
        let capture = mesh.capture()?;
        ensure!(inside.get(&url, &[])?.status() == 200);
        Ok((!capture.stop()?.saw_plaintext(MARKER)).then_some(()))
    })
}
