//! The chained CNI plugin (specification 1.1.0 and the versions before it down to 0.3.0).
//!
//! It changes nothing of the network that the plugins before it made, and hands their result on as
//! it is. What it does is to ask the node daemon, and to say no for as long as a pod that is to be in
//! the mesh would start outside of it.

mod add;
mod api;
mod daemon;
mod error;
mod request;
#[cfg(test)]
mod tests;

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fairlead_wire::cni::{Request, Response};
use serde_json::{Value, json};

pub use api::{ApiServer, Membership};
pub use daemon::{Daemon, Socket};
pub use error::{CniError, Code};
pub use request::{Command, Conf, Env, TYPE, VERSIONS, access_path, pod_arguments};

/// Longest configuration that is read.
pub const MAX_CONF: u64 = 1 << 20;
/// How long ADD may take in all: the runtime's patience with a sandbox is minutes, and whoever is
/// refused is tried again.
pub const ADD_BUDGET: Duration = Duration::from_secs(25);
/// How long the other commands may take.
const SHORT: Duration = Duration::from_secs(3);

/// Runs the command that the environment names.
#[must_use]
pub fn main() -> ExitCode {
    let env = Env::read();
    let mut stdin = String::new();
    let read = std::io::stdin().lock().take(MAX_CONF + 1).read_to_string(&mut stdin);
    let outcome = match read {
        Err(error) => Err(CniError::new(Code::Io, format!("reading the configuration: {error}"))),
        Ok(_) if stdin.len() as u64 > MAX_CONF => {
            Err(CniError::new(Code::InvalidConfig, "the configuration is too long".into()))
        }
        Ok(_) => run(&env, &stdin, |conf| {
            (Socket::new(conf.socket.clone()), ApiServer::new(conf.api.clone()))
        }),
    };
    let (text, code) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("fairlead-cni: {error}");
            (error.to_json(&request::version_of(&stdin)).to_string(), ExitCode::FAILURE)
        }
    };
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One command; what it returns goes to standard output.
///
/// # Errors
/// [`CniError`], for the runtime.
pub fn run<D: Daemon, A: Membership>(
    env: &Env,
    stdin: &str,
    reach: impl FnOnce(&Conf) -> (D, A),
) -> Result<Option<Value>, CniError> {
    let command = env.command()?;
    if command == Command::Version {
        return Ok(Some(json!({
            "cniVersion": VERSIONS.last(),
            "supportedVersions": VERSIONS,
        })));
    }
    let conf = Conf::parse(stdin)?;
    command.is_in(&conf.version)?;
    let (mut daemon, mut api) = reach(&conf);
    match command {
        Command::Version => Ok(None),
        Command::Add => {
            let Some(result) = conf.prev_result.clone() else {
                return Err(CniError::new(
                    Code::InvalidConfig,
                    "there is no prevResult: this plugin is chained after the one that makes the \
                     network"
                        .into(),
                ));
            };
            if let Some(sandbox) = env.sandbox(&conf)? {
                add::add(&conf, sandbox, &mut daemon, &mut api, Instant::now() + ADD_BUDGET)?;
            }
            Ok(Some(result))
        }
        Command::Check => {
            if let Some(sandbox) = env.sandbox(&conf)? {
                add::check(&conf, sandbox, &mut daemon, &mut api, Instant::now() + SHORT)?;
            }
            Ok(None)
        }
        Command::Del => {
            // Whatever happens, the pod goes away: a daemon that does not hear of it now sees it
            // in the API.
            let container_id = env.container_id()?;
            let pod_uid = env.argument("K8S_POD_UID").unwrap_or_default();
            let told = daemon.ask(&Request::Del { container_id, pod_uid }, Instant::now() + SHORT);
            if let Err(error) = told {
                eprintln!("fairlead-cni: DEL: the node daemon was not told: {error}");
            }
            Ok(None)
        }
        Command::Gc => {
            let valid = conf.valid_attachments()?;
            let told = daemon.ask(&Request::Gc { valid }, Instant::now() + SHORT);
            if let Err(error) = told {
                eprintln!("fairlead-cni: GC: the node daemon was not told: {error}");
            }
            Ok(None)
        }
        Command::Status => status(&conf, &mut daemon),
    }
}

/// A runtime that hears of a failure takes no pod at all, those outside the mesh included. So only
/// what would leave the plugin without any knowledge is one, unless the configuration wants more.
fn status(conf: &Conf, daemon: &mut impl Daemon) -> Result<Option<Value>, CniError> {
    let reason = match daemon.ask(&Request::Status, Instant::now() + SHORT) {
        Ok(Response::Done) => return Ok(None),
        Ok(Response::Refused { reason }) => reason,
        Ok(other) => format!("the node daemon answered {other:?}"),
        Err(error) => error.to_string(),
    };
    if conf.status_requires_daemon {
        return Err(CniError::new(Code::PluginNotAvailable, reason));
    }
    match crate::access::Access::read(&conf.api) {
        Ok(_) => Ok(None),
        Err(error) => Err(CniError::new(
            Code::PluginNotAvailable,
            format!("{reason}; and {}: {error}", conf.api.display()),
        )),
    }
}

/// Where things are unless the configuration says otherwise.
pub(crate) fn default_socket() -> PathBuf {
    fairlead_wire::cni::SOCKET.into()
}
