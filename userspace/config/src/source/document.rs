//! One file's text to typed, validated objects.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::core::{
    ConfigMap, EndpointSlice, Namespace, Node as KubeNode, Pod, Secret, Service, ServiceAccount,
};
use fairlead_api::extensions::{TrafficExtension, WasmPlugin};
use fairlead_api::networking::{
    DestinationRule, EnvoyFilter, Gateway, ProxyConfig, ServiceEntry, Sidecar, VirtualService,
    WorkloadEntry, WorkloadGroup,
};
use fairlead_api::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use fairlead_api::telemetry::Telemetry;
use fairlead_api::{Kind, ObjectKey, ObjectMeta, Resource, StringMap};
use serde::de::DeserializeOwned;

use super::de::{self, Unknown};
use super::kinds::known_kind;
use super::mesh::MESH_CONFIG_MAP;
use super::path::Path;
use super::problem::{Effect, ObjectRef, Problem, Severity};
use super::sink::Sink;
use super::tree::{Node, Value};
use super::yaml::SyntaxError;
use super::{json, salvage, unenforced, validate, yaml};

/// Most objects of one file.
const MAX_OBJECTS: usize = 100_000;

/// Most problems that are told of one file; the rest is counted.
const MAX_PROBLEMS: usize = 1_000;

/// Marks an AuthorizationPolicy that is to be tried, not enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// The API group of every security policy.
const POLICY_GROUP: &str = "security.istio.io";
/// The kinds of it.
const POLICY_KINDS: [&str; 3] =
    ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"];
/// The mesh's settings that what is let through depends on.
const MESH_SETTINGS: [&str; 5] = [
    "rootNamespace",
    "pathNormalization",
    "outboundTrafficPolicy",
    "trustDomain",
    "enableAutoMtls",
];

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML, of which JSON is nearly a part.
    Yaml,
    /// JSON.
    Json,
}

/// An object that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its key.
    pub key: ObjectKey,
    /// The labels of `spec.selector.matchLabels` as far as they could be read: the workloads for
    /// which a refused policy has to fail closed. Empty means all of the namespace, or of the
    /// mesh in the root namespace.
    pub selector: StringMap,
}

impl Format {
    /// The format of a file of that name: JSON if it ends in `.json`, otherwise YAML.
    #[must_use]
    pub fn of(path: &std::path::Path) -> Self {
        if path.extension().is_some_and(|e| e == "json") { Self::Json } else { Self::Yaml }
    }
}

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The good objects, in order of the file.
    pub objects: Vec<Resource>,
    /// The objects with a key that were refused.
    pub rejected: Vec<Rejected>,
    /// What is left of Pods and Namespaces among them: enough to know who is in the mesh.
    pub(crate) salvaged: Vec<Resource>,
    /// All that is wrong.
    pub problems: Vec<Problem>,
    /// Something in the file is an object of ours, but nobody can tell which: what has gone from
    /// the file since its last good version may be just that.
    pub lost: bool,
    /// The file as a whole cannot be read; nothing in it counts.
    pub unreadable: bool,
    /// How many objects on which security depends the text seems to hold; `None` if nobody could
    /// read it. Looked for only where it matters: in files that hold one, or hold mistakes.
    pub(crate) mentions: Option<usize>,
}

impl Parsed {
    /// A file that cannot be read.
    pub(crate) fn unreadable(problem: Problem) -> Self {
        Self { problems: vec![problem], unreadable: true, ..Self::default() }
    }
}

