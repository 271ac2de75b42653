//! Who a workload is, and how it proves it: keys made on the node, certificates from a CA,
//! rotation, and TLS configurations that cannot be half-configured.
//!
//! The rule that shapes the crate: **a key belongs to one service account, is made on the node
//! that runs a pod of that account, and is held only while such a pod is there**
//! ([`IdentityStore::retain`]). Nothing here hands a key out; what leaves is a TLS configuration
//! that is bound to one certificate and to the peers that are expected.

pub mod ca;
mod certificate;
#[doc(hidden)]
pub mod fuzz;
mod kept;
mod random;
mod renewal;
mod store;
mod svid;
mod tls;
mod trust;

pub use ca::{
    Authority, CaClient, CaDirectory, CaError, CaSet, ServingCertificate, SignFuture,
    SignedCertificate, SigningRequest,
};
pub use certificate::{CertificateInfo, IssueError, WorkloadCertificate};
pub use kept::KeptCertificates;
pub use store::{CertificateError, IdentityStore, StoreSettings};
pub use svid::{PeerSvid, SvidError, fingerprint};
pub use tls::{ALPN_HBONE, ALPN_NATIVE, PeerRefusal, Wire, explain, negotiated_wire};
pub use trust::{TrustBundle, TrustError, split_root};
