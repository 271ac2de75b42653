//! The cluster tool by itself, without Fairlead: what a cluster can do, what it stands, and what is
//! left of it afterwards (nothing).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_cluster::{cgroups, state, system};
use fairlead_tests::cluster::{Cluster, ClusterOptions, Component, app_pod};
use fairlead_tests::eventually;
use rustix::process::{Pid, Signal, kill_process};

/// How long pods may take to be ready, on a machine that does other things beside.
const READY: Duration = Duration::from_secs(60);

/// A service in front of one pod.
const SERVICE: &str = "apiVersion: v1\n\
                       kind: Service\n\
                       metadata: {name: far, namespace: default}\n\
                       spec: {selector: {app: far}, ports: [{port: 80, targetPort: 8080}]}\n";

/// Two pods, `near` on node 1 and `far` on node 2 behind the service `far`.
fn two_pods(cluster: &Cluster) -> Result<()> {
    cluster.load_programs(&["fairlead-apps"])?;
    let near = app_pod("near", "default", &cluster.node_name(1), &echo("near"));
    let far = app_pod("far", "default", &cluster.node_name(2), &echo("far"));
    // The namespace's service account may not be there yet.
    eventually("pods are taken", READY, || {
        cluster.apply(&format!("{near}{far}{SERVICE}")).map(Some)
    })?;
    cluster.wait("default", &["pod/near", "pod/far"], "condition=Ready", READY)
}

fn echo(name: &str) -> [&str; 5] {
    ["echo", "--name", name, "--http", "8080"]
}

/// The answer of a URL as `near` sees it, once it has one: endpoints reach kube-proxy a moment
/// after a pod is ready.
fn answer(cluster: &Cluster, url: &str) -> Result<String> {
    eventually(url, READY, || {
        let reply = cluster.get("default", "near", url, &[])?;
        ensure!(reply.status() == 200, "{}", reply.0);
        Ok(Some(reply.echo("name")))
    })
}

/// What of a running cluster could be left behind.
struct Traces {
    /// All processes, by id and start time.
    processes: BTreeSet<String>,
    /// The same of all others on this machine: a later one may have a namespace whose number was
    /// one of the cluster's, as the kernel uses them again.
    others: BTreeSet<String>,
    /// Namespaces that are not ours, as `/proc/PID/ns` shows them.
    namespaces: BTreeSet<String>,
    name: String,
    link: String,
    directory: String,
}

impl Traces {
    fn of(cluster: &Cluster) -> Result<Self> {
        let name = cluster.record().name.clone();
        let cgroup = format!("{}{name}", cgroups::PREFIX);
        let own = namespaces_of("self");
        let mut traces = Self {
            processes: BTreeSet::new(),
            others: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            link: links_with_peer_in(cluster)?,
            directory: cluster.dir().display().to_string(),
            name,
        };
        for (pid, groups) in all_cgroups()? {
            if groups.contains(&cgroup) {
                traces.processes.extend(system::identity_of(pid.parse()?));
                traces.namespaces.extend(namespaces_of(&pid).difference(&own).cloned());
            } else {
                traces.others.extend(system::identity_of(pid.parse()?));
            }
        }
        // The control plane, and for each node its first process and its components; network,
        // mounts and processes of the control plane, and six namespaces of each node.
        let nodes = cluster.record().nodes;
        ensure!(traces.processes.len() >= 5 + 4 * nodes, "only {:?}", traces.processes);
        ensure!(traces.namespaces.len() >= 3 + 6 * nodes, "only {:?}", traces.namespaces);
        Ok(traces)
    }

    /// What is still there, in words.
    fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for (pid, groups) in all_cgroups()? {
            let alive = || pid.parse().ok().and_then(system::identity_of);
            // What has ended and only waits to be collected by its parent is no process any more.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')) {
                continue;
            }
            if groups.contains(&format!("{}{}", cgroups::PREFIX, self.name))
                || alive().is_some_and(|identity| self.processes.contains(&identity))
            {
                left.push(format!("process {pid}: {stat}"));
            }
            if !alive().is_some_and(|identity| self.others.contains(&identity)) {
                continue;
            }
            let inside = namespaces_of(&pid);
            left.extend(inside.intersection(&self.namespaces).map(|ns| format!("{pid} in {ns}")));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        left.extend(mounts.lines().filter(|line| line.contains(&self.name)).map(str::to_owned));
        for hierarchy in cgroups::hierarchies()? {
            let path = hierarchy.root.join(format!("{}{}", cgroups::PREFIX, self.name));
            left.extend(path.exists().then(|| path.display().to_string()));
        }
        let link = Path::new("/sys/class/net").join(&self.link);
        left.extend(link.exists().then(|| self.link.clone()));
        left.extend(Path::new(&self.directory).exists().then(|| self.directory.clone()));
        Ok(left)
    }
}

/// Each process and its cgroups.
fn all_cgroups() -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.bytes().all(|b| b.is_ascii_digit())
            && let Ok(groups) = fs::read_to_string(entry.path().join("cgroup"))
        {
            all.insert(pid, groups);
        }
    }
    Ok(all)
}