/// Reads, types and validates the text of a file.
#[must_use]
pub fn parse(file: &Arc<PathBuf>, text: &str, format: Format) -> Parsed {
    let mut reader = Reader { file, parsed: Parsed::default(), seen: 0 };
    match format {
        Format::Yaml => reader.documents(yaml::Documents::new(text)),
        Format::Json => reader.documents(json::Documents::new(text)),
    }
    let mut parsed = reader.parsed;
    if parsed.problems.len() > MAX_PROBLEMS {
        let message = format!("and {} more problems", parsed.problems.len() - MAX_PROBLEMS);
        parsed.problems.truncate(MAX_PROBLEMS);
        parsed.problems.push(Problem::of_file(file, message, None));
    }
    let of_security = parsed.objects.iter().any(|object| is_of_security(&object.key()));
    let matters = of_security || parsed.unreadable || parsed.lost || !parsed.rejected.is_empty();
    parsed.mentions = Some(if matters { mentions(text) } else { 0 });
    parsed
}

/// Whether security depends on an object of that key: a policy, or the mesh's settings (which say
/// how paths are normalized, and where the policies of the whole mesh are).
pub(crate) fn is_of_security(key: &ObjectKey) -> bool {
    key.kind.is_security() || (key.kind == Kind::ConfigMap && &*key.name == MESH_CONFIG_MAP)
}

/// How many such objects a text seems to hold, whether or not it can be read. Rather too many
/// than too few.
fn mentions(text: &str) -> usize {
    let count = |word: &&str| text.matches(word).count();
    let kinds: usize = POLICY_KINDS.iter().map(count).sum();
    let settings = text.contains("ConfigMap") && MESH_SETTINGS.iter().any(|w| text.contains(w));
    kinds.max(count(&POLICY_GROUP)) + usize::from(settings)
}

struct Reader<'f> {
    file: &'f Arc<PathBuf>,
    parsed: Parsed,
    seen: usize,
}

/// Group, version and kind of a list, for items that do not say their own.
#[derive(Clone, Copy)]
struct Inherited<'n> {
    api_version: &'n str,
    kind: &'n str,
}

impl Reader<'_> {
    fn documents<'a>(&mut self, documents: impl Iterator<Item = Result<Node<'a>, SyntaxError>>) {
        for (index, result) in documents.enumerate() {
            let document = index + 1;
            match result {
                Ok(node) => self.document(document, &node),
                Err(error) => {
                    let problem = Problem {
                        document,
                        line: (error.line != 0).then_some(error.line),
                        ..Problem::of_file(self.file, error.message, error.allowed)
                    };
                    if error.fatal {
                        // What came before may be cut short: a file half written ends anywhere.
                        self.parsed = Parsed::unreadable(problem);
                        return;
                    }
                    self.parsed.problems.push(problem);
                    self.parsed.lost = true;
                }
            }
            if self.parsed.unreadable {
                return;
            }
        }
    }

    fn document(&mut self, document: usize, node: &Node<'_>) {
        let kind = node.get("kind").and_then(Node::as_str).unwrap_or_default();
        let item_kind = kind.strip_suffix("List");
        match (item_kind, node.get("items")) {
            (Some(item_kind), Some(items)) => {
                let api_version = node.get("apiVersion").and_then(Node::as_str).unwrap_or_default();
                let inherited = Inherited { api_version, kind: item_kind };
                for item in items.items() {
                    self.object(document, item, Some(inherited));
                }
            }
            // An empty list.
            (Some(_), None) if node.get("metadata").is_none_or(|m| m.get("name").is_none()) => {}
            _ => self.object(document, node, None),
        }
    }

    fn object(&mut self, document: usize, node: &Node<'_>, inherited: Option<Inherited<'_>>) {
        self.seen += 1;
        if self.seen > MAX_OBJECTS {
            let allowed = format!("at most {MAX_OBJECTS} objects in a file");
            let problem = Problem::of_file(self.file, "too many objects".to_owned(), Some(allowed));
            self.parsed = Parsed::unreadable(problem);
            return;
        }
        let mut sink = Sink::new(self.file, document, node);
        match read(node, inherited, &mut sink) {
            Outcome::Good(resource) if !sink.has_errors() => self.parsed.objects.push(resource),
            Outcome::Good(resource) => self.reject(resource.key(), node),
            Outcome::Rejected(key) => self.reject(key, node),
            Outcome::Ignored => {}
            Outcome::Lost => self.parsed.lost = true,
        }
        self.parsed.problems.extend(sink.finish());
    }

    fn reject(&mut self, key: ObjectKey, node: &Node<'_>) {
        self.parsed.salvaged.extend(salvage::salvage(&key, node));
        self.parsed.rejected.push(reject(key, node));
    }
}

