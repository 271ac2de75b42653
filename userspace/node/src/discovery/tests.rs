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
