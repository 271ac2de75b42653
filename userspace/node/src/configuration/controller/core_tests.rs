use std::sync::atomic::{AtomicU32, Ordering};

use fairlead_wire::config::Resource;

use super::super::super::follower::Form;
use super::*;
use crate::settings::{ServiceSettings, Unanswered};

#[path = "core_verdicts_tests.rs"]
mod verdicts;

struct Node {
    core: Core,
    keeper: Option<Keeper>,
    staged: Staged,
    settings: ControllerSettings,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.keeper = None;
        let _ = std::fs::remove_dir_all(&self.settings.state_dir);
    }
}

fn settings() -> ControllerSettings {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    ControllerSettings {
        service: ServiceSettings {
            address: "c:1".parse().unwrap(),
            ca_root: "/".into(),
            token_file: "/".into(),
        },
        state_dir: std::env::temp_dir().join(format!("fairlead-core-{n}-{}", std::process::id())),
        cluster_id: "c".into(),
        root_namespace: "istio-system".into(),
        unanswered: Unanswered::Refuse,
    }
}

fn open(settings: &ControllerSettings) -> (Core, Keeper) {
    let follower = Follower::new("n", Form::Objects);
    let (bundle, _) = watch::channel(None);
    Core::open(settings, "n", follower, Status::new("c".into()), bundle).unwrap()
}

impl Node {
    fn new() -> Self {
        let settings = settings();
        let (core, keeper) = open(&settings);
        Self { core, keeper: Some(keeper), staged: Staged::default(), settings }
    }

    async fn take(&mut self, update: Update) -> Result<Vec<Rejection>, String> {
        let keeper = self.keeper.as_ref().unwrap();
        self.core.take(update, &mut self.staged, keeper).await
    }

    fn pods(&self) -> usize {
        self.core.follower.snapshots().load().local.len()
    }

    /// The daemon dies and comes back.
    fn again(&mut self) {
        self.keeper = None;
        let (core, keeper) = open(&self.settings);
        (self.core, self.keeper, self.staged) = (core, Some(keeper), Staged::default());
    }
}

fn key(name: &str) -> Key {
    Key {
        api_version: "v1".into(),
        kind: "Pod".into(),
        namespace: "default".into(),
        name: name.into(),
    }
}

fn pod(name: &str, ip: &str) -> Resource {
    let json = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"default","labels":{{"fairlead.io/mesh":"enabled"}}}},"spec":{{"nodeName":"n","serviceAccountName":"{name}","containers":[]}},"status":{{"phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}]}}}}"#
    );
    Resource { key: Some(key(name)), version: "1".into(), json: json.into(), generation: 0 }
}

fn update(upserts: Vec<Resource>, complete: bool) -> Update {
    Update { upserts, complete, ..Update::default() }
}

#[tokio::test]
async fn nothing_is_in_force_before_everything_has_come() {
    let mut node = Node::new();
    node.take(update(vec![pod("a", "10.0.0.1")], false)).await.unwrap();
    assert_eq!((node.pods(), node.core.held.len()), (0, 0));
    assert_eq!(node.core.status.facts().age(), None);
    node.take(update(vec![pod("b", "10.0.0.2")], true)).await.unwrap();
    assert_eq!((node.pods(), node.core.held.len()), (2, 2));
    assert_eq!(node.core.status.facts().age(), Some(Duration::ZERO));
    // What broke off before the end is no part of what is kept.
    node.staged = Staged::default();
    node.take(update(vec![pod("c", "10.0.0.3")], false)).await.unwrap();
    assert_eq!(node.pods(), 2);
    node.again();
    assert_eq!((node.pods(), node.core.held.len()), (2, 2));
    let inventory = node.core.inventory(false);
    assert!(inventory.len() == 1 && inventory[0].last && inventory[0].held.len() == 2);
    assert!(node.core.inventory(true)[0].held.is_empty());
}

