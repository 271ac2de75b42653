//! Istio `security/v1.AuthorizationPolicy`.

use serde::Deserialize;

use crate::{Object, PolicyTargetReference, WorkloadSelector};

/// Access control of workloads.
pub type AuthorizationPolicy = Object<AuthorizationPolicySpec>;

/// `spec` of an [`AuthorizationPolicy`]. An empty one denies everything in its scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::exclusive("selector targetRef targetRefs", "only one of selector and targetRefs can be set"), transform = crate::schema::rule(
        "(has(self.action) && self.action == 'CUSTOM') == has(self.provider)",
        "a provider belongs to the action CUSTOM, which needs one"
    ), transform = crate::schema::rule(
        "!has(self.action) || self.action != 'DENY' || (has(self.rules) && self.rules.size() > 0)",
        "DENY without rules never denies"
    )))]
pub struct AuthorizationPolicySpec {
    /// The workloads of the policy's namespace (of all namespaces, in the root namespace) that
    /// it applies to; absent means all of them.
    pub selector: Option<WorkloadSelector>,
    /// Deprecated singular form of `targetRefs`.
    pub target_ref: Option<PolicyTargetReference>,
    /// What the policy attaches to, in place of a selector.
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// Alternatives: the policy matches if one of them does. With none it never matches, which
    /// for ALLOW means that everything is denied.
    #[cfg_attr(feature = "schema", schemars(length(max = 512)))]
    pub rules: Vec<Rule>,
    /// What a match means; ALLOW if unset.
    pub action: AuthorizationAction,
    /// The external authorizer of CUSTOM.
    pub provider: Option<ExtensionProviderRef>,
}

/// `AuthorizationPolicy.Action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProviderRef {
    /// Name of the provider in MeshConfig.
    pub name: String,
}

/// `Rule`: matches when one of `from`, one of `to` and all of `when` match; an absent part
/// matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Who asks; anyone if absent.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 512)))]
    pub from: Vec<From>,
    /// What is asked; anything if absent.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub to: Vec<To>,
    /// Further conditions, all of which hold.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub when: Vec<Condition>,
}

/// `Rule.From`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("source")))]
pub struct From {
    /// The source.
    pub source: Option<Source>,
}

/// `Source`: fields are ANDed, values within a field ORed; `not…` fields negate. Values match
/// exactly, or by `prefix*`, `*suffix`, or `*` (present).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
        "!(has(self.serviceAccounts) || has(self.notServiceAccounts)) || !(has(self.principals) || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces))",
        "serviceAccounts cannot stand beside principals or namespaces"
    ), transform = crate::schema::min_properties(1)))]
pub struct Source {
    /// Peer identities `<trust domain>/ns/<namespace>/sa/<service account>`; needs mTLS.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub principals: Vec<String>,
    /// Negation of `principals`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_principals: Vec<String>,
    /// `<iss>/<sub>` of a validated JWT.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub request_principals: Vec<String>,
    /// Negation of `requestPrincipals`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_request_principals: Vec<String>,
    /// Namespaces of the peer identity; needs mTLS.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub namespaces: Vec<String>,
    /// Negation of `namespaces`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_namespaces: Vec<String>,
    /// `<namespace>/<service account>` of the peer, or the account alone in the policy's
    /// namespace; needs mTLS.
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1, max = 16), inner(length(min = 1, max = 320)))
    )]
    pub service_accounts: Vec<String>,
    /// Negation of `serviceAccounts`.
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1, max = 16), inner(length(min = 1, max = 320)))
    )]
    pub not_service_accounts: Vec<String>,
    /// Trust domains of the peer identity; needs mTLS.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub trust_domains: Vec<String>,
    /// Negation of `trustDomains`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_trust_domains: Vec<String>,
    /// Source address of the packet: address or CIDR.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub ip_blocks: Vec<String>,
    /// Negation of `ipBlocks`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_ip_blocks: Vec<String>,
    /// Original client address by `X-Forwarded-For` or PROXY protocol.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub remote_ip_blocks: Vec<String>,
    /// Negation of `remoteIpBlocks`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_remote_ip_blocks: Vec<String>,
}

/// `Rule.To`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("operation")))]
pub struct To {
    /// The operation.
    pub operation: Option<Operation>,
}

/// `Operation`: fields are ANDed, values within a field ORed; all but ports are of HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::min_properties(1)))]
pub struct Operation {
    /// Values of the `Host`/`:authority` header, case-insensitive.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub hosts: Vec<String>,
    /// Negation of `hosts`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_hosts: Vec<String>,
    /// Destination ports of the workload, as decimal text.
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1), inner(regex(pattern = "^[0-9]{1,5}$")))
    )]
    pub ports: Vec<String>,
    /// Negation of `ports`.
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1), inner(regex(pattern = "^[0-9]{1,5}$")))
    )]
    pub not_ports: Vec<String>,
    /// HTTP methods; `POST` for gRPC.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub methods: Vec<String>,
    /// Negation of `methods`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_methods: Vec<String>,
    /// Normalized paths, without query; also templates with `{*}` and `{**}`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub paths: Vec<String>,
    /// Negation of `paths`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), inner(length(min = 1))))]
    pub not_paths: Vec<String>,
}

/// `Condition`: an attribute and the values it may (not) have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("key")))]
pub struct Condition {
    /// Name of the attribute, such as `request.headers[x-token]` or `source.ip`.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub key: String,
    /// Values of which one must match.
    #[cfg_attr(feature = "schema", schemars(inner(length(min = 1))))]
    pub values: Vec<String>,
    /// Values of which none may match.
    #[cfg_attr(feature = "schema", schemars(inner(length(min = 1))))]
    pub not_values: Vec<String>,
}
