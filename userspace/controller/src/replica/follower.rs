//! The side of a replica that does not lead.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fairlead_wire::client::{Channel, Peer, bearer, client_config};
use fairlead_wire::replica::verdicts_client::VerdictsClient;
use fairlead_wire::replica::{
    Claims, Hello, PROTOCOL, ReplicaMessage, Report, Taken, replica_message as message,
};
use futures_util::stream::poll_fn;
use prost::Message;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::{CLAIMS_GAP, ReplicaMetrics};
use crate::ca::Serving;
use crate::lease::Leader;
use crate::scope::{Sharing, Teller, World};

/// Least time between two Reports; what changes meanwhile goes together. With claims: [`CLAIMS_GAP`].
const GAP: Duration = Duration::from_millis(50);
/// Bytes of claims for which there is room beside verdicts.
const MANY_CLAIMS: usize = 256 << 10;
/// How long the leader may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Wait before another try, doubled each time up to the longest.
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// A stream that lasted this long was a good one.
const GOOD: Duration = Duration::from_secs(10);

/// Settings of a follower.
#[derive(Clone, Debug)]
pub struct FollowerSettings {
    /// This start of this replica.
    pub instance: String,
    /// File of the token.
    pub token: PathBuf,
    /// The name in the leader's certificate.
    pub name: String,
    /// The authority of requests.
    pub port: u16,
}

/// Tells the leading replica what this one's nodes say, while it is another one.
pub struct Follower {
    world: Arc<World>,
    serving: Arc<Serving>,
    leader: watch::Receiver<Option<Leader>>,
    settings: FollowerSettings,
    metrics: ReplicaMetrics,
}

impl Follower {
    /// Of the nodes of `world`; `leader` says whom. The roots are those of the own listeners: all
    /// replicas have one authority.
    #[must_use]
    pub fn new(
        world: Arc<World>,
        serving: Arc<Serving>,
        leader: watch::Receiver<Option<Leader>>,
        settings: FollowerSettings,
        metrics: ReplicaMetrics,
    ) -> Self {
        Self { world, serving, leader, settings, metrics }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        // What is not known yet would be told as being gone.
        self.world.synced().await;
        let mut pause = MIN_PAUSE;
        loop {
            let leader = self.leader.borrow_and_update().clone();
            let Some(leader) = leader else {
                pause = MIN_PAUSE;
                if self.leader.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                continue;
            };
            let begun = Instant::now();
            let mut changes = self.leader.clone();
            let moved = tokio::select! {
                end = self.follow(&leader) => {
                    self.metrics.ended.inc();
                    let reason = end.err().unwrap_or_else(|| "it ended".to_owned());
                    tracing::info!(leader = leader.identity, reason, "not telling the leader now");
                    false
                }
                Ok(()) = changes.changed() => true,
            };
            if moved || begun.elapsed() > GOOD {
                pause = MIN_PAUSE;
            }
            if !moved {
                tokio::select! {
                    () = sleep(pause) => {}
                    Ok(()) = changes.changed() => {}
                }
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }

    /// One stream, to its end.
    async fn follow(&self, leader: &Leader) -> Result<(), String> {
        let address = leader.address.ok_or("its Lease does not say where it is")?;
        let token = bearer(&self.settings.token).map_err(|e| e.to_string())?;
        let roots = self.serving.client_roots().ok_or("the roots are not known yet")?;
        let mut store = RootCertStore::empty();
        for root in roots.roots {
            store.add(root).map_err(|e| format!("roots: {e}"))?;
        }
        let config = client_config(store).map_err(|e| e.to_string())?;
        let FollowerSettings { name, port, .. } = &self.settings;
        let authority = format!("{name}:{port}").parse().map_err(|e| format!("{name}: {e}"))?;
        let name = ServerName::try_from(name.clone()).map_err(|e| e.to_string())?;
        let peer = Peer { address, authority, token };
        let channel = Channel::open(peer, name, config).await.map_err(|e| e.to_string())?;
        let client = VerdictsClient::new(channel);
        tracing::info!(leader = leader.identity, %address, "telling the leader of the nodes here");
        tell(Arc::clone(&self.world), client, &self.settings.instance, &self.metrics)
            .await
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))
    }
}

/// What is to be told next. Many claims go alone: no message may be larger than
/// [`fairlead_wire::replica::MAX_MESSAGE_BYTES`].
pub(super) fn next_report(sharing: &Sharing, teller: &mut Teller, nonce: u64) -> Report {
    let (claims, all) = sharing.next();
    if claims.iter().map(Message::encoded_len).sum::<usize>() > MANY_CLAIMS {
        return Report { nonce, claims, ..Report::default() };
    }
    let report = teller.report(nonce);
    Report { claims, complete: report.complete && all, ..report }
}

/// Tells by one stream until that ends.
pub(super) async fn tell(
    world: Arc<World>,
    mut client: VerdictsClient<Channel>,
    instance: &str,
    metrics: &ReplicaMetrics,
) -> Result<(), Status> {
    let (out, mut messages) = mpsc::channel(1);
    let hello = Hello {
        protocol: PROTOCOL,
        instance: instance.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hears_claims: true,
    };
    let gone = |_| Status::cancelled("the connection has ended");
    let say = async |what| out.send(ReplicaMessage { message: Some(what) }).await.map_err(gone);
    say(message::Message::Hello(hello)).await?;
    let opening = client.tell(poll_fn(move |context| messages.poll_recv(context)));
    let mut answers: Streaming<Taken> = timeout(ANSWER, opening)
        .await
        .map_err(|_| Status::deadline_exceeded("no answer in time"))??
        .into_inner();
    let sharing = Sharing::with_leader(Arc::clone(&world), instance);
    let mut heard_all = false;
    let mut teller = Teller::new(world);
    let (mut nonce, mut in_flight) = (0, None::<Instant>);
    let mut last = None::<Instant>;
    loop {
        let claims = sharing.has_news();
        let due = in_flight.is_none() && (claims || teller.has_news());
        let now = Instant::now();
        let next = last.map_or(now, |last| last + if claims { CLAIMS_GAP } else { GAP });
        tokio::select! {
            answer = answers.message() => {
                let Some(Taken { nonce: taken, claims }) = answer? else { return Ok(()) };
                if let Some(Claims { nodes, complete }) = claims {
                    metrics.heard(sharing.hear(nodes));
                    if complete && !std::mem::replace(&mut heard_all, true) {
                        sharing.heard_all();
                    }
                }
                match taken {
                    0 => {}
                    taken if taken == nonce => in_flight = None,
                    _ => return Err(Status::invalid_argument("an answer to no Report")),
                }
            }
            () = teller.news(), if !due => {}
            () = sharing.news(), if !due => {}
            () = sleep_until(next), if due => {
                nonce += 1;
                let report = next_report(&sharing, &mut teller, nonce);
                say(message::Message::Report(report)).await?;
                metrics.sent.inc();
                in_flight = Some(Instant::now());
                last = in_flight;
            }
            () = sleep_until(in_flight.unwrap_or(now) + ANSWER), if in_flight.is_some() => {
                return Err(Status::deadline_exceeded("a Report was not answered in time"));
            }
        }
    }
}
