//! AuthorizationPolicy: actions, scopes, sources, operations (rows 9.1, 9.2, 9.5, 9.7, 9.8,
//! 9.10-9.12, 9.15-9.18), decided at the destination, and connections that outlive a policy (9.25).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_tests::{Mesh, Pod, PodSpec, Process};

use crate::common::{echo_args, pair, service};

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:{spec}"
    )
}

/// Clients a and b of namespace default, c of namespace other, d outside; a server on each node.
struct World {
    _echoes: Vec<Process>,
    a: Arc<Pod>,
    b: Arc<Pod>,
    c: Arc<Pod>,
    outside: Arc<Pod>,
    near: Arc<Pod>,
    far: Arc<Pod>,
    mesh: Mesh,
}

fn world() -> Result<World> {
    let mesh = Mesh::new(2)?;
    mesh.enrol("other", true);
    let a = mesh.pod(PodSpec::new("a"))?;
    let b = mesh.pod(PodSpec::new("b"))?;
    let c = mesh.pod(PodSpec::new("c").namespace("other"))?;
    let outside = mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    let near = mesh.pod(PodSpec::new("near"))?;
    let far = mesh.pod(PodSpec::new("far").on(1))?;
    mesh.service(service("near"));
    mesh.service(service("far"));
    mesh.start()?;
    let echoes = vec![near.serve(&echo_args("near", "v1"))?, far.serve(&echo_args("far", "v1"))?];
    Ok(World { _echoes: echoes, a, b, c, outside, near, far, mesh })
}

impl World {
    /// HTTP to both servers: all the same.
    fn http(&self, what: &str, client: &Pod, path: &str, args: &[&str], status: u16) -> Result<()> {
        for server in ["near", "far"] {
            let reply = client.get(&format!("http://{server}{path}"), args)?;
            ensure!(
                reply.status() == status,
                "{what}: {} {args:?} {path} at {server}: {} instead of {status}: {}",
                client.name,
                reply.status(),
                reply.0
            );
            if status == 403 {
                ensure!(reply.body().contains("RBAC: access denied"), "{what}: {}", reply.0);
            }
        }
        Ok(())
    }

    /// Bytes to both servers.
    fn tcp(&self, what: &str, client: &Pod, open: bool) -> Result<()> {
        for server in [&self.near, &self.far] {
            let sent = client.send(
                &format!("{}:9000", server.ip()),
                "x\\n",
                &["--half-close", "--quiet-ms", "2000"],
            )?;
            let got = sent.received().contains("bye");
            ensure!(got == open, "{what}: {} to {}: {}", client.name, server.name, sent.0);
        }
        Ok(())
    }
}

#[test]
fn scopes_and_actions() -> Result<()> {
    let w = world()?;
    w.http("no policy", &w.a, "/", &[], 200)?;
    w.tcp("no policy", &w.a, true)?;
    // An empty policy allows nothing: mesh-wide, namespace, workload.
    w.mesh.apply("p", &policy("nothing", "istio-system", " {}\n"))?;
    w.http("nothing, mesh-wide", &w.a, "/", &[], 403)?;
    w.tcp("nothing, mesh-wide", &w.a, false)?;
    w.mesh.apply("p", &policy("nothing", "other", " {}\n"))?;
    w.http("nothing, in another namespace", &w.a, "/", &[], 200)?;
    w.mesh.apply("p", &policy("nothing", "default", " {}\n"))?;
    w.http("nothing, in the namespace", &w.a, "/", &[], 403)?;
    w.mesh
        .apply("p", &policy("nothing", "default", "\n  selector: {matchLabels: {app: far}}\n"))?;
    ensure!(
        w.a.get("http://near/", &[])?.status() == 200
            && w.a.get("http://far/", &[])?.status() == 403,
        "selector"
    );
    // ALLOW for one caller; DENY wins over it.
    let before = w.mesh.metrics()?;
    w.mesh.apply(
        "p",
        &policy(
            "allow-a",
            "default",
            "\n  rules:\n  - from: [{source: {principals: [cluster.local/ns/default/sa/a]}}]\n",
        ),
    )?;
    w.http("allow a", &w.a, "/", &[], 200)?;
    w.http("allow a", &w.b, "/", &[], 403)?;
    w.tcp("allow a", &w.a, true)?;
    w.tcp("allow a", &w.b, false)?;
    w.tcp("allow a", &w.outside, false)?;
    w.mesh.apply(
        "q",
        &policy(
            "deny-post",
            "default",
            "\n  action: DENY\n  rules:\n  - to: [{operation: {methods: [POST]}}]\n",
        ),
    )?;
    w.http("deny POST", &w.a, "/", &["-X", "POST"], 403)?;
    w.http("deny POST", &w.a, "/", &[], 200)?;
    w.http("deny POST", &w.b, "/", &[], 403)?;
    // Counted and logged at the destination, with the reason.
    let denied = [("reporter", "destination"), ("response_code", "403")];
    w.mesh.counted(&before, "istio_requests_total", &denied, 4.0)?;
    let refused = [("reporter", "destination"), ("response_flags", "DENY")];
    w.mesh.counted(&before, "istio_tcp_connections_failed_total", &refused, 2.0)?;
    let entry = w.mesh.logged(1, "the denial", |e| {
        e.text("method") == "POST" && e.text("response_code") == "403"
    })?;
    ensure!(entry.text("response_code_details").contains("deny-post"), "{}", entry.0);
    ensure!(!entry.text("reason").is_empty(), "no reason: {}", entry.0);
    Ok(())
}

