//! How fast the tunnel path is, without capture, policy or HTTP around it: an echo server, the
//! destination's and the source's half of the transport and a load generator, each on a thread
//! of its own, beside the same load straight to the server.
//!
//! ```text
//! cargo run --release -p fairlead-proxy --example transport -- [seconds] [message bytes]
//! ```

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_identity::{CaDirectory, IdentityStore, StoreSettings, Wire};
use fairlead_proxy::body::Body;
use fairlead_proxy::transport::{
    Inbound, InboundHandler, InboundStream, Peer, RelayCounters, StreamMeta, Target, Transport,
    TunnelOffer, UpgradeOffer, relay,
};
use fairlead_types::{ClientAddr, FlowMiss, NetnsCookie, OriginalDst, PodPort, Refusal, SpiffeId};
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct PlainPod;

impl PodPort for PlainPod {
    fn cookie(&self) -> NetnsCookie {
        NetnsCookie(1)
    }

    fn outbound_socket(&self, to: SocketAddr) -> io::Result<OwnedFd> {
        let domain = socket2::Domain::for_address(to);
        Ok(socket2::Socket::new(domain, socket2::Type::STREAM.nonblocking(), None)?.into())
    }

    fn delivery_socket(&self, _client: ClientAddr, to: SocketAddr) -> io::Result<OwnedFd> {
        self.outbound_socket(to)
    }

    fn take_original_dst(&self, _peer: SocketAddr) -> Result<OriginalDst, FlowMiss> {
        Err(FlowMiss::Unknown)
    }
}

struct Deliver(SocketAddr);

impl InboundHandler for Deliver {
    async fn tunnel(&self, _stream: InboundStream, offer: TunnelOffer) {
        let Ok(tcp) = TcpStream::connect(self.0).await else {
            return offer.refuse(Refusal::Connect);
        };
        let (Ok(()), Ok(tunnel)) = (tcp.set_nodelay(true), offer.accept()) else { return };
        relay(tcp, Bytes::new(), tunnel, &RelayCounters::default()).await;
    }

    async fn request(&self, _stream: InboundStream, request: Request<Body>) -> Response<Body> {
        Response::new(request.into_body())
    }

    async fn upgrade(&self, _stream: InboundStream, _request: Request<()>, _offer: UpgradeOffer) {}

    fn refused(&self, _peer: &Peer, _reason: &str) {}
}

/// A thread with a runtime of its own; returns the address that its future reports, and keeps
/// the processor time that the thread has used readable.
fn role<F>(name: &str, start: impl FnOnce(mpsc::Sender<SocketAddr>) -> F + Send + 'static) -> Role
where
    F: Future<Output = Result<(), Failure>>,
{
    let (report, reported) = mpsc::channel();
    let cpu = Arc::new(AtomicU64::new(0));
    let written = cpu.clone();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return };
        let result = runtime.block_on(async {
            tokio::spawn(async move {
                loop {
                    written.store(thread_cpu(), Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
            start(report).await
        });
        if let Err(e) = result {
            eprintln!("{e}");
        }
    });
    drop(thread);
    Role { addr: reported.recv().unwrap_or(SocketAddr::new(LOCALHOST, 0)), cpu }
}

struct Role {
    addr: SocketAddr,
    cpu: Arc<AtomicU64>,
}

fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0)
}

fn thread_cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

