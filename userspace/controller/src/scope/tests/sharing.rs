//! Claims of addresses between replicas: every node hears of them, whichever replica serves it, and
//! no replica believes another more than its own tables.

use fairlead_wire::config::AddressedPod;
use fairlead_wire::replica::NodeClaims;
use tokio::time::{advance, sleep};

use super::claims::{A, B, finds, object, said, starting, told};
use super::*;

/// A replica that leads and two that follow, each with its nodes.
struct Three {
    leads: Arc<World>,
    follows: [Arc<World>; 2],
    /// The streams, as the one that leads has them and as the others do.
    here: [Sharing; 2],
    there: [Sharing; 2],
}

const NAMES: [&str; 2] = ["first", "second"];

impl Three {
    fn new() -> Self {
        let leads = world();
        let follows = [world(), world()];
        let here = NAMES.map(|name| at_leader(&leads, name));
        let there = [0, 1].map(|n| at_follower(&follows[n], NAMES[n]));
        let three = Self { leads, follows, here, there };
        three.pass();
        three
    }

    fn worlds(&self) -> [&Arc<World>; 3] {
        [&self.leads, &self.follows[0], &self.follows[1]]
    }

    fn everywhere(&self, act: impl Fn(&World)) {
        self.worlds().into_iter().for_each(|world| act(world));
    }

    /// What all are told of a pod, if that is the same.
    fn told(&self, pod: &str) -> Vec<String> {
        let [leads, first, second] = self.worlds().map(|world| told(world, pod));
        assert!(leads == first && first == second, "{leads:?} {first:?} {second:?}");
        leads
    }

    /// What all are told of the pods `p` and `q`.
    fn both(&self) -> [Vec<String>; 2] {
        ["p", "q"].map(|pod| self.told(pod))
    }

    /// Everything that there is to tell; returns what was told, by how many messages.
    fn pass(&self) -> usize {
        let mut messages = 0;
        let both = || self.here.iter().zip(&self.there);
        while both().any(|(here, there)| here.has_news() || there.has_news()) {
            for (here, there) in both() {
                messages += pass(there, here) + pass(here, there);
            }
        }
        messages
    }

    /// A stream of the node `far` has ended, and what it said there is forgotten.
    fn gone(&self, world: &World, far: &Client) {
        world.disconnect(&far.ticket);
        world.forget_claims("far");
        self.pass();
    }
}

fn at_leader(world: &Arc<World>, of: &str) -> Sharing {
    Sharing::with_follower(Arc::clone(world), "leads", of, true)
}

fn at_follower(world: &Arc<World>, own: &str) -> Sharing {
    Sharing::with_leader(Arc::clone(world), own)
}

fn pass(from: &Sharing, to: &Sharing) -> usize {
    let mut messages = 0;
    while from.has_news() {
        let (claims, _) = from.next();
        assert_eq!(to.hear(claims).refused, 0);
        messages += 1;
    }
    messages
}

