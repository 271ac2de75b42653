//! The client over TLS, on loopback.

use std::convert::Infallible;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const NAME: &str = "controller.test";

/// A server that says what it was asked; its address and its certificate.
async fn server(alpn: &[&[u8]]) -> (SocketAddr, CertificateDer<'static>) {
    let own = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
    let certificate = own.cert.der().clone();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a configuration");
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let asked = |request: Request<Incoming>| async move {
        let answer = Response::builder().header("asked", request.uri().to_string());
        let answer = answer.header("token", &request.headers()[AUTHORIZATION]);
        Ok::<_, Infallible>(answer.body(Body::empty()).expect("an answer"))
    };
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // Clients that go away are what some tests are about.
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            let serving = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serving.serve_connection(TokioIo::new(tls), service_fn(asked)));
        }
    });
    (address, certificate)
}

fn config(root: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root).expect("a root");
    client_config(roots).expect("a configuration")
}

async fn open(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
) -> Result<Channel, ClientError> {
    let peer = Peer {
        address,
        authority: Authority::from_static("controller.test:15012"),
        token: HeaderValue::from_static("Bearer abc"),
    };
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    Channel::open(peer, name, Arc::clone(config)).await
}

#[tokio::test]
async fn requests_say_whom_and_as_whom() {
    let (address, certificate) = server(&[b"h2"]).await;
    let mut channel = open(address, NAME, &config(certificate)).await.expect("a connection");
    assert_eq!((channel.address(), channel.is_closed()), (address, false));
    let mut other = channel.clone();
    for channel in [&mut channel, &mut other] {
        std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("it is ready");
        let request = Request::post("/a.B/C").body(Body::empty()).expect("a request");
        let answer = channel.call(request).await.expect("an answer");
        assert_eq!(answer.headers()["asked"], "https://controller.test:15012/a.B/C");
        assert_eq!(answer.headers()["token"], "Bearer abc");
    }
}

#[tokio::test]
async fn whoever_is_not_the_one_meant_is_not_called() {
    let (address, certificate) = server(&[b"h2"]).await;
    let (elsewhere, other) = server(&[]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let nobody = silent.local_addr().expect("an address");
    drop(silent);
    let (ours, others) = (config(certificate), config(other));
    for (address, name, config, why) in [
        (address, "another.test", &ours, "TLS: "),
        (address, NAME, &others, "TLS: "),
        (elsewhere, NAME, &others, "HTTP/2 (ALPN)"),
        (nobody, NAME, &ours, "refused"),
    ] {
        let error = open(address, name, config).await.expect_err("no connection").to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_not_waited_for() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address");
    let config = client_config(RootCertStore::empty()).expect("a configuration");
    let error = open(address, NAME, &config).await.expect_err("no connection").to_string();
    assert_eq!(error, "no connection within 3s");
}

#[test]
fn files_that_prove_nothing_are_named() {
    let path = std::env::temp_dir().join(format!("fairlead-token-{}", std::process::id()));
    let write = |text: &[u8]| std::fs::write(&path, text).expect("a file");
    let missing = bearer(Path::new("/nowhere/token")).expect_err("no file").to_string();
    assert!(missing.contains("/nowhere/token"), "{missing}");
    for bad in [&b""[..], b" \n", b"a\nb", &[b'a'; 70_000]] {
        write(bad);
        assert!(bearer(&path).is_err(), "{:?}", &bad[..bad.len().min(9)]);
    }
    write(b"abc.def\n");
    let value = bearer(&path).expect("a token");
    assert!(value == "Bearer abc.def" && value.is_sensitive());
    std::fs::remove_file(&path).expect("the file");
}
