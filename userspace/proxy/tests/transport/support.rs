//! Two nodes in one process: a CA in a temporary directory, a store and a transport each.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fairlead_identity::{CaClient, CaDirectory, IdentityStore, StoreSettings, Wire};
use fairlead_proxy::body::Body;
use fairlead_proxy::transport::{
    Inbound, InboundHandler, InboundStream, Peer, RelayCounters, StreamMeta, Target, Transport,
    TransportError, Tunnel, TunnelOffer, UpgradeOffer, relay,
};
use fairlead_types::{
    ClientAddr, FlowMiss, NetnsCookie, OriginalDst, PodPort, Refusal, SpiffeId, TrustDomain,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A directory that is gone when the test is.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "fairlead-transport-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

pub fn id(account: &str) -> SpiffeId {
    SpiffeId::new(domain(), "default", account).unwrap()
}

/// A CA of its own, in a directory of its own.
pub struct TestCa {
    pub ca: Arc<CaDirectory>,
    dir: TempDir,
}

impl TestCa {
    pub fn new() -> Self {
        let dir = TempDir::new();
        let ca = Arc::new(CaDirectory::open(&dir.0, &domain()).unwrap());
        Self { ca, dir }
    }

    pub fn dir(&self) -> &std::path::Path {
        &self.dir.0
    }
}

pub struct Node {
    pub store: Arc<IdentityStore>,
    pub transport: Arc<Transport>,
}

impl Node {
    pub async fn new(ca: Arc<dyn CaClient>, ids: &[SpiffeId], ttl: Duration) -> Self {
        let settings = StoreSettings { ttl, ..StoreSettings::default() };
        Self::with_settings(ca, ids, settings).await
    }

    pub async fn with_settings(
        ca: Arc<dyn CaClient>,
        ids: &[SpiffeId],
        settings: StoreSettings,
    ) -> Self {
        let store = IdentityStore::new(ca, settings);
        store.retain(&ids.iter().cloned().collect::<HashSet<_>>());
        for id in ids {
            store.certificate_within(id, Duration::from_secs(5)).await.unwrap();
        }
        let transport = Transport::new(store.clone());
        Self { store, transport }
    }
}

/// A pod without a namespace of its own.
pub struct PlainPod(pub u64);

impl PodPort for PlainPod {
    fn cookie(&self) -> NetnsCookie {
        NetnsCookie(self.0)
    }

    fn outbound_socket(&self, to: SocketAddr) -> io::Result<OwnedFd> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(to),
            socket2::Type::STREAM.nonblocking(),
            None,
        )?;
        Ok(socket.into())
    }

    fn delivery_socket(&self, _client: ClientAddr, to: SocketAddr) -> io::Result<OwnedFd> {
        self.outbound_socket(to)
    }

    fn take_original_dst(&self, _peer: SocketAddr) -> Result<OriginalDst, FlowMiss> {
        Err(FlowMiss::Unknown)
    }
}

/// What the inbound side of a test does with streams, and what it saw.
pub struct App {
    /// Tunnels are relayed to this address; without one, a tunnel is refused with `refuse`.
    pub upstream: Mutex<Option<SocketAddr>>,
    pub refuse: Refusal,
    /// Tunnels are never answered.
    pub hang: AtomicBool,
    pub seen: Mutex<Vec<InboundStream>>,
    pub refused: Mutex<Vec<String>>,
    pub requests: AtomicUsize,
    pub open: AtomicUsize,
}

impl App {
    pub fn relaying_to(upstream: SocketAddr) -> Arc<Self> {
        Arc::new(Self { upstream: Mutex::new(Some(upstream)), ..Self::refusing(Refusal::Deny) })
    }

    pub fn refusing(refuse: Refusal) -> Self {
        Self {
            upstream: Mutex::new(None),
            refuse,
            hang: AtomicBool::new(false),
            seen: Mutex::default(),
            refused: Mutex::default(),
            requests: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        }
    }

    pub fn redirect(&self, upstream: SocketAddr) {
        *self.upstream.lock().unwrap() = Some(upstream);
    }

