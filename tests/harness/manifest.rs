//! The Kubernetes objects that describe a topology, as YAML.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Name, unique in its namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Number of its node.
    pub node: usize,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Addresses of which families.
    pub families: Families,
    /// Whether it counts as ready from the start.
    pub ready: bool,
    /// What its object names instead of its addresses; one that has just started has none there
    /// yet, one that was started again those that it had before.
    pub listed: Option<Vec<IpAddr>>,
    /// Its uid, as an API server gives them; its cgroup is called so then, as the kubelet's are.
    pub uid: Option<String>,
}

/// Which address families a pod or a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both, IPv4 first.
    Dual,
}

impl PodSpec {
    /// A pod of this name on node 0 of namespace `default`, with service account and `app` label
    /// of the same name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            namespace: "default".into(),
            service_account: name.into(),
            node: 0,
            labels: BTreeMap::from([("app".into(), name.into())]),
            annotations: BTreeMap::new(),
            families: Families::Dual,
            ready: true,
            listed: None,
            uid: None,
        }
    }

    /// With this uid.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.into());
        self
    }

    /// With these addresses in its object, instead of its own.
    #[must_use]
    pub fn listed(mut self, ips: &[IpAddr]) -> Self {
        self.listed = Some(ips.to_vec());
        self
    }

    /// On this node.
    #[must_use]
    pub fn on(mut self, node: usize) -> Self {
        self.node = node;
        self
    }

    /// In this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// With this service account.
    #[must_use]
    pub fn account(mut self, name: &str) -> Self {
        self.service_account = name.into();
        self
    }

    /// With this label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// With this annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// With addresses of these families.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// The uid in its object.
    #[must_use]
    pub fn known_uid(&self) -> String {
        self.uid.clone().unwrap_or_else(|| format!("uid-{}-{}", self.namespace, self.name))
    }

    /// The object, given its addresses and namespace path.
    #[must_use]
    pub fn yaml(&self, node: &str, ips: &[IpAddr], netns: &str) -> String {
        let ips = self.listed.as_deref().unwrap_or(ips);
        let mut annotations = self.annotations.clone();
        annotations.insert("fairlead.io/netns".into(), netns.into());
        let ready = if self.ready { "True" } else { "False" };
        let first = ips.first().map(ToString::to_string).unwrap_or_default();
        let uid = self.known_uid();
        let mut list = String::new();
        for ip in ips {
            let _ = writeln!(list, "  - ip: \"{ip}\"");
        }
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {uid}\n  labels:\n{}  annotations:\n{}spec:\n  nodeName: {node}\n  serviceAccountName: {}\n  containers:\n  - name: app\nstatus:\n  phase: Running\n  podIP: \"{first}\"\n  podIPs:\n{list}  conditions:\n  - type: Ready\n    status: \"{ready}\"\n",
            self.name,
            self.namespace,
            map(&self.labels, 4),
            map(&annotations, 4),
            self.service_account,
        )
    }
}

/// A service to be made.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Ports: name, port, target port, `appProtocol`.
    pub ports: Vec<(String, u16, u16, Option<String>)>,
    /// Selector.
    pub selector: BTreeMap<String, String>,
    /// Whether it has no cluster IP.
    pub headless: bool,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Further fields of its spec.
    pub fields: BTreeMap<String, String>,
}

