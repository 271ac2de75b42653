//! Hot reload: a thread that sleeps in inotify, and reads again what somebody has saved.
//!
//! A save counts when the writer closes the file, or when a finished file (or a symlink, as
//! Kubernetes swaps the `..data` of a mounted ConfigMap) is put in its place; a file that
//! somebody is still writing is left alone, and what is read while its file changes is not used
//! (see also [`super::loader`]). Where inotify is blind (network file systems), a
//! slow look at all timestamps finds the change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::loader::Loader;
use super::store::{Change, Store};

/// Quiet time after an event before files are read: an editor's save is several events.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Longest delay of a read by events that do not end.
const MAX_DELAY: Duration = Duration::from_millis(50);
/// A file that was written to and not closed is read nevertheless after this long without a write.
const MAX_WRITING: Duration = Duration::from_secs(5);
/// Time between looks at all timestamps.
const RESCAN: Duration = Duration::from_secs(10);
/// Files of which it is remembered that somebody writes them.
const MAX_WRITERS: usize = 1024;

/// Watches the paths of a [`Loader`] until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<OwnedFd>,
    /// The thread is woken to look at everything, not to end.
    reread: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins to watch. `on_change` is called on the watcher's thread with the state and what
    /// changed in it: when objects changed, and also when only the set of problems did (then
    /// [`Change::is_empty`]).
    ///
    /// # Errors
    /// The kernel gives no inotify instance, eventfd or thread.
    pub fn spawn(
        loader: Loader,
        store: Store,
        on_change: impl FnMut(&Store, &Change) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let reread = Arc::new(AtomicBool::new(false));
        let mut watch = Watch {
            inotify,
            stop: Arc::clone(&stop),
            reread: Arc::clone(&reread),
            loader,
            store,
            on_change: Box::new(on_change),
            watched: HashMap::new(),
            by_id: HashMap::new(),
            writing: HashMap::new(),
            blind: false,
        };
        // Watches first, then a look: nothing falls between.
        watch.look(&HashSet::new());
        let thread =
            thread::Builder::new().name("config-watch".to_owned()).spawn(move || watch.run())?;
        Ok(Self { stop, reread, thread: Some(thread) })
    }

    /// Has every file read again now, whatever its timestamps say (SIGHUP). Does not wait.
    pub fn reread(&self) {
        self.reread.store(true, Ordering::Release);
        // As in `drop`: it fails only if the thread is awake.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.reread.store(false, Ordering::Release);
        // An eventfd write of 1 fails only if its counter is full, and then the thread is awake.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the callback has been printed by its own thread.
            let _ = thread.join();
        }
    }
}

type OnChange = Box<dyn FnMut(&Store, &Change) + Send>;

struct Watch {
    inotify: OwnedFd,
    stop: Arc<OwnedFd>,
    reread: Arc<AtomicBool>,
    loader: Loader,
    store: Store,
    on_change: OnChange,
    watched: HashMap<PathBuf, i32>,
    /// The directories of a watch: several names, where links lead to one.
    by_id: HashMap<i32, BTreeSet<PathBuf>>,
    /// Files that have been written to since they were last closed, and when.
    writing: HashMap<PathBuf, Instant>,
    /// It has been told that something cannot be watched.
    blind: bool,
}

/// What a batch of events asks for.
#[derive(Default)]
struct Events {
    touched: HashSet<PathBuf>,
    /// Something happened after which files have to be looked at.
    relevant: bool,
}

enum Wake {
    Stop,
    Events,
    Timeout,
}

impl Watch {
    fn run(mut self) {
        let mut next_rescan = Instant::now() + RESCAN;
        let mut events = Events::default();
        loop {
            let overdue = self.writing.values().map(|since| *since + MAX_WRITING);
            let unsettled = self.loader.unsettled_until(|file| self.writing.contains_key(file));
            let deadline = overdue.chain(unsettled).min();
            let deadline = deadline.map_or(next_rescan, |first| first.min(next_rescan));
            // What came while files were read is dealt with at once.
            let wake = if events.relevant { Wake::Events } else { self.wait(deadline) };
            match wake {
                Wake::Stop => {
                    if !self.take_reread() {
                        return;
                    }
                    events.touched.extend(self.loader.files().cloned());
                }
                Wake::Timeout => {}
                Wake::Events => {
                    self.read_events(&mut events);
                    if !events.relevant {
                        continue;
                    }
                    let latest = Instant::now() + MAX_DELAY;
                    loop {
                        let quiet = Instant::now() + DEBOUNCE;
                        match self.wait(quiet.min(latest)) {
                            Wake::Stop if self.take_reread() => {
                                events.touched.extend(self.loader.files().cloned());
                            }
                            Wake::Stop => return,
                            Wake::Events if Instant::now() < latest => {
                                self.read_events(&mut events)
                            }
                            Wake::Events | Wake::Timeout => break,
                        }
                    }
                }
            }
            let now = Instant::now();
            self.writing.retain(|file, since| {
                let writing = now < *since + MAX_WRITING;
                if !writing {
                    events.touched.insert(file.clone());
                }
                writing
            });
            events = self.look(&std::mem::take(&mut events).touched);
            next_rescan = Instant::now() + RESCAN;
        }
    }

