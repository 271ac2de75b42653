//! Addresses that the snapshot does not know: the controller is asked before a connection is
//! taken for one to the outside.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use fairlead_proxy::{Answer, AnswerFuture, UnknownDestinations};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::status::Status;
use crate::settings::Unanswered;

/// Addresses that wait to be asked about.
pub(super) const LOOKUPS_WAITING: usize = 1024;
/// Addresses in one question.
pub(super) const LOOKUP_BATCH: usize = 64;
/// How long a connection waits for the answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a stream that has ended (or that a daemon that starts does not have yet) is waited for
/// by connections that would be refused without an answer: another one comes in a moment when a
/// controller is replaced.
const RETURN: Duration = Duration::from_secs(2);
/// How long it counts that nothing is known about an address.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
/// How long it counts while nobody can be asked.
const UNKNOWN_FOR_WITHOUT: Duration = Duration::from_secs(3600);
/// How long it counts that an address of the pods' ranges is nobody's: until its pod is known, its
/// connections are refused.
const UNCLAIMED_FOR: Duration = Duration::from_millis(200);
/// Why they are.
const UNCLAIMED: &str = "this address is in the range of a node's pods, and no pod is known to have \
                         it: one is starting, or has gone";
/// Addresses of which it is remembered that nothing is known.
const MAX_UNKNOWN: usize = 4096;

/// Asks the controller, once for all connections that want to know the same.
pub struct Lookups {
    ask: mpsc::Sender<IpAddr>,
    status: Status,
    policy: Unanswered,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connected: bool,
    /// Since when there is no stream.
    without_since: Option<tokio::time::Instant>,
    /// Addresses that the controller is being asked about, and who wants to know.
    waiting: HashMap<IpAddr, Asking>,
    /// Questions under way.
    sent: HashMap<u64, Vec<IpAddr>>,
    unknown: HashMap<IpAddr, Instant>,
    unclaimed: HashMap<IpAddr, Instant>,
}

/// An address that the controller is being asked about.
struct Asking {
    tell: watch::Sender<Option<Told>>,
    /// When it was asked last.
    asked: tokio::time::Instant,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// What is known is in the snapshot.
    Look,
    /// The address is nobody's for now, and not outside of the mesh.
    Unclaimed,
    /// Nobody answers.
    Nothing,
}

impl Lookups {
    pub(super) fn new(ask: mpsc::Sender<IpAddr>, status: Status, policy: Unanswered) -> Self {
        let state = State { without_since: Some(tokio::time::Instant::now()), ..State::default() };
        Self { ask, status, policy, state: Mutex::new(state) }
    }

    /// Everything has come once: questions are answered.
    pub(super) fn connected(&self) {
        self.state.lock().connected = true;
    }

    /// A question is on its way.
    pub(super) fn sent(&self, id: u64, addresses: Vec<IpAddr>) {
        self.state.lock().sent.insert(id, addresses);
    }

    /// The answer: what is known is in the snapshot. `unclaimed`: nobody is known to have these of
    /// the pods' addresses.
    pub(super) fn found(&self, id: u64, known: bool, unclaimed: &[String]) {
        let unclaimed: Vec<IpAddr> =
            unclaimed.iter().filter_map(|text| text.parse().ok()).take(LOOKUP_BATCH).collect();
        let mut state = self.state.lock();
        let now = Instant::now();
        for address in state.sent.remove(&id).unwrap_or_default() {
            let told = if self.policy == Unanswered::Refuse && unclaimed.contains(&address) {
                remember(&mut state.unclaimed, address, now, UNCLAIMED_FOR);
                Told::Unclaimed
            } else {
                if !known {
                    remember(&mut state.unknown, address, now, UNKNOWN_FOR);
                }
                Told::Look
            };
            if let Some(asking) = state.waiting.remove(&address) {
                asking.tell.send_replace(Some(told));
            }
        }
        drop(state);
        self.status.update(|facts| facts.lookups[usize::from(!known)] += 1);
    }

