//! `fairlead-node ready`: whether this very process is ready. While one daemon takes over from
//! another, the addresses are those of only one of them, and a node's pods share them all; a
//! socket in a directory of the container's own is nobody else's.

use std::io::Read as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::io::AsyncWriteExt as _;

use crate::pages::{self, Shown};
use crate::unix_socket::OwnSocket;

/// How long the daemon may take to answer, and who asks to read it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer that is shown.
const MAX_ANSWER: u64 = 16 * 1024;
/// Pause after a failed accept (out of descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// Arguments of `fairlead-node ready`.
#[derive(Debug, Parser)]
#[command(name = "fairlead-node ready", about = "Asks a running daemon whether it is ready")]
pub struct Question {
    /// Its --instance-socket
    #[arg(long, value_name = "PATH", env = "FAIRLEAD_INSTANCE_SOCKET")]
    instance_socket: PathBuf,

    /// Ask only whether it answers
    #[arg(long)]
    live: bool,
}

impl Question {
    /// The arguments of this process, if it was started to ask.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let mut arguments = std::env::args_os();
        let program = arguments.next()?;
        let word = arguments.next()?;
        (word == "ready").then(|| Self::parse_from(std::iter::once(program).chain(arguments)))
    }

    /// Asks; prints the answer.
    #[must_use]
    pub fn ask(&self) -> ExitCode {
        match answer(&self.instance_socket) {
            Ok((status, text)) => {
                print!("{text}");
                if self.live || status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(error) => {
                eprintln!("fairlead-node: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

fn answer(path: &Path) -> anyhow::Result<(u16, String)> {
    let wrong = || format!("no daemon answers at {}", path.display());
    let stream = StdStream::connect(path).with_context(wrong)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut told = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut told).with_context(wrong)?;
    let (status, text) = told.split_once('\n').with_context(wrong)?;
    Ok((status.parse().with_context(wrong)?, text.to_owned()))
}

/// Answers at the socket.
pub(crate) struct Instance(OwnSocket);

impl Instance {
    /// Listens. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let socket = OwnSocket::bind(path)
            .with_context(|| format!("the socket {} (--instance-socket)", path.display()))?;
        Ok(Self(socket))
    }

    /// Answers until the future is dropped.
    pub(crate) async fn serve(self, shown: Shown) {
        loop {
            match self.0.listener().accept().await {
                Ok((mut stream, _)) => {
                    let (status, text) = pages::stands(&shown);
                    let answer = format!("{status}\n{text}");
                    // It fits into the socket's buffer; whoever does not read does not hold us up.
                    let _ =
                        tokio::time::timeout(PATIENCE, stream.write_all(answer.as_bytes())).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a probe");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
