//! The webhook and status on a real cluster: what could never work is rejected with its field,
//! reason and what is allowed; nothing that mends a cluster is in anybody's way, also with the
//! controller gone; what became of a resource stands in its status and in events.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::eventually;
use serde_json::Value;

use crate::kube::{READY, SYSTEM, cluster_with_controller, counter};

const SOON: Duration = Duration::from_secs(30);
/// Invalid resources of the flood.
const FLOOD: usize = 200;

fn route(name: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {{name: {name}, namespace: default}}\n\
         spec:\n\
         \x20 hosts: [reviews]\n\
         \x20 http:\n\
         \x20 - match: [{{uri: {{{more}}}}}]\n\
         \x20   route: [{{destination: {{host: reviews}}}}]\n"
    )
}

/// Passes the schema, and could never work.
const NEVER: &str = "regex: \"(\"";
const GOOD: &str = "prefix: /";

fn apply(cluster: &Cluster, yaml: &str) -> Result<(bool, String)> {
    cluster.try_kubectl(&["apply", "--server-side", "-f", "-"], yaml)
}

fn refused(cluster: &Cluster, yaml: &str) -> Result<String> {
    let (taken, said) = apply(cluster, yaml)?;
    ensure!(!taken, "taken: {said}");
    Ok(said)
}

fn scale(cluster: &Cluster, replicas: &str) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    cluster.kubectl(&["scale", "-n", SYSTEM, "deployment/fairlead-controller", &replicas])?;
    if replicas.ends_with("=0") {
        let pods = ["pods", "-l", "app=fairlead-controller"];
        return cluster.wait(SYSTEM, &pods, "delete", READY);
    }
    cluster.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY)
}

/// The webhook as the API server has it.
fn webhooks(cluster: &Cluster) -> Result<Vec<Value>> {
    let all = cluster.json(&["get", "validatingwebhookconfiguration", "fairlead-validator"])?;
    Ok(all["webhooks"].as_array().cloned().unwrap_or_default())
}

fn serves(cluster: &Cluster) -> Result<()> {
    eventually("the webhook serves", READY, || {
        // What got in once would pass as unchanged.
        let try_it = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
        let (taken, said) = cluster.try_kubectl(&try_it, &route("probe", NEVER))?;
        ensure!(!taken, "taken: {said}");
        ensure!(said.contains("not a usable regular expression"), "{said}");
        Ok(Some(()))
    })
}

#[test]
fn what_could_never_work_is_rejected_and_mending_is_never_hindered() -> Result<()> {
    let cluster = cluster_with_controller(1)?;
    let begun = Instant::now();
    serves(&cluster)?;
    eprintln!("the webhook rejected {:?} after the controller was ready", begun.elapsed());
    rejections_say_what_to_do(&cluster)?;
    somebody_spoils_the_configuration(&cluster)?;
    without_the_controller(&cluster)?;
    status_and_events(&cluster)?;
    the_leader_dies(&cluster)?;
    a_flood(&cluster)
}

fn rejections_say_what_to_do(cluster: &Cluster) -> Result<()> {
    let said = refused(cluster, &route("bad", NEVER))?;
    for word in ["spec.http[0].match[0].uri.regex", "not a usable regular expression", "RE2"] {
        ensure!(said.contains(word), "{word}: {said}");
    }
    let (taken, said) = apply(cluster, &route("good", GOOD))?;
    ensure!(taken && !said.contains("Warning"), "{said}");
    // What has no effect yet is taken with a warning.
    let (taken, said) = apply(cluster, &route("partly", "prefix: /}, statPrefix: x, headers: {"))?;
    ensure!(taken && said.contains("Warning: ") && said.contains("not enforced yet"), "{said}");
    // So is what makes traffic fail.
    let redirected = route("redirected", GOOD)
        .replace("route: [{destination: {host: reviews}}]", "redirect: {uri: /elsewhere}");
    let (taken, said) = apply(cluster, &redirected)?;
    ensure!(taken && said.contains("Warning: ") && said.contains("answered 503"), "{said}");
    // A good one is not made a bad one, and is still there.
    refused(cluster, &route("good", NEVER))?;
    let good = cluster.json(&["get", "virtualservice", "good"])?;
    ensure!(good["spec"]["http"][0]["match"][0]["uri"]["prefix"] == "/", "{good}");
    // The mesh's own namespace is looked after too.
    let mesh_wide = route("bad", NEVER).replace("namespace: default", "namespace: fairlead-system");
    refused(cluster, &mesh_wide)?;
    let resource = "resource=\"virtualservices\"";
    ensure!(counter(cluster, "galley_validation_failed", resource)? >= 3.0);
    ensure!(counter(cluster, "galley_validation_passed", resource)? >= 2.0);
    Ok(())
}

