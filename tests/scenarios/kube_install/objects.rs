//! What the API server has of the mesh, and what the kernel has made of it: rights of processes,
//! priorities, probes, and how updates go.

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM};
use serde_json::{Value, json};

/// What runs, and how.
struct Workload {
    kind: &'static str,
    name: &'static str,
    /// Capabilities, with their numbers.
    capabilities: &'static [(&'static str, u32)],
    probes: &'static [&'static str],
    priority: &'static str,
    host_network: bool,
    user: u32,
}

const WORKLOADS: [Workload; 3] = [
    Workload {
        kind: "daemonset",
        name: "fairlead-node",
        capabilities: &[
            ("BPF", 39),
            ("PERFMON", 38),
            ("NET_ADMIN", 12),
            ("SYS_ADMIN", 21),
            ("SYS_PTRACE", 19),
        ],
        probes: &["startupProbe", "readinessProbe", "livenessProbe"],
        priority: "fairlead-node",
        host_network: true,
        user: 0,
    },
    Workload {
        kind: "daemonset",
        name: "fairlead-cni",
        capabilities: &[],
        probes: &["readinessProbe"],
        priority: "fairlead-node",
        host_network: true,
        user: 0,
    },
    Workload {
        kind: "deployment",
        name: "fairlead-controller",
        capabilities: &[],
        probes: &["readinessProbe", "livenessProbe"],
        priority: "fairlead-controller",
        host_network: false,
        user: 65532,
    },
];

pub(super) fn are_as_they_should_be(mesh: &KubeMesh) -> Result<()> {
    for workload in &WORKLOADS {
        let name = workload.name;
        updates(mesh, workload).with_context(|| format!("updates of {name}"))?;
        let class = mesh.json(&["get", "priorityclass", workload.priority])?;
        let pods =
            mesh.json(&["get", "pods", "-n", SYSTEM, "-l", &format!("app={}", workload.name)])?;
        let pods = pods["items"].as_array().context("no list")?;
        ensure!(pods.len() == 2, "{} pods of {name}", pods.len());
        for pod in pods {
            spec(workload, &pod["spec"]).with_context(|| format!("{name}: {}", pod["spec"]))?;
            ensure!(
                pod["spec"]["priority"] == class["value"],
                "{name}: {}",
                pod["spec"]["priority"]
            );
            processes(mesh, workload, pod).with_context(|| format!("processes of {name}"))?;
        }
    }
    let value = |name: &str| -> Result<i64> {
        let class = mesh.json(&["get", "priorityclass", name])?;
        class["value"].as_i64().context("no value")
    };
    // A node without its daemon starts no pod; without a controller it goes on.
    let (node, controller) = (value("fairlead-node")?, value("fairlead-controller")?);
    ensure!(node > controller && controller > 0, "{node} and {controller}");
    eventually("the budget counts both replicas", READY, || {
        let budget = mesh.json(&["get", "pdb", "-n", SYSTEM, "fairlead-controller"])?;
        ensure!(budget["spec"]["maxUnavailable"] == 1, "{}", budget["spec"]);
        ensure!(budget["status"]["expectedPods"] == 2, "{}", budget["status"]);
        Ok(Some(()))
    })
}

fn updates(mesh: &KubeMesh, workload: &Workload) -> Result<()> {
    let object = mesh.json(&["get", workload.kind, workload.name, "-n", SYSTEM])?;
    let spec = &object["spec"];
    let strategy =
        if workload.kind == "deployment" { &spec["strategy"] } else { &spec["updateStrategy"] };
    // One that takes over comes before the one that goes; the installer has nothing to take over.
    let (surge, unavailable) = if workload.name == "fairlead-cni" { (0, 1) } else { (1, 0) };
    let expected = json!({"maxSurge": surge, "maxUnavailable": unavailable});
    ensure!(strategy["type"] == "RollingUpdate", "{strategy}");
    ensure!(strategy["rollingUpdate"] == expected, "{strategy}");
    Ok(())
}

/// What the API server has of a pod.
fn spec(workload: &Workload, spec: &Value) -> Result<()> {
    ensure!(spec["hostNetwork"].as_bool().unwrap_or(false) == workload.host_network, "network");
    for other in ["hostPID", "hostIPC"] {
        ensure!(spec[other].as_bool() != Some(true), "{other}");
    }
    ensure!(spec["priorityClassName"] == workload.priority, "priority");
    let around = &spec["securityContext"];
    ensure!((around["runAsNonRoot"] == true) == (workload.user != 0), "user");
    let containers = spec["containers"].as_array().context("no containers")?;
    ensure!(containers.len() == 1, "{} containers", containers.len());
    for container in containers {
        let security = &container["securityContext"];
        let seccomp = |of: &Value| of["seccompProfile"]["type"] == "RuntimeDefault";
        ensure!(seccomp(security) || seccomp(around), "seccomp");
        ensure!(security["readOnlyRootFilesystem"] == true, "root file system");
        ensure!(security["allowPrivilegeEscalation"] == false, "escalation");
        ensure!(security["privileged"].as_bool() != Some(true), "privileged");
        ensure!(security["capabilities"]["drop"] == json!(["ALL"]), "capabilities");
        let added = security["capabilities"]["add"].as_array().cloned().unwrap_or_default();
        let expected: Vec<&str> = workload.capabilities.iter().map(|(name, _)| *name).collect();
        ensure!(added == expected, "capabilities");
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let there = container[probe].is_object();
            ensure!(there == workload.probes.contains(&probe), "{probe}: {there}");
        }
        for resource in ["cpu", "memory"] {
            ensure!(container["resources"]["requests"][resource].is_string(), "{resource}");
        }
    }
    Ok(())
}

/// What the kernel has of a pod's processes.
fn processes(mesh: &KubeMesh, workload: &Workload, pod: &Value) -> Result<()> {
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    let node = mesh.node_of(pod)?;
    let mut seen = 0;
    for pid in mesh.processes_of(node, SYSTEM, name)? {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        // Probes come and go.
        let (Ok(status), Ok(mounts)) = (read("status"), read("mountinfo")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default()
        };
        if !field("Name:").starts_with("fairlead-") {
            continue;
        }
        seen += 1;
        ensure!(field("Uid:") == workload.user.to_string(), "{status}");
        ensure!(field("Seccomp:") == "2" && field("NoNewPrivs:") == "1", "{status}");
        let allowed: u64 = workload.capabilities.iter().map(|(_, number)| 1 << number).sum();
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            let has = u64::from_str_radix(field(set), 16).context("no mask")?;
            ensure!(has & !allowed == 0, "{set} {has:x} is more than {allowed:x}");
        }
        // "36 35 98:0 /mnt1 / ro,noatime ...": number, parent, device, root, mount point, options.
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let root = mounts.lines().map(words).find(|words| words.get(4).is_some_and(|at| at == "/"));
        let root = root.context("no root file system")?;
        let read_only = root.get(5).is_some_and(|how| how.split(',').any(|word| word == "ro"));
        ensure!(read_only, "{root:?}");
    }
    ensure!(seen > 0, "{name} has none");
    Ok(())
}
