//! VirtualService: timeouts (row 4.26), retries (4.27, 4.28), faults (4.33, 4.35).

use anyhow::{Result, ensure};
use fairlead_tests::Metrics;

use crate::common::{heavy, pair, share, versions, virtual_service};

#[test]
fn a_slow_backend_times_out_when_it_should() -> Result<()> {
    let p = pair()?;
    p.mesh.apply(
        "routes",
        &virtual_service("  http:\n  - timeout: 2s\n    route: [{destination: {host: server}}]\n"),
    )?;
    let before = p.mesh.metrics()?;
    for _ in 0..3 {
        let reply = p.client.get("http://server/slow", &["-H", "x-echo-delay-ms: 20000"])?;
        ensure!(reply.status() == 504, "{}", reply.0);
        ensure!((1980.0..10_000.0).contains(&reply.ms()), "after {} ms", reply.ms());
    }
    let quick = p.client.get("http://server/", &["-H", "x-echo-delay-ms: 100"])?;
    ensure!(quick.status() == 200, "{}", quick.0);
    let labels = [("reporter", "source"), ("response_code", "504"), ("response_flags", "UT")];
    p.mesh.counted(&before, "istio_requests_total", &labels, 3.0)?;
    p.mesh.logged(0, "UT", |e| e.text("path") == "/slow" && e.text("response_flags") == "UT")?;
    Ok(())
}

#[test]
fn failures_are_tried_again() -> Result<()> {
    let p = pair()?;
    let retry = "  http:\n  - retries: {attempts: 3, perTryTimeout: 2s, retryOn: \"5xx\"}\n    route: [{destination: {host: server}}]\n";
    p.mesh.apply("routes", &virtual_service(retry))?;
    let reply =
        p.client.get("http://server/", &["-H", "x-echo-fail-first: 2", "-H", "x-echo-key: a"])?;
    ensure!(reply.status() == 200, "{}", reply.0);
    ensure!(reply.echo("attempt") == "3", "the backend saw {} attempts", reply.echo("attempt"));
    ensure!(reply.seen("x-envoy-attempt-count").as_deref() == Some("3"), "{}", reply.0);
    // Bodies are sent again too.
    let reply = p.client.get(
        "http://server/",
        &["-X", "POST", "--size", "20000", "-H", "x-echo-fail-first: 1", "-H", "x-echo-key: b"],
    )?;
    ensure!(reply.status() == 200 && reply.echo("length") == "20000", "{}", reply.0);
    // No more than it says: one try and three more.
    let reply =
        p.client.get("http://server/", &["-H", "x-echo-fail-first: 9", "-H", "x-echo-key: c"])?;
    ensure!(reply.status() == 503 && reply.echo("attempt") == "4", "{}", reply.0);
    p.mesh.logged(0, "URX", |e| e.text("response_flags") == "URX")?;
    // What is not to be retried is not.
    let reply =
        p.client.get("http://server/", &["-H", "x-echo-status: 404", "-H", "x-echo-key: d"])?;
    ensure!(reply.status() == 404 && reply.echo("attempt") == "1", "{}", reply.0);
    // attempts: 0 switches the default off.
    p.mesh.apply(
        "routes",
        &virtual_service(
            "  http:\n  - retries: {attempts: 0}\n    route: [{destination: {host: server}}]\n",
        ),
    )?;
    let reply =
        p.client.get("http://server/", &["-H", "x-echo-fail-first: 1", "-H", "x-echo-key: e"])?;
    ensure!(reply.status() == 503, "{}", reply.0);
    Ok(())
}

#[test]
fn a_slow_try_is_given_up_for_another() -> Result<()> {
    let v = versions(2)?;
    let retry = "  http:\n  - retries: {attempts: 2, perTryTimeout: 2s, retryOn: \"5xx\"}\n    route: [{destination: {host: server}}]\n";
    v.mesh.apply("routes", &virtual_service(retry))?;
    // The first request with this key is slow, whichever pod gets it; each pod counts for itself.
    let reply = v.client.get(
        "http://server/",
        &[
            "-H",
            "x-echo-delay-ms: 20000",
            "-H",
            "x-echo-delay-first: 1",
            "-H",
            "x-echo-key: a",
            "--timeout-ms",
            "30000",
        ],
    )?;
    ensure!(reply.status() == 200, "{}", reply.0);
    ensure!((1990.0..15_000.0).contains(&reply.ms()), "after {} ms", reply.ms());
    Ok(())
}

#[test]
fn delays_and_aborts_are_injected_by_share() -> Result<()> {
    let _turn = heavy();
    let p = pair()?;
    let delay = "  http:\n  - fault:\n      delay:\n        fixedDelay: 150ms\n        percentage: {value: 10}\n    route: [{destination: {host: server}}]\n";
    p.mesh.apply("routes", &virtual_service(delay))?;
    let before = p.mesh.metrics()?;
    let replies = p.client.get_many("http://server/", 300, &[])?;
    ensure!(replies.iter().all(|r| r.status() == 200));
    p.mesh.counted(&before, "istio_requests_total", &[("reporter", "source")], 300.0)?;
    // By what the daemon says of them: others may be slow, too, on a busy machine.
    let labels = [("reporter", "source"), ("response_flags", "DI")];
    let told = |metrics: &Metrics| metrics.sum("istio_requests_total", &labels);
    let delayed = (told(&p.mesh.metrics()?) - told(&before)) as u64;
    let slow = replies.iter().filter(|r| r.ms() >= 150.0).count();
    ensure!(u64::try_from(slow)? >= delayed, "{delayed} were delayed, {slow} were slow");
    share(delayed, 300, 0.1)?;
    p.mesh.logged(0, "DI", |e| e.text("response_flags") == "DI")?;

    let abort = "  http:\n  - fault:\n      abort:\n        httpStatus: 500\n        percentage: {value: 50}\n    route: [{destination: {host: server}}]\n";
    p.mesh.apply("routes", &virtual_service(abort))?;
    let before = p.mesh.metrics()?;
    let load = p.client.load("http://server/", &["-n", "1000", "-c", "4"])?;
    let aborted = load.status(500);
    share(aborted, 1000, 0.5)?;
    ensure!(aborted + load.status(200) == 1000, "{}", load.0);
    // The backend saw the other half only.
    let arrived = p.mesh.counted(
        &before,
        "istio_requests_total",
        &[("reporter", "destination")],
        load.status(200) as f64,
    )?;
    ensure!(arrived == load.status(200) as f64, "{arrived} arrived");
    let flags = [("reporter", "source"), ("response_flags", "FI")];
    let flagged = p.mesh.counted(&before, "istio_requests_total", &flags, aborted as f64)?;
    ensure!(flagged == aborted as f64, "{flagged} flagged FI");

    let all = "  http:\n  - fault:\n      abort:\n        grpcStatus: UNAVAILABLE\n        percentage: {value: 100}\n    route: [{destination: {host: server}}]\n";
    p.mesh.apply("routes", &virtual_service(all))?;
    let replies = p.client.grpc("server:80", &[])?;
    ensure!(replies[0].0["grpc_status"] == "14", "{}", replies[0].0);
    Ok(())
}
