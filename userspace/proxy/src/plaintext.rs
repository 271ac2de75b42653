//! Connections in plaintext to a pod of this node, where PeerAuthentication allows them.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fairlead_config::model::{Inbound, Snapshot};
use fairlead_types::{AppProtocol, ClientAddr, OriginalDst, Refusal};
use tokio::net::TcpStream;

use crate::first::{Opening, SILENCE, read_opening};
use crate::http::{arrive, server};
use crate::inbound::{Arrival, HELLO, NO_HELLO, Receiver, look, mesh, of_mesh};
use crate::l4;
use crate::live::{Facts, Guarded, State};
use crate::reach::{self, Upstream};
use crate::report::{TcpReport, Verdict};
use crate::sock;

/// A connection in plaintext, where that is allowed.
pub(crate) struct Plain {
    pub(crate) receiver: Receiver,
    pub(crate) inbound: Arc<Inbound>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) protocol: AppProtocol,
}

impl Plain {
    fn facts(&self) -> Facts {
        Facts { peer: None, fingerprint: None, source: self.peer, destination: self.local }
    }

    /// The client has spoken, and it was no mesh ClientHello.
    pub(crate) async fn spoken(self, snapshot: &Snapshot, tcp: TcpStream, mut report: TcpReport) {
        let mut first = BytesMut::new();
        let opening = if self.protocol.is_http() || self.protocol.needs_detection() {
            read_opening(&tcp, &mut first, Some(SILENCE)).await
        } else {
            Ok(Opening::Bytes)
        };
        let http2 = match opening {
            Ok(Opening::Http2) => true,
            Ok(Opening::Http1) => false,
            Ok(_) if self.protocol.is_http() => false,
            Ok(_) => return self.bytes(snapshot, tcp, first.freeze(), report).await,
            Err(error) => {
                report.verdict.reason = Some(error.to_string().into());
                return;
            }
        };
        report.becomes_http();
        let arrival = arrive::Arrival {
            client: ClientAddr(self.peer),
            dst: OriginalDst(self.local),
            facts: self.facts(),
            receiver: self.receiver,
            native: false,
        };
        let served = server::serve_inbound(arrival, tcp, first.freeze(), http2, &report.entry);
        let broken = Box::pin(served).await;
        report.broke_protocol(broken);
    }

    /// The client is silent: its server may speak first. A mesh client that was merely slow is
    /// still served as one, as long as nothing was sent to it.
    pub(crate) async fn silent(self, snapshot: &Snapshot, tcp: TcpStream, mut report: TcpReport) {
        if self.protocol.is_http() {
            // A client may take its time before its first request; its server has nothing to say.
            let mut byte = [0];
            tokio::select! {
                _ = tcp.peek(&mut byte) => {}
                cut = report.entry.until_cut() => {
                    report.verdict.reason = Some(cut.to_string().into());
                    return sock::reset(tcp);
                }
            }
            return self.after_silence(snapshot, tcp, report).await;
        }
        let app = match self.connect(snapshot, &mut report).await {
            Ok(app) => app,
            // HTTP may be allowed to some requests where a connection is not to all: then the
            // server cannot be given the word, and the client has to speak.
            Err(_) if self.inbound.authz.needs_http(self.local.port()) => {
                report.verdict = Verdict::default();
                return self.after_silence(snapshot, tcp, report).await;
            }
            Err(verdict) => {
                report.verdict = verdict;
                return sock::reset(tcp);
            }
        };
        let (mut byte, mut client_byte) = ([0], [0]);
        let server_first = tokio::select! {
            biased;
            spoke = app.peek(&mut byte) => spoke.is_ok(),
            spoke = tcp.peek(&mut client_byte) => spoke.is_err(),
            cut = report.entry.until_cut() => {
                report.verdict.reason = Some(cut.to_string().into());
                return sock::reset(tcp);
            }
        };
        if server_first {
            report.open();
            report.verdict =
                l4::relay(tcp, Upstream::Tcp(app), Bytes::new(), Bytes::new(), &report.entry).await;
        } else {
            drop(app);
            self.after_silence(snapshot, tcp, report).await;
        }
    }

    async fn after_silence(self, snapshot: &Snapshot, tcp: TcpStream, mut report: TcpReport) {
        match look(&tcp, self.local.port(), HELLO).await {
            Ok(Arrival::Mesh(wire)) => {
                Box::pin(mesh(self.receiver, snapshot, tcp, wire, report)).await;
            }
            Ok(Arrival::Ended) if of_mesh(snapshot, self.peer) => {
                report.verdict = Verdict::refused(Refusal::TlsFailure, NO_HELLO);
                sock::reset(tcp);
            }
            Ok(Arrival::Plaintext | Arrival::Ended) => self.spoken(snapshot, tcp, report).await,
            Ok(Arrival::Silent) => {
                report.verdict.reason = Some("the client said nothing".into());
                sock::reset(tcp);
            }
            Err(error) => report.verdict.reason = Some(error.to_string().into()),
        }
    }

    async fn connect(
        &self,
        snapshot: &Snapshot,
        report: &mut TcpReport,
    ) -> Result<TcpStream, Verdict> {
        reach::authorize(&self.inbound, &self.facts()).map_err(reach::Failure::verdict)?;
        let (shared, pod) = (&self.receiver.shared, &self.receiver.pod.id);
        shared
            .guard(&report.entry, snapshot, Guarded::connection(pod, self.facts()))
            .map_err(reach::Failure::verdict)?;
        report.name_application(self.local);
        let timeout = snapshot.mesh.connect_timeout;
        let client = ClientAddr(self.peer);
        let app = reach::deliver(&self.receiver.pod, client, self.local, timeout)
            .await
            .map_err(reach::Failure::verdict)?;
        report.upstream_local = app.local_addr().ok();
        report.entry.set(State::Bytes, Some(self.local));
        Ok(app)
    }

    async fn bytes(self, snapshot: &Snapshot, tcp: TcpStream, first: Bytes, mut report: TcpReport) {
        match self.connect(snapshot, &mut report).await {
            Ok(app) => {
                report.open();
                let app = Upstream::Tcp(app);
                report.verdict = l4::relay(tcp, app, first, Bytes::new(), &report.entry).await;
            }
            Err(verdict) => {
                report.verdict = verdict;
                sock::reset(tcp);
            }
        }
    }
}
