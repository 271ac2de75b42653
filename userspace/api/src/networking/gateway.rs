//! Istio `networking/v1.Gateway`.

use serde::Deserialize;

use crate::{Object, StringMap};

/// A load balancer at the edge of the mesh.
pub type Gateway = Object<GatewaySpec>;

/// `spec` of a [`Gateway`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// What the gateway serves.
    pub servers: Vec<Server>,
    /// Labels of the pods that serve it.
    pub selector: StringMap,
}

/// `Server`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("port hosts")))]
pub struct Server {
    /// Port to listen on.
    pub port: Option<Port>,
    /// Address or socket to bind.
    pub bind: String,
    /// Names served: `namespace/name`, wildcards allowed.
    pub hosts: Vec<String>,
    /// How TLS is handled.
    pub tls: Option<ServerTlsSettings>,
    /// Default destination of the protocol; not implemented by Istio.
    pub default_endpoint: String,
    /// Name, unique among all servers.
    pub name: String,
}

/// `Port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::required("number protocol name")))]
pub struct Port {
    /// Number of the port.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::port))]
    pub number: u32,
    /// Protocol: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS.
    pub protocol: String,
    /// Name of the port.
    pub name: String,
    /// Deprecated, and without effect.
    pub target_port: u32,
}

/// `ServerTLSSettings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schema", schemars(transform = crate::schema::exclusive("credentialName credentialNames tlsCertificates", "only one of credentialName, credentialNames and tlsCertificates can be set")))]
pub struct ServerTlsSettings {
    /// Answer plain HTTP with a redirect to HTTPS.
    pub https_redirect: bool,
    /// What is done with TLS.
    pub mode: ServerTlsMode,
    /// File of the server certificate.
    pub server_certificate: String,
    /// File of its key.
    pub private_key: String,
    /// File of the CAs that verify clients.
    pub ca_certificates: String,
    /// File of revoked certificates.
    pub ca_crl: String,
    /// Secret that holds certificate and key.
    pub credential_name: String,
    /// Secrets that hold certificates and keys.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2)))]
    pub credential_names: Vec<String>,
    /// Secret or ConfigMap that holds the CAs that verify clients.
    pub ca_cert_credential_name: String,
    /// Certificates and keys of several kinds (such as RSA and ECDSA), as files.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 2)))]
    pub tls_certificates: Vec<TlsCertificate>,
    /// Names of which the client's certificate must carry one.
    pub subject_alt_names: Vec<String>,
    /// SPKI hashes of accepted client certificates.
    pub verify_certificate_spki: Vec<String>,
    /// Hashes of accepted client certificates.
    pub verify_certificate_hash: Vec<String>,
    /// Least version of TLS.
    pub min_protocol_version: TlsProtocolVersion,
    /// Greatest version of TLS.
    pub max_protocol_version: TlsProtocolVersion,
    /// Cipher suites that are offered.
    pub cipher_suites: Vec<String>,
    /// Do not verify clients.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub insecure_skip_verify: Option<bool>,
}

/// `ServerTLSSettings.TLSCertificate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct TlsCertificate {
    /// File of the server certificate.
    pub server_certificate: String,
    /// File of its key.
    pub private_key: String,
    /// File of the CAs that verify clients.
    pub ca_certificates: String,
}

/// `ServerTLSSettings.TLSmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    /// By SNI to a VirtualService, not terminated.
    #[default]
    Passthrough,
    /// Terminated.
    Simple,
    /// Terminated, with a client certificate.
    Mutual,
    /// By SNI to the service named in it.
    AutoPassthrough,
    /// Mesh identity on both sides.
    IstioMutual,
    /// Terminated, with a client certificate that may be absent.
    OptionalMutual,
}

/// `ServerTLSSettings.TLSProtocol`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum TlsProtocolVersion {
    /// The proxy's default.
    #[default]
    #[serde(rename = "TLS_AUTO")]
    Auto,
    /// TLS 1.0.
    #[serde(rename = "TLSV1_0")]
    V1_0,
    /// TLS 1.1.
    #[serde(rename = "TLSV1_1")]
    V1_1,
    /// TLS 1.2.
    #[serde(rename = "TLSV1_2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "TLSV1_3")]
    V1_3,
}
