//! Connections that are carried as bytes: route, endpoint, another endpoint when one refuses,
//! relay.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fairlead_config::model::{Cluster, Outbound, OutboundPolicy, Snapshot};
use fairlead_types::{Refusal, ResponseFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::choice::{Choice, Chosen};
use crate::first::{Opening, read_opening};
use crate::labels::{self, Sides};
use crate::live::{Entry, Guarded, State};
use crate::outbound::Outgoing;
use crate::random::random_u32;
use crate::reach::{CONNECT_ATTEMPTS, Failure, Upstream, Way};
use crate::relay::{self, End};
use crate::report::{TcpReport, Verdict};
use crate::sock;
use crate::transport;

/// Bytes of a server's banner that are read from a tunnel before the relay takes over.
const BANNER: usize = 4 * 1024;

/// What became of a connection.
pub(crate) enum Carried {
    /// It has ended.
    Done,
    /// The client was silent until the upstream was open, and then spoke HTTP.
    Http { tcp: TcpStream, first: BytesMut, http2: bool },
}

/// Carries a captured connection. `silent`: nothing has been heard of the client yet, and the
/// port does not say what it speaks.
pub(crate) async fn carry(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    tcp: TcpStream,
    mut first: BytesMut,
    silent: bool,
    report: &mut TcpReport,
) -> Carried {
    let routed = match route(outgoing, snapshot) {
        Ok(routed) => routed,
        Err(verdict) if silent && is_registry_only(outgoing, snapshot) => {
            return refuse_silent(tcp, first, report, verdict, Some(PATIENCE)).await;
        }
        Err(verdict) => {
            report.verdict = verdict;
            sock::reset(tcp);
            return Carried::Done;
        }
    };
    report.route = routed.route;
    report.cluster = Some(routed.name);
    if let Some(cluster) = routed.choice.as_cluster() {
        report.parties.service = outgoing.caller.shared.labels.service(&cluster.service);
    }
    let service = routed.choice.as_cluster().map(|c| Arc::clone(&c.service.host));
    let connecting = connect(outgoing, snapshot, &routed.choice, service.as_deref(), report);
    let (upstream, _load) = match connecting.await {
        Ok(connected) => connected,
        Err(failure) if silent && awaits_http(snapshot, &failure, report.upstream) => {
            // The server is not given the word: it is the client's turn. As bytes it would not be
            // admitted, so there is nothing to judge again until it speaks.
            report.entry.unguard();
            return refuse_silent(tcp, first, report, failure.verdict(), None).await;
        }
        Err(failure) => {
            report.transport_failure = Some(failure.reason.clone());
            report.verdict = failure.verdict();
            sock::reset(tcp);
            return Carried::Done;
        }
    };
    report.entry.set(State::Bytes, report.upstream);
    let mut upstream = upstream;
    let mut banner = BytesMut::new();
    if silent {
        match who_speaks(outgoing, &tcp, &mut upstream, &mut first, &mut banner, &report.entry)
            .await
        {
            Ok(Opening::Http1) => return Carried::Http { tcp, first, http2: false },
            Ok(Opening::Http2) => return Carried::Http { tcp, first, http2: true },
            Ok(Opening::Bytes | Opening::Silent) => {}
            Err(error) => {
                report.verdict.reason = Some(error.to_string().into());
                sock::reset(tcp);
                return Carried::Done;
            }
        }
    }
    report.open();
    report.verdict = relay(tcp, upstream, first.freeze(), banner.freeze(), &report.entry).await;
    Carried::Done
}

fn is_registry_only(outgoing: &Outgoing, snapshot: &Snapshot) -> bool {
    matches!(outgoing.target, Outbound::Unknown)
        && snapshot.mesh.outbound == OutboundPolicy::RegistryOnly
}

/// Whether a pod of this node refuses the connection, and may allow requests of HTTP.
fn awaits_http(snapshot: &Snapshot, failure: &Failure, upstream: Option<SocketAddr>) -> bool {
    failure.class == Refusal::Deny
        && upstream.is_some_and(|to| {
            snapshot.inbound_at(to.ip()).is_some_and(|i| i.authz.needs_http(to.port()))
        })
}

/// How long a client may be silent that is going to be refused anyway, unless it speaks HTTP.
const PATIENCE: Duration = Duration::from_millis(100);

/// A client that speaks HTTP late is owed an answer in HTTP; another one is reset when it speaks,
/// or when it has been silent for `patience`.
async fn refuse_silent(
    tcp: TcpStream,
    mut first: BytesMut,
    report: &mut TcpReport,
    verdict: Verdict,
    patience: Option<Duration>,
) -> Carried {
    let opening = tokio::select! {
        opening = read_opening(&tcp, &mut first, patience) => opening,
        cut = report.entry.until_cut() => Err(io::Error::other(cut.to_string())),
    };
    match opening {
        Ok(Opening::Http1) => Carried::Http { tcp, first, http2: false },
        Ok(Opening::Http2) => Carried::Http { tcp, first, http2: true },
        _ => {
            report.verdict = verdict;
            sock::reset(tcp);
            Carried::Done
        }
    }
}

struct Routed {
    route: Option<Arc<str>>,
    /// `upstream_cluster`.
    name: Arc<str>,
    choice: Choice,
}

fn route(outgoing: &Outgoing, snapshot: &Snapshot) -> Result<Routed, Verdict> {
    let asked = outgoing.dst.0;
    let direct = || {
        let (choice, name) = outgoing.direct(snapshot);
        Routed { route: None, name, choice }
    };
    let port = match &outgoing.target {
        Outbound::Service(port) => port,
        Outbound::Workload(_) => return Ok(direct()),
        Outbound::Unknown if snapshot.mesh.outbound == OutboundPolicy::RegistryOnly => {
            return Err(Verdict::refused(
                Refusal::NoRoute,
                format!("nothing in the registry is at {asked} (REGISTRY_ONLY)"),
            ));
        }
        Outbound::Unknown => return Ok(direct()),
    };
    let routes = port.routes(snapshot.client(&outgoing.caller.workload));
    let selected =
        routes.tcp.as_ref().and_then(|table| table.select(&outgoing.source(), asked, port.number));
    let (name, cluster) = match selected {
        None => (None, routes.default_cluster),
        Some(route) => match &route.destinations {
            Some(weighted) => (Some(Arc::clone(&route.name)), weighted.pick(random_u32()).cluster),
            None => return Err(no_cluster(&format!("no destination of route {}", route.name))),
        },
    };
    let cluster: &Arc<Cluster> = snapshot
        .cluster(cluster)
        .ok_or_else(|| no_cluster("the destination's service or subset"))?;
    Ok(Routed {
        route: name,
        name: Arc::clone(&cluster.name),
        choice: Choice::cluster(snapshot, cluster, asked),
    })
}

fn no_cluster(what: &str) -> Verdict {
    Verdict {
        flags: ResponseFlags::NoClusterFound,
        ..Verdict::refused(Refusal::NoRoute, format!("{what} does not exist"))
    }
}

/// Connects to an endpoint; when one refuses, to another (row 3.19).
async fn connect(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    choice: &Choice,
    service: Option<&str>,
    report: &mut TcpReport,
) -> Result<(Upstream, Chosen), Failure> {
    outgoing.caller.warm(snapshot, choice);
    let mut tried: Vec<usize> = Vec::new();
    let mut last = None;
    for _ in 0..CONNECT_ATTEMPTS.min(choice.len()) {
        let Some(chosen) = choice.pick(&tried) else { break };
        name_endpoint(outgoing, snapshot, &chosen, report);
        let attempt = async {
            let way = outgoing.caller.way(snapshot, choice, &chosen)?;
            let timeout = choice.connect_timeout();
            let local = match &way {
                Way::Local { pod, inbound } => {
                    outgoing.caller.reachable(pod, chosen.addr, timeout).await?;
                    report.parties.sides = Sides::Both;
                    report.parties.verified = Some(outgoing.caller.workload.identity.clone());
                    Some(Arc::clone(inbound))
                }
                Way::Plain => {
                    report.parties.destination_unproven();
                    report.upstream_identity = None;
                    None
                }
                Way::Mesh(_) => None,
            };
            if let Some(inbound) = &local {
                // A change of policy at the destination cuts what it would not admit any more.
                let facts = outgoing.caller.facts(chosen.addr);
                let shared = &outgoing.caller.shared;
                let guarded = Guarded::connection(&inbound.workload.id, facts);
                shared.guard(&report.entry, snapshot, guarded)?;
            } else {
                report.entry.unguard();
            }
            tokio::select! {
                connected = outgoing.caller.connect(&way, chosen.addr, timeout, service) => connected,
                cut = report.entry.until_cut() => Err(Failure {
                    class: Refusal::Deny,
                    flags: ResponseFlags::None,
                    reason: cut.to_string(),
                    elsewhere: false,
                }),
            }
        };
        match attempt.await {
            Ok(upstream) => {
                report.upstream_local = match &upstream {
                    Upstream::Tcp(stream) => stream.local_addr().ok(),
                    Upstream::Tunnel(tunnel) => tunnel.local_addr(),
                };
                return Ok((upstream, chosen));
            }
            Err(failure) if failure.elsewhere => {
                tracing::debug!(endpoint = %chosen.addr, reason = failure.reason, "endpoint failed");
                tried.push(chosen.index);
                last = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(last.unwrap_or_else(|| Failure {
        class: Refusal::Connect,
        flags: ResponseFlags::NoHealthyUpstream,
        reason: choice.why_none().into(),
        elsewhere: false,
    }))
}

fn name_endpoint(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    chosen: &Chosen,
    report: &mut TcpReport,
) {
    report.upstream = Some(chosen.addr);
    report.parties.sides = Sides::Source;
    report.parties.verified = None;
    if let Some(workload) = &chosen.workload {
        let telemetry = &outgoing.caller.shared.telemetry;
        report.parties.destination = labels::workload(telemetry, snapshot, workload);
        report.upstream_identity = workload.enrolled.then(|| workload.identity.clone());
    }
}

/// Waits for the first byte of either side. [`Opening::Silent`]: the server spoke first.
async fn who_speaks(
    outgoing: &Outgoing,
    tcp: &TcpStream,
    upstream: &mut Upstream,
    first: &mut BytesMut,
    banner: &mut BytesMut,
    entry: &Entry,
) -> io::Result<Opening> {
    let shared = &outgoing.caller.shared;
    let server = async {
        match upstream {
            Upstream::Tcp(stream) => stream.peek(&mut [0]).await,
            Upstream::Tunnel(tunnel) => {
                banner.reserve(BANNER);
                tunnel.read_buf(banner).await
            }
        }
    };
    let mut byte = [0];
    tokio::select! {
        biased;
        spoke = server => {
            if spoke? > 0 {
                shared.note_server_first(outgoing.dst.0, true);
            }
            return Ok(Opening::Silent);
        }
        // Not `readable`, which may be ready when nothing is there to read.
        spoke = tcp.peek(&mut byte) => { spoke?; }
        cut = entry.until_cut() => return Err(io::Error::other(cut.to_string())),
    }
    let opening = read_opening(tcp, first, None).await?;
    if !first.is_empty() {
        shared.note_server_first(outgoing.dst.0, false);
    }
    Ok(opening)
}

/// Carries bytes until both sides have ended, one broke, or the connection is cut.
pub(crate) async fn relay(
    tcp: TcpStream,
    upstream: Upstream,
    first: Bytes,
    banner: Bytes,
    entry: &Entry,
) -> Verdict {
    match upstream {
        Upstream::Tcp(stream) => {
            let carried = relay::relay(&tcp, &stream, first, banner, &entry.transferred);
            tokio::select! {
                end = carried => ended(end),
                cut = entry.until_cut() => {
                    sock::reset_on_drop(&tcp);
                    sock::reset_on_drop(&stream);
                    Verdict { reason: Some(cut.to_string().into()), ..Verdict::default() }
                }
            }
        }
        Upstream::Tunnel(tunnel) => {
            let mut tcp = tcp;
            if !banner.is_empty() {
                if let Err(error) = tcp.write_all(&banner).await {
                    return ended(End::Client(error));
                }
                entry
                    .transferred
                    .received
                    .fetch_add(banner.len() as u64, std::sync::atomic::Ordering::Relaxed);
            }
            relay_tunnel(tcp, *tunnel, first, entry, false).await
        }
    }
}

/// The same between an application's socket and a tunnel. `inbound`: the tunnel is the client.
pub(crate) async fn relay_tunnel(
    mut tcp: TcpStream,
    tunnel: transport::Tunnel,
    first: Bytes,
    entry: &Entry,
    inbound: bool,
) -> Verdict {
    let cut = {
        let carried = transport::relay_on(&mut tcp, first, tunnel, &entry.tunnelled);
        tokio::select! {
            end = carried => return tunnel_ended(end.end, inbound),
            // Dropping the relay resets the tunnel.
            cut = entry.until_cut() => cut,
        }
    };
    sock::reset(tcp);
    Verdict { reason: Some(cut.to_string().into()), ..Verdict::default() }
}

fn tunnel_ended(end: transport::End, inbound: bool) -> Verdict {
    match (end, inbound) {
        (transport::End::Finished, _) => ended(End::Finished),
        (transport::End::Tcp(e), false) => ended(End::Client(e)),
        (transport::End::Tcp(e), true) => ended(End::Upstream(e)),
        (transport::End::Tunnel(e), false) => ended(End::Upstream(io::Error::other(e))),
        (transport::End::Tunnel(e), true) => ended(End::Client(io::Error::other(e))),
    }
}

fn ended(end: End) -> Verdict {
    match end {
        End::Finished => Verdict::default(),
        End::Client(error) => Verdict {
            flags: ResponseFlags::DownstreamConnectionTermination,
            reason: Some(format!("the client's connection broke: {error}").into()),
            ..Verdict::default()
        },
        End::Upstream(error) => Verdict {
            flags: ResponseFlags::UpstreamConnectionTermination,
            reason: Some(format!("the upstream's connection broke: {error}").into()),
            ..Verdict::default()
        },
    }
}

/// The addresses of an accepted socket, canonical: (local, peer).
pub(crate) fn addresses(tcp: &TcpStream) -> io::Result<(SocketAddr, SocketAddr)> {
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    Ok((canonical(tcp.local_addr()?), canonical(tcp.peer_addr()?)))
}
