//! The Secrets of the CA, watched; made and renewed where they are ours.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fairlead_identity::{Authority, CaSet};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::time::{Instant, sleep, sleep_until};

use super::plan::{Plan, data, plan, set};
use super::{CACERTS_SECRET, Ca, CaSettings, OWN_SECRET};

/// The type of Istio's own CA Secret.
const SECRET_TYPE: &str = "istio.io/ca-root";
/// How often an intermediate made here is looked at: it is renewed half a year before its end.
const RENEWAL_CHECK: Duration = Duration::from_secs(6 * 3600);
/// Wait before another try of what the API server refused.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps a [`Ca`] as the Secrets have it.
pub struct Secrets {
    api: Api<Secret>,
    settings: CaSettings,
    ca: Arc<Ca>,
}

/// What was heard of a Secret.
#[derive(Default)]
enum Heard {
    #[default]
    Nothing,
    Absent,
    Present(Box<Secret>),
}

impl Heard {
    fn secret(&self) -> Option<&Secret> {
        match self {
            Self::Present(secret) => Some(secret),
            _ => None,
        }
    }
}

/// An authority whose roots are published and that does not sign yet.
struct Settling {
    authority: Arc<Authority>,
    source: &'static str,
    at: Instant,
}

impl Secrets {
    /// Reads and writes with `client`, into `ca`.
    #[must_use]
    pub fn new(client: kube::Client, settings: CaSettings, ca: Arc<Ca>) -> Self {
        Self { api: Api::namespaced(client, &settings.namespace), settings, ca }
    }

    /// Watches for ever. A Secret that cannot be used is told; the last usable CA goes on.
    pub async fn run(self) {
        let mut cacerts_stream = pin!(self.watch(CACERTS_SECRET));
        let mut own_stream = pin!(self.watch(OWN_SECRET));
        let (mut cacerts, mut own) = (Heard::default(), Heard::default());
        let mut settling: Option<Settling> = None;
        loop {
            let due = settling.as_ref().map(|settling| settling.at);
            tokio::select! {
                Some(heard) = cacerts_stream.next() => cacerts = heard,
                Some(heard) = own_stream.next() => own = heard,
                () = at(due) => {
                    if let Some(settled) = settling.take() {
                        self.take(settled.authority, settled.source);
                    }
                    continue;
                }
                () = sleep(RENEWAL_CHECK) => {}
            }
            if matches!(cacerts, Heard::Nothing) || matches!(own, Heard::Nothing) {
                continue;
            }
            self.keep_own(&cacerts, &own).await;
            match plan(cacerts.secret(), own.secret()) {
                Ok(Some(plan)) => settling = self.adopt(plan, settling),
                Ok(None) if self.ca.is_ready() => {
                    tracing::warn!("the Secrets of the CA are gone; the last one goes on signing");
                }
                Ok(None) => {}
                Err(error) if self.ca.is_ready() => {
                    tracing::error!(error, "the CA is not usable; the one before goes on signing");
                }
                Err(error) => tracing::error!(error, "the CA is not usable; nothing is signed"),
            }
        }
    }

