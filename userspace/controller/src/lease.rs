//! The lease that says which replica writes (`coordination.k8s.io/v1`), by the rules of client-go's
//! leader election.
//!
//! A leader that cannot renew stops being one before anybody else can become one: it counts from
//! *before* its last successful renewal and for less time than the lease lasts, and the difference
//! ([`LeaseSettings::duration`] less [`LeaseSettings::deadline`]) is longer than a write may take.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Longest time that a single write of the leader may take; see the module.
pub const MAX_WRITE: Duration = Duration::from_secs(4);

/// The annotation of the Lease by which other replicas find the one that leads: address and port
/// of its gRPC listener.
pub const LEADER_ADDRESS: &str = "fairlead.io/leader-address";

/// Another replica, which leads as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Who it is; different for each start of each replica.
    pub identity: String,
    /// Where it is; `None` if it says nothing that could be one.
    pub address: Option<SocketAddr>,
}

/// Settings of the election.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are; different for each start of each replica.
    pub identity: String,
    /// Where other replicas reach us when we lead.
    pub address: Option<SocketAddr>,
    /// How long others wait for a leader that is not heard of.
    pub duration: Duration,
    /// How long a leader that cannot renew goes on.
    pub deadline: Duration,
    /// Time between two tries.
    pub retry: Duration,
}

