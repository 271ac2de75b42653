//! What belongs to a kind as a whole: its CustomResourceDefinition (`apiextensions.k8s.io/v1`).
//!
//! Names, categories, columns, served versions and the one that is stored are Istio's, so that
//! `kubectl` shows the same and stored objects can be read by either.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::structural::{SchemaError, structural};
use crate::extensions::{TrafficExtensionSpec, WasmPluginSpec};
use crate::networking::{
    DestinationRuleSpec, EnvoyFilterSpec, GatewaySpec, ProxyConfigSpec, ServiceEntrySpec,
    SidecarSpec, VirtualServiceSpec, WorkloadEntrySpec, WorkloadGroupSpec,
};
use crate::security::{AuthorizationPolicySpec, PeerAuthenticationSpec, RequestAuthenticationSpec};
use crate::telemetry::TelemetrySpec;
use crate::{Kind, ResourceStatus};

/// A column of `kubectl get`: name, type, path, description.
type Column = (&'static str, &'static str, &'static str, &'static str);

const AGE: Column = ("Age", "date", ".metadata.creationTimestamp", "When the object was made.");

/// What a definition says besides its schema.
struct Names {
    plural: &'static str,
    short: &'static [&'static str],
    columns: &'static [Column],
    /// The version in which objects are stored.
    stored: &'static str,
    /// Whether an object without `spec` is refused.
    spec_required: bool,
    /// What the kind is, for `kubectl explain`.
    description: &'static str,
    schema: fn() -> schemars::Schema,
}

fn schema_of<T: JsonSchema>() -> schemars::Schema {
    SchemaGenerator::default().into_root_schema_for::<T>()
}

/// `None` for kinds that are not Istio's.
fn names(kind: Kind) -> Option<Names> {
    const HOSTS: Column = ("Hosts", "string", ".spec.hosts", "Names that it is about.");
    let names = |plural, description, schema| Names {
        plural,
        short: &[],
        columns: &[],
        stored: "v1",
        spec_required: false,
        description,
        schema,
    };
    Some(match kind {
        Kind::VirtualService => Names {
            short: &["vs"],
            columns: &[
                ("Gateways", "string", ".spec.gateways", "Gateways that it applies to."),
                HOSTS,
                AGE,
            ],
            ..names("virtualservices", "Routing of hosts.", schema_of::<VirtualServiceSpec>)
        },
        Kind::DestinationRule => Names {
            short: &["dr"],
            columns: &[("Host", "string", ".spec.host", "Service that it is about."), AGE],
            ..names(
                "destinationrules",
                "What applies to the traffic of a service after routing.",
                schema_of::<DestinationRuleSpec>,
            )
        },
        Kind::ServiceEntry => Names {
            short: &["se"],
            columns: &[
                HOSTS,
                ("Location", "string", ".spec.location", "Inside or outside of the mesh."),
                ("Resolution", "string", ".spec.resolution", "How addresses are found."),
                AGE,
            ],
            spec_required: true,
            ..names(
                "serviceentries",
                "A service that the registry does not know.",
                schema_of::<ServiceEntrySpec>,
            )
        },
        Kind::WorkloadEntry => Names {
            short: &["we"],
            columns: &[AGE, ("Address", "string", ".spec.address", "Where the workload is.")],
            spec_required: true,
            ..names(
                "workloadentries",
                "A workload that is not a pod.",
                schema_of::<WorkloadEntrySpec>,
            )
        },
        Kind::WorkloadGroup => Names {
            short: &["wg"],
            columns: &[AGE],
            spec_required: true,
            ..names(
                "workloadgroups",
                "A template of workload entries.",
                schema_of::<WorkloadGroupSpec>,
            )
        },
        Kind::Gateway => Names {
            short: &["gw"],
            ..names(
                "gateways",
                "A load balancer at the edge of the mesh.",
                schema_of::<GatewaySpec>,
            )
        },
        Kind::Sidecar => {
            names("sidecars", "What a workload may reach, and how.", schema_of::<SidecarSpec>)
        }
        Kind::EnvoyFilter => Names {
            stored: "v1alpha3",
            ..names(
                "envoyfilters",
                "Patches of Envoy's configuration.",
                schema_of::<EnvoyFilterSpec>,
            )
        },
        Kind::ProxyConfig => Names {
            stored: "v1beta1",
            ..names("proxyconfigs", "Settings of proxies.", schema_of::<ProxyConfigSpec>)
        },
        Kind::AuthorizationPolicy => Names {
            short: &["ap"],
            columns: &[("Action", "string", ".spec.action", "What a match means."), AGE],
            ..names(
                "authorizationpolicies",
                "Access control of workloads.",
                schema_of::<AuthorizationPolicySpec>,
            )
        },
        Kind::PeerAuthentication => Names {
            short: &["pa"],
            columns: &[("Mode", "string", ".spec.mtls.mode", "The mode of mTLS."), AGE],
            ..names(
                "peerauthentications",
                "Whether plaintext is accepted.",
                schema_of::<PeerAuthenticationSpec>,
            )
        },
        Kind::RequestAuthentication => Names {
            short: &["ra"],
            ..names(
                "requestauthentications",
                "Which JWTs are accepted.",
                schema_of::<RequestAuthenticationSpec>,
            )
        },
        Kind::Telemetry => Names {
            short: &["telemetry"],
            columns: &[AGE],
            stored: "v1alpha1",
            ..names(
                "telemetries",
                "What is traced, counted and logged.",
                schema_of::<TelemetrySpec>,
            )
        },
        Kind::WasmPlugin => Names {
            columns: &[AGE],
            stored: "v1alpha1",
            spec_required: true,
            ..names("wasmplugins", "A WebAssembly filter.", schema_of::<WasmPluginSpec>)
        },
        Kind::TrafficExtension => Names {
            columns: &[AGE],
            stored: "v1alpha1",
            spec_required: true,
            ..names(
                "trafficextensions",
                "A WebAssembly or Lua filter.",
                schema_of::<TrafficExtensionSpec>,
            )
        },
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::ServiceAccount
        | Kind::ConfigMap
        | Kind::Secret => return None,
    })
}

