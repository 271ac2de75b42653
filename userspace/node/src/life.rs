//! From ready to the end: signals, successors, and what is under way.
//!
//! A successor takes the pods while this daemon still accepts (see [`crate::handover`]); then this
//! one lets go of its addresses, takes what still comes to its listeners, and drains. One that
//! dies on the way, or takes too long, has its pods taken back.

use std::sync::Arc;
use std::time::Duration;

use fairlead_proxy::DataPlane;
use tokio::task::{AbortHandle, JoinHandle};

use crate::calls::Calls;
use crate::configuration::Configuration;
use crate::enroller::{Enroller, Parts};
use crate::handover::{Met, Offer, Server};
use crate::readiness::Readiness;
use crate::runtime::DataRuntime;
use crate::signals::{Asked, Signals};
use crate::succession::{self, Estate, PATIENCE, Parting};

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
    /// Another daemon served when this one came, and goes on.
    CalledOff,
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
    /// None: no pod joins or leaves any more.
    pub(crate) enroller: Option<Enroller>,
    /// Ends with the last change that enrolment makes.
    pub(crate) freezing: Option<JoinHandle<()>>,
}

impl Estate for Life<'_> {
    async fn let_state_go(&mut self) {
        self.configuration.let_state_go().await;
    }

    async fn take_state_up(&mut self) {
        self.configuration.take_state_up().await;
    }

    async fn freeze(&mut self) {
        self.begin_to_freeze();
        if let Some(freezing) = &mut self.freezing {
            let _ = freezing.await;
            self.freezing = None;
        }
    }

    fn take_back(&mut self) -> anyhow::Result<()> {
        let mut enroller = self.parts.start(Met::Nobody, || {
            tracing::info!("the pods of this node are taken back");
        })?;
        self.parts.serve_plugins(&mut enroller)?;
        self.enroller = Some(enroller);
        Ok(())
    }

    fn let_go(&mut self) {
        self.readiness.draining();
        for door in self.doors.drain(..) {
            door.abort();
        }
        self.parts.capture.let_go();
    }
}

impl Life<'_> {
    /// Until somebody or something ends it.
    pub(crate) async fn live(mut self, mut calls: Calls<'_>) -> anyhow::Result<End> {
        let server = self.server.take();
        let parting = succession::serve(&mut self, server.as_ref(), PATIENCE, &mut calls).await?;
        self.server = server;
        let (end, settle, successor) = match parting {
            Parting::Asked => (End::Stopped, Duration::ZERO, None),
            Parting::Left => (End::Stopped, SETTLE, None),
            Parting::HandedOver(line) => (End::HandedOver, SETTLE, Some(line)),
        };
        if end == End::Stopped {
            self.readiness.draining();
            self.begin_to_freeze();
        }
        let linger = self.parts.settings.run.linger;
        let mut signals = calls.signals;
        let asked = self.drain(&mut signals, end, settle).await;
        if let Some(successor) = successor
            && !asked
            && !linger.is_zero()
        {
            stay(&mut signals, successor, linger).await;
        }
        Ok(end)
    }

    fn begin_to_freeze(&mut self) {
        if let Some(enroller) = self.enroller.take() {
            self.freezing = Some(tokio::task::spawn_blocking(move || enroller.stop()));
        }
    }

    /// What is under way gets its time. Whether somebody has asked for the end.
    async fn drain(mut self, signals: &mut Signals, end: End, settle: Duration) -> bool {
        if let Some(assigned) = &self.parts.assigned {
            assigned.fall_silent();
        }
        let deadline = self.parts.settings.run.drain;
        let plane: Arc<DataPlane> = Arc::clone(&self.parts.plane);
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
                mut offer = succession::next(server.as_ref()) => {
                    succession::vacate(&mut self, &mut offer).await;
                }
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
