//! What the scenarios of the controller on a cluster share: the manifests that users get, without
//! what runs on nodes, and a way to the controller from outside.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_identity::ca::CaSet;
use fairlead_tests::cluster::{Cluster, ClusterOptions};
use fairlead_tests::eventually;
use serde_json::Value;

/// The controller's namespace.
pub(crate) const SYSTEM: &str = "fairlead-system";
/// How long pods may take, on a machine that does other things beside.
pub(crate) const READY: Duration = Duration::from_secs(120);

/// A cluster with the definitions and the controller, and nothing on its nodes.
pub(crate) fn cluster_with_controller(nodes: usize) -> Result<Cluster> {
    let cluster = Cluster::up(&ClusterOptions::default().nodes(nodes))?;
    cluster.load_programs(&["fairlead-controller", "fairlead-apps"])?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    cluster.apply_kustomization(&root.join("crds"))?;
    let all = cluster.kubectl(&["kustomize", root.join("base").to_str().context("not UTF-8")?])?;
    let wanted: Vec<&str> =
        all.split("\n---\n").filter(|text| !text.contains("\nkind: DaemonSet\n")).collect();
    ensure!(wanted.len() < all.split("\n---\n").count(), "no DaemonSet was left out");
    // Definitions and the namespace take a moment until they can be used.
    eventually("the manifests are taken", READY, || {
        cluster.apply(&wanted.join("\n---\n")).map(Some)
    })?;
    cluster.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY)?;
    Ok(cluster)
}

/// A token of a service account, bound to a pod if one is named.
pub(crate) fn token(
    cluster: &Cluster,
    namespace: &str,
    account: &str,
    pod: Option<&str>,
    audience: &str,
) -> Result<String> {
    let mut args =
        vec!["create", "token", account, "-n", namespace, "--audience", audience, "--duration=10m"];
    if let Some(pod) = pod {
        args.extend(["--bound-object-kind=Pod", "--bound-object-name", pod]);
    }
    Ok(cluster.kubectl(&args)?.trim().to_owned())
}

/// A pod of `fairlead-apps` that does nothing but be there, as a service account.
pub(crate) fn idle_pod(name: &str, namespace: &str, account: &str, node: &str) -> String {
    let image = fairlead_tests::cluster::image("fairlead-apps");
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec:\n\
         \x20 nodeName: {node}\n\
         \x20 serviceAccountName: {account}\n\
         \x20 terminationGracePeriodSeconds: 0\n\
         \x20 containers:\n\
         \x20 - name: app\n\
         \x20   image: {image}\n\
         \x20   imagePullPolicy: Never\n\
         \x20   args: [echo, --name, {name}, --http, \"8080\"]\n\
         ---\n"
    )
}

/// A port of this machine that leads to a port of a pod or service, until it is dropped.
pub(crate) struct Forward {
    child: Child,
    pub(crate) port: u16,
}

impl Forward {
    pub(crate) fn to(cluster: &Cluster, what: &str, port: u16) -> Result<Self> {
        let kubectl = fairlead_cluster::Cluster::kubectl(cluster);
        let mut child = kubectl
            .command(&["port-forward", "-n", SYSTEM, what, &format!(":{port}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let mut forward = Self { child, port: 0 };
        // "Forwarding from 127.0.0.1:40123 -> 15012"
        let mut lines = BufReader::new(stdout).lines();
        let line = lines.next().context("kubectl said nothing")??;
        let at = line.split(" -> ").next().and_then(|text| text.rsplit(':').next());
        forward.port = at.with_context(|| line.clone())?.parse().with_context(|| line.clone())?;
        // It goes on talking, and ends when nobody listens.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of the controller's counters, over all replicas.
pub(crate) fn counter(cluster: &Cluster, name: &str, label: &str) -> Result<f64> {
    let pods = cluster.json(&["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-controller"])?;
    let mut sum = 0.0;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let Some(pod) = pod["metadata"]["name"].as_str() else { continue };
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:15014/proxy/metrics");
        let text = cluster.kubectl(&["get", "--raw", &path])?;
        sum += text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>();
    }
    Ok(sum)
}

/// What a node's daemon was told by CNI's ADD, before each pod's first process ran.
pub(crate) fn given(cluster: &Cluster, node: usize) -> Result<Vec<Value>> {
    let kept = cluster.on_node(node, &["cat", "/run/fairlead/cni.addresses.json"])?;
    let kept: Value = serde_json::from_str(&kept)?;
    kept.as_array().cloned().context("no list")
}

/// Which pods of the mesh's namespace there are, as `more` picks them, and how often their containers
/// were started.
pub(crate) fn starts(cluster: &Cluster, more: &[&str]) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].restartCount}\n{end}";
    cluster.kubectl(&[&["get", "pods", "-n", SYSTEM, "-o", path], more].concat())
}

/// Own roots of a mesh, as people put them there for Istio.
pub(crate) fn cacerts(set: &CaSet) -> String {
    let entry = |key: &str, text: &str| {
        let lines: Vec<String> =
            text.replace('\r', "").lines().map(|line| format!("    {line}\n")).collect();
        format!("  {key}: |\n{}", lines.concat())
    };
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: cacerts, namespace: {SYSTEM}}}\nstringData:\n{}{}{}{}",
        entry("ca-cert.pem", &set.ca_cert),
        entry("ca-key.pem", &set.ca_key),
        entry("root-cert.pem", &set.root_cert),
        entry("cert-chain.pem", &set.cert_chain),
    )
}
