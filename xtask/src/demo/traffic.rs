//! Steps: canary, faults, timeout and retry.

use anyhow::Result;

use super::story::Story;
use super::world::World;

/// 80/20, by header, everybody.
pub(super) fn canary(world: &mut World, story: &mut Story) -> Result<()> {
    world.apply(&["strict", "destination-rules", "reviews-80-20"])?;
    let load = world.load("anybody", &["-n", "1000", "-c", "8"])?;
    let (v1, v2, v3) = (load.version("v1"), load.version("v2"), load.version("v3"));
    // Three standard deviations of a binomial distribution: 3 * sqrt(1000 * 0.8 * 0.2) = 38.
    story.promise(
        v1.abs_diff(800) <= 38 && v2 == 0 && v1 + v3 == 1000,
        &format!("80/20: of 1000 requests {v1} saw v1 and {v3} saw v3 (v2: {v2})"),
    )?;
    world.apply(&["strict", "destination-rules", "reviews-by-header"])?;
    let jason = world.load("jason", &["-n", "100"])?;
    let others = world.load("anybody", &["-n", "100"])?;
    story.promise(
        jason.version("v2") == 100 && others.version("v1") == 100,
        &format!(
            "by header: jason saw v2 {} times of 100, others v1 {} of 100",
            jason.version("v2"),
            others.version("v1")
        ),
    )?;
    world.apply(&["strict", "destination-rules", "reviews-v3"])?;
    let all = world.load("anybody", &["-n", "200"])?;
    story.promise(
        all.version("v3") == 200,
        &format!("everybody: {} of 200 saw v3", all.version("v3")),
    )
}

/// A delay and an abort.
pub(super) fn faults(world: &mut World, story: &mut Story) -> Result<()> {
    world.apply(&["strict", "destination-rules", "reviews-v3", "faults"])?;
    let plain = world.page("anybody")?;
    let slow = world.page("slow")?;
    story.promise(
        slow.status() == 200 && slow.ms() >= 300.0 && plain.ms() < 300.0,
        &format!(
            "details is delayed by 300 ms for the user slow: {:.0} ms; for others: {:.0} ms",
            slow.ms(),
            plain.ms()
        ),
    )?;
    let details = world.pod("productpage")?;
    let load =
        details.load("http://details:9080/details/0", &["-n", "400", "-H", "end-user: unlucky"])?;
    let failed = load.status(503);
    // Four standard deviations: 4 * sqrt(400 * 0.5 * 0.5) = 40.
    story.promise(
        failed.abs_diff(200) <= 40 && failed + load.status(200) == 400,
        &format!("half of the requests of the user unlucky are aborted: {failed} of 400 got 503"),
    )?;
    let page = world.page("unlucky")?;
    story.promise(page.status() == 200, "the page itself survives it")
}

/// A timeout and a retry.
pub(super) fn retries(world: &mut World, story: &mut Story) -> Result<()> {
    world.apply(&["strict", "destination-rules", "reviews-v3"])?;
    let page = world.pod("productpage")?.load(
        "http://details:9080/details/0",
        &["-n", "100", "-c", "1", "-H", "end-user: flaky"],
    )?;
    story.promise(
        page.status(500) == 50,
        &format!(
            "details fails every other request of the user flaky: {} of 100 got 500",
            page.status(500)
        ),
    )?;
    world.apply(&["strict", "destination-rules", "timeout-and-retry"])?;
    let page = world.pod("productpage")?.load(
        "http://details:9080/details/0",
        &["-n", "100", "-c", "1", "-H", "end-user: flaky"],
    )?;
    story.promise(
        page.status(200) == 100,
        &format!("with two retries on 5xx: {} of 100 got 200", page.status(200)),
    )?;
    let page = world.page("anybody")?;
    let reviews = page.0["json"]["reviews"]["status"].as_u64().unwrap_or(0);
    story.promise(
        reviews == 504 && (450.0..900.0).contains(&page.ms()),
        &format!("ratings takes 3 s, reviews may take 500 ms: the page comes after {:.0} ms, reviews: {reviews}", page.ms()),
    )
}
