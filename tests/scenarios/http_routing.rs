//! VirtualService: which route a request takes (rows 4.1, 4.4, 4.5, 4.7-4.9, 4.11, 4.12, 4.18-4.20)
//! and what the route makes of it (4.21, 4.25).

use anyhow::{Result, ensure};
use fairlead_tests::{Pod, PodSpec};

use crate::common::{share, versions, virtual_service};

/// `match → subset` as a route.
fn route(name: &str, matches: &str, subset: &str) -> String {
    let matches =
        if matches.is_empty() { String::new() } else { format!("    match: {matches}\n") };
    format!(
        "  - name: {name}\n{matches}    route: [{{destination: {{host: server, subset: {subset}}}}}]\n"
    )
}

fn goes(client: &Pod, what: &str, args: &[&str], path: &str, version: &str) -> Result<()> {
    let reply = client.get(&format!("http://server{path}"), args)?;
    ensure!(
        reply.version() == version,
        "{what}: {path} {args:?} went to {:?}, not {version}: {}",
        reply.version(),
        reply.0
    );
    Ok(())
}

#[test]
fn paths_exact_prefix_and_regex_first_match_wins() -> Result<()> {
    let v = versions(3)?;
    let http = format!(
        "  http:\n{}{}{}{}{}",
        route("exact", "[{uri: {exact: /exact}}]", "v1"),
        route("prefix", "[{uri: {prefix: /prefix/}}]", "v2"),
        route("regex", "[{uri: {regex: \"/r[0-9]+/.*\"}}]", "v3"),
        route("overlap", "[{uri: {prefix: /exact}}]", "v2"),
        route("rest", "", "v1"),
    );
    v.mesh.apply("routes", &virtual_service(&http))?;
    let table = [
        ("/exact", "v1", "exact"),
        ("/exact?a=b", "v1", "exact"),
        ("/exact/", "v2", "overlap"),
        ("/exactly", "v2", "overlap"),
        ("/Exact", "v1", "rest"),
        ("/prefix/", "v2", "prefix"),
        ("/prefix/a/b?c", "v2", "prefix"),
        ("/prefix", "v1", "rest"),
        ("/prefi", "v1", "rest"),
        ("/a/prefix/", "v1", "rest"),
        ("/r1/", "v3", "regex"),
        ("/r123/x/y", "v3", "regex"),
        ("/r1", "v1", "rest"),
        ("/x/r1/", "v1", "rest"),
        ("/ra/", "v1", "rest"),
        ("/", "v1", "rest"),
        ("/%65xact", "v1", "rest"),
    ];
    for (path, version, _) in table {
        goes(&v.client, "path", &[], path, version)?;
    }
    for (path, _, name) in table.iter().take(12) {
        let name = *name;
        let bare = path.split('?').next().unwrap_or(path);
        v.mesh.logged(0, name, |e| {
            e.text("path").starts_with(bare) && e.text("route_name") == name
        })?;
    }
    Ok(())
}

