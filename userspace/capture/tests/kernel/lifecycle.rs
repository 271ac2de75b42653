//! Pods join and leave, daemons die and come back: nothing escapes, nothing hangs.

use std::time::{Duration, Instant};

use fairlead_capture::{Capture, CaptureError, Counter, Leaving, UnknownNetns};

use crate::app::App;
use crate::bed::{
    Node, PEER4, PEER6, POD4, POD6, Wire, accept, addr, cgroup, id, isolated, listener, spec, take,
    try_accept,
};

/// At once: the kernel answers, nobody waits for a timeout.
const AT_ONCE: Duration = Duration::from_secs(1);

fn refused_at_once(app: &mut App, order: &str) {
    let mut once = || {
        let asked = Instant::now();
        assert_eq!(app.ask(order), "errno 111", "{order}");
        asked.elapsed() < AT_ONCE
    };
    // A SYN that nobody answers hangs each time, a busy machine does not.
    assert!(once() || once(), "{order} hung");
}

/// Rows 1.3, 1.7: joining and leaving touch new connections only.
#[test]
fn join_and_leave() {
    let wire = Wire::new();
    let node = Node::new();
    let mut app = App::new(&wire.pod);
    let mut neighbour = App::new(&wire.peer);
    neighbour.ask("listen l 0.0.0.0:9000");
    app.ask("listen own 0.0.0.0:9001");
    let (there, here) = (addr(PEER4, 9000), addr(POD4, 9001));
    // Before.
    app.ask(&format!("connect before {there}"));
    neighbour.ask("accept l before");
    neighbour.ask(&format!("connect in {here}"));
    app.ask("accept own in");
    // During.
    let pod = node.enroll(&wire.pod);
    app.order(&format!("connect during {there}"));
    let (mut during, dst) = take(&pod, false);
    assert_eq!(dst.0, there);
    app.answer();
    neighbour.order(&format!("connect in2 {here}"));
    let (_in2, _) = accept(listener(&pod.inbound, false));
    neighbour.answer();
    let old_ones_work = |app: &mut App, neighbour: &mut App| {
        app.ask("send before ping");
        assert_eq!(neighbour.ask("receive before 4"), "ping");
        neighbour.ask("send in pong");
        assert_eq!(app.ask("receive in 4"), "pong");
    };
    old_ones_work(&mut app, &mut neighbour);
    // After.
    node.capture().leave(&id(&wire.pod), Leaving::Gone).unwrap();
    old_ones_work(&mut app, &mut neighbour);
    app.ask("send during hello");
    let mut got = [0; 5];
    std::io::Read::read_exact(&mut during, &mut got).unwrap();
    assert_eq!(&got, b"hello");
    app.ask(&format!("connect after {there}"));
    assert!(neighbour.ask("accept l after").starts_with(&format!("accepted={POD4}:")));
    neighbour.ask(&format!("connect in3 {here}"));
    assert!(app.ask("accept own in3").starts_with(&format!("accepted={PEER4}:")));
    assert!(matches!(
        node.capture().leave(&id(&wire.pod), Leaving::Gone),
        Err(CaptureError::NotEnrolled(_))
    ));
}

/// A dead daemon refuses at once, in both directions and families; the next one takes over.
#[test]
fn death_and_take_over() {
    let wire = Wire::new();
    let mut node = Node::new();
    let pod = node.enroll(&wire.pod);
    let cookie = pod.port.cookie();
    let mut app = App::new(&wire.pod);
    let mut neighbour = App::new(&wire.peer);
    neighbour.ask("listen l [::]:9000");
    app.ask("listen own [::]:9001");
    let all_refused = |app: &mut App, neighbour: &mut App| {
        for ip in [PEER4, PEER6] {
            refused_at_once(app, &format!("connect c {}", addr(ip, 9000)));
        }
        for ip in [POD4, POD6] {
            refused_at_once(neighbour, &format!("connect c {}", addr(ip, 9001)));
        }
    };
    drop(pod);
    node.die();
    all_refused(&mut app, &mut neighbour);

    node.start();
    assert_eq!(node.capture().leftovers().unwrap(), [cookie]);
    all_refused(&mut app, &mut neighbour);
    let pod = node.enroll(&wire.pod);
    assert!(node.capture().leftovers().unwrap().is_empty());
    for ip in [PEER4, PEER6] {
        app.order(&format!("connect c {}", addr(ip, 9000)));
        assert_eq!(take(&pod, ip == PEER6).1.0, addr(ip, 9000));
        app.answer();
    }
    neighbour.order(&format!("connect c {}", addr(POD4, 9001)));
    accept(listener(&pod.inbound, false));

    // A pod that is not wanted any more is released.
    drop(pod);
    node.die();
    node.start();
    node.capture().release(cookie, Leaving::Gone).unwrap();
    assert!(node.capture().leftovers().unwrap().is_empty());
    let connected = app.ask(&format!("connect c {}", addr(PEER4, 9000)));
    assert!(connected.starts_with(&format!("local={POD4}:")), "{connected}");
}

