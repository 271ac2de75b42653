//! A request's body on its way to the other node.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::StatusCode;
use http_body::Body as _;
use tokio::sync::oneshot;

use super::meta;
use super::stream::poll_send;
use crate::body::Body;

/// Waits until the destination wants the body, or has answered without it.
pub(super) async fn await_continue(response: &mut ResponseFuture) {
    poll_fn(|cx| match response.poll_informational(cx) {
        Poll::Ready(Some(Ok(informational))) if informational.status() != StatusCode::CONTINUE => {
            // 102 and 103 are not passed on; the next one may be the 100.
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    })
    .await;
}

/// Sends a body to its end, at the pace that the other side allows.
pub(super) async fn upload_body(
    mut send: SendStream<Bytes>,
    mut body: Body,
    wanted: Option<oneshot::Receiver<()>>,
) {
    if let Some(wanted) = wanted
        && wanted.await.is_err()
    {
        send.send_reset(Reason::CANCEL);
        return;
    }
    loop {
        // The other side may lose interest while this side waits for its application.
        let frame = poll_fn(|cx| {
            if send.poll_reset(cx).is_ready() {
                return Poll::Ready(None);
            }
            Pin::new(&mut body).poll_frame(cx).map(Some)
        })
        .await;
        match frame {
            None => return,
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(mut data) => {
                    let last = body.is_end_stream();
                    let sent = poll_fn(|cx| poll_send(&mut send, cx, &mut data, last)).await;
                    if last || sent.is_err() {
                        return;
                    }
                }
                Err(frame) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        meta::strip(&mut trailers);
                        let _ = send.send_trailers(trailers);
                        return;
                    }
                }
            },
            Some(Some(Err(error))) => {
                tracing::debug!(%error, "body broken off; resetting its stream");
                send.send_reset(Reason::CANCEL);
                return;
            }
            Some(None) => {
                let _ = send.send_data(Bytes::new(), true);
                return;
            }
        }
    }
}
