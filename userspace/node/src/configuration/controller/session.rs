//! One stream, from the connection to its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fairlead_wire::config::configuration_client::ConfigurationClient;
use fairlead_wire::config::{
    Ack, ControllerMessage, Found, Hello, Lookup, MAX_ADDRESSED_PODS, MAX_MESSAGE_BYTES,
    NodeMessage, PROTOCOL, PodAddresses, Update, controller_message, node_message,
};
use futures_util::StreamExt as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Request, Streaming};

use super::core::{Core, Staged, TRIM};
use super::lookup::{LOOKUP_BATCH, Lookups};
use super::state::Keeper;
use crate::cni::{Assigned, News};
use crate::rpc::Service;

/// The controller may take so long to accept a stream…
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// …and so long between messages until everything has come once.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);
/// A message may wait so long for the controller to take it.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages that wait to be sent.
const OUTGOING: usize = 16;
/// Between two messages about objects that nobody touched: what changes to and fro within it is
/// told once.
const VERDICTS_PAUSE: Duration = Duration::from_millis(500);
/// How often the state on disk is told that it is current.
const TOUCH: Duration = Duration::from_secs(5);
/// A state with gaps is made anew after this long.
const LOST_PAUSE: Duration = Duration::from_secs(60);

/// What a session is connected with.
pub(super) struct Links {
    pub(super) service: Service,
    pub(super) lookups: Arc<Lookups>,
    pub(super) asked: mpsc::Receiver<std::net::IpAddr>,
    pub(super) assigned: Arc<Assigned>,
    pub(super) reconnect: Arc<Notify>,
    pub(super) stopped: watch::Receiver<bool>,
}

/// Why a stream ended.
pub(super) struct Ended {
    pub(super) reason: String,
    /// Whether everything had come once.
    pub(super) synced: bool,
}

/// Runs a stream to its end. `Ok`: the daemon ends.
pub(super) async fn run(core: &mut Core, keeper: &Keeper, links: &mut Links) -> Result<(), Ended> {
    if *links.stopped.borrow() {
        return Ok(());
    }
    let mut staged = Staged::new(keeper.is_lost() && keeper.clear());
    let early = |reason: String| Ended { reason, synced: false };
    let opened = tokio::select! {
        opened = open(core, links.service.clone(), staged.full) => opened.map_err(early)?,
        _ = links.stopped.changed() => return Ok(()),
    };
    let result = serve(core, keeper, links, &mut staged, opened).await;
    result.map_err(|reason| Ended { reason, synced: staged.synced })
}

struct Opened {
    outgoing: mpsc::Sender<NodeMessage>,
    incoming: Streaming<ControllerMessage>,
}

fn message(message: node_message::Message) -> NodeMessage {
    NodeMessage { message: Some(message) }
}

async fn open(core: &mut Core, service: Service, nothing: bool) -> Result<Opened, String> {
    let channel = service.connect().await.map_err(|e| e.to_string())?;
    let address = channel.address();
    let hello = Hello {
        protocol: PROTOCOL,
        node: core.node.clone(),
        instance: core.instance.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trim: TRIM,
    };
    let mut first = vec![message(node_message::Message::Hello(hello))];
    let inventory = core.inventory(nothing).into_iter();
    first.extend(inventory.map(|i| message(node_message::Message::Inventory(i))));
    let (outgoing, mut waiting) = mpsc::channel(OUTGOING);
    let later = futures_util::stream::poll_fn(move |context| waiting.poll_recv(context));
    let mut client = ConfigurationClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let request = Request::new(futures_util::stream::iter(first).chain(later));
    let answer = match tokio::time::timeout(OPEN_TIMEOUT, client.stream(request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) => return Err(format!("{address}: {}", words(&status))),
        Err(_) => return Err(format!("{address}: no answer within {OPEN_TIMEOUT:?}")),
    };
    core.status.update(|facts| {
        facts.connected = Some(address);
        facts.streams += 1;
    });
    tracing::info!(%address, "stream from the controller");
    Ok(Opened { outgoing, incoming: answer.into_inner() })
}

