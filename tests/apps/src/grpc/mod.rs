//! gRPC over HTTP/2 by hand: length-prefixed messages (PROTOCOL-HTTP2.md) whose only field is
//! number 1, and status in the trailers.

pub(crate) mod client;
pub(crate) mod server;

use anyhow::bail;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// Longest message taken.
const MAX_MESSAGE: usize = 1 << 20;

/// Whether these are the headers of a gRPC call.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(http::header::CONTENT_TYPE);
    value.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// A message with `text` as its field 1, length-prefixed.
pub(crate) fn encode(text: &str) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(0x0a);
    let mut length = text.len();
    while length >= 0x80 {
        message.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    message.put_u8((length & 0x7f) as u8);
    message.put_slice(text.as_bytes());
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put(message);
    framed.freeze()
}

/// The messages of a body, as they come.
pub(crate) struct Messages {
    body: Incoming,
    buffered: BytesMut,
    /// Trailers, once the body ended.
    pub(crate) trailers: Option<HeaderMap>,
}

impl Messages {
    /// Of this body.
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, buffered: BytesMut::new(), trailers: None }
    }

    /// Field 1 of the next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(text) = self.take()? {
                return Ok(Some(text));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => match frame?.into_data() {
                    Ok(data) => self.buffered.extend_from_slice(&data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }

    fn take(&mut self) -> anyhow::Result<Option<String>> {
        if self.buffered.len() < 5 {
            return Ok(None);
        }
        let length = u32::from_be_bytes([
            self.buffered[1],
            self.buffered[2],
            self.buffered[3],
            self.buffered[4],
        ]) as usize;
        if length > MAX_MESSAGE {
            bail!("message of {length} bytes");
        }
        if self.buffered.len() < 5 + length {
            return Ok(None);
        }
        self.buffered.advance(5);
        let message = self.buffered.split_to(length);
        if message.is_empty() {
            return Ok(Some(String::new()));
        }
        if message[0] != 0x0a {
            bail!("not field 1");
        }
        let (mut at, mut size, mut shift) = (1, 0usize, 0);
        while let Some(byte) = message.get(at) {
            at += 1;
            size |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 28 {
                break;
            }
        }
        match message.get(at..at + size) {
            Some(text) => Ok(Some(String::from_utf8_lossy(text).into_owned())),
            None => bail!("field 1 is longer than its message"),
        }
    }
}