impl LeaseSettings {
    /// The usual ones, those of Kubernetes' own controllers.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.into(),
            address: None,
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Whether this replica leads. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// Whether this replica may write now.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.0.borrow().is_some_and(|until| until > Instant::now())
    }

    /// Waits until this replica leads.
    pub async fn gained(&mut self) {
        loop {
            self.0.borrow_and_update();
            if self.is_leader() {
                return;
            }
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until this replica leads no longer.
    pub async fn lost(&mut self) {
        loop {
            let until = *self.0.borrow_and_update();
            let Some(until) = until.filter(|until| *until > Instant::now()) else { return };
            tokio::select! {
                changed = self.0.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// One that leads for as long as the sender lives, for tests and single replicas.
    #[must_use]
    pub fn fixed() -> (watch::Sender<Option<Instant>>, Self) {
        let far = Instant::now() + Duration::from_secs(365 * 86_400);
        let (sender, receiver) = watch::channel(Some(far));
        (sender, Self(receiver))
    }
}

/// Takes part in the election.
pub struct Elector {
    api: Api<Lease>,
    settings: LeaseSettings,
    until: watch::Sender<Option<Instant>>,
    /// Who leads instead of us.
    other: watch::Sender<Option<Leader>>,
    /// What others last wrote, and when it was first seen: clocks of machines are not compared.
    seen: Option<(String, Instant)>,
}

impl Elector {
    /// Leads nothing before [`Elector::run`].
    #[must_use]
    pub fn new(client: kube::Client, settings: LeaseSettings) -> (Self, Leadership) {
        let (until, receiver) = watch::channel(None);
        let api = Api::namespaced(client, &settings.namespace);
        let other = watch::Sender::new(None);
        (Self { api, settings, until, other, seen: None }, Leadership(receiver))
    }

    /// The replica that leads instead of this one, as the Lease says when it is looked at.
    #[must_use]
    pub fn other(&self) -> watch::Receiver<Option<Leader>> {
        self.other.subscribe()
    }

    /// Runs until `shutdown`, then gives the lease back so that another replica need not wait.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        loop {
            let pause = tokio::select! {
                () = self.round() => self.pause(),
                () = &mut shutdown => break,
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = &mut shutdown => break,
            }
        }
        let led = self.until.borrow().is_some();
        self.until.send_replace(None);
        if led && let Err(error) = timeout(MAX_WRITE, self.release()).await.unwrap_or(Ok(())) {
            tracing::debug!(%error, "the lease could not be given back");
        }
    }

    /// Replicas do not try in step.
    fn pause(&self) -> Duration {
        let mut byte = [0];
        // Without randomness they do.
        let _ = aws_lc_rs::rand::fill(&mut byte);
        self.settings.retry.mul_f64(1.0 + f64::from(byte[0]) / 1024.0)
    }

    async fn round(&mut self) {
        let begun = Instant::now();
        // An answer that comes later is worth nothing: the count begins before the question.
        let result = match timeout(self.settings.deadline, self.try_once()).await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("the API server does not answer".to_owned()),
        };
        let led = self.until.borrow().is_some();
        match result {
            Ok(true) => {
                if !led {
                    tracing::info!(lease = self.settings.name, "leading");
                }
                self.until.send_replace(Some(begun + self.settings.deadline));
                // Whom the Lease named before we took it.
                self.other.send_if_modified(|known| known.take().is_some());
            }
            Ok(false) if led => {
                tracing::warn!(lease = self.settings.name, "another replica leads");
                self.until.send_replace(None);
            }
            Ok(false) => {}
            Err(error) => {
                let lapsed = self.until.borrow().is_some_and(|until| until <= Instant::now());
                if lapsed {
                    tracing::warn!(error, "the lease cannot be renewed; not leading any more");
                    self.until.send_replace(None);
                } else {
                    tracing::debug!(error, "the lease cannot be renewed now");
                }
            }
        }
    }

    /// One try; whether the lease is ours now.
    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let name = self.settings.name.clone();
        let Some(mut lease) = self.api.get_opt(&name).await? else {
            let mut lease = Lease {
                metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() },
                spec: Some(self.spec(None)),
            };
            self.sign(&mut lease.metadata);
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let other = other(&lease.metadata, &spec, &self.settings.identity);
        self.other.send_if_modified(|known| {
            let changed = *known != other;
            *known = other;
            changed
        });
        if !self.may_take(&lease.metadata, &spec) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        self.sign(&mut lease.metadata);
        // With its version: of several that try, one succeeds.
        won(self.api.replace(&name, &PostParams::default(), &lease).await)
    }

    fn may_take(&mut self, metadata: &ObjectMeta, spec: &LeaseSpec) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.settings.identity {
            return true;
        }
        let version = metadata.resource_version.clone().unwrap_or_default();
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        // Its own word on how long it lasts, but not for ever.
        let lasts = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        let lasts = lasts.map_or(self.settings.duration, Duration::from_secs);
        now.duration_since(since) >= lasts.min(self.settings.duration * 4)
    }

    /// Says where we are.
    fn sign(&self, metadata: &mut ObjectMeta) {
        let annotations = metadata.annotations.get_or_insert_with(BTreeMap::new);
        match self.settings.address {
            Some(address) => {
                annotations.insert(LEADER_ADDRESS.to_owned(), address.to_string());
            }
            None => {
                annotations.remove(LEADER_ADDRESS);
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before
            .filter(|b| b.holder_identity.as_deref() == Some(self.settings.identity.as_str()));
        let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs()).ok(),
            acquire_time: ours.and_then(|b| b.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(match (before, ours) {
                (Some(_), None) => transitions.saturating_add(1),
                _ => transitions,
            }),
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.settings.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.api.replace(&self.settings.name, &PostParams::default(), &lease).await?;
        tracing::info!(lease = self.settings.name, "gave the lease back");
        Ok(())
    }
}

/// Who leads by this Lease, if not we.
fn other(metadata: &ObjectMeta, spec: &LeaseSpec, own: &str) -> Option<Leader> {
    let identity = spec.holder_identity.as_deref().unwrap_or_default();
    if identity.is_empty() || identity == own {
        return None;
    }
    let address = metadata.annotations.as_ref().and_then(|all| all.get(LEADER_ADDRESS));
    Some(Leader { identity: identity.to_owned(), address: address.and_then(|a| a.parse().ok()) })
}

/// Whether a write won; a conflict means that another one did.
fn won<T>(result: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_says_where_the_leader_is() {
        let lease = |holder: &str, address: Option<&str>| {
            let annotations =
                address.map(|address| [(LEADER_ADDRESS.to_owned(), address.to_owned())].into());
            let spec = LeaseSpec { holder_identity: Some(holder.into()), ..LeaseSpec::default() };
            other(&ObjectMeta { annotations, ..ObjectMeta::default() }, &spec, "me")
        };
        assert_eq!(lease("me", Some("10.0.0.1:15012")), None);
        assert_eq!(lease("", Some("10.0.0.1:15012")), None, "it was given back");
        let found = lease("you", Some("[fd00::1]:15012")).expect("a leader");
        assert_eq!(
            (found.identity.as_str(), found.address.map(|a| a.port())),
            ("you", Some(15012))
        );
        // One of a version that says nothing, or somebody wrote something else there.
        for address in [None, Some("10.0.0.1"), Some("example.org:15012")] {
            assert_eq!(lease("you", address).expect("a leader").address, None, "{address:?}");
        }
    }
}
