//! The world of a test: nodes, pods, services, and what was observed of them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_config::SnapshotHandle;
use fairlead_config::model::{
    Cluster, ClusterPolicy, Endpoint, Inbound, InboundPort, LocalPod, MtlsMode, PeerWire, Routes,
    Service, ServiceKey, ServicePort, Snapshot, TargetPort, UpstreamTls, Workload,
};
use fairlead_identity::{CaDirectory, IdentityStore, StoreSettings, WorkloadCertificate};
use fairlead_policy::authz::{
    Action, AuthzSet, Operation, Policy, PolicyName, PrincipalMatch, Rule, Source, Values,
};
use fairlead_policy::balance::{BalancerState, LoadBalancer};
use fairlead_policy::matcher::StringMatch;
use fairlead_policy::route::{ClusterId, HttpRouteTable, TcpRouteTable};
use fairlead_telemetry::Telemetry;
use fairlead_telemetry::access_log::{AccessLogConfig, Encoding};
use fairlead_types::{
    AppProtocol, ClientAddr, FlowMiss, Labels, NetnsCookie, OriginalDst, PodPort, PodSockets,
    SpiffeId, TrustDomain, WorkloadId,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::transport::Transport;
use crate::{DataPlane, Deps, Settings, inbound};

/// Pods get their addresses from here, so that tests side by side do not meet.
static NEXT_IP: AtomicU16 = AtomicU16::new(1);
static NEXT: AtomicU64 = AtomicU64::new(1);

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

pub(super) fn id(account: &str) -> SpiffeId {
    SpiffeId::new(domain(), "default", account).unwrap()
}

pub(super) struct TempDir(pub(super) PathBuf);

impl TempDir {
    fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fairlead-proxy-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the kernel knows of a pod.
pub(super) struct FakePort {
    ip: IpAddr,
    cookie: NetnsCookie,
    /// Captured connections: their source address, and what they asked for.
    flows: Mutex<HashMap<SocketAddr, SocketAddr>>,
    /// Delivered connections: their source address, and whom the application is to see.
    clients: Mutex<HashMap<SocketAddr, ClientAddr>>,
}

fn bound(ip: IpAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    let local = socket.local_addr()?.as_socket().unwrap();
    Ok((socket.into(), local))
}

impl PodPort for FakePort {
    fn cookie(&self) -> NetnsCookie {
        self.cookie
    }

    fn outbound_socket(&self, _to: SocketAddr) -> io::Result<OwnedFd> {
        Ok(bound(self.ip)?.0)
    }

    fn delivery_socket(&self, client: ClientAddr, _to: SocketAddr) -> io::Result<OwnedFd> {
        let (socket, local) = bound(DELIVERY)?;
        self.clients.lock().unwrap().insert(local, client);
        Ok(socket)
    }

    fn take_original_dst(&self, peer: SocketAddr) -> Result<OriginalDst, FlowMiss> {
        self.flows.lock().unwrap().remove(&peer).map(OriginalDst).ok_or(FlowMiss::Unknown)
    }
}

const DELIVERY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));

/// A pod.
pub(super) struct TestPod {
    pub(super) workload: Arc<Workload>,
    pub(super) ip: IpAddr,
    node: usize,
    port: Arc<FakePort>,
    capture: Option<SocketAddr>,
}

impl TestPod {
    /// Connects as the pod's application would.
    pub(super) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(self.ip, 0))?;
        let Some(capture) = self.capture else { return socket.connect(to).await };
        self.port.flows.lock().unwrap().insert(socket.local_addr()?, to);
        socket.connect(capture).await
    }

    /// The same, from a port of the application's own choice.
    pub(super) async fn connect_from(&self, port: u16, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(self.ip, port))?;
        self.port.flows.lock().unwrap().insert(socket.local_addr()?, to);
        socket.connect(self.capture.unwrap()).await
    }

    /// The same, without a word to the runtime: nobody accepts meanwhile.
    pub(super) fn connect_unnoticed(&self, to: SocketAddr) -> io::Result<std::net::TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(self.ip, 0).into())?;
        let local = socket.local_addr()?.as_socket().unwrap();
        self.port.flows.lock().unwrap().insert(local, to);
        socket.connect(&self.capture.unwrap().into())?;
        Ok(socket.into())
    }

    /// Captured connections that nobody has taken yet.
    pub(super) fn untaken(&self) -> usize {
        self.port.flows.lock().unwrap().len()
    }

    /// Connects to the capture listener without having been captured.
    pub(super) async fn connect_uncaptured(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.capture.unwrap()).await
    }
}