/// The CA bundle and the rules come back by themselves.
fn somebody_spoils_the_configuration(cluster: &Cluster) -> Result<()> {
    let before = webhooks(cluster)?;
    let spoil = r#"[{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": ""},
                    {"op": "replace", "path": "/webhooks/0/rules", "value": []}]"#;
    let name = ["patch", "validatingwebhookconfiguration", "fairlead-validator", "--type=json"];
    cluster.kubectl(&[&name[..], &["-p", spoil]].concat())?;
    eventually("the configuration is mended", SOON, || {
        ensure!(webhooks(cluster)? == before, "still spoilt");
        Ok(Some(()))
    })?;
    serves(cluster)
}

/// With no replica left, everything can be written, and what was bad can be mended and deleted
/// later, also with the webhook there.
fn without_the_controller(cluster: &Cluster) -> Result<()> {
    scale(cluster, "0")?;
    let start = Instant::now();
    let (taken, said) = apply(cluster, &route("broken", NEVER))?;
    ensure!(taken, "{said}");
    ensure!(start.elapsed() < Duration::from_secs(15), "took {:?}", start.elapsed());
    let (taken, said) = apply(cluster, &route("gone", NEVER))?;
    ensure!(taken, "{said}");
    cluster.kubectl(&["delete", "virtualservice", "gone"])?;
    scale(cluster, "2")?;
    serves(cluster)?;
    // Labels of a broken one; its deletion with a finalizer that somebody has to take away.
    cluster.kubectl(&["label", "virtualservice", "broken", "seen=yes"])?;
    let finalizer = |list: &str| format!("{{\"metadata\": {{\"finalizers\": {list}}}}}");
    let patch = ["patch", "virtualservice", "broken", "--type=merge", "-p"];
    cluster.kubectl(&[&patch[..], &[&finalizer("[\"example.org/x\"]")]].concat())?;
    Ok(())
}

