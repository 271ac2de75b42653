//! Running pods join and leave the mesh by labels, on a real cluster with both families of addresses:
//! without a restart, with mutual TLS between the nodes, from a pod's first packet on.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod, image};
use fairlead_tests::kube::{KubeMesh, READY};
use fairlead_tests::{Sent, eventually};

use crate::common::{seconds, while_busy};

const NS: &str = "shop";
/// The server by name; 80 is HTTP, 9000 echoes.
const SERVER: &str = "http://server.shop/";
/// What of kubectl's word must have reached the nodes within.
const SOON: Duration = Duration::from_secs(10);
/// Pods whose first act is `connect()`: in a usual run, and in a soak, with all processors busy.
const STARTS: [usize; 2] = [10, 1000];
/// So many of them at a time: a node takes no more than 110, and a busy one starts them slowly.
const LOT: usize = 25;

const SERVICE: &str = "apiVersion: v1\n\
                       kind: Service\n\
                       metadata: {name: server, namespace: shop}\n\
                       spec:\n\
                       \x20 ipFamilyPolicy: PreferDualStack\n\
                       \x20 selector: {app: server}\n\
                       \x20 ports:\n\
                       \x20 - {name: http, port: 80, targetPort: 8080}\n\
                       \x20 - {name: tcp, port: 9000}\n";

const STRICT: &str = "apiVersion: security.istio.io/v1\n\
                      kind: PeerAuthentication\n\
                      metadata: {name: default, namespace: shop}\n\
                      spec: {mtls: {mode: STRICT}}\n";

fn marked(marker: &str) -> String {
    format!("{SERVER}{marker}")
}

/// What a pod of a namespace is called by certificates.
fn spiffe(account: &str) -> String {
    format!("URI=spiffe://cluster.local/ns/{NS}/sa/{account}")
}

#[test]
fn pods_join_and_leave_by_labels_without_a_restart() -> Result<()> {
    let mesh = KubeMesh::up(&ClusterOptions::default().dual_stack())?;
    mesh.namespace(NS, "")?;
    let server = ["echo", "--name", "server", "--http", "8080", "--tcp", "9000"];
    mesh.apply(&format!(
        "{}{}{}{SERVICE}",
        app_pod("server", NS, &mesh.node_name(1), &server),
        app_pod("client", NS, &mesh.node_name(2), &["echo", "--http", "8080"]),
        app_pod("second", NS, &mesh.node_name(2), &["echo", "--http", "8080"]),
    ))?;
    mesh.ready(NS)?;
    mesh.until_meshed(NS, "client", SERVER, false)?;
    enrolled_while_they_run(&mesh)?;
    both_families(&mesh)?;
    pods_by_themselves(&mesh)?;
    forms_of_labels(&mesh)?;
    from_the_first_packet(&mesh)?;
    init_containers(&mesh)
}

fn label(mesh: &KubeMesh, what: &[&str], label: &str) -> Result<()> {
    mesh.kubectl(&[&["label", "--overwrite", "-n", NS], what, &[label]].concat()).map(drop)
}

/// The namespace's label brings its running pods in; connections that are there stay.
fn enrolled_while_they_run(mesh: &KubeMesh) -> Result<()> {
    let before: Vec<_> =
        ["client", "server"].map(|pod| mesh.pod_ips(NS, pod)).into_iter().collect::<Result<_>>()?;
    let wire = mesh.observe(1)?;
    mesh.identity(NS, "client", &marked("before-the-label"))?;
    ensure!(wire.stop()?.saw_plaintext("before-the-label"), "the observer saw nothing");
    let server = mesh.pod_ip(NS, "server")?;
    std::thread::scope(|scope| -> Result<()> {
        // 40 lines in ten seconds: begun before the label, ended after it.
        let old = scope.spawn(|| -> Result<Sent> {
            let told = mesh.exec(
                NS,
                "second",
                &[
                    "/usr/local/bin/fairlead-apps",
                    "send",
                    &format!("{server}:9000"),
                    "tick\\n",
                    "--repeat=40",
                    "--piece=5",
                    "--pace-ms=250",
                    "--half-close",
                ],
            )?;
            Ok(Sent(serde_json::from_str(&told)?))
        });
        std::thread::sleep(Duration::from_secs(2));
        label(mesh, &["namespace", NS], "istio.io/dataplane-mode=ambient")?;
        let took = mesh.until_meshed(NS, "client", SERVER, true)?;
        eprintln!("in the mesh {took:?} after kubectl label");
        ensure!(took < SOON, "{took:?}");
        let wire = mesh.observe(1)?;
        let seen = mesh.identity(NS, "client", &marked("after-the-label"))?;
        ensure!(seen.as_ref().is_some_and(|xfcc| xfcc.contains(&spiffe("default"))), "{seen:?}");
        let captured = wire.stop()?;
        captured.assert_no_plaintext("after-the-label")?;
        let old = old.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        ensure!(old.received().matches("tick").count() == 40, "{}", old.0);
        ensure!(old.received().ends_with("bye\n") && old.end() == "fin", "{}", old.0);
        Ok(())
    })?;
    let after: Vec<_> =
        ["client", "server"].map(|pod| mesh.pod_ips(NS, pod)).into_iter().collect::<Result<_>>()?;
    ensure!(before == after, "{before:?} {after:?}");
    for pod in ["client", "server", "second"] {
        ensure!(mesh.restarts(NS, pod)? == 0, "{pod} was restarted");
    }
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/default"),
        ("destination_service", "server.shop.svc.cluster.local"),
    ];
    let requests = mesh.metrics(1)?.sum("istio_requests_total", &labels);
    ensure!(requests >= 2.0, "{requests} requests are counted at the server");
    eventually("the access log", SOON, || {
        ensure!(mesh.node_log(2)?.contains("after-the-label"), "not yet");
        Ok(Some(()))
    })
}

