//! DestinationRule (Istio `ValidateDestinationRule`).

use std::collections::BTreeSet;

use fairlead_api::networking::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRule, H2UpgradePolicy,
    OutlierDetection, TrafficPolicy,
};
use fairlead_types::SpiffeId;

use super::{checks, load_balancer, selector};
use crate::source::path::Path;
use crate::source::problem::Effect;
use crate::source::sink::Sink;
use crate::source::unenforced::CONNECTIONS_REFUSED;

pub(in super::super) fn destination_rule(object: &DestinationRule, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    checks::host(sink, &at.field("host"), &spec.host, false);
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(policy, &at.field("trafficPolicy"), sink);
    }
    let subsets = at.field("subsets");
    let mut names = BTreeSet::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let at = subsets.index(index);
        let name = at.field("name");
        if !checks::is_dns_label(&subset.name) {
            let message = match subset.name.as_str() {
                "" => "is missing".to_owned(),
                text => format!("{text:?} is not a subset name"),
            };
            sink.error(&name, message, checks::LABEL_RULE);
        } else if !names.insert(&subset.name) {
            sink.error(&name, format!("{:?} is there twice", subset.name), "each name once");
        }
        checks::labels(sink, &at.field("labels"), &subset.labels);
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, &at.field("trafficPolicy"), sink);
        }
    }
    let namespace = &object.metadata.namespace;
    let export_to = at.field("exportTo");
    checks::export_to(sink, &export_to, &spec.export_to, namespace);
    if let Some(workloads) = &spec.workload_selector {
        selector::workload_selector(workloads, &at.field("workloadSelector"), sink);
        if spec.export_to.iter().any(|to| to != "." && to != namespace) {
            let message = "a rule with workloadSelector cannot be exported";
            sink.error(&export_to, message, "'.' or nothing");
        }
    }
}

fn traffic_policy(policy: &TrafficPolicy, at: &Path<'_>, sink: &mut Sink<'_>) {
    if *policy == TrafficPolicy::default() {
        sink.error(at, "the policy is empty", "at least one field");
    }
    if let Some(value) = &policy.load_balancer {
        load_balancer::load_balancer(
            value,
            policy.outlier_detection.as_ref(),
            &at.field("loadBalancer"),
            sink,
        );
    }
    parts(
        policy.connection_pool.as_ref(),
        policy.outlier_detection.as_ref(),
        policy.tls.as_ref(),
        at,
        sink,
    );
    let ports = at.field("portLevelSettings");
    let mut seen = BTreeSet::new();
    for (index, one) in policy.port_level_settings.iter().enumerate() {
        let at = ports.index(index);
        match one.port {
            None => sink.error(&at.field("port"), "is missing", "{number: …}"),
            Some(port) => {
                checks::port_selector(sink, &at.field("port"), Some(port));
                if !seen.insert(port.number) {
                    let message = format!("port {} is there twice", port.number);
                    sink.error(&at.field("port"), message, "each port once");
                }
            }
        }
        let empty = one.load_balancer.is_none()
            && one.connection_pool.is_none()
            && one.outlier_detection.is_none()
            && one.tls.is_none();
        if empty {
            sink.error(&at, "the policy is empty", "at least one field");
        }
        if let Some(value) = &one.load_balancer {
            load_balancer::load_balancer(
                value,
                one.outlier_detection.as_ref(),
                &at.field("loadBalancer"),
                sink,
            );
        }
        parts(
            one.connection_pool.as_ref(),
            one.outlier_detection.as_ref(),
            one.tls.as_ref(),
            &at,
            sink,
        );
    }
    if let Some(tunnel) = &policy.tunnel {
        let at = at.field("tunnel");
        if policy.proxy_protocol.is_some() {
            sink.error(&at, "stands beside proxyProtocol", "one of the two");
        }
        if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
            let message = format!("{:?} is not known", tunnel.protocol);
            sink.error(&at.field("protocol"), message, "CONNECT or POST");
        }
        checks::host(sink, &at.field("targetHost"), &tunnel.target_host, true);
        checks::port(sink, &at.field("targetPort"), tunnel.target_port);
    }
    if let Some(budget) = &policy.retry_budget {
        let at = at.field("retryBudget");
        if budget.percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            sink.error(&at.field("percent"), "is not a percentage", "0 to 100");
        }
    }
}

fn parts(
    pool: Option<&ConnectionPoolSettings>,
    outlier: Option<&OutlierDetection>,
    tls: Option<&ClientTlsSettings>,
    at: &Path<'_>,
    sink: &mut Sink<'_>,
) {
    if let Some(value) = pool {
        connection_pool(value, &at.field("connectionPool"), sink);
    }
    if let Some(value) = outlier {
        outlier_detection(value, &at.field("outlierDetection"), sink);
    }
    if let Some(value) = tls {
        client_tls(value, &at.field("tls"), sink);
    }
}

