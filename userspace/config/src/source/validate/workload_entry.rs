//! WorkloadEntry, also as an endpoint of a ServiceEntry and as the template of a WorkloadGroup (Istio
//! `validateWorkloadEntry`).

use fairlead_api::networking::{LabelSelector, WorkloadEntry, WorkloadEntrySpec};

use super::checks;
use crate::source::path::Path;
use crate::source::sink::Sink;

/// What an address of a Unix socket begins with.
const UNIX: &str = "unix://";

pub(in super::super) fn workload_entry(object: &WorkloadEntry, sink: &mut Sink<'_>) {
    let root = Path::Root;
    entry(&object.spec, true, &root.field("spec"), sink);
}

/// One entry; a template has no address as a rule.
pub(super) fn entry(
    value: &WorkloadEntrySpec,
    address_needed: bool,
    at: &Path<'_>,
    sink: &mut Sink<'_>,
) {
    let address = at.field("address");
    if address_needed && value.address.is_empty() && value.network.is_empty() {
        sink.error(&address, "is missing", "an address, or a network whose gateway leads there");
    }
    if let Some(socket) = value.address.strip_prefix(UNIX) {
        if !socket.starts_with(['/', '@']) || socket.ends_with('/') {
            let message = format!("{:?} is not a socket", value.address);
            sink.error(&address, message, "an absolute path, or an abstract name after '@'");
        }
        if !value.ports.is_empty() {
            sink.error(&at.field("ports"), "a Unix socket has no ports", "nothing");
        }
    }
    let ports = at.field("ports");
    for (name, number) in &value.ports {
        let at = ports.key(name);
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let valid = (1..63).contains(&name.len())
            && name.bytes().all(inner)
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !valid {
            let message = format!("{name:?} is not the name of a port");
            sink.error(&at, message, "letters, digits and '-', at most 62");
        }
        checks::port(sink, &at, *number);
    }
    checks::labels(sink, &at.field("labels"), &value.labels);
}

/// Networking's selector: labels as they are.
pub(super) fn selector(value: Option<&LabelSelector>, at: &Path<'_>, sink: &mut Sink<'_>) {
    let at = at.field("labels");
    for (key, value) in value.into_iter().flat_map(|selector| &selector.labels) {
        if value.contains('*') {
            sink.error(&at.key(key), "wildcards do not work here", "values as they are");
        }
    }
}
