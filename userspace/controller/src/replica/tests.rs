//! Both sides over HTTP/2, on a pipe.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::{Kind, ObjectKey};
use fairlead_wire::client::{Channel, Peer};
use fairlead_wire::config::{Ack, AddressedPod, Key, Rejection};
use fairlead_wire::replica::verdicts_client::VerdictsClient;
use fairlead_wire::replica::verdicts_server::VerdictsServer;
use fairlead_wire::replica::{
    Hello, PROTOCOL, ReplicaMessage, Report, Stream, replica_message as message,
};
use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt as _, iter};
use http::HeaderValue;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::follower::{next_report, tell};
use super::*;
use crate::auth::{Denied, Identify, ReplicaIdentity};
use crate::lease::Leadership;
use crate::scope::{Sharing, Teller, Verdicts, World};

const LONG: Duration = Duration::from_secs(10);

/// Tokens are names of pods; `revoked` ends the streams of that pod.
struct Names {
    revoked: watch::Receiver<String>,
}

impl Identify<ReplicaIdentity> for Names {
    fn identify<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, Result<ReplicaIdentity, Denied>> {
        Box::pin(async move {
            if bearer == "bad" {
                return Err(Denied::NotAReplica("somebody".to_owned()));
            }
            Ok(ReplicaIdentity { pod: bearer.to_owned(), pod_uid: "u".to_owned() })
        })
    }

    fn revoked<'a>(
        &'a self,
        bearer: &'a str,
        _known: &'a ReplicaIdentity,
    ) -> BoxFuture<'a, Denied> {
        let mut revoked = self.revoked.clone();
        Box::pin(async move {
            let _ = revoked.wait_for(|pod| pod == bearer).await;
            Denied::Refused("its pod is gone".to_owned())
        })
    }
}

struct Leader {
    world: Arc<World>,
    verdicts: Verdicts,
    service: VerdictsServer<VerdictsService>,
    metrics: ReplicaMetrics,
    lease: watch::Sender<Option<Instant>>,
    revoked: watch::Sender<String>,
}

fn leader() -> Leader {
    let world = world();
    let (lease, leadership) = Leadership::fixed();
    let (revoked, receiver) = watch::channel(String::new());
    let metrics = ReplicaMetrics::default();
    let service = VerdictsService::new(
        Arc::clone(&world),
        Arc::new(Names { revoked: receiver }),
        leadership,
        metrics.clone(),
        "leads".to_owned(),
    );
    let verdicts = Verdicts::new(Arc::clone(&world));
    let service = VerdictsServer::new(service);
    Leader { world, verdicts, service, metrics, lease, revoked }
}

fn world() -> Arc<World> {
    let world = World::new("root", "cluster.local");
    world.set_api_version(Kind::AuthorizationPolicy, "security.istio.io/v1");
    put(&world, Kind::Namespace, json!({"name": "n", "labels": {"fairlead.io/mesh": "enabled"}}));
    let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "one"}});
    world.apply(Kind::Pod, "v1", serde_json::from_value(pod).expect("a pod"));
    put(&world, Kind::AuthorizationPolicy, json!({"name": "a", "namespace": "n", "uid": "u"}));
    world
}

fn put(world: &World, kind: Kind, metadata: serde_json::Value) {
    let version = if kind == Kind::Namespace { "v1" } else { "security.istio.io/v1" };
    let object = json!({"metadata": metadata});
    world.apply(kind, version, serde_json::from_value(object).expect("an object"));
}

impl Leader {
    async fn channel(&self, token: &str) -> Channel {
        let (near, far) = tokio::io::duplex(1 << 16);
        let service = self.service.clone();
        let service = hyper::service::service_fn(move |request| {
            let mut service = service.clone();
            async move {
                let answer = tonic::codegen::Service::call(&mut service, request).await;
                Ok::<_, Infallible>(match answer {
                    Ok(answer) => answer,
                    Err(never) => match never {},
                })
            }
        });
        let serve = Builder::new(TokioExecutor::new());
        tokio::spawn(async move { serve.serve_connection(TokioIo::new(far), service).await });
        let peer = Peer {
            address: ([127, 0, 0, 1], 15012).into(),
            authority: "leader:15012".parse().expect("an authority"),
            token: HeaderValue::try_from(format!("Bearer {token}")).expect("a header"),
        };
        Channel::over(near, peer).await.expect("HTTP/2")
    }

