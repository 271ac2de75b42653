//! EnvoyFilter (Istio `ValidateEnvoyFilter`), the part that does not need Envoy's own types.

use fairlead_api::networking::{EnvoyApplyTo, EnvoyFilter, EnvoyPatchContext};

use super::selector;
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn envoy_filter(object: &EnvoyFilter, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    selector::attachment(None, None, &spec.target_refs, &at, sink);
    if spec.workload_selector.is_some() && !spec.target_refs.is_empty() {
        let message = "says in several ways what it attaches to";
        sink.error(&at, message, "one of workloadSelector and targetRefs");
    }
    let patches = at.field("configPatches");
    for (index, one) in spec.config_patches.iter().enumerate() {
        let at = patches.index(index);
        if one.apply_to == EnvoyApplyTo::Invalid {
            sink.error(&at.field("applyTo"), "is missing", "what is changed, such as HTTP_FILTER");
        }
        if one.patch.is_none() {
            sink.error(&at.field("patch"), "is missing", "every entry needs one");
        }
        let Some(matches) = &one.matches else { continue };
        let at = at.field("match");
        let kinds = [
            matches.listener.is_some(),
            matches.route_configuration.is_some(),
            matches.cluster.is_some(),
            matches.waypoint.is_some(),
        ];
        if kinds.iter().filter(|set| **set).count() > 1 {
            let message = "matches several kinds of objects";
            sink.error(&at, message, "one of listener, routeConfiguration, cluster, waypoint");
        }
        let waypoint = matches.context == EnvoyPatchContext::Waypoint;
        if waypoint != matches.waypoint.is_some() {
            let message = "belongs to the context WAYPOINT, and that to it";
            sink.error(&at.field("waypoint"), message, "both or none of them");
        }
    }
}
