//! HTTP in all its forms: versions, upgrades, trailers, streaming (rows 4.40-4.42), detection and
//! declaration of protocols (4.44, 4.45).

use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::client::last_json;
use fairlead_tests::{Mesh, PodSpec, ServiceSpec, daemon, eventually};

use crate::common::{echo_args, pair, versions, virtual_service};

#[test]
fn versions_bodies_and_trailers() -> Result<()> {
    let p = pair()?;
    for version in ["1.0", "1.1", "2"] {
        let reply = p
            .client
            .get("http://server/p?q=1", &["--http", version, "-X", "POST", "-d", "body"])?;
        ensure!(reply.status() == 200, "{version}: {}", reply.0);
        ensure!(
            reply.echo("body") == "body" && reply.echo("path") == "/p?q=1",
            "{version}: {}",
            reply.0
        );
        let big = p.client.get(
            "http://server/",
            &["--http", version, "-X", "PUT", "--size", "3000000", "-H", "x-echo-size: 2000000"],
        )?;
        ensure!(
            big.status() == 200 && big.0["length"] == 2_000_000,
            "{version}: {}",
            big.0["length"]
        );
    }
    // Chunked bodies with trailers, both ways, where the version has them.
    for version in ["1.1", "2"] {
        let reply = p.client.get(
            "http://server/",
            &[
                "--http",
                version,
                "-X",
                "POST",
                "-d",
                "body",
                "--trailer",
                "x-sum: 42",
                "-H",
                "te: trailers",
                "-H",
                "x-echo-trailer: 1",
            ],
        )?;
        ensure!(reply.status() == 200, "{version}: {}", reply.0);
        ensure!(
            reply.0["json"]["trailers"]["x-sum"] == "42",
            "{version}: request trailer lost: {}",
            reply.0
        );
        ensure!(
            reply.0["trailers"]["x-echo-trailer"] == "the-end",
            "{version}: response trailer lost: {}",
            reply.0
        );
    }
    // Keep-alive: many requests over one connection, no mixing of answers.
    let replies = p.client.get_many("http://server/", 50, &[])?;
    ensure!(replies.len() == 50 && replies.iter().all(|r| r.status() == 200));
    ensure!(
        replies.iter().all(|r| r.0["local"] == replies[0].0["local"]),
        "the connection was not kept"
    );
    // HEAD, 204, 304: no body, and the connection stays usable.
    for (args, status) in [
        (&["-X", "HEAD"][..], 200),
        (&["-H", "x-echo-status: 204", "-H", "x-echo-size: 0"], 204),
        (&["-H", "x-echo-status: 304", "-H", "x-echo-size: 0"], 304),
    ] {
        let replies = p.client.get_many("http://server/", 2, args)?;
        ensure!(
            replies.iter().all(|r| r.status() == status && r.body().is_empty()),
            "{args:?}: {}",
            replies[0].0
        );
    }
    Ok(())
}

#[test]
fn bytes_of_http_1_arrive_as_they_were_meant() -> Result<()> {
    let p = pair()?;
    let expect = "POST /x HTTP/1.1\\r\\nHost: server\\r\\nExpect: 100-continue\\r\\nContent-Length: 4\\r\\n\\r\\n";
    let sent = p.client.send("server:80", expect, &["--quiet-ms", "5000"])?;
    ensure!(sent.received().starts_with("HTTP/1.1 100"), "100-continue: {}", sent.0);
    // A request in single bytes.
    let sent = p.client.send(
        "server:80",
        "GET /slow-bytes HTTP/1.1\\r\\nHost: server\\r\\nConnection: close\\r\\n\\r\\n",
        &["--piece", "1", "--pace-ms", "2"],
    )?;
    ensure!(
        sent.received().starts_with("HTTP/1.1 200") && sent.received().contains("/slow-bytes"),
        "{}",
        sent.0
    );
    // Two requests at once (pipelining): two answers, in order.
    let two = "GET /first HTTP/1.1\\r\\nHost: server\\r\\n\\r\\nGET /second HTTP/1.1\\r\\nHost: server\\r\\nConnection: close\\r\\n\\r\\n";
    let sent = p.client.send("server:80", two, &[])?;
    let (first, second) = (sent.received().find("/first"), sent.received().find("/second"));
    ensure!(first.is_some() && second.is_some() && first < second, "{}", sent.0);
    // HTTP/1.0 closes; the answer is no chunked one.
    let sent = p.client.send("server:80", "GET / HTTP/1.0\\r\\n\\r\\n", &[])?;
    ensure!(sent.received().starts_with("HTTP/1.") && sent.end() == "fin", "{}", sent.0);
    ensure!(!sent.received().to_lowercase().contains("transfer-encoding: chunked"), "{}", sent.0);
    // Chunked with extensions and trailers reaches the server as one body.
    let chunked = "POST / HTTP/1.1\\r\\nHost: server\\r\\nTransfer-Encoding: chunked\\r\\nConnection: close\\r\\n\\r\\n3;ext=1\\r\\nabc\\r\\n2\\r\\nde\\r\\n0\\r\\nx-t: v\\r\\n\\r\\n";
    let sent = p.client.send("server:80", chunked, &[])?;
    ensure!(
        sent.received().contains("\\\"body\\\":\\\"abcde\\\"")
            || sent.received().contains("\"body\":\"abcde\""),
        "{}",
        sent.0
    );
    Ok(())
}

