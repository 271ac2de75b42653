//! The controller's own server certificate: from its own CA, renewed while listeners stay open.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use fairlead_identity::ServingCertificate;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Bundle, Ca};

/// Wait before another try when there is no certificate to be had.
const RETRY: Duration = Duration::from_secs(1);

/// Settings of the certificate.
#[derive(Clone, Debug)]
pub struct ServingSettings {
    /// DNS names.
    pub names: Vec<String>,
    /// Validity; it is renewed after two thirds of it.
    pub ttl: Duration,
    /// How long the old certificate is kept in use when another CA signs, while clients learn its
    /// root: the kubelet takes a minute to bring a ConfigMap into a pod.
    pub settle: Duration,
}

impl ServingSettings {
    /// The usual ones for a Service in a namespace.
    #[must_use]
    pub fn new(service: &str, namespace: &str) -> Self {
        Self {
            names: vec![
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.cluster.local"),
                format!("{service}.{namespace}"),
            ],
            ttl: Duration::from_secs(24 * 3600),
            settle: Duration::from_secs(120),
        }
    }
}

/// The certificate in use.
#[derive(Debug)]
struct Current(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Keeps a certificate for the listeners.
pub struct Serving {
    ca: Arc<Ca>,
    settings: ServingSettings,
    current: Arc<Current>,
    /// The roots of the authority that signed the certificate in use.
    roots: watch::Sender<Vec<CertificateDer<'static>>>,
}

impl Serving {
    /// No certificate yet: [`Serving::run`] gets one.
    #[must_use]
    pub fn new(ca: Arc<Ca>, settings: ServingSettings) -> Arc<Self> {
        let current = Arc::new(Current(ArcSwapOption::empty()));
        Arc::new(Self { ca, settings, current, roots: watch::Sender::default() })
    }

    /// TLS 1.3 for listeners that speak `alpn`. Handshakes fail until there is a certificate.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// Whether there is a certificate.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.current.0.load().is_some()
    }

    /// The roots that clients of these listeners need: those of the mesh, and those of the
    /// certificate in use, or about to be. `None` until those are known: whoever asks is told of
    /// every change after that ([`Serving::client_roots_changed`]), so nothing else may be waited
    /// for between the question and the change.
    #[must_use]
    pub fn client_roots(&self) -> Option<Bundle> {
        let ours = self.roots.borrow().clone();
        if ours.is_empty() {
            return None;
        }
        let trusted = self.ca.bundle().borrow().roots.clone();
        Some(Bundle::new(trusted.into_iter().chain(ours)))
    }

    /// Tells when [`Serving::client_roots`] may have changed.
    pub(crate) async fn client_roots_changed(
        bundle: &mut watch::Receiver<Arc<Bundle>>,
        roots: &mut watch::Receiver<Vec<CertificateDer<'static>>>,
    ) {
        tokio::select! {
            Ok(()) = bundle.changed() => {}
            Ok(()) = roots.changed() => {}
            else => std::future::pending().await,
        }
    }

    pub(crate) fn receivers(
        &self,
    ) -> (watch::Receiver<Arc<Bundle>>, watch::Receiver<Vec<CertificateDer<'static>>>) {
        (self.ca.bundle(), self.roots.subscribe())
    }

    /// Renews the certificate for ever.
    pub async fn run(self: Arc<Self>) {
        let mut changes = self.ca.signer_changes();
        loop {
            changes.borrow_and_update();
            let wait = match self.issue() {
                Ok(wait) => wait,
                Err(error) => {
                    if self.is_ready() {
                        tracing::warn!(error, "the serving certificate cannot be renewed");
                    }
                    RETRY
                }
            };
            tokio::select! {
                Ok(()) = changes.changed() => {
                    if self.is_ready() {
                        sleep(self.settings.settle).await;
                    }
                }
                () = sleep(wait) => {}
            }
        }
    }

    /// Gets a certificate; how long it is good for.
    fn issue(&self) -> Result<Duration, String> {
        let signer = self.ca.signer().ok_or("the CA is not ready yet")?;
        let ServingCertificate { key, not_after, .. } =
            signer.serving(&self.settings.names, self.settings.ttl).map_err(|e| e.to_string())?;
        let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
        // Roots first, so that whoever publishes them is not late.
        self.roots.send_if_modified(|roots| {
            let changed = roots.as_slice() != signer.roots();
            if changed {
                *roots = signer.roots().to_vec();
            }
            changed
        });
        self.current.0.store(Some(key));
        Ok((left * 2 / 3).max(RETRY))
    }
}
