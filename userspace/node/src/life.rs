//! From ready to the end: signals, successors, and what is under way.
//!
//! A successor takes the pods while this daemon still accepts (see [`crate::handover`]); then this
//! one lets go of its addresses, takes what still comes to its listeners, and drains. One that
//! dies on the way, or takes too long, has its pods taken back.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use fairlead_proxy::DataPlane;
use tokio::sync::mpsc::Receiver;
use tokio::task::AbortHandle;

use crate::configuration::Configuration;
use crate::enroller::{Enroller, Parts};
use crate::handover::{Met, Offer, PREPARE_PATIENCE, Server, TAKE_PATIENCE};
use crate::readiness::Readiness;
use crate::runtime::DataRuntime;
use crate::signals::{Asked, Signals};
use crate::supervise::Fatal;

/// How long connections may still come to the listeners of pods whose entries point to the
/// successor: handshakes that had begun before, with one repetition of a lost segment.
const SETTLE: Duration = Duration::from_secs(2);

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Somebody asked for it.
    Stopped,
    /// Another daemon serves.
    HandedOver,
}

/// The daemon while it serves.
pub(crate) struct Life<'a> {
    pub(crate) parts: Parts,
    pub(crate) configuration: &'a Configuration,
    pub(crate) readiness: Readiness,
    pub(crate) data: &'a DataRuntime,
    /// The tasks that hold the addresses.
    pub(crate) doors: Vec<AbortHandle>,
    /// Where successors come.
    pub(crate) server: Option<Server>,
}

/// What became of a successor.
enum Outcome {
    /// It serves, or begins as if alone, as its maps are others. The line ends when it does.
    HandedOver(Offer),
    /// It has gone; enrolment goes on.
    TakenBack(Enroller),
}

