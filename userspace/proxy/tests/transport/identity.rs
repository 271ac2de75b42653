//! Who may speak as whom, and what happens when certificates end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_identity::{
    CaClient, CaError, CertificateError, PeerRefusal, SignFuture, StoreSettings, Wire,
};
use fairlead_proxy::transport::{TransportError, Tunnel};
use fairlead_types::{Refusal, SpiffeId};
use rustls::pki_types::CertificateSigningRequestDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{App, Node, Pair, Server, TestCa, echo_app, id, meta, target, within};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_server_of_another_service_account_is_refused_by_name() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let target = target(Wire::Native, id("client"), pair.server.addr, &[id("ratings")]);
    let error = pair.client.transport.tunnel(&target, &meta()).await.err().unwrap();
    let TransportError::Peer { refusal: PeerRefusal::Unexpected { found, .. }, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*found, id("server"));
    assert_eq!(error.refusal(), Refusal::IdentityError);
    let words = error.to_string();
    assert!(
        words.contains("peer is spiffe://cluster.local/ns/default/sa/server")
            && words.contains("expected spiffe://cluster.local/ns/default/sa/ratings"),
        "{words}"
    );
    assert!(pair.server.app.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_target_without_an_expected_identity_is_refused() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let target = target(Wire::Native, id("client"), pair.server.addr, &[]);
    let error = pair.client.transport.tunnel(&target, &meta()).await.err().unwrap();
    assert!(error.to_string().contains("no identity is expected"), "{error}");
}

/// A CA that issues for another trust domain than it is asked for is not needed: the identity
/// of a store carries its domain. Both meshes share the root here, so only the domain differs.
#[tokio::test]
async fn a_foreign_trust_domain_is_refused_on_both_sides_unless_it_is_an_alias() {
    let ca = TestCa::new();
    let foreign = SpiffeId::new("other.example".parse().unwrap(), "default", "client").unwrap();
    let stranger = Node::new(ca.ca.clone(), std::slice::from_ref(&foreign), HOUR).await;
    let node = Node::new(ca.ca.clone(), &[id("server")], HOUR).await;
    let app = App::relaying_to(echo_app().await);
    let server = Server::start(&node, id("server"), Wire::Native, app.clone()).await;

    // The client's side: the server is not of its domain.
    let to = target(Wire::Native, foreign.clone(), server.addr, &[id("server")]);
    let error = stranger.transport.tunnel(&to, &meta()).await.err().unwrap();
    assert!(
        matches!(
            &error,
            TransportError::Peer { refusal: PeerRefusal::ForeignTrustDomain { .. }, .. }
        ),
        "{error}"
    );

    // The server's side: a client that accepts the server's domain, but is not of it.
    let settings =
        StoreSettings { ttl: HOUR, trust_domain_aliases: vec!["cluster.local".parse().unwrap()] };
    let tolerant =
        Node::with_settings(ca.ca.clone(), std::slice::from_ref(&foreign), settings).await;
    let error = tolerant.transport.tunnel(&to, &meta()).await.err().unwrap();
    server.errors.lock().unwrap().retain(|e| matches!(e, TransportError::Peer { .. }));
    let seen = server.error().await;
    assert!(seen.to_string().contains("foreign trust domain \"other.example\""), "{seen}");
    assert!(matches!(error, TransportError::Handshake { .. }), "{error}");
    assert!(app.seen.lock().unwrap().is_empty());

    // With the alias on the server it is taken.
    let settings =
        StoreSettings { ttl: HOUR, trust_domain_aliases: vec!["other.example".parse().unwrap()] };
    let node = Node::with_settings(ca.ca.clone(), &[id("server")], settings).await;
    let server = Server::start(&node, id("server"), Wire::Native, app.clone()).await;
    let to = target(Wire::Native, foreign.clone(), server.addr, &[id("server")]);
    tolerant.transport.tunnel(&to, &meta()).await.unwrap();
    assert_eq!(app.seen.lock().unwrap()[0].peer.identity, foreign);
}

#[tokio::test]
async fn a_foreign_root_is_refused_on_both_sides() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let stranger = Node::new(theirs.ca.clone(), &[id("client")], HOUR).await;
    let node = Node::new(ours.ca.clone(), &[id("server")], HOUR).await;
    let app = App::relaying_to(echo_app().await);
    let server = Server::start(&node, id("server"), Wire::Native, app.clone()).await;
    let to = target(Wire::Native, id("client"), server.addr, &[id("server")]);
    let error = stranger.transport.tunnel(&to, &meta()).await.err().unwrap();
    assert!(error.to_string().contains("not signed by a root of this mesh"), "{error}");
    assert_eq!(error.refusal(), Refusal::TlsFailure);
    assert!(app.seen.lock().unwrap().is_empty());
}

/// A CA that signs once and then is gone.
struct OnceCa {
    inner: Arc<dyn CaClient>,
    spent: std::sync::atomic::AtomicBool,
}

impl CaClient for OnceCa {
    fn sign<'a>(
        &'a self,
        csr: &'a CertificateSigningRequestDer<'a>,
        id: &'a SpiffeId,
        ttl: Duration,
    ) -> SignFuture<'a> {
        if self.spent.swap(true, std::sync::atomic::Ordering::Relaxed) {
            Box::pin(async { Err(CaError::Unreachable("gone fishing".into())) })
        } else {
            self.inner.sign(csr, id, ttl)
        }
    }
}