impl ServiceSpec {
    /// A service of namespace `default` that selects `app: <name>`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            namespace: "default".into(),
            ports: Vec::new(),
            selector: BTreeMap::from([("app".into(), name.into())]),
            headless: false,
            annotations: BTreeMap::new(),
            fields: BTreeMap::new(),
        }
    }

    /// In this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// With this port; an empty name leaves it out.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16, target: u16) -> Self {
        self.ports.push((name.into(), port, target, None));
        self
    }

    /// With this port and `appProtocol`.
    #[must_use]
    pub fn port_with_protocol(mut self, name: &str, port: u16, target: u16, app: &str) -> Self {
        self.ports.push((name.into(), port, target, Some(app.into())));
        self
    }

    /// With this selector instead.
    #[must_use]
    pub fn selector(mut self, pairs: &[(&str, &str)]) -> Self {
        self.selector = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        self
    }

    /// With this annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// With this field of its spec.
    #[must_use]
    pub fn field(mut self, key: &str, value: &str) -> Self {
        self.fields.insert(key.into(), value.into());
        self
    }

    /// Without a cluster IP.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// The object, given its addresses.
    #[must_use]
    pub fn yaml(&self, vips: &[IpAddr]) -> String {
        let mut out = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: {}\n",
            self.name, self.namespace
        );
        if !self.annotations.is_empty() {
            let _ = write!(out, "  annotations:\n{}", map(&self.annotations, 4));
        }
        let _ = write!(out, "spec:\n{}", map(&self.fields, 2));
        if self.headless {
            out.push_str("  clusterIP: None\n  clusterIPs:\n  - None\n");
        } else {
            let first = vips.first().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(out, "  clusterIP: \"{first}\"\n  clusterIPs:");
            for ip in vips {
                let _ = writeln!(out, "  - \"{ip}\"");
            }
        }
        let _ = write!(out, "  selector:\n{}  ports:\n", map(&self.selector, 4));
        for (name, port, target, app) in &self.ports {
            let _ = writeln!(out, "  - port: {port}\n    targetPort: {target}\n    protocol: TCP");
            if !name.is_empty() {
                let _ = writeln!(out, "    name: {name}");
            }
            if let Some(app) = app {
                let _ = writeln!(out, "    appProtocol: {app}");
            }
        }
        out
    }
}

/// Whether labels ask for the mesh, as the table of the documentation has it: the pod's own word
/// first, then its namespace's.
#[must_use]
pub fn enrolled(pod: &BTreeMap<String, String>, namespace: &BTreeMap<String, String>) -> bool {
    let word = |labels: &BTreeMap<String, String>, inject: (&str, &str, &str)| -> Option<bool> {
        let switch = |(key, on, off): (&str, &str, &str)| match labels.get(key) {
            Some(value) if value == on => Some(true),
            Some(value) if value == off => Some(false),
            _ => None,
        };
        switch(("fairlead.io/mesh", "enabled", "disabled"))
            .or_else(|| switch(("istio.io/dataplane-mode", "ambient", "none")))
            .or_else(|| switch(inject))
            .or_else(|| labels.contains_key("istio.io/rev").then_some(true))
    };
    word(pod, ("sidecar.istio.io/inject", "true", "false"))
        .or_else(|| word(namespace, ("istio-injection", "enabled", "disabled")))
        .unwrap_or(false)
}

/// A namespace.
#[must_use]
pub fn namespace(name: &str, labels: &BTreeMap<String, String>) -> String {
    let labels =
        if labels.is_empty() { String::new() } else { format!("  labels:\n{}", map(labels, 4)) };
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{labels}")
}

/// A node with its addresses, and what labels it has besides its name.
#[must_use]
pub fn node(name: &str, labels: &BTreeMap<String, String>, ips: &[IpAddr]) -> String {
    let mut out = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    kubernetes.io/hostname: {name}\n{}status:\n  addresses:\n",
        map(labels, 4)
    );
    for ip in ips {
        let _ = writeln!(out, "  - type: InternalIP\n    address: \"{ip}\"");
    }
    out
}

/// A service account.
#[must_use]
pub fn service_account(name: &str, namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    )
}

/// MeshConfig, as Istio keeps it: a ConfigMap of the root namespace.
#[must_use]
pub fn mesh_config(settings: &str) -> String {
    let mut out = String::from(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\ndata:\n  mesh: |\n",
    );
    for line in settings.lines() {
        let _ = writeln!(out, "    {line}");
    }
    out
}

fn map(pairs: &BTreeMap<String, String>, indent: usize) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        let _ = writeln!(out, "{:indent$}{key}: \"{value}\"", "");
    }
    out
}
