//! Envoy as Istio deploys it: one beside the client, one beside the server, mTLS between them,
//! iptables in front of each. Same certificates (ECDSA P-256), TLS 1.3, worker threads as
//! Istio's default of two.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};

use crate::serve;

/// Where Istio's sidecar takes outbound connections.
const OUTBOUND: u16 = 15001;
/// Where Istio's sidecar takes inbound connections.
const INBOUND: u16 = 15006;
/// The group that iptables lets pass: the proxy's own connections.
pub(crate) const GROUP: u32 = 1337;

/// Which side of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// The iptables rules of this side, as Istio's init container writes them (shortened to what
    /// this traffic needs).
    pub(crate) fn iptables(self) -> Vec<Vec<String>> {
        let words = |line: String| line.split(' ').map(str::to_owned).collect();
        match self {
            Self::Client => vec![
                words(format!("-t nat -A OUTPUT -p tcp -m owner --gid-owner {GROUP} -j RETURN")),
                words("-t nat -A OUTPUT -p tcp -d 127.0.0.1/32 -j RETURN".to_owned()),
                words(format!("-t nat -A OUTPUT -p tcp -j REDIRECT --to-ports {OUTBOUND}")),
            ],
            Self::Server => {
                vec![words(format!("-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports {INBOUND}"))]
            }
        }
    }
}

/// Writes certificates and both configurations into `dir`; the configuration files by side.
pub(crate) fn prepare(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    certificates(dir)?;
    for side in [Side::Client, Side::Server] {
        let file = config_file(dir, side);
        fs::write(&file, serde_json::to_vec_pretty(&bootstrap(dir, side))?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// The configuration file of a side.
pub(crate) fn config_file(dir: &Path, side: Side) -> PathBuf {
    dir.join(format!("{}.json", side.name()))
}

fn certificates(dir: &Path) -> Result<()> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_cert = root.self_signed(&root_key)?;
    fs::write(dir.join("root.pem"), root_cert.pem())?;
    let issuer = Issuer::from_params(&root, &root_key);
    for side in [Side::Client, Side::Server] {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(Vec::new())?;
        // A name of its own: one that equals the issuer's would read as self-signed.
        leaf.distinguished_name.push(DnType::CommonName, side.name());
        let id = format!("spiffe://cluster.local/ns/bench/sa/{}", side.name());
        leaf.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        let cert = leaf.signed_by(&key, &issuer)?;
        fs::write(dir.join(format!("{}.pem", side.name())), cert.pem())?;
        fs::write(dir.join(format!("{}.key", side.name())), key.serialize_pem())?;
    }
    Ok(())
}

fn tls(dir: &Path, side: Side) -> Value {
    let file = |name: String| json!({"filename": dir.join(name)});
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": file(format!("{}.pem", side.name())),
            "private_key": file(format!("{}.key", side.name())),
        }],
        "validation_context": {"trusted_ca": file("root.pem".to_owned())},
        "alpn_protocols": ["istio"],
    })
}

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const NET: &str = "type.googleapis.com/envoy.extensions.filters.network";

fn bootstrap(dir: &Path, side: Side) -> Value {
    let cluster = match side {
        Side::Client => json!({
            "name": "upstream", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "10s",
            "transport_socket": {"name": "tls", "typed_config": {
                "@type": format!("{TLS}.UpstreamTlsContext"),
                "common_tls_context": tls(dir, side), "sni": "bench",
            }},
        }),
        Side::Server => json!({
            "name": "upstream", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "10s",
            "upstream_bind_config": {"source_address": {"address": "127.0.0.6", "port_value": 0}},
        }),
    };
    let port = match side {
        Side::Client => OUTBOUND,
        Side::Server => INBOUND,
    };
    let socket = (side == Side::Server).then(|| {
        json!({"name": "tls", "typed_config": {
            "@type": format!("{TLS}.DownstreamTlsContext"),
            "common_tls_context": tls(dir, side), "require_client_certificate": true,
        }})
    });
    let chain = |name: &str, filter: Value, dst: Option<u16>| {
        let mut chain = json!({"name": name, "filters": [filter]});
        if let Some(dst) = dst {
            chain["filter_chain_match"] = json!({"destination_port": dst});
        }
        if let Some(socket) = &socket {
            chain["transport_socket"] = socket.clone();
        }
        chain
    };
    json!({
        "static_resources": {
            "listeners": [{
                "name": "capture",
                "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
                "listener_filters": [{"name": "original_dst", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"}}],
                "filter_chains": [
                    chain("http", http_filter(), Some(serve::HTTP)),
                    chain("tcp", tcp_filter(), None),
                ],
            }],
            "clusters": [cluster],
        },
    })
}

fn http_filter() -> Value {
    json!({"name": "hcm", "typed_config": {
        "@type": format!("{NET}.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "http",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}]}]},
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    }})
}

fn tcp_filter() -> Value {
    json!({"name": "tcp", "typed_config": {
        "@type": format!("{NET}.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "tcp", "cluster": "upstream",
    }})
}
