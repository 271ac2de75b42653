//! What the controller hears of routes and of the services that they lead to, whichever comes
//! first.

use fairlead_wire::config::MAX_VERDICTS;

use super::*;

fn named(api_version: &str, kind: &str, name: &str) -> Key {
    Key { api_version: api_version.into(), kind: kind.into(), ..key(name) }
}

fn route_key(name: &str) -> Key {
    named("networking.istio.io/v1", "VirtualService", name)
}

/// A route to the service `late`, in a version that says so.
fn route(name: &str, version: u32, hosts: &str) -> Resource {
    let json = format!(
        r#"{{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{{"name":"{name}","namespace":"default","generation":{version}}},"spec":{{"hosts":[{hosts}],"http":[{{"route":[{{"destination":{{"host":"late"}}}}]}}]}}}}"#
    );
    let key = Some(route_key(name));
    Resource { key, version: version.to_string(), json: json.into(), generation: version.into() }
}

fn service() -> Resource {
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"late","namespace":"default"},"spec":{"clusterIP":"10.96.0.7","clusterIPs":["10.96.0.7"],"ports":[{"name":"http","port":80,"protocol":"TCP"}],"selector":{"app":"late"}}}"#;
    let key = Some(named("v1", "Service", "late"));
    Resource { key, version: "1".into(), json: json.into(), generation: 0 }
}

fn without_service() -> Update {
    let removed = vec![named("v1", "Service", "late")];
    Update { removed, complete: true, ..Update::default() }
}

/// What is told of objects: name, version, and the field that is wrong, if one is.
fn said(held: &[HeldMessage]) -> Vec<(String, String, Option<String>)> {
    let one = |held: &HeldMessage| {
        let name = held.key.as_ref().map(|key| key.name.clone()).unwrap_or_default();
        (name, held.version.clone(), held.rejected.as_ref().map(|why| why.faults[0].field.clone()))
    };
    let mut said: Vec<_> = held.iter().map(one).collect();
    said.sort();
    said
}

const FIELD: &str = "spec.http[0].route[0].destination.host";

fn right(name: &str, version: &str) -> (String, String, Option<String>) {
    (name.to_owned(), version.to_owned(), None)
}

fn wrong(name: &str, version: &str) -> (String, String, Option<String>) {
    (name.to_owned(), version.to_owned(), Some(FIELD.to_owned()))
}

impl Node {
    fn news(&mut self) -> Vec<(String, String, Option<String>)> {
        let news = self.core.news().map(|news| said(&news.changed)).unwrap_or_default();
        assert!(!self.core.has_news());
        news
    }

    /// What the next stream begins with about the routes.
    fn told_again(&mut self) -> Vec<(String, String, Option<String>)> {
        let mut all = said(&self.core.inventory(false).remove(0).held);
        all.retain(|(name, ..)| name.starts_with('r'));
        all
    }
}

