//! HTTP/2 as a foreign tester sees it (row 4.42): h2spec against both sides of the mesh.
//! `cargo xtask test` builds the tester from the versions that `tests/h2spec` pins.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Mesh, Pod, PodSpec, ServiceSpec};

use crate::common::echo_args;

/// Cases that do not pass, each with the reason why that is as it should be. A case that is named
/// here and passes fails the scenario, so that the list stays true.
const EXCEPTIONS: &[(&str, &str)] = &[(
    "http2/3.5: Sends invalid connection preface",
    "a port of HTTP takes HTTP/1.1 beside HTTP/2 (as Envoy's codec AUTO does), so that what does \
     not begin like HTTP/2 is answered as HTTP/1.1: with 400 and the end of the connection",
)];

/// Groups of cases that concern a server.
const GROUPS: [&str; 3] = ["generic", "http2", "hpack"];

/// A case of the tester.
#[derive(Debug)]
struct Case {
    /// Section and what is done, such as `http2/5.1: Sends a DATA frame`.
    name: String,
    /// What was expected and what came, where it did not pass.
    failure: Option<String>,
    skipped: bool,
}

/// Runs the tester in a pod and reads its report (JUnit's XML).
fn h2spec(pod: &Pod, host: &str, port: u16, report: &Path) -> Result<Vec<Case>> {
    let tool = std::env::var_os("FAIRLEAD_TEST_H2SPEC").map(PathBuf::from).context(
        "FAIRLEAD_TEST_H2SPEC names no tester: `cargo xtask test` builds it and sets the variable",
    )?;
    let (port, path) = (port.to_string(), report.display().to_string());
    let args = [&GROUPS[..], &["-h", host, "-p", &port, "-o", "10", "-j", &path]].concat();
    let mut process = pod.spawn_program(&tool, &args)?;
    // It fails where a case does; the report says which.
    process.wait(Duration::from_secs(600))?;
    let xml = std::fs::read_to_string(report).with_context(|| process.output())?;
    let attribute = |of: &str, name: &str| {
        let value = of.split(&format!(" {name}=\"")).nth(1)?.split('"').next()?;
        Some(value.replace("&#34;", "\"").replace("&quot;", "\"").replace("&amp;", "&"))
    };
    let cases = xml.split("<testcase").skip(1).map(|text| {
        let section = attribute(text, "package").unwrap_or_default();
        let what = attribute(text, "classname").unwrap_or_default();
        let failed = text.contains("<failure") || text.contains("<error");
        Case {
            name: format!("{section}: {what}"),
            failure: failed.then(|| text.to_owned()),
            skipped: text.contains("<skipped"),
        }
    });
    Ok(cases.collect())
}

fn judge(side: &str, cases: &[Case]) -> Result<()> {
    let named = |case: &&Case| EXCEPTIONS.iter().any(|(name, _)| case.name == *name);
    let failed: Vec<_> = cases.iter().filter(|c| c.failure.is_some()).collect();
    let unexpected: Vec<_> = failed.iter().filter(|c| !named(c)).collect();
    ensure!(unexpected.is_empty(), "{side}: {unexpected:#?}");
    for (name, reason) in EXCEPTIONS {
        ensure!(failed.iter().any(|c| c.name == *name), "{side}: {name} passes, not: {reason}");
    }
    let skipped = cases.iter().filter(|c| c.skipped).count();
    let passed = cases.len() - failed.len() - skipped;
    eprintln!("{side}: {passed} cases passed, {skipped} skipped, {} excepted", failed.len());
    // A tester that could not connect, or another set of cases, is no proof.
    ensure!(passed >= 140, "{side}: only {passed} of {} cases passed", cases.len());
    Ok(())
}

#[test]
fn h2spec_finds_nothing_on_either_side() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    let outside = mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    let service =
        ServiceSpec::new("server").port_with_protocol("h2", 80, 8080, "kubernetes.io/h2c");
    let vips = mesh.service(service);
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let before = mesh.metrics()?;
    // A captured client: what it speaks to is the daemon of its own node.
    let cases = h2spec(&client, &vips[0].to_string(), 80, &mesh.dir().join("outbound.xml"))?;
    judge("outbound", &cases)?;
    let labels = [("reporter", "source"), ("destination_workload", "server")];
    mesh.counted(&before, "istio_requests_total", &labels, 20.0)?;
    // A client outside the mesh, at the pod's own port: the daemon of the server's node.
    let before = mesh.metrics()?;
    let cases = h2spec(&outside, &server.ip().to_string(), 8080, &mesh.dir().join("inbound.xml"))?;
    judge("inbound", &cases)?;
    let labels = [("reporter", "destination"), ("destination_workload", "server")];
    mesh.counted(&before, "istio_requests_total", &labels, 20.0)?;
    // The daemons took no harm.
    let reply = client.get("http://server/", &["--http", "2"])?;
    ensure!(reply.status() == 200, "{}", reply.0);
    Ok(())
}
