//! All kinds behind one type, and the key by which an object is known.

use std::fmt;
use std::sync::Arc;

use crate::ObjectMeta;
use crate::core::{
    ConfigMap, EndpointSlice, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use crate::extensions::{TrafficExtension, WasmPlugin};
use crate::networking::{
    DestinationRule, EnvoyFilter, Gateway, ProxyConfig, ServiceEntry, Sidecar, VirtualService,
    WorkloadEntry, WorkloadGroup,
};
use crate::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::telemetry::Telemetry;

/// What identifies an object: kind, namespace (empty if cluster-scoped) and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty if cluster-scoped.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of an object.
    #[must_use]
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        if namespace.is_empty() {
            write!(f, "{kind} {name}")
        } else {
            write!(f, "{kind} {namespace}/{name}")
        }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({self})")
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $group:literal $versions:expr, $namespaced:literal;)*) => {
        /// The kinds that are read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The name in `kind:`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }

            /// The API group in `apiVersion:`; empty for core.
            #[must_use]
            pub fn group(self) -> &'static str {
                match self { $(Self::$kind => $group,)* }
            }

            /// The served versions.
            #[must_use]
            pub fn versions(self) -> &'static [&'static str] {
                match self { $(Self::$kind => $versions,)* }
            }

            /// Whether objects of the kind live in a namespace.
            #[must_use]
            pub fn is_namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced,)* }
            }
        }

        /// One object, shared by all who hold it.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Resource {
            $($(#[$doc])* $kind(Arc<$kind>),)*
        }

        impl Resource {
            /// The kind.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// The metadata.
            #[must_use]
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata,)* }
            }

            /// The key.
            #[must_use]
            pub fn key(&self) -> ObjectKey {
                let metadata = self.metadata();
                ObjectKey::new(self.kind(), &metadata.namespace, &metadata.name)
            }
        }

        $(impl From<$kind> for Resource {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        })*
    };
}

const V1: &[&str] = &["v1"];
const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];

kinds! {
    /// A namespace.
    Namespace: "" V1, false;
    /// A node.
    Node: "" V1, false;
    /// A pod.
    Pod: "" V1, true;
    /// A service.
    Service: "" V1, true;
    /// Endpoints of a service.
    EndpointSlice: "discovery.k8s.io" V1, true;
    /// A service account.
    ServiceAccount: "" V1, true;
    /// Named texts.
    ConfigMap: "" V1, true;
    /// Named secret values.
    Secret: "" V1, true;
    /// Routes of hosts.
    VirtualService: "networking.istio.io" NETWORKING, true;
    /// Policy of traffic to a service.
    DestinationRule: "networking.istio.io" NETWORKING, true;
    /// A service outside the registry.
    ServiceEntry: "networking.istio.io" NETWORKING, true;
    /// A workload outside Kubernetes.
    WorkloadEntry: "networking.istio.io" NETWORKING, true;
    /// An edge of the mesh.
    Gateway: "networking.istio.io" NETWORKING, true;
    /// Scope of a workload.
    Sidecar: "networking.istio.io" NETWORKING, true;
    /// What workloads that register themselves look like.
    WorkloadGroup: "networking.istio.io" NETWORKING, true;
    /// Patches of Envoy.
    EnvoyFilter: "networking.istio.io" &["v1alpha3"], true;
    /// Settings of proxies.
    ProxyConfig: "networking.istio.io" &["v1beta1"], true;
    /// Access control.
    AuthorizationPolicy: "security.istio.io" SECURITY, true;
    /// mTLS modes.
    PeerAuthentication: "security.istio.io" SECURITY, true;
    /// Accepted JWTs.
    RequestAuthentication: "security.istio.io" SECURITY, true;
    /// What is traced, counted and logged.
    Telemetry: "telemetry.istio.io" &["v1", "v1alpha1"], true;
    /// WebAssembly filters.
    WasmPlugin: "extensions.istio.io" &["v1alpha1"], true;
    /// WebAssembly or Lua filters.
    TrafficExtension: "extensions.istio.io" &["v1alpha1"], true;
}

impl Kind {
    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }

    /// Whether it is one of Istio's: unknown fields there are reported, because a person wrote
    /// them and expects an effect.
    #[must_use]
    pub fn is_istio(self) -> bool {
        self.group().ends_with("istio.io")
    }

    /// Whether it restricts access: a broken one must never open what the good one closed.
    #[must_use]
    pub fn is_security(self) -> bool {
        self.group() == "security.istio.io"
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
