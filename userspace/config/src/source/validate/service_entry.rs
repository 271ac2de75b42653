//! ServiceEntry (Istio `ValidateServiceEntry`), the part that holds for every resolution.

use std::collections::BTreeSet;

use fairlead_api::networking::{Resolution, ServiceEntry};

use super::{checks, workload_entry};
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn service_entry(object: &ServiceEntry, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    let hosts = at.field("hosts");
    if spec.hosts.is_empty() {
        sink.error(&hosts, "is missing", "at least one host");
    }
    for (index, text) in spec.hosts.iter().enumerate() {
        let at = hosts.index(index);
        if text == "*" {
            sink.error(&at, "'*' is not a host", "a domain name");
        } else {
            checks::host(sink, &at, text, false);
        }
        let wildcard = text.starts_with("*.");
        if wildcard && matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
            sink.error(&at, "a wildcard cannot be resolved", "resolution NONE or STATIC");
        }
    }
    checks::subnets(sink, &at.field("addresses"), &spec.addresses);
    let ports = at.field("ports");
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in spec.ports.iter().enumerate() {
        let at = ports.index(index);
        checks::port(sink, &at.field("number"), port.number);
        if !numbers.insert(port.number) {
            let message = format!("port {} is there twice", port.number);
            sink.error(&at.field("number"), message, "each port once");
        }
        if port.name.is_empty() || !names.insert(&port.name) {
            let message = format!("{:?} does not tell the port from others", port.name);
            sink.error(&at.field("name"), message, "a name of its own for each port");
        }
    }
    let endpoints = at.field("endpoints");
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let at = endpoints.index(index);
        workload_entry::entry(endpoint, true, &at, sink);
        let ip = !endpoint.address.is_empty() && !endpoint.address.starts_with("unix://");
        if spec.resolution == Resolution::Static && ip {
            checks::ip(sink, &at.field("address"), &endpoint.address);
        }
    }
    if spec.resolution == Resolution::None && !spec.endpoints.is_empty() {
        let message = "have no effect with resolution NONE";
        sink.error(&endpoints, message, "another resolution, or no endpoints");
    }
    if spec.resolution == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
        let message = "are too many for resolution DNS_ROUND_ROBIN";
        sink.error(&endpoints, message, "at most one");
    }
    let range = |text: &String| text.contains('/');
    let resolved = !matches!(spec.resolution, Resolution::None | Resolution::Static);
    if resolved && spec.addresses.iter().any(range) {
        let message = "a range of addresses cannot be resolved";
        sink.error(&at.field("addresses"), message, "resolution NONE or STATIC");
    }
    let selector = at.field("workloadSelector");
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        sink.error(&selector, "stands beside endpoints", "one of the two");
    }
    workload_entry::selector(spec.workload_selector.as_ref(), &selector, sink);
    checks::export_to(sink, &at.field("exportTo"), &spec.export_to, &object.metadata.namespace);
}
