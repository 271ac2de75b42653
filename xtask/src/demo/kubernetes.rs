//! `cargo xtask demo --kubernetes`: the same story on a real cluster, told with kubectl and the
//! manifests that users get.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::client::{Load, Reply, last_json};
use fairlead_tests::cluster::ClusterOptions;
use fairlead_tests::kube::{KubeMesh, READY, SYSTEM, manifests};
use fairlead_tests::{eventually, process};

use super::story::Story;
use super::world::NAMESPACE;
use crate::{cluster, test, tools};

const PAGE: &str = "http://productpage:9080/productpage";
const DETAILS: &str = "http://details:9080/details/0";
/// The page from another namespace.
const PAGE_FROM_ELSEWHERE: &str = "http://productpage.bookinfo:9080/productpage";

/// Weights that nobody can follow.
const BROKEN: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews-broken, namespace: bookinfo}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 80}
    - {destination: {host: reviews, subset: v3}, weight: -20}
";

/// Tells it.
pub(super) fn run(profile: &str, keep: bool) -> Result<()> {
    tools::require_root("the demo")?;
    tools::require(tools::NETWORK)?;
    cluster::require_tools()?;
    cluster::require_programs()?;
    test::build(profile)?;
    process::use_binaries_of(&crate::workspace::profile_dir(profile));
    let mut story = Story::new();
    let world = World { mesh: KubeMesh::without_mesh(&ClusterOptions::default())? };
    let told = world.tell(&mut story);
    if keep {
        let name = world.mesh.record().name.clone();
        println!(
            "\nIt is still running. Things to try:
  export KUBECONFIG={}
  cargo xtask cluster kubectl --name {name} get pods -A -o wide
  kubectl exec -n {NAMESPACE} visitor -- fairlead-apps get {PAGE}
  kubectl logs -n {SYSTEM} ds/fairlead-node -f
  cargo xtask cluster down --name {name}",
            world.mesh.kubeconfig().display()
        );
        std::mem::forget(world);
    }
    told?;
    println!("\n{} promises kept in {:.0} s.", story.seen, story.seconds());
    Ok(())
}

struct World {
    mesh: KubeMesh,
}

impl World {
    fn tell(&self, story: &mut Story) -> Result<()> {
        story.chapter("A cluster with an application, and no mesh");
        self.before(story)?;
        story.chapter("kubectl apply --server-side -k manifests/");
        self.install(story)?;
        story.chapter("kubectl label namespace bookinfo istio.io/dataplane-mode=ambient");
        self.join(story)?;
        story.chapter("STRICT: who is not in the mesh stays out, the kubelet does not");
        self.strict(story)?;
        story.chapter("A canary: 80/20, then by header");
        self.canary(story)?;
        story.chapter("A caller denied");
        self.denied(story)?;
        story.chapter("A broken YAML");
        self.broken(story)?;
        story.chapter("The controller is gone, and comes back");
        self.without_controller(story)?;
        story.chapter("A node daemon is killed, and comes back");
        self.killed(story)
    }

    /// An application without a mesh.
    fn before(&self, story: &mut Story) -> Result<()> {
        let yaml = std::fs::read_to_string(manifests().join("demo/kubernetes/bookinfo.yaml"))?;
        eventually("the application is taken", READY, || self.mesh.apply(&yaml).map(Some))?;
        for namespace in [NAMESPACE, "legacy"] {
            self.mesh.wait(namespace, &["pods", "--all"], "condition=Ready", READY)?;
        }
        self.until_page(Duration::from_secs(30))?;
        let wire = self.mesh.observe(1)?;
        let page = self.page("anybody")?;
        story.promise(page.status() == 200, &format!("the page comes in {:.0} ms", page.ms()))?;
        let plain = wire.stop()?.saw_plaintext("end-user");
        story.promise(plain, "whoever listens between the nodes reads every header")
    }

    /// The manifests that users get.
    fn install(&self, story: &mut Story) -> Result<()> {
        let start = Instant::now();
        self.mesh.install()?;
        story.promise(
            true,
            &format!(
                "two controllers, a daemon and a CNI plugin on each node are ready after {:.0} s",
                start.elapsed().as_secs_f64()
            ),
        )?;
        let page = self.page("anybody")?;
        story.promise(page.status() == 200, "the application has noticed nothing")
    }