/// A node.
pub(super) struct Node {
    pub(super) plane: DataPlane,
    pub(super) snapshots: SnapshotHandle,
    pub(super) telemetry: Arc<Telemetry>,
    identity: Arc<IdentityStore>,
    log: PathBuf,
}

impl Node {
    /// What a destination tells its application of a client that has a pod on this node.
    pub(super) fn xfcc(&self, server: &str, client: &str) -> String {
        let certificate = self.certificate(client);
        let (by, hash, uri) = (id(server), certificate.fingerprint(), id(client));
        assert_eq!(hash.len(), 64);
        format!("By={by};Hash={hash};Subject=\"\";URI={uri}")
    }

    /// The certificate of a service account.
    pub(super) fn certificate(&self, name: &str) -> Arc<WorkloadCertificate> {
        self.identity.certificate(&id(name)).unwrap()
    }

    /// Lines of the access log, once there are `n`.
    pub(super) async fn log(&self, n: usize) -> Vec<serde_json::Value> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            self.telemetry.access_log().flush();
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            if lines.len() >= n {
                assert_eq!(lines.len(), n, "more lines than expected: {text}");
                return lines;
            }
            assert!(Instant::now() < until, "{} of {n} lines: {text}", lines.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The sum of a metric's samples whose labels contain all of `labels`.
    pub(super) fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text: String = self.telemetry.scrape().collect();
        text.lines()
            .filter(|l| l.starts_with(name) && labels.iter().all(|label| l.contains(label)))
            .filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum::<f64>() as u64
    }

