//! The controller beside an API server alone: definitions come, go and come back, the API server
//! and its store die, the controller is cut off from them until they have forgotten what it saw, and
//! what no node reads costs nothing; all of it seen in the metrics whose names dashboards know
//! (row 11.23).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{Cluster, ClusterOptions, Component};
use fairlead_tests::eventually;
use fairlead_tests::process::binary;
use serde_json::{Value, json};

use crate::kube::SYSTEM;

/// How long things may take, on a machine that does other things beside.
const SOON: Duration = Duration::from_secs(60);
const MONITORING: &str = "http://127.0.0.1:15014";
/// Where the controller reaches the API server: nobody else does by this address.
const OWN: &str = "127.0.0.2";
/// etcd, for whoever is beside it.
const ETCD: &str = "http://127.0.0.1:2379/v3/kv";

/// The controller's own process, in the namespaces of the control plane.
struct Controller<'c> {
    cluster: &'c Cluster,
    child: Child,
}

impl Drop for Controller<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'c> Controller<'c> {
    fn start(cluster: &'c Cluster) -> Result<Self> {
        let log = File::create(cluster.dir().join("controller.log"))?;
        let child = cluster
            .outer_command()?
            .arg(binary("fairlead-controller", "FAIRLEAD_TEST_CONTROLLER")?)
            .arg("--kubeconfig")
            .arg(own_kubeconfig(cluster)?)
            .args(["--no-webhook", "--log-level", "info,fairlead_controller=debug"])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let controller = Self { cluster, child };
        eventually("the controller is ready", SOON, || {
            let ready = controller.get("/ready")?;
            ensure!(ready == "ok\n", "{ready}");
            Ok(Some(()))
        })?;
        Ok(controller)
    }

    fn get(&self, path: &str) -> Result<String> {
        let url = format!("{MONITORING}{path}");
        let output =
            self.cluster.outer_command()?.args(["curl", "-s", "-m", "5", &url]).output()?;
        ensure!(output.status.success(), "{url}: {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A series; `None` if it is not there.
    fn series(&self, name: &str) -> Result<Option<f64>> {
        let text = self.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.parse().with_context(|| format!("{name} {value}"))).transpose()
    }

    fn becomes(&self, name: &str, value: f64) -> Result<()> {
        eventually(&format!("{name} is {value}"), SOON, || {
            let now = self.series(name)?;
            ensure!(now == Some(value), "{name} is {now:?}");
            Ok(Some(()))
        })
    }
}

/// The controller's own way to the API server, which can be cut with nobody else noticing.
fn own_kubeconfig(cluster: &Cluster) -> Result<PathBuf> {
    let mut config: Value = serde_json::from_str(&fs::read_to_string(cluster.kubeconfig())?)?;
    let of = &mut config["clusters"][0]["cluster"];
    of["server"] = format!("https://{OWN}:6443").into();
    of["tls-server-name"] = "localhost".into();
    let path = cluster.dir().join("controller.kubeconfig");
    fs::write(&path, config.to_string())?;
    Ok(path)
}

fn nft(cluster: &Cluster, rules: &str) -> Result<()> {
    let output = cluster.outer_command()?.args(["nft", rules]).output()?;
    ensure!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What etcd answers.
fn etcd(cluster: &Cluster, what: &str, request: &Value) -> Result<Value> {
    let (url, body) = (format!("{ETCD}/{what}"), request.to_string());
    let mut command = cluster.outer_command()?;
    let output = command.args(["curl", "-sf", "-m", "10", "-d", &body, &url]).output()?;
    ensure!(output.status.success(), "{url} {body}: {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| url)
}

/// etcd forgets all that was before now.
fn compact(cluster: &Cluster) -> Result<()> {
    let first = etcd(cluster, "range", &json!({"key": "AA==", "range_end": "AA==", "limit": 1}))?;
    let revision = &first["header"]["revision"];
    ensure!(revision.is_string(), "{first}");
    etcd(cluster, "compaction", &json!({"revision": revision, "physical": true}))?;
    Ok(())
}

/// Long away from the API server, which dies meanwhile, twice, and remembers nothing of what the
/// controller saw: it goes on with what it knows, and then learns what has changed, come and gone.
fn cut_off(controller: &Controller<'_>) -> Result<()> {
    let cluster = controller.cluster;
    let events = |event| {
        let name = format!("pilot_k8s_cfg_events{{type=\"VirtualService\",event=\"{event}\"}}");
        Ok::<_, anyhow::Error>(controller.series(&name)?.unwrap_or_default())
    };
    let now = || Ok::<_, anyhow::Error>((events("add")?, events("update")?, events("delete")?));
    let relists = || {
        let lists = controller.series("fairlead_controller_relists_total")?;
        lists.context("nothing is told of lists")
    };
    let errors = || {
        let errors = controller.series("fairlead_controller_watch_errors_total")?;
        errors.context("nothing is told of errors")
    };
    // What is there goes when the API server dies, and nothing new comes about.
    nft(
        cluster,
        &format!(
            "add table ip cut; add chain ip cut out {{ type filter hook output priority 0; }}; \
             add rule ip cut out ip daddr {OWN} tcp dport 6443 tcp flags & (syn | ack) == syn \
             reject with tcp reset"
        ),
    )?;
    cluster.restart(Component::Apiserver)?;
    // Counted from here: an API server that came back a moment ago (as before this) may have been
    // asked for lists until it died, as it no longer knew the versions of before.
    let failed = errors()?;
    eventually("the controller notices", SOON, || Ok((errors()? > failed).then_some(())))?;
    let (before, lists) = (now()?, relists()?);
    cluster.kubectl(&["delete", "virtualservice", "-n", "mesh", "one"])?;
    let patch = "{\"spec\": {\"hosts\": [\"two\", \"two.example.org\"]}}";
    cluster.kubectl(&[
        "patch",
        "virtualservice",
        "-n",
        "mesh",
        "two",
        "--type=merge",
        "-p",
        patch,
    ])?;
    route(cluster, "three")?;
    route(cluster, "four")?;
    compact(cluster)?;
    for component in [Component::Apiserver, Component::Etcd] {
        cluster.kill(component)?;
    }
    for component in [Component::Etcd, Component::Apiserver] {
        cluster.start(component)?;
    }
    cluster.wait_for_api()?;
    ensure!(controller.get("/ready")? == "ok\n", "it goes on with what it knows");
    ensure!(controller.series("pilot_virt_services")? == Some(2.0), "it forgets");
    ensure!(now()? == before && relists()? == lists, "it is not cut off");

    nft(cluster, "delete table ip cut")?;
    controller.becomes("pilot_virt_services", 3.0)?;
    eventually("all that came, changed and went is seen", SOON, || {
        let (added, changed, gone) = now()?;
        let found = (added - before.0, changed - before.1, gone - before.2);
        ensure!(found == (2.0, 1.0, 1.0), "(added, changed, gone): {found:?}");
        Ok(Some(()))
    })?;
    ensure!(relists()? > lists, "the API server remembered: this says nothing of a relist");
    // And what happens from now on is seen.
    cluster.kubectl(&["delete", "virtualservice", "-n", "mesh", "two"])?;
    controller.becomes("pilot_virt_services", 2.0)
}

fn definitions(cluster: &Cluster) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    cluster.apply_kustomization(&root.join("crds"))
}

/// A route, as soon as the API server knows what that is.
fn route(cluster: &Cluster, name: &str) -> Result<()> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: mesh}}\n\
         spec: {{hosts: [{name}], http: [{{route: [{{destination: {{host: {name}}}}}]}}]}}\n"
    );
    eventually("the route is taken", SOON, || cluster.apply(&text).map(Some))
}

