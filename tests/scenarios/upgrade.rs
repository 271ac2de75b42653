//! Row 15.6: a node's daemon is replaced by a second process while connections are opened as fast
//! as it goes, and none of them fails.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_tests::daemon::Daemon;
use fairlead_tests::wire::Tolerated;
use fairlead_tests::{Load, Mesh, Pod, PodSpec, Process, client::last_json, eventually};
use rustix::process::Signal;

use crate::common::{echo_args, heavy, service};

const MARKER: &str = "MARKER-upgrade";
/// New connections a second of each of the eight loads, at least: in an unoptimized daemon on two
/// processors that others use, too.
const RATE: f64 = 20.0;
/// How long connections go on after the hand-over in these scenarios.
const DRAIN: Duration = Duration::from_secs(4);
/// A daemon that has handed over accepts for so long, at most, and then drains.
const END: Duration = Duration::from_secs(20);

/// What a daemon says whose successor did not come about.
const TAKEN_BACK: &str = "the pods of this node are taken back";

/// A client and a server on each of two nodes, and daemons that hand over.
struct Bed {
    /// How long a daemon waits at its end for connections.
    drain: Duration,
    _echoes: Vec<Process>,
    clients: Vec<Arc<Pod>>,
    servers: Vec<Arc<Pod>>,
    mesh: Mesh,
}

fn bed() -> Result<Bed> {
    bed_with(0, DRAIN)
}

/// The same with so many more pods on the first node, which do nothing, and another drain.
fn bed_with(idle: usize, drain: Duration) -> Result<Bed> {
    let mesh = Mesh::new(2)?;
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for node in 0..2 {
        clients.push(mesh.pod(PodSpec::new(&format!("client{node}")).on(node))?);
        servers.push(mesh.pod(PodSpec::new(&format!("server{node}")).on(node))?);
        mesh.service(service(&format!("server{node}")));
    }
    for number in 0..idle {
        mesh.pod(PodSpec::new(&format!("idle{number}")).on(0))?;
    }
    mesh.sync()?;
    let mut bed = Bed { drain, _echoes: Vec::new(), clients, servers, mesh };
    for node in 0..2 {
        bed.spawn(node, 0)?;
    }
    for node in 0..2 {
        bed.mesh.wait_ready(node)?;
    }
    for server in &bed.servers {
        bed._echoes.push(server.serve(&echo_args(&server.name, "v1"))?);
    }
    Ok(bed)
}

impl Bed {
    fn socket(&self, node: usize, name: &str) -> PathBuf {
        self.mesh.dir().join(format!("{node}-{name}"))
    }

    /// Starts the daemon of a node, the `generation`th.
    fn spawn(&self, node: usize, generation: usize) -> Result<()> {
        self.spawn_with(node, generation, &[])
    }

    /// The same with further arguments.
    fn spawn_with(&self, node: usize, generation: usize, more: &[&str]) -> Result<()> {
        let handover = self.socket(node, "handover").display().to_string();
        let instance = self.socket(node, &format!("instance{generation}")).display().to_string();
        let drain = format!("{}s", self.drain.as_secs());
        let usual =
            ["--handover-socket", &handover, "--instance-socket", &instance, "--drain", &drain];
        self.mesh.spawn_daemon_with(node, &[&usual, more].concat())
    }

    /// Whether the `generation`th daemon of a node says of itself that it is ready.
    fn is_ready(&self, node: usize, generation: usize) -> Result<bool> {
        let program = fairlead_tests::process::binary("fairlead-node", "FAIRLEAD_TEST_NODE")?;
        let told = std::process::Command::new(program)
            .arg("ready")
            .arg("--instance-socket")
            .arg(self.socket(node, &format!("instance{generation}")))
            .output()?;
        Ok(told.status.success())
    }

