//! A pod's addresses between its start and kubelet's report of them, on a real cluster.

mod thousand;

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM};

use crate::kube_status::{replicas, spread};

const NS: &str = "shop";
/// As the log says it.
const NOBODY_HAS_IT: &str = "no_pod_is_known_to_have_it";
/// How long the pod stays without addresses in its object while it is called.
const CALLS: u32 = 20;
const NODES: [usize; 2] = [1, 2];
/// The logs say when claims are passed on.
const LOG: &str = "FAIRLEAD_LOG=info,fairlead_controller::scope=debug";
/// What a replica told is forgotten 30 s after its last stream.
const FORGOTTEN: Duration = Duration::from_secs(35);

/// Keeps kubelet's reports of pods called `held…` out of the API server as soon as they name an
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
  - expression: \"!object.metadata.name.startsWith('held') || !has(object.status.podIPs)\"
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: hold}
spec: {policyName: hold, validationActions: [Deny]}
---
";

/// Whoever hears of a pod's address before the API server does reaches it as a pod of the mesh,
/// though anybody may talk to it in plaintext; whichever replicas of the controller serve the two
/// nodes, and when one of the replicas goes.
#[test]
fn a_pod_whose_object_names_no_address_yet_is_reached_as_one_of_the_mesh() -> Result<()> {
    let mesh = KubeMesh::up(&ClusterOptions::default())?;
    mesh.kubectl(&["set", "env", "-n", SYSTEM, "deployment/fairlead-controller", LOG])?;
    mesh.namespace(NS, "istio.io/dataplane-mode: ambient")?;
    for node in NODES {
        let client = format!("client-{node}");
        mesh.apply(&app_pod(&client, NS, &mesh.node_name(node), &["echo", "--http", "8080"]))?;
    }
    mesh.ready(NS)?;
    held_back(&mesh)?;
    mesh.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY)?;

    nobodys_address_is_not_outside(&mesh)?;

    // Each node at a replica of its own: from the one that follows to the one that leads, and the
    // other way around.
    let far = spread(&mesh)?;
    let mut held = Vec::new();
    for node in [far, 3 - far] {
        let ip = start_held(&mesh, node)?;
        is_meshed(&mesh, node, ip)?;
        eprintln!("told to the other replica after {:.1} ms", passed_on(&mesh, node)? * 1e3);
        held.push((node, ip));
    }

    // One replica goes; its node tells the other one again.
    mesh.kubectl(&["scale", "-n", SYSTEM, "deployment/fairlead-controller", "--replicas=1"])?;
    eventually("the other replica is gone", READY, || {
        let pods = mesh.json(&["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-controller"])?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(left == 1, "{left} are there");
        Ok(Some(()))
    })?;
    let gone = Instant::now();
    // What came about is counted by the one that is left.
    thousand::thousand(&mesh)?;
    std::thread::sleep(FORGOTTEN.saturating_sub(gone.elapsed()));
    for (node, ip) in &held {
        is_meshed(&mesh, *node, *ip)?;
    }

    // Then the API server has them.
    mesh.delete(HOLD)?;
    for (node, ip) in held {
        eventually("kubelet's report is taken", READY, || {
            let known = mesh.pod_ips(NS, &format!("held-{node}"))?;
            ensure!(known.contains(&ip.to_string()), "{known:?}");
            Ok(Some(()))
        })?;
        let url = format!("http://{ip}:8080/MARKER-late");
        let identity = mesh.identity(NS, &format!("client-{}", 3 - node), &url)?;
        ensure!(identity.is_some(), "the connection was not one of the mesh");
    }
    Ok(())
}

/// An address in the range of a node's pods that nobody has may be somebody's in a moment, before the
/// callers' node knows: nothing goes there in plaintext. The range's gateway is the node itself.
fn nobodys_address_is_not_outside(mesh: &KubeMesh) -> Result<()> {
    let neighbour: Ipv4Addr = mesh.pod_ip(NS, "client-2")?.parse()?;
    let [a, b, c, _] = neighbour.octets();
    let (nobody, gateway) = (Ipv4Addr::new(a, b, c, 250), Ipv4Addr::new(a, b, c, 1));
    let call = |url: &str| mesh.get(NS, "client-1", url, &["--timeout-ms=5000"]);
    let lines = |log: &str| -> Vec<String> {
        let of_it = log.lines().filter(|line| line.contains(&format!("{nobody}:8080")));
        of_it.map(str::to_owned).collect()
    };
    eventually("the reason in the log", READY, || {
        let refused = call(&format!("http://{nobody}:8080/"))?;
        ensure!(refused.error().contains("reset"), "{}", refused.0);
        let said = lines(&mesh.node_log(1)?);
        let known = said.iter().any(|line| line.contains(NOBODY_HAS_IT));
        ensure!(known, "{said:?}");
        Ok(Some(()))
    })?;
    // Just after a rollout the controller may not be there to be asked: refused as well.
    for line in lines(&mesh.node_log(1)?) {
        let refused = line.contains(NOBODY_HAS_IT) || line.contains("controller_cannot_be_asked");
        ensure!(refused, "{line}");
    }
    let node = call(&format!("http://{gateway}:15020/ready"))?;
    ensure!(node.status() == 200, "the gateway of the range: {}", node.0);
    Ok(())
}

