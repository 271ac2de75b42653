//! A daemon that serves, and those that come to take over from it: the predecessor's side of
//! [`crate::handover`].
//!
//! At every moment at most one of the two changes what the kernel holds of pods. While the successor
//! may, that is so until its end of the line is closed, whatever it was told: what it had begun by
//! then would otherwise take a pod away from a daemon that believes to have it.

use std::future::pending;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::calls::{Asking, Calls};
use crate::handover::{Offer, PREPARE_PATIENCE, Server, TAKE_PATIENCE};

/// How long the enrolment of a daemon that fails may take to stop, before its successor goes on.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);

/// How long successors are waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until one has configuration and certificates.
    pub(crate) prepare: Duration,
    /// Until it has all pods.
    pub(crate) take: Duration,
    /// Until it has stopped when it was called off: it looks before each pod. Then pods are taken
    /// back beside it, and once more when it has stopped.
    pub(crate) stop: Duration,
}

/// As it is outside of tests.
pub(crate) const PATIENCE: Patience =
    Patience { prepare: PREPARE_PATIENCE, take: TAKE_PATIENCE, stop: Duration::from_secs(10) };

/// What a daemon has, and hands over.
pub(crate) trait Estate {
    /// Leaves what is kept on disk to another.
    async fn let_state_go(&mut self);
    /// The reverse.
    async fn take_state_up(&mut self);
    /// No change of anything in the kernel comes after this. May be given up and begun again.
    async fn freeze(&mut self);
    /// The reverse: enrols all pods anew.
    ///
    /// # Errors
    /// It cannot be begun.
    fn take_back(&mut self) -> anyhow::Result<()>;
    /// Lets go of addresses and pins; the daemon is not ready any more.
    fn let_go(&mut self);
}

/// What became of a successor.
enum Outcome {
    /// It serves, or begins as if alone, as its maps are others.
    HandedOver,
    /// It was called off, and this daemon goes on.
    CalledOff,
    /// The same, but it has not stopped yet.
    Late,
    /// Somebody has asked for this daemon's end: the successor goes on as after its death.
    Left,
}

/// How a daemon comes to serve no more.
pub(crate) enum Parting {
    /// Somebody has asked for it.
    Asked,
    /// The same, and a successor that had come is about to serve.
    Left,
    /// A successor has everything. The line ends when it does.
    HandedOver(Offer),
}

/// Serves until a successor has everything, or somebody asks for the end.
///
/// # Errors
/// Something essential has ended.
pub(crate) async fn serve(
    estate: &mut impl Estate,
    server: Option<&Server>,
    patience: Patience,
    calls: &mut Calls<'_, impl Asking>,
) -> anyhow::Result<Parting> {
    // Those that were called off, and live.
    let mut late = FuturesUnordered::new();
    loop {
        let came = async {
            tokio::select! {
                offer = next(server) => Some(offer),
                Some(()) = late.next() => None,
            }
        };
        let Some(came) = calls.during(came).await? else { return Ok(Parting::Asked) };
        let Some(mut offer) = came else {
            tracing::warn!("a successor that was called off has stopped late");
            estate.freeze().await;
            estate.take_back()?;
            continue;
        };
        match hand_over(estate, &mut offer, patience, calls).await {
            Ok(Outcome::HandedOver) => return Ok(Parting::HandedOver(offer)),
            Ok(Outcome::Left) => return Ok(Parting::Left),
            Ok(Outcome::CalledOff) => {}
            Ok(Outcome::Late) => late.push(async move { offer.closed().await }),
            Err(error) => {
                // With the end of the line the successor goes on.
                let _ = tokio::time::timeout(FREEZE_PATIENCE, estate.freeze()).await;
                return Err(error);
            }
        }
    }
}

/// The next successor, if any can come.
pub(crate) async fn next(server: Option<&Server>) -> Offer {
    match server {
        Some(server) => server.next().await,
        None => pending().await,
    }
}

/// Lets a successor have everything, if it comes to that.
async fn hand_over(
    estate: &mut impl Estate,
    offer: &mut Offer,
    patience: Patience,
    calls: &mut Calls<'_, impl Asking>,
) -> anyhow::Result<Outcome> {
    if !offer.same_abi {
        tracing::info!("a daemon with other maps has come: letting go of everything");
        let asked = calls.during(estate.freeze()).await?.is_none();
        vacate(estate, offer).await;
        return Ok(if asked { Outcome::Left } else { Outcome::HandedOver });
    }
    tracing::info!("a successor has come");
    estate.let_state_go().await;
    offer.say("beside").await;
    let Some(said) = calls.during(offer.hear(patience.prepare)).await? else {
        return Ok(leave(estate).await);
    };
    let frozen = said.as_deref() == Some("take");
    if frozen {
        if calls.during(estate.freeze()).await?.is_none() {
            return Ok(leave(estate).await);
        }
        offer.say("frozen").await;
        let Some(said) = calls.during(offer.hear(patience.take)).await? else {
            return Ok(leave(estate).await);
        };
        if said.as_deref() == Some("taken") {
            estate.let_go();
            offer.say("yours").await;
            return Ok(Outcome::HandedOver);
        }
    }
    tracing::error!("the successor did not come about: going on");
    offer.say("back").await;
    if !frozen {
        // It has changed nothing, and will not.
        estate.take_state_up().await;
        return Ok(Outcome::CalledOff);
    }
    // It may be about to take a pod.
    let stopped = tokio::time::timeout(patience.stop, offer.closed());
    let Some(stopped) = calls.during(stopped).await? else { return Ok(leave(estate).await) };
    estate.take_state_up().await;
    estate.take_back()?;
    if stopped.is_err() {
        tracing::error!("the successor was called off, and has not stopped yet");
        return Ok(Outcome::Late);
    }
    Ok(Outcome::CalledOff)
}

/// Leaves everything to the successor, which learns of it by the end of the line.
async fn leave(estate: &mut impl Estate) -> Outcome {
    tracing::info!("asked to end: leaving everything to the successor");
    estate.freeze().await;
    estate.let_go();
    Outcome::Left
}

/// Lets go of everything, for a daemon that begins as if alone.
pub(crate) async fn vacate(estate: &mut impl Estate, offer: &mut Offer) {
    estate.freeze().await;
    estate.let_state_go().await;
    estate.let_go();
    offer.say("vacant").await;
}

#[cfg(test)]
mod tests;