#[tokio::test]
async fn an_expired_certificate_refuses_with_the_reason_on_either_side() {
    let ca = TestCa::new();
    let once = || Arc::new(OnceCa { inner: ca.ca.clone(), spent: false.into() });
    let short = Duration::from_secs(5);
    let app = App::relaying_to(echo_app().await);

    // The client's own: refused before a packet is sent.
    let client = Node::new(once(), &[id("client")], short).await;
    let node = Node::new(ca.ca.clone(), &[id("server")], HOUR).await;
    let server = Server::start(&node, id("server"), Wire::Native, app.clone()).await;
    let to = target(Wire::Native, id("client"), server.addr, &[id("server")]);
    client.transport.tunnel(&to, &meta()).await.unwrap();
    let sessions = server.sessions();

    // The server's: refused by the server, before the handshake.
    let expiring = Node::new(once(), &[id("server")], short).await;
    let expired = Server::start(&expiring, id("server"), Wire::Native, app.clone()).await;
    let good = Node::new(ca.ca.clone(), &[id("client")], HOUR).await;
    let to_expired = target(Wire::Native, id("client"), expired.addr, &[id("server")]);

    tokio::time::sleep(short + Duration::from_millis(1100)).await;
    let error = within("refusal", client.transport.tunnel(&to, &meta())).await.err().unwrap();
    let TransportError::NoCertificate(CertificateError::Expired { reason, .. }) = &error else {
        panic!("{error}")
    };
    assert!(reason.contains("gone fishing"), "{reason}");
    assert_eq!(error.refusal(), Refusal::IdentityError);
    assert_eq!(server.sessions(), sessions);

    assert!(within("refusal", good.transport.tunnel(&to_expired, &meta())).await.is_err());
    let error = expired.error().await;
    assert!(error.to_string().contains("has expired"), "{error}");
}

#[tokio::test]
async fn an_identity_without_a_pod_here_is_not_spoken_for() {
    let pair = Pair::new(Wire::Native, App::relaying_to(echo_app().await)).await;
    let to = target(Wire::Native, id("reviews"), pair.server.addr, &[id("server")]);
    let error = pair.client.transport.tunnel(&to, &meta()).await.err().unwrap();
    assert!(
        matches!(error, TransportError::NoCertificate(CertificateError::NotHeld(_))),
        "{error}"
    );
    // And one whose last pod left is not spoken for any more.
    pair.client.store.retain(&HashSet::new());
    assert!(pair.client.store.certificate(&id("client")).is_err());
}

#[tokio::test]
async fn sessions_are_not_shared_between_identities_or_pods() {
    let ca = TestCa::new();
    let app = App::relaying_to(echo_app().await);
    let client = Node::new(ca.ca.clone(), &[id("a"), id("b")], HOUR).await;
    let node = Node::new(ca.ca.clone(), &[id("server")], HOUR).await;
    let server = Server::start(&node, id("server"), Wire::Native, app.clone()).await;
    let mut open: Vec<Tunnel> = Vec::new();
    for (pod, source) in [(1, "a"), (1, "a"), (1, "b"), (2, "a"), (2, "a")] {
        let target = fairlead_proxy::transport::Target::new(
            Wire::Native,
            Arc::new(crate::support::PlainPod(pod)),
            id(source),
            server.addr,
            server.addr,
            [id("server")].into(),
        );
        open.push(client.transport.tunnel(&target, &meta()).await.unwrap());
    }
    assert_eq!(server.sessions(), 3);
    let seen: Vec<_> = app.seen.lock().unwrap().iter().map(|s| s.peer.identity.clone()).collect();
    assert_eq!(seen, [id("a"), id("a"), id("b"), id("a"), id("a")]);
}

/// Lifetimes of six seconds, several clients that never pause, connections that outlive many
/// certificates: nothing fails, and serials change. With `FAIRLEAD_SOAK_SECONDS`, for that long
/// with lifetimes of twenty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_under_load_fails_nothing() {
    let soak = std::env::var("FAIRLEAD_SOAK_SECONDS").ok().and_then(|s| s.parse().ok());
    let (ttl, seconds) = soak.map_or((6, 15), |seconds| (20, seconds));
    let ttl = Duration::from_secs(ttl);
    let pair = Pair::with_ttl(Wire::Native, App::relaying_to(echo_app().await), ttl).await;
    let pair = Arc::new(pair);
    let until = Instant::now() + Duration::from_secs(seconds);
    let serial =
        |node: &Node, who: &str| node.store.certificate(&id(who)).unwrap().serial().to_owned();
    let before = (serial(&pair.client, "client"), serial(&pair.server_node, "server"));
    let mut tasks = Vec::new();
    for worker in 0..8 {
        let pair = pair.clone();
        tasks.push(tokio::spawn(async move {
            let mut done = 0_u32;
            let mut long = pair.tunnel().await.unwrap();
            while Instant::now() < until {
                // A connection of its own, and a word on the one that stays.
                let mut tunnel = within("tunnel", pair.tunnel()).await.unwrap();
                for stream in [&mut tunnel, &mut long] {
                    stream.write_all(b"word").await.unwrap();
                    let mut buf = [0; 4];
                    within("echo", stream.read_exact(&mut buf)).await.unwrap();
                    assert_eq!(&buf, b"word");
                }
                done += 1;
                if worker % 2 == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            done
        }));
    }
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    let after = (serial(&pair.client, "client"), serial(&pair.server_node, "server"));
    assert!(before.0 != after.0 && before.1 != after.1, "certificates did not change");
    assert!(done > 500, "only {done} rounds");
    assert!(pair.server.sessions() >= 3, "sessions were not renewed");
    let sessions = pair.server.sessions() as u64;
    assert!(sessions < 5 * seconds, "{sessions} sessions");
    let errors = pair.server.errors.lock().unwrap();
    assert!(errors.is_empty(), "{errors:?}");
}
