//! What the daemon itself takes from MeshConfig: the access log, and the trust domains that it
//! accepts.

use std::sync::Arc;

use fairlead_config::Subscription;
use fairlead_config::model::{AccessLogEncoding, AccessLogSettings};
use fairlead_identity::IdentityStore;
use fairlead_telemetry::Telemetry;
use fairlead_telemetry::access_log::{AccessLogConfig, Encoding};
use parking_lot::Mutex;

use crate::configuration::{Configuration, Entry, refused};
use crate::settings::Settings;

/// Has the access log (or the setting that overrides its file) and the accepted trust domains
/// follow MeshConfig. What cannot be followed is kept for `/problems`.
pub(crate) fn follow(
    settings: &Settings,
    configuration: &Configuration,
    telemetry: &Arc<Telemetry>,
    identity: &Arc<IdentityStore>,
) -> (Arc<Mutex<Vec<Entry>>>, Subscription) {
    let problems: Arc<Mutex<Vec<Entry>>> = Arc::default();
    let kept = Arc::clone(&problems);
    let telemetry = Arc::clone(telemetry);
    let identity = Arc::clone(identity);
    let file = settings.log.access_log_file.clone();
    let subscription = configuration.snapshots().subscribe(move |snapshot| {
        let mut found = Vec::new();
        let config = access_log_config(&snapshot.mesh.access_log, file.as_deref());
        if let Err(error) = telemetry.access_log().configure(&config) {
            found.push(refused("MeshConfig", "accessLogFormat", error.to_string()));
        }
        // The mesh's own trust domain is part of each identity, and follows enrolment.
        identity.trust_aliases(&snapshot.mesh.trust_domain_aliases);
        let mut kept = kept.lock();
        for problem in found.iter().filter(|problem| !kept.contains(problem)) {
            tracing::error!(field = problem.field, "MeshConfig: {}", problem.message);
        }
        *kept = found;
    });
    (problems, subscription)
}

fn access_log_config(mesh: &AccessLogSettings, file: Option<&str>) -> AccessLogConfig {
    AccessLogConfig {
        file: file.or(mesh.file.as_deref()).unwrap_or_default().to_owned(),
        encoding: match mesh.encoding {
            AccessLogEncoding::Text => Encoding::Text,
            AccessLogEncoding::Json => Encoding::Json,
        },
        format: mesh.format.as_deref().unwrap_or_default().to_owned(),
    }
}
