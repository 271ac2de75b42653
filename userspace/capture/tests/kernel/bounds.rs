//! What is bounded refuses at its bound, and says so.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use fairlead_capture::Counter;

use crate::app::App;
use crate::bed::{Node, PEER4, PEER6, POD4, Wire, accept, addr, deliver, isolated, listener, take};

/// A full table refuses the next connection at once, as `connect()` itself; room lets it through.
#[test]
fn full_flow_table() {
    const ROOM: u32 = 4;
    let wire = Wire::new();
    let node = Node::with(|settings| settings.max_flows = ROOM);
    let pod = node.enroll(&wire.pod);
    let mut app = App::new(&wire.pod);
    let to = addr(PEER4, 8080);
    assert_eq!(app.ask(&format!("many {ROOM} {to}")), format!("{ROOM} open"));
    assert_eq!(app.ask(&format!("connect c {to}")), "errno 111");
    assert_eq!(node.counter(Counter::RefusedFlowsFull), 1);
    assert_eq!(node.capture().under_way().unwrap(), (4, 0));
    for _ in 0..ROOM {
        take(&pod, false);
    }
    app.order(&format!("connect c {to}"));
    take(&pod, false);
    assert!(!app.answer().starts_with("errno"));
}

/// Connections that fail between the decision to capture and the SYN (no port is left) give their
/// place back, if some seconds later.
#[test]
fn exhausted_ports() {
    // Four sources with two ports each.
    const PORTS: usize = 8;
    const SWEPT_WITHIN: Duration = Duration::from_secs(30);
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    wire.in_pod(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40001"));
    let mut app = App::new(&wire.pod);
    let to = addr(PEER4, 8080);
    // The source is drawn by lot, so not all ports of all sources are had at the first try.
    let first = app.ask(&format!("many 100 {to}"));
    assert!(first.ends_with("then Cannot assign requested address (os error 99)"), "{first}");
    let open: usize = first.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((2..=PORTS).contains(&open), "{first}");
    assert_eq!(node.capture().under_way().unwrap(), (open + 1, 0));
    let listener = listener(&pod.outbound, false);
    let _open: Vec<_> = (0..open).map(|_| take(&pod, false)).collect();
    assert!(listener.accept().is_err());
    assert_eq!(node.capture().under_way().unwrap(), (1, 0));
    let deadline = Instant::now() + SWEPT_WITHIN;
    while node.capture().under_way().unwrap() != (0, 0) {
        assert!(Instant::now() < deadline, "the reservation stays");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// 30,000 connections of one pod to one destination, open together.
#[test]
fn many_connections() {
    if isolated("bounds::many_connections") {
        many(PEER4);
    }
}

/// The same over IPv6.
#[test]
fn many_connections_v6() {
    if isolated("bounds::many_connections_v6") {
        many(PEER6);
    }
}

fn many(peer: &str) {
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let to = addr(peer, 8080);
    let v6 = to.is_ipv6();
    let listener = listener(&pod.outbound, v6);
    let mut apps = [App::new(&wire.pod), App::new(&wire.pod), App::new(&wire.pod)];
    let mut holders = Vec::new();
    for app in &mut apps {
        app.order(&format!("many {PER_PROCESS} {to}"));
        let mut open = Vec::with_capacity(PER_PROCESS);
        for _ in 0..PER_PROCESS {
            let (stream, peer) = accept(listener);
            assert_eq!(pod.port.take_original_dst(peer).expect("a flow").0, to);
            open.push(stream);
        }
        assert_eq!(app.answer(), format!("{PER_PROCESS} open"));
        holders.push(Holder::new());
    }
    // And one more.
    apps[0].order(&format!("connect c {to}"));
    take(&pod, v6);
    apps[0].answer();
    assert_eq!(node.counter(Counter::CapturedOutbound), 3 * PER_PROCESS as u64 + 1);
    assert_eq!(node.capture().under_way().expect("the tables"), (0, 0));
}

/// 30,000 deliveries to one server address, open together, each with its own client.
#[test]
fn many_deliveries() {
    if !isolated("bounds::many_deliveries") {
        return;
    }
    let wire = Wire::new();
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    let to = addr(POD4, 9000);
    let mut first = App::new(&wire.pod);
    first.ask("listen l 0.0.0.0:9000");
    let mut servers = vec![first];
    let mut holders = Vec::new();
    for part in 0..3_u32 {
        let mut open = Vec::with_capacity(PER_PROCESS);
        for n in 0..PER_PROCESS as u32 {
            let n = part * PER_PROCESS as u32 + n;
            let client = addr(&Ipv4Addr::from(0x0a63_0000 + n).to_string(), 1 + n as u16);
            open.push(deliver(&pod, client, to).unwrap());
            let server = servers.last_mut().unwrap();
            let met = server.ask(&format!("accept l {n}"));
            assert!(met.starts_with(&format!("accepted={client} peer={client}")), "{met}");
        }
        holders.push(Holder::new());
        // The next server takes the same address; the last one's connections stay open.
        let mut next = App::new(&wire.pod);
        servers.last_mut().unwrap().ask("unlisten l");
        next.ask("listen l 0.0.0.0:9000");
        servers.push(next);
    }
    assert_eq!(node.counter(Counter::ClientAttached), 3 * PER_PROCESS as u64);
    assert_eq!(node.capture().under_way().unwrap(), (0, 0));
}

/// Below the usual limit of descriptors; three processes make 30,000.
const PER_PROCESS: usize = 10_000;

/// A copy of this process that does nothing but hold its descriptors open, so that this one can
/// close its own and go on.
struct Holder(libc::pid_t);

impl Holder {
    fn new() -> Self {
        // SAFETY: the child makes only calls that are allowed after fork, and never returns.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            loop {
                // SAFETY: no pointers.
                unsafe { libc::pause() };
            }
        }
        Self(pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: the own child, not yet waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}