#[test]
fn sources() -> Result<()> {
    let w = world()?;
    let a_ip = w.a.ip_of(true);
    // What `from.source` says; then a, b, c, outside.
    let table = [
        ("principals: [cluster.local/ns/default/sa/a]", [true, false, false, false]),
        ("principals: [\"*/sa/b\"]", [false, true, false, false]),
        ("principals: [\"cluster.local/ns/default/*\"]", [true, true, false, false]),
        ("principals: [\"*\"]", [true, true, true, false]),
        ("notPrincipals: [cluster.local/ns/default/sa/a]", [false, true, true, true]),
        ("namespaces: [other]", [false, false, true, false]),
        ("namespaces: [\"oth*\"]", [false, false, true, false]),
        ("notNamespaces: [other]", [true, true, false, true]),
        ("serviceAccounts: [a]", [true, false, false, false]),
        ("serviceAccounts: [other/c]", [false, false, true, false]),
        ("notServiceAccounts: [default/a]", [false, true, true, true]),
    ];
    for (source, open) in table {
        w.mesh.apply(
            "p",
            &policy(
                "sources",
                "default",
                &format!("\n  rules:\n  - from: [{{source: {{{source}}}}}]\n"),
            ),
        )?;
        for (client, open) in [&w.a, &w.b, &w.c, &w.outside].into_iter().zip(open) {
            let status = if open { 200 } else { 403 };
            for server in [&w.near, &w.far] {
                let reply = client.get(&format!("http://{}:8080/", server.ip()), &[])?;
                // A caller in plaintext may be refused before HTTP is spoken.
                let got = reply.status();
                ensure!(
                    got == status || (!open && got == 0),
                    "{source}: {} at {}: {got}",
                    client.name,
                    server.name
                );
            }
        }
    }
    for (blocks, a, b) in [
        (format!("ipBlocks: [\"{a_ip}\"]"), 200, 403),
        (format!("notIpBlocks: [\"{a_ip}/32\"]"), 403, 200),
        ("ipBlocks: [\"10.77.0.0/24\"]".to_owned(), 200, 200),
        ("ipBlocks: [\"10.99.0.0/16\"]".to_owned(), 403, 403),
    ] {
        w.mesh.apply(
            "p",
            &policy(
                "sources",
                "default",
                &format!("\n  rules:\n  - from: [{{source: {{{blocks}}}}}]\n"),
            ),
        )?;
        w.http(&blocks, &w.a, "/", &[], a)?;
        w.http(&blocks, &w.b, "/", &[], b)?;
    }
    Ok(())
}

/// Path, arguments, whether it is denied.
type Request<'a> = (&'a str, &'a [&'a str], bool);