/// Starts a pod of which the API server hears no address; its address, once it serves.
fn start_held(mesh: &KubeMesh, node: usize) -> Result<IpAddr> {
    let name = format!("held-{node}");
    let args = ["echo", "--name", &name, "--http", "8080"];
    mesh.apply(&app_pod(&name, NS, &mesh.node_name(node), &args))?;
    let inside = |command: &[&str]| mesh.in_netns(node, NS, &name, command);
    eventually("it has an address and serves", READY, || {
        let own = inside(&["ip", "-4", "-o", "addr", "show", "dev", "eth0"])?;
        let own = own.split_whitespace().skip_while(|word| *word != "inet").nth(1);
        let own = own.and_then(|own| own.split('/').next()).context("no address")?;
        let listens = inside(&["ss", "-Hltn", "sport", "=", ":8080"])?;
        ensure!(!listens.trim().is_empty(), "it does not listen");
        Ok(Some(own.parse()?))
    })
}

/// The client of the other node calls the held pod by its address, under its identity and encrypted,
/// while the API server does not know that.
fn is_meshed(mesh: &KubeMesh, node: usize, ip: IpAddr) -> Result<()> {
    let from = format!("client-{}", 3 - node);
    let client: IpAddr = mesh.pod_ip(NS, &from)?.parse()?;
    let wire = mesh.observe(node)?;
    let url = format!("http://{ip}:8080/MARKER-early");
    // Refused, as long as its address is on its way from replica to replica; never in plaintext.
    eventually("it is reached", Duration::from_secs(10), || {
        mesh.identity(NS, &from, &url).map(|identity| Some(identity.is_some()))
    })?
    .then_some(())
    .context("the first connection was not one of the mesh")?;
    for _ in 0..CALLS {
        let identity = mesh.identity(NS, &from, &url)?;
        let identity = identity.context("the connection was not one of the mesh")?;
        ensure!(identity.contains(&format!("/ns/{NS}/")), "{identity}");
    }
    let known = mesh.pod_ips(NS, &format!("held-{node}"))?;
    ensure!(known.is_empty(), "the object names {known:?}; nothing was shown");
    let captured = wire.stop()?;
    captured.assert_no_plaintext("MARKER-early")?;
    ensure!(captured.assert_all_tls(&[ip, client])? > 0, "nothing was seen on the wire");
    Ok(())
}

/// How long it took, by the logs of the two replicas, from a node's last word on addresses to the
/// other one's having it; seconds.
fn passed_on(mesh: &KubeMesh, node: usize) -> Result<f64> {
    let (mut said, mut heard) = (Vec::new(), Vec::new());
    for pod in replicas(mesh)? {
        let log = mesh.kubectl(&["logs", "-n", SYSTEM, &pod])?;
        for line in log.lines().filter(|line| line.contains(&mesh.node_name(node))) {
            if line.contains("a node claims addresses") {
                said.push(time_of(line)?);
            } else if line.contains("another replica tells of claims") && line.contains("new=1") {
                heard.push(time_of(line)?);
            }
        }
    }
    let heard = heard.into_iter().max().context("nobody heard")?;
    let said = said.into_iter().filter(|said| *said <= heard).max().context("nobody said it")?;
    Ok((heard - said).as_secs_f64())
}

/// The time of day that a line of a log begins with.
fn time_of(line: &str) -> Result<Duration> {
    let time = line.split(['T', 'Z']).nth(1).context("no time")?;
    let parts = time.split(':').map(str::parse).collect::<Result<Vec<f64>, _>>();
    let parts = parts.with_context(|| line.to_owned())?;
    Ok(Duration::from_secs_f64(parts.iter().fold(0.0, |sum, part| sum * 60.0 + part)))
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
