//! Bytes on one node and to destinations outside the mesh.

use std::time::{Duration, Instant};

use fairlead_config::model::{OutboundPolicy, PeerWire, UpstreamTls};
use fairlead_policy::authz::Action;
use fairlead_policy::route::{TcpMatch, TcpRoute, TcpRouteTable, Weighted, WeightedDestination};
use fairlead_types::{AppProtocol, Labels};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{TestPod, World, policy, soon};

/// Says whom it sees, then echoes.
pub(super) async fn echo(mut stream: TcpStream, client: std::net::SocketAddr) {
    let _ = stream.write_all(format!("{} ", client.ip()).as_bytes()).await;
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

pub(super) async fn ask(
    pod: &TestPod,
    to: std::net::SocketAddr,
    text: &str,
) -> std::io::Result<String> {
    let mut stream = pod.connect(to).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut got = String::new();
    stream.read_to_string(&mut got).await?;
    Ok(got)
}

#[tokio::test]
async fn same_node_enrolled_pods() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let (vip, _) = world.service("db", AppProtocol::Tcp, &[(&server, addr)]);
    world.publish().await;
    let got = soon(ask(&client, vip, "hello")).await.unwrap();
    assert_eq!(got, format!("{} hello", client.ip), "the application sees the client");
    // By the pod's own address, and a pod to itself.
    assert_eq!(soon(ask(&client, addr, "x")).await.unwrap(), format!("{} x", client.ip));
    assert_eq!(soon(ask(&server, vip, "y")).await.unwrap(), format!("{} y", server.ip));

    let node = &world.nodes[0];
    let log = node.log(3).await;
    assert_eq!(log[0]["upstream_host"], addr.to_string());
    assert_eq!(log[0]["upstream_cluster"], "outbound|80||db.default.svc.cluster.local");
    assert_eq!(log[0]["bytes_received"], 5);
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        let labels = [reporter, "destination_service=\"db.default.svc.cluster.local\""];
        node.until_metric("istio_tcp_connections_closed_total", &labels, 3).await;
        assert_eq!(node.metric("istio_tcp_connections_opened_total", &labels), 3);
        assert_eq!(node.metric("istio_tcp_received_bytes_total", &labels), 7);
    }
    assert_eq!(node.plane.connections().len(), 0);
}