fn words(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

async fn serve(
    core: &mut Core,
    keeper: &Keeper,
    links: &mut Links,
    staged: &mut Staged,
    opened: Opened,
) -> Result<(), String> {
    let Opened { outgoing, mut incoming } = opened;
    let mut touch = tokio::time::interval(TOUCH);
    touch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut deadline = Instant::now() + SYNC_TIMEOUT;
    let mut lookup = 0_u64;
    let mut last_nonce = 0_u64;
    let mut lost: Option<Instant> = None;
    let mut next_verdicts = Instant::now();
    links.assigned.tell_all();
    report(links, &outgoing).await?;
    loop {
        tokio::select! {
            next = incoming.message() => {
                let next = next.map_err(|status| words(&status))?;
                let next = next.ok_or("the controller ended the stream")?;
                deadline = Instant::now() + SYNC_TIMEOUT;
                match next.message {
                    Some(controller_message::Message::Update(update)) => {
                        let nonce = rising(&update, &mut last_nonce)?;
                        let synced = staged.synced;
                        let rejected = core.take(update, staged, keeper).await?;
                        if staged.synced {
                            links.lookups.connected();
                        }
                        // The Ack speaks for all that came until now.
                        while staged.synced && !synced && let Some(news) = core.news() {
                            send(&outgoing, node_message::Message::Verdicts(news)).await?;
                        }
                        let ack = Ack { nonce, rejected };
                        send(&outgoing, node_message::Message::Ack(ack)).await?;
                    }
                    Some(controller_message::Message::Found(found)) => {
                        let Found { id, known, unclaimed } = found;
                        links.lookups.found(id, known, &unclaimed);
                    }
                    // Of a later version of the protocol.
                    None => {}
                }
            }
            Some(first) = links.asked.recv(), if staged.synced => {
                let mut addresses = vec![first];
                while addresses.len() < LOOKUP_BATCH
                    && let Ok(next) = links.asked.try_recv()
                {
                    addresses.push(next);
                }
                lookup += 1;
                let text = addresses.iter().map(ToString::to_string).collect();
                links.lookups.sent(lookup, addresses);
                let ask = Lookup { id: lookup, addresses: text };
                send(&outgoing, node_message::Message::Lookup(ask)).await?;
            }
            () = tokio::time::sleep_until(next_verdicts), if staged.synced && core.has_news() => {
                if let Some(news) = core.news() {
                    send(&outgoing, node_message::Message::Verdicts(news)).await?;
                }
                next_verdicts = Instant::now() + VERDICTS_PAUSE;
            }
            () = links.assigned.changed() => report(links, &outgoing).await?,
            _ = touch.tick() => {
                if staged.synced {
                    keeper.touch(SystemTime::now());
                    core.rest();
                }
                if !keeper.is_lost() {
                    lost = None;
                } else if lost.get_or_insert_with(Instant::now).elapsed() > LOST_PAUSE {
                    return Err("everything is wanted again, for the state on disk".into());
                }
            }
            () = tokio::time::sleep_until(deadline), if !staged.synced => {
                return Err(format!("nothing came for {SYNC_TIMEOUT:?}, and not everything was there"));
            }
            () = links.reconnect.notified() => return Err("a new stream was asked for".into()),
            _ = links.stopped.changed() => return Ok(()),
        }
    }
}

/// The number of an Update, which has to be higher than the one before.
fn rising(update: &Update, last: &mut u64) -> Result<u64, String> {
    if update.nonce <= *last {
        return Err(format!("Update {} after {last}", update.nonce));
    }
    *last = update.nonce;
    Ok(update.nonce)
}

/// Tells of addresses that pods were given, as far as that is news.
async fn report(links: &Links, outgoing: &mpsc::Sender<NodeMessage>) -> Result<(), String> {
    let News { pods, all } = links.assigned.news();
    let mut all = all;
    let mut rest = pods.as_slice();
    while all || !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(MAX_ADDRESSED_PODS));
        let told = PodAddresses { pods: now.to_vec(), all: std::mem::take(&mut all) };
        send(outgoing, node_message::Message::PodAddresses(told)).await?;
        rest = later;
    }
    Ok(())
}

async fn send(
    outgoing: &mpsc::Sender<NodeMessage>,
    what: node_message::Message,
) -> Result<(), String> {
    match outgoing.send_timeout(message(what), SEND_TIMEOUT).await {
        Ok(()) => Ok(()),
        Err(_) => Err("the controller takes no messages".into()),
    }
}
