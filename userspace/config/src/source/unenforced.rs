//! What is understood and accepted, but has no effect yet. One line per field: whoever builds the
//! feature deletes its line.
//!
//! Fields of routing get a warning: the object works without them, or refuses the traffic that they
//! are about. In the security kinds they are errors: a policy of which a part is left out could
//! allow what it was written to forbid.

use fairlead_api::Kind;

use super::problem::{Effect, Severity};
use super::sink::Sink;
use super::tree::{Node, Value};
use super::validate::MESH;

/// Field paths by kind: `[]` stands for every item of a list, `{}` for every entry of a map; an
/// empty path stands for the kind as a whole.
const FIELDS: &[(Kind, &str)] = &[
    (Kind::ServiceEntry, ""),
    (Kind::WorkloadEntry, ""),
    (Kind::Gateway, ""),
    (Kind::Sidecar, "spec.ingress"),
    (Kind::Sidecar, "spec.egress[].port"),
    (Kind::Sidecar, "spec.egress[].bind"),
    (Kind::Sidecar, "spec.egress[].captureMode"),
    (Kind::Sidecar, "spec.outboundTrafficPolicy"),
    (Kind::Sidecar, "spec.inboundConnectionPool"),
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
    (Kind::VirtualService, "spec.http[].fault.delay.exponentialDelay"),
    (Kind::VirtualService, "spec.http[].fault.abort.http2Error"),
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

/// What the compiler says of routes whose action is not built yet; whoever wrote one reads the same
/// in advance.
pub(crate) const REQUESTS_REFUSED: &str = "not supported yet; requests that match are answered 503";
/// The same of routes by SNI.
pub(crate) const PORTS_REFUSED: &str =
    "routing by SNI is not supported yet; connections to the port are refused";
/// The same of TLS to servers outside the mesh.
pub(crate) const CONNECTIONS_REFUSED: &str =
    "TLS origination is not supported yet; connections are refused";

/// What is answered with a refusal instead of being left out, in the same notation, and what is said
/// of it.
const REFUSED: &[(Kind, &str, &str)] = &[
    (Kind::VirtualService, "spec.http[].redirect", REQUESTS_REFUSED),
    (Kind::VirtualService, "spec.http[].directResponse", REQUESTS_REFUSED),
    (Kind::VirtualService, "spec.http[].delegate", REQUESTS_REFUSED),
    (Kind::VirtualService, "spec.tls", PORTS_REFUSED),
];

/// The same within traffic policies: TLS to servers outside the mesh. Validation tells it, where the
/// mode asks for that.
const REFUSED_OF_POLICY: &[&str] = &[
    "tls.clientCertificate",
    "tls.privateKey",
    "tls.caCertificates",
    "tls.caCrl",
    "tls.credentialName",
];

/// What has some of its effect, in the same notation, and which.
const PARTLY: &[(Kind, &str, &str)] = &[
    (Kind::Sidecar, "spec.egress[].hosts", EGRESS_HOSTS),
    (
        Kind::Sidecar,
        "spec.workloadSelector",
        "on Kubernetes, what it names in egress is added for all workloads of the namespace; it \
         selects nothing yet",
    ),
];
const EGRESS_HOSTS: &str = "on Kubernetes, narrows what the nodes are told for the namespace as a \
     whole, and not yet what a workload may reach; from files it has no effect";

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
];

/// Of MeshConfig what has some of its effect; always a warning.
pub(crate) const MESH_PARTLY: &[&str] = &["defaultServiceExportTo"];
/// Which.
pub(crate) const MESH_EXPORTS: &str = "on Kubernetes, narrows which nodes are told of a service, and \
     not yet who on a node uses what that was told; from files it has no effect";
/// What is said of what has none.
pub(crate) const NOT_ENFORCED: &str = "accepted, not enforced yet";

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
        "`mesh` is enforced; other gateways have no effect and are reported",
    ),
    (
        Kind::VirtualService,
        "spec.http[].match[].gateways",
        "`mesh` is enforced; other gateways have no effect and are reported",
    ),
    (
        Kind::VirtualService,
        "spec.tcp[].match[].gateways",
        "`mesh` is enforced; other gateways have no effect and are reported",
    ),
    (
        Kind::VirtualService,
        "spec.hosts",
        "a rule without hosts, to which others delegate, has no effect and is reported",
    ),
    (
        Kind::VirtualService,
        "spec.http[].retries.retryOn",
        "`retriable-headers` and `http3-post-connect-failure` never apply and are reported",
    ),
    (
        Kind::DestinationRule,
        "spec.trafficPolicy.tls.mode",
        "`SIMPLE` and `MUTUAL` (TLS to servers outside the mesh) are refused",
    ),
    (
        Kind::DestinationRule,
        "spec.trafficPolicy.tls.subjectAltNames",
        "SPIFFE names of workloads; connections to any other are refused",
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

/// What a field of which [`effect`] is [`Effect::Partly`] does.
#[must_use]
pub fn partly_words(kind: Kind, path: &str) -> Option<&'static str> {
    let of = |(of, pattern, _): &&(Kind, &str, &str)| *of == kind && *pattern == path;
    PARTLY.iter().find(of).map(|(_, _, words)| *words)
}

