//! Reads what has changed below a set of paths, and only that.
//!
//! A file that is saved in place is empty, then half written, before it is whole; one that is
//! removed and made again is not there in between. So nothing counts that was different a moment
//! ago: such a file stays as it was, and is looked at again ([`Loader::unsettled_until`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::document::{Format, Parsed, parse};
use super::files::{self, Fingerprint, SETTLE};
use super::problem::Problem;

/// Largest file.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Threads that read and parse when there is much to do.
const THREADS: usize = 2;
/// Longest time that [`Loader::scan`] waits for files that somebody is writing.
const MAX_PATIENCE: Duration = Duration::from_secs(1);
/// Fewer bytes than this are not worth a second thread.
const PARALLEL_BYTES: u64 = 1 << 20;

/// What one look at the paths found.
#[derive(Debug, Default)]
pub struct Load {
    /// Files that are new or changed.
    pub files: Vec<(Arc<PathBuf>, Parsed)>,
    /// Files that have gone.
    pub gone: Vec<Arc<PathBuf>>,
    /// Paths that cannot be listed now; files known below them count as unchanged.
    pub unlisted: Vec<Problem>,
}

impl Load {
    /// Whether there is nothing to apply. What could not be listed may be told all the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.gone.is_empty()
    }

    /// Takes in what a later look found.
    fn extend(&mut self, later: Self) {
        let Self { files, gone, unlisted } = later;
        let found: HashSet<_> = files.iter().map(|(file, _)| Arc::clone(file)).collect();
        self.gone.retain(|file| !found.contains(file));
        self.files.retain(|(file, _)| !found.contains(file) && !gone.contains(file));
        self.files.extend(files);
        self.files.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.gone.extend(gone);
        self.unlisted = unlisted;
    }
}

/// Remembers the files below its paths.
#[derive(Debug)]
pub struct Loader {
    paths: Vec<PathBuf>,
    known: BTreeMap<Arc<PathBuf>, Known>,
    directories: BTreeSet<PathBuf>,
    /// Files that are changing.
    unsettled: HashMap<Arc<PathBuf>, Unsettled>,
    /// Those that [`Loader::scan`] could not wait for, and that have never been read.
    unread: BTreeSet<Arc<PathBuf>>,
}

/// A file that is not yet what it is going to be.
#[derive(Clone, Copy, Debug)]
struct Unsettled {
    /// What it looked like; `None`: it is not there.
    seen: Option<Fingerprint>,
    /// Since when it has looked like that.
    since: Instant,
}

impl Unsettled {
    fn is(&self, now: Option<&Fingerprint>) -> bool {
        match (&self.seen, now) {
            (Some(seen), Some(now)) => seen.is(now),
            (None, None) => true,
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    fingerprint: Fingerprint,
    /// Of the content, or of the reason why it could not be read.
    hash: u64,
    /// It could not be read.
    failed: bool,
    /// What was read has not been used: it has to be read again.
    stale: bool,
}

impl Loader {
    /// A loader of the files and directories `paths`; nothing is read yet.
    #[must_use]
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            paths: paths.into_iter().map(Into::into).collect(),
            known: BTreeMap::new(),
            directories: BTreeSet::new(),
            unsettled: HashMap::new(),
            unread: BTreeSet::new(),
        }
    }

    /// Looks at all paths, and reads the files that are new or changed. Waits, within bounds, for
    /// those that somebody is writing.
    pub fn scan(&mut self) -> Load {
        let nobody = HashSet::new();
        let mut load = self.scan_except(&nobody, &nobody);
        // Patience is for those who write, not for what reading takes on a slow machine: there is a
        // second look at least.
        let (begin, mut looks) = (Instant::now(), 1);
        while let Some(until) = self.unsettled_until(|_| false)
            && (looks == 1 || begin.elapsed() < MAX_PATIENCE)
        {
            thread::sleep(until.saturating_duration_since(Instant::now()));
            load.extend(self.scan_except(&nobody, &nobody));
            looks += 1;
        }
        let never_read = self.unsettled.keys().filter(|file| !self.known.contains_key(*file));
        self.unread = never_read.cloned().collect();
        self.tell_unread(&mut load);
        load
    }

