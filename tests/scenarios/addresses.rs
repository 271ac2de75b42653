//! Applications see real addresses: the client's at the server (row 1.12), the one asked for at the
//! client and as the server's own (1.13), in both families (1.18).

use std::net::IpAddr;

use anyhow::{Result, ensure};
use fairlead_tests::manifest::Families;
use fairlead_tests::{Mesh, PodSpec, ServiceSpec, shell};
use fairlead_wire::cni::{Request, Response};

use crate::common::{ask_as_plugin, echo_args, sandbox, service};

fn host(ip: std::net::IpAddr) -> String {
    if ip.is_ipv4() { ip.to_string() } else { format!("[{ip}]") }
}

#[test]
fn both_ends_see_real_addresses_in_both_families() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let outside = mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    let near = mesh.pod(PodSpec::new("near"))?;
    let far = mesh.pod(PodSpec::new("far").on(1))?;
    let vips = [("near", mesh.service(service("near"))), ("far", mesh.service(service("far")))];
    mesh.service(
        ServiceSpec::new("headless")
            .headless()
            .port("http", 8080, 8080)
            .selector(&[("app", "far")]),
    );
    mesh.start()?;
    let _near = near.serve(&echo_args("near", "v1"))?;
    let _far = far.serve(&echo_args("far", "v1"))?;
    for (server, (_, vips)) in [&near, &far].into_iter().zip(&vips) {
        for v4 in [true, false] {
            let (own, pod) = (client.ip_of(v4), server.ip_of(v4));
            let vip = *vips.iter().find(|v| v.is_ipv4() == v4).unwrap_or(&vips[0]);
            // By pod address and by cluster address: HTTP and bytes.
            for (to, port, seen) in
                [(pod, 8080, "peer"), (vip, 80, "peer"), (pod, 8080, "accepted")]
            {
                let reply = client.get(&format!("http://{}:{port}/", host(to)), &[])?;
                ensure!(reply.status() == 200, "{to}: {}", reply.0);
                ensure!(reply.echo("name") == server.name, "{to}: {}", reply.0);
                let peer: std::net::SocketAddr = reply.echo(seen).parse()?;
                ensure!(peer.ip() == own, "{to}: the server's {seen} is {peer}, not {own}");
                let local: std::net::SocketAddr = reply.echo("local").parse()?;
                ensure!((local.ip(), local.port()) == (pod, 8080), "{to}: local is {local}");
                let asked = reply.0["peer"].as_str().unwrap_or_default();
                ensure!(asked == format!("{}:{port}", host(to)), "{to}: the client sees {asked}");
            }
            let sent = client.send(&format!("{}:9000", host(vip)), "x\\n", &["--half-close"])?;
            let peer: std::net::SocketAddr = sent.greeting("peer").parse()?;
            ensure!(peer.ip() == own, "bytes: {}", sent.0);
            let told = sent.0["local"].as_str().unwrap_or_default();
            ensure!(!told.is_empty() && sent.received().contains("bye"), "{}", sent.0);
            // A client outside the mesh.
            let reply = outside.get(&format!("http://{}:8080/", host(pod)), &[])?;
            let peer: std::net::SocketAddr = reply.echo("peer").parse()?;
            ensure!(peer.ip() == outside.ip_of(v4), "outside: {}", reply.0);
            ensure!(
                peer.to_string() == reply.0["local"].as_str().unwrap_or_default(),
                "{}",
                reply.0
            );
        }
    }
    Ok(())
}

