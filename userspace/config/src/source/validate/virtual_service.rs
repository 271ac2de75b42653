//! VirtualService as a whole, its TLS and TCP routes (Istio `ValidateVirtualService`).

use std::collections::HashSet;

use fairlead_api::networking::{L4Match, TcpRoute, TlsRoute, VirtualService};

use super::{checks, http_route};
use crate::source::path::Path;
use crate::source::problem::Effect;
use crate::source::sink::Sink;
use crate::source::unenforced::NOT_ENFORCED;

/// A name that means all traffic within the mesh, in `gateways`.
pub(in super::super) const MESH: &str = "mesh";

pub(in super::super) fn virtual_service(object: &VirtualService, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    let delegate = spec.hosts.is_empty();
    let in_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|name| name == MESH);

    if delegate {
        for (field, there) in [
            ("gateways", !spec.gateways.is_empty()),
            ("tls", !spec.tls.is_empty()),
            ("tcp", !spec.tcp.is_empty()),
        ] {
            if there {
                let message = "a VirtualService without hosts is a delegate and cannot have this";
                sink.error(&at.field(field), message, "hosts, or http routes alone");
            }
        }
        if object.spec.http.is_empty() {
            sink.error(&at.field("hosts"), "is missing", "at least one host");
        } else {
            let message = "no hosts: only other VirtualServices could delegate to this one, which is not supported yet";
            sink.warn_of(Effect::NotEnforced, &at.field("hosts"), message, "");
        }
    }
    hosts(&spec.hosts, in_mesh, &at.field("hosts"), sink);
    checks::gateways(sink, &at.field("gateways"), &spec.gateways);
    if !in_mesh && !delegate {
        let message = format!("gateways are {NOT_ENFORCED}: this has no effect");
        let allowed = "mesh among them, or nothing";
        sink.warn_of(Effect::NotEnforced, &at.field("gateways"), message, allowed);
    } else {
        other_gateways(&spec.gateways, &at.field("gateways"), sink);
    }
    checks::export_to(sink, &at.field("exportTo"), &spec.export_to, &object.metadata.namespace);

    if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        sink.error(&at, "there is no route", "at least one of http, tls, tcp");
    }
    let http = at.field("http");
    for (index, route) in spec.http.iter().enumerate() {
        http_route::http_route(route, delegate, &http.index(index), sink);
    }
    http_route::unreachable(&spec.http, &http, sink);
    let tls = at.field("tls");
    for (index, route) in spec.tls.iter().enumerate() {
        tls_route(route, &tls.index(index), sink);
    }
    let tcp = at.field("tcp");
    let mut all = false;
    for (index, route) in spec.tcp.iter().enumerate() {
        let at = tcp.index(index);
        tcp_route(route, &at, sink);
        if all {
            sink.warn(&at, "never used: an earlier route matches everything", "");
        }
        all |= route.matches.is_empty();
    }
}

/// Names other than `mesh`, which mean nothing yet.
pub(super) fn other_gateways(names: &[String], at: &Path<'_>, sink: &mut Sink<'_>) {
    for (index, name) in names.iter().enumerate().filter(|(_, name)| *name != MESH) {
        let message = format!("{NOT_ENFORCED}: it has no effect at the gateway {name:?}");
        sink.warn_of(Effect::Partly, &at.index(index), message, "");
    }
}

fn hosts(hosts: &[String], in_mesh: bool, at: &Path<'_>, sink: &mut Sink<'_>) {
    let mut seen = HashSet::new();
    for (index, text) in hosts.iter().enumerate() {
        let at = at.index(index);
        checks::host(sink, &at, text, true);
        if text == "*" && in_mesh {
            let message = "'*' cannot be bound to the mesh";
            sink.error(&at, message, "a host, or gateways other than mesh");
        }
        if !seen.insert(text.to_ascii_lowercase()) {
            sink.error(&at, format!("{text:?} is there twice"), "each host once");
        }
    }
    // `*.foo.com` and `*.com` in one rule leave open which of them is meant.
    for (index, text) in hosts.iter().enumerate() {
        let covers = |wide: &String| {
            let Some(suffix) = wide.strip_prefix('*') else { return false };
            wide != text && text.trim_start_matches('*').ends_with(suffix)
        };
        if let Some(wide) = hosts.iter().find(|wide| covers(wide)) {
            let message = format!("{text:?} is covered by {wide:?}");
            sink.error(&at.index(index), message, "hosts that do not overlap");
        }
    }
}

fn tls_route(route: &TlsRoute, at: &Path<'_>, sink: &mut Sink<'_>) {
    let match_at = at.field("match");
    if route.matches.is_empty() {
        sink.error(&match_at, "is missing", "at least one match with sniHosts");
    }
    for (index, one) in route.matches.iter().enumerate() {
        let at = match_at.index(index);
        let sni = at.field("sniHosts");
        if one.sni_hosts.is_empty() {
            sink.error(&sni, "is missing", "at least one name");
        }
        for (index, text) in one.sni_hosts.iter().enumerate() {
            checks::host(sink, &sni.index(index), text, false);
        }
        let l4 = L4Match {
            destination_subnets: one.destination_subnets.clone(),
            port: one.port,
            source_labels: one.source_labels.clone(),
            gateways: one.gateways.clone(),
            source_namespace: one.source_namespace.clone(),
            ..L4Match::default()
        };
        l4_match(&l4, &at, sink);
    }
    let to = at.field("route");
    if route.route.is_empty() {
        sink.error(&to, "is missing", "at least one destination");
    }
    checks::weighted(sink, &to, route.route.iter().map(|r| (r.destination.as_ref(), r.weight)));
}

fn tcp_route(route: &TcpRoute, at: &Path<'_>, sink: &mut Sink<'_>) {
    let match_at = at.field("match");
    for (index, one) in route.matches.iter().enumerate() {
        l4_match(one, &match_at.index(index), sink);
    }
    let to = at.field("route");
    if route.route.is_empty() {
        sink.error(&to, "is missing", "at least one destination");
    }
    checks::weighted(sink, &to, route.route.iter().map(|r| (r.destination.as_ref(), r.weight)));
}

fn l4_match(one: &L4Match, at: &Path<'_>, sink: &mut Sink<'_>) {
    checks::subnets(sink, &at.field("destinationSubnets"), &one.destination_subnets);
    if !one.source_subnet.is_empty() {
        checks::subnet(sink, &at.field("sourceSubnet"), &one.source_subnet);
    }
    if let Some(port) = one.port {
        checks::port(sink, &at.field("port"), port);
    }
    checks::labels(sink, &at.field("sourceLabels"), &one.source_labels);
    checks::gateways(sink, &at.field("gateways"), &one.gateways);
    other_gateways(&one.gateways, &at.field("gateways"), sink);
    http_route::source_namespace(&one.source_namespace, at, sink);
}
