//! Which of Istio's kinds there are: a CRD may come, change its versions and go at any time.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;

use fairlead_api::Kind;
use futures_util::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, ResourceExt};
use serde_json::Value;
use tokio::task::AbortHandle;

use super::follow::{Backoff, config, follow};
use super::raw::Raw;
use super::{Context, Listed, resource};

/// Follows the CRDs, and the objects of those that are ours. Of others only the metadata is read.
pub(super) async fn follow_crds(context: Arc<Context>, listed: Arc<Listed>) {
    let names: HashMap<String, Kind> = Kind::ALL
        .iter()
        .filter(|kind| is_custom(**kind))
        .map(|kind| {
            let resource = resource(*kind, kind.versions().first().copied().unwrap_or_default());
            (format!("{}.{}", resource.plural, kind.group()), *kind)
        })
        .collect();
    let api = Api::<PartialObjectMeta<CustomResourceDefinition>>::all(context.client.clone());
    let mut stream = pin!(watcher(api, config()));
    let mut crds = Crds { context, running: HashMap::new() };
    let mut listed = Some(listed);
    let mut backoff = Backoff::new();
    let mut seen: HashSet<Kind> = HashSet::new();
    while let Some(event) = stream.next().await {
        let kind = |crd: &PartialObjectMeta<CustomResourceDefinition>| {
            names.get(&crd.name_any()).copied().map(|kind| (crd.name_any(), kind))
        };
        match event {
            Ok(watcher::Event::Init) => {
                seen.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(crd)) => {
                if let Some((name, kind)) = kind(&crd) {
                    seen.insert(kind);
                    crds.look(&name, kind, listed.as_ref()).await;
                }
            }
            Ok(watcher::Event::InitDone) => {
                let gone: Vec<Kind> =
                    crds.running.keys().filter(|kind| !seen.contains(kind)).copied().collect();
                for kind in gone {
                    crds.stop(kind);
                }
                listed.take();
            }
            Ok(watcher::Event::Apply(crd)) => {
                if let Some((name, kind)) = kind(&crd) {
                    crds.look(&name, kind, listed.as_ref()).await;
                }
            }
            Ok(watcher::Event::Delete(crd)) => {
                if let Some((_, kind)) = kind(&crd) {
                    crds.stop(kind);
                }
            }
            Err(error) => {
                crds.context.metrics.watch_error();
                backoff.failed("CustomResourceDefinition", &error).await;
                continue;
            }
        }
        backoff.worked("CustomResourceDefinition");
    }
}

/// Whether a kind is defined by a CRD.
pub(super) fn is_custom(kind: Kind) -> bool {
    !matches!(kind.group(), "" | "discovery.k8s.io")
}

struct Crds {
    context: Arc<Context>,
    /// The version that is followed, by kind.
    running: HashMap<Kind, (&'static str, AbortHandle)>,
}

impl Crds {
    /// Looks at a CRD and follows the best of its versions.
    async fn look(&mut self, name: &str, kind: Kind, listed: Option<&Arc<Listed>>) {
        let crd = ApiResource {
            group: "apiextensions.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "apiextensions.k8s.io/v1".to_owned(),
            kind: "CustomResourceDefinition".to_owned(),
            plural: "customresourcedefinitions".to_owned(),
        };
        let api: Api<Raw> = Api::all_with(self.context.client.clone(), &crd);
        let mut backoff = Backoff::new();
        let crd = loop {
            match api.get_opt(name).await {
                Ok(Some(crd)) => break crd,
                // Its end will be told.
                Ok(None) => return,
                Err(error) => backoff.failed(name, &error).await,
            }
        };
        // One that is not established yet is told of again when it is.
        let Some(version) = served(kind, &crd) else { return };
        if self.running.get(&kind).is_some_and(|(running, _)| *running == version) {
            return;
        }
        if let Some((_, old)) = self.running.remove(&kind) {
            old.abort();
        }
        tracing::info!(%kind, version, "following");
        let listed = listed.cloned().unwrap_or_default();
        let task = follow(Arc::clone(&self.context), kind, resource(kind, version), None, listed);
        self.running.insert(kind, (version, tokio::spawn(task).abort_handle()));
    }

    /// The CRD is gone, and its objects with it.
    fn stop(&mut self, kind: Kind) {
        if let Some((_, task)) = self.running.remove(&kind) {
            tracing::warn!(%kind, "its CustomResourceDefinition is gone; there are no objects of it");
            task.abort();
            self.context.world.retain(kind, &HashSet::<_>::new());
        }
    }
}

/// The best version that is served and that we know; `None` while there is none.
fn served(kind: Kind, crd: &Raw) -> Option<&'static str> {
    let items = |field: &str, list: &str| {
        crd.fields.get(field).and_then(|field| field.get(list)).and_then(Value::as_array)
    };
    let is = |item: &Value, field: &str, text: &str| item.get(field).is_some_and(|v| v == text);
    let established = items("status", "conditions").is_some_and(|conditions| {
        conditions.iter().any(|c| is(c, "type", "Established") && is(c, "status", "True"))
    });
    if !established {
        return None;
    }
    let versions = items("spec", "versions")?;
    let is_served = |version: &&&str| {
        versions.iter().any(|of| {
            is(of, "name", version) && of.get("served").and_then(Value::as_bool) == Some(true)
        })
    };
    kind.versions().iter().find(is_served).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_best_version_that_is_served() {
        let crd = |established: &str, versions: Value| -> Raw {
            serde_json::from_value(json!({
                "metadata": {"name": "x"},
                "spec": {"versions": versions},
                "status": {"conditions": [{"type": "Established", "status": established}]}
            }))
            .expect("a CRD")
        };
        let version = |name: &str, served: bool| json!({"name": name, "served": served});
        let all = json!([version("v1alpha3", true), version("v1beta1", true), version("v1", true)]);
        let kind = Kind::VirtualService;
        assert_eq!(served(kind, &crd("True", all.clone())), Some("v1"));
        assert_eq!(served(kind, &crd("False", all)), None);
        let old = json!([version("v1", false), version("v1beta1", true)]);
        assert_eq!(served(kind, &crd("True", old)), Some("v1beta1"));
        assert_eq!(served(kind, &crd("True", json!([version("v9", true)]))), None);
    }

    #[test]
    fn names_of_crds() {
        for (kind, plural) in [
            (Kind::VirtualService, "virtualservices"),
            (Kind::ServiceEntry, "serviceentries"),
            (Kind::WorkloadEntry, "workloadentries"),
            (Kind::Gateway, "gateways"),
            (Kind::AuthorizationPolicy, "authorizationpolicies"),
            (Kind::PeerAuthentication, "peerauthentications"),
            (Kind::EndpointSlice, "endpointslices"),
        ] {
            assert_eq!(resource(kind, "v1").plural, plural);
        }
    }
}
