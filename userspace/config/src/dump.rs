//! The snapshot for people: the config dump of the admin API.
//!
//! Everything is in a stable order, and clusters are named instead of numbered. The values of headers
//! that hold secrets as a rule (`authorization`, cookies, API keys) are left out.

use fairlead_policy::balance::Candidate as _;
use fairlead_policy::filter::HttpFilters;
use fairlead_policy::filter::headers::{HeaderOps, is_secret};
use fairlead_policy::matcher::{HeaderKey, StringMatch};
use fairlead_policy::route::{
    ClusterId, HttpAction, HttpMatch, HttpRoute, HttpRouteTable, TcpMatch, TcpRouteTable, Weighted,
};
use fairlead_types::Labels;
use serde_json::{Map, Value, json};

use crate::model::{
    Cluster, HostRoutes, Inbound, LocalPod, MeshSettings, Routes, ServicePort, Snapshot,
    UpstreamTls, VirtualHost, Workload,
};

/// Stands for a value that may be a secret.
const REDACTED: &str = "redacted";

/// The whole snapshot as JSON.
#[must_use]
pub fn dump(snapshot: &Snapshot) -> Value {
    json!({
        "version": snapshot.version,
        "mesh": mesh(&snapshot.mesh),
        "local": sorted(snapshot.local.values().map(|pod| (pod.workload.id.to_string(), local(pod)))),
        "inbound": sorted(
            snapshot.inbound.values().map(|side| (side.workload.id.to_string(), inbound(side))),
        ),
        "services": sorted(snapshot.services.iter().map(|(key, ports)| {
            let ports: Vec<Value> = ports.iter().map(|port| service_port(snapshot, port)).collect();
            (format!("{}/{}", key.namespace, key.name), Value::from(ports))
        })),
        "vips": sorted(snapshot.vips.iter().map(|(address, port)| {
            (address.to_string(), format!("{}:{}", port.service.host, port.number).into())
        })),
        "virtualHosts": sorted(
            snapshot
                .virtual_hosts
                .exact
                .values()
                .chain(snapshot.virtual_hosts.wildcard.values())
                .map(|host| (host.host.to_string(), virtual_host(snapshot, host))),
        ),
        "clusters": sorted(
            snapshot.clusters.values().map(|c| (cluster_name(snapshot, c.id), cluster(c))),
        ),
        "workloads": sorted(
            snapshot.workloads.iter().map(|(ip, w)| (ip.to_string(), workload(w))),
        ),
        "targets": sorted(snapshot.targets.iter().map(|(id, ports)| {
            let ports: Vec<Value> = ports
                .iter()
                .map(|port| {
                    json!({
                        "port": port.number,
                        "protocol": format!("{:?}", port.protocol),
                        "service": format!("{}:{}", port.service.host, port.service_port),
                    })
                })
                .collect();
            (id.to_string(), Value::from(ports))
        })),
    })
}

fn sorted(entries: impl Iterator<Item = (String, Value)>) -> Value {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Object(entries.into_iter().collect())
}