fn reject(key: ObjectKey, node: &Node<'_>) -> Rejected {
    let labels = node
        .get("spec")
        .and_then(|spec| spec.get("selector"))
        .and_then(|selector| selector.get("matchLabels"))
        .and_then(|labels| de::from_node(labels, &Path::Root, false, &RefCell::default()).ok());
    Rejected { key, selector: labels.unwrap_or_default() }
}

enum Outcome {
    /// Typed; errors may have been told nevertheless.
    Good(Resource),
    /// Known by key, but not typed.
    Rejected(ObjectKey),
    /// Nothing of ours.
    Ignored,
    /// Something of ours, but not known which.
    Lost,
}

fn read(node: &Node<'_>, inherited: Option<Inherited<'_>>, sink: &mut Sink<'_>) -> Outcome {
    let root = Path::Root;
    if !matches!(node.value, Value::Mapping(_)) {
        sink.error(
            &root,
            "not a Kubernetes object",
            "an object with apiVersion, kind and metadata",
        );
        return Outcome::Lost;
    }
    let text = |field: &str| node.get(field).and_then(Node::as_str);
    let api_version =
        text("apiVersion").or(inherited.map(|list| list.api_version)).unwrap_or_default();
    let kind_name = text("kind").or(inherited.map(|list| list.kind)).unwrap_or_default();
    let metadata = |field: &str| {
        node.get("metadata").and_then(|m| m.get(field)).and_then(Node::as_str).unwrap_or_default()
    };
    let mut object = ObjectRef {
        kind: kind_name.to_owned(),
        namespace: metadata("namespace").to_owned(),
        name: metadata("name").to_owned(),
    };
    for (field, value) in [("apiVersion", api_version), ("kind", kind_name)] {
        if value.is_empty() {
            sink.set_object(object);
            sink.error(&root.field(field), "is missing", "every object needs apiVersion and kind");
            return Outcome::Lost;
        }
    }
    let kind = match known_kind(api_version, kind_name) {
        Ok(kind) => kind,
        Err(unknown) => {
            sink.set_object(object);
            let ours = unknown.tell(api_version, kind_name, sink);
            return if ours { Outcome::Lost } else { Outcome::Ignored };
        }
    };
    if !kind.is_namespaced() {
        object.namespace.clear();
    } else if object.namespace.is_empty() {
        object.namespace.push_str("default");
    }
    let key = object.key();
    let namespace = object.namespace.clone();
    sink.set_object(object);
    let Some(key) = key else {
        let name = root.field("metadata");
        sink.error(&name.field("name"), "is missing", "every object needs a name");
        return Outcome::Lost;
    };
    validate::metadata(kind, &key, sink);
    match typed(kind, node, &namespace, sink) {
        Some(resource) if is_dry_run(&resource) => {
            let message = "a dry run has no effect on traffic, and is not recorded yet";
            let metadata = root.field("metadata");
            let annotations = metadata.field("annotations");
            sink.warn_of(Effect::NotEnforced, &annotations.key(DRY_RUN), message, "");
            Outcome::Ignored
        }
        Some(resource) => {
            unenforced::tell(kind, sink);
            Outcome::Good(resource)
        }
        None => Outcome::Rejected(key),
    }
}