    /// The stream has ended: nobody answers now. Those who would be refused wait for the next one.
    pub(super) fn unanswered(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.connected) {
            state.without_since = Some(tokio::time::Instant::now());
        }
        let asked: Vec<IpAddr> = std::mem::take(&mut state.sent).into_values().flatten().collect();
        let mut waiting = std::mem::take(&mut state.waiting);
        waiting.retain(|address, asking| {
            let refused = self.is_refused(&state, *address);
            if !refused {
                asking.tell.send_replace(Some(Told::Nothing));
            }
            refused
        });
        for address in asked {
            if let Some(asking) = waiting.get(&address)
                && self.ask.try_send(address).is_err()
            {
                asking.tell.send_replace(Some(Told::Nothing));
            }
        }
        state.waiting = waiting;
    }

    fn is_refused(&self, state: &State, address: IpAddr) -> bool {
        matches!(self.without(state, address), Answer::Refused(_))
    }

    fn begin(&self, address: IpAddr) -> Result<watch::Receiver<Option<Told>>, Answer> {
        let mut state = self.state.lock();
        if remembers(&state.unclaimed, address, UNCLAIMED_FOR) {
            return Err(Answer::Refused(UNCLAIMED));
        }
        if remembers(&state.unknown, address, UNKNOWN_FOR) {
            return Err(Answer::Unknown);
        }
        let answered = state.connected || state.may_return() && self.is_refused(&state, address);
        if !answered {
            return Err(self.without(&state, address));
        }
        if let Some(asking) = state.waiting.get(&address) {
            return Ok(asking.tell.subscribe());
        }
        if state.waiting.len() >= LOOKUPS_WAITING {
            // Connections that have ended meanwhile want to know nothing.
            state.waiting.retain(|_, asking| asking.tell.receiver_count() > 0);
        }
        if state.waiting.len() >= LOOKUPS_WAITING || self.ask.try_send(address).is_err() {
            return Err(self.without(&state, address));
        }
        let (tell, told) = watch::channel(None);
        state.waiting.insert(address, Asking { tell, asked: tokio::time::Instant::now() });
        Ok(told)
    }

    /// Somebody waits no longer. The others have come later, and have their time still.
    fn give_up(&self, state: &mut State, address: IpAddr, told: watch::Receiver<Option<Told>>) {
        let Some(asking) = state.waiting.get_mut(&address) else { return };
        if !asking.tell.subscribe().same_channel(&told) {
            return;
        }
        drop(told);
        if asking.tell.receiver_count() == 0 {
            // Whoever comes next asks anew.
            state.waiting.remove(&address);
        } else if asking.asked.elapsed() >= PATIENCE {
            // The question may have been lost; where there is no room for it, they wait for the
            // answer to the first.
            asking.asked = tokio::time::Instant::now();
            let _ = self.ask.try_send(address);
        }
    }

    /// What holds without an answer.
    fn without(&self, state: &State, address: IpAddr) -> Answer {
        let known_unknown = remembers(&state.unknown, address, UNKNOWN_FOR_WITHOUT);
        if self.policy == Unanswered::Pass || known_unknown || !could_be_a_pod(address) {
            return Answer::Unknown;
        }
        Answer::Refused(
            "nothing is known about this private address, and the controller cannot be asked \
             whether it is one of the mesh",
        )
    }

    async fn ask(&self, address: IpAddr) -> Answer {
        let mut told = match self.begin(address) {
            Ok(told) => told,
            Err(answer) => return answer,
        };
        let mut state = loop {
            match tokio::time::timeout(PATIENCE, told.wait_for(Option::is_some)).await {
                Ok(Ok(answer)) if *answer == Some(Told::Look) => return Answer::LookAgain,
                Ok(Ok(answer)) if *answer == Some(Told::Unclaimed) => {
                    return Answer::Refused(UNCLAIMED);
                }
                answered => drop(answered),
            }
            let unanswered = told.borrow_and_update().is_none();
            let state = self.state.lock();
            if !(unanswered && !state.connected && state.may_return()) {
                break state;
            }
        };
        self.status.update(|facts| facts.lookups[2] += 1);
        self.give_up(&mut state, address, told);
        self.without(&state, address)
    }
}

impl UnknownDestinations for Lookups {
    fn look_up(&self, address: IpAddr) -> AnswerFuture<'_> {
        Box::pin(self.ask(address.to_canonical()))
    }
}

impl State {
    /// Whether a stream is likely to come in a moment.
    fn may_return(&self) -> bool {
        self.without_since.is_some_and(|since| since.elapsed() < RETURN)
    }
}

/// Remembers an address, in place of those that count no longer where there is no room.
fn remember(all: &mut HashMap<IpAddr, Instant>, address: IpAddr, now: Instant, counts: Duration) {
    if all.len() >= MAX_UNKNOWN {
        all.retain(|_, at| now.duration_since(*at) < counts);
    }
    if all.len() < MAX_UNKNOWN {
        all.insert(address, now);
    }
}

/// Whether an address is remembered from less than so long ago.
fn remembers(all: &HashMap<IpAddr, Instant>, address: IpAddr, limit: Duration) -> bool {
    all.get(&address).is_some_and(|at| at.elapsed() < limit)
}

/// Whether pods and services have such addresses: private ones (RFC 1918, RFC 6598, RFC 4193).
fn could_be_a_pod(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
