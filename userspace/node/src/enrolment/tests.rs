use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use fairlead_config::model::{PeerWire, Snapshot, Workload};
use fairlead_types::{ClientAddr, FlowMiss, Labels, NetnsCookie, OriginalDst, PodPort, PodSockets};

use super::*;
use crate::discovery::Namespace;

/// A kernel of paper: which namespace is at which path, what is captured, what was done.
#[derive(Default)]
struct Paper {
    places: Mutex<HashMap<PathBuf, Place>>,
    refusals: Mutex<HashMap<&'static str, String>>,
    leftovers: Mutex<Vec<NetnsCookie>>,
    log: Mutex<Vec<String>>,
    given: Mutex<HashMap<WorkloadId, Vec<IpAddr>>>,
    /// What pods have left, in this order.
    left: Mutex<Vec<NetnsCookie>>,
    /// Namespaces that are held.
    holds: Mutex<Vec<(Place, Weak<()>)>>,
}

impl Paper {
    fn note(&self, call: &'static str, what: impl std::fmt::Display) -> Result<(), String> {
        self.log.lock().push(format!("{call} {what}"));
        match self.refusals.lock().get(call) {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    /// What has been done since the last look.
    fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock())
    }

    fn put(&self, path: &str, number: u64) {
        self.places.lock().insert(path.into(), Place(0, number));
    }

    /// Makes the namespace at `path` anew. The numbers of those that nobody holds are given out
    /// again, the lowest first.
    fn remake(&self, path: &str) -> Place {
        let mut places = self.places.lock();
        places.remove(Path::new(path));
        let mut holds = self.holds.lock();
        holds.retain(|(_, held)| held.strong_count() > 0);
        let taken = |place: &Place| {
            places.values().any(|p| p == place) || holds.iter().any(|(held, _)| held == place)
        };
        let free = (1..).map(|number| Place(0, number)).find(|place| !taken(place)).unwrap();
        places.insert(path.into(), free);
        free
    }

    fn refuse(&self, call: &'static str, reason: Option<&str>) {
        match reason {
            Some(reason) => self.refusals.lock().insert(call, reason.into()),
            None => self.refusals.lock().remove(call),
        };
    }
}

/// Of a namespace whose cookie is that.
struct NoPort(NetnsCookie);

impl PodPort for NoPort {
    fn cookie(&self) -> NetnsCookie {
        self.0
    }

    fn outbound_socket(&self, _: SocketAddr) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn delivery_socket(&self, _: ClientAddr, _: SocketAddr) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn take_original_dst(&self, _: SocketAddr) -> Result<OriginalDst, FlowMiss> {
        Err(FlowMiss::Unknown)
    }
}

impl Captor for Paper {
    fn enroll(&self, spec: &PodSpec) -> Result<PodSockets, String> {
        self.note("enroll", format!("{} {:?}", spec.id, spec.excluded_outbound_ports))?;
        let place = self.place(&spec.netns).ok_or("no namespace")?;
        Ok(PodSockets {
            outbound: vec![],
            inbound: vec![],
            port: Arc::new(NoPort(NetnsCookie(place.1))),
            ips: vec![],
            given: vec![],
        })
    }

    fn leave(&self, id: &WorkloadId, netns: NetnsCookie, leaving: Leaving) -> Result<(), String> {
        self.note("leave", format!("{id} {leaving:?}"))?;
        self.left.lock().push(netns);
        Ok(())
    }

    fn exempt(&self, netns: &Path) -> Result<NetnsCookie, String> {
        self.note("exempt", netns.display())?;
        Ok(NetnsCookie(7))
    }

    fn leftovers(&self) -> Result<Vec<NetnsCookie>, String> {
        Ok(self.leftovers.lock().clone())
    }

    fn release(&self, netns: NetnsCookie, leaving: Leaving) -> Result<(), String> {
        self.note("release", format!("{netns} {leaving:?}"))
    }

