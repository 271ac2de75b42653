//! Where endpoints are (row 3.17): `trafficDistribution`, Istio's annotation for it, and
//! `internalTrafficPolicy`, with three zones of two pods each.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::{Load, Mesh, Pod, PodSpec, Process, ServiceSpec, eventually};

use crate::common::echo_args;

const ZONES: [&str; 3] = ["z1", "z2", "z3"];

/// A node per zone, two pods of `server` on each, and a client in the first.
struct Zones {
    /// By zone.
    echoes: Vec<Vec<Process>>,
    servers: Vec<Vec<Arc<Pod>>>,
    client: Arc<Pod>,
    mesh: Mesh,
}

fn zones() -> Result<Zones> {
    let mesh = Mesh::new(ZONES.len())?;
    for (node, zone) in ZONES.iter().enumerate() {
        // The last zone is in another region.
        mesh.label_node(node, "topology.kubernetes.io/region", ["r1", "r1", "r2"][node]);
        mesh.label_node(node, "topology.kubernetes.io/zone", zone);
    }
    let client = mesh.pod(PodSpec::new("client"))?;
    let mut servers = Vec::new();
    for (node, zone) in ZONES.iter().enumerate() {
        let pod = |i: usize| {
            let spec = PodSpec::new(&format!("server-{zone}-{i}")).on(node).account("server");
            mesh.pod(spec.label("app", "server").label("version", zone))
        };
        servers.push(vec![pod(1)?, pod(2)?]);
    }
    let service = |name: &str| {
        let spec = ServiceSpec::new(name).selector(&[("app", "server")]);
        spec.port("http", 80, 8080).port("tcp", 9000, 9000)
    };
    mesh.service(service("all"));
    mesh.service(service("close").field("trafficDistribution", "PreferClose"));
    mesh.service(
        service("annotated")
            .annotation("networking.istio.io/traffic-distribution", "PreferSameZone"),
    );
    mesh.service(service("node").field("trafficDistribution", "PreferSameNode"));
    mesh.service(service("local").field("internalTrafficPolicy", "Local"));
    mesh.start()?;
    let mut echoes = Vec::new();
    for (pods, zone) in servers.iter().zip(ZONES) {
        let serve = |pod: &Arc<Pod>| pod.serve(&echo_args(&pod.name, zone));
        echoes.push(pods.iter().map(serve).collect::<Result<Vec<_>>>()?);
    }
    Ok(Zones { echoes, servers, client, mesh })
}

impl Zones {
    /// Requests of each zone, of 300.
    fn asked(&self, service: &str) -> Result<[u64; 3]> {
        let load: Load =
            self.client.load(&format!("http://{service}/"), &["-n", "300", "-c", "4"])?;
        ensure!(load.status(200) == 300, "{service}: {}", load.0);
        Ok(ZONES.map(|zone| load.version(zone)))
    }
}

#[test]
fn traffic_stays_in_the_zone_and_spills_when_the_zone_dies() -> Result<()> {
    let mut z = zones()?;
    let all = z.asked("all")?;
    ensure!(all.iter().all(|n| *n > 60), "without a wish all zones are used: {all:?}");
    for service in ["close", "annotated", "node", "local"] {
        let near = z.asked(service)?;
        ensure!(near == [300, 0, 0], "{service} leaves the zone: {near:?}");
    }
    // Connections too.
    let load = z.client.load("tcp://close:9000", &["-n", "100"])?;
    ensure!(load.version("z1") == 100, "connections leave the zone: {}", load.0);

    // One pod of the zone dies, and nobody is told: its neighbour has all of it.
    z.echoes[0].remove(0);
    ensure!(z.asked("close")? == [300, 0, 0], "one pod of the zone is left");
    // The zone dies: what is left of the region has it, then the rest.
    z.echoes[0].clear();
    let spilt = z.asked("close")?;
    ensure!(spilt == [0, 300, 0], "the next zone of the region: {spilt:?}");
    for pod in &z.servers[1] {
        pod.ready(false);
    }
    z.mesh.sync()?;
    let spilt = z.asked("close")?;
    ensure!(spilt == [0, 0, 300], "the other region: {spilt:?}");

    // Local never spills. First its pods refuse, then there is none.
    let refused = |reason: &str| -> Result<()> {
        let answer = z.client.get("http://local/", &[])?;
        ensure!(answer.status() == 503, "{}", answer.0);
        let line = z.mesh.logged(0, reason, |e| {
            e.text("response_code") == "503" && e.text("reason").contains(reason)
        });
        line.map(|_| ())
    };
    refused("connecting to")?;
    for pod in &z.servers[0] {
        pod.ready(false);
    }
    z.mesh.sync()?;
    refused("internalTrafficPolicy: Local")?;

    // The zone comes back.
    for pod in &z.servers[0] {
        pod.ready(true);
        z.echoes[0].push(pod.serve(&echo_args(&pod.name, ZONES[0]))?);
    }
    z.mesh.sync()?;
    eventually("the zone to be used again", Duration::from_secs(3), || {
        Ok((z.asked("close")? == [300, 0, 0]).then_some(()))
    })
}
