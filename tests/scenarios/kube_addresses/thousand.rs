//! 1,000 rules at once: the control plane's counters move by what came about (row 11.23).

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use fairlead_tests::cluster::app_pod;
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY};
use serde_json::Value;

use super::{NODES, NS};
use crate::kube::counter;

/// Where the rules are; clients everywhere see them.
const RULES: &str = "rules";
const COUNT: usize = 1000;
/// kubectl makes one after the other; so many work at a time.
const HANDS: usize = 4;

/// What is counted: name, labels.
const COUNTERS: [(&str, &str); 6] = [
    ("galley_validation_passed", "resource=\"virtualservices\""),
    ("galley_validation_failed", "resource=\"virtualservices\""),
    ("pilot_k8s_cfg_events", "type=\"VirtualService\",event=\"add\""),
    ("pilot_xds_pushes", "type=\"rds\""),
    ("pilot_proxy_convergence_time_count", ""),
    ("citadel_server_csr_count", ""),
];

fn rule(number: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {{name: rule-{number}, namespace: {RULES}}}\n\
         spec:\n\
         \x20 hosts: [rule-{number}.example.org]\n\
         \x20 http: [{{route: [{{destination: {{host: kubernetes.default.svc.cluster.local}}}}]}}]\n\
         ---\n"
    )
}

/// Makes the rules, one that the webhook refuses, and a pod with an identity of its own.
fn make(mesh: &KubeMesh) -> Result<()> {
    let hand = |hand: usize| -> Result<()> {
        let rules: String = (hand..COUNT).step_by(HANDS).map(rule).collect();
        let file = mesh.dir().join(format!("rules-{hand}.yaml"));
        fs::write(&file, rules)?;
        mesh.kubectl(&["create", "-f", file.to_str().context("not UTF-8")?])?;
        Ok(())
    };
    std::thread::scope(|scope| {
        let hands: Vec<_> = (0..HANDS).map(|number| scope.spawn(move || hand(number))).collect();
        hands.into_iter().try_for_each(|hand| hand.join().map_err(|_| anyhow!("panicked"))?)
    })?;
    refused(mesh)?;
    mesh.apply(&format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: counted, namespace: {NS}}}\n"
    ))?;
    let pod = app_pod("counted", NS, &mesh.node_name(1), &["echo", "--http", "8080"]);
    let own = pod.replace("spec:\n", "spec:\n  serviceAccountName: counted\n");
    eventually("the pod is taken", READY, || mesh.apply(&own).map(Some))
}

/// The webhook refuses a rule that could never work.
fn refused(mesh: &KubeMesh) -> Result<()> {
    let bad = rule(COUNT).replace("[{route:", "[{match: [{uri: {regex: \"(\"}}], route:");
    let (taken, said) = mesh.try_kubectl(&["create", "--dry-run=server", "-f", "-"], &bad)?;
    ensure!(!taken && said.contains("regular expression"), "{said}");
    Ok(())
}

/// Objects that a node's daemon has in force.
fn objects(mesh: &KubeMesh, node: usize) -> Result<u64> {
    let page = ["curl", "-sf", "-m", "5", "http://127.0.0.1:15000/problems"];
    let page: Value = serde_json::from_str(&mesh.on_node(node, &page)?)?;
    page["objects"].as_u64().with_context(|| page.to_string())
}

fn counters(mesh: &KubeMesh) -> Result<Vec<f64>> {
    COUNTERS.iter().map(|(name, labels)| counter(mesh, name, labels)).collect()
}

/// Applies them, looks, and takes them away.
pub(super) fn thousand(mesh: &KubeMesh) -> Result<()> {
    mesh.kubectl(&["create", "namespace", RULES])?;
    // A replica has just gone: the API server may not know yet.
    eventually("the webhook answers", READY, || refused(mesh).map(Some))?;
    let before = counters(mesh)?;
    let had: Vec<u64> = NODES.map(|node| objects(mesh, node)).into_iter().collect::<Result<_>>()?;
    let start = Instant::now();
    make(mesh)?;
    let made = start.elapsed();
    for (node, had) in NODES.into_iter().zip(had) {
        eventually("the rules are on the node", READY, || {
            let has = objects(mesh, node)?;
            ensure!(has >= had + COUNT as u64, "{has} objects, {had} before");
            Ok(Some(()))
        })?;
    }
    let there = start.elapsed();
    // The others of the namespace are held back.
    mesh.wait(NS, &["pod/counted"], "condition=Ready", READY)?;
    let moved = eventually("the counters have moved", READY, || {
        let moved: Vec<f64> = counters(mesh)?.iter().zip(&before).map(|(a, b)| a - b).collect();
        let [passed, failed, added, pushes, converged, signed] = moved[..] else {
            return Err(anyhow!("{moved:?}"));
        };
        let count = COUNT as f64;
        // Where the webhook does not answer in time, the API server goes on without it.
        let most = (0.99 * count..=count).contains(&passed);
        ensure!(most && failed >= 1.0 && added == count, "{moved:?}");
        // Each node has been told at least once, and no oftener than of each rule.
        let nodes = NODES.len() as f64;
        ensure!((nodes..=nodes * count).contains(&pushes), "{moved:?}");
        // Whatever is pushed is answered; pods and endpoints count here, too.
        ensure!(converged >= nodes && converged <= 2.0 * nodes * count, "{moved:?}");
        ensure!(signed >= 1.0, "{moved:?}");
        Ok(Some(moved))
    })?;
    eprintln!("{COUNT} rules made in {made:.1?}, on the nodes after {there:.1?}; {moved:?}");
    // All at once.
    let all = format!("/apis/networking.istio.io/v1/namespaces/{RULES}/virtualservices");
    mesh.kubectl(&["delete", "--raw", &all])?;
    mesh.kubectl(&["delete", "pod", "-n", NS, "counted", "--now"])?;
    mesh.kubectl(&["delete", "namespace", RULES, "--wait=false"])?;
    for node in NODES {
        eventually("the rules are gone from the node", READY, || {
            let has = objects(mesh, node)?;
            ensure!(has < COUNT as u64, "{has} objects");
            Ok(Some(()))
        })?;
    }
    Ok(())
}
