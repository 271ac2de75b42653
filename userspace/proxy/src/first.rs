//! The first bytes of a client: waiting for them, for a bounded time, and what they say.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::detect::{Sniff, sniff};

/// How long a client of an undeclared port may be silent before its server is given the word. A
/// server-first protocol must have its banner within 10 ms.
pub(crate) const SILENCE: Duration = Duration::from_millis(5);
/// How long a client that began like HTTP may take from its first byte to the end of its request
/// line.
pub(crate) const HALF_LINE: Duration = Duration::from_secs(1);
/// What one read asks for.
const READ: usize = 4 * 1024;

/// What a client began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Something else.
    Bytes,
    /// Nothing, for as long as was waited.
    Silent,
}

/// Reads the first bytes into `buf`, which goes in front of whatever reads the stream next.
/// `silence` is how long to wait for the first of them; `None` is for ever.
///
/// # Errors
/// The connection broke.
pub(crate) async fn read_opening(
    stream: &TcpStream,
    buf: &mut BytesMut,
    silence: Option<Duration>,
) -> io::Result<Opening> {
    let mut half_line = None;
    loop {
        match sniff(buf) {
            Sniff::Http1 => return Ok(Opening::Http1),
            Sniff::Http2 => return Ok(Opening::Http2),
            Sniff::Tls | Sniff::Other => return Ok(Opening::Bytes),
            Sniff::NeedMore => {}
        }
        // In all, however often a little more comes.
        let until = if buf.is_empty() {
            silence.map(|silence| Instant::now() + silence)
        } else {
            Some(*half_line.get_or_insert_with(|| Instant::now() + HALF_LINE))
        };
        let ready = match until {
            Some(until) => timeout_at(until, stream.readable()).await,
            None => Ok(stream.readable().await),
        };
        match ready {
            Ok(ready) => ready?,
            Err(_) if buf.is_empty() => return Ok(Opening::Silent),
            Err(_) => return Ok(Opening::Bytes),
        }
        buf.reserve(READ);
        match stream.try_read_buf(buf) {
            // It has finished sending: what is there is all there is.
            Ok(0) => return Ok(Opening::Bytes),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn a_request_line_in_drops_is_given_up_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        let (mut client, server) = (client.unwrap(), server.unwrap().0);
        let drops = tokio::spawn(async move {
            client.write_all(b"GET /").await.unwrap();
            loop {
                sleep(HALF_LINE / 16).await;
                if client.write_all(b"a").await.is_err() {
                    return;
                }
            }
        });
        let (mut buf, began) = (BytesMut::new(), Instant::now());
        let opening = timeout_at(began + 4 * HALF_LINE, read_opening(&server, &mut buf, None));
        assert_eq!(opening.await.unwrap().unwrap(), Opening::Bytes);
        assert!(buf.starts_with(b"GET /aaa"));
        drops.abort();
    }
}
