//! Simulated nodes: the real protocol, without what a node does with it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fairlead_wire::config::configuration_client::ConfigurationClient;
use fairlead_wire::config::{
    Ack, Hello, Inventory, MAX_MESSAGE_BYTES, NodeMessage, PROTOCOL, Update, controller_message,
    node_message,
};
use futures_util::stream::unfold;
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::codegen::Service;

use crate::changes::Ledger;
use crate::legs::now;

/// Nodes that connect at a time.
const AT_ONCE: usize = 64;
/// How long the first sync of all may take.
const SYNC: Duration = Duration::from_secs(300);

/// All simulated nodes.
pub(crate) struct Nodes {
    shared: Arc<Shared>,
}

struct Shared {
    ledger: Arc<Ledger>,
    bytes: AtomicU64,
    slices: AtomicU64,
    complete: AtomicUsize,
    /// By service: how many nodes hold its slice.
    holders: Vec<AtomicUsize>,
    failed: parking_lot::Mutex<Option<String>>,
}

impl Nodes {
    /// Bytes of messages so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// EndpointSlices that came so far.
    pub(crate) fn slices(&self) -> u64 {
        self.shared.slices.load(Ordering::Relaxed)
    }

    /// By how many nodes a service is needed.
    pub(crate) fn interested(&self) -> f64 {
        let holders = &self.shared.holders;
        let all: usize = holders.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        all as f64 / holders.len() as f64
    }

    pub(crate) fn holders(&self, service: usize) -> usize {
        self.shared.holders[service].load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<()> {
        match &*self.shared.failed.lock() {
            Some(reason) => bail!("a node has failed: {reason}"),
            None => Ok(()),
        }
    }
}

/// Connects all nodes, which live on `field`, and waits until each holds what it needs.
pub(crate) async fn connect(
    field: &Handle,
    address: SocketAddr,
    roots: &str,
    tokens: Vec<(String, String)>,
    ledger: &Arc<Ledger>,
) -> Result<Nodes> {
    let mut store = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(certificate?)?;
    }
    let mut tls =
        rustls::ClientConfig::builder().with_root_certificates(store).with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(tls));
    let count = tokens.len();
    let shared = Arc::new(Shared {
        ledger: Arc::clone(ledger),
        bytes: AtomicU64::new(0),
        slices: AtomicU64::new(0),
        complete: AtomicUsize::new(0),
        holders: (0..ledger.services()).map(|_| AtomicUsize::new(0)).collect(),
        failed: parking_lot::Mutex::default(),
    });
    let places = Arc::new(Semaphore::new(AT_ONCE));
    for (name, token) in tokens {
        let (tls, shared, places) = (tls.clone(), Arc::clone(&shared), Arc::clone(&places));
        field.spawn(async move {
            if let Err(error) = run(address, tls, &name, &token, &shared, &places).await {
                shared.failed.lock().get_or_insert(format!("{name}: {error:#}"));
            }
        });
    }
    let nodes = Nodes { shared };
    let deadline = Instant::now() + SYNC;
    while nodes.shared.complete.load(Ordering::Relaxed) < count {
        nodes.check()?;
        ensure!(Instant::now() < deadline, "the nodes are not in sync");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(nodes)
}

#[derive(Clone)]
struct Channel {
    sender: SendRequest<Body>,
    token: HeaderValue,
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future =
        Pin<Box<dyn Future<Output = std::result::Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(
        &mut self,
        context: &mut TaskContext<'_>,
    ) -> Poll<std::result::Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        if let Ok(uri) = format!("https://localhost{path}").parse::<Uri>() {
            *request.uri_mut() = uri;
        }
        request.headers_mut().insert("authorization", self.token.clone());
        Box::pin(self.sender.send_request(request))
    }
}

async fn run(
    address: SocketAddr,
    tls: TlsConnector,
    name: &str,
    token: &str,
    shared: &Shared,
    places: &Semaphore,
) -> Result<()> {
    let mut place = Some(places.acquire().await?);
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream = tls.connect(ServerName::try_from("localhost")?, stream).await?;
    let (sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let token = HeaderValue::from_str(&format!("Bearer {token}"))?;
    let mut client = ConfigurationClient::new(Channel { sender, token })
        .max_decoding_message_size(MAX_MESSAGE_BYTES + 1024);
    let (say, said) = mpsc::channel::<node_message::Message>(4);
    let messages = unfold(said, |mut said| async move {
        said.recv().await.map(|message| (NodeMessage { message: Some(message) }, said))
    });
    let hello = Hello {
        protocol: PROTOCOL,
        node: name.to_owned(),
        instance: "bench".to_owned(),
        version: "bench".to_owned(),
        trim: 0,
    };
    say.send(node_message::Message::Hello(hello)).await?;
    let inventory = Inventory { held: Vec::new(), last: true };
    say.send(node_message::Message::Inventory(inventory)).await?;
    let mut stream = client.stream(messages).await?.into_inner();
    let mut seen: HashMap<usize, u32> = HashMap::new();
    while let Some(message) = stream.message().await? {
        let Some(controller_message::Message::Update(update)) = message.message else { continue };
        let ack = Ack { nonce: update.nonce, rejected: Vec::new() };
        let complete = update.complete;
        take(update, shared, &mut seen);
        say.send(node_message::Message::Ack(ack)).await?;
        if complete && place.take().is_some() {
            shared.complete.fetch_add(1, Ordering::Relaxed);
        }
    }
    bail!("the stream has ended")
}

fn take(update: Update, shared: &Shared, seen: &mut HashMap<usize, u32>) {
    let now = now();
    let event = u64::try_from(update.oldest_change_micros).unwrap_or_default();
    let mut bytes = 16 + update.trust_bundle_pem.len();
    for resource in &update.upserts {
        bytes += resource.json.len() + resource.version.len() + 64;
        let Some(key) = resource.key.as_ref().filter(|key| key.kind == "EndpointSlice") else {
            continue;
        };
        let (Some(service), Some(sequence)) = (service_number(&key.name), sequence(&resource.json))
        else {
            continue;
        };
        shared.slices.fetch_add(1, Ordering::Relaxed);
        let last = seen.insert(service, sequence);
        if last.is_none()
            && let Some(holders) = shared.holders.get(service)
        {
            holders.fetch_add(1, Ordering::Relaxed);
        }
        shared.ledger.heard(service, last.unwrap_or(0), sequence, event, now);
    }
    shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// The number of a service, by what its slice's name begins with.
pub(crate) fn service_number(name: &str) -> Option<usize> {
    name.strip_prefix("svc-")?.get(..5)?.parse().ok()
}

/// The number of the change: it is in the first address, 10.x.y.z; 0 before the first change.
pub(crate) fn sequence(json: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(json).ok()?;
    let (_, rest) = text.split_once("\"addresses\":[\"")?;
    let (address, _) = rest.split_once('"')?;
    let Some(number) = address.strip_prefix("10.") else { return Some(0) };
    let mut parts = number.split('.').map(|part| part.parse::<u32>().ok());
    let mut next = || parts.next().flatten();
    Some((next()? << 16) | (next()? << 8) | next()?)
}