async fn echo(report: mpsc::Sender<SocketAddr>) -> Result<(), Failure> {
    let listener = TcpListener::bind((LOCALHOST, 0)).await?;
    report.send(listener.local_addr()?)?;
    loop {
        let (mut tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        tokio::spawn(async move {
            // Grows with what comes, so that idle connections are not the server's.
            let mut buf = vec![0; 1024];
            while let Ok(n) = tcp.read(&mut buf).await
                && n > 0
            {
                if n == buf.len() && n < 256 * 1024 {
                    buf.resize(n * 4, 0);
                }
                // A message that begins with zeros is swallowed: bulk in one direction.
                if buf[..n].starts_with(b"\0\0\0\0") {
                    continue;
                }
                if tcp.write_all(&buf[..n]).await.is_err() {
                    break;
                }
            }
        });
    }
}

async fn load(
    to: SocketAddr,
    connections: usize,
    seconds: u64,
    size: usize,
) -> Result<f64, Failure> {
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for _ in 0..connections {
        tasks.push(tokio::spawn(async move {
            let mut tcp = TcpStream::connect(to).await?;
            tcp.set_nodelay(true)?;
            let message = vec![1; size];
            let mut answer = vec![0; size];
            let mut done = 0_u64;
            while Instant::now() < until {
                tcp.write_all(&message).await?;
                tcp.read_exact(&mut answer).await?;
                done += 1;
            }
            Ok::<_, io::Error>(done)
        }));
    }
    let mut done = 0;
    for task in tasks {
        done += task.await??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

async fn bulk(to: SocketAddr, seconds: u64) -> Result<f64, Failure> {
    let mut tcp = TcpStream::connect(to).await?;
    let chunk = vec![0; 256 * 1024];
    let started = Instant::now();
    let mut sent = 0_u64;
    while started.elapsed() < Duration::from_secs(seconds) {
        tcp.write_all(&chunk).await?;
        sent += chunk.len() as u64;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    Ok(sent as f64 / started.elapsed().as_secs_f64() / 1e6)
}

/// Parsed requests from a transport in this thread, as a source's daemon sends them.
async fn requests(
    transport: Arc<Transport>,
    target: Target,
    concurrent: usize,
    seconds: u64,
) -> Result<f64, Failure> {
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for _ in 0..concurrent {
        let (transport, target) = (transport.clone(), target.clone());
        tasks.push(tokio::spawn(async move {
            let client = ClientAddr(SocketAddr::new(LOCALHOST, 4321));
            let meta = StreamMeta { client, baggage: None, service: None };
            let mut done = 0_u64;
            while Instant::now() < until {
                let request = Request::get("/reviews/7")
                    .header("host", "reviews:9080")
                    .header("user-agent", "example")
                    .header("x-request-id", "6f7a2f0c-8a4e-4c39-9f0e-0d6d0f1f2a3b")
                    .body(Body::Empty)?;
                let response = transport.request(&target, &meta, request).await?;
                if !response.status().is_success() {
                    return Err("refused".into());
                }
                done += 1;
            }
            Ok::<_, Failure>(done)
        }));
    }
    let mut done = 0;
    for task in tasks {
        done += task.await??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let seconds = args.next().transpose()?.unwrap_or(3) as u64;
    let size = args.next().transpose()?.unwrap_or(128);
    let dir = std::env::temp_dir().join(format!("fairlead-example-{}", std::process::id()));
    let domain = "cluster.local".parse()?;
    let ca = Arc::new(CaDirectory::open(&dir, &domain)?);
    std::fs::remove_dir_all(&dir)?;
    let client = SpiffeId::new(domain.clone(), "default", "client")?;
    let server = SpiffeId::new(domain, "default", "server")?;

    let echo = role("echo", echo);
    let (upstream, dest_ca, dest_id) = (echo.addr, ca.clone(), server.clone());
    let dest = role("dest", async move |report| {
        let store = IdentityStore::new(dest_ca, StoreSettings::default());
        store.retain(&HashSet::from([dest_id.clone()]));
        store.certificate_within(&dest_id, Duration::from_secs(5)).await?;
        let transport = Transport::new(store);
        let listener = TcpListener::bind((LOCALHOST, 0)).await?;
        report.send(listener.local_addr()?)?;
        let inbound =
            Inbound { wire: Wire::Native, identity: dest_id, pod_ips: [LOCALHOST].into() };
        let handler = Arc::new(Deliver(upstream));
        loop {
            let (tcp, _) = listener.accept().await?;
            let (transport, inbound, handler) =
                (transport.clone(), inbound.clone(), handler.clone());
            tokio::spawn(async move { transport.serve(tcp, &inbound, handler).await });
        }
    });
    let dest_addr = dest.addr;
    let (request_ca, request_id, request_expect) = (ca.clone(), client.clone(), server.clone());
    let source = role("source", async move |report| {
        let store = IdentityStore::new(ca, StoreSettings::default());
        store.retain(&HashSet::from([client.clone()]));
        store.certificate_within(&client, Duration::from_secs(5)).await?;
        let transport = Transport::new(store);
        let expect = [server].into();
        let target =
            Target::new(Wire::Native, Arc::new(PlainPod), client, dest_addr, dest_addr, expect);
        let listener = TcpListener::bind((LOCALHOST, 0)).await?;
        report.send(listener.local_addr()?)?;
        loop {
            let (tcp, from) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            let (transport, target) = (transport.clone(), target.clone());
            tokio::spawn(async move {
                let meta = StreamMeta { client: ClientAddr(from), baggage: None, service: None };
                if let Ok(tunnel) = transport.tunnel(&target, &meta).await {
                    relay(tcp, Bytes::new(), tunnel, &RelayCounters::default()).await;
                }
            });
        }
    });

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cpu = || {
        std::thread::sleep(Duration::from_millis(120));
        source.cpu.load(Ordering::Relaxed) + dest.cpu.load(Ordering::Relaxed)
    };
    println!("connections  direct/s    mesh/s   ratio  CPU-s per 100k (both halves)");
    for connections in [1, 16, 64] {
        let direct = runtime.block_on(load(echo.addr, connections, seconds, size))?;
        let before = cpu();
        let mesh = runtime.block_on(load(source.addr, connections, seconds, size))?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let per_100k = (cpu() - before) as f64 / 1e9 / (mesh * seconds as f64) * 1e5;
        println!(
            "{connections:>11}  {direct:>8.0}  {mesh:>8.0}  {:>6.2}  {per_100k:.2}",
            mesh / direct
        );
    }
    for concurrent in [1, 16, 64] {
        let (ca, id, expect) = (request_ca.clone(), request_id.clone(), request_expect.clone());
        let before = cpu() + thread_cpu();
        let rate = runtime.block_on(async move {
            let store = IdentityStore::new(ca, StoreSettings::default());
            store.retain(&HashSet::from([id.clone()]));
            store.certificate_within(&id, Duration::from_secs(5)).await?;
            let expect = [expect].into();
            let target =
                Target::new(Wire::Native, Arc::new(PlainPod), id, dest_addr, dest_addr, expect);
            requests(Transport::new(store), target, concurrent, seconds).await
        })?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let per_100k = (cpu() + thread_cpu() - before) as f64 / 1e9 / (rate * seconds as f64) * 1e5;
        println!("{concurrent:>3} requests at a time: {rate:.0}/s, CPU-s per 100k {per_100k:.2}");
    }
    let direct = runtime.block_on(bulk(echo.addr, seconds))?;
    let mesh = runtime.block_on(bulk(source.addr, seconds))?;
    let idle = 2000;
    let before = resident_kib();
    let held = runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..idle {
            let mut tcp = TcpStream::connect(source.addr).await?;
            tcp.write_all(&[1; 64]).await?;
            tcp.read_exact(&mut [0; 64]).await?;
            held.push(tcp);
        }
        Ok::<_, Failure>(held)
    })?;
    println!(
        "{idle} idle connections: {:.1} KiB each, of both halves, server and client together",
        (resident_kib() - before) / f64::from(idle)
    );
    drop(held);
    println!("bulk, one way: direct {direct:.0} MB/s, mesh {mesh:.0} MB/s");
    Ok(())
}
