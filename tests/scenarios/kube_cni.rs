//! Pods and the node on a cluster: the CNI plugin stays in the chain and leaves without a trace; no
//! pod that is to be in the mesh starts before it is captured, every other one does; running pods
//! join and leave; the kubelet's probes pass and nobody else does.

mod by_hand;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::cluster::{Cluster, ClusterOptions, Component, app_pod, image};
use fairlead_tests::eventually;

const SYSTEM: &str = "fairlead-system";
const READY: Duration = Duration::from_secs(120);
/// How long something is watched that must not happen.
const WATCHED: Duration = Duration::from_secs(20);
/// How long a pod is called whose object has gone.
const OUTLIVED: Duration = Duration::from_secs(6);
const CONFLIST: &str = "/etc/cni/net.d/10-cluster.conflist";

/// A namespace of the mesh that takes mTLS only.
const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
";

fn manifests() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

fn with_fairlead() -> Result<Cluster> {
    let cluster = Cluster::up(&ClusterOptions::default().nodes(1))?;
    cluster.load_programs(&[
        "fairlead-controller",
        "fairlead-node",
        "fairlead-cni",
        "fairlead-apps",
    ])?;
    Ok(cluster)
}

fn install(cluster: &Cluster) -> Result<()> {
    // Definitions and the namespace take a moment until they can be used.
    eventually("the manifests are taken", READY, || {
        cluster.apply_kustomization(&manifests()).map(Some)
    })?;
    for what in
        ["deployment/fairlead-controller", "daemonset/fairlead-node", "daemonset/fairlead-cni"]
    {
        cluster.wait_rollout(SYSTEM, what, READY).with_context(|| state_of(cluster))?;
    }
    eventually("policies are taken", READY, || cluster.apply(SHOP).map(Some))
}

/// What a person would look at.
fn state_of(cluster: &Cluster) -> String {
    let looks: [&[&str]; 4] = [
        &["get", "pods", "-A", "-o", "wide"],
        &["get", "events", "-n", SYSTEM],
        &["logs", "-n", SYSTEM, "daemonset/fairlead-node", "--tail=30"],
        &["logs", "-n", SYSTEM, "deployment/fairlead-controller", "--tail=10"],
    ];
    looks.map(|args| cluster.kubectl(args).unwrap_or_else(|error| format!("{error:#}"))).join("\n")
}

fn echo(cluster: &Cluster, name: &str, namespace: &str) -> Result<()> {
    let args = ["echo", "--name", name, "--http", "8080"];
    let pod = app_pod(name, namespace, &cluster.node_name(1), &args);
    eventually("the pod is taken", READY, || cluster.apply(&pod).map(Some))
}

fn ready(cluster: &Cluster, name: &str, namespace: &str) -> Result<()> {
    cluster.wait(namespace, &[&format!("pod/{name}")], "condition=Ready", READY)
}

/// Status of a request from one pod to the other's address; 0: it was refused.
fn status(cluster: &Cluster, from: (&str, &str), to: (&str, &str)) -> Result<u16> {
    let ip = cluster.pod_ip(to.0, to.1)?;
    Ok(cluster.get(from.0, from.1, &format!("http://{ip}:8080/"), &[])?.status())
}

fn conflist(cluster: &Cluster, file: &str) -> Result<String> {
    cluster.on_node(1, &["cat", file])
}

fn is_in(cluster: &Cluster, file: &str) -> Result<bool> {
    Ok(conflist(cluster, file)?.contains("fairlead-cni"))
}

fn write(cluster: &Cluster, file: &str, text: &str) -> Result<()> {
    cluster.on_node(1, &["sh", "-c", "printf %s \"$1\" > \"$0\"", file, text]).map(drop)
}

fn has_phase(cluster: &Cluster, namespace: &str, name: &str, phase: &str) -> Result<bool> {
    let pod = cluster.json(&["get", "pod", "-n", namespace, name])?;
    Ok(pod["status"]["phase"] == phase)
}