/// What becomes of a field of a kind, by its path in the notation of this module (`spec.http[].timeout`);
/// an empty path asks for the kind as a whole.
#[must_use]
pub fn effect(kind: Kind, path: &str) -> Effect {
    let within = |pattern: &str, path: &str| {
        pattern.is_empty()
            || path
                .strip_prefix(pattern)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
    };
    let of_kind = |of: Kind, pattern: &str| of == kind && within(pattern, path);
    let of_policy = |fields: &[&str]| {
        kind == Kind::DestinationRule
            && TRAFFIC_POLICIES
                .iter()
                .filter_map(|policy| path.strip_prefix(policy)?.strip_prefix('.'))
                .any(|rest| fields.iter().any(|field| within(field, rest)))
    };
    if FIELDS.iter().any(|(of, pattern)| of_kind(*of, pattern)) || of_policy(TRAFFIC_POLICY) {
        Effect::NotEnforced
    } else if REFUSED.iter().any(|(of, pattern, _)| of_kind(*of, pattern))
        || of_policy(REFUSED_OF_POLICY)
    {
        Effect::Refused
    } else if PARTLY.iter().any(|(of, pattern, _)| of_kind(*of, pattern)) {
        Effect::Partly
    } else {
        Effect::Enforced
    }
}

/// Tells which parts of the object do not do all that they say.
pub(crate) fn tell(kind: Kind, sink: &mut Sink<'_>) {
    let severity = if kind.is_security() { Severity::Error } else { Severity::Warning };
    let node = sink.node();
    let mut say = |effect: Effect, pattern: &str, message: &str, allowed: &str| {
        visit(node, pattern, &mut |path, line| {
            let line = (line != 0).then_some(line);
            sink.put(severity, effect, path, line, message.to_owned(), allowed);
        });
    };
    let (message, allowed) = match severity {
        Severity::Warning => (NOT_ENFORCED, ""),
        Severity::Error => (NOT_ENFORCEABLE, LEAVE_IT_OUT),
    };
    for (_, pattern) in FIELDS.iter().filter(|(of, pattern)| *of == kind && !pattern.is_empty()) {
        say(Effect::NotEnforced, pattern, message, allowed);
    }
    // A rule that has no effect within the mesh refuses nothing there; validation says that it has none.
    let idle = kind == Kind::VirtualService && !is_for_mesh(node);
    for (_, pattern, message) in REFUSED.iter().filter(|(of, ..)| *of == kind && !idle) {
        say(Effect::Refused, pattern, message, "");
    }
    for (_, pattern, message) in PARTLY.iter().filter(|(of, ..)| *of == kind) {
        say(Effect::Partly, pattern, message, "");
    }
    if kind == Kind::DestinationRule {
        for policy in TRAFFIC_POLICIES {
            for field in TRAFFIC_POLICY {
                say(Effect::NotEnforced, &format!("{policy}.{field}"), message, allowed);
            }
        }
    }
    if FIELDS.iter().any(|(of, pattern)| *of == kind && pattern.is_empty()) {
        let message = match severity {
            Severity::Warning => format!("{kind} is {NOT_ENFORCED}"),
            Severity::Error => NOT_ENFORCEABLE.to_owned(),
        };
        let line = (node.line != 0).then_some(node.line);
        sink.put(severity, Effect::NotEnforced, String::new(), line, message, allowed);
    }
}

/// Whether a VirtualService is about traffic within the mesh: `mesh` is among its gateways, where it
/// has some.
fn is_for_mesh(rule: &Node<'_>) -> bool {
    let gateways = rule.get("spec").and_then(|spec| spec.get("gateways"));
    let gateways = gateways.map_or(&[][..], Node::items);
    gateways.is_empty() || gateways.iter().any(|name| name.as_str() == Some(MESH))
}

/// What is said of a part of a policy that has no effect yet.
pub(crate) const NOT_ENFORCEABLE: &str = "cannot be enforced yet";
/// What to do about it.
pub(crate) const LEAVE_IT_OUT: &str = "leave it out; the policy is refused until then";

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
