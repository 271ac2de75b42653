//! The socket.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fairlead_wire::cni::{MAX_LINE, Response, read_request, write_line};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::Answers;
use crate::unix_socket::OwnSocket;

/// Plugins that are served at the same time: kubelet starts a handful of pods at once.
const MAX_CLIENTS: usize = 128;
/// How long a plugin may take to ask, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens for plugins. Dropping it takes the socket away, which plugins notice, unless a later
/// daemon has taken its path.
#[derive(Debug)]
pub struct Server(OwnSocket);

impl Server {
    /// Listens at `path`, in place of an earlier daemon. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let socket = OwnSocket::bind(path)
            .with_context(|| format!("the CNI socket {} (--cni-socket)", path.display()))?;
        Ok(Self(socket))
    }

    /// Answers until it is dropped.
    pub async fn serve(self, answers: Answers) {
        let room = Arc::new(Semaphore::new(MAX_CLIENTS));
        let answers = Arc::new(answers);
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match self.0.listener().accept().await {
                Ok((stream, _)) => {
                    let answers = Arc::clone(&answers);
                    tokio::spawn(async move {
                        if let Err(error) = one(stream, &answers).await {
                            tracing::debug!(%error, "CNI plugin");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a CNI plugin");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

pub(super) async fn one(mut stream: UnixStream, answers: &Answers) -> io::Result<()> {
    // The file's mode says it already.
    if stream.peer_cred()?.uid() != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let line = tokio::time::timeout(PATIENCE, read_line(&mut stream)).await??;
    let response = match read_request(&line) {
        Ok(request) => {
            tracing::debug!(?request, "CNI plugin asks");
            let response = answers.answer(request).await;
            tracing::debug!(?response, "CNI plugin is answered");
            // One that is hung up on waits for the socket of the next daemon, and asks that.
            let Some(response) = response else { return Ok(()) };
            response
        }
        Err(error) => Response::Refused { reason: error.to_string() },
    };
    let line = write_line(&response).map_err(io::Error::other)?;
    tokio::time::timeout(PATIENCE, stream.write_all(&line)).await?
}

async fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = stream.read(&mut part).await?;
        let read = part.get(..n).unwrap_or_default();
        match read.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                line.extend_from_slice(read.get(..end).unwrap_or_default());
                return Ok(line);
            }
            None if n == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => line.extend_from_slice(read),
        }
        if line.len() > MAX_LINE {
            return Err(io::Error::other("the line has no end"));
        }
    }
}
