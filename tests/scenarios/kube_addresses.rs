//! A pod's addresses between its start and kubelet's report of them, on a real cluster.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY};

const NS: &str = "shop";
const SYSTEM: &str = "fairlead-system";
/// How long the pod stays without addresses in its object while it is called.
const CALLS: u32 = 20;

/// Keeps kubelet's reports of pods called `held` out of the API server as soon as they name an
/// address.
const HOLD: &str = "apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: hold}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [''], apiVersions: [v1], operations: [UPDATE], resources: [pods/status]}
  validations:
  - expression: \"object.metadata.name != 'held' || !has(object.status.podIPs)\"
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: hold}
spec: {policyName: hold, validationActions: [Deny]}
---
";

/// Whoever hears of a pod's address before the API server does reaches it as a pod of the mesh,
/// though anybody may talk to it in plaintext.
#[test]
fn a_pod_whose_object_names_no_address_yet_is_reached_as_one_of_the_mesh() -> Result<()> {
    let mesh = KubeMesh::up(&ClusterOptions::default())?;
    // What a node says is known to the replica that serves it.
    mesh.kubectl(&["scale", "-n", SYSTEM, "deployment/fairlead-controller", "--replicas=1"])?;
    eventually("the other replica is gone", READY, || {
        let pods = mesh.json(&["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-controller"])?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(left == 1, "{left} are there");
        Ok(Some(()))
    })?;
    mesh.namespace(NS, "istio.io/dataplane-mode: ambient")?;
    mesh.apply(&app_pod("client", NS, &mesh.node_name(2), &["echo", "--http", "8080"]))?;
    mesh.ready(NS)?;
    held_back(&mesh)?;

    let args = ["echo", "--name", "held", "--http", "8080"];
    mesh.apply(&app_pod("held", NS, &mesh.node_name(1), &args))?;
    let inside = |command: &[&str]| mesh.in_netns(1, NS, "held", command);
    let ip: IpAddr = eventually("it has an address and serves", READY, || {
        let own = inside(&["ip", "-4", "-o", "addr", "show", "dev", "eth0"])?;
        let own = own.split_whitespace().skip_while(|word| *word != "inet").nth(1);
        let own = own.and_then(|own| own.split('/').next()).context("no address")?;
        let listens = inside(&["ss", "-Hltn", "sport", "=", ":8080"])?;
        ensure!(!listens.trim().is_empty(), "it does not listen");
        Ok(Some(own.parse()?))
    })?;
    let client: IpAddr = mesh.pod_ip(NS, "client")?.parse()?;
    let wire = mesh.observe(1)?;
    for _ in 0..CALLS {
        let url = format!("http://{ip}:8080/MARKER-early");
        let identity = mesh.identity(NS, "client", &url)?;
        ensure!(identity.is_some(), "the connection was not one of the mesh");
    }
    ensure!(mesh.pod_ips(NS, "held")?.is_empty(), "the object names addresses; nothing was shown");
    let captured = wire.stop()?;
    captured.assert_no_plaintext("MARKER-early")?;
    ensure!(captured.assert_all_tls(&[ip, client])? > 0, "nothing was seen on the wire");

    // Then the API server has them.
    mesh.delete(HOLD)?;
    eventually("kubelet's report is taken", READY, || {
        let known = mesh.pod_ips(NS, "held")?;
        ensure!(known.contains(&ip.to_string()), "{known:?}");
        Ok(Some(()))
    })?;
    let identity = mesh.identity(NS, "client", &format!("http://{ip}:8080/MARKER-late"))?;
    ensure!(identity.is_some(), "the connection was not one of the mesh");
    Ok(())
}

/// Puts [`HOLD`] in force: the API server takes a moment for that.
fn held_back(mesh: &KubeMesh) -> Result<()> {
    eventually("the policy is taken", READY, || mesh.apply(HOLD).map(Some))?;
    let nowhere = "apiVersion: v1\nkind: Pod\nmetadata: {name: held, namespace: default}\nspec:\n  \
                   schedulerName: nobody\n  containers: [{name: a, image: a}]\n";
    mesh.namespace("default", "")?;
    mesh.apply(nowhere)?;
    let patch = "{\"status\":{\"podIPs\":[{\"ip\":\"10.255.255.1\"}]}}";
    let args = [
        "patch",
        "pod",
        "held",
        "-n",
        "default",
        "--subresource=status",
        "--dry-run=server",
        "-p",
        patch,
    ];
    eventually("the policy is in force", Duration::from_secs(60), || {
        let (taken, said) = mesh.try_kubectl(&args, "")?;
        ensure!(!taken && said.contains("hold"), "{said}");
        Ok(Some(()))
    })?;
    mesh.delete(nowhere)
}