    /// When to look again at files that are changing; `None` if there is none. Nothing comes of a
    /// look at those that are `busy`: whoever knows that will know when they are no more.
    pub(crate) fn unsettled_until(&self, busy: impl Fn(&Path) -> bool) -> Option<Instant> {
        let changing = self.unsettled.iter().filter(|(file, _)| !busy(file));
        changing.map(|(_, unsettled)| unsettled.since + SETTLE).min()
    }

    /// What was read of the file is not used: it is read again at the next look.
    pub(crate) fn forget(&mut self, file: &Arc<PathBuf>) {
        if let Some(known) = self.known.get_mut(file) {
            known.stale = true;
        }
    }

    /// Nobody knows what is in a file that has never been still.
    fn tell_unread(&mut self, load: &mut Load) {
        let Self { unread, unsettled, .. } = self;
        unread.retain(|file| unsettled.contains_key(file));
        for file in &*unread {
            let message = "somebody keeps writing it: not read yet".to_owned();
            load.unlisted.push(Problem::of_file(file, message, None));
        }
    }

    /// Whether a file has looked like this long enough.
    fn is_settled(&self, file: &Arc<PathBuf>, now: Option<&Fingerprint>) -> bool {
        let before = self.unsettled.get(file).filter(|before| before.is(now));
        before.is_some_and(|before| before.since.elapsed() >= SETTLE)
    }

    /// Notes what a file looks like that has to be looked at again.
    fn wait_for(&mut self, file: Arc<PathBuf>, now: Option<Fingerprint>) {
        let unsettled = Unsettled { seen: now, since: Instant::now() };
        let before = self.unsettled.entry(file).or_insert(unsettled);
        if !before.is(now.as_ref()) || before.since.elapsed() >= SETTLE {
            *before = unsettled;
        }
    }

    /// The same, leaving the files `busy` (which somebody is writing) as they were, and reading
    /// those of `touched` even if their timestamps have not moved.
    pub(crate) fn scan_except(
        &mut self,
        busy: &HashSet<PathBuf>,
        touched: &HashSet<PathBuf>,
    ) -> Load {
        let listing = files::list(&self.paths);
        self.directories = listing.directories;
        let mut load = Load::default();
        for unlisted in &listing.unlisted {
            let file = Arc::new(unlisted.path.clone());
            load.unlisted.push(Problem::of_file(&file, unlisted.message.clone(), None));
        }

        let mut present = HashSet::with_capacity(listing.files.len());
        let mut work = Vec::new();
        for (path, fingerprint) in listing.files {
            let known = self.known.get_key_value(&path);
            let file = known.map_or_else(|| Arc::new(path), |(file, _)| Arc::clone(file));
            present.insert(Arc::clone(&file));
            if busy.contains(file.as_path()) {
                continue;
            }
            let known = known.map(|(_, known)| *known);
            let same = known.is_some_and(|known| {
                known.fingerprint.is(&fingerprint)
                    && !known.fingerprint.fresh
                    && !known.failed
                    && !known.stale
            });
            if !same || touched.contains(file.as_path()) {
                let before =
                    known.filter(|known| !known.stale).map(|known| (known.failed, known.hash));
                // A clock that runs apart from the file's keeps nothing waiting for ever.
                let quiet = !fingerprint.fresh || self.is_settled(&file, Some(&fingerprint));
                work.push(Work { file, fingerprint, before, quiet });
            }
        }

        let covered = |file: &Path| listing.unlisted.iter().any(|u| file.starts_with(&u.path));
        let missing = |file: &&Arc<PathBuf>| !present.contains(*file) && !covered(file);
        let missing: Vec<_> = self.known.keys().filter(missing).cloned().collect();
        for file in missing {
            if self.is_settled(&file, None) {
                self.known.remove(&file);
                load.gone.push(file);
            } else {
                self.wait_for(file, None);
            }
        }
        self.unsettled.retain(|file, _| present.contains(file) || self.known.contains_key(file));

        for (work, done) in run(work) {
            let Done { hash, failed, news } = done;
            if matches!(news, News::Later) {
                self.wait_for(work.file, Some(work.fingerprint));
                continue;
            }
            self.unsettled.remove(&work.file);
            let known = Known { fingerprint: work.fingerprint, hash, failed, stale: false };
            self.known.insert(Arc::clone(&work.file), known);
            if let News::Changed(parsed) = news {
                load.files.push((work.file, parsed));
            }
        }
        self.tell_unread(&mut load);
        load
    }

