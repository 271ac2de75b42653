//! MeshConfig within its ConfigMap, or in a file of its own.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::MeshConfig;
use fairlead_api::core::ConfigMap;

use super::de;
use super::de::Unknown;
use super::document::{Parsed, tell_unknown};
use super::path::Path;
use super::problem::{Effect, Problem, Severity};
use super::sink::Sink;
use super::suggest::suggest;
use super::tree::Node;
use super::{unenforced, validate, yaml};

/// Name of the ConfigMap.
pub const MESH_CONFIG_MAP: &str = "istio";
/// Key of the text in it.
pub const MESH_KEY: &str = "mesh";

/// The mesh's settings in a ConfigMap that the [`super::Store`] holds; `None` if it has none. A
/// store holds only ConfigMaps whose settings are valid.
#[must_use]
pub fn mesh_config(config_map: &ConfigMap) -> Option<MeshConfig> {
    if config_map.metadata.name != MESH_CONFIG_MAP {
        return None;
    }
    let text = config_map.data.get(MESH_KEY)?;
    match yaml::Documents::new(text).next() {
        None => Some(MeshConfig::default()),
        Some(node) => de::from_node(&node.ok()?, &Path::Root, false, &RefCell::default()).ok(),
    }
}

/// Reads MeshConfig from the text of a file of its own.
///
/// # Errors
/// All that is wrong, if something is wrong enough to refuse it; warnings come with the result.
pub fn mesh_config_from_file(
    file: &Arc<PathBuf>,
    text: &str,
) -> Result<(MeshConfig, Vec<Problem>), Vec<Problem>> {
    let node = match yaml::Documents::new(text).next() {
        None => return Ok((MeshConfig::default(), Vec::new())),
        Some(Ok(node)) => node,
        Some(Err(error)) => {
            let problem = Problem {
                document: 1,
                line: (error.line != 0).then_some(error.line),
                ..Problem::of_file(file, error.message, error.allowed)
            };
            return Err(Parsed::unreadable(problem).problems);
        }
    };
    let mut sink = Sink::new(file, 1, &node);
    let mesh = read(&node, &Path::Root, &mut sink, 0);
    let failed = sink.has_errors();
    let problems = sink.finish();
    match mesh {
        Some(mesh) if !failed => Ok((mesh, problems)),
        _ => Err(problems),
    }
}

/// Checks the settings in a ConfigMap named `istio`.
pub(super) fn check(config_map: &ConfigMap, sink: &mut Sink<'_>) {
    if config_map.metadata.name != MESH_CONFIG_MAP {
        return;
    }
    let Some(text) = config_map.data.get(MESH_KEY) else { return };
    let (root, data) = (Path::Root, Path::Root.field("data"));
    debug_assert!(matches!(root, Path::Root));
    let at = data.key(MESH_KEY);
    // The line of a block text is the first one below its indicator.
    let above = sink.node().line_of(&at).unwrap_or(0).saturating_sub(1);
    match yaml::Documents::new(text).next() {
        None => {}
        Some(Ok(node)) => {
            read(&node, &at, sink, above);
        }
        Some(Err(error)) => {
            let line = (error.line != 0 && above != 0).then_some(above + error.line);
            let allowed = error.allowed.unwrap_or_default();
            sink.add(Severity::Error, at.to_string(), line, error.message, &allowed);
        }
    }
}

/// Settings that security depends on: one that is misspelt is not in force, and nobody notices.
const OF_SECURITY: &[&str] = &[
    "caCertificates",
    "discoverySelectors",
    "enableAutoMtls",
    "inboundTrafficPolicy",
    "meshMTLS",
    "outboundTrafficPolicy",
    "pathNormalization",
    "rootNamespace",
    "tlsDefaults",
    "trustDomain",
    "trustDomainAliases",
    "verifyCertificateAtClient",
];

/// Fields of Istio's MeshConfig that our own does not have.
const OF_ISTIO: &[&str] = &[
    "ca",
    "caCertificates",
    "certificates",
    "defaultProviders",
    "disableEnvoyListenerLog",
    "discoverySelectors",
    "dnsRefreshRate",
    "enableEnvoyAccessLogService",
    "enablePrometheusMerge",
    "hboneIdleTimeout",
    "inboundClusterStatName",
    "inboundTrafficPolicy",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "meshMTLS.cipherSuites",
    "meshMTLS.ecdhCurves",
    "mixerCheckServer",
    "mixerReportServer",
    "outboundClusterStatName",
    "outboundTrafficPolicy.egressProxy",
    "policyCheckFailOpen",
    "proxyHttpPort",
    "proxyInboundListenPort",
    "proxyListenPort",
    "sdsUdsPath",
    "serviceScopeConfigs",
    "serviceSettings",
    "thriftConfig",
    "tlsDefaults",
    "verifyCertificateAtClient",
];

/// Tells which settings are not known. As istiod does, one that this version does not know is no
/// reason to ignore the others, unless it is a slip of one that security depends on.
fn tell_unknown_settings(unknown: Vec<Unknown>, at: &Path<'_>, sink: &mut Sink<'_>) {
    let prefix = match at {
        Path::Root => String::new(),
        at => format!("{at}."),
    };
    for mut field in unknown {
        let path = field.path.strip_prefix(&prefix).unwrap_or(&field.path);
        if OF_ISTIO.contains(&path) {
            let message = unenforced::NOT_ENFORCED.to_owned();
            let line = (field.line != 0).then_some(field.line);
            sink.put(Severity::Warning, Effect::NotEnforced, field.path, line, message, "");
            continue;
        }
        let severity = match path.split_once(['.', '[']) {
            Some((setting, _)) if OF_SECURITY.contains(&setting) => Severity::Error,
            Some(_) => Severity::Warning,
            None => match suggest(path, OF_SECURITY) {
                Some(meant) => {
                    field.suggestion = Some(meant);
                    Severity::Error
                }
                None => Severity::Warning,
            },
        };
        tell_unknown(vec![field], severity, sink);
    }
}

fn read(node: &Node<'_>, at: &Path<'_>, sink: &mut Sink<'_>, above: u32) -> Option<MeshConfig> {
    let unknown = RefCell::default();
    let result = de::from_node::<MeshConfig>(node, at, true, &unknown);
    let mut unknown = unknown.into_inner();
    for field in &mut unknown {
        field.line += above;
    }
    tell_unknown_settings(unknown, at, sink);
    let mesh = match result {
        Ok(mesh) => mesh,
        Err(mismatch) => {
            let parts = mismatch.into_parts();
            let (field, line) = parts.place.unwrap_or_default();
            let line = (line != 0).then_some(line + above);
            let allowed = parts.allowed.unwrap_or_default();
            sink.add(Severity::Error, field, line, parts.message, &allowed);
            return None;
        }
    };
    let of = |effect, message, patterns: &'static [&'static str]| {
        patterns.iter().map(move |pattern| (effect, message, *pattern))
    };
    let none = of(Effect::NotEnforced, unenforced::NOT_ENFORCED, unenforced::MESH_FIELDS);
    let some = of(Effect::Partly, unenforced::MESH_EXPORTS, unenforced::MESH_PARTLY);
    for (effect, message, pattern) in none.chain(some) {
        unenforced::visit(node, pattern, &mut |path, line| {
            let field = match at {
                Path::Root => path,
                prefix => format!("{prefix}.{path}"),
            };
            let line = (line != 0).then_some(line + above);
            sink.put(Severity::Warning, effect, field, line, message.to_owned(), "");
        });
    }
    validate::mesh_config(&mesh, at, sink);
    Some(mesh)
}
