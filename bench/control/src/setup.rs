//! The objects: what a large cluster has, as far as the control plane sees it.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Request;
use serde_json::{Value, json};

use crate::Arguments;
use crate::api::Api;

/// The controller's namespace.
pub(crate) const SYSTEM: &str = "fairlead-system";
/// Requests at a time.
const AT_ONCE: usize = 32;

pub(crate) fn namespace(number: usize) -> String {
    format!("app-{number:03}")
}

/// Namespace and name of a service.
pub(crate) fn service(number: usize, arguments: &Arguments) -> (String, String) {
    (namespace(number % arguments.namespaces), format!("svc-{number:05}"))
}

pub(crate) fn slice_path(number: usize, arguments: &Arguments) -> String {
    let (namespace, name) = service(number, arguments);
    format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}-1")
}

fn node(number: usize) -> String {
    format!("node-{number:04}")
}

async fn send_all(api: &Api, objects: Vec<(String, Value)>) -> Result<()> {
    stream::iter(objects)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |(path, object)| async move {
            api.send("POST", &path, &object).await.map(|_| ())
        })
        .await
}

pub(crate) async fn make(api: &Api, arguments: &Arguments) -> Result<()> {
    let of = |name: &str| json!({"metadata": {"name": name}});
    let mut first = vec![("/api/v1/namespaces".to_owned(), of(SYSTEM))];
    for number in 0..arguments.namespaces {
        let labels = json!({"istio.io/dataplane-mode": "ambient"});
        let object = json!({"metadata": {"name": namespace(number), "labels": labels}});
        first.push(("/api/v1/namespaces".to_owned(), object));
    }
    send_all(api, first).await?;
    let accounts = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts");
    api.send("POST", &accounts, &of("fairlead-node")).await?;
    // Pods reach their own namespace: what a mesh of this size does in its first week.
    let sidecars = format!("/apis/networking.istio.io/v1/namespaces/{SYSTEM}/sidecars");
    let sidecar = json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
        "metadata": {"name": "default"}, "spec": {"egress": [{"hosts": ["./*"]}]}});
    api.send("POST", &sidecars, &sidecar).await?;

    let mut objects = Vec::new();
    for number in 0..arguments.nodes {
        let name = node(number);
        let labels = json!({"topology.kubernetes.io/zone": format!("zone-{}", number % 3)});
        objects.push((
            "/api/v1/nodes".to_owned(),
            json!({"metadata": {"name": name, "labels": labels}}),
        ));
        let container = json!([{"name": "c", "image": "i"}]);
        let daemon = json!({"metadata": {"name": format!("fairlead-node-{number:04}")},
            "spec": {"nodeName": name, "serviceAccountName": "fairlead-node", "hostNetwork": true,
                     "containers": container}});
        objects.push((format!("/api/v1/namespaces/{SYSTEM}/pods"), daemon));
        for pod in 0..arguments.pods {
            let of = namespace((number + pod * 37) % arguments.namespaces);
            let app = json!({"metadata": {"name": format!("app-{number:04}-{pod}")},
                "spec": {"nodeName": name, "containers": container}});
            objects.push((format!("/api/v1/namespaces/{of}/pods"), app));
        }
    }
    for number in 0..arguments.services {
        let (namespace, name) = service(number, arguments);
        objects.push((
            format!("/api/v1/namespaces/{namespace}/services"),
            json!({"metadata": {"name": name}, "spec": {"selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        ));
        let endpoints: Vec<Value> = (0..arguments.endpoints)
            .map(|endpoint| {
                json!({
                    "addresses": [address(number * arguments.endpoints + endpoint)],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": node((number + endpoint * 7) % arguments.nodes.max(1)),
                    "zone": format!("zone-{}", endpoint % 3),
                    "targetRef": {"kind": "Pod", "namespace": namespace,
                                  "name": format!("{name}-5d4f8c7b9-{endpoint:05}")}
                })
            })
            .collect();
        let labels = json!({"kubernetes.io/service-name": name});
        objects.push((
            format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
            json!({"metadata": {"name": format!("{name}-1"), "labels": labels},
                "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}),
        ));
    }
    send_all(api, objects).await
}

/// An address that no other endpoint has.
fn address(number: usize) -> String {
    format!("11.{}.{}.{}", (number >> 16) & 255, (number >> 8) & 255, number & 255)
}

/// The certificates that the controller's listeners are known by.
pub(crate) async fn roots(api: &Api) -> Result<String> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/configmaps/fairlead-ca-root-cert");
    let map: Value = api.client.request(Request::get(path).body(Vec::new())?).await?;
    let pem = map["data"]["root-cert.pem"].as_str().context("no root-cert.pem")?;
    Ok(pem.to_owned())
}

/// A token for the daemon of each node, by name of the node.
pub(crate) async fn tokens(api: &Api, nodes: usize) -> Result<Vec<(String, String)>> {
    let tokens: Vec<(String, String)> = stream::iter(0..nodes)
        .map(|number| async move {
            let pod = format!("fairlead-node-{number:04}");
            let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/fairlead-node/token");
            let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": pod});
            let request = json!({"spec": {"audiences": ["istio-ca"], "expirationSeconds": 3600,
                                          "boundObjectRef": bound}});
            let answer = api.send("POST", &path, &request).await?;
            let token = answer["status"]["token"].as_str().context("no token")?;
            Ok::<_, anyhow::Error>((node(number), token.to_owned()))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    ensure!(tokens.len() == nodes, "{} tokens", tokens.len());
    Ok(tokens)
}
