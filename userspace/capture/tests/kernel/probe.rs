//! The node's own connections to the ports that a pod declares for probes, and the ways to look like
//! one.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use fairlead_capture::Counter;

use crate::app::App;
use crate::bed::{
    Namespace, Node, PATIENCE, PEER4, PEER6, POD4, POD6, accept, addr, cgroup, ip, is_v6,
    isolated_host, listener, spec, try_accept,
};

/// Row 1.14: a probe of the kubelet reaches the application itself, also while no daemon runs, and
/// finds a closed port closed; nobody else gets in that way.
#[test]
fn only_the_node_itself_passes() {
    if !isolated_host("probe::only_the_node_itself_passes") {
        return;
    }
    let pod = Namespace::new("pod");
    ip("link set lo up");
    ip(&format!("link add h0 type veth peer name eth0 netns {}", pod.name));
    for (words, v4, v6) in
        [(String::new(), PEER4, PEER6), (format!("-n {} ", pod.name), POD4, POD6)]
    {
        let dev = if words.is_empty() { "h0" } else { "eth0" };
        ip(&format!("{words}addr add {v4}/24 dev {dev}"));
        ip(&format!("{words}addr add {v6}/64 dev {dev} nodad"));
        ip(&format!("{words}link set {dev} up"));
    }
    let pods = cgroup().join("kubepods");
    let besteffort = pods.join("besteffort");
    fs::create_dir_all(&besteffort).unwrap();
    let mut node = Node::new();
    let mut wanted = spec(&pod);
    wanted.probe_ports = vec![8080, 8082];
    let mut sockets = node.capture().enroll(&wanted).unwrap();
    let mut server = App::new(&pod);
    server.ask("listen probed [::]:8080");
    server.ask("listen other [::]:8081");

    let passes = |server: &mut App, to: &str| {
        server.order("accept probed s");
        let probe = TcpStream::connect_timeout(&addr(to, 8080), PATIENCE).unwrap();
        let met = server.answer();
        let own = probe.local_addr().unwrap();
        assert!(met.contains(&own.ip().to_string()), "{met}: the application sees {own}");
        server.ask("close s");
        own
    };
    let own = passes(&mut server, POD4);
    passes(&mut server, POD6);
    assert_eq!(node.counter(Counter::PassedProbe), 2);
    // A declared port at which nobody listens.
    let refused = TcpStream::connect_timeout(&addr(POD4, 8082), PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // A port that is not for probes.
    for to in [POD4, POD6] {
        let _client = TcpStream::connect_timeout(&addr(to, 8081), PATIENCE).unwrap();
        accept(listener(&sockets.inbound, is_v6(to)));
    }
    let passed = node.counter(Counter::PassedProbe);

    // A pod on the host's network is not the node itself: not even with the port that a probe had.
    let mut guest = App::in_cgroup(&besteffort);
    guest.order(&format!("connect c {} bind={own}", addr(POD4, 8080)));
    accept(listener(&sockets.inbound, false));
    guest.answer();
    // Nor is another namespace.
    let other = Namespace::new("peer");
    ip(&format!("link add h1 type veth peer name eth0 netns {}", other.name));
    ip("addr add 10.78.0.1/24 dev h1");
    ip("link set h1 up");
    ip(&format!("-n {} addr add 10.78.0.2/24 dev eth0", other.name));
    ip(&format!("-n {} link set eth0 up", other.name));
    ip(&format!("-n {} route add 10.77.0.0/24 via 10.78.0.1", other.name));
    ip(&format!("-n {} route add default via {PEER4}", pod.name));
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let mut stranger = App::new(&other);
    stranger.order(&format!("connect c {}", addr(POD4, 8080)));
    accept(listener(&sockets.inbound, false));
    stranger.answer();
    assert_eq!(node.counter(Counter::PassedProbe), passed);

    // The daemon dies: probes go on, everything else is refused.
    drop(sockets);
    node.die();
    passes(&mut server, POD4);
    assert!(TcpStream::connect_timeout(&addr(POD4, 8081), PATIENCE).is_err());
    node.start();
    sockets = node.capture().enroll(&wanted).unwrap();
    passes(&mut server, POD6);

    // Without the declaration it is an ordinary connection again.
    wanted.probe_ports.clear();
    sockets = {
        drop(sockets);
        node.capture().enroll(&wanted).unwrap()
    };
    let _client = TcpStream::connect_timeout(&addr(POD4, 8080), PATIENCE).unwrap();
    assert!(try_accept(listener(&sockets.inbound, false), Duration::from_secs(5)).is_some());
    drop(guest);
    let _ = fs::remove_dir(&besteffort);
    let _ = fs::remove_dir(&pods);
}

/// Row 1.14: where nobody knows which cgroup is that of the pods, nobody is the node itself.
#[test]
fn without_a_cgroup_of_pods_nobody_passes() {
    if !isolated_host("probe::without_a_cgroup_of_pods_nobody_passes") {
        return;
    }
    let pod = Namespace::new("pod");
    ip(&format!("link add h0 type veth peer name eth0 netns {}", pod.name));
    ip(&format!("addr add {PEER4}/24 dev h0"));
    ip("link set h0 up");
    ip(&format!("-n {} addr add {POD4}/24 dev eth0", pod.name));
    ip(&format!("-n {} link set eth0 up", pod.name));
    let node = Node::new();
    let mut wanted = spec(&pod);
    wanted.probe_ports = vec![8080];
    let sockets = node.capture().enroll(&wanted).unwrap();
    let _client = TcpStream::connect_timeout(&addr(POD4, 8080), PATIENCE).unwrap();
    accept(listener(&sockets.inbound, false));
    assert_eq!(node.counter(Counter::PassedProbe), 0);
}