fn connection_pool(value: &ConnectionPoolSettings, at: &Path<'_>, sink: &mut Sink<'_>) {
    if value.http.is_none() && value.tcp.is_none() {
        sink.error(at, "is empty", "at least one of tcp and http");
    }
    if let Some(http) = &value.http {
        let at = at.field("http");
        for (field, number) in [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
            ("maxConcurrentStreams", http.max_concurrent_streams),
        ] {
            checks::not_negative(sink, &at.field(field), number);
        }
        checks::duration(sink, &at.field("idleTimeout"), http.idle_timeout);
        if http.use_client_protocol && http.h2_upgrade_policy == H2UpgradePolicy::Upgrade {
            let message = "contradicts h2UpgradePolicy: UPGRADE";
            sink.error(&at.field("useClientProtocol"), message, "one of the two");
        }
    }
    if let Some(tcp) = &value.tcp {
        let at = at.field("tcp");
        checks::not_negative(sink, &at.field("maxConnections"), tcp.max_connections);
        for (field, duration) in [
            ("connectTimeout", tcp.connect_timeout),
            ("maxConnectionDuration", tcp.max_connection_duration),
            ("idleTimeout", tcp.idle_timeout),
        ] {
            checks::duration(sink, &at.field(field), duration);
        }
        if let Some(keepalive) = tcp.tcp_keepalive {
            let at = at.field("tcpKeepalive");
            checks::duration(sink, &at.field("time"), keepalive.time);
            checks::duration(sink, &at.field("interval"), keepalive.interval);
        }
    }
}

fn outlier_detection(value: &OutlierDetection, at: &Path<'_>, sink: &mut Sink<'_>) {
    checks::duration(sink, &at.field("interval"), value.interval);
    checks::duration(sink, &at.field("baseEjectionTime"), value.base_ejection_time);
    for (field, percent) in [
        ("maxEjectionPercent", value.max_ejection_percent),
        ("minHealthPercent", value.min_health_percent),
    ] {
        if !(0..=100).contains(&percent) {
            sink.error(&at.field(field), format!("{percent} is not a percentage"), "0 to 100");
        }
    }
    if value.consecutive_errors != 0 {
        let allowed = "consecutiveGatewayErrors or consecutive5xxErrors";
        sink.warn(&at.field("consecutiveErrors"), "is deprecated", allowed);
    }
    let local = value.consecutive_local_origin_failures.is_some_and(|count| count > 0);
    if local && !value.split_external_local_origin_errors {
        let message = "has no effect without splitExternalLocalOriginErrors";
        let allowed = "splitExternalLocalOriginErrors: true";
        sink.error(&at.field("consecutiveLocalOriginFailures"), message, allowed);
    }
}

fn client_tls(value: &ClientTlsSettings, at: &Path<'_>, sink: &mut Sink<'_>) {
    let files = [
        ("clientCertificate", &value.client_certificate),
        ("privateKey", &value.private_key),
        ("caCertificates", &value.ca_certificates),
        ("caCrl", &value.ca_crl),
    ];
    match value.mode {
        ClientTlsMode::IstioMutual => {
            for (field, text) in
                files.into_iter().chain([("credentialName", &value.credential_name)])
            {
                if !text.is_empty() {
                    let message = "the mesh has certificates of its own";
                    sink.error(&at.field(field), message, "nothing, with mode ISTIO_MUTUAL");
                }
            }
        }
        ClientTlsMode::Mutual if value.credential_name.is_empty() => {
            for (field, text) in files.into_iter().take(2) {
                if text.is_empty() {
                    sink.error(&at.field(field), "is missing", "needed with mode MUTUAL");
                }
            }
        }
        _ => {}
    }
    match value.mode {
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {
            sink.warn_of(Effect::Refused, &at.field("mode"), CONNECTIONS_REFUSED, "");
            let secret = [("credentialName", &value.credential_name)];
            for (field, text) in files.into_iter().chain(secret) {
                if !text.is_empty() {
                    sink.warn_of(Effect::Refused, &at.field(field), CONNECTIONS_REFUSED, "");
                }
            }
        }
        ClientTlsMode::IstioMutual => {
            let at = at.field("subjectAltNames");
            for (index, text) in value.subject_alt_names.iter().enumerate() {
                if let Err(error) = text.parse::<SpiffeId>() {
                    let message = format!("{error}; connections are refused");
                    let allowed = "spiffe://<trust domain>/ns/<namespace>/sa/<service account>";
                    sink.warn_of(Effect::Refused, &at.index(index), message, allowed);
                }
            }
        }
        ClientTlsMode::Disable => {}
    }
}
