//! `istio.v1.auth`: Istio's certificate service.

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "made by prost from the documented proto file"
    )]
    tonic::include_proto!("istio.v1.auth");
}

pub use generated::*;

/// Key in [`IstioCertificateRequest::metadata`]: the SPIFFE identity that a node asks for on
/// behalf of a pod (as ztunnel sends it).
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