#[test]
fn methods_authorities_headers_and_their_truth_table() -> Result<()> {
    let v = versions(3)?;
    let http = format!(
        "  http:\n{}{}{}{}{}{}{}{}",
        route("and", "[{method: {exact: PUT}, headers: {x-a: {exact: \"1\"}}}]", "v3"),
        route("or", "[{method: {exact: DELETE}}, {headers: {x-b: {exact: \"1\"}}}]", "v3"),
        route("post", "[{method: {exact: POST}}]", "v2"),
        route("authority", "[{authority: {exact: server.default}}]", "v2"),
        route("user", "[{headers: {end-user: {exact: jason}}}]", "v2"),
        route("cookie", "[{headers: {cookie: {regex: \"^(.*;.?)?(user=dev-123)(;.*)?$\"}}}]", "v3"),
        route("prefix", "[{headers: {user-agent: {prefix: Mobile}}}]", "v2"),
        route("rest", "", "v1"),
    );
    v.mesh.apply("routes", &virtual_service(&http))?;
    let table: &[(&[&str], &str)] = &[
        (&[], "v1"),
        (&["-X", "PUT"], "v1"),
        (&["-H", "x-a: 1"], "v1"),
        (&["-X", "PUT", "-H", "x-a: 1"], "v3"),
        (&["-X", "PUT", "-H", "x-a: 2"], "v1"),
        (&["-X", "DELETE"], "v3"),
        (&["-H", "x-b: 1"], "v3"),
        (&["-X", "DELETE", "-H", "x-b: 1"], "v3"),
        (&["-X", "POST"], "v2"),
        (&["-H", "end-user: jason"], "v2"),
        (&["-H", "end-user: jasons"], "v1"),
        (&["-H", "End-User: jason"], "v2"),
        (&["-H", "cookie: a=b; user=dev-123; c=d"], "v3"),
        (&["-H", "cookie: user=dev-1234"], "v1"),
        (&["-H", "user-agent: Mobile Safari"], "v2"),
        (&["-H", "user-agent: A Mobile"], "v1"),
        (&["--http", "2", "-H", "end-user: jason"], "v2"),
    ];
    for (args, version) in table {
        goes(&v.client, "table", args, "/", version)?;
    }
    let reply = v.client.get("http://server.default/", &[])?;
    ensure!(reply.version() == "v2", "authority: {}", reply.0);
    Ok(())
}

#[test]
fn ports_source_labels_hosts_and_delegated_names() -> Result<()> {
    let v = versions(2)?;
    let other = v.mesh.pod(PodSpec::new("other").label("version", "v2"))?;
    v.mesh.sync()?;
    let http = format!(
        "  http:\n{}{}{}",
        route("port", "[{port: 81}]", "v2"),
        route("source", "[{sourceLabels: {app: other}}]", "v2"),
        route("rest", "", "v1"),
    );
    v.mesh.apply("routes", &virtual_service(&http))?;
    goes(&v.client, "port 80", &[], "/", "v1")?;
    let raw = v.client.get("http://server:81/", &[])?;
    ensure!(raw.status() == 200 && raw.header("x-raw-server") == "Yes", "port 81: {}", raw.0);
    let entry = v.mesh.logged(0, "port", |e| e.text("route_name") == "port")?;
    ensure!(entry.text("upstream_cluster").contains("|v2|"), "{}", entry.0);
    for _ in 0..3 {
        goes(&other, "sourceLabels", &[], "/", "v2")?;
    }
    // By every name that a host may be written with.
    for host in ["server.default.svc.cluster.local", "\"*.default.svc.cluster.local\"", "server"] {
        let yaml = virtual_service(&format!("  http:\n{}", route("named", "", "v2")))
            .replace("hosts: [server]", &format!("hosts: [{host}]"));
        v.mesh.apply("routes", &yaml)?;
        goes(&v.client, host, &[], "/", "v2")?;
    }
    // A name of another namespace is another service.
    let yaml = virtual_service(&format!("  http:\n{}", route("named", "", "v2")))
        .replace("hosts: [server]", "hosts: [server.elsewhere.svc.cluster.local]");
    v.mesh.apply("routes", &yaml)?;
    let load = v.client.load("http://server/", &["-n", "40", "--fresh"])?;
    ensure!(load.version("v1") > 0 && load.version("v2") > 0, "{}", load.0);
    Ok(())
}

#[test]
fn weights_split_requests() -> Result<()> {
    let v = versions(3)?;
    for (weights, n) in
        [([80, 20, 0], 2000_u64), ([75, 25, 0], 2000), ([1, 1, 98], 2000), ([0, 100, 0], 200)]
    {
        let routes: String = weights
            .iter()
            .enumerate()
            .map(|(i, w)| {
                format!(
                    "    - destination: {{host: server, subset: v{}}}\n      weight: {w}\n",
                    i + 1
                )
            })
            .collect();
        v.mesh.apply("routes", &virtual_service(&format!("  http:\n  - route:\n{routes}")))?;
        let load = v.client.load("http://server/", &["-n", &n.to_string(), "-c", "8"])?;
        ensure!(load.status(200) == n, "{}", load.0);
        for (i, weight) in weights.iter().enumerate() {
            let seen = load.version(&format!("v{}", i + 1));
            match weight {
                0 | 100 => ensure!(seen == n * weight / 100, "{weights:?}: {}", load.0),
                w => share(seen, n, *w as f64 / 100.0)?,
            }
        }
    }
    Ok(())
}