    async fn client(&self, token: &str) -> VerdictsClient<Channel> {
        VerdictsClient::new(self.channel(token).await)
    }

    /// A replica with these nodes tells this one.
    async fn follow(
        &self,
        world: &Arc<World>,
        token: &str,
    ) -> tokio::task::JoinHandle<Result<(), Status>> {
        let (world, client) = (Arc::clone(world), self.client(token).await);
        let instance = format!("{token}-1");
        tokio::spawn(
            async move { tell(world, client, &instance, &ReplicaMetrics::default()).await },
        )
    }

    /// What a stream of these messages ends with.
    async fn say(&self, token: &str, said: Vec<message::Message>) -> Code {
        let messages = said.into_iter().map(|what| ReplicaMessage { message: Some(what) });
        let mut client = self.client(token).await;
        let mut answers = match client.tell(iter(messages.collect::<Vec<_>>())).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status.code(),
        };
        loop {
            match timeout(LONG, answers.message()).await.expect("an answer") {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    }

    async fn counts(&self, expected: (usize, usize, usize, usize)) {
        let key = ObjectKey::new(Kind::AuthorizationPolicy, "n", "a");
        let count = || {
            let of = self.verdicts.of(&key).expect("a verdict");
            (of.interested, of.took, of.refused, of.behind)
        };
        let reached = async {
            while count() != expected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = timeout(LONG, reached).await;
        assert!(reached.is_ok(), "{:?}, not {expected:?}", count());
    }
}

fn hello() -> message::Message {
    message::Message::Hello(Hello {
        protocol: PROTOCOL,
        instance: "a".into(),
        version: "1".into(),
        hears_claims: false,
    })
}

async fn end(stream: tokio::task::JoinHandle<Result<(), Status>>) -> Code {
    let ended = timeout(LONG, stream).await.expect("it ends").expect("no panic");
    ended.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test]
async fn what_changes_is_told() {
    let (leader, follows) = (leader(), world());
    let node = follows.connect("one", "1", Vec::new());
    let stream = leader.follow(&follows, "pod").await;
    leader.counts((1, 0, 0, 0)).await;
    assert_eq!(leader.metrics.reporting.get(), 1);
    follows.take(&node).expect("an update");
    let key = Key {
        kind: "AuthorizationPolicy".into(),
        namespace: "n".into(),
        name: "a".into(),
        ..Key::default()
    };
    let rejected = vec![Rejection { key: Some(key), ..Rejection::default() }];
    follows.acknowledge(&node, Ack { nonce: 1, rejected });
    leader.counts((1, 0, 1, 0)).await;
    for n in 0..500 {
        let labels = json!({"istio.io/n": n.to_string()});
        for world in [&leader.world, &follows] {
            let of = json!({"name": "a", "namespace": "n", "uid": "u", "labels": labels});
            put(world, Kind::AuthorizationPolicy, of);
        }
    }
    leader.counts((1, 0, 0, 0)).await;
    assert!(leader.metrics.taken.get() < 100, "merged: {}", leader.metrics.taken.get());
    follows.take(&node).expect("an update");
    follows.acknowledge(&node, Ack::default());
    leader.counts((1, 1, 0, 0)).await;
    // Its token does not count any more; what it told does, for a while.
    leader.revoked.send_replace("pod".to_owned());
    assert_eq!(end(stream).await, Code::Unauthenticated);
    leader.counts((1, 1, 0, 0)).await;
    assert_eq!(leader.metrics.reporting.get(), 0);
}

#[tokio::test]
async fn a_pod_has_one_stream() {
    let (leader, first, second) = (leader(), world(), world());
    first.connect("one", "1", Vec::new());
    second.connect("one", "1", Vec::new());
    let old = leader.follow(&first, "pod").await;
    leader.counts((1, 0, 0, 0)).await;
    let new = leader.follow(&second, "pod").await;
    assert_eq!(end(old).await, Code::Aborted);
    leader.counts((1, 0, 0, 0)).await;
    assert!(!new.is_finished());
    new.abort();
}

#[tokio::test]
async fn who_does_not_lead_takes_nothing_and_forgets_all() {
    let (leader, follows) = (leader(), world());
    follows.connect("one", "1", Vec::new());
    let stream = leader.follow(&follows, "pod").await;
    leader.counts((1, 0, 0, 0)).await;
    leader.lease.send_replace(None);
    assert_eq!(end(stream).await, Code::FailedPrecondition);
    leader.counts((0, 0, 0, 0)).await;
    let stream = leader.follow(&follows, "pod").await;
    assert_eq!(end(stream).await, Code::FailedPrecondition);
}

#[tokio::test]
async fn whom_it_does_not_know_and_what_makes_no_sense_it_refuses() {
    let leader = leader();
    let report = |nonce| message::Message::Report(Report { nonce, ..Report::default() });
    let strange = |protocol, instance: &str| {
        let (instance, version) = (instance.to_owned(), String::new());
        message::Message::Hello(Hello { protocol, instance, version, hears_claims: true })
    };
    let stream = Stream { id: 99_999, node: "n".into(), age_millis: 0 };
    let much = Report { nonce: 1, begun: vec![stream], ..Report::default() };
    assert_eq!(leader.say("bad", vec![hello()]).await, Code::PermissionDenied);
    for (said, code) in [
        (vec![hello(), report(1), report(2)], Code::Ok),
        (vec![], Code::InvalidArgument),
        (vec![report(1)], Code::InvalidArgument),
        (vec![hello(), hello()], Code::InvalidArgument),
        (vec![hello(), report(2)], Code::InvalidArgument),
        (vec![hello(), report(1), report(1)], Code::InvalidArgument),
        (vec![strange(2, "a")], Code::FailedPrecondition),
        (vec![strange(PROTOCOL, "")], Code::InvalidArgument),
        (vec![strange(PROTOCOL, &"x".repeat(600))], Code::InvalidArgument),
        (vec![hello(), message::Message::Report(much)], Code::ResourceExhausted),
    ] {
        let text = format!("{said:?}");
        assert_eq!(leader.say("pod", said).await, code, "{text}");
    }
    assert!(leader.metrics.refused.get() >= 6, "{}", leader.metrics.refused.get());
    // Nobody is taken for more replicas than there can be.
    let mut open = Vec::new();
    for n in 0..crate::scope::MAX_REPLICAS {
        let (say, said) = tokio::sync::mpsc::channel::<ReplicaMessage>(1);
        let mut client = leader.client(&format!("pod-{n}")).await;
        let said = futures_util::stream::unfold(said, |mut said| async move {
            said.recv().await.map(|what| (what, said))
        });
        open.push((client.tell(said).await.expect("a stream"), say));
    }
    assert_eq!(leader.say("one-more", vec![hello()]).await, Code::ResourceExhausted);
}

/// Waits until the pod `p` is handed out with this address; how long that took.
async fn is_addressed(world: &World, ip: &str) -> Duration {
    let begun = Instant::now();
    let key = ObjectKey::new(Kind::Pod, "n", "p");
    let named = async {
        while !String::from_utf8_lossy(&world.json(&key).expect("a pod")).contains(ip) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, named).await.expect("it is told");
    begun.elapsed()
}

fn claim(uid: &str, ip: &str) -> Vec<AddressedPod> {
    vec![AddressedPod {
        uid: uid.to_owned(),
        namespace: "n".to_owned(),
        name: "p".to_owned(),
        addresses: vec![ip.to_owned()],
    }]
}

/// Gives the pod `p` a UID, so that claims can be about it.
fn with_uid(world: Arc<World>) -> Arc<World> {
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"nodeName": "one"}});
    world.apply(Kind::Pod, "v1", serde_json::from_value(pod).expect("a pod"));
    world
}

