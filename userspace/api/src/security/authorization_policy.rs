//! Istio `security/v1.AuthorizationPolicy`.

use serde::Deserialize;

use crate::{Object, PolicyTargetReference, WorkloadSelector};

/// Access control of workloads.
pub type AuthorizationPolicy = Object<AuthorizationPolicySpec>;

/// `spec` of an [`AuthorizationPolicy`]. An empty one denies everything in its scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    /// The workloads of the policy's namespace (of all namespaces, in the root namespace) that
    /// it applies to; absent means all of them.
    pub selector: Option<WorkloadSelector>,
    /// Deprecated singular form of `targetRefs`.
    pub target_ref: Option<PolicyTargetReference>,
    /// What the policy attaches to, in place of a selector.
    pub target_refs: Vec<PolicyTargetReference>,
    /// Alternatives: the policy matches if one of them does. With none it never matches, which
    /// for ALLOW means that everything is denied.
    pub rules: Vec<Rule>,
    /// What a match means; ALLOW if unset.
    pub action: AuthorizationAction,
    /// The external authorizer of CUSTOM.
    pub provider: Option<ExtensionProviderRef>,
}

/// `AuthorizationPolicy.Action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthorizationAction {
    /// A match allows; where ALLOW policies exist and none matches, the request is denied.
    #[default]
    Allow,
    /// A match denies, whatever allows.
    Deny,
    /// A match is recorded; decides nothing.
    Audit,
    /// A match asks the provider.
    Custom,
}

/// `AuthorizationPolicy.ExtensionProvider`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProviderRef {
    /// Name of the provider in MeshConfig.
    pub name: String,
}

/// `Rule`: matches when one of `from`, one of `to` and all of `when` match; an absent part
/// matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Who asks.
    pub from: Vec<From>,
    /// What is asked.
    pub to: Vec<To>,
    /// Further conditions.
    pub when: Vec<Condition>,
}

/// `Rule.From`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct From {
    /// The source.
    pub source: Option<Source>,
}

/// `Source`: fields are ANDed, values within a field ORed; `not…` fields negate. Values match
/// exactly, or by `prefix*`, `*suffix`, or `*` (present).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Peer identities `<trust domain>/ns/<namespace>/sa/<service account>`; needs mTLS.
    pub principals: Vec<String>,
    /// Negation of `principals`.
    pub not_principals: Vec<String>,
    /// `<iss>/<sub>` of a validated JWT.
    pub request_principals: Vec<String>,
    /// Negation of `requestPrincipals`.
    pub not_request_principals: Vec<String>,
    /// Namespaces of the peer identity; needs mTLS.
    pub namespaces: Vec<String>,
    /// Negation of `namespaces`.
    pub not_namespaces: Vec<String>,
    /// `<namespace>/<service account>` of the peer, or the account alone in the policy's
    /// namespace; needs mTLS.
    pub service_accounts: Vec<String>,
    /// Negation of `serviceAccounts`.
    pub not_service_accounts: Vec<String>,
    /// Trust domains of the peer identity; needs mTLS.
    pub trust_domains: Vec<String>,
    /// Negation of `trustDomains`.
    pub not_trust_domains: Vec<String>,
    /// Source address of the packet: address or CIDR.
    pub ip_blocks: Vec<String>,
    /// Negation of `ipBlocks`.
    pub not_ip_blocks: Vec<String>,
    /// Original client address by `X-Forwarded-For` or PROXY protocol.
    pub remote_ip_blocks: Vec<String>,
    /// Negation of `remoteIpBlocks`.
    pub not_remote_ip_blocks: Vec<String>,
}

/// `Rule.To`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct To {
    /// The operation.
    pub operation: Option<Operation>,
}

/// `Operation`: fields are ANDed, values within a field ORed; all but ports are of HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Values of the `Host`/`:authority` header, case-insensitive.
    pub hosts: Vec<String>,
    /// Negation of `hosts`.
    pub not_hosts: Vec<String>,
    /// Destination ports of the workload, as decimal text.
    pub ports: Vec<String>,
    /// Negation of `ports`.
    pub not_ports: Vec<String>,
    /// HTTP methods; `POST` for gRPC.
    pub methods: Vec<String>,
    /// Negation of `methods`.
    pub not_methods: Vec<String>,
    /// Normalized paths, without query; also templates with `{*}` and `{**}`.
    pub paths: Vec<String>,
    /// Negation of `paths`.
    pub not_paths: Vec<String>,
}

/// `Condition`: an attribute and the values it may (not) have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Name of the attribute, such as `request.headers[x-token]` or `source.ip`.
    pub key: String,
    /// Values of which one must match.
    pub values: Vec<String>,
    /// Values of which none may match.
    pub not_values: Vec<String>,
}