    /// Starts the `generation`th daemon beside the one that serves; the latter, when the new one is
    /// ready.
    fn replace(&self, node: usize, generation: usize) -> Result<Daemon> {
        self.replace_with(node, generation, &[])
    }

    /// The same with further arguments for the new one.
    fn replace_with(&self, node: usize, generation: usize, more: &[&str]) -> Result<Daemon> {
        let mut old = self.mesh.take_daemon(node)?;
        ensure!(self.is_ready(node, generation - 1)?, "the old one is not ready");
        let started = Instant::now();
        self.spawn_with(node, generation, more)?;
        eventually("the successor to be ready", Duration::from_secs(20), || {
            Ok(self.is_ready(node, generation)?.then_some(()))
        })
        .with_context(|| self.mesh.output(node))?;
        ensure!(old.process().alive(), "the old one did not drain");
        ensure!(!self.is_ready(node, generation - 1)?, "two are ready at once");
        eprintln!("node {node}, daemon {generation}: ready after {:?}", started.elapsed());
        Ok(old)
    }

    fn ips(&self) -> Vec<IpAddr> {
        self.clients.iter().chain(&self.servers).flat_map(|pod| pod.ips.clone()).collect()
    }

    /// New connections as fast as they go, of every kind; each is a line or a request.
    fn load(&self, seconds: u64) -> Result<Vec<(String, Process)>> {
        let seconds = seconds.to_string();
        let header = format!("x: {MARKER}");
        let mut loads = Vec::new();
        for (from, client) in self.clients.iter().enumerate() {
            for to in 0..2 {
                for (url, more) in [
                    (format!("tcp://server{to}:9000"), [].as_slice()),
                    (format!("http://server{to}/{MARKER}"), ["-H", &header].as_slice()),
                ] {
                    let mut args = vec!["load", url.as_str(), "-d", &seconds, "-c", "4", "--fresh"];
                    args.extend_from_slice(more);
                    loads.push((format!("node {from}: {url}"), client.spawn(&args)?));
                }
            }
        }
        Ok(loads)
    }
}

/// Waits for all; what they counted, by name.
fn counted(loads: Vec<(String, Process)>) -> Result<Vec<(String, Load)>> {
    let mut all = Vec::new();
    for (name, mut load) in loads {
        load.wait(Duration::from_secs(90))?;
        all.push((name, Load(last_json(&load.output())?)));
    }
    for (name, load) in &all {
        eprintln!(
            "{name}: {} new connections, {:.0}/s, {} failed {}",
            load.count("requests"),
            load.figure("rps"),
            load.count("failed"),
            format_args!("{} at {} ms", load.errors(), load.0["failures_ms"]),
        );
    }
    Ok(all)
}

#[test]
fn no_new_connection_fails_while_daemons_are_replaced() -> Result<()> {
    let _turn = heavy();
    let bed = bed()?;
    let capture = bed.mesh.capture()?;
    let loads = bed.load(30)?;
    // They last longer than a drain: a hand-over by itself cuts nobody.
    let long = |node: usize| bed.clients[node].trickle("server1:9000");
    std::thread::sleep(Duration::from_secs(1));
    let mut ended = Vec::new();
    for generation in 1..=3 {
        for node in 0..2 {
            let mut held = long(node)?;
            std::thread::sleep(Duration::from_millis(300));
            let begun = Instant::now();
            let mut old = bed.replace(node, generation)?;
            ensure!(held.alive(), "a connection was cut by the hand-over itself");
            // As whoever manages daemons does when the new one is ready.
            old.process().signal(Signal::TERM)?;
            std::thread::sleep(DRAIN / 2);
            ensure!(held.alive(), "a connection was cut before the drain ended");
            ensure!(old.process().alive(), "SIGTERM ended a drain that had begun");
            ended.push((begun, old, held));
        }
    }
    for (begun, mut old, held) in ended {
        old.process().wait(END)?;
        ensure!(begun.elapsed() > DRAIN, "it ended before its drain");
        drop(held);
    }
    let all = counted(loads)?;
    let wire = capture.stop()?;
    let total: u64 = all.iter().map(|(_, load)| load.count("requests")).sum();
    let failed: u64 = all.iter().map(|(_, load)| load.count("failed")).sum();
    eprintln!("{total} new connections over 6 replacements: {failed} failed");
    if failed > 0 {
        // What the daemons say of it.
        for entry in (0..2).flat_map(|node| bed.mesh.log(node)) {
            if !["-", ""].contains(&entry.text("response_flags").as_str()) {
                eprintln!("{}", entry.0);
            }
        }
    }
    ensure!(failed == 0, "{failed} of {total} new connections failed");
    for (name, load) in &all {
        let good = if name.contains("http") { load.status(200) } else { load.count("ok") };
        ensure!(good == load.count("requests"), "{name}: {}", load.0);
        let rate = load.figure("rps");
        ensure!(rate > RATE, "{name}: {rate:.0} new connections/s: too few to say anything");
    }
    wire.assert_no_plaintext(MARKER)?;
    wire.assert_all_tls(&bed.ips())?;
    Ok(())
}

