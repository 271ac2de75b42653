//! What a node tells its controller of the addresses that its pods were given.

use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::{PodSpec, eventually};
use fairlead_wire::cni::{Request, Response};

use super::{World, uid};
use crate::common::{ask_as_plugin, sandbox};

const SOON: Duration = Duration::from_secs(10);

/// Whether it was all, and each pod's name with its addresses.
type Word = (bool, Vec<(String, Vec<String>)>);

/// What node 0 has told since `since`.
fn told(w: &World, since: usize) -> Vec<Word> {
    let heard = w.controller.heard();
    let of_node =
        heard.addresses.iter().skip(since).filter(|(node, _)| *node == w.mesh.node(0).name);
    let pods = |told: &fairlead_wire::config::PodAddresses| {
        told.pods.iter().map(|pod| (pod.name.clone(), pod.addresses.clone())).collect()
    };
    of_node.map(|(_, told)| (told.all, pods(told))).collect()
}

/// A sandbox comes, its daemon is killed, the next one has it, it goes.
pub(super) fn over_a_restart() -> Result<()> {
    let w = World::new(&[])?;
    ensure!(told(&w, 0).first() == Some(&(true, Vec::new())), "{:?}", told(&w, 0));
    let early = w.mesh.pod(PodSpec::new("early").uid(&uid()).listed(&[]))?;
    let socket = w.controller.cni_socket(0);
    let topology = w.mesh.topology();
    let objects: Vec<&str> =
        topology.split("---\n").filter(|o| o.contains("name: early\n")).collect();
    let add = Request::Add(sandbox(&early));
    let answer = std::thread::scope(|scope| -> Result<Response> {
        let asked = scope.spawn(|| ask_as_plugin(&socket, &add));
        // The node's word does not wait for the object.
        let own: Vec<String> = early.ips.iter().map(ToString::to_string).collect();
        eventually("the node's word", SOON, || {
            let word = (false, vec![("early".to_owned(), own.clone())]);
            Ok(told(&w, 0).contains(&word).then_some(()))
        })?;
        w.controller.apply(&objects.join("---\n"))?;
        asked.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })?;
    ensure!(answer == Response::Enrolled, "{answer:?}");

    let before = w.controller.heard().addresses.len();
    w.mesh.kill_daemon(0)?;
    w.spawn(0, &[])?;
    w.mesh.wait_ready(0)?;
    eventually("the next daemon's word", SOON, || {
        let all = told(&w, before).into_iter().find(|(all, _)| *all);
        Ok(all.filter(|(_, pods)| pods.len() == 1 && pods[0].0 == "early").map(drop))
    })?;
    let Request::Add(sandbox) = add else { return Ok(()) };
    let del = Request::Del { container_id: sandbox.container_id, pod_uid: sandbox.pod_uid };
    eventually("the daemon's socket", SOON, || ask_as_plugin(&socket, &del).map(Some))?;
    eventually("the end of it", SOON, || {
        let word = (false, vec![("early".to_owned(), Vec::new())]);
        Ok(told(&w, before).contains(&word).then_some(()))
    })
}
