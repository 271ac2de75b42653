//! One node's stream, from its Hello to its end.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_wire::config::{
    Ack, Found, Held, Hello, Lookup, MAX_ADDRESSED_PODS, MAX_VERDICTS, NodeMessage, PROTOCOL,
    PodAddresses, Verdicts, node_message,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::Shared;
use super::frame::Frame;
use crate::auth::NodeIdentity;
use crate::scope::{CLAIMS_STAY, Ticket, now_micros};

/// How long a node may take for Hello and Inventory.
const GREETING: Duration = Duration::from_secs(30);
/// Objects that a node may hold when it comes.
const MAX_INVENTORY: usize = 250_000;
/// Addresses in one Lookup.
const MAX_ADDRESSES: usize = 1024;
/// Lookups that wait for their Found.
const MAX_LOOKUPS: usize = 256;

/// Runs a stream; whatever ends it is told to the node and to the log.
pub(super) async fn run(
    shared: Arc<Shared>,
    identity: NodeIdentity,
    token: String,
    mut input: Streaming<NodeMessage>,
    out: mpsc::Sender<Result<Frame, Status>>,
) {
    let end = async {
        let (hello, inventory) = timeout(GREETING, greet(&mut input, &identity))
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello and Inventory in time"))??;
        // Before everything has been listed, what a node needs is not known, and what it holds
        // must not be taken from it.
        shared.world.synced().await;
        let ticket = shared.world.connect(&identity.node, &hello.instance, inventory);
        let _guard = Connected { shared: &shared, ticket: &ticket };
        tracing::info!(
            node = identity.node,
            instance = hello.instance,
            version = hello.version,
            "a node has come"
        );
        shared.metrics.connected(1);
        let mut session = Session {
            shared: &shared,
            ticket: &ticket,
            out: &out,
            trust: shared.trust.clone(),
            trust_is_news: false,
            nonce: 0,
            in_flight: None,
            next: Instant::now(),
            first: true,
            completed: false,
            lookups: VecDeque::new(),
        };
        tokio::select! {
            end = session.run(&mut input) => end,
            denied = shared.identify.revoked(&token, &identity) => Err(denied.into()),
        }
    };
    let end: Result<(), Status> = end.await;
    match end {
        Ok(()) => tracing::info!(node = identity.node, "a node has gone"),
        Err(status) => {
            tracing::info!(
                node = identity.node, code = ?status.code(), reason = status.message(),
                "the stream of a node ends"
            );
            // Nobody may be there to hear it.
            let _ = timeout(GREETING, out.send(Err(status))).await;
        }
    }
    drop((input, out));
    forget_claims(&shared, &identity.node).await;
}

struct Connected<'a> {
    shared: &'a Shared,
    ticket: &'a Ticket,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.shared.world.disconnect(self.ticket);
        self.shared.metrics.connected(-1);
    }
}

/// The node has lost a stream; should it have none for long, what it said of addresses is over.
async fn forget_claims(shared: &Shared, node: &str) {
    tokio::time::sleep(CLAIMS_STAY).await;
    shared.world.forget_claims(node);
}

async fn greet(
    input: &mut Streaming<NodeMessage>,
    identity: &NodeIdentity,
) -> Result<(Hello, Vec<Held>), Status> {
    let first = input.message().await?.and_then(|message| message.message);
    let Some(node_message::Message::Hello(hello)) = first else {
        return Err(Status::invalid_argument("the first message has to be Hello"));
    };
    if hello.protocol != PROTOCOL {
        let text = format!("protocol {} is not spoken here; {PROTOCOL} is", hello.protocol);
        return Err(Status::failed_precondition(text));
    }
    if hello.node != identity.node {
        let text = format!("the token is of node {:?}, not {:?}", identity.node, hello.node);
        return Err(Status::permission_denied(text));
    }
    let mut held = Vec::new();
    loop {
        let message = input.message().await?.and_then(|message| message.message);
        let Some(node_message::Message::Inventory(inventory)) = message else {
            return Err(Status::invalid_argument("Hello is followed by Inventory"));
        };
        held.extend(inventory.held);
        if held.len() > MAX_INVENTORY {
            let text = format!("at most {MAX_INVENTORY} objects in an Inventory");
            return Err(Status::resource_exhausted(text));
        }
        if inventory.last {
            return Ok((hello, held));
        }
    }
}

struct Session<'a> {
    shared: &'a Shared,
    ticket: &'a Ticket,
    out: &'a mpsc::Sender<Result<Frame, Status>>,
    trust: tokio::sync::watch::Receiver<bytes::Bytes>,
    trust_is_news: bool,
    nonce: u64,
    in_flight: Option<InFlight>,
    /// When the next Update may go.
    next: Instant,
    /// No Update has been sent yet.
    first: bool,
    /// An Update that was `complete` has been sent.
    completed: bool,
    lookups: VecDeque<Found>,
}

struct InFlight {
    sent: Instant,
    /// When the oldest change in it came up.
    oldest: Option<std::time::Instant>,
}

