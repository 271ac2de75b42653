//! `istio.v1.auth`: Istio's certificate service.

crate::generated!("istio.v1.auth");

/// Key in [`IstioCertificateRequest::metadata`]: the SPIFFE identity that a node asks for on
/// behalf of a pod (as ztunnel sends it).
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