    fn place(&self, netns: &Path) -> Option<Place> {
        if netns.starts_with("/proc/self/fd") {
            return Namespace::open(netns).ok().map(|namespace| namespace.place());
        }
        self.places.lock().get(netns).copied()
    }

    fn cookie(&self, netns: &Path) -> Result<NetnsCookie, String> {
        self.place(netns).map(|place| NetnsCookie(place.1)).ok_or_else(|| "no namespace".into())
    }

    fn hold(&self, netns: &Path) -> Option<(Place, Hold)> {
        let (place, hold) = (self.place(netns)?, Arc::new(()));
        self.holds.lock().push((place, Arc::downgrade(&hold)));
        Some((place, Box::new(hold)))
    }
}

impl Carrier for Paper {
    fn add_pod(&self, pod: Arc<LocalPod>, sockets: PodSockets) -> Result<(), String> {
        self.given.lock().insert(pod.workload.id.clone(), sockets.given);
        self.note("add", &pod.workload.id)
    }

    fn remove_pod(&self, id: &WorkloadId) {
        let _ = self.note("remove", id);
    }
}

fn pod(name: &str, netns: Option<&str>, enrolled: bool) -> LocalPod {
    let text = |t: &str| -> Arc<str> { t.into() };
    let workload = Workload {
        id: WorkloadId::new("default", name),
        name: text(name),
        namespace: text("default"),
        uid: text(name),
        workload_name: text(name),
        canonical_name: text(name),
        canonical_revision: text("latest"),
        app: text(name),
        version: text("v1"),
        labels: Arc::new(Labels::default()),
        identity: format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap(),
        ips: Box::default(),
        node: text("a"),
        enrolled,
        wire: PeerWire::Native,
        exclude_inbound_ports: Box::default(),
        include_inbound_ports: None,
    };
    LocalPod {
        workload: Arc::new(workload),
        netns: netns.map(PathBuf::from),
        exclude_outbound_ports: Box::default(),
        exclude_outbound_cidrs: Box::default(),
        include_outbound_cidrs: None,
        include_outbound_ports: Box::default(),
        probe_ports: Box::default(),
    }
}

struct Bench {
    paper: Arc<Paper>,
    snapshots: SnapshotHandle,
    enrolment: Enrolment,
    retained: Arc<Mutex<Vec<usize>>>,
    complete: Arc<Mutex<bool>>,
    current: Arc<Mutex<bool>>,
    now: Instant,
}

impl Bench {
    fn new(refuse_unknown: bool) -> Self {
        let paper = Arc::new(Paper::default());
        let snapshots = SnapshotHandle::new(Arc::new(Snapshot::default()));
        let retained = Arc::new(Mutex::new(Vec::new()));
        let complete = Arc::new(Mutex::new(true));
        let (sink, flag) = (Arc::clone(&retained), Arc::clone(&complete));
        let current = Arc::new(Mutex::new(true));
        let told = Arc::clone(&current);
        let enrolment = Enrolment::new(Surroundings {
            snapshots: snapshots.clone(),
            captor: paper.clone(),
            carrier: paper.clone(),
            retain: Box::new(move |ids| sink.lock().push(ids.len())),
            complete: Box::new(move || *flag.lock()),
            current: Box::new(move || *told.lock()),
            refuse_unknown,
            locator: None,
            assigned: None,
        });
        Self { paper, snapshots, enrolment, retained, complete, current, now: Instant::now() }
    }

    fn publish(&self, pods: &[&LocalPod]) {
        let mut next = Snapshot { version: self.snapshots.load().version + 1, ..<_>::default() };
        for pod in pods {
            next.local.insert(pod.workload.id.clone(), Arc::new((*pod).clone()));
        }
        self.snapshots.publish(Arc::new(next));
    }

    /// What a pass does with these pods, `later` after the last one.
    fn pass(&mut self, pods: &[&LocalPod], later: Duration) -> Vec<String> {
        self.publish(pods);
        self.now += later;
        self.enrolment.pass(self.now);
        self.paper.done()
    }

