//! Istio `security/v1.RequestAuthentication`.

use serde::Deserialize;

use crate::{Object, PolicyTargetReference, ProtoDuration, WorkloadSelector};

/// Which JWTs a workload accepts.
pub type RequestAuthentication = Object<RequestAuthenticationSpec>;

/// `spec` of a [`RequestAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::exclusive("selector targetRef targetRefs", "only one of selector and targetRefs can be set")))]
pub struct RequestAuthenticationSpec {
    /// The workloads it applies to.
    pub selector: Option<WorkloadSelector>,
    /// Deprecated singular form of `targetRefs`.
    pub target_ref: Option<PolicyTargetReference>,
    /// What it attaches to, in place of a selector.
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub target_refs: Vec<PolicyTargetReference>,
    /// The issuers whose tokens are accepted.
    #[cfg_attr(feature = "schema", schemars(length(max = 4096)))]
    pub jwt_rules: Vec<JwtRule>,
}

/// `JWTRule`: one issuer, its keys and where its tokens are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::rule(
    "has(self.issuer) || has(self.jwksUri) || has(self.jwks_uri)",
    "an issuer or jwksUri is needed"
), transform = crate::schema::alias("jwksUri", "jwks_uri"), transform = crate::schema::exclusive("jwksUri jwks_uri jwks", "only one of jwksUri and jwks can be set")))]
pub struct JwtRule {
    /// The issuer: `iss` of its tokens; any if only `jwksUri` is set.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub issuer: String,
    /// Accepted `aud` claims; any if empty.
    #[cfg_attr(feature = "schema", schemars(inner(length(min = 1))))]
    pub audiences: Vec<String>,
    /// Where the key set is fetched; OpenID discovery from the issuer if neither this nor
    /// `jwks` is set.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2048), transform = crate::schema::rule(
        "url(self).getScheme() in ['http', 'https']",
        "an http or https URL is needed"
    )))]
    pub jwks_uri: String,
    /// The key set itself.
    pub jwks: String,
    /// Headers that carry the token.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that carry the token.
    #[cfg_attr(feature = "schema", schemars(inner(length(min = 1))))]
    pub from_params: Vec<String>,
    /// Cookies that carry the token.
    #[cfg_attr(feature = "schema", schemars(inner(length(min = 1))))]
    pub from_cookies: Vec<String>,
    /// Header that gets the verified payload, base64url.
    pub output_payload_to_header: String,
    /// Claims that are copied to headers.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// Whether the token is kept on the request.
    pub forward_original_token: bool,
    /// Limit of a key set fetch; 5 s by default.
    pub timeout: Option<ProtoDuration>,
    /// Claims whose value is a space-separated list.
    #[cfg_attr(feature = "schema", schemars(length(max = 64), inner(length(min = 1))))]
    pub space_delimited_claims: Vec<String>,
}

/// `JWTHeader`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("name")))]
pub struct JwtHeader {
    /// Name of the header.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub name: String,
    /// Text before the token, such as `Bearer `.
    pub prefix: String,
}

/// `ClaimToHeader`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("header claim")))]
pub struct ClaimToHeader {
    /// Name of the header.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), regex(pattern = "^[-_A-Za-z0-9]+$")))]
    pub header: String,
    /// Claim; `.` reaches into nested claims.
    #[cfg_attr(feature = "schema", schemars(length(min = 1)))]
    pub claim: String,
}
