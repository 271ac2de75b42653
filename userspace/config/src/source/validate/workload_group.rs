//! WorkloadGroup (Istio `ValidateWorkloadGroup`).

use fairlead_api::networking::WorkloadGroup;

use super::{checks, workload_entry};
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn workload_group(object: &WorkloadGroup, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    if let Some(metadata) = &spec.metadata {
        let at = at.field("metadata");
        checks::labels(sink, &at.field("labels"), &metadata.labels);
    }
    let template = at.field("template");
    match &spec.template {
        None => sink.error(&template, "is missing", "what the entries are made of"),
        Some(value) => workload_entry::entry(value, false, &template, sink),
    }
    let Some(probe) = &spec.probe else { return };
    let at = at.field("probe");
    let ways = [
        ("httpGet", probe.http_get.as_ref().map(|p| p.port)),
        ("tcpSocket", probe.tcp_socket.as_ref().map(|p| p.port)),
        ("grpc", probe.grpc.as_ref().map(|p| p.port)),
    ];
    for (field, port) in ways {
        if let Some(port) = port {
            let at = at.field(field);
            checks::port(sink, &at.field("port"), port);
        }
    }
    let count = ways.iter().filter(|(_, port)| port.is_some()).count();
    if count + usize::from(probe.exec.is_some()) != 1 {
        let message = "does not say clearly how to probe";
        sink.error(&at, message, "one of httpGet, tcpSocket, exec, grpc");
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
        let at = at.field("exec");
        sink.error(&at.field("command"), "is missing", "a program and its arguments");
    }
    for (field, seconds) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        checks::not_negative(sink, &at.field(field), seconds);
    }
}
