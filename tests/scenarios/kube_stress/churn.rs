//! Pods come and go behind a Service, and what the nodes know of them is compared with what the API
//! server said a second before.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, container};
use serde_json::Value;

use super::{IN_FORCE, NS, SOON, admin_json, service};

/// Pods behind the Service, all of which are replaced so many times.
const REPLICAS: usize = 20;
const ROUNDS: usize = 10;
/// Seconds that each serves after it was told to end: longer than a request takes on a busy machine.
const GRACE: u64 = 15;

/// The Deployment behind the Service `web`.
pub(super) fn deployment() -> String {
    let more = "env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], \
                readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}";
    format!(
        "{}apiVersion: apps/v1\n\
         kind: Deployment\n\
         metadata: {{name: web, namespace: {NS}}}\n\
         spec:\n\
         \x20 replicas: {REPLICAS}\n\
         \x20 selector: {{matchLabels: {{app: web}}}}\n\
         \x20 strategy: {{rollingUpdate: {{maxSurge: 5, maxUnavailable: 0}}}}\n\
         \x20 template:\n\
         \x20   metadata: {{labels: {{app: web}}}}\n\
         \x20   spec: {{terminationGracePeriodSeconds: {GRACE}, containers: [{}]}}\n---\n",
        service("web"),
        container(&["echo", "--name", "$(POD)", "--http", "8080"], more),
    )
}

/// What was compared.
#[derive(Debug, Default)]
struct Tally {
    comparisons: usize,
    /// Endpoints of nodes that were looked for at the API server.
    endpoints: usize,
    /// Endpoints that a node had a second after the API server had them no more.
    stale: Vec<String>,
    /// Endpoints that a node did not have a second after the API server had them.
    late: Vec<String>,
    /// Addresses seen so far, at the API server or at a node.
    seen: BTreeSet<String>,
}

/// Addresses of the Service's endpoints that are ready at the API server.
fn at_the_server(mesh: &KubeMesh) -> Result<BTreeSet<String>> {
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{NS}/endpointslices\
         ?labelSelector=kubernetes.io/service-name%3Dweb"
    );
    let slices: Value = serde_json::from_str(&mesh.kubectl(&["get", "--raw", &path])?)?;
    let slices = slices["items"].as_array().context("no list")?.iter();
    let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    Ok(ready.filter_map(|endpoint| Some(endpoint["addresses"][0].as_str()?.to_owned())).collect())
}

/// Pods of the Service that are not about to end.
fn pods(mesh: &KubeMesh) -> Result<BTreeSet<String>> {
    let pods = mesh.json(&["get", "pods", "-n", NS, "-l", "app=web"])?;
    let pods = pods["items"].as_array().context("no list")?.iter();
    let staying = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(staying.filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect())
}

/// Addresses that a node's daemon sends requests for the Service to.
fn at_the_node(mesh: &KubeMesh, node: usize) -> Result<BTreeSet<String>> {
    let dump = admin_json(mesh, node, "config_dump")?;
    let clusters = dump["clusters"].as_object().context("no clusters")?;
    let host = format!("|web.{NS}.svc.cluster.local");
    let ours = clusters.iter().filter(|(name, _)| name.contains(&host)).map(|(_, of)| of);
    let endpoints = ours.flat_map(|of| of["endpoints"].as_array().into_iter().flatten());
    let found: BTreeSet<String> = endpoints
        .filter_map(|endpoint| Some(endpoint["address"].as_str()?.rsplit_once(':')?.0.to_owned()))
        .collect();
    ensure!(!found.is_empty(), "node {node} knows of no endpoint of {host}");
    Ok(found)
}

impl Tally {
    fn compare(&mut self, mesh: &KubeMesh) -> Result<()> {
        let before = at_the_server(mesh)?;
        std::thread::sleep(IN_FORCE);
        let known = [(1, at_the_node(mesh, 1)?), (2, at_the_node(mesh, 2)?)];
        // What has come since is not stale.
        let after = at_the_server(mesh)?;
        let mut met = BTreeSet::new();
        for (node, known) in known {
            self.comparisons += 1;
            self.endpoints += known.len();
            // One that was never seen at the API server may have come and gone between the two looks;
            // where it stays, the next one tells.
            let is_stale = |address: &&String| {
                !before.contains(*address)
                    && !after.contains(*address)
                    && self.seen.contains(*address)
            };
            self.stale.extend(known.iter().filter(is_stale).map(|a| format!("{a} on node {node}")));
            let missing = before.intersection(&after).filter(|address| !known.contains(*address));
            self.late.extend(missing.map(|a| format!("{a} on node {node}")));
            met.extend(known);
        }
        self.seen.extend(met.into_iter().chain(before).chain(after));
        Ok(())
    }
}

/// Replaces all pods of the Service again and again.
pub(super) fn churn(mesh: &KubeMesh) -> Result<()> {
    let over = AtomicBool::new(false);
    let start = Instant::now();
    let mut gone = pods(mesh)?;
    let tally = std::thread::scope(|scope| {
        let watching = scope.spawn(|| -> Result<Tally> {
            let mut tally = Tally::default();
            while !over.load(Ordering::Acquire) {
                tally.compare(mesh)?;
            }
            Ok(tally)
        });
        let rolled = (0..ROUNDS).try_for_each(|_| {
            mesh.kubectl(&["rollout", "restart", "deployment/web", "-n", NS])?;
            mesh.wait_rollout(NS, "deployment/web", READY)?;
            gone.extend(pods(mesh)?);
            Ok(())
        });
        over.store(true, Ordering::Release);
        let tally = watching.join().map_err(|_| anyhow::anyhow!("the comparison panicked"))?;
        rolled.and(tally)
    })?;
    let took = start.elapsed();
    // And afterwards all agree to the last.
    eventually("nodes and API server agree", SOON, || {
        let there = at_the_server(mesh)?;
        ensure!(there.len() == REPLICAS, "{} endpoints at the API server", there.len());
        for node in [1, 2] {
            let known = at_the_node(mesh, node)?;
            ensure!(known == there, "node {node}: {known:?} instead of {there:?}");
        }
        Ok(Some(()))
    })?;
    let churned = gone.difference(&pods(mesh)?).count();
    eprintln!(
        "{churned} pods churned within {took:?}; {} comparisons of {} endpoints: {} stale after one \
         second {:?}, {} late {:?}",
        tally.comparisons,
        tally.endpoints,
        tally.stale.len(),
        tally.stale,
        tally.late.len(),
        tally.late
    );
    ensure!(churned >= 200, "only {churned} pods were replaced");
    ensure!(tally.comparisons >= 20, "too few comparisons to say anything");
    ensure!(tally.stale.is_empty(), "stale after one second: {:?}", tally.stale);
    // A node that has not heard of an endpoint yet fails no request: a busy machine may take longer.
    let few = tally.late.len() * 100 <= tally.endpoints;
    ensure!(few, "missing after one second: {:?}", tally.late);
    // Those that were told to end go on for some seconds; what follows is measured without them.
    eventually("the last of them ends", SOON + Duration::from_secs(GRACE), || {
        let pods = mesh.json(&["get", "pods", "-n", NS, "-l", "app=web"])?;
        let count = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(count == REPLICAS, "{count} pods");
        Ok(Some(()))
    })
}
