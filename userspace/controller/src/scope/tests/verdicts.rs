//! What a node says of objects that it has had for long.

use super::*;

fn key() -> ObjectKey {
    ObjectKey::new(Kind::AuthorizationPolicy, "root", "all")
}

fn rejection(why: &str) -> Rejection {
    let fault = Fault { message: why.to_owned(), ..Fault::default() };
    Rejection { faults: vec![fault], ..Rejection::default() }
}

fn says(client: &Client, rejected: Option<Rejection>) -> Vec<Held> {
    let (key, version) = client.held["AuthorizationPolicy root/all"].clone();
    vec![Held { key: Some(key), version, rejected }]
}

/// Nodes that need it, took it and refused it, and those that have said nothing.
fn count(world: &Arc<World>) -> (usize, usize, usize, Vec<String>) {
    let of = Verdicts::new(Arc::clone(world)).of(&key()).expect("a verdict");
    let waiting = of.waiting.iter().map(ToString::to_string).collect();
    (of.interested, of.took, of.refused, waiting)
}

fn none() -> Vec<String> {
    Vec::new()
}

#[tokio::test(start_paused = true)]
async fn a_node_changes_its_mind_about_what_it_has() {
    let world = three_namespaces();
    let verdicts = Verdicts::new(Arc::clone(&world));
    let changed = || {
        let keys = futures_util::FutureExt::now_or_never(verdicts.changed()).unwrap_or_default();
        keys.contains(&key())
    };
    let mut one = Client::connect(&world, "one");
    assert!(changed());
    assert_eq!(count(&world), (1, 1, 0, none()));
    let refused = says(&one, Some(rejection("no")));
    assert_eq!(world.hear_verdicts(&one.ticket, refused.clone()), 1);
    assert_eq!((count(&world), changed()), ((1, 0, 1, none()), true));
    assert_eq!(verdicts.of(&key()).expect("a verdict").rejections[0].1.faults[0].message, "no");
    world.hear_verdicts(&one.ticket, says(&one, None));
    assert_eq!((count(&world), changed()), ((1, 1, 0, none()), true));
    // Of another version, of nothing, or by a stream that is gone: nothing follows from it.
    let mut other = refused.clone();
    other[0].version.push('x');
    world.hear_verdicts(&one.ticket, other);
    let mut unknown = refused.clone();
    unknown[0].key.as_mut().expect("a key").name = "other".into();
    unknown.push(Held { key: None, ..refused[0].clone() });
    world.hear_verdicts(&one.ticket, unknown);
    assert_eq!((count(&world), changed()), ((1, 1, 0, none()), false));
    // What is said before the next version has come is about the one before.
    rule(&world, Kind::AuthorizationPolicy, "root", "all", json!({"action": "DENY"}));
    world.hear_verdicts(&one.ticket, refused.clone());
    assert_eq!(count(&world), (1, 0, 0, vec!["one".to_owned()]));
    one.settle(&world);
    assert_eq!(count(&world), (1, 1, 0, none()));
    let old = one.ticket.clone();
    let one = Client::resume(&world, "one", one.held);
    world.hear_verdicts(&old, says(&one, Some(rejection("no"))));
    assert_eq!(count(&world), (1, 1, 0, none()));
    // Nor does what is said of objects that the node has nothing to do with.
    let far = ObjectKey::new(Kind::AuthorizationPolicy, "b", "p");
    let version = verdicts.of(&far).expect("a verdict").version.to_string();
    let wire = Key {
        kind: "AuthorizationPolicy".into(),
        namespace: "b".into(),
        name: "p".into(),
        ..Key::default()
    };
    let says = Held { key: Some(wire), version, rejected: Some(rejection("no")) };
    world.hear_verdicts(&one.ticket, vec![says]);
    assert_eq!(verdicts.of(&far).expect("a verdict").refused, 0);
}

#[test]
fn nothing_counts_as_taken_before_everything_has_come() {
    let world = three_namespaces();
    // More than fits into one message.
    for n in 0..40 {
        let hosts: Vec<String> = (0..9000).map(|h| format!("h{h}.example.com")).collect();
        rule(&world, Kind::ServiceEntry, "a", &format!("s{n}"), json!({"hosts": hosts}));
    }
    let ticket = world.connect("one", "1", Vec::new());
    let mut client = Client { name: "one", ticket, held: BTreeMap::new(), received: 0 };
    let mut parts = 0;
    loop {
        let batch = world.take(&client.ticket).expect("the stream");
        parts += 1;
        for bytes in &batch.upserts {
            let resource = Resource::decode(bytes.clone()).expect("a resource");
            let key = resource.key.expect("a key");
            client.held.insert(name_of(&key), (key, resource.version));
        }
        if batch.complete {
            break;
        }
        world.acknowledge(&client.ticket, Ack::default());
        assert_eq!(count(&world), (1, 0, 0, vec!["one".to_owned()]));
    }
    assert!(parts > 1);
    // It came with the first part, and is judged with the last.
    world.hear_verdicts(&client.ticket, says(&client, Some(rejection("no"))));
    world.acknowledge(&client.ticket, Ack::default());
    assert_eq!(count(&world), (1, 0, 1, none()));
    let entry = ObjectKey::new(Kind::ServiceEntry, "a", "s0");
    let verdicts = Verdicts::new(Arc::clone(&world));
    assert_eq!(verdicts.of(&entry).expect("a verdict").took, 1);
    // From now on each is judged with its own.
    rule(&world, Kind::AuthorizationPolicy, "root", "all", json!({"action": "DENY"}));
    client.settle(&world);
    assert_eq!(count(&world), (1, 1, 0, none()));
}

#[tokio::test(start_paused = true)]
async fn those_who_have_not_answered_are_named_and_counted() {
    let world = three_namespaces();
    let names: Vec<String> = (10..40).map(|n| format!("n{n}")).collect();
    for name in names.iter().rev() {
        pod(&world, "a", &format!("web-{name}"), name, &format!("10.0.1.{}", &name[1..]));
        world.connect(name, "1", Vec::new());
    }
    let (interested, took, refused, waiting) = count(&world);
    assert_eq!((interested, took, refused), (30, 0, 0));
    assert_eq!(waiting, names[..MAX_WAITING]);
    let gone = world.connect("n10", "2", Vec::new());
    world.disconnect(&gone);
    let (interested, .., waiting) = count(&world);
    assert_eq!((interested, &waiting[..2]), (30, &names[..2]));
}
