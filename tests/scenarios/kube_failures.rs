//! What a mesh on a real cluster must stand, with traffic flowing and counted: rolling updates
//! (row 15.6), kills of everything that it is made of, and a node that is torn down and booted
//! again (rows 1.8, 1.9). For each: what failed, for how long, and that nothing went unencrypted or
//! unchecked.

mod kills;
mod reboot;
mod rolling;
mod traffic;

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY};
use fairlead_tests::packets::Flow;

use traffic::{Row, Target, Verdict, during};

const NS: &str = "load";
/// In every path of what is allowed: on no wire may it be read.
const MARKER: &str = "MARKER-kube-failures";

/// Nodes are told of what services have; they ask about other addresses.
const SERVICES: &str = "apiVersion: v1\n\
                        kind: Service\n\
                        metadata: {name: near, namespace: load}\n\
                        spec: {selector: {app: near}, ports: [{name: http, port: 8080}, {name: tcp, \
                        port: 9000}]}\n\
                        ---\n\
                        apiVersion: v1\n\
                        kind: Service\n\
                        metadata: {name: far, namespace: load}\n\
                        spec: {selector: {app: far}, ports: [{name: http, port: 8080}, {name: tcp, \
                        port: 9000}]}\n";

/// Whoever has no certificate, or that of `denied`, gets nothing.
const POLICIES: &str = "apiVersion: v1\n\
                        kind: ServiceAccount\n\
                        metadata: {name: denied, namespace: load}\n\
                        ---\n\
                        apiVersion: security.istio.io/v1\n\
                        kind: PeerAuthentication\n\
                        metadata: {name: default, namespace: load}\n\
                        spec: {mtls: {mode: STRICT}}\n";
const DENY: &str = "apiVersion: security.istio.io/v1\n\
                    kind: AuthorizationPolicy\n\
                    metadata: {name: deny, namespace: load}\n\
                    spec:\n\
                    \x20 action: DENY\n\
                    \x20 rules: [{from: [{source: {principals: [cluster.local/ns/load/sa/denied]}}]}]\n";

/// A mesh with traffic in it: a client, a server beside it, and one on the other node.
struct Scene {
    mesh: KubeMesh,
    targets: Vec<Target>,
    /// Addresses of all pods of the mesh.
    ends: Vec<IpAddr>,
}

fn echo(mesh: &KubeMesh, namespace: &str, name: &str, node: usize) -> String {
    let args = ["echo", "--name", name, "--http", "8080", "--tcp", "9000"];
    app_pod(name, namespace, &mesh.node_name(node), &args)
}

impl Scene {
    /// `rate`: new connections a second to each target.
    fn new(rate: u32) -> Result<Self> {
        let mesh = KubeMesh::up(&ClusterOptions::default())?;
        mesh.namespace(NS, "istio.io/dataplane-mode: ambient")?;
        let pods = [("client", 1), ("near", 1), ("far", 2)];
        mesh.apply(&pods.map(|(name, node)| echo(&mesh, NS, name, node)).concat())?;
        mesh.apply(SERVICES)?;
        mesh.ready(NS)?;
        let mut scene = Self { mesh, targets: Vec::new(), ends: Vec::new() };
        for (name, _) in pods {
            scene.ends.push(scene.mesh.pod_ip(NS, name)?.parse()?);
        }
        for name in ["near", "far"] {
            scene.target(name, "HTTP", (1, NS, "client"), name, rate, Verdict::Allowed)?;
            scene.target(name, "TCP", (1, NS, "client"), name, rate, Verdict::Allowed)?;
        }
        Ok(scene)
    }

    fn target(
        &mut self,
        what: &str,
        protocol: &str,
        (node, namespace, pod): (usize, &str, &str),
        server: &str,
        rate: u32,
        verdict: Verdict,
    ) -> Result<()> {
        let ip = self.mesh.pod_ip(NS, server)?;
        let url = match (protocol, verdict) {
            ("TCP", _) => format!("tcp://{ip}:9000"),
            // Who is outside the mesh speaks in plaintext.
            (_, Verdict::Denied) => format!("http://{ip}:8080/"),
            _ => format!("http://{ip}:8080/{MARKER}"),
        };
        if protocol != "TCP" && verdict == Verdict::Allowed {
            self.mesh.until_meshed(namespace, pod, &url, true)?;
        }
        let from = self.mesh.inside(node, namespace, pod)?;
        self.targets.push(Target { what: format!("{what}, {protocol}"), from, url, verdict, rate });
        Ok(())
    }