/// Types and validates.
fn typed(kind: Kind, node: &Node<'_>, namespace: &str, sink: &mut Sink<'_>) -> Option<Resource> {
    macro_rules! object {
        ($type:ty, $validate:expr) => {{
            let mut object: $type = deserialize(kind, node, sink)?;
            fill(&mut object.metadata, namespace);
            let validate: fn(&$type, &mut Sink<'_>) = $validate;
            validate(&object, sink);
            Resource::from(object)
        }};
    }
    Some(match kind {
        Kind::Namespace => object!(Namespace, validate::namespace),
        Kind::Node => object!(KubeNode, validate::node),
        Kind::Pod => object!(Pod, validate::pod),
        Kind::Service => object!(Service, validate::service),
        Kind::EndpointSlice => object!(EndpointSlice, validate::endpoint_slice),
        Kind::ServiceAccount => object!(ServiceAccount, |_, _| {}),
        Kind::ConfigMap => object!(ConfigMap, validate::config_map),
        Kind::Secret => object!(Secret, |_, _| {}),
        Kind::VirtualService => object!(VirtualService, validate::virtual_service),
        Kind::DestinationRule => object!(DestinationRule, validate::destination_rule),
        Kind::ServiceEntry => object!(ServiceEntry, validate::service_entry),
        Kind::WorkloadEntry => object!(WorkloadEntry, validate::workload_entry),
        Kind::Gateway => object!(Gateway, validate::gateway),
        Kind::Sidecar => object!(Sidecar, validate::sidecar),
        Kind::WorkloadGroup => object!(WorkloadGroup, validate::workload_group),
        Kind::EnvoyFilter => object!(EnvoyFilter, validate::envoy_filter),
        Kind::ProxyConfig => object!(ProxyConfig, validate::proxy_config),
        Kind::AuthorizationPolicy => object!(AuthorizationPolicy, validate::authorization_policy),
        Kind::PeerAuthentication => object!(PeerAuthentication, validate::peer_authentication),
        Kind::RequestAuthentication => {
            object!(RequestAuthentication, validate::request_authentication)
        }
        Kind::Telemetry => object!(Telemetry, validate::telemetry),
        Kind::WasmPlugin => object!(WasmPlugin, validate::wasm_plugin),
        Kind::TrafficExtension => object!(TrafficExtension, validate::traffic_extension),
    })
}

/// Whether the policy is only to be tried (Istio: Go's `ParseBool` of the annotation).
fn is_dry_run(resource: &Resource) -> bool {
    let Resource::AuthorizationPolicy(policy) = resource else { return false };
    let value = policy.metadata.annotations.get(DRY_RUN);
    value.is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}

fn fill(metadata: &mut ObjectMeta, namespace: &str) {
    if metadata.namespace != namespace {
        namespace.clone_into(&mut metadata.namespace);
    }
}

/// Types; tells what does not fit and what is not known.
fn deserialize<T: DeserializeOwned>(kind: Kind, node: &Node<'_>, sink: &mut Sink<'_>) -> Option<T> {
    let unknown = RefCell::default();
    let result = de::from_node(node, &Path::Root, kind.is_istio(), &unknown);
    tell_unknown(unknown.into_inner(), Severity::Error, sink);
    match result {
        Ok(object) => Some(object),
        Err(mismatch) => {
            let mut parts = mismatch.into_parts();
            if kind == Kind::Secret {
                // The text would hold the value.
                parts.message = "the value does not fit here".to_owned();
            }
            let (field, line) = parts.place.unwrap_or_default();
            let line = (line != 0).then_some(line);
            let allowed = parts.allowed.unwrap_or_default();
            sink.add(Severity::Error, field, line, parts.message, &allowed);
            None
        }
    }
}

/// Tells the fields that nobody knows.
pub(crate) fn tell_unknown(unknown: Vec<Unknown>, severity: Severity, sink: &mut Sink<'_>) {
    for Unknown { path, line, suggestion } in unknown {
        let allowed = suggestion.map_or(String::new(), |near| format!("did you mean {near}?"));
        let line = (line != 0).then_some(line);
        sink.add(severity, path, line, "this field is not known".to_owned(), &allowed);
    }
}
