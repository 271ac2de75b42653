//! Status over all replicas of the controller: a node that refuses a resource is named whichever
//! replica serves it, all nodes are counted, and neither changes its mind when the replica that
//! writes is killed. A route is judged by what there is beside it, too: its status follows, without
//! anybody touching it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_tests::cluster::{Cluster, ClusterOptions, app_pod};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM};
use serde_json::Value;

/// Tries to have a node at each replica; each is the toss of a coin.
const TRIES: usize = 24;
/// The replica's word on nodes that are gone stands for 15 s; what is wrong about it shows then.
const STEADY: Duration = Duration::from_secs(20);
/// A corrected number of nodes is written after 30 s.
const COUNTED: Duration = Duration::from_secs(90);
const FIELD: &str = "spec.http[0].route[0].destination.host";

/// A route that goes to nodes with pods in its namespace and nowhere else.
fn route(namespace: &str, name: &str, host: &str, to: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n\
         \x20 exportTo: [\".\"]\n\
         \x20 hosts: [{host}]\n\
         \x20 http: [{{route: [{{destination: {{host: {to}}}}}]}}]\n---\n"
    )
}

/// What the webhook cannot know: the nodes refuse a route to a service that there is not.
const NOWHERE: &str = "nowhere";
const GOOD: &str = "web";

/// The replica that writes: its pod, and what it calls this start of itself.
pub(crate) fn holder(cluster: &Cluster) -> Result<(String, String)> {
    let lease = cluster.json(&["get", "lease", "-n", SYSTEM, "fairlead-controller"])?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
    let pod = holder.split('_').next().unwrap_or_default().to_owned();
    ensure!(pod.starts_with("fairlead-controller-"), "held by {holder:?}");
    Ok((pod, holder))
}

/// The pods of the controller that are to stay.
pub(crate) fn replicas(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = cluster.json(&["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-controller"])?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let there = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(there.filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect())
}

fn metric(cluster: &Cluster, pod: &str, name: &str) -> Result<f64> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:15014/proxy/metrics");
    let text = cluster.kubectl(&["get", "--raw", &path])?;
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next());
    Ok(value.with_context(|| format!("{pod} has no {name}"))?.parse()?)
}

/// The nodes that a replica serves, by its log.
fn served_by(mesh: &KubeMesh, pod: &str) -> Result<Vec<usize>> {
    let log = mesh.kubectl(&["logs", "-n", SYSTEM, pod])?;
    let mut streams: BTreeMap<usize, i64> = BTreeMap::new();
    for line in log.lines() {
        let change = match line {
            _ if line.contains("a node has come") => 1,
            _ if line.contains("a node has gone") => -1,
            _ if line.contains("the stream of a node ends") => -1,
            _ => continue,
        };
        let is = |node: &usize| line.contains(&format!("node=\"{}\"", mesh.node_name(*node)));
        if let Some(node) = (1..=2).find(is) {
            *streams.entry(node).or_default() += change;
        }
    }
    Ok(streams.into_iter().filter(|(_, streams)| *streams > 0).map(|(node, _)| node).collect())
}

