//! The ConfigMap from which node daemons learn whom to trust before they speak with anybody.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ApiResource};
use serde_json::json;
use tokio::sync::watch;

use super::{Bundle, ROOT_CONFIG_MAP, ROOT_CONFIG_MAP_KEY, Serving};
use crate::keep::keep;
use crate::lease::Leadership;

/// Keeps the ConfigMap in `namespace` for ever; the leader writes it.
pub async fn run(client: kube::Client, namespace: &str, serving: Arc<Serving>, leader: Leadership) {
    let resource = ApiResource::erase::<ConfigMap>(&());
    let api = Api::namespaced_with(client, namespace, &resource);
    let (wanted, receiver) = watch::channel(None);
    let (mut bundle, mut roots) = serving.receivers();
    let follow = async {
        loop {
            if let Some(Bundle { pem, .. }) = serving.client_roots() {
                wanted.send_replace(Some(json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": ROOT_CONFIG_MAP},
                    "data": {ROOT_CONFIG_MAP_KEY: pem},
                })));
            }
            Serving::client_roots_changed(&mut bundle, &mut roots).await;
        }
    };
    tokio::join!(follow, keep(api, ROOT_CONFIG_MAP, receiver, leader));
}
