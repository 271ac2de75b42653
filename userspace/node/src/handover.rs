//! Handing over: a daemon that is started while another serves takes its pods over one by one, and
//! no new connection is refused meanwhile.
//!
//! They talk over a Unix socket, in lines; either side's death is the end of the stream.
//!
//! ```text
//! successor                      predecessor
//! fairlead-handover 1 abi=3  →
//!                            ←   beside    (it has let go of the state directory)
//!                                vacant    (it has let go of everything: start as if alone)
//! take                       →             (configuration and certificates are there)
//!                            ←   frozen    (it changes nothing in the kernel any more)
//! taken                      →             (every pod's entry points to the successor)
//!                            ←   yours     (addresses and pins are free; it drains)
//!                                back      (it took too long; the predecessor goes on)
//! ```
//!
//! The stream stays open until the successor stops serving: a predecessor that nobody ends waits for
//! that (`--linger`). Until `taken` the predecessor accepts at all of its listeners, and what comes to them is
//! carried; when the stream ends before, it enrols its pods again. `back` may come at any time: the
//! successor looks for it before each pod, and closes the stream when it takes no more. A
//! predecessor that ends by itself says nothing more, and the successor goes on.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::unix_socket::OwnSocket;

/// Where a daemon listens for its successor, unless the settings say otherwise.
pub(crate) const SOCKET: &str = "/run/fairlead/handover.sock";
/// How a successor begins.
const HELLO: &str = "fairlead-handover 1 abi=";
/// Longest line.
const MAX_LINE: u64 = 256;
/// How long a successor may take for its first line.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// How long the predecessor may take to answer: it joins a thread that may be enrolling.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a successor may take until it has configuration and certificates; nobody waits for it.
pub(crate) const PREPARE_PATIENCE: Duration = Duration::from_secs(300);
/// How long it may take for all pods; pods that start meanwhile wait.
pub(crate) const TAKE_PATIENCE: Duration = Duration::from_secs(60);
/// Pause after a failed accept (out of descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// The successor's end.
pub(crate) struct Successor {
    stream: BufReader<StdStream>,
}

/// Whom a daemon meets when it starts.
pub(crate) enum Met {
    /// Nobody.
    Nobody,
    /// One that is ending, and has just let go of everything.
    Vacant(Successor),
    /// One that serves.
    Serving(Successor),
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// As it should be.
    Yes,
    /// The predecessor has died: there is nobody to wait for.
    Nobody,
}

impl Successor {
    /// Looks for a daemon that serves.
    ///
    /// # Errors
    /// It does not answer as one should; to start would be to take the pods away from it.
    pub(crate) fn meet(path: &Path) -> anyhow::Result<Met> {
        let stream = match StdStream::connect(path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(Met::Nobody);
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("the handover socket {}", path.display()));
            }
        };
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        stream.set_write_timeout(Some(ANSWER_PATIENCE))?;
        let mut this = Self { stream: BufReader::new(stream) };
        let hello = format!("{HELLO}{}", fairlead_capture::ABI_VERSION);
        match this.ask(&hello)?.as_str() {
            "beside" => Ok(Met::Serving(this)),
            "vacant" | "" => Ok(Met::Vacant(this)),
            other => bail!("the daemon that serves this node answered {other:?}"),
        }
    }

    /// Has the predecessor leave the kernel alone.
    ///
    /// # Errors
    /// It goes on instead.
    pub(crate) fn take(&mut self) -> anyhow::Result<Answered> {
        self.request("take", "frozen")
    }

    /// Tells the predecessor that all is taken over; it has let go when this returns.
    ///
    /// # Errors
    /// It goes on instead.
    pub(crate) fn taken(&mut self) -> anyhow::Result<Answered> {
        self.request("taken", "yours")
    }

    /// Whether the predecessor has said nothing since it was asked: pods may be taken. One that has
    /// died says nothing either, and there is nobody who takes them back.
    pub(crate) fn may_go_on(&mut self) -> bool {
        if self.stream.get_ref().set_nonblocking(true).is_err() {
            return false;
        }
        // What it said stays in the buffer.
        let silent = match self.stream.fill_buf() {
            Ok(said) => said.is_empty(),
            Err(error) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset)
            }
        };
        silent && self.stream.get_ref().set_nonblocking(false).is_ok()
    }

    fn request(&mut self, word: &str, expected: &str) -> anyhow::Result<Answered> {
        match self.ask(word)?.as_str() {
            answer if answer == expected => Ok(Answered::Yes),
            "" => Ok(Answered::Nobody),
            "back" => bail!("the daemon that serves this node has taken its pods back"),
            other => bail!("the daemon that serves this node answered {other:?} to {word:?}"),
        }
    }

    /// The answer; empty when there is nobody any more.
    fn ask(&mut self, word: &str) -> anyhow::Result<String> {
        let ended = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        };
        let told = self.stream.get_mut().write_all(format!("{word}\n").as_bytes());
        // What it said before it ended is still to be read.
        if let Err(error) = told
            && !ended(&error)
        {
            return Err(error).context("telling the daemon that serves this node");
        }
        let mut line = String::new();
        match io::Read::take(&mut self.stream, MAX_LINE).read_line(&mut line) {
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) if ended(&error) => Ok(String::new()),
            Err(error) => Err(error).with_context(|| {
                format!(
                    "the daemon that serves this node does not answer {word:?} within \
                     {ANSWER_PATIENCE:?}"
                )
            }),
        }
    }
}

