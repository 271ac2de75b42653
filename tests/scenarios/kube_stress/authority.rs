//! Another CA with another root signs, and the one before is trusted no more (rows 2.8, 2.10).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_identity::ca::CaSet;
use fairlead_tests::cluster::app_pod;
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, SYSTEM};

use super::{NS, SOON, admin_json};
use crate::kube::{cacerts, starts};

/// All certificates of a node are renewed within (docs/certificates.md: a minute after the root was
/// heard of), with room for a busy machine.
const RENEWED: Duration = Duration::from_secs(90);

/// The chains that a node's daemon shows.
fn chains(mesh: &KubeMesh, node: usize) -> Result<Vec<String>> {
    let told = admin_json(mesh, node, "certs")?;
    let all = told["certificates"].as_array().context("no certificates")?;
    Ok(all.iter().filter_map(|c| c["chain"].as_str()).map(|c| c.replace('\r', "")).collect())
}

/// Own roots are put where Istio's users put them; when every certificate of the nodes is of the
/// new CA, the old one goes with its root.
pub(super) fn another(mesh: &KubeMesh) -> Result<()> {
    let before = starts(mesh, &[])?;
    let theirs = CaSet::generate(&"cluster.local".parse()?)?;
    let theirs_is = theirs.ca_cert.lines().nth(1).context("PEM")?.trim().to_owned();
    mesh.apply(&cacerts(&theirs))?;
    let start = Instant::now();
    for node in [1, 2] {
        let count = eventually("certificates of the new CA", RENEWED, || {
            let chains = chains(mesh, node)?;
            let new = chains.iter().filter(|chain| chain.contains(&theirs_is)).count();
            ensure!(new > 0 && new == chains.len(), "{new} of {}", chains.len());
            Ok(Some(new))
        })?;
        eprintln!("node {node}: {count} certificates of the new CA after {:?}", start.elapsed());
    }
    mesh.kubectl(&["delete", "secret", "-n", SYSTEM, "fairlead-ca-secret"])?;
    for node in [1, 2] {
        eventually("the old root goes", SOON, || {
            let told = admin_json(mesh, node, "certs")?;
            let all = told["certificates"].as_array().context("no certificates")?;
            ensure!(all.iter().all(|c| c["trustedRoots"] == 1), "{told}");
            Ok(Some(()))
        })?;
    }
    // A pod that has no session yet: what it opens verifies with the new root alone.
    let echo = ["echo", "--name", "newcomer", "--http", "8080"];
    mesh.apply(&app_pod("newcomer", NS, &mesh.node_name(1), &echo))?;
    mesh.ready(NS)?;
    mesh.until_meshed(NS, "newcomer", "http://server/", true)?;
    mesh.kubectl(&["delete", "pod", "-n", NS, "newcomer", "--wait=false"])?;
    ensure!(before == starts(mesh, &[])?, "something was restarted");
    Ok(())
}
