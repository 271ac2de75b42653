//! Traffic that is not from pod to pod of the mesh, on a real cluster: kubelet's probes and what
//! imitates them, NetworkPolicy, the host's network and its ports.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::kube::{KubeMesh, READY, container};
use fairlead_tests::{Metrics, eventually};

use crate::common::seconds;

/// How long probed pods are watched, unless it is a soak.
const WATCHED: u64 = 30;
/// The port of the node that leads to a pod.
const HOST_PORT: &str = "18080";
/// New connections over sessions from before a rule end within, while there are any
/// (docs/kubernetes.md), with room for a busy machine.
const LATER: Duration = Duration::from_secs(60);
/// Probes that are waited for under the rules of a policy engine.
const PROBED: u64 = 6;
/// Rules of a policy engine live in a table of its own.
const TABLE: &str = "inet policy-engine";

/// STRICT, and nobody may do anything.
const LOCKED: &str = "apiVersion: security.istio.io/v1\n\
                      kind: PeerAuthentication\n\
                      metadata: {name: default, namespace: locked}\n\
                      spec: {mtls: {mode: STRICT}}\n\
                      ---\n\
                      apiVersion: security.istio.io/v1\n\
                      kind: AuthorizationPolicy\n\
                      metadata: {name: nothing, namespace: locked}\n\
                      spec: {}\n";

/// The four kinds of probes.
const PROBES: [(&str, &str); 4] = [
    ("http", "httpGet: {path: /, port: 8080}"),
    ("tcp", "tcpSocket: {port: 8080}"),
    ("grpc", "grpc: {port: 8080}"),
    (
        "exec",
        "exec: {command: [/usr/local/bin/fairlead-apps, get, \"http://127.0.0.1:8080/\", --fail]}",
    ),
];

#[test]
fn probes_policies_and_the_hosts_network() -> Result<()> {
    let mesh = KubeMesh::up(&ClusterOptions::default())?;
    mesh.namespace("locked", "istio.io/dataplane-mode: ambient")?;
    mesh.namespace("net", "istio.io/dataplane-mode: ambient")?;
    mesh.namespace("outside", "")?;
    mesh.apply(LOCKED)?;
    let mut pods = vec![
        app_pod("client", "net", &mesh.node_name(2), &["echo", "--http", "8080"]),
        app_pod("two-ports", "net", &mesh.node_name(1), &["echo", "--http=8080", "--http=8081"]),
        app_pod("plain", "outside", &mesh.node_name(1), &["echo", "--http", "8080"]),
        with_host_port(&mesh),
    ];
    pods.extend(PROBES.map(|(kind, probe)| probed(&mesh, kind, probe)));
    pods.extend([1, 2].map(|node| on_the_host(&mesh, node)));
    mesh.apply(&pods.concat())?;
    let start = Instant::now();
    for namespace in ["locked", "net", "outside"] {
        mesh.ready(namespace)?;
    }
    eprintln!("all pods were ready after {:?}", start.elapsed());
    let ready = Instant::now();
    imitations_of_probes_are_refused(&mesh)?;
    network_policies_keep_their_meaning(&mesh)?;
    the_hosts_network(&mesh)?;
    ports_of_the_host(&mesh)?;
    std::thread::sleep(Duration::from_secs(seconds(WATCHED)).saturating_sub(ready.elapsed()));
    for (kind, _) in PROBES {
        ensure!(mesh.restarts("locked", kind)? == 0, "{kind}: was restarted");
        let ready = mesh.condition("locked", &format!("pod/{kind}"), "Ready")?;
        ensure!(ready["status"] == "True", "{kind}: {ready}");
    }
    eprintln!("probed for {:?}", ready.elapsed());
    let unhealthy =
        mesh.kubectl(&["get", "events", "-n", "locked", "--field-selector=reason=Unhealthy"])?;
    let failed = unhealthy.lines().filter(|line| line.contains("Liveness probe failed")).count();
    ensure!(failed == 0, "{unhealthy}");
    Ok(())
}

