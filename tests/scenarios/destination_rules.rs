//! DestinationRule: hosts, scopes, subsets (rows 6.1, 6.2) and load balancers (6.3-6.5).

use anyhow::{Result, ensure};
use fairlead_tests::{Pod, PodSpec, daemon};

use crate::common::{versions, virtual_service};

fn rule(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{spec}"
    )
}

#[test]
fn round_robin_is_cyclic_random_is_random() -> Result<()> {
    let v = versions(3)?;
    for http in ["1.1", "2"] {
        v.mesh.apply(
            "subsets",
            &rule(
                "server",
                "default",
                "  host: server\n  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n",
            ),
        )?;
        let load = v
            .client
            .load("http://server/", &["-n", "60", "-c", "1", "--sequence", "--http", http])?;
        let sequence = load.0["sequence"].as_array().cloned().unwrap_or_default();
        ensure!(sequence.len() == 60, "{}", load.0);
        for (i, pod) in sequence.iter().enumerate().skip(3) {
            ensure!(*pod == sequence[i - 3], "not cyclic at {i}: {sequence:?}");
        }
        ensure!(sequence[0] != sequence[1] && sequence[1] != sequence[2], "{sequence:?}");
    }
    v.mesh.apply(
        "subsets",
        &rule(
            "server",
            "default",
            "  host: server\n  trafficPolicy: {loadBalancer: {simple: RANDOM}}\n",
        ),
    )?;
    let load = v.client.load("http://server/", &["-n", "3000", "-c", "4"])?;
    let counts: Vec<f64> = (1..=3).map(|i| load.version(&format!("v{i}")) as f64).collect();
    // Chi-square of two degrees of freedom: 27.6 is exceeded once in a million runs.
    let chi: f64 = counts.iter().map(|n| (n - 1000.0).powi(2) / 1000.0).sum();
    ensure!(chi < 27.6, "{counts:?}");
    ensure!(chi > 0.000_1, "random is not this even: {counts:?}");
    Ok(())
}

#[test]
fn least_request_spares_the_slow_pod() -> Result<()> {
    let mut v = versions(3)?;
    v.echoes.remove(0);
    let slow = v.servers[0].serve(&[
        "echo",
        "--name",
        "server-v1",
        "--version",
        "v1",
        "--http",
        "8080",
        "--delay-ms",
        "1000",
    ])?;
    v.mesh.apply(
        "subsets",
        &rule(
            "server",
            "default",
            "  host: server\n  trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}\n",
        ),
    )?;
    let least = v.client.load("http://server/", &["-n", "300", "-c", "16"])?;
    v.mesh.apply(
        "subsets",
        &rule(
            "server",
            "default",
            "  host: server\n  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n",
        ),
    )?;
    let even = v.client.load("http://server/", &["-n", "300", "-c", "16"])?;
    ensure!(least.status(200) == 300 && even.status(200) == 300, "{} {}", least.0, even.0);
    ensure!(even.version("v1").abs_diff(100) <= 1, "round robin: {}", even.0);
    ensure!(least.version("v1") < 60, "the slow pod got {} of 300", least.version("v1"));
    ensure!(least.figure("p50_ms") < even.figure("p90_ms"), "{} {}", least.0, even.0);
    drop(slow);
    Ok(())
}

#[test]
fn hosts_scopes_and_subset_policies() -> Result<()> {
    let v = versions(2)?;
    // A wildcard host counts where no exact one does; a subset's own policy wins over its rule's.
    v.mesh.delete("subsets")?;
    v.mesh.apply("wild", &rule("wild", "default", "  host: \"*.default.svc.cluster.local\"\n  subsets:\n  - name: only\n    labels: {version: v2}\n"))?;
    v.mesh.apply(
        "routes",
        &virtual_service("  http:\n  - route: [{destination: {host: server, subset: only}}]\n"),
    )?;
    let load = v.client.load("http://server/", &["-n", "40"])?;
    ensure!(load.version("v2") == 40, "wildcard host: {}", load.0);
    v.mesh.apply(
        "exact",
        &rule(
            "exact",
            "default",
            "  host: server\n  subsets:\n  - name: only\n    labels: {version: v1}\n",
        ),
    )?;
    let load = v.client.load("http://server/", &["-n", "40"])?;
    ensure!(load.version("v1") == 40, "exact host: {}", load.0);
    // A rule that its namespace keeps to itself is none for clients of others.
    v.mesh.enrol("elsewhere", true);
    let far = v.mesh.pod(PodSpec::new("far").namespace("elsewhere"))?;
    v.mesh.sync()?;
    v.mesh.delete("routes")?;
    v.mesh.delete("wild")?;
    let private = "  host: server\n  exportTo: [\".\"]\n  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n";
    v.mesh.apply("exact", &rule("exact", "default", private))?;
    let turns = |client: &Pod| -> Result<bool> {
        let load = client.load("http://server/", &["-n", "60", "-c", "1", "--sequence"])?;
        ensure!(load.status(200) == 60, "{}", load.0);
        let sequence = load.0["sequence"].as_array().cloned().unwrap_or_default();
        Ok(sequence.windows(2).all(|w| w[0] != w[1]))
    };
    ensure!(turns(&v.client)?, "the own namespace does not use its rule");
    ensure!(!turns(&far)?, "another namespace uses a private rule");
    Ok(())
}

/// The rest of row 6.1: `workloadSelector`.
#[test]
fn a_rule_for_some_workloads_is_used_by_them_alone() -> Result<()> {
    let v = versions(2)?;
    let chosen = v.mesh.pod(PodSpec::new("chosen").label("tier", "gold"))?;
    v.mesh.enrol("elsewhere", true);
    let far = v.mesh.pod(PodSpec::new("far").namespace("elsewhere").label("tier", "gold"))?;
    v.mesh.sync()?;
    let spec = "  host: server\n  workloadSelector: {matchLabels: {tier: gold}}\n  subsets:\n  - name: v1\n    labels: {version: v2}\n";
    v.mesh.apply("some", &rule("some", "default", spec))?;
    v.mesh.apply(
        "routes",
        &virtual_service("  http:\n  - route: [{destination: {host: server, subset: v1}}]\n"),
    )?;
    // What `v1` means to each of them: the rule for the chosen comes before the one for all.
    let meaning = |pod: &Pod| -> Result<String> {
        let load = pod.load("http://server/", &["-n", "40"])?;
        let versions = ["v1", "v2"].map(|version| load.version(version));
        match versions {
            [40, 0] => Ok("v1".to_owned()),
            [0, 40] => Ok("v2".to_owned()),
            _ => anyhow::bail!("{}", load.0),
        }
    };
    ensure!(meaning(&chosen)? == "v2", "the chosen do not use their rule");
    ensure!(meaning(&v.client)? == "v1", "others of the namespace use it");
    ensure!(meaning(&far)? == "v1", "other namespaces use it");
    let told = daemon::json(&v.mesh.node(0).netns, "/problems")?;
    ensure!(told["errors"] == 0, "{told}");
    // Another label is another choice, at once; and without the rule all are alike.
    v.mesh.apply("some", &rule("some", "default", &spec.replace("tier: gold", "app: client")))?;
    ensure!(meaning(&chosen)? == "v1" && meaning(&v.client)? == "v2", "the choice has not changed");
    v.mesh.delete("some")?;
    ensure!(meaning(&chosen)? == "v1" && meaning(&v.client)? == "v1", "the rule is still in force");
    Ok(())
}