/// Name of the definition of a kind; `None` for those that Kubernetes itself defines.
#[must_use]
pub fn definition_name(kind: Kind) -> Option<String> {
    names(kind).map(|names| format!("{}.{}", names.plural, kind.group()))
}

/// The version in which objects of a kind are stored; `None` for those of Kubernetes itself.
#[must_use]
pub fn stored_version(kind: Kind) -> Option<&'static str> {
    names(kind).map(|names| names.stored)
}

/// Short names of a kind, as `kubectl` takes them.
#[must_use]
pub fn short_names(kind: Kind) -> &'static [&'static str] {
    names(kind).map_or(&[], |names| names.short)
}

/// The structural schema of a kind's `spec`; `None` for kinds of Kubernetes itself.
///
/// # Errors
/// When the types say something that has no structural form.
pub fn spec_schema(kind: Kind) -> Result<Option<Value>, SchemaError> {
    names(kind).map(|names| structural((names.schema)().as_value())).transpose()
}

/// The CustomResourceDefinition of a kind; `None` for kinds of Kubernetes itself.
///
/// # Errors
/// When the types say something that has no structural form.
pub fn custom_resource_definition(kind: Kind) -> Result<Option<Value>, SchemaError> {
    let Some(names) = names(kind) else { return Ok(None) };
    let spec = structural((names.schema)().as_value())?;
    let mut status = structural(schema_of::<ResourceStatus>().as_value())?;
    if let Some(status) = status.as_object_mut() {
        // What other controllers write there is kept.
        status.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
    }
    let mut schema = Map::new();
    schema.insert("description".to_owned(), names.description.into());
    schema.insert("type".to_owned(), "object".into());
    if names.spec_required {
        schema.insert("required".to_owned(), json!(["spec"]));
    }
    schema.insert("properties".to_owned(), json!({"spec": spec, "status": status}));
    let columns: Vec<Value> = names
        .columns
        .iter()
        .map(|(name, kind, path, description)| {
            json!({"name": name, "type": kind, "description": description, "jsonPath": path})
        })
        .collect();
    let versions: Vec<Value> = kind
        .versions()
        .iter()
        .map(|version| {
            let mut object = Map::new();
            object.insert("name".to_owned(), (*version).into());
            object.insert("served".to_owned(), true.into());
            object.insert("storage".to_owned(), (*version == names.stored).into());
            object.insert("subresources".to_owned(), json!({"status": {}}));
            if !columns.is_empty() {
                object.insert("additionalPrinterColumns".to_owned(), columns.clone().into());
            }
            object.insert("schema".to_owned(), json!({"openAPIV3Schema": schema}));
            Value::Object(object)
        })
        .collect();
    let group = kind.group();
    let category = format!("{}-istio-io", group.split('.').next().unwrap_or_default());
    let mut called = Map::new();
    called.insert("kind".to_owned(), kind.as_str().into());
    called.insert("listKind".to_owned(), format!("{kind}List").into());
    called.insert("plural".to_owned(), names.plural.into());
    called.insert("singular".to_owned(), kind.as_str().to_ascii_lowercase().into());
    if !names.short.is_empty() {
        called.insert("shortNames".to_owned(), names.short.into());
    }
    called.insert("categories".to_owned(), json!(["istio-io", category]));
    Ok(Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{group}", names.plural),
            "labels": {"app.kubernetes.io/part-of": "fairlead"},
        },
        "spec": {
            "group": group,
            "scope": if kind.is_namespaced() { "Namespaced" } else { "Cluster" },
            "names": called,
            "versions": versions,
        },
    })))
}

/// A field of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Path, as `spec.http[].match[].headers{}.exact`: `[]` for the items of a list, `{}` for
    /// the values of a map.
    pub path: String,
    /// What it means.
    pub description: String,
    /// Whether it has no fields of its own.
    pub leaf: bool,
}

/// The fields of a kind's `spec`, in order, at every depth, without the second (snake_case) names
/// that two of them have; none for kinds of Kubernetes itself.
///
/// # Errors
/// When the types say something that has no structural form.
pub fn spec_fields(kind: Kind) -> Result<Vec<Field>, SchemaError> {
    let mut fields = Vec::new();
    if let Some(schema) = spec_schema(kind)? {
        walk(&schema, "spec", &mut fields);
    }
    Ok(fields)
}

fn walk(schema: &Value, path: &str, into: &mut Vec<Field>) {
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if name.contains('_') {
            continue;
        }
        let mut path = format!("{path}.{name}");
        let description = field.get("description").and_then(Value::as_str).unwrap_or_default();
        let mut inner = field;
        let at = into.len();
        into.push(Field { path: path.clone(), description: description.to_owned(), leaf: false });
        loop {
            if let Some(items) = inner.get("items") {
                path.push_str("[]");
                inner = items;
            } else if let Some(values) = inner.get("additionalProperties") {
                path.push_str("{}");
                inner = values;
            } else {
                break;
            }
        }
        walk(inner, &path, into);
        into[at].leaf = into.len() == at + 1;
    }
}