    /// The node of a cluster, whose processes are in the directory `proc`.
    fn on_cluster(proc: &Path) -> (Self, Arc<Locator>) {
        let mut bench = Self::new(false);
        let locator = Arc::new(Locator::new(proc.to_owned(), NetnsCookie(0), false));
        bench.enrolment.around.locator = Some(Arc::clone(&locator));
        (bench, locator)
    }

    fn state(&self, index: usize) -> (PodState, String) {
        let table = self.enrolment.table.lock();
        (table[index].state, table[index].reason.clone().unwrap_or_default())
    }
}

const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(60);

#[test]
fn a_pod_joins_changes_and_leaves() {
    let mut b = Bench::new(false);
    b.paper.put("/n/a", 1);
    let a = pod("a", Some("/n/a"), true);
    assert_eq!(b.pass(&[&a], SOON), ["enroll default/a []", "add default/a"]);
    assert_eq!(*b.retained.lock(), [1]);
    assert_eq!(b.state(0).0, PodState::Captured);
    assert_eq!(b.pass(&[&a], SOON), [""; 0], "nothing to do");

    let excluding = LocalPod { exclude_outbound_ports: Box::new([22]), ..a };
    assert_eq!(b.pass(&[&excluding], SOON), ["enroll default/a [22]", "add default/a"]);

    let outside = pod("a", Some("/n/a"), false);
    assert_eq!(b.pass(&[&outside], SOON), ["leave default/a Exempt", "remove default/a"]);
    assert_eq!(*b.retained.lock(), [1, 0]);
    assert_eq!(b.state(0).0, PodState::Outside);

    b.pass(&[&pod("a", Some("/n/a"), true)], SOON);
    assert_eq!(b.pass(&[], SOON), ["leave default/a Gone", "remove default/a"]);
    assert!(b.enrolment.table.lock().is_empty());
}

#[test]
fn a_namespace_that_is_not_there_yet_is_waited_for() {
    let mut b = Bench::new(false);
    let a = pod("a", Some("/n/a"), true);
    assert_eq!(b.pass(&[&a], SOON), [""; 0]);
    let (state, reason) = b.state(0);
    assert_eq!(state, PodState::Waiting);
    assert!(reason.contains("/n/a"), "{reason}");
    let next = b.enrolment.pass(b.now);
    assert!(next <= b.now + Duration::from_millis(50), "a starting pod must not wait long");
    b.paper.put("/n/a", 1);
    assert_eq!(b.pass(&[&a], SOON), ["enroll default/a []", "add default/a"]);
}

#[test]
fn a_pod_made_anew_under_its_name_is_captured_anew() {
    let mut b = Bench::new(false);
    b.paper.put("/n/a", 1);
    let a = pod("a", Some("/n/a"), true);
    b.pass(&[&a], SOON);
    b.paper.places.lock().clear();
    assert_eq!(b.pass(&[&a], SOON), [""; 0], "whoever is captured stays so");
    assert_eq!(b.state(0).0, PodState::Captured);
    b.paper.put("/n/a", 2);
    assert_eq!(
        b.pass(&[&a], SOON),
        ["leave default/a Gone", "remove default/a", "enroll default/a []", "add default/a"]
    );
}

#[test]
fn losing_the_annotation_does_not_let_a_pod_out() {
    let mut b = Bench::new(false);
    b.paper.put("/n/a", 1);
    b.pass(&[&pod("a", Some("/n/a"), true)], SOON);
    assert_eq!(b.pass(&[&pod("a", None, true)], SOON), [""; 0]);
    assert_eq!(b.state(0).0, PodState::Captured);
}

