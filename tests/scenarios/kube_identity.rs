//! Certificates on a real cluster: who gets which, what a stolen node cannot have, and that the CA
//! is exchanged under way without a restart and without a handshake that fails.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use fairlead_identity::ca::{CaSet, certificate_pem, pem_certificates};
use fairlead_identity::{
    CaClient, CaError, SignFuture, SignedCertificate, Wire, WorkloadCertificate,
};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::eventually;
use fairlead_wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use fairlead_wire::ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::body::Body;

use crate::kube::{
    Forward, READY, SYSTEM, cacerts, cluster_with_controller, counter, idle_pod, starts, token,
};

const NAME: &str = "fairlead-controller.fairlead-system.svc";
const HOUR: Duration = Duration::from_secs(3600);
const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const RATINGS: &str = "spiffe://cluster.local/ns/default/sa/ratings";

/// A client of the certificate service, as ztunnel, istio-csr's clients and the node daemon are:
/// the service is Istio's, and so is what it asks of them.
struct Client {
    port: u16,
    roots: Vec<CertificateDer<'static>>,
    token: String,
    impersonate: bool,
}

/// A connection that tonic's client can use.
struct Channel(SendRequest<Body>);

impl tonic::codegen::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Client {
    async fn connect(&self) -> Result<Channel> {
        let mut roots = RootCertStore::empty();
        for root in &self.roots {
            roots.add(root.clone())?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let name = ServerName::try_from(NAME)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Channel(sender))
    }

    async fn request(&self, csr: &[u8], id: &str, ttl: Duration) -> Result<Vec<String>, CaError> {
        let unreachable = |e: anyhow::Error| CaError::Unreachable(format!("{e:#}"));
        let channel = self.connect().await.map_err(unreachable)?;
        let origin =
            format!("https://{NAME}:15012").parse().map_err(|e| unreachable(anyhow!("{e}")))?;
        let mut client = IstioCertificateServiceClient::with_origin(channel, origin);
        let kind = prost_types::value::Kind::StringValue(id.to_owned());
        let fields = [(IMPERSONATED_IDENTITY.to_owned(), prost_types::Value { kind: Some(kind) })];
        let metadata = self.impersonate.then(|| prost_types::Struct { fields: fields.into() });
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr: request_pem(csr),
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata,
        });
        let bearer =
            format!("Bearer {}", self.token).parse().map_err(|e| unreachable(anyhow!("{e}")))?;
        request.metadata_mut().insert("authorization", bearer);
        let answer = client.create_certificate(request).await;
        answer.map(|answer| answer.into_inner().cert_chain).map_err(|status| match status.code() {
            tonic::Code::Unavailable | tonic::Code::Unknown => {
                CaError::Unreachable(status.to_string())
            }
            code => CaError::Refused(format!("{code:?}: {}", status.message())),
        })
    }
}

fn request_pem(der: &[u8]) -> String {
    certificate_pem(der).replace("CERTIFICATE", "CERTIFICATE REQUEST")
}

impl CaClient for Client {
    fn sign<'a>(
        &'a self,
        csr: &'a CertificateSigningRequestDer<'a>,
        id: &'a fairlead_types::SpiffeId,
        ttl: Duration,
    ) -> SignFuture<'a> {
        Box::pin(async move {
            let mut all = self.request(csr, &id.to_string(), ttl).await?;
            let of = |text: String| pem_certificates(text.as_bytes()).map_err(CaError::Refused);
            let roots = of(all.pop().unwrap_or_default())?;
            let chain = of(all.concat())?;
            Ok(SignedCertificate { chain, roots })
        })
    }
}

async fn issue(client: &Client, id: &str) -> Result<WorkloadCertificate> {
    Ok(WorkloadCertificate::issue(client, &id.parse()?, HOUR, &[]).await?)
}

async fn refusal(client: &Client, id: &str) -> Result<String> {
    match issue(client, id).await {
        Err(error) => Ok(format!("{error:#}")),
        Ok(certificate) => Err(anyhow!("a certificate for {}", certificate.id())),
    }
}

/// A handshake of two workloads, both ways proved.
async fn meet(client: &WorkloadCertificate, server: &WorkloadCertificate) -> Result<()> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let acceptor = TlsAcceptor::from(server.server_config(Wire::Hbone));
    let expected = [server.id().clone()].into();
    let connector = TlsConnector::from(client.client_config(Wire::Hbone, expected)?);
    let name = ServerName::try_from("ignored.invalid")?;
    let (accepted, connected) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    let (mut accepted, mut connected) = (accepted?, connected?);
    connected.shutdown().await?;
    accepted.shutdown().await?;
    Ok(())
}

