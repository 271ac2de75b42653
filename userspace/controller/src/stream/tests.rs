//! The protocol as a node speaks it: over HTTP/2, on a pipe.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::task::{Context, Poll};

use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::config::configuration_client::ConfigurationClient;
use fairlead_wire::config::{
    Ack, AddressedPod, ControllerMessage, Found, Held, Hello, Inventory, Lookup, NodeMessage,
    PROTOCOL, PodAddresses, Rejection, Resource, Update, Verdicts, controller_message,
    node_message,
};
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use http::Request as HttpRequest;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder as ClientBuilder, SendRequest};
use hyper::server::conn::http2::Builder as ServerBuilder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::Service;

use super::*;
use crate::auth::Denied;

/// Tokens are names of nodes; `revoked` ends the streams of that node.
struct Names {
    revoked: watch::Receiver<String>,
}

impl Identify<NodeIdentity> for Names {
    fn identify<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, Result<NodeIdentity, Denied>> {
        Box::pin(async move {
            if bearer == "bad" {
                return Err(Denied::Refused("it is bad".to_owned()));
            }
            Ok(NodeIdentity {
                node: bearer.to_owned(),
                pod_uid: "uid".to_owned(),
                service_account: "fairlead-system/fairlead-node".to_owned(),
            })
        })
    }

    fn revoked<'a>(&'a self, bearer: &'a str, _known: &'a NodeIdentity) -> BoxFuture<'a, Denied> {
        let mut revoked = self.revoked.clone();
        Box::pin(async move {
            let _ = revoked.wait_for(|name| name == bearer).await;
            Denied::Refused("its pod is gone".to_owned())
        })
    }
}

struct Server {
    world: Arc<World>,
    metrics: Arc<Metrics>,
    service: ConfigurationService,
    trust: watch::Sender<Bytes>,
    revoked: watch::Sender<String>,
}

fn server(ack_timeout: Duration) -> Server {
    let world = World::new("root", "cluster.local");
    let metrics = Metrics::new(&world);
    let (trust, bundle) = watch::channel(Bytes::from_static(b"first"));
    let (revoked, receiver) = watch::channel(String::new());
    let service = ConfigurationService::new(
        Arc::clone(&world),
        Arc::new(Names { revoked: receiver }),
        Arc::clone(&metrics),
        bundle,
        StreamSettings { gap: Duration::from_millis(1), ack_timeout },
    );
    world.set_api_version(Kind::Namespace, "v1");
    Server { world, metrics, service, trust, revoked }
}

impl Server {
    fn put(&self, name: &str, label: &str) {
        let object = json!({"metadata": {"name": name, "labels": {"l": label}}});
        let raw = serde_json::from_value(object).expect("an object");
        self.world.apply(Kind::Namespace, "v1", raw);
    }

    /// A stream after these first messages, or what was said instead.
    async fn call(&self, token: &str, first: Vec<node_message::Message>) -> Result<Node, Status> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let service = self.service.clone();
        let service = service_fn(move |request: HttpRequest<Incoming>| {
            let service = service.clone();
            async move { Ok::<_, std::convert::Infallible>(service.serve(request).await) }
        });
        let serve = ServerBuilder::new(TokioExecutor::new());
        tokio::spawn(async move { serve.serve_connection(TokioIo::new(far), service).await });
        let (sender, connection) = ClientBuilder::new(TokioExecutor::new())
            .handshake(TokioIo::new(near))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        let (say, said) = mpsc::channel(16);
        for message in first {
            say.send(message).await.expect("room");
        }
        let messages = unfold(said, |mut said| async move {
            said.recv().await.map(|message| (NodeMessage { message: Some(message) }, said))
        });
        let mut client = ConfigurationClient::new(Channel { sender, token: token.to_owned() });
        let heard = client.stream(messages).await?.into_inner();
        Ok(Node { say, heard, held: BTreeSet::new() })
    }

    async fn connect(&self, name: &str, held: Vec<Held>) -> Node {
        self.call(name, greeting(name, held)).await.expect("a stream")
    }
}

