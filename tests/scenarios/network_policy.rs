//! Rules on the pods' network (a NetworkPolicy, as a policy engine writes it) hold between pods of
//! one node too, where the daemon hands over what they send each other without any network
//! (row 1.15). Between nodes: `kube_traffic`.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_cluster::system::output_with;
use fairlead_tests::eventually;

use crate::common::{Pair, pair_on};

/// Time for a rule to hold that came later: the way is walked again after 30 s at most, twice before
/// it counts, and 5 s each where nobody answers.
const LATER: Duration = Duration::from_secs(60);
const REASON: &str = "the pods' network lets nobody";

fn nft(p: &Pair, text: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", p.server.netns.name(), "nft", "-f", "-"]);
    output_with(&mut command, text.as_bytes()).map(drop)
}

/// What comes to the server over its wire has to be for one of these ports; the rest is answered
/// with a RST.
fn allow(p: &Pair, ports: &str) -> Result<()> {
    nft(
        p,
        &format!(
            "table inet policy-engine {{\n\
             chain input {{\n\
             type filter hook input priority 0; policy accept;\n\
             ct state established,related accept\n\
             iifname eth0 tcp dport {{ {ports} }} accept\n\
             iifname eth0 meta l4proto tcp reject with tcp reset\n\
             }}\n}}\n"
        ),
    )
}

fn remove(p: &Pair) -> Result<()> {
    nft(p, "delete table inet policy-engine\n")
}

fn carried(p: &Pair, to: &str) -> Result<bool> {
    Ok(p.client.send(to, "hello", &[])?.received().contains("hello"))
}

#[test]
fn rules_of_the_pods_network_hold_within_a_node() -> Result<()> {
    let p = pair_on(0)?;
    allow(&p, "8080")?;
    let before = p.mesh.metrics()?;
    // By HTTP and by bytes; what is allowed next to what is not.
    for _ in 0..5 {
        ensure!(p.client.get("http://server/", &[])?.status() == 200, "8080 is allowed");
    }
    let refused = p.client.get("http://server:81/", &[])?;
    ensure!(refused.status() == 503, "8081 was let through: {:?}", refused.0);
    ensure!(!carried(&p, "server:9000")?, "9000 was let through");
    for port in ["8081", "9000"] {
        let told = p.mesh.logged(0, "the reason", |e| e.mentions(REASON) && e.mentions(port))?;
        ensure!(told.text("response_flags").contains("UF"), "{:?}", told.0);
    }
    // It was the rules.
    remove(&p)?;
    ensure!(carried(&p, "server:9000")?, "9000 without the rules");
    ensure!(p.client.get("http://server:81/", &[])?.status() == 200, "8081 without the rules");
    // Nobody hears of the connections that the ways were walked with: not the application, not the
    // log, not the metrics. Of bytes there were two, one of which was refused.
    let lines = eventually("nine lines in the log", Duration::from_secs(3), || {
        let lines = p.mesh.log(0);
        Ok((lines.len() >= 9).then_some(lines))
    })?;
    ensure!(lines.len() == 9, "{} lines of 9: {lines:?}", lines.len());
    let labels = [("reporter", "destination")];
    let opened = p.mesh.counted(&before, "istio_tcp_connections_opened_total", &labels, 1.0)?;
    ensure!(opened < 2.0, "{opened} connections were told of, the server had one");
    Ok(())
}

#[test]
fn a_rule_that_comes_later_holds_within_a_node() -> Result<()> {
    let p = pair_on(0)?;
    // Both ways are in use, and connections for requests are open.
    ensure!(carried(&p, "server:9000")?, "9000 before the rules");
    ensure!(p.client.get("http://server/", &[])?.status() == 200, "8080 before the rules");
    allow(&p, "8081")?;
    let start = Instant::now();
    eventually("a rule that comes later holds", LATER, || {
        let bytes = carried(&p, "server:9000")?;
        let http = p.client.get("http://server/", &[])?.status();
        ensure!(!bytes && http == 503, "{http}; bytes passed: {bytes}");
        Ok(Some(()))
    })?;
    eprintln!("refused {:?} after the rules came", start.elapsed());
    ensure!(p.client.get("http://server:81/", &[])?.status() == 200, "8081 is allowed");
    remove(&p)?;
    ensure!(carried(&p, "server:9000")?, "9000 after the rules");
    ensure!(p.client.get("http://server/", &[])?.status() == 200, "8080 after the rules");
    Ok(())
}