/// IPv4 and IPv6, to pods and to services.
fn both_families(mesh: &KubeMesh) -> Result<()> {
    let service = mesh.json(&["get", "service", "server", "-n", NS])?;
    let ips = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
    let ips = ips.iter().filter_map(|ip| Some((ip.as_str()?.to_owned(), 80)));
    let pods = mesh.pod_ips(NS, "server")?.into_iter().map(|ip| (ip, 8080));
    let all: Vec<_> = ips.chain(pods).collect();
    ensure!(all.len() == 4, "{all:?}");
    let wire = mesh.observe(1)?;
    for (ip, port) in &all {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        let url = format!("http://{host}:{port}/both-families");
        let seen = mesh.identity(NS, "client", &url).with_context(|| url.clone())?;
        ensure!(seen.is_some(), "{url} went past the mesh");
    }
    let captured = wire.stop()?;
    captured.assert_no_plaintext("both-families")?;
    let ends: Vec<_> = mesh
        .pod_ips(NS, "server")?
        .into_iter()
        .chain(mesh.pod_ips(NS, "client")?)
        .map(|ip| ip.parse())
        .collect::<Result<_, _>>()?;
    captured.assert_all_tls(&ends)?;
    Ok(())
}

/// One pod of an enrolled namespace stays out; nothing changes for the other.
fn pods_by_themselves(mesh: &KubeMesh) -> Result<()> {
    for (out, back) in [
        ("istio.io/dataplane-mode=none", "istio.io/dataplane-mode-"),
        ("sidecar.istio.io/inject=false", "sidecar.istio.io/inject-"),
        ("fairlead.io/mesh=disabled", "fairlead.io/mesh-"),
    ] {
        label(mesh, &["pod", "second"], out)?;
        mesh.until_meshed(NS, "second", SERVER, false)?;
        let wire = mesh.observe(1)?;
        mesh.identity(NS, "second", &marked("from-outside"))?;
        let inside = mesh.identity(NS, "client", &marked("from-inside"))?;
        let captured = wire.stop()?;
        ensure!(inside.is_some() && captured.saw_plaintext("from-outside"), "{out}");
        captured.assert_no_plaintext("from-inside")?;
        label(mesh, &["pod", "second"], back)?;
        mesh.until_meshed(NS, "second", SERVER, true)?;
    }
    // Annotations, as in old Istio.
    mesh.kubectl(&["annotate", "pod", "second", "-n", NS, "sidecar.istio.io/inject=false"])?;
    mesh.until_meshed(NS, "second", SERVER, false)?;
    mesh.kubectl(&["annotate", "pod", "second", "-n", NS, "sidecar.istio.io/inject-"])?;
    mesh.until_meshed(NS, "second", SERVER, true)?;
    Ok(())
}