#[test]
fn operations() -> Result<()> {
    let w = world()?;
    let deny = |operation: &str| {
        policy(
            "operations",
            "default",
            &format!("\n  action: DENY\n  rules:\n  - to: [{{operation: {{{operation}}}}}]\n"),
        )
    };
    // What is denied; requests and whether they are.
    let table: &[(&str, &[Request<'_>])] = &[
        ("methods: [GET]", &[("/", &[], true), ("/", &["-X", "PUT"], false)]),
        ("notMethods: [GET]", &[("/", &[], false), ("/", &["-X", "PUT"], true)]),
        (
            "paths: [/admin]",
            &[
                ("/admin", &[], true),
                ("/admin?x=1", &[], true),
                ("/admin/", &[], false),
                ("/", &[], false),
            ],
        ),
        (
            "paths: [\"/admin*\"]",
            &[("/admin", &[], true), ("/administrator", &[], true), ("/adm", &[], false)],
        ),
        ("paths: [\"*/admin\"]", &[("/a/admin", &[], true), ("/admin/a", &[], false)]),
        (
            "paths: [\"/a/{*}/b\"]",
            &[("/a/x/b", &[], true), ("/a/x/y/b", &[], false), ("/a//b", &[], false)],
        ),
        ("paths: [\"/a/{**}\"]", &[("/a/x/y", &[], true), ("/b/x", &[], false)]),
        ("notPaths: [\"/public*\"]", &[("/public/x", &[], false), ("/private", &[], true)]),
        (
            "hosts: [near, far]",
            &[
                ("/", &[], true),
                ("/", &["-H", "host: other.example"], false),
                ("/", &["-H", "host: NEAR"], true),
            ],
        ),
        (
            "notHosts: [near, far]",
            &[("/", &[], false), ("/", &["-H", "host: other.example"], true)],
        ),
        ("ports: [\"8080\"]", &[("/", &[], true)]),
        ("ports: [\"80\"]", &[("/", &[], false)]),
        ("notPorts: [\"8080\"]", &[("/", &[], false)]),
    ];
    for (operation, requests) in table {
        w.mesh.apply("p", &deny(operation))?;
        for (path, args, denied) in *requests {
            w.http(operation, &w.a, path, args, if *denied { 403 } else { 200 })?;
        }
    }
    // Bytes and HTTP rules: a DENY that names an HTTP property does not apply to bytes, an ALLOW
    // that does allows no bytes.
    w.mesh.apply(
        "p",
        &policy("operations", "default", "\n  rules:\n  - to: [{operation: {methods: [GET]}}]\n"),
    )?;
    w.tcp("ALLOW with methods", &w.a, false)?;
    w.http("ALLOW with methods", &w.a, "/", &[], 200)?;
    w.mesh.apply(
        "p",
        &policy(
            "operations",
            "default",
            "\n  rules:\n  - to: [{operation: {ports: [\"9000\"]}}]\n",
        ),
    )?;
    w.tcp("ALLOW a port", &w.a, true)?;
    w.http("ALLOW a port", &w.a, "/", &[], 403)
}

#[test]
fn paths_cannot_be_disguised() -> Result<()> {
    let w = world()?;
    w.mesh.mesh_config("pathNormalization:\n  normalization: DECODE_AND_MERGE_SLASHES");
    w.mesh.sync()?;
    w.mesh.apply(
        "p",
        &policy(
            "admin",
            "default",
            "\n  action: DENY\n  rules:\n  - to: [{operation: {paths: [/admin, \"/admin/*\"]}}]\n",
        ),
    )?;
    let tricks = [
        "/admin",
        "/admin/",
        "/admin/x",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/x/./../admin",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/admin%2fx",
        "/admin%2Fx",
        "/admin%5cx",
        "/admin\\\\x",
        "/x/%2e%2e/admin",
        "/x/%2E%2E/admin",
        "/%2e/admin",
        "///admin//x",
        "/admin?x=/public",
        "/x/..%2fadmin",
        "/.//admin",
        "/a/b/../../admin",
    ];
    for trick in tricks {
        for server in ["near", "far"] {
            let request = format!(
                "GET {trick} HTTP/1.1\\r\\nHost: {server}\\r\\nConnection: close\\r\\n\\r\\n"
            );
            let sent = w.a.send(&format!("{server}:80"), &request, &["--quiet-ms", "3000"])?;
            let status = sent.received().split(' ').nth(1).unwrap_or_default().to_owned();
            ensure!(status == "403" || status == "400", "{trick} at {server}: {}", sent.0);
        }
    }
    for fine in ["/", "/administration", "/public/admin", "/x?admin=/admin", "/adm%69"] {
        w.http("not admin", &w.a, fine, &[], 200)?;
    }
    Ok(())
}

/// A rule of the reference below: who, how, what; empty is anything.
#[derive(Debug, Default)]
struct Rule {
    accounts: Vec<&'static str>,
    methods: Vec<&'static str>,
    paths: Vec<&'static str>,
}

impl Rule {
    fn matches(&self, account: &str, method: &str, path: &str) -> bool {
        let any = |list: &[&str], value: &str| list.is_empty() || list.contains(&value);
        any(&self.accounts, account) && any(&self.methods, method) && any(&self.paths, path)
    }

    fn yaml(&self) -> String {
        let list = |items: &[String]| format!("[{}]", items.join(", "));
        let owned = |items: &[&str]| items.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>();
        let mut lines = Vec::new();
        if !self.accounts.is_empty() {
            let ids: Vec<String> = self
                .accounts
                .iter()
                .map(|a| {
                    let namespace = if *a == "c" { "other" } else { "default" };
                    format!("cluster.local/ns/{namespace}/sa/{a}")
                })
                .collect();
            lines.push(format!("from: [{{source: {{principals: {}}}}}]", list(&ids)));
        }
        let mut operation = Vec::new();
        if !self.methods.is_empty() {
            operation.push(format!("methods: {}", list(&owned(&self.methods))));
        }
        if !self.paths.is_empty() {
            operation.push(format!("paths: {}", list(&owned(&self.paths))));
        }
        if !operation.is_empty() {
            lines.push(format!("to: [{{operation: {{{}}}}}]", operation.join(", ")));
        }
        format!("  - {{{}}}\n", lines.join(", "))
    }
}

#[test]
fn random_policies_decide_as_a_plain_reference_does() -> Result<()> {
    let w = world()?;
    let mut seed = 0x2545_f491_u32;
    let mut below = |n: u32| {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed % n
    };
    let (accounts, methods, paths) = (["a", "b", "c"], ["GET", "PUT"], ["/x", "/y"]);
    let mut denied = 0;
    for round in 0..40 {
        let mut yaml = String::new();
        let mut sets: Vec<(bool, Vec<Rule>)> = Vec::new();
        for n in 0..1 + below(3) {
            let deny = below(2) == 0;
            let mut rules = Vec::new();
            for _ in 0..1 + below(2) {
                let mut some = |all: &[&'static str]| -> Vec<&'static str> {
                    if below(2) == 0 {
                        Vec::new()
                    } else {
                        vec![all[below(all.len() as u32) as usize]]
                    }
                };
                rules.push(Rule {
                    accounts: some(&accounts),
                    methods: some(&methods),
                    paths: some(&paths),
                });
            }
            let action = if deny { "DENY" } else { "ALLOW" };
            let body: String = rules.iter().map(Rule::yaml).collect();
            yaml += &policy(
                &format!("p{n}"),
                "default",
                &format!("\n  action: {action}\n  rules:\n{body}---\n"),
            );
            sets.push((deny, rules));
        }
        w.mesh.apply("p", &yaml)?;
        let told = fairlead_tests::daemon::json(&w.mesh.node(0).netns, "/problems")?;
        ensure!(told["errors"] == 0, "{yaml}{told}");
        for _ in 0..4 {
            let account = accounts[below(3) as usize];
            let (method, path) = (methods[below(2) as usize], paths[below(2) as usize]);
            let hit = |deny: bool| {
                let of = sets.iter().filter(move |(d, _)| *d == deny);
                of.flat_map(|(_, rules)| rules).any(|r| r.matches(account, method, path))
            };
            let allows = sets.iter().any(|(deny, _)| !deny);
            let allowed = !hit(true) && (!allows || hit(false));
            denied += u32::from(!allowed);
            let client =
                [&w.a, &w.b, &w.c][accounts.iter().position(|a| *a == account).unwrap_or(0)];
            let server = ["near", "far"][below(2) as usize];
            let url = format!("http://{server}{path}");
            let url = if account == "c" {
                let pod = if server == "near" { &w.near } else { &w.far };
                format!("http://{}:8080{path}", pod.ip())
            } else {
                url
            };
            let reply = client.get(&url, &["-X", method])?;
            let wanted = if allowed { 200 } else { 403 };
            ensure!(
                reply.status() == wanted,
                "round {round}: {account} {method} {path} at {server}: {} instead of {wanted}\n{yaml}",
                reply.status()
            );
        }
    }
    ensure!((20..140).contains(&denied), "{denied} of 160 were denied: that tests little");
    Ok(())
}

#[test]
fn a_new_policy_cuts_connections_that_it_would_not_admit() -> Result<()> {
    for node in [0, 1] {
        let p = crate::common::pair_on(node)?;
        let to = "server:9000";
        let data = "tick\\n";
        let mut long = p.client.spawn(&[
            "send",
            to,
            data,
            "--repeat",
            "600",
            "--piece",
            "5",
            "--pace-ms",
            "100",
            "--quiet-ms",
            "30000",
        ])?;
        std::thread::sleep(Duration::from_millis(600));
        ensure!(long.alive(), "the connection ended early: {}", long.output());
        p.mesh.apply("p", &policy("unrelated", "default", "\n  action: DENY\n  rules:\n  - from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]\n"))?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(long.alive(), "a policy that does not concern it cut the connection");
        let start = Instant::now();
        p.mesh.apply("p", &policy("now", "default", "\n  action: DENY\n  rules:\n  - from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]\n"))?;
        long.wait(Duration::from_secs(5))?;
        ensure!(start.elapsed() < Duration::from_secs(5));
        let told = fairlead_tests::client::last_json(&long.output())?;
        ensure!(told["end"] != "open", "{told}");
    }
    Ok(())
}

#[test]
fn the_destination_decides_even_when_the_source_does_not_know() -> Result<()> {
    let p = pair()?;
    // Only the destination's node has the policy.
    let file = p.mesh.node(1).config().join("only-here.yaml");
    std::fs::write(&file, policy("nobody", "default", " {}\n"))?;
    fairlead_tests::eventually("the policy", Duration::from_secs(3), || {
        Ok((p.client.get("http://server/", &[])?.status() == 403).then_some(()))
    })?;
    let sent = p.client.send("server:9000", "x\\n", &["--half-close"])?;
    ensure!(!sent.received().contains("hello"), "{}", sent.0);
    Ok(())
}
