//! Everything changes all the time: pods come and go, routes and policies are saved again and
//! again, namespaces are labelled. Whoever is not concerned does not notice.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_tests::client::last_json;
use fairlead_tests::{Load, PodSpec};

use crate::common::{heavy, seconds, versions, virtual_service};

#[test]
fn churn_of_pods_routes_and_policies_fails_no_request() -> Result<()> {
    let _turn = heavy();
    let v = versions(2)?;
    v.mesh.enrol("young", true);
    let length = seconds(25);
    let duration = length.to_string();
    let mut http =
        v.client.spawn(&["load", "http://server/", "-d", &duration, "-r", "200", "-c", "8"])?;
    let mut bytes =
        v.client.spawn(&["load", "tcp://server:9000", "-d", &duration, "-r", "50", "-c", "4"])?;
    let end = Instant::now() + Duration::from_secs(length.saturating_sub(2));
    let mut round = 0_u32;
    while Instant::now() < end {
        round += 1;
        let pod = v.mesh.pod(
            PodSpec::new(&format!("young-{round}")).namespace("young").on((round % 2) as usize),
        )?;
        v.mesh.sync()?;
        let reply = pod.get("http://server/", &[])?;
        ensure!(reply.status() == 200, "round {round}: {}", reply.0);
        let weights = [round % 101, 100 - round % 101];
        v.mesh.apply(
            "routes",
            &virtual_service(&format!(
                "  http:\n  - route:\n    - destination: {{host: server, subset: v1}}\n      weight: {}\n    - destination: {{host: server, subset: v2}}\n      weight: {}\n",
                weights[0], weights[1]
            )),
        )?;
        let deny = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: churn, namespace: default}}\nspec:\n  action: DENY\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/nobody/sa/n{round}]}}}}]\n"
        );
        v.mesh.apply("policy", &deny)?;
        v.mesh.label_namespace(
            "bystander",
            "istio-injection",
            round.is_multiple_of(2).then_some("enabled"),
        );
        v.mesh.remove_pod(&pod);
        v.mesh.sync()?;
    }
    http.wait(Duration::from_secs(30))?;
    bytes.wait(Duration::from_secs(30))?;
    eprintln!("{round} rounds");
    for process in [&http, &bytes] {
        let load = Load(last_json(&process.output())?);
        ensure!(
            load.status(200) == load.count("requests") && load.count("failed") == 0,
            "{}",
            load.0
        );
    }
    ensure!(round >= 5, "only {round} rounds");
    Ok(())
}
