//! PeerAuthentication: modes, scopes and ports (rows 2.3-2.5), and server-first protocols.

use anyhow::{Result, ensure};
use fairlead_tests::{Mesh, Pod, PodSpec};

use crate::common::{echo_args, service};

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{spec}"
    )
}

/// Whether plaintext HTTP and a mesh client get an answer.
fn open(client: &Pod, server: &Pod, port: u16) -> Result<bool> {
    let reply =
        client.get(&format!("http://{}:{port}/", server.ip()), &["--timeout-ms", "3000"])?;
    Ok(reply.status() == 200)
}

#[test]
fn modes_scopes_and_ports() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let outside = mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    let one = mesh.pod(PodSpec::new("one").on(1))?;
    let two = mesh.pod(PodSpec::new("two").on(1))?;
    mesh.service(service("one"));
    mesh.service(service("two"));
    mesh.start()?;
    let args = ["echo", "--http", "8080", "--http", "8090", "--banner", "3306"];
    let (_one, _two) = (one.serve(&args)?, two.serve(&args)?);
    // What the mesh client gets, always; then what plaintext gets on one:8080, one:8090, two:8080.
    let check = |what: &str, wanted: [bool; 3]| -> Result<()> {
        for (server, port, wanted) in
            [(&one, 8080, wanted[0]), (&one, 8090, wanted[1]), (&two, 8080, wanted[2])]
        {
            ensure!(
                open(&client, server, port)?,
                "{what}: the mesh client was refused at {}",
                server.name
            );
            let got = open(&outside, server, port)?;
            ensure!(got == wanted, "{what}: plaintext to {}:{port} is {got}", server.name);
        }
        Ok(())
    };
    check("no policy", [true, true, true])?;
    mesh.apply("mesh-wide", &policy("default", "istio-system", "  mtls: {mode: STRICT}\n"))?;
    check("STRICT for the mesh", [false, false, false])?;
    let before = mesh.metrics()?;
    ensure!(!open(&outside, &one, 8080)?);
    let refused = [("response_flags", "NETWORK_POLICY"), ("reporter", "destination")];
    mesh.counted(&before, "istio_tcp_connections_failed_total", &refused, 1.0)?;
    let from = outside.ip().to_string();
    let entry =
        mesh.logged(1, "the refusal", |e| e.mentions(&from) && !e.text("reason").is_empty())?;
    ensure!(
        entry.text("reason").to_lowercase().contains("tls"),
        "the reason is {:?}",
        entry.text("reason")
    );
    mesh.apply("namespace", &policy("default", "default", "  mtls: {mode: PERMISSIVE}\n"))?;
    check("PERMISSIVE for the namespace", [true, true, true])?;
    mesh.apply(
        "workload",
        &policy("one", "default", "  selector: {matchLabels: {app: one}}\n  mtls: {mode: STRICT}\n  portLevelMtls:\n    8090: {mode: PERMISSIVE}\n"),
    )?;
    check("STRICT for one workload, one port open", [false, true, true])?;
    mesh.apply(
        "workload",
        &policy("one", "default", "  selector: {matchLabels: {app: one}}\n  mtls: {mode: UNSET}\n"),
    )?;
    check("UNSET inherits", [true, true, true])?;
    mesh.delete("namespace")?;
    check("the mesh's again", [false, false, false])?;
    mesh.delete("mesh-wide")?;
    mesh.apply(
        "workload",
        &policy(
            "one",
            "default",
            "  selector: {matchLabels: {app: one}}\n  mtls: {mode: DISABLE}\n",
        ),
    )?;
    check("DISABLE", [true, true, true])
}

#[test]
fn servers_that_speak_first_do_not_wait() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let outside = mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(service("server"));
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let pod = format!("{}:3306", server.ip());
    for (who, to) in [(&outside, pod.as_str()), (&client, pod.as_str()), (&client, "server:3306")] {
        let mut took = Vec::new();
        for _ in 0..5 {
            let sent = who.send(to, "", &["--server-first", "--quiet-ms", "200"])?;
            ensure!(sent.received().starts_with("220 banner"), "{} to {to}: {}", who.name, sent.0);
            took.push(sent.first_byte_ms().unwrap_or(f64::MAX));
        }
        // A wait of the mesh's own would be in each of them.
        ensure!(took.iter().any(|ms| *ms < 100.0), "{} to {to}: after {took:?} ms", who.name);
    }
    Ok(())
}
