//! What the daemon itself takes from MeshConfig: the access log. And what it cannot follow while it
//! runs, which it reports.

use std::sync::Arc;

use fairlead_config::Subscription;
use fairlead_config::model::{AccessLogEncoding, AccessLogSettings, MeshSettings};
use fairlead_telemetry::Telemetry;
use fairlead_telemetry::access_log::{AccessLogConfig, Encoding};
use parking_lot::Mutex;

use crate::configuration::{Configuration, Entry, refused};
use crate::settings::Settings;

/// Has the access log follow MeshConfig, or the setting that overrides its file. What the daemon
/// cannot follow is kept for `/problems`.
pub(crate) fn follow(
    settings: &Settings,
    configuration: &Configuration,
    telemetry: &Arc<Telemetry>,
) -> (Arc<Mutex<Vec<Entry>>>, Subscription) {
    let problems: Arc<Mutex<Vec<Entry>>> = Arc::default();
    let kept = Arc::clone(&problems);
    let telemetry = Arc::clone(telemetry);
    let file = settings.log.access_log_file.clone();
    let at_start = Arc::clone(&configuration.snapshots().load().mesh);
    let subscription = configuration.snapshots().subscribe(move |snapshot| {
        let mut found = Vec::new();
        let config = access_log_config(&snapshot.mesh.access_log, file.as_deref());
        if let Err(error) = telemetry.access_log().configure(&config) {
            found.push(refused("MeshConfig", "accessLogFormat", error.to_string()));
        }
        let domains =
            |mesh: &MeshSettings| (mesh.trust_domain.clone(), mesh.trust_domain_aliases.clone());
        if domains(&snapshot.mesh) != domains(&at_start) {
            let message = format!(
                "certificates are still those of {}: the trust domain and its aliases take effect \
                 when the daemon is restarted",
                at_start.trust_domain
            );
            found.push(refused("MeshConfig", "trustDomain", message));
        }
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