impl Life<'_> {
    /// Until somebody or something ends it.
    pub(crate) async fn live(
        mut self,
        mut signals: Signals,
        ends: &mut Receiver<Fatal>,
        mut enroller: Enroller,
    ) -> anyhow::Result<End> {
        let mut successor = None;
        let end = loop {
            tokio::select! {
                fatal = ends.recv() => return Err(failed(fatal)),
                offer = next(self.server.as_ref()) => match self.hand_over(offer, enroller).await? {
                    Outcome::HandedOver(line) => {
                        successor = Some(line);
                        break End::HandedOver;
                    }
                    Outcome::TakenBack(again) => enroller = again,
                },
                asked = signals.next() => match asked {
                    Asked::End => {
                        self.readiness.draining();
                        tokio::task::spawn_blocking(move || enroller.stop());
                        break End::Stopped;
                    }
                    Asked::Reread => {
                        tracing::info!("SIGHUP: reading the configuration again");
                        self.configuration.reread();
                    }
                },
            }
        };
        let linger = self.parts.settings.run.linger;
        let asked = self.drain(&mut signals, end).await;
        if let Some(successor) = successor
            && !asked
            && !linger.is_zero()
        {
            stay(&mut signals, successor, linger).await;
        }
        Ok(end)
    }

    /// Lets a successor have everything, if it comes to that.
    async fn hand_over(&mut self, mut offer: Offer, enroller: Enroller) -> anyhow::Result<Outcome> {
        if !offer.same_abi {
            tracing::info!("a daemon with other maps has come: letting go of everything");
            self.readiness.draining();
            freeze(enroller).await;
            self.vacate(&mut offer).await;
            return Ok(Outcome::HandedOver(offer));
        }
        tracing::info!("a successor has come");
        self.configuration.let_state_go().await;
        offer.say("beside").await;
        let mut serving = Some(enroller);
        if offer.hear(PREPARE_PATIENCE).await.as_deref() == Some("take") {
            if let Some(enroller) = serving.take() {
                freeze(enroller).await;
            }
            offer.say("frozen").await;
            if offer.hear(TAKE_PATIENCE).await.as_deref() == Some("taken") {
                self.readiness.draining();
                self.let_go();
                offer.say("yours").await;
                return Ok(Outcome::HandedOver(offer));
            }
        }
        tracing::error!("the successor did not come about: going on");
        offer.say("back").await;
        // Nothing of its may be waited for when its listeners are replaced.
        drop(offer);
        self.configuration.take_state_up().await;
        let enroller = match serving {
            Some(enroller) => enroller,
            None => {
                let mut enroller = self.parts.start(Met::Nobody, || {
                    tracing::info!("the pods of this node are taken back");
                })?;
                self.parts.serve_plugins(&mut enroller)?;
                enroller
            }
        };
        Ok(Outcome::TakenBack(enroller))
    }

    /// Lets go of addresses and pins.
    fn let_go(&mut self) {
        for door in self.doors.drain(..) {
            door.abort();
        }
        self.parts.capture.let_go();
    }

    /// Lets go of everything, for a daemon that begins as if alone.
    async fn vacate(&mut self, offer: &mut Offer) {
        self.configuration.let_state_go().await;
        self.let_go();
        offer.say("vacant").await;
    }

    /// What is under way gets its time. Whether somebody has asked for the end.
    async fn drain(mut self, signals: &mut Signals, end: End) -> bool {
        if let Some(assigned) = &self.parts.assigned {
            assigned.fall_silent();
        }
        let deadline = self.parts.settings.run.drain;
        let plane: Arc<DataPlane> = Arc::clone(&self.parts.plane);
        let settle = if end == End::HandedOver { SETTLE } else { Duration::ZERO };
        tracing::info!(?deadline, connections = plane.connections().len(), ?end, "draining");
        let mut drained = self.data.handle().spawn(async move {
            tokio::time::sleep(settle).await;
            plane.drain(deadline).await
        });
        // Whoever manages daemons ends this one when its successor is ready: it has begun already.
        let mut asked_before = end == End::Stopped;
        // A successor has its own; the one that comes while this one ends gets what is left.
        let server = if end == End::Stopped { self.server.take() } else { None };
        loop {
            tokio::select! {
                cut = &mut drained => {
                    match cut {
                        Ok(0) => tracing::info!("drained"),
                        Ok(cut) => {
                            tracing::warn!(cut, "the deadline has passed; connections were cut");
                        }
                        Err(error) => tracing::error!(%error, "draining failed"),
                    }
                    return asked_before;
                }
                asked = signals.next() => {
                    if asked == Asked::End && asked_before {
                        tracing::warn!("second signal: ending at once");
                        return true;
                    }
                    asked_before |= asked == Asked::End;
                }
                mut offer = next(server.as_ref()) => self.vacate(&mut offer).await,
            }
        }
    }
}

/// Stays with nothing to do. Whoever starts ended daemons again would have this one take everything
/// back, and may end it, before it knows of the successor, while it serves.
async fn stay(signals: &mut Signals, mut successor: Offer, linger: Duration) {
    tracing::info!(?linger, "waiting to be ended, or for the successor to end");
    let over = async { while signals.next().await != Asked::End {} };
    tokio::select! {
        () = over => {}
        said = successor.hear(linger) => {
            tracing::info!(?said, "the successor has ended, or it took too long: ending");
        }
    }
}

/// The next successor, if any can come.
async fn next(server: Option<&Server>) -> Offer {
    match server {
        Some(server) => server.next().await,
        None => pending().await,
    }
}

/// No change of anything in the kernel comes after this.
async fn freeze(enroller: Enroller) {
    let _ = tokio::task::spawn_blocking(move || enroller.stop()).await;
}

/// Why the daemon ends when a part of it has.
pub(crate) fn failed(fatal: Option<Fatal>) -> anyhow::Error {
    let fatal = fatal.map_or_else(String::new, |f| format!("{}: {}", f.who, f.how));
    anyhow::anyhow!(
        "an essential part of the daemon has ended ({fatal}); it ends too, and what the kernel \
         holds refuses connections until it is started again"
    )
}