    /// Adds callers that policies deny: one of the mesh, and one outside it.
    fn denied(&mut self, rate: u32) -> Result<()> {
        let mesh = &self.mesh;
        mesh.apply(POLICIES)?;
        let denied = echo(mesh, NS, "denied", 1)
            .replace("spec:\n", "spec:\n\x20 serviceAccountName: denied\n");
        mesh.apply(&format!("{DENY}---\n{denied}{}", echo(mesh, "default", "outside", 2)))?;
        mesh.ready(NS)?;
        mesh.ready("default")?;
        self.ends.push(mesh.pod_ip(NS, "denied")?.parse()?);
        let (near, far) = (mesh.pod_ip(NS, "near")?, mesh.pod_ip(NS, "far")?);
        for (namespace, pod, ip, status) in [
            (NS, "denied", &near, 403),
            (NS, "denied", &far, 403),
            ("default", "outside", &near, 0),
        ] {
            eventually(&format!("{pod} is denied {ip}"), READY, || {
                let reply = mesh.get(namespace, pod, &format!("http://{ip}:8080/"), &[])?;
                ensure!(reply.status() == status, "{}", reply.0);
                Ok(Some(()))
            })?;
        }
        let denied = (1, NS, "denied");
        self.target("denied to near", "HTTP", denied, "near", rate, Verdict::Denied)?;
        self.target("denied to far", "TCP", denied, "far", rate, Verdict::Denied)?;
        let outside = (2, "default", "outside");
        self.target("plaintext to near", "HTTP", outside, "near", rate, Verdict::Denied)
    }

    /// An event, with the wire of node 1 observed: nothing is on it but TLS.
    fn watched(&self, event: &str, work: impl FnOnce() -> Result<()>) -> Result<Vec<Row>> {
        let wire = self.mesh.observe(1)?;
        let rows = during(event, &self.targets, work);
        let mut wire = wire.stop()?;
        wire.assert_no_plaintext(MARKER).with_context(|| event.to_owned())?;
        let bytes = wire.payload_bytes(&self.ends);
        // Sessions that were there before are seen from somewhere in the middle of a record; what
        // got past the mesh would be a new connection.
        let ends = |flow: &Flow| (flow.source, flow.destination);
        let opened: HashSet<_> = wire.flows.iter().filter(|flow| flow.opened).map(ends).collect();
        wire.flows.retain(|flow| {
            let (source, destination) = ends(flow);
            opened.contains(&(source, destination)) || opened.contains(&(destination, source))
        });
        let opened = wire.assert_all_tls(&self.ends).with_context(|| event.to_owned())?;
        eprintln!("| {event} | on the wire | | {bytes} bytes, {opened} new sessions | all TLS |");
        let rows = rows?;
        ensure!(bytes > 10_000, "{event}: {bytes} bytes on the wire say nothing");
        rows.iter().try_for_each(Row::checked)?;
        Ok(rows)
    }

    /// The same, and no connection fails.
    fn unharmed(&self, event: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.watched(event, work)?.iter().try_for_each(Row::unharmed)
    }
}

#[test]
fn rolling_updates_fail_no_new_connection() -> Result<()> {
    rolling::updates(&Scene::new(rolling::RATE)?)
}

#[test]
fn kills_and_a_reboot_let_nothing_past() -> Result<()> {
    let mut scene = Scene::new(kills::RATE)?;
    scene.denied(kills::RATE / 2)?;
    kills::daemons(&scene)?;
    // They start on the other node while the control plane is killed.
    let pods = reboot::Pods::start(&scene)?;
    kills::control(&scene)?;
    pods.boot(&mut scene)
}
