//! Steps: a broken YAML, a killed daemon.

use std::time::{Duration, Instant};

use anyhow::Result;
use fairlead_tests::{daemon, eventually};

use super::story::Story;
use super::world::World;

/// What somebody saves in a hurry.
const BROKEN: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews-v3
  namespace: bookinfo
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews, subset: v1}
      weight: eighty
";

/// A broken YAML.
pub(super) fn broken(world: &mut World, story: &mut Story) -> Result<()> {
    world.apply(&["strict", "destination-rules", "reviews-v3"])?;
    let file = world.mesh.node(0).config().join("reviews-v3.yaml");
    let good = std::fs::read_to_string(&file)?;
    for node in 0..2 {
        std::fs::write(world.mesh.node(node).config().join("reviews-v3.yaml"), BROKEN)?;
    }
    let netns = &world.mesh.node(0).netns;
    let problems = eventually("the daemon to complain", Duration::from_secs(3), || {
        let told = daemon::json(netns, "/problems")?;
        let problems = told["problems"].as_array().cloned().unwrap_or_default();
        Ok((!problems.is_empty()).then_some(problems))
    })?;
    let field = |name: &str| {
        problems.iter().any(|p| p["field"].as_str().is_some_and(|f| f.ends_with(name)))
    };
    story.promise(
        field("weight"),
        "the daemon says which file, which object, which field, and what is allowed:",
    )?;
    for problem in problems {
        let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        let file = text("file");
        let file = file.rsplit('/').next().unwrap_or_default();
        let (object, field, message) = (text("object"), text("field"), text("message"));
        story.say(&format!("    {file}: {object}: {field}: {message} ({})", text("allowed")));
    }
    let load = world.load("anybody", &["-n", "100"])?;
    story.promise(
        load.version("v3") == 100,
        &format!("the last good version stays in force: {} of 100 saw v3", load.version("v3")),
    )?;
    for node in 0..2 {
        std::fs::write(world.mesh.node(node).config().join("reviews-v3.yaml"), &good)?;
    }
    eventually("the complaint to go", Duration::from_secs(3), || {
        let told = daemon::json(netns, "/problems")?;
        Ok((told["errors"] == 0).then_some(()))
    })?;
    story.promise(true, "saved again without the mistakes: nothing to complain about")
}

/// The daemon killed and back.
pub(super) fn killed(world: &mut World, story: &mut Story) -> Result<()> {
    world.apply(&["strict", "destination-rules", "reviews-v3"])?;
    let url = format!("http://{}:9080/details/0", world.pod("details")?.ip());
    let page = world.pod("productpage")?;
    story.promise(page.get(&url, &[])?.status() == 200, "productpage reads details")?;
    let capture = world.mesh.capture()?;
    world.mesh.kill_daemon(0)?;
    story.say("kill -9 to the daemon of node0, where productpage lives.");
    let dead =
        page.load(&url, &["-n", "20", "--fresh", "-H", "end-user: leaked-if-you-read-this"])?;
    story.promise(
        dead.count("failed") == 20,
        &format!("{} of 20 new connections are refused: {}", dead.count("failed"), dead.errors()),
    )?;
    let one = page.get(&url, &[])?;
    story.promise(one.ms() < 500.0, &format!("at once, no hang: {:.1} ms", one.ms()))?;
    let start = Instant::now();
    world.mesh.spawn_daemon_with(0, &["--cert-ttl", super::world::CERT_TTL])?;
    let back = eventually("the page to be back", Duration::from_secs(15), || {
        Ok((page.get(&url, &[])?.status() == 200).then(|| start.elapsed()))
    })?;
    story.promise(
        true,
        &format!(
            "a new daemon takes over what is pinned in the kernel: back after {:.0} ms",
            back.as_secs_f64() * 1e3
        ),
    )?;
    let wire = capture.stop()?;
    wire.assert_no_plaintext("leaked-if-you-read-this")?;
    wire.assert_all_tls(&world.addresses())?;
    story.promise(true, "in all that time not one plaintext byte was on the wire")?;
    let load = world.load("anybody", &["-n", "200"])?;
    story.promise(
        load.status(200) == 200,
        &format!("{} of 200 requests succeed afterwards", load.status(200)),
    )
}
