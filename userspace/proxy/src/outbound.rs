//! Connections that a pod of this node began: where they wanted to go, what they speak, and from
//! there to bytes ([`crate::l4`]) or HTTP ([`crate::http`]).

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use fairlead_config::model::{Outbound, OutboundPolicy, Snapshot};
use fairlead_policy::SourceView;
use fairlead_telemetry::{ServiceLabels, WorkloadLabels};
use fairlead_types::{AppProtocol, OriginalDst, Refusal};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::choice::Choice;
use crate::first::{Opening, SILENCE, read_opening};
use crate::http::server;
use crate::l4::{self, Carried};
use crate::labels::{self, Parties, Sides};
use crate::live::{Coming, Direction, Entry};
use crate::reach::Caller;
use crate::report::{TcpReport, Verdict};
use crate::sock;
use crate::state::{Pod, Shared};
use crate::unknown::Answer;

/// How long the entry of a connection that was dead before its turn came may belong to the next one
/// from its source, which waits in the queue.
pub(crate) const SUCCESSOR: Duration = Duration::from_secs(5);
/// Such entries of the node at the same time: they take places of connections to come. One more is
/// removed at once.
const SUCCESSORS: usize = 1024;

static ABANDONED: Semaphore = Semaphore::const_new(SUCCESSORS);

/// A captured connection, and where it wanted to go.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub(crate) caller: Caller,
    pub(crate) dst: OriginalDst,
    pub(crate) target: Outbound,
}

impl Outgoing {
    pub(crate) fn source(&self) -> SourceView<'_> {
        let workload = &self.caller.workload;
        SourceView {
            labels: &workload.labels,
            namespace: &workload.namespace,
            ip: self.caller.client_for(self.dst.0).ip(),
        }
    }

    /// What the destination port is said to speak.
    fn protocol(&self, snapshot: &Snapshot) -> AppProtocol {
        match &self.target {
            Outbound::Service(port) => port.protocol,
            Outbound::Workload(workload) => snapshot
                .target_port(&workload.id, self.dst.port())
                .map_or(AppProtocol::Detect, |port| port.protocol),
            // Routes by authority, and the refusal that HTTP deserves, need to know what it is.
            Outbound::Unknown if self.http_concerns_unknown(snapshot) => AppProtocol::Detect,
            Outbound::Unknown => AppProtocol::Tcp,
        }
    }

    fn http_concerns_unknown(&self, snapshot: &Snapshot) -> bool {
        snapshot.mesh.outbound == OutboundPolicy::RegistryOnly
            || !snapshot.virtual_hosts.exact.is_empty()
            || !snapshot.virtual_hosts.wildcard.is_empty()
    }

    /// The address that the application asked for, as it is, and its `upstream_cluster`. The
    /// DestinationRule of a headless service applies to its pods' addresses, as in Istio.
    pub(crate) fn direct(&self, snapshot: &Snapshot) -> (Choice, Arc<str>) {
        let asked = self.dst.0;
        let headless = match &self.target {
            Outbound::Workload(workload) => snapshot.target_port(&workload.id, asked.port()),
            Outbound::Service(_) | Outbound::Unknown => None,
        };
        let cluster = headless.filter(|target| target.service.is_headless()).and_then(|target| {
            let (service, port) = (&target.service, target.service_port);
            let port = snapshot.service_port(&service.namespace, &service.name, port)?;
            let client = snapshot.client(&self.caller.workload);
            snapshot.cluster(port.routes(client).default_cluster)
        });
        match cluster {
            Some(cluster) => (Choice::member(snapshot, cluster, asked), Arc::clone(&cluster.name)),
            None => (Choice::direct(snapshot, asked), "PassthroughCluster".into()),
        }
    }

    /// Who talks to whom, before there is an endpoint.
    pub(crate) fn parties(&self, snapshot: &Snapshot) -> Parties {
        let shared = &self.caller.shared;
        let service = match &self.target {
            Outbound::Service(port) => shared.labels.service(&port.service),
            Outbound::Workload(workload) => snapshot
                .target_port(&workload.id, self.dst.port())
                .map_or_else(ServiceLabels::unknown, |t| shared.labels.service(&t.service)),
            Outbound::Unknown if snapshot.mesh.outbound == OutboundPolicy::RegistryOnly => {
                ServiceLabels::black_hole()
            }
            Outbound::Unknown => ServiceLabels::pass_through("unknown"),
        };
        let destination = match &self.target {
            Outbound::Workload(w) => labels::workload(&shared.telemetry, snapshot, w),
            _ => WorkloadLabels::unknown(),
        };
        Parties {
            source: labels::workload(&shared.telemetry, snapshot, &self.caller.workload),
            destination,
            service,
            sides: Sides::Source,
            verified: None,
        }
    }
}