#[tokio::test]
async fn outside_the_mesh_and_unknown() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let plain = world.pod(0, "plain", PeerWire::Plain).await;
    let addr = world.listen(&plain, echo).await;
    let (vip, _) = world.service("legacy", AppProtocol::Tcp, &[(&plain, addr)]);
    let unknown = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = unknown.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, peer)) = unknown.accept().await {
            tokio::spawn(echo(stream, peer));
        }
    });
    world.publish().await;
    assert_eq!(soon(ask(&client, vip, "a")).await.unwrap(), format!("{} a", client.ip));
    assert_eq!(soon(ask(&client, elsewhere, "b")).await.unwrap(), format!("{} b", client.ip));

    world.mesh(|mesh| mesh.outbound = OutboundPolicy::RegistryOnly);
    world.publish().await;
    let error = soon(ask(&client, elsewhere, "c")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(soon(ask(&client, vip, "d")).await.unwrap(), format!("{} d", client.ip));
    let log = world.nodes[0].log(4).await;
    assert!(log[2].to_string().contains("REGISTRY_ONLY"), "{}", log[2]);
    let labels = ["response_flags=\"NO_ROUTE\""];
    assert_eq!(world.nodes[0].metric("istio_tcp_connections_failed_total", &labels), 1);
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let dead = std::net::SocketAddr::new(server.ip, 1);
    let (vip, _) = world.service("db", AppProtocol::Tcp, &[(&server, dead), (&server, addr)]);
    world.publish().await;
    for _ in 0..10 {
        assert_eq!(soon(ask(&client, vip, "x")).await.unwrap(), format!("{} x", client.ip));
    }
    let (none, _) = world.service("none", AppProtocol::Tcp, &[(&server, dead)]);
    world.publish().await;
    let error = soon(ask(&client, none, "x")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let log = world.nodes[0].log(11).await;
    assert_eq!(log[10]["response_flags"], "UF");
    let labels = ["response_flags=\"CONNECT\"", "reporter=\"source\""];
    world.nodes[0].until_metric("istio_tcp_connections_failed_total", &labels, 1).await;
}

#[tokio::test]
async fn uncaptured_connections_are_refused() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    world.publish().await;
    let mut stream = client.connect_uncaptured().await.unwrap();
    let error = soon(stream.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    world.nodes[0].until_metric("fairlead_flow_miss_total", &[], 1).await;
    let log = world.nodes[0].log(1).await;
    assert!(log[0].to_string().contains("no flow entry"), "{}", log[0]);
}

#[tokio::test]
async fn tcp_routes_by_source_and_weight() {
    let mut world = World::new(1);
    let one = world.pod_with(0, "one", PeerWire::Native, &[("version", "v1")]).await;
    let two = world.pod_with(0, "two", PeerWire::Native, &[("version", "v2")]).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let say = |text: &'static str| {
        move |mut s: TcpStream, _| async move {
            let _ = s.write_all(text.as_bytes()).await;
        }
    };
    let (a, b) = (world.listen(&server, say("a")).await, world.listen(&server, say("b")).await);
    let (vip, all) = world.service("db", AppProtocol::Tcp, &[(&server, a), (&server, b)]);
    let (only_a, only_b) =
        (world.subset(vip, "a", &[(&server, a)]), world.subset(vip, "b", &[(&server, b)]));
    let to = |cluster, weight| WeightedDestination { weight, cluster, headers: Default::default() };
    let labels: Labels = [("version", "v2")].into_iter().collect();
    let by_label = TcpMatch { source_labels: labels, ..TcpMatch::default() };
    let table = TcpRouteTable {
        routes: Box::new([
            TcpRoute {
                name: "v2".into(),
                matches: Box::new([by_label]),
                destinations: Weighted::new(vec![to(only_b, 1)]),
            },
            TcpRoute {
                name: "rest".into(),
                matches: Box::default(),
                destinations: Weighted::new(vec![to(only_a, 80), to(only_b, 20)]),
            },
        ]),
    };
    world.routes(vip, None, Some(table));
    world.publish().await;
    let _ = all;
    for _ in 0..20 {
        assert_eq!(soon(ask(&two, vip, "")).await.unwrap(), "b");
    }
    let mut count = 0;
    for _ in 0..400 {
        count += usize::from(soon(ask(&one, vip, "")).await.unwrap() == "a");
    }
    assert!((260..380).contains(&count), "{count} of 400 at weight 80");
}

/// The DestinationRule of a headless service holds for the addresses of its pods, of another
/// service it does not (Istio has listeners for the former).
#[tokio::test]
async fn a_headless_services_rule_holds_for_its_pods() {
    for headless in [true, false] {
        let mut world = World::new(1);
        let client = world.pod(0, "client", PeerWire::Native).await;
        let outside = world.pod(0, "outside", PeerWire::Plain).await;
        let addr = world.listen(&outside, echo).await;
        world.member(&outside, addr, headless, UpstreamTls::Mutual { sans: Box::default() });
        world.publish().await;
        let asked = soon(ask(&client, addr, "x")).await;
        assert_eq!(asked.is_err(), headless, "{asked:?}");
        let log = world.nodes[0].log(1).await[0].to_string();
        assert_eq!(log.contains("ISTIO_MUTUAL"), headless, "{log}");
    }
}

