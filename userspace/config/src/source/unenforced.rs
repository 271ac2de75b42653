//! What is understood and accepted, but has no effect yet. One line per field: whoever builds the
//! feature deletes its line.
//!
//! Fields of routing get a warning: the object works without them. In the security kinds they are
//! errors: a policy of which a part is left out could allow what it was written to forbid.

use fairlead_api::Kind;

use super::problem::Severity;
use super::sink::Sink;
use super::tree::{Node, Value};

/// Field paths by kind: `[]` stands for every item of a list, `{}` for every entry of a map; an
/// empty path stands for the kind as a whole. What the compiler answers with a refusal (503, a
/// closed connection) is not here: it says so itself.
const FIELDS: &[(Kind, &str)] = &[
    (Kind::ServiceEntry, ""),
    (Kind::WorkloadEntry, ""),
    (Kind::Gateway, ""),
    (Kind::Sidecar, ""),
    (Kind::WorkloadGroup, ""),
    (Kind::EnvoyFilter, ""),
    (Kind::ProxyConfig, ""),
    (Kind::Telemetry, ""),
    (Kind::WasmPlugin, ""),
    (Kind::TrafficExtension, ""),
    // VirtualService
    (Kind::VirtualService, "spec.http[].mirror"),
    (Kind::VirtualService, "spec.http[].mirrors"),
    (Kind::VirtualService, "spec.http[].mirrorPercent"),
    (Kind::VirtualService, "spec.http[].mirrorPercentage"),
    (Kind::VirtualService, "spec.http[].corsPolicy"),
    (Kind::VirtualService, "spec.http[].match[].name"),
    (Kind::VirtualService, "spec.http[].match[].statPrefix"),
    // AuthorizationPolicy
    (Kind::AuthorizationPolicy, "spec.targetRef"),
    (Kind::AuthorizationPolicy, "spec.targetRefs"),
    (Kind::AuthorizationPolicy, "spec.provider"),
    (Kind::AuthorizationPolicy, "spec.rules[].from[].source.requestPrincipals"),
    (Kind::AuthorizationPolicy, "spec.rules[].from[].source.notRequestPrincipals"),
    (Kind::AuthorizationPolicy, "spec.rules[].from[].source.remoteIpBlocks"),
    (Kind::AuthorizationPolicy, "spec.rules[].from[].source.notRemoteIpBlocks"),
    // RequestAuthentication
    (Kind::RequestAuthentication, ""),
];

/// What is answered with a refusal instead of being left out, in the same notation: for the
/// documentation, and so that every field has its place in one of the lists.
const REFUSED: &[(Kind, &str)] = &[
    (Kind::VirtualService, "spec.http[].redirect"),
    (Kind::VirtualService, "spec.http[].directResponse"),
    (Kind::VirtualService, "spec.http[].delegate"),
    (Kind::VirtualService, "spec.tls"),
];

/// The same within traffic policies: TLS to servers outside the mesh.
const REFUSED_OF_POLICY: &[&str] = &[
    "tls.clientCertificate",
    "tls.privateKey",
    "tls.caCertificates",
    "tls.caCrl",
    "tls.credentialName",
];

/// Fields of a DestinationRule's traffic policies, wherever one stands.
const TRAFFIC_POLICY: &[&str] = &[
    "loadBalancer.consistentHash",
    "loadBalancer.localityLbSetting",
    "loadBalancer.zoneAwareLbSetting",
    "loadBalancer.warmup",
    "loadBalancer.warmupDurationSecs",
    "connectionPool.tcp.maxConnections",
    "connectionPool.tcp.tcpKeepalive",
    "connectionPool.tcp.maxConnectionDuration",
    "connectionPool.tcp.idleTimeout",
    "connectionPool.http",
    "outlierDetection",
    "tls.sni",
    "tls.insecureSkipVerify",
    "tunnel",
    "proxyProtocol",
    "retryBudget",
];

/// Where a DestinationRule has traffic policies.
const TRAFFIC_POLICIES: &[&str] = &[
    "spec.trafficPolicy",
    "spec.trafficPolicy.portLevelSettings[]",
    "spec.subsets[].trafficPolicy",
    "spec.subsets[].trafficPolicy.portLevelSettings[]",
];

/// The same for MeshConfig, below its own root; always a warning.
pub(crate) const MESH_FIELDS: &[&str] = &[
    "tcpKeepalive",
    "h2UpgradePolicy",
    "localityLbSetting",
    "enableTracing",
    "extensionProviders",
    "configSources",
    "defaultConfig",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "defaultDestinationRuleExportTo",
];

