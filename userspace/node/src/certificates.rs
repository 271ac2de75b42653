//! The certificate authority of the control plane: `istio.v1.auth.IstioCertificateService`, as
//! Istio's own clients speak it, so that istio-csr and others fit.
//!
//! The node asks with its own token on behalf of a pod's service account (`ImpersonatedIdentity`,
//! as ztunnel does). What is trusted is the bundle that the controller hands out; where the
//! authority is another service than the controller, its root counts too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fairlead_identity::{
    CaClient, CaError, IdentityStore, SignFuture, SignedCertificate, split_root,
};
use fairlead_types::SpiffeId;
use fairlead_wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use fairlead_wire::ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::{Mutex, watch};
use tonic::{Code, Request};

use crate::configuration::controller::Bundle;
use crate::rpc::{Channel, Service};

/// A connection is used for so long: with the next one, token and roots are read again.
const CHANNEL_LIFE: Duration = Duration::from_secs(60);
/// Bytes of the largest answer.
const MAX_ANSWER: usize = 1 << 20;
/// Certificates of the longest chain.
const MAX_CHAIN: usize = 16;

/// A remote certificate authority.
pub struct RemoteCa {
    service: Service,
    foreign: bool,
    trusted: ArcSwap<Trusted>,
    channel: Mutex<Option<(Channel, Instant)>>,
}

/// What is trusted.
#[derive(Clone, Default)]
struct Trusted {
    bundle: Bundle,
    /// The root of the last chain.
    own: Option<CertificateDer<'static>>,
}

impl RemoteCa {
    /// An authority; `foreign`: it is another service than the controller.
    #[must_use]
    pub fn new(service: Service, foreign: bool) -> Self {
        Self { service, foreign, trusted: ArcSwap::default(), channel: Mutex::default() }
    }

    /// The roots that the mesh trusts, as far as they are known.
    fn roots(&self) -> Vec<CertificateDer<'static>> {
        let trusted = self.trusted.load();
        let mut roots = trusted.bundle.as_deref().map(<[_]>::to_vec).unwrap_or_default();
        if let Some(own) = &trusted.own
            && (self.foreign || roots.is_empty())
            && !roots.contains(own)
        {
            roots.push(own.clone());
        }
        roots
    }

    async fn channel(&self) -> Result<Channel, CaError> {
        let mut kept = self.channel.lock().await;
        if let Some((channel, since)) = &*kept
            && !channel.is_closed()
            && since.elapsed() < CHANNEL_LIFE
        {
            return Ok(channel.clone());
        }
        *kept = None;
        let channel =
            self.service.connect().await.map_err(|e| CaError::Unreachable(e.to_string()))?;
        *kept = Some((channel.clone(), Instant::now()));
        Ok(channel)
    }

    async fn issue(
        &self,
        csr: &CertificateSigningRequestDer<'_>,
        id: &SpiffeId,
        ttl: Duration,
    ) -> Result<SignedCertificate, CaError> {
        let channel = self.channel().await?;
        let identity = Value { kind: Some(Kind::StringValue(id.to_string())) };
        let request = IstioCertificateRequest {
            csr: pem_block("CERTIFICATE REQUEST", csr),
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct {
                fields: [(IMPERSONATED_IDENTITY.to_owned(), identity)].into(),
            }),
        };
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let answer = client.create_certificate(Request::new(request)).await.map_err(|status| {
            let words = format!("{:?}: {}", status.code(), status.message());
            match status.code() {
                Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => {
                    CaError::Refused(words)
                }
                _ => CaError::Unreachable(words),
            }
        })?;
        let text = answer.into_inner().cert_chain.join("\n");
        let chain: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
            .take(MAX_CHAIN + 1)
            .collect::<Result<_, _>>()
            .map_err(|e| CaError::Refused(format!("its chain is not PEM: {e}")))?;
        if chain.len() > MAX_CHAIN {
            return Err(CaError::Refused(format!("its chain is longer than {MAX_CHAIN}")));
        }
        let (chain, root) = split_root(chain);
        if let Some(root) = root {
            self.trusted
                .rcu(|trusted| Trusted { own: Some(root.clone()), ..Trusted::clone(trusted) });
        }
        Ok(SignedCertificate { chain, roots: self.roots() })
    }
}

fn pem_block(tag: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(tag, der))
}

impl CaClient for RemoteCa {
    fn sign<'a>(
        &'a self,
        csr: &'a CertificateSigningRequestDer<'a>,
        id: &'a SpiffeId,
        ttl: Duration,
    ) -> SignFuture<'a> {
        Box::pin(self.issue(csr, id, ttl))
    }
}

/// Has certificates and authority go by the controller's bundle, now and when it changes. Ends
/// with the controller's stream.
pub async fn follow_bundle(
    identity: Arc<IdentityStore>,
    authority: Arc<RemoteCa>,
    mut bundles: watch::Receiver<Bundle>,
) {
    loop {
        let bundle = bundles.borrow_and_update().clone();
        take_bundle(&identity, &authority, bundle);
        if bundles.changed().await.is_err() {
            return;
        }
    }
}

/// Has certificates and authority go by a bundle.
pub fn take_bundle(identity: &IdentityStore, authority: &RemoteCa, bundle: Bundle) {
    if bundle.is_none() {
        return;
    }
    authority.trusted.rcu(|t| Trusted { bundle: bundle.clone(), ..Trusted::clone(t) });
    let roots = authority.roots();
    let taken = if authority.foreign {
        // Its own root may change with any certificate.
        identity.trust_roots_now(&roots)
    } else {
        identity.trust_roots(roots)
    };
    if let Err(error) = taken {
        tracing::error!(%error, "the controller's trust bundle cannot be used");
    }
}