    /// Whether it was woken to read everything again, and not to end.
    fn take_reread(&self) -> bool {
        if !self.reread.swap(false, Ordering::AcqRel) {
            return false;
        }
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.stop, &mut count);
        true
    }

    /// Reads what has changed and tells it; returns what happened meanwhile.
    fn look(&mut self, touched: &HashSet<PathBuf>) -> Events {
        // Directories that appear are watched only once they have been seen; what was put into
        // them in between is found by looking once more.
        const MAX_LOOKS: usize = 4;
        let mut meanwhile = Events::default();
        for _ in 0..MAX_LOOKS {
            let busy = self.writing.keys().cloned().collect();
            let mut load = self.loader.scan_except(&busy, touched);
            let more = self.watch_directories();
            // What was read while somebody wrote it may be any part of it.
            self.read_events(&mut meanwhile);
            let Self { loader, writing, .. } = self;
            load.files.retain(|(file, _)| {
                let path = file.as_path();
                let whole = !writing.contains_key(path) && !meanwhile.touched.contains(path);
                if !whole {
                    loader.forget(file);
                }
                whole
            });
            let problems_changed = load.unlisted != self.store.unlisted();
            if !load.is_empty() || problems_changed {
                let change = self.store.apply(load);
                (self.on_change)(&self.store, &change);
            }
            if !more {
                break;
            }
        }
        meanwhile
    }

    /// Brings the watches in line with the loader's directories; whether there are new ones.
    fn watch_directories(&mut self) -> bool {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            // The kernel takes the flags of a watch that is there away before it sets the new ones,
            // and what happens in between is not told; with this it leaves them as they are.
            | WatchFlags::MASK_ADD;
        let wanted = self.loader.directories().clone();
        let mut new = false;
        for directory in &wanted {
            // Always asked anew: behind the same name there may be another directory now. The
            // kernel gives the same number for the same directory.
            let id = match inotify::add_watch(&self.inotify, directory, flags) {
                Ok(id) => id,
                // Gone again, or out of watches: the slow look remains.
                Err(error) => {
                    if error != rustix::io::Errno::NOENT
                        && !std::mem::replace(&mut self.blind, true)
                    {
                        let (path, every) = (directory.display(), RESCAN.as_secs());
                        tracing::warn!("cannot watch {path} ({error}): looking every {every} s");
                    }
                    continue;
                }
            };
            if self.watched.insert(directory.clone(), id) != Some(id) {
                new = true;
            }
            self.by_id.entry(id).or_default().insert(directory.clone());
        }
        let used: HashSet<i32> =
            wanted.iter().filter_map(|d| self.watched.get(d)).copied().collect();
        self.watched.retain(|directory, _| wanted.contains(directory));
        let watched = &self.watched;
        self.by_id.retain(|id, directories| {
            directories.retain(|directory| watched.get(directory) == Some(id));
            let keep = used.contains(id);
            if !keep {
                // Fails if the directory is gone, and its watch with it.
                let _ = inotify::remove_watch(&self.inotify, *id);
            }
            keep
        });
        new
    }

    fn wait(&self, deadline: Instant) -> Wake {
        let mut fds = [
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.inotify.as_fd(), PollFlags::IN),
        ];
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Wake::Timeout,
            Ok(_) if !fds[0].revents().is_empty() => Wake::Stop,
            Ok(_) => Wake::Events,
            Err(rustix::io::Errno::INTR) => Wake::Events,
            Err(_) => {
                // Not expected; must not spin.
                thread::sleep(DEBOUNCE);
                Wake::Timeout
            }
        }
    }

    fn read_events(&mut self, events: &mut Events) {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::IGNORED) {
                // The directory has gone; its number may come again for another one.
                for directory in self.by_id.remove(&event.wd()).into_iter().flatten() {
                    self.watched.remove(&directory);
                }
                events.relevant = true;
                continue;
            }
            let directories = self.by_id.get(&event.wd());
            let Some((name, directories)) = event.file_name().zip(directories) else {
                // Overflow of the queue, or the directory itself.
                events.relevant = true;
                continue;
            };
            let name = OsStr::from_bytes(name.to_bytes());
            for path in directories.iter().map(|directory| directory.join(name)) {
                if flags.contains(ReadFlags::MODIFY) {
                    if self.writing.len() < MAX_WRITERS || self.writing.contains_key(&path) {
                        self.writing.insert(path, Instant::now());
                    }
                } else {
                    events.relevant = true;
                    self.writing.remove(&path);
                    events.touched.insert(path);
                }
            }
        }
    }
}
