//! Ways around capture that TCP and its relatives offer.

use fairlead_capture::Counter;

use crate::app::App;
use crate::bed::{Node, PEER4, POD4, Wire, accept, addr, deliver, listener, take};

const IPPROTO_SCTP: i32 = libc::IPPROTO_SCTP;
const IPPROTO_MPTCP: i32 = 262;
const EPERM: &str = "errno 1";
/// What a kernel without the protocol says.
const UNSUPPORTED: &[&str] = &["errno 93", "errno 94", "errno 92"];

/// MPTCP and SCTP sockets cannot be made in an enrolled pod; elsewhere they can.
#[test]
fn other_protocols_are_refused() {
    let wire = Wire::new();
    let node = Node::new();
    let _pod = node.enroll(&wire.pod);
    let mut inside = App::new(&wire.pod);
    let mut outside = App::new(&wire.peer);
    for (family, protocol) in [
        (libc::AF_INET, IPPROTO_MPTCP),
        (libc::AF_INET6, IPPROTO_MPTCP),
        (libc::AF_INET, IPPROTO_SCTP),
    ] {
        let order = format!("socket {family} {} {protocol}", libc::SOCK_STREAM);
        let expected = match outside.ask(&order).as_str() {
            "made" => EPERM.to_owned(),
            other => {
                assert!(UNSUPPORTED.contains(&other), "{order}: {other}");
                other.to_owned()
            }
        };
        assert_eq!(inside.ask(&order), expected, "{order}");
    }
}

/// Data in the SYN comes with the captured connection, not past it.
#[test]
fn fast_open() {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    let mut neighbour = App::new(&wire.peer);
    neighbour.ask("listen l 0.0.0.0:9000");
    let to = addr(PEER4, 9000);
    // Twice: the first may only fetch a cookie.
    for _ in 0..2 {
        app.order(&format!("fastopen c {to}"));
        let (mut stream, dst) = take(&pod, false);
        assert_eq!(dst.0, to);
        let mut early = [0; 5];
        std::io::Read::read_exact(&mut stream, &mut early).unwrap();
        assert_eq!(&early, b"early");
        assert_eq!(app.answer(), "sent");
    }
    assert_eq!(node.counter(Counter::CapturedOutbound), 2);
}

/// An MPTCP socket from before its pod joined: its first subflow is captured like any connection,
/// and the daemon's plain listener keeps it from opening others.
#[test]
fn mptcp_client_from_before() {
    let wire = Wire::new();
    let node = Node::new();
    let mut app = App::new(&wire.pod);
    let made = app.ask(&format!("socket-keep c {IPPROTO_MPTCP}"));
    if UNSUPPORTED.contains(&made.as_str()) {
        return;
    }
    let pod = node.enroll(&wire.pod);
    let to = addr(PEER4, 9000);
    app.order(&format!("connect-kept c {to}"));
    assert_eq!(take(&pod, false).1.0, to);
    app.answer();
}

/// A server that chose MPTCP before its pod joined (Go's default) still serves, and still sees who
/// its clients are, or at least nobody false.
#[test]
fn mptcp_server_from_before() {
    let wire = Wire::new();
    let node = Node::new();
    let mut server = App::new(&wire.pod);
    let mut client = App::new(&wire.peer);
    let listening = server.ask(&format!("listen l {POD4}:9000 proto={IPPROTO_MPTCP}"));
    if UNSUPPORTED.contains(&listening.as_str()) {
        return;
    }
    let pod = node.enroll(&wire.pod);
    let to = addr(POD4, 9000);
    client.order(&format!("connect c {to}"));
    let (_inbound, from) = accept(listener(&pod.inbound, false));
    server.order("accept l s");
    let _delivered = deliver(&pod, from, to).unwrap();
    let met = server.answer();
    assert!(met.starts_with(&format!("accepted={from} peer={from}")), "{met} for {from}");
}