/// Of a node, as a replica tells it.
fn of_node(node: &str, pods: Vec<AddressedPod>) -> NodeClaims {
    NodeClaims {
        origin: "x".to_owned(),
        node: node.to_owned(),
        age_millis: Some(0),
        anew: false,
        pods: pods.into_iter().map(Into::into).collect(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_node_claims_every_node_hears() {
    let three = Three::new();
    let far = Client::connect(&three.follows[0], "far");
    let near = Client::connect(&three.leads, "near");
    let mut caller = Client::connect(&three.follows[1], "caller");
    for n in 0..200 {
        three.everywhere(|world| {
            starting(world, &format!("p{n}"), "far");
        });
    }
    three.everywhere(|world| {
        starting(world, "q", "near");
    });
    assert!(!finds(&three.follows[1], &mut caller, A));
    three.follows[0].claim(&far.ticket, vec![said("p0", &[A, B])], true);
    assert!(three.here.iter().all(|here| !here.has_news()));
    assert_eq!(three.pass(), 2, "one message to the leader, one from there");
    assert_eq!(three.told("p0"), [A, B]);
    assert!(finds(&three.follows[1], &mut caller, A) && finds(&three.follows[1], &mut caller, B));
    // As an object that names them itself, at any replica: a node that moves takes it along.
    let json = |world: &World| world.json(&ObjectKey::new(Kind::Pod, "shop", "p0"));
    assert_eq!(json(&three.follows[0]), json(&three.follows[1]));
    // Of the leader's own nodes.
    three.leads.claim(&near.ticket, vec![said("q", &["10.0.1.1"])], false);
    assert_eq!(three.pass(), 2, "to each of the others");
    assert_eq!(three.told("q"), ["10.0.1.1"]);
    // What changes before it can be told goes together, and the same word again is no news.
    for n in 1..200 {
        let pod = said(&format!("p{n}"), &[&format!("10.0.2.{n}")]);
        three.follows[0].claim(&far.ticket, vec![pod.clone()], false);
        three.follows[0].claim(&far.ticket, vec![pod], false);
    }
    assert_eq!(three.pass(), 2);
    assert_eq!((three.told("p199"), three.told("p0").len()), (vec!["10.0.2.199".to_owned()], 2));
    three.follows[0].claim(&far.ticket, vec![said("p0", &[A, B])], false);
    assert_eq!(three.pass(), 0);
    // Another sandbox; none any more.
    three.follows[0].claim(&far.ticket, vec![said("p0", &["10.0.3.1"])], false);
    three.pass();
    assert_eq!(three.told("p0"), ["10.0.3.1"]);
    three.follows[0].claim(&far.ticket, vec![said("p0", &[])], false);
    three.pass();
    assert!(three.told("p0").is_empty());
    // Who comes later hears of all that is left.
    let late = world();
    starting(&late, "p7", "far");
    starting(&late, "q", "near");
    let (here, there) = (at_leader(&three.leads, "late"), at_follower(&late, "late"));
    assert_eq!(pass(&here, &there), 1);
    assert_eq!((told(&late, "p7"), told(&late, "q").len()), (vec!["10.0.2.7".to_owned()], 1));
    // Who does not ask for it is told nothing.
    let old = Sharing::with_follower(Arc::clone(&three.leads), "leads", "old", false);
    assert!(!old.has_news());
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_says_comes_first_at_each() {
    let three = Three::new();
    let far = Client::connect(&three.follows[0], "far");
    three.everywhere(|world| {
        starting(world, "p", "far");
    });
    three.follows[0].claim(&far.ticket, vec![said("p", &[A])], false);
    three.pass();
    // One hears it before the others do.
    let named = object("p", "far", json!({"podIPs": [{"ip": B}]}));
    put(&three.follows[1], Kind::Pod, named.clone());
    assert_eq!(
        (told(&three.follows[1], "p"), told(&three.leads, "p")),
        (vec![B.into()], vec![A.into()])
    );
    // Its node says it once more: that changes nothing there.
    three.follows[0].claim(&far.ticket, vec![said("p", &[A])], true);
    three.pass();
    assert_eq!(
        (told(&three.follows[1], "p"), told(&three.leads, "p")),
        (vec![B.into()], vec![A.into()])
    );
    three.everywhere(|world| {
        put(world, Kind::Pod, named.clone());
    });
    three.pass();
    assert_eq!(three.told("p"), [B]);
    three.everywhere(|world| assert!(world.state.lock().claims.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_replica_is_believed_no_more_than_a_node() {
    let three = Three::new();
    let [first, _] = &three.here;
    let mut other = object("moved", "far", json!({}));
    other["metadata"]["uid"] = "another".into();
    let mut host = object("host", "far", json!({}));
    host["spec"]["hostNetwork"] = true.into();
    for object in [
        object("elsewhere", "near", json!({})),
        object("over", "far", json!({"phase": "Succeeded"})),
        object("named", "far", json!({"podIPs": [{"ip": B}]})),
        object("good", "far", json!({})),
        other,
        host,
    ] {
        put(&three.leads, Kind::Pod, object);
    }
    pod(&three.leads, "shop", "old", "near", A);
    let names = ["elsewhere", "over", "moved", "host", "good"];
    let pods = names.iter().enumerate().map(|(n, name)| said(name, &[&format!("10.0.2.{n}")]));
    let pods = pods.chain([said("named", &[A])]).collect();
    let heard = first.hear(vec![of_node("far", pods)]);
    assert_eq!((heard.new, heard.refused), (6, 0), "their objects may come");
    let counts: Vec<&str> =
        names.into_iter().filter(|name| !told(&three.leads, name).is_empty()).collect();
    assert_eq!((counts, told(&three.leads, "named")), (vec!["good"], vec![B.to_owned()]));
    // And it is not passed on to others: of all that, one pod.
    let (claims, all) = three.here[1].next();
    let passed: Vec<&str> =
        claims.iter().flat_map(|claims| &claims.pods).map(|pod| pod.name.as_str()).collect();
    assert_eq!((passed, claims[0].origin.as_str(), all), (vec!["good"], "first", true));
    // An address that somebody has; it counts when that is free.
    first.hear(vec![of_node("far", vec![said("good", &[A])])]);
    assert!(told(&three.leads, "good").is_empty());
    drop_object(&three.leads, Kind::Pod, "shop", "old");
    assert_eq!(told(&three.leads, "good"), [A]);
    // Nothing of this can be one.
    let far = |pod: AddressedPod| of_node("far", vec![pod]);
    let long = "x".repeat(600);
    for wrong in [
        far(said("good", &[])),
        far(said("good", &["127.0.0.1"])),
        far(said("good", &[A, "x"])),
        far(AddressedPod { uid: String::new(), ..said("good", &[A]) }),
        far(AddressedPod { uid: long.clone(), ..said("good", &[A]) }),
        far(AddressedPod { name: long.clone(), ..said("good", &[A]) }),
        far(AddressedPod { namespace: String::new(), ..said("good", &[A]) }),
        of_node("", vec![said("good", &[A])]),
        of_node(&long, vec![said("good", &[A])]),
    ] {
        let text = format!("{wrong:?}");
        assert_eq!(first.hear(vec![wrong]), Heard { new: 0, refused: 1 }, "{text}");
    }
    // An origin that cannot be one, from the leader; and what a replica said itself.
    let there = &three.there[1];
    starting(&three.follows[1], "p", "far");
    for (origin, refused) in [("", 1), (long.as_str(), 1), ("second", 0)] {
        let claims = NodeClaims { origin: origin.into(), ..of_node("far", vec![said("p", &[A])]) };
        assert_eq!(there.hear(vec![claims]), Heard { new: 0, refused }, "{origin}");
    }
    assert!(three.follows[1].state.lock().claims.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_moves_has_the_last_word() {
    let three = Three::new();
    three.everywhere(|world| {
        starting(world, "p", "far");
        starting(world, "q", "far");
    });
    let [first, second] = &three.follows;
    let old = Client::connect(first, "far");
    first.claim(&old.ticket, vec![said("p", &[A]), said("q", &[B])], true);
    advance(Duration::from_secs(1)).await;
    // On its way while the node has moved, and has another sandbox for one, and none for the other.
    let (late, _) = three.there[0].next();
    let new = Client::connect(second, "far");
    second.claim(&new.ticket, vec![said("p", &["10.0.0.8"])], true);
    pass(&three.there[1], &three.here[1]);
    three.here[0].hear(late.clone());
    assert_eq!(told(&three.leads, "p"), ["10.0.0.8"]);
    three.pass();
    assert_eq!(told(first, "p"), ["10.0.0.8"], "what it said there is over");
    assert_eq!(three.told("p"), ["10.0.0.8"]);
    // The old stream is seen to end; what is forgotten is not what it said elsewhere.
    three.gone(first, &old);
    assert_eq!((three.told("p"), three.told("q")), (vec!["10.0.0.8".to_owned()], Vec::new()));
    // And back, while what it said before is still on its way.
    advance(Duration::from_secs(1)).await;
    let back = Client::connect(first, "far");
    second.claim(&new.ticket, vec![said("q", &[B])], false);
    first.claim(&back.ticket, vec![said("p", &[A]), said("q", &["10.0.0.9"])], true);
    three.pass();
    assert_eq!(three.both(), [[A], ["10.0.0.9"]]);
    three.gone(second, &new);
    assert_eq!(three.both(), [[A], ["10.0.0.9"]]);
    // It goes for good.
    three.gone(first, &back);
    assert!(three.told("p").is_empty() && three.told("q").is_empty());
    three.everywhere(|world| assert!(world.state.lock().claims.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn one_daemon_takes_over_from_another_at_another_replica() {
    let three = Three::new();
    three.everywhere(|world| {
        starting(world, "p", "far");
        starting(world, "q", "far");
    });
    let [first, second] = &three.follows;
    let old = Client::connect(first, "far");
    first.claim(&old.ticket, vec![said("p", &[A])], true);
    three.pass();
    advance(Duration::from_secs(1)).await;
    let new = Client::connect(second, "far");
    second.claim(&new.ticket, vec![said("p", &[A])], true);
    three.pass();
    // The old one is still the one that the plugin tells.
    first.claim(&old.ticket, vec![said("q", &[B])], false);
    three.pass();
    assert_eq!((three.told("p"), three.told("q")), (vec![A.to_owned()], vec![B.to_owned()]));
    // Now the new one is.
    second.claim(&new.ticket, vec![said("p", &[A]), said("q", &["10.0.0.9"])], true);
    three.pass();
    three.gone(first, &old);
    assert_eq!(three.both(), [[A], ["10.0.0.9"]]);
}

#[tokio::test(start_paused = true)]
async fn what_was_told_outlasts_the_stream_for_a_while() {
    let mut three = Three::new();
    three.everywhere(|world| {
        starting(world, "p", "far");
        starting(world, "q", "off");
    });
    let far = Client::connect(&three.follows[0], "far");
    let off = Client::connect(&three.follows[0], "off");
    three.follows[0].claim(&far.ticket, vec![said("p", &[A])], true);
    three.follows[0].claim(&off.ticket, vec![said("q", &[B])], true);
    three.pass();
    // The stream breaks, one of the two goes meanwhile, and it comes again.
    three.here[0] = at_leader(&world(), "nobody");
    three.there[0] = at_follower(&world(), "nobody");
    sleep(CLAIMS_STAY - Duration::from_secs(1)).await;
    assert_eq!(three.told("p"), [A]);
    three.follows[0].claim(&off.ticket, vec![said("q", &[])], false);
    three.here[0] = at_leader(&three.leads, "first");
    three.there[0] = at_follower(&three.follows[0], "first");
    three.pass();
    assert_eq!((told(&three.leads, "p").len(), told(&three.leads, "q").len()), (1, 1));
    three.here[0].heard_all();
    three.pass();
    assert_eq!((three.told("p").len(), three.told("q").len()), (1, 0), "all was told");
    sleep(CLAIMS_STAY).await;
    three.pass();
    assert_eq!(three.told("p"), [A], "it was told anew");
    // The leader goes, and with it those streams; the first of the others leads now.
    let [_, second] = &three.follows;
    three.here.iter_mut().for_each(|here| *here = at_leader(&world(), "nobody"));
    three.there.iter_mut().for_each(|there| *there = at_follower(&world(), "nobody"));
    assert_eq!(told(second, "p"), [A]);
    let here = Sharing::with_follower(Arc::clone(&three.follows[0]), "first", "second", true);
    let there = at_follower(second, "second");
    assert_eq!((pass(&there, &here), pass(&here, &there)), (0, 1));
    there.heard_all();
    sleep(CLAIMS_STAY * 2).await;
    assert_eq!((told(second, "p"), told(&three.leads, "p")), (vec![A.to_owned()], Vec::new()));
    // It goes, too, and nobody leads.
    drop((here, there));
    sleep(CLAIMS_STAY - Duration::from_secs(1)).await;
    assert_eq!(told(second, "p"), [A]);
    sleep(Duration::from_secs(2)).await;
    assert!(told(second, "p").is_empty() && second.state.lock().claims.is_empty());
    assert_eq!(told(&three.follows[0], "p"), [A], "its own node's");
}

#[tokio::test(start_paused = true)]
async fn what_replicas_tell_is_bounded() {
    let three = Three::new();
    let many = |node: usize| {
        let pods = (0..2000).map(|n| said(&format!("p{node}-{n}"), &[A])).collect();
        of_node(&format!("n{node}"), pods)
    };
    let mut sum = Heard::default();
    for node in 0..100 {
        let heard = three.here[node % 2].hear(vec![many(node)]);
        sum = Heard { new: sum.new + heard.new, refused: sum.refused + heard.refused };
    }
    assert_eq!((sum.new, sum.refused), (65_536, 200_000 - 65_536));
    assert_eq!(three.leads.state.lock().claims.len(), 65_536);
    // The leader's own nodes have room all the same.
    let near = Client::connect(&three.leads, "near");
    starting(&three.leads, "q", "near");
    three.leads.claim(&near.ticket, vec![said("q", &[B])], false);
    assert_eq!(told(&three.leads, "q"), [B]);
    // A replica tells that its nodes claim nothing more: there is room again.
    three.here.iter().for_each(|here| {
        for node in 0..100 {
            here.hear(vec![of_node(&format!("n{node}"), Vec::new())]);
        }
    });
    assert_eq!(three.leads.state.lock().claims.len(), 1);
    let heard = three.here[0].hear(vec![many(0)]);
    assert_eq!(heard.new, 1024, "of one node");
    // More than one message takes: the rest is in the next ones.
    let world = &three.follows[0];
    let nodes = ["a", "b", "c", "d", "e", "f"];
    for (n, node) in nodes.into_iter().enumerate() {
        let client = Client::connect(world, node);
        for pod in 0..300 {
            starting(world, &format!("{node}{pod}"), node);
            let ip = |ip: u32| format!("fd00:1234:5678:9abc:def0:1{n:x}:1{pod:x}:1{ip:x}");
            let own: Vec<String> = (0..32).map(ip).collect();
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            world.claim(&client.ticket, vec![said(&format!("{node}{pod}"), &own)], false);
            assert_eq!(told(world, &format!("{node}{pod}")).len(), 32, "{own:?}");
        }
    }
    let (mut messages, mut told, mut last) = (0, 0, false);
    while three.there[0].has_news() {
        assert!(!last, "there is more");
        let (claims, all) = three.there[0].next();
        let bytes: usize = claims.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes < fairlead_wire::replica::MAX_MESSAGE_BYTES, "{bytes}");
        (messages, last) = (messages + 1, all);
        told += claims.iter().map(|claims| claims.pods.len()).sum::<usize>();
    }
    assert!(last && messages >= 2, "{messages} messages");
    assert_eq!(told, 1800);
}
