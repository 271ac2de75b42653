//! Invalid resources in great numbers: with the webhook down the API server takes them and nodes
//! refuse them, with the webhook up it refuses them itself. Good ones between them wait for neither.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM};

use super::{GUARD, IN_FORCE, NS, SOON, admin, admin_json, has_policy, status, until_status};
use crate::kube::counter;

/// Routes of a flood, and policies in it.
const ROUTES: usize = 300;
const POLICIES: usize = 20;
const FLOOD: usize = ROUTES + POLICIES;
/// What the controller's replicas, or the nodes' daemons, may grow by, in MiB.
const GROWTH: f64 = 64.0;
/// Rules on the wire of the controller's pods: its webhook's port refuses connections.
const DOWN: &str = "add table inet scenario; \
                    add chain inet scenario in { type filter hook input priority 0 ; }; \
                    add rule inet scenario in tcp dport 15017 reject with tcp reset";

/// A route that passes the schema and could never work.
fn bad_route(name: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {{name: {name}, namespace: {NS}}}\n\
         spec:\n\
         \x20 hosts: [{name}]\n\
         \x20 http:\n\
         \x20 - match: [{{uri: {{regex: \"(\"}}}}]\n\
         \x20   route: [{{destination: {{host: web}}}}]\n---\n"
    )
}

/// Such a policy for the pods of an application.
fn bad_policy(name: &str, app: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\n\
         kind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {NS}}}\n\
         spec:\n\
         \x20 selector: {{matchLabels: {{app: {app}}}}}\n\
         \x20 action: DENY\n\
         \x20 rules: [{{from: [{{source: {{ipBlocks: [nonsense]}}}}]}}]\n---\n"
    )
}

/// A good route for the Service `server`, whose answers show `mark`.
pub(super) fn good_route(mark: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: {{name: server, namespace: {NS}}}\n\
         spec:\n\
         \x20 hosts: [server]\n\
         \x20 http:\n\
         \x20 - headers: {{response: {{set: {{x-turn: {mark}}}}}}}\n\
         \x20   route: [{{destination: {{host: server}}}}]\n---\n"
    )
}

/// A file with a flood.
fn flood(mesh: &KubeMesh, name: &str) -> Result<PathBuf> {
    let routes = (0..ROUTES).map(|n| bad_route(&format!("{name}-{n}")));
    let policies = (0..POLICIES).map(|n| bad_policy(&format!("{name}-{n}"), &format!("none-{n}")));
    let file = mesh.dir().join(format!("{name}.yaml"));
    std::fs::write(&file, routes.chain(policies).collect::<String>())?;
    Ok(file)
}

fn create(mesh: &KubeMesh, file: &std::path::Path) -> Result<(bool, String)> {
    mesh.try_kubectl(&["create", "-f", file.to_str().context("not UTF-8")?], "")
}

/// Good routes one after the other while `work` goes on: how long after the API server had one the
/// client's node had it.
fn good_ones<T>(mesh: &KubeMesh, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    let turns = || -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        loop {
            let last = over.load(Ordering::Acquire);
            let mark = format!("{name}-{}-", took.len());
            mesh.apply(&good_route(&mark))?;
            let start = Instant::now();
            eventually(&format!("{mark} is in force"), SOON, || {
                ensure!(admin(mesh, 1, "config_dump")?.contains(&mark), "not yet");
                Ok(Some(()))
            })?;
            took.push(start.elapsed());
            if last {
                let reply = mesh.get(NS, "client", "http://server/", &[])?;
                ensure!(reply.header("x-turn") == mark, "{}", reply.0);
                return Ok(took);
            }
        }
    };
    std::thread::scope(|scope| {
        let turning = scope.spawn(turns);
        let worked = work();
        over.store(true, Ordering::Release);
        let mut took = turning.join().map_err(|_| anyhow::anyhow!("the good ones panicked"))??;
        took.sort_unstable();
        let (half, slowest) = (took[took.len() / 2], took[took.len() - 1]);
        eprintln!(
            "{name}: {} good routes meanwhile, in force within {half:?} (median), {slowest:?} (slowest)",
            took.len()
        );
        // A machine that is busy with other things may hold up one of them.
        ensure!(half <= IN_FORCE && slowest <= IN_FORCE * 5, "good routes took {took:?}");
        worked
    })
}

/// MiB of the controller's replicas and of the nodes' daemons.
fn memory(mesh: &KubeMesh) -> Result<[f64; 2]> {
    let name = "process_resident_memory_bytes";
    let nodes = mesh.metrics(1)?.with(mesh.metrics(2)?).sum(name, &[]);
    Ok([counter(mesh, name, "")?, nodes].map(|bytes| bytes / f64::from(1 << 20)))
}

/// Runs nft in the network namespace of each of the controller's pods.
fn nft(mesh: &KubeMesh, rules: &str) -> Result<()> {
    let pods = mesh.json(&["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-controller"])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        mesh.in_netns(mesh.node_of(pod)?, SYSTEM, name, &["nft", rules])?;
    }
    Ok(())
}

