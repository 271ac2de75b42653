//! Service (Kubernetes `ValidateService`, what matters to a mesh).

use std::collections::BTreeSet;

use fairlead_api::IntOrString;
use fairlead_api::core::{Service, ServiceType};

use super::checks;
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn service(object: &Service, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    let virtual_ip = |text: &str, at: &Path<'_>, sink: &mut Sink<'_>| {
        if text != "None" {
            checks::ip(sink, at, text);
        }
    };
    if !spec.cluster_ip.is_empty() {
        virtual_ip(&spec.cluster_ip, &at.field("clusterIP"), sink);
    }
    let all = at.field("clusterIPs");
    for (index, text) in spec.cluster_ips.iter().enumerate() {
        virtual_ip(text, &all.index(index), sink);
    }
    let external = at.field("externalIPs");
    for (index, text) in spec.external_ips.iter().enumerate() {
        checks::ip(sink, &external.index(index), text);
    }
    checks::labels(sink, &at.field("selector"), &spec.selector);
    if spec.kind == ServiceType::ExternalName {
        if !checks::is_fqdn(&spec.external_name) {
            let message = format!("{:?} is not a domain name", spec.external_name);
            sink.error(&at.field("externalName"), message, "a domain name");
        }
        return;
    }
    let ports = at.field("ports");
    if spec.ports.is_empty() && !object.is_headless() {
        sink.error(&ports, "is missing", "at least one port, or clusterIP: None");
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in spec.ports.iter().enumerate() {
        let at = ports.index(index);
        checks::port(sink, &at.field("port"), u32::from(port.port));
        if let Some(IntOrString::Int(target)) = port.target_port {
            checks::port(sink, &at.field("targetPort"), u32::from(target));
        }
        if spec.ports.len() > 1 && port.name.is_empty() {
            sink.error(&at.field("name"), "is missing", "a name, as there are several ports");
        }
        if !names.insert(&port.name) && !port.name.is_empty() {
            let message = format!("{:?} is there twice", port.name);
            sink.error(&at.field("name"), message, "each name once");
        }
        if !numbers.insert((port.port, format!("{:?}", port.protocol))) {
            sink.error(
                &at.field("port"),
                format!("{} is there twice", port.port),
                "each port once",
            );
        }
    }
}
