//! Who calls: service account tokens, reviewed by the API server.
//!
//! A token counts if the API server says that it is valid *for the mesh's audience*. A node speaks
//! with the token of its daemon's pod, and what node that is stands in the API server's answer
//! (`authentication.kubernetes.io/node-name`), not in anything that the caller says.

mod cache;
mod replica;
mod review;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::MetadataMap;

use cache::Cache;
pub use replica::ReplicaAuthenticator;
pub use review::{BoundPod, Caller};

/// Bytes of the longest token that is reviewed.
const MAX_TOKEN: usize = 16 << 10;
/// Most reviews at the API server at a time.
const MAX_REVIEWS: usize = 32;
/// Longest wait for a review, the wait for a free place included.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stream goes on while the API server cannot be asked whether its token still counts.
/// Nothing new can reach the controller meanwhile either.
const MAX_UNCHECKED: Duration = Duration::from_secs(3600);

/// Who may call, and how long an answer counts.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// The audience that tokens have to be made for.
    pub audience: String,
    /// Service accounts of node daemons, `namespace/name` (Istio's `CA_TRUSTED_NODE_ACCOUNTS`).
    pub node_accounts: Vec<String>,
    /// How long the API server's word about a token counts.
    pub cache: Duration,
    /// How often the token of an open stream is reviewed again.
    pub recheck: Duration,
}

impl AuthSettings {
    /// The usual ones for daemons of one service account, `namespace/name`.
    #[must_use]
    pub fn new(node_account: impl Into<String>) -> Self {
        Self {
            audience: fairlead_wire::config::TOKEN_AUDIENCE.to_owned(),
            node_accounts: vec![node_account.into()],
            cache: Duration::from_secs(10),
            recheck: Duration::from_secs(60),
        }
    }
}

/// A node that proved itself by its daemon's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The node that the daemon's pod runs on.
    pub node: String,
    /// The daemon's pod.
    pub pod_uid: String,
    /// The daemon's service account, `namespace/name`.
    pub service_account: String,
}

/// A replica of the controller that proved itself by its pod's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaIdentity {
    /// Its pod, which no other may speak for.
    pub pod: String,
    /// That pod's UID.
    pub pod_uid: String,
}

/// Why a caller is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token, or one that is none.
    #[error("no bearer token: {0}")]
    NoToken(&'static str),
    /// The API server says no.
    #[error("the token does not count: {0}")]
    Refused(String),
    /// A valid token, but not of a node daemon.
    #[error("{0} is no node daemon")]
    NotANode(String),
    /// A valid token, but not of another replica of this controller.
    #[error("{0} is no other replica of the controller")]
    NotAReplica(String),
    /// The API server cannot be asked now; trying again may help.
    #[error("the token cannot be reviewed now: {0}")]
    Unreachable(String),
}

impl Denied {
    /// Whether the same token may count later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

impl From<Denied> for tonic::Status {
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        match denied {
            Denied::NoToken(_) | Denied::Refused(_) => Self::unauthenticated(text),
            Denied::NotANode(_) | Denied::NotAReplica(_) => Self::permission_denied(text),
            Denied::Unreachable(_) => Self::unavailable(text),
        }
    }
}

/// Who calls on a stream. [`Authenticator`] and [`ReplicaAuthenticator`] are those that count; tests
/// and benchmarks bring their own.
pub trait Identify<W>: Send + Sync + 'static {
    /// Whom a token speaks for.
    fn identify<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, Result<W, Denied>>;

    /// Returns when the token of an open stream counts no longer.
    fn revoked<'a>(&'a self, bearer: &'a str, known: &'a W) -> BoxFuture<'a, Denied>;
}

impl Identify<NodeIdentity> for Authenticator {
    fn identify<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, Result<NodeIdentity, Denied>> {
        Box::pin(self.node(bearer))
    }

    fn revoked<'a>(&'a self, bearer: &'a str, known: &'a NodeIdentity) -> BoxFuture<'a, Denied> {
        Box::pin(self.revoked_as(bearer, known, |caller| self.as_node(caller)))
    }
}

/// Reviews tokens.
pub struct Authenticator {
    reviews: Api<TokenReview>,
    settings: AuthSettings,
    cache: Cache,
    places: Semaphore,
}

impl Authenticator {
    /// Asks the API server of `client`.
    #[must_use]
    pub fn new(client: kube::Client, settings: AuthSettings) -> Self {
        let cache = Cache::new(settings.cache);
        let places = Semaphore::new(MAX_REVIEWS);
        Self { reviews: Api::all(client), settings, cache, places }
    }