    pub fn refusals(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }
}

impl InboundHandler for App {
    async fn tunnel(&self, stream: InboundStream, offer: TunnelOffer) {
        self.seen.lock().unwrap().push(stream);
        if self.hang.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let upstream = *self.upstream.lock().unwrap();
        let Some(upstream) = upstream else { return offer.refuse(self.refuse) };
        let Ok(tcp) = TcpStream::connect(upstream).await else {
            return offer.refuse(Refusal::Connect);
        };
        tcp.set_nodelay(true).unwrap();
        let Ok(tunnel) = offer.accept() else { return };
        self.open.fetch_add(1, Ordering::Relaxed);
        relay(tcp, Bytes::new(), tunnel, &RelayCounters::default()).await;
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Paths name what the test wants; anything else is echoed with what was seen.
    async fn request(&self, stream: InboundStream, request: Request<Body>) -> Response<Body> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.seen.lock().unwrap().push(stream);
        let (parts, body) = request.into_parts();
        match parts.uri.path() {
            "/hang" => std::future::pending().await,
            "/no-body" => {
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                response
            }
            "/stream" => Response::new(body),
            _ => {
                let collected = body.collect().await;
                let (bytes, trailers) = match collected {
                    Ok(c) => (c.trailers().cloned(), c).into_swapped(),
                    Err(_) => {
                        let mut response = Response::new(Body::Empty);
                        *response.status_mut() = StatusCode::BAD_REQUEST;
                        return response;
                    }
                };
                let mut response =
                    Response::new(Body::boxed(WithTrailers { data: Some(bytes), trailers }));
                let headers = response.headers_mut();
                for (name, value) in &parts.headers {
                    headers.append(
                        http::HeaderName::try_from(format!("seen-{name}")).unwrap(),
                        value.clone(),
                    );
                }
                headers.insert("seen-method", parts.method.as_str().parse().unwrap());
                headers.insert("seen-uri", parts.uri.to_string().parse().unwrap());
                headers.insert("seen-version", format!("{:?}", parts.version).parse().unwrap());
                headers.insert("fairlead-refusal", "DENY".parse().unwrap());
                response
            }
        }
    }

