//! Sockets: connecting through a pod's namespace, refusing with a reset, looking at first bytes.

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{Interest, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

/// Connects a socket that a pod's port made.
///
/// # Errors
/// The connection failed, or `timeout` passed ([`io::ErrorKind::TimedOut`]).
pub(crate) async fn connect(
    fd: OwnedFd,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
    let stream = tokio::time::timeout(timeout, socket.connect(to))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connect timeout"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// From here on, dropping the socket sends a RST instead of a FIN.
pub(crate) fn reset_on_drop(stream: &TcpStream) {
    // Fails only on a socket that is already dead.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Closes with a RST: the client sees a refusal, not an orderly end.
pub(crate) fn reset(stream: TcpStream) {
    reset_on_drop(&stream);
    drop(stream);
}

/// Whether the connection is still one: not if it was reset, though what came before may yet be
/// read.
pub(crate) fn is_connected(stream: &TcpStream) -> bool {
    // getpeername(2): ENOTCONN from the moment on that the kernel has closed the socket.
    stream.peer_addr().is_ok()
}

/// Waits until the connection breaks. Reading says so too, but only once everything that came
/// before has been read, for which there may be no room.
pub(crate) async fn broken(stream: &TcpStream) -> io::Error {
    loop {
        match stream.ready(Interest::ERROR).await {
            Err(error) => return error,
            Ok(_) => match stream.take_error() {
                Err(error) | Ok(Some(error)) => return error,
                // Somebody else has taken the error: whoever reads or writes gets to know.
                Ok(None) => std::future::pending().await,
            },
        }
    }
}

/// [`broken`], waited for from when it is first asked.
#[derive(Default)]
pub(crate) struct Breaking<'a>(Option<Pin<Box<dyn Future<Output = io::Error> + Send + 'a>>>);

impl<'a> Breaking<'a> {
    /// Ready once `stream` has broken.
    pub(crate) fn poll(&mut self, stream: &'a TcpStream, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.0.get_or_insert_with(|| Box::pin(broken(stream))).as_mut().poll(cx)
    }
}

/// Sends the FIN.
pub(crate) fn shutdown_write(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).shutdown(Shutdown::Write)
}

/// Looks at the first bytes, without taking them, until `judge` has a verdict. `judge` sees what
/// is there and whether the peer has finished sending; then it must decide.
///
/// The verdict leaves the stream readable for whoever reads it next. A caller that gives up
/// before (timeout) may only close the stream, or read it after more bytes have come: see
/// [`peek_some`] for a wait that can be given up.
///
/// # Errors
/// Reading failed, or the peer finished and `judge` did not decide.
pub(crate) async fn peek_until<T>(
    stream: &TcpStream,
    buf: &mut [u8],
    mut judge: impl FnMut(&[u8], bool) -> Option<T>,
) -> io::Result<T> {
    loop {
        let finished = stream.ready(Interest::READABLE).await?.is_read_closed();
        // The look happens inside `try_io`, so that readiness which arrives meanwhile is kept
        // when "not enough yet" clears the readiness of before.
        let looked = stream.try_io(Interest::READABLE, || {
            let mut read = ReadBuf::new(buf);
            match stream.poll_peek(&mut Context::from_waker(Waker::noop()), &mut read) {
                Poll::Ready(Ok(n)) => match judge(read.filled(), finished || n == 0) {
                    Some(verdict) => Ok(verdict),
                    None if finished || n == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    None => Err(io::ErrorKind::WouldBlock.into()),
                },
                Poll::Ready(Err(e)) => Err(e),
                // The task's turn is over, or another reader was quicker.
                Poll::Pending => Err(io::ErrorKind::Interrupted.into()),
            }
        });
        match looked {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => tokio::task::yield_now().await,
            other => return other,
        }
    }
}

/// Waits until there is at least a byte (`Some(1)`), or the end (`Some(0)`), for at most `wait`;
/// takes nothing. `None`: the time passed.
///
/// # Errors
/// Reading failed.
pub(crate) async fn peek_some(stream: &TcpStream, wait: Duration) -> io::Result<Option<usize>> {
    match tokio::time::timeout(wait, stream.peek(&mut [0])).await {
        Ok(result) => result.map(Some),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn peeking_waits_for_enough_and_takes_nothing() {
        let (mut client, mut server) = pair().await;
        let writer = tokio::spawn(async move {
            for byte in b"abcdef" {
                client.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            client
        });
        let mut buf = [0; 16];
        let seen =
            peek_until(&server, &mut buf, |b, _| (b.len() >= 5).then(|| b.to_vec())).await.unwrap();
        assert!(seen.starts_with(b"abcde"));
        drop(writer.await.unwrap());
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"abcdef");
    }

    #[tokio::test]
    async fn a_connection_that_was_reset_is_none() {
        let (mut client, server) = pair().await;
        client.write_all(b"ab").await.unwrap();
        assert!(is_connected(&server));
        client.shutdown().await.unwrap();
        peek_until(&server, &mut [0; 8], |_, end| end.then_some(())).await.unwrap();
        assert!(is_connected(&server), "half of it is open");
        reset(client);
        broken(&server).await;
        assert!(!is_connected(&server));
        let mut read = [0; 8];
        assert_eq!(server.try_read(&mut read).unwrap(), 2, "and yet there is something to read");
    }

    #[tokio::test]
    async fn peeking_ends_when_the_peer_does() {
        let (mut client, server) = pair().await;
        client.write_all(b"ab").await.unwrap();
        let mut buf = [0; 16];
        let look = peek_until(&server, &mut buf, |b, end| (end || b.len() > 2).then_some(b.len()));
        let (seen, ()) = tokio::join!(look, async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            drop(client);
        });
        assert_eq!(seen.unwrap(), 2);
    }
}