    fn watch(&self, name: &str) -> impl futures_util::Stream<Item = Heard> + Send + use<> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut seen = false;
        watcher(self.api.clone(), config).default_backoff().filter_map(move |event| {
            let heard = match event {
                Ok(watcher::Event::Init) => {
                    seen = false;
                    None
                }
                Ok(watcher::Event::InitApply(secret)) => {
                    seen = true;
                    Some(Heard::Present(Box::new(secret)))
                }
                Ok(watcher::Event::Apply(secret)) => Some(Heard::Present(Box::new(secret))),
                Ok(watcher::Event::Delete(_)) => Some(Heard::Absent),
                Ok(watcher::Event::InitDone) => (!seen).then_some(Heard::Absent),
                Err(error) => {
                    tracing::warn!(%error, "the Secrets of the CA cannot be watched now");
                    None
                }
            };
            std::future::ready(heard)
        })
    }

    /// Lets the authority of a plan sign, now or as soon as its roots had time to get around.
    fn adopt(&self, plan: Plan, settling: Option<Settling>) -> Option<Settling> {
        let Plan { authority, bundle, source } = plan;
        let old_still_counts =
            self.ca.signer().is_some_and(|signer| signer.verifies_to(&bundle.roots));
        // Heard of again while it waits: its time does not begin anew, nor end.
        let waits = |waiting: &Settling| old_still_counts && waiting.authority.is_same(&authority);
        if let Some(settling) = settling.filter(waits) {
            self.ca.publish(bundle);
            return Some(settling);
        }
        let known = authority.verifies_to(&self.ca.bundle.borrow().roots);
        self.ca.publish(bundle);
        let authority = Arc::new(authority);
        if known || !old_still_counts {
            self.take(authority, source);
            return None;
        }
        let settle = self.settings.settle;
        tracing::info!(source, ?settle, "another CA will sign once its root is known");
        Some(Settling { authority, source, at: Instant::now() + settle })
    }

    fn take(&self, authority: Arc<Authority>, source: &'static str) {
        let same = self.ca.signer().is_some_and(|signer| signer.is_same(&authority));
        if !same {
            tracing::info!(source, "certificates are signed by the CA of Secret {source}");
        }
        if !same {
            self.ca.sign_with(authority);
        }
        self.ca.metrics.root_expiry(self.ca.bundle.borrow().roots.as_slice());
    }

    /// Makes the CA if there is none, renews its intermediate if it is near its end. Several
    /// replicas may do so at a time: the API server takes one, and all see that one.
    async fn keep_own(&self, cacerts: &Heard, own: &Heard) {
        let result = match (cacerts.secret(), own) {
            (None, Heard::Absent) if !self.ca.is_ready() => self.make().await,
            (_, Heard::Present(secret)) => self.renew(secret).await,
            _ => Ok(()),
        };
        match result {
            Ok(()) => {}
            Err(Fault::Conflict) => tracing::debug!("another replica wrote the CA's Secret"),
            Err(Fault::Other(error)) => {
                tracing::warn!(error, "the CA's Secret cannot be written; trying again");
                sleep(RETRY).await;
            }
        }
    }

    async fn make(&self) -> Result<(), Fault> {
        let trust_domain = &self.settings.trust_domain;
        let set = CaSet::generate(trust_domain).map_err(|e| Fault::Other(e.to_string()))?;
        let secret = Secret {
            metadata: ObjectMeta { name: Some(OWN_SECRET.to_owned()), ..ObjectMeta::default() },
            type_: Some(SECRET_TYPE.to_owned()),
            data: Some(data(set)),
            ..Secret::default()
        };
        loop {
            match self.api.create(&PostParams::default(), &secret).await {
                Ok(_) => {
                    tracing::info!(%trust_domain, "made a root and an intermediate CA");
                    return Ok(());
                }
                Err(error) => match Fault::from(error) {
                    Fault::Conflict => return Err(Fault::Conflict),
                    // Nothing else would wake us: the Secret is not there to change.
                    Fault::Other(error) => {
                        tracing::warn!(error, "the CA's Secret cannot be made; trying again");
                        sleep(RETRY).await;
                    }
                },
            }
        }
    }

    async fn renew(&self, secret: &Secret) -> Result<(), Fault> {
        let Some(current) = set(secret).ok().filter(CaSet::is_ending) else { return Ok(()) };
        tracing::info!("the intermediate CA is about to end; making a new one");
        let new = current
            .renewed(&self.settings.trust_domain)
            .map_err(|e| Fault::Other(e.to_string()))?;
        let mut secret = secret.clone();
        // The version goes along: whoever was faster wins. Other keys stay.
        secret.data.get_or_insert_default().extend(data(new));
        self.api.replace(OWN_SECRET, &PostParams::default(), &secret).await?;
        Ok(())
    }
}

enum Fault {
    /// Somebody else wrote it.
    Conflict,
    Other(String),
}

impl From<kube::Error> for Fault {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            _ => Self::Other(error.to_string()),
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