fn probed(mesh: &KubeMesh, kind: &str, probe: &str) -> String {
    let times = "periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 3";
    let probe = |name: &str| format!("{name}: {{{probe}, {times}}}");
    let probes = [probe("startupProbe"), probe("readinessProbe"), probe("livenessProbe")];
    let times_more = probes.join(", ").replacen("failureThreshold: 3", "failureThreshold: 60", 1);
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: {kind}, namespace: locked}}\n\
         spec: {{nodeName: {}, terminationGracePeriodSeconds: 0, containers: [{}]}}\n\
         ---\n",
        mesh.node_name(1),
        container(&["echo", "--name", kind, "--http", "8080"], &times_more)
    )
}

fn on_the_host(mesh: &KubeMesh, node: usize) -> String {
    app_pod(&format!("host-{node}"), "outside", &mesh.node_name(node), &["echo", "--http=28080"])
        .replace("spec:\n", "spec:\n\x20 hostNetwork: true\n")
}

fn with_host_port(mesh: &KubeMesh) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{name: host-port, namespace: net, labels: {{app: host-port}}}}\n\
         spec: {{nodeName: {}, terminationGracePeriodSeconds: 0, containers: [{}]}}\n\
         ---\n",
        mesh.node_name(1),
        container(
            &["echo", "--name", "host-port", "--http", "8080"],
            &format!("ports: [{{containerPort: 8080, hostPort: {HOST_PORT}}}]")
        )
    )
}

/// Status and error of a request; 0 when there was no answer.
fn verdict(mesh: &KubeMesh, from: (&str, &str), url: &str) -> Result<(u16, String)> {
    let reply = mesh.get(from.0, from.1, url, &["--timeout-ms", "4000"])?;
    Ok((reply.status(), reply.error()))
}

/// A process on the host's network that is no kubelet, on this node and another; a pod outside and
/// one inside the mesh; and a pod that claims the node's address.
fn imitations_of_probes_are_refused(mesh: &KubeMesh) -> Result<()> {
    let url = format!("http://{}:8080/", mesh.pod_ip("locked", "http")?);
    for from in [("outside", "host-1"), ("outside", "host-2"), ("outside", "plain")] {
        let (status, error) = verdict(mesh, from, &url)?;
        eprintln!("{from:?} to a probed port: {error}");
        ensure!(status == 0, "{from:?} got {status}");
    }
    let (status, _) = verdict(mesh, ("net", "client"), &url)?;
    ensure!(status == 403, "an identity that may not: {status}");
    // The node's address on a pod's loopback, as a pod with NET_ADMIN could have it.
    let node = mesh.node_ip(1)?;
    let claim = ["ip", "address", "add", &format!("{node}/32"), "dev", "lo"];
    mesh.in_netns(1, "outside", "plain", &claim)?;
    let to = format!("{}:8080", mesh.pod_ip("locked", "http")?);
    let source = format!("--source={node}:0");
    let command = [
        "/usr/local/bin/fairlead-apps",
        "send",
        &to,
        "GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
        &source,
    ];
    // No connection can come of it: the answer goes to the node. But where the node lets its own
    // addresses in, the SYN comes to the pod, and has to be taken for a stranger's and not for a probe.
    let lets_in = |how: u8| {
        let script = format!("echo {how} >/proc/sys/net/ipv4/conf/all/accept_local");
        mesh.on_node(1, &["sh", "-c", &script]).map(drop)
    };
    let captured = || -> Result<f64> {
        let labels = [("event", "captured_inbound")];
        Ok(mesh.metrics(1)?.sum("fairlead_capture_events_total", &labels))
    };
    let before = captured()?;
    lets_in(1)?;
    let told = mesh.exec("outside", "plain", &command)?;
    ensure!(!told.contains("200 OK"), "{told}");
    lets_in(0)?;
    let after = captured()?;
    eprintln!("with the node's address: {after} connections captured, {before} before");
    // It is sent again and again, for ten seconds.
    ensure!(after >= before + 3.0, "SYNs with the node's address were not captured");
    let claim = ["ip", "address", "del", &format!("{node}/32"), "dev", "lo"];
    mesh.in_netns(1, "outside", "plain", &claim)?;
    Ok(())
}

