//! Connections into a pod come to the daemon on whatever port, and what the daemon hands on shows
//! the real client.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use fairlead_capture::Counter;
use fairlead_types::{ClientAddr, PodSockets};

use crate::app::App;
use crate::bed::{
    Node, PEER4, PEER6, POD4, POD6, Wire, accept, addr, deliver, is_v6, listener, spec, take,
    try_accept,
};

/// Rows 1.2, 1.12, 1.13, 1.18: both families, and a dual-stack server that sees an IPv4 client.
#[test]
fn real_client() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut client = App::new(&wire.peer);
    let mut server = App::new(&wire.pod);
    for (ip, at, port) in [(POD4, "0.0.0.0", 9001), (POD6, "[::]", 9002), (POD4, "[::]", 9003)] {
        server.ask(&format!("listen {port} {at}:{port}"));
        let to = addr(ip, port);
        client.order(&format!("connect c {to}"));
        let (inbound, from) = accept(listener(&pod.inbound, is_v6(ip)));
        // The local address of the accepted socket is the original destination.
        assert_eq!(inbound.local_addr().unwrap(), to);
        let answer = client.answer();
        assert_eq!(answer, format!("local={from} peer={to}"));

        server.order(&format!("accept {port} s"));
        let delivered = deliver(&pod, from, to).unwrap();
        assert!(delivered.local_addr().unwrap().ip() != from.ip());
        let mapped = at == "[::]" && !is_v6(ip);
        let show = |a: std::net::SocketAddr| {
            if mapped { format!("[::ffff:{}]:{}", a.ip(), a.port()) } else { a.to_string() }
        };
        let (from, to) = (show(from), show(to));
        assert_eq!(server.answer(), format!("accepted={from} peer={from} local={to}"));
        server.ask("close s");
    }
    assert_eq!(node.counter(Counter::CapturedInbound), 3);
    assert_eq!(node.counter(Counter::ClientAttached), 3);
    assert_eq!(node.capture().under_way().unwrap(), (0, 0));
}

/// Row 1.11: an excluded port is reached directly.
#[test]
fn excluded_port() {
    let wire = Wire::new();
    let node = Node::new();
    let mut spec = spec(&wire.pod);
    spec.excluded_inbound_ports = vec![9000];
    let pod = node.capture().enroll(&spec).unwrap();
    let mut client = App::new(&wire.peer);
    let mut server = App::new(&wire.pod);
    server.ask("listen l [::]:9000");
    for to in [addr(POD4, 9000), addr(POD6, 9000)] {
        server.order("accept l s");
        let connected = client.ask(&format!("connect c {to}"));
        assert!(connected.ends_with(&format!("peer={to}")), "{connected}");
        let met = server.answer();
        let met = met.trim_start_matches("accepted=").trim_start_matches("[::ffff:");
        assert!(met.starts_with(PEER4) || met.starts_with(&format!("[{PEER6}]")), "{met}");
    }
    client.order(&format!("connect c {}", addr(POD4, 9001)));
    accept(listener(&pod.inbound, false));
    assert_eq!(node.counter(Counter::PassedExcludedInbound), 2);
}

/// Row 1.11: where a pod names the ports that are captured, others are reached directly.
#[test]
fn included_ports() {
    let wire = Wire::new();
    let node = Node::new();
    let mut spec = spec(&wire.pod);
    spec.only_inbound_ports = Some(vec![9001]);
    let pod = node.capture().enroll(&spec).unwrap();
    let mut client = App::new(&wire.peer);
    let mut server = App::new(&wire.pod);
    server.ask("listen l [::]:9000");
    server.order("accept l s");
    let connected = client.ask(&format!("connect c {}", addr(POD4, 9000)));
    assert!(connected.ends_with(&format!("peer={POD4}:9000")), "{connected}");
    server.answer();
    client.order(&format!("connect c {}", addr(POD4, 9001)));
    accept(listener(&pod.inbound, false));
    client.answer();
    drop(pod);
    spec.only_inbound_ports = Some(vec![]);
    let pod = node.capture().enroll(&spec).unwrap();
    let refused = client.ask(&format!("connect c {}", addr(POD4, 9001)));
    assert_eq!(refused, format!("errno {}", libc::ECONNREFUSED), "the application itself answers");
    drop(pod);
}

/// Row 1.21 and the design's note: a pod that talks to its own address is captured on the way out,
/// and the delivery is not captured again on the way in.
#[test]
fn own_address() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    let mut server = App::new(&wire.pod);
    server.ask("listen l [::]:9000");
    for to in [addr(POD4, 9000), addr(POD6, 9000)] {
        app.order(&format!("connect c {to}"));
        let (captured, dst) = take(&pod, to.is_ipv6());
        assert_eq!(dst.0, to);
        app.answer();
        server.order("accept l s");
        let client = SocketAddr::new(to.ip(), captured.peer_addr().unwrap().port());
        let _delivered = deliver(&pod, client, to).unwrap();
        let met = server.answer();
        assert!(met.contains(&client.port().to_string()), "{met}");
    }
    assert_eq!(node.counter(Counter::CapturedInbound), 0);
    assert_eq!(node.counter(Counter::ClientAttached), 2);
}

