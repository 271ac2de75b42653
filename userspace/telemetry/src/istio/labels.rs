//! Who talks to whom: the labels of a traffic series.
//!
//! [`WorkloadLabels`] and [`ServiceLabels`] are made once per workload or service and shared;
//! they carry their hash, so that looking up a series costs the same whatever the names are.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use fairlead_types::SpiffeId;
use foldhash::fast::FixedState;

use crate::metrics::push_label;

/// What Istio writes for a label that has no value.
const UNKNOWN: &str = "unknown";

/// Which side of a connection reports it. Traffic within a node is reported by both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The proxy of the client.
    Source,
    /// The proxy of the server.
    Destination,
}

impl Reporter {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// `request_protocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP of any version.
    #[default]
    Http,
    /// gRPC: `grpc_response_status` is exported too.
    Grpc,
    /// Bytes.
    Tcp,
}

impl Protocol {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// `connection_security_policy`, which only the destination knows: whatever a source passes, it
/// is exported as `unknown`, as Istio does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConnectionSecurity {
    /// Not known.
    #[default]
    Unknown,
    /// Plaintext from outside the mesh.
    None,
    /// Carried under a verified identity.
    MutualTls,
}

impl ConnectionSecurity {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => UNKNOWN,
            Self::None => "none",
            Self::MutualTls => "mutual_tls",
        }
    }
}

fn content_hash(value: &impl Hash) -> u64 {
    // A fixed seed: label sets are configuration, not something that a client chooses.
    FixedState::default().hash_one(value)
}

/// A shared value that knows the hash of its content; equal pointers compare at once.
#[derive(Debug)]
struct Hashed<T> {
    hash: u64,
    value: T,
}

impl<T: Hash> Hashed<T> {
    fn new(value: T) -> Arc<Self> {
        Arc::new(Self { hash: content_hash(&value), value })
    }
}

macro_rules! shared_labels {
    ($name:ident, $inner:ident) => {
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0)
                    || (self.0.hash == other.0.hash && self.0.value == other.0.value)
            }
        }

        impl Eq for $name {}

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                state.write_u64(self.0.hash);
            }
        }
    };
}

/// The labels of a workload, `source_*` or `destination_*`. Cloning is a reference count.
#[derive(Clone, Debug)]
pub struct WorkloadLabels(Arc<Hashed<WorkloadInner>>);

shared_labels!(WorkloadLabels, WorkloadInner);

/// The parts of [`WorkloadLabels`], named as the fields of the configuration's workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WorkloadInner {
    pub(crate) workload: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) principal: Option<SpiffeId>,
    pub(crate) app: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) canonical_service: Arc<str>,
    pub(crate) canonical_revision: Arc<str>,
    pub(crate) cluster: Arc<str>,
}

impl WorkloadLabels {
    /// The labels of a workload that the configuration knows.
    #[expect(clippy::too_many_arguments, reason = "one argument for each label of a workload")]
    #[must_use]
    pub fn new(
        workload: &Arc<str>,
        namespace: &Arc<str>,
        principal: Option<&SpiffeId>,
        app: &Arc<str>,
        version: &Arc<str>,
        canonical_service: &Arc<str>,
        canonical_revision: &Arc<str>,
        cluster: &Arc<str>,
    ) -> Self {
        Self(Hashed::new(WorkloadInner {
            workload: Arc::clone(workload),
            namespace: Arc::clone(namespace),
            principal: principal.cloned(),
            app: Arc::clone(app),
            version: Arc::clone(version),
            canonical_service: Arc::clone(canonical_service),
            canonical_revision: Arc::clone(canonical_revision),
            cluster: Arc::clone(cluster),
        }))
    }

    /// A peer of which nothing is known (Istio exports the revision as `latest`).
    #[must_use]
    pub fn unknown() -> Self {
        static LABELS: LazyLock<WorkloadLabels> = LazyLock::new(|| {
            let unknown: Arc<str> = UNKNOWN.into();
            WorkloadLabels(Hashed::new(WorkloadInner {
                workload: Arc::clone(&unknown),
                namespace: Arc::clone(&unknown),
                principal: None,
                app: Arc::clone(&unknown),
                version: Arc::clone(&unknown),
                canonical_service: Arc::clone(&unknown),
                canonical_revision: "latest".into(),
                cluster: unknown,
            }))
        });
        LABELS.clone()
    }

    /// The same workload under another principal: at a source whose identity was not verified
    /// (plaintext), Istio exports the principal as `unknown`.
    #[must_use]
    pub fn with_principal(&self, principal: Option<&SpiffeId>) -> Self {
        if self.0.value.principal.as_ref() == principal {
            return self.clone();
        }
        let mut inner = self.0.value.clone();
        inner.principal = principal.cloned();
        Self(Hashed::new(inner))
    }

    /// Its identity.
    #[must_use]
    pub fn principal(&self) -> Option<&SpiffeId> {
        self.0.value.principal.as_ref()
    }