    /// One label.
    fn join(&self, story: &mut Story) -> Result<()> {
        let pods = self.pods()?;
        self.kubectl(&["label", "namespace", NAMESPACE, "istio.io/dataplane-mode=ambient"])?;
        let start = Instant::now();
        eventually("requests are counted as mTLS", READY, || {
            self.page("anybody")?;
            let policy = [("connection_security_policy", "mutual_tls")];
            let counted: f64 = [1, 2]
                .iter()
                .map(|node| Ok(self.mesh.metrics(*node)?.sum("istio_requests_total", &policy)))
                .sum::<Result<f64>>()?;
            Ok((counted > 0.0).then_some(()))
        })?;
        story.say(&format!("requests are mTLS {:.1} s later", start.elapsed().as_secs_f64()));
        self.until_page(READY)?;
        let wire = self.mesh.observe(1)?;
        let load = self.load(PAGE, "anybody", &["-n", "200", "-c", "8"])?;
        story.promise(load.status(200) == 200, "200 of 200 pages come")?;
        let seen = wire.stop()?;
        seen.assert_no_plaintext("end-user")?;
        let addresses = self.addresses()?;
        let sessions = seen.assert_all_tls(&addresses)?;
        story.promise(
            !seen.saw_plaintext("end-user"),
            &format!(
                "between the nodes there is TLS 1.3 and nothing else ({sessions} new sessions)"
            ),
        )?;
        story.promise(self.pods()? == pods, "same pods, same addresses, no container restarted")
    }

    /// PeerAuthentication.
    fn strict(&self, story: &mut Story) -> Result<()> {
        let before = self.get("legacy", "outsider", PAGE_FROM_ELSEWHERE)?;
        story.promise(before.status() == 200, "before: a pod outside of the mesh gets the page")?;
        self.apply("strict")?;
        eventually("STRICT is in force", Duration::from_secs(10), || {
            let outside = self.get("legacy", "outsider", PAGE_FROM_ELSEWHERE)?;
            Ok((outside.status() == 0).then_some(()))
        })?;
        story.promise(true, "now its connection is closed")?;
        story.promise(self.page("anybody")?.status() == 200, "the mesh's own pods go on")?;
        std::thread::sleep(Duration::from_secs(5));
        self.mesh.wait(NAMESPACE, &["pods", "--all"], "condition=Ready", Duration::from_secs(5))?;
        story.promise(true, "after 5 s of probes in plaintext all pods are Ready: the kernel knows the kubelet's sockets")
    }

    /// VirtualService and DestinationRule.
    fn canary(&self, story: &mut Story) -> Result<()> {
        self.apply("destination-rules")?;
        self.apply("reviews-80-20")?;
        eventually("the canary is in force", Duration::from_secs(10), || {
            Ok((self.load(PAGE, "anybody", &["-n", "50"])?.version("v2") == 0).then_some(()))
        })?;
        let load = self.load(PAGE, "anybody", &["-n", "1000", "-c", "8"])?;
        let (v1, v3) = (load.version("v1"), load.version("v3"));
        // Three standard deviations of a binomial distribution: 3 * sqrt(1000 * 0.8 * 0.2) = 38.
        story.promise(
            v1.abs_diff(800) <= 38 && v1 + v3 == 1000,
            &format!("80/20: of 1000 requests {v1} saw v1 and {v3} saw v3"),
        )?;
        self.delete("reviews-80-20")?;
        self.apply("reviews-by-header")?;
        eventually("the other route is in force", Duration::from_secs(10), || {
            Ok((self.load(PAGE, "jason", &["-n", "20"])?.version("v2") == 20).then_some(()))
        })?;
        let jason = self.load(PAGE, "jason", &["-n", "100"])?.version("v2");
        let others = self.load(PAGE, "anybody", &["-n", "100"])?.version("v1");
        story.promise(
            jason == 100 && others == 100,
            &format!("by header: jason saw v2 {jason} times of 100, others v1 {others} of 100"),
        )
    }

    /// AuthorizationPolicy.
    fn denied(&self, story: &mut Story) -> Result<()> {
        story.promise(
            self.get(NAMESPACE, "visitor", DETAILS)?.status() == 200,
            "before: the visitor may ask details directly",
        )?;
        self.apply("details-only-for-productpage")?;
        eventually("the policy is in force", Duration::from_secs(10), || {
            Ok((self.get(NAMESPACE, "visitor", DETAILS)?.status() == 403).then_some(()))
        })?;
        let reply = self.get(NAMESPACE, "visitor", DETAILS)?;
        story.promise(reply.status() == 403, &format!("now: 403, {}", reply.body().trim()))?;
        let page = self.page("anybody")?;
        story.promise(
            page.0["json"]["details"]["status"] == 200,
            "productpage, under its own identity, still gets its details",
        )
    }