/// Rules on both nodes as a policy engine writes them: to the pod, and out of the client, port 8080
/// alone; nothing at all to the probed pods but from their own node, which engines let through by
/// its address, as Kubernetes wants it.
fn network_policies_keep_their_meaning(mesh: &KubeMesh) -> Result<()> {
    let server = mesh.pod_ip("net", "two-ports")?;
    let client = mesh.pod_ip("net", "client")?;
    let url = |port: u16| format!("http://{server}:{port}/");
    let mut locked = Vec::new();
    for (kind, _) in PROBES {
        locked.push(mesh.pod_ip("locked", kind)?);
    }
    // Probes are sent by the node itself: they never come to `forward`, but to where the pods are.
    let rules = format!(
        "table {TABLE} {{\n\
         chain to_pods {{\n\
         type filter hook postrouting priority 0; policy accept;\n\
         ip daddr != {{ {locked} }} accept\n\
         ct state established,related accept\n\
         fib saddr type local counter accept comment \"node\"\n\
         counter drop comment \"locked\"\n\
         }}\n\
         chain forward {{\n\
         type filter hook forward priority 0; policy accept;\n\
         tcp dport 15008 counter drop comment \"tunnel\"\n\
         ct state established,related accept\n\
         ip daddr {server} tcp dport 8080 counter accept comment \"allowed\"\n\
         ip daddr {server} counter drop\n\
         ip saddr {client} tcp dport 8080 accept\n\
         ip saddr {client} meta l4proto tcp counter drop\n\
         }}\n}}\n",
        locked = locked.join(", ")
    );
    let apply = || {
        [1, 2].into_iter().try_for_each(|node| -> Result<()> {
            let inside = &mut mesh.command_on_node(node)?;
            let nft = inside.args(["nft", "-f", "-"]);
            fairlead_cluster::system::output_with(nft, rules.as_bytes()).map(drop)
        })
    };
    let remove = || {
        let command = ["nft", "delete", "table", "inet", "policy-engine"];
        [1, 2].into_iter().try_for_each(|node| mesh.on_node(node, &command).map(drop))
    };
    apply()?;
    mesh.until_meshed("net", "client", &url(8080), true)?;
    let (status, error) = verdict(mesh, ("net", "client"), &url(8081))?;
    eprintln!("a port that NetworkPolicy does not allow: {status} {error}");
    ensure!(status != 200, "8081 was let through");
    let counted = |comment: &str| -> Result<u64> {
        let shown = mesh.on_node(1, &["nft", "list", "table", "inet", "policy-engine"])?;
        let line = shown.lines().find(|line| line.contains(comment)).unwrap_or_default();
        let mut words = line.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|n| n.parse::<u64>().ok()).with_context(|| shown.clone())
    };
    ensure!(counted("allowed")? > 0, "nothing came by the rule that allows it");
    ensure!(counted("tunnel")? == 0, "something needs a port of ours");
    probed_by_the_node_alone(mesh, &locked, &counted)?;
    // It was the rules.
    remove()?;
    mesh.until_meshed("net", "client", &url(8081), true)?;
    // They leave open sessions alone. New connections go over those, but not for long.
    apply()?;
    let start = Instant::now();
    let error = eventually("a rule that comes later holds", LATER, || {
        let (status, error) = verdict(mesh, ("net", "client"), &url(8081))?;
        ensure!(status != 200, "8081 was let through");
        Ok(Some(error))
    })?;
    eprintln!("refused {:?} after the rules came: {error}", start.elapsed());
    mesh.until_meshed("net", "client", &url(8080), true)?;
    remove()?;
    mesh.until_meshed("net", "client", &url(8081), true).map(drop)
}

