//! The way to the node daemon, and waiting for one that is not there.

use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fairlead_wire::cni::{MAX_LINE, Request, Response, write_line};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

/// Longest pause between two attempts where no event tells that there is reason for one.
const PAUSE: Duration = Duration::from_secs(1);

/// The node daemon.
pub trait Daemon {
    /// Asks, and waits for the answer until `deadline`.
    ///
    /// # Errors
    /// There was no answer.
    fn ask(&mut self, request: &Request, deadline: Instant) -> io::Result<Response>;

    /// Waits until asking again may be worth it; false: the deadline has come.
    fn wait(&mut self, deadline: Instant) -> bool;
}

/// The daemon behind its socket.
#[derive(Debug)]
pub struct Socket(PathBuf);

impl Socket {
    /// At that path.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

impl Daemon for Socket {
    fn ask(&mut self, request: &Request, deadline: Instant) -> io::Result<Response> {
        let line = write_line(request).map_err(io::Error::other)?;
        let mut stream = UnixStream::connect(&self.0)?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(&line)?;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        while !answer.contains(&b'\n') {
            stream.set_read_timeout(Some(left(deadline)?))?;
            let n = stream.read(&mut part)?;
            if n == 0 {
                return Err(io::Error::other("the node daemon hung up"));
            }
            answer.extend_from_slice(part.get(..n).unwrap_or_default());
            if answer.len() > MAX_LINE {
                return Err(io::Error::other("the node daemon's answer has no end"));
            }
        }
        serde_json::from_slice(answer.trim_ascii_end()).map_err(io::Error::other)
    }

    fn wait(&mut self, deadline: Instant) -> bool {
        let Ok(left) = left(deadline) else { return false };
        // A daemon that starts makes its socket anew.
        match self.watched() {
            Ok(watch) => {
                let until = left.min(PAUSE);
                let timeout = Timespec {
                    tv_sec: i64::try_from(until.as_secs()).unwrap_or(1),
                    tv_nsec: until.subsec_nanos().into(),
                };
                let mut fds = [PollFd::new(&watch, PollFlags::IN)];
                let _ = poll(&mut fds, Some(&timeout));
                let mut room = [MaybeUninit::uninit(); 4096];
                let mut events = Reader::new(watch.as_fd(), &mut room);
                while events.next().is_ok() {}
            }
            Err(_) => std::thread::sleep(left.min(PAUSE)),
        }
        Instant::now() < deadline
    }
}

impl Socket {
    fn watched(&self) -> io::Result<rustix::fd::OwnedFd> {
        let dir = self.0.parent().ok_or(io::ErrorKind::NotFound)?;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, dir, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
        Ok(watch)
    }
}