/// Serves one connection at a pod's outbound listener.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
    coming: Coming,
) {
    // An application with a port of its own may have reset this connection and begun another one
    // from there: then what is known of the source is where that one wants to go.
    if !sock::is_connected(&tcp) {
        tracing::debug!(pod = %pod.id, %peer, "a connection was reset before its turn came");
        return abandoned(&pod, peer);
    }
    let taken = pod.port.take_original_dst(peer);
    // The same, while it was looked up. The other one is refused when its turn comes.
    if !sock::is_connected(&tcp) {
        return;
    }
    let mut snapshot = shared.snapshots.load();
    let caller = Caller {
        workload: pod.workload(&snapshot),
        shared: Arc::clone(&shared),
        pod: Arc::clone(&pod),
        peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        baggage: OnceLock::new(),
    };
    let admission = shared.admit(&pod);
    let (dst, known) = match &taken {
        Ok(dst) => (OriginalDst::canonical(dst.0), true),
        // Nothing better is known to name in the log.
        Err(_) => (OriginalDst(tcp.local_addr().unwrap_or(peer)), false),
    };
    let mut target = if known { snapshot.outbound(dst) } else { Outbound::Unknown };
    let mut refused = None;
    if let (true, true, Outbound::Unknown, Some(who)) =
        (known, admission.is_ok(), &target, shared.unknown.get())
    {
        match who.look_up(dst.0.ip()).await {
            Answer::LookAgain => {
                snapshot = shared.snapshots.load();
                target = snapshot.outbound(dst);
            }
            Answer::Unknown => {}
            Answer::Refused(reason) => refused = Some(reason),
        }
    }
    let outgoing = Outgoing { caller, dst, target };
    let client = outgoing.caller.client_for(dst.0).0;
    let identity = Some(outgoing.caller.workload.identity.clone());
    let entry = shared.live.add(Direction::Outbound, &pod.id, client, dst.0, identity);
    drop(coming);
    let mut report = TcpReport::new(&shared, entry, outgoing.parties(&snapshot), client, dst.0);
    if let Err(miss) = taken {
        shared.counters.flow_miss.inc();
        report.verdict = Verdict::refused(Refusal::NetworkPolicy, miss.to_string());
        return sock::reset(tcp);
    }
    if admission.is_err() {
        report.verdict = Verdict::refused(Refusal::Overload, OVER_BOUND);
        return sock::reset(tcp);
    }
    if let Some(reason) = refused {
        report.verdict = Verdict::refused(Refusal::NoRoute, reason);
        return sock::reset(tcp);
    }
    carry(outgoing, snapshot, tcp, report).await;
}

/// Leaves the entry of a connection that is dead to a successor of it, for a while.
fn abandoned(pod: &Arc<Pod>, peer: SocketAddr) {
    let Ok(place) = ABANDONED.try_acquire() else {
        let _ = pod.port.take_original_dst(peer);
        return;
    };
    let port = Arc::clone(&pod.port);
    tokio::spawn(async move {
        tokio::time::sleep(SUCCESSOR).await;
        let _ = port.take_original_dst(peer);
        drop(place);
    });
}

pub(crate) const OVER_BOUND: &str = "the number of connections is at its bound";

async fn carry(outgoing: Outgoing, snapshot: Arc<Snapshot>, tcp: TcpStream, mut report: TcpReport) {
    let protocol = outgoing.protocol(&snapshot);
    let mut first = BytesMut::new();
    let opening = if protocol.is_http() {
        // Whatever comes is for the HTTP parser, which answers garbage with 400; only the
        // version has to be known, and a client may take its time before the first request.
        let opening = tokio::select! {
            opening = read_opening(&tcp, &mut first, None) => opening,
            cut = report.entry.until_cut() => {
                report.verdict = Verdict { reason: Some(cut.to_string().into()), ..Verdict::default() };
                return sock::reset(tcp);
            }
        };
        opening.map(|o| if o == Opening::Http2 { o } else { Opening::Http1 })
    } else if protocol.needs_detection() && !outgoing.caller.shared.is_server_first(&outgoing.dst.0)
    {
        read_opening(&tcp, &mut first, Some(SILENCE)).await
    } else if protocol.needs_detection() {
        Ok(Opening::Silent)
    } else {
        Ok(Opening::Bytes)
    };
    let opening = match opening {
        Ok(opening) => opening,
        Err(error) => {
            report.verdict.flags = fairlead_types::ResponseFlags::DownstreamConnectionTermination;
            report.verdict.reason = Some(format!("the client broke off: {error}").into());
            return;
        }
    };
    let http2 = match opening {
        Opening::Http1 => false,
        Opening::Http2 => true,
        Opening::Bytes | Opening::Silent => {
            let silent = opening == Opening::Silent;
            match l4::carry(&outgoing, &snapshot, tcp, first, silent, &mut report).await {
                Carried::Done => return,
                Carried::Http { tcp, first, http2 } => {
                    return http(outgoing, tcp, first, http2, report).await;
                }
            }
        }
    };
    http(outgoing, tcp, first, http2, report).await;
}

async fn http(
    outgoing: Outgoing,
    tcp: TcpStream,
    first: BytesMut,
    http2: bool,
    mut report: TcpReport,
) {
    report.becomes_http();
    let entry: &Entry = &report.entry;
    // Boxed, so that a connection of bytes does not carry the room that HTTP needs.
    let broken =
        Box::pin(server::serve_outbound(outgoing, tcp, first.freeze(), http2, entry)).await;
    report.broke_protocol(broken);
}

/// What a connection costs while it is carried, in the task that carries it.
#[cfg(test)]
pub(crate) fn future_size(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
) -> usize {
    let coming = shared.live.coming();
    std::mem::size_of_val(&serve(shared, pod, tcp, peer, coming))
}