#[test]
fn failures_are_tried_again_more_and_more_rarely() {
    let mut b = Bench::new(false);
    b.paper.put("/n/a", 1);
    b.paper.refuse("enroll", Some("no memory"));
    let a = pod("a", Some("/n/a"), true);
    assert_eq!(b.pass(&[&a], SOON), ["enroll default/a []"]);
    assert_eq!(b.state(0), (PodState::Waiting, "no memory".into()));
    let mut tries = 0;
    for _ in 0..600 {
        tries += b.pass(&[&a], SOON).len();
    }
    assert!((10..40).contains(&tries), "{tries} tries within a minute");
    b.paper.refuse("enroll", None);
    assert_eq!(b.pass(&[&a], LATER), ["enroll default/a []", "add default/a"]);
}

#[test]
fn a_half_captured_pod_is_let_go_whole() {
    let mut b = Bench::new(false);
    b.paper.put("/n/a", 1);
    b.paper.refuse("add", Some("draining"));
    assert_eq!(b.pass(&[&pod("a", Some("/n/a"), true)], SOON).len(), 2);
    assert_eq!(b.state(0), (PodState::Waiting, "draining".into()));
    b.paper.refuse("leave", Some("busy"));
    let outside = pod("a", Some("/n/a"), false);
    assert_eq!(b.pass(&[&outside], LATER), ["leave default/a Exempt", "remove default/a"]);
    assert_eq!(b.state(0), (PodState::Waiting, "busy".into()), "still refused, and it says so");
    b.paper.refuse("leave", None);
    assert_eq!(b.pass(&[&outside], LATER), ["leave default/a Exempt", "remove default/a"]);
    assert_eq!(b.state(0).0, PodState::Outside);
}

#[test]
fn pods_outside_are_exempted_where_unknown_ones_are_refused() {
    let mut b = Bench::new(true);
    b.paper.put("/n/a", 1);
    let a = pod("a", Some("/n/a"), false);
    assert_eq!(b.pass(&[&a], SOON), ["exempt /n/a"]);
    assert_eq!(b.pass(&[&a], SOON), [""; 0]);
    b.paper.put("/n/a", 2);
    assert_eq!(b.pass(&[&a], SOON), ["release 7 Gone", "exempt /n/a"], "made anew");
    assert_eq!(b.pass(&[], SOON), ["release 7 Gone"]);

    let mut b = Bench::new(true);
    b.paper.put("/n/a", 1);
    b.pass(&[&pod("a", Some("/n/a"), true)], SOON);
    assert_eq!(
        b.pass(&[&pod("a", Some("/n/a"), false)], SOON),
        ["leave default/a Exempt", "remove default/a", "exempt /n/a"]
    );
}

#[test]
fn leftovers_stay_refused_while_anybody_may_be_one_of_them() {
    let mut b = Bench::new(false);
    b.paper.leftovers.lock().push(NetnsCookie(9));
    let a = pod("a", Some("/n/a"), true);
    assert_eq!(b.pass(&[&a], LATER), [""; 0], "a waits for its namespace");
    b.paper.put("/n/a", 1);
    *b.complete.lock() = false;
    b.pass(&[&a], LATER);
    assert_eq!(b.pass(&[&a], LATER), [""; 0], "the configuration has errors");
    *b.complete.lock() = true;
    assert_eq!(b.pass(&[&a], SOON), ["release 9 Gone"]);
    assert_eq!(b.pass(&[&a], SOON), [""; 0], "once");
}

#[test]
fn a_pod_that_left_while_no_daemon_ran_is_let_go_whatever_else_is_wrong() {
    let mut b = Bench::new(false);
    b.paper.leftovers.lock().push(NetnsCookie(7));
    *b.complete.lock() = false;
    b.paper.put("/n/a", 1);
    let a = pod("a", Some("/n/a"), false);
    assert_eq!(b.pass(&[&a], SOON), ["exempt /n/a"]);
    assert_eq!(b.pass(&[&a], SOON), [""; 0]);

    let mut b = Bench::new(false);
    b.paper.put("/n/a", 1);
    assert_eq!(b.pass(&[&a], SOON), [""; 0], "without leftovers nothing has to be said");
}

