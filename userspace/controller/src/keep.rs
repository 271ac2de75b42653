//! Keeps an object of the API server as it is wanted: server-side apply when what is there differs,
//! by the leader alone, and again whenever somebody changes it.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::lease::{Leadership, MAX_WRITE};

/// The name under which our fields are recorded in `managedFields`.
pub(crate) const FIELD_MANAGER: &str = "fairlead-controller";
/// Wait after a write that failed, and the least time between two writes of an object: somebody
/// who insists on other content costs little.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps the object `name` of `api` as `wanted` has it (`None`: not known yet).
pub(crate) async fn keep(
    api: Api<DynamicObject>,
    name: &str,
    mut wanted: watch::Receiver<Option<Value>>,
    mut leader: Leadership,
) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api.clone(), config).default_backoff());
    let mut there: Option<Value> = None;
    let mut heard = false;
    loop {
        let mut failed = false;
        // Asked once: leadership that comes between two questions would be missed for ever.
        let leads = leader.is_leader();
        if heard && leads {
            let want = wanted.borrow_and_update().clone();
            if let Some(want) = want
                && !there.as_ref().is_some_and(|there| covers(there, &want))
            {
                let params = PatchParams::apply(FIELD_MANAGER).force();
                let patch = Patch::Apply(&want);
                match timeout(MAX_WRITE, api.patch(name, &params, &patch)).await {
                    Ok(Ok(object)) => {
                        tracing::info!(name, "applied");
                        there = serde_json::to_value(&object).ok();
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(name, %error, "cannot be applied");
                        failed = true;
                    }
                    Err(_) => failed = true,
                }
                sleep(PAUSE).await;
            }
        }
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    there = serde_json::to_value(&object).ok();
                    heard = true;
                }
                Ok(watcher::Event::Delete(_)) => there = None,
                Ok(watcher::Event::Init) => (there, heard) = (None, false),
                Ok(watcher::Event::InitDone) => heard = true,
                Err(error) => tracing::debug!(name, %error, "cannot be watched now"),
            },
            Ok(()) = wanted.changed() => {}
            () = leader.gained(), if !leads => {}
            () = sleep(5 * PAUSE), if failed => {}
        }
    }
}

/// Whether `there` says all that `wanted` says; what else it says does not matter. Lists of named
/// items are compared by name.
pub(crate) fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| there.get(key).is_some_and(|there| covers(there, wanted))),
        (Value::Array(there), Value::Array(wanted)) => {
            let name = |item: &Value| item.get("name").cloned();
            if wanted.iter().all(|item| name(item).is_some()) && !wanted.is_empty() {
                return wanted.iter().all(|wanted| {
                    there.iter().any(|there| name(there) == name(wanted) && covers(there, wanted))
                });
            }
            there.len() == wanted.len()
                && there.iter().zip(wanted).all(|(there, wanted)| covers(there, wanted))
        }
        (there, wanted) => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_add_does_not_matter() {
        let wanted = json!({"data": {"a": "1"}, "hooks": [{"name": "x", "ops": ["C", "U"]}]});
        let there = json!({
            "data": {"a": "1", "b": "2"}, "status": {},
            "hooks": [{"name": "y"}, {"name": "x", "ops": ["C", "U"], "timeout": 5}],
        });
        assert!(covers(&there, &wanted));
        for other in [
            json!({"data": {"a": "2"}, "hooks": [{"name": "x", "ops": ["C", "U"]}]}),
            json!({"data": {"a": "1"}, "hooks": [{"name": "x", "ops": ["C"]}]}),
            json!({"data": {"a": "1"}, "hooks": []}),
            json!({"hooks": [{"name": "x", "ops": ["C", "U"]}]}),
        ] {
            assert!(!covers(&other, &wanted), "{other}");
        }
    }
}