/// Has daemons come again until each replica serves a node, and the one that does not write tells the
/// other. Returns its node.
pub(crate) fn spread(mesh: &KubeMesh) -> Result<usize> {
    for n in 1..=TRIES {
        // After a rollout nobody holds the Lease for a moment.
        let (leader, all) = eventually("one of two leads", READY, || {
            let ((leader, _), all) = (holder(mesh)?, replicas(mesh)?);
            ensure!(all.len() == 2 && all.contains(&leader), "{leader} of {all:?}");
            Ok(Some((leader, all)))
        })?;
        let follower = all.iter().find(|pod| **pod != leader).context("no follower")?;
        let (nodes, others) = (served_by(mesh, follower)?, served_by(mesh, &leader)?);
        if let ([node], [_]) = (&nodes[..], &others[..]) {
            let (here, there) =
                (metric(mesh, &leader, "pilot_xds{")?, metric(mesh, follower, "pilot_xds{")?);
            ensure!(here >= 1.0 && there >= 1.0, "{here} streams at the leader, {there} elsewhere");
            eprintln!(
                "after {n} tries {follower} serves node {node}; {leader}, which writes, node {}",
                others[0]
            );
            eventually("the other replica reports", READY, || {
                let reporting = metric(mesh, &leader, "fairlead_replicas_reporting")?;
                ensure!((reporting - 1.0).abs() < f64::EPSILON, "{reporting}");
                Ok(Some(()))
            })?;
            return Ok(*node);
        }
        let node = 1 + n % 2;
        let pod = mesh.pod_on(node, "fairlead-node")?;
        mesh.kubectl(&["delete", "pod", "-n", SYSTEM, &pod])?;
        mesh.wait_rollout(SYSTEM, "daemonset/fairlead-node", READY)?;
    }
    bail!("both nodes went to one replica {TRIES} times")
}

/// What is said of a route once it says so about its present generation.
fn reconciled(mesh: &KubeMesh, namespace: &str, name: &str, expected: &[&str]) -> Result<String> {
    eventually(&format!("{namespace}/{name}: {expected:?}"), COUNTED, || {
        let object = mesh.json(&["get", "virtualservice", name, "-n", namespace])?;
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let of = all.into_iter().find(|of| of["type"] == "Reconciled").unwrap_or_default();
        ensure!(of["observedGeneration"] == object["metadata"]["generation"], "{of}");
        let text = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
        let said = format!("{}, {}: {}", text("status"), text("reason"), text("message"));
        ensure!(expected.iter().all(|part| said.contains(part)), "{said}");
        Ok(Some(said))
    })
}

/// All that is to be said of all routes.
fn all_is_told(mesh: &KubeMesh, far: usize) -> Result<()> {
    let (one, two) = (mesh.node_name(1), mesh.node_name(2));
    let own = format!("; {}: {FIELD}: ", mesh.node_name(far));
    let alone = ["False, Refused: refused by 1 of 1 node", own.as_str()];
    for said in [
        reconciled(mesh, &format!("only-{far}"), "bad", &alone)?,
        reconciled(mesh, "shop", "bad", &["False, Refused: refused by 2 of 2 nodes", &one, &two])?,
        reconciled(mesh, "shop", "good", &["True, Reconciled: taken by 2 of 2 nodes"])?,
        reconciled(mesh, "only-1", "good", &["True, Reconciled: taken by 1 of 1 node"])?,
        reconciled(mesh, "only-2", "good", &["True, Reconciled: taken by 1 of 1 node"])?,
    ] {
        eprintln!("  {said}");
    }
    Ok(())
}

/// Has a signal sent to what runs in a pod of the system.
fn signal(mesh: &KubeMesh, pod: &str, signal: &str) -> Result<()> {
    let object = mesh.json(&["get", "pod", "-n", SYSTEM, pod])?;
    let id = object["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    let id = id.rsplit('/').next().unwrap_or_default();
    let kill = ["ctr", "-n", "k8s.io", "tasks", "kill", "--signal", signal, id];
    mesh.on_node(mesh.node_of(&object)?, &kill).map(drop)
}

/// Kills the replica that writes, and waits until another start of any leads.
fn kill_the_leader(mesh: &KubeMesh) -> Result<()> {
    let (pod, before) = holder(mesh)?;
    signal(mesh, &pod, "SIGKILL")?;
    let start = Instant::now();
    let after = eventually("another one leads", READY, || {
        let (_, now) = holder(mesh)?;
        ensure!(now != before, "still {now}");
        Ok(Some(now))
    })?;
    eprintln!("{before} was killed; {after} led {:?} later", start.elapsed());
    mesh.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY)
}

