//! Pods to workloads: names as Istio's telemetry prints them, identity, addresses, enrolment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::core::{Pod, PodPhase};
use fairlead_api::{Kind, ObjectKey, StringMap};
use fairlead_types::{SpiffeId, WorkloadId};
use ipnet::IpNet;

use super::problem::Report;
use crate::enrolment::{Enrolment, NETNS_ANNOTATION, TRANSPORT_ANNOTATION};
use crate::model::{LocalPod, MeshSettings, PeerWire, Workload};

/// Annotation of Istio's ambient mode.
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";

/// What a pod is compiled with.
pub(super) struct PodContext<'a> {
    pub(super) node: &'a str,
    pub(super) mesh: &'a MeshSettings,
    pub(super) namespace_labels: Option<&'a StringMap>,
}

/// Whether the pod has come to its end: it has no address any more, whatever its status says.
pub(super) fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.phase, PodPhase::Succeeded | PodPhase::Failed)
}

/// The workload of a pod; `None`, with the reason, when it cannot have an identity.
pub(super) fn compile(
    pod: &Pod,
    context: &PodContext<'_>,
    report: &mut Report<'_>,
) -> Option<Workload> {
    let metadata = &pod.metadata;
    let identity = match SpiffeId::new(
        context.mesh.trust_domain.clone(),
        &metadata.namespace,
        pod.service_account(),
    ) {
        Ok(identity) => identity,
        Err(error) => {
            report.error("spec.serviceAccountName", format!("{error}; the pod is not served"));
            return None;
        }
    };
    let label = |key: &str| metadata.labels.get(key).map(String::as_str).filter(|v| !v.is_empty());
    let first = |keys: &[&str]| keys.iter().find_map(|key| label(key));
    let workload_name = workload_name(pod);
    let enrolment = Enrolment::of(pod, context.namespace_labels);
    let canonical_name =
        first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let canonical_revision =
        first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    let mut ips: Vec<IpAddr> = pod.ips().map(|ip| ip.to_canonical()).collect();
    let mut seen = Vec::with_capacity(ips.len());
    ips.retain(|ip| {
        !seen.contains(ip) && {
            seen.push(*ip);
            true
        }
    });
    Some(Workload {
        id: WorkloadId::new(&metadata.namespace, &metadata.name),
        name: metadata.name.as_str().into(),
        namespace: metadata.namespace.as_str().into(),
        uid: metadata.uid.as_str().into(),
        canonical_name: canonical_name.unwrap_or(&workload_name).into(),
        workload_name: workload_name.into(),
        canonical_revision: canonical_revision.unwrap_or("latest").into(),
        app: label("app").unwrap_or("unknown").into(),
        version: label("version").unwrap_or("unknown").into(),
        labels: Arc::new(metadata.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()),
        identity,
        ips: ips.into(),
        node: pod.spec.node_name.as_str().into(),
        enrolled: enrolment.is_enrolled(),
        wire: wire(pod, enrolment, context.node, report),
        exclude_inbound_ports: list(pod, "excludeInboundPorts", "port numbers", report),
        include_inbound_ports: include_inbound(pod, report),
    })
}

/// The name of what made the pod: the controller's, where a ReplicaSet stands for its Deployment
/// and a Job for its CronJob (Istio `GetDeployMetaFromPod`); the pod's own if nothing did.
fn workload_name(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let Some(owner) = metadata.owner_references.iter().find(|owner| owner.controller) else {
        return metadata.name.clone();
    };
    let trimmed = match owner.kind.as_str() {
        "ReplicaSet" => metadata
            .labels
            .get("pod-template-hash")
            .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')),
        "Job" => owner.name.rsplit_once('-').and_then(|(name, time)| {
            // CronJobs name their Jobs by the minute of the schedule.
            let scheduled =
                (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit());
            scheduled.then_some(name)
        }),
        _ => None,
    };
    trimmed.filter(|name| !name.is_empty()).unwrap_or(&owner.name).to_owned()
}

/// How other nodes reach the pod. Our own annotation decides. `networking.istio.io/tunnel: http`
/// and `ambient.istio.io/redirection: enabled` are set by Istio on pods that its ztunnel has
/// captured; they count unless the pod is on this node or names its network namespace to us, for
/// then a Fairlead node has it.
fn wire(pod: &Pod, enrolment: Enrolment, node: &str, report: &mut Report<'_>) -> PeerWire {
    let annotations = &pod.metadata.annotations;
    match annotations.get(TRANSPORT_ANNOTATION).map(String::as_str) {
        Some("native") => return PeerWire::Native,
        Some("hbone") => return PeerWire::Hbone,
        Some(other) => report.error(
            format!("metadata.annotations[{TRANSPORT_ANNOTATION}]"),
            format!("{other:?} is no transport: native or hbone; the annotation has no effect"),
        ),
        None => {}
    }
    let is = |map: &StringMap, key: &str, value: &str| map.get(key).is_some_and(|v| v == value);
    let ours = enrolment.is_enrolled()
        && (pod.spec.node_name == node || annotations.contains_key(NETNS_ANNOTATION));
    let captured_by_istio = is(&pod.metadata.labels, "networking.istio.io/tunnel", "http")
        || is(annotations, "ambient.istio.io/redirection", "enabled");
    if ours {
        PeerWire::Native
    } else if captured_by_istio {
        PeerWire::Hbone
    } else if enrolment.is_enrolled() {
        PeerWire::Native
    } else {
        PeerWire::Plain
    }
}

