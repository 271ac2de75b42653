//! `fairlead-node --check`: what a machine lacks is said in words, and neither the question nor a daemon
//! that cannot run there harms what is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use fairlead_tests::process::binary;
use fairlead_tests::{Load, client::last_json};
use serde_json::Value;

use crate::common::{Pair, pair_on};

/// A machine that lacks something: what is put before the program, the check that notices, how it is, and in which words.
type Lack = (&'static [&'static str], &'static str, &'static str, &'static str);

const LACKS: &[Lack] = &[
    (&["setarch", "--uname-2.6"], "kernel", "failed", ": Fairlead needs Linux 6.1 or newer"),
    (
        &["setpriv", "--bounding-set=-net_admin"],
        "CAP_NET_ADMIN",
        "failed",
        "network programs cannot be attached",
    ),
    (
        &["setpriv", "--bounding-set=-sys_ptrace"],
        "CAP_SYS_PTRACE",
        "missing",
        "running pods cannot be found",
    ),
    (
        &["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"],
        "kernel programs",
        "failed",
        "Operation not permitted",
    ),
    (
        &[
            "unshare",
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"",
        ],
        "kernel type information",
        "missing",
        "CONFIG_DEBUG_INFO_BTF",
    ),
];

/// Runs the daemon's program on node 0, on a machine that lacks something.
fn run(p: &Pair, lacking: &[&str], args: &[&str]) -> Result<Output> {
    let program = binary("fairlead-node", "FAIRLEAD_TEST_NODE")?;
    let node = p.mesh.node(0);
    let output = Command::new("nsenter")
        .arg(format!("--net={}", node.netns.path().display()))
        .args(lacking)
        .arg(program)
        .args(args)
        .output()?;
    Ok(output)
}

/// The checks that were made, and whether Fairlead can run there.
fn check(p: &Pair, lacking: &[&str], cgroup: &Path) -> Result<(bool, Vec<Value>)> {
    let (pins, cgroup) = (p.mesh.node(0).pins.display().to_string(), cgroup.display().to_string());
    let args = ["--check", "-o", "json", "--pin-dir", &pins, "--cgroup-root", &cgroup];
    let output = run(p, lacking, &args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.success(), serde_json::from_slice(&output.stdout).context(said)?))
}

fn line<'a>(lines: &'a [Value], name: &str) -> Result<&'a Value> {
    let found = lines.iter().find(|line| line["check"] == name);
    found.with_context(|| format!("no check of {name}: {lines:?}"))
}

/// Names of all directories and files below.
fn below(dir: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        found.insert(entry.path().display().to_string());
        if entry.file_type()?.is_dir() {
            below(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// What a question could leave behind: cgroups and pins.
fn traces(p: &Pair) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    below(&p.mesh.node(0).cgroup, &mut found)?;
    below(p.mesh.node(0).pins.parent().context("pins of a node")?, &mut found)?;
    Ok(found)
}

#[test]
fn what_a_machine_lacks_is_said_and_nothing_there_is_harmed() -> Result<()> {
    let p = pair_on(0)?;
    ensure!(p.client.get("http://server/", &[])?.status() == 200);
    let before = traces(&p)?;
    let cgroup = &p.mesh.node(0).cgroup;
    let root = ["--cgroup-root", &cgroup.display().to_string()];
    let mut load =
        p.client.spawn(&["load", "http://server/", "-d", "4", "-r", "200", "--fresh"])?;

    let (can, lines) = check(&p, &[], cgroup)?;
    let bad: Vec<_> = lines.iter().filter(|line| line["result"] == "failed").collect();
    ensure!(can && bad.is_empty(), "this machine runs a mesh: {bad:?}");
    for name in ["kernel", "CAP_NET_ADMIN", "sk_lookup", "cgroup v2", "bpf file system"] {
        ensure!(line(&lines, name)?["result"] == "ok", "{:?}", line(&lines, name));
    }
    ensure!(lines.iter().any(|line| line["check"] == "hook connect4"), "{lines:?}");

    for (lacking, name, result, words) in LACKS {
        let (can, lines) = check(&p, lacking, cgroup)?;
        let line = line(&lines, name)?;
        ensure!(line["result"] == *result, "{lacking:?}: {line}");
        let said = line["detail"].as_str().context("no words")?;
        ensure!(said.contains(words), "{lacking:?}: {said}");
        ensure!(can == (*result != "failed"), "{lacking:?}: {lines:?}");
    }
    let (can, lines) = check(&p, &[], Path::new("/tmp"))?;
    let said = line(&lines, "cgroup v2")?;
    ensure!(!can && said["result"] == "failed", "{said}");
    ensure!(said["detail"].as_str().unwrap_or_default().contains("/tmp"), "{said}");
    // People get a table, which ends with the verdict.
    let told = run(&p, &["setarch", "--uname-2.6"], &[&["--check"], &root[..]].concat())?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure!(
        told.ends_with("Fairlead cannot run on this node: 1 requirement is not met.\n"),
        "{told}"
    );

    // A daemon that is started there all the same ends, says why, and takes nothing with it.
    let pins = p.mesh.node(0).pins.with_file_name("lacking").display().to_string();
    let (config, ca) = (p.mesh.node(0).config(), p.mesh.node(0).config().with_file_name("no-ca"));
    let dirs =
        ["--config-dir", &config.display().to_string(), "--ca-dir", &ca.display().to_string()];
    let args = [&["--pin-dir", &pins, "--admin", "127.0.0.1:15999"], &root[..], &dirs].concat();
    let ended =
        run(&p, &["timeout", "60", "setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon"], &args)?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned()
        + &String::from_utf8_lossy(&ended.stdout);
    ensure!(ended.status.code() == Some(1), "{:?}: {said}", ended.status);
    ensure!(said.contains("CAP_SYS_ADMIN"), "{said}");
    let _ = std::fs::remove_dir_all(&pins);

    load.wait(std::time::Duration::from_secs(20))?;
    let load = Load(last_json(&load.output())?);
    ensure!(load.status(200) > 500 && load.count("failed") == 0, "{}", load.0);
    let after = traces(&p)?;
    ensure!(before == after, "left behind: {:?}", after.symmetric_difference(&before));
    Ok(())
}
