//! The pages of the admin API.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use fairlead_capture::Feature;
use fairlead_config::SnapshotHandle;
use fairlead_proxy::{ConnectionInfo, Direction, State};
use fairlead_telemetry::Telemetry;
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::admin::{Pages, Query, Reply};
use crate::configuration::Entry;
use crate::logging::LogLevel;
use crate::metrics::Sources;
use crate::process::unix;
use crate::readiness::{Phase, Readiness};

/// Connections that `/connections` lists unless `?limit=` says otherwise.
const LISTED: usize = 1000;

/// What the pages show.
#[derive(Clone)]
pub struct Shown {
    /// Phase.
    pub readiness: Readiness,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// Snapshot.
    pub snapshots: SnapshotHandle,
    /// The log level.
    pub level: LogLevel,
    /// Kernel, certificates, connections, sessions, problems, pods.
    pub sources: Sources,
    /// What the kernel offers, as found at the start.
    pub features: Arc<[Feature]>,
    /// Problems that the daemon itself has with the configuration.
    pub own_problems: Arc<Mutex<Vec<Entry>>>,
}

/// All pages.
#[must_use]
pub fn pages(shown: &Shown) -> Pages {
    let with = |page: fn(&Shown, &Query) -> Reply| {
        let shown = shown.clone();
        move |query: &Query| page(&shown, query)
    };
    Pages::default()
        .page("/ready", "200 when pods are served; 503 and the reason otherwise.", with(ready))
        .page("/live", "200 as long as the daemon can answer.", |_| Reply::text(200, "live\n"))
        .page("/metrics", "Prometheus metrics.", with(metrics))
        .page("/config_dump", "The effective configuration (JSON).", with(config_dump))
        .page("/problems", "What is wrong with the configuration now (JSON).", with(problems))
        .page(
            "/connections",
            "Connections and sessions (JSON; ?format=table, ?pod=NAMESPACE/NAME, ?limit=N).",
            with(connections),
        )
        .page("/certs", "Certificates, never keys (JSON).", with(certs))
        .page("/capture", "Pods, kernel features, kernel counters (JSON).", with(capture))
        .page("/logging", "Log level; POST ?level=debug changes it.", with(logging))
}

/// What may be seen from outside of the node.
#[must_use]
pub fn open_pages(shown: &Shown) -> Pages {
    let with = |page: fn(&Shown, &Query) -> Reply| {
        let shown = shown.clone();
        move |query: &Query| page(&shown, query)
    };
    Pages::default()
        .page("/ready", "200 when pods are served; 503 and the reason otherwise.", with(ready))
        .page("/live", "200 as long as the daemon can answer.", |_| Reply::text(200, "live\n"))
        .page("/metrics", "Prometheus metrics.", with(metrics))
}

fn ready(shown: &Shown, _: &Query) -> Reply {
    let (status, text) = stands(shown);
    Reply::text(status, text)
}

/// What `/ready` says.
pub(crate) fn stands(shown: &Shown) -> (u16, String) {
    let phase = shown.readiness.get();
    let (mut status, mut text) = phase.answer(&shown.sources.report.lock().unenrolled);
    if let Some(controller) = &shown.sources.controller {
        let facts = controller.facts();
        if facts.as_of.is_none() && phase == Phase::Ready {
            // Nothing is enrolled, because nobody has said what there is.
            status = 503;
            text.clear();
        }
        text.push_str(&format!("{}\n", facts.words()));
    }
    (status, text)
}

fn metrics(shown: &Shown, _: &Query) -> Reply {
    Reply::pieces(Telemetry::CONTENT_TYPE, shown.telemetry.scrape())
}

fn config_dump(shown: &Shown, _: &Query) -> Reply {
    let mut dump = fairlead_config::dump(&shown.snapshots.load());
    if let (Value::Object(fields), Some(controller)) = (&mut dump, &shown.sources.controller) {
        fields.insert("source".to_owned(), controller.facts().json());
    }
    Reply::json(200, &dump)
}

fn problems(shown: &Shown, _: &Query) -> Reply {
    let own = shown.own_problems.lock().clone();
    Reply::json(200, &shown.sources.report.lock().json(&own))
}

fn connections(shown: &Shown, query: &Query) -> Reply {
    let limit = match query.get("limit").map(str::parse::<usize>) {
        None => LISTED,
        Some(Ok(limit)) => limit,
        Some(Err(_)) => return Reply::text(400, "limit has to be a number\n"),
    };
    let all = shown.sources.data.connections();
    let selected: Vec<&ConnectionInfo> =
        all.iter().filter(|c| query.get("pod").is_none_or(|pod| c.pod.as_str() == pod)).collect();
    let listed = &selected[..selected.len().min(limit)];
    match query.get("format") {
        None | Some("json") => {
            let sessions: Vec<Value> = shown
                .sources
                .transport
                .sessions()
                .iter()
                .map(|s| {
                    json!({
                        "source": s.source.to_string(),
                        "to": s.to.to_string(),
                        "wire": format!("{:?}", s.wire).to_lowercase(),
                        "sessions": s.sessions,
                        "streams": s.streams,
                    })
                })
                .collect();
            let listed: Vec<Value> = listed.iter().map(|c| connection(c)).collect();
            Reply::json(
                200,
                &json!({"total": selected.len(), "connections": listed, "sessions": sessions}),
            )
        }
        Some("table") => Reply::text(200, table(listed, selected.len())),
        Some(other) => Reply::text(400, format!("format {other:?}: json or table\n")),
    }
}

