//! What goes away and comes back: the definitions of the mesh's resources, and the tokens by which
//! nodes prove themselves.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::app_pod;
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM, manifests};

use super::flood::good_route;
use super::traffic::Target;
use super::{GUARD, NS, SOON, STRICT, admin, has_policy, status, until_status};

/// A token that is revoked ends its stream within (docs/certificates.md), with room for a busy
/// machine.
const REVOKED: Duration = Duration::from_secs(100);

/// Names of our definitions that the API server has.
fn defined(mesh: &KubeMesh) -> Result<Vec<String>> {
    let all = mesh.kubectl(&["get", "crds", "-o", "name"])?;
    Ok(all.lines().filter(|name| name.contains(".istio.io")).map(str::to_owned).collect())
}

fn finalizers(mesh: &KubeMesh, list: &str) -> Result<()> {
    let patch = format!("{{\"metadata\": {{\"finalizers\": {list}}}}}");
    let what = ["patch", "authorizationpolicy", "guard", "-n", NS, "--type=merge", "-p"];
    mesh.kubectl(&[&what[..], &[&patch]].concat()).map(drop)
}

/// All definitions are removed, with the flood and the policies, and put back.
pub(super) fn definitions(mesh: &KubeMesh) -> Result<()> {
    let dir = manifests().join("crds");
    let dir = dir.to_str().context("not UTF-8")?;
    finalizers(mesh, "[\"example.org/held\"]")?;
    let start = Instant::now();
    mesh.kubectl(&["delete", "-k", dir, "--wait=false"])?;
    // All but one: somebody holds a policy.
    eventually("the definitions go", READY, || {
        let left = defined(mesh)?;
        ensure!(left.len() == 1, "{left:?}");
        Ok(Some(()))
    })?;
    eprintln!("all definitions but a held one were gone after {:?}", start.elapsed());
    // As long as the API server has it, it is in force.
    Target::guarded().holds(mesh).context("while the policy's definition is being removed")?;
    finalizers(mesh, "null")?;
    let start = Instant::now();
    eventually("the last definition goes", READY, || {
        ensure!(defined(mesh)?.is_empty(), "still there");
        Ok(Some(()))
    })?;
    eventually("the policy is gone with it", SOON, || {
        ensure!(!has_policy(mesh, 2, "server", "guard")?, "still in force");
        Ok(Some(()))
    })?;
    eprintln!("the policy was gone {:?} after the API server let it go", start.elapsed());
    for url in ["http://server/secret", "http://closed/"] {
        until_status(mesh, url, 200)?;
    }
    // What is not written by a policy stays: both ends know each other.
    ensure!(mesh.identity(NS, "client", "http://server/")?.is_some(), "past the mesh");

    let start = Instant::now();
    mesh.kubectl(&["apply", "--server-side", "-k", dir])?;
    eventually("the policies are taken", SOON, || mesh.apply(&[STRICT, GUARD].concat()).map(Some))?;
    let taken = Instant::now();
    eprintln!("definitions and policies were back after {:?}", start.elapsed());
    eventually("the policy is in force again", SOON, || {
        ensure!(has_policy(mesh, 2, "server", "guard")?, "not yet");
        Ok(Some(()))
    })?;
    eprintln!("in force {:?} after the API server took it", taken.elapsed());
    Target::guarded().holds(mesh)?;
    ensure!(status(mesh, "http://server/")? == 200, "more than the policy says is denied");
    Ok(())
}

/// What the daemon of a node says of its configuration.
fn words(mesh: &KubeMesh, node: usize) -> Result<String> {
    mesh.on_node(node, &["curl", "-s", "-m", "5", "http://127.0.0.1:15020/ready"])
}

fn current(mesh: &KubeMesh) -> Result<()> {
    eventually("both nodes are current", SOON, || {
        for node in [1, 2] {
            let words = words(mesh, node)?;
            ensure!(words.contains("configuration is current"), "node {node}: {words}");
        }
        Ok(Some(()))
    })
}

/// The service account of the node daemons is deleted: their tokens count no more. It is made
/// again, and new daemons come with new tokens.
pub(super) fn tokens(mesh: &KubeMesh) -> Result<()> {
    current(mesh)?;
    mesh.kubectl(&["delete", "serviceaccount", "-n", SYSTEM, "fairlead-node"])?;
    let start = Instant::now();
    for node in [1, 2] {
        let said = eventually("the stream ends and no other is had", REVOKED, || {
            let said = words(mesh, node)?;
            ensure!(said.contains("Unauthenticated"), "{said}");
            Ok(Some(said))
        })?;
        ensure!(said.contains(" s old"), "{said}");
        eprintln!("node {node}, {:?} after the revocation: {}", start.elapsed(), said.trim());
    }
    // What comes now comes to no node, and no pod starts uncaptured or without a certificate.
    let mark = "while-revoked-";
    mesh.apply(&good_route(mark))?;
    let echo = ["echo", "--name", "late", "--http", "8080"];
    mesh.apply(&app_pod("late", NS, &mesh.node_name(1), &echo))?;
    let refused = eventually("the pod is refused", READY, || {
        let field = "--field-selector=involvedObject.name=late,reason=FailedCreatePodSandBox";
        let events = mesh.json(&["get", "events", "-n", NS, field])?;
        let said = events["items"][0]["message"].as_str().context("no event")?.to_owned();
        Ok(Some(said))
    })?;
    eprintln!("a pod that comes meanwhile: {refused}");
    let late = mesh.json(&["get", "pod", "late", "-n", NS])?;
    ensure!(late["status"]["phase"] == "Pending", "{}", late["status"]);
    ensure!(!admin(mesh, 1, "config_dump")?.contains(mark), "it came to a node without a token");
    Target::guarded().holds(mesh).context("without a token")?;

    let start = Instant::now();
    mesh.apply_kustomization(&manifests())?;
    mesh.kubectl(&["rollout", "restart", "-n", SYSTEM, "daemonset/fairlead-node"])?;
    mesh.wait_rollout(SYSTEM, "daemonset/fairlead-node", READY)?;
    current(mesh)?;
    eventually("what was missed is in force", SOON, || {
        ensure!(admin(mesh, 1, "config_dump")?.contains(mark), "not yet");
        Ok(Some(()))
    })?;
    eprintln!("both nodes were current {:?} after the account was there again", start.elapsed());
    mesh.ready(NS)?;
    let url = format!("http://{}:8080/", mesh.pod_ip(NS, "late")?);
    mesh.until_meshed(NS, "client", &url, true)?;
    eprintln!("the pod that had to wait was in the mesh after {:?}", start.elapsed());
    Ok(())
}
