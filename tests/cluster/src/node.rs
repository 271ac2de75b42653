//! A node: its root file system, what is written there, and the command lines of its components.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::component::Component;
use crate::image::PAUSE;
use crate::network::{API_PORT, Plan};
use crate::pki::{Pki, kubeconfig};
use crate::system::CNI_PLUGINS;

/// The first process of a node.
pub(crate) const INIT_SCRIPT: &str = include_str!("../files/node-init.sh");

/// Directories that a node keeps across a boot.
pub(crate) const KEPT: &[&str] = &[
    "etc/cni",
    "etc/kubernetes",
    "opt/cni",
    "var/lib/cni",
    "var/lib/containerd",
    "var/lib/fairlead",
    "var/lib/kubelet",
    "var/log",
];

/// Where the programs of Kubernetes are inside a node.
const PROGRAMS: &str = "/opt/kubernetes/bin";

/// Addresses of one node's pods are a /24, of which some are not for pods.
const MOST_PODS: usize = 240;

/// Name of a node.
pub(crate) fn name(cluster: &str, node: usize) -> String {
    format!("{cluster}-{node}")
}

/// Directory of a node.
pub(crate) fn dir(cluster: &Path, node: usize) -> PathBuf {
    cluster.join("nodes").join(node.to_string())
}

/// Writes all that a node has to have before its first boot.
pub(crate) fn prepare(
    cluster_dir: &Path,
    cluster: &str,
    node: usize,
    plan: Plan,
    proxy_mode: &str,
    pki: &Pki,
) -> Result<()> {
    let dir = dir(cluster_dir, node);
    let disk = dir.join("disk");
    fs::create_dir_all(dir.join("volatile"))?;
    for kept in KEPT {
        fs::create_dir_all(disk.join(kept))?;
    }
    let kubernetes = disk.join("etc/kubernetes");
    let name = name(cluster, node);
    let v4 = Plan::node_v4(node);
    let names = [format!("DNS:{name}"), format!("IP:{v4}"), format!("IP:{}", Plan::node_v6(node))];
    pki.issue(&name, &format!("/O=system:nodes/CN=system:node:{name}"), &names)?;
    let proxy = format!("{name}-proxy");
    pki.issue(&proxy, "/CN=system:kube-proxy", &[])?;
    fs::copy(pki.file("ca.crt"), kubernetes.join("ca.crt"))?;
    let server = format!("https://{}:{API_PORT}", Plan::api());
    for (user, issued) in [("kubelet", &name), ("kube-proxy", &proxy)] {
        for kind in ["crt", "key"] {
            let to = kubernetes.join(format!("{user}.{kind}"));
            fs::copy(pki.file(&format!("{issued}.{kind}")), to)?;
        }
        let inside = |file: String| PathBuf::from("/etc/kubernetes").join(file);
        let (cert, key) = (inside(format!("{user}.crt")), inside(format!("{user}.key")));
        let text = kubeconfig(cluster, &server, &inside("ca.crt".into()), &cert, &key);
        fs::write(kubernetes.join(format!("{user}.kubeconfig")), text)?;
    }
    write_json(&kubernetes.join("kubelet.json"), &kubelet())?;
    write_json(&kubernetes.join("kube-proxy.json"), &kube_proxy(&name, plan, proxy_mode))?;
    fs::write(kubernetes.join("containerd.toml"), containerd())?;
    let conflist = disk.join("etc/cni/net.d/10-cluster.conflist");
    fs::create_dir_all(disk.join("etc/cni/net.d"))?;
    write_json(&conflist, &cni(plan, node))?;
    plugins(&disk.join("opt/cni/bin"))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).with_context(|| path.display().to_string())
}

/// The CNI plugins, where everybody expects them and where a pod may put more.
fn plugins(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for plugin in ["bandwidth", "bridge", "host-local", "loopback", "portmap", "ptp", "tuning"] {
        let (from, to) = (Path::new(CNI_PLUGINS).join(plugin), to.join(plugin));
        fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn containerd() -> String {
    // restrict_oom_score_adj: nobody may ask to be spared here.
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "/run/containerd/runc"
"#
    )
}

fn kubelet() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true, "cacheTTL": "5s"},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "clusterDomain": "cluster.local",
        "clusterDNS": [Plan::dns()],
        // The machine's resolver is of no use where nothing leaves.
        "resolvConf": "",
        "makeIPTablesUtilChains": false,
        "maxOpenFiles": 20000,
        "maxPods": MOST_PODS,
        "podLogsDir": "/var/log/pods",
        "failSwapOn": false,
        "serializeImagePulls": false,
        "localStorageCapacityIsolation": true,
        // The machine is shared: how full its disk is, is not this node's business.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "volumeStatsAggPeriod": "-1s",
        "nodeStatusUpdateFrequency": "5s",
        "nodeStatusReportFrequency": "1m",
        "shutdownGracePeriod": "0s",
        "configMapAndSecretChangeDetectionStrategy": "Watch",
    })
}

fn kube_proxy(name: &str, plan: Plan, mode: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
        "clusterCIDR": plan.pods(),
        "detectLocalMode": "ClusterCIDR",
        "nftables": {"minSyncPeriod": "200ms"},
        "iptables": {"minSyncPeriod": "200ms"},
        // Limits of the whole machine stay as they are.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    })
}

fn cni(plan: Plan, node: usize) -> Value {
    let ranges: Vec<Value> =
        plan.pods_of(node).iter().map(|range| json!([{"subnet": range}])).collect();
    let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
    if plan.dual_stack {
        routes.push(json!({"dst": "::/0"}));
    }
    json!({
        "cniVersion": "0.4.0",
        "name": "cluster",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
}

/// Program and arguments of a component of a node, as seen inside it.
pub(crate) fn command(
    component: Component,
    cluster: &str,
    node: usize,
    plan: Plan,
) -> (PathBuf, Vec<String>) {
    let name = name(cluster, node);
    let args = match component {
        Component::Containerd(_) => vec!["--config=/etc/kubernetes/containerd.toml".to_owned()],
        Component::Kubelet(_) => vec![
            "--config=/etc/kubernetes/kubelet.json".into(),
            "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig".into(),
            "--root-dir=/var/lib/kubelet".into(),
            "--cert-dir=/var/lib/kubelet/pki".into(),
            format!("--hostname-override={name}"),
            format!("--node-ip={}", plan.node(node)),
            format!(
                "--node-labels=topology.kubernetes.io/zone=zone-{node},topology.kubernetes.io/region=local"
            ),
        ],
        _ => vec!["--config=/etc/kubernetes/kube-proxy.json".into()],
    };
    let program = match component {
        // Of the system, at the place where its package puts it.
        Component::Containerd(_) => {
            crate::system::find("containerd").unwrap_or_else(|| "/usr/bin/containerd".into())
        }
        other => Path::new(PROGRAMS).join(other.program()),
    };
    (program, args)
}
