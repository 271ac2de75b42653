//! Staying in the chain: the installer sleeps in inotify until something on the node changes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

use super::{Install, say};

/// Quiet time after an event: whoever writes a configuration writes it in several steps.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// After a failure, how long until everything is tried again without an event.
const RETRY: Duration = Duration::from_secs(5);
/// Where no event comes from (a network file system), how long until a look.
const LOOK: Duration = Duration::from_secs(60);

/// Installs, and keeps it so until SIGTERM or SIGINT.
pub(super) fn stay(install: &Install) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(follow(install))
}

/// Returns on SIGTERM or SIGINT.
pub(super) fn until_told_to_end() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = term.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

async fn follow(install: &Install) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let places = &install.places;
    std::fs::create_dir_all(&places.state_dir)
        .with_context(|| format!("making {}", places.state_dir.display()))?;
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    for dir in [
        &places.cni_conf_dir,
        &places.cni_bin_dir,
        &places.state_dir,
        // Kubernetes swaps the link `..data` when the token is renewed.
        &install.service_account,
    ] {
        add(&watch, dir).with_context(|| format!("watching {}", dir.display()))?;
    }
    let mut changes = listen(watch)?;
    let mut binary_written = false;
    loop {
        // Watches first, then a look: nothing falls between.
        let next = match install.put_all(&mut binary_written) {
            Ok(_) => LOOK,
            Err(error) => {
                say(&format!("{error:#}; trying again"));
                RETRY
            }
        };
        tokio::select! {
            _ = term.recv() => break,
            _ = interrupt.recv() => break,
            () = tokio::time::sleep(next) => {}
            Some(()) = changes.recv() => {
                tokio::time::sleep(DEBOUNCE).await;
                // One look serves all changes up to here.
                while changes.try_recv().is_ok() {}
            }
        }
    }
    say(
        "ending; the plugin stays on the node and in the chain (fairlead-cni uninstall removes it)",
    );
    Ok(())
}

fn add(watch: &OwnedFd, dir: &Path) -> io::Result<()> {
    let flags = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::ONLYDIR;
    inotify::add_watch(watch, dir, flags)?;
    Ok(())
}

/// Tells of events, on a thread that ends with the process.
fn listen(watch: OwnedFd) -> io::Result<Receiver<()>> {
    // One waiting message stands for all changes.
    let (tell, changes) = channel(1);
    std::thread::Builder::new().name("watch".into()).spawn(move || {
        loop {
            let mut fds = [PollFd::new(&watch, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => drain(&watch),
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return, // A look from time to time is left.
            }
            let _ = tell.try_send(());
        }
    })?;
    Ok(changes)
}

fn drain(watch: &OwnedFd) {
    let mut room = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(watch.as_fd(), &mut room);
    while reader.next().is_ok() {}
}