#[test]
fn definitions_come_and_go_and_the_api_server_dies() -> Result<()> {
    let cluster = Cluster::up(&ClusterOptions::default().nodes(0))?;
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {SYSTEM}}}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {{name: mesh}}\n"
    ))?;
    // Ready without a single definition.
    let controller = Controller::start(&cluster)?;
    ensure!(controller.series("pilot_virt_services")? == Some(0.0), "a route without routes");
    definitions(&cluster)?;
    route(&cluster, "one")?;
    controller.becomes("pilot_virt_services", 1.0)?;

    // A definition goes, its objects with it, and comes back.
    cluster.kubectl(&["delete", "crd", "virtualservices.networking.istio.io"])?;
    controller.becomes("pilot_virt_services", 0.0)?;
    definitions(&cluster)?;
    route(&cluster, "one")?;
    controller.becomes("pilot_virt_services", 1.0)?;

    // What no node reads.
    cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: mesh}\n\
         spec: {ports: [{port: 80}]}\n",
    )?;
    let updates = "pilot_k8s_reg_events{type=\"Service\",event=\"update\"}";
    let unchanged = "fairlead_controller_unchanged_events_total";
    eventually("the service is there", SOON, || {
        let services = controller.series("fairlead_controller_objects{kind=\"Service\"}")?;
        Ok((services >= Some(2.0)).then_some(()))
    })?;
    let (before, same) = (controller.series(updates)?, controller.series(unchanged)?);
    cluster.kubectl(&["annotate", "service", "-n", "mesh", "web", "a=b"])?;
    eventually("the event is seen", SOON, || {
        Ok((controller.series(unchanged)? > same).then_some(()))
    })?;
    ensure!(controller.series(updates)? == before, "an annotation of somebody else counts");

    // The API server dies, and is back at once.
    let errors = "fairlead_controller_watch_errors_total";
    let before = controller.series(errors)?;
    cluster.kill(Component::Apiserver)?;
    eventually("the controller notices", SOON, || {
        Ok((controller.series(errors)? > before).then_some(()))
    })?;
    ensure!(controller.get("/ready")? == "ok\n", "it goes on with what it knows");
    ensure!(controller.series("pilot_virt_services")? == Some(1.0), "it forgets");
    cluster.start(Component::Apiserver)?;
    cluster.wait_for_api()?;
    route(&cluster, "two")?;
    controller.becomes("pilot_virt_services", 2.0)?;
    cut_off(&controller)?;

    // Names that dashboards know.
    let text = controller.get("/metrics")?;
    for name in [
        "pilot_xds{",
        "pilot_xds_pushes{",
        "pilot_proxy_convergence_time_bucket{",
        "pilot_xds_push_time_bucket{",
        "pilot_total_xds_rejects ",
        "pilot_services ",
        "pilot_k8s_cfg_events{type=\"VirtualService\",event=\"add\"}",
        "citadel_server_csr_count ",
        "citadel_server_success_cert_issuance_count ",
        "citadel_server_root_cert_expiry_timestamp ",
        "istio_build{component=\"pilot\"",
        "process_resident_memory_bytes ",
    ] {
        ensure!(text.lines().any(|line| line.starts_with(name)), "no {name} in\n{text}");
    }
    Ok(())
}
