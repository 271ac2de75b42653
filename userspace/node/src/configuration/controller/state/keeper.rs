//! The thread that writes the state file, so that a slow disk holds up nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use fairlead_wire::config::{Key, Resource};
use tokio::sync::oneshot;

use super::journal::Journal;

/// Batches that wait for the disk; each is one Update (4 MiB at most).
const QUEUE: usize = 16;
/// How long writes gather before the disk is asked to have them for good.
const SYNC_AFTER: Duration = Duration::from_millis(500);
/// How often a directory is asked for that another daemon still has.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// One change.
pub(crate) enum Entry {
    /// An object.
    Upsert(Arc<PathBuf>, Resource),
    /// An object has gone.
    Remove(Arc<PathBuf>, Key),
    /// The trust bundle, PEM.
    Trust(Vec<u8>),
}

enum Order {
    Write {
        entries: Vec<Entry>,
        commit: bool,
    },
    Rollback,
    Clear,
    Touch(SystemTime),
    LetGo(oneshot::Sender<()>),
    TakeUp(oneshot::Sender<()>),
    #[cfg(test)]
    Panic,
}

/// Hands changes to the thread. Dropping it writes what is left and ends the thread.
pub(crate) struct Keeper {
    orders: Option<SyncSender<Order>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The queue was full when something was to be taken back: that goes before everything else.
    takes_back: AtomicBool,
}

#[derive(Default)]
struct Shared {
    /// Something is missing on disk, and nothing more is added.
    lost: AtomicBool,
    /// The directory is another daemon's.
    gone: AtomicBool,
    bytes: AtomicU64,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub(crate) fn start(journal: Journal) -> std::io::Result<Self> {
        let (orders, queue) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        shared.bytes.store(journal.contents().end, Ordering::Relaxed);
        let told = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("state".into()).spawn(move || {
            Writer::new(journal, told).serve(&queue);
        })?;
        let takes_back = AtomicBool::new(false);
        Ok(Self { orders: Some(orders), shared, thread: Some(thread), takes_back })
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Whether something is missing on disk. What is there stays as it was at its last commit, and
    /// gets older; it begins anew with [`Keeper::clear`] and everything after it.
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.lost.load(Ordering::Acquire) && !self.shared.gone.load(Ordering::Acquire)
    }

    /// By which the directory is left to another daemon. It has to be dropped before this.
    pub(crate) fn hold(&self) -> Hold {
        Hold(self.orders.clone())
    }