/// The webhook is down, and all of a flood is taken by the API server.
pub(super) fn taken(mesh: &KubeMesh) -> Result<()> {
    let before = memory(mesh)?;
    nft(mesh, DOWN)?;
    let start = Instant::now();
    mesh.apply(&bad_route("first"))?;
    eprintln!("without the webhook: {:?} for one resource", start.elapsed());
    let file = flood(mesh, "flood")?;
    let start = Instant::now();
    good_ones(mesh, "taken", || {
        let (good, said) = create(mesh, &file)?;
        ensure!(good, "not all were taken: {said}");
        eprintln!("{FLOOD} invalid resources taken within {:?}", start.elapsed());
        // A good policy is made a bad one, and one that never was good closes what it is about.
        mesh.apply(&[bad_policy("guard", "server"), bad_policy("closed", "closed")].concat())?;
        until_status(mesh, "http://closed/", 403)?;
        told(mesh, start)
    })?;
    let accepted = eventually("status of the bad policy", SOON, || {
        let condition = mesh.condition(NS, "authorizationpolicy/guard", "Accepted")?;
        ensure!(condition["status"] == "False", "{condition}");
        Ok(Some(condition))
    })?;
    eprintln!("of a policy that was made a bad one: {}", accepted["message"]);
    for node in [1, 2] {
        let problems = admin(mesh, node, "problems")?;
        ensure!(problems.contains(&format!("AuthorizationPolicy/{NS}/guard")), "{problems}");
        ensure!(node == 1 || has_policy(mesh, node, "server", "guard")?, "the last good is gone");
    }
    ensure!(status(mesh, "http://server/secret")? == 403, "the last good policy was dropped");
    ensure!(status(mesh, "http://server/")? == 200, "more than the policy says is denied");
    let after = memory(mesh)?;
    eprintln!("controllers and node daemons: {before:.1?} MiB before, {after:.1?} MiB after");
    for (before, after) in before.into_iter().zip(after) {
        ensure!(after - before < GROWTH, "grew from {before:.1} to {after:.1} MiB");
    }
    mesh.apply(GUARD)?;
    nft(mesh, "delete table inet scenario")
}

/// Nodes list all of it, status says of each what is wrong, and events are few.
fn told(mesh: &KubeMesh, start: Instant) -> Result<()> {
    for node in [1, 2] {
        eventually("the nodes refuse all of it", SOON, || {
            let errors = admin_json(mesh, node, "problems")?["errors"].as_u64().unwrap_or(0);
            ensure!(errors >= FLOOD as u64, "{errors} errors on node {node}");
            Ok(Some(()))
        })?;
    }
    eprintln!("refused by both nodes {:?} after the first", start.elapsed());
    for (kind, field, count) in [
        ("virtualservices", "spec.http[0].match[0].uri.regex: ", ROUTES),
        ("authorizationpolicies", "spec.rules[0].from[0].source.ipBlocks", POLICIES),
    ] {
        eventually("status of all of the flood", READY, || {
            let all = mesh.json(&["get", kind, "-n", NS])?;
            let flood = all["items"].as_array().into_iter().flatten().filter(|object| {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let conditions = object["status"]["conditions"].as_array();
                name.starts_with("flood-")
                    && conditions.into_iter().flatten().any(|condition| {
                        condition["type"] == "Accepted"
                            && condition["status"] == "False"
                            && condition["message"].as_str().is_some_and(|m| m.contains(field))
                    })
            });
            let told = flood.count();
            ensure!(told == count, "{told} of {count} {kind}");
            Ok(Some(()))
        })?;
    }
    let told = start.elapsed();
    let events = mesh.json(&["get", "events", "-n", NS])?;
    let ours = events["items"].as_array().into_iter().flatten().filter(|event| {
        event["involvedObject"]["name"].as_str().is_some_and(|name| name.starts_with("flood-"))
    });
    let ours = ours.count();
    eprintln!("status of all of them {told:?} after the first, {ours} events");
    ensure!((1..FLOOD).contains(&ours), "{ours} events");
    Ok(())
}

/// The webhook is up again and refuses as many.
pub(super) fn refused(mesh: &KubeMesh) -> Result<()> {
    let start = Instant::now();
    eventually("the webhook refuses", SOON, || {
        let probe = ["create", "--dry-run=server", "-f", "-"];
        let (taken, said) = mesh.try_kubectl(&probe, &bad_route("probe"))?;
        ensure!(!taken && said.contains("not a usable regular expression"), "{said}");
        Ok(Some(()))
    })?;
    eprintln!("the webhook refuses {:?} after it can be reached", start.elapsed());
    let before = memory(mesh)?;
    let file = flood(mesh, "refused")?;
    let start = Instant::now();
    good_ones(mesh, "refused", || {
        let (_, said) = create(mesh, &file)?;
        let denied = said.matches("denied the request: spec.").count();
        eprintln!("{denied} of {FLOOD} refused by the webhook within {:?}", start.elapsed());
        let last = said.lines().last().unwrap_or_default();
        // Where the webhook does not answer in time, what it would refuse is let in.
        let taken = said.lines().filter(|line| line.ends_with(" created")).count();
        ensure!(denied + taken == FLOOD, "{denied} of {FLOOD} refused, {taken} taken: {last}");
        ensure!(denied * 100 >= FLOOD * 99, "{denied} of {FLOOD} were refused: {last}");
        Ok(())
    })?;
    let after = memory(mesh)?;
    eprintln!("controllers and node daemons: {before:.1?} MiB before, {after:.1?} MiB after");
    ensure!(after[0] - before[0] < GROWTH, "the controller grew");
    Ok(())
}