struct World {
    cluster: Cluster,
    forward: Forward,
}

impl World {
    fn new() -> Result<Self> {
        let cluster = cluster_with_controller(2)?;
        let accounts = ["reviews", "ratings"].map(|name| {
            format!(
                "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: default}}\n---\n"
            )
        });
        let (one, two) = (cluster.node_name(1), cluster.node_name(2));
        let pods = [
            idle_pod("daemon-1", SYSTEM, "fairlead-node", &one),
            idle_pod("daemon-2", SYSTEM, "fairlead-node", &two),
            idle_pod("reviews-1", "default", "reviews", &one),
            idle_pod("ratings-1", "default", "ratings", &two),
        ];
        cluster.apply(&accounts.concat())?;
        eventually("pods are taken", READY, || cluster.apply(&pods.concat()).map(Some))?;
        cluster.wait("default", &["pods", "--all"], "condition=Ready", READY)?;
        let forward = Forward::to(&cluster, "service/fairlead-controller", 15012)?;
        Ok(Self { cluster, forward })
    }

    /// The roots as a node finds them, mounted.
    fn roots(&self) -> Result<Vec<CertificateDer<'static>>> {
        let map =
            self.cluster.json(&["get", "configmap", "-n", SYSTEM, "fairlead-ca-root-cert"])?;
        let text = map["data"]["root-cert.pem"].as_str().context("no roots")?;
        pem_certificates(text.as_bytes()).map_err(|e| anyhow!("{e}"))
    }

    fn client(&self, namespace: &str, account: &str, pod: Option<&str>) -> Result<Client> {
        let token = token(&self.cluster, namespace, account, pod, "istio-ca")?;
        Ok(Client { port: self.forward.port, roots: self.roots()?, token, impersonate: false })
    }

    /// The daemon of a node, by the token of its pod.
    fn node(&self, number: usize) -> Result<Client> {
        let pod = format!("daemon-{number}");
        Ok(Client { impersonate: true, ..self.client(SYSTEM, "fairlead-node", Some(&pod))? })
    }
}

#[test]
fn certificates_go_to_whom_they_belong() -> Result<()> {
    let world = World::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(who_gets_what(&world))?;
    runtime.block_on(a_daemon_that_is_gone(&world))?;
    runtime.block_on(another_ca(&world))
}

async fn who_gets_what(world: &World) -> Result<()> {
    // A node: for the pods that it has.
    let (one, two) = (world.node(1)?, world.node(2)?);
    let (reviews, ratings) = (issue(&one, REVIEWS).await?, issue(&two, RATINGS).await?);
    meet(&reviews, &ratings).await?;
    meet(&ratings, &reviews).await?;
    // A stolen node: nothing of another node's pods, of no pod's, of another trust domain's.
    for (thief, id) in [
        (&one, RATINGS),
        (&two, REVIEWS),
        (&one, "spiffe://cluster.local/ns/kube-system/sa/admin"),
        (&one, "spiffe://other.example/ns/default/sa/reviews"),
    ] {
        let said = refusal(thief, id).await?;
        ensure!(said.contains("PermissionDenied"), "{id}: {said}");
    }
    // A workload: its own certificate and no other.
    let mut workload = world.client("default", "ratings", Some("ratings-1"))?;
    meet(&issue(&workload, RATINGS).await?, &reviews).await?;
    let said = refusal(&workload, REVIEWS).await?;
    ensure!(said.contains("InvalidArgument"), "{said}");
    workload.impersonate = true;
    let said = refusal(&workload, REVIEWS).await?;
    ensure!(said.contains("is no node daemon"), "{said}");
    // Tokens that do not count: for another audience, bound to no pod, nonsense, none.
    let other = token(&world.cluster, SYSTEM, "fairlead-node", Some("daemon-1"), "other")?;
    for (token, code) in [
        (other, "Unauthenticated"),
        (token(&world.cluster, SYSTEM, "fairlead-node", None, "istio-ca")?, "PermissionDenied"),
        ("nonsense".to_owned(), "Unauthenticated"),
        (String::new(), "Unauthenticated"),
    ] {
        let client = Client { token, roots: one.roots.clone(), ..one };
        let said = refusal(&client, REVIEWS).await?;
        ensure!(said.contains(code), "{code}: {said}");
    }
    // A pod that comes: at once, though no watch may have brought it yet.
    let account =
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: late, namespace: default}\n---\n";
    world.cluster.apply(account)?;
    world.cluster.apply(&idle_pod("late-1", "default", "late", &world.cluster.node_name(1)))?;
    issue(&one, "spiffe://cluster.local/ns/default/sa/late").await?;
    // A pod that goes takes the right with it.
    world.cluster.kubectl(&["delete", "pod", "late-1", "--now", "--wait"])?;
    let start = Instant::now();
    while issue(&one, "spiffe://cluster.local/ns/default/sa/late").await.is_ok() {
        ensure!(start.elapsed() < Duration::from_secs(5), "still certified after its last pod");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let cluster = &world.cluster;
    ensure!(counter(cluster, "citadel_server_success_cert_issuance_count", "")? >= 4.0);
    ensure!(counter(cluster, "citadel_server_authentication_failure_count", "")? >= 3.0);
    ensure!(counter(cluster, "citadel_server_csr_count", "")? >= 10.0);
    Ok(())
}