#[test]
fn websocket_lives_through_a_route_change() -> Result<()> {
    let v = versions(2)?;
    let to = |subset: &str| {
        virtual_service(&format!(
            "  http:\n  - route: [{{destination: {{host: server, subset: {subset}}}}}]\n"
        ))
    };
    v.mesh.apply("routes", &to("v1"))?;
    let mut ws =
        v.client.spawn(&["ws", "http://server:80/ws", "-n", "30", "--interval-ms", "100"])?;
    eventually("the websocket to be open", Duration::from_secs(20), || {
        let told = daemon::json(&v.mesh.node(0).netns, "/connections?limit=1")?;
        Ok((told["total"].as_u64() > Some(0)).then_some(()))
    })?;
    std::thread::sleep(Duration::from_millis(500));
    v.mesh.apply("routes", &to("v2"))?;
    let reply = v.client.get("http://server/", &[])?;
    ensure!(reply.version() == "v2", "{}", reply.0);
    ws.wait(Duration::from_secs(20))?;
    let told = last_json(&ws.output())?;
    ensure!(told["status"] == 101 && told["accept_ok"] == true, "{told}");
    let frames = told["frames"].as_array().cloned().unwrap_or_default();
    ensure!(frames.len() == 30, "{told}");
    ensure!(frames.iter().all(|f| f.as_str().is_some_and(|f| f.starts_with("v1:frame"))), "{told}");
    let again = last_json(&v.client.run(&["ws", "http://server:80/ws", "-n", "1"])?)?;
    ensure!(again["frames"][0] == "v2:frame 0", "{again}");
    Ok(())
}

