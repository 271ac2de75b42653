//! The workloads that clusters run, in the mesh, on a real cluster: pods that live half a second,
//! StatefulSets by the names of their pods, node-local services, rolling updates under load; and
//! policies and routes that kubectl brings.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, container};
use fairlead_tests::{Load, Reply};

use crate::common::seconds;

const NS: &str = "shop";
/// Jobs whose pods live half a second: in a usual run, and in a soak.
const SHORT_LIVES: [u64; 2] = [60, 500];
/// So many of them side by side.
const SIDE_BY_SIDE: u64 = 20;
/// What kubectl applies is in force within.
const SOON: Duration = Duration::from_secs(10);

const STRICT: &str = "apiVersion: security.istio.io/v1\n\
                      kind: PeerAuthentication\n\
                      metadata: {name: default, namespace: shop}\n\
                      spec: {mtls: {mode: STRICT}}\n";

#[test]
fn workloads_of_every_kind_in_the_mesh() -> Result<()> {
    let mesh = KubeMesh::up(&ClusterOptions::default())?;
    mesh.namespace(NS, "istio.io/dataplane-mode: ambient")?;
    mesh.apply(STRICT)?;
    mesh.apply(&format!(
        "{}{}{}",
        app_pod("client", NS, &mesh.node_name(2), &["echo", "--http", "8080"]),
        app_pod("server", NS, &mesh.node_name(1), &["echo", "--http", "8080"]),
        service("server", "server", "")
    ))?;
    mesh.apply(&stateful_set())?;
    mesh.apply(&deployment("web", 3))?;
    mesh.ready(NS)?;
    mesh.until_meshed(NS, "client", "http://server/", true)?;
    stateful(&mesh)?;
    near(&mesh)?;
    policies(&mesh)?;
    short_lives(&mesh)?;
    rolling_update(&mesh)
}

/// A service of pods with this label, and further fields of its spec.
fn service(name: &str, app: &str, more: &str) -> String {
    format!(
        "---\n\
         apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: {name}, namespace: {NS}}}\n\
         spec: {{{more}selector: {{app: {app}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n\
         ---\n"
    )
}

/// A container that answers with its pod's name.
fn named_container(more: &str) -> String {
    let name = "env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]";
    let all = if more.is_empty() { name.to_owned() } else { format!("{name}, {more}") };
    container(&["echo", "--name", "$(POD)", "--http", "8080"], &all)
}

fn stateful_set() -> String {
    format!(
        "{}apiVersion: apps/v1\n\
         kind: StatefulSet\n\
         metadata: {{name: db, namespace: {NS}}}\n\
         spec:\n\
         \x20 serviceName: db\n\
         \x20 replicas: 2\n\
         \x20 podManagementPolicy: Parallel\n\
         \x20 selector: {{matchLabels: {{app: db}}}}\n\
         \x20 template:\n\
         \x20   metadata: {{labels: {{app: db}}}}\n\
         \x20   spec: {{terminationGracePeriodSeconds: 0, containers: [{}], {}}}\n",
        service("db", "db", "clusterIP: None, "),
        named_container(""),
        spread("db"),
    )
}

/// One pod on each node as far as that goes.
fn spread(app: &str) -> String {
    format!(
        "topologySpreadConstraints: [{{maxSkew: 1, topologyKey: kubernetes.io/hostname, \
         whenUnsatisfiable: DoNotSchedule, labelSelector: {{matchLabels: {{app: {app}}}}}}}]"
    )
}

fn deployment(name: &str, replicas: usize) -> String {
    let probe =
        "readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}";
    format!(
        "{}apiVersion: apps/v1\n\
         kind: Deployment\n\
         metadata: {{name: {name}, namespace: {NS}}}\n\
         spec:\n\
         \x20 replicas: {replicas}\n\
         \x20 selector: {{matchLabels: {{app: {name}}}}}\n\
         \x20 strategy: {{rollingUpdate: {{maxSurge: 1, maxUnavailable: 0}}}}\n\
         \x20 template:\n\
         \x20   metadata: {{labels: {{app: {name}}}}}\n\
         \x20   spec: {{terminationGracePeriodSeconds: 5, containers: [{}]}}\n",
        service(name, name, ""),
        named_container(probe),
    )
}