#[tokio::test]
async fn claims_of_addresses_go_both_ways() {
    let leader = leader();
    with_uid(Arc::clone(&leader.world));
    let (first, second) = (with_uid(world()), with_uid(world()));
    let streams = [leader.follow(&first, "a").await, leader.follow(&second, "b").await];
    // From one that follows, over the leader, to the other; again and again.
    let node = first.connect("one", "1", Vec::new());
    for n in 1..20 {
        let ip = format!("10.0.0.{n}");
        first.claim(&node, claim("u", &ip), n == 1);
        for world in [&leader.world, &second] {
            let took = is_addressed(world, &ip).await;
            assert!(took < Duration::from_secs(1), "{took:?}");
        }
    }
    // The node moves to the leader.
    let node = leader.world.connect("one", "1", Vec::new());
    leader.world.claim(&node, claim("u", "10.0.1.1"), true);
    for world in [&first, &second] {
        is_addressed(world, "10.0.1.1").await;
    }
    assert!(leader.metrics.claims.get() >= 1);
    assert!(streams.iter().all(|stream| !stream.is_finished()));
}

#[tokio::test]
async fn a_replica_that_knows_no_claims_is_told_none() {
    let leader = leader();
    for (hears_claims, expected) in [(false, 0), (true, 1)] {
        let hello =
            Hello { protocol: PROTOCOL, instance: "a".into(), version: "1".into(), hears_claims };
        let report = Report { nonce: 1, complete: true, ..Report::default() };
        let said = [message::Message::Hello(hello), message::Message::Report(report)];
        let said = said.map(|what| ReplicaMessage { message: Some(what) });
        // It stays until it has its answer.
        let said = iter(said).chain(futures_util::stream::pending());
        let mut client = leader.client("pod").await;
        let mut answers = client.tell(said).await.expect("a stream").into_inner();
        let mut claims = 0;
        let mut answered = false;
        while !answered || claims < expected {
            let next = timeout(LONG, answers.message()).await.expect("an answer");
            let next = next.expect("no end").expect("no end");
            claims += usize::from(next.claims.is_some());
            answered |= next.nonce == 1;
        }
        assert_eq!(claims, expected);
    }
}