#[test]
fn grpc_is_balanced_per_call_with_trailers_streams_and_deadlines() -> Result<()> {
    let v = versions(2)?;
    v.mesh.service(ServiceSpec::new("rpc").port("grpc", 8080, 8080).selector(&[("app", "server")]));
    v.mesh.sync()?;
    let before = v.mesh.metrics()?;
    let replies = v.client.grpc("rpc:8080", &["-n", "40"])?;
    ensure!(replies.len() == 40);
    let mut pods = std::collections::BTreeMap::new();
    for reply in &replies {
        ensure!(reply.0["grpc_status"] == "0", "{}", reply.0);
        ensure!(reply.0["trailers"]["x-echo-trailer"] == "the-end", "{}", reply.0);
        let message = reply.0["messages"][0].as_str().unwrap_or_default();
        let version = if message.contains("\"v1\"") { "v1" } else { "v2" };
        *pods.entry(version).or_insert(0) += 1;
    }
    ensure!(pods.len() == 2 && pods.values().all(|n| *n >= 4), "one connection, pods {pods:?}");
    let bidi =
        &v.client.grpc("rpc:8080", &["/fairlead.Echo/Bidi", "-m", "a", "-m", "b", "-m", "c"])?[0];
    let messages = bidi.0["messages"].as_array().cloned().unwrap_or_default();
    ensure!(
        messages.len() == 3 && messages[2].as_str().is_some_and(|m| m.ends_with(" c")),
        "{}",
        bidi.0
    );
    let stream = &v.client.grpc("rpc:8080", &["/fairlead.Echo/ServerStream"])?[0];
    ensure!(stream.0["messages"].as_array().map(Vec::len) == Some(10), "{}", stream.0);
    let fail = &v.client.grpc("rpc:8080", &["/fairlead.Echo/Fail"])?[0];
    ensure!(
        fail.0["grpc_status"] == "7" && fail.0["trailers"]["grpc-message"] == "not%20today",
        "{}",
        fail.0
    );
    let deadline =
        &v.client.grpc("rpc:8080", &["/fairlead.Echo/Unary", "--deadline-ms", "3000"])?[0];
    ensure!(
        deadline.0["messages"][0].as_str().is_some_and(|m| m.contains("3000m")),
        "{}",
        deadline.0
    );
    let slow = &v.client.grpc("rpc:8080", &["/fairlead.Echo/Slow", "--deadline-ms", "300"])?[0];
    ensure!(slow.status() == 0 || slow.0["grpc_status"] == "4", "{}", slow.0);
    let labels =
        [("request_protocol", "grpc"), ("grpc_response_status", "7"), ("reporter", "source")];
    v.mesh.counted(&before, "istio_requests_total", &labels, 1.0)?;
    Ok(())
}

#[test]
fn connect_requests_make_tunnels_or_are_refused() -> Result<()> {
    let p = pair()?;
    let before = p.mesh.metrics()?;
    let head = |authority: &str, more: &str| {
        format!("CONNECT {authority} HTTP/1.1\\r\\nHost: {authority}\\r\\n{more}\\r\\n")
    };
    let tunnel = head("server:80", "x-echo-tunnel: 1\\r\\n");
    let length = tunnel.replace("\\r", "\r").replace("\\n", "\n").len().to_string();
    // Both ways, and each way ends for itself: the server's last word comes after the client's
    // end. The bare LF is none of a head's.
    let talk = ["--piece", &length, "--pace-ms", "300", "--half-close", "--quiet-ms", "3000"];
    let sent = p.client.send("server:80", &format!("{tunnel}ping\\n\\x00pong"), &talk)?;
    let text = sent.received();
    let (answer, carried) = text.split_once("\r\n\r\n").unwrap_or_default();
    ensure!(answer.starts_with("HTTP/1.1 200") && carried == "v1:ping\n\0pong:bye", "{}", sent.0);
    ensure!(sent.end() == "fin", "{}", sent.0);
    ensure!(!answer.to_lowercase().contains("content-length"), "{answer}");
    // What follows the head at once belongs to the tunnel.
    let at_once = ["--quiet-ms", "1000"];
    let sent = p.client.send("server:80", &format!("{tunnel}at once\\n"), &at_once)?;
    ensure!(sent.received().ends_with("\r\n\r\nv1:at once\n"), "{}", sent.0);
    let labels = [("reporter", "source"), ("response_code", "200")];
    p.mesh.counted(&before, "istio_requests_total", &labels, 1.0)?;
    p.mesh
        .logged(0, "CONNECT", |e| e.text("method") == "CONNECT" && e.number("bytes_sent") > 10.0)?;
    // A server that takes CONNECT for any method answers; a tunnel to elsewhere it never becomes.
    let sent = p.client.send("server:80", &head("server:9000", ""), &["--quiet-ms", "1500"])?;
    ensure!(sent.received().starts_with("HTTP/1."), "{}", sent.0);
    // A length has no meaning here: none is passed on, and a request with a body is refused.
    let sent = p.client.send(
        "server:81",
        &head("server:81", "Content-Length: 0\\r\\n"),
        &["--quiet-ms", "1500"],
    )?;
    let (_, seen) = sent
        .received()
        .split_once("\r\n\r\n")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap_or_default();
    ensure!(seen.starts_with("CONNECT server:81"), "{}", sent.0);
    ensure!(!seen.to_lowercase().contains("content-length"), "{}", sent.0);
    for length in ["Content-Length: 5\\r\\n", "Transfer-Encoding: chunked\\r\\n"] {
        let request = format!("{}hello", head("server:81", length));
        let sent = p.client.send("server:81", &request, &["--quiet-ms", "3000"])?;
        ensure!(sent.received().starts_with("HTTP/1.1 400"), "{length}: {}", sent.0);
        ensure!(!sent.received().contains("X-Raw-Server"), "{length}: {}", sent.0);
    }
    // Policy is asked about CONNECT as about any request.
    let policy = |action: &str, method: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: methods, namespace: default}}\nspec:\n  selector: {{matchLabels: {{app: server}}}}\n  action: {action}\n  rules:\n  - to: [{{operation: {{methods: [{method}]}}}}]\n"
        )
    };
    for (action, method) in [("DENY", "CONNECT"), ("ALLOW", "GET")] {
        p.mesh.apply("methods", &policy(action, method))?;
        let sent = p.client.send("server:80", &format!("{tunnel}ping"), &["--quiet-ms", "3000"])?;
        ensure!(sent.received().starts_with("HTTP/1.1 403"), "{action} {method}: {}", sent.0);
        ensure!(!sent.received().contains("v1:"), "{action} {method}: {}", sent.0);
        p.mesh.logged(1, "the refusal", |e| {
            e.text("method") == "CONNECT" && e.number("response_code") == 403.0
        })?;
        ensure!(p.client.get("http://server/", &[])?.status() == 200, "{action} {method}");
    }
    Ok(())
}

