//! Nodes of several replicas: none is lost, none counts twice, and nothing flaps on the way.

use fairlead_wire::replica::{self as wire, Report};
use tokio::time::advance;

use super::super::picture::Nonsense;
use super::super::replicas::GRACE;
use super::*;

const SESSION: u64 = 7;

/// A replica that leads and one that follows, with the same objects and one pod on each node.
struct Two {
    leads: Arc<World>,
    follows: Arc<World>,
    verdicts: Verdicts,
    teller: Option<Teller>,
    nonce: u64,
    key: ObjectKey,
}

impl Two {
    fn new() -> Self {
        let (leads, follows) = (three_namespaces(), three_namespaces());
        let verdicts = Verdicts::new(Arc::clone(&leads));
        let key = ObjectKey::new(Kind::AuthorizationPolicy, "root", "all");
        Self { leads, follows, verdicts, teller: None, nonce: 0, key }
    }

    /// The follower's stream begins, with everything.
    fn join(&mut self, instance: &str, session: u64) {
        self.teller = None;
        self.teller = Some(Teller::new(Arc::clone(&self.follows)));
        let mut picture = Picture::of(env!("CARGO_PKG_VERSION"));
        while self.report(|report| picture.take(report).map(drop).expect("it makes sense")) {}
        self.leads.adopt(session, "pod", instance, picture);
    }

    /// The follower tells what has changed.
    fn tell(&mut self, session: u64) {
        let leads = Arc::clone(&self.leads);
        while self.report(|report| leads.amend(session, report).expect("it makes sense")) {}
    }

    fn report(&mut self, hear: impl FnOnce(Report)) -> bool {
        self.nonce += 1;
        let teller = self.teller.as_mut().expect("a teller");
        let report = teller.report(self.nonce);
        let more = !report.complete;
        hear(report);
        assert_eq!(teller.has_news(), more);
        more
    }

    fn rule(&self, spec: &Value) {
        for world in [&self.leads, &self.follows] {
            rule(world, Kind::AuthorizationPolicy, "root", "all", spec.clone());
        }
    }

    /// Nodes that need it, took it, refused it, and replicas that are behind.
    fn count(&self) -> (usize, usize, usize, usize) {
        let of = self.verdicts.of(&self.key).expect("a verdict");
        (of.interested, of.took, of.refused, of.behind)
    }

    fn refusers(&self) -> Vec<String> {
        let of = self.verdicts.of(&self.key).expect("a verdict");
        let name = |(node, why): &(Arc<str>, Arc<Rejection>)| {
            format!("{node}: {}", why.faults.first().map_or("", |fault| fault.message.as_str()))
        };
        of.rejections.iter().map(name).collect()
    }

    /// Whether a verdict about the object is to be written again.
    fn changed(&self) -> bool {
        let keys =
            futures_util::FutureExt::now_or_never(self.verdicts.changed()).unwrap_or_default();
        keys.contains(&self.key)
    }
}