#[test]
fn a_successor_that_dies_on_the_way_leaves_the_pods_to_the_one_that_serves() -> Result<()> {
    let _turn = heavy();
    // A take-over lasts a tenth of a second: a busy machine may come too late to kill it half-way.
    for _ in 0..4 {
        if die_half_way()? {
            return Ok(());
        }
    }
    bail!("no successor was killed half-way")
}

/// False where one was killed when it was done.
fn die_half_way() -> Result<bool> {
    // Enough for a take-over to have a middle.
    let bed = bed_with(48, DRAIN)?;
    let capture = bed.mesh.capture()?;
    let mut old = bed.mesh.take_daemon(0)?;
    let (mut half_way, mut kills) = (0, 0);
    for attempt in 1..=12 {
        let before = bed.mesh.output(0).matches("again=true").count();
        let taken_back = || bed.mesh.output(0).matches(TAKEN_BACK).count();
        let back = taken_back();
        bed.spawn(0, 1)?;
        // At different moments: before anything, and when some pods are taken.
        if attempt <= 2 {
            std::thread::sleep(Duration::from_millis(attempt * 25));
        } else {
            // Without a pause: the whole take-over is over in a tenth of a second.
            let started = Instant::now();
            while bed.mesh.output(0).matches("again=true").count() == before {
                ensure!(started.elapsed() < Duration::from_secs(10), "no pod is taken over");
            }
        }
        bed.mesh.kill_daemon(0)?;
        kills += 1;
        let killed = Instant::now();
        let taken = bed.mesh.output(0).matches("again=true").count() - before;
        // Who serves says what it makes of it: the other's last words may have died with it.
        let late = taken > 0
            && eventually("a word of the one that serves", END, || {
                if taken_back() > back {
                    return Ok(Some(false));
                }
                Ok(bed.mesh.output(0).contains("draining").then_some(true))
            })
            .with_context(|| bed.mesh.output(0))?;
        if late {
            return Ok(false);
        }
        for (client, to) in [(0, 0), (0, 1), (1, 0)] {
            let url = format!("http://server{to}/");
            eventually("connections to be carried again", Duration::from_secs(10), || {
                Ok((bed.clients[client].get(&url, &[])?.status() == 200).then_some(()))
            })
            .with_context(|| format!("attempt {attempt}: {}", bed.mesh.output(0)))?;
        }
        eprintln!("killed with {taken} pods taken: carried again after {:?}", killed.elapsed());
        half_way += usize::from(taken > 0);
        ensure!(old.process().alive(), "the one that serves has ended");
        let load = bed.clients[0].load("tcp://server1:9000", &["-n", "200", "--fresh"])?;
        ensure!(load.count("failed") == 0, "attempt {attempt}: {}", load.0);
        if half_way == 3 {
            break;
        }
    }
    ensure!(half_way > 0, "none died half-way");
    let told = bed.mesh.output(0);
    ensure!(told.contains(TAKEN_BACK), "{told}");
    // And one that lives takes over.
    bed.spawn(0, 2)?;
    eventually("the successor to be ready", Duration::from_secs(20), || {
        Ok(bed.is_ready(0, 2)?.then_some(()))
    })
    .with_context(|| bed.mesh.output(0))?;
    old.process().wait(END)?;
    ensure!(bed.clients[0].get("http://server1/", &[])?.status() == 200);
    let wire = capture.stop()?;
    // A session is opened now and then to see whether there is a way: one at a time.
    wire.assert_all_tls_but(&bed.ips(), Tolerated { aborted: kills, refused: 0 })?;
    Ok(true)
}