/// Each form of the namespace's label brings the pods in, and without it they are out.
fn forms_of_labels(mesh: &KubeMesh) -> Result<()> {
    let forms = [
        "istio.io/dataplane-mode=ambient",
        "istio-injection=enabled",
        "istio.io/rev=stable",
        "fairlead.io/mesh=enabled",
    ];
    for form in forms {
        label(mesh, &["namespace", NS], form)?;
        let within = mesh.until_meshed(NS, "client", SERVER, true)?;
        let key = form.split('=').next().unwrap_or_default();
        label(mesh, &["namespace", NS], &format!("{key}-"))?;
        let out = mesh.until_meshed(NS, "client", SERVER, false)?;
        let wire = mesh.observe(1)?;
        mesh.identity(NS, "client", &marked("plain-again"))?;
        ensure!(wire.stop()?.saw_plaintext("plain-again"), "{form}: still encrypted");
        eprintln!("{form}: in after {within:?}, out after {out:?}");
        ensure!(within < SOON && out < SOON, "{form}: {within:?}, {out:?}");
    }
    ensure!(mesh.restarts(NS, "client")? == 0 && mesh.restarts(NS, "server")? == 0, "restarted");
    label(mesh, &["namespace", NS], "istio.io/dataplane-mode=ambient")?;
    mesh.until_meshed(NS, "client", SERVER, true).map(drop)
}

/// Pods that connect before they do anything else: each has its answer from a STRICT server, and no
/// byte crosses the wire in plaintext.
fn from_the_first_packet(mesh: &KubeMesh) -> Result<()> {
    mesh.apply(STRICT)?;
    let server: IpAddr = mesh.pod_ip(NS, "server")?.parse()?;
    let wire = mesh.observe(2)?;
    let start = Instant::now();
    let [usual, soak] = STARTS;
    let starts = if seconds(0) == 0 {
        first_acts(mesh, server, 0..usual)?;
        usual
    } else {
        while_busy(|| {
            let mut lots = (0..soak).step_by(LOT).map(|from| from..soak.min(from + LOT));
            lots.try_for_each(|lot| first_acts(mesh, server, lot))
        })?;
        soak
    };
    eprintln!("{starts} pods connected first and ended within {:?}", start.elapsed());
    let mut captured = wire.stop()?;
    captured.assert_no_plaintext("very-first")?;
    captured.only_new();
    let to = SocketAddr::new(server, 9000);
    let clients = captured.flows.iter().filter(|flow| flow.destination == to);
    let mut ends: Vec<IpAddr> = clients.map(|flow| flow.source.ip()).collect();
    ends.push(server);
    let sessions = captured.assert_all_tls(&ends)?;
    ensure!(sessions >= starts, "{sessions} sessions of {starts} pods");
    Ok(())
}

fn first_acts(mesh: &KubeMesh, server: IpAddr, numbers: Range<usize>) -> Result<()> {
    let node = mesh.node_name(2);
    let pods: Vec<String> = numbers
        .clone()
        .map(|n| {
            let data = format!("very-first-{n}");
            let args = ["connect-first", &format!("{server}:9000"), &data];
            app_pod(&format!("first-{n}"), NS, &node, &args)
                .replace("spec:\n", "spec:\n\x20 restartPolicy: Never\n")
        })
        .collect();
    mesh.apply(&pods.concat())?;
    for n in numbers {
        let pod = format!("pod/first-{n}");
        mesh.wait(NS, &[&pod], "jsonpath={.status.phase}=Succeeded", READY)?;
        let told = mesh.kubectl(&["logs", "-n", NS, &pod])?;
        let told = Sent(serde_json::from_str(&told)?);
        ensure!(told.connected() && told.greeting("name") == "server", "{}", told.0);
    }
    mesh.delete(&pods.concat())
}

/// A container of initialization is in the mesh under the pod's own identity.
fn init_containers(mesh: &KubeMesh) -> Result<()> {
    let image = image("fairlead-apps");
    mesh.apply(&format!(
        "apiVersion: v1\n\
         kind: ServiceAccount\n\
         metadata: {{name: early, namespace: {NS}}}\n\
         ---\n\
         apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: early, namespace: {NS}}}\n\
         spec:\n\
         \x20 nodeName: {}\n\
         \x20 serviceAccountName: early\n\
         \x20 terminationGracePeriodSeconds: 0\n\
         \x20 initContainers:\n\
         \x20 - {{name: init, image: {image}, imagePullPolicy: Never, args: [get, {SERVER}, --fail]}}\n\
         \x20 containers:\n\
         \x20 - {{name: app, image: {image}, imagePullPolicy: Never, args: [echo, --http, \"8080\"]}}\n",
        mesh.node_name(2)
    ))?;
    mesh.wait(NS, &["pod/early"], "condition=Ready", READY)?;
    let told = mesh.kubectl(&["logs", "-n", NS, "early", "-c", "init"])?;
    ensure!(told.contains(&spiffe("early")), "{told}");
    if mesh.restarts(NS, "early")? != 0 {
        let first = mesh.kubectl(&["logs", "-n", NS, "early", "-c", "init", "--previous"]);
        anyhow::bail!("the container failed at first: {first:?}\n{}", mesh.node_log(2)?);
    }
    Ok(())
}
