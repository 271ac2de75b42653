//! Gateway (Istio `ValidateGateway`), and TLS of servers.

use fairlead_api::networking::{Gateway, ServerTlsMode, ServerTlsSettings};

use super::checks;
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn gateway(object: &Gateway, sink: &mut Sink<'_>) {
    let root = Path::Root;
    let at = root.field("spec");
    let servers = at.field("servers");
    for (index, server) in object.spec.servers.iter().enumerate() {
        let at = servers.index(index);
        let port_at = at.field("port");
        match &server.port {
            None => sink.error(&port_at, "is missing", "{number: …, protocol: …, name: …}"),
            Some(port) => {
                checks::port(sink, &port_at.field("number"), port.number);
                for (field, text) in [("protocol", &port.protocol), ("name", &port.name)] {
                    if text.is_empty() {
                        sink.error(&port_at.field(field), "is missing", "a text");
                    }
                }
            }
        }
        let hosts = at.field("hosts");
        if server.hosts.is_empty() {
            sink.error(&hosts, "is missing", "at least one host");
        }
        for (index, text) in server.hosts.iter().enumerate() {
            let name = text.split_once('/').map_or(text.as_str(), |(_, name)| name);
            checks::host(sink, &hosts.index(index), name, false);
        }
        if let Some(tls) = &server.tls {
            server_tls(tls, &at.field("tls"), sink);
        }
    }
}

/// TLS that ends here: one place for the certificates.
pub(super) fn server_tls(value: &ServerTlsSettings, at: &Path<'_>, sink: &mut Sink<'_>) {
    const PLACES: &str = "one of credentialName, credentialNames and tlsCertificates";
    let places = [
        ("credentialName", !value.credential_name.is_empty()),
        ("credentialNames", !value.credential_names.is_empty()),
        ("tlsCertificates", !value.tls_certificates.is_empty()),
    ];
    let mut there = places.iter().filter(|(_, there)| *there).map(|(field, _)| *field);
    if let Some(first) = there.next() {
        for other in there {
            sink.error(&at.field(other), format!("stands beside {first}"), PLACES);
        }
    }
    for (field, count) in [
        ("credentialNames", value.credential_names.len()),
        ("tlsCertificates", value.tls_certificates.len()),
    ] {
        if count > 2 {
            sink.error(&at.field(field), "are too many", "one for RSA and one for ECDSA");
        }
    }
    if value.mode == ServerTlsMode::IstioMutual && !value.credential_name.is_empty() {
        let message = "the mesh has certificates of its own";
        sink.error(&at.field("credentialName"), message, "nothing, with mode ISTIO_MUTUAL");
    }
    if value.min_protocol_version as u8 > value.max_protocol_version as u8
        && value.max_protocol_version as u8 != 0
    {
        let message = "is above maxProtocolVersion";
        sink.error(&at.field("minProtocolVersion"), message, "a version up to that");
    }
}
