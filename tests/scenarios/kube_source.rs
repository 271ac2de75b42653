//! Nodes and the controller on a real cluster: what is applied counts on every node within a
//! moment, and without a controller nodes go on with it, also across restarts of their daemons
//! (row 15.9).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::client::last_json;
use fairlead_tests::cluster::{Cluster, ClusterOptions, app_pod};
use fairlead_tests::{Load, eventually};
use serde_json::Value;

use crate::common::seconds;
use crate::kube::{READY, SYSTEM};

const NAMESPACE: &str = "mesh";
/// Seconds of requests between two looks, while the controller is away.
const PIECE: u64 = 10;

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

/// The certificates of both nodes, by their serial numbers.
fn serials(cluster: &Cluster) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for node in 1..=2 {
        let told = cluster.on_node(node, &["curl", "-s", "http://127.0.0.1:15000/certs"])?;
        let told: Value = serde_json::from_str(&told)?;
        for certificate in told["certificates"].as_array().context("no certificates")? {
            all.push(certificate["serial"].as_str().context("no certificate")?.to_owned());
        }
    }
    Ok(all)
}

/// New connections over the time that is asked for: every request is answered, with the certificates
/// that there are.
fn goes_on(cluster: &Cluster, url: &str) -> Result<()> {
    let (had, wanted) = (serials(cluster)?, seconds(PIECE));
    let (mut requests, mut over) = (0, 0);
    while over < wanted {
        let piece = PIECE.to_string();
        let args = ["load", url, "-d", &piece, "-r", "20", "-c", "2", "--fresh"];
        let load = Load(last_json(&cluster.app(NAMESPACE, "client", &args)?)?);
        let count = load.count("requests");
        ensure!(count > 0 && load.status(200) == count, "after {over} s: {}", load.0);
        requests += count;
        over += PIECE;
    }
    ensure!(serials(cluster)? == had, "other certificates, and nobody to issue them");
    eprintln!("{requests} requests in {over} s without the controller, none failed");
    Ok(())
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

    goes_on(&cluster, &format!("http://{ip}/"))?;
    ensure!(status("/secret")? == 403, "the policy was lost in time");

    // And it comes back.
    scale("--replicas=1")?;
    eventually("the nodes to be current", READY, || {
        let words = (1..=2).map(|n| ready(&cluster, n)).collect::<Result<Vec<_>>>()?;
        Ok(words.iter().all(|w| w.contains("configuration is current")).then_some(()))
    })?;
    cluster.kubectl(&["delete", "authorizationpolicy", "-n", NAMESPACE, "deny"])?;
    becomes("/secret", 200)
}
