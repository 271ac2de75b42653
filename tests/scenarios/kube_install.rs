//! What the mesh may do on a cluster, exactly; that its manifests can be applied again; that
//! uninstalling it leaves nothing on the nodes; and that it works beside Istio's definitions.

mod beside;
mod objects;
mod traces;

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM, manifests};
use fairlead_tests::process::binary;
use serde_json::Value;

/// The controller's rights everywhere: resources, names, verbs.
const EVERYWHERE: &str = "\
*.extensions.istio.io [] [get list watch]
*.networking.istio.io [] [get list watch]
*.security.istio.io [] [get list watch]
*.telemetry.istio.io [] [get list watch]
authorizationpolicies.security.istio.io/status [] [get patch update]
customresourcedefinitions.apiextensions.k8s.io [] [get list watch]
destinationrules.networking.istio.io/status [] [get patch update]
endpointslices.discovery.k8s.io [] [get list watch]
envoyfilters.networking.istio.io/status [] [get patch update]
events.events.k8s.io [] [create patch]
gateways.networking.istio.io/status [] [get patch update]
namespaces [] [get list watch]
nodes [] [get list watch]
peerauthentications.security.istio.io/status [] [get patch update]
pods [] [get list watch]
proxyconfigs.networking.istio.io/status [] [get patch update]
requestauthentications.security.istio.io/status [] [get patch update]
serviceaccounts [] [get list watch]
serviceentries.networking.istio.io/status [] [get patch update]
services [] [get list watch]
sidecars.networking.istio.io/status [] [get patch update]
telemetries.telemetry.istio.io/status [] [get patch update]
tokenreviews.authentication.k8s.io [] [create]
trafficextensions.extensions.istio.io/status [] [get patch update]
validatingwebhookconfigurations.admissionregistration.k8s.io [] [list watch]
validatingwebhookconfigurations.admissionregistration.k8s.io [fairlead-validator] [get patch update]
virtualservices.networking.istio.io/status [] [get patch update]
wasmplugins.extensions.istio.io/status [] [get patch update]
workloadentries.networking.istio.io/status [] [get patch update]
workloadgroups.networking.istio.io/status [] [get patch update]";

/// What it may do in its own namespace beside that.
const AT_HOME: &str = "\
configmaps [] [get list watch create]
configmaps [fairlead-ca-root-cert] [patch update]
leases.coordination.k8s.io [] [create]
leases.coordination.k8s.io [fairlead-controller] [get patch update]
secrets [] [list watch create]
secrets [cacerts] [get patch update]
secrets [fairlead-ca-secret] [get patch update]";

/// The CNI plugin's, while the daemon does not answer.
const PLUGIN: &str = "namespaces [] [get]\npods [] [get]";

