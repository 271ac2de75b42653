//! Addresses that nodes claim for their pods.

use fairlead_wire::config::AddressedPod;

use super::*;

pub(super) fn starting(world: &World, name: &str, node: &str) -> Event {
    put(world, Kind::Pod, object(name, node, json!({"phase": "Pending"})))
}

pub(super) fn object(name: &str, node: &str, status: Value) -> Value {
    json!({"metadata": meta("shop", name), "spec": {"nodeName": node}, "status": status})
}

pub(super) fn said(name: &str, addresses: &[&str]) -> AddressedPod {
    AddressedPod {
        uid: format!("shop-{name}"),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        addresses: addresses.iter().map(|ip| (*ip).to_owned()).collect(),
    }
}

/// The addresses that nodes are told of a pod.
pub(super) fn told(world: &World, name: &str) -> Vec<String> {
    let json = world.json(&ObjectKey::new(Kind::Pod, "shop", name)).expect("the pod is there");
    let pod: fairlead_api::core::Pod = serde_json::from_slice(&json).expect("a pod");
    pod.ips().map(|ip| ip.to_string()).collect()
}

pub(super) fn finds(world: &World, client: &mut Client, address: &str) -> bool {
    let found = world.look_up(&client.ticket, &[address.parse().expect("an address")]);
    client.settle(world);
    found.known
}

pub(super) const A: &str = "10.0.0.7";
pub(super) const B: &str = "fd00::7";

#[test]
fn a_claim_counts_until_the_pod_names_addresses() {
    let world = world();
    let (far, mut caller) = (Client::connect(&world, "far"), Client::connect(&world, "caller"));
    // The object first, or the node's word first.
    for name in ["p", "q"] {
        let claim = || world.claim(&far.ticket, vec![said(name, &[A, B])], false);
        if name == "q" {
            claim();
            starting(&world, name, "far");
        } else {
            starting(&world, name, "far");
            assert!(!finds(&world, &mut caller, A), "nobody knows it yet");
            claim();
        }
        assert_eq!(told(&world, name), [A, B]);
        assert!(finds(&world, &mut caller, A) && finds(&world, &mut caller, B));
        let key = format!("Pod shop/{name}");
        let version = caller.held.get(&key).map(|(_, version)| version.clone());
        assert!(version.is_some(), "{:?}", caller.names());
        // Another change of the object keeps it, and the same word again changes nothing.
        assert_eq!(put(&world, Kind::Pod, object(name, "far", json!({}))), Event::Changed);
        assert_eq!(told(&world, name), [A, B]);
        claim();
        caller.settle(&world);
        assert!(!world.has_news(&caller.ticket));
        // What the object names comes before it, for good.
        put(&world, Kind::Pod, object(name, "far", json!({"podIPs": [{"ip": "10.0.0.9"}]})));
        assert_eq!(told(&world, name), ["10.0.0.9"]);
        assert!(!finds(&world, &mut caller, A));
        claim();
        assert_eq!(told(&world, name), ["10.0.0.9"]);
        assert!(world.state.lock().claims.is_empty());
        drop_object(&world, Kind::Pod, "shop", name);
    }
}

#[test]
fn a_claim_goes_with_its_sandbox_its_pod_and_its_node() {
    let world = world();
    let far = Client::connect(&world, "far");
    let claim = || world.claim(&far.ticket, vec![said("p", &[A])], false);
    starting(&world, "p", "far");
    claim();
    assert_eq!(told(&world, "p"), [A]);
    // The sandbox; another sandbox of the pod.
    world.claim(&far.ticket, vec![said("p", &[])], false);
    assert!(told(&world, "p").is_empty());
    claim();
    world.claim(&far.ticket, vec![said("p", &["10.0.0.8"])], false);
    assert_eq!(told(&world, "p"), ["10.0.0.8"]);
    // All that there is now.
    world.claim(&far.ticket, Vec::new(), true);
    assert!(told(&world, "p").is_empty());
    claim();
    // The pod, and its end.
    drop_object(&world, Kind::Pod, "shop", "p");
    assert!(world.state.lock().claims.is_empty());
    starting(&world, "p", "far");
    assert!(told(&world, "p").is_empty(), "what was said of it is over");
    claim();
    put(&world, Kind::Pod, object("p", "far", json!({"phase": "Failed"})));
    assert!(told(&world, "p").is_empty() && world.state.lock().claims.is_empty());
    // The node: not while it has a stream.
    starting(&world, "q", "far");
    world.claim(&far.ticket, vec![said("q", &[A])], false);
    world.forget_claims("far");
    assert_eq!(told(&world, "q"), [A]);
    world.disconnect(&far.ticket);
    assert_eq!(told(&world, "q"), [A], "it may come again");
    world.forget_claims("far");
    assert!(told(&world, "q").is_empty() && world.state.lock().claims.is_empty());
    // A stream that has been replaced says nothing.
    let again = Client::connect(&world, "far");
    world.claim(&far.ticket, vec![said("q", &[A])], false);
    assert!(told(&world, "q").is_empty());
    world.claim(&again.ticket, vec![said("q", &[A])], false);
    assert_eq!(told(&world, "q"), [A]);
}