    /// What cannot work is refused where it is written.
    fn broken(&self, story: &mut Story) -> Result<()> {
        let refused = self.mesh.apply(BROKEN).err().map(|error| format!("{error:#}"));
        let said = refused.unwrap_or_default();
        story.promise(said.contains("weight"), "kubectl apply is refused, with the field:")?;
        for line in said.lines().filter(|line| line.contains("weight")).take(2) {
            story.say(&format!("    {line}"));
        }
        let others = self.load(PAGE, "anybody", &["-n", "100"])?.version("v1");
        story.promise(others == 100, "what was in force still is")
    }

    /// Nodes do without it.
    fn without_controller(&self, story: &mut Story) -> Result<()> {
        self.scale(0)?;
        let load = self.load(PAGE, "anybody", &["-n", "300", "-c", "4", "--fresh"])?;
        story.promise(
            load.status(200) == 300,
            &format!(
                "without any controller {} of 300 new connections are served",
                load.status(200)
            ),
        )?;
        self.scale(2)?;
        self.mesh.wait_rollout(SYSTEM, "deployment/fairlead-controller", READY)?;
        story.promise(true, "it is back")
    }

    /// Refused while the daemon is dead, never plaintext.
    fn killed(&self, story: &mut Story) -> Result<()> {
        let pod = self.mesh.pod_on(1, "fairlead-node")?;
        let pid = self.mesh.process_of(1, SYSTEM, &pod)?;
        let wire = self.mesh.observe(1)?;
        let start = Instant::now();
        ensure!(
            std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?.success(),
            "the daemon could not be killed"
        );
        self.until_page(READY)?;
        let gone = start.elapsed();
        wire.stop()?.assert_no_plaintext("end-user")?;
        story.promise(
            true,
            &format!(
                "served again after {:.1} s; until then connections were refused, nothing went in plaintext",
                gone.as_secs_f64()
            ),
        )
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        println!("   $ kubectl {}", args.join(" "));
        self.mesh.kubectl(args)
    }

    fn scale(&self, replicas: usize) -> Result<()> {
        let replicas_arg = format!("--replicas={replicas}");
        self.kubectl(&["scale", "-n", SYSTEM, "deployment/fairlead-controller", &replicas_arg])?;
        if replicas > 0 {
            return Ok(());
        }
        eventually("the controllers are gone", READY, || {
            let pods =
                self.mesh.json(&["get", "pods", "-n", SYSTEM, "-l", "app=fairlead-controller"])?;
            Ok(pods["items"].as_array().is_none_or(Vec::is_empty).then_some(()))
        })
    }

    /// Puts a file of `manifests/demo` in force.
    fn apply(&self, name: &str) -> Result<()> {
        println!("   $ kubectl apply -f manifests/demo/{name}.yaml");
        let path = manifests().join(format!("demo/{name}.yaml"));
        self.mesh.apply(&std::fs::read_to_string(path)?)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = manifests().join(format!("demo/{name}.yaml"));
        self.mesh.delete(&std::fs::read_to_string(path)?)
    }

    /// A request; status 0 when there was no answer.
    fn get(&self, namespace: &str, pod: &str, url: &str) -> Result<Reply> {
        self.mesh.get(namespace, pod, url, &["--timeout-ms", "5000"])
    }

    fn page(&self, user: &str) -> Result<Reply> {
        let header = format!("end-user: {user}");
        self.mesh.get(NAMESPACE, "visitor", PAGE, &["-H", &header])
    }

    fn until_page(&self, limit: Duration) -> Result<()> {
        eventually("the page", limit, || Ok((self.page("anybody")?.status() == 200).then_some(())))
    }

    fn load(&self, url: &str, user: &str, more: &[&str]) -> Result<Load> {
        let header = format!("end-user: {user}");
        let command =
            [&["/usr/local/bin/fairlead-apps", "load", url, "-H", &header], more].concat();
        Ok(Load(last_json(&self.mesh.exec(NAMESPACE, "visitor", &command)?)?))
    }

    /// Name, address and restarts of the application's pods.
    fn pods(&self) -> Result<Vec<(String, String, u64)>> {
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
        Ok(found)
    }

    fn addresses(&self) -> Result<Vec<IpAddr>> {
        self.pods()?.iter().map(|(_, ip, _)| Ok(ip.parse()?)).collect()
    }
}
