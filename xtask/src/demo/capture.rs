//! Steps: no mesh, joining, the wire, STRICT.

use std::time::Instant;

use anyhow::{Context, Result};
use fairlead_tests::tls;
use fairlead_tests::wire::Captured;

use super::story::Story;
use super::world::World;

/// Something to look for on the wire.
const SECRET: &str = "user-with-a-secret";

/// The step before the mesh.
pub(super) fn before(world: &mut World, story: &mut Story) -> Result<()> {
    story.say("Both daemons run, but no namespace carries a label: they touch nothing.");
    let capture = world.mesh.capture()?;
    let page = world.page(SECRET)?;
    story.promise(
        page.status() == 200,
        &format!("the page is there: {} in {:.1} ms", page.status(), page.ms()),
    )?;
    let load = world.load("anybody", &["-n", "300", "-c", "4"])?;
    story.promise(
        load.count("failed") == 0,
        &format!(
            "{} requests, {} failed, median {:.2} ms",
            load.count("requests"),
            load.count("failed"),
            load.figure("p50_ms")
        ),
    )?;
    let wire = capture.stop()?;
    story.promise(
        wire.saw_plaintext(SECRET),
        "on the wire between the nodes, the user's name can be read by anybody",
    )?;
    let requests = world.mesh.metrics()?.sum("istio_requests_total", &[]);
    story.promise(requests == 0.0, "the daemons saw none of it: istio_requests_total = 0")?;
    no_netfilter(world, story)
}

/// Neither nftables nor iptables has a rule in any namespace.
fn no_netfilter(world: &World, story: &mut Story) -> Result<()> {
    let mut looked = 0;
    let nodes = (0..2).map(|n| &world.mesh.node(n).netns);
    for netns in world.pods.iter().map(|p| &p.netns).chain(nodes) {
        let rules = netns.enter(|| {
            let nft = fairlead_tests::shell::run("nft", &["list", "ruleset"])?;
            Ok(nft.lines().filter(|l| !l.trim().is_empty()).count())
        })?;
        if rules > 0 {
            return story.promise(false, &format!("{} has netfilter rules", netns.name()));
        }
        looked += 1;
    }
    story.promise(true, &format!("netfilter rules in {looked} namespaces (nft list ruleset): 0"))
}

/// Label the namespace.
pub(super) fn join(world: &mut World, story: &mut Story) -> Result<()> {
    let pids: Vec<u32> = world.processes.iter().map(fairlead_tests::Process::pid).collect();
    story.say("A connection to the database is opened now and kept open over the change.");
    let db = format!("{}:3306", world.pod("ratingsdb")?.ip());
    let mut old = world.visitor.spawn(&[
        "send",
        &db,
        "GET 0\\nGET 0\\nGET 0\\n",
        "--piece",
        "6",
        "--pace-ms",
        "700",
    ])?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let before = world.mesh.metrics()?;
    let capture = world.mesh.capture()?;
    let start = Instant::now();
    world.join()?;
    let took = start.elapsed();
    story.promise(took.as_secs_f64() < 2.0, &format!("namespace labelled istio.io/dataplane-mode=ambient; in force on both nodes after {:.0} ms", took.as_secs_f64() * 1e3))?;
    let page = world.page("anybody")?;
    story.promise(
        page.status() == 200,
        &format!("the page is there: {} in {:.1} ms", page.status(), page.ms()),
    )?;
    let seen =
        world.mesh.counted(&before, "istio_requests_total", &[("reporter", "source")], 1.0)?;
    story.promise(
        seen >= 1.0,
        &format!("the daemons carried it: {seen} requests counted at their source"),
    )?;
    let mtls = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];
    let sealed = world.mesh.counted(&before, "istio_requests_total", &mtls, 1.0)?;
    story.promise(sealed >= 1.0, &format!("{sealed} of them arrived under mutual TLS"))?;
    hello(&capture.stop()?, story)?;
    old.wait(std::time::Duration::from_secs(10))?;
    let told = fairlead_tests::client::last_json(&old.output())?;
    let answers = told["received"].as_str().unwrap_or_default().matches("OK ").count();
    story.promise(
        answers == 3,
        &format!("the connection from before lived on: {answers} of 3 queries answered"),
    )?;
    let same = world.processes.iter_mut().all(fairlead_tests::Process::alive);
    let now: Vec<u32> = world.processes.iter().map(fairlead_tests::Process::pid).collect();
    story.promise(same && now == pids, &format!("{} processes, none restarted", pids.len()))
}