#[test]
fn pods_of_one_family_only() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let client6 = mesh.pod(PodSpec::new("client6").families(Families::V6))?;
    let client4 = mesh.pod(PodSpec::new("client4").families(Families::V4))?;
    let server6 = mesh.pod(PodSpec::new("server6").on(1).families(Families::V6))?;
    let server4 = mesh.pod(PodSpec::new("server4").on(1).families(Families::V4))?;
    mesh.start()?;
    // Listening on one family's wildcard, and on both.
    let _six = server6.serve(&["echo", "--name", "server6", "--http", "8080", "--tcp", "9000"])?;
    let _four = server4.serve(&[
        "echo", "--name", "server4", "--http", "8080", "--tcp", "9000", "--bind", "0.0.0.0",
    ])?;
    let capture = mesh.capture()?;
    for (client, server) in [(&client6, &server6), (&client4, &server4)] {
        let before = mesh.metrics()?;
        let reply = client.get(&format!("http://{}:8080/MARKER-family", host(server.ip())), &[])?;
        ensure!(reply.status() == 200, "{}: {}", server.name, reply.0);
        let peer: std::net::SocketAddr = reply.echo("peer").parse()?;
        ensure!(peer.ip() == client.ip(), "{}", reply.0);
        let labels = [("destination_workload", server.name.as_str()), ("reporter", "destination")];
        mesh.counted(&before, "istio_requests_total", &labels, 1.0)?;
        let sent =
            client.send(&format!("{}:9000", host(server.ip())), "x\\n", &["--half-close"])?;
        ensure!(sent.received().contains("bye"), "{}", sent.0);
    }
    let wire = capture.stop()?;
    wire.assert_no_plaintext("MARKER-family")?;
    wire.assert_all_tls(&[&client6.ips[..], &client4.ips, &server6.ips, &server4.ips].concat())?;
    Ok(())
}

#[test]
fn forged_sources_and_the_own_address_are_no_way_around() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let pod = mesh.pod(PodSpec::new("pod"))?;
    mesh.service(service("pod"));
    mesh.start()?;
    let _echo = pod.serve(&echo_args("pod", "v1"))?;
    // To itself: by loopback, by its own address.
    for to in ["127.0.0.1".to_owned(), pod.ip().to_string()] {
        let reply = pod.get(&format!("http://{to}:8080/"), &[])?;
        ensure!(reply.status() == 200, "{to}: {}", reply.0);
    }
    // Whoever binds to the daemon's own source address is still itself.
    let own = format!("{}:9000", pod.ip());
    let sent = pod.send(&own, "x\\n", &["--source", "127.0.0.6:0", "--half-close"])?;
    if sent.connected() && !sent.greeting("peer").is_empty() {
        let peer: std::net::SocketAddr = sent.greeting("peer").parse()?;
        let honest = peer.ip() == pod.ip() || peer.ip().is_loopback();
        ensure!(honest, "a forged source became {peer}");
    }
    // The daemon's listeners give nothing to whoever finds them.
    let flows = pod.exec(std::path::Path::new("/bin/sh"), &["-c", "cat /proc/net/tcp"])?;
    let listeners = flows.lines().filter(|l| l.split_whitespace().nth(3) == Some("0A"));
    let before = mesh.metrics()?;
    for line in listeners {
        let local = line.split_whitespace().nth(1).unwrap_or_default();
        let Some((ip, port)) = local.split_once(':') else { continue };
        let port = u16::from_str_radix(port, 16)?;
        if ip == "0100007F" {
            let sent = pod.send(
                &format!("127.0.0.1:{port}"),
                "GET / HTTP/1.1\\r\\nHost: pod\\r\\n\\r\\n",
                &[],
            )?;
            ensure!(!sent.received().contains("200 OK"), "port {port} answered: {}", sent.0);
        }
    }
    drop(before);
    Ok(())
}

