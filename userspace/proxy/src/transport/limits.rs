//! Every bound of the transport, by name. `docs/wire-format.md` explains those that a peer can
//! meet.

use std::time::Duration;

/// Streams that one session carries at the same time, as announced and as used.
pub const STREAMS_PER_SESSION: u32 = 256;
/// Sessions from one pod to one destination address; with [`STREAMS_PER_SESSION`] that is
/// 32,768 connections.
pub const SESSIONS_PER_DESTINATION: usize = 128;
/// Flow-control credit of one stream: what a stalled application can make this node hold.
pub const STREAM_WINDOW: u32 = 512 * 1024;
/// Tasks that work for one inbound session: streams that the peer has reset count until their
/// task has ended. One more, and the session ends.
pub const TASKS_PER_SESSION: usize = 2 * STREAMS_PER_SESSION as usize;
/// Sessions that a node accepts; with some 64 KiB each that is 2 GiB.
pub const INBOUND_SESSIONS: usize = 32 * 1024;
/// Credit of a session: as much as all its streams together, so that stalled streams never
/// exhaust what the others need.
pub const SESSION_WINDOW: u32 = STREAMS_PER_SESSION * STREAM_WINDOW;
/// What a stream may have buffered for sending.
pub const STREAM_SEND_BUFFER: usize = 512 * 1024;
/// Largest frame payload that is announced and sent.
pub const FRAME_SIZE: u32 = 64 * 1024;
/// Largest decoded header list. It also bounds CONTINUATION frames: a header block may not need
/// more of them than this list can explain.
pub const HEADER_LIST: u32 = 96 * 1024;
/// HPACK dynamic table.
pub const HEADER_TABLE: u32 = 4096;
/// Streams that the peer opened and reset before they were looked at (rapid reset,
/// CVE-2023-44487); one more ends the session.
pub const PENDING_RESETS: usize = 64;
/// Streams that this side reset because the peer broke the protocol, over a session's life.
pub const ERROR_RESETS: usize = 1024;
/// Streams reset by this side that are remembered, so that late frames are not errors.
pub const REMEMBERED_RESETS: usize = 256;
/// How long such a stream is remembered.
pub const REMEMBER_RESET: Duration = Duration::from_secs(5);
/// Credit for the bookkeeping of small DATA frames that wait for a slow application.
pub const SMALL_FRAME_BUDGET: usize = 64 * 1024 * 1024;
/// Streams on one session over its whole life; then it is replaced, well before the 2^30 that
/// stream identifiers allow.
pub const STREAMS_IN_LIFETIME: u64 = 1 << 29;

/// Plaintext that one round may collect before it has to be sealed and written.
pub const ROUND: usize = 256 * 1024;
/// What one read of the socket may return.
pub const READ: usize = 64 * 1024;

/// A TCP connection has to be made within this time.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A TLS handshake, and the peer's first frame, within this.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes with strangers under way at the same time; one more is refused at once.
pub const HANDSHAKES: usize = 2048;
/// Of these, from one address: so that one stranger does not take them all.
pub const HANDSHAKES_PER_SOURCE: usize = 64;
/// How long a stream waits for a place on a session, whatever it is that it waits for.
pub const PLACE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a pod's first connection waits for its certificate.
pub const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(5);
/// A session that comes before the pod's certificate waits this long for it, which is less than
/// [`HANDSHAKE_TIMEOUT`], so that the reason is what is reported.
pub const INBOUND_CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(2);
/// A stream that moves this much within [`BULK_WITHIN`] is bulk: its session takes no new ones.
pub const BULK: u64 = 8 * 1024 * 1024;
/// See [`BULK`].
pub const BULK_WITHIN: Duration = Duration::from_secs(1);
/// With so many sessions to a destination, bulk streams share theirs after all.
pub const BULK_SESSIONS: usize = 8;
/// While new streams come, or new connections to another pod of the node, the way to their
/// destination is walked again when so much time has passed, and up to [`PATH_SPREAD`] more.
pub const PATH_DUE: Duration = Duration::from_secs(20);
/// See [`PATH_DUE`].
pub const PATH_SPREAD: Duration = Duration::from_secs(10);
/// After so long a time without success, no new stream goes over sessions from before, and no new
/// connection within the node.
pub const PATH_STALE: Duration = Duration::from_secs(90);
/// So many times in a row nothing answers at a destination, or it refuses, before that counts.
pub const PATH_ATTEMPTS: usize = 2;
/// Pause between them.
pub const PATH_RETRY: Duration = Duration::from_secs(1);
/// A session without a stream is closed after this time.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// A session over which nothing came for this long is asked whether it is alive.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// And has this long to answer.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Unacknowledged data kills a TCP connection after this time (`TCP_USER_TIMEOUT`).
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often idle, dead and retired sessions are looked for.
pub const SWEEP: Duration = Duration::from_secs(5);
