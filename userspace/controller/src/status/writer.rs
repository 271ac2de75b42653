//! Writes status and events: coalesced, limited, by the leader alone.

use std::collections::HashMap;
use std::time::Duration;

use fairlead_api::ObjectKey;
use fairlead_telemetry::{Counter, Registry};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::conditions::{ACCEPTED, Condition, Outcome, merged, others, outcome};
use super::plural;
use crate::keep::FIELD_MANAGER;
use crate::lease::{Leadership, MAX_WRITE};
use crate::scope::Verdicts;

/// Changes that come within this time of each other become one write.
const COALESCE: Duration = Duration::from_millis(300);
/// Wait before a write that would only correct the number of nodes.
const COUNTS: Duration = Duration::from_secs(30);
/// Wait before another try of what the API server refused, doubled each time up to the longest.
const RETRY: Duration = Duration::from_secs(5);
const MAX_RETRY: Duration = Duration::from_secs(300);
/// Writes at a time.
const CONCURRENT: usize = 8;
/// Events per second, and at once: events are for people.
const EVENT_RATE: f64 = 5.0;
const EVENT_BURST: f64 = 50.0;
/// Objects whose last event is remembered.
const MAX_RECORDERS: usize = 1024;
/// Characters of an event's note (Kubernetes takes 1024 bytes).
const MAX_NOTE: usize = 500;

/// Settings of the writer.
#[derive(Clone, Debug)]
pub struct StatusSettings {
    /// Name of this replica's pod, in events.
    pub instance: String,
    /// Writes per second at most.
    pub rate: f64,
}

impl StatusSettings {
    /// The usual ones.
    #[must_use]
    pub fn new(instance: impl Into<String>) -> Self {
        Self { instance: instance.into(), rate: 50.0 }
    }
}

/// Counters of the writer.
#[derive(Clone, Debug, Default)]
pub struct StatusMetrics {
    writes: Counter,
    failures: Counter,
    events: Counter,
    events_left_out: Counter,
}

impl StatusMetrics {
    /// Exports them.
    pub fn register(&self, registry: &Registry) {
        for (name, help, counter) in [
            ("fairlead_status_writes_total", "Status that was written.", &self.writes),
            (
                "fairlead_status_write_errors_total",
                "Writes of status that failed; they are tried again.",
                &self.failures,
            ),
            ("fairlead_status_events_total", "Events that were written.", &self.events),
            (
                "fairlead_status_events_left_out_total",
                "Events beyond the rate, which only status tells of.",
                &self.events_left_out,
            ),
        ] {
            registry.adopt(name, help, counter);
        }
    }
}

/// What waits to be written.
struct Pending {
    due: Instant,
    /// How often it failed.
    tries: u8,
}

/// Writes what became of resources.
pub struct StatusWriter {
    client: kube::Client,
    verdicts: Verdicts,
    settings: StatusSettings,
    /// One for each fault that was told: what is the same is counted up where it stands, and
    /// nothing else is.
    recorders: Mutex<HashMap<ObjectKey, (String, Recorder)>>,
    /// What was written last, per object that is there.
    written: Mutex<HashMap<ObjectKey, Outcome>>,
    events: Mutex<(f64, Instant)>,
    /// Counters.
    pub metrics: StatusMetrics,
}

enum Failure {
    /// Not worth another try.
    Final(String),
    Passing(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let text = error.to_string();
        match error {
            // Gone, without a status subresource, not allowed, not valid there.
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 404 | 405 | 422) => {
                Self::Final(text)
            }
            _ => Self::Passing(text),
        }
    }
}

impl StatusWriter {
    /// Writes with `client` what `verdicts` say.
    #[must_use]
    pub fn new(client: kube::Client, verdicts: Verdicts, settings: StatusSettings) -> Self {
        Self {
            recorders: Mutex::default(),
            client,
            verdicts,
            settings,
            written: Mutex::default(),
            events: Mutex::new((EVENT_BURST, Instant::now())),
            metrics: StatusMetrics::default(),
        }
    }

    /// Writes for ever, while this replica leads.
    pub async fn run(self, mut leader: Leadership) {
        loop {
            leader.gained().await;
            // Another replica may have written since we led last.
            self.written.lock().clear();
            let mut lost = leader.clone();
            tokio::select! {
                () = self.lead(&leader) => {}
                () = lost.lost() => {}
            }
        }
    }

