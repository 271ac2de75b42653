//! A controller of the scenarios' own: the real protocol over real TLS, on the wire between the
//! nodes, with everything kept that the nodes said. It decides nothing by itself.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_config::source::from_yaml;
use fairlead_identity::ca::{Authority, CaSet, SigningRequest};
use fairlead_tests::{Mesh, shell};
use fairlead_wire::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use fairlead_wire::ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse};
use fairlead_wire::config::configuration_server::{Configuration, ConfigurationServer};
use fairlead_wire::config::{
    Ack, ControllerMessage, Found, Hello, Key, Lookup, NodeMessage, PodAddresses, Resource, Update,
    controller_message, node_message,
};
use futures_util::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service;
use tonic::{Request, Response, Status, Streaming};

const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const PORT: u16 = 15012;
/// Where another certificate authority is, with a root of its own.
const OTHER_PORT: u16 = 15013;
const TOKEN: &str = "the token of the nodes";
/// Bytes of JSON in one Update.
const UPDATE_BYTES: usize = 1 << 20;

type Name = (String, String, String, String);

/// What the nodes said.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) hellos: Vec<Hello>,
    /// Objects of each stream's inventory.
    pub(crate) inventories: Vec<usize>,
    /// Objects that were sent, over all streams.
    pub(crate) sent: usize,
    pub(crate) acks: Vec<(String, Ack)>,
    /// Identities for which certificates were asked.
    pub(crate) requests: Vec<String>,
    pub(crate) lookups: Vec<String>,
    /// What nodes told of their pods' addresses.
    pub(crate) addresses: Vec<(String, PodAddresses)>,
}

struct Object {
    version: String,
    json: Vec<u8>,
    /// Sent only when somebody looks the address up.
    hidden: Option<String>,
}

#[derive(Default)]
struct World {
    objects: BTreeMap<Name, Object>,
    counter: u64,
}

struct Shared {
    world: Mutex<World>,
    changed: watch::Sender<u64>,
    heard: Mutex<Heard>,
    authority: Mutex<Arc<Authority>>,
    other: Arc<Authority>,
    bundle: Mutex<String>,
    /// A change ends all streams.
    ended: watch::Sender<u64>,
    refuse_certificates: Mutex<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The controller. Dropping it ends it.
pub(crate) struct TestController {
    shared: Arc<Shared>,
    listener: TcpListener,
    other: TcpListener,
    running: Option<Running>,
    dir: PathBuf,
}

struct Running {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl TestController {
    /// On the wire of a mesh; it does not run yet.
    pub(crate) fn new(mesh: &Mesh) -> Result<Self> {
        shell::ip_batch(Some(mesh.wire().name()), &format!("addr add {IP}/24 dev br0\n"))?;
        // A socket stays in the namespace in which it was made.
        let bind = |port| {
            let listener = mesh.wire().enter(|| Ok(TcpListener::bind((IP, port))?))?;
            listener.set_nonblocking(true)?;
            anyhow::Ok(listener)
        };
        let (listener, other) = (bind(PORT)?, bind(OTHER_PORT)?);
        let set = CaSet::generate(&"cluster.local".parse()?)?;
        let other_set = CaSet::generate(&"cluster.local".parse()?)?;
        let dir = mesh.dir().join("controller");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("root-cert.pem"), &set.root_cert)?;
        let both = format!("{}{}", set.root_cert, other_set.root_cert);
        std::fs::write(dir.join("both.pem"), both)?;
        std::fs::write(dir.join("token"), TOKEN)?;
        let shared = Arc::new(Shared {
            world: Mutex::default(),
            changed: watch::Sender::new(0),
            heard: Mutex::default(),
            authority: Mutex::new(Arc::new(Authority::new(&set)?)),
            other: Arc::new(Authority::new(&other_set)?),
            bundle: Mutex::new(set.root_cert),
            ended: watch::Sender::new(0),
            refuse_certificates: Mutex::new(false),
        });
        Ok(Self { shared, listener, other, running: None, dir })
    }

    /// Arguments of a node's daemon.
    pub(crate) fn arguments(&self, node: usize) -> Vec<String> {
        vec![
            "--controller".into(),
            format!("https://{IP}:{PORT}"),
            "--ca-root".into(),
            self.dir.join("root-cert.pem").display().to_string(),
            "--token-file".into(),
            self.dir.join("token").display().to_string(),
            "--state-dir".into(),
            self.state_dir(node).display().to_string(),
            "--cluster-id".into(),
            "test".into(),
            "--cni-socket".into(),
            self.cni_socket(node).display().to_string(),
            // Of its own: a daemon that finds another behind it would take that one's place.
            "--handover-socket".into(),
            self.dir.join(format!("handover{node}.sock")).display().to_string(),
        ]
    }