/// A token that is revoked: that of a daemon whose pod was deleted.
async fn a_daemon_that_is_gone(world: &World) -> Result<()> {
    let two = world.node(2)?;
    issue(&two, RATINGS).await?;
    world.cluster.kubectl(&["delete", "pod", "-n", SYSTEM, "daemon-2", "--now", "--wait"])?;
    let start = Instant::now();
    // The API server remembers a token for 10 s, the controller for as long.
    while issue(&two, RATINGS).await.is_ok() {
        ensure!(start.elapsed() < Duration::from_secs(30), "the token still counts");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let said = refusal(&two, RATINGS).await?;
    ensure!(said.contains("Unauthenticated"), "{said}");
    eprintln!("a revoked token counted for {:?} more", start.elapsed());
    Ok(())
}

/// Own roots are put there (Istio's `cacerts`) while certificates are fetched and handshakes made
/// all the time: not one fails, nothing is restarted, and new ones verify with the new chain.
async fn another_ca(world: &World) -> Result<()> {
    let controllers = ["-l", "app=fairlead-controller"];
    let before = starts(&world.cluster, &controllers)?;
    let one = world.node(1)?;
    let theirs = CaSet::generate(&"cluster.local".parse()?)?;
    let old = issue(&one, REVIEWS).await?;
    let mut latest: HashMap<&str, WorkloadCertificate> = HashMap::new();
    latest.insert("a", issue(&one, REVIEWS).await?);
    world.cluster.apply(&cacerts(&theirs))?;
    let new_line = theirs.ca_cert.lines().nth(1).context("PEM")?.trim().to_owned();
    let start = Instant::now();
    let (mut rounds, mut switched) = (0, None);
    while start.elapsed() < Duration::from_secs(60) {
        let fresh = issue(&one, REVIEWS).await?;
        // Those of a moment ago and those of now, both ways; nobody has an error.
        if let Some(before) = latest.get("a") {
            meet(before, &fresh).await.context("before to fresh")?;
            meet(&fresh, before).await.context("fresh to before")?;
        }
        if fresh.info().chain_pem.replace('\r', "").contains(&new_line) {
            switched.get_or_insert(start.elapsed());
        }
        latest.insert("a", fresh);
        rounds += 1;
        if switched.is_some_and(|at| start.elapsed() > at + Duration::from_secs(2)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let switched = switched.context("the new CA never signed")?;
    eprintln!("{rounds} rounds without an error; the new CA signed after {switched:?}");
    ensure!(world.roots()?.len() == 2, "both roots are published to nodes");
    ensure!(before == starts(&world.cluster, &controllers)?, "something was restarted");
    // The old root goes: what is left verifies with the new one alone, and the old does not.
    world.cluster.kubectl(&["delete", "secret", "-n", SYSTEM, "fairlead-ca-secret"])?;
    let fresh = eventually_async(async || {
        let fresh = issue(&one, REVIEWS).await?;
        ensure!(meet(&old, &fresh).await.is_err(), "the old root is still trusted");
        Ok(fresh)
    })
    .await?;
    meet(&fresh, &issue(&one, REVIEWS).await?).await?;
    Ok(())
}

async fn eventually_async<T>(attempt: impl AsyncFn() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt().await {
            Err(_) if start.elapsed() < Duration::from_secs(20) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => return other,
        }
    }
}
