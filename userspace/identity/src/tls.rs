//! TLS as the mesh speaks it: 1.3 only, both sides authenticated, ALPN fixed per wire form, no
//! resumption (an identity is proven by every session; sessions are few and live long).
//!
//! Configurations come only from a [`WorkloadCertificate`](crate::WorkloadCertificate), so one
//! without a certificate, a trust bundle or an expected peer cannot be expressed.

use std::sync::{Arc, LazyLock};

use fairlead_types::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    PeerIncompatible, ServerConfig, SignatureScheme, version,
};

use crate::svid::{PeerSvid, SvidError};
use crate::trust::TrustBundle;

/// ALPN of the native transport, version 1.
pub const ALPN_NATIVE: &[u8] = b"fairlead/1";
/// ALPN of HBONE.
pub const ALPN_HBONE: &[u8] = b"h2";

/// The wire form between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wire {
    /// Fairlead's own: streams over TLS on the application's port.
    Native,
    /// Istio ambient's HTTP/2 CONNECT on port 15008.
    Hbone,
}

impl Wire {
    /// The protocol name in the TLS handshake.
    #[must_use]
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Native => ALPN_NATIVE,
            Self::Hbone => ALPN_HBONE,
        }
    }
}

/// The wire form that a handshake agreed on.
#[must_use]
pub fn negotiated_wire(alpn: Option<&[u8]>) -> Option<Wire> {
    match alpn {
        Some(ALPN_NATIVE) => Some(Wire::Native),
        Some(ALPN_HBONE) => Some(Wire::Hbone),
        _ => None,
    }
}

/// Why a peer that holds a validly signed certificate is still not the right one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefusal {
    /// The certificate is no SVID of this mesh's form.
    #[error("peer certificate: {0}")]
    NotSvid(#[from] SvidError),
    /// The identity belongs to somebody else's mesh.
    #[error("peer {id} is of the foreign trust domain {:?}; accepted: {}", .id.trust_domain().as_str(), names(.accepted))]
    ForeignTrustDomain {
        /// Who the peer is.
        id: SpiffeId,
        /// Which trust domains this mesh accepts.
        accepted: Arc<[TrustDomain]>,
    },
    /// The server is a workload of the mesh, but not the one that was asked for.
    #[error("peer is {found}, expected {}", names(.expected))]
    Unexpected {
        /// Who answered.
        found: SpiffeId,
        /// Who should have.
        expected: Arc<[SpiffeId]>,
    },
}

fn names<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

impl From<PeerRefusal> for rustls::Error {
    fn from(refusal: PeerRefusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}

/// A TLS error in words that say who is to blame; [`PeerRefusal`]s come out unwrapped.
#[must_use]
pub fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.to_string()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the peer's certificate has expired".into(),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "the peer's certificate is not valid yet (clock skew?)".into(),
        // A chain to a root of the same name but another key fails at its signature.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "the peer's certificate is not signed by a root of this mesh".into(),
        rustls::Error::InvalidCertificate(other) => {
            format!("the peer's certificate is refused: {other}")
        }
        rustls::Error::NoCertificatesPresented => "the peer presented no certificate".into(),
        rustls::Error::AlertReceived(alert) => {
            format!("the peer refused the handshake: alert {alert:?}")
        }
        rustls::Error::NoApplicationProtocol => {
            "the peer offers neither fairlead/1 nor h2 (ALPN)".into()
        }
        rustls::Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "the peer does not speak TLS 1.3".into(),
        other => other.to_string(),
    }
}

/// AES-128-GCM first (what this hardware does fastest), X25519MLKEM768 first among the groups.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
        aws_lc_rs::kx_group::SECP384R1,
    ];
    Arc::new(provider)
});

pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

pub(crate) fn server_config(
    key: &Arc<CertifiedKey>,
    trust: &TrustBundle,
    wire: Wire,
) -> Result<Arc<ServerConfig>, TlsConfigError> {
    let webpki =
        WebPkiClientVerifier::builder_with_provider(trust.roots().clone(), provider().clone())
            .build()?;
    let verifier = Arc::new(ClientSvidVerifier { webpki, trust: trust.clone() });
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![wire.alpn().to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

pub(crate) fn client_config(
    key: &Arc<CertifiedKey>,
    trust: &TrustBundle,
    wire: Wire,
    expected: Arc<[SpiffeId]>,
) -> Result<Arc<ClientConfig>, TlsConfigError> {
    if expected.is_empty() {
        return Err(TlsConfigError::NobodyExpected);
    }
    let verifier = Arc::new(ServerSvidVerifier { trust: trust.clone(), expected });
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![wire.alpn().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// Why no TLS configuration can be made. To blame: this node's certificate or the caller.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    /// A client has to know whom it wants to reach.
    #[error("no identity is expected of the peer")]
    NobodyExpected,
    /// The roots cannot verify anybody.
    #[error("the trust roots are not usable: {0}")]
    Roots(#[from] VerifierBuilderError),
    /// The TLS library refused.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

fn identity_of(leaf: &CertificateDer<'_>, trust: &TrustBundle) -> Result<SpiffeId, PeerRefusal> {
    let id = PeerSvid::from_der(leaf)?.id;
    if !trust.accepts(id.trust_domain()) {
        return Err(PeerRefusal::ForeignTrustDomain { id, accepted: trust.domains().into() });
    }
    Ok(id)
}

/// Verifies a chain of this node's own as its peers will.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trust: &TrustBundle,
) -> Result<(), rustls::Error> {
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        trust.roots(),
        intermediates,
        UnixTime::now(),
        provider().signature_verification_algorithms.all,
    )
}

/// Verifies a server: chain, validity, usage, SPIFFE form, trust domain, expected identity.
#[derive(Debug)]
struct ServerSvidVerifier {
    trust: TrustBundle,
    expected: Arc<[SpiffeId]>,
}

impl ServerCertVerifier for ServerSvidVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            self.trust.roots(),
            intermediates,
            now,
            provider().signature_verification_algorithms.all,
        )?;
        let found = identity_of(end_entity, &self.trust)?;
        if !self.expected.contains(&found) {
            return Err(PeerRefusal::Unexpected { found, expected: self.expected.clone() }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies a client: chain, validity, usage, SPIFFE form, trust domain.
#[derive(Debug)]
struct ClientSvidVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    trust: TrustBundle,
}

impl ClientCertVerifier for ClientSvidVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A hint would only tell strangers what the mesh's CA is called.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, now)?;
        identity_of(end_entity, &self.trust)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