#[test]
fn what_was_only_kept_on_disk_lets_nobody_out() {
    let mut b = Bench::new(false);
    b.paper.leftovers.lock().push(NetnsCookie(7));
    *b.current.lock() = false;
    b.paper.put("/n/a", 1);
    let a = pod("a", Some("/n/a"), false);
    assert_eq!(b.pass(&[&a], SOON), [""; 0], "it may have joined since");
    assert_eq!(b.pass(&[], SOON), [""; 0], "nor is what nobody names");
    *b.current.lock() = true;
    assert_eq!(b.pass(&[&a], SOON), ["exempt /n/a", "release 7 Gone"]);
}

#[test]
fn nothing_is_touched_once_a_pass_may_not_go_on() {
    let mut b = Bench::new(false);
    let pods = ["a", "b", "c"].map(|name| pod(name, Some(&format!("/n/{name}")), true));
    for (number, name) in ["a", "b", "c"].iter().enumerate() {
        b.paper.put(&format!("/n/{name}"), number as u64);
    }
    b.paper.leftovers.lock().push(NetnsCookie(9));
    let all: Vec<&LocalPod> = pods.iter().collect();
    b.publish(&all);
    let mut left = 2;
    b.enrolment.pass_while(b.now, &mut || {
        left -= 1;
        left >= 0
    });
    let two = ["enroll default/a []", "add default/a", "enroll default/b []", "add default/b"];
    assert_eq!(b.paper.done(), two);
    // Nor before what is left is let go, or what is gone.
    left = 3;
    b.enrolment.pass_while(b.now, &mut || {
        left -= 1;
        left >= 0
    });
    assert_eq!(b.paper.done(), ["enroll default/c []", "add default/c"]);
    b.publish(&[]);
    b.enrolment.pass_while(b.now, &mut || false);
    assert_eq!(b.paper.done(), [""; 0]);
}