#[tokio::test]
async fn server_first_on_an_undeclared_port() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let banner = |mut stream: TcpStream, _| async move {
        let _ = stream.write_all(b"220 ready\r\n").await;
        let mut line = [0; 6];
        let _ = stream.read_exact(&mut line).await;
        let _ = stream.write_all(&line).await;
    };
    let ask = async |vip| {
        let began = Instant::now();
        let mut stream = client.connect(vip).await.unwrap();
        let mut line = [0; 11];
        soon(stream.read_exact(&mut line)).await.unwrap();
        let waited = began.elapsed();
        assert_eq!(&line, b"220 ready\r\n");
        stream.write_all(b"QUIT\r\n").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"QUIT\r\n");
        waited
    };
    // Three that nobody knows anything of yet: a machine may be busy with something else for once.
    let mut first = Vec::new();
    let mut vip = None;
    for name in ["mail", "post", "news"] {
        let addr = world.listen(&server, banner).await;
        let (new, _) = world.service(name, AppProtocol::Detect, &[(&server, addr)]);
        world.publish().await;
        first.push(ask(new).await);
        vip = Some(new);
    }
    let best = first.iter().min().unwrap();
    assert!(*best < Duration::from_millis(100), "first banner after {first:?}");
    let mut waits = Vec::new();
    for _ in 0..20 {
        waits.push(ask(vip.unwrap()).await);
    }
    waits.sort();
    // What the way itself waits is in every one of them.
    assert!(waits[2] < Duration::from_millis(10), "the quickest banners after {waits:?}");
}

#[tokio::test]
async fn denied_at_the_destination_and_cut_when_policy_changes() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let (vip, _) = world.service("db", AppProtocol::Tcp, &[(&server, addr)]);
    world.authz(&server, vec![policy(Action::Allow, &["cluster.local/ns/default/sa/client"], &[])]);
    world.publish().await;
    let mut long = client.connect(vip).await.unwrap();
    long.write_all(b"hi").await.unwrap();
    let mut got = vec![0; client.ip.to_string().len() + 3];
    soon(long.read_exact(&mut got)).await.unwrap();
    assert_eq!(world.nodes[0].plane.connections().len(), 1);

    world.authz(&server, vec![policy(Action::Deny, &["cluster.local/ns/default/sa/client"], &[])]);
    world.publish().await;
    let began = Instant::now();
    let error = soon(long.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(began.elapsed() < Duration::from_secs(1), "cut after {:?}", began.elapsed());
    let error = soon(ask(&client, vip, "x")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let log = world.nodes[0].log(2).await;
    assert!(log[0].to_string().contains("change of policy"), "{}", log[0]);
    assert!(log[1].to_string().contains("rbac_access_denied_matched_policy"), "{}", log[1]);
    let labels = ["response_flags=\"DENY\"", "reporter=\"destination\""];
    world.nodes[0].until_metric("istio_tcp_connections_failed_total", &labels, 1).await;
}

#[tokio::test]
async fn bounds_and_drain() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let server = world.pod(0, "server", PeerWire::Native).await;
    let addr = world.listen(&server, echo).await;
    let (vip, _) = world.service("db", AppProtocol::Tcp, &[(&server, addr)]);
    world.publish().await;
    let mut held = client.connect(vip).await.unwrap();
    held.write_all(b"a").await.unwrap();
    let mut got = vec![0; client.ip.to_string().len() + 2];
    soon(held.read_exact(&mut got)).await.unwrap();
    let plane = &world.nodes[0].plane;
    let cut = soon(plane.drain(Duration::from_millis(200))).await;
    assert_eq!(cut, 1, "the held connection had to be cut");
    assert!(soon(held.read(&mut [0])).await.is_err());
    assert!(client.connect(vip).await.is_err(), "nobody accepts any more");
}

#[tokio::test]
async fn a_connection_of_bytes_is_small() {
    let mut world = World::new(1);
    let client = world.pod(0, "client", PeerWire::Native).await;
    let shared = &world.nodes[0].plane.shared;
    let pod = shared.pod(&client.workload.id).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connect = || async { TcpStream::connect(addr).await.unwrap() };
    let outbound = crate::outbound::future_size(shared.clone(), pod.clone(), connect().await, addr);
    let inbound = crate::inbound::future_size(shared.clone(), pod, connect().await);
    assert!(outbound < 8192 && inbound < 8192, "{outbound} {inbound}");
}
