//! What an application port speaks.

/// The application protocol of a service port, as Istio's protocol selection names it
/// (port name prefix, or `appProtocol`, which wins).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Nothing declared: detect from the first bytes of the client.
    #[default]
    Detect,
    /// HTTP/1.x (an h2 preface is recognised all the same).
    Http,
    /// HTTP/2 without TLS (`http2`, `kubernetes.io/h2c`).
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// gRPC-Web over HTTP/1.1.
    GrpcWeb,
    /// TLS of the application's own; passed through.
    Tls,
    /// HTTPS of the application's own; passed through.
    Https,
    /// Bytes.
    Tcp,
    /// A protocol in which the server speaks first (MySQL, SMTP, MongoDB…); bytes.
    ServerFirst,
}

impl AppProtocol {
    /// From a port's `appProtocol` and name (Istio "Protocol Selection": `appProtocol` wins;
    /// otherwise the name is `<protocol>` or `<protocol>-<suffix>`).
    #[must_use]
    pub fn select(app_protocol: Option<&str>, port_name: Option<&str>) -> Self {
        app_protocol
            .and_then(Self::from_app_protocol)
            .or_else(|| {
                let name = port_name?;
                // `grpc-web` is itself a protocol name with a dash.
                if name == "grpc-web" || name.starts_with("grpc-web-") {
                    return Some(Self::GrpcWeb);
                }
                Self::from_name(name.split_once('-').map_or(name, |(p, _)| p))
            })
            .unwrap_or_default()
    }

    fn from_app_protocol(value: &str) -> Option<Self> {
        match value {
            "kubernetes.io/h2c" => Some(Self::Http2),
            "kubernetes.io/ws" => Some(Self::Http),
            "kubernetes.io/wss" => Some(Self::Https),
            other => Self::from_name(other),
        }
    }

    fn from_name(value: &str) -> Option<Self> {
        Some(match value.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "http2" | "h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "tls" => Self::Tls,
            "https" => Self::Https,
            "tcp" | "udp" | "redis" => Self::Tcp,
            "mysql" | "mongo" | "smtp" | "ftp" | "postgres" => Self::ServerFirst,
            _ => return None,
        })
    }

    /// Whether the port is declared to carry HTTP.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether the server side of the port speaks HTTP/2 with prior knowledge.
    #[must_use]
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }

    /// Whether the first bytes have to be looked at.
    #[must_use]
    pub fn needs_detection(self) -> bool {
        self == Self::Detect
    }
}
