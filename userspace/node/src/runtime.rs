//! The runtime that carries traffic, apart from everything else: loading a large configuration or
//! answering a scrape takes nothing from it but CPU.

use anyhow::Context as _;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use crate::supervise::Supervisor;

/// Threads for what blocks; the data plane itself has nothing that does.
const BLOCKING_THREADS: usize = 4;

/// A runtime of its own threads.
pub struct DataRuntime {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: std::thread::JoinHandle<()>,
}

impl DataRuntime {
    /// Starts `workers` threads. One worker runs everything on a single thread, without the
    /// synchronization that several need: the fastest form until a core is full.
    ///
    /// # Errors
    /// The kernel gives no threads or no epoll instance.
    pub fn start(workers: usize, supervisor: &Supervisor) -> anyhow::Result<Self> {
        let runtime: Runtime = if workers <= 1 {
            Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(BLOCKING_THREADS)
                .build()
        } else {
            Builder::new_multi_thread()
                .worker_threads(workers)
                .max_blocking_threads(BLOCKING_THREADS)
                .thread_name("data")
                .enable_all()
                .build()
        }
        .context("starting the data runtime")?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let thread = supervisor
            .thread("data", move || {
                // A sender that is dropped ends it as well.
                let _ = runtime.block_on(ended);
                runtime.shutdown_background();
            })
            .context("starting the data thread")?;
        Ok(Self { handle, end: Some(end), thread })
    }

    /// The way into it.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends it with everything that runs on it.
    pub fn stop(mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
        }
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_run_tasks_and_end() {
        let (supervisor, _ends) = Supervisor::new();
        for workers in [1, 2] {
            let data = DataRuntime::start(workers, &supervisor).unwrap();
            let (tell, told) = std::sync::mpsc::channel();
            data.handle().spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                tell.send(std::thread::current().name().map(str::to_owned)).unwrap();
            });
            let name = told.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
            assert_eq!(name.as_deref(), Some("data"));
            data.stop();
        }
    }
}
