//! The webhook's configuration at the API server: kept by the controller itself, with the roots
//! that its serving certificate verifies to.
//!
//! The manifests only name the object. Every field of its webhooks is the controller's, so that
//! manifests that are applied again neither conflict with it nor take anything back, whatever either
//! of the two was before an upgrade.
//!
//! `failurePolicy` is `Ignore` unless the settings ask for `Fail`, and then it becomes `Fail` only
//! when a dry run has shown that the API server reaches the webhook (as istiod does). In the
//! controller's own namespace it stays `Ignore` always, and kube-system is left out altogether.

use std::sync::Arc;
use std::time::Duration;

use fairlead_api::Kind;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::PATH;
use super::decide::{PROBE, PROBE_REFUSAL};
use crate::ca::Serving;
use crate::keep::keep;
use crate::lease::{Leadership, MAX_WRITE};
use crate::status::plural;

/// Seconds that the API server waits for an answer.
const TIMEOUT_SECONDS: u8 = 5;
/// Time between two dry runs.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);

/// Where the webhook is.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// Name of the ValidatingWebhookConfiguration.
    pub name: String,
    /// Name of the controller's Service.
    pub service: String,
    /// Port of the webhook at the Service.
    pub port: u16,
    /// The controller's namespace.
    pub namespace: String,
    /// Whether changes are refused while no replica can be asked.
    pub fail: bool,
}

impl WebhookSettings {
    /// The usual ones.
    #[must_use]
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            name: "fairlead-validator".to_owned(),
            service: "fairlead-controller".to_owned(),
            port: 443,
            namespace: namespace.into(),
            fail: false,
        }
    }
}

/// Keeps the configuration for ever; the leader writes it.
pub async fn run(
    client: kube::Client,
    settings: WebhookSettings,
    serving: Arc<Serving>,
    leader: Leadership,
) {
    let resource = ApiResource::erase::<ValidatingWebhookConfiguration>(&());
    let api = Api::all_with(client.clone(), &resource);
    let (wanted, receiver) = watch::channel(None);
    let (proven, mut is_proven) = watch::channel(false);
    let (mut bundle, mut roots) = serving.receivers();
    let follow = async {
        loop {
            if let Some(roots) = serving.client_roots() {
                let fail = settings.fail && *is_proven.borrow_and_update();
                wanted.send_replace(Some(configuration(&settings, &roots.pem, fail)));
            }
            tokio::select! {
                () = Serving::client_roots_changed(&mut bundle, &mut roots) => {}
                Ok(()) = is_proven.changed() => {}
            }
        }
    };
    let prove = async {
        if settings.fail {
            let mut leader = leader.clone();
            leader.gained().await;
            while !probe(&client, &settings.namespace).await {
                sleep(PROBE_INTERVAL).await;
            }
            tracing::info!("the API server reaches the webhook");
            proven.send_replace(true);
        }
        std::future::pending::<()>().await;
    };
    tokio::join!(follow, prove, keep(api, &settings.name, receiver, leader.clone()));
}

/// The configuration as it should be.
fn configuration(settings: &WebhookSettings, pem: &str, fail: bool) -> Value {
    let WebhookSettings { name, service, port, namespace, .. } = settings;
    let mut groups: Vec<&str> =
        Kind::ALL.iter().filter(|kind| kind.is_istio()).map(|kind| kind.group()).collect();
    groups.sort_unstable();
    groups.dedup();
    let hook = |name: &str, operator: &str, namespaces: &[&str], policy: &str| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": policy,
            "matchPolicy": "Exact",
            "timeoutSeconds": TIMEOUT_SECONDS,
            "clientConfig": {
                "service": {
                    "name": service, "namespace": namespace, "path": PATH, "port": port,
                },
                "caBundle": ByteString(pem.as_bytes().to_vec()),
            },
            "namespaceSelector": {"matchExpressions": [{
                "key": "kubernetes.io/metadata.name", "operator": operator, "values": namespaces,
            }]},
            // No DELETE, no subresources.
            "rules": [{
                "apiGroups": groups, "apiVersions": ["*"], "resources": ["*"],
                "operations": ["CREATE", "UPDATE"], "scope": "Namespaced",
            }],
        })
    };
    let policy = if fail { "Fail" } else { "Ignore" };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            hook("validate.fairlead.io", "NotIn", &["kube-system", namespace], policy),
            hook("mesh.validate.fairlead.io", "In", &[namespace], "Ignore"),
        ],
    })
}

/// Whether the API server asks the webhook: nothing is stored, whatever the answer is.
async fn probe(client: &kube::Client, namespace: &str) -> bool {
    let kind = Kind::AuthorizationPolicy;
    let version = kind.versions().first().copied().unwrap_or("v1");
    let resource = ApiResource {
        group: kind.group().to_owned(),
        version: version.to_owned(),
        api_version: format!("{}/{version}", kind.group()),
        kind: kind.as_str().to_owned(),
        plural: plural(kind),
    };
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
    let object = DynamicObject::new(PROBE, &resource).data(json!({"spec": {}}));
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match timeout(MAX_WRITE, api.create(&params, &object)).await {
        Ok(Err(kube::Error::Api(status))) if status.message.contains(PROBE_REFUSAL) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "whether the API server reaches the webhook cannot be tried");
            false
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_mends_a_cluster_is_gated() {
        let mut settings = WebhookSettings::new("fairlead-system");
        settings.fail = true;
        for fail in [false, true] {
            let all = configuration(&settings, "PEM", fail);
            let hooks = all["webhooks"].as_array().expect("hooks");
            for hook in hooks {
                let rules = hook["rules"].as_array().expect("rules");
                assert_eq!(rules.len(), 1);
                assert_eq!(rules[0]["operations"], json!(["CREATE", "UPDATE"]));
                for group in rules[0]["apiGroups"].as_array().expect("groups") {
                    assert!(group.as_str().is_some_and(|g| g.ends_with(".istio.io")), "{group}");
                }
                assert_eq!(hook["clientConfig"]["caBundle"], "UEVN");
            }
            let fails: Vec<_> = hooks.iter().filter(|h| h["failurePolicy"] == "Fail").collect();
            assert_eq!(fails.len(), usize::from(fail));
            for hook in fails {
                let selector = &hook["namespaceSelector"]["matchExpressions"][0];
                assert_eq!(selector["operator"], "NotIn");
                assert_eq!(selector["values"], json!(["kube-system", "fairlead-system"]));
            }
        }
    }
}
