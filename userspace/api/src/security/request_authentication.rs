//! Istio `security/v1.RequestAuthentication`.

use serde::Deserialize;

use crate::{Object, PolicyTargetReference, ProtoDuration, WorkloadSelector};

/// Which JWTs a workload accepts.
pub type RequestAuthentication = Object<RequestAuthenticationSpec>;

/// `spec` of a [`RequestAuthentication`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestAuthenticationSpec {
    /// The workloads it applies to.
    pub selector: Option<WorkloadSelector>,
    /// Deprecated singular form of `targetRefs`.
    pub target_ref: Option<PolicyTargetReference>,
    /// What it attaches to, in place of a selector.
    pub target_refs: Vec<PolicyTargetReference>,
    /// The issuers.
    pub jwt_rules: Vec<JwtRule>,
}

/// `JWTRule`: one issuer, its keys and where its tokens are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtRule {
    /// The `iss` claim.
    pub issuer: String,
    /// Accepted `aud` claims; any if empty.
    pub audiences: Vec<String>,
    /// Where the key set is fetched; OpenID discovery from the issuer if neither this nor
    /// `jwks` is set.
    pub jwks_uri: String,
    /// The key set itself.
    pub jwks: String,
    /// Headers that carry the token.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that carry the token.
    pub from_params: Vec<String>,
    /// Cookies that carry the token.
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
    pub space_delimited_claims: Vec<String>,
}

/// `JWTHeader`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtHeader {
    /// Header name.
    pub name: String,
    /// Text before the token, such as `Bearer `.
    pub prefix: String,
}

/// `ClaimToHeader`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimToHeader {
    /// Header name.
    pub header: String,
    /// Claim; `.` reaches into nested claims.
    pub claim: String,
}
