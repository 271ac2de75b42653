//! The controller beside an API server alone: definitions come, go and come back, the API server
//! and its store die, and what no node reads costs nothing; all of it seen in the metrics whose
//! names dashboards know (row 11.23).

use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{Cluster, ClusterOptions, Component};
use fairlead_tests::eventually;
use fairlead_tests::process::binary;

use crate::kube::SYSTEM;

/// How long things may take, on a machine that does other things beside.
const SOON: Duration = Duration::from_secs(60);
const MONITORING: &str = "http://127.0.0.1:15014";

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
            .arg(cluster.kubeconfig())
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

    // The API server dies, then its store with it.
    for (name, dying, objects) in [
        ("two", &[Component::Apiserver][..], 2.0),
        ("three", &[Component::Apiserver, Component::Etcd], 3.0),
    ] {
        let errors = "fairlead_controller_watch_errors_total";
        let before = controller.series(errors)?;
        for component in dying {
            cluster.kill(*component)?;
        }
        eventually("the controller notices", SOON, || {
            Ok((controller.series(errors)? > before).then_some(()))
        })?;
        ensure!(controller.get("/ready")? == "ok\n", "it goes on with what it knows");
        ensure!(controller.series("pilot_virt_services")? == Some(objects - 1.0), "it forgets");
        for component in dying.iter().rev() {
            cluster.start(*component)?;
        }
        cluster.wait_for_api()?;
        route(&cluster, name)?;
        controller.becomes("pilot_virt_services", objects)?;
    }

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