#[tokio::test]
async fn many_claims_have_a_message_of_their_own() {
    let world = world();
    let node = world.connect("one", "1", Vec::new());
    let (sharing, mut teller) =
        (Sharing::with_leader(Arc::clone(&world), "a"), Teller::new(Arc::clone(&world)));
    let first = next_report(&sharing, &mut teller, 1);
    assert!(first.complete && first.verdicts.len() == 1 && first.claims.is_empty());
    for n in 0..400 {
        let name = format!("p{n}");
        let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"nodeName": "one"}});
        world.apply(Kind::Pod, "v1", serde_json::from_value(pod).expect("a pod"));
        let ip = |ip: u32| format!("fd00:1234:5678:9abc:def0:1234:1{n:x}:1{ip:x}");
        let (uid, namespace) = (name.clone(), "n".to_owned());
        let addresses = (0..32).map(ip).collect();
        world.claim(&node, vec![AddressedPod { uid, namespace, name, addresses }], false);
        put(&world, Kind::AuthorizationPolicy, json!({"name": "b", "namespace": "n", "uid": "u"}));
    }
    let alone = next_report(&sharing, &mut teller, 2);
    assert_eq!((alone.claims.len(), alone.claims[0].pods.len()), (1, 400));
    assert!(!alone.complete && alone.verdicts.is_empty() && alone.nonce == 2);
    assert!(teller.has_news() && !sharing.has_news());
    let rest = next_report(&sharing, &mut teller, 3);
    assert!(rest.complete && rest.verdicts.len() == 1 && rest.claims.is_empty());
}