/// Rows 1.8, 15.8: the plugin stays in the chain and goes without a trace; while the daemon is away,
/// pods of the mesh wait, and no others.
#[test]
fn the_plugin_stays_and_only_pods_of_the_mesh_wait_for_the_daemon() -> Result<()> {
    let cluster = with_fairlead()?;
    let before = conflist(&cluster, CONFLIST)?;
    let plugins_before = cluster.on_node(1, &["ls", "-A", "/opt/cni/bin", "/etc/cni/net.d"])?;
    ensure!(!before.contains("fairlead"), "{before}");
    install(&cluster)?;
    ensure!(is_in(&cluster, CONFLIST)?);

    // Whoever owns the network writes it anew; another network comes first and goes.
    write(&cluster, CONFLIST, &before)?;
    eventually("entered again", READY, || Ok(is_in(&cluster, CONFLIST)?.then_some(())))?;
    let other = "/etc/cni/net.d/05-other.conflist";
    write(&cluster, other, &before)?;
    eventually("the new first one", READY, || {
        Ok((is_in(&cluster, other)? && !is_in(&cluster, CONFLIST)?).then_some(()))
    })?;
    cluster.on_node(1, &["rm", other])?;
    eventually("the old one again", READY, || Ok(is_in(&cluster, CONFLIST)?.then_some(())))?;

    // Row 1.10 as well: an init container is captured like any other, or it would be refused.
    echo(&cluster, "server", "shop")?;
    ready(&cluster, "server", "shop")?;
    let server = cluster.pod_ip("shop", "server")?;
    let first = |name: &str| {
        let to = format!("{server}:8080");
        let data = "GET / HTTP/1.1\\r\\nhost: server\\r\\nconnection: close\\r\\n\\r\\n";
        let args = ["connect-first".to_owned(), to, data.replace("\\r\\n", "\r\n")];
        let args = args.iter().map(|arg| format!("{arg:?}")).collect::<Vec<_>>().join(", ");
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             restartPolicy: Never\n  nodeName: {node}\n  initContainers:\n  - {{name: init, image: \
             '{image}', imagePullPolicy: Never, args: [{args}]}}\n  containers:\n  - {{name: app, \
             image: '{image}', imagePullPolicy: Never, args: [{args}]}}\n---\n",
            node = cluster.node_name(1),
            image = image("fairlead-apps"),
        )
    };
    let names: Vec<String> = (0..10).map(|n| format!("first-{n}")).collect();
    cluster.apply(&names.iter().map(|name| first(name)).collect::<String>())?;
    for name in &names {
        eventually("it has run", READY, || {
            Ok(has_phase(&cluster, "shop", name, "Succeeded")?.then_some(()))
        })?;
        for container in ["init", "app"] {
            let said = cluster.kubectl(&["logs", "-n", "shop", name, "-c", container])?;
            ensure!(said.contains("200 OK"), "{name} {container}: {said}");
            let caller = "URI=spiffe://cluster.local/ns/shop/sa/default";
            ensure!(said.contains(caller), "{name} {container} without identity: {said}");
        }
    }

    // The daemon is away.
    cluster.kubectl(&["delete", "daemonset", "-n", SYSTEM, "fairlead-node", "--wait=true"])?;
    cluster.wait(SYSTEM, &["pods", "-l", "app=fairlead-node"], "delete", READY)?;
    echo(&cluster, "held", "shop")?;
    echo(&cluster, "other", "default")?;
    echo(&cluster, "part-of-the-cluster", "kube-system")?;
    ready(&cluster, "other", "default")?;
    ready(&cluster, "part-of-the-cluster", "kube-system")?;
    eventually("the pod of the mesh is refused", READY, || {
        let events = cluster.kubectl(&[
            "get",
            "events",
            "-n",
            "shop",
            "--field-selector",
            "involvedObject.name=held,reason=FailedCreatePodSandBox",
        ])?;
        Ok(events.contains("cannot be captured now").then_some(()))
    })?;
    ensure!(has_phase(&cluster, "shop", "held", "Pending")?, "it started uncaptured");

    // It is back: kubelet tries again. What ran before is found again.
    cluster.apply_kustomization(&manifests())?;
    ready(&cluster, "held", "shop")?;
    cluster.wait_rollout(SYSTEM, "daemonset/fairlead-node", READY)?;
    eventually("held reaches server", READY, || {
        Ok((status(&cluster, ("shop", "held"), ("shop", "server"))? == 200).then_some(()))
    })?;
    ensure!(status(&cluster, ("default", "other"), ("shop", "server"))? == 0, "STRICT");

    by_hand::check_status_and_gc(&cluster)?;

    // The installer goes and the plugin stays; uninstalling leaves nothing.
    cluster.kubectl(&["delete", "daemonset", "-n", SYSTEM, "fairlead-cni", "--wait=true"])?;
    cluster.wait(SYSTEM, &["pods", "-l", "app=fairlead-cni"], "delete", READY)?;
    ensure!(is_in(&cluster, CONFLIST)?, "an update of the installer must not open a gap");
    cluster.on_node(
        1,
        &[
            "/opt/cni/bin/fairlead-cni",
            "uninstall",
            "--cni-conf-dir",
            "/etc/cni/net.d",
            "--cni-bin-dir",
            "/opt/cni/bin",
            "--state-dir",
            "/var/lib/fairlead/cni",
        ],
    )?;
    ensure!(conflist(&cluster, CONFLIST)? == before, "{}", conflist(&cluster, CONFLIST)?);
    ensure!(cluster.on_node(1, &["ls", "-A", "/opt/cni/bin", "/etc/cni/net.d"])? == plugins_before);
    echo(&cluster, "later", "default")?;
    ready(&cluster, "later", "default")
}