#[test]
fn protocols_are_detected_or_declared() -> Result<()> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let server = mesh.pod(PodSpec::new("server").on(1))?;
    mesh.service(
        ServiceSpec::new("server")
            .port("x-any", 8080, 8080)
            .port_with_protocol("web", 80, 8080, "http")
            .port_with_protocol("h2", 81, 8080, "kubernetes.io/h2c")
            .port_with_protocol("http-not", 82, 8080, "tcp")
            .port("mysql-db", 3306, 3306),
    );
    mesh.service(ServiceSpec::new("unnamed").port("", 9000, 9000).selector(&[("app", "server")]));
    mesh.start()?;
    let _echo = server.serve(&echo_args("server", "v1"))?;
    let http = |url: &str, args: &[&str], wanted: bool| -> Result<()> {
        let before = mesh.metrics()?;
        let reply = client.get(url, args)?;
        ensure!(reply.status() == 200, "{url}: {}", reply.0);
        let labels = [("reporter", "source"), ("destination_workload", "server")];
        if wanted {
            mesh.counted(&before, "istio_requests_total", &labels, 1.0)?;
        } else {
            mesh.counted(&before, "istio_tcp_connections_opened_total", &labels, 1.0)?;
            let requests = mesh.metrics()?.sum("istio_requests_total", &labels)
                - before.sum("istio_requests_total", &labels);
            ensure!(requests == 0.0, "{url}: {requests} requests counted on a port of bytes");
        }
        Ok(())
    };
    http("http://server:8080/", &[], true)?;
    http("http://server:8080/", &["--http", "2"], true)?;
    http("http://server:80/", &[], true)?;
    http("http://server:81/", &["--http", "2"], true)?;
    http("http://server:82/", &[], false)?;
    let sent = client.send("unnamed:9000", "hello there\\n", &["--half-close"])?;
    ensure!(
        sent.received().contains("hello there") && sent.received().contains("bye"),
        "{}",
        sent.0
    );
    let mut took = Vec::new();
    for _ in 0..5 {
        let sent = client.send("server:3306", "", &["--server-first", "--quiet-ms", "200"])?;
        took.push(sent.first_byte_ms().unwrap_or(f64::MAX));
    }
    ensure!(took.iter().any(|ms| *ms < 50.0), "banners after {took:?} ms");
    // A server that speaks first on a port of which nothing is known: it has to come, if later.
    mesh.service(ServiceSpec::new("blind").port("", 3306, 3306).selector(&[("app", "server")]));
    mesh.sync()?;
    eventually("a banner on a port without a name", Duration::from_secs(15), || {
        let sent = client.send("blind:3306", "", &["--server-first", "--quiet-ms", "8000"])?;
        Ok(sent.received().starts_with("220").then_some(()))
    })
}
