//! One kind of objects, followed for ever.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::{Kind, ObjectKey};
use futures_util::StreamExt;
use kube::Api;
use kube::core::ApiResource;
use kube::runtime::watcher::{self, Config, watcher};
use tokio::time::{Instant, sleep};

use super::raw::Raw;
use super::{Context, Listed};
use crate::scope::Event;

/// First wait after a failure.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// Longest wait: so late an API server that is back is noticed.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Least time between two words about failures of one kind.
const COMPLAIN: Duration = Duration::from_secs(30);
/// Objects in a page of a list.
const PAGE: u32 = 500;
/// Seconds of one watch; a connection that has died unnoticed is noticed that late.
const WATCH_SECONDS: u32 = 60;

/// How watches are made.
pub(super) fn config() -> Config {
    Config::default().page_size(PAGE).timeout(WATCH_SECONDS)
}

/// Waits longer with every failure; half of it by chance, so that not all come back at once.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    complained: Option<Instant>,
    failing: bool,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: MIN_WAIT, complained: None, failing: false }
    }

    pub(super) async fn failed(&mut self, what: &str, error: &(dyn std::error::Error + Sync)) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN) {
            self.complained = Some(Instant::now());
            tracing::warn!(what, error = %chain(error), "the API server cannot be followed; trying on");
        }
        self.failing = true;
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let chance = f64::from(nanos.map_or(0, |n| n.subsec_nanos() % 1000)) / 1000.0;
        sleep(self.next.mul_f64(0.5 + chance / 2.0)).await;
        self.next = (self.next * 2).min(MAX_WAIT);
    }

    pub(super) fn worked(&mut self, what: &str) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(what, "following the API server again");
        }
        self.next = MIN_WAIT;
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// Follows all objects of a kind, or those of `namespace` with a name.
pub(super) async fn follow(
    context: Arc<Context>,
    kind: Kind,
    resource: ApiResource,
    only: Option<(String, &'static str)>,
    listed: Arc<Listed>,
) {
    let client = context.client.clone();
    let (api, config): (Api<Raw>, _) = match &only {
        None => (Api::all_with(client, &resource), config()),
        Some((namespace, name)) => (
            Api::namespaced_with(client, namespace, &resource),
            config().fields(&format!("metadata.name={name}")),
        ),
    };
    context.world.set_api_version(kind, &resource.api_version);
    let mut stream = pin!(watcher(api, config));
    let mut listed = Some(listed);
    let mut backoff = Backoff::new();
    let mut seen: HashSet<ObjectKey> = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                seen.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                seen.insert(context.apply(kind, &resource.api_version, object));
            }
            Ok(watcher::Event::InitDone) => {
                let gone = context.world.retain(kind, &seen);
                tracing::debug!(%kind, objects = seen.len(), gone, "listed");
                seen = HashSet::new();
                if listed.take().is_none() {
                    context.metrics.relisted(kind, gone);
                }
            }
            Ok(watcher::Event::Apply(object)) => {
                context.apply(kind, &resource.api_version, object);
            }
            Ok(watcher::Event::Delete(object)) => {
                let key = ObjectKey::new(kind, object.text("namespace"), object.text("name"));
                if context.world.remove(&key) {
                    context.metrics.event(kind, "delete");
                }
            }
            Err(error) => {
                context.metrics.watch_error();
                backoff.failed(kind.as_str(), &error).await;
                continue;
            }
        }
        backoff.worked(kind.as_str());
    }
}

impl Context {
    fn apply(&self, kind: Kind, api_version: &str, object: Raw) -> ObjectKey {
        let (key, event) = self.world.apply(kind, api_version, object);
        match event {
            Event::Added => self.metrics.event(kind, "add"),
            Event::Changed => self.metrics.event(kind, "update"),
            Event::Same => self.metrics.unchanged(),
        }
        key
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