    /// Arguments that come after these, for certificates of the other authority.
    pub(crate) fn other_authority(&self) -> [String; 4] {
        [
            "--ca-address".into(),
            format!("https://{IP}:{OTHER_PORT}"),
            "--ca-root".into(),
            self.dir.join("both.pem").display().to_string(),
        ]
    }

    /// Where a node's daemon listens for the CNI plugin.
    pub(crate) fn cni_socket(&self, node: usize) -> PathBuf {
        self.dir.join(format!("cni{node}.sock"))
    }

    pub(crate) fn state_dir(&self, node: usize) -> PathBuf {
        self.dir.join(format!("state{node}"))
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        lock(&self.shared.heard)
    }

    /// Puts the objects of a YAML text in the place of those of the same names.
    pub(crate) fn apply(&self, yaml: &str) -> Result<()> {
        self.put(yaml, None)
    }

    /// The same for objects that node 0 is told of only when it asks about an address.
    pub(crate) fn hide(&self, address: &str, yaml: &str) -> Result<()> {
        self.put(yaml, Some(address))
    }

    fn put(&self, yaml: &str, hidden: Option<&str>) -> Result<()> {
        let mut world = lock(&self.shared.world);
        for document in yaml.split("---\n").filter(|d| !d.trim().is_empty()) {
            let value: Value = from_yaml(document).map_err(anyhow::Error::msg)?;
            let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let name = (
                text("/apiVersion").to_owned(),
                text("/kind").to_owned(),
                text("/metadata/namespace").to_owned(),
                text("/metadata/name").to_owned(),
            );
            ensure!(!name.3.is_empty(), "no name in {document}");
            world.counter += 1;
            let version = format!("uid/{}", world.counter);
            let json = serde_json::to_vec(&value)?;
            let hidden = hidden.map(str::to_owned);
            world.objects.insert(name, Object { version, json, hidden });
        }
        drop(world);
        self.shared.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    pub(crate) fn delete(&self, kind: &str, name: &str) {
        let mut world = lock(&self.shared.world);
        world.objects.retain(|(_, k, _, n), _| (&**k, &**n) != (kind, name));
        world.counter += 1;
        drop(world);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn refuse_certificates(&self, refuse: bool) {
        *lock(&self.shared.refuse_certificates) = refuse;
    }

    /// Signs by a new root from now on. The nodes are told to trust both, or the new one alone.
    pub(crate) fn new_root(&self) -> Result<()> {
        let set = CaSet::generate(&"cluster.local".parse()?)?;
        lock(&self.shared.bundle).push_str(&set.root_cert);
        self.shared.changed.send_modify(|n| *n += 1);
        // The bundle first: whoever gets a certificate is to be trusted already.
        std::thread::sleep(Duration::from_millis(500));
        *lock(&self.shared.authority) = Arc::new(Authority::new(&set)?);
        Ok(())
    }

    /// Trusts only the last root.
    pub(crate) fn forget_old_roots(&self) {
        let mut bundle = lock(&self.shared.bundle);
        let at = bundle.rfind("-----BEGIN").unwrap_or(0);
        bundle.drain(..at);
        drop(bundle);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Waits until every stream's node has acknowledged everything so far.
    pub(crate) fn settle(&self, nodes: usize) -> Result<()> {
        let wanted = lock(&self.shared.world).counter;
        fairlead_tests::eventually("the nodes to have it", Duration::from_secs(10), || {
            let heard = self.heard();
            let mut seen: Vec<&str> = Vec::new();
            for (node, ack) in heard.acks.iter().rev() {
                if ack.nonce >= wanted && !seen.contains(&node.as_str()) {
                    seen.push(node);
                }
            }
            Ok((seen.len() >= nodes).then_some(()))
        })
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        ensure!(self.running.is_none());
        let listeners = [self.listener.try_clone()?, self.other.try_clone()?];
        let shared = Arc::clone(&self.shared);
        let acceptors =
            [acceptor(&lock(&shared.authority).clone())?, acceptor(&shared.other.clone())?];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                let [first, second] = listeners.map(tokio::net::TcpListener::from_std);
                let (Ok(first), Ok(second)) = (first, second) else { return };
                let [own, other] = acceptors;
                tokio::select! {
                    () = accept(first, own, Arc::clone(&shared), false) => {}
                    () = accept(second, other, shared, true) => {}
                    _ = stopped => {}
                }
            });
            // With everything that runs on it: connections end as those of a killed process do.
            runtime.shutdown_background();
        });
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        let Running { stop, thread } = self.running.take().context("it does not run")?;
        let _ = stop.send(());
        thread.join().map_err(|_| anyhow::anyhow!("it panicked"))
    }