fn condition(object: &Value, kind: &str) -> Value {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

/// An object once all that is said of it is about its present generation.
fn judged(cluster: &Cluster, name: &str) -> Result<Value> {
    judged_within(cluster, name, SOON)
}

fn judged_within(cluster: &Cluster, name: &str, limit: Duration) -> Result<Value> {
    eventually(&format!("status of {name}"), limit, || {
        let object = cluster.json(&["get", "virtualservice", name])?;
        let generation = &object["metadata"]["generation"];
        let accepted = condition(&object, "Accepted");
        ensure!(accepted["observedGeneration"] == *generation, "{}", object["status"]);
        Ok(Some(object))
    })
}

fn status_and_events(cluster: &Cluster) -> Result<()> {
    let good = judged(cluster, "good")?;
    for kind in ["Accepted", "Reconciled", "Enforced"] {
        let of = condition(&good, kind);
        ensure!(of["status"] == "True" && of["lastTransitionTime"].is_string(), "{kind}: {of}");
    }
    let partly = condition(&judged(cluster, "partly")?, "Enforced");
    ensure!(partly["status"] == "False" && partly["reason"] == "NotEnforcedYet", "{partly}");
    ensure!(partly["message"].as_str().is_some_and(|m| m.contains("statPrefix")), "{partly}");
    let redirected = condition(&judged(cluster, "redirected")?, "Enforced");
    let said = redirected["message"].as_str().unwrap_or_default();
    ensure!(redirected["reason"] == "RefusesTraffic" && said.contains("503"), "{redirected}");
    // What came while nobody looked.
    let broken = judged(cluster, "broken")?;
    let accepted = condition(&broken, "Accepted");
    ensure!(accepted["status"] == "False" && accepted["reason"] == "Invalid", "{accepted}");
    let message = accepted["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("spec.http[0].match[0].uri.regex: "), "{message}");
    let events = eventually("an event", SOON, || {
        let field = "--field-selector=involvedObject.name=broken";
        let events = cluster.json(&["get", "events", field])?;
        let items = events["items"].as_array().cloned().unwrap_or_default();
        ensure!(!items.is_empty(), "none yet");
        Ok(Some(items))
    })?;
    ensure!(events.len() == 1, "one is enough: {events:?}");
    ensure!(events[0]["reason"] == "Invalid" && events[0]["type"] == "Warning", "{events:?}");
    // Mended: it says so. And what is on its way out can go.
    let (taken, said) = apply(cluster, &route("broken", GOOD))?;
    ensure!(taken, "{said}");
    let mended = condition(&judged(cluster, "broken")?, "Accepted");
    ensure!(mended["status"] == "True", "{mended}");
    cluster.kubectl(&["delete", "virtualservice", "broken", "--wait=false"])?;
    let free = ["patch", "virtualservice", "broken", "--type=merge", "-p"];
    cluster.kubectl(&[&free[..], &["{\"metadata\": {\"finalizers\": null}}"]].concat())?;
    Ok(())
}

/// The replica that writes is ended without a farewell, and the other one goes on.
fn the_leader_dies(cluster: &Cluster) -> Result<()> {
    let holder = || -> Result<String> {
        let lease = cluster.json(&["get", "lease", "-n", SYSTEM, "fairlead-controller"])?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        // "POD_…"
        Ok(holder.split('_').next().unwrap_or_default().to_owned())
    };
    let leader = holder()?;
    ensure!(leader.starts_with("fairlead-controller-"), "led by {leader:?}");
    let path = "jsonpath={.status.containerStatuses[0].containerID}";
    let id = cluster.kubectl(&["get", "pod", "-n", SYSTEM, &leader, "-o", path])?;
    let id = id.trim().rsplit('/').next().unwrap_or_default().to_owned();
    let kill = ["ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", &id];
    cluster.on_node(1, &kill)?;
    let start = Instant::now();
    ensure!(apply(cluster, &route("orphan", GOOD))?.0, "not taken");
    judged_within(cluster, "orphan", READY)?;
    // A new life of the same pod has a name of its own, so either may lead now.
    eprintln!(
        "status went on {:?} after the leader was killed, {leader} to {}",
        start.elapsed(),
        holder()?
    );
    cluster.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY)
}

/// Many bad resources that got in: status is written for each, events are bounded, and a good one
/// among them does not wait long.
fn a_flood(cluster: &Cluster) -> Result<()> {
    scale(cluster, "0")?;
    let flood: Vec<String> =
        (0..FLOOD).map(|n| route(&format!("flood-{n}"), NEVER) + "---\n").collect();
    let (taken, said) = apply(cluster, &flood.concat())?;
    ensure!(taken, "{said}");
    scale(cluster, "2")?;
    let start = Instant::now();
    eventually("status of all of the flood", READY, || {
        let all = cluster.json(&["get", "virtualservices"])?;
        let bad = all["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|object| condition(object, "Accepted")["status"] == "False");
        let count = bad.count();
        ensure!(count == FLOOD, "{count} of {FLOOD}");
        Ok(Some(()))
    })?;
    let judged_in = start.elapsed();
    let events = cluster.json(&["get", "events", "-A"])?;
    let ours = events["items"].as_array().into_iter().flatten().filter(|event| {
        event["involvedObject"]["name"].as_str().is_some_and(|name| name.starts_with("flood-"))
    });
    let ours = ours.count();
    ensure!((1..FLOOD).contains(&ours), "{ours} events");
    eprintln!("status of {FLOOD} invalid resources within {judged_in:?}, {ours} events");
    let start = Instant::now();
    ensure!(apply(cluster, &route("after", GOOD))?.0, "not taken");
    judged(cluster, "after")?;
    ensure!(start.elapsed() < SOON, "status took {:?}", start.elapsed());
    Ok(())
}
