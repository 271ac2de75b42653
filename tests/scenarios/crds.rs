//! The definitions of `manifests/crds` on a real API server: it takes them, takes every field of
//! every kind in every version, and refuses what could never work with words that help.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{Cluster, ClusterOptions};
use fairlead_tests::eventually;
use serde_json::{Value, json};

const NAMESPACE: &str = "resources";
const SOON: Duration = Duration::from_secs(30);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// An API server with the definitions; no nodes, as nothing runs.
fn server() -> Result<Cluster> {
    let cluster = Cluster::up(&ClusterOptions::default().nodes(0).without_dns())?;
    cluster.apply_kustomization(&root().join("manifests/crds"))?;
    eventually("definitions are served", SOON, || {
        for crd in definitions(&cluster)? {
            let conditions = crd["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is =
                |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == "True");
            ensure!(
                is("Established") && is("NamesAccepted"),
                "{}: {conditions:?}",
                crd["metadata"]["name"]
            );
            ensure!(!is("NonStructuralSchema"), "{}: {conditions:?}", crd["metadata"]["name"]);
        }
        Ok(Some(()))
    })?;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    Ok(cluster)
}

fn definitions(cluster: &Cluster) -> Result<Vec<Value>> {
    let label = "app.kubernetes.io/part-of=fairlead";
    let list = cluster.json(&["get", "customresourcedefinitions", "-l", label])?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// Served versions by group and kind.
fn versions(cluster: &Cluster) -> Result<BTreeMap<(String, String), Vec<String>>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = definitions(cluster)?.into_iter().map(|crd| {
        let spec = &crd["spec"];
        let versions = spec["versions"].as_array().cloned().unwrap_or_default();
        let key = (text(&spec["group"]), text(&spec["names"]["kind"]));
        (key, versions.iter().map(|version| text(&version["name"])).collect())
    });
    Ok(all.collect())
}