/// With a rule against everybody else, three pods' probes come through, and a stranger does not.
fn probed_by_the_node_alone(
    mesh: &KubeMesh,
    locked: &[String],
    counted: &impl Fn(&str) -> Result<u64>,
) -> Result<()> {
    ensure!(counted("locked")? == 0, "the rules dropped a probe");
    let passed = |metrics: &Metrics| {
        metrics.sum("fairlead_capture_events_total", &[("event", "passed_probe")])
    };
    let before = (counted("node")?, passed(&mesh.metrics(1)?));
    eventually("probes come by the rules, and are known as such", READY, || {
        let now = (counted("node")?, passed(&mesh.metrics(1)?));
        Ok((now.0 >= before.0 + PROBED && now.1 >= before.1 + PROBED as f64).then_some(()))
    })?;
    ensure!(counted("locked")? == 0, "the rules dropped a probe");
    let url = format!("http://{}:8080/", locked.first().context("nobody is probed")?);
    let (status, error) = verdict(mesh, ("outside", "host-2"), &url)?;
    eprintln!("another node's process to a probed port: {status} {error}");
    ensure!(status == 0 && counted("locked")? > 0, "the rules let {status} through");
    Ok(())
}

fn mode(mesh: &KubeMesh, mode: &str) -> Result<()> {
    mesh.apply(&format!(
        "apiVersion: security.istio.io/v1\n\
         kind: PeerAuthentication\n\
         metadata: {{name: default, namespace: net}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    ))
}

/// A client on the host's network has no identity of its own: PERMISSIVE servers take it in
/// plaintext, STRICT ones refuse it and say why.
fn the_hosts_network(mesh: &KubeMesh) -> Result<()> {
    let url = format!("http://{}:8080/", mesh.pod_ip("net", "two-ports")?);
    mode(mesh, "PERMISSIVE")?;
    for client in ["host-1", "host-2"] {
        mesh.until_meshed("outside", client, &url, false)?;
    }
    mode(mesh, "STRICT")?;
    for client in ["host-1", "host-2"] {
        eventually("STRICT", READY, || {
            let (status, error) = verdict(mesh, ("outside", client), &url)?;
            ensure!(status == 0, "{client} got {status}");
            eprintln!("{client} to a STRICT server: {error}");
            Ok(Some(()))
        })?;
    }
    ensure!(mesh.identity("net", "client", &url)?.is_some(), "the mesh's own client");
    let server = mesh.pod_ip("net", "two-ports")?;
    for node in [1, 2] {
        // The address that this very client had, of the node's.
        let route = mesh.on_node(node, &["ip", "-o", "route", "get", &server])?;
        let own = route.split_whitespace().skip_while(|word| *word != "src").nth(1);
        let (own, to) = (format!(" {}:", own.context("no route")?), format!(" {server}:8080 "));
        eventually(&format!("the reason in the log, for {own}"), READY, || {
            let log = mesh.node_log(1)?;
            let why = "which_takes_mTLS_only_(STRICT)";
            let found =
                log.lines().find(|line| [why, &own, &to].iter().all(|part| line.contains(*part)));
            eprintln!("the server's node says: {}", found.context("nothing of it")?);
            Ok(Some(()))
        })?;
    }
    // As a server: not in the mesh, reached in plaintext from inside.
    let (status, error) =
        verdict(mesh, ("net", "client"), &format!("http://{}:28080/", mesh.node_ip(1)?))?;
    ensure!(status == 200, "a server on the host's network: {status} {error}");
    Ok(())
}

/// A port of the node leads to the pod in plaintext, which the pod's mode judges.
fn ports_of_the_host(mesh: &KubeMesh) -> Result<()> {
    let url = format!("http://{}:{HOST_PORT}/", mesh.node_ip(1)?);
    for (from, strict) in [
        (("outside", "host-2"), true),
        (("net", "client"), true),
        (("outside", "host-2"), false),
        (("net", "client"), false),
    ] {
        mode(mesh, if strict { "STRICT" } else { "PERMISSIVE" })?;
        eventually(&format!("{from:?}, STRICT: {strict}"), READY, || {
            let (status, error) = verdict(mesh, from, &url)?;
            ensure!((status == 200) != strict, "{status} {error}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}