    /// Ends all streams, and goes on.
    pub(crate) fn end_streams(&self) {
        self.shared.ended.send_modify(|n| *n += 1);
    }
}

fn acceptor(authority: &Authority) -> Result<TlsAcceptor> {
    let serving = authority.serving(&[IP.to_string()], Duration::from_secs(3600))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(serving.key)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    other: bool,
) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let service = hyper::service::service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { route(shared, other, request).await }
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(tls), service)
                .await;
        });
    }
}

async fn route(
    shared: Arc<Shared>,
    other: bool,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<tonic::body::Body>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/fairlead.config.v1.Configuration/") && !other {
        ConfigurationServer::new(Streams(shared)).call(request).await
    } else {
        IstioCertificateServiceServer::new(Certificates(shared, other)).call(request).await
    }
}

fn authorized<T>(request: &Request<T>) -> Result<(), Status> {
    let token = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
    if token == Some(&format!("Bearer {TOKEN}")) {
        Ok(())
    } else {
        Err(Status::unauthenticated("another token"))
    }
}

/// Certificates of the own authority, or of the other one.
struct Certificates(Arc<Shared>, bool);

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        authorized(&request)?;
        if *lock(&self.0.refuse_certificates) {
            return Err(Status::unavailable("no certificates today"));
        }
        let request = request.into_inner();
        let identity = request
            .metadata
            .and_then(|m| match m.fields.get(IMPERSONATED_IDENTITY)?.kind.clone()? {
                prost_types::value::Kind::StringValue(text) => Some(text),
                _ => None,
            })
            .ok_or_else(|| Status::invalid_argument("for whom?"))?;
        lock(&self.0.heard).requests.push(identity.clone());
        let invalid = |e: String| Status::invalid_argument(e);
        let id = identity.parse().map_err(|_| invalid("no identity".into()))?;
        let csr = SigningRequest::from_pem(&request.csr).map_err(|e| invalid(e.to_string()))?;
        let ttl = Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or(0));
        let own = Arc::clone(&lock(&self.0.authority));
        let authority = if self.1 { Arc::clone(&self.0.other) } else { own };
        let signed = authority.sign(&csr, &id, ttl).map_err(|e| invalid(e.to_string()))?;
        let chain = signed.chain.iter().chain(&signed.roots);
        let cert_chain = chain.map(|der| fairlead_identity::ca::certificate_pem(der)).collect();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

struct Streams(Arc<Shared>);

type Answers = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Configuration for Streams {
    type StreamStream = Answers;

    async fn stream(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Answers>, Status> {
        authorized(&request)?;
        let (answers, mut waiting) = mpsc::channel(4);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut ended = shared.ended.subscribe();
            tokio::select! {
                _ = serve(&shared, request.into_inner(), &answers) => {}
                _ = ended.changed() => {}
            }
        });
        let answers = futures_util::stream::poll_fn(move |context| waiting.poll_recv(context));
        Ok(Response::new(Box::pin(answers)))
    }
}

type Answer = mpsc::Sender<Result<ControllerMessage, Status>>;