/// The wire, encrypted.
pub(super) fn wire(world: &mut World, story: &mut Story) -> Result<()> {
    let capture = world.mesh.capture()?;
    let page = world.page(SECRET)?;
    story.promise(
        page.status() == 200,
        &format!("the page is there: {} in {:.1} ms", page.status(), page.ms()),
    )?;
    let load = world.load(SECRET, &["-n", "300", "-c", "4"])?;
    story.promise(
        load.count("failed") == 0,
        &format!(
            "{} requests, {} failed, median {:.2} ms",
            load.count("requests"),
            load.count("failed"),
            load.figure("p50_ms")
        ),
    )?;
    let wire = capture.stop()?;
    wire.assert_no_plaintext(SECRET)?;
    let sessions = wire.assert_all_tls(&world.addresses())?;
    let bytes = wire.payload_bytes(&world.addresses());
    story.promise(bytes > 0, &format!("{bytes} bytes between the pods crossed the wire, every one inside TLS; the user's name is nowhere"))?;
    story
        .say(&format!("TLS sessions opened for all that: {sessions}; many connections share one."));
    no_netfilter(world, story)?;
    let entry = world.mesh.logged(1, "details", |e| e.mentions("/details/0"))?;
    let peer = entry.0.to_string();
    story.promise(
        peer.contains("sa/productpage")
            || world.mesh.metrics()?.sum(
                "istio_requests_total",
                &[("source_principal", "spiffe://cluster.local/ns/bookinfo/sa/productpage")],
            ) > 0.0,
        "details knows its caller: spiffe://cluster.local/ns/bookinfo/sa/productpage",
    )
}

fn hello(wire: &Captured, story: &mut Story) -> Result<()> {
    let hellos: Vec<_> = wire.flows.iter().filter_map(|f| tls::hello(&f.bytes)).collect();
    let client = hellos.iter().find(|h| !h.server).context("no TLS handshake was seen")?;
    story.promise(client.versions == [tls::TLS13], "TLS 1.3, nothing older is offered")?;
    story.promise(
        client.shares.contains(&tls::X25519MLKEM768),
        "the key exchange is X25519MLKEM768: safe from tomorrow's quantum computer",
    )
}

/// STRICT.
pub(super) fn strict(world: &mut World, story: &mut Story) -> Result<()> {
    let url = format!("http://{}:9080/details/0", world.pod("details")?.ip());
    let open = world.outsider.get(&url, &[])?;
    story.promise(
        open.status() == 200,
        &format!(
            "PERMISSIVE (the default): a pod outside the mesh reads details: {}",
            open.status()
        ),
    )?;
    world.apply(&["strict"])?;
    let closed = world.outsider.get(&url, &[])?;
    story.promise(
        closed.status() == 0,
        &format!(
            "STRICT: its connection is closed after {:.1} ms ({})",
            closed.ms(),
            closed.error()
        ),
    )?;
    let page = world.page("anybody")?;
    let details = page.0["json"]["details"]["status"].as_u64().unwrap_or(0);
    story.promise(page.status() == 200 && details == 200, "pods of the mesh read it as before")?;
    let outsider = world.outsider.ip().to_string();
    let entry = world
        .mesh
        .logged(1, "the outsider", |e| e.mentions(&outsider) && e.text("response_code") != "200")
        .context("the refusal is not in the access log")?;
    story.promise(true, &format!("the access log says why: {}", why(&entry)))
}

/// The reason of an access log line.
pub(super) fn why(entry: &fairlead_tests::Entry) -> String {
    for field in [
        "reason",
        "connection_termination_details",
        "response_code_details",
        "upstream_transport_failure_reason",
    ] {
        let text = entry.text(field);
        if !text.is_empty() && text != "-" {
            return text;
        }
    }
    entry.0.to_string()
}