/// Pins of another ABI version: its pods stay refused while the new programs take over.
#[test]
fn other_abi_version() {
    let wire = Wire::new();
    let mut node = Node::new();
    let pod = node.enroll(&wire.pod);
    let cookie = pod.port.cookie();
    let mut app = App::new(&wire.pod);
    let mut neighbour = App::new(&wire.peer);
    neighbour.ask("listen l 0.0.0.0:9000");
    app.ask("listen own 0.0.0.0:9001");
    drop(pod);
    node.die();
    let pins = node.settings.pin_dir.clone();
    let own = pins.join(format!("v{}", fairlead_abi::ABI_VERSION));
    std::fs::rename(&own, pins.join("v0")).unwrap();
    node.start();
    assert!(own.exists() && !pins.join("v0").exists());
    assert_eq!(node.capture().leftovers().unwrap(), [cookie]);
    refused_at_once(&mut app, &format!("connect c {}", addr(PEER4, 9000)));
    refused_at_once(&mut neighbour, &format!("connect c {}", addr(POD4, 9001)));
    let pod = node.enroll(&wire.pod);
    app.order(&format!("connect c {}", addr(PEER4, 9000)));
    take(&pod, false);
    app.answer();
    neighbour.order(&format!("connect c {}", addr(POD4, 9001)));
    accept(listener(&pod.inbound, false));
}

/// Connections opened without pause while daemons die, come back, and change version: the
/// neighbour never meets one.
#[test]
fn nothing_escapes_a_restart() {
    const CHURN: Duration = Duration::from_secs(4);
    let wire = Wire::new();
    let mut node = Node::new();
    let mut app = App::new(&wire.pod);
    let neighbour = wire.listen_in_peer(9000);
    let mut pod = node.enroll(&wire.pod);
    let end = Instant::now() + CHURN;
    app.order(&format!("churn {} {}", CHURN.as_millis(), addr(PEER4, 9000)));
    let pins = node.settings.pin_dir.clone();
    let (mut captured, mut restarts) = (0, 0);
    while Instant::now() < end {
        for _ in 0..20 {
            let accepted = try_accept(listener(&pod.outbound, false), Duration::from_millis(20));
            let Some((_, peer)) = accepted else { break };
            captured += u32::from(pod.port.take_original_dst(peer).is_ok());
        }
        drop(pod);
        node.die();
        restarts += 1;
        if restarts % 2 == 0 {
            let own = pins.join(format!("v{}", fairlead_abi::ABI_VERSION));
            std::fs::rename(own, pins.join("v0")).unwrap();
        }
        node.start();
        pod = node.enroll(&wire.pod);
    }
    let answer = app.answer();
    eprintln!("{restarts} restarts, {captured} captured; {answer}");
    assert!(restarts > 4 && captured > 100, "{restarts} restarts, {captured} captured");
    assert!(answer.contains(" refused, ") && !answer.starts_with("0 "), "{answer}");
    assert!(neighbour.accept().is_err(), "a connection escaped");
}

/// A restart with another cgroup root captures there, and no longer where it did.
#[test]
fn other_cgroup_root() {
    // In a process of its own: it moves from one cgroup to another.
    if !isolated("lifecycle::other_cgroup_root") {
        return;
    }
    let wire = Wire::new();
    let mut node = Node::new();
    drop(node.enroll(&wire.pod));
    let mut outside = App::new(&wire.pod);
    refused_at_once(&mut outside, &format!("connect c {}", addr(PEER4, 9000)));
    node.die();
    let inner = cgroup().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("cgroup.procs"), "0").unwrap();
    node.settings.cgroup_root = inner.clone();
    node.start();
    let pod = node.enroll(&wire.pod);
    let mut inside = App::new(&wire.pod);
    let to = addr(PEER4, 9000);
    inside.order(&format!("connect c {to}"));
    assert_eq!(take(&pod, false).1.0, to);
    inside.answer();
    let _neighbour = wire.listen_in_peer(9000);
    assert!(outside.ask(&format!("connect c {to}")).starts_with(&format!("local={POD4}:")));
    // Out of it again, so that it can be removed.
    drop(inside);
    std::fs::write(cgroup().join("cgroup.procs"), "0").unwrap();
    std::fs::remove_dir(inner).unwrap();
    // A cgroup that is gone takes its links along, and the daemon says where it has to be.
    drop(pod);
    node.die();
    let opened = Capture::open(node.settings.clone());
    assert!(opened.is_err());
    node.settings.cgroup_root = cgroup().into();
    node.start();
    let pod = node.enroll(&wire.pod);
    outside.order(&format!("connect c {to}"));
    assert_eq!(take(&pod, false).1.0, to);
}