    /// Name of the workload (Deployment, StatefulSet…).
    #[must_use]
    pub fn workload(&self) -> &str {
        &self.0.value.workload
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.0.value.namespace
    }
}

/// The labels of the service that was asked for, `destination_service*`.
#[derive(Clone, Debug)]
pub struct ServiceLabels(Arc<Hashed<ServiceInner>>);

shared_labels!(ServiceLabels, ServiceInner);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServiceInner {
    pub(crate) host: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Arc<str>,
}

impl ServiceLabels {
    /// A service of the registry: `reviews.default.svc.cluster.local`, `reviews`, `default`.
    #[must_use]
    pub fn new(host: &Arc<str>, name: &Arc<str>, namespace: &Arc<str>) -> Self {
        Self(Hashed::new(ServiceInner {
            host: Arc::clone(host),
            name: Arc::clone(name),
            namespace: Arc::clone(namespace),
        }))
    }

    /// No service is known.
    #[must_use]
    pub fn unknown() -> Self {
        static LABELS: LazyLock<ServiceLabels> =
            LazyLock::new(|| ServiceLabels::named(UNKNOWN, UNKNOWN));
        LABELS.clone()
    }

    /// A destination outside the registry that ALLOW_ANY lets through. `host` is what the client
    /// asked for where that is bounded by configuration, and `unknown` otherwise: a client must
    /// not be able to make series by inventing names.
    #[must_use]
    pub fn pass_through(host: &str) -> Self {
        Self::named(host, "PassthroughCluster")
    }

    /// A destination that REGISTRY_ONLY refuses.
    #[must_use]
    pub fn black_hole() -> Self {
        static LABELS: LazyLock<ServiceLabels> =
            LazyLock::new(|| ServiceLabels::named(UNKNOWN, "BlackHoleCluster"));
        LABELS.clone()
    }

    fn named(host: &str, name: &str) -> Self {
        Self(Hashed::new(ServiceInner {
            host: host.into(),
            name: name.into(),
            namespace: UNKNOWN.into(),
        }))
    }
}

/// The label set of a traffic series, apart from how each request or connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficLabels {
    /// Which side reports.
    pub reporter: Reporter,
    /// The client's workload.
    pub source: WorkloadLabels,
    /// The server's workload.
    pub destination: WorkloadLabels,
    /// The service that was asked for.
    pub service: ServiceLabels,
    /// What is spoken.
    pub protocol: Protocol,
    /// Whether the identity was verified.
    pub security: ConnectionSecurity,
}

impl TrafficLabels {
    /// What stands for all label sets beyond the bound.
    pub(crate) fn overflow() -> Self {
        Self {
            reporter: Reporter::Source,
            source: WorkloadLabels::unknown(),
            destination: WorkloadLabels::unknown(),
            service: ServiceLabels::named("overflow", "overflow"),
            protocol: Protocol::Http,
            security: ConnectionSecurity::Unknown,
        }
    }

    /// The labels in the order in which Istio's proxies write them, up to `request_protocol`.
    pub(crate) fn render(&self, text: &mut String) {
        push_label(text, "reporter", self.reporter.as_str());
        let (s, d, svc) = (&self.source.0.value, &self.destination.0.value, &self.service.0.value);
        let source_principal = principal_text(s);
        let destination_principal = principal_text(d);
        for (name, value) in [
            ("source_workload", s.workload.as_ref()),
            ("source_canonical_service", s.canonical_service.as_ref()),
            ("source_canonical_revision", s.canonical_revision.as_ref()),
            ("source_workload_namespace", s.namespace.as_ref()),
            ("source_principal", &source_principal),
            ("source_app", s.app.as_ref()),
            ("source_version", s.version.as_ref()),
            ("source_cluster", s.cluster.as_ref()),
            ("destination_workload", d.workload.as_ref()),
            ("destination_workload_namespace", d.namespace.as_ref()),
            ("destination_principal", &destination_principal),
            ("destination_app", d.app.as_ref()),
            ("destination_version", d.version.as_ref()),
            ("destination_service", svc.host.as_ref()),
            ("destination_canonical_service", d.canonical_service.as_ref()),
            ("destination_canonical_revision", d.canonical_revision.as_ref()),
            ("destination_service_name", svc.name.as_ref()),
            ("destination_service_namespace", svc.namespace.as_ref()),
            ("destination_cluster", d.cluster.as_ref()),
            ("request_protocol", self.protocol.as_str()),
        ] {
            push_label(text, name, if value.is_empty() { UNKNOWN } else { value });
        }
    }

    /// `connection_security_policy`.
    pub(crate) fn security_text(&self) -> &'static str {
        match self.reporter {
            Reporter::Source => UNKNOWN,
            Reporter::Destination => self.security.as_str(),
        }
    }
}

fn principal_text(workload: &WorkloadInner) -> String {
    workload.principal.as_ref().map_or_else(|| UNKNOWN.to_owned(), ToString::to_string)
}