#[test]
fn least_rights_and_nothing_left_after_uninstalling() -> Result<()> {
    let mesh = KubeMesh::without_mesh(&ClusterOptions::default())?;
    // Pods that run before there is a mesh, through all of it, and after.
    let echo = ["echo", "--http", "8080"];
    mesh.namespace("shop", "")?;
    mesh.apply(&format!(
        "{}{}",
        app_pod("server", "shop", &mesh.node_name(1), &echo),
        app_pod("client", "shop", &mesh.node_name(2), &echo),
    ))?;
    mesh.ready("shop")?;
    let url = format!("http://{}:8080/", mesh.pod_ip("shop", "server")?);
    mesh.until_meshed("shop", "client", &url, false)?;
    let pods = [(1, "server"), (2, "client")];
    let before = [traces::of_node(&mesh, 1)?, traces::of_node(&mesh, 2)?];
    let pods_before = pods.map(|(node, pod)| traces::of_pod(&mesh, node, "shop", pod));
    let pods_before = pods_before.into_iter().collect::<Result<Vec<_>>>()?;
    mesh.install()?;
    rights(&mesh)?;
    objects::are_as_they_should_be(&mesh)?;
    applied_again(&mesh)?;
    by_command(&mesh)?;
    mesh.kubectl(&["label", "namespace", "shop", "istio.io/dataplane-mode=ambient"])?;
    mesh.until_meshed("shop", "client", &url, true)?;
    let mut kernels = Vec::new();
    for ((node, pod), (before, pod_before)) in pods.iter().zip(before.iter().zip(&pods_before)) {
        let with = traces::of_node(&mesh, *node)?;
        ensure!(with.iter().any(|line| line.contains("/sys/fs/bpf/fairlead")), "{with:?}");
        ensure!(with.len() > before.len(), "{with:?}");
        let pod_with = traces::of_pod(&mesh, *node, "shop", pod)?;
        ensure!(pod_with != *pod_before, "nothing of the mesh is seen in {pod}: {pod_with:?}");
        let kernel = traces::Kernel::of_node(&mesh, *node)?;
        eprintln!("node {node}: {kernel:?}");
        kernels.push(kernel);
    }
    let (done, said) = fairlead(&mesh, &["uninstall"])?;
    ensure!(!done && said.contains("still in the mesh by their labels: shop"), "{said}");
    let (done, said) = fairlead(&mesh, &["uninstall", "--unlabel", "--crds"])?;
    ensure!(done && said.contains("gone from the cluster and from its nodes"), "{said}");
    for ((node, pod), (before, pod_before)) in pods.iter().zip(before.iter().zip(&pods_before)) {
        traces::same(&format!("node {node}"), before, &traces::of_node(&mesh, *node)?)?;
        traces::same(pod, pod_before, &traces::of_pod(&mesh, *node, "shop", pod)?)?;
    }
    for (kernel, (node, _)) in kernels.iter().zip(pods) {
        kernel.gone().with_context(|| format!("node {node}"))?;
    }
    // The pods go on as they were before: no restart, no mesh.
    mesh.until_meshed("shop", "client", &url, false)?;
    ensure!(mesh.restarts("shop", "client")? == 0 && mesh.restarts("shop", "server")? == 0);
    let left = mesh.kubectl(&[
        "get",
        "clusterroles,clusterrolebindings,priorityclasses,validatingwebhookconfigurations,\
         customresourcedefinitions,namespaces",
        "-o",
        "name",
    ])?;
    let ours: Vec<_> =
        left.lines().filter(|l| l.contains("fairlead") || l.contains("istio")).collect();
    ensure!(ours.is_empty(), "{ours:?}");
    // And pods start without the plugin.
    mesh.apply(&app_pod("late", "shop", &mesh.node_name(1), &echo))?;
    mesh.wait("shop", &["pod/late"], "condition=Ready", READY)?;
    beside::istio(&mesh, &url)
}

/// The manifests can be applied again in either way, as at every upgrade: no conflict with what
/// the controller keeps, and nothing that the same manifests made begins anew.
fn applied_again(mesh: &KubeMesh) -> Result<()> {
    let webhook = || mesh.json(&["get", "validatingwebhookconfiguration", "fairlead-validator"]);
    let before = eventually("the controller keeps its webhook", READY, || {
        let object = webhook()?;
        let hooks = object["webhooks"].as_array().context("no webhooks yet")?;
        let bundle = |hook: &Value| hook["clientConfig"]["caBundle"].is_string();
        ensure!(hooks.len() == 2 && hooks.iter().all(bundle), "{hooks:?}");
        Ok(Some(object))
    })?;
    // A Deployment's generation counts its annotations, too.
    let specs = || -> Result<Vec<Value>> {
        let all = mesh.json(&["get", "deployments,daemonsets", "-n", SYSTEM])?;
        let all = all["items"].as_array().context("no items")?;
        Ok(all.iter().map(|item| item["spec"].clone()).collect())
    };
    let made = specs()?;
    ensure!(made.len() == 3, "{made:?}");
    let dir = manifests();
    let dir = dir.to_str().context("not UTF-8")?;
    let server: &[&str] = &["--server-side"];
    for way in [&[], server, &[], server] {
        mesh.kubectl(&[&["apply", "-k", dir], way].concat()).with_context(|| format!("{way:?}"))?;
        let after = webhook()?;
        ensure!(after["webhooks"] == before["webhooks"], "{way:?}: {after}");
        // A change counts also when it was mended since.
        let generation = |object: &Value| object["metadata"]["generation"].clone();
        ensure!(generation(&after) == generation(&before), "{way:?}: it was changed");
        let now = specs()?;
        ensure!(now == made, "{way:?}: {made:?} became {now:?}");
    }
    Ok(())
}

