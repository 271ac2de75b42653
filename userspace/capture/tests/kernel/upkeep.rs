//! What is around capture: its cost, its diagnostics, its privileges, its leavings.

use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_capture::{Counter, clean, drop_capabilities, features};
use tracing::field::{Field, Visit};
use tracing::span;

use crate::app::App;
use crate::bed::{Namespace, Node, PEER4, Wire, addr, cgroup, isolated, take};

/// Joining has to be quick enough to happen between a pod's creation and its first process.
#[test]
fn costs() {
    const PODS: u32 = 20;
    cgroup();
    let started = Instant::now();
    let mut node = Node::new();
    let opened = started.elapsed();
    let pods: Vec<_> = (0..PODS).map(|_| Namespace::new("many")).collect();
    let enroll = |node: &Node| {
        let started = Instant::now();
        let sockets: Vec<_> = pods.iter().map(|pod| node.enroll(pod)).collect();
        let each = started.elapsed() / PODS;
        drop(sockets);
        each
    };
    let first = enroll(&node);
    let again = (0..4).map(|_| {
        node.die();
        node.start();
        enroll(&node)
    });
    // A machine may be busy with something else for once.
    let again = again.min().expect("four");
    eprintln!("open {opened:?}, enrolment {first:?} each, after a restart {again:?}");
    assert!(opened < Duration::from_secs(5), "{opened:?}");
    assert!(first < Duration::from_millis(500), "{first:?}");
    // Nothing is loaded: what is left of a restart is making the listeners.
    assert!(again < first / 2, "{again:?} after {first:?}");
}

/// The programs say what they do when they are told to, and are silent otherwise.
#[test]
fn diagnostics() {
    // In a process of its own: it listens to all of the process's log.
    if !isolated("upkeep::diagnostics") {
        return;
    }
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).expect("the only subscriber");
    for on in [false, true] {
        let wire = Wire::new();
        let node = Node::with(|settings| settings.diagnostics = on);
        let pod = node.enroll(&wire.pod);
        let mut app = App::new(&wire.pod);
        app.order(&format!("connect c {}", addr(PEER4, 8080)));
        take(&pod, false);
        app.answer();
        let deadline = Instant::now() + Duration::from_secs(20);
        let captured = || log.0.lock().expect("log").contains("captured: listener");
        while on && !captured() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(captured(), on, "{}", log.0.lock().expect("log"));
    }
}

/// Collects the messages of the programs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "fairlead_ebpf"
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Lines(&mut self.0.lock().expect("log")));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Lines<'a>(&'a mut String);

impl Visit for Lines<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = writeln!(self.0, "{field}={value:?}");
    }
}

/// With the capabilities that are left, pods still join, are carried, and leave; others are gone.
#[test]
fn few_capabilities() {
    if !isolated("upkeep::few_capabilities") {
        return;
    }
    let wire = Wire::new();
    let mut node = Node::new();
    // The application first: it shall keep what it has.
    let mut app = App::new(&wire.pod);
    drop_capabilities(false).expect("dropping");
    let own = std::fs::read_to_string("/proc/thread-self/status").expect("status");
    let effective = own.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("CapEff");
    let count = u64::from_str_radix(effective, 16).expect("hex").count_ones();
    assert_eq!(count, 2, "capabilities are left: {effective}");
    for _ in 0..2 {
        let pod = node.enroll(&wire.pod);
        app.order(&format!("connect c {}", addr(PEER4, 8080)));
        take(&pod, false);
        app.answer();
        assert_eq!(node.counter(Counter::RefusedNoOutboundListener), 0);
        // A restart within the same process.
        drop(pod);
        node.die();
        node.start();
    }
}

/// A kernel that passes these tests has what is required, and each probe says what it is for.
#[test]
fn kernel_features() {
    for feature in features() {
        assert!(feature.present || !feature.required, "{}: {}", feature.name, feature.without);
        assert!(!feature.without.is_empty());
    }
}

/// Cleaning detaches everything, once.
#[test]
fn cleaning() {
    let wire = Wire::new();
    let mut node = Node::new();
    let _pod = node.enroll(&wire.pod);
    node.die();
    let mut app = App::new(&wire.pod);
    assert!(clean(&node.settings.pin_dir).expect("cleaning"));
    assert!(!clean(&node.settings.pin_dir).expect("cleaning"));
    let listener = wire.listen_in_peer(9000);
    let connected = app.ask(&format!("connect c {}", addr(PEER4, 9000)));
    assert!(connected.starts_with("local=10.77.0.1:"), "{connected}");
    drop(listener);
}