    /// Waits until a metric has a value.
    pub(super) async fn until_metric(&self, name: &str, labels: &[&str], value: u64) {
        let until = Instant::now() + Duration::from_secs(5);
        while self.metric(name, labels) != value {
            assert!(
                Instant::now() < until,
                "{name} {labels:?} is {}, not {value}",
                self.metric(name, labels)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Everything.
pub(super) struct World {
    pub(super) nodes: Vec<Node>,
    snapshot: Snapshot,
    inbound: HashMap<WorkloadId, (usize, Inbound)>,
    local: HashMap<WorkloadId, (usize, Arc<LocalPod>)>,
    next_cluster: u32,
    ca: Arc<CaDirectory>,
    dir: TempDir,
}

impl World {
    pub(super) fn new(nodes: usize) -> Self {
        let dir = TempDir::new();
        let ca = Arc::new(CaDirectory::open(&dir.0.join("ca"), &domain()).unwrap());
        let mut world = Self {
            nodes: Vec::new(),
            snapshot: Snapshot { version: 1, ..Snapshot::default() },
            inbound: HashMap::new(),
            local: HashMap::new(),
            next_cluster: 0,
            ca,
            dir,
        };
        for n in 0..nodes {
            let identity = IdentityStore::new(world.ca.clone(), StoreSettings::default());
            let telemetry = Telemetry::new();
            let log = world.dir.0.join(format!("access-{n}.log"));
            telemetry
                .access_log()
                .configure(&AccessLogConfig {
                    file: log.to_string_lossy().into_owned(),
                    encoding: Encoding::Json,
                    format: String::new(),
                })
                .unwrap();
            let snapshots = SnapshotHandle::new(Arc::new(Snapshot::default()));
            let plane = DataPlane::new(Deps {
                snapshots: snapshots.clone(),
                transport: Transport::new(identity.clone()),
                telemetry: telemetry.clone(),
                settings: Settings::default(),
            });
            world.nodes.push(Node { plane, snapshots, telemetry, identity, log });
        }
        world
    }

    /// Adds a pod with service account `name`.
    pub(super) async fn pod(&mut self, node: usize, name: &str, wire: PeerWire) -> TestPod {
        self.pod_with(node, name, wire, &[]).await
    }

    pub(super) async fn pod_with(
        &mut self,
        node: usize,
        name: &str,
        wire: PeerWire,
        labels: &[(&str, &str)],
    ) -> TestPod {
        self.pod_excluding(node, name, wire, labels, &[]).await
    }

    /// A pod with ports at which it is not captured.
    pub(super) async fn pod_excluding(
        &mut self,
        node: usize,
        name: &str,
        wire: PeerWire,
        labels: &[(&str, &str)],
        exclude_inbound: &[u16],
    ) -> TestPod {
        let [high, low] = NEXT_IP.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let ip = IpAddr::V4(Ipv4Addr::new(127, 100, high, low));
        let enrolled = wire != PeerWire::Plain;
        let text = |s: &str| -> Arc<str> { s.into() };
        let workload = Arc::new(Workload {
            id: WorkloadId::new("default", name),
            name: text(name),
            namespace: text("default"),
            uid: text(name),
            workload_name: text(name),
            canonical_name: text(name),
            canonical_revision: text("latest"),
            app: text(name),
            version: text("v1"),
            labels: Arc::new(labels.iter().copied().collect::<Labels>()),
            identity: id(name),
            ips: Box::new([ip]),
            node: format!("node-{node}").into(),
            enrolled,
            wire,
            exclude_inbound_ports: exclude_inbound.into(),
            include_inbound_ports: None,
        });
        let port = Arc::new(FakePort {
            ip,
            cookie: NetnsCookie(NEXT.fetch_add(1, Ordering::Relaxed)),
            flows: Mutex::default(),
            clients: Mutex::default(),
        });
        let local = Arc::new(LocalPod {
            workload: Arc::clone(&workload),
            netns: None,
            exclude_outbound_ports: Box::default(),
            exclude_outbound_cidrs: Box::default(),
            include_outbound_cidrs: None,
            include_outbound_ports: Box::default(),
            probe_ports: Box::default(),
        });
        let mut capture = None;
        if enrolled {
            let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
            capture = Some(listener.local_addr().unwrap());
            let sockets = PodSockets {
                outbound: vec![listener],
                inbound: Vec::new(),
                port: Arc::<FakePort>::clone(&port),
                ips: Vec::new(),
                given: Vec::new(),
            };
            self.nodes[node].plane.add_pod(Arc::clone(&local), sockets).unwrap();
            let inbound = Inbound {
                workload: Arc::clone(&workload),
                mtls: MtlsMode::Permissive,
                ports: Box::default(),
                authz: Arc::default(),
            };
            self.inbound.insert(workload.id.clone(), (node, inbound));
        }
        self.local.insert(workload.id.clone(), (node, local));
        self.snapshot.workloads.insert(ip, Arc::clone(&workload));
        TestPod { workload, ip, node, port, capture }
    }

    /// Enrols a pod anew, with other listeners; where those before are.
    pub(super) fn replace(&self, pod: &mut TestPod) -> SocketAddr {
        let listener = std::net::TcpListener::bind((pod.ip, 0)).unwrap();
        let before = pod.capture.replace(listener.local_addr().unwrap()).unwrap();
        let sockets = PodSockets {
            outbound: vec![listener],
            inbound: Vec::new(),
            port: Arc::<FakePort>::clone(&pod.port),
            ips: Vec::new(),
            given: Vec::new(),
        };
        let (_, local) = &self.local[&pod.workload.id];
        self.nodes[pod.node].plane.add_pod(Arc::clone(local), sockets).unwrap();
        before
    }

    /// Listens as the application of `pod`; what comes from elsewhere is steered to the data
    /// plane where the pod is enrolled. `app` gets each connection with the client's address.
    pub(super) async fn listen<F, R>(&self, pod: &TestPod, app: F) -> SocketAddr
    where
        F: Fn(TcpStream, SocketAddr) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.listen_at(pod, 0, app).await
    }

    pub(super) async fn listen_at<F, R>(&self, pod: &TestPod, port: u16, app: F) -> SocketAddr
    where
        F: Fn(TcpStream, SocketAddr) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((pod.ip, port)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::clone(&self.nodes[pod.node].plane.shared);
        let fake = Arc::clone(&pod.port);
        let captured = pod.workload.enrolled && !pod.workload.exclude_inbound_ports.contains(&port);
        let id = pod.workload.id.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, peer)) = listener.accept().await else { return };
                let _ = stream.set_nodelay(true);
                if captured && peer.ip() != DELIVERY {
                    let pod = shared.pod(&id).unwrap();
                    let coming = shared.live.coming();
                    tokio::spawn(inbound::serve(Arc::clone(&shared), pod, stream, coming));
                    continue;
                }
                let client = fake.clients.lock().unwrap().remove(&peer);
                tokio::spawn(app(stream, client.map_or(peer, |c| c.0)));
            }
        });
        addr
    }

    /// A service on `port` of a new cluster IP.
    pub(super) fn service(
        &mut self,
        name: &str,
        protocol: AppProtocol,
        endpoints: &[(&TestPod, SocketAddr)],
    ) -> (SocketAddr, ClusterId) {
        let [high, low] = NEXT_IP.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let vip = SocketAddr::from(([127, 200, high, low], 80));
        let service = Arc::new(Service {
            host: format!("{name}.default.svc.cluster.local").into(),
            name: name.into(),
            namespace: "default".into(),
            vips: Box::new([vip.ip()]),
        });
        let cluster = self.cluster(&service, protocol, None, endpoints);
        let port = ServicePort {
            service: Arc::clone(&service),
            number: vip.port(),
            name: None,
            protocol,
            common: Routes { http: None, tcp: None, default_cluster: cluster },
            namespaced: Box::default(),
        };
        self.snapshot.vips.insert(vip, Arc::new(port));
        for (pod, addr) in endpoints {
            self.describe_port(pod, addr.port(), protocol, Some(Arc::clone(&service)));
        }
        (vip, cluster)
    }

    /// A service, headless or not, that `pod` is the only endpoint of, with a DestinationRule.
    pub(super) fn member(
        &mut self,
        pod: &TestPod,
        addr: SocketAddr,
        headless: bool,
        tls: UpstreamTls,
    ) {
        let (vip, cluster) = self.service("member", AppProtocol::Tcp, &[(pod, addr)]);
        let cluster = self.snapshot.clusters.get_mut(&cluster).unwrap();
        Arc::get_mut(cluster).unwrap().policy.tls = tls;
        let mut port = ServicePort::clone(&self.snapshot.vips[&vip]);
        if headless {
            self.snapshot.vips.remove(&vip);
            port.service =
                Arc::new(Service { vips: Box::default(), ..Service::clone(&port.service) });
        }
        let service = Arc::clone(&port.service);
        let (namespace, name) = (service.namespace.clone(), service.name.clone());
        self.snapshot.services.insert(ServiceKey { namespace, name }, [Arc::new(port)].into());
        self.snapshot.targets.remove(&pod.workload.id);
        self.describe_port(pod, addr.port(), AppProtocol::Tcp, Some(service));
    }

    /// What is known of a port of a pod.
    pub(super) fn describe_port(
        &mut self,
        pod: &TestPod,
        number: u16,
        protocol: AppProtocol,
        service: Option<Arc<Service>>,
    ) {
        if let Some(service) = &service {
            let known = self.snapshot.targets.get(&pod.workload.id);
            let mut targets: Vec<_> = known.into_iter().flat_map(|t| t.iter().cloned()).collect();
            let service = Arc::clone(service);
            targets.push(TargetPort { number, protocol, service, service_port: 80 });
            targets.sort_by_key(|t| t.number);
            self.snapshot.targets.insert(pod.workload.id.clone(), targets.into());
        }
        let Some((_, inbound)) = self.inbound.get_mut(&pod.workload.id) else { return };
        let mut ports = std::mem::take(&mut inbound.ports).into_vec();
        ports.push(InboundPort { number, protocol, service, mtls: None });
        ports.sort_by_key(|p| p.number);
        inbound.ports = ports.into();
    }

    fn cluster(
        &mut self,
        service: &Arc<Service>,
        protocol: AppProtocol,
        subset: Option<&str>,
        endpoints: &[(&TestPod, SocketAddr)],
    ) -> ClusterId {
        self.next_cluster += 1;
        let id = ClusterId(self.next_cluster);
        let endpoints = endpoints
            .iter()
            .map(|(pod, addr)| Arc::new(Endpoint::new(*addr, Some(Arc::clone(&pod.workload)))))
            .collect();
        let cluster = Cluster {
            id,
            name: format!("outbound|80|{}|{}", subset.unwrap_or_default(), service.host).into(),
            service: Arc::clone(service),
            port: 80,
            protocol,
            subset: subset.map(Into::into),
            client: None,
            policy: ClusterPolicy {
                balancer: LoadBalancer::RoundRobin,
                tls: UpstreamTls::Auto,
                connect_timeout: Duration::from_secs(1),
                labels: Arc::default(),
            },
            endpoints,
            locality: Default::default(),
            state: Arc::new(BalancerState::default()),
        };
        self.snapshot.clusters.insert(id, Arc::new(cluster));
        id
    }

    /// A subset of the service at `vip`.
    pub(super) fn subset(
        &mut self,
        vip: SocketAddr,
        name: &str,
        endpoints: &[(&TestPod, SocketAddr)],
    ) -> ClusterId {
        let port = Arc::clone(&self.snapshot.vips[&vip]);
        self.cluster(&port.service, port.protocol, Some(name), endpoints)
    }

    /// The routes of the service at `vip`.
    pub(super) fn routes(
        &mut self,
        vip: SocketAddr,
        http: Option<HttpRouteTable>,
        tcp: Option<TcpRouteTable>,
    ) {
        let mut port = ServicePort::clone(&self.snapshot.vips[&vip]);
        port.common.http = http.map(Arc::new);
        port.common.tcp = tcp.map(Arc::new);
        self.snapshot.vips.insert(vip, Arc::new(port));
    }

    pub(super) fn mtls(&mut self, pod: &TestPod, mode: MtlsMode) {
        self.inbound.get_mut(&pod.workload.id).unwrap().1.mtls = mode;
    }

    pub(super) fn authz(&mut self, pod: &TestPod, policies: Vec<Policy>) {
        let set = AuthzSet::new(policies.into_iter().map(Arc::new), "istio-system");
        self.inbound.get_mut(&pod.workload.id).unwrap().1.authz = Arc::new(set);
    }

    pub(super) fn mesh(&mut self, edit: impl FnOnce(&mut fairlead_config::model::MeshSettings)) {
        edit(Arc::make_mut(&mut self.snapshot.mesh));
    }

    /// Makes the configuration current on all nodes, and waits for the certificates.
    pub(super) async fn publish(&mut self) {
        self.snapshot.version += 1;
        for (n, node) in self.nodes.iter().enumerate() {
            let mut snapshot = self.snapshot.clone();
            let mut accounts = HashSet::new();
            for (id, (at, local)) in &self.local {
                if *at == n {
                    snapshot.local.insert(id.clone(), Arc::clone(local));
                }
            }
            for (id, (at, inbound)) in &self.inbound {
                if *at == n {
                    accounts.insert(inbound.workload.identity.clone());
                    let ports = inbound.ports.iter().map(|p| InboundPort {
                        number: p.number,
                        protocol: p.protocol,
                        service: p.service.clone(),
                        mtls: p.mtls,
                    });
                    let inbound = Inbound {
                        workload: Arc::clone(&inbound.workload),
                        mtls: inbound.mtls,
                        ports: ports.collect(),
                        authz: Arc::clone(&inbound.authz),
                    };
                    snapshot.inbound.insert(id.clone(), Arc::new(inbound));
                }
            }
            node.identity.retain(&accounts);
            for account in &accounts {
                node.identity.certificate_within(account, Duration::from_secs(10)).await.unwrap();
            }
            node.snapshots.publish(Arc::new(snapshot));
        }
    }
}

/// A policy with one rule.
pub(super) fn policy(action: Action, principals: &[&str], methods: &[&str]) -> Policy {
    let principals = principals
        .iter()
        .flat_map(|p| PrincipalMatch::parse(p, &[domain()]).unwrap())
        .collect::<Vec<_>>();
    let methods: Vec<_> = methods.iter().map(|m| StringMatch::wildcard(m)).collect();
    let from = Source { principals: Values::new(principals, vec![]), ..Source::default() };
    let to = Operation { methods: Values::new(methods, vec![]), ..Operation::default() };
    let rule = Rule {
        from: if from == Source::default() { Box::default() } else { Box::new([from]) },
        to: if to == Operation::default() { Box::default() } else { Box::new([to]) },
        ..Rule::default()
    };
    Policy {
        name: PolicyName { namespace: "default".into(), name: "test".into() },
        action,
        rules: Box::new([rule]),
    }
}

/// Ends a test that hangs.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("took longer than 20 s")
}
