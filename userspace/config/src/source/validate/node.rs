//! Node.

use fairlead_api::core::Node;
use ipnet::IpNet;

use super::checks;
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn node(object: &Node, sink: &mut Sink<'_>) {
    let root = Path::Root;
    let spec = root.field("spec");
    let ranges = spec.field("podCIDRs");
    let range = |text: &str, at: &Path<'_>, sink: &mut Sink<'_>| {
        if text.parse::<IpNet>().is_err() {
            sink.error(at, format!("{text:?} is not a range"), "a CIDR such as 10.1.0.0/24");
        }
    };
    if !object.spec.pod_cidr.is_empty() {
        range(&object.spec.pod_cidr, &spec.field("podCIDR"), sink);
    }
    for (index, text) in object.spec.pod_cidrs.iter().enumerate() {
        range(text, &ranges.index(index), sink);
    }
    let status = root.field("status");
    let addresses = status.field("addresses");
    for (index, address) in object.status.addresses.iter().enumerate() {
        if matches!(address.kind.as_str(), "InternalIP" | "ExternalIP") {
            let at = addresses.index(index);
            checks::ip(sink, &at.field("address"), &address.address);
        }
    }
}