impl Session<'_> {
    async fn run(&mut self, input: &mut Streaming<NodeMessage>) -> Result<(), Status> {
        loop {
            let deadline =
                self.in_flight.as_ref().map(|i| i.sent + self.shared.settings.ack_timeout);
            let due = self.in_flight.is_none() && self.has_news();
            tokio::select! {
                message = input.message() => match message? {
                    Some(message) => self.hear(message)?,
                    None => return Ok(()),
                },
                () = self.ticket.replaced.notified() => {
                    return Err(Status::aborted("the daemon has another stream"));
                }
                () = self.ticket.wake.notified(), if !due => {}
                Ok(()) = self.trust.changed() => self.trust_is_news = true,
                () = sleep_until(self.next), if due => self.tell().await?,
                () = sleep_until(deadline.unwrap_or(self.next)), if deadline.is_some() => {
                    return Err(Status::deadline_exceeded("an Update was not answered in time"));
                }
            }
        }
    }

    fn has_news(&self) -> bool {
        self.first
            || !self.lookups.is_empty()
            || self.trust_is_news
            || self.shared.world.has_news(self.ticket)
    }

    async fn tell(&mut self) -> Result<(), Status> {
        let trust_changed = std::mem::take(&mut self.trust_is_news) || self.first;
        let Some(batch) = self.shared.world.take(self.ticket) else {
            return Err(Status::aborted("the daemon has another stream"));
        };
        let complete = batch.complete;
        let empty = batch.upserts.is_empty() && batch.removed.is_empty();
        // A Lookup may have found nothing new: then Found is all there is to say.
        // But the node waits for the end of the first ones.
        let ends = complete && !self.completed;
        if !empty || trust_changed || ends {
            let trust = trust_changed.then(|| self.trust.borrow_and_update().clone());
            self.nonce += 1;
            self.first = false;
            self.completed |= complete;
            let oldest = batch.oldest.map(|(at, _)| at);
            let kinds = batch.kinds.clone();
            let frame = Frame::Update { nonce: self.nonce, batch, trust };
            let began = std::time::Instant::now();
            self.shared.metrics.pushed(&kinds, frame.size(), oldest);
            self.send(frame).await?;
            self.shared.metrics.push_took(&kinds, began.elapsed());
            self.in_flight = Some(InFlight { sent: Instant::now(), oldest });
            self.next = Instant::now() + self.shared.settings.gap;
        }
        if complete {
            for found in std::mem::take(&mut self.lookups) {
                self.send(Frame::Found(found)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, frame: Frame) -> Result<(), Status> {
        self.out.send(Ok(frame)).await.map_err(|_| Status::cancelled("the node has gone"))
    }

    fn hear(&mut self, message: NodeMessage) -> Result<(), Status> {
        match message.message {
            Some(node_message::Message::Ack(ack)) => self.hear_ack(ack),
            Some(node_message::Message::Verdicts(verdicts)) => self.hear_verdicts(verdicts),
            Some(node_message::Message::Lookup(lookup)) => self.hear_lookup(lookup),
            Some(node_message::Message::PodAddresses(pods)) => self.hear_addresses(pods),
            Some(node_message::Message::Hello(_) | node_message::Message::Inventory(_)) => {
                Err(Status::invalid_argument("Hello and Inventory come first, and once"))
            }
            // Of a later version of the protocol, perhaps.
            None => Ok(()),
        }
    }

    fn hear_ack(&mut self, ack: Ack) -> Result<(), Status> {
        if ack.nonce != self.nonce {
            self.shared.metrics.expired_nonce();
            return Ok(());
        }
        let Some(in_flight) = self.in_flight.take() else { return Ok(()) };
        let refused = self.shared.world.acknowledge(self.ticket, ack);
        self.shared.metrics.acknowledged(in_flight.oldest.map(|at| at.elapsed()), refused);
        tracing::trace!(node = self.ticket.node, now = now_micros(), refused, "acknowledged");
        Ok(())
    }

    fn hear_verdicts(&self, verdicts: Verdicts) -> Result<(), Status> {
        let Verdicts { changed } = verdicts;
        if changed.len() > MAX_VERDICTS {
            let text = format!("at most {MAX_VERDICTS} objects in a Verdicts");
            return Err(Status::invalid_argument(text));
        }
        let refused = self.shared.world.hear_verdicts(self.ticket, changed);
        self.shared.metrics.refused(refused);
        Ok(())
    }

    fn hear_lookup(&mut self, lookup: Lookup) -> Result<(), Status> {
        if lookup.addresses.len() > MAX_ADDRESSES {
            let text = format!("at most {MAX_ADDRESSES} addresses in a Lookup");
            return Err(Status::invalid_argument(text));
        }
        if self.lookups.len() >= MAX_LOOKUPS {
            let text = format!("at most {MAX_LOOKUPS} Lookups at a time");
            return Err(Status::resource_exhausted(text));
        }
        let addresses: Vec<IpAddr> =
            lookup.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        let found = self.shared.world.look_up(self.ticket, &addresses);
        let unclaimed = found.unclaimed.iter().map(ToString::to_string).collect();
        self.lookups.push_back(Found { id: lookup.id, known: found.known, unclaimed });
        // Somebody waits for it.
        self.next = Instant::now();
        Ok(())
    }

    fn hear_addresses(&self, pods: PodAddresses) -> Result<(), Status> {
        let PodAddresses { pods, all } = pods;
        if pods.len() > MAX_ADDRESSED_PODS {
            let text = format!("at most {MAX_ADDRESSED_PODS} pods in a PodAddresses");
            return Err(Status::invalid_argument(text));
        }
        self.shared.world.claim(self.ticket, pods, all);
        Ok(())
    }
}
