//! Nodes and the controller on a real cluster: what is applied counts on every node within a
//! moment, and without a controller nodes go on with it, also across restarts of their daemons
//! (row 15.9).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{Cluster, ClusterOptions, app_pod};
use fairlead_tests::eventually;

use crate::kube::{READY, SYSTEM};

const NAMESPACE: &str = "mesh";

fn manifests(cluster: &Cluster) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    cluster.load_programs(&[
        "fairlead-controller",
        "fairlead-node",
        "fairlead-cni",
        "fairlead-apps",
    ])?;
    cluster.apply_kustomization(&root.join("crds"))?;
    eventually("the manifests are taken", READY, || {
        cluster.apply_kustomization(&root.join("base")).map(Some)
    })?;
    cluster.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY)?;
    cluster.wait_rollout(SYSTEM, "daemonset/fairlead-node", READY)
}

/// What the daemon of a node says of itself.
fn ready(cluster: &Cluster, node: usize) -> Result<String> {
    cluster.on_node(node, &["curl", "-s", "http://127.0.0.1:15020/ready"])
}

#[test]
fn nodes_go_on_without_the_controller_and_across_restarts() -> Result<()> {
    let cluster = Cluster::up(&ClusterOptions::default())?;
    manifests(&cluster)?;
    let name = cluster.record().name.clone();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: \
         {{istio.io/dataplane-mode: ambient}}}}\n"
    ))?;
    let echo = |pod: &str, node: usize| {
        let node = format!("{name}-{node}");
        app_pod(pod, NAMESPACE, &node, &["echo", "--name", pod, "--http", "8080"])
    };
    eventually("the service account", READY, || {
        let get = ["get", "serviceaccount", "default", "-n", NAMESPACE];
        cluster.kubectl(&get).map(Some)
    })?;
    cluster.apply(&format!("{}{}", echo("client", 1), echo("server", 2)))?;
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: {NAMESPACE}}}\nspec: \
         {{selector: {{app: server}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
    ))?;
    cluster.wait(NAMESPACE, &["pod", "client", "server"], "condition=Ready", READY)?;
    let service = cluster.json(&["get", "service", "server", "-n", NAMESPACE])?;
    let ip = service["spec"]["clusterIP"].as_str().context("no cluster IP")?.to_owned();
    let status = |path: &str| -> Result<u16> {
        let url = format!("http://{ip}{path}");
        Ok(cluster.get(NAMESPACE, "client", &url, &["--timeout-ms", "3000"])?.status())
    };
    let becomes = |path: &str, wanted: u16| {
        eventually(&format!("{path} to answer {wanted}"), Duration::from_secs(30), || {
            let found = status(path)?;
            ensure!(found == wanted, "{found}");
            Ok(Some(()))
        })
    };
    becomes("/", 200)?;
    let reply = cluster.get(NAMESPACE, "client", &format!("http://{ip}/"), &[])?;
    let xfcc = reply.seen("x-forwarded-client-cert").unwrap_or_default();
    ensure!(xfcc.contains(&format!("/ns/{NAMESPACE}/sa/default")), "no mTLS: {xfcc:?}");
    cluster.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny, \
         namespace: {NAMESPACE}}}\nspec:\n  action: DENY\n  rules: [{{to: [{{operation: {{paths: \
         [/secret]}}}}]}}]\n"
    ))?;
    becomes("/secret", 403)?;
    ensure!(status("/")? == 200);
    for node in 1..=2 {
        let words = ready(&cluster, node)?;
        ensure!(words.contains("configuration is current"), "node {node}: {words}");
    }

    // The controller goes, then the daemons do.
    let scale = |replicas: &str| {
        cluster.kubectl(&["scale", "-n", SYSTEM, "deployment/fairlead-controller", replicas])
    };
    scale("--replicas=0")?;
    eventually("the nodes to notice", READY, || {
        let old = (1..=2).map(|n| ready(&cluster, n)).collect::<Result<Vec<_>>>()?;
        Ok(old.iter().all(|words| words.contains("s old")).then_some(()))
    })?;
    ensure!(status("/secret")? == 403 && status("/")? == 200);
    cluster.kubectl(&[
        "delete",
        "pod",
        "-n",
        SYSTEM,
        "-l",
        "app=fairlead-node",
        "--grace-period=0",
        "--force",
    ])?;
    eventually("the daemons to be back", READY, || {
        let words = (1..=2).map(|n| ready(&cluster, n)).collect::<Result<Vec<_>>>()?;
        let back = |w: &String| w.starts_with("ready") && w.contains("from the state on disk");
        ensure!(words.iter().all(back), "{words:?}");
        Ok(Some(()))
    })?;
    becomes("/", 200)?;
    ensure!(status("/secret")? == 403, "the policy was lost with the daemon");
    let reply = cluster.get(NAMESPACE, "client", &format!("http://{ip}/"), &[])?;
    let xfcc = reply.seen("x-forwarded-client-cert").unwrap_or_default();
    ensure!(xfcc.contains(&format!("/ns/{NAMESPACE}/sa/default")), "no mTLS: {xfcc:?}");

    // And it comes back.
    scale("--replicas=1")?;
    eventually("the nodes to be current", READY, || {
        let words = (1..=2).map(|n| ready(&cluster, n)).collect::<Result<Vec<_>>>()?;
        Ok(words.iter().all(|w| w.contains("configuration is current")).then_some(()))
    })?;
    cluster.kubectl(&["delete", "authorizationpolicy", "-n", NAMESPACE, "deny"])?;
    becomes("/secret", 200)
}
