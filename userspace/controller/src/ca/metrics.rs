//! Counters of the CA, under the names of Istio's.

use std::time::SystemTime;

use fairlead_identity::ca::certificate_end;
use fairlead_telemetry::{Counter, Gauge, Kind, Registry};
use rustls::pki_types::CertificateDer;

/// Counters of the CA.
#[derive(Debug, Default)]
pub struct CaMetrics {
    /// Requests.
    pub(super) requests: Counter,
    /// Requests that could not be read or whose signature was wrong.
    pub(super) unreadable: Counter,
    /// Callers that could not prove who they are.
    pub(super) unauthenticated: Counter,
    /// Callers that asked for an identity that is not theirs to ask for.
    pub(super) not_allowed: Counter,
    /// Requests beyond a caller's rate.
    pub(super) limited: Counter,
    /// Signing failed.
    pub(super) sign_errors: Counter,
    /// Certificates.
    pub(super) issued: Counter,
    root_expiry: Gauge,
}

impl CaMetrics {
    /// Exports them.
    pub fn register(&self, registry: &Registry) {
        let counters = [
            ("citadel_server_csr_count", "Certificate signing requests received.", &self.requests),
            (
                "citadel_server_csr_parsing_err_count",
                "Signing requests that could not be read or proved.",
                &self.unreadable,
            ),
            (
                "citadel_server_authentication_failure_count",
                "Signing requests of callers that could not prove who they are.",
                &self.unauthenticated,
            ),
            (
                "citadel_server_id_extraction_err_count",
                "Signing requests for an identity that is not the caller's to ask for.",
                &self.not_allowed,
            ),
            (
                "fairlead_ca_rate_limited_total",
                "Signing requests beyond the rate of their caller.",
                &self.limited,
            ),
            (
                "citadel_server_csr_sign_err_count",
                "Signing requests that failed while they were signed.",
                &self.sign_errors,
            ),
            ("citadel_server_success_cert_issuance_count", "Certificates issued.", &self.issued),
        ];
        for (name, help, counter) in counters {
            registry.adopt(name, help, counter);
        }
        let expiry = self.root_expiry.clone();
        registry.collector(move |out| {
            let name = "citadel_server_root_cert_expiry_timestamp";
            let help = "Unix time at which the first of the trusted roots ends.";
            out.family(name, help, Kind::Gauge);
            out.sample(name, &[], expiry.get());
        });
    }

    /// Notes when the first of the roots ends.
    pub(super) fn root_expiry(&self, roots: &[CertificateDer<'static>]) {
        let first = roots.iter().filter_map(|root| certificate_end(root)).min();
        let seconds = first.and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let Some(seconds) = seconds.and_then(|since| i64::try_from(since.as_secs()).ok()) {
            self.root_expiry.set(seconds);
        }
    }
}