    async fn lead(&self, leader: &Leadership) {
        self.verdicts.settled().await;
        let now = Instant::now();
        let all = self.verdicts.all();
        let mut pending: HashMap<ObjectKey, Pending> =
            all.into_iter().map(|key| (key, Pending { due: now, tries: 0 })).collect();
        let mut pace = Instant::now();
        loop {
            let next = pending.values().map(|pending| pending.due).min();
            tokio::select! {
                changed = self.verdicts.changed() => {
                    for key in changed {
                        self.note(key, &mut pending);
                    }
                    continue;
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            let now = Instant::now();
            let mut due: Vec<ObjectKey> = pending
                .iter()
                .filter(|(_, pending)| pending.due <= now)
                .map(|(key, _)| key.clone())
                .take(CONCURRENT)
                .collect();
            due.sort_unstable();
            let works = due.iter().map(|key| async {
                if !leader.is_leader() {
                    return Ok(false);
                }
                match timeout(MAX_WRITE, self.write(key)).await {
                    Ok(result) => result,
                    Err(_) => Err(Failure::Passing("the API server does not answer".to_owned())),
                }
            });
            let mut writes = 0;
            for (key, result) in due.iter().zip(join_all(works).await) {
                let Some(of) = pending.remove(key) else { continue };
                match result {
                    Ok(wrote) => writes += u32::from(wrote),
                    Err(Failure::Final(error)) => {
                        self.metrics.failures.inc();
                        tracing::debug!(%key, error, "status cannot be written");
                    }
                    Err(Failure::Passing(error)) => {
                        self.metrics.failures.inc();
                        tracing::debug!(%key, error, "status cannot be written now");
                        let wait = retry_after(of.tries);
                        let tries = of.tries.saturating_add(1);
                        pending.insert(key.clone(), Pending { due: now + wait, tries });
                    }
                }
            }
            // Spread over time: what changes meanwhile is merged, not queued.
            pace = pace.max(now) + Duration::from_secs_f64(f64::from(writes) / self.settings.rate);
            sleep(pace.saturating_duration_since(Instant::now())).await;
        }
    }

    /// Puts an object down for writing, soon or later.
    fn note(&self, key: ObjectKey, pending: &mut HashMap<ObjectKey, Pending>) {
        let Some(verdict) = self.verdicts.of(&key) else {
            self.written.lock().remove(&key);
            pending.remove(&key);
            return;
        };
        let outcome = outcome(&verdict);
        let wait = match self.written.lock().get(&key) {
            Some(written) if *written == outcome => {
                pending.remove(&key);
                return;
            }
            Some(written) if written.is_alike(&outcome) => COUNTS,
            _ => COALESCE,
        };
        let due = Instant::now() + wait;
        pending
            .entry(key)
            .and_modify(|pending| pending.due = pending.due.min(due))
            .or_insert(Pending { due, tries: 0 });
    }

    /// Writes the status of one object as it is now; whether there was anything to write.
    async fn write(&self, key: &ObjectKey) -> Result<bool, Failure> {
        let Some(verdict) = self.verdicts.of(key) else { return Ok(false) };
        let outcome = outcome(&verdict);
        let Some(resource) = resource(key, &verdict.json) else { return Ok(false) };
        let api =
            Api::<DynamicObject>::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let Some(object) = api.get_opt(&key.name).await? else { return Ok(false) };
        // The watch will bring the newer one.
        if object.metadata.generation.is_some_and(|there| there != outcome.generation) {
            return Ok(false);
        }
        let status = object.data.get("status");
        let existing = status.and_then(|status| status.get("conditions"));
        let now = Timestamp::from_second(Timestamp::now().as_second())
            .map(|now| now.to_string())
            .unwrap_or_default();
        let (mut conditions, changed) = merged(&outcome, existing, &now);
        let said = status.and_then(|status| status.get("validationMessages"));
        let same_validation = match said {
            Some(said) => said.as_array() == Some(&outcome.validation),
            None => outcome.validation.is_empty(),
        };
        if changed.is_empty() && same_validation {
            self.written.lock().insert(key.clone(), outcome);
            return Ok(false);
        }
        let mut metadata = json!({"name": &*key.name, "namespace": &*key.namespace});
        if let Some(uid) = &object.metadata.uid {
            metadata["uid"] = uid.as_str().into();
        }
        let others = if is_atomic(&object) { others(existing) } else { Vec::new() };
        if !others.is_empty() {
            // Written along, so it has to be the state of this very moment.
            if let Some(version) = &object.metadata.resource_version {
                metadata["resourceVersion"] = version.as_str().into();
            }
            conditions.splice(0..0, others);
        }
        let mut status = json!({
            "observedGeneration": outcome.generation,
            "conditions": conditions,
        });
        if !outcome.validation.is_empty() {
            status["validationMessages"] = outcome.validation.clone().into();
        }
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch_status(&key.name, &params, &Patch::Apply(&patch)).await?;
        self.metrics.writes.inc();
        self.tell(key, &resource, &object, &outcome, existing).await;
        self.written.lock().insert(key.clone(), outcome);
        Ok(true)
    }

    /// An event for what a person has to mend, when it is new.
    async fn tell(
        &self,
        key: &ObjectKey,
        resource: &ApiResource,
        object: &DynamicObject,
        outcome: &Outcome,
        existing: Option<&Value>,
    ) {
        // What cannot be accepted is refused by nodes for the same reason: once is enough.
        let fault = outcome.conditions.iter().find(|condition| condition.is_fault());
        let is_news = |fault: &&Condition| fault.is_news(outcome.generation, existing);
        let Some(fault) = fault.filter(is_news) else { return };
        if !self.may_tell() {
            self.metrics.events_left_out.inc();
            return;
        }
        let reference = ObjectReference {
            api_version: Some(resource.api_version.clone()),
            kind: Some(resource.kind.clone()),
            namespace: Some((*key.namespace).to_owned()),
            name: Some((*key.name).to_owned()),
            uid: object.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let note: String = fault.message.chars().take(MAX_NOTE).collect();
        let recorder = self.recorder(key, &note);
        let event = Event {
            type_: EventType::Warning,
            reason: fault.reason.to_owned(),
            note: Some(note),
            action: if fault.kind == ACCEPTED { "Validating" } else { "Distributing" }.to_owned(),
            secondary: None,
        };
        match recorder.publish(&event, &reference).await {
            Ok(()) => self.metrics.events.inc(),
            Err(error) => tracing::debug!(%key, %error, "an event cannot be written"),
        }
    }

    /// Who counts up an event with this note about an object, or begins one.
    fn recorder(&self, key: &ObjectKey, note: &str) -> Recorder {
        let mut recorders = self.recorders.lock();
        if let Some((told, recorder)) = recorders.get(key)
            && told == note
        {
            return recorder.clone();
        }
        let reporter = Reporter {
            controller: "fairlead-controller".to_owned(),
            instance: Some(self.settings.instance.clone()),
        };
        let recorder = Recorder::new(self.client.clone(), reporter);
        if recorders.len() >= MAX_RECORDERS {
            recorders.clear();
        }
        recorders.insert(key.clone(), (note.to_owned(), recorder.clone()));
        recorder
    }

    fn may_tell(&self) -> bool {
        let mut bucket = self.events.lock();
        let now = Instant::now();
        let refill = now.duration_since(bucket.1).as_secs_f64() * EVENT_RATE;
        let left = (bucket.0 + refill).min(EVENT_BURST);
        let may = left >= 1.0;
        *bucket = (if may { left - 1.0 } else { left }, now);
        may
    }
}

/// How long what failed so often before waits for its next try.
fn retry_after(failures: u8) -> Duration {
    RETRY.saturating_mul(1 << failures.min(8)).min(MAX_RETRY)
}

/// Group, version and name of the resource, by the object as it is kept here.
fn resource(key: &ObjectKey, json: &[u8]) -> Option<ApiResource> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        api_version: String,
    }
    let Head { api_version } = serde_json::from_slice(json).ok()?;
    let (group, version) = api_version.split_once('/')?;
    Some(ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: key.kind.as_str().to_owned(),
        plural: plural(key.kind),
        api_version,
    })
}

/// Whether the list of conditions belongs to its last writer as a whole: so say the records of
/// whoever wrote it.
fn is_atomic(object: &DynamicObject) -> bool {
    let records = object.metadata.managed_fields.iter().flatten();
    let fields = records.filter_map(|record| record.fields_v1.as_ref());
    let mut conditions = fields.filter_map(|fields| fields.0.get("f:status")?.get("f:conditions"));
    conditions.any(|of: &Value| of.as_object().is_some_and(serde_json::Map::is_empty))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_write_is_given_up() {
        let waits = [0, 1, 5, 6, u8::MAX].map(|failures| retry_after(failures).as_secs());
        assert_eq!(waits, [5, 10, 160, 300, 300]);
    }
}
