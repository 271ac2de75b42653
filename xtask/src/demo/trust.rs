//! Steps: a caller denied, certificates rotated.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use fairlead_tests::client::{Load, last_json};
use fairlead_tests::daemon;

use super::capture::why;
use super::story::Story;
use super::world::{CERT_TTL, World};

/// A caller denied, and why.
pub(super) fn denied(world: &mut World, story: &mut Story) -> Result<()> {
    world.apply(&["strict", "destination-rules", "reviews-v3", "details-only-for-productpage"])?;
    let url = "http://details:9080/details/0";
    let visitor = world.visitor.get(url, &[])?;
    story.promise(
        visitor.status() == 403,
        &format!(
            "the visitor asks details itself: {} {:?}",
            visitor.status(),
            visitor.body().trim()
        ),
    )?;
    let entry = world.mesh.logged(1, "403", |e| e.text("response_code") == "403")?;
    story.promise(true, &format!("the access log of the destination says why: {}", why(&entry)))?;
    let page = world.pod("productpage")?;
    let (get, post) = (page.get(url, &[])?, page.get(url, &["-X", "POST"])?);
    story.promise(
        get.status() == 200 && post.status() == 403,
        &format!("productpage may GET ({}) but not POST ({})", get.status(), post.status()),
    )?;
    let whole = world.page("anybody")?;
    let details = whole.0["json"]["details"]["status"].as_u64().unwrap_or(0);
    story.promise(details == 200, "so the visitor still sees details on the page")
}

/// Certificates of all nodes: serial numbers.
pub(super) fn serials(world: &World) -> Result<BTreeSet<String>> {
    let mut serials = BTreeSet::new();
    for node in 0..2 {
        let told = daemon::json(&world.mesh.node(node).netns, "/certs")?;
        collect(&told, &mut serials);
    }
    Ok(serials)
}

fn collect(value: &serde_json::Value, into: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                if key.starts_with("serial") {
                    into.insert(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
                }
                collect(value, into);
            }
        }
        serde_json::Value::Array(all) => all.iter().for_each(|v| collect(v, into)),
        _ => {}
    }
}

/// Certificates rotate under load.
pub(super) fn certificates(world: &mut World, story: &mut Story) -> Result<()> {
    world.apply(&["strict", "destination-rules", "reviews-v3"])?;
    story.say(&format!(
        "Certificates live {CERT_TTL} here (an hour otherwise) and are renewed at about half of it."
    ));
    let before = serials(world)?;
    let url = "http://productpage:9080/productpage";
    let mut load = world.load_beside(url, &["-d", "22", "-r", "200", "-c", "8"])?;
    load.wait(Duration::from_secs(60))?;
    let load = Load(last_json(&load.output())?);
    let after = serials(world)?;
    let renewed = after.difference(&before).count();
    story.promise(
        !before.is_empty() && before.is_disjoint(&after),
        &format!("all {} certificates were renewed ({renewed} new serial numbers)", before.len()),
    )?;
    let bad = load.count("requests") - load.status(200);
    story.promise(
        bad == 0 && load.count("failed") == 0,
        &format!(
            "meanwhile {} requests, {bad} failed, slowest {:.0} ms",
            load.count("requests"),
            load.figure("max_ms")
        ),
    )
}