/// Waits for successors.
pub(crate) struct Server(OwnSocket);

impl Server {
    /// Listens at `path` instead of the predecessor. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let socket = OwnSocket::bind(path).with_context(|| {
            format!("the handover socket {} (--handover-socket)", path.display())
        })?;
        Ok(Self(socket))
    }

    /// The next successor.
    pub(crate) async fn next(&self) -> Offer {
        loop {
            match self.0.listener().accept().await {
                Ok((stream, _)) => {
                    let hello = tokio::time::timeout(HELLO_PATIENCE, Offer::read(stream)).await;
                    if let Ok(Some(offer)) = hello {
                        return offer;
                    }
                    tracing::warn!("somebody at the handover socket is no fairlead-node");
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a successor");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A successor, as the predecessor sees it.
pub(crate) struct Offer {
    stream: tokio::io::BufReader<UnixStream>,
    /// Whether it uses the same maps.
    pub(crate) same_abi: bool,
}

impl Offer {
    async fn read(stream: UnixStream) -> Option<Self> {
        // The file's mode says it already.
        if stream.peer_cred().ok()?.uid() != 0 {
            return None;
        }
        let mut this = Self { stream: tokio::io::BufReader::new(stream), same_abi: false };
        let line = this.line().await.ok()?;
        let abi: u32 = line.strip_prefix(HELLO)?.parse().ok()?;
        this.same_abi = abi == fairlead_capture::ABI_VERSION;
        Some(this)
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(MAX_LINE).read_line(&mut line).await?;
        Ok(line.trim_end().to_owned())
    }

    /// Tells the successor something; that it is gone shows in [`Offer::hear`].
    pub(crate) async fn say(&mut self, word: &str) {
        let _ = self.stream.get_mut().write_all(format!("{word}\n").as_bytes()).await;
    }

    /// What the successor says. `None`: it has gone, or takes too long.
    pub(crate) async fn hear(&mut self, patience: Duration) -> Option<String> {
        let line = tokio::time::timeout(patience, self.line()).await.ok()?.ok()?;
        (!line.is_empty()).then_some(line)
    }

    /// Done when the successor's end is closed; whatever it says until then is too late.
    pub(crate) async fn closed(&mut self) {
        let mut rest = [0; 64];
        while self.stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("fairlead-{name}-{}/h.sock", std::process::id()))
    }

    fn serving(met: anyhow::Result<Met>) -> Successor {
        match met.unwrap() {
            Met::Serving(successor) => successor,
            Met::Nobody | Met::Vacant(_) => panic!("nobody serves"),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn from_hello_to_yours() {
        let path = path("handover");
        assert!(matches!(Successor::meet(&path), Ok(Met::Nobody)));
        let server = Server::bind(&path).unwrap();
        let at = path.clone();
        let successor = tokio::task::spawn_blocking(move || {
            let mut successor = serving(Successor::meet(&at));
            assert_eq!(successor.take().unwrap(), Answered::Yes);
            assert_eq!(successor.taken().unwrap(), Answered::Yes);
        });
        let mut offer = server.next().await;
        assert!(offer.same_abi);
        offer.say("beside").await;
        assert_eq!(offer.hear(PREPARE_PATIENCE).await.as_deref(), Some("take"));
        offer.say("frozen").await;
        assert_eq!(offer.hear(TAKE_PATIENCE).await.as_deref(), Some("taken"));
        offer.say("yours").await;
        successor.await.unwrap();
        assert_eq!(offer.hear(TAKE_PATIENCE).await, None, "it has gone");
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_successor_goes_on_until_it_is_called_back() {
        let path = path("handover-back");
        for back in [true, false] {
            let server = Server::bind(&path).unwrap();
            let at = path.clone();
            let (look, looks) = std::sync::mpsc::channel();
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let successor = tokio::task::spawn_blocking(move || {
                let mut successor = serving(Successor::meet(&at));
                assert_eq!(successor.take().unwrap(), Answered::Yes);
                while looks.recv().is_ok() {
                    tell.send(successor.may_go_on()).unwrap();
                }
                successor.taken().ok()
            });
            let mut offer = server.next().await;
            offer.say("beside").await;
            assert_eq!(offer.hear(PREPARE_PATIENCE).await.as_deref(), Some("take"));
            offer.say("frozen").await;
            for _ in 0..3 {
                look.send(()).unwrap();
                assert_eq!(told.recv().await, Some(true));
            }
            if back {
                offer.say("back").await;
            } else {
                // Nobody is there who could take anything back.
                drop(offer);
            }
            for _ in 0..3 {
                look.send(()).unwrap();
                assert_eq!(told.recv().await, Some(!back));
            }
            drop(look);
            // Looking has taken nothing away.
            let expected = if back { None } else { Some(Answered::Nobody) };
            assert_eq!(successor.await.unwrap(), expected);
        }
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_predecessor_that_dies_or_goes_on() {
        let path = path("handover-ends");
        for (word, outcome) in [("", Some(Answered::Nobody)), ("back", None)] {
            let server = Server::bind(&path).unwrap();
            let at = path.clone();
            let successor =
                tokio::task::spawn_blocking(move || serving(Successor::meet(&at)).take().ok());
            let mut offer = server.next().await;
            offer.say("beside").await;
            assert_eq!(offer.hear(PREPARE_PATIENCE).await.as_deref(), Some("take"));
            if !word.is_empty() {
                offer.say(word).await;
            }
            drop(offer);
            assert_eq!(successor.await.unwrap(), outcome);
        }
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