fn namespaces_of(pid: &str) -> BTreeSet<String> {
    let link = |kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let kinds = ["net", "mnt", "pid", "uts", "ipc", "cgroup"];
    kinds.iter().filter_map(|kind| Some(link(kind)?.display().to_string())).collect()
}

/// The host's end of the wire to the cluster: found by the addresses on both ends.
fn links_with_peer_in(cluster: &Cluster) -> Result<String> {
    let mut inside = cluster.outer_command()?;
    let links = system::output(inside.args(["ip", "-o", "link", "show", "host0"]))?;
    let peer = links.split("@if").nth(1).and_then(|rest| rest.split(':').next());
    let index = peer.context("host0 has no peer")?;
    for entry in fs::read_dir("/sys/class/net")?.flatten() {
        if fs::read_to_string(entry.path().join("ifindex"))?.trim() == index {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    anyhow::bail!("no link {index}")
}

/// What the machine has of directories that nodes write to.
fn host_directories() -> Vec<String> {
    let dirs = ["/etc/cni", "/etc/kubernetes", "/opt/cni", "/opt/kubernetes", "/run/containerd"];
    let more = ["/run/netns", "/var/lib/cni", "/var/lib/kubelet", "/var/log/pods", "/.before"];
    let exists = |dir: &&str| Path::new(dir).exists();
    dirs.into_iter().chain(more).filter(exists).map(str::to_owned).collect()
}

#[test]
fn a_cluster_does_what_clusters_do_and_leaves_nothing() -> Result<()> {
    let before = host_directories();
    let start = Instant::now();
    let cluster = Cluster::up(&ClusterOptions::default())?;
    eprintln!("up: {:?}", start.elapsed());
    let status = fairlead_tests::cluster::Status::of(&cluster)?;
    assert!(status.healthy(), "{status:?}");
    assert_eq!(status.nodes.len(), 2);
    two_pods(&cluster)?;
    // Pod to pod across nodes, with the client's own address arriving.
    let far = cluster.pod_ip("default", "far")?;
    let reply = cluster.get("default", "near", &format!("http://{far}:8080/"), &[])?;
    assert_eq!((reply.status(), reply.echo("name").as_str()), (200, "far"), "{}", reply.0);
    assert!(reply.echo("peer").contains(&cluster.pod_ip("default", "near")?), "{}", reply.0);
    // By cluster address and by name.
    let service = cluster.json(&["get", "service", "far"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no clusterIP")?;
    assert_eq!(answer(&cluster, &format!("http://{address}/"))?, "far");
    assert_eq!(answer(&cluster, "http://far/")?, "far");
    assert_eq!(answer(&cluster, "http://far.default.svc.cluster.local/")?, "far");
    // Nothing leaves: an address of elsewhere is unreachable, at once.
    let reply = cluster.get("default", "near", "http://192.0.2.1/", &[])?;
    assert_eq!(reply.status(), 0, "{}", reply.0);
    // Each node sees itself alone: its cgroups, its place for eBPF objects, its processes.
    for node in 1..=2 {
        let groups = cluster.on_node(node, &["find", "/sys/fs/cgroup", "-maxdepth", "2"])?;
        assert!(groups.contains("/kubepods") && !groups.contains(cgroups::PREFIX), "{groups}");
        let list = "for of in /proc/[0-9]*; do tr '\\0' ' ' < $of/cmdline; echo; done 2>/dev/null";
        let processes = cluster.on_node(node, &["sh", "-c", list])?;
        let kubelets = processes.lines().filter(|line| line.contains("/kubelet ")).count();
        assert_eq!(kubelets, 1, "{processes}");
        assert!(!processes.contains("etcd"), "{processes}");
    }
    let zone = cluster.json(&["get", "node", &cluster.node_name(2)])?;
    assert_eq!(zone["metadata"]["labels"]["topology.kubernetes.io/zone"], "zone-2");
    let traces = Traces::of(&cluster)?;
    let start = Instant::now();
    drop(cluster);
    eprintln!("down: {:?}", start.elapsed());
    assert_eq!(traces.left()?, Vec::<String>::new());
    assert_eq!(host_directories(), before, "the machine's own directories have changed");
    Ok(())
}

#[test]
fn a_cluster_stands_what_is_killed_in_it() -> Result<()> {
    let cluster = Cluster::up(&ClusterOptions::default())?;
    two_pods(&cluster)?;
    let restarts = |pod: &str| -> Result<u64> {
        let object = cluster.json(&["get", "pod", pod])?;
        let restarts = &object["status"]["containerStatuses"][0]["restartCount"];
        restarts.as_u64().context("no restart count")
    };
    assert_eq!(answer(&cluster, "http://far/")?, "far");
    // Pods outlive their kubelet and their containerd.
    for component in [Component::Kubelet(2), Component::Containerd(2)] {
        cluster.kill(component)?;
        assert!(cluster.pids(component)?.is_empty());
        assert_eq!(answer(&cluster, "http://far/")?, "far", "without {component}");
        cluster.start(component)?;
    }
    // The control plane comes back with what it knew.
    for component in Component::CONTROL_PLANE {
        cluster.restart(component)?;
    }
    cluster.wait_for_api()?;
    cluster.wait_for_nodes()?;
    let third = app_pod("third", "default", &cluster.node_name(2), &echo("third"));
    eventually("another pod", READY, || cluster.apply(&third).map(Some))?;
    cluster.wait("default", &["pod/third"], "condition=Ready", READY)?;
    assert_eq!((restarts("near")?, restarts("far")?), (0, 0));
    // A node that is torn down takes its pods with it; booted again, it starts them again.
    let far = cluster.pod_ip("default", "far")?;
    cluster.stop_node(2)?;
    let reply =
        cluster.get("default", "near", &format!("http://{far}:8080/"), &["--timeout-ms", "1000"]);
    ensure!(reply.map_or(0, |reply| reply.status()) == 0, "a pod answers from a node that is gone");
    cluster.boot_node(2)?;
    cluster.wait_for_nodes()?;
    eventually("the pods of the node run again", READY, || {
        Ok((restarts("far")? == 1 && restarts("third")? == 1).then_some(()))
    })?;
    cluster.wait("default", &["pod/far", "pod/third"], "condition=Ready", READY)?;
    assert_eq!(answer(&cluster, "http://far/")?, "far");
    // All of it goes with its first process, and what remains is removed.
    let traces = Traces::of(&cluster)?;
    let outer = cgroups::processes(&format!("{}{}/outer", cgroups::PREFIX, traces.name))?;
    for pid in outer {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no pid")?;
        kill_process(pid, Signal::KILL).ok();
    }
    eventually("everything ends with it", Duration::from_secs(10), || {
        let cgroup = format!("{}{}", cgroups::PREFIX, traces.name);
        let events = fs::read_to_string(cgroups::unified(&cgroup)?.join("cgroup.events"))?;
        Ok(events.contains("populated 0").then_some(()))
    })?;
    drop(cluster);
    assert_eq!(traces.left()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn two_clusters_stand_side_by_side_one_of_them_dual_stack() -> Result<()> {
    let one = Cluster::up(&ClusterOptions::default().nodes(1).without_dns())?;
    let other = Cluster::up(&ClusterOptions::default().dual_stack().proxy_mode("iptables"))?;
    two_pods(&other)?;
    assert_eq!(one.json(&["get", "nodes"])?["items"].as_array().map(Vec::len), Some(1));
    assert!(one.kubectl(&["get", "pod", "near"]).is_err());
    let far = other.json(&["get", "pod", "far"])?;
    let ips = far["status"]["podIPs"].as_array().context("no addresses")?;
    let v6 = ips.iter().filter_map(|ip| ip["ip"].as_str()).find(|ip| ip.contains(':'));
    let v6 = v6.context("no IPv6 address")?;
    assert_eq!(answer(&other, &format!("http://[{v6}]:8080/"))?, "far");
    other.kubectl(&[
        "patch",
        "service",
        "far",
        "-p",
        "{\"spec\":{\"ipFamilyPolicy\":\"PreferDualStack\"}}",
    ])?;
    let service = other.json(&["get", "service", "far"])?;
    let v6 = service["spec"]["clusterIPs"][1].as_str().context("no IPv6 cluster address")?;
    assert_eq!(answer(&other, &format!("http://[{v6}]/"))?, "far");
    assert_eq!(answer(&other, "http://far/")?, "far");
    // One going down does not touch the other.
    let traces = Traces::of(&other)?;
    drop(other);
    assert_eq!(traces.left()?, Vec::<String>::new());
    one.wait_for_nodes()?;
    Ok(())
}

#[test]
fn what_a_killed_process_left_is_cleaned_away() -> Result<()> {
    // An API server alone: what is to be seen does not depend on nodes.
    let cluster = Cluster::up(&ClusterOptions::default().nodes(0))?;
    let name = cluster.record().name.clone();
    assert_eq!(cluster.kubectl(&["get", "--raw", "/readyz"])?, "ok");
    assert!(!state::is_orphan(&name), "its process runs");
    // As if it belonged to a process that has ended since.
    let mut ended = std::process::Command::new("sleep").arg("60").spawn()?;
    let owner = system::identity_of(ended.id());
    ended.kill()?;
    ended.wait()?;
    let record = state::Record { owner, ..cluster.record().clone() };
    fs::write(cluster.dir().join("cluster.json"), serde_json::to_string(&record)?)?;
    assert!(state::is_orphan(&name));
    let traces = Traces::of(&cluster)?;
    let removed = fairlead_cluster::cluster::clean(false)?;
    assert!(removed.contains(&name), "{removed:?}");
    assert_eq!(traces.left()?, Vec::<String>::new());
    Ok(())
}
