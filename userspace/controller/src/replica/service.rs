//! The side of the replica that leads.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fairlead_wire::replica::verdicts_server::Verdicts;
use fairlead_wire::replica::{
    Claims, Hello, PROTOCOL, ReplicaMessage, Report, Taken, replica_message as message,
};
use futures_util::Stream;
use futures_util::stream::poll_fn;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Request, Response, Status, Streaming};

use super::{CLAIMS_GAP, ReplicaMetrics};
use crate::auth::{Identify, ReplicaIdentity, bearer};
use crate::lease::Leadership;
use crate::scope::{MAX_REPLICAS, Picture, Sharing, World};

/// How long a replica may take for its Hello.
const GREETING: Duration = Duration::from_secs(10);
/// How long it may take until it has told all.
const PICTURE: Duration = Duration::from_secs(60);
/// Bytes of an instance and of a version.
const MAX_TEXT: usize = 512;

/// The gRPC service.
#[derive(Clone)]
pub struct VerdictsService {
    shared: Arc<Shared>,
}

struct Shared {
    world: Arc<World>,
    identify: Arc<dyn Identify<ReplicaIdentity>>,
    leader: Leadership,
    metrics: ReplicaMetrics,
    /// What this start of this replica is called.
    instance: String,
    /// The session of each replica, by its pod.
    sessions: Mutex<HashMap<String, (u64, Arc<Notify>)>>,
    last: AtomicU64,
}

impl VerdictsService {
    /// Takes what replicas tell that `identify` knows, while this one leads, for `world`. `instance`
    /// is what this start of it is called.
    #[must_use]
    pub fn new(
        world: Arc<World>,
        identify: Arc<dyn Identify<ReplicaIdentity>>,
        leader: Leadership,
        metrics: ReplicaMetrics,
        instance: String,
    ) -> Self {
        let (sessions, last) = (Mutex::default(), AtomicU64::new(0));
        let shared = Shared { world, identify, leader, metrics, instance, sessions, last };
        Self { shared: Arc::new(shared) }
    }
}

fn not_leading() -> Status {
    Status::failed_precondition("this replica does not lead")
}

impl Shared {
    /// A place for a session; the pod's session before it has to go.
    fn seat(self: &Arc<Self>, replica: ReplicaIdentity) -> Result<Seat, Status> {
        let session = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let replaced = Arc::new(Notify::new());
        let mut sessions = self.sessions.lock();
        if sessions.len() >= MAX_REPLICAS && !sessions.contains_key(&replica.pod) {
            let text = format!("at most {MAX_REPLICAS} replicas report");
            return Err(Status::resource_exhausted(text));
        }
        let before = sessions.insert(replica.pod.clone(), (session, Arc::clone(&replaced)));
        drop(sessions);
        if let Some((_, before)) = before {
            before.notify_one();
        }
        Ok(Seat { shared: Arc::clone(self), replica, session, replaced, told_all: false })
    }
}

/// The place of a session, which gives back what it holds.
struct Seat {
    shared: Arc<Shared>,
    replica: ReplicaIdentity,
    session: u64,
    replaced: Arc<Notify>,
    told_all: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut sessions = self.shared.sessions.lock();
        if sessions.get(&self.replica.pod).is_some_and(|(session, _)| *session == self.session) {
            sessions.remove(&self.replica.pod);
        }
        drop(sessions);
        if self.told_all {
            self.shared.metrics.reporting.add(-1);
            // Who does not lead keeps nothing of others.
            self.shared.world.lose(self.session, self.shared.leader.is_leader());
        }
    }
}

/// Ends with the stream.
type Answers = Pin<Box<dyn Stream<Item = Result<Taken, Status>> + Send>>;

#[tonic::async_trait]
impl Verdicts for VerdictsService {
    type TellStream = Answers;

    async fn tell(
        &self,
        request: Request<Streaming<ReplicaMessage>>,
    ) -> Result<Response<Answers>, Status> {
        let token = bearer(request.metadata())?.to_owned();
        if !self.shared.leader.is_leader() {
            return Err(not_leading());
        }
        let replica = self.shared.identify.identify(&token).await.inspect_err(|denied| {
            self.shared.metrics.refused.inc();
            tracing::warn!(%denied, "a caller that is no replica");
        })?;
        let seat = self.shared.seat(replica)?;
        let input = request.into_inner();
        let (out, mut answers) = mpsc::channel(1);
        tokio::spawn(run(seat, token, input, out));
        Ok(Response::new(Box::pin(poll_fn(move |context| answers.poll_recv(context)))))
    }
}

