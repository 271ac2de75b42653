//! Connections into a pod come to the daemon on whatever port, and what the daemon hands on shows
//! the real client.
#![allow(unsafe_code, reason = "raw sockets of the test application")]

mod common;

use common::{App, Node, POD4, POD6, Wire, accept, addr, deliver, is_v6, listener};
use fairlead_capture::Counter;

#[test]
fn app_process() {
    common::app::process();
}

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