/// The inbound listener is reached by steering or not at all: from inside, a connection to it
/// would be delivered to itself.
#[test]
fn direct_connection_to_the_listener() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    for v6 in [false, true] {
        let at = listener(&pod.inbound, v6).local_addr().unwrap();
        assert_eq!(app.ask(&format!("connect c {at}")), "errno 111");
        assert!(try_accept(listener(&pod.inbound, v6), Duration::from_millis(50)).is_none());
        // Nor by a delivery to that port.
        let own = addr(if v6 { POD6 } else { POD4 }, at.port());
        let client = addr(if v6 { PEER6 } else { PEER4 }, 5);
        let error = deliver(&pod, client, own).expect_err("delivered to the daemon itself");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
    // The kernel may look more than once.
    assert!(node.counter(Counter::RefusedDirectInbound) >= 4);
}

/// The ports of the daemon's listeners are those of their family: the application may have the same
/// one in the other.
#[test]
fn the_other_familys_listener() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    for v6 in [false, true] {
        let port = listener(&pod.inbound, v6).local_addr().unwrap().port();
        let own = addr(if v6 { "127.0.0.1" } else { "::1" }, port);
        app.ask(&format!("listen own{v6} {own}"));
        let connected = app.ask(&format!("connect c{v6} {own}"));
        assert!(connected.ends_with(&format!("peer={own}")), "{connected}");
    }
    assert_eq!(node.counter(Counter::RefusedDirectInbound), 0);
}

/// The listeners are where applications usually are not, and never where one is known to be.
#[test]
fn ports_of_applications_stay_free() {
    const FIRST: u16 = 61_000;
    let wire = Wire::new();
    let node = Node::new();
    let ports = |pod: &PodSockets| {
        let all = pod.outbound.iter().chain(&pod.inbound);
        let all: BTreeSet<u16> = all.map(|l| l.local_addr().unwrap().port()).collect();
        assert_eq!(all.len(), 4, "{all:?}");
        all
    };
    for _ in 0..20 {
        let all = ports(&node.enroll(&wire.pod));
        assert!(all.iter().all(|port| *port >= FIRST), "{all:?}");
    }
    // Nearly all of them are the application's, and so are some of the kernel's choice.
    wire.in_pod(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40007"));
    let mut spec = spec(&wire.pod);
    spec.probe_ports = (FIRST..=65_500).chain([40_001, 40_003]).collect();
    let taken: BTreeSet<u16> = spec.probe_ports.iter().copied().collect();
    for _ in 0..5 {
        let all = ports(&node.capture().enroll(&spec).unwrap());
        assert!(all.is_disjoint(&taken), "{all:?}");
    }
}

/// An application that takes the delivery source for its own is refused, and where it cannot be
/// (it is not enrolled), it shows as what it is.
#[test]
fn forged_delivery_source() {
    let wire = Wire::new();
    let node = Node::new();
    let mut forger = App::new(&wire.pod);
    let mut server = App::new(&wire.pod);
    server.ask("listen l 127.0.0.1:9000");
    // A connection that was open before the pod joined.
    forger.ask("connect old 127.0.0.1:9000 bind=127.0.0.6");
    let pod = node.enroll(&wire.pod);
    let met = server.ask("accept l s");
    assert!(met.starts_with("accepted=127.0.0.6:"), "{met}");
    for source in ["127.0.0.6", "127.0.0.9"] {
        assert_eq!(forger.ask(&format!("connect c 127.0.0.1:9000 bind={source}")), "errno 111");
    }
    assert_eq!(node.counter(Counter::RefusedForgedSource), 2);
    // IPv6, once a delivery has put the sources there.
    server.ask("listen l6 [::1]:9000");
    server.order("accept l6 s");
    deliver(&pod, addr(PEER6, 1234), addr("::1", 9000)).unwrap();
    assert!(server.answer().starts_with(&format!("accepted=[{PEER6}]:1234")));
    assert_eq!(forger.ask("connect c [::1]:9000 bind=::6"), "errno 111");
    assert_eq!(node.counter(Counter::RefusedForgedSource), 3);
}

/// A delivery that the application refuses leaves nothing behind for the next one on its port.
#[test]
fn refused_delivery() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    for to in [addr(POD4, 9000), addr(POD6, 9000)] {
        let error = deliver(&pod, addr(PEER4, 1), to).expect_err("nobody listens");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    }
    // Never connected at all.
    drop(pod.port.delivery_socket(ClientAddr(addr(PEER4, 1)), addr(POD4, 9000)).unwrap());
    assert_eq!(node.counter(Counter::ClientPublished), 2);
    assert_eq!(node.counter(Counter::ClientWithdrawn), 2);
    assert_eq!(node.capture().under_way().unwrap(), (0, 0));
}