/// Each pod by its own name: that one answers, in the mesh.
fn stateful(mesh: &KubeMesh) -> Result<()> {
    for pod in ["db-0", "db-1"] {
        let url = format!("http://{pod}.db.{NS}.svc.cluster.local:8080/");
        mesh.until_meshed(NS, "client", &url, true)?;
        let reply = mesh.get(NS, "client", &url, &[])?;
        ensure!(reply.echo("name") == pod, "{pod}: {}", reply.0);
    }
    // All of them by the name of the service.
    mesh.until_meshed(NS, "client", &format!("http://db.{NS}:8080/"), true).map(drop)
}

/// Who answers a number of requests from the client on node 2.
fn who(mesh: &KubeMesh, url: &str) -> Result<BTreeSet<String>> {
    let args = ["--requests=40", "--connections=2", "--fresh"];
    let load = mesh.load(NS, "client", url, &args)?;
    ensure!(load.count("ok") == 40, "{}", load.0);
    let pods = load.0["pods"].as_object().cloned().unwrap_or_default();
    Ok(pods.keys().cloned().collect())
}

/// `internalTrafficPolicy: Local` keeps to the node, `trafficDistribution` to the zone.
fn near(mesh: &KubeMesh) -> Result<()> {
    mesh.apply(&service("db-local", "db", "internalTrafficPolicy: Local, "))?;
    mesh.apply(&service("db-zone", "db", "trafficDistribution: PreferClose, "))?;
    mesh.apply(&service("db-any", "db", ""))?;
    mesh.apply(&service("server-local", "server", "internalTrafficPolicy: Local, "))?;
    let pods = mesh.json(&["get", "pods", "-n", NS, "-l", "app=db"])?;
    let here: BTreeSet<String> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["spec"]["nodeName"] == mesh.node_name(2).as_str())
        .filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned()))
        .collect();
    ensure!(here.len() == 1, "{here:?} on node 2");
    eventually("all pods of a usual service", SOON, || {
        let all = who(mesh, "http://db-any/")?;
        ensure!(all.len() == 2, "{all:?}");
        Ok(Some(()))
    })?;
    for url in ["http://db-local/", "http://db-zone/"] {
        // Nodes may hear of this service's endpoints a moment later.
        let near = eventually("it answers", SOON, || who(mesh, url).map(Some))?;
        ensure!(near == here, "{url}: {near:?} instead of {here:?}");
        let seen = mesh.identity(NS, "client", url)?;
        ensure!(seen.is_some(), "{url} went past the mesh");
    }
    // None on this node: refused, as kube-proxy would.
    let reply = mesh.get(NS, "client", "http://server-local/", &["--timeout-ms=4000"])?;
    ensure!(reply.status() != 200, "another node answered: {}", reply.0);
    Ok(())
}

/// From `kubectl apply` to the first request that shows it, at most: kubectl exec is in it.
fn effect(mesh: &KubeMesh, what: &str, yaml: &str, shown: impl Fn(&Reply) -> bool) -> Result<()> {
    mesh.apply(yaml)?;
    let start = Instant::now();
    eventually(what, SOON, || {
        let reply = mesh.get(NS, "client", "http://server/", &["--timeout-ms=4000"])?;
        ensure!(shown(&reply), "{}", reply.0);
        Ok(Some(()))
    })?;
    eprintln!("{what}: seen {:?} after kubectl apply", start.elapsed());
    Ok(())
}

fn policies(mesh: &KubeMesh) -> Result<()> {
    let deny = format!(
        "apiVersion: security.istio.io/v1\n\
         kind: AuthorizationPolicy\n\
         metadata: {{name: deny, namespace: {NS}}}\n\
         spec:\n\
         \x20 selector: {{matchLabels: {{app: server}}}}\n\
         \x20 action: DENY\n\
         \x20 rules: [{{from: [{{source: {{principals: [cluster.local/ns/{NS}/sa/default]}}}}]}}]\n"
    );
    effect(mesh, "a DENY policy", &deny, |reply| reply.status() == 403)?;
    accepted(mesh, "authorizationpolicy/deny")?;
    mesh.delete(&deny)?;
    let route = |fault: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\n\
             kind: VirtualService\n\
             metadata: {{name: server, namespace: {NS}}}\n\
             spec:\n\
             \x20 hosts: [server]\n\
             \x20 http:\n\
             \x20 - {fault}\n\
             \x20   route: [{{destination: {{host: server}}}}]\n"
        )
    };
    let fault = route("fault: {abort: {httpStatus: 418, percentage: {value: 100}}}");
    effect(mesh, "a VirtualService", &fault, |reply| reply.status() == 418)?;
    accepted(mesh, "virtualservice/server")?;
    // What could never work is rejected at once with the field named, and changes nothing.
    let bad = route("match: [{uri: {regex: \"(\"}}]");
    let error = mesh.apply(&bad).err().context("a bad one was taken")?;
    let said = format!("{error:#}");
    ensure!(said.contains("spec.http[0].match[0].uri.regex"), "{said}");
    let reply = mesh.get(NS, "client", "http://server/", &[])?;
    ensure!(reply.status() == 418, "{}", reply.0);
    mesh.delete(&fault)?;
    mesh.until_meshed(NS, "client", "http://server/", true).map(drop)
}

