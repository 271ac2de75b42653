//! EndpointSlice.

use fairlead_api::core::{AddressType, EndpointSlice};

use super::checks;
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn endpoint_slice(object: &EndpointSlice, sink: &mut Sink<'_>) {
    let root = Path::Root;
    if object.service_name().is_none() {
        let metadata = root.field("metadata");
        let message = "names no service; its endpoints belong to none";
        let allowed = "the label kubernetes.io/service-name";
        sink.warn(&metadata.field("labels"), message, allowed);
    }
    let endpoints = root.field("endpoints");
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let at = endpoints.index(index);
        let addresses = at.field("addresses");
        if endpoint.addresses.is_empty() {
            sink.error(&addresses, "is missing", "at least one address");
        }
        for (index, address) in endpoint.addresses.enumerate() {
            let (valid, allowed) = match (object.address_type, address.ip()) {
                (AddressType::IPv4, ip) => (ip.is_some_and(|ip| ip.is_ipv4()), "an IPv4 address"),
                (AddressType::IPv6, ip) => (ip.is_some_and(|ip| ip.is_ipv6()), "an IPv6 address"),
                (AddressType::Fqdn, _) => (checks::is_fqdn(&address.to_string()), "a domain name"),
            };
            if !valid {
                let text = address.to_string();
                let message = format!("{text:?} is not of the addressType");
                sink.error(&addresses.index(index), message, allowed);
            }
        }
    }
    let ports = root.field("ports");
    for (index, port) in object.ports.iter().enumerate() {
        if let Some(number) = port.port {
            let at = ports.index(index);
            checks::port(sink, &at.field("port"), u32::from(number));
        }
    }
}
