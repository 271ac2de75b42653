//! The configuration directory: which list the runtime takes, and our place in it.
//!
//! A runtime takes the first file by name. A list is edited in place. A single plugin's
//! configuration has no room for a second one: it is put aside under a name that runtimes do not
//! read, and a list of the same name stands in for it until it comes back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::conflist::{self, ConfError};
use super::files;

/// Ending of a single configuration that has been put aside.
const ASIDE: &str = "fairlead-aside";
/// Files looked at in the directory.
const MAX_FILES: usize = 1024;

/// What is at a place in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `.conflist`
    List,
    /// `.conf`, `.json`
    Single,
}

/// Where the chain is entered.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered {
    /// In that file; `changed` if it was not before.
    In {
        /// The file.
        file: PathBuf,
        /// Whether something was written.
        changed: bool,
    },
    /// There is no network configuration yet.
    NoNetwork,
}

/// Enters the list that the runtime takes, and leaves every other.
///
/// # Errors
/// The directory or a file cannot be read or written; what has been written is whole.
pub fn enter(dir: &Path, entry: &str) -> io::Result<Entered> {
    let Some((file, form, text)) = first(dir)? else { return Ok(Entered::NoNetwork) };
    let entered = match form {
        Form::List => match conflist::enter(&text, entry).map_err(|e| wrong(&file, &e))? {
            Some(text) => {
                files::replace(&file, text.as_bytes(), Some(&file), 0o644)?;
                Entered::In { file, changed: true }
            }
            None => Entered::In { file, changed: false },
        },
        Form::Single => stand_in(&file, &text, entry)?,
    };
    let Entered::In { file, .. } = &entered else { return Ok(entered) };
    for (other, form) in configurations(dir)? {
        if other != *file && form == Form::List {
            leave_list(&other)?;
        }
    }
    Ok(entered)
}

/// Whether the list that the runtime takes has this entry.
///
/// # Errors
/// The directory or the file cannot be read.
pub fn is_entered(dir: &Path, entry: &str) -> io::Result<bool> {
    Ok(match first(dir)? {
        Some((file, Form::List, text)) => {
            conflist::enter(&text, entry).map_err(|e| wrong(&file, &e))?.is_none()
        }
        Some((_, Form::Single, _)) | None => false,
    })
}

/// Leaves all lists, and puts back what was put aside. True if there was something to do.
///
/// # Errors
/// A file cannot be read or written; calling it again goes on.
pub fn leave(dir: &Path) -> io::Result<bool> {
    let mut changed = false;
    for aside in put_aside(dir)? {
        put_back(&aside)?;
        changed = true;
    }
    for (file, form) in configurations(dir)? {
        if form == Form::List {
            changed |= leave_list(&file)?;
        }
    }
    Ok(changed)
}

fn wrong(file: &Path, error: &ConfError) -> io::Error {
    io::Error::other(format!("{}: {error}", file.display()))
}

fn leave_list(file: &Path) -> io::Result<bool> {
    // What cannot be read as a list does not have us in it.
    let Ok(Some(text)) = files::read(file).map(|text| conflist::leave(&text).ok().flatten()) else {
        return Ok(false);
    };
    files::replace(file, text.as_bytes(), Some(file), 0o644)
}

/// A list in the place of a single configuration.
fn stand_in(single: &Path, text: &str, entry: &str) -> io::Result<Entered> {
    let list = conflist::list_of(text).map_err(|e| wrong(single, &e))?;
    let entered = conflist::enter(&list, entry).map_err(|e| wrong(single, &e))?.unwrap_or(list);
    let file = single.with_extension("conflist");
    let aside = aside_of(single);
    if !aside.exists() && file.exists() {
        return Err(io::Error::other(format!(
            "{} is first and takes no second plugin, and {} is somebody else's: remove one of them",
            single.display(),
            file.display()
        )));
    }
    // The list first: until the single one is gone, nothing has changed for the runtime.
    files::replace(&file, entered.as_bytes(), Some(single), 0o644)?;
    files::rename(single, &aside)?;
    Ok(Entered::In { file, changed: true })
}

fn aside_of(single: &Path) -> PathBuf {
    let mut name = single.as_os_str().to_owned();
    name.push(".");
    name.push(ASIDE);
    name.into()
}

/// The single configuration comes back, unless the list has become somebody else's, too.
fn put_back(aside: &Path) -> io::Result<()> {
    let single = aside.with_extension("");
    let list = single.with_extension("conflist");
    if single.exists() {
        // Its author wrote it anew: that one counts.
        files::remove(&list)?;
        return files::remove(aside).map(drop);
    }
    let original = files::read(aside)?;
    let standing = files::read(&list).ok();
    let own = standing.as_deref().is_none_or(|standing| {
        let without = conflist::leave(standing).ok().flatten();
        let without = without.as_deref().unwrap_or(standing);
        conflist::list_of(&original).is_ok_and(|list| list == without)
    });
    if own {
        files::rename(aside, &single)?;
        files::remove(&list)?;
    } else {
        leave_list(&list)?;
        files::remove(aside)?;
    }
    Ok(())
}

/// The configuration that a runtime takes: the first by name that is one.
fn first(dir: &Path) -> io::Result<Option<(PathBuf, Form, String)>> {
    for (file, form) in configurations(dir)? {
        let Ok(text) = files::read(&file) else { continue };
        let checked = match form {
            Form::List => conflist::check_list(&text),
            Form::Single => conflist::list_of(&text).map(drop),
        };
        match checked {
            Ok(()) => return Ok(Some((file, form, text))),
            Err(error) => eprintln!("fairlead-cni: passing over {}: {error}", file.display()),
        }
    }
    Ok(None)
}

fn configurations(dir: &Path) -> io::Result<Vec<(PathBuf, Form)>> {
    list(dir, |name| match Path::new(name).extension()?.to_str()? {
        "conflist" => Some(Form::List),
        "conf" | "json" => Some(Form::Single),
        _ => None,
    })
}

fn put_aside(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_aside = |name: &str| Path::new(name).extension().is_some_and(|e| e == ASIDE);
    let found = list(dir, |name| is_aside(name).then_some(()))?;
    Ok(found.into_iter().map(|(path, ())| path).collect())
}

fn list<T>(dir: &Path, pick: impl Fn(&str) -> Option<T>) -> io::Result<Vec<(PathBuf, T)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)?.take(MAX_FILES) {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        if let Some(picked) = pick(name) {
            found.push((entry.path(), picked));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.file_name().cmp(&b.file_name()));
    Ok(found)
}