/// Looks at the conditions all the while that `work` lasts: none may change its status.
fn without_flapping(mesh: &KubeMesh, far: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let only = format!("only-{far}");
    let watched = [("shop", "bad", "False"), (&only, "bad", "False"), ("shop", "good", "True")];
    let over = AtomicBool::new(false);
    let looks = || -> Result<usize> {
        let mut looks = 0;
        while !over.load(Ordering::Acquire) {
            let all = mesh.json(&["get", "virtualservices", "-A"])?;
            for (namespace, name, status) in watched {
                let is = |object: &&Value| {
                    let metadata = &object["metadata"];
                    metadata["name"] == name && metadata["namespace"] == namespace
                };
                let object = all["items"].as_array().into_iter().flatten().find(is);
                let conditions = object.and_then(|o| o["status"]["conditions"].as_array());
                let of = conditions.into_iter().flatten().find(|of| of["type"] == "Reconciled");
                let of = of.with_context(|| format!("{namespace}/{name} has no condition"))?;
                ensure!(of["status"] == status, "{namespace}/{name} became {of}");
            }
            looks += 1;
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(looks)
    };
    std::thread::scope(|scope| {
        let looking = scope.spawn(looks);
        let worked = work();
        over.store(true, Ordering::Release);
        let looks = looking.join().map_err(|_| anyhow::anyhow!("the looks panicked"))??;
        eprintln!("{looks} looks, always the same");
        worked
    })
}

fn nowhere(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {NOWHERE}, namespace: {namespace}}}\n\
         spec: {{selector: {{app: web}}, ports: [{{port: 8080}}]}}\n"
    )
}

/// How often people have been told by an event that a route is refused, and what.
fn told(mesh: &KubeMesh, namespace: &str, name: &str) -> Result<(u64, Vec<String>)> {
    let field = format!("involvedObject.kind=VirtualService,involvedObject.name={name}");
    let events = mesh.json(&["get", "events", "-n", namespace, "--field-selector", &field])?;
    let events = events["items"].as_array().cloned().unwrap_or_default();
    let refused = events.iter().filter(|e| e["reason"] == "Refused" && e["type"] == "Warning");
    let of = |event: &Value| {
        let message = event["message"].as_str().unwrap_or_default().to_owned();
        (event["series"]["count"].as_u64().unwrap_or(1), message)
    };
    let (counts, messages): (Vec<u64>, Vec<String>) = refused.map(of).unzip();
    Ok((counts.into_iter().sum(), messages))
}

/// A route is right or wrong by what there is beside it, whoever touches what: on a node at the
/// replica that follows, and on both nodes.
fn routes_go_by_their_services(mesh: &KubeMesh, far: usize) -> Result<()> {
    let (only, node) = (format!("only-{far}"), mesh.node_name(far));
    let generation = |namespace: &str, name: &str| -> Result<i64> {
        let object = mesh.json(&["get", "virtualservice", name, "-n", namespace])?;
        object["metadata"]["generation"].as_i64().context("no generation")
    };
    let own = format!("; {node}: {FIELD}: ");
    let alone = ["False, Refused: refused by 1 of 1 node", own.as_str()];
    let both = ["False, Refused: refused by 2 of 2 nodes", &mesh.node_name(1), &mesh.node_name(2)];
    // The routes first.
    let late = route(&only, "late", "late", NOWHERE);
    mesh.apply(&late)?;
    let why = reconciled(mesh, &only, "late", &alone)?;
    ensure!(!why.contains("last good version"), "there was none: {why}");
    reconciled(mesh, "shop", "bad", &both)?;
    let before = (generation(&only, "late")?, generation("shop", "bad")?);
    // Then their services: nobody touches the routes.
    mesh.apply(&[nowhere(&only), nowhere("shop")].join("---\n"))?;
    reconciled(mesh, &only, "late", &["True, Reconciled: taken by 1 of 1 node"])?;
    reconciled(mesh, "shop", "bad", &["True, Reconciled: taken by 2 of 2 nodes"])?;
    // These go again.
    for namespace in [&only, "shop"] {
        mesh.kubectl(&["delete", "service", "-n", namespace, NOWHERE])?;
    }
    reconciled(mesh, &only, "late", &alone)?;
    reconciled(mesh, "shop", "bad", &both)?;
    ensure!(before == (generation(&only, "late")?, generation("shop", "bad")?), "touched");
    // What is changed has nothing to do with what is wrong: it stays wrong, in its new version.
    mesh.apply(&late.replace("http: [{", "http: [{timeout: 7s, "))?;
    ensure!(generation(&only, "late")? == before.0 + 1, "not touched");
    eprintln!("  {}", reconciled(mesh, &only, "late", &alone)?);
    // People hear of it each time that there is something for them to mend.
    eventually("three events", READY, || {
        let (count, notes) = told(mesh, &only, "late")?;
        ensure!(count == 3 && notes.iter().all(|note| note.contains(&own)), "{count}: {notes:?}");
        Ok(Some(()))
    })
}

