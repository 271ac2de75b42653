//! The parts of the controller, put together.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use fairlead_types::TrustDomain;
use fairlead_wire::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use fairlead_wire::replica::MAX_MESSAGE_BYTES;
use fairlead_wire::replica::verdicts_server::VerdictsServer;
use http::Request;
use hyper::body::Incoming;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tonic::codegen::Service;

use crate::admission::{Webhook, WebhookSettings, keep_configuration};
use crate::auth::{AuthSettings, Authenticator, ReplicaAuthenticator};
use crate::ca::{self, Ca, CaSettings, CertificateService, Secrets, ServiceSettings};
use crate::ca::{Bundle, Pods, Serving, ServingSettings};
use crate::lease::{Elector, LeaseSettings};
use crate::metrics::Metrics;
use crate::replica::{Follower, FollowerSettings, ReplicaMetrics, SERVICE, VerdictsService};
use crate::scope::{Own, Verdicts, World};
use crate::server::{self, Health};
use crate::settings::Settings;
use crate::status::{StatusSettings, StatusWriter};
use crate::stream::{ConfigurationService, PATH, StreamSettings};
use crate::watch;

/// The Lease of the replica that writes.
const LEASE: &str = "fairlead-controller";
/// Path of the CA's service.
const CERTIFICATES: &str = "/istio.v1.auth.IstioCertificateService/";
/// Time for a connection to the API server.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest silence of the API server; more than a watch lasts.
const SILENCE: Duration = Duration::from_secs(90);
/// Time for the last words after SIGTERM.
const FAREWELL: Duration = Duration::from_secs(5);

impl Pods for World {
    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        World::runs_on(self, node, namespace, service_account)
    }
}