    /// The files that are known, as of the last scan.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.known.keys().map(AsRef::as_ref)
    }

    /// The directories in which a change may matter, as of the last scan.
    pub(crate) fn directories(&self) -> &BTreeSet<PathBuf> {
        &self.directories
    }
}

struct Work {
    file: Arc<PathBuf>,
    fingerprint: Fingerprint,
    /// [`Known::failed`] and [`Known::hash`] of the last time.
    before: Option<(bool, u64)>,
    /// Nobody has touched it for a while.
    quiet: bool,
}

struct Done {
    hash: u64,
    failed: bool,
    news: News,
}

enum News {
    /// The content is the same as before.
    None,
    /// Somebody may be in the middle of writing it.
    Later,
    Changed(Parsed),
}

/// Does the work, in two threads if it is much; results keep the order.
fn run(work: Vec<Work>) -> Vec<(Work, Done)> {
    let bytes: u64 = work.iter().map(|work| work.fingerprint.size()).sum();
    if work.len() < 2 || bytes < PARALLEL_BYTES {
        return work
            .into_iter()
            .map(|work| {
                let done = read(&work);
                (work, done)
            })
            .collect();
    }
    let next = AtomicUsize::new(0);
    let mut results: Vec<Option<Done>> = Vec::new();
    results.resize_with(work.len(), || None);
    let take_all = || {
        let mut mine = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(work) = work.get(index) else { return mine };
            mine.push((index, read(work)));
        }
    };
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..THREADS).map(|_| scope.spawn(take_all)).collect();
        let mut all = take_all();
        for helper in helpers {
            match helper.join() {
                Ok(more) => all.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        for (index, done) in all {
            results[index] = Some(done);
        }
    });
    work.into_iter().zip(results).filter_map(|(work, done)| Some((work, done?))).collect()
}

fn read(work: &Work) -> Done {
    let problem = |message: String, allowed: Option<String>| {
        Parsed::unreadable(Problem::of_file(&work.file, message, allowed))
    };
    let (content, after) = match content(&work.file) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Done { hash: 0, failed: true, news: News::Later };
        }
        Err(error) => {
            let allowed = (error.kind() == io::ErrorKind::FileTooLarge)
                .then(|| format!("at most {} MiB", MAX_FILE_BYTES >> 20));
            let message = format!("cannot be read: {error}");
            let hash = hash(message.as_bytes());
            // The same reason as before is no news.
            let news = match work.before {
                Some(before) if before == (true, hash) => News::None,
                _ if !work.quiet => News::Later,
                _ => News::Changed(problem(message, allowed)),
            };
            return Done { hash, failed: true, news };
        }
    };
    let hash = hash(&content);
    if work.before == Some((false, hash)) {
        return Done { hash, failed: false, news: News::None };
    }
    if !work.quiet || !after.is(&work.fingerprint) {
        return Done { hash, failed: false, news: News::Later };
    }
    let parsed = match std::str::from_utf8(&content) {
        Ok(text) => parse(&work.file, text, Format::of(&work.file)),
        Err(error) => {
            let at = error.valid_up_to();
            problem(format!("byte {at} is not UTF-8"), Some("UTF-8 text".to_owned()))
        }
    };
    Done { hash, failed: false, news: News::Changed(parsed) }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The whole file, unless it is too large (or grows while it is read), and what it looked like
/// afterwards.
fn content(path: &Path) -> io::Result<(Vec<u8>, Fingerprint)> {
    let mut file = File::open(path)?;
    let mut content =
        Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0).min(1 << 20));
    file.by_ref().take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is too large"));
    }
    // File systems truncate first and write down the time afterwards, holding the file's lock until
    // inotify has been told. This waits for that lock; the answer does not matter.
    let _ = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0));
    Ok((content, Fingerprint::of(&file.metadata()?)))
}
