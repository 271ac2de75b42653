//! RequestAuthentication (Istio `ValidateRequestAuthentication`).

use fairlead_api::security::{JwtRule, RequestAuthentication};

use super::{checks, selector};
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn request_authentication(
    object: &RequestAuthentication,
    sink: &mut Sink<'_>,
) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    let (single, several) = (spec.target_ref.as_ref(), spec.target_refs.as_slice());
    selector::attachment(spec.selector.as_ref(), single, several, &at, sink);
    let rules = at.field("jwtRules");
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        jwt_rule(rule, &rules.index(index), sink);
    }
}

fn jwt_rule(rule: &JwtRule, at: &Path<'_>, sink: &mut Sink<'_>) {
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        let allowed = "the iss claim of the tokens, or jwksUri";
        sink.error(&at.field("issuer"), "is missing", allowed);
    }
    for (field, list) in [
        ("audiences", &rule.audiences),
        ("fromParams", &rule.from_params),
        ("fromCookies", &rule.from_cookies),
    ] {
        let at = at.field(field);
        for (index, text) in list.iter().enumerate() {
            if text.is_empty() {
                sink.error(&at.index(index), "the value is empty", "a name");
            }
        }
    }
    let url = |text: &str| text.starts_with("https://") || text.starts_with("http://");
    if !rule.jwks_uri.is_empty() && !url(&rule.jwks_uri) {
        let message = format!("{:?} is not a URL", rule.jwks_uri);
        sink.error(&at.field("jwksUri"), message, "an http or https URL");
    }
    if !rule.jwks.is_empty() && serde_json::from_str::<serde_json::Value>(&rule.jwks).is_err() {
        sink.error(&at.field("jwks"), "is not JSON", "a JSON Web Key Set (RFC 7517)");
    }
    let headers = at.field("fromHeaders");
    for (index, header) in rule.from_headers.iter().enumerate() {
        let at = headers.index(index);
        checks::header_name(sink, &at.field("name"), &header.name);
    }
    let claims = at.field("outputClaimToHeaders");
    for (index, one) in rule.output_claim_to_headers.iter().enumerate() {
        let at = claims.index(index);
        checks::header_name(sink, &at.field("header"), &one.header);
        if one.claim.is_empty() {
            sink.error(&at.field("claim"), "is missing", "the name of a claim");
        }
    }
    checks::duration(sink, &at.field("timeout"), rule.timeout);
}