/// Runs kubectl with a text as its input; what it printed, and whether it succeeded.
fn kubectl(cluster: &Cluster, args: &[&str], input: &str) -> Result<(bool, String)> {
    let mut child = fairlead_cluster::Cluster::kubectl(cluster)
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn the_api_server_takes_what_is_good_and_refuses_what_is_not() -> Result<()> {
    let cluster = server()?;
    every_field_is_taken(&cluster)?;
    people_find_their_way(&cluster)?;
    status_has_conditions(&cluster)?;
    mistakes_are_refused(&cluster)
}

/// Every example in every version that is served.
fn every_field_is_taken(cluster: &Cluster) -> Result<()> {
    let versions = versions(cluster)?;
    ensure!(versions.len() == 15, "kinds: {:?}", versions.keys());

    // `--validate=strict` makes an error of each field that the definition does not have, and would
    // drop.
    let mut shown = 0;
    for entry in fs::read_dir(root().join("tests/resources"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let first = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.map(str::to_owned).with_context(|| format!("{}: no {key}", path.display()))
        };
        let (written, kind) = (first("apiVersion: ")?, first("kind: ")?);
        let group = written.split('/').next().unwrap_or_default().to_owned();
        let of_kind = versions.get(&(group.clone(), kind.clone()));
        for version in of_kind.with_context(|| format!("{kind} is not served"))? {
            let text = text.replace(&written, &format!("{group}/{version}"));
            let args = ["apply", "--server-side", "--validate=strict", "-f", "-"];
            let (taken, told) = kubectl(cluster, &args, &text)?;
            ensure!(taken, "{kind} {version}: {told}");
            shown += 1;
        }
    }
    let served: usize = versions.values().map(Vec::len).sum();
    ensure!(shown == served, "{shown} of {served} versions were tried");

    Ok(())
}

/// Short names, categories and columns are those that people know.
fn people_find_their_way(cluster: &Cluster) -> Result<()> {
    for (name, columns) in [
        ("vs", &["GATEWAYS", "HOSTS", "AGE"][..]),
        ("dr", &["HOST", "AGE"]),
        ("se", &["HOSTS", "LOCATION", "RESOLUTION", "AGE"]),
        ("we", &["AGE", "ADDRESS"]),
        ("ap", &["ACTION", "AGE"]),
        ("pa", &["MODE", "AGE"]),
        ("telemetry", &["AGE"]),
    ] {
        let table = cluster.kubectl(&["get", name, "-n", NAMESPACE])?;
        let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
        ensure!(head.get(1..) == Some(columns), "{name}: {table}");
    }
    let all = cluster.kubectl(&["get", "istio-io", "-n", NAMESPACE, "-o", "name"])?;
    for (group, kind) in versions(cluster)?.keys() {
        let beginning = format!("{}.{group}/", kind.to_lowercase());
        ensure!(all.contains(&beginning), "{beginning} is not in the category: {all}");
    }
    let explained = cluster.kubectl(&["explain", "virtualservice.spec.http.timeout"])?;
    ensure!(explained.contains("Limit of the whole request"), "{explained}");
    Ok(())
}

/// Status has conditions, and is apart from the spec.
fn status_has_conditions(cluster: &Cluster) -> Result<()> {
    let status = json!({"status": {
        "observedGeneration": 1,
        "conditions": [{
            "type": "Programmed", "status": "True", "reason": "AllNodes", "message": "2 of 2 nodes",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
        "validationMessages": [{
            "type": {"name": "NotEnforced", "code": "FL0001"}, "level": "WARNING",
            "documentationUrl": "https://example.org",
        }],
    }});
    let object = ["peerauthentication", "strict", "-n", NAMESPACE];
    let patch = status.to_string();
    cluster.kubectl(
        &[&["patch"], &object[..], &["--subresource=status", "--type=merge", "-p", &patch]]
            .concat(),
    )?;
    // The spec cannot be reached that way, nor the status by the other.
    let other = json!({"spec": {"mtls": {"mode": "DISABLE"}}, "status": {"note": "by others"}});
    let patch = other.to_string();
    cluster.kubectl(
        &[&["patch"], &object[..], &["--subresource=status", "--type=merge", "-p", &patch]]
            .concat(),
    )?;
    let found = cluster.json(&[&["get"], &object[..]].concat())?;
    ensure!(found["spec"]["mtls"]["mode"] == "STRICT", "{found}");
    ensure!(found["metadata"]["generation"] == 1, "{found}");
    ensure!(found["status"]["conditions"] == status["status"]["conditions"], "{found}");
    ensure!(found["status"]["validationMessages"] == status["status"]["validationMessages"]);
    // What other controllers write is kept.
    ensure!(found["status"]["note"] == "by others", "{found}");
    Ok(())
}

/// Kind, spec, and words of the refusal.
const REFUSED: &[(&str, &str, &str)] = &[
    ("networking/v1/VirtualService", "{hosts: [a]}", "there is no route"),
    ("networking/v1/VirtualService", "{hosts: [a], http: [{}]}", "exactly one of route"),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], redirect: {uri: /b}}]}",
        "exactly one of route",
    ),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], http: [{redirect: {uri: /b}, rewrite: {uri: /c}}]}",
        "together with route alone",
    ),
    (
        "networking/v1/VirtualService",
        "{gateways: [mesh], http: [{route: [{destination: {host: a}}]}]}",
        "without hosts is a delegate",
    ),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], timeout: 0s}]}",
        "at least 1ms",
    ),
    (
        "networking/v1beta1/VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], timeout: 3 seconds}]}",
        "spec.http[0].timeout",
    ),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: '*.a'}}]}]}",
        "spec.http[0].route[0].destination.host",
    ),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}, weight: -1}]}]}",
        "greater than or equal to 0",
    ),
    (
        "networking/v1alpha3/VirtualService",
        "{hosts: [a], http: [{match: [{uri: {exact: a, prefix: b}}], route: [{destination: {host: a}}]}]}",
        "spec.http[0].match[0].uri",
    ),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], http: [{directResponse: {status: 99}}]}",
        "spec.http[0].directResponse.status",
    ),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], http: [{redirect: {uri: /a, redirectCode: 200}}]}",
        "301, 302, 303, 307 or 308",
    ),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], http: [{route: [{destination: {host: a}}], fault: {abort: {httpStatus: 500, percentage: {value: 101}}}}]}",
        "less than or equal to 100",
    ),
    (
        "networking/v1/VirtualService",
        "{hosts: [a], tls: [{match: [{sniHosts: []}], route: [{destination: {host: a}}]}]}",
        "sniHosts",
    ),
    ("networking/v1/VirtualService", "{hosts: [a], htpp: []}", "unknown field \"spec.htpp\""),
    ("networking/v1/DestinationRule", "{subsets: []}", "spec.host: Required"),
    (
        "networking/v1/DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}}",
        "spec.trafficPolicy.loadBalancer",
    ),
    (
        "networking/v1/DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: b}}}}",
        "consistentHash",
    ),
    (
        "networking/v1/DestinationRule",
        "{host: a, trafficPolicy: {loadBalancer: {simple: FASTEST}}}",
        "supported values",
    ),
    (
        "networking/v1/DestinationRule",
        "{host: a, subsets: [{name: b, trafficPolicy: {tunnel: {targetHost: c, targetPort: 1}, proxyProtocol: {}}}]}",
        "only one of tunnel and proxyProtocol",
    ),
    (
        "networking/v1/DestinationRule",
        "{host: a, trafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}}",
        "portLevelSettings[0].port: Required",
    ),
    (
        "networking/v1/DestinationRule",
        "{host: a, trafficPolicy: {connectionPool: {tcp: {idleTimeout: -1s}}}}",
        "idleTimeout",
    ),
    (
        "networking/v1/DestinationRule",
        "{host: a, workloadSelector: {matchLabels: {app: 'b*'}}}",
        "wildcards do not work",
    ),
    ("networking/v1/ServiceEntry", "{hosts: ['*']}", "spec.hosts[0]"),
    (
        "networking/v1/ServiceEntry",
        "{hosts: [a.b], addresses: [10.0.0.0/8], resolution: DNS}",
        "address ranges need",
    ),
    (
        "networking/v1/ServiceEntry",
        "{hosts: [a.b], endpoints: [{address: 192.0.2.1}]}",
        "other than NONE",
    ),
    (
        "networking/v1/ServiceEntry",
        "{hosts: ['*.b'], resolution: DNS}",
        "a wildcard cannot be resolved",
    ),
    (
        "networking/v1/ServiceEntry",
        "{hosts: [a.b], ports: [{number: 80, name: a}, {number: 80, name: b}]}",
        "there twice",
    ),
    (
        "networking/v1/ServiceEntry",
        "{hosts: [a.b], resolution: STATIC, endpoints: [{address: 192.0.2.1}], workloadSelector: {labels: {a: b}}}",
        "only one of workloadSelector and endpoints",
    ),
    (
        "networking/v1/ServiceEntry",
        "{hosts: [a.b], resolution: DNS_ROUND_ROBIN, endpoints: [{address: a}, {address: b}]}",
        "at most one endpoint",
    ),
    ("networking/v1/WorkloadEntry", "{labels: {a: b}}", "an address or a network"),
    ("networking/v1/WorkloadEntry", "{address: 'unix:///a', ports: {b: 1}}", "has no ports"),
    ("networking/v1/WorkloadEntry", "{address: 'unix://a'}", "absolute path"),
    ("networking/v1/WorkloadEntry", "{address: 192.0.2.1, ports: {'-': 1}}", "name of a port"),
    ("networking/v1/WorkloadEntry", "{address: 192.0.2.1, ports: {a: 70000}}", "65535"),
    ("networking/v1/WorkloadGroup", "{probe: {exec: {command: [a]}}}", "spec.template: Required"),
    (
        "networking/v1/WorkloadGroup",
        "{template: {}, probe: {exec: {command: [a]}, grpc: {port: 1}}}",
        "spec.probe",
    ),
    ("networking/v1/Gateway", "{servers: [{hosts: ['*']}]}", "port: Required"),
    (
        "networking/v1/Gateway",
        "{servers: [{hosts: ['*'], port: {number: 443, protocol: HTTPS, name: a}, tls: {credentialName: a, credentialNames: [b]}}]}",
        "only one of credentialName",
    ),
    ("networking/v1/Sidecar", "{ingress: [{defaultEndpoint: '127.0.0.1:1'}]}", "port: Required"),
    ("networking/v1/Sidecar", "{workloadSelector: {labels: {app: '*'}}}", "wildcards do not work"),
    (
        "networking/v1alpha3/EnvoyFilter",
        "{configPatches: [{applyTo: CLUSTER, match: {waypoint: {}}}]}",
        "belongs to the context WAYPOINT",
    ),
    (
        "networking/v1alpha3/EnvoyFilter",
        "{configPatches: [{applyTo: CLUSTERS}]}",
        "supported values",
    ),
    ("networking/v1beta1/ProxyConfig", "{concurrency: -1}", "spec.concurrency"),
    ("security/v1/AuthorizationPolicy", "{action: CUSTOM, rules: [{}]}", "a provider belongs to"),
    (
        "security/v1/AuthorizationPolicy",
        "{provider: {name: a}, rules: [{}]}",
        "a provider belongs to",
    ),
    ("security/v1/AuthorizationPolicy", "{action: DENY}", "DENY without rules"),
    ("security/v1beta1/AuthorizationPolicy", "{action: allow}", "supported values"),
    ("security/v1/AuthorizationPolicy", "{rules: [{from: []}]}", "spec.rules[0].from"),
    (
        "security/v1/AuthorizationPolicy",
        "{rules: [{from: [{source: {}}]}]}",
        "spec.rules[0].from[0].source",
    ),
    (
        "security/v1/AuthorizationPolicy",
        "{rules: [{from: [{source: {serviceAccounts: [a], principals: [b]}}]}]}",
        "cannot stand beside",
    ),
    (
        "security/v1/AuthorizationPolicy",
        "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: c}]}",
        "only one of selector and targetRefs",
    ),
    (
        "security/v1/AuthorizationPolicy",
        "{targetRefs: [{kind: Service, name: c, namespace: other}]}",
        "its own namespace",
    ),
    (
        "security/v1/PeerAuthentication",
        "{portLevelMtls: {'80': {mode: STRICT}}}",
        "needs a selector",
    ),
    (
        "security/v1/PeerAuthentication",
        "{selector: {matchLabels: {a: b}}, portLevelMtls: {'70000': {mode: STRICT}}}",
        "1 to 65535",
    ),
    ("security/v1beta1/PeerAuthentication", "{mtls: {mode: strict}}", "supported values"),
    ("security/v1/RequestAuthentication", "{jwtRules: [{audiences: [a]}]}", "issuer: Required"),
    (
        "security/v1/RequestAuthentication",
        "{jwtRules: [{issuer: a, jwks: '{}', jwksUri: 'https://b'}]}",
        "only one of jwksUri and jwks",
    ),
    (
        "security/v1/RequestAuthentication",
        "{jwtRules: [{issuer: a, jwksUri: 'ftp://b'}]}",
        "http or https URL",
    ),
    (
        "telemetry/v1/Telemetry",
        "{tracing: [{randomSamplingPercentage: 101}]}",
        "less than or equal to 100",
    ),
    (
        "telemetry/v1alpha1/Telemetry",
        "{metrics: [{overrides: [{tagOverrides: {a: {operation: REMOVE, value: b}}}]}]}",
        "REMOVE takes no value",
    ),
    ("extensions/v1alpha1/WasmPlugin", "{url: 'ftp://a/b'}", "oci URL"),
    ("extensions/v1alpha1/WasmPlugin", "{url: a/b, sha256: abc}", "spec.sha256"),
    (
        "extensions/v1alpha1/WasmPlugin",
        "{url: a/b, vmConfig: {env: [{name: a, valueFrom: HOST, value: b}]}}",
        "belongs to valueFrom INLINE",
    ),
    ("extensions/v1alpha1/TrafficExtension", "{phase: AUTHN}", "exactly one of wasm and lua"),
    (
        "extensions/v1alpha1/TrafficExtension",
        "{lua: {inlineCode: a}, wasm: {url: b}}",
        "exactly one of wasm and lua",
    ),
];

fn mistakes_are_refused(cluster: &Cluster) -> Result<()> {
    let mut wrong = Vec::new();
    for (kind, spec, words) in REFUSED {
        let (version, kind) = kind.rsplit_once('/').context("no kind")?;
        let version = version.replacen('/', ".istio.io/", 1);
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: {NAMESPACE}}}\nspec: {spec}\n"
        );
        let args = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
        let (taken, told) = kubectl(cluster, &args, &text)?;
        if taken || !told.contains(words) {
            wrong.push(format!("{text}{told}"));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} were taken, or refused otherwise:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}