async fn serve(shared: &Shared, mut said: Streaming<NodeMessage>, answers: &Answer) -> Option<()> {
    use node_message::Message;
    let hello = match said.message().await.ok()??.message? {
        Message::Hello(hello) => hello,
        _ => return None,
    };
    let node = hello.node.clone();
    lock(&shared.heard).hellos.push(hello);
    let mut held: BTreeMap<Name, String> = BTreeMap::new();
    loop {
        let Message::Inventory(inventory) = said.message().await.ok()??.message? else {
            return None;
        };
        for one in inventory.held {
            let key = one.key?;
            held.insert((key.api_version, key.kind, key.namespace, key.name), one.version);
        }
        if inventory.last {
            break;
        }
    }
    lock(&shared.heard).inventories.push(held.len());
    let mut changed = shared.changed.subscribe();
    let mut told = Told { node: node.clone(), ..Told::default() };
    let mut asked: Vec<Lookup> = Vec::new();
    loop {
        changed.borrow_and_update();
        for lookup in &asked {
            lock(&shared.heard).lookups.extend(lookup.addresses.iter().cloned());
            told.shown.extend(lookup.addresses.iter().cloned());
        }
        for update in differences(shared, &mut held, &mut told) {
            lock(&shared.heard).sent += update.upserts.len();
            send(answers, controller_message::Message::Update(update)).await?;
            // At most one is unacknowledged; questions may come between.
            loop {
                match said.message().await.ok()??.message? {
                    Message::Ack(ack) => {
                        lock(&shared.heard).acks.push((node.clone(), ack));
                        break;
                    }
                    Message::Lookup(lookup) => {
                        told.later.push(lookup);
                    }
                    Message::PodAddresses(pods) => {
                        lock(&shared.heard).addresses.push((node.clone(), pods))
                    }
                    Message::Verdicts(_) => {}
                    _ => return None,
                }
            }
        }
        for lookup in asked.drain(..) {
            let known = hidden(shared, &lookup.addresses);
            let found = Found { id: lookup.id, known, ..Found::default() };
            send(answers, controller_message::Message::Found(found)).await?;
        }
        asked.append(&mut told.later);
        if !asked.is_empty() {
            continue;
        }
        tokio::select! {
            _ = changed.changed() => {}
            next = said.message() => match next.ok()??.message? {
                Message::Lookup(lookup) => asked.push(lookup),
                Message::PodAddresses(pods) => lock(&shared.heard).addresses.push((node.clone(), pods)),
                Message::Verdicts(_) => {}
                _ => return None,
            }
        }
    }
}

/// What a stream's node was told, beside objects.
#[derive(Default)]
struct Told {
    node: String,
    shown: Vec<String>,
    later: Vec<Lookup>,
    bundle: String,
    nonce: u64,
}

fn hidden(shared: &Shared, addresses: &[String]) -> bool {
    let world = lock(&shared.world);
    world.objects.values().any(|o| o.hidden.as_ref().is_some_and(|a| addresses.contains(a)))
}

async fn send(answers: &Answer, message: controller_message::Message) -> Option<()> {
    answers.send(Ok(ControllerMessage { message: Some(message) })).await.ok()
}

/// What a node has to be told to hold what there is.
fn differences(shared: &Shared, held: &mut BTreeMap<Name, String>, told: &mut Told) -> Vec<Update> {
    let world = lock(&shared.world);
    let key = |(api_version, kind, namespace, name): &Name| Key {
        api_version: api_version.clone(),
        kind: kind.clone(),
        namespace: namespace.clone(),
        name: name.clone(),
    };
    let visible = |o: &Object| {
        o.hidden.as_ref().is_none_or(|a| told.node != "node0" || told.shown.contains(a))
    };
    let mut updates = vec![Update::default()];
    let mut bytes = 0;
    for (name, object) in world.objects.iter().filter(|(_, o)| visible(o)) {
        if held.get(name) == Some(&object.version) {
            continue;
        }
        held.insert(name.clone(), object.version.clone());
        if bytes + object.json.len() > UPDATE_BYTES {
            updates.push(Update::default());
            bytes = 0;
        }
        bytes += object.json.len();
        if let Some(update) = updates.last_mut() {
            update.upserts.push(Resource {
                key: Some(key(name)),
                version: object.version.clone(),
                json: object.json.clone(),
                generation: 0,
            });
        }
    }
    let gone: Vec<Name> = held
        .keys()
        .filter(|name| !world.objects.get(*name).is_some_and(visible))
        .cloned()
        .collect();
    let bundle = lock(&shared.bundle).clone();
    if let Some(last) = updates.last_mut() {
        last.removed = gone.iter().map(key).collect();
        last.complete = true;
        if bundle != told.bundle {
            last.trust_bundle_pem = bundle.clone().into_bytes();
        }
    }
    held.retain(|name, _| !gone.contains(name));
    told.bundle = bundle;
    let first = told.nonce == 0;
    updates.retain(|u| {
        first || !u.upserts.is_empty() || !u.removed.is_empty() || !u.trust_bundle_pem.is_empty()
    });
    // Numbers rise within a stream; that of the last is the number of changes it covers.
    for update in &mut updates {
        told.nonce += 1;
        update.nonce = told.nonce;
    }
    if let Some(last) = updates.last_mut() {
        told.nonce = told.nonce.max(world.counter);
        last.nonce = told.nonce;
    }
    updates
}
