//! Traffic of enrolled pods is captured, outbound and inbound, by eBPF alone (rows 1.1, 1.2, 1.4),
//! encrypted between nodes (2.2, 2.14, 2.15) and kept off the wire within one (1.21).

use anyhow::{Result, ensure};
use fairlead_tests::{PodSpec, shell, tls};

use crate::common::{SERVER, counted_twice, pair, pair_on};

const MARKER: &str = "MARKER-must-not-be-seen";

#[test]
fn outbound_between_nodes_is_captured_counted_logged_and_encrypted() -> Result<()> {
    let p = pair()?;
    let before = p.mesh.metrics()?;
    let capture = p.mesh.capture()?;
    let reply =
        p.client.get(&format!("http://server/{MARKER}"), &["-H", &format!("x: {MARKER}")])?;
    ensure!(reply.status() == 200, "{}", reply.0);
    ensure!(reply.echo("path") == format!("/{MARKER}"), "{}", reply.0);
    let wire = capture.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    let ends = [p.client.ips.clone(), p.server.ips.clone()].concat();
    ensure!(wire.assert_all_tls(&ends)? > 0, "no session crossed the wire");

    let labels = [
        ("source_workload", "client"),
        ("destination_workload", "server"),
        ("destination_service", SERVER),
        ("response_code", "200"),
    ];
    counted_twice(&p.mesh, &before, &labels, 1.0)?;
    let mtls = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    p.mesh.counted(&before, "istio_requests_total", &mtls, 1.0)?;
    for node in 0..2 {
        let entry = p.mesh.logged(node, "the request", |e| e.text("path").contains(MARKER))?;
        ensure!(entry.text("response_code") == "200", "{}", entry.0);
    }
    let at_server = p.mesh.logged(1, "the peer", |e| e.text("path").contains(MARKER))?;
    let id = "spiffe://cluster.local/ns/default/sa/client";
    ensure!(at_server.text("source_principal") == id, "{}", at_server.0);
    Ok(())
}

#[test]
fn the_wire_speaks_tls_1_3_with_a_post_quantum_key_exchange() -> Result<()> {
    let p = pair()?;
    let capture = p.mesh.capture()?;
    // A restart of the other side makes sure that a session is opened while we look.
    let reply = p.client.get("http://server/", &[])?;
    ensure!(reply.status() == 200, "{}", reply.0);
    p.mesh.stop_daemon(1)?;
    p.mesh.spawn_daemon(1)?;
    p.mesh.wait_ready(1)?;
    fairlead_tests::eventually(
        "the server to be back",
        std::time::Duration::from_secs(10),
        || Ok((p.client.get("http://server/", &[])?.status() == 200).then_some(())),
    )?;
    let wire = capture.stop()?;
    let hellos: Vec<_> = wire.flows.iter().filter_map(|f| tls::hello(&f.bytes)).collect();
    let clients: Vec<_> = hellos.iter().filter(|h| !h.server).collect();
    let servers: Vec<_> = hellos.iter().filter(|h| h.server).collect();
    ensure!(!clients.is_empty() && !servers.is_empty(), "no handshake was seen: {hellos:?}");
    for hello in clients {
        ensure!(hello.versions == [tls::TLS13], "{hello:?}");
        ensure!(hello.shares.contains(&tls::X25519MLKEM768), "{hello:?}");
        ensure!(hello.alpn.iter().any(|a| a == "fairlead/1"), "{hello:?}");
        ensure!(hello.server_name.is_none(), "the name of the peer is in the clear: {hello:?}");
    }
    for hello in servers {
        ensure!(hello.versions == [tls::TLS13], "{hello:?}");
        ensure!(hello.groups == [tls::X25519MLKEM768], "{hello:?}");
        ensure!((0x1301..=0x1303).contains(&hello.suites[0]), "{hello:?}");
    }
    Ok(())
}