#[test]
fn headers_are_set_added_and_removed() -> Result<()> {
    let v = versions(1)?;
    let http = "  http:
  - headers:
      request:
        set: {x-set: of-route, user-agent: changed}
        add: {x-add: two}
        remove: [x-gone]
      response:
        set: {x-version: overwritten}
        add: {x-new: there}
        remove: [x-pod]
    route:
    - destination: {host: server, subset: v1}
      headers:
        request:
          add: {x-dest: of-destination}
        response:
          set: {x-dest-back: also}
";
    v.mesh.apply("routes", &virtual_service(http))?;
    for version in ["1.1", "2"] {
        let reply = v.client.get(
            "http://server/",
            &[
                "--http",
                version,
                "-H",
                "x-set: of-client",
                "-H",
                "x-add: one",
                "-H",
                "x-gone: x",
                "-H",
                "user-agent: me",
            ],
        )?;
        ensure!(reply.status() == 200, "{}", reply.0);
        let seen = |name: &str| reply.seen(name).unwrap_or_default();
        ensure!(seen("x-set") == "of-route", "x-set is {:?}", seen("x-set"));
        ensure!(seen("user-agent") == "changed", "user-agent is {:?}", seen("user-agent"));
        ensure!(seen("x-add") == "one,two", "x-add is {:?}", seen("x-add"));
        ensure!(reply.seen("x-gone").is_none(), "x-gone is still there");
        ensure!(seen("x-dest") == "of-destination", "x-dest is {:?}", seen("x-dest"));
        ensure!(reply.header("x-version") == "overwritten", "{}", reply.0);
        ensure!(
            reply.header("x-new") == "there" && reply.header("x-dest-back") == "also",
            "{}",
            reply.0
        );
        ensure!(reply.header("x-pod").is_empty(), "{}", reply.0);
    }
    Ok(())
}

#[test]
fn paths_and_authorities_are_rewritten() -> Result<()> {
    let v = versions(1)?;
    let dest = "    route: [{destination: {host: server, subset: v1}}]\n";
    let http = format!(
        "  http:
  - match: [{{uri: {{prefix: /old/}}}}]
    rewrite: {{uri: /new/}}
{dest}  - match: [{{uri: {{exact: /one}}}}]
    rewrite: {{uri: /two, authority: other.example}}
{dest}  - match: [{{uri: {{prefix: /book/}}}}]
    rewrite:
      uriRegexRewrite:
        match: \"^/book/([^/]+)/page/(.*)$\"
        rewrite: '/\\2/of/\\1'
{dest}  - match: [{{uri: {{prefix: /authority}}}}]
    rewrite: {{authority: only.example}}
{dest}  - {}",
        dest.trim_start()
    );
    v.mesh.apply("routes", &virtual_service(&http))?;
    for (path, seen) in [
        ("/old/a?b=c", "/new/a?b=c"),
        ("/old/", "/new/"),
        ("/one", "/two"),
        ("/one?q", "/two?q"),
        ("/book/hamlet/page/7", "/7/of/hamlet"),
        ("/book/hamlet", "/book/hamlet"),
        ("/else", "/else"),
    ] {
        let reply = v.client.get(&format!("http://server{path}"), &[])?;
        ensure!(reply.echo("path") == seen, "{path} became {}", reply.echo("path"));
    }
    for (path, host) in
        [("/one", "other.example"), ("/authority", "only.example"), ("/else", "server")]
    {
        let reply = v.client.get(&format!("http://server{path}"), &[])?;
        let got = reply.seen("host").unwrap_or_else(|| reply.echo("uri"));
        ensure!(got.contains(host), "{path}: the host became {got:?}");
    }
    Ok(())
}