#[test]
fn a_daemon_that_comes_while_another_ends_gets_what_is_left() -> Result<()> {
    /// Long: the other does not end before, and nobody waits for that.
    const LONG: Duration = Duration::from_secs(40);
    let bed = bed_with(0, LONG)?;
    let held = bed.clients[0].trickle("server1:9000")?;
    std::thread::sleep(Duration::from_millis(300));
    let mut old = bed.mesh.take_daemon(0)?;
    old.process().signal(Signal::TERM)?;
    std::thread::sleep(Duration::from_millis(300));
    // It drains: nobody is accepted, and the next one does not wait for its end.
    let started = Instant::now();
    bed.spawn(0, 1)?;
    eventually("the next daemon to be ready", LONG / 2, || Ok(bed.is_ready(0, 1)?.then_some(())))
        .with_context(|| bed.mesh.output(0))?;
    eprintln!("ready after {:?}", started.elapsed());
    ensure!(old.process().alive(), "it did not drain");
    ensure!(bed.clients[0].get("http://server1/", &[])?.status() == 200);
    old.process().signal(Signal::TERM)?;
    old.process().wait(END)?;
    ensure!(bed.clients[0].get("http://server1/", &[])?.status() == 200);
    drop(held);
    Ok(())
}

#[test]
fn a_daemon_that_lingers_is_ended_by_somebody_or_ends_with_its_successor() -> Result<()> {
    const LINGER: &[&str] = &["--linger=60s"];
    /// After a handover, connections may still come for two seconds; there are none.
    const DRAINED: Duration = Duration::from_secs(4);
    let bed = bed()?;
    let works = || -> Result<()> {
        ensure!(bed.clients[0].get("http://server1/", &[])?.status() == 200);
        Ok(())
    };
    bed.replace_with(0, 1, LINGER)?.process().wait(END)?;

    // Kubelet would start it again if it ended, and it would take everything back.
    let mut lingering = bed.replace_with(0, 2, LINGER)?;
    std::thread::sleep(DRAINED);
    ensure!(lingering.process().alive(), "it ended by itself");
    ensure!(!bed.is_ready(0, 1)?, "it is ready with nothing to serve");
    works()?;
    lingering.process().signal(Signal::TERM)?;
    let ended = lingering.process().wait(END)?;
    ensure!(ended.success(), "{ended}");
    works()?;

    // With its successor gone, whoever manages it is to start it again at once.
    let mut lingering = bed.replace_with(0, 3, LINGER)?;
    std::thread::sleep(DRAINED);
    ensure!(lingering.process().alive(), "it ended by itself");
    let mut successor = bed.mesh.take_daemon(0)?;
    successor.process().signal(Signal::KILL)?;
    let started = Instant::now();
    let ended = lingering.process().wait(END)?;
    eprintln!("ended {:?} after its successor: {ended}", started.elapsed());
    ensure!(ended.success(), "{ended}");
    bed.spawn(0, 4)?;
    eventually("the next daemon to be ready", END, || Ok(bed.is_ready(0, 4)?.then_some(())))?;
    works()
}