/// A node refuses the rule of the root namespace, and takes all else.
fn refuse(world: &World, ticket: &Ticket, why: &str) {
    while world.has_news(ticket) {
        world.take(ticket).expect("the stream");
        let key = Key {
            kind: "AuthorizationPolicy".into(),
            namespace: "root".into(),
            name: "all".into(),
            ..Key::default()
        };
        let fault = Fault { message: why.to_owned(), ..Fault::default() };
        let rejection = Rejection { key: Some(key), faults: vec![fault], ..Rejection::default() };
        world.acknowledge(ticket, Ack { nonce: 0, rejected: vec![rejection] });
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_of_all_replicas_count() {
    let mut two = Two::new();
    let mut one = Client::connect(&two.leads, "one");
    assert_eq!(two.count(), (1, 1, 0, 0));
    let ticket = two.follows.connect("two", "1", Vec::new());
    two.join("a", SESSION);
    assert!(two.changed());
    assert_eq!(two.count(), (2, 1, 0, 0), "the other one has not answered");
    refuse(&two.follows, &ticket, "no");
    two.tell(SESSION);
    assert!(two.changed());
    assert_eq!((two.count(), two.refusers()), ((2, 1, 1, 0), vec!["two: no".to_owned()]));
    // Mended: at the leader first, and nobody says that all is well before the other has seen it.
    rule(&two.leads, Kind::AuthorizationPolicy, "root", "all", json!({"action": "DENY"}));
    one.settle(&two.leads);
    assert_eq!(two.count(), (2, 1, 0, 1));
    rule(&two.follows, Kind::AuthorizationPolicy, "root", "all", json!({"action": "DENY"}));
    two.tell(SESSION);
    assert_eq!(two.count(), (2, 1, 0, 0));
    while two.follows.has_news(&ticket) {
        two.follows.take(&ticket).expect("the stream");
        two.follows.acknowledge(&ticket, Ack::default());
    }
    assert!(two.changed());
    two.tell(SESSION);
    assert!(two.changed());
    assert_eq!(two.count(), (2, 2, 0, 0));
    // The other node changes its mind, without anybody having touched it.
    let content = two.verdicts.of(&two.key).expect("a verdict");
    let says = |rejected| Held {
        key: Some(Key {
            kind: "AuthorizationPolicy".into(),
            namespace: "root".into(),
            name: "all".into(),
            ..Key::default()
        }),
        version: content.version.to_string(),
        rejected,
    };
    let fault = Fault { message: "late".to_owned(), ..Fault::default() };
    let no = Rejection { faults: vec![fault], more: 2, ..Rejection::default() };
    for (says, counts) in [(says(Some(no)), (2, 1, 1, 0)), (says(None), (2, 2, 0, 0))] {
        two.follows.hear_verdicts(&ticket, vec![says]);
        two.tell(SESSION);
        assert!(two.changed());
        assert_eq!(two.count(), counts);
        let of = two.verdicts.of(&two.key).expect("a verdict");
        assert!(of.rejections.iter().all(|(node, why)| &**node == "two" && why.more == 2));
    }
    // An object that no node of the other needs, and one that it has not heard of.
    let lonely = ObjectKey::new(Kind::AuthorizationPolicy, "a", "q");
    rule(&two.leads, Kind::AuthorizationPolicy, "a", "q", json!({}));
    one.settle(&two.leads);
    let of = |two: &Two| two.verdicts.of(&lonely).map(|of| (of.interested, of.took, of.behind));
    assert_eq!(of(&two), Some((1, 1, 1)));
    rule(&two.follows, Kind::AuthorizationPolicy, "a", "q", json!({}));
    two.tell(SESSION);
    assert_eq!(of(&two), Some((1, 1, 0)));
    drop_object(&two.follows, Kind::AuthorizationPolicy, "a", "q");
    two.tell(SESSION);
    assert_eq!(of(&two), Some((1, 1, 1)));
    drop_object(&two.leads, Kind::AuthorizationPolicy, "a", "q");
    assert_eq!(of(&two), None);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_moves_counts_once_and_does_not_change_its_mind() {
    let mut two = Two::new();
    let ticket = two.follows.connect("one", "1", Vec::new());
    refuse(&two.follows, &ticket, "no");
    two.join("a", SESSION);
    assert_eq!((two.count(), two.refusers()), ((1, 0, 1, 0), vec!["one: no".to_owned()]));
    // It comes to the leader before its old stream is seen to have ended.
    advance(Duration::from_secs(1)).await;
    let moved = two.leads.connect("one", "1", Vec::new());
    assert_eq!((two.count(), two.refusers()), ((1, 0, 1, 0), vec!["one: no".to_owned()]));
    two.follows.disconnect(&ticket);
    two.tell(SESSION);
    assert_eq!((two.count(), two.refusers()), ((1, 0, 1, 0), vec!["one: no".to_owned()]));
    refuse(&two.leads, &moved, "still not");
    assert_eq!((two.count(), two.refusers()), ((1, 0, 1, 0), vec!["one: still not".to_owned()]));
    // And back, where it takes it.
    advance(Duration::from_secs(1)).await;
    two.leads.disconnect(&moved);
    assert_eq!(two.count(), (1, 0, 1, 0), "it may come back");
    let back = Client::connect(&two.follows, "one");
    two.tell(SESSION);
    assert_eq!(two.count(), (1, 1, 0, 0));
    // It goes for good.
    two.follows.disconnect(&back.ticket);
    two.tell(SESSION);
    assert!(two.changed());
    assert_eq!(two.count(), (0, 0, 0, 0));
    advance(GRACE).await;
    assert_eq!(two.count(), (0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_newest_of_two_daemons_counts() {
    let mut two = Two::new();
    let old = two.leads.connect("one", "old", Vec::new());
    refuse(&two.leads, &old, "no");
    advance(Duration::from_secs(5)).await;
    let new = Client::connect(&two.follows, "one");
    assert_eq!(two.count(), (1, 0, 1, 0));
    two.join("a", SESSION);
    assert_eq!(two.count(), (1, 1, 0, 0), "the daemon that takes over");
    two.follows.disconnect(&new.ticket);
    two.tell(SESSION);
    assert_eq!(two.count(), (1, 0, 1, 0), "it has not");
}

#[tokio::test(start_paused = true)]
async fn nodes_of_a_lost_replica_stay_for_a_moment() {
    let mut two = Two::new();
    let ticket = two.follows.connect("one", "1", Vec::new());
    refuse(&two.follows, &ticket, "no");
    let _other = Client::connect(&two.follows, "two");
    two.join("a", SESSION);
    assert_eq!(two.count(), (2, 1, 1, 0));
    two.leads.lose(SESSION, true);
    assert_eq!(two.count(), (2, 1, 1, 0));
    // Its stream comes again.
    advance(GRACE / 2).await;
    two.join("a", SESSION + 1);
    advance(GRACE).await;
    assert!(two.changed());
    assert_eq!(two.count(), (2, 1, 1, 0));
    // The replica begins anew: its nodes are on their way.
    two.leads.lose(SESSION + 1, true);
    two.teller = None;
    two.follows = three_namespaces();
    two.join("b", SESSION + 2);
    assert_eq!(two.count(), (2, 1, 1, 0));
    let ticket = two.follows.connect("one", "1", Vec::new());
    two.tell(SESSION + 2);
    assert_eq!((two.count(), two.refusers()), ((2, 1, 1, 0), vec!["one: no".to_owned()]));
    refuse(&two.follows, &ticket, "no");
    two.tell(SESSION + 2);
    assert!(two.changed());
    assert_eq!(two.count(), (2, 1, 1, 0));
    // The other one does not come again.
    advance(GRACE).await;
    assert!(two.changed(), "its time is over");
    assert_eq!(two.count(), (1, 0, 1, 0));
    // Something new that the lost one cannot have seen: it has no say where its nodes are back.
    two.leads.lose(SESSION + 2, true);
    let mut one = Client::connect(&two.leads, "one");
    two.rule(&json!({"action": "DENY"}));
    one.settle(&two.leads);
    assert_eq!(two.count(), (1, 1, 0, 0));
    // Who does not lead any more forgets all.
    two.join("b", SESSION + 3);
    two.leads.lose(SESSION + 3, false);
    assert_eq!(two.count(), (1, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn numbers_of_streams_are_used_again() {
    let mut two = Two::new();
    let one = two.follows.connect("one", "1", Vec::new());
    refuse(&two.follows, &one, "no");
    two.join("a", SESSION);
    two.follows.disconnect(&one);
    let other = Client::connect(&two.follows, "two");
    assert_eq!(other.ticket.node, one.node);
    two.tell(SESSION);
    assert_eq!((two.count(), two.refusers()), ((2, 1, 1, 0), vec!["one: no".to_owned()]));
    advance(GRACE).await;
    assert!(two.changed());
    assert_eq!(two.count(), (1, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn another_version_of_the_controller_is_compared_by_generation() {
    let two = Two::new();
    let verdict = |version: &str, generation| wire::Verdict {
        key: Some(wire_key("AuthorizationPolicy", "root", "all")),
        version: version.to_owned(),
        generation,
        needed: vec![1],
        taken: vec![1],
        ..wire::Verdict::default()
    };
    let stream = wire::Stream { id: 0, node: "two".into(), age_millis: 0 };
    for (build, version, generation, current) in [
        ("9", "root-all/other", 1, true),
        ("9", "root-all/other", 2, false),
        ("9", "another/other", 1, false),
        (env!("CARGO_PKG_VERSION"), "root-all/other", 1, false),
    ] {
        let mut picture = Picture::of(build);
        let report = Report {
            begun: vec![stream.clone()],
            verdicts: vec![verdict(version, generation)],
            ..Report::default()
        };
        picture.take(report).expect("it makes sense");
        two.leads.adopt(SESSION, "pod", "a", picture);
        let count = (1, usize::from(current), 0, usize::from(!current));
        assert_eq!(two.count(), count, "{build} {version} {generation}");
    }
}

fn wire_key(kind: &str, namespace: &str, name: &str) -> wire::Key {
    wire::Key { kind: kind.into(), namespace: namespace.into(), name: name.into() }
}

#[tokio::test]
async fn what_makes_no_sense_is_not_believed() {
    let stream = |id, node: &str| wire::Stream { id, node: node.into(), age_millis: u64::MAX };
    let good = wire::Verdict {
        key: Some(wire_key("VirtualService", "n", "v")),
        version: "u/1".into(),
        needed: vec![3],
        taken: vec![1],
        refused: vec![wire::Refusal { stream: 1, ..wire::Refusal::default() }],
        ..wire::Verdict::default()
    };
    let of = |verdict: wire::Verdict| Report { verdicts: vec![verdict], ..Report::default() };
    let begun = |streams: &[wire::Stream]| Report { begun: streams.to_vec(), ..Report::default() };
    let with = |change: &dyn Fn(&mut wire::Verdict)| {
        let mut verdict = good.clone();
        change(&mut verdict);
        of(verdict)
    };
    let picture = || {
        let mut picture = Picture::of("1");
        picture.take(begun(&[stream(0, "a"), stream(1, "b")])).expect("streams");
        picture
    };
    picture().take(of(good.clone())).expect("it makes sense");
    let long = "x".repeat(254);
    let nonsense = [
        begun(&[stream(0, "c")]),
        begun(&[stream(2, "")]),
        begun(&[stream(2, &long)]),
        begun(&[stream(16_384, "c")]),
        begun(&[stream(u32::MAX, "c")]),
        Report { ended: vec![2], ..Report::default() },
        Report { ended: vec![0, 0], ..Report::default() },
        Report { gone: vec![wire_key("Pod", "n", "p")], ..Report::default() },
        with(&|v| v.key = None),
        with(&|v| v.key = Some(wire_key("Secret", "n", "v"))),
        with(&|v| v.key = Some(wire_key("VirtualService", "n", ""))),
        with(&|v| v.key = Some(wire_key("VirtualService", "n", &long))),
        with(&|v| v.key = Some(wire_key("VirtualService", &long, "v"))),
        with(&|v| v.version = String::new()),
        with(&|v| v.version = "x".repeat(999)),
        with(&|v| v.needed = vec![7]),
        with(&|v| v.needed = vec![0; 4096]),
        with(&|v| v.taken = vec![4]),
        with(&|v| v.refused[0].stream = 0),
        with(&|v| v.refused[0].stream = 2),
        with(&|v| v.refused.push(v.refused[0].clone())),
    ];
    for report in nonsense {
        let text = format!("{report:?}");
        assert!(picture().take(report).is_err(), "{text}");
    }
    let world = three_namespaces();
    assert_eq!(world.amend(SESSION, Report::default()), Err(Nonsense::Unknown));
    // Sets that are many and large.
    let mut large = Picture::of("1");
    large.take(begun(&[stream(16_383, "a")])).expect("a stream");
    let mut taken = 0;
    let refused = loop {
        let mut verdict = good.clone();
        verdict.key = Some(wire_key("VirtualService", "n", &format!("v{taken}")));
        verdict.needed = vec![0; 2047];
        verdict.needed.push(0x80);
        (verdict.taken, verdict.refused) = (verdict.needed.clone(), Vec::new());
        match large.take(of(verdict)) {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused, taken / 1000), (Nonsense::TooMuch(128 << 20, "bytes"), 32));
    // More reasons than are kept: the refusals count all the same.
    let mut picture = picture();
    let fault = wire::Fault { message: "x".repeat(9999), ..wire::Fault::default() };
    for n in 0..3000 {
        let mut verdict = good.clone();
        verdict.key = Some(wire_key("VirtualService", "n", &format!("v{n}")));
        verdict.refused[0].faults = vec![fault.clone(); 20];
        picture.take(of(verdict)).expect("it makes sense");
    }
    let of = |name: &str| {
        let said = &picture.objects[&ObjectKey::new(Kind::VirtualService, "n", name)];
        said.refused[&1].faults.len()
    };
    assert_eq!((of("v0"), of("v2999")), (16, 0));
}

#[tokio::test]
async fn what_does_not_fit_into_one_report_comes_in_more() {
    let mut two = Two::new();
    for n in 0..20_000 {
        let name = format!("{n:0200}");
        for world in [&two.leads, &two.follows] {
            rule(world, Kind::AuthorizationPolicy, "a", &name, json!({}));
        }
    }
    let _one = Client::connect(&two.follows, "one");
    two.join("a", SESSION);
    assert!(two.nonce > 3, "{} reports", two.nonce);
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "a", &format!("{:0200}", 19_999));
    let of = two.verdicts.of(&key).expect("a verdict");
    assert_eq!((of.interested, of.took, of.behind), (1, 1, 0));
    // While nobody is told, nothing is kept for that.
    two.teller = None;
    two.rule(&json!({"action": "DENY"}));
    assert!(!two.follows.state.lock().telling.has_news());
}

#[tokio::test(start_paused = true)]
async fn who_begins_to_lead_waits_for_the_others() {
    let mut two = Two::new();
    let own =
        Own { namespace: "root".into(), service_account: "controller".into(), pod: "leads".into() };
    let verdicts = Verdicts::among(Arc::clone(&two.leads), own);
    let replica = |name: &str, account: &str, ready: &str, going: bool| {
        let mut metadata = meta("root", name);
        if going {
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        let object = json!({
            "metadata": metadata,
            "spec": {"nodeName": "one", "serviceAccountName": account},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        });
        put(&two.leads, Kind::Pod, object);
    };
    // None of these can tell anything.
    replica("leads", "controller", "True", false);
    replica("other", "node", "True", false);
    replica("dead", "controller", "False", false);
    replica("going", "controller", "True", true);
    let begun = tokio::time::Instant::now();
    verdicts.settled().await;
    assert_eq!(begun.elapsed().as_secs(), 2, "nodes of the one before are on their way");
    // This one can, and does not.
    replica("pod", "controller", "True", false);
    let begun = tokio::time::Instant::now();
    verdicts.settled().await;
    assert_eq!(begun.elapsed().as_secs(), 8);
    // Now it does.
    let begun = tokio::time::Instant::now();
    let settling = tokio::spawn(async move { verdicts.settled().await });
    tokio::task::yield_now().await;
    advance(Duration::from_secs(4)).await;
    tokio::task::yield_now().await;
    assert!(!settling.is_finished());
    two.join("a", SESSION);
    settling.await.expect("it settles");
    assert_eq!(begun.elapsed().as_secs(), 4);
}

#[tokio::test]
async fn what_a_node_refused_it_refuses_still_when_it_comes_again() {
    let two = Two::new();
    let version = two.verdicts.of(&two.key).expect("a verdict").version;
    let fault = Fault { message: "no".into(), ..Fault::default() };
    let held = |version: &str| Held {
        key: Some(Key {
            api_version: "security.istio.io/v1".into(),
            kind: "AuthorizationPolicy".into(),
            namespace: "root".into(),
            name: "all".into(),
        }),
        version: version.to_owned(),
        rejected: Some(Rejection { faults: vec![fault.clone()], ..Rejection::default() }),
    };
    let old = two.leads.connect("one", "1", vec![held("another")]);
    assert_eq!(two.count(), (1, 0, 0, 0), "it is about another version");
    two.leads.disconnect(&old);
    let _new = two.leads.connect("one", "1", vec![held(&version)]);
    assert_eq!((two.count(), two.refusers()), ((1, 0, 1, 0), vec!["one: no".to_owned()]));
}
