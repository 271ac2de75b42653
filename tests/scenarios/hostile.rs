//! Hostile input: what the client gets, that others do not notice, that memory comes back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fairlead_tests::{PodSpec, eventually};

use crate::common::{Pair, heavy, pair, seconds};

/// Others are served as if nothing happened.
fn others_are_served(p: &Pair, what: &str) -> Result<()> {
    let load = p.client.load("http://server/", &["-n", "50", "-c", "2"])?;
    ensure!(load.status(200) == 50, "after {what}: {}", load.0);
    for node in 0..2 {
        p.mesh.daemon(node, |d| {
            ensure!(d.process().alive(), "after {what}: the daemon of node {node} is dead");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn smuggling_pairs_are_refused_or_seen_as_one_request() -> Result<()> {
    let p = pair()?;
    let smuggled = "GET /smuggled HTTP/1.1\\r\\nHost: server\\r\\n\\r\\n";
    let cases = [
        ("CL.TE", "Content-Length: 6\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n"),
        (
            "TE.CL",
            "Transfer-Encoding: chunked\\r\\nContent-Length: 4\\r\\n\\r\\n5\\r\\nabcde\\r\\n0\\r\\n\\r\\n",
        ),
        ("two lengths", "Content-Length: 5\\r\\nContent-Length: 6\\r\\n\\r\\nabcdef"),
        ("a list of lengths", "Content-Length: 5, 6\\r\\n\\r\\nabcdef"),
        ("a signed length", "Content-Length: +5\\r\\n\\r\\nabcde"),
        ("TE with a trick", "Transfer-Encoding: xchunked\\r\\nContent-Length: 5\\r\\n\\r\\nabcde"),
        (
            "TE twice",
            "Transfer-Encoding: chunked\\r\\nTransfer-Encoding: identity\\r\\n\\r\\n0\\r\\n\\r\\n",
        ),
        ("obs-fold", "X-A: b\\r\\n c\\r\\nContent-Length: 0\\r\\n\\r\\n"),
        ("a space before the colon", "Content-Length : 5\\r\\n\\r\\nabcde"),
        ("a NUL in a header", "X-A: b\\0c\\r\\nContent-Length: 0\\r\\n\\r\\n"),
        ("a bare CR", "X-A: b\\rX-B: c\\r\\nContent-Length: 0\\r\\n\\r\\n"),
        (
            "a bad chunk size",
            "Transfer-Encoding: chunked\\r\\n\\r\\nzz\\r\\nabc\\r\\n0\\r\\n\\r\\n",
        ),
        (
            "an endless chunk size",
            "Transfer-Encoding: chunked\\r\\n\\r\\nfffffffffffffffff\\r\\nabc",
        ),
    ];
    for (what, rest) in cases {
        // To the server that shows the raw bytes that reached it.
        let request = format!("POST /first HTTP/1.1\\r\\nHost: server\\r\\n{rest}{smuggled}");
        let sent = p.client.send("server:81", &request, &["--quiet-ms", "1500"])?;
        let text = sent.received();
        let refused =
            text.is_empty() || text.starts_with("HTTP/1.1 400") || text.starts_with("HTTP/1.1 501");
        // Where it was let through, it is one unambiguous request: a single framing.
        let body =
            text.split("\r\n\r\n").skip(1).collect::<Vec<_>>().join("\r\n\r\n").to_lowercase();
        let both = body.contains("content-length:") && body.contains("transfer-encoding:");
        let twice = body.matches("content-length:").count() > 1 && !body.contains("/smuggled");
        ensure!(refused || (!both && !twice), "{what} reached the server: {text}");
        let folded = body.contains("\n c\r") || body.contains("b\rx-b") || body.contains('\0');
        ensure!(!folded, "{what} reached the server as it was: {text:?}");
    }
    others_are_served(&p, "smuggling")
}

/// Heads with two readings: 400 and the end of the connection, and no application sees a byte
/// (Envoy's defaults), at the client's node and, of a client outside the mesh, at the server's.
#[test]
fn heads_with_two_readings_are_answered_with_400_and_the_end() -> Result<()> {
    let p = pair()?;
    let outside = p.mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    p.mesh.sync()?;
    let inbound = format!("{}:8081", p.server.ip());
    let host = "Host: server\\r\\n";
    let after = "GET /smuggled HTTP/1.1\\r\\nHost: server\\r\\n\\r\\n";
    let chunked = "Transfer-Encoding: chunked\\r\\n";
    let cases = [
        (
            "Content-Length beside",
            format!("{host}Content-Length: 6\\r\\n{chunked}\\r\\n0\\r\\n\\r\\n"),
        ),
        (
            "Content-Length beside",
            format!("{host}{chunked}Content-Length: 4\\r\\n\\r\\n0\\r\\n\\r\\n"),
        ),
        (
            "Content-Length beside",
            format!("{host}{chunked}CONTENT-length:0\\r\\n\\r\\n0\\r\\n\\r\\n"),
        ),
        ("bare LF", format!("{host}X-A: b\\nContent-Length: 0\\r\\n\\r\\n")),
        ("bare LF", format!("{host}Content-Length: 0\\r\\n\\n")),
        ("bare LF", "Host: server\\n\\n".to_owned()),
    ];
    for (client, to) in [(&p.client, "server:81"), (&outside, inbound.as_str())] {
        let node = usize::from(client.netns.name() == outside.netns.name());
        for (why, rest) in &cases {
            let request = format!("POST /first HTTP/1.1\\r\\n{rest}{after}");
            // In one piece, and byte by byte.
            for pace in [&[][..], &["--piece", "1", "--pace-ms", "1"]] {
                let lines = p.mesh.log(node).len();
                let args = [&["--quiet-ms", "3000"][..], pace].concat();
                let sent = client.send(to, &request, &args)?;
                let text = sent.received();
                ensure!(text.starts_with("HTTP/1.1 400"), "{request} {args:?} to {to}: {}", sent.0);
                ensure!(text.matches("HTTP/1.1").count() == 1, "{request} to {to}: {text}");
                ensure!(!text.contains("X-Raw-Server"), "{request} reached the server: {text}");
                ensure!(sent.end() == "fin", "{request} {args:?} to {to}: {}", sent.0);
                eventually("a log line with the reason", Duration::from_secs(3), || {
                    let log = p.mesh.log(node);
                    let told = |e: &fairlead_tests::Entry| {
                        e.text("reason").contains(why) && e.text("response_flags").contains("DPE")
                    };
                    Ok(log.iter().skip(lines).any(told).then_some(()))
                })?;
            }
        }
    }
    // What came before such a head is answered; and what is behind a switch is no head.
    let both = format!("GET /before HTTP/1.1\\r\\n{host}\\r\\nGET / HTTP/1.1\\nHost: server\\n\\n");
    let text = p.client.send("server:80", &both, &["--quiet-ms", "3000"])?.received();
    let (ok, bad) = (text.find("HTTP/1.1 200"), text.find("HTTP/1.1 400"));
    ensure!(ok == Some(0) && bad > ok && text.contains("/before"), "{text}");
    // A coding that nobody here undoes is not passed on without its name.
    let gzip = format!(
        "POST / HTTP/1.1\\r\\n{host}Transfer-Encoding: gzip, chunked\\r\\n\\r\\n0\\r\\n\\r\\n"
    );
    let text = p.client.send("server:81", &gzip, &["--quiet-ms", "3000"])?.received();
    ensure!(text.starts_with("HTTP/1.1 501"), "{text}");
    others_are_served(&p, "heads with two readings")
}

#[test]
fn too_much_and_too_slow_have_bounds() -> Result<()> {
    let p = pair()?;
    // Oversized headers.
    let header = format!("X-Big: {}\\r\\n", "a".repeat(60_000));
    let huge = format!("GET / HTTP/1.1\\r\\nHost: server\\r\\n{}\\r\\n", header.repeat(2));
    let sent = p.client.send("server:80", &huge, &["--quiet-ms", "3000"])?;
    let text = sent.received();
    ensure!(
        text.is_empty() || text.starts_with("HTTP/1.1 431") || text.starts_with("HTTP/1.1 400"),
        "headers: {text}"
    );
    let many = format!("GET / HTTP/1.1\\r\\nHost: server\\r\\n{}\\r\\n", "a: b\\r\\n".repeat(3000));
    let sent = p.client.send("server:80", &many, &["--quiet-ms", "3000"])?;
    let text = sent.received();
    ensure!(!text.starts_with("HTTP/1.1 200"), "3000 headers: {text}");
    // A long URI.
    let sent = p.client.send(
        "server:80",
        &format!("GET /{} HTTP/1.1\\r\\nHost: server\\r\\n\\r\\n", "a".repeat(100_000)),
        &["--quiet-ms", "3000"],
    )?;
    ensure!(!sent.received().starts_with("HTTP/1.1 200"), "a URI of 100,000 bytes was taken");
    // Garbage on every port.
    for port in [80, 81, 9000, 9001, 3306] {
        for garbage in [
            "\\x16\\x03\\x01\\xff\\xff\\x01",
            "\\x00\\xff\\xfe\\x80garbage",
            "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\xff\\xff\\xff\\xff\\xff\\xff",
            "GET",
        ] {
            p.client.send(
                &format!("server:{port}"),
                garbage,
                &["--half-close", "--quiet-ms", "300"],
            )?;
        }
    }
    for port in [8080, 9000, 15008] {
        let outside = p.mesh.wire();
        let to = std::net::SocketAddr::new(p.server.ip(), port);
        let _ = outside;
        p.client.send(
            &to.to_string(),
            "\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03",
            &["--half-close", "--quiet-ms", "300"],
        )?;
    }
    others_are_served(&p, "garbage")
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://server/` by HPACK's static table.
const REQUEST: &[u8] = b"\x82\x84\x86\x41\x06server";

#[test]
fn floods_of_http_2_end_their_own_connection_only() -> Result<()> {
    let _turn = heavy();
    let p = pair()?;
    others_are_served(&p, "warming up")?;
    let memory = |node: usize| p.mesh.daemon(node, |d| d.process().memory());
    let before = [memory(0)?, memory(1)?];
    let start = [PREFACE.to_vec(), frame(4, 0, 0, &[])].concat();
    let streams = || (0..20_000_u32).map(|i| 2 * i + 1);
    let floods: [(&str, Vec<u8>); 6] = [
        (
            "rapid reset",
            streams()
                .flat_map(|id| {
                    [frame(1, 5, id, REQUEST), frame(3, 0, id, &8_u32.to_be_bytes())].concat()
                })
                .collect(),
        ),
        (
            "CONTINUATION without end",
            [
                frame(1, 1, 1, REQUEST),
                (0..20_000).flat_map(|_| frame(9, 0, 1, b"\x00\x01a\x01b")).collect(),
            ]
            .concat(),
        ),
        ("PING", (0..100_000).flat_map(|_| frame(6, 0, 0, &[0; 8])).collect()),
        ("SETTINGS", (0..100_000).flat_map(|_| frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])).collect()),
        (
            "empty DATA",
            [frame(1, 4, 1, REQUEST), (0..100_000).flat_map(|_| frame(0, 0, 1, &[])).collect()]
                .concat(),
        ),
        ("frames of no stream", (0..10_000).flat_map(|_| frame(0, 0, 4_001, b"x")).collect()),
    ];
    for (what, flood) in floods {
        let file = p.mesh.dir().join("flood");
        std::fs::write(&file, [start.clone(), flood].concat())?;
        let file = file.display().to_string();
        let mut flooding = Vec::new();
        for _ in 0..4 {
            flooding.push(p.client.spawn(&[
                "send",
                "server:80",
                "--file",
                &file,
                "--quiet-ms",
                "2000",
            ])?);
        }
        let began = Instant::now();
        others_are_served(&p, what)?;
        ensure!(
            began.elapsed() < Duration::from_secs(20),
            "{what}: others wait {:?}",
            began.elapsed()
        );
        for process in &mut flooding {
            process.wait(Duration::from_secs(20))?;
        }
    }
    eventually("memory to come back", Duration::from_secs(20), || {
        for (node, before) in before.iter().enumerate() {
            let now = memory(node)?;
            ensure!(now < before + 48 * 1024 * 1024, "node {node}: {before} before, {now} now");
        }
        Ok(Some(()))
    })
}

#[test]
fn slow_headers_hold_up_nobody_and_are_ended() -> Result<()> {
    let p = pair()?;
    let request =
        format!("GET / HTTP/1.1\\r\\nHost: server\\r\\nX-Slow: {}\\r\\n\\r\\n", "a".repeat(2000));
    let mut slow = Vec::new();
    for _ in 0..50 {
        slow.push(p.client.spawn(&[
            "send",
            "server:80",
            &request,
            "--piece",
            "1",
            "--pace-ms",
            "200",
            "--quiet-ms",
            "60000",
        ])?);
    }
    std::thread::sleep(Duration::from_secs(1));
    let load = p.client.load("http://server/", &["-n", "200", "-c", "4"])?;
    ensure!(load.status(200) == 200 && load.figure("p99_ms") < 5_000.0, "{}", load.0);
    drop(slow);
    others_are_served(&p, "slow headers")
}

#[test]
fn half_open_tls_and_plaintext_floods_from_outside_give_memory_back() -> Result<()> {
    let p = pair()?;
    let outside = p.mesh.pod(PodSpec::new("outside").namespace("legacy"))?;
    p.mesh.sync()?;
    others_are_served(&p, "warming up")?;
    let memory = |node: usize| p.mesh.daemon(node, |d| d.process().memory());
    let before = memory(1)?;
    // A ClientHello that never ends, many times.
    let hello = "\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03aaaaaaaa";
    let to = format!("{}:8080", p.server.ip());
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(outside.spawn(&["send", &to, hello, "--quiet-ms", "60000"])?);
    }
    let load = outside.load(&format!("http://{to}/"), &["-n", "3000", "-c", "16", "--fresh"])?;
    ensure!(load.status(200) == 3000, "{}", load.0);
    others_are_served(&p, "half-open handshakes")?;
    drop(open);
    eventually("memory to come back", Duration::from_secs(20), || {
        let now = memory(1)?;
        ensure!(now < before + 32 * 1024 * 1024, "{before} bytes before, {now} now");
        Ok(Some(()))
    })
}

#[test]
fn many_idle_connections_cost_little_and_harm_nobody() -> Result<()> {
    let _turn = heavy();
    // A daemon carries half as many connections as it may have descriptors.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let room = limit.map_or(u64::MAX, |limit| (limit / 2).saturating_sub(1000));
    let count = u32::try_from(room.min(10_000))? / 10 * 10;
    eprintln!("{count} idle connections");
    let p = pair()?;
    others_are_served(&p, "warming up")?;
    let memory = |node: usize| p.mesh.daemon(node, |d| d.process().memory());
    let before = [memory(0)?, memory(1)?];
    // Ten clients with a thousand idle connections each: HTTP keep-alive after one request.
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(p.client.spawn(&["hold", "server:9000", &(count / 10).to_string()])?);
    }
    for process in &mut idle {
        process.wait_for("held", Duration::from_secs(60))?;
    }
    let start = Instant::now();
    others_are_served(&p, "opening idle connections")?;
    ensure!(start.elapsed() < Duration::from_secs(20), "others wait {:?}", start.elapsed());
    std::thread::sleep(Duration::from_secs(seconds(0)));
    let full = [memory(0)?, memory(1)?];
    for node in 0..2 {
        let each = full[node].saturating_sub(before[node]) / u64::from(count);
        eprintln!("node {node}: {each} bytes a connection");
        ensure!(each < 64 * 1024, "node {node}: {each} bytes for an idle connection");
    }
    drop(idle);
    eventually("connections to be forgotten", Duration::from_secs(30), || {
        let told = fairlead_tests::daemon::json(&p.mesh.node(0).netns, "/connections?limit=1")?;
        let total = told["total"].as_u64().unwrap_or(u64::MAX);
        ensure!(total < 100, "{total} connections");
        Ok(Some(()))
    })?;
    others_are_served(&p, "idle connections")
}