    fn order(&self, order: Order) -> Result<(), Order> {
        let Some(orders) = &self.orders else { return Ok(()) };
        if self.takes_back.load(Ordering::Relaxed) {
            if orders.try_send(Order::Rollback).is_err() {
                return Err(order);
            }
            self.takes_back.store(false, Ordering::Relaxed);
        }
        orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(order) | TrySendError::Disconnected(order) => order,
        })
    }

    /// Writes changes; with `commit` they count, and those before them since the last commit.
    /// Waits for a busy disk up to `patience`.
    pub(crate) async fn write(&self, entries: Vec<Entry>, commit: bool, patience: Duration) {
        let until = Instant::now() + patience;
        let mut order = Order::Write { entries, commit };
        while !self.is_lost() {
            order = match self.order(order) {
                Ok(()) => return,
                Err(order) => order,
            };
            if Instant::now() > until {
                tracing::warn!(
                    "the disk is too slow for what the controller sends; the state is not kept \
                     until everything is sent again"
                );
                self.shared.lost.store(true, Ordering::Release);
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Takes back what is not committed: at once, or before the next order if the disk is busy.
    pub(crate) fn rollback(&self) {
        if !self.is_lost() && self.order(Order::Rollback).is_err() {
            self.takes_back.store(true, Ordering::Relaxed);
        }
    }

    /// Has the thread panic.
    #[cfg(test)]
    pub(crate) fn panic(&self) -> bool {
        self.order(Order::Panic).is_ok()
    }

    /// Forgets everything; what is written from now on counts again. `false`: the disk is busy.
    pub(crate) fn clear(&self) -> bool {
        let taken = self.order(Order::Clear).is_ok();
        if taken {
            self.shared.lost.store(false, Ordering::Release);
        }
        taken
    }

    /// Says that what is committed was current then. `false`: the disk is busy; one lost call does
    /// not matter.
    pub(crate) fn touch(&self, at: SystemTime) -> bool {
        !self.is_lost() && self.order(Order::Touch(at)).is_ok()
    }
}

/// Leaves the state directory to another daemon, and takes it up again.
#[derive(Clone)]
pub(crate) struct Hold(Option<SyncSender<Order>>);

impl Hold {
    /// Nothing is written any more, and the directory is free, when this is done.
    pub(crate) async fn let_go(&self) {
        self.order(Order::LetGo).await;
    }

    /// Writes again as soon as the directory is free; everything has to be sent once more.
    pub(crate) async fn take_up(&self) {
        self.order(Order::TakeUp).await;
    }

    async fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) {
        let Some(orders) = self.0.clone() else { return };
        let (done, told) = oneshot::channel();
        let order = order(done);
        // The queue may be full.
        let sent = tokio::task::spawn_blocking(move || orders.send(order).is_ok()).await;
        if sent.unwrap_or(false) {
            let _ = told.await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    journal: Journal,
    shared: Arc<Shared>,
    /// Nothing is written before everything is.
    lost: bool,
    /// Nothing is written.
    gone: bool,
    /// The directory is to be taken up, and another daemon has it.
    wanted: bool,
    /// Since when something waits for [`Journal::sync`].
    unsynced: Option<Instant>,
}

impl Writer {
    fn new(journal: Journal, shared: Arc<Shared>) -> Self {
        Self { journal, shared, lost: false, gone: false, wanted: false, unsynced: None }
    }

    /// Until nobody has anything for it. A panic is one of ours, and costs what was not committed.
    fn serve(mut self, queue: &Receiver<Order>) {
        while catch_unwind(AssertUnwindSafe(|| self.run(queue))).is_err() {
            if !self.gone {
                self.lose(&std::io::Error::other("what writes it has panicked"));
            }
        }
    }

    fn run(&mut self, queue: &Receiver<Order>) {
        let mut asked = Instant::now();
        loop {
            // What is wanted is gone, and nothing of it waits for the disk.
            let patience = match self.unsynced {
                _ if self.wanted => Some(ASK_AGAIN.saturating_sub(asked.elapsed())),
                Some(since) => Some(SYNC_AFTER.saturating_sub(since.elapsed())),
                None => None,
            };
            let order = match patience {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(patience) => queue.recv_timeout(patience),
            };
            // Updates come all the time, and must not put it off.
            if self.wanted && asked.elapsed() >= ASK_AGAIN {
                asked = Instant::now();
                self.take_up();
            }
            match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => self.sync(),
                Err(RecvTimeoutError::Disconnected) => {
                    // A daemon that ends in order leaves what it knew.
                    if !self.gone {
                        self.tell(|journal| journal.rollback());
                        self.sync();
                    }
                    return;
                }
            }
        }
    }

    fn sync(&mut self) {
        if self.unsynced.take().is_some()
            && let Err(error) = self.journal.sync()
        {
            self.lose(&error);
        }
    }

    fn obey(&mut self, order: Order) {
        let about_the_directory = matches!(order, Order::LetGo(_) | Order::TakeUp(_));
        if !about_the_directory && (self.gone || (self.lost && !matches!(order, Order::Clear))) {
            return;
        }
        match order {
            Order::Write { entries, commit } => {
                self.unsynced.get_or_insert_with(Instant::now);
                self.tell(|journal| {
                    for entry in entries {
                        match entry {
                            Entry::Upsert(path, resource) => journal.upsert(&path, &resource)?,
                            Entry::Remove(path, key) => journal.remove(&path, &key)?,
                            Entry::Trust(pem) => journal.trust(pem)?,
                        }
                    }
                    if commit { journal.commit() } else { Ok(()) }
                });
            }
            Order::Rollback => self.tell(Journal::rollback),
            Order::Clear => {
                self.lost = false;
                self.tell(Journal::clear);
            }
            Order::Touch(at) => {
                let _ = self.journal.touch(at);
            }
            #[cfg(test)]
            Order::Panic => panic!("as a test wants it"),
            Order::LetGo(done) => {
                self.wanted = false;
                if !self.gone {
                    self.gone = true;
                    self.unsynced = None;
                    self.shared.gone.store(true, Ordering::Release);
                    if let Err(error) = self.journal.let_go() {
                        tracing::warn!(%error, "the last of the state may not be on disk");
                    }
                }
                let _ = done.send(());
            }
            Order::TakeUp(done) => {
                if self.gone {
                    self.take_up();
                }
                let _ = done.send(());
            }
        }
        self.shared.bytes.store(self.journal.contents().end, Ordering::Relaxed);
        if self.unsynced.is_some_and(|since| since.elapsed() >= SYNC_AFTER) {
            self.sync();
        }
    }

    /// Takes the directory up, or goes on wanting it.
    fn take_up(&mut self) {
        match self.journal.take_up() {
            Ok(()) => {
                self.gone = false;
                self.wanted = false;
                // What the other wrote is not known: everything has to come once more.
                self.lost = true;
                self.shared.lost.store(true, Ordering::Release);
                self.shared.gone.store(false, Ordering::Release);
            }
            Err(error) => {
                if !self.wanted {
                    tracing::warn!(%error, "the state is not kept until the directory is free");
                }
                self.wanted = true;
            }
        }
    }

    fn tell(&mut self, act: impl FnOnce(&mut Journal) -> std::io::Result<()>) {
        if let Err(error) = act(&mut self.journal) {
            self.lose(&error);
        }
    }

    /// What comes next would leave a gap.
    fn lose(&mut self, error: &std::io::Error) {
        tracing::error!(
            %error,
            "the state cannot be written; what is on disk gets older until everything is sent again"
        );
        self.lost = true;
        self.shared.lost.store(true, Ordering::Release);
        if let Err(error) = self.journal.rollback() {
            tracing::error!(%error, "nor can it be set back to what was complete");
        }
    }
}