/// A client of the API server.
///
/// # Errors
/// There is no usable configuration.
pub async fn client(settings: &Settings) -> anyhow::Result<kube::Client> {
    let mut config = match &settings.kubeconfig {
        Some(file) => {
            let file = Kubeconfig::read_from(file)
                .with_context(|| format!("--kubeconfig {}", file.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer()
            .await
            .context("neither in a pod nor with a kubeconfig; pass --kubeconfig FILE")?,
    };
    config.connect_timeout = Some(CONNECT);
    // A connection may die without a word; watches say something every minute.
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Ok(kube::Client::try_from(config)?)
}

struct State {
    world: Arc<World>,
    ca: Arc<Ca>,
    serving: Arc<Serving>,
    metrics: Arc<Metrics>,
}

impl Health for State {
    fn waits_for(&self) -> Vec<&'static str> {
        let parts = [
            (self.world.is_synced(), "the first list of all objects"),
            (self.ca.is_ready(), "the certificate authority"),
            (self.serving.is_ready(), "the serving certificate"),
        ];
        parts.into_iter().filter(|(ready, _)| !ready).map(|(_, what)| what).collect()
    }

    fn metrics(&self) -> String {
        self.metrics.scrape()
    }
}

/// Runs the controller until `shutdown`.
///
/// # Errors
/// It cannot start, or one of its parts has failed.
pub async fn run(
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let trust_domain: TrustDomain = settings.trust_domain.parse().context("--trust-domain")?;
    let client = client(&settings).await?;
    let root = settings.root_namespace().to_owned();
    let grpc = listen("--grpc-listen", settings.grpc_listen).await?;
    let monitoring = listen("--monitoring-listen", settings.monitoring_listen).await?;
    let webhook = listen("--webhook-listen", settings.webhook_listen).await?;

    let world = World::new(&root, &settings.cluster_domain);
    let metrics = Metrics::new(&world);
    let auth = Arc::new(Authenticator::new(
        client.clone(),
        AuthSettings {
            node_accounts: settings.node_accounts(),
            ..AuthSettings::new(String::new())
        },
    ));
    let ca = Ca::new();
    ca.metrics.register(metrics.registry());
    let serving = {
        let mut serving = ServingSettings::new(&settings.service, &settings.namespace);
        serving.names.extend(settings.tls_name.iter().cloned());
        Serving::new(Arc::clone(&ca), serving)
    };
    let replica = settings.replica.clone().unwrap_or_else(|| "fairlead-controller".to_owned());
    let identity = format!("{replica}_{}_{}", std::process::id(), crate::scope::now_micros());
    let (elector, leader) = Elector::new(
        client.clone(),
        LeaseSettings {
            address: settings.replica_address(),
            ..LeaseSettings::new(&settings.namespace, LEASE, identity.clone())
        },
    );
    let own = Own {
        namespace: settings.namespace.clone(),
        service_account: settings.service_account.clone(),
        pod: replica.clone(),
    };
    let replicas = ReplicaMetrics::new(metrics.registry());
    let follower = Follower::new(
        Arc::clone(&world),
        Arc::clone(&serving),
        elector.other(),
        FollowerSettings {
            instance: identity.clone(),
            token: settings.replica_token.clone(),
            name: format!("{}.{}.svc", settings.service, settings.namespace),
            port: settings.grpc_listen.port(),
        },
        replicas.clone(),
    );
    let verdicts = VerdictsServer::new(VerdictsService::new(
        Arc::clone(&world),
        Arc::new(ReplicaAuthenticator::new(client.clone(), own.clone())),
        leader.clone(),
        replicas,
        identity,
    ))
    .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let status = StatusWriter::new(
        client.clone(),
        Verdicts::among(Arc::clone(&world), own),
        StatusSettings::new(replica),
    );
    status.metrics.register(metrics.registry());

    // Whichever of these ends, something is wrong; all but the first never do.
    let mut parts = JoinSet::new();
    let (stop, mut stopped) = watch_flag();
    let mut lease = JoinSet::new();
    lease.spawn(elector.run(async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }));
    parts.spawn(watch::run(client.clone(), Arc::clone(&world), Arc::clone(&metrics), root));
    let secrets = CaSettings::new(settings.namespace.clone(), trust_domain.clone());
    parts.spawn(Secrets::new(client.clone(), secrets, Arc::clone(&ca)).run());
    parts.spawn(Arc::clone(&serving).run());
    {
        let (client, serving, leader) = (client.clone(), Arc::clone(&serving), leader.clone());
        let namespace = settings.namespace.clone();
        parts.spawn(async move { ca::publish::run(client, &namespace, serving, leader).await });
    }
    if !settings.no_webhook {
        let webhook = WebhookSettings {
            service: settings.service.clone(),
            port: settings.webhook_service_port,
            ..WebhookSettings::new(settings.namespace.clone())
        };
        let (client, serving) = (client.clone(), Arc::clone(&serving));
        parts.spawn(keep_configuration(client, webhook, serving, leader.clone()));
    }
    parts.spawn(status.run(leader));
    parts.spawn(follower.run());

    let configuration = ConfigurationService::new(
        Arc::clone(&world),
        Arc::clone(&auth) as Arc<_>,
        Arc::clone(&metrics),
        trust_bundle(&ca, &mut parts),
        StreamSettings {
            gap: Duration::from_millis(settings.update_gap),
            ..StreamSettings::default()
        },
    );
    let certificates = IstioCertificateServiceServer::new(CertificateService::new(
        client,
        auth,
        Arc::clone(&ca),
        Arc::clone(&world) as Arc<_>,
        ServiceSettings::new(trust_domain),
    ));
    let answer = move |request: Request<Incoming>| {
        let (configuration, mut certificates) = (configuration.clone(), certificates.clone());
        let mut verdicts = verdicts.clone();
        async move {
            let path = request.uri().path();
            if path == PATH {
                configuration.serve(request).await
            } else if path.starts_with(CERTIFICATES) {
                match certificates.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            } else if path.starts_with(SERVICE) {
                match verdicts.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            } else {
                server::unimplemented()
            }
        }
    };
    let tls = serving.server_config(&[b"h2"]).context("TLS")?;
    parts.spawn(async move { drop_never(server::serve_grpc(grpc, tls, answer).await) });

    let checks = Arc::new(Webhook::new(Arc::clone(metrics.registry())));
    let tls = serving.server_config(&[b"http/1.1"]).context("TLS")?;
    let answer = move |request: Request<Incoming>| {
        let checks = Arc::clone(&checks);
        async move { checks.handle(request).await }
    };
    parts.spawn(async move { drop_never(server::serve_https(webhook, tls, answer).await) });

    let health = Arc::new(State { world, ca, serving, metrics });
    let answer = move |request: Request<Incoming>| {
        std::future::ready(server::monitoring(&*health, &request))
    };
    parts.spawn(async move { drop_never(server::serve_http(monitoring, answer).await) });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        grpc = %settings.grpc_listen,
        monitoring = %settings.monitoring_listen,
        webhook = %settings.webhook_listen,
        "started"
    );

    let ended = tokio::select! {
        () = shutdown => None,
        ended = parts.join_next() => Some(ended),
    };
    // The lease goes back, so that another replica need not wait for its end.
    stop.send_replace(true);
    let _ = tokio::time::timeout(FAREWELL, lease.join_next()).await;
    match ended {
        None => {
            tracing::info!("stopped");
            Ok(())
        }
        Some(Some(Err(error))) => Err(error).context("a part of the controller has failed"),
        Some(_) => anyhow::bail!("a part of the controller has ended"),
    }
}

fn drop_never(never: std::convert::Infallible) {
    match never {}
}

fn watch_flag() -> (channel::Sender<bool>, channel::Receiver<bool>) {
    channel::channel(false)
}

async fn listen(
    setting: &str,
    address: std::net::SocketAddr,
) -> anyhow::Result<tokio::net::TcpListener> {
    server::bind(address).await.with_context(|| format!("{setting} {address}"))
}

/// The trust bundle as streams send it.
fn trust_bundle(ca: &Arc<Ca>, parts: &mut JoinSet<()>) -> channel::Receiver<Bytes> {
    let mut bundle = ca.bundle();
    let bytes = |bundle: &Bundle| Bytes::from(bundle.pem.clone().into_bytes());
    let (sender, receiver) = channel::channel(bytes(&bundle.borrow_and_update()));
    let ca = Arc::clone(ca);
    parts.spawn(async move {
        // The sender is in the CA, which is held here.
        let _ca = ca;
        while bundle.changed().await.is_ok() {
            sender.send_replace(bytes(&bundle.borrow_and_update()));
        }
    });
    receiver
}
