//! Configuration from files: a directory of YAML as `kubectl get -o yaml` prints it.
//!
//! [`Loader`] finds and reads the files that changed, [`parse`] makes typed and validated
//! resources of each, [`Store`] keeps the last good version of every object, and [`Watcher`] does
//! all that within milliseconds of a save. Whatever is wrong is a [`Problem`] that names the
//! place, the fault and what is allowed.
//!
//! ```no_run
//! use fairlead_config::source::{Loader, Store, Watcher};
//!
//! let mut loader = Loader::new(["/etc/fairlead"]);
//! let mut store = Store::default();
//! let first = store.apply(loader.scan());
//! for key in &first.upserted {
//!     println!("{key}: {:?}", store.get(key));
//! }
//! let _watcher = Watcher::spawn(loader, store, |store, change| {
//!     for problem in &change.problems {
//!         eprintln!("{problem}");
//!     }
//!     for key in &change.removed {
//!         println!("{key} is gone; {} objects remain", store.len());
//!     }
//! })?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod de;
mod document;
mod files;
mod json;
mod kept;
mod kinds;
mod loader;
mod locate;
mod mesh;
mod mismatch;
mod path;
mod plain;
mod problem;
mod salvage;
mod sink;
mod store;
mod suggest;
mod tree;
mod unenforced;
mod validate;
mod watcher;
mod yaml;

pub use document::{Format, Parsed, Rejected, parse};
pub use loader::{Load, Loader, MAX_FILE_BYTES};
pub use locate::{Location, locate};
pub use mesh::{MESH_CONFIG_MAP, MESH_KEY, mesh_config, mesh_config_from_file};
pub use plain::from_yaml;
pub use problem::{Effect, ObjectRef, Problem, Severity};
pub use store::{Change, Refused, Store};
pub(crate) use unenforced::{CONNECTIONS_REFUSED, PORTS_REFUSED, REQUESTS_REFUSED};
pub use unenforced::{effect, partly_enforced, partly_words};
pub use watcher::Watcher;

#[cfg(test)]
mod tests;