#[tokio::test]
async fn what_is_sent_whole_replaces_what_was_there() {
    let mut node = Node::new();
    let first = vec![pod("a", "10.0.0.1"), pod("b", "10.0.0.2")];
    node.take(update(first, true)).await.unwrap();
    node.staged = Staged::new(true);
    node.take(update(vec![pod("b", "10.0.0.2"), pod("c", "10.0.0.3")], false)).await.unwrap();
    node.take(update(Vec::new(), true)).await.unwrap();
    assert_eq!((node.pods(), node.core.held.len()), (2, 2));
    node.again();
    assert_eq!(node.pods(), 2);
    let gone =
        Update { removed: vec![key("b"), key("never")], complete: true, ..Update::default() };
    node.take(gone).await.unwrap();
    assert_eq!(node.pods(), 1);
}

#[tokio::test]
async fn a_broken_controller_changes_nothing() {
    let mut node = Node::new();
    node.take(update(vec![pod("a", "10.0.0.1")], true)).await.unwrap();
    let large = Resource { json: vec![b' '; objects::MAX_OBJECT_BYTES + 1], ..pod("b", "") };
    let nameless = Resource { key: Some(key("")), ..pod("b", "10.0.0.2") };
    let keyless = Resource { key: None, ..pod("b", "10.0.0.2") };
    let versions = Resource { version: "1".repeat(1000), ..pod("b", "10.0.0.2") };
    for (what, bad) in
        [("large", large), ("nameless", nameless), ("keyless", keyless), ("version", versions)]
    {
        let mixed = update(vec![pod("c", "10.0.0.3"), bad], true);
        assert!(node.take(mixed).await.is_err(), "{what}");
        node.staged = Staged::default();
        assert_eq!((node.pods(), node.core.held.len()), (1, 1), "{what}");
    }
    let path = Update { removed: vec![key("../x")], complete: true, ..Update::default() };
    assert!(node.take(path).await.is_err());
    let bundle = Update { trust_bundle_pem: b"no PEM".to_vec(), ..Update::default() };
    node.staged = Staged::default();
    node.take(bundle).await.unwrap();
    assert!(node.core.bundle.borrow().is_none());
    // Garbage under a good key is refused, told, and changes nothing else.
    let garbage = Resource { json: b"{\"kind\":".to_vec(), ..pod("a", "") };
    let told = node.take(update(vec![garbage], true)).await.unwrap();
    assert!(told.len() == 1 && told[0].last_good && !told[0].faults.is_empty(), "{told:?}");
    assert_eq!(node.pods(), 1);
}

#[tokio::test]
async fn what_was_refused_is_told_again_after_a_restart() {
    let mut node = Node::new();
    let garbage = Resource { json: b"{\"kind\":".to_vec(), ..pod("b", "") };
    let told = node.take(update(vec![pod("a", "10.0.0.1"), garbage], true)).await.unwrap();
    assert_eq!(told.len(), 1);
    let versions = |node: &mut Node| {
        let held = node.core.inventory(false).remove(0).held.into_iter();
        let mut held: Vec<_> =
            held.map(|held| (held.key.unwrap().name, held.version, held.rejected)).collect();
        held.sort_by(|a, b| a.0.cmp(&b.0));
        held
    };
    let before = versions(&mut node);
    assert!(before[0].2.is_none() && before[1].2.is_some(), "{before:?}");
    node.again();
    let after = versions(&mut node);
    assert_eq!(after, before);
}

#[tokio::test]
async fn the_last_good_version_of_what_was_refused_outlives_the_daemon() {
    let mut node = Node::new();
    node.take(update(vec![pod("a", "10.0.0.1")], true)).await.unwrap();
    // Twice: the second one finds the first refused.
    for version in ["2", "3"] {
        let garbage = Resource {
            version: version.into(),
            json: b"{\"kind\":".to_vec(),
            ..pod("a", "10.0.0.1")
        };
        let told = node.take(update(vec![garbage], true)).await.unwrap();
        assert!(told.len() == 1 && told[0].last_good, "{told:?}");
        assert_eq!(node.core.inventory(false)[0].held[0].version, version);
    }
    node.again();
    assert_eq!(node.pods(), 1);
    // By its version the controller sees what is missing, and hears of the refusal again.
    let held = node.core.inventory(false).remove(0).held;
    assert_eq!((held.len(), held[0].version.as_str()), (1, "1"));
    let gone = Update { removed: vec![key("a")], complete: true, ..Update::default() };
    node.take(gone).await.unwrap();
    node.again();
    assert_eq!(node.pods(), 0);
}