/// What the node wants to know of its own pod.
pub(super) fn local(pod: &Pod, workload: &Arc<Workload>, report: &mut Report<'_>) -> LocalPod {
    let netns = pod.metadata.annotations.get(NETNS_ANNOTATION).filter(|path| !path.is_empty());
    LocalPod {
        workload: Arc::clone(workload),
        netns: netns.map(PathBuf::from),
        exclude_outbound_ports: list(pod, "excludeOutboundPorts", "port numbers", report),
        exclude_outbound_cidrs: list::<Range>(pod, "excludeOutboundIPRanges", "CIDRs", report)
            .iter()
            .map(|range| range.0)
            .collect(),
        include_outbound_cidrs: only::<Range>(pod, "includeOutboundIPRanges", "CIDRs", report)
            .map(|ranges| ranges.iter().map(|range| range.0).collect()),
        include_outbound_ports: list(pod, "includeOutboundPorts", "port numbers", report),
        probe_ports: probe_ports(pod),
    }
}

/// The ports at which the kubelet reaches the pod, each once.
fn probe_ports(pod: &Pod) -> Box<[u16]> {
    let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let ports: BTreeSet<u16> =
        containers.flat_map(fairlead_api::core::Container::kubelet_ports).collect();
    ports.into_iter().collect()
}

/// What of a pod's inbound traffic alone is captured.
fn include_inbound(pod: &Pod, report: &mut Report<'_>) -> Option<Box<[u16]>> {
    match pod.metadata.annotations.get(BYPASS_INBOUND).map(String::as_str) {
        Some("true") => return Some(Box::default()),
        None | Some("false" | "") => {}
        Some(other) => report.error(
            format!("metadata.annotations[{BYPASS_INBOUND}]"),
            format!("{other:?} is not allowed: true or false; inbound traffic is captured"),
        ),
    }
    only(pod, "includeInboundPorts", "port numbers, or *", report)
}

struct Range(IpNet);

impl std::str::FromStr for Range {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        parse_net(text).map(Self).ok_or(())
    }
}

/// A CIDR, or an address that stands for itself.
pub(super) fn parse_net(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// A comma-separated annotation of `traffic.sidecar.istio.io`. An entry that cannot be read
/// excludes nothing: the traffic stays under policy.
fn list<T: std::str::FromStr>(
    pod: &Pod,
    name: &str,
    what: &str,
    report: &mut Report<'_>,
) -> Box<[T]> {
    let key = format!("traffic.sidecar.istio.io/{name}");
    let Some(text) = pod.metadata.annotations.get(&key) else { return Box::default() };
    text.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .filter_map(|entry| {
            let parsed = entry.parse().ok();
            if parsed.is_none() {
                report.error(
                    format!("metadata.annotations[{key}]"),
                    format!(
                        "{entry:?} is not allowed: {what}, separated by commas; it excludes nothing"
                    ),
                );
            }
            parsed
        })
        .collect()
}

/// A comma-separated annotation of what alone is captured; `None`, for all, where it is not given or
/// `*`, and also where an entry cannot be read: then nothing is left out for it.
fn only<T: std::str::FromStr>(
    pod: &Pod,
    name: &str,
    what: &str,
    report: &mut Report<'_>,
) -> Option<Box<[T]>> {
    let key = format!("traffic.sidecar.istio.io/{name}");
    let text = pod.metadata.annotations.get(&key).map(|text| text.trim())?;
    if text == "*" {
        return None;
    }
    let mut all = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match entry.parse() {
            Ok(parsed) => all.push(parsed),
            Err(_) => {
                report.error(
                    format!("metadata.annotations[{key}]"),
                    format!(
                        "{entry:?} is not allowed: {what}, separated by commas; everything is \
                         captured"
                    ),
                );
                return None;
            }
        }
    }
    Some(all.into())
}

/// The key of a pod object.
pub(super) fn key_of(id: &WorkloadId) -> ObjectKey {
    let (namespace, name) = id.as_str().split_once('/').unwrap_or(("", id.as_str()));
    ObjectKey::new(Kind::Pod, namespace, name)
}

#[cfg(test)]
mod tests {
    use fairlead_api::OwnerReference;

    use super::*;

    fn owned(name: &str, kind: &str, owner: &str, hash: Option<&str>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = name.to_owned();
        pod.metadata.owner_references = vec![OwnerReference {
            kind: kind.to_owned(),
            name: owner.to_owned(),
            controller: true,
        }];
        if let Some(hash) = hash {
            pod.metadata.labels.insert("pod-template-hash".to_owned(), hash.to_owned());
        }
        pod
    }

    #[test]
    fn names_of_workloads() {
        for (pod, name) in [
            (owned("a-5d4-x", "ReplicaSet", "a-5d4", Some("5d4")), "a"),
            (owned("a-5d4-x", "ReplicaSet", "a-5d4", None), "a-5d4"),
            (owned("db-0", "StatefulSet", "db", None), "db"),
            (owned("l-x", "DaemonSet", "l", None), "l"),
            (owned("j-x", "Job", "tick-28912345", None), "tick"),
            (owned("j-x", "Job", "import-2024", None), "import-2024"),
            (
                Pod {
                    metadata: fairlead_api::ObjectMeta {
                        name: "p".to_owned(),
                        ..Default::default()
                    },
                    ..Pod::default()
                },
                "p",
            ),
        ] {
            assert_eq!(workload_name(&pod), name);
        }
    }
}
