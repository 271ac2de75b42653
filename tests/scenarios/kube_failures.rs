//! What a mesh on a real cluster must stand, with traffic flowing and counted: rolling updates
//! (row 15.6), kills of everything that it is made of, and a node that is torn down and booted
//! again (rows 1.8, 1.9). For each: what failed, for how long, and that nothing went unencrypted or
//! unchecked.

mod kills;
mod place;
mod reboot;
mod rolling;
mod traffic;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{ClusterOptions, app_pod};
use fairlead_tests::kube::{KubeMesh, READY};
use fairlead_tests::wire::Tolerated;
use fairlead_tests::{Metrics, eventually};

use place::Place;
use traffic::{Caller, Protocol, Row, Target, Verdict, during};

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

const CLIENT: Caller = Caller { node: 1, namespace: NS, pod: "client" };
const DENIED: Caller = Caller { node: 1, namespace: NS, pod: "denied" };
/// Not in the mesh, on the node of `far`.
const OUTSIDE: Caller = Caller { node: 2, namespace: "default", pod: "outside" };
/// Not in the mesh, on the node of `near`.
const BESIDE: Caller = Caller { node: 1, namespace: "default", pod: "beside" };

/// A mesh with traffic in it: a client, a server beside it, and one on the other node.
struct Scene {
    mesh: KubeMesh,
    targets: Vec<Target>,
    near: Arc<Place>,
    far: Arc<Place>,
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
        let [near, far] = ["near", "far"].map(|pod| Place::of(&mesh, pod).map(Arc::new));
        let (near, far) = (near?, far?);
        let mut ends = Vec::new();
        for (name, _) in pods {
            ends.push(mesh.pod_ip(NS, name)?.parse()?);
        }
        let mut scene = Self { mesh, targets: Vec::new(), near, far, ends };
        for (name, server) in [("near", &scene.near.clone()), ("far", &scene.far.clone())] {
            for (protocol, said) in [(Protocol::Http, "HTTP"), (Protocol::Tcp, "TCP")] {
                let what = format!("{name}, {said}");
                scene.target(&what, protocol, CLIENT, server, rate, Verdict::Allowed)?;
            }
        }
        Ok(scene)
    }

    fn target(
        &mut self,
        what: &str,
        protocol: Protocol,
        caller: Caller,
        to: &Arc<Place>,
        rate: u32,
        verdict: Verdict,
    ) -> Result<()> {
        let target = Target {
            what: what.to_owned(),
            caller,
            from: self.mesh.inside(caller.node, caller.namespace, caller.pod)?,
            protocol,
            to: Arc::clone(to),
            verdict,
            rate,
            side_by_side: 2,
            begun: Arc::new(AtomicU64::new(0)),
        };
        if protocol == Protocol::Http && verdict == Verdict::Allowed {
            self.mesh.until_meshed(caller.namespace, caller.pod, &target.url(), true)?;
        }
        self.targets.push(target);
        Ok(())
    }

    /// Adds callers that policies deny: one of the mesh, and one outside it on each node.
    fn denied(&mut self, rate: u32) -> Result<()> {
        let mesh = &self.mesh;
        mesh.apply(POLICIES)?;
        let pod = |caller: Caller| echo(mesh, caller.namespace, caller.pod, caller.node);
        let denied = pod(DENIED).replace("spec:\n", "spec:\n\x20 serviceAccountName: denied\n");
        mesh.apply(&[&format!("{DENY}---\n"), &denied, &pod(OUTSIDE), &pod(BESIDE)[..]].concat())?;
        mesh.ready(NS)?;
        mesh.ready("default")?;
        self.ends.push(mesh.pod_ip(NS, DENIED.pod)?.parse()?);
        let (near, far) = (Arc::clone(&self.near), Arc::clone(&self.far));
        let all = [
            (DENIED, "denied", &near, Protocol::Http, 403),
            (DENIED, "denied", &far, Protocol::Tcp, 403),
            (OUTSIDE, "plaintext", &near, Protocol::Http, 0),
            (BESIDE, "plaintext", &far, Protocol::Http, 0),
        ];
        for (Caller { namespace, pod, .. }, _, to, _, status) in all {
            let url = format!("http://{}:8080/", to.ip());
            eventually(&format!("{pod} is denied {}", to.pod()), READY, || {
                let reply = mesh.get(namespace, pod, &url, &[])?;
                ensure!(reply.status() == status, "{}", reply.0);
                Ok(Some(()))
            })?;
        }
        for (caller, who, to, protocol, _) in all {
            let what = format!("{who} to {}", to.pod());
            self.target(&what, protocol, caller, to, rate, Verdict::Denied)?;
        }
        Ok(())
    }

    /// How often the kernel programs of node 1 decided of a `connect()`.
    fn decided(&self) -> Result<u64> {
        let text = eventually("the daemon's metrics", READY, || {
            let url = "http://127.0.0.1:15020/metrics";
            self.mesh.on_node(1, &["curl", "-sf", "-m", "5", url]).map(Some)
        })?;
        Ok(Metrics::parse(&text).decided())
    }

    /// Does something with traffic: no application of node 1 gets a `connect()` past the kernel
    /// programs. So whatever SYN of a pod of its is on the wire is a daemon's, also one without more.
    fn captured<T>(&self, event: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = self.targets.iter().filter(|target| target.caller.node == 1);
        let begun = || {
            let captured = own.clone().filter(|target| target.caller.in_mesh());
            captured.map(|target| target.begun.load(Ordering::Relaxed)).sum::<u64>()
        };
        let before = (begun(), self.decided()?);
        let done = work()?;
        let (begun, decided) = (begun() - before.0, self.decided()? - before.1);
        ensure!(
            begun == decided,
            "{event}: applications began {begun} connections, the kernel programs decided of {decided}"
        );
        Ok(done)
    }

    /// An event, with the wire of node 1 observed: nothing is on it but TLS, and every connection
    /// begins with a ClientHello but for those that are tolerated.
    fn watched(
        &self,
        event: &str,
        tolerated: Tolerated,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Vec<Row>> {
        let wire = self.mesh.observe(1)?;
        let rows = self.captured(event, || during(event, &self.targets, work));
        let mut wire = wire.stop()?;
        wire.assert_no_plaintext(MARKER).with_context(|| event.to_owned())?;
        let bytes = wire.payload_bytes(&self.ends);
        wire.only_new();
        let seen = wire.assert_all_tls_but(&self.ends, tolerated);
        let seen = seen.with_context(|| event.to_owned())?;
        eprintln!(
            "| {event} | on the wire | | {bytes} bytes, {} new sessions, {} ended and {} refused before \
             their ClientHello | all TLS |",
            seen.sessions, seen.aborted, seen.refused
        );
        let rows = rows?;
        ensure!(bytes > 10_000, "{event}: {bytes} bytes on the wire say nothing");
        rows.iter().try_for_each(Row::checked)?;
        Ok(rows)
    }

    /// The same, and no connection fails.
    fn unharmed(&self, event: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.watched(event, Tolerated::default(), work)?.iter().try_for_each(Row::unharmed)
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
