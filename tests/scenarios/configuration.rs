//! Configuration from files: broken YAML keeps the last good state, every way of saving is seen
//! within 100 ms, and `fairlead validate` says the same.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_tests::{daemon, eventually, process};

use crate::common::{versions, virtual_service};

fn to(subset: &str) -> String {
    virtual_service(&format!(
        "  http:\n  - route: [{{destination: {{host: server, subset: {subset}}}}}]\n"
    ))
}

#[test]
fn broken_yaml_keeps_the_last_good_version_of_itself_and_disturbs_nothing_else() -> Result<()> {
    let v = versions(2)?;
    v.mesh.apply("routes", &to("v1"))?;
    ensure!(v.client.get("http://server/", &[])?.version() == "v1");
    let broken = [
        ("not YAML", "apiVersion: [".to_owned(), ""),
        (
            "a wrong type",
            to("v2").replace(
                "http:\n",
                "http:\n  - timeout: soon\n    route: [{destination: {host: server}}]\n",
            ),
            "timeout",
        ),
        (
            "an impossible value",
            to("v2").replace("subset: v2}", "subset: v2}, weight: -5"),
            "weight",
        ),
    ];
    for (what, yaml, field) in &broken {
        v.mesh.apply("routes", yaml)?;
        let (_, problems) = daemon::get(&v.mesh.node(0).netns, "/problems")?;
        ensure!(problems.contains("routes.yaml") && problems.contains(field), "{what}: {problems}");
        let load = v.client.load("http://server/", &["-n", "20"])?;
        ensure!(load.version("v1") == 20, "{what}: {}", load.0);
    }
    // A good object beside a bad one in one file takes effect.
    let two = format!("{}---\n{}", to("v2").replace("name: server", "name: good"), broken[1].1);
    v.mesh.apply("routes", &two)?;
    let (_, problems) = daemon::get(&v.mesh.node(0).netns, "/problems")?;
    ensure!(problems.contains("timeout"), "{problems}");
    // A field that nobody knows is an error too: what was meant may be a restriction.
    v.mesh.apply("routes", &to("v2").replace("  http:\n", "  htpp: []\n  http:\n"))?;
    let (_, problems) = daemon::get(&v.mesh.node(0).netns, "/problems")?;
    ensure!(problems.contains("htpp") && problems.contains("did you mean http?"), "{problems}");
    let load = v.client.load("http://server/", &["-n", "20"])?;
    ensure!(load.version("v1") == 20, "{}", load.0);
    v.mesh.apply("routes", &to("v1"))?;
    let told = daemon::json(&v.mesh.node(0).netns, "/problems")?;
    ensure!(told["errors"] == 0, "{told}");
    Ok(())
}

#[test]
fn every_way_of_saving_is_seen_within_a_tenth_of_a_second() -> Result<()> {
    let v = versions(2)?;
    v.mesh.apply("routes", &to("v1"))?;
    let node = v.mesh.node(0);
    let file = node.config().join("routes.yaml");
    let measure = |what: &str, subset: &str, save: &dyn Fn(&str) -> Result<()>| -> Result<()> {
        let before = node.generation()?;
        let start = Instant::now();
        save(&to(subset))?;
        let took = eventually(what, Duration::from_secs(2), || {
            Ok((node.generation()? > before).then(|| start.elapsed()))
        })?;
        ensure!(took < Duration::from_millis(150), "{what} took {took:?}");
        let version = v.client.get("http://server/", &[])?.version();
        ensure!(version == subset, "{what}: {version} instead of {subset}");
        Ok(())
    };
    measure("in place", "v2", &|text| Ok(fs::write(&file, text)?))?;
    measure("by rename", "v1", &|text| {
        let beside = node.config().join(".routes.swp");
        fs::write(&beside, text)?;
        Ok(fs::rename(&beside, &file)?)
    })?;
    measure("removed and made again", "v2", &|text| {
        fs::remove_file(&file)?;
        Ok(fs::write(&file, text)?)
    })?;
    // As Kubernetes mounts a ConfigMap: a symlink to `..data`, itself a symlink that is swapped.
    fs::remove_file(&file)?;
    let data = |name: &str, text: &str| -> Result<()> {
        let dir = node.config().join(name);
        fs::create_dir(&dir)?;
        fs::write(dir.join("routes.yaml"), text)?;
        std::os::unix::fs::symlink(name, node.config().join("..data_tmp"))?;
        Ok(fs::rename(node.config().join("..data_tmp"), node.config().join("..data"))?)
    };
    data("..2026_1", &to("v1"))?;
    std::os::unix::fs::symlink("..data/routes.yaml", &file)?;
    eventually("the mounted file", Duration::from_secs(2), || {
        Ok((v.client.get("http://server/", &[])?.version() == "v1").then_some(()))
    })?;
    measure("by symlink swap", "v2", &|text| data("..2026_2", text))
}

#[test]
fn the_cli_says_the_same_before_anything_is_saved() -> Result<()> {
    let v = versions(1)?;
    let dir = v.mesh.dir().join("validate");
    fs::create_dir_all(&dir)?;
    let cli = process::binary("fairlead", "FAIRLEAD_TEST_CLI")?;
    let validate = |args: &[&str]| -> Result<(Option<i32>, String)> {
        let output = Command::new(&cli).arg("validate").args(args).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
    };
    fs::write(dir.join("good.yaml"), to("v1"))?;
    fs::write(dir.join("subsets.yaml"), crate::common::subsets("server", 1))?;
    fs::write(dir.join("topology.yaml"), v.mesh.topology())?;
    let (code, text) = validate(&[&dir.display().to_string()])?;
    ensure!(code == Some(0), "{code:?} {text}");
    let bad = dir.join("bad.yaml");
    fs::write(
        &bad,
        to("v1")
            .replace(
                "  http:\n",
                "  http:\n  - timeout: soon\n    route: [{destination: {host: server}}]\n",
            )
            .replace("name: server", "name: bad"),
    )?;
    let (code, text) = validate(&[&dir.display().to_string()])?;
    ensure!(
        code != Some(0) && text.contains("bad.yaml") && text.contains("timeout"),
        "{code:?} {text}"
    );
    let (_, json) = validate(&[&bad.display().to_string(), "-o", "json"])?;
    let told: serde_json::Value = serde_json::from_str(json.trim())?;
    ensure!(told.to_string().contains("timeout"), "{told}");
    ensure!(!Path::new(&v.mesh.node(0).config().join("bad.yaml")).exists());
    Ok(())
}