/// Rows 1.5-1.7, 1.9, 1.14: running pods join and leave by their labels and are found again by a new
/// daemon; probes of every kind that the kubelet asks by itself pass under STRICT and default-deny.
#[test]
fn running_pods_join_and_leave_and_probes_pass() -> Result<()> {
    let cluster = with_fairlead()?;
    install(&cluster)?;
    cluster.kubectl(&["create", "namespace", "plain"])?;
    for (name, namespace) in [("a", "plain"), ("b", "plain"), ("outside", "default")] {
        echo(&cluster, name, namespace)?;
    }
    for (name, namespace) in [("a", "plain"), ("b", "plain"), ("outside", "default")] {
        ready(&cluster, name, namespace)?;
    }
    let identity = |from: &str, to: &str| -> Result<String> {
        let ip = cluster.pod_ip("plain", to)?;
        let reply = cluster.get("plain", from, &format!("http://{ip}:8080/"), &[])?;
        ensure!(reply.status() == 200, "{}", reply.0);
        Ok(reply.seen("x-forwarded-client-cert").unwrap_or_default())
    };
    ensure!(identity("a", "b")?.is_empty(), "nobody is in the mesh");
    // By the label of the namespace.
    let label = |args: &[&str]| cluster.kubectl(&[&["label", "--overwrite"], args].concat());
    label(&["namespace", "plain", "istio.io/dataplane-mode=ambient"])?;
    eventually("both are in", READY, || {
        Ok(identity("a", "b")?.contains("ns/plain/sa/default").then_some(()))
    })?;
    // By the pod's own, against it.
    label(&["pod", "-n", "plain", "a", "istio.io/dataplane-mode=none"])?;
    eventually("one is out", READY, || Ok(identity("a", "b")?.is_empty().then_some(())))?;
    label(&["pod", "-n", "plain", "a", "istio.io/dataplane-mode-"])?;
    eventually("it is in again", READY, || Ok((!identity("a", "b")?.is_empty()).then_some(())))?;
    cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, \
         namespace: plain}\nspec: {mtls: {mode: STRICT}}\n",
    )?;
    eventually("STRICT", READY, || {
        Ok((status(&cluster, ("default", "outside"), ("plain", "b"))? == 0).then_some(()))
    })?;

    outlives_its_object(&cluster)?;

    // A daemon that dies; the next one finds the pods by their processes.
    cluster.kubectl(&[
        "delete",
        "pod",
        "-n",
        SYSTEM,
        "-l",
        "app=fairlead-node",
        "--grace-period=1",
    ])?;
    cluster.wait_rollout(SYSTEM, "daemonset/fairlead-node", READY)?;
    eventually("found again", READY, || Ok((!identity("a", "b")?.is_empty()).then_some(())))?;
    ensure!(status(&cluster, ("default", "outside"), ("plain", "b"))? == 0, "STRICT");

    // Probes, with nothing allowed at all.
    cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nothing, \
         namespace: shop}\nspec: {}\n",
    )?;
    let probed = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: probed, namespace: shop}}\nspec:\n  nodeName: \
         {node}\n  containers:\n  - name: app\n    image: '{image}'\n    imagePullPolicy: Never\n    \
         args: [echo, --name, probed, --http, '8080', --http, '8081']\n    ports: [{{name: web, containerPort: \
         8080}}]\n    startupProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1, \
         timeoutSeconds: 10, failureThreshold: 60}}\n    readinessProbe: {{httpGet: {{path: /, port: web}}, \
         periodSeconds: 1, timeoutSeconds: 10}}\n    livenessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: \
         1, timeoutSeconds: 10, failureThreshold: 1}}\n",
        node = cluster.node_name(1),
        image = image("fairlead-apps"),
    );
    cluster.apply(&probed)?;
    ready(&cluster, "probed", "shop")?;
    ensure!(status(&cluster, ("default", "outside"), ("shop", "probed"))? == 0);
    // From the node's own processes, the declared port alone.
    let ip = cluster.pod_ip("shop", "probed")?;
    let from_node = |port: u16| {
        // In a cgroup of the node, as its own programs are.
        let script = "for root in /sys/fs/cgroup/unified /sys/fs/cgroup; do \
                      [ -d $root/system ] && mkdir -p $root/system/probe && \
                      echo 0 > $root/system/probe/cgroup.procs && break; done; \
                      exec 3<>/dev/tcp/$0/$1; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; \
                      timeout 5 head -n1 <&3";
        cluster.on_node(1, &["bash", "-c", script, &ip, &port.to_string()])
    };
    ensure!(from_node(8080)?.contains("200"), "what the kubelet may, any process of the node may");
    ensure!(!from_node(8081).unwrap_or_default().contains("200"), "no probe is declared there");
    std::thread::sleep(WATCHED);
    // Also while no daemon runs.
    cluster.kubectl(&["delete", "daemonset", "-n", SYSTEM, "fairlead-node", "--wait=true"])?;
    std::thread::sleep(WATCHED);
    let pod = cluster.json(&["get", "pod", "-n", "shop", "probed"])?;
    let status = &pod["status"]["containerStatuses"][0];
    ensure!(status["restartCount"] == 0 && status["ready"] == true, "{status}");
    Ok(())
}