/// Runs a stream; whatever ends it is told to the replica and to the log.
async fn run(
    mut seat: Seat,
    token: String,
    mut input: Streaming<ReplicaMessage>,
    out: mpsc::Sender<Result<Taken, Status>>,
) {
    let shared = Arc::clone(&seat.shared);
    let (pod, mut leader) = (seat.replica.pod.clone(), shared.leader.clone());
    let (replica, replaced) = (seat.replica.clone(), Arc::clone(&seat.replaced));
    let end = tokio::select! {
        end = take(&mut seat, &mut input, &out) => end,
        () = replaced.notified() => Err(Status::aborted("the replica has another stream")),
        () = leader.lost() => Err(not_leading()),
        denied = shared.identify.revoked(&token, &replica) => Err(denied.into()),
    };
    drop(seat);
    match end {
        Ok(()) => tracing::info!(pod, "a replica tells no more"),
        Err(status) => {
            if matches!(
                status.code(),
                tonic::Code::InvalidArgument | tonic::Code::ResourceExhausted
            ) {
                shared.metrics.refused.inc();
            }
            tracing::info!(
                pod, code = ?status.code(), reason = status.message(),
                "the stream of a replica ends"
            );
            // Nobody may be there to hear it.
            let _ = timeout(GREETING, out.send(Err(status))).await;
        }
    }
}

async fn take(
    seat: &mut Seat,
    input: &mut Streaming<ReplicaMessage>,
    out: &mpsc::Sender<Result<Taken, Status>>,
) -> Result<(), Status> {
    let hello = timeout(GREETING, greet(input))
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello in time"))??;
    let Hello { instance, version, hears_claims, .. } = hello;
    let shared = Arc::clone(&seat.shared);
    let Shared { world, metrics, instance: own, .. } = &*shared;
    let sharing = Sharing::with_follower(Arc::clone(world), own, &instance, hears_claims);
    // The first time also without any: it says that this is all.
    let (mut first, mut next_claims) = (hears_claims, Instant::now());
    let mut picture = Some(Picture::of(&version));
    let deadline = Instant::now() + PICTURE;
    let mut last = 0;
    loop {
        let due = first || sharing.has_news();
        let next = tokio::select! {
            next = input.message() => next?,
            () = sharing.news(), if !due => continue,
            () = sleep_until(next_claims), if due => {
                first = false;
                let (nodes, complete) = sharing.next();
                let claims = Some(Claims { nodes, complete });
                if out.send(Ok(Taken { nonce: 0, claims })).await.is_err() {
                    return Ok(());
                }
                next_claims = Instant::now() + CLAIMS_GAP;
                continue;
            }
            () = sleep_until(deadline), if picture.is_some() => {
                return Err(Status::deadline_exceeded("not all was told in time"));
            }
        };
        let mut report = match next.map(|next| next.message) {
            Some(Some(message::Message::Report(report))) => report,
            Some(Some(message::Message::Hello(_))) => {
                return Err(Status::invalid_argument("Hello comes first, and once"));
            }
            // Of a later version of the protocol, perhaps.
            Some(None) => continue,
            None => return Ok(()),
        };
        let Report { nonce, complete, .. } = report;
        if nonce != last + 1 {
            return Err(Status::invalid_argument(format!("Report {nonce} comes after {last}")));
        }
        last = nonce;
        metrics.heard(sharing.hear(std::mem::take(&mut report.claims)));
        match &mut picture {
            None => world.amend(seat.session, report)?,
            Some(begun) => {
                begun.take(report)?;
                if complete && let Some(whole) = picture.take() {
                    world.adopt(seat.session, &seat.replica.pod, &instance, whole);
                    sharing.heard_all();
                    metrics.reporting.add(1);
                    seat.told_all = true;
                    let pod = &seat.replica.pod;
                    tracing::info!(pod, instance, version, "a replica has told of its nodes");
                }
            }
        }
        metrics.taken.inc();
        if out.send(Ok(Taken { nonce, claims: None })).await.is_err() {
            return Ok(());
        }
    }
}

async fn greet(input: &mut Streaming<ReplicaMessage>) -> Result<Hello, Status> {
    let first = input.message().await?.and_then(|first| first.message);
    let Some(message::Message::Hello(hello)) = first else {
        return Err(Status::invalid_argument("the first message has to be Hello"));
    };
    if hello.protocol != PROTOCOL {
        let text = format!("protocol {} is not spoken here; {PROTOCOL} is", hello.protocol);
        return Err(Status::failed_precondition(text));
    }
    if hello.instance.is_empty() || hello.instance.len().max(hello.version.len()) > MAX_TEXT {
        return Err(Status::invalid_argument("no instance that could be one"));
    }
    Ok(hello)
}
