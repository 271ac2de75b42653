//! Connections that a pod opens come to the daemon with their destination, or are refused.
#![allow(unsafe_code, reason = "raw sockets of the test application")]

mod common;

use common::{App, Node, PEER4, PEER6, Wire, addr, is_v6, take};
use fairlead_capture::Counter;

#[test]
fn app_process() {
    common::app::process();
}

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
        let seen = if options.is_empty() { to.to_string() } else { format!("[::ffff:{ip}]:8080") };
        assert!(answer.ends_with(&format!("peer={seen}")), "{answer}");
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