#[test]
fn without_a_label_nothing_is_touched() -> Result<()> {
    let p = pair()?;
    p.mesh.enrol("default", false);
    p.mesh.sync()?;
    let url = format!("http://{}:8080/{MARKER}", p.server.ip());
    let capture = p.mesh.capture()?;
    fairlead_tests::eventually("the pods to have left", std::time::Duration::from_secs(5), || {
        let before = p.mesh.metrics()?;
        ensure!(p.client.get(&url, &[])?.status() == 200);
        std::thread::sleep(std::time::Duration::from_millis(50));
        let seen = p.mesh.metrics()?.sum("istio_requests_total", &[])
            - before.sum("istio_requests_total", &[]);
        Ok((seen == 0.0).then_some(()))
    })?;
    ensure!(capture.stop()?.saw_plaintext(MARKER), "the control saw no plaintext");
    Ok(())
}

#[test]
fn inbound_of_a_client_outside_the_mesh_is_captured() -> Result<()> {
    let p = pair()?;
    let outside = p.mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    p.mesh.sync()?;
    let before = p.mesh.metrics()?;
    let to = format!("{}:9000", p.server.ip());
    for i in 1..=5 {
        let sent = outside.send(&to, "hello\\n", &["--half-close"])?;
        ensure!(sent.received().contains("bye"), "{}", sent.0);
        let labels = [("reporter", "destination"), ("destination_workload", "server")];
        let seen =
            p.mesh.counted(&before, "istio_tcp_connections_opened_total", &labels, f64::from(i))?;
        ensure!(seen == f64::from(i), "{seen} connections counted after {i}");
    }
    let from = outside.ip().to_string();
    let entry = p.mesh.logged(1, "the client", |e| e.mentions(&from))?;
    ensure!(entry.text("source_principal").is_empty(), "{}", entry.0);
    let none = [("reporter", "destination"), ("connection_security_policy", "none")];
    p.mesh.counted(&before, "istio_tcp_connections_opened_total", &none, 5.0)?;
    Ok(())
}

#[test]
fn no_netfilter_rule_exists_while_capture_works() -> Result<()> {
    let p = pair()?;
    ensure!(p.client.get("http://server/", &[])?.status() == 200);
    for netns in [&p.client.netns, &p.server.netns, &p.mesh.node(0).netns, &p.mesh.node(1).netns] {
        let (nft, legacy) = netns.enter(|| {
            let nft = shell::run("nft", &["list", "ruleset"])?;
            let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
            Ok((nft, legacy.unwrap_or_default()))
        })?;
        ensure!(nft.trim().is_empty(), "{}: {nft}", netns.name());
        ensure!(legacy.trim().is_empty(), "{}: {legacy}", netns.name());
    }
    Ok(())
}

#[test]
fn same_node_traffic_never_reaches_the_wire() -> Result<()> {
    let p = pair_on(0)?;
    let before = p.mesh.metrics()?;
    let capture = p.mesh.capture()?;
    for _ in 0..3 {
        let reply = p.client.get(&format!("http://server/{MARKER}"), &[])?;
        ensure!(reply.status() == 200, "{}", reply.0);
        ensure!(reply.echo("peer").contains(&p.client.ip().to_string()), "{}", reply.0);
    }
    let sent = p.client.send("server:9000", "hello\\n", &["--half-close"])?;
    ensure!(sent.received().contains("bye"), "{}", sent.0);
    let wire = capture.stop()?;
    ensure!(wire.segments.is_empty(), "{} segments crossed the wire", wire.segments.len());
    // Both sides are counted all the same, under the client's identity.
    let labels = [("source_workload", "client"), ("destination_workload", "server")];
    counted_twice(&p.mesh, &before, &labels, 3.0)?;
    let id = [("source_principal", "spiffe://cluster.local/ns/default/sa/client")];
    p.mesh.counted(&before, "istio_requests_total", &id, 3.0)?;
    Ok(())
}