fn greeting(node: &str, held: Vec<Held>) -> Vec<node_message::Message> {
    let hello = Hello { protocol: PROTOCOL, node: node.to_owned(), ..Hello::default() };
    vec![
        node_message::Message::Hello(hello),
        node_message::Message::Inventory(Inventory { held, last: true }),
    ]
}

#[derive(Clone)]
struct Channel {
    sender: SendRequest<Body>,
    token: String,
}

impl Service<HttpRequest<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: HttpRequest<Body>) -> Self::Future {
        *request.uri_mut() = format!("http://c{PATH}").parse().expect("a URI");
        let token = format!("Bearer {}", self.token).parse().expect("a header");
        request.headers_mut().insert("authorization", token);
        Box::pin(self.sender.send_request(request))
    }
}

struct Node {
    say: mpsc::Sender<node_message::Message>,
    heard: Streaming<ControllerMessage>,
    held: BTreeSet<String>,
}

impl Node {
    async fn next(&mut self) -> Result<controller_message::Message, Status> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.heard.message());
        let message = next.await.expect("something is said")?;
        Ok(message.and_then(|m| m.message).expect("a message"))
    }

    async fn update(&mut self) -> Update {
        match self.next().await.expect("an update") {
            controller_message::Message::Update(update) => {
                let name = |key: &Option<_>| match key {
                    Some(fairlead_wire::config::Key { name, .. }) => name.clone(),
                    None => String::new(),
                };
                self.held.extend(update.upserts.iter().map(|resource| name(&resource.key)));
                for key in &update.removed {
                    assert!(self.held.remove(&key.name), "{key:?}");
                }
                update
            }
            other => panic!("{other:?}"),
        }
    }

    async fn ack(&self, update: &Update) {
        let ack = Ack { nonce: update.nonce, rejected: Vec::new() };
        self.say.send(node_message::Message::Ack(ack)).await.expect("it is heard");
    }

    async fn end(&mut self) -> Status {
        loop {
            match tokio::time::timeout(Duration::from_secs(10), self.heard.message()).await {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return Status::ok(""),
                Ok(Err(status)) => return status,
                Err(_) => panic!("the stream goes on"),
            }
        }
    }

    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(100), self.heard.message()).await.is_err()
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn one_update_at_a_time_and_the_rest_merges() {
    let server = server(LONG);
    server.put("a", "1");
    server.world.set_synced();
    let mut node = server.connect("one", Vec::new()).await;
    let first = node.update().await;
    assert_eq!((first.nonce, first.complete, first.upserts.len()), (1, true, 1));
    assert_eq!(first.trust_bundle_pem, b"first");
    assert!(first.oldest_change_micros > 1_600_000_000_000_000);
    for n in 0..100 {
        server.put("a", &n.to_string());
        server.put("b", &n.to_string());
    }
    server.put("c", "1");
    server.world.remove(&ObjectKey::new(Kind::Namespace, "", "c"));
    assert!(node.is_quiet().await, "the first is not answered yet");
    // An answer to another Update is none.
    node.ack(&Update { nonce: 7, ..Update::default() }).await;
    assert!(node.is_quiet().await);
    node.ack(&first).await;
    let second = node.update().await;
    assert_eq!((second.nonce, second.upserts.len(), second.removed.len()), (2, 2, 0));
    assert!(second.trust_bundle_pem.is_empty());
    let json = String::from_utf8(second.upserts[0].json.clone()).expect("text");
    assert!(json.contains("\"99\""), "{json}");
    // Roots that change while an Update is under way, and nothing else.
    server.trust.send_replace(Bytes::from_static(b"second"));
    assert!(node.is_quiet().await);
    node.ack(&second).await;
    let third = node.update().await;
    assert_eq!((third.trust_bundle_pem.as_slice(), third.upserts.len()), (&b"second"[..], 0));
    node.ack(&third).await;
    server.world.remove(&ObjectKey::new(Kind::Namespace, "", "a"));
    let fourth = node.update().await;
    assert_eq!((fourth.removed.len(), node.held.len()), (1, 1));
    assert!(server.metrics.scrape().contains("pilot_xds_expired_nonce 1\n"));
}

