//! HBONE as Istio ambient speaks it (rows 2.16, 2.17), against a client and a server of OpenSSL and
//! the h2 crate; peers with the wrong name (2.19) or of another authority.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use fairlead_tests::netns::Netns;
use fairlead_tests::{Mesh, PodSpec, ServiceSpec, eventually, shell};
use http::{Method, Request, Response, StatusCode};

use crate::common::{pair, service};

/// A certificate and its key, as files.
struct Identity {
    chain: PathBuf,
    key: PathBuf,
}

/// Has a certificate for `uri` made by the CA whose files are in `ca`.
fn issue(ca: &Path, dir: &Path, name: &str, uri: &str) -> Result<Identity> {
    std::fs::create_dir_all(dir)?;
    let file = |suffix: &str| dir.join(format!("{name}{suffix}")).display().to_string();
    let (key, csr, cert, ext) = (file(".key"), file(".csr"), file(".crt"), file(".ext"));
    shell::run("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key])?;
    shell::run("openssl", &["req", "-new", "-key", &key, "-subj", "/", "-out", &csr])?;
    std::fs::write(
        &ext,
        format!(
            "subjectAltName=critical,URI:{uri}\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\n"
        ),
    )?;
    let (ca_cert, ca_key) = (ca.join("ca-cert.pem"), ca.join("ca-key.pem"));
    shell::run(
        "openssl",
        &[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            &ca_cert.display().to_string(),
            "-CAkey",
            &ca_key.display().to_string(),
            "-CAcreateserial",
            "-CAserial",
            &file(".srl"),
            "-days",
            "1",
            "-extfile",
            &ext,
            "-out",
            &cert,
        ],
    )?;
    let chain = [std::fs::read(&cert)?, std::fs::read(&ca_cert)?].concat();
    let path = dir.join(format!("{name}.chain"));
    std::fs::write(&path, chain)?;
    Ok(Identity { chain: path, key: key.into() })
}

/// An authority of somebody else, with the same names.
fn foreign_ca(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let file = |name: &str| dir.join(name).display().to_string();
    shell::run(
        "openssl",
        &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &file("ca-key.pem")],
    )?;
    shell::run(
        "openssl",
        &[
            "req",
            "-x509",
            "-new",
            "-key",
            &file("ca-key.pem"),
            "-subj",
            "/O=foreign",
            "-days",
            "1",
            "-out",
            &file("ca-cert.pem"),
        ],
    )?;
    Ok(())
}

/// OpenSSL as one end of a TLS connection; its standard input and output are one of our sockets.
struct Tls {
    child: Child,
    ours: Option<UnixStream>,
    log: PathBuf,
}

impl Tls {
    fn start(netns: &Netns, args: &[&str], log: PathBuf) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let file = std::fs::File::create(&log)?;
        let child = netns.enter(|| {
            Command::new("openssl")
                .args(args)
                .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
                .stdout(Stdio::from(OwnedFd::from(theirs)))
                .stderr(file)
                .spawn()
                .context("starting openssl")
        })?;
        Ok(Self { child, ours: Some(ours), log })
    }

    fn client(
        netns: &Netns,
        to: SocketAddr,
        alpn: &str,
        me: &Identity,
        log: PathBuf,
    ) -> Result<Self> {
        let (chain, key) = (me.chain.display().to_string(), me.key.display().to_string());
        let args = [
            "s_client",
            "-quiet",
            "-connect",
            &to.to_string(),
            "-alpn",
            alpn,
            "-tls1_3",
            "-cert",
            &chain,
            "-cert_chain",
            &chain,
            "-key",
            &key,
        ];
        Self::start(netns, &args, log)
    }

    fn server(netns: &Netns, port: u16, me: &Identity, root: &Path, log: PathBuf) -> Result<Self> {
        let (chain, key) = (me.chain.display().to_string(), me.key.display().to_string());
        let args = [
            "s_server",
            "-quiet",
            "-accept",
            &port.to_string(),
            "-naccept",
            "1",
            "-alpn",
            "h2",
            "-tls1_3",
            "-cert",
            &chain,
            "-cert_chain",
            &chain,
            "-key",
            &key,
            "-Verify",
            "3",
            "-verify_return_error",
            "-CAfile",
            &root.display().to_string(),
        ];
        let server = Self::start(netns, &args, log)?;
        fairlead_tests::eventually("openssl to listen", Duration::from_secs(5), || {
            netns.enter(|| {
                let table = std::fs::read_to_string("/proc/thread-self/net/tcp6")?
                    + &std::fs::read_to_string("/proc/thread-self/net/tcp")?;
                Ok(table.contains(&format!(":{port:04X} ")).then_some(()))
            })
        })?;
        Ok(server)
    }

    fn stream(&mut self) -> Result<tokio::net::UnixStream> {
        let ours = self.ours.take().context("taken already")?;
        ours.set_nonblocking(true)?;
        Ok(tokio::net::UnixStream::from_std(ours)?)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), work).await? })
}