/// The daemon's deliveries would be invisible to its own programs.
#[test]
fn daemon_outside_the_tree() {
    let inner = cgroup().join("elsewhere");
    let _ = std::fs::create_dir(&inner);
    let mut settings = Node::new().settings.clone();
    settings.cgroup_root = inner.clone();
    assert!(matches!(Capture::open(settings), Err(CaptureError::OutsideCgroup { .. })));
    std::fs::remove_dir(inner).unwrap();
}

/// A pod without IPv6 joins all the same, and its loopback stays without it.
#[test]
fn without_ipv6() {
    let wire = Wire::new();
    wire.in_pod(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"));
    let node = Node::new();
    let pod = node.enroll(&wire.pod);
    assert_eq!((pod.outbound.len(), pod.inbound.len()), (1, 1));
    let mut app = App::new(&wire.pod);
    let to = addr(PEER4, 9000);
    for family in ["", "family=6"] {
        app.order(&format!("connect c {to} {family}"));
        assert_eq!(take(&pod, false).1.0, to);
        app.answer();
    }
    refused_at_once(&mut app, &format!("connect c {}", addr(PEER6, 9000)));
    assert!(node.counter(Counter::RefusedNoOutboundListener) >= 1);
    let v6 = wire.in_pod(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"));
    assert_eq!(v6, "");
}

/// Two daemons cannot own the same pins, nor one namespace two pods.
#[test]
fn one_owner() {
    let wire = Wire::new();
    let node = Node::new();
    let _pod = node.enroll(&wire.pod);
    let second = fairlead_capture::Capture::open(node.settings.clone());
    assert!(matches!(second, Err(CaptureError::InUse(_))));
    let mut other = spec(&wire.pod);
    other.id = id(&wire.peer);
    assert!(matches!(node.capture().enroll(&other), Err(CaptureError::SharedNetns { .. })));
    let mut host = spec(&wire.pod);
    host.netns = "/proc/self/ns/net".into();
    assert!(matches!(node.capture().enroll(&host), Err(CaptureError::HostNetns(_))));
}

/// Row 1.8: where unknown namespaces are refused, a pod's first connection waits for its
/// enrolment; exempted pods and the host's namespace pass.
#[test]
fn unknown_namespaces() {
    // In a process of its own: the setting is for the whole cgroup.
    if !isolated("lifecycle::unknown_namespaces") {
        return;
    }
    let wire = Wire::new();
    let node = Node::with(|settings| settings.unknown_netns = UnknownNetns::Refuse);
    let mut app = App::new(&wire.pod);
    let mut neighbour = App::new(&wire.peer);
    let there = addr(PEER4, 9000);
    refused_at_once(&mut app, &format!("connect c {there}"));
    refused_at_once(&mut app, &format!("connect c {}", addr(PEER6, 9000)));
    assert!(node.counter(Counter::RefusedUnknownNetns) >= 2);
    // Its own loopback is its own business.
    app.ask("listen own 127.0.0.1:9001");
    assert!(app.ask("connect c 127.0.0.1:9001").starts_with("local=127.0.0.1:"));

    let cookie = node.capture().exempt(&wire.peer.path()).unwrap();
    neighbour.ask("listen l 0.0.0.0:9000");
    app.ask("listen in 0.0.0.0:9002");
    assert!(neighbour.ask(&format!("connect c {}", addr(POD4, 9002))).starts_with("local="));
    let pod = node.enroll(&wire.pod);
    app.order(&format!("connect c {there}"));
    assert_eq!(take(&pod, false).1.0, there);
    app.answer();
    node.capture().leave(&id(&wire.pod), Leaving::Exempt).unwrap();
    assert!(app.ask(&format!("connect c {there}")).starts_with(&format!("local={POD4}:")));
    node.capture().release(cookie, Leaving::Gone).unwrap();
    refused_at_once(&mut neighbour, &format!("connect c {}", addr(POD4, 9002)));
    // This process is in the host's namespace.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
}