fn direction(c: &ConnectionInfo) -> &'static str {
    match c.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    }
}

fn state(c: &ConnectionInfo) -> &'static str {
    match c.state {
        State::Opening => "opening",
        State::Bytes => "tcp",
        State::Http => "http",
    }
}

fn connection(c: &ConnectionInfo) -> Value {
    json!({
        "id": c.id,
        "direction": direction(c),
        "state": state(c),
        "pod": c.pod.as_str(),
        "source": c.source.to_string(),
        "destination": c.destination.to_string(),
        "upstream": c.upstream.map(|a| a.to_string()),
        "identity": c.identity.as_ref().map(ToString::to_string),
        "bytesSent": c.sent,
        "bytesReceived": c.received,
        "ageMilliseconds": u64::try_from(c.age.as_millis()).unwrap_or(u64::MAX),
    })
}

fn table(listed: &[&ConnectionInfo], total: usize) -> String {
    let mut text = format!(
        "{:<8} {:<7} {:<30} {:<22} {:<22} {:<22} {:>10} {:>10} {:>8}  {}\n",
        "DIR",
        "STATE",
        "POD",
        "SOURCE",
        "DESTINATION",
        "UPSTREAM",
        "SENT",
        "RECEIVED",
        "AGE",
        "PEER"
    );
    for c in listed {
        let upstream = c.upstream.map_or_else(|| "-".into(), |a| a.to_string());
        let peer = c.identity.as_ref().map_or_else(|| "-".into(), ToString::to_string);
        let _ = writeln!(
            text,
            "{:<8} {:<7} {:<30} {:<22} {:<22} {:<22} {:>10} {:>10} {:>7.1}s  {peer}",
            direction(c),
            state(c),
            c.pod.as_str(),
            c.source.to_string(),
            c.destination.to_string(),
            upstream,
            c.sent,
            c.received,
            c.age.as_secs_f64(),
        );
    }
    let _ = writeln!(text, "{} of {total}", listed.len());
    text
}

fn certs(shown: &Shown, _: &Query) -> Reply {
    let now = SystemTime::now();
    let held: Vec<Value> = shown
        .sources
        .identity
        .held()
        .into_iter()
        .map(|(id, info, failure)| {
            let left = info
                .as_ref()
                .map(|i| i.not_after.duration_since(now).unwrap_or_default().as_secs());
            json!({
                "identity": id.to_string(),
                "serial": info.as_ref().map(|i| i.serial.clone()),
                "notBefore": info.as_ref().map(|i| unix(i.not_before)),
                "notAfter": info.as_ref().map(|i| unix(i.not_after)),
                "secondsLeft": left,
                "chain": info.as_ref().map(|i| i.chain_pem.clone()),
                "trustedRoots": info.as_ref().map(|i| i.trusted_roots),
                "lastFailure": failure,
            })
        })
        .collect();
    Reply::json(200, &json!({ "certificates": held }))
}

fn capture(shown: &Shown, _: &Query) -> Reply {
    let pods: Vec<Value> = shown
        .sources
        .pods
        .lock()
        .iter()
        .map(|p| {
            json!({
                "pod": p.id.as_str(),
                "state": p.state.as_str(),
                "netns": p.netns.as_ref().map(|n| n.display().to_string()),
                "reason": p.reason,
                "waitingMilliseconds":
                    p.waiting.map(|w| u64::try_from(w.as_millis()).unwrap_or(u64::MAX)),
            })
        })
        .collect();
    let features: Vec<Value> = shown
        .features
        .iter()
        .map(|f| {
            json!({
                "name": f.name,
                "present": f.present,
                "required": f.required,
                "without": f.without,
            })
        })
        .collect();
    let counters: Value = match shown.sources.capture.counters() {
        Ok(counters) => counters.into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect(),
        Err(error) => json!({ "error": error.to_string() }),
    };
    let under_way = match shown.sources.capture.under_way() {
        Ok((flows, deliveries)) => json!({ "flows": flows, "deliveries": deliveries }),
        Err(error) => json!({ "error": error.to_string() }),
    };
    Reply::json(
        200,
        &json!({
            "pods": pods,
            "counters": counters,
            "underWay": under_way,
            "features": features,
            "pinnedPrograms": shown.sources.capture.pinned_programs().display().to_string(),
        }),
    )
}

fn logging(shown: &Shown, query: &Query) -> Reply {
    match (query.get("level"), &query.method) {
        (None, _) => Reply::text(200, format!("{}\n", shown.level.get())),
        (Some(_), method) if *method != Method::POST => {
            Reply::text(405, "changing the level needs POST: curl -X POST …\n")
        }
        (Some(level), _) => match shown.level.set(level) {
            Ok(()) => {
                tracing::info!(level, "log level changed");
                Reply::text(200, format!("{level}\n"))
            }
            Err(error) => Reply::text(400, format!("{error}\n")),
        },
    }
}