#[test]
fn a_node_claims_for_its_own_pods_only() {
    let world = world();
    let thief = Client::connect(&world, "thief");
    starting(&world, "p", "far");
    world.claim(&thief.ticket, vec![said("p", &[A])], false);
    assert!(told(&world, "p").is_empty(), "it runs elsewhere");
    let far = Client::connect(&world, "far");
    world.claim(&far.ticket, vec![said("p", &[B])], false);
    assert_eq!(told(&world, "p"), [B], "nor is it in the way of the pod's node");
    // Of another pod of that name.
    starting(&world, "q", "thief");
    let other = AddressedPod { uid: "another".to_owned(), ..said("q", &[A]) };
    world.claim(&thief.ticket, vec![other], false);
    assert!(told(&world, "q").is_empty());
    // On the host's network; without a node.
    let mut host = object("h", "thief", json!({}));
    host["spec"]["hostNetwork"] = true.into();
    put(&world, Kind::Pod, host);
    put(&world, Kind::Pod, object("u", "", json!({})));
    world.claim(&thief.ticket, vec![said("h", &[A]), said("u", &[A])], false);
    assert!(told(&world, "h").is_empty() && told(&world, "u").is_empty());
    // Addresses that no pod has.
    for wrong in ["127.0.0.1", "::1", "0.0.0.0", "169.254.1.1", "fe80::1", "224.0.0.1", "x", ""] {
        world.claim(&thief.ticket, vec![said("q", &[A, wrong])], false);
        assert!(told(&world, "q").is_empty(), "{wrong}");
    }
    world.claim(&thief.ticket, vec![said("q", &["::ffff:10.0.0.7"])], false);
    assert_eq!(told(&world, "q"), [A]);
}

#[test]
fn a_claim_takes_nobodys_address() {
    let world = world();
    let far = Client::connect(&world, "far");
    let near = Client::connect(&world, "near");
    let claim = |addresses: &[&str]| world.claim(&far.ticket, vec![said("p", addresses)], false);
    starting(&world, "p", "far");
    // A pod's, which may be on its way out; a service's.
    pod(&world, "shop", "old", "near", A);
    claim(&[A, B]);
    assert!(told(&world, "p").is_empty(), "not a part of it either");
    let old = |phase: &str| object("old", "near", json!({"phase": phase, "podIPs": [{"ip": A}]}));
    put(&world, Kind::Pod, old("Succeeded"));
    assert_eq!(told(&world, "p"), [A, B], "the old pod has none any more");
    // Somebody names it: the claim gives way, and counts again when that has gone.
    put(&world, Kind::Pod, old("Running"));
    assert_eq!((told(&world, "p"), told(&world, "old")), (Vec::new(), vec![A.to_owned()]));
    drop_object(&world, Kind::Pod, "shop", "old");
    assert_eq!(told(&world, "p"), [A, B]);
    // Another claim does not come before it.
    starting(&world, "r", "near");
    world.claim(&near.ticket, vec![said("r", &[A])], false);
    assert_eq!((told(&world, "p").len(), told(&world, "r").len()), (2, 0));
    claim(&[]);
    assert_eq!((told(&world, "p").len(), told(&world, "r").len()), (0, 1));
    let service = json!({"metadata": meta("shop", "s"), "spec": {"clusterIP": A}});
    put(&world, Kind::Service, service);
    assert!(told(&world, "r").is_empty(), "a service has it");
}

#[test]
fn claims_are_bounded() {
    let world = world();
    let far = Client::connect(&world, "far");
    let many = |n: usize| said(&format!("p{n}"), &[A]);
    world.claim(&far.ticket, (0..5000).map(many).collect(), false);
    assert!(world.state.lock().claims.len() <= 1024);
    // Nothing has come of them, so what is real finds room later; the other nodes have theirs.
    let near = Client::connect(&world, "near");
    starting(&world, "q", "near");
    world.claim(&near.ticket, vec![said("q", &[B])], false);
    assert_eq!(told(&world, "q"), [B]);
    let wide: Vec<String> = (0..100).map(|n| format!("10.1.0.{n}")).collect();
    let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
    world.claim(&near.ticket, vec![said("q", &wide)], false);
    assert_eq!(told(&world, "q"), [B]);
}
