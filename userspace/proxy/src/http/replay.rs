//! A request's body that can be sent again, as long as it is small: what has been read of it is
//! kept, up to a bound, so that a retry begins at its first byte.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use crate::body::{Body, BodyError};

/// What is kept of a body; a longer one cannot be sent again once this much has been read.
pub(super) const REPLAY_MAX: usize = 64 * 1024;

struct State {
    body: Body,
    chunks: Vec<Bytes>,
    kept: usize,
    trailers: Option<HeaderMap>,
    /// The body has been read to its end.
    ended: bool,
    /// More has been read than is kept.
    overflowed: bool,
    /// Which reader may read; those of earlier tries may not.
    reader: u32,
}

/// A body that can be read again.
pub(super) struct Replay {
    state: Arc<Mutex<State>>,
    count: Arc<AtomicU64>,
}

impl Replay {
    /// `count` counts the bytes, once.
    pub(super) fn new(body: Body, count: Arc<AtomicU64>) -> Self {
        let state = State {
            body,
            chunks: Vec::new(),
            kept: 0,
            trailers: None,
            ended: false,
            overflowed: false,
            reader: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), count }
    }

    /// Whether it can be read (again) from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        !self.state.lock().overflowed
    }

    /// A reader from the beginning; readers before it read no more.
    pub(super) fn reader(&self) -> Reader {
        let mut state = self.state.lock();
        state.reader += 1;
        Reader {
            state: Arc::clone(&self.state),
            count: Arc::clone(&self.count),
            reader: state.reader,
            at: 0,
            done: false,
        }
    }
}

/// One reading of it.
pub(super) struct Reader {
    state: Arc<Mutex<State>>,
    count: Arc<AtomicU64>,
    reader: u32,
    at: usize,
    done: bool,
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        let mut guard = this.state.lock();
        let state = &mut *guard;
        if state.reader != this.reader {
            return Poll::Ready(Some(Err(BodyError::Filter("the request is being tried again"))));
        }
        if !state.overflowed && this.at < state.chunks.len() {
            this.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(state.chunks[this.at - 1].clone()))));
        }
        if state.ended {
            this.done = true;
            return Poll::Ready(state.trailers.clone().map(|t| Ok(Frame::trailers(t))));
        }
        let frame = match Pin::new(&mut state.body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(frame) => frame,
        };
        match &frame {
            None => {
                state.ended = true;
                this.done = true;
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.count.fetch_add(data.len() as u64, Ordering::Relaxed);
                    if state.overflowed || state.kept + data.len() > REPLAY_MAX {
                        state.overflowed = true;
                        state.chunks = Vec::new();
                    } else {
                        state.kept += data.len();
                        state.chunks.push(data.clone());
                        this.at += 1;
                    }
                    state.ended = http_body::Body::is_end_stream(&state.body);
                    this.done = state.ended;
                } else if let Some(trailers) = frame.trailers_ref() {
                    state.trailers = Some(trailers.clone());
                    state.ended = true;
                    this.done = true;
                }
            }
            Some(Err(_)) => state.overflowed = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.state.lock();
        let mut hint = http_body::Body::size_hint(&state.body);
        if !state.overflowed {
            let kept: usize =
                state.chunks[self.at.min(state.chunks.len())..].iter().map(Bytes::len).sum();
            let kept = kept as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + kept);
            }
            hint.set_lower(hint.lower() + kept);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn small_bodies_can_be_read_again_and_large_ones_not() {
        let count = Arc::new(AtomicU64::new(0));
        let replay = Replay::new(Body::full("hello"), Arc::clone(&count));
        let mut first = replay.reader();
        assert_eq!(first.size_hint().exact(), Some(5));
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        let second = replay.reader();
        assert_eq!(second.size_hint().exact(), Some(5));
        assert_eq!(second.collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(count.load(Ordering::Relaxed), 5);
        assert!(replay.is_whole());

        let large = Replay::new(Body::full(vec![7; REPLAY_MAX + 1]), count);
        assert!(large.is_whole());
        assert_eq!(large.reader().collect().await.unwrap().to_bytes().len(), REPLAY_MAX + 1);
        assert!(!large.is_whole());
    }

    #[tokio::test]
    async fn an_earlier_reader_reads_no_more() {
        let replay = Replay::new(Body::full("hello"), Arc::default());
        let mut first = replay.reader();
        let _second = replay.reader();
        assert!(first.frame().await.unwrap().is_err());
    }
}