    async fn upgrade(&self, stream: InboundStream, request: Request<()>, offer: UpgradeOffer) {
        self.seen.lock().unwrap().push(stream);
        if request.uri().path() == "/declined" {
            let mut response = Response::new(Body::full("no sockets here"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return offer.decline(response).await;
        }
        let mut response = Response::new(());
        *response.status_mut() = if request.method() == http::Method::CONNECT {
            StatusCode::OK
        } else {
            StatusCode::SWITCHING_PROTOCOLS
        };
        response.headers_mut().insert("seen-uri", request.uri().to_string().parse().unwrap());
        if let Some(upgrade) = request.headers().get("upgrade") {
            response.headers_mut().insert("seen-upgrade", upgrade.clone());
        }
        let Ok(mut tunnel) = offer.switch(response) else { return };
        let mut buf = [0; 1024];
        while let Ok(n) = tunnel.read(&mut buf).await
            && n > 0
        {
            tunnel.write_all(&buf[..n]).await.unwrap();
        }
        tunnel.shutdown().await.unwrap();
    }

    fn refused(&self, _peer: &Peer, reason: &str) {
        self.refused.lock().unwrap().push(reason.to_owned());
    }
}

trait IntoSwapped {
    fn into_swapped(self) -> (Bytes, Option<http::HeaderMap>);
}

impl IntoSwapped for (Option<http::HeaderMap>, http_body_util::Collected<Bytes>) {
    fn into_swapped(self) -> (Bytes, Option<http::HeaderMap>) {
        (self.1.to_bytes(), self.0)
    }
}

/// One chunk, then trailers.
pub struct WithTrailers {
    pub data: Option<Bytes>,
    pub trailers: Option<http::HeaderMap>,
}

impl http_body::Body for WithTrailers {
    type Data = Bytes;
    type Error = fairlead_proxy::body::BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(match (self.data.take(), self.trailers.take()) {
            (Some(data), trailers) if !data.is_empty() => {
                self.trailers = trailers;
                Some(Ok(http_body::Frame::data(data)))
            }
            (_, Some(trailers)) => Some(Ok(http_body::Frame::trailers(trailers))),
            _ => None,
        })
    }
}

/// A listener that serves inbound sessions of one pod.
pub struct Server {
    pub addr: SocketAddr,
    pub app: Arc<App>,
    /// Accepted TCP connections.
    pub accepted: Arc<AtomicUsize>,
    /// How sessions ended that did not end well.
    pub errors: Arc<Mutex<Vec<TransportError>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(node: &Node, identity: SpiffeId, wire: Wire, app: Arc<App>) -> Self {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let inbound = Arc::new(Inbound { wire, identity, pod_ips: [LOCALHOST].into() });
        let (transport, handler) = (node.transport.clone(), app.clone());
        let (count, failed) = (accepted.clone(), errors.clone());
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let (transport, handler) = (transport.clone(), handler.clone());
                let (inbound, failed) = (inbound.clone(), failed.clone());
                tokio::spawn(async move {
                    if let Err(e) = transport.serve(tcp, &inbound, handler).await {
                        failed.lock().unwrap().push(e);
                    }
                });
            }
        });
        Self { addr, app, accepted, errors, task }
    }

    pub fn sessions(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Takes no more connections; those that are open go on.
    pub async fn stop_listening(&self) {
        self.task.abort();
        within("the end of the listener", async {
            while !self.task.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits for the first session that did not end well.
    pub async fn error(&self) -> TransportError {
        within("an error of the server", async {
            loop {
                if let Some(error) = self.errors.lock().unwrap().first() {
                    return error.clone();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

pub fn target(wire: Wire, source: SpiffeId, to: SocketAddr, expect: &[SpiffeId]) -> Target {
    Target::new(wire, Arc::new(PlainPod(1)), source, to, to, expect.into())
}

pub fn meta() -> StreamMeta {
    StreamMeta {
        client: ClientAddr(SocketAddr::new(LOCALHOST, 4321)),
        baggage: None,
        service: None,
    }
}

/// Two nodes with one pod each ("client" and "server"), the server's listening.
pub struct Pair {
    pub client: Node,
    pub server_node: Node,
    pub server: Server,
    pub target: Target,
    _ca: TestCa,
}

impl Pair {
    pub async fn new(wire: Wire, app: Arc<App>) -> Self {
        Self::with_ttl(wire, app, Duration::from_secs(3600)).await
    }

    pub async fn with_ttl(wire: Wire, app: Arc<App>, ttl: Duration) -> Self {
        let ca = TestCa::new();
        let client = Node::new(ca.ca.clone(), &[id("client")], ttl).await;
        let server_node = Node::new(ca.ca.clone(), &[id("server")], ttl).await;
        let server = Server::start(&server_node, id("server"), wire, app).await;
        let target = target(wire, id("client"), server.addr, &[id("server")]);
        Self { client, server_node, server, target, _ca: ca }
    }

    pub async fn tunnel(&self) -> Result<Tunnel, TransportError> {
        self.client.transport.tunnel(&self.target, &meta()).await
    }
}

/// An application that echoes, and half-closes after its peer has.
pub async fn echo_app() -> SocketAddr {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                tcp.set_nodelay(true).unwrap();
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    addr
}

/// A connected pair of sockets: (the application's end, the proxy's end).
pub async fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (a.unwrap(), b.unwrap().0)
}

/// Lets time go by, in steps, so that what the peers send each other in between arrives.
pub async fn pass(steps: u32, step: Duration) {
    tokio::time::pause();
    for _ in 0..steps {
        tokio::time::advance(step).await;
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_millis(5));
    }
    tokio::time::resume();
}

/// Fails the test, with words, when `future` takes more than ten seconds.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(10), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within 10 s"),
    }
}
