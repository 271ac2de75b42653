//! The cluster of the story, the application on it, and what is asked of them.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use fairlead_tests::client::{Load, Reply};
use fairlead_tests::cluster::ClusterOptions;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM, manifests};
use fairlead_tests::{daemon, eventually};

use super::super::world::NAMESPACE;
use super::{PAGE, USER};

/// How long an application waits for an answer, in milliseconds.
const PATIENCE: &str = "5000";

/// A cluster that has the images of the mesh and of the application, and nothing of them yet.
pub(super) struct World {
    pub(super) mesh: KubeMesh,
}

impl World {
    pub(super) fn build() -> Result<Self> {
        Ok(Self { mesh: KubeMesh::without_mesh(&ClusterOptions::default())? })
    }

    /// Leaves it, and says what to do with it.
    pub(super) fn keep(&mut self) -> Result<()> {
        self.mesh.keep()?;
        let name = self.mesh.record().name.clone();
        println!(
            "\nIt is still running. Things to try:
  export FAIRLEAD_CLUSTER={name}        # the cluster that cargo xtask cluster means
  cargo xtask cluster kubectl get pods -A -o wide
  cargo xtask cluster kubectl exec -n {NAMESPACE} visitor -- fairlead-apps get {PAGE}
  cargo xtask cluster kubectl logs -n {SYSTEM} ds/fairlead-node -f
  cargo xtask cluster down
or with a kubectl of your own: export KUBECONFIG={}",
            self.mesh.kubeconfig().display()
        );
        Ok(())
    }

    /// What may say why something went wrong.
    pub(super) fn show_logs(&self) {
        for node in [1, 2] {
            if let Ok(log) = self.mesh.node_log(node) {
                eprintln!("\nlast lines of the daemon of node {node}:\n{}", daemon::tail(&log));
            }
        }
        let pods = self.mesh.kubectl(&["get", "pods", "-A", "-o", "wide"]);
        eprintln!("\n{}", pods.unwrap_or_default());
    }

    /// Runs kubectl, and shows what people would type.
    pub(super) fn told(&self, args: &[&str]) -> Result<String> {
        let root = manifests();
        let shown = args.join(" ").replace(&format!("{}/", root.display()), "manifests/");
        println!("   $ kubectl {shown}");
        self.mesh.kubectl(args)
    }

    /// So many controllers.
    pub(super) fn scale(&self, replicas: usize) -> Result<()> {
        let count = format!("--replicas={replicas}");
        self.told(&["scale", "-n", SYSTEM, "deployment/fairlead-controller", &count])?;
        if replicas > 0 {
            return self.mesh.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY);
        }
        let pods = ["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-controller"];
        eventually("the controllers are gone", READY, || {
            let pods = self.mesh.json(&pods)?;
            Ok(pods["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })
    }

    /// Puts a file of `manifests/demo` in force.
    pub(super) fn apply(&self, name: &str) -> Result<()> {
        self.with_file("apply", name)
    }

    /// Takes it back.
    pub(super) fn delete(&self, name: &str) -> Result<()> {
        self.with_file("delete", name)
    }

    fn with_file(&self, verb: &str, name: &str) -> Result<()> {
        let path = manifests().join(format!("demo/{name}.yaml"));
        self.told(&[verb, "-f", path.to_str().context("not UTF-8")?]).map(drop)
    }

    /// A request; status 0 when there was no answer.
    pub(super) fn get(&self, namespace: &str, pod: &str, url: &str) -> Result<Reply> {
        self.mesh.get(namespace, pod, url, &["--timeout-ms", PATIENCE])
    }

    /// The page, as a user.
    pub(super) fn page(&self, user: &str) -> Result<Reply> {
        let header = format!("{USER}: {user}");
        self.mesh.get(NAMESPACE, "visitor", PAGE, &["-H", &header, "--timeout-ms", PATIENCE])
    }

    /// Waits for the whole page.
    pub(super) fn until_page(&self, limit: std::time::Duration) -> Result<()> {
        eventually("the page", limit, || {
            let page = self.page("anybody")?;
            let part = |name: &str| page.0["json"][name]["status"] == 200;
            ensure!(page.status() == 200 && part("details") && part("reviews"), "{}", page.0);
            Ok(Some(()))
        })
    }

    /// Many requests of the visitor's.
    pub(super) fn load(&self, url: &str, user: &str, more: &[&str]) -> Result<Load> {
        let header = format!("{USER}: {user}");
        self.mesh.load(NAMESPACE, "visitor", url, &[&["-H", &header], more].concat())
    }

    /// A metric, over both nodes' daemons.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let of = |node: usize| Ok(self.mesh.metrics(node)?.sum(name, labels));
        [1, 2].into_iter().map(of).sum()
    }

    /// Name, address and restarts of the application's pods.
    pub(super) fn pods(&self) -> Result<Vec<(String, String, u64)>> {
        let all = self.mesh.json(&["get", "pods", "-n", NAMESPACE])?;
        let pods = all["items"].as_array().context("no pods")?;
        let mut found: Vec<_> = pods
            .iter()
            .map(|pod| {
                let text = |path: &str| pod.pointer(path).and_then(|v| v.as_str()).unwrap_or("");
                let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
                let (name, ip) = (text("/metadata/name"), text("/status/podIP"));
                (name.to_owned(), ip.to_owned(), restarts.unwrap_or(u64::MAX))
            })
            .collect();
        found.sort();
        ensure!(!found.is_empty(), "no pods in {NAMESPACE}");
        Ok(found)
    }

    /// Their addresses.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>> {
        self.pods()?.iter().map(|(_, ip, _)| Ok(ip.parse()?)).collect()
    }

    /// How many pods of a namespace are ready.
    pub(super) fn ready_pods(&self, namespace: &str) -> Result<usize> {
        let all = self.mesh.json(&["get", "pods", "-n", namespace])?;
        let pods = all["items"].as_array().context("no pods")?;
        let ready = pods.iter().filter(|pod| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        });
        Ok(ready.count())
    }

    /// The node on which the application's pod with this label runs.
    pub(super) fn node_of(&self, app: &str) -> Result<usize> {
        let label = format!("app={app}");
        let pods = self.mesh.json(&["get", "pods", "-n", NAMESPACE, "-l", &label])?;
        self.mesh.node_of(&pods["items"][0]).with_context(|| app.to_owned())
    }
}