/// `fairlead install` is the same manifests from within the program, in another way.
fn by_command(mesh: &KubeMesh) -> Result<()> {
    let dir = manifests();
    let dir = dir.to_str().context("not UTF-8")?;
    let (done, printed) = fairlead(mesh, &["install", "-o", "yaml"])?;
    ensure!(done && printed == mesh.kubectl(&["kustomize", dir])?, "not the same: {printed}");
    let overlay = manifests().join("overlays/beside-istio");
    let (done, printed) = fairlead(mesh, &["install", "--overlay", "beside-istio", "-o", "yaml"])?;
    let same = mesh.kubectl(&["kustomize", overlay.to_str().context("not UTF-8")?])?;
    ensure!(done && printed == same, "not the same: {printed}");
    let other = ["--image-registry", "example.org/mesh", "--tag", "7", "-o", "yaml"];
    let (done, printed) = fairlead(mesh, &[&["install"], &other[..]].concat())?;
    let named = |image: &str| {
        printed.contains(&format!("image: example.org/mesh/{image}:\"7\""))
            || printed.contains(&format!("image: example.org/mesh/{image}:7\n"))
    };
    let all = ["fairlead-controller", "fairlead-node", "fairlead-cni"];
    ensure!(done && all.into_iter().all(named) && !printed.contains("fairlead.dev/"), "{printed}");
    let (done, said) = fairlead(mesh, &["install"])?;
    ensure!(done && said.contains("The mesh is ready"), "{said}");
    Ok(())
}

/// The command line on this cluster; whether it succeeded, and what it said.
fn fairlead(mesh: &KubeMesh, args: &[&str]) -> Result<(bool, String)> {
    let kubectl = fairlead_cluster::Cluster::kubectl(mesh);
    let program = binary("fairlead", "FAIRLEAD_TEST_CLI")?;
    let done = Command::new(program)
        .args(args)
        .arg("--kubectl")
        .arg(kubectl.command(&[]).get_program())
        .env("KUBECONFIG", mesh.kubeconfig())
        .output()?;
    let text = [done.stdout, done.stderr].concat();
    Ok((done.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// What an account may do beside what every account may.
fn may(mesh: &KubeMesh, namespace: &str, account: &str) -> Result<BTreeSet<String>> {
    let list = |account: &str| -> Result<BTreeSet<String>> {
        let who = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
        let args = ["auth", "can-i", "--list", "--no-headers", "-n", namespace, &who];
        let table = mesh.kubectl(&args)?;
        // Resources (nothing for URLs), URLs, names, verbs.
        let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok(table.lines().map(|text| line(text).replacen(" [] ", " ", 1)).collect())
    };
    Ok(list(account)?.difference(&list("default")?).cloned().collect())
}

fn rights(mesh: &KubeMesh) -> Result<()> {
    let lines = |texts: &[&str]| -> BTreeSet<String> {
        let all = texts.iter().flat_map(|text| text.lines());
        all.map(str::to_owned).collect()
    };
    for (account, namespace, expected) in [
        ("fairlead-controller", "default", lines(&[EVERYWHERE])),
        ("fairlead-controller", SYSTEM, lines(&[EVERYWHERE, AT_HOME])),
        ("fairlead-cni", SYSTEM, lines(&[PLUGIN])),
        ("fairlead-node", SYSTEM, lines(&[])),
    ] {
        let found = may(mesh, namespace, account)?;
        let more: Vec<_> = found.difference(&expected).collect();
        let less: Vec<_> = expected.difference(&found).collect();
        ensure!(
            more.is_empty() && less.is_empty(),
            "{account} in {namespace}: more {more:?}, less {less:?}"
        );
    }
    Ok(())
}