/// The keys of AuthorizationPolicy conditions that are enforced; `[` begins a name in brackets.
pub(crate) const ENFORCED_CONDITIONS: &[&str] = &[
    "request.headers[",
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

/// Fields of which some values alone are enforced, and what becomes of the others: for the
/// documentation. The checks that say so are those of validation and of the compiler.
const VALUES: &[(Kind, &str, &str)] = &[
    (
        Kind::VirtualService,
        "spec.gateways",
        "`mesh` is enforced; a rule for other gateways alone has no effect and is reported",
    ),
    (
        Kind::DestinationRule,
        "spec.trafficPolicy.tls.mode",
        "`SIMPLE` and `MUTUAL` (TLS to servers outside the mesh) are refused",
    ),
    (
        Kind::AuthorizationPolicy,
        "spec.action",
        "`CUSTOM` is refused; `AUDIT` decides nothing and is reported",
    ),
    (
        Kind::AuthorizationPolicy,
        "spec.rules[].when[].key",
        "`request.auth.*`, `remote.ip` and `experimental.*` are refused",
    ),
    (
        Kind::AuthorizationPolicy,
        "metadata.annotations[istio.io/dry-run]",
        "a dry run has no effect and is reported",
    ),
];

/// The fields of a kind of which some values alone are enforced, and what becomes of the others.
pub fn partly_enforced(kind: Kind) -> impl Iterator<Item = (&'static str, &'static str)> {
    VALUES.iter().filter(move |(of, ..)| *of == kind).map(|(_, path, words)| (*path, *words))
}

/// What becomes of a field that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does what it says.
    Enforced,
    /// It has no effect yet, and whoever writes it is told so; a policy that needs it is refused.
    NotEnforced,
    /// It is not built yet, and traffic that it would apply to is refused.
    Refused,
}

/// What becomes of a field of a kind, by its path in the notation of this module (`spec.http[].timeout`);
/// an empty path asks for the kind as a whole.
#[must_use]
pub fn effect(kind: Kind, path: &str) -> Effect {
    let within = |pattern: &str| {
        path.strip_prefix(pattern)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
    };
    let listed = |list: &[(Kind, &str)]| {
        list.iter().any(|(of, pattern)| *of == kind && (pattern.is_empty() || within(pattern)))
    };
    let of_policy = |fields: &[&str]| {
        kind == Kind::DestinationRule
            && TRAFFIC_POLICIES.iter().any(|policy| {
                path.strip_prefix(policy).and_then(|rest| rest.strip_prefix('.')).is_some_and(
                    |rest| {
                        fields.iter().any(|field| {
                            rest.strip_prefix(field)
                                .is_some_and(|r| r.is_empty() || r.starts_with(['.', '[', '{']))
                        })
                    },
                )
            })
    };
    if listed(FIELDS) || of_policy(TRAFFIC_POLICY) {
        Effect::NotEnforced
    } else if listed(REFUSED) || of_policy(REFUSED_OF_POLICY) {
        Effect::Refused
    } else {
        Effect::Enforced
    }
}

/// Tells which fields of the object have no effect yet.
pub(crate) fn tell(kind: Kind, sink: &mut Sink<'_>) {
    let severity = if kind.is_security() { Severity::Error } else { Severity::Warning };
    let node = sink.node();
    let mut fields = |pattern: &str| {
        visit(node, pattern, &mut |path, line| {
            let (message, allowed) = text(severity, "accepted, not enforced yet".to_owned());
            sink.add(severity, path, (line != 0).then_some(line), message, allowed);
        });
    };
    for (_, pattern) in FIELDS.iter().filter(|(of, pattern)| *of == kind && !pattern.is_empty()) {
        fields(pattern);
    }
    if kind == Kind::DestinationRule {
        for policy in TRAFFIC_POLICIES {
            TRAFFIC_POLICY.iter().for_each(|field| fields(&format!("{policy}.{field}")));
        }
    }
    if FIELDS.iter().any(|(of, pattern)| *of == kind && pattern.is_empty()) {
        let (message, allowed) = text(severity, format!("{kind} is accepted, not enforced yet"));
        sink.add(severity, String::new(), (node.line != 0).then_some(node.line), message, allowed);
    }
}

fn text(severity: Severity, warning: String) -> (String, &'static str) {
    match severity {
        Severity::Warning => (warning, ""),
        Severity::Error => {
            ("cannot be enforced yet".to_owned(), "leave it out; the policy is refused until then")
        }
    }
}

/// Calls `found` for every place of the document that the pattern names and that is not empty.
pub(crate) fn visit(node: &Node<'_>, pattern: &str, found: &mut dyn FnMut(String, u32)) {
    walk(node, pattern, String::new(), found);
}

fn walk(node: &Node<'_>, pattern: &str, path: String, found: &mut dyn FnMut(String, u32)) {
    let (segment, rest) = pattern.split_once('.').unwrap_or((pattern, ""));
    let name = segment.trim_end_matches("[]").trim_end_matches("{}");
    let Some(child) = node.get(name) else { return };
    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let mut go = |node: &Node<'_>, path: String| {
        if rest.is_empty() { found(path, node.line) } else { walk(node, rest, path, found) }
    };
    match &child.value {
        Value::Sequence(items) if segment.ends_with("[]") => {
            for (index, item) in items.iter().enumerate() {
                go(item, format!("{path}[{index}]"));
            }
        }
        Value::Mapping(entries) if segment.ends_with("{}") => {
            for (key, value) in entries.iter() {
                go(value, format!("{path}[{key}]"));
            }
        }
        // An empty list asks for nothing.
        Value::Sequence(items) if items.is_empty() => {}
        _ if segment.ends_with(']') || segment.ends_with('}') => {}
        _ => go(child, path),
    }
}
