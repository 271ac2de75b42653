//! Pod.

use std::collections::BTreeSet;

use fairlead_api::core::Pod;

use super::checks;
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn pod(object: &Pod, sink: &mut Sink<'_>) {
    super::enrolment_words(&object.metadata, true, sink);
    let root = Path::Root;
    let (spec, status) = (root.field("spec"), root.field("status"));
    if !checks::is_dns_name(object.service_account()) {
        let message = format!("{:?} is not a name", object.service_account());
        sink.error(&spec.field("serviceAccountName"), message, "the name of a ServiceAccount");
    }
    if !object.status.pod_ip.is_empty() {
        checks::ip(sink, &status.field("podIP"), &object.status.pod_ip);
    }
    let ips = status.field("podIPs");
    for (index, entry) in object.status.pod_ips.iter().enumerate() {
        let at = ips.index(index);
        checks::ip(sink, &at.field("ip"), &entry.ip);
    }
    let containers = spec.field("containers");
    let mut names = BTreeSet::new();
    for (index, container) in object.spec.containers.iter().enumerate() {
        let at = containers.index(index);
        let ports = at.field("ports");
        for (index, port) in container.ports.iter().enumerate() {
            let at = ports.index(index);
            checks::port(sink, &at.field("containerPort"), u32::from(port.container_port));
            if !port.name.is_empty() && !names.insert(&port.name) {
                let message = format!("the port name {:?} is there twice", port.name);
                sink.warn(&at.field("name"), message, "each name once in a pod");
            }
        }
    }
}
