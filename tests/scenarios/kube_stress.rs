//! What a cluster does to the mesh besides killing it, with traffic flowing and counted: pods churn,
//! the webhook is down, invalid resources flood, definitions are removed and put back, another CA
//! signs, the nodes' tokens are revoked. What failed and for how long is told for each, nothing crosses the wire
//! unencrypted, and what a policy denies is denied as long as the policy is there.

mod authority;
mod away;
mod churn;
mod flood;
mod traffic;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY};
use fairlead_tests::wire::{Captured, Tolerated};
use serde_json::Value;

use crate::common::heavy;
use traffic::{Row, Target, during};

const NS: &str = "stress";
const MARKER: &str = "MARKER-kube-stress";
/// The clusters' pods have addresses of this range.
const PODS: [u8; 2] = [10, 244];
/// Sessions to pods that end which come to nothing, at most.
const ENDED: usize = 20;
/// What is applied is in force within, with room for a busy machine where nothing is measured.
const SOON: Duration = Duration::from_secs(30);
/// What is applied is in force on a node within, where that is measured.
const IN_FORCE: Duration = Duration::from_secs(1);

const STRICT: &str = "apiVersion: security.istio.io/v1\n\
                      kind: PeerAuthentication\n\
                      metadata: {name: default, namespace: stress}\n\
                      spec: {mtls: {mode: STRICT}}\n---\n";

/// What the guarded path is refused by.
const GUARD: &str = "apiVersion: security.istio.io/v1\n\
                     kind: AuthorizationPolicy\n\
                     metadata: {name: guard, namespace: stress}\n\
                     spec:\n\
                     \x20 selector: {matchLabels: {app: server}}\n\
                     \x20 action: DENY\n\
                     \x20 rules: [{to: [{operation: {paths: [\"/secret*\"]}}]}]\n---\n";

#[test]
fn churn_floods_and_what_goes_away_fail_no_request() -> Result<()> {
    let _turn = heavy();
    let mesh = KubeMesh::up(&ClusterOptions::default())?;
    mesh.namespace(NS, "istio.io/dataplane-mode: ambient")?;
    let echo = |name: &str, node: usize| {
        let args = ["echo", "--name", name, "--http", "8080"];
        app_pod(name, NS, &mesh.node_name(node), &args)
    };
    mesh.apply(&[STRICT, GUARD].concat())?;
    mesh.apply(&[echo("client", 1), echo("server", 2), echo("closed", 2)].concat())?;
    mesh.apply(&[service("server"), service("closed"), churn::deployment()].concat())?;
    mesh.wait_rollout(NS, "deployment/web", READY)?;
    mesh.ready(NS)?;
    for url in ["http://web/", "http://server/", "http://closed/"] {
        mesh.until_meshed(NS, "client", url, true)?;
    }
    until_status(&mesh, "http://server/secret", 403)?;
    let wire = mesh.observe(1)?;
    let mut rows = Vec::new();
    let all = [Target::kept(), Target::fresh(), Target::guarded()];
    rows.extend(during(&mesh, "200 pods churned", &all, || churn::churn(&mesh))?);
    rows.extend(during(&mesh, "webhook down, flood of invalid resources", &all, || {
        flood::taken(&mesh)
    })?);
    rows.extend(during(&mesh, "flood refused by the webhook", &all, || flood::refused(&mesh))?);
    // The guard goes with its definition, so it is asked step by step.
    rows.extend(during(&mesh, "definitions removed and put back", &all[..2], || {
        away::definitions(&mesh)
    })?);
    rows.extend(during(&mesh, "another CA and another root", &all, || authority::another(&mesh))?);
    // New daemons come with new tokens, and the old ones close what idles: it is new connections that
    // may not fail then.
    rows.extend(during(&mesh, "the nodes' tokens revoked", &all[1..], || away::tokens(&mesh))?);
    for row in &rows {
        eprintln!("{row}");
    }
    let mut wire = wire.stop()?;
    wire.assert_no_plaintext(MARKER)?;
    let ends = pods_of(&wire)?;
    let bytes = wire.payload_bytes(&ends);
    wire.only_new();
    // What is refused, or ended before its ClientHello, is to pods that end.
    let seen = wire.assert_all_tls_but(&ends, Tolerated { aborted: ENDED, refused: ENDED })?;
    eprintln!("the wire of node 1: {} pods, {bytes} bytes between them, {seen:?}", ends.len());
    ensure!(seen.sessions > 50, "{seen:?} says nothing");
    for Row { event, to, requests, failed, unchecked, errors, .. } in &rows {
        ensure!(*failed == 0, "{event}: {to}: {failed} of {requests} failed: {errors}");
        ensure!(*unchecked == 0, "{event}: {to}: {unchecked} requests past the policy");
        ensure!(*requests > 50, "{event}: {to}: too few to say anything");
    }
    Ok(())
}

/// Addresses of pods that were seen, of whichever life.
fn pods_of(wire: &Captured) -> Result<Vec<IpAddr>> {
    let ends = wire.flows.iter().flat_map(|flow| [flow.source.ip(), flow.destination.ip()]);
    let pods = ends.filter(|ip| matches!(ip, IpAddr::V4(ip) if ip.octets()[..2] == PODS));
    let pods: BTreeSet<IpAddr> = pods.collect();
    ensure!(pods.len() > 100, "only {} pods were seen on the wire", pods.len());
    Ok(pods.into_iter().collect())
}

/// A Service of the pods with that label.
fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: {name}, namespace: {NS}}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n\
         ---\n"
    )
}

/// A page of the admin API of a node's daemon.
fn admin(mesh: &KubeMesh, node: usize, page: &str) -> Result<String> {
    mesh.on_node(node, &["curl", "-sf", "-m", "5", &format!("http://127.0.0.1:15000/{page}")])
}

fn admin_json(mesh: &KubeMesh, node: usize, page: &str) -> Result<Value> {
    serde_json::from_str(&admin(mesh, node, page)?).with_context(|| format!("/{page}"))
}

/// What the client gets.
fn status(mesh: &KubeMesh, url: &str) -> Result<u16> {
    Ok(mesh.get(NS, "client", url, &["--timeout-ms=4000"])?.status())
}

/// Waits until that is what the client gets; how long it took, with kubectl exec in it.
fn until_status(mesh: &KubeMesh, url: &str, wanted: u16) -> Result<Duration> {
    let start = Instant::now();
    eventually(&format!("{url} answers {wanted}"), SOON, || {
        let found = status(mesh, url)?;
        ensure!(found == wanted, "{found}");
        Ok(Some(()))
    })?;
    Ok(start.elapsed())
}

/// Whether a policy is in force for a pod, by its node's own account.
fn has_policy(mesh: &KubeMesh, node: usize, pod: &str, policy: &str) -> Result<bool> {
    let dump = admin_json(mesh, node, "config_dump")?;
    let side = &dump["inbound"][format!("{NS}/{pod}")]["authorizationPolicies"];
    let policies = side.as_array().with_context(|| format!("no {pod} on node {node}: {side}"))?;
    let wanted = format!("{NS}/{policy}");
    Ok(policies.iter().any(|of| of.as_str().is_some_and(|of| of.ends_with(&wanted))))
}
