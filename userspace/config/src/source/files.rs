//! Which files a set of paths holds: directories are gone through recursively, symlinks followed,
//! hidden names (`.git`, and the `..data` of a mounted ConfigMap) left out.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Deepest directory below a given path.
const MAX_DIR_DEPTH: usize = 16;
/// Most files of all paths.
const MAX_FILES: usize = 20_000;
/// A file younger than this may change again without its timestamp telling.
const TIMESTAMP_GRAIN: Duration = Duration::from_millis(20);

/// What tells that a file is the same as before without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    fn of(metadata: &fs::Metadata) -> Self {
        let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            fresh: age.is_none_or(|age| age < TIMESTAMP_GRAIN),
        }
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
        // The path itself may be replaced, if only as a symlink.
        walk.watch_parent(path);
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
            if path.is_symlink() {
                self.watch_links(path);
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
                continue;
            }
            self.enter(&child, depth + 1, false);
        }
    }

    fn unlisted(&mut self, path: &Path, error: &io::Error) {
        let message = format!("cannot be read: {error}");
        self.listing.unlisted.push(Unlisted { path: path.to_owned(), message });
    }

    fn watch_parent(&mut self, path: &Path) {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) => Path::new("."),
            None => return,
        };
        self.listing.directories.insert(parent.to_owned());
        if path.is_symlink() {
            self.watch_links(path);
        }
    }

    /// Every directory that holds a link of the chain, and the one of the file behind it.
    fn watch_links(&mut self, path: &Path) {
        const MAX_LINKS: usize = 8;
        let mut here = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Ok(target) = fs::read_link(&here) else { break };
            here = here.parent().unwrap_or(Path::new("/")).join(target);
            if let Some(parent) = here.parent()
                && parent.is_dir()
            {
                self.listing.directories.insert(parent.to_owned());
            }
        }
    }
}

/// Whether the name is that of a configuration file.
fn is_config(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}
