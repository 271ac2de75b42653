//! Supervision: a panic is logged wherever it happens, and when something ends that the daemon
//! cannot do without, the daemon ends too. What the kernel holds then refuses connections, which
//! is the safe side; whoever runs the daemon starts it again.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// What ended, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal {
    /// The task or thread.
    pub who: &'static str,
    /// How it ended.
    pub how: String,
}

/// Starts what the daemon cannot do without. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Supervisor {
    fatal: mpsc::Sender<Fatal>,
}

/// Told of at most this many ends; the first is enough.
const FATALS: usize = 8;

impl Supervisor {
    /// A supervisor, and the end of what it watches over.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Fatal>) {
        let (fatal, ends) = mpsc::channel(FATALS);
        (Self { fatal }, ends)
    }

    /// Runs a task that must not end, unless it is aborted.
    pub fn task(
        &self,
        runtime: &Handle,
        who: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let this = self.clone();
        self.task_that_may_end(runtime, who, async move {
            task.await;
            this.end(who, "it ended".to_owned());
        })
    }

    /// Runs a task that may end, but must not panic.
    pub fn task_that_may_end(
        &self,
        runtime: &Handle,
        who: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let this = self.clone();
        let task = runtime.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                this.end(who, words(panic.as_ref()));
            }
        });
        task.abort_handle()
    }

    /// Runs a thread that may end, but must not panic.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn thread(
        &self,
        who: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let this = self.clone();
        std::thread::Builder::new().name(who.into()).spawn(move || {
            if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(run)) {
                this.end(who, words(panic.as_ref()));
            }
        })
    }

    /// Runs something on a thread of somebody else; when it panics, that is told, and the panic
    /// goes on.
    pub fn watch<T>(&self, who: &'static str, run: impl FnOnce() -> T) -> T {
        match std::panic::catch_unwind(AssertUnwindSafe(run)) {
            Ok(value) => value,
            Err(panic) => {
                self.end(who, words(panic.as_ref()));
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// Says that something has ended that the daemon cannot do without.
    pub(crate) fn end(&self, who: &'static str, how: String) {
        tracing::error!(who, how, "an essential part of the daemon has ended");
        // Full: others have ended before. Closed: the daemon is ending already.
        let _ = self.fatal.try_send(Fatal { who, how });
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.unwrap_or_else(|| "no message".into()))
}

/// Has panics logged like everything else, with their place.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(
            thread = thread.name().unwrap_or("?"),
            place,
            message = words_of(info.payload()),
            %backtrace,
            "panic"
        );
    }));
}

fn words_of(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ends_of_the_essential_are_told() {
        let (supervisor, mut ends) = Supervisor::new();
        let runtime = Handle::current();
        supervisor.task(&runtime, "ends", async {});
        let end = ends.recv().await.unwrap();
        assert_eq!((end.who, end.how.as_str()), ("ends", "it ended"));
        supervisor.task(&runtime, "panics", async { panic!("of {}", 1) });
        assert_eq!(ends.recv().await.unwrap().how, "it panicked: of 1");
        supervisor.thread("thread", || panic!("static")).unwrap();
        assert_eq!(ends.recv().await.unwrap().how, "it panicked: static");
        let quiet = supervisor.thread("quiet", || {}).unwrap();
        quiet.join().unwrap();
        assert!(ends.try_recv().is_err(), "a thread may end");
        let (tell, told) = tokio::sync::oneshot::channel();
        supervisor.task_that_may_end(&runtime, "following", async { tell.send(()).unwrap() });
        told.await.unwrap();
        assert!(ends.try_recv().is_err(), "it may end");
        supervisor.task_that_may_end(&runtime, "following", async { panic!("of it") });
        let end = ends.recv().await.unwrap();
        assert_eq!((end.who, end.how.as_str()), ("following", "it panicked: of it"));
    }
}