/// An object without the entries that say nothing.
fn said<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let kept = entries.into_iter().filter(|(_, value)| !nothing(value));
    Value::Object(kept.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

fn debug(value: impl std::fmt::Debug) -> Value {
    format!("{value:?}").into()
}

fn mesh(mesh: &MeshSettings) -> Value {
    let aliases: Vec<&str> = mesh.trust_domain_aliases.iter().map(|td| td.as_str()).collect();
    said([
        ("trustDomain", mesh.trust_domain.as_str().into()),
        ("trustDomainAliases", aliases.into()),
        ("rootNamespace", (*mesh.root_namespace).into()),
        ("outboundTrafficPolicy", debug(mesh.outbound)),
        ("accessLogFile", mesh.access_log.file.as_deref().into()),
        ("accessLogEncoding", debug(mesh.access_log.encoding)),
        ("accessLogFormat", mesh.access_log.format.as_deref().into()),
        ("connectTimeout", debug(mesh.connect_timeout)),
        ("protocolDetectionTimeout", debug(mesh.protocol_detection_timeout)),
        ("defaultHttpRetryPolicy", debug(&mesh.default_retry)),
        ("pathNormalization", debug(mesh.path_normalization)),
        ("enableAutoMtls", mesh.auto_mtls.into()),
        ("clusterDomain", (*mesh.cluster_domain).into()),
        ("clusterName", (*mesh.cluster_name).into()),
    ])
}

fn labels(labels: &Labels) -> Value {
    labels.iter().map(|(k, v)| (k.to_owned(), Value::from(v))).collect::<Map<_, _>>().into()
}

fn workload(workload: &Workload) -> Value {
    let ips: Vec<String> = workload.ips.iter().map(ToString::to_string).collect();
    json!({
        "id": workload.id.as_str(),
        "uid": &*workload.uid,
        "workload": &*workload.workload_name,
        "canonicalName": &*workload.canonical_name,
        "canonicalRevision": &*workload.canonical_revision,
        "app": &*workload.app,
        "version": &*workload.version,
        "labels": labels(&workload.labels),
        "identity": workload.identity.to_string(),
        "ips": ips,
        "node": &*workload.node,
        "enrolled": workload.enrolled,
        "wire": format!("{:?}", workload.wire),
        "excludeInboundPorts": workload.exclude_inbound_ports.to_vec(),
        "includeInboundPorts": workload.include_inbound_ports.as_deref(),
    })
}

fn local(pod: &LocalPod) -> Value {
    let cidrs: Vec<String> = pod.exclude_outbound_cidrs.iter().map(ToString::to_string).collect();
    said([
        ("enrolled", Value::String(pod.workload.enrolled.to_string())),
        ("netns", pod.netns.as_ref().map(|path| path.display().to_string()).into()),
        ("excludeOutboundPorts", pod.exclude_outbound_ports.to_vec().into()),
        ("excludeOutboundIPRanges", cidrs.into()),
        ("includeOutboundPorts", pod.include_outbound_ports.to_vec().into()),
        (
            "includeOutboundIPRanges",
            pod.include_outbound_cidrs
                .as_ref()
                .map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
                .into(),
        ),
        ("probePorts", pod.probe_ports.to_vec().into()),
    ])
}

fn inbound(side: &Inbound) -> Value {
    let ports: Vec<Value> = side
        .ports
        .iter()
        .map(|port| {
            said([
                ("port", port.number.into()),
                ("protocol", debug(port.protocol)),
                ("service", port.service.as_ref().map(|service| &*service.host).into()),
                ("mtls", port.mtls.map(debug).into()),
            ])
        })
        .collect();
    let policies: Vec<String> = side
        .authz
        .policies()
        .map(|policy| format!("{:?} {}/{}", policy.action, policy.name.namespace, policy.name.name))
        .collect();
    json!({
        "mtls": format!("{:?}", side.mtls),
        "ports": ports,
        "authorizationPolicies": policies,
    })
}

fn service_port(snapshot: &Snapshot, port: &ServicePort) -> Value {
    said([
        ("port", port.number.into()),
        ("name", port.name.as_deref().into()),
        ("protocol", debug(port.protocol)),
        ("routes", routes(snapshot, &port.common)),
        (
            "routesOfClients",
            sorted(port.namespaced.iter().map(|(ns, r)| (ns.to_string(), routes(snapshot, r)))),
        ),
    ])
}

fn routes(snapshot: &Snapshot, routes: &Routes) -> Value {
    said([
        ("http", routes.http.as_ref().map(|table| http_table(snapshot, table)).into()),
        ("tcp", routes.tcp.as_ref().map(|table| tcp_table(snapshot, table)).into()),
        ("defaultCluster", cluster_name(snapshot, routes.default_cluster).into()),
    ])
}

fn virtual_host(snapshot: &Snapshot, host: &VirtualHost) -> Value {
    let of = |routes: &Option<HostRoutes>| match routes {
        None => Value::Null,
        Some(routes) => said([
            ("http", http_table(snapshot, &routes.default)),
            (
                "httpOfPorts",
                sorted(
                    routes.by_port.iter().map(|(p, t)| (p.to_string(), http_table(snapshot, t))),
                ),
            ),
        ]),
    };
    said([
        ("routes", of(&host.common)),
        (
            "routesOfClients",
            sorted(host.namespaced.iter().map(|(namespace, r)| (namespace.to_string(), of(r)))),
        ),
    ])
}

fn http_table(snapshot: &Snapshot, table: &HttpRouteTable) -> Value {
    table.routes.iter().map(|route| http_route(snapshot, route)).collect()
}

fn http_route(snapshot: &Snapshot, route: &HttpRoute) -> Value {
    said([
        ("name", (*route.name).into()),
        ("match", route.matches.iter().map(http_match).collect()),
        (
            "route",
            match &route.action {
                HttpAction::Forward(to) => weighted(snapshot, to),
                other => debug(other),
            },
        ),
        ("filters", filters(&route.filters)),
    ])
}

fn string_match(value: &StringMatch) -> Value {
    match value {
        StringMatch::Exact(text) => json!({ "exact": &**text }),
        StringMatch::Prefix(text) => json!({ "prefix": &**text }),
        StringMatch::Suffix(text) => json!({ "suffix": &**text }),
        StringMatch::Present => json!({ "present": true }),
        StringMatch::Regex(regex) => json!({ "regex": regex.pattern() }),
    }
}

fn http_match(m: &HttpMatch) -> Value {
    let value = |key: &HeaderKey, value: &StringMatch| match key {
        HeaderKey::Name(name) if is_secret(name) && *value != StringMatch::Present => {
            REDACTED.into()
        }
        _ => string_match(value),
    };
    let named = |list: &[(HeaderKey, StringMatch)]| {
        sorted(list.iter().map(|(key, of)| (format!("{key:?}"), value(key, of))))
    };
    let query = m.query_params.iter().map(|(name, v)| (name.to_string(), string_match(v)));
    said([
        ("uri", m.path.as_ref().map(string_match).into()),
        ("ignoreUriCase", m.ignore_path_case.into()),
        ("scheme", m.scheme.as_ref().map(string_match).into()),
        ("method", m.method.as_ref().map(string_match).into()),
        ("authority", m.authority.as_ref().map(string_match).into()),
        ("headers", named(&m.headers)),
        ("withoutHeaders", named(&m.without_headers)),
        ("queryParams", sorted(query)),
        ("port", m.port.into()),
        ("sourceLabels", labels(&m.source_labels)),
        ("sourceNamespace", m.source_namespace.as_deref().into()),
    ])
}

fn filters(filters: &HttpFilters) -> Value {
    said([
        ("fault", filters.fault.as_ref().map(debug).into()),
        ("rewrite", filters.rewrite.as_ref().map(debug).into()),
        ("headers", headers(&filters.headers)),
        ("timeout", filters.timeout.map(debug).into()),
        ("retries", filters.retry.as_ref().map(debug).into()),
    ])
}

fn headers(ops: &HeaderOps) -> Value {
    if *ops == HeaderOps::default() { Value::Null } else { debug(ops) }
}

fn weighted(snapshot: &Snapshot, weighted: &Weighted) -> Value {
    weighted
        .choices()
        .iter()
        .map(|choice| {
            said([
                ("cluster", cluster_name(snapshot, choice.cluster).into()),
                ("weight", choice.weight.into()),
                ("headers", headers(&choice.headers)),
            ])
        })
        .collect()
}

fn tcp_table(snapshot: &Snapshot, table: &TcpRouteTable) -> Value {
    table
        .routes
        .iter()
        .map(|route| {
            said([
                ("name", (*route.name).into()),
                ("match", route.matches.iter().map(tcp_match).collect()),
                (
                    "route",
                    route
                        .destinations
                        .as_ref()
                        .map_or("refused".into(), |to| weighted(snapshot, to)),
                ),
            ])
        })
        .collect()
}

fn tcp_match(m: &TcpMatch) -> Value {
    let subnets: Vec<String> = m.destination_subnets.iter().map(ToString::to_string).collect();
    said([
        ("destinationSubnets", subnets.into()),
        ("port", m.port.into()),
        ("sourceLabels", labels(&m.source_labels)),
        ("sourceNamespace", m.source_namespace.as_deref().into()),
        ("sourceSubnet", m.source_subnet.map(|net| net.to_string()).into()),
    ])
}

/// The name of a cluster, with the clients that use this variant of it.
fn cluster_name(snapshot: &Snapshot, id: ClusterId) -> String {
    match snapshot.cluster(id) {
        None => "none".to_owned(),
        Some(cluster) => match &cluster.client {
            None => cluster.name.to_string(),
            Some(client) => format!("{} for {client}", cluster.name),
        },
    }
}

fn cluster(cluster: &Cluster) -> Value {
    let endpoints: Vec<Value> = cluster
        .endpoints
        .iter()
        .map(|endpoint| {
            said([
                ("address", endpoint.addr().to_string().into()),
                ("workload", endpoint.workload.as_ref().map(|w| w.id.as_str()).into()),
                ("active", endpoint.load().active().into()),
            ])
        })
        .collect();
    let policy = &cluster.policy;
    said([
        ("protocol", debug(cluster.protocol)),
        ("loadBalancer", debug(policy.balancer)),
        (
            "tls",
            match &policy.tls {
                UpstreamTls::Auto => "auto".into(),
                other => debug(other),
            },
        ),
        ("connectTimeout", debug(policy.connect_timeout)),
        ("subsetLabels", labels(&policy.labels)),
        ("endpoints", endpoints.into()),
        ("nearFirst", cluster.locality.ends.to_vec().into()),
        ("localOnly", cluster.locality.local_only.into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_snapshot_has_every_section() {
        let value = dump(&Snapshot::default());
        let sections: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(
            sections,
            [
                "version",
                "mesh",
                "local",
                "inbound",
                "services",
                "vips",
                "virtualHosts",
                "clusters",
                "workloads",
                "targets"
            ]
        );
        assert_eq!(value["mesh"]["trustDomain"], "cluster.local");
        assert_eq!(value["clusters"], json!({}));
    }
}