/// A pod whose object is deleted by force while its node's kubelet is away: its processes go on, and
/// nobody from outside the mesh gets past STRICT.
fn outlives_its_object(cluster: &Cluster) -> Result<()> {
    let args = ["echo", "--name", "outliving", "--http", "8080"];
    cluster.apply(&app_pod("outliving", "plain", &cluster.node_name(1), &args))?;
    ready(cluster, "outliving", "plain")?;
    let ip = cluster.pod_ip("plain", "outliving")?;
    let (pod, outside) = (process(cluster, "outliving")?, process(cluster, "outside")?);
    ensure!(!pod.is_empty() && !outside.is_empty(), "{pod:?}, {outside:?}");
    // Without kubelet there is no `kubectl exec`.
    let answer = |of: &str| {
        let script = "exec 3<>/dev/tcp/$0/8080 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && \
                      timeout 3 head -n1 <&3";
        let within = ["nsenter", &format!("--net=/proc/{of}/ns/net"), "bash", "-c", script, &ip];
        cluster.on_node(1, &within).unwrap_or_default()
    };
    ensure!(answer(&pod).contains("200"), "its own loopback: {}", answer(&pod));
    ensure!(answer(&outside).is_empty(), "STRICT: {}", answer(&outside));
    cluster.kill(Component::Kubelet(1))?;
    cluster.kubectl(&[
        "delete",
        "pod",
        "-n",
        "plain",
        "outliving",
        "--force",
        "--grace-period=0",
    ])?;
    let (mut asked, start) = (0, Instant::now());
    while start.elapsed() < OUTLIVED {
        let said = answer(&outside);
        ensure!(said.is_empty(), "{said} in plaintext, {:?} after it was deleted", start.elapsed());
        asked += 1;
    }
    ensure!(process(cluster, "outliving")? == pod, "it has ended: nothing was shown");
    eprintln!("{asked} connections from outside to a pod without its object: none passed");
    cluster.start(Component::Kubelet(1))?;
    cluster.wait_for_nodes()?;
    eventually("its end", READY, || Ok(process(cluster, "outliving")?.is_empty().then_some(())))
}

/// The process of an echo server on node 1, by its name there.
fn process(cluster: &Cluster, name: &str) -> Result<String> {
    let find = "for dir in /proc/[0-9]*; do grep -sqz \"^$0$\" $dir/cmdline && \
                grep -sqz '^echo$' $dir/cmdline && basename $dir; done; true";
    Ok(cluster.on_node(1, &["sh", "-c", find, name])?.trim().to_owned())
}

/// A pod of the echo server on 8080 to 8083 with more in its metadata, spec and ports.
fn server(
    cluster: &Cluster,
    (name, namespace): (&str, &str),
    annotations: &str,
    spec: &str,
    host_port: Option<u16>,
) -> Result<()> {
    let host_port = host_port.map_or(String::new(), |port| {
        format!("    ports: [{{containerPort: 8080, hostPort: {port}}}]\n")
    });
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: \
         {{app: {name}}}\n  annotations: {{{annotations}}}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 0\n{spec}  containers:\n  - name: app\n    image: \
         '{image}'\n    imagePullPolicy: Never\n    args: [echo, --name, {name}, --http, '8080', \
         --http, '8081']\n{host_port}",
        node = cluster.node_name(1),
        image = image("fairlead-apps"),
    );
    eventually("the pod is taken", READY, || cluster.apply(&pod).map(Some))?;
    ready(cluster, name, namespace)
}