/// A pod that has just started stands in no API object with its addresses, one that was started
/// again with those that it had before, and one that may administer its network has those on its
/// interfaces that it likes: servers, and policies of those that it reaches, know all of them by
/// what the network plugins gave them, also after the daemon has started again.
#[test]
fn a_pod_that_has_just_started_is_known_by_the_addresses_that_it_was_given() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let near = mesh.pod(PodSpec::new("near"))?;
    let far = mesh.pod(PodSpec::new("far").on(1))?;
    let sockets: Vec<_> = (0..2).map(|node| mesh.dir().join(format!("cni{node}.sock"))).collect();
    let start = |node: usize| {
        let socket = sockets[node].display().to_string();
        mesh.spawn_daemon_with(node, &["--cni-socket", &socket])?;
        mesh.wait_ready(node)
    };
    mesh.sync()?;
    (0..2).try_for_each(start)?;
    let _near = near.serve(&echo_args("near", "v1"))?;
    let _far = far.serve(&echo_args("far", "v1"))?;

    let new = mesh.pod(PodSpec::new("new").account("client").listed(&[]))?;
    let former = ["10.251.252.253".parse()?, "fd00:251:252::253".parse()?];
    let moved = mesh.pod(PodSpec::new("moved").account("client").listed(&former))?;
    let forger = mesh.pod(PodSpec::new("forger").account("client").listed(&[]))?;
    let stolen: IpAddr = "10.77.0.250".parse()?;
    shell::ip_batch(
        Some(forger.netns.name()),
        &format!(
            "addr flush dev eth0\naddr add {stolen}/24 dev eth0\nroute add default via 10.77.0.1\n"
        ),
    )?;
    // The network first, then the pod's object as far as the node knows.
    let clients = [&new, &moved, &forger];
    std::thread::scope(|scope| {
        let add = |pod| ask_as_plugin(&sockets[0], &Request::Add(sandbox(pod)));
        let asked = clients.map(|pod| scope.spawn(move || add(pod)));
        mesh.sync()?;
        for asked in asked {
            let answer = asked.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            ensure!(answer == Response::Enrolled, "{answer:?}");
        }
        Ok(())
    })?;
    let capture = mesh.capture()?;
    // What comes to another node from an address that the sender is not known by is refused there.
    let pairs = || {
        let both = [&new, &moved].into_iter().flat_map(|client| [(client, &near), (client, &far)]);
        both.chain([(&forger, &near)])
    };
    let known = || -> Result<()> {
        for (client, server) in pairs() {
            let reply = client.get(&format!("http://{}:8080/", server.ip()), &[])?;
            ensure!(reply.status() == 200, "{} to {}: {}", client.name, server.name, reply.0);
            let xfcc = reply.seen("x-forwarded-client-cert").unwrap_or_default();
            ensure!(xfcc.contains("/sa/client"), "{}: XFCC is {xfcc:?}", server.name);
            let peer: std::net::SocketAddr = reply.echo("peer").parse()?;
            ensure!(peer.ip() == client.ip(), "{} sees {peer}, not {}", server.name, client.ip());
        }
        Ok(())
    };
    known()?;
    let forged = forger.get(&format!("http://{}:8080/", far.ip()), &[])?;
    ensure!(forged.status() == 400, "a forged address got through: {}", forged.0);
    mesh.kill_daemon(0)?;
    start(0)?;
    known()?;
    let policy = |action: &str, ips: &[IpAddr]| {
        let blocks: Vec<String> = ips.iter().map(|ip| format!("'{ip}'")).collect();
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: \
             policy, namespace: default}}\nspec:\n  action: {action}\n  rules: [{{from: \
             [{{source: {{ipBlocks: [{}]}}}}]}}]\n",
            blocks.join(", ")
        )
    };
    mesh.apply("policy", &policy("DENY", &clients.map(|pod| pod.ip())))?;
    for (client, server) in pairs() {
        let reply = client.get(&format!("http://{}:8080/", server.ip()), &[])?;
        ensure!(reply.status() == 403, "{} is open to {}: {}", server.name, client.name, reply.0);
    }
    // Whoever has that address may come in, and nobody has.
    mesh.apply("policy", &policy("ALLOW", &[stolen]))?;
    let reply = forger.get(&format!("http://{}:8080/", near.ip()), &[])?;
    ensure!(reply.status() == 403, "it is taken for what its interface says: {}", reply.0);
    let addresses = clients.iter().flat_map(|pod| pod.ips.clone()).chain([stolen]);
    let captured = capture.stop()?;
    for client in addresses {
        captured.assert_all_tls(&[&[client], &far.ips[..]].concat())?;
    }
    Ok(())
}
