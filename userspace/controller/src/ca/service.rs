//! `istio.v1.auth.IstioCertificateService`: signs for those who proved who they are.
//!
//! A node daemon names the pod's identity that it asks for (`ImpersonatedIdentity`, as ztunnel
//! does) and gets it only while a pod of that service account runs on the node that its token
//! speaks for; that is asked at every request. Everybody else gets a certificate for the service
//! account of their own token and no other.

use std::sync::Arc;
use std::time::Duration;

use fairlead_identity::ca::{MAX_REQUEST_BYTES, certificate_pem};
use fairlead_identity::{CaError, SigningRequest};
use fairlead_types::{SpiffeId, TrustDomain};
use fairlead_wire::ca::istio_certificate_service_server::IstioCertificateService;
use fairlead_wire::ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use prost_types::value::Kind;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::Ca;
use super::limit::Limit;
use crate::auth::{Authenticator, Caller, bearer};

/// Most requests that are worked on at a time; the rest waits.
const MAX_IN_FLIGHT: usize = 256;
/// Longest time that a request waits for its turn.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the API server's word about pods that nobody has seen yet.
const PODS_TIMEOUT: Duration = Duration::from_secs(5);

/// Which pods run where.
pub trait Pods: Send + Sync {
    /// Whether a pod of that service account runs on that node now.
    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool;
}

/// Settings of the service.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Validity of certificates whose request names none.
    pub default_ttl: Duration,
    /// Longest validity, whatever is asked for.
    pub max_ttl: Duration,
}

impl ServiceSettings {
    /// The usual ones.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            default_ttl: Duration::from_secs(3600),
            max_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// The service.
pub struct CertificateService {
    auth: Arc<Authenticator>,
    ca: Arc<Ca>,
    pods: Arc<dyn Pods>,
    pods_now: Api<Pod>,
    settings: ServiceSettings,
    places: Semaphore,
    limit: Limit,
}

impl CertificateService {
    /// Signs with `ca`; `pods` is asked first about where pods run, `client`'s API server about
    /// those that have just come.
    #[must_use]
    pub fn new(
        client: kube::Client,
        auth: Arc<Authenticator>,
        ca: Arc<Ca>,
        pods: Arc<dyn Pods>,
        settings: ServiceSettings,
    ) -> Self {
        Self {
            auth,
            ca,
            pods,
            pods_now: Api::all(client),
            settings,
            places: Semaphore::new(MAX_IN_FLIGHT),
            limit: Limit::default(),
        }
    }

