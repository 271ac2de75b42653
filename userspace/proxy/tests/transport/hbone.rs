//! HBONE against a client and a server that share no code with the transport: `h2` over
//! `tokio-rustls`, certificates straight from the CA's files, headers as ztunnel writes them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_identity::Wire;
use fairlead_proxy::transport::{RelayCounters, StreamMeta, TransportError, relay};
use fairlead_types::{ClientAddr, Refusal};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::{
    App, LOCALHOST, Node, Server, TestCa, echo_app, id, socket_pair, target, within,
};

/// The other implementation.
pub mod foreign {
    use super::*;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, UnixTime};
    use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};

    pub struct Identity {
        pub chain: Vec<CertificateDer<'static>>,
        pub key: PrivateKeyDer<'static>,
        pub roots: Arc<rustls::RootCertStore>,
    }

    /// A certificate for `name`, made here with rcgen and signed by the CA's files.
    pub fn identity(ca: &TestCa, name: &str) -> Identity {
        let read = |file: &str| std::fs::read_to_string(ca.dir().join(file)).unwrap();
        let ca_key = rcgen::KeyPair::from_pem(&read("ca-key.pem")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca-cert.pem"), ca_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().unwrap())];
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let pem = |text: &str| {
            use rustls::pki_types::pem::PemObject;
            CertificateDer::pem_slice_iter(text.as_bytes()).map(Result::unwrap).collect::<Vec<_>>()
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pem(&read("root-cert.pem")).remove(0)).unwrap();
        let chain = [vec![leaf.der().clone()], pem(&read("ca-cert.pem"))].concat();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Identity { chain, key, roots: Arc::new(roots) }
    }

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }

    pub fn client_config(me: Identity, alpn: &[&[u8]]) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_auth_cert(me.chain, me.key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config
    }

    pub fn server_config(me: Identity) -> ServerConfig {
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(me.roots, provider());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(me.chain, me.key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    pub async fn connect(
        config: ClientConfig,
        to: SocketAddr,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(to).await?;
        let name = ServerName::IpAddress(to.ip().into());
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// An h2 client on a verified connection; its driver runs by itself.
    pub async fn session(config: ClientConfig, to: SocketAddr) -> h2::client::SendRequest<Bytes> {
        let tls = connect(config, to).await.unwrap();
        let (send, connection) = h2::client::handshake(tls).await.unwrap();
        tokio::spawn(connection);
        send
    }

    /// For tests of the other side: it is the transport that has to verify.
    pub fn anybody() -> Arc<dyn ServerCertVerifier> {
        Arc::new(Anybody)
    }

    #[derive(Debug)]
    struct Anybody;

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    }
}

const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

fn connect_request(to: &str) -> Request<()> {
    Request::builder()
        .method(Method::CONNECT)
        .uri(to)
        .header(
            "baggage",
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.pod.name=sleep,\
             service.name=sleep,service.version=latest",
        )
        .header("forwarded", "for=127.0.0.1:55555;host=reviews.default.svc.cluster.local")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .body(())
        .unwrap()
}

async fn our_server(ca: &TestCa, app: Arc<App>) -> (Node, Server) {
    let node = Node::new(ca.ca.clone(), &[id("server")], Duration::from_secs(3600)).await;
    let server = Server::start(&node, id("server"), Wire::Hbone, app).await;
    (node, server)
}

#[tokio::test]
async fn a_foreign_client_reaches_an_application_on_any_port_of_the_pod() {
    let ca = TestCa::new();
    let app = App::relaying_to(echo_app().await);
    let (_node, server) = our_server(&ca, app.clone()).await;
    let config = foreign::client_config(foreign::identity(&ca, CLIENT), &[b"h2"]);
    let mut session = foreign::session(config, server.addr).await.ready().await.unwrap();
    let (response, mut send) =
        session.send_request(connect_request("127.0.0.1:9080"), false).unwrap();
    let response = within("response", response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().is_empty(), "{:?}", response.headers());
    send.send_data("hello over hbone".into(), true).unwrap();
    let mut body = response.into_body();
    let mut got = Vec::new();
    while let Some(chunk) = within("data", body.data()).await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        got.extend_from_slice(&chunk);
    }
    assert_eq!(got, b"hello over hbone");
    let seen = app.seen.lock().unwrap()[0].clone();
    assert_eq!(seen.peer.identity, id("client"));
    assert_eq!(seen.dst.0, "127.0.0.1:9080".parse::<SocketAddr>().unwrap());
    assert_eq!(seen.client, ClientAddr("127.0.0.1:55555".parse().unwrap()));
    assert_eq!(seen.service.unwrap(), "reviews.default.svc.cluster.local");
    assert!(seen.baggage.unwrap().to_str().unwrap().starts_with("k8s.cluster.name=Kubernetes,"));
}

