//! MeshConfig (Istio `ValidateMeshConfig`).

use fairlead_api::{MeshConfig, PathNormalizationType};
use fairlead_types::TrustDomain;

use super::{checks, http_action};
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn mesh_config(mesh: &MeshConfig, at: &Path<'_>, sink: &mut Sink<'_>) {
    let aliases = at.field("trustDomainAliases");
    trust_domain(&mesh.trust_domain, &at.field("trustDomain"), sink);
    for (index, alias) in mesh.trust_domain_aliases.iter().enumerate() {
        trust_domain(alias, &aliases.index(index), sink);
    }
    if !checks::is_dns_label(&mesh.root_namespace) {
        let message = format!("{:?} is not a namespace", mesh.root_namespace);
        sink.error(&at.field("rootNamespace"), message, checks::LABEL_RULE);
    }
    checks::duration(sink, &at.field("connectTimeout"), Some(mesh.connect_timeout));
    if let Some(retries) = &mesh.default_http_retry_policy {
        http_action::retries(retries, &at.field("defaultHttpRetryPolicy"), sink);
    }
    if mesh.path_normalization.normalization == PathNormalizationType::None {
        let at = at.field("pathNormalization");
        let message = "policies see paths as clients write them, and can be got around";
        sink.warn(
            &at.field("normalization"),
            message,
            "BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES",
        );
    }
}

fn trust_domain(text: &str, at: &Path<'_>, sink: &mut Sink<'_>) {
    if text.parse::<TrustDomain>().is_err() {
        let message = format!("{text:?} is not a trust domain");
        sink.error(at, message, "lower-case letters, digits, '.', '-', '_'");
    }
}
