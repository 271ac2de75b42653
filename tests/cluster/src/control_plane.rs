//! Command lines of the control plane.

use std::path::Path;

use anyhow::Result;

use crate::component::Component;
use crate::network::{API_PORT, Plan};
use crate::pki::{Pki, kubeconfig};

/// Whether the API server is asked by name, for components and for people.
const CLIENTS: &[(&str, &str)] = &[
    ("admin", "/O=system:masters/CN=fairlead-admin"),
    ("controller-manager", "/CN=system:kube-controller-manager"),
    ("scheduler", "/CN=system:kube-scheduler"),
];

/// Keys of the control plane and of people, and the kubeconfigs that use them.
pub(crate) fn prepare(dir: &Path, cluster: &str, plan: Plan) -> Result<Pki> {
    let pki = Pki::create(&dir.join("pki"))?;
    pki.issue("apiserver", "/CN=kube-apiserver", &plan.api_names())?;
    pki.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", &[])?;
    for (name, subject) in CLIENTS {
        pki.issue(name, subject, &[])?;
        let (server, file) = match *name {
            // From the host; the others are beside the API server.
            "admin" => (format!("https://{}:{API_PORT}", plan.outer()), "kubeconfig".to_owned()),
            name => (format!("https://127.0.0.1:{API_PORT}"), format!("pki/{name}.kubeconfig")),
        };
        let (cert, key) = (pki.file(&format!("{name}.crt")), pki.file(&format!("{name}.key")));
        let text =
            kubeconfig(&format!("fairlead-{cluster}"), &server, &pki.file("ca.crt"), &cert, &key);
        std::fs::write(dir.join(file), text)?;
    }
    Ok(pki)
}

/// Arguments of a component of the control plane.
pub(crate) fn arguments(component: Component, dir: &Path, plan: Plan) -> Vec<String> {
    let pki = Pki::at(&dir.join("pki"));
    let file = |name: &str| pki.file(name).display().to_string();
    match component {
        Component::Etcd => etcd(dir),
        Component::Apiserver => apiserver(&file, plan),
        Component::ControllerManager => controller_manager(&file, plan),
        Component::Scheduler => vec![
            format!("--kubeconfig={}", file("scheduler.kubeconfig")),
            format!("--authentication-kubeconfig={}", file("scheduler.kubeconfig")),
            format!("--authorization-kubeconfig={}", file("scheduler.kubeconfig")),
            "--bind-address=127.0.0.1".into(),
            "--leader-elect=false".into(),
        ],
        // Those of nodes are in node.rs.
        Component::Containerd(_) | Component::Kubelet(_) | Component::KubeProxy(_) => Vec::new(),
    }
}

fn etcd(dir: &Path) -> Vec<String> {
    let (clients, peers) = ("http://127.0.0.1:2379", "http://127.0.0.1:2380");
    vec![
        "--name=only".into(),
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=only={peers}"),
        // Data outlives a killed etcd in the page cache; only a crash of the machine could lose
        // some, and no cluster of this kind outlives that.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn apiserver(file: &dyn Fn(&str) -> String, plan: Plan) -> Vec<String> {
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--secure-port={API_PORT}"),
        format!("--advertise-address={}", Plan::api()),
        format!("--service-cluster-ip-range={}", plan.services()),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--kubelet-certificate-authority={}", file("ca.crt")),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        // There is no kube-proxy beside it: webhooks are called at their pods' addresses.
        "--enable-aggregator-routing=true".into(),
        "--shutdown-watch-termination-grace-period=1s".into(),
    ]
}

fn controller_manager(file: &dyn Fn(&str) -> String, plan: Plan) -> Vec<String> {
    let kubeconfig = file("controller-manager.kubeconfig");
    vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        format!("--service-account-private-key-file={}", file("sa.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--cluster-signing-cert-file={}", file("ca.crt")),
        format!("--cluster-signing-key-file={}", file("ca.key")),
        "--use-service-account-credentials=true".into(),
        // With the usual limits the first service account takes nine seconds.
        "--kube-api-qps=500".into(),
        "--kube-api-burst=1000".into(),
        "--node-monitor-grace-period=20s".into(),
        "--allocate-node-cidrs=false".into(),
        format!("--cluster-cidr={}", plan.pods()),
        format!("--service-cluster-ip-range={}", plan.services()),
    ]
}
