//! `cargo xtask demo --kubernetes`: the same story on a real cluster, told with kubectl and the
//! manifests that users get.

mod world;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::client::Load;
use fairlead_tests::eventually;
use fairlead_tests::kube::{READY, SYSTEM, manifests};
use fairlead_tests::process;

use self::world::World;
use super::Sweeper;
use super::story::Story;
use super::world::NAMESPACE;
use crate::{cluster, test, tools};

const PAGE: &str = "http://productpage:9080/productpage";
const DETAILS: &str = "http://details:9080/details/0";
/// The page from another namespace.
const PAGE_FROM_ELSEWHERE: &str = "http://productpage.bookinfo:9080/productpage";
/// The header that tells users apart; something to look for on the wire, too.
const USER: &str = "end-user";
/// How soon nodes follow what was applied, on a machine that does other things beside.
const SOON: Duration = Duration::from_secs(15);
/// Rounds of probes that have to pass: one more than make a pod unready when they fail.
const ROUNDS: f64 = 4.0;
/// Pods of the application that have a probe.
const PROBED: f64 = 7.0;

/// A match that could never match: the schema cannot know.
const BROKEN: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews-broken, namespace: bookinfo}
spec:
  hosts: [reviews]
  http:
  - match:
    - uri: {regex: \"/reviews/(0\"}
    route:
    - destination: {host: reviews, subset: v3}
";

/// Tells it.
pub(super) fn run(profile: &str, keep: bool) -> Result<()> {
    tools::require_root("the demo")?;
    tools::require(tools::NETWORK)?;
    cluster::require_tools()?;
    cluster::require_programs()?;
    test::build(profile)?;
    process::use_binaries_of(&crate::workspace::profile_dir(profile));
    let _sweeper = Sweeper::start()?;
    let mut story = Story::new();
    let mut world = World::build().context("making a cluster")?;
    let told = tell(&world, &mut story);
    if told.is_err() {
        world.show_logs();
    }
    if keep {
        world.keep()?;
    }
    told?;
    println!("\n{} promises kept in {:.0} s.", story.seen, story.seconds());
    Ok(())
}

type Chapter = fn(&World, &mut Story) -> Result<()>;

fn tell(world: &World, story: &mut Story) -> Result<()> {
    let chapters: [(&str, Chapter); 10] = [
        ("A cluster with an application, and no mesh", before),
        ("The mesh is installed", install),
        ("The namespace gets a label", join),
        ("STRICT: who is not in the mesh stays out, the kubelet does not", strict),
        ("A canary: 80/20, then by header", canary),
        ("A caller denied, and why", denied),
        ("A broken YAML", broken),
        ("The controller is gone, and comes back", without_controller),
        ("A node daemon is killed, and comes back", killed),
        ("The label goes", leave),
    ];
    for (title, chapter) in chapters {
        story.chapter(title);
        chapter(world, story).with_context(|| title.to_owned())?;
    }
    Ok(())
}

/// An application without a mesh.
fn before(world: &World, story: &mut Story) -> Result<()> {
    story.say(
        "Two nodes: visitor, productpage and reviews v1 on the first; details, reviews v2 and v3,",
    );
    story.say("ratings and their database on the second. None of them knows of a mesh.");
    let path = manifests().join("demo/kubernetes/bookinfo.yaml");
    world.told(&["apply", "-f", path.to_str().context("not UTF-8")?])?;
    for namespace in [NAMESPACE, "legacy"] {
        world.mesh.ready(namespace)?;
    }
    world.until_page(READY)?;
    let wire = world.mesh.observe(1)?;
    let page = world.page("anybody")?;
    story.promise(page.status() == 200, &format!("the page comes in {:.0} ms", page.ms()))?;
    let plain = wire.stop()?.saw_plaintext(USER);
    story.promise(plain, "whoever listens between the nodes reads every header")
}

/// The manifests that users get.
fn install(world: &World, story: &mut Story) -> Result<()> {
    let start = Instant::now();
    let dir = manifests();
    world.told(&["apply", "-k", &format!("{}/", dir.to_str().context("not UTF-8")?)])?;
    for what in
        ["deployment/fairlead-controller", "daemonset/fairlead-node", "daemonset/fairlead-cni"]
    {
        world.mesh.wait_rollout(SYSTEM, what, READY)?;
    }
    let ready = world.ready_pods(SYSTEM)?;
    story.promise(
        ready == 6,
        &format!(
            "two controllers, a daemon and a CNI plugin on each of two nodes: {ready} pods ready after {:.0} s",
            start.elapsed().as_secs_f64()
        ),
    )?;
    let wire = world.mesh.observe(1)?;
    let page = world.page("anybody")?;
    story.promise(
        page.status() == 200 && wire.stop()?.saw_plaintext(USER),
        "nobody asked for anything: the application goes on as before, in plaintext",
    )
}

/// One label.
fn join(world: &World, story: &mut Story) -> Result<()> {
    let pods = world.pods()?;
    world.told(&["label", "namespace", NAMESPACE, "istio.io/dataplane-mode=ambient"])?;
    let start = Instant::now();
    eventually("all pods are captured", READY, || {
        let captured = world.sum("fairlead_pods", &[("state", "captured")])?;
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let all = pods.len() as f64;
        ensure!((captured - all).abs() < 0.5, "{captured} of {all}");
        Ok(Some(()))
    })?;
    story.promise(
        true,
        &format!(
            "{} running pods are captured {:.1} s later",
            pods.len(),
            start.elapsed().as_secs_f64()
        ),
    )?;
    world.until_page(READY)?;
    let requests =
        || world.sum("istio_requests_total", &[("connection_security_policy", "mutual_tls")]);
    let so_far = requests()?;
    let wire = world.mesh.observe(1)?;
    let load = world.load(PAGE, "anybody", &["-n", "200", "-c", "8"])?;
    story.promise(
        load.status(200) == 200,
        &format!("{} of 200 pages come, median {:.1} ms", load.status(200), load.figure("p50_ms")),
    )?;
    let seen = wire.stop()?;
    let addresses = world.addresses()?;
    seen.assert_no_plaintext(USER)?;
    seen.assert_all_tls(&addresses)?;
    let bytes = seen.payload_bytes(&addresses);
    story.promise(
        bytes > 0,
        &format!("between the nodes {} KiB of TLS and nothing else", bytes.div_ceil(1024)),
    )?;
    let mutual = requests()? - so_far;
    story.promise(
        mutual >= 200.0,
        &format!("Istio's metrics count {mutual} requests as mutual TLS, at both ends of each"),
    )?;
    story.promise(world.pods()? == pods, "same pods, same addresses, no container restarted")
}

/// PeerAuthentication.
fn strict(world: &World, story: &mut Story) -> Result<()> {
    let outside = || world.get("legacy", "outsider", PAGE_FROM_ELSEWHERE);
    story.promise(outside()?.status() == 200, "before: a pod outside of the mesh gets the page")?;
    world.apply("strict")?;
    let refused = eventually("STRICT is in force", SOON, || {
        let reply = outside()?;
        Ok((reply.status() == 0).then_some(reply))
    })?;
    story.promise(true, &format!("now its connection is closed: {}", refused.error()))?;
    story.promise(world.page("anybody")?.status() == 200, "the mesh's own pods go on")?;
    let passed = || world.sum("fairlead_capture_events_total", &[("event", "passed_probe")]);
    let (so_far, wanted) = (passed()?, ROUNDS * PROBED);
    eventually("the kubelets probe", READY, || {
        ensure!(passed()? - so_far >= wanted, "{} probes", passed()? - so_far);
        Ok(Some(()))
    })?;
    let ready = world.ready_pods(NAMESPACE)?;
    let pods = world.pods()?.len();
    story.promise(
        ready == pods,
        &format!("after {wanted} probes in plaintext {ready} of {pods} pods are ready: the kernel knows the kubelet's sockets"),
    )
}

/// VirtualService and DestinationRule.
fn canary(world: &World, story: &mut Story) -> Result<()> {
    world.apply("destination-rules")?;
    world.apply("reviews-80-20")?;
    eventually("the canary is in force", SOON, || {
        Ok((world.load(PAGE, "anybody", &["-n", "50"])?.version("v2") == 0).then_some(()))
    })?;
    let load = world.load(PAGE, "anybody", &["-n", "1000", "-c", "8"])?;
    let (v1, v3) = (load.version("v1"), load.version("v3"));
    // Four standard deviations of a binomial distribution: 4 * sqrt(1000 * 0.8 * 0.2) = 51.
    story.promise(
        v1.abs_diff(800) <= 51 && v1 + v3 == 1000,
        &format!("80/20: of 1000 requests {v1} saw v1 and {v3} saw v3"),
    )?;
    world.delete("reviews-80-20")?;
    world.apply("reviews-by-header")?;
    eventually("the other route is in force", SOON, || {
        let jason = world.load(PAGE, "jason", &["-n", "20"])?.version("v2");
        let others = world.load(PAGE, "anybody", &["-n", "20"])?.version("v1");
        Ok((jason == 20 && others == 20).then_some(()))
    })?;
    let jason = world.load(PAGE, "jason", &["-n", "100"])?.version("v2");
    let others = world.load(PAGE, "anybody", &["-n", "100"])?.version("v1");
    story.promise(
        jason == 100 && others == 100,
        &format!("by header: jason saw v2 {jason} times of 100, others v1 {others} of 100"),
    )
}

/// AuthorizationPolicy.
fn denied(world: &World, story: &mut Story) -> Result<()> {
    let visitor = || world.get(NAMESPACE, "visitor", DETAILS);
    story.promise(visitor()?.status() == 200, "before: the visitor may ask details itself")?;
    world.apply("details-only-for-productpage")?;
    let reply = eventually("the policy is in force", SOON, || {
        let reply = visitor()?;
        Ok((reply.status() == 403).then_some(reply))
    })?;
    story.promise(true, &format!("now: 403 {:?}", reply.body().trim()))?;
    let why = eventually("the access log of the destination", SOON, || {
        let node = world.node_of("details")?;
        let log = world.mesh.node_log(node)?;
        let line = log.lines().rev().find(|l| l.contains(" 403 ") && l.contains("/details/0"));
        Ok(line.map(str::to_owned))
    })?;
    story.promise(true, "the access log of its node says why:")?;
    story.say(&format!("    {}", why.trim()));
    let page = world.page("anybody")?;
    story.promise(
        page.0["json"]["details"]["status"] == 200,
        "productpage, under its own identity, still gets its details",
    )
}

/// What cannot work is refused where it is written.
fn broken(world: &World, story: &mut Story) -> Result<()> {
    println!("   $ kubectl apply -f broken.yaml");
    let (taken, said) = world.mesh.try_kubectl(&["apply", "-f", "-"], BROKEN)?;
    story.promise(
        !taken && said.contains("spec.http[0].match[0].uri.regex"),
        "it is refused, with the field, and what is allowed there:",
    )?;
    said.lines().filter(|line| !line.trim().is_empty()).take(3).for_each(|line| {
        story.say(&format!("    {}", line.trim()));
    });
    let others = world.load(PAGE, "anybody", &["-n", "100"])?.version("v1");
    story.promise(others == 100, &format!("what was in force still is: {others} of 100 saw v1"))
}

/// Nodes do without it.
fn without_controller(world: &World, story: &mut Story) -> Result<()> {
    world.scale(0)?;
    let load = world.load(PAGE, "anybody", &["-n", "300", "-c", "4", "--fresh"])?;
    let v1 = load.version("v1");
    story.promise(
        load.status(200) == 300 && v1 == 300,
        &format!(
            "without any controller {} of 300 new connections are served, {v1} by the routes that were in force",
            load.status(200)
        ),
    )?;
    world.scale(2)?;
    let ready = world.ready_pods(SYSTEM)?;
    story.promise(ready == 6, "the controllers are back")
}

/// What went wrong how often, most often first.
fn reasons(load: &Load) -> String {
    let errors = load.0["errors"].as_object().into_iter().flatten();
    let mut all: Vec<(u64, &String)> =
        errors.filter_map(|(text, count)| Some((count.as_u64()?, text))).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.iter().map(|(count, text)| format!("{count} × {text}")).collect::<Vec<_>>().join(", ")
}

/// Refused while the daemon is dead, never plaintext.
fn killed(world: &World, story: &mut Story) -> Result<()> {
    let node = world.node_of("visitor")?;
    let daemon = world.mesh.pod_on(node, "fairlead-node")?;
    let wire = world.mesh.observe(1)?;
    let load = std::thread::scope(|scope| {
        let load = scope
            .spawn(|| world.load(PAGE, "anybody", &["-d", "12", "-r", "50", "-c", "4", "--fresh"]));
        std::thread::sleep(Duration::from_secs(2));
        story.say(&format!("kill -9 to the daemon of {}, under load.", world.mesh.node_name(node)));
        let killed = world.mesh.kill_in(node, SYSTEM, &daemon, "fairlead-node");
        let load = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        killed.and(load)
    })?;
    let (failed, all) = (load.count("failed"), load.count("requests"));
    story.promise(
        failed > 0 && load.count("ok") == load.status(200),
        &format!("{failed} of {all} new connections were refused: {}", reasons(&load)),
    )?;
    let at = |i: usize| load.0["failures_ms"][i].as_u64().unwrap_or(u64::MAX);
    let gone = at(1).saturating_sub(at(0));
    story.promise(
        at(1) < 11_000 && world.mesh.restarts(SYSTEM, &daemon)? == 1,
        &format!("the kubelet started it again; all are served after {:.1} s", gone as f64 / 1e3),
    )?;
    let wire = wire.stop()?;
    wire.assert_no_plaintext(USER)?;
    wire.assert_all_tls(&world.addresses()?)?;
    story.promise(true, "in all that time not one byte between the pods went in plaintext")
}

/// The way out.
fn leave(world: &World, story: &mut Story) -> Result<()> {
    let pods = world.pods()?;
    world.told(&["label", "namespace", NAMESPACE, "istio.io/dataplane-mode-"])?;
    let start = Instant::now();
    eventually("no pod is captured", READY, || {
        let captured = world.sum("fairlead_pods", &[("state", "captured")])?;
        ensure!(captured < 0.5, "{captured} are");
        Ok(Some(()))
    })?;
    let gone = start.elapsed().as_secs_f64();
    world.until_page(READY)?;
    let outside = world.get("legacy", "outsider", PAGE_FROM_ELSEWHERE)?;
    story.promise(
        outside.status() == 200 && world.pods()? == pods,
        &format!("{gone:.1} s later everything is as it was, and still no container was restarted"),
    )
}
