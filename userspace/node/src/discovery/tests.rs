use fairlead_config::model::{PeerWire, Workload};
use fairlead_types::Labels;

use super::*;

fn pod(name: &str, uid: &str, annotation: Option<&str>) -> Arc<LocalPod> {
    let workload = Workload {
        id: WorkloadId::new("default", name),
        name: name.into(),
        namespace: "default".into(),
        uid: uid.into(),
        workload_name: name.into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        app: name.into(),
        version: "v1".into(),
        labels: Arc::new(Labels::default()),
        identity: format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap(),
        ips: Box::new(["10.0.0.1".parse().unwrap()]),
        node: "a".into(),
        enrolled: true,
        wire: PeerWire::Native,
        exclude_inbound_ports: Box::default(),
        include_inbound_ports: None,
    };
    Arc::new(LocalPod {
        workload: Arc::new(workload),
        netns: annotation.map(PathBuf::from),
        exclude_outbound_ports: Box::default(),
        exclude_outbound_cidrs: Box::default(),
        include_outbound_cidrs: None,
        include_outbound_ports: Box::default(),
        probe_ports: Box::default(),
    })
}

fn own() -> Namespace {
    Namespace::open(Path::new("/proc/self/ns/net")).unwrap()
}

fn locator(trust_annotations: bool) -> Locator {
    Locator::new("/nonexistent".into(), NetnsCookie(1), trust_annotations)
}

fn at(
    locator: &Locator,
    pods: &[&Arc<LocalPod>],
    now: Instant,
) -> (Vec<Option<PathBuf>>, Option<Instant>) {
    let pods: Vec<_> = pods.iter().map(|pod| (&pod.workload.id, *pod)).collect();
    let (located, next) = locator.locate(pods.into_iter(), now);
    (located.iter().map(|(_, pod)| pod.netns.clone()).collect(), next)
}

#[test]
fn what_the_plugin_tells_counts_for_that_pod_alone() {
    let (locator, now) = (locator(false), Instant::now());
    let a = pod("a", "u1", None);
    let namespace = own();
    let path = namespace.path();
    locator.tell(a.workload.id.clone(), "u1", "c1", namespace).unwrap();
    assert_eq!(at(&locator, &[], now).0, [], "not heard of yet, and kept");
    assert_eq!(at(&locator, &[&a], now), (vec![Some(path.clone())], None));
    assert!(std::fs::metadata(&path).is_ok());
    // The same name made anew is another pod.
    let again = pod("a", "u2", None);
    assert_eq!(at(&locator, &[&again], now).0, [None]);
    assert_eq!(at(&locator, &[&a], now).0, [Some(path)]);
    locator.forget("c2");
    assert!(at(&locator, &[&a], now).0[0].is_some());
    locator.forget("c1");
    assert_eq!(at(&locator, &[&a], now).0, [None]);

    locator.tell(a.workload.id.clone(), "u1", "c3", own()).unwrap();
    locator.retain(&HashSet::from(["c3".to_owned()]));
    assert!(at(&locator, &[&a], now).0[0].is_some());
    locator.retain(&HashSet::new());
    assert!(at(&locator, &[&a], now).0[0].is_none());

    locator.tell(a.workload.id.clone(), "", "c4", own()).unwrap();
    assert!(at(&locator, &[&a], now).0[0].is_some(), "a runtime that does not say the uid");
    at(&locator, &[], now);
    assert!(at(&locator, &[&a], now).0[0].is_none(), "gone from the configuration");
}

#[test]
fn annotations_of_a_cluster_do_not_say_where_a_pod_is() {
    let a = pod("a", "u1", Some("/proc/1/ns/net"));
    assert_eq!(at(&locator(false), &[&a], Instant::now()).0, [None]);
    assert_eq!(at(&locator(true), &[&a], Instant::now()).0, [Some("/proc/1/ns/net".into())]);
}

#[test]
fn pods_that_are_missing_are_looked_for_more_and_more_rarely() {
    let (locator, start) = (locator(false), Instant::now());
    let (a, b) = (pod("a", "u1", None), pod("b", "u2", None));
    let (_, next) = at(&locator, &[&a], start);
    assert_eq!(next, Some(start + SOON));
    assert_eq!(at(&locator, &[&a], start).1, next, "not before its time");
    let second = start + SOON;
    assert_eq!(at(&locator, &[&a], second).1, Some(second + SOON * 2));
    assert_eq!(at(&locator, &[&a, &b], second).1, Some(second + SOON), "somebody new");
    assert_eq!(at(&locator, &[], second).1, None);
}

#[test]
fn a_sandbox_told_between_two_pods_of_one_name_is_kept() {
    let (locator, now) = (locator(false), Instant::now());
    let (first, second) = (pod("a", "u1", None), pod("a", "u2", None));
    locator.tell(second.workload.id.clone(), "u2", "c2", own()).unwrap();
    assert_eq!(at(&locator, &[&first], now).0, [None], "that one is elsewhere");
    at(&locator, &[], now);
    assert!(at(&locator, &[&second], now).0[0].is_some());
    // Once the configuration has had it, it goes with it.
    at(&locator, &[], now);
    assert_eq!(at(&locator, &[&second], now).0, [None]);
}

/// A directory like `/proc` with the processes of a pod.
struct FakeProc(PathBuf);

impl FakeProc {
    const UID: &str = "0f1e2d3c-4b5a-6978-8695-a4b3c2d1e0f9";

    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fairlead-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// A namespace is a file here: it has a number, and no addresses.
    fn start(&self, pid: u32, netns: &str) {
        let process = self.0.join(pid.to_string());
        std::fs::create_dir_all(process.join("ns")).unwrap();
        std::fs::write(process.join("cgroup"), format!("0::/kubepods/pod{}\n", Self::UID)).unwrap();
        std::fs::OpenOptions::new().append(true).create(true).open(self.0.join(netns)).unwrap();
        std::fs::hard_link(self.0.join(netns), process.join("ns/net")).unwrap();
    }

    fn end(&self, pid: u32) {
        std::fs::remove_dir_all(self.0.join(pid.to_string())).unwrap();
    }
}

impl Drop for FakeProc {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_namespace_is_that_of_a_pod_as_long_as_a_process_of_it_is_there() {
    let proc = FakeProc::new("found");
    let (locator, now) = (Locator::new(proc.0.clone(), NetnsCookie(1), false), Instant::now());
    let a = pod("a", FakeProc::UID, None);
    proc.start(7, "n1");
    proc.start(8, "n1");
    let namespace = Namespace::open(&proc.0.join("n1")).unwrap();
    let path = namespace.path();
    let found = Found { uid: FakeProc::UID.into(), namespace, pid: Some(7) };
    locator.search.lock().found.insert(a.workload.id.clone(), found);
    assert_eq!(at(&locator, &[&a], now), (vec![Some(path.clone())], None));
    // The process by which it was found ends: another one is there.
    proc.end(7);
    assert_eq!(at(&locator, &[&a], now), (vec![Some(path.clone())], None));
    assert_eq!(locator.search.lock().found[&a.workload.id].pid, Some(8));
    // The sandbox is made anew, and its first process has the number of the one before.
    proc.end(8);
    proc.start(8, "n2");
    let (found, next) = at(&locator, &[&a], now);
    assert_eq!((found, next), (vec![None], Some(now + SOON)), "looked for again");
    assert!(locator.search.lock().found.is_empty(), "and not held");
}