#[tokio::test]
async fn nothing_is_said_before_all_is_known() {
    let server = server(LONG);
    server.put("a", "1");
    let key = fairlead_wire::config::Key {
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        name: "b".to_owned(),
        ..Default::default()
    };
    let held = Held { key: Some(key), version: "/1".to_owned(), rejected: None };
    let mut node = server.connect("one", vec![held]).await;
    assert!(node.is_quiet().await);
    server.put("b", "1");
    server.world.set_synced();
    node.held.insert("b".to_owned());
    let update = node.update().await;
    assert_eq!((update.upserts.len(), update.removed.len()), (2, 0), "b was known all along");
}

#[tokio::test]
async fn whom_it_does_not_know_it_does_not_serve() {
    let server = server(LONG);
    server.world.set_synced();
    let code = |result: Result<Node, Status>| result.err().map(|status| status.code());
    assert_eq!(code(server.call("bad", Vec::new()).await), Some(Code::Unauthenticated));
    let end = |first: Vec<node_message::Message>| async {
        server.call("one", first).await.expect("a stream").end().await.code()
    };
    assert_eq!(end(greeting("two", Vec::new())).await, Code::PermissionDenied);
    assert_eq!(end(vec![greeting("one", Vec::new()).remove(1)]).await, Code::InvalidArgument);
    let hello = Hello { protocol: 99, node: "one".to_owned(), ..Hello::default() };
    let first = vec![node_message::Message::Hello(hello)];
    assert_eq!(end(first).await, Code::FailedPrecondition);
    let twice = [greeting("one", Vec::new()), greeting("one", Vec::new())].concat();
    assert_eq!(end(twice).await, Code::InvalidArgument);
    assert_eq!(server.world.connected(), Vec::<Arc<str>>::new());
}