/// Rows 1.11, 1.16, 1.17: annotations leave out what they name and no more; the verdicts on pods of
/// the host's network and on host ports are those of docs/kubernetes.md.
#[test]
fn annotations_host_network_and_host_ports_have_their_verdicts() -> Result<()> {
    let cluster = with_fairlead()?;
    install(&cluster)?;
    let istio = "traffic.sidecar.istio.io";
    server(&cluster, ("outside", "default"), "", "", None)?;
    server(&cluster, ("plain", "shop"), "", "", None)?;
    let inbound = format!("{istio}/excludeInboundPorts: '8081'");
    server(&cluster, ("inbound", "shop"), &inbound, "", None)?;
    let only = format!("{istio}/includeInboundPorts: '8080'");
    server(&cluster, ("only", "shop"), &only, "", None)?;
    let bypass = "ambient.istio.io/bypass-inbound-capture: 'true'";
    server(&cluster, ("bypass", "shop"), bypass, "", None)?;
    let outbound = format!("{istio}/excludeOutboundPorts: '8081'");
    server(&cluster, ("outbound", "shop"), &outbound, "", None)?;
    let none = format!("{istio}/includeOutboundIPRanges: ''");
    server(&cluster, ("none", "shop"), &none, "", None)?;
    let wrong = format!("{istio}/includeInboundPorts: '8080,x'");
    server(&cluster, ("wrong", "shop"), &wrong, "", None)?;

    let ask = |from: (&str, &str), to: (&str, &str), port: u16| -> Result<(u16, bool)> {
        let ip = cluster.pod_ip(to.0, to.1)?;
        let reply = cluster.get(from.0, from.1, &format!("http://{ip}:{port}/"), &[])?;
        // What is carried has a request id.
        Ok((reply.status(), reply.seen("x-request-id").is_some()))
    };
    let outside = ("default", "outside");
    for (pod, port, status) in [
        ("plain", 8080, 0),
        ("plain", 8081, 0),
        ("inbound", 8080, 0),
        ("inbound", 8081, 200),
        ("only", 8080, 0),
        ("only", 8081, 200),
        ("bypass", 8080, 200),
        ("wrong", 8080, 0),
        ("wrong", 8081, 0),
    ] {
        let got = ask(outside, ("shop", pod), port)?.0;
        ensure!(got == status, "{pod}:{port} from outside: {got}, not {status}");
    }
    for (pod, port, carried) in [
        ("plain", 8080, true),
        ("outbound", 8080, true),
        ("outbound", 8081, false),
        ("none", 8080, false),
    ] {
        let got = ask(("shop", pod), outside, port)?;
        ensure!(got == (200, carried), "{pod} to {port}: {got:?}");
    }
    // The rest of the mesh reaches a port that is left out, and one that is not.
    for port in [8080, 8081] {
        ensure!(ask(("shop", "plain"), ("shop", "inbound"), port)?.0 == 200, "{port}");
    }

    // The host's network: outside the mesh whatever the labels say.
    server(&cluster, ("host", "shop"), "", "  hostNetwork: true\n", None)?;
    ensure!(ask(("shop", "host"), ("shop", "plain"), 8080)?.0 == 0, "STRICT");
    ensure!(ask(("shop", "plain"), ("shop", "host"), 8080)?.0 == 200);

    // Host ports: as any client outside the mesh.
    cluster.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: open, \
         namespace: shop}\nspec: {selector: {matchLabels: {app: open}}, mtls: {mode: \
         PERMISSIVE}}\n",
    )?;
    server(&cluster, ("closed", "shop"), "", "", Some(18080))?;
    server(&cluster, ("open", "shop"), "", "", Some(18081))?;
    let node = cluster.json(&["get", "pod", "-n", "shop", "open"])?["status"]["hostIP"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let by_host_port = |port: u16| -> Result<u16> {
        let url = format!("http://{node}:{port}/");
        Ok(cluster.get("default", "outside", &url, &[])?.status())
    };
    eventually("the open one answers", READY, || Ok((by_host_port(18081)? == 200).then_some(())))?;
    ensure!(by_host_port(18080)? == 0, "STRICT");
    Ok(())
}