    /// Whoever owns the token.
    ///
    /// # Errors
    /// [`Denied`] says whether trying again may help.
    pub async fn caller(&self, bearer: &str) -> Result<Arc<Caller>, Denied> {
        let key = key(bearer)?;
        if let Some(known) = self.cache.get(&key) {
            return known;
        }
        self.review(bearer, key, false).await
    }

    /// The node that the token speaks for.
    ///
    /// # Errors
    /// [`Denied`] says whether trying again may help.
    pub async fn node(&self, bearer: &str) -> Result<NodeIdentity, Denied> {
        self.as_node(&*self.caller(bearer).await?)
    }

    /// The node that a caller speaks for.
    ///
    /// # Errors
    /// [`Denied::NotANode`]: the token is not that of a daemon's pod.
    pub fn as_node(&self, caller: &Caller) -> Result<NodeIdentity, Denied> {
        let account = caller.account();
        if !self.settings.node_accounts.contains(&account) {
            return Err(Denied::NotANode(account));
        }
        match &caller.pod {
            Some(BoundPod { uid, node: Some(node), .. }) => Ok(NodeIdentity {
                node: node.clone(),
                pod_uid: uid.clone(),
                service_account: account,
            }),
            _ => Err(Denied::NotANode(format!("{account} with a token that is bound to no pod"))),
        }
    }

    /// Returns when the token of an open stream counts no longer for whom `read` takes its owner
    /// for: the pod is gone, the token has expired, or it could not be asked about for an hour.
    /// Runs as long as the stream.
    pub(crate) async fn revoked_as<T: PartialEq + std::fmt::Debug>(
        &self,
        bearer: &str,
        known: &T,
        read: impl Fn(&Caller) -> Result<T, Denied>,
    ) -> Denied {
        let mut last = Instant::now();
        loop {
            sleep(self.settings.recheck).await;
            let again = match key(bearer) {
                Ok(key) => self.review(bearer, key, true).await,
                Err(denied) => return denied,
            };
            match again.and_then(|caller| read(&caller)) {
                Ok(same) if same == *known => last = Instant::now(),
                Ok(other) => return Denied::Refused(format!("it now speaks for {other:?}")),
                Err(denied) if denied.is_passing() && last.elapsed() < MAX_UNCHECKED => {
                    tracing::debug!(of = ?known, %denied, "token not reviewed again");
                }
                Err(denied) => return denied,
            }
        }
    }

    async fn review(&self, bearer: &str, key: [u8; 32], anew: bool) -> Result<Arc<Caller>, Denied> {
        let work = async {
            let closed = |_| Denied::Unreachable("shutting down".to_owned());
            let _place = self.places.acquire().await.map_err(closed)?;
            // A caller with many requests at once is asked about once.
            if let Some(known) = self.cache.get(&key).filter(|_| !anew) {
                return known;
            }
            let review = TokenReview {
                spec: TokenReviewSpec {
                    audiences: Some(vec![self.settings.audience.clone()]),
                    token: Some(bearer.to_owned()),
                },
                ..TokenReview::default()
            };
            let answer = self
                .reviews
                .create(&PostParams::default(), &review)
                .await
                .map_err(|e| Denied::Unreachable(e.to_string()))?;
            let status = answer.status.unwrap_or_default();
            let caller = review::caller(&status, &self.settings.audience).map(Arc::new);
            self.cache.put(key, caller.clone());
            caller
        };
        match timeout(REVIEW_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_) => Err(Denied::Unreachable("the API server does not answer".to_owned())),
        }
    }
}

/// The token of a request: `authorization: Bearer …`.
///
/// # Errors
/// There is none.
pub fn bearer(metadata: &MetadataMap) -> Result<&str, Denied> {
    let header = metadata.get("authorization").ok_or(Denied::NoToken("no authorization header"))?;
    let text = header.to_str().map_err(|_| Denied::NoToken("not text"))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Denied::NoToken("the scheme is not Bearer")),
    }
}

/// What a token is known by here: the token itself is not kept.
fn key(bearer: &str) -> Result<[u8; 32], Denied> {
    if bearer.is_empty() {
        return Err(Denied::NoToken("it is empty"));
    }
    if bearer.len() > MAX_TOKEN {
        return Err(Denied::NoToken("it is too long"));
    }
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, bearer.as_bytes()).as_ref());
    Ok(key)
}

#[cfg(test)]
mod tests;