/// CONNECT to `authority`, `data` into the tunnel; the status and what came back.
async fn connect(
    stream: tokio::net::UnixStream,
    authority: &str,
    headers: &[(&str, &str)],
    data: &str,
) -> Result<(StatusCode, String)> {
    let (mut send, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(Method::CONNECT).uri(authority);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send = send.ready().await?;
    let (response, mut body) = send.send_request(request.body(())?, false)?;
    let response: Response<h2::RecvStream> = response.await?;
    let status = response.status();
    let mut received = Vec::new();
    if status == StatusCode::OK {
        body.send_data(Bytes::from(data.to_owned()), true)?;
        let mut incoming = response.into_body();
        while let Some(chunk) = incoming.data().await {
            let chunk = chunk?;
            incoming.flow_control().release_capacity(chunk.len())?;
            received.extend_from_slice(&chunk);
        }
    }
    driver.abort();
    Ok((status, String::from_utf8_lossy(&received).into_owned()))
}

const GET: &str = "GET / HTTP/1.1\r\nHost: dead\r\n\r\n";

/// CONNECT to `authority`, and one request in the tunnel; what came until there was silence.
async fn ask(stream: tokio::net::UnixStream, authority: &str, request: &str) -> Result<String> {
    let (send, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let connect = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
    let (response, mut tunnel) = send.ready().await?.send_request(connect, false)?;
    let response = response.await?;
    ensure!(response.status() == StatusCode::OK, "{}", response.status());
    tunnel.send_data(Bytes::from(request.to_owned()), false)?;
    let (mut incoming, mut received) = (response.into_body(), Vec::new());
    while let Ok(Some(chunk)) = tokio::time::timeout(Duration::from_secs(2), incoming.data()).await
    {
        received.extend_from_slice(&chunk?);
    }
    driver.abort();
    Ok(String::from_utf8_lossy(&received).into_owned())
}

#[test]
fn a_foreign_hbone_client_reaches_a_pod_under_its_identity() -> Result<()> {
    let p = pair()?;
    let outside = p.mesh.pod(PodSpec::new("ztunnel").namespace("legacy"))?;
    p.mesh.sync()?;
    let dir = p.mesh.dir().join("foreign");
    let id = "spiffe://cluster.local/ns/other/sa/caller";
    let me = issue(&p.mesh.ca_dir(), &dir, "caller", id)?;
    let hbone = SocketAddr::new(p.server.ip(), 15008);
    let authority = format!("{}:9000", p.server.ip());
    let forwarded = format!("for={}", outside.ip());
    let headers = [
        ("forwarded", forwarded.as_str()),
        ("baggage", "k8s.namespace.name=other,k8s.deployment.name=caller"),
    ];
    let before = p.mesh.metrics()?;
    let call = |name: &str, authority: &str| -> Result<(StatusCode, String)> {
        let mut tls = Tls::client(&outside.netns, hbone, "h2", &me, dir.join(name))?;
        let outcome =
            block_on(async { connect(tls.stream()?, authority, &headers, "hello hbone\n").await });
        outcome.with_context(|| tls.said())
    };
    let (status, received) = call("one.log", &authority)?;
    ensure!(status == StatusCode::OK, "{status}");
    ensure!(received.contains("hello hbone") && received.ends_with("bye\n"), "{received}");
    let peer = outside.ip().to_string();
    ensure!(received.contains(&peer), "the application sees {received}");
    let labels = [("reporter", "destination"), ("source_principal", id)];
    p.mesh.counted(&before, "istio_tcp_connections_opened_total", &labels, 1.0)?;
    p.mesh.logged(1, "the caller", |e| e.text("source_principal") == id)?;
    // HTTP to an application that is not there: what nodes tell each other is not for this peer.
    let dead = ServiceSpec::new("dead").port("http", 80, 8090).selector(&[("app", "server")]);
    p.mesh.service(dead);
    p.mesh.sync()?;
    let mut tls = Tls::client(&outside.netns, hbone, "h2", &me, dir.join("dead.log"))?;
    let authority_dead = format!("{}:8090", p.server.ip());
    let answer = block_on(async { ask(tls.stream()?, &authority_dead, GET).await })?;
    ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    ensure!(!answer.to_lowercase().contains("fairlead"), "{answer}");
    // Its policy holds here too, and it speaks for this pod only.
    let (status, _) = call("two.log", &format!("{}:9000", p.client.ip()))?;
    ensure!(
        status.is_client_error() || status.is_server_error(),
        "a tunnel to another pod: {status}"
    );
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: default}\nspec:\n  action: DENY\n  rules:\n  - from: [{source: {namespaces: [other]}}]\n";
    p.mesh.apply("deny", deny)?;
    let (status, _) = call("three.log", &authority)?;
    ensure!(status.is_client_error(), "denied: {status}");
    p.mesh.counted(
        &before,
        "istio_tcp_connections_failed_total",
        &[("response_flags", "DENY")],
        1.0,
    )?;
    Ok(())
}

#[test]
fn certificates_of_another_authority_or_none_are_refused() -> Result<()> {
    let p = pair()?;
    let outside = p.mesh.pod(PodSpec::new("stranger").namespace("legacy"))?;
    p.mesh.sync()?;
    let dir = p.mesh.dir().join("foreign");
    foreign_ca(&dir)?;
    let id = "spiffe://cluster.local/ns/default/sa/client";
    let stranger = issue(&dir, &dir, "stranger", id)?;
    let elsewhere = issue(
        &p.mesh.ca_dir(),
        &dir,
        "elsewhere",
        "spiffe://elsewhere.example/ns/default/sa/client",
    )?;
    let authority = format!("{}:9000", p.server.ip());
    let before = p.mesh.metrics()?;
    for (name, me) in [("stranger", &stranger), ("elsewhere", &elsewhere)] {
        for (port, alpn) in [(15008, "h2"), (9000, "fairlead/1")] {
            let to = SocketAddr::new(p.server.ip(), port);
            let mut tls =
                Tls::client(&outside.netns, to, alpn, me, dir.join(format!("{name}{port}")))?;
            let outcome = block_on(async { connect(tls.stream()?, &authority, &[], "x\n").await });
            let refused = match &outcome {
                Ok((status, received)) => *status != StatusCode::OK && received.is_empty(),
                Err(_) => true,
            };
            ensure!(refused, "{name} at {port}: {outcome:?}");
        }
    }
    let failed = |flags: &str| -> Result<f64> {
        let labels = [("response_flags", flags)];
        let name = "istio_tcp_connections_failed_total";
        Ok(p.mesh.metrics()?.sum(name, &labels) - before.sum(name, &labels))
    };
    // Each of the four, by what was wrong: the certificate, or what is in it.
    eventually("all four to be counted", Duration::from_secs(10), || {
        let (tls, identity) = (failed("TLS_FAILURE")?, failed("IDENTITY_ERROR")?);
        ensure!(tls + identity >= 4.0, "TLS_FAILURE {tls}, IDENTITY_ERROR {identity}");
        Ok(Some(()))
    })?;
    p.mesh.logged(1, "the stranger", |e| {
        e.mentions(&outside.ip().to_string()) && !e.text("reason").is_empty()
    })?;
    ensure!(p.client.get("http://server/", &[])?.status() == 200);
    Ok(())
}

/// Row 11.7: a handshake that fails (here without a certificate, and by an end in the middle) is
/// counted as TLS_FAILURE and logged with the reason.
#[test]
fn failed_handshakes_are_counted_and_logged() -> Result<()> {
    let p = pair()?;
    let outside = p.mesh.pod(PodSpec::new("stranger").namespace("legacy"))?;
    p.mesh.sync()?;
    let labels = [
        ("response_flags", "TLS_FAILURE"),
        ("reporter", "destination"),
        ("destination_workload", "server"),
    ];
    for (port, alpn) in [(9000, "fairlead/1"), (15008, "h2")] {
        let before = p.mesh.metrics()?;
        let to = SocketAddr::new(p.server.ip(), port);
        let log = p.mesh.dir().join(format!("bare{port}"));
        let args = ["s_client", "-quiet", "-connect", &to.to_string(), "-alpn", alpn, "-tls1_3"];
        let mut bare = Tls::start(&outside.netns, &args, log)?;
        let outcome = block_on(async { connect(bare.stream()?, "10.0.0.1:1", &[], "x").await });
        ensure!(outcome.is_err(), "port {port}: {outcome:?}");
        let name = "istio_tcp_connections_failed_total";
        let counted = p.mesh.counted(&before, name, &labels, 1.0)?;
        ensure!(counted == 1.0, "port {port}: {counted}");
        let entry = p.mesh.logged(1, "the failed handshake", |e| {
            let local = e.text("downstream_local_address");
            local.ends_with(&format!(":{port}")) && e.text("reason").contains("TLS handshake")
        })?;
        ensure!(entry.text("reason").contains("certificate"), "{}", entry.0);
        ensure!(entry.text("response_flags") == "DPE", "{}", entry.0);
        ensure!(entry.mentions(&outside.ip().to_string()), "{}", entry.0);
    }
    ensure!(p.client.get("http://server/", &[])?.status() == 200);
    Ok(())
}

/// A client's node, and a pod of a node without a Fairlead daemon, where a foreign proxy serves.
fn towards(name: &str, uri: &str) -> Result<(Mesh, String, StatusCode)> {
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let remote =
        mesh.pod(PodSpec::new("remote").on(1).annotation("fairlead.io/transport", "hbone"))?;
    mesh.service(service("remote"));
    mesh.sync()?;
    mesh.spawn_daemon(0)?;
    mesh.wait_ready(0)?;
    let dir = mesh.dir().join("foreign");
    let me = issue(&mesh.ca_dir(), &dir, name, uri)?;
    let root = mesh.ca_dir().join("root-cert.pem");
    let mut tls = Tls::server(&remote.netns, 15008, &me, &root, dir.join("server.log"))?;
    let stream = tls.ours.take().context("no socket")?;
    let server = std::thread::spawn(move || -> Result<String> {
        block_on(async move {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::UnixStream::from_std(stream)?;
            let mut connection = h2::server::handshake(stream).await?;
            let (request, mut respond) = connection.accept().await.context("no stream")??;
            let told = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
            let mut send = respond.send_response(Response::new(()), false)?;
            send.send_data(Bytes::from_static(b"hello from afar\n"), true)?;
            let _ = tokio::time::timeout(Duration::from_millis(500), connection.accept()).await;
            Ok(told)
        })
    });
    let sent = client.send("remote:9000", "x\\n", &["--half-close", "--quiet-ms", "3000"])?;
    let status = if sent.received().contains("hello from afar") {
        StatusCode::OK
    } else {
        StatusCode::FORBIDDEN
    };
    drop(tls);
    let told = match server.join() {
        Ok(Ok(told)) => told,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "panicked".to_owned(),
    };
    Ok((mesh, told, status))
}

#[test]
fn a_foreign_hbone_server_is_reached_as_ambient_reaches_it() -> Result<()> {
    let (mesh, told, status) = towards("remote", "spiffe://cluster.local/ns/default/sa/remote")?;
    ensure!(status == StatusCode::OK, "{told}: {:?}", mesh.log(0).last().map(|e| e.0.to_string()));
    ensure!(told.starts_with("CONNECT ") && told.contains(":9000"), "{told}");
    ensure!(told.contains("forwarded") && told.contains("baggage"), "{told}");
    Ok(())
}

#[test]
fn a_server_with_another_name_is_refused_with_the_reason() -> Result<()> {
    let (mesh, _, status) = towards("impostor", "spiffe://cluster.local/ns/default/sa/impostor")?;
    ensure!(status != StatusCode::OK, "an impostor was trusted");
    let entry = mesh.logged(0, "the impostor", |e| e.text("reason").contains("impostor"))?;
    ensure!(entry.text("reason").contains("sa/remote"), "whom was it to be? {}", entry.0);
    let failed = mesh.node(0);
    let metrics = fairlead_tests::daemon::metrics(&failed.netns)?;
    let seen =
        metrics.sum("istio_tcp_connections_failed_total", &[("response_flags", "IDENTITY_ERROR")]);
    ensure!(seen >= 1.0, "IDENTITY_ERROR is {seen}");
    Ok(())
}

#[test]
fn many_connections_share_few_sessions() -> Result<()> {
    let p = pair()?;
    ensure!(p.client.get("http://server/", &[])?.status() == 200);
    let capture = p.mesh.capture()?;
    let load = p.client.load("tcp://server:9000", &["-n", "1000", "-c", "32"])?;
    ensure!(load.count("ok") == 1000, "{}", load.0);
    let wire = capture.stop()?;
    let ends = [&p.client.ips[..], &p.server.ips].concat();
    let sessions = wire.assert_all_tls(&ends)?;
    ensure!(sessions <= 8, "{sessions} TLS sessions for 1000 connections");
    Ok(())
}