/// A node that does not answer is named.
fn who_is_silent_is_named(mesh: &KubeMesh, far: usize) -> Result<()> {
    let daemon = mesh.pod_on(far, "fairlead-node")?;
    signal(mesh, &daemon, "SIGSTOP")?;
    let silent =
        format!("Unknown, Pending: taken by 1 of 2 nodes; no answer from {}", mesh.node_name(far));
    let said = mesh
        .apply(&route("shop", "silent", "silent", GOOD))
        .and_then(|_| reconciled(mesh, "shop", "silent", &[&silent]));
    signal(mesh, &daemon, "SIGCONT")?;
    eprintln!("  {}", said?);
    reconciled(mesh, "shop", "silent", &["True, Reconciled: taken by 2 of 2 nodes"]).map(drop)
}

#[test]
fn refusals_of_nodes_at_any_replica_are_told_and_stand_when_the_leader_dies() -> Result<()> {
    let mesh = KubeMesh::up(&ClusterOptions::default())?;
    let echo = ["echo", "--http", "8080"];
    for (namespace, nodes) in [("shop", &[1, 2][..]), ("only-1", &[1]), ("only-2", &[2])] {
        mesh.namespace(namespace, "istio.io/dataplane-mode: ambient")?;
        for node in nodes {
            let name = format!("web-{node}");
            mesh.apply(&app_pod(&name, namespace, &mesh.node_name(*node), &echo))?;
        }
        mesh.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {GOOD}, namespace: {namespace}}}\n\
             spec: {{selector: {{app: web-{}}}, ports: [{{port: 8080}}]}}\n",
            nodes[0]
        ))?;
        mesh.ready(namespace)?;
    }
    let far = spread(&mesh)?;
    let only = format!("only-{far}");
    let routes = |host: &str| {
        [
            route("shop", "bad", host, NOWHERE),
            route(&only, "bad", host, NOWHERE),
            route("shop", "good", &format!("good-{host}"), GOOD),
            route("only-1", "good", &format!("good-{host}"), GOOD),
            route("only-2", "good", &format!("good-{host}"), GOOD),
        ]
        .concat()
    };
    mesh.apply(&routes("web"))?;
    all_is_told(&mesh, far)?;
    without_flapping(&mesh, far, || {
        kill_the_leader(&mesh)?;
        std::thread::sleep(STEADY);
        Ok(())
    })?;
    all_is_told(&mesh, far)?;
    // And what is new to the one that leads now.
    mesh.apply(&routes("others"))?;
    all_is_told(&mesh, far)?;
    // Mended, it is taken.
    mesh.apply(&route(&only, "bad", "others", GOOD))?;
    reconciled(&mesh, &only, "bad", &["True, Reconciled: taken by 1 of 1 node"])?;
    // Once more, with a node at the replica that follows now.
    let far = spread(&mesh)?;
    routes_go_by_their_services(&mesh, far)?;
    who_is_silent_is_named(&mesh, far)
}
