//! Reads what has changed below a set of paths, and only that.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::document::{Format, Parsed, parse};
use super::files::{self, Fingerprint};
use super::problem::Problem;

/// Largest file.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Threads that read and parse when there is much to do.
const THREADS: usize = 2;
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
}

/// Remembers the files below its paths.
#[derive(Debug)]
pub struct Loader {
    paths: Vec<PathBuf>,
    known: BTreeMap<Arc<PathBuf>, Known>,
    directories: BTreeSet<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    fingerprint: Fingerprint,
    /// Of the content, or of the reason why it could not be read.
    hash: u64,
    /// It could not be read.
    failed: bool,
}

impl Loader {
    /// A loader of the files and directories `paths`; nothing is read yet.
    #[must_use]
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            paths: paths.into_iter().map(Into::into).collect(),
            known: BTreeMap::new(),
            directories: BTreeSet::new(),
        }
    }

    /// Looks at all paths, and reads the files that are new or changed.
    pub fn scan(&mut self) -> Load {
        self.scan_except(&HashSet::new(), &HashSet::new())
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
                known.fingerprint == fingerprint && !fingerprint.fresh && !known.failed
            });
            if !same || touched.contains(file.as_path()) {
                let before = known.map(|known| (known.failed, known.hash));
                work.push(Work { file, fingerprint, before });
            }
        }

        let covered = |file: &Path| listing.unlisted.iter().any(|u| file.starts_with(&u.path));
        self.known.retain(|file, _| {
            let keep = present.contains(file) || covered(file);
            if !keep {
                load.gone.push(Arc::clone(file));
            }
            keep
        });

        for (work, done) in run(work) {
            let Done { hash, failed, parsed } = done;
            self.known.insert(
                Arc::clone(&work.file),
                Known { fingerprint: work.fingerprint, hash, failed },
            );
            if let Some(parsed) = parsed {
                load.files.push((work.file, parsed));
            }
        }
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
}

struct Done {
    hash: u64,
    failed: bool,
    /// `None` if the content is the same as before.
    parsed: Option<Parsed>,
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
    let content = match content(&work.file) {
        Ok(content) => content,
        Err(error) => {
            let allowed = (error.kind() == io::ErrorKind::FileTooLarge)
                .then(|| format!("at most {} MiB", MAX_FILE_BYTES >> 20));
            let message = format!("cannot be read: {error}");
            let hash = hash(message.as_bytes());
            // The same reason as before is no news.
            let parsed = (work.before != Some((true, hash))).then(|| problem(message, allowed));
            return Done { hash, failed: true, parsed };
        }
    };
    let hash = hash(&content);
    if work.before == Some((false, hash)) {
        return Done { hash, failed: false, parsed: None };
    }
    let parsed = match std::str::from_utf8(&content) {
        Ok(text) => parse(&work.file, text, Format::of(&work.file)),
        Err(error) => {
            let at = error.valid_up_to();
            problem(format!("byte {at} is not UTF-8"), Some("UTF-8 text".to_owned()))
        }
    };
    Done { hash, failed: false, parsed: Some(parsed) }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The whole file, unless it is too large (or grows while it is read).
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut content =
        Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0).min(1 << 20));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is too large"));
    }
    Ok(content)
}