#[tokio::test]
async fn a_foreign_client_is_told_no_where_the_answer_is_no() {
    let ca = TestCa::new();
    let app = Arc::new(App::refusing(Refusal::Deny));
    let (_node, server) = our_server(&ca, app.clone()).await;
    let config = foreign::client_config(foreign::identity(&ca, CLIENT), &[b"h2"]);
    let session = foreign::session(config, server.addr).await;
    for (request, status) in [
        // Policy, as ztunnel answers it.
        (connect_request("127.0.0.1:9080"), StatusCode::UNAUTHORIZED),
        // Another pod's address; a name; nothing to connect to.
        (connect_request("10.9.9.9:9080"), StatusCode::BAD_REQUEST),
        (connect_request("reviews.default:9080"), StatusCode::BAD_REQUEST),
        // HBONE carries connections only.
        (Request::get("http://reviews/").body(()).unwrap(), StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let mut session = session.clone().ready().await.unwrap();
        let (response, _send) = session.send_request(request, false).unwrap();
        assert_eq!(within("response", response).await.unwrap().status(), status);
    }
    assert_eq!(app.seen.lock().unwrap().len(), 1);
    assert_eq!(app.refusals().len(), 3);
    assert!(app.refusals()[0].contains("not an address of this pod"));
}

/// A claim about somebody else's address is not believed.
#[tokio::test]
async fn a_forwarded_claim_does_not_change_the_client_address() {
    let ca = TestCa::new();
    let app = App::relaying_to(echo_app().await);
    let (_node, server) = our_server(&ca, app.clone()).await;
    let config = foreign::client_config(foreign::identity(&ca, CLIENT), &[b"h2"]);
    let mut session = foreign::session(config, server.addr).await.ready().await.unwrap();
    let mut request = connect_request("127.0.0.1:9080");
    request.headers_mut().insert("forwarded", "for=10.1.2.3".parse().unwrap());
    let (response, _send) = session.send_request(request, false).unwrap();
    assert_eq!(within("response", response).await.unwrap().status(), StatusCode::OK);
    assert_eq!(app.seen.lock().unwrap()[0].client.ip(), LOCALHOST);
}

/// A server that checks what our client writes, then echoes.
async fn foreign_server(ca: &TestCa) -> (SocketAddr, tokio::sync::mpsc::Receiver<Request<()>>) {
    let config = Arc::new(foreign::server_config(foreign::identity(ca, SERVER)));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, tx) = (TlsAcceptor::from(config.clone()), tx.clone());
            tokio::spawn(async move {
                let tls = acceptor.accept(tcp).await.unwrap();
                let mut connection = h2::server::handshake(tls).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let (parts, mut body) = request.into_parts();
                    let denied = parts.uri.port_u16() == Some(1);
                    tx.send(Request::from_parts(parts, ())).await.unwrap();
                    if denied {
                        let no = Response::builder().status(503).body(()).unwrap();
                        respond.send_response(no, true).unwrap();
                        continue;
                    }
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    tokio::spawn(async move {
                        while let Some(Ok(chunk)) = body.data().await {
                            body.flow_control().release_capacity(chunk.len()).unwrap();
                            send.send_data(chunk, false).unwrap();
                        }
                        send.send_data(Bytes::new(), true).unwrap();
                    });
                }
            });
        }
    });
    (addr, rx)
}

