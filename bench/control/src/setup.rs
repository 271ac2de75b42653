//! The objects: what a large cluster has, as far as the control plane sees it.

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Method;
use serde_json::{Value, json};

use crate::Arguments;
use crate::api::Api;
use crate::client::WHOLE;

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

fn daemon(number: usize) -> String {
    format!("fairlead-node-{number:04}")
}

/// A namespace whose pods are in the mesh.
pub(crate) fn meshed(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"istio.io/dataplane-mode": "ambient"}}})
}

/// A Sidecar for all pods of its namespace, or in the root namespace for those of all others.
pub(crate) fn sidecar(hosts: &str) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
        "metadata": {"name": "default"}, "spec": {"egress": [{"hosts": [hosts]}]}})
}

pub(crate) fn sidecars(namespace: &str) -> String {
    format!("/apis/networking.istio.io/v1/namespaces/{namespace}/sidecars")
}

pub(crate) fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// A node, and the pod of its daemon.
pub(crate) fn node_objects(node: &str, zone: usize, daemon: &str) -> [(String, Value); 2] {
    let labels = json!({"topology.kubernetes.io/zone": format!("zone-{}", zone % 3)});
    let pod = json!({"metadata": {"name": daemon},
        "spec": {"nodeName": node, "serviceAccountName": "fairlead-node", "hostNetwork": true,
                 "containers": [{"name": "c", "image": "i"}]}});
    [
        ("/api/v1/nodes".to_owned(), json!({"metadata": {"name": node, "labels": labels}})),
        (pods(SYSTEM), pod),
    ]
}

/// The EndpointSlice of a service; `first` is the first endpoint's address, if it has been changed.
pub(crate) fn slice(number: usize, first: Option<&str>, arguments: &Arguments) -> Value {
    let (namespace, name) = service(number, arguments);
    let endpoints: Vec<Value> = (0..arguments.endpoints)
        .map(|endpoint| {
            let own = address(number * arguments.endpoints + endpoint);
            let ip = first.filter(|_| endpoint == 0).map_or(own, ToOwned::to_owned);
            let mut value = json!({
                "addresses": [ip],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": node((number + endpoint * 7) % arguments.nodes.max(1)),
                "zone": format!("zone-{}", endpoint % 3),
            });
            if arguments.pod_references {
                value["targetRef"] = json!({"kind": "Pod", "namespace": namespace,
                    "name": format!("{name}-5d4f8c7b9-{endpoint:05}")});
            }
            value
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-1"), "namespace": namespace,
                     "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

pub(crate) async fn send_all(api: &Api, objects: Vec<(String, Value)>) -> Result<()> {
    stream::iter(objects)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |(path, object)| async move {
            api.put(Method::POST, &path, &object).await
        })
        .await
}

pub(crate) async fn make(api: &Api, arguments: &Arguments) -> Result<()> {
    let of = |name: &str| json!({"metadata": {"name": name}});
    let mut first = vec![("/api/v1/namespaces".to_owned(), of(SYSTEM))];
    for number in 0..arguments.namespaces {
        first.push(("/api/v1/namespaces".to_owned(), meshed(&namespace(number))));
    }
    send_all(api, first).await?;
    let accounts = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts");
    api.put(Method::POST, &accounts, &of("fairlead-node")).await?;
    // Pods reach their own namespace: what a mesh of this size does in its first week.
    api.put(Method::POST, &sidecars(SYSTEM), &sidecar("./*")).await?;

    let mut objects = Vec::new();
    for number in 0..arguments.nodes {
        let name = node(number);
        objects.extend(node_objects(&name, number, &daemon(number)));
        for pod in 0..arguments.pods {
            let of = namespace((number + pod * 37) % arguments.namespaces);
            let app = json!({"metadata": {"name": format!("app-{number:04}-{pod}")},
                "spec": {"nodeName": name, "containers": [{"name": "c", "image": "i"}]}});
            objects.push((pods(&of), app));
        }
    }
    for number in 0..arguments.services {
        let (namespace, name) = service(number, arguments);
        objects.push((
            format!("/api/v1/namespaces/{namespace}/services"),
            json!({"metadata": {"name": name}, "spec": {"selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        ));
        objects.push((
            format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
            slice(number, None, arguments),
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
    let map = api.client.send(Method::GET, &path, WHOLE, WHOLE, Bytes::new()).await?;
    let map: Value = serde_json::from_slice(&map)?;
    let pem = map["data"]["root-cert.pem"].as_str().context("no root-cert.pem")?;
    Ok(pem.to_owned())
}

/// A token for a pod of the daemon.
pub(crate) async fn token(api: &Api, pod: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/fairlead-node/token");
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": pod});
    let request = json!({"spec": {"audiences": ["istio-ca"], "expirationSeconds": 3600,
                                  "boundObjectRef": bound}});
    let answer = api.send(Method::POST, &path, &request).await?;
    Ok(answer["status"]["token"].as_str().context("no token")?.to_owned())
}

/// A token for the daemon of each node, by name of the node.
pub(crate) async fn tokens(api: &Api, nodes: usize) -> Result<Vec<(String, String)>> {
    stream::iter(0..nodes)
        .map(|number| async move { Ok((node(number), token(api, &daemon(number)).await?)) })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}
