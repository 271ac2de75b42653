//! Configuration from a controller: one stream of objects, kept on disk, compiled by the same
//! code as a directory of YAML.
//!
//! `session` speaks the protocol (`fairlead.config.v1`), `objects` makes files of the store of its
//! objects, `core` takes Updates in, `state` keeps them on disk, `lookup` asks about addresses
//! that nobody knows, `verdicts` knows what is refused. All of it runs on a thread of its own: compiling a large change holds up
//! neither traffic nor the admin API.
//!
//! When the stream ends, everything stays as it is; streams are tried again with a growing pause
//! that differs from node to node, at another address of the service each time.

mod core;
mod lookup;
mod objects;
mod session;
mod state;
mod status;
mod verdicts;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc, watch};

use super::follower::Follower;
use crate::cni::Assigned;
use crate::random::jittered;
use crate::rpc::Service;
use crate::settings::ControllerSettings;
use crate::supervise::Supervisor;
use core::Core;
use lookup::LOOKUPS_WAITING;
pub use lookup::Lookups;
use session::{Ended, Links};
pub use status::{Facts, Status};

#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod fuzz;

/// First pause after a stream that failed; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(20);

/// The roots that the mesh trusts, as the controller last said.
pub type Bundle = Option<Arc<[CertificateDer<'static>]>>;

/// What follows a controller. Dropping it ends the stream.
pub struct Controller {
    status: Status,
    bundle: watch::Receiver<Bundle>,
    lookups: Arc<Lookups>,
    reconnect: Arc<Notify>,
    stop: watch::Sender<bool>,
    hold: Option<state::Hold>,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Takes in what an earlier daemon kept, and begins to follow.
    ///
    /// # Errors
    /// The state directory cannot be used, or the kernel gives no thread.
    pub(super) fn start(
        settings: &ControllerSettings,
        node: &str,
        follower: Follower,
        assigned: Option<Arc<Assigned>>,
        supervisor: &Supervisor,
    ) -> anyhow::Result<Self> {
        let service = Service::new(settings.service.clone());
        let status = Status::new(service.name());
        let (tell_bundle, bundle) = watch::channel(None);
        let (core, keeper) = Core::open(settings, node, follower, status.clone(), tell_bundle)
            .with_context(|| {
                format!(
                    "the state directory {} cannot be used; name another with --state-dir",
                    settings.state_dir.display()
                )
            })?;
        let hold = Some(keeper.hold());
        let (ask, asked) = mpsc::channel(LOOKUPS_WAITING);
        let lookups = Arc::new(Lookups::new(ask, status.clone(), settings.unanswered));
        let reconnect = Arc::new(Notify::new());
        let (stop, stopped) = watch::channel(false);
        let links = Links {
            service,
            lookups: Arc::clone(&lookups),
            asked,
            assigned: assigned.unwrap_or_default(),
            reconnect: Arc::clone(&reconnect),
            stopped,
        };
        // Its own: what the stream waits for is nobody else's.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime of the controller's stream")?;
        let thread = supervisor
            .thread("controller", move || runtime.block_on(follow(core, keeper, links)))
            .context("starting the thread of the controller's stream")?;
        Ok(Self { status, bundle, lookups, reconnect, stop, hold, thread: Some(thread) })
    }

    /// How the node stands with the controller.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The roots that the mesh trusts; changes are told.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Bundle> {
        self.bundle.clone()
    }

    /// Asks the controller about addresses.
    #[must_use]
    pub fn lookups(&self) -> Arc<Lookups> {
        Arc::clone(&self.lookups)
    }

    /// Leaves the state directory to another daemon; the stream goes on.
    pub async fn let_state_go(&self) {
        if let Some(hold) = &self.hold {
            hold.let_go().await;
        }
    }

    /// Keeps state again, and has everything sent for it.
    pub async fn take_state_up(&self) {
        if let Some(hold) = &self.hold {
            hold.take_up().await;
            self.reconnect();
        }
    }

    /// Opens the stream anew.
    pub fn reconnect(&self) {
        self.reconnect.notify_one();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // The thread that writes ends when nobody has anything for it.
        self.hold = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been told by the supervisor.
            let _ = thread.join();
        }
    }
}

/// One stream after the other, until the daemon ends.
async fn follow(mut core: Core, keeper: state::Keeper, mut links: Links) {
    let mut pause = MIN_PAUSE;
    loop {
        let ended = session::run(&mut core, &keeper, &mut links).await;
        links.lookups.unanswered();
        keeper.rollback();
        let Ended { reason, synced } = match ended {
            Ok(()) => return,
            Err(ended) => ended,
        };
        if synced {
            pause = MIN_PAUSE;
        }
        let wait = jittered(pause);
        tracing::warn!(
            reason,
            retry_in = ?wait,
            "no stream from the controller; going on with what is here"
        );
        core.status.lost(reason);
        pause = (pause * 2).min(MAX_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = links.reconnect.notified() => {}
            _ = links.stopped.changed() => return,
        }
    }
}