#[tokio::test]
async fn our_client_reaches_a_foreign_server() {
    let ca = TestCa::new();
    let (addr, mut requests) = foreign_server(&ca).await;
    let node = Node::new(ca.ca.clone(), &[id("client")], Duration::from_secs(3600)).await;
    let to = fairlead_proxy::transport::Target::new(
        Wire::Hbone,
        Arc::new(crate::support::PlainPod(1)),
        id("client"),
        addr,
        "10.4.0.7:9080".parse().unwrap(),
        [id("server")].into(),
    );
    let meta = StreamMeta {
        client: ClientAddr("127.0.0.1:4321".parse().unwrap()),
        baggage: Some(HeaderValue::from_static("k8s.cluster.name=Kubernetes")),
        service: Some(HeaderValue::from_static("reviews.default.svc.cluster.local")),
    };
    let tunnel = within("tunnel", node.transport.tunnel(&to, &meta)).await.unwrap();
    let (mut app, proxy) = socket_pair().await;
    let relay =
        tokio::spawn(
            async move { relay(proxy, Bytes::new(), tunnel, &RelayCounters::default()).await },
        );
    let sent = vec![42; 300_000];
    let (mut read, mut write) = app.split();
    let mut got = Vec::new();
    within("echo", async {
        tokio::join!(
            async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            },
            async { read.read_to_end(&mut got).await.unwrap() }
        )
    })
    .await;
    assert!(got == sent);
    within("relay", relay).await.unwrap();

    let request = requests.recv().await.unwrap();
    assert_eq!(request.method(), Method::CONNECT);
    assert_eq!(request.uri().to_string(), "10.4.0.7:9080");
    let headers = request.headers();
    assert_eq!(headers["forwarded"], "for=127.0.0.1:4321;host=reviews.default.svc.cluster.local");
    assert_eq!(headers["baggage"], "k8s.cluster.name=Kubernetes");
    assert!(headers.keys().all(|n| !n.as_str().starts_with("fairlead-")), "{headers:?}");
}

#[tokio::test]
async fn a_foreign_servers_refusal_is_an_error_with_its_status() {
    let ca = TestCa::new();
    let (addr, _requests) = foreign_server(&ca).await;
    let node = Node::new(ca.ca.clone(), &[id("client")], Duration::from_secs(3600)).await;
    let to = fairlead_proxy::transport::Target::new(
        Wire::Hbone,
        Arc::new(crate::support::PlainPod(1)),
        id("client"),
        addr,
        "10.4.0.7:1".parse().unwrap(),
        [id("server")].into(),
    );
    let meta = crate::support::meta();
    let error = within("refusal", node.transport.tunnel(&to, &meta)).await.err().unwrap();
    let TransportError::Refused { status, refusal: None } = error else { panic!("{error}") };
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_foreign_server_with_the_wrong_name_is_refused() {
    let ca = TestCa::new();
    let (addr, _requests) = foreign_server(&ca).await;
    let node = Node::new(ca.ca.clone(), &[id("client")], Duration::from_secs(3600)).await;
    let to = target(Wire::Hbone, id("client"), addr, &[id("ratings")]);
    let meta = crate::support::meta();
    let error = within("refusal", node.transport.tunnel(&to, &meta)).await.err().unwrap();
    assert!(error.to_string().contains("expected spiffe://cluster.local/ns/default/sa/ratings"));
}

/// Servers end sessions when they like (connection age, a new version). A stream that GOAWAY
/// overtakes goes to a new session, and its application notices nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_goaway_costs_no_stream() {
    let ca = TestCa::new();
    let config = Arc::new(foreign::server_config(foreign::identity(&ca, SERVER)));
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let sessions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = sessions.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let acceptor = TlsAcceptor::from(config.clone());
            tokio::spawn(async move {
                let tls = acceptor.accept(tcp).await.unwrap();
                let mut connection = h2::server::handshake(tls).await.unwrap();
                let mut taken = 0;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_response(Response::new(()), true).unwrap();
                    taken += 1;
                    if taken == 5 {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    let node = Node::new(ca.ca.clone(), &[id("client")], Duration::from_secs(3600)).await;
    let to = target(Wire::Hbone, id("client"), addr, &[id("server")]);
    let meta = crate::support::meta();
    for _ in 0..200 {
        within("tunnel", node.transport.tunnel(&to, &meta)).await.unwrap();
    }
    let sessions = sessions.load(std::sync::atomic::Ordering::Relaxed);
    assert!(sessions > 5, "only {sessions} sessions: the server did not end any");
}