/// All nodes have taken it, and its status says so.
fn accepted(mesh: &KubeMesh, what: &str) -> Result<()> {
    for kind in ["Accepted", "Reconciled"] {
        eventually(&format!("{what} is {kind}"), SOON, || {
            let condition = mesh.condition(NS, what, kind)?;
            ensure!(condition["status"] == "True", "{condition}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

/// Jobs of one request to a STRICT server each: none fails, none hangs.
fn short_lives(mesh: &KubeMesh) -> Result<()> {
    let [usual, soak] = SHORT_LIVES;
    let lives = if seconds(0) > 0 { soak } else { usual };
    let hits = |reply: &Reply| reply.0["json"]["hits"].as_u64().context("no hits");
    let before = hits(&mesh.get(NS, "client", "http://server/", &[])?)?;
    let start = Instant::now();
    for lot in 0..lives / SIDE_BY_SIDE {
        mesh.apply(&(0..SIDE_BY_SIDE).map(|number| job(lot, number)).collect::<String>())?;
        let all = format!("--selector=lot=lot-{lot}");
        let ended = mesh.wait(NS, &["job", &all], "condition=Complete", READY);
        let jobs = mesh.json(&["get", "job", &all, "-n", NS])?;
        ended.with_context(|| jobs["items"].to_string())?;
        for job in jobs["items"].as_array().context("no list")? {
            let status = &job["status"];
            let failed = status["failed"].as_u64().unwrap_or(0);
            ensure!(
                status["succeeded"] == 1 && failed == 0,
                "{}: {status}",
                job["metadata"]["name"]
            );
        }
        mesh.kubectl(&["delete", "job", &all, "-n", NS, "--wait=false"])?;
    }
    let took = start.elapsed();
    let after = hits(&mesh.get(NS, "client", "http://server/", &[])?)?;
    ensure!(after - before == lives + 1, "{} requests of {lives} Jobs came", after - before - 1);
    eprintln!("{lives} Jobs with one request each: {lives} successes in {took:?}");
    Ok(())
}

/// One of a lot of Jobs that are made together.
fn job(lot: u64, number: u64) -> String {
    format!(
        "apiVersion: batch/v1\n\
         kind: Job\n\
         metadata: {{name: short-{lot}-{number}, namespace: {NS}, labels: {{lot: lot-{lot}}}}}\n\
         spec:\n\
         \x20 backoffLimit: 0\n\
         \x20 template:\n\
         \x20   spec: {{restartPolicy: Never, containers: [{}]}}\n\
         ---\n",
        container(&["get", "http://server/", "--fail"], "")
    )
}

/// All pods of a deployment are replaced under load, and no request fails.
fn rolling_update(mesh: &KubeMesh) -> Result<()> {
    mesh.until_meshed(NS, "client", "http://web/", true)?;
    let load = |seconds: u64| -> Result<Load> {
        let command = [
            "/usr/local/bin/fairlead-apps",
            "load",
            "http://web/",
            &format!("--duration={seconds}"),
            "--rps=50",
            "--connections=4",
        ];
        Ok(Load(serde_json::from_str(&mesh.exec(NS, "client", &command)?)?))
    };
    std::thread::scope(|scope| -> Result<()> {
        let running = scope.spawn(|| load(40));
        std::thread::sleep(Duration::from_secs(2));
        let start = Instant::now();
        mesh.kubectl(&["rollout", "restart", "deployment/web", "-n", NS])?;
        mesh.wait_rollout(NS, "deployment/web", READY)?;
        eprintln!("rolled out within {:?}", start.elapsed());
        let load = running.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        eprintln!("under load: {}", load.0);
        ensure!(load.count("failed") == 0, "{}", load.0);
        ensure!(load.status(200) == load.count("requests"), "{}", load.0);
        let pods = load.0["pods"].as_object().map_or(0, serde_json::Map::len);
        ensure!(pods >= 4, "the update was not under load: {}", load.0);
        Ok(())
    })
}
