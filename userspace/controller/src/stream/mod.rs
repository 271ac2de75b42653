//! Streams to node daemons: `fairlead.config.v1.Configuration`, as its proto file documents it.
//!
//! Each stream is a small task. It wakes when something that its node needs has changed, takes the
//! latest state of that from [`crate::scope`] and waits for the node's word; what changes meanwhile
//! is taken the next time.

mod frame;
mod session;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_wire::config::MAX_MESSAGE_BYTES;
use http_body::Body as HttpBody;
use tokio::sync::{mpsc, watch};
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use crate::auth::{Identify, NodeIdentity, bearer};
use crate::metrics::Metrics;
use crate::scope::World;
use frame::{Frames, NodeMessages};

pub use crate::scope::verdicts;

/// The path of the one method.
pub const PATH: &str = "/fairlead.config.v1.Configuration/Stream";

/// How streams behave.
#[derive(Clone, Copy, Debug)]
pub struct StreamSettings {
    /// Least time between two Updates to one node; what changes meanwhile goes together. The
    /// first change after a quiet time goes at once.
    pub gap: Duration,
    /// How long a node may take to answer an Update.
    pub ack_timeout: Duration,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self { gap: Duration::from_millis(20), ack_timeout: Duration::from_secs(60) }
    }
}

/// The gRPC service.
#[derive(Clone)]
pub struct ConfigurationService {
    shared: Arc<Shared>,
}

/// What all streams share.
pub(crate) struct Shared {
    pub(crate) world: Arc<World>,
    pub(crate) identify: Arc<dyn Identify<NodeIdentity>>,
    pub(crate) metrics: Arc<Metrics>,
    /// The certificates that the mesh trusts, PEM.
    pub(crate) trust: watch::Receiver<Bytes>,
    pub(crate) settings: StreamSettings,
}

impl ConfigurationService {
    /// Serves what is in `world` to the nodes that `identify` knows.
    #[must_use]
    pub fn new(
        world: Arc<World>,
        identify: Arc<dyn Identify<NodeIdentity>>,
        metrics: Arc<Metrics>,
        trust: watch::Receiver<Bytes>,
        settings: StreamSettings,
    ) -> Self {
        Self { shared: Arc::new(Shared { world, identify, metrics, trust, settings }) }
    }

    /// Answers a request for [`PATH`].
    pub async fn serve<B>(&self, request: http::Request<B>) -> http::Response<tonic::body::Body>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        match self.open(request).await {
            Ok(frames) => {
                let mut response = http::Response::new(tonic::body::Body::new(frames));
                let kind = http::HeaderValue::from_static("application/grpc");
                response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
                response
            }
            Err(status) => status.into_http(),
        }
    }

    async fn open<B>(&self, request: http::Request<B>) -> Result<Frames, Status>
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let (head, body) = request.into_parts();
        let metadata = MetadataMap::from_headers(head.headers);
        if metadata.get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
            return Err(Status::unimplemented("compressed messages are not read"));
        }
        let token = bearer(&metadata)?.to_owned();
        let identity = self.shared.identify.identify(&token).await?;
        let input = Streaming::new_request(NodeMessages, body, None, Some(MAX_MESSAGE_BYTES));
        // One frame may wait: the rest stays where it can be merged.
        let (out, frames) = mpsc::channel(1);
        tokio::spawn(session::run(Arc::clone(&self.shared), identity, token, input, out));
        Ok(Frames::new(frames))
    }
}

#[cfg(test)]
mod tests;
