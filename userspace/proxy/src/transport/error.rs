//! Why a stream could not be carried, by whose fault, and how logs and metrics call it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_identity::{CertificateError, PeerRefusal};
use fairlead_types::{Refusal, ResponseFlags};
use http::StatusCode;

/// What a timeout of the TCP connection was waiting for.
pub(super) const CONNECTION: &str = "the TCP connection";
/// What a timeout of the TLS handshake was waiting for.
pub(super) const HANDSHAKE: &str = "the TLS handshake";

/// Why a stream or session failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// This node has no certificate to show. Blame: this node or its CA.
    #[error(transparent)]
    NoCertificate(#[from] CertificateError),
    /// The destination does not accept connections. Blame: the destination or the network.
    #[error("connecting to {to} failed: {error}")]
    Connect {
        /// The address that was tried.
        to: SocketAddr,
        /// The system's answer.
        error: Arc<io::Error>,
    },
    /// The peer is not who it has to be. Blame: the peer.
    #[error("{to}: {refusal}")]
    Peer {
        /// The peer's address.
        to: SocketAddr,
        /// What is wrong with it.
        refusal: PeerRefusal,
    },
    /// The TLS handshake failed. Blame: named in the reason.
    #[error("TLS handshake with {to} failed: {reason}")]
    Handshake {
        /// The peer's address.
        to: SocketAddr,
        /// In words.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {limit:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// A bound of this node is reached.
    #[error("{0}")]
    Overload(&'static str),
    /// The destination's node refused the stream: policy, or its application did.
    #[error("the destination refused: {status}{}", refusal.map(|r| format!(" ({r})")).unwrap_or_default())]
    Refused {
        /// The answer to the CONNECT.
        status: StatusCode,
        /// The class that a Fairlead node names with it.
        refusal: Option<Refusal>,
    },
    /// The peer reset the stream.
    #[error("the stream was reset by the {by}: {reason}")]
    Reset {
        /// `peer` or `this node`.
        by: &'static str,
        /// HTTP/2's reason.
        reason: h2::Reason,
    },
    /// The session ended under the stream. Blame: the peer's node or the network.
    #[error("the session ended: {0}")]
    SessionLost(String),
    /// The session ended before the stream began: nothing of it was sent. Blame: as above.
    #[error("the session ended before anything was sent: {0}")]
    Unsent(String),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The request cannot be carried. Blame: the application.
    #[error("the request cannot be carried: {0}")]
    Request(&'static str),
    /// This node is shutting down.
    #[error("this node is shutting down")]
    Draining,
}

impl TransportError {
    /// Whether nobody answered at the address, or the connection was refused: what a packet filter
    /// does.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Timeout { what: CONNECTION, .. })
    }

    /// The class for `istio_tcp_connections_failed_total`.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NoCertificate(_) | Self::Peer { .. } => Refusal::IdentityError,
            Self::Handshake { .. } | Self::Timeout { what: HANDSHAKE, .. } => Refusal::TlsFailure,
            Self::Overload(_) | Self::Draining => Refusal::Overload,
            Self::Refused { refusal: Some(class), .. } => *class,
            Self::Refused { status, .. }
                if matches!(*status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) =>
            {
                Refusal::Deny
            }
            Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Refused { .. }
            | Self::Reset { .. }
            | Self::SessionLost(_)
            | Self::Unsent(_)
            | Self::Protocol(_)
            | Self::Request(_) => Refusal::Connect,
        }
    }

    /// Envoy's flag for the access log.
    #[must_use]
    pub fn flags(&self) -> ResponseFlags {
        match self {
            Self::Refused { .. } if self.refusal() == Refusal::Deny => {
                ResponseFlags::UnauthorizedExternalService
            }
            Self::NoCertificate(_)
            | Self::Connect { .. }
            | Self::Peer { .. }
            | Self::Handshake { .. }
            | Self::Timeout { .. }
            | Self::Refused { .. } => ResponseFlags::UpstreamConnectionFailure,
            Self::Overload(_) | Self::Draining => ResponseFlags::UpstreamOverflow,
            Self::Reset { .. } | Self::SessionLost(_) | Self::Unsent(_) => {
                ResponseFlags::UpstreamConnectionTermination
            }
            Self::Protocol(_) => ResponseFlags::UpstreamProtocolError,
            Self::Request(_) => ResponseFlags::DownstreamProtocolError,
        }
    }

    /// Whether the destination's application cannot have seen anything of the stream, so that
    /// trying again (there or elsewhere) repeats nothing.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            Self::NoCertificate(_)
            | Self::Connect { .. }
            | Self::Peer { .. }
            | Self::Handshake { .. }
            | Self::Timeout { .. }
            | Self::Overload(_)
            | Self::Unsent(_)
            | Self::Draining => true,
            Self::Refused { refusal, .. } => *refusal == Some(Refusal::Connect),
            Self::Reset { reason, .. } => *reason == h2::Reason::REFUSED_STREAM,
            Self::SessionLost(_) | Self::Protocol(_) | Self::Request(_) => false,
        }
    }
}

impl TransportError {
    /// Whether the peer's transport has not looked at the stream: GOAWAY overtook it, it was refused
    /// as one too many, or the session ended before it. Another session may well take it.
    pub(crate) fn is_unseen(&self) -> bool {
        matches!(
            self,
            Self::Unsent(_) | Self::Reset { by: "peer", reason: h2::Reason::REFUSED_STREAM }
        )
    }
}

impl From<h2::Error> for TransportError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => {
                Self::Reset { by: if error.is_remote() { "peer" } else { "this node" }, reason }
            }
            // An orderly GOAWAY is the error of those streams only that the peer has not looked at
            // (RFC 9113 section 6.8); streams that it has go on.
            Some(h2::Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => {
                Self::Reset { by: "peer", reason: h2::Reason::REFUSED_STREAM }
            }
            Some(reason) if error.is_library() && reason != h2::Reason::NO_ERROR => {
                Self::Protocol(error.to_string())
            }
            _ => Self::SessionLost(error.to_string()),
        }
    }
}