#[tokio::test]
async fn a_route_is_right_as_long_as_its_service_is_there() {
    let mut node = Node::new();
    let first = vec![pod("a", "10.0.0.1"), route("r", 1, r#""r""#)];
    let told = node.take(update(first, true)).await.unwrap();
    assert_eq!(told.len(), 1);
    let Rejection { key, version, last_good, faults, more } = &told[0];
    assert_eq!((key, version.as_str(), *more), (&Some(route_key("r")), "1", 0));
    assert!(faults.len() == 1 && faults[0].field == FIELD, "{faults:?}");
    assert!(!last_good, "it is in force, and was never any better");
    assert_eq!((node.news(), node.told_again()), (Vec::new(), vec![wrong("r", "1")]));
    // The service comes, the route stays as it is.
    assert_eq!(node.take(update(vec![service()], true)).await.unwrap(), []);
    assert_eq!((node.news(), node.told_again()), (vec![right("r", "1")], vec![right("r", "1")]));
    // It goes again.
    assert_eq!(node.take(without_service()).await.unwrap(), []);
    assert_eq!((node.news(), node.told_again()), (vec![wrong("r", "1")], vec![wrong("r", "1")]));
    // Something else about the route changes, and nothing is better for it.
    let told = node.take(update(vec![route("r", 2, r#""r","s""#)], true)).await.unwrap();
    assert_eq!(told.len(), 1, "not taken because nothing new is wrong");
    assert_eq!((told[0].version.as_str(), told[0].faults[0].field.as_str()), ("2", FIELD));
    assert_eq!((node.news(), node.told_again()), (Vec::new(), vec![wrong("r", "2")]));
    // Nor by another start of the daemon, nor by what has nothing to do with it.
    node.again();
    assert_eq!(node.told_again(), [wrong("r", "2")]);
    node.take(update(vec![pod("b", "10.0.0.2")], true)).await.unwrap();
    assert_eq!((node.news(), node.told_again()), (Vec::new(), vec![wrong("r", "2")]));
    let gone = Update { removed: vec![route_key("r")], complete: true, ..Update::default() };
    assert_eq!(node.take(gone).await.unwrap(), []);
    assert_eq!((node.news(), node.told_again()), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn what_comes_in_parts_is_judged_as_a_whole() {
    let mut node = Node::new();
    let routes = [("r1", 1), ("r2", 1)].map(|(name, n)| route(name, n, &format!("{name:?}")));
    let told = node.take(update(vec![routes[0].clone(), pod("a", "10.0.0.1")], false)).await;
    assert_eq!(told.unwrap(), []);
    assert!(!node.core.has_news());
    let told = node.take(update(vec![routes[1].clone()], true)).await.unwrap();
    // The last Ack is about its own Update; what came before it is told beside.
    assert_eq!((told.len(), told[0].key.clone()), (1, Some(route_key("r2"))));
    assert_eq!(node.news(), [wrong("r1", "1")]);
    // A stream that begins with what is held, and a part of it: all of it is right then.
    assert_eq!(node.told_again(), [wrong("r1", "1"), wrong("r2", "1")]);
    node.staged = Staged::new(false);
    node.take(update(vec![service()], false)).await.unwrap();
    assert!(!node.core.has_news());
    node.take(update(Vec::new(), true)).await.unwrap();
    assert_eq!(node.news(), [right("r1", "1"), right("r2", "1")]);
    // One that breaks off changes nothing.
    node.staged = Staged::new(false);
    node.take(Update { complete: false, ..without_service() }).await.unwrap();
    assert_eq!(node.told_again(), [right("r1", "1"), right("r2", "1")]);
}

#[tokio::test]
async fn many_are_told_in_parts_and_only_as_they_are_in_the_end() {
    const MANY: usize = 2 * MAX_VERDICTS + 88;
    let mut node = Node::new();
    let mut all = vec![pod("a", "10.0.0.1"), service()];
    all.extend((0..MANY).map(|n| route(&format!("r{n}"), 1, &format!("\"r{n}\""))));
    assert_eq!(node.take(update(all, true)).await.unwrap(), []);
    assert!(!node.core.has_news());
    node.take(without_service()).await.unwrap();
    node.take(update(vec![service()], true)).await.unwrap();
    node.take(without_service()).await.unwrap();
    let mut sizes = Vec::new();
    while let Some(news) = node.core.news() {
        assert!(said(&news.changed).iter().all(|(_, _, wrong)| wrong.is_some()));
        sizes.push(news.changed.len());
    }
    assert_eq!(sizes, [MAX_VERDICTS, MAX_VERDICTS, 88]);
    // A stream that begins meanwhile has told all.
    node.take(update(vec![service()], true)).await.unwrap();
    assert!(node.core.has_news());
    assert!(node.told_again().iter().all(|(_, _, wrong)| wrong.is_none()));
    assert!(!node.core.has_news());
}
