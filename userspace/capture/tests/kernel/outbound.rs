//! Connections that a pod opens come to the daemon with their destination, or are refused.

use std::io::Write;
use std::net::SocketAddr;

use fairlead_capture::Counter;
use fairlead_types::FlowMiss;

use crate::app::App;
use crate::bed::{Node, PEER4, PEER6, POD4, POD6, Wire, accept, addr, is_v6, listener, spec, take};

/// Rows 1.1, 1.13, 1.18: both families and a dual-stack socket; the application sees the address
/// that it asked for.
#[test]
fn original_destination() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    for (ip, options) in [(PEER4, ""), (PEER6, ""), (PEER4, "family=6")] {
        let to = addr(ip, 8080);
        app.order(&format!("connect c {to} {options}"));
        let (mut stream, dst) = take(&pod, is_v6(ip));
        assert_eq!(dst.0, to);
        let answer = app.answer();
        // Both ends look as they would without the mesh.
        let port = stream.peer_addr().unwrap().port();
        let own = addr(if is_v6(ip) { POD6 } else { POD4 }, port);
        let show = |a: SocketAddr| {
            let dual = !options.is_empty();
            if dual { format!("[::ffff:{}]:{}", a.ip(), a.port()) } else { a.to_string() }
        };
        assert_eq!(answer, format!("local={} peer={}", show(own), show(to)));
        app.order("send c ping");
        assert_eq!(app.answer(), "sent");
        let mut got = [0; 4];
        std::io::Read::read_exact(&mut stream, &mut got).unwrap();
        assert_eq!(&got, b"ping");
        let peer = stream.peer_addr().unwrap();
        assert!(pod.port.take_original_dst(peer).is_err(), "a flow was there twice");
    }
    assert_eq!(node.counter(Counter::CapturedOutbound), 3);
}

/// Row 1.11: excluded ports and ranges go straight; loopback does too; the rest does not.
#[test]
fn exclusions() {
    let wire = Wire::new();
    let node = Node::new();
    let mut neighbour = App::new(&wire.peer);
    let mut app = App::new(&wire.pod);
    let ask = |app: &mut App, neighbour: &mut App, to: SocketAddr| {
        neighbour.order("accept l n");
        let connected = app.ask(&format!("connect c {to}"));
        assert!(connected.ends_with(&format!("peer={to}")), "{connected}");
        // The neighbour meets the pod itself.
        let own = if to.is_ipv6() { POD6 } else { POD4 };
        let met: SocketAddr = neighbour.answer()["accepted=".len()..]
            .split(' ')
            .next()
            .and_then(|met| met.parse().ok())
            .expect("an address");
        assert_eq!(met.ip().to_canonical().to_string(), own);
    };
    neighbour.ask("listen l [::]:9000");
    let mut spec = spec(&wire.pod);
    spec.excluded_outbound_ports = vec![9000];
    let pod = node.capture().enroll(&spec).unwrap();
    ask(&mut app, &mut neighbour, addr(PEER4, 9000));
    ask(&mut app, &mut neighbour, addr(PEER6, 9000));
    app.order(&format!("connect c {}", addr(PEER4, 9001)));
    assert_eq!(take(&pod, false).1.0, addr(PEER4, 9001));
    app.answer();

    // Other exclusions replace them, without a restart of anything.
    spec.excluded_outbound_ports.clear();
    spec.excluded_outbound_ranges =
        vec![format!("{PEER4}/31").parse().unwrap(), format!("{PEER6}/126").parse().unwrap()];
    let pod = node.capture().enroll(&spec).unwrap();
    ask(&mut app, &mut neighbour, addr(PEER4, 9000));
    ask(&mut app, &mut neighbour, addr(PEER6, 9000));
    for outside in [addr("10.77.0.4", 9000), addr("fd77::4", 9000)] {
        app.order(&format!("connect c {outside}"));
        assert_eq!(take(&pod, outside.is_ipv6()).1.0, outside);
        app.answer();
    }
    assert_eq!(node.counter(Counter::PassedExcludedOutbound), 4);

    app.ask("listen own 127.0.0.1:9100");
    app.ask("connect c 127.0.0.1:9100");
    let met = app.ask("accept own s");
    assert!(met.starts_with("accepted=127.0.0.1:"), "{met}");
    assert_eq!(node.counter(Counter::PassedLoopback), 1);
}

/// Sockets that an application has tied down before it connects.
#[test]
fn bound_sockets() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    for (ip, options) in [
        (PEER4, format!("bind={POD4}")),
        (PEER6, format!("bind={POD6}")),
        (PEER4, "dev=eth0".to_owned()),
        (PEER6, "dev=eth0".to_owned()),
        (PEER4, format!("dev=eth0 bind={POD4}")),
    ] {
        let to = addr(ip, 8080);
        app.order(&format!("connect c {to} {options}"));
        let (_stream, dst) = take(&pod, is_v6(ip));
        assert_eq!(dst.0, to, "{options}");
        let answer = app.answer();
        assert!(answer.ends_with(&format!("peer={to}")), "{options}: {answer}");
    }
    assert_eq!(node.counter(Counter::RefusedBoundDevice), 0);
}

/// Only TCP is carried; UDP's connect() is another thing.
#[test]
fn udp_is_left_alone() {
    let wire = Wire::new();
    let node = Node::new();
    let _pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    let to = addr(PEER4, 53);
    assert_eq!(app.ask(&format!("udp {to}")), format!("peer={to}"));
    assert_eq!(node.counter(Counter::CapturedOutbound), 0);
}

/// A pod that finds the daemon's outbound listener gains nothing: there is no flow.
#[test]
fn direct_connection_to_the_listener() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    for v6 in [false, true] {
        let listener = listener(&pod.outbound, v6);
        app.order(&format!("connect c {}", listener.local_addr().unwrap()));
        let (_stream, peer) = accept(listener);
        assert_eq!(pod.port.take_original_dst(peer), Err(FlowMiss::Unknown));
        app.answer();
    }
}

/// A port that is used again within milliseconds, for another destination each time: no connection
/// ever gets the destination of the one before.
#[test]
fn reused_port() {
    const TURNS: usize = 2_000;
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    let (a, b) = (addr(PEER4, 1000), addr("10.77.0.3", 2000));
    app.order(&format!("reuse 41000 {TURNS} {a} {b}"));
    let listener = listener(&pod.outbound, false);
    for turn in 0..TURNS {
        let (mut stream, peer) = accept(listener);
        assert_eq!(peer.port(), 41000);
        let dst = pod.port.take_original_dst(peer).unwrap();
        assert_eq!(dst.0, [a, b][turn % 2]);
        let _ = stream.write_all(format!("{dst}\n").as_bytes());
    }
    assert_eq!(app.answer(), format!("{TURNS} right"));
    assert_eq!(node.capture().under_way().unwrap(), (0, 0));
}
