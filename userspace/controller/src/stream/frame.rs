//! Messages to nodes, written from bytes that all streams share: a resource is encoded once, when
//! it changes, and copied into each message. A message has memory of its own that goes when it has
//! gone out; a buffer per stream would keep that of the largest one, which is the first, for ever.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes};
use fairlead_wire::config::{Found, NodeMessage};
use http::HeaderMap;
use http_body::{Body, Frame as BodyFrame};
use prost::Message;
use prost::encoding::{
    WireType, encode_key, encode_varint, encoded_len_varint, key_len, message as field,
};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};

use crate::scope::Batch;

/// Bytes by which a connection's buffer for what comes in grows: most messages are small, and
/// streams are many.
const BUFFER: usize = 1 << 10;
/// Of no meaning for what comes in.
const YIELD: usize = 16 << 10;
/// Bytes before each message: whether it is compressed, and its length.
const HEAD: usize = 5;

/// A `ControllerMessage`.
#[derive(Debug)]
pub(crate) enum Frame {
    Update {
        nonce: u64,
        batch: Batch,
        /// The trust bundle, when it is news.
        trust: Option<Bytes>,
    },
    Found(Found),
}

impl Frame {
    fn write(&self, out: &mut impl BufMut) {
        match self {
            Self::Found(found) => field::encode(2, found, out),
            Self::Update { nonce, batch, trust } => {
                encode_key(1, WireType::LengthDelimited, out);
                encode_varint(self.update_len(*nonce, batch, trust.as_ref()) as u64, out);
                put_varint(1, *nonce, out);
                for resource in &batch.upserts {
                    put_bytes(2, resource, out);
                }
                for key in &batch.removed {
                    field::encode(3, key, out);
                }
                put_varint(4, batch.complete.into(), out);
                put_varint(5, oldest(batch), out);
                if let Some(trust) = trust {
                    put_bytes(6, trust, out);
                }
            }
        }
    }

    fn update_len(&self, nonce: u64, batch: &Batch, trust: Option<&Bytes>) -> usize {
        let resources = batch.upserts.iter().map(|resource| bytes_len(2, resource));
        let removed = batch.removed.iter().map(|key| field::encoded_len(3, key));
        varint_len(1, nonce)
            + resources.sum::<usize>()
            + removed.sum::<usize>()
            + varint_len(4, batch.complete.into())
            + varint_len(5, oldest(batch))
            + trust.map_or(0, |trust| bytes_len(6, trust))
    }

    /// Bytes of the message.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Found(found) => found.encoded_len(),
            Self::Update { nonce, batch, trust } => self.update_len(*nonce, batch, trust.as_ref()),
        }
    }
}

fn oldest(batch: &Batch) -> u64 {
    batch.oldest.map_or(0, |(_, micros)| micros)
}

// As prost does: what is zero is not written.

fn put_varint(tag: u32, value: u64, out: &mut impl BufMut) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

fn varint_len(tag: u32, value: u64) -> usize {
    if value == 0 { 0 } else { key_len(tag) + encoded_len_varint(value) }
}

fn put_bytes(tag: u32, bytes: &[u8], out: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

fn bytes_len(tag: u32, bytes: &[u8]) -> usize {
    key_len(tag) + encoded_len_varint(bytes.len() as u64) + bytes.len()
}

impl Frame {
    /// The message as gRPC sends it, uncompressed.
    fn message(&self) -> Bytes {
        let size = self.size();
        let mut out = Vec::with_capacity(HEAD + size + 16);
        out.put_u8(0);
        out.put_u32(0);
        self.write(&mut out);
        let length = u32::try_from(out.len() - HEAD).unwrap_or(u32::MAX);
        out[1..HEAD].copy_from_slice(&length.to_be_bytes());
        out.into()
    }
}

/// The body of an answer: frames as they come, then how it ended.
pub(crate) struct Frames(Option<mpsc::Receiver<Result<Frame, Status>>>);

impl Frames {
    pub(crate) fn new(frames: mpsc::Receiver<Result<Frame, Status>>) -> Self {
        Self(Some(frames))
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        let Some(frames) = &mut self.0 else { return Poll::Ready(None) };
        let status = match ready!(frames.poll_recv(context)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(BodyFrame::data(frame.message())))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.0 = None;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            trailers.clear();
            trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("13"));
        }
        Poll::Ready(Some(Ok(BodyFrame::trailers(trailers))))
    }
}

/// Reads `NodeMessage`s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NodeMessages;

impl Decoder for NodeMessages {
    type Item = NodeMessage;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<NodeMessage>, Status> {
        let message = NodeMessage::decode(input.copy_to_bytes(input.remaining()))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Some(message))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use fairlead_wire::config::{ControllerMessage, Key, Resource, Update, controller_message};

    use super::*;

    #[test]
    fn frames_are_controller_messages() {
        let key = Key { kind: "Pod".into(), name: "p".into(), ..Key::default() };
        let resource = Resource {
            key: Some(key.clone()),
            version: "v".into(),
            json: b"{}".to_vec(),
            generation: 0,
        };
        for (complete, trust, oldest) in
            [(true, Some(Bytes::from_static(b"pem")), 1_700_000_000_000_000), (false, None, 0)]
        {
            let batch = Batch {
                upserts: vec![resource.encode_to_vec().into(); 2],
                removed: vec![key.clone()],
                complete,
                oldest: (oldest != 0).then(|| (Instant::now(), oldest)),
                ..Batch::default()
            };
            let frame = Frame::Update { nonce: 7, batch, trust: trust.clone() };
            let mut bytes = Vec::new();
            frame.write(&mut bytes);
            let read = ControllerMessage::decode(bytes.as_slice()).expect("a message");
            let update = Update {
                nonce: 7,
                upserts: vec![resource.clone(); 2],
                removed: vec![key.clone()],
                complete,
                oldest_change_micros: i64::try_from(oldest).expect("small"),
                trust_bundle_pem: trust.map(|t| t.to_vec()).unwrap_or_default(),
            };
            assert_eq!(frame.size(), update.encoded_len());
            let message = frame.message();
            assert_eq!(message[1..5], u32::try_from(bytes.len()).expect("small").to_be_bytes());
            assert_eq!((message[0], &message[5..]), (0, bytes.as_slice()));
            assert_eq!(read.message, Some(controller_message::Message::Update(update)));
        }
        let found = Found { id: 3, known: true, unclaimed: vec!["10.0.0.1".to_owned()] };
        let mut bytes = Vec::new();
        Frame::Found(found.clone()).write(&mut bytes);
        let read = ControllerMessage::decode(bytes.as_slice()).expect("a message");
        assert_eq!(read.message, Some(controller_message::Message::Found(found)));
    }
}
