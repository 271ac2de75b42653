//! ServiceEntry (Istio `ValidateServiceEntry`), the part that holds for every resolution.

use std::collections::BTreeSet;

use fairlead_api::networking::{Resolution, ServiceEntry};

use super::checks;
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
    let mut names = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let at = ports.index(index);
        checks::port(sink, &at.field("number"), port.number);
        if port.name.is_empty() || !names.insert(&port.name) {
            let message = format!("{:?} does not tell the port from others", port.name);
            sink.error(&at.field("name"), message, "a name of its own for each port");
        }
    }
    if spec.resolution == Resolution::Static {
        let endpoints = at.field("endpoints");
        for (index, endpoint) in spec.endpoints.iter().enumerate() {
            let at = endpoints.index(index);
            if !endpoint.address.starts_with("unix://") {
                checks::ip(sink, &at.field("address"), &endpoint.address);
            }
        }
    }
    checks::export_to(sink, &at.field("exportTo"), &spec.export_to, &object.metadata.namespace);
}
