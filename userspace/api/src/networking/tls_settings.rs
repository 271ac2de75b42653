//! Istio `networking/v1.ClientTLSSettings`.

use serde::Deserialize;

/// `ClientTLSSettings`: TLS towards a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTlsSettings {
    /// Whether and how TLS is used.
    pub mode: ClientTlsMode,
    /// File of the client certificate; MUTUAL only.
    pub client_certificate: String,
    /// File of its key; MUTUAL only.
    pub private_key: String,
    /// File of the CAs that verify the server.
    pub ca_certificates: String,
    /// Secret that holds certificate, key and CAs.
    pub credential_name: String,
    /// Names of which the server's certificate must carry one.
    pub subject_alt_names: Vec<String>,
    /// Server name that is sent (SNI).
    pub sni: String,
    /// Do not verify the server.
    #[cfg_attr(feature = "schema", schemars(transform = crate::schema::nullable))]
    pub insecure_skip_verify: Option<bool>,
    /// File of revoked certificates.
    pub ca_crl: String,
}

/// `ClientTLSSettings.TLSmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientTlsMode {
    /// No TLS.
    #[default]
    Disable,
    /// TLS, no client certificate.
    Simple,
    /// TLS with a client certificate.
    Mutual,
    /// mTLS with the mesh identity.
    IstioMutual,
}