#[test]
fn the_thread_follows_the_configuration_and_ends() {
    let b = Bench::new(false);
    let (paper, snapshots) = (Arc::clone(&b.paper), b.snapshots.clone());
    paper.put("/n/a", 1);
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let (ready, is_ready) = std::sync::mpsc::channel();
    let table = b.enrolment.table();
    let enrolment = b.enrolment;
    let thread = std::thread::spawn(move || {
        enrolment.run(&told, || ready.send(()).unwrap());
    });
    is_ready.recv_timeout(Duration::from_secs(10)).unwrap();
    let mut next = Snapshot { version: 1, ..Snapshot::default() };
    next.local.insert(WorkloadId::new("default", "a"), Arc::new(pod("a", Some("/n/a"), true)));
    snapshots.publish(Arc::new(next));
    tell.send(()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while table.lock().first().is_none_or(|p| p.state != PodState::Captured) {
        assert!(Instant::now() < deadline, "not captured");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(tell);
    thread.join().unwrap();
}

#[test]
fn a_refused_pod_is_captured_and_never_carried() {
    let mut b = Bench::new(false);
    b.paper.put("/n/a", 1);
    let a = pod("a", Some("/n/a"), true);
    let refused = |b: &mut Bench, reason: &str| {
        let mut next = Snapshot { version: b.snapshots.load().version + 1, ..<_>::default() };
        next.local.insert(a.workload.id.clone(), Arc::new(a.clone()));
        next.refused.insert(a.workload.id.clone(), reason.into());
        b.snapshots.publish(Arc::new(next));
        b.now += SOON;
        b.enrolment.pass(b.now);
        b.paper.done()
    };
    assert_eq!(refused(&mut b, "odd"), ["enroll default/a []", "remove default/a"]);
    assert_eq!(b.state(0), (PodState::Refused, "odd".into()));
    assert_eq!(refused(&mut b, "odd"), [""; 0], "nothing to do");
    // It is mended, and refused again.
    assert_eq!(b.pass(&[&a], SOON), ["enroll default/a []", "add default/a"]);
    assert_eq!(refused(&mut b, "again"), ["enroll default/a []", "remove default/a"]);
    // And leaves.
    assert_eq!(b.pass(&[], SOON), ["leave default/a Gone", "remove default/a"]);
}

#[test]
fn the_data_plane_is_told_what_a_pod_was_given() {
    let mut b = Bench::new(false);
    b.paper.put("/n/a", 1);
    b.paper.put("/n/b", 2);
    let assigned = Arc::new(Assigned::default());
    b.enrolment.around.assigned = Some(Arc::clone(&assigned));
    let tell = |container: &str, uid: &str, ip: &str| {
        assigned.tell(&fairlead_wire::cni::Sandbox {
            container_id: container.into(),
            netns: "/n/a".into(),
            pod_namespace: "default".into(),
            pod_name: "a".into(),
            pod_uid: uid.into(),
            ips: vec![ip.parse().unwrap()],
        });
    };
    let (a, other) = (pod("a", Some("/n/a"), true), pod("b", Some("/n/b"), true));
    let given = |b: &Bench, name: &str| {
        b.paper.given.lock().get(&WorkloadId::new("default", name)).cloned().unwrap_or_default()
    };
    tell("c1", "a", "10.0.0.7");
    b.pass(&[&a, &other], SOON);
    assert_eq!(given(&b, "a"), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    assert!(given(&b, "b").is_empty(), "nobody has told");
    // Its next sandbox has another one.
    tell("c2", "a", "10.0.0.8");
    b.paper.put("/n/a", 3);
    b.pass(&[&a, &other], SOON);
    assert_eq!(given(&b, "a"), ["10.0.0.8".parse::<IpAddr>().unwrap()]);
    // What another pod of that name was given is none of its business.
    tell("c3", "another", "10.0.0.9");
    b.paper.put("/n/a", 4);
    b.pass(&[&a, &other], SOON);
    assert!(given(&b, "a").is_empty());
    // A pod that goes is forgotten in time, but not by what may be old.
    *b.current.lock() = false;
    b.pass(&[&other], LATER * 20);
    assert_eq!(assigned.of(&WorkloadId::new("default", "a"), "another").len(), 1);
    *b.current.lock() = true;
    b.pass(&[&other], LATER);
    assert!(assigned.of(&WorkloadId::new("default", "a"), "another").is_empty());
}

#[test]
fn a_namespace_made_anew_with_the_number_of_the_last_is_another() {
    let mut b = Bench::new(true);
    let refused = |b: &mut Bench, pod: &LocalPod| {
        let mut next = Snapshot { version: b.snapshots.load().version + 1, ..<_>::default() };
        next.local.insert(pod.workload.id.clone(), Arc::new(pod.clone()));
        next.refused.insert(pod.workload.id.clone(), "odd".into());
        b.snapshots.publish(Arc::new(next));
        b.now += SOON;
        b.enrolment.pass(b.now);
        b.paper.done()
    };
    // Captured and refused, nobody has sockets of its namespace.
    let first = b.paper.remake("/n/a");
    let a = pod("a", Some("/n/a"), true);
    assert_eq!(refused(&mut b, &a), ["enroll default/a []", "remove default/a"]);
    assert_ne!(b.paper.remake("/n/a"), first);
    let again = refused(&mut b, &a);
    assert!(again.contains(&"enroll default/a []".into()), "{again:?}");
    // Exempted.
    let outside = pod("a", Some("/n/a"), false);
    assert!(b.pass(&[&outside], SOON).contains(&"exempt /n/a".into()));
    b.paper.remake("/n/a");
    assert_eq!(b.pass(&[&outside], SOON), ["release 7 Gone", "exempt /n/a"]);
    // None is held for longer than it is needed.
    b.pass(&[], SOON);
    assert_eq!(b.paper.remake("/n/a"), first);
}

#[path = "outliving_tests.rs"]
mod outliving;
