//! Which files a set of paths holds: directories are gone through recursively, symlinks followed,
//! hidden names (`.git`, and the `..data` of a mounted ConfigMap) left out.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Deepest directory below a given path.
const MAX_DIR_DEPTH: usize = 16;
/// Most files of all paths.
const MAX_FILES: usize = 20_000;
/// A file that changed less than this long ago may change again without its timestamp telling, and
/// somebody may be in the middle of writing it.
pub(crate) const SETTLE: Duration = Duration::from_millis(20);

/// What tells that a file is the same as before without reading it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Written to so shortly before that the timestamps prove nothing.
    pub(crate) fresh: bool,
}

impl Fingerprint {
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            fresh: age.is_none_or(|age| age < SETTLE),
        }
    }

    /// Whether nothing tells the file from what it was.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let all = |of: &Self| (of.device, of.inode, of.size, of.modified, of.changed);
        all(self) == all(other)
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}

/// Something that could not be listed; what was known below it stays.
#[derive(Clone, Debug)]
pub(crate) struct Unlisted {
    pub(crate) path: PathBuf,
    pub(crate) message: String,
}

/// What there is.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Files in order of their paths.
    pub(crate) files: Vec<(PathBuf, Fingerprint)>,
    /// What could not be listed.
    pub(crate) unlisted: Vec<Unlisted>,
    /// Directories in which a change may matter.
    pub(crate) directories: BTreeSet<PathBuf>,
}

/// Lists the files of `paths`.
pub(crate) fn list(paths: &[PathBuf]) -> Listing {
    let mut walk = Walk { listing: Listing::default(), seen: HashSet::new(), full: false };
    for path in paths {
        // The path itself may be replaced, if only as a symlink, or yet have to appear.
        walk.watch_way(path);
        walk.enter(path, 0, true);
    }
    walk.listing.files.sort_by(|(a, _), (b, _)| a.cmp(b));
    walk.listing
}

struct Walk {
    listing: Listing,
    /// Device and inode of all that was visited: nothing counts twice, and no loop ends never.
    seen: HashSet<(u64, u64)>,
    full: bool,
}

impl Walk {
    fn enter(&mut self, path: &Path, depth: usize, given: bool) {
        if !given && path.is_symlink() {
            self.watch_way(path);
        }
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return self.unlisted(path, &error),
        };
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        if metadata.is_dir() {
            self.directory(path, depth);
        } else if metadata.is_file() && (given || is_config(path)) {
            if self.listing.files.len() >= MAX_FILES {
                if !std::mem::replace(&mut self.full, true) {
                    let error = io::Error::other(format!("more than {MAX_FILES} files"));
                    self.unlisted(path, &error);
                }
                return;
            }
            self.listing.files.push((path.to_owned(), Fingerprint::of(&metadata)));
        } else if given {
            self.unlisted(path, &io::Error::other("neither a file nor a directory"));
        }
    }

    fn directory(&mut self, path: &Path, depth: usize) {
        self.listing.directories.insert(path.to_owned());
        if depth >= MAX_DIR_DEPTH {
            let error = io::Error::other(format!("more than {MAX_DIR_DEPTH} directories deep"));
            return self.unlisted(path, &error);
        }
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return self.unlisted(path, &error),
        };
        let mut names = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => names.push(entry),
                Err(error) => self.unlisted(path, &error),
            }
        }
        names.sort_by_key(fs::DirEntry::file_name);
        for entry in names {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let child = entry.path();
            let plain_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if plain_file && !is_config(&child) {
                continue;
            }
            // A dangling link to something that is no configuration is nobody's concern.
            let dangling = || fs::metadata(&child).is_err() && !is_config(&child);
            if !plain_file && dangling() {
                self.watch_way(&child);
                continue;
            }
            self.enter(&child, depth + 1, false);
        }
    }

    fn unlisted(&mut self, path: &Path, error: &io::Error) {
        let message = format!("cannot be read: {error}");
        self.listing.unlisted.push(Unlisted { path: path.to_owned(), message });
    }

    /// Every directory in which a change may make something else of `path`: its own, those of the
    /// links on the way, and, where the way ends before its end, the last one that is there.
    fn watch_way(&mut self, path: &Path) {
        /// As many as the kernel follows.
        const MAX_LINKS: usize = 40;
        let steps = |path: &Path| {
            let steps = path.components().rev().map(|step| step.as_os_str().to_owned());
            steps.collect::<Vec<OsString>>()
        };
        let (mut here, mut rest, mut links) = (PathBuf::new(), steps(path), 0);
        while let Some(step) = rest.pop() {
            let next = here.join(&step);
            if step == "/" || step == ".." {
                here = next;
                continue;
            }
            if step == "." {
                continue;
            }
            let directory =
                if here.as_os_str().is_empty() { PathBuf::from(".") } else { here.clone() };
            let Ok(metadata) = fs::symlink_metadata(&next) else {
                self.listing.directories.insert(directory);
                return;
            };
            let target = metadata.is_symlink().then(|| fs::read_link(&next));
            if target.is_some() || rest.is_empty() {
                self.listing.directories.insert(directory);
            }
            match target {
                Some(Ok(target)) if links < MAX_LINKS => {
                    links += 1;
                    rest.extend(steps(&target));
                }
                Some(_) => return,
                None => here = next,
            }
        }
    }
}

/// Whether the name is that of a configuration file.
fn is_config(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}