#[tokio::test]
async fn streams_end_with_their_reason() {
    let server = server(Duration::from_millis(200));
    server.put("a", "1");
    server.world.set_synced();
    // It does not answer.
    let mut silent = server.connect("silent", Vec::new()).await;
    assert_eq!(silent.end().await.code(), Code::DeadlineExceeded);
    // It has come again.
    let mut old = server.connect("one", Vec::new()).await;
    let update = old.update().await;
    old.ack(&update).await;
    let mut new = server.connect("one", Vec::new()).await;
    assert_eq!(old.end().await.code(), Code::Aborted);
    let update = new.update().await;
    new.ack(&update).await;
    assert_eq!(server.world.connected(), ["one".into()], "the old one took nothing along");
    // Its token does not count any more.
    server.revoked.send_replace("one".to_owned());
    assert_eq!(new.end().await.code(), Code::Unauthenticated);
    // It goes.
    let node = server.connect("two", Vec::new()).await;
    drop(node);
    let gone = async {
        while !server.world.connected().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it is forgotten");
}

#[tokio::test]
async fn found_comes_after_what_was_found() {
    let server = server(LONG);
    let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "far"},
        "status": {"podIPs": [{"ip": "10.0.0.7"}]}});
    server.world.apply(Kind::Pod, "v1", serde_json::from_value(pod).expect("a pod"));
    server.world.set_synced();
    let mut node = server.connect("one", Vec::new()).await;
    let first = node.update().await;
    assert!(first.upserts.is_empty() && first.complete, "an empty mesh is one too");
    let lookup = |id, address: &str| {
        let addresses = vec![address.to_owned(), "not an address".to_owned()];
        node_message::Message::Lookup(Lookup { id, addresses })
    };
    node.say.send(lookup(1, "10.0.0.7")).await.expect("it is heard");
    assert!(node.is_quiet().await, "the first is not answered yet");
    node.ack(&first).await;
    let second = node.update().await;
    assert_eq!(second.upserts.len(), 1);
    let found =
        |id, known| controller_message::Message::Found(Found { id, known, ..Found::default() });
    assert_eq!(node.next().await.expect("a message"), found(1, true));
    node.ack(&second).await;
    node.say.send(lookup(2, "10.0.0.8")).await.expect("it is heard");
    assert_eq!(node.next().await.expect("a message"), found(2, false));
    node.say.send(lookup(3, "10.0.0.7")).await.expect("it is heard");
    assert_eq!(node.next().await.expect("a message"), found(3, true));
    // More than is allowed.
    let many = Lookup { id: 4, addresses: vec!["10.0.0.1".to_owned(); 2000] };
    node.say.send(node_message::Message::Lookup(many)).await.expect("it is heard");
    assert_eq!(node.end().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn refusals_are_counted() {
    let server = server(LONG);
    server.put("a", "1");
    server.world.set_synced();
    let mut node = server.connect("one", Vec::new()).await;
    let first = node.update().await;
    let rejected = vec![Rejection { key: first.upserts[0].key.clone(), ..Rejection::default() }];
    let ack = Ack { nonce: first.nonce, rejected };
    node.say.send(node_message::Message::Ack(ack)).await.expect("it is heard");
    let counted = async {
        while !server.metrics.scrape().contains("pilot_total_xds_rejects 1\n") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.expect("it is counted");
    // And those that have nothing to do with an Update.
    let Resource { key, version, .. } = first.upserts[0].clone();
    let changed = Held { key, version, rejected: Some(Rejection::default()) };
    let say = |changed| node_message::Message::Verdicts(Verdicts { changed });
    node.say.send(say(vec![changed; 3])).await.expect("it is heard");
    let counted = async {
        while !server.metrics.scrape().contains("pilot_total_xds_rejects 4\n") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.expect("it is counted");
    // More than is allowed.
    node.say.send(say(vec![Held::default(); 257])).await.expect("it is heard");
    assert_eq!(node.end().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_a_node_says_of_its_pods_addresses_is_found() {
    let server = server(LONG);
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"nodeName": "far"}});
    server.world.apply(Kind::Pod, "v1", serde_json::from_value(pod).expect("a pod"));
    server.world.set_synced();
    let mut far = server.connect("far", Vec::new()).await;
    let update = far.update().await;
    far.ack(&update).await;
    let mut one = server.connect("one", Vec::new()).await;
    let update = one.update().await;
    one.ack(&update).await;
    let say = |uid: &str, all| {
        let addressed = AddressedPod {
            uid: uid.to_owned(),
            namespace: "n".to_owned(),
            name: "p".to_owned(),
            addresses: vec!["10.0.0.7".to_owned()],
        };
        node_message::Message::PodAddresses(PodAddresses { pods: vec![addressed], all })
    };
    // Its own pod is news to the node: then the controller has heard of it.
    far.say.send(say("u", true)).await.expect("it is heard");
    let update = far.update().await;
    let json = String::from_utf8(update.upserts[0].json.clone()).expect("text");
    assert!(json.contains("10.0.0.7"), "{json}");
    far.ack(&update).await;
    let lookup = Lookup { id: 1, addresses: vec!["10.0.0.7".to_owned()] };
    one.say.send(node_message::Message::Lookup(lookup)).await.expect("it is heard");
    let update = one.update().await;
    assert_eq!(update.upserts.len(), 1);
    let found = Found { id: 1, known: true, ..Found::default() };
    assert_eq!(one.next().await.expect("a message"), controller_message::Message::Found(found));
    // More than is allowed.
    let many = PodAddresses { pods: vec![AddressedPod::default(); 2000], all: false };
    far.say.send(node_message::Message::PodAddresses(many)).await.expect("it is heard");
    assert_eq!(far.end().await.code(), Code::InvalidArgument);
}
