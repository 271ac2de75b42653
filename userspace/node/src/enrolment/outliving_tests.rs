//! Pods of a cluster that run on without their objects.

use std::fs;

use super::*;

/// A directory like `/proc`, and namespaces that are files beside it.
struct Node {
    dir: PathBuf,
}

impl Node {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fairlead-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("proc")).unwrap();
        Self { dir }
    }

    fn proc(&self) -> PathBuf {
        self.dir.join("proc")
    }

    /// Makes a network namespace.
    fn netns(&self, name: &str) -> Namespace {
        fs::write(self.dir.join(name), "").unwrap();
        Namespace::open(&self.dir.join(name)).unwrap()
    }

    /// Starts a process there.
    fn start(&self, pid: u32, netns: &str) {
        let ns = self.proc().join(format!("{pid}/ns"));
        fs::create_dir_all(&ns).unwrap();
        fs::hard_link(self.dir.join(netns), ns.join("net")).unwrap();
    }

    /// Starts one of a pod there.
    fn start_of(&self, uid: &str, pid: u32, netns: &str) {
        self.start(pid, netns);
        let text = format!("0::/kubepods/pod{uid}/c\n");
        fs::write(self.proc().join(format!("{pid}/cgroup")), text).unwrap();
    }

    fn end(&self, pid: u32) {
        fs::remove_dir_all(self.proc().join(pid.to_string())).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The pod `a`, as one of these uids.
fn a(uid: &str) -> LocalPod {
    let pod = pod("a", None, true);
    let workload = Workload { uid: uid.into(), ..Workload::clone(&pod.workload) };
    LocalPod { workload: Arc::new(workload), ..pod }
}

const JOINS: [&str; 2] = ["enroll default/a []", "add default/a"];
/// Longer than between two looks at all processes.
const A_LOOK: Duration = Duration::from_secs(11);

#[test]
fn a_pod_without_its_object_is_refused_until_its_sandbox_is_gone() {
    let node = Node::new("outlive");
    let (mut b, locator) = Bench::on_cluster(&node.proc());
    let u1 = a("u1");
    let netns = node.netns("n1");
    let cookie = NetnsCookie(netns.place().1);
    locator.tell(u1.workload.id.clone(), "u1", "c1", netns).unwrap();
    assert_eq!(b.pass(&[&u1], SOON), JOINS);
    node.start(7, "n1");
    // Its object goes first.
    assert_eq!(b.pass(&[], SOON), ["remove default/a"], "its sockets, and no more");
    assert_eq!(b.state(0).0, PodState::Refused);
    assert_eq!(b.retained.lock().last(), Some(&0), "it has no certificate");
    assert_eq!(b.pass(&[], A_LOOK), [""; 0]);
    // The plugin takes the sandbox back, which counts only when nothing runs there.
    locator.forget("c1");
    assert_eq!(b.pass(&[], A_LOOK), [""; 0]);
    node.end(7);
    assert_eq!(b.pass(&[], A_LOOK), ["leave default/a Gone"]);
    assert_eq!(*b.paper.left.lock(), [cookie]);
    assert!(b.enrolment.table.lock().is_empty());
}

#[test]
fn a_pod_that_ended_before_its_object_leaves_at_once() {
    let node = Node::new("ended");
    let (mut b, locator) = Bench::on_cluster(&node.proc());
    let u1 = a("u1");
    locator.tell(u1.workload.id.clone(), "u1", "c1", node.netns("n1")).unwrap();
    assert_eq!(b.pass(&[&u1], SOON), JOINS);
    locator.forget("c1");
    assert_eq!(b.pass(&[&u1], SOON), [""; 0]);
    assert_eq!(b.pass(&[], SOON), ["remove default/a", "leave default/a Gone"]);
}

#[test]
fn nothing_is_held_for_ever() {
    // The plugin's word that the sandbox is gone was lost.
    let node = Node::new("lost");
    let (mut b, locator) = Bench::on_cluster(&node.proc());
    let u1 = a("u1");
    locator.tell(u1.workload.id.clone(), "u1", "c1", node.netns("n1")).unwrap();
    b.pass(&[&u1], SOON);
    assert_eq!(b.pass(&[], SOON), ["remove default/a"]);
    assert_eq!(b.pass(&[], SOON), [""; 0], "its first process may be about to start");
    let later = b.pass(&[], LATER);
    assert_eq!(later, ["leave default/a Gone"]);
    // The kernel does not let go of it.
    locator.tell(u1.workload.id.clone(), "u1", "c2", node.netns("n2")).unwrap();
    b.pass(&[&u1], SOON);
    locator.retain(&HashSet::new());
    b.paper.refuse("leave", Some("busy"));
    assert_eq!(b.pass(&[], SOON), ["remove default/a", "leave default/a Gone"]);
    assert_eq!(b.state(0).0, PodState::Refused);
    b.paper.refuse("leave", None);
    assert_eq!(b.pass(&[], LATER), ["leave default/a Gone"]);
    assert!(b.enrolment.table.lock().is_empty());
}

#[test]
fn a_pod_of_the_same_name_does_not_wait_for_the_one_before() {
    let node = Node::new("again");
    let (mut b, locator) = Bench::on_cluster(&node.proc());
    let (u1, u2) = (a("u1"), a("u2"));
    let id = &u1.workload.id;
    let (n1, n2) = (node.netns("n1"), node.netns("n2"));
    let (first, second) = (NetnsCookie(n1.place().1), NetnsCookie(n2.place().1));
    locator.tell(id.clone(), "u1", "c1", n1).unwrap();
    node.start(7, "n1");
    assert_eq!(b.pass(&[&u1], SOON), JOINS);
    // It is another pod, and nobody knows yet where that is: the one before does not get its
    // identity.
    assert_eq!(b.pass(&[&u2], SOON), ["remove default/a"]);
    assert_eq!(b.pass(&[&u2], SOON), [""; 0]);
    locator.tell(id.clone(), "u2", "c2", n2).unwrap();
    assert_eq!(b.pass(&[&u2], SOON), JOINS);
    assert_eq!([b.state(0).0, b.state(1).0], [PodState::Captured, PodState::Refused]);
    // Which of the two leaves first makes no difference to the other.
    locator.forget("c2");
    assert_eq!(b.pass(&[], SOON), ["remove default/a", "leave default/a Gone"]);
    assert_eq!(*b.paper.left.lock(), [second]);
    locator.forget("c1");
    node.end(7);
    assert_eq!(b.pass(&[], A_LOOK), ["leave default/a Gone"]);
    assert_eq!(*b.paper.left.lock(), [second, first]);
}

#[test]
fn a_pod_that_comes_back_is_served_again() {
    let node = Node::new("back");
    let (mut b, locator) = Bench::on_cluster(&node.proc());
    let u1 = a("u1");
    locator.tell(u1.workload.id.clone(), "u1", "c1", node.netns("n1")).unwrap();
    b.pass(&[&u1], SOON);
    assert_eq!(b.pass(&[], SOON), ["remove default/a"]);
    let netns = Namespace::open(&node.dir.join("n1")).unwrap();
    locator.tell(u1.workload.id.clone(), "u1", "c1", netns).unwrap();
    assert_eq!(b.pass(&[&u1], SOON), JOINS, "and does not leave in between");
    assert_eq!(b.state(0).0, PodState::Captured);
    assert_eq!(b.enrolment.table.lock().len(), 1);
}

#[test]
fn a_pod_without_its_object_is_refused_by_the_next_daemon_too() {
    const GONE: &str = "0f1e2d3c-4b5a-6978-8695-a4b3c2d1e0f9";
    const LISTED: &str = "1f1e2d3c-4b5a-6978-8695-a4b3c2d1e0f9";
    let node = Node::new("next");
    let cookies = ["n1", "n2", "n3"].map(|name| NetnsCookie(node.netns(name).place().1));
    node.start_of(GONE, 7, "n1");
    node.start_of(GONE, 8, "n1");
    node.start_of(LISTED, 9, "n2");
    let bench = || {
        let (b, locator) = Bench::on_cluster(&node.proc());
        b.paper.leftovers.lock().extend(cookies);
        (b, locator)
    };
    let (mut b, _) = bench();
    // One that left the mesh, and has not been found; and one in which nothing runs.
    let outside = a(LISTED);
    let workload = Workload { enrolled: false, ..Workload::clone(&outside.workload) };
    let outside = LocalPod { workload: Arc::new(workload), ..outside };
    let [_, second, third] = cookies.map(|cookie| format!("release {cookie} Gone"));
    let held = format!("enroll uid/{GONE} []");
    assert_eq!(b.pass(&[&outside], SOON), [held, second, third]);
    assert_eq!((b.state(1).0, b.pass(&[&outside], A_LOOK)), (PodState::Refused, vec![]));
    node.end(7);
    assert_eq!(b.pass(&[&outside], A_LOOK), [""; 0]);
    node.end(8);
    let gone = format!("leave uid/{GONE} Gone");
    assert_eq!(b.pass(&[&outside], A_LOOK), [gone]);
    assert_eq!(*b.paper.left.lock(), [cookies[0]]);
    // What is in a directory is let go.
    node.start_of(GONE, 7, "n1");
    let (mut b, _) = bench();
    b.enrolment.around.locator = Some(Arc::new(Locator::new(node.proc(), NetnsCookie(0), true)));
    assert_eq!(b.pass(&[], SOON), cookies.map(|cookie| format!("release {cookie} Gone")));
}

#[test]
fn a_pod_taken_out_of_a_directory_leaves() {
    let node = Node::new("directory");
    let (mut b, _) = Bench::on_cluster(&node.proc());
    let locator = Arc::new(Locator::new(node.proc(), NetnsCookie(0), true));
    b.enrolment.around.locator = Some(Arc::clone(&locator));
    let u1 = a("u1");
    locator.tell(u1.workload.id.clone(), "u1", "c1", node.netns("n1")).unwrap();
    node.start(7, "n1");
    assert_eq!(b.pass(&[&u1], SOON), JOINS);
    assert_eq!(b.pass(&[], SOON), ["leave default/a Gone", "remove default/a"]);
    // One with another uid in the same namespace is captured without a gap.
    let (mut b, u1) = (Bench::new(false), LocalPod { netns: Some("/n/a".into()), ..a("u1") });
    let u2 = LocalPod { netns: Some("/n/a".into()), ..a("u2") };
    b.paper.put("/n/a", 1);
    assert_eq!(b.pass(&[&u1], SOON), JOINS);
    assert_eq!(b.pass(&[&u2], SOON), JOINS);
}