    async fn sign(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Status> {
        let metrics = &self.ca.metrics;
        metrics.requests.inc();
        let caller = async { self.auth.caller(bearer(request.metadata())?).await };
        let caller = caller.await.inspect_err(|_| metrics.unauthenticated.inc())?;
        // By pod: a workload that asks too often does not slow its siblings down.
        let name = caller.pod.as_ref().map_or_else(|| caller.account(), |pod| pod.uid.clone());
        if !self.limit.take(&name) {
            metrics.limited.inc();
            return Err(Status::resource_exhausted("too many requests; try again later"));
        }
        let request = request.into_inner();
        let id = self.identity(&caller, &request).await.inspect_err(|_| {
            metrics.not_allowed.inc();
        })?;
        if request.csr.len() > MAX_REQUEST_BYTES {
            metrics.unreadable.inc();
            return Err(Status::invalid_argument("the signing request is too long"));
        }
        let ttl = self.ttl(request.validity_duration);
        let authority =
            self.ca.signer().ok_or_else(|| Status::unavailable("the CA is not ready yet"))?;
        let for_id = id.clone();
        // RSA keys of plug-in CAs take milliseconds; streams of configuration must not wait.
        let signed = tokio::task::spawn_blocking(move || {
            let csr = SigningRequest::from_pem(&request.csr)?;
            if !csr.is_for(&for_id.to_string()) {
                return Err(CaError::Refused(format!(
                    "the request names {:?}, the caller may have {for_id}",
                    csr.uris()
                )));
            }
            authority.sign(&csr, &for_id, ttl)
        })
        .await
        .map_err(|_| Status::internal("signing was interrupted"))?;
        let signed = signed.map_err(|error| match error {
            CaError::Refused(reason) => {
                metrics.unreadable.inc();
                Status::invalid_argument(reason)
            }
            other => {
                metrics.sign_errors.inc();
                tracing::error!(%id, error = %other, "signing failed");
                Status::internal("signing failed")
            }
        })?;
        metrics.issued.inc();
        tracing::debug!(%id, caller = caller.account(), credential = caller.credential, "certified");
        let mut cert_chain: Vec<String> =
            signed.chain.iter().map(|cert| certificate_pem(cert)).collect();
        cert_chain.push(self.ca.bundle().borrow().pem.clone());
        Ok(IstioCertificateResponse { cert_chain })
    }

    /// Whom the certificate will be for.
    async fn identity(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<SpiffeId, Status> {
        let denied = |text: String| {
            tracing::warn!(
                caller = caller.account(),
                credential = caller.credential,
                "certificate denied: {text}"
            );
            Status::permission_denied(text)
        };
        let trust_domain = &self.settings.trust_domain;
        let Some(wanted) = impersonated(request)? else {
            return SpiffeId::new(trust_domain.clone(), &caller.namespace, &caller.service_account)
                .map_err(|e| denied(e.to_string()));
        };
        let node = self.auth.as_node(caller).map_err(|e| denied(e.to_string()))?;
        if wanted.trust_domain() != trust_domain {
            return Err(denied(format!("{wanted} is not of the trust domain {trust_domain}")));
        }
        let (namespace, account) = (wanted.namespace(), wanted.service_account());
        if self.pods.runs_on(&node.node, namespace, account)
            || self.has_come(&node.node, namespace, account).await?
        {
            return Ok(wanted);
        }
        Err(denied(format!("no pod of {namespace}/{account} runs on node {}", node.node)))
    }

    /// Whether there is such a pod that the watch has not brought yet.
    async fn has_come(&self, node: &str, namespace: &str, account: &str) -> Result<bool, Status> {
        let fields = format!(
            "metadata.namespace={namespace},spec.nodeName={node},\
             spec.serviceAccountName={account},status.phase!=Succeeded,status.phase!=Failed"
        );
        let params = ListParams::default().fields(&fields).limit(1);
        match timeout(PODS_TIMEOUT, self.pods_now.list_metadata(&params)).await {
            Ok(Ok(list)) => Ok(!list.items.is_empty()),
            Ok(Err(error)) => Err(Status::unavailable(format!("pods cannot be listed: {error}"))),
            Err(_) => Err(Status::unavailable("the API server does not answer")),
        }
    }

    fn ttl(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(0) | Err(_) => self.settings.default_ttl.min(self.settings.max_ttl),
            Ok(seconds) => Duration::from_secs(seconds).min(self.settings.max_ttl),
        }
    }
}

/// The identity that a node asks for on behalf of a pod.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<SpiffeId>, Status> {
    let fields = request.metadata.as_ref().map(|metadata| &metadata.fields);
    let Some(value) = fields.and_then(|fields| fields.get(IMPERSONATED_IDENTITY)) else {
        return Ok(None);
    };
    let Some(Kind::StringValue(text)) = &value.kind else {
        return Err(Status::invalid_argument(format!("{IMPERSONATED_IDENTITY} is not text")));
    };
    text.parse().map(Some).map_err(|e| Status::invalid_argument(format!("{e}")))
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let place = timeout(QUEUE_TIMEOUT, self.places.acquire())
            .await
            .map_err(|_| Status::resource_exhausted("too many requests; try again later"))?
            .map_err(|_| Status::unavailable("shutting down"))?;
        let response = self.sign(request).await.map(Response::new);
        drop(place);
        response
    }
}
