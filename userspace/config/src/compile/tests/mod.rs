//! Tests from YAML to snapshot.

mod incremental;
mod locality;
mod routes;
mod rules;
mod services;
mod virtual_hosts;
mod workloads;

use std::path::PathBuf;
use std::sync::Arc;

use fairlead_api::{ObjectKey, Resource};
use fairlead_policy::route::{ClusterId, HttpAction, HttpRoute, Weighted};
use fairlead_policy::{RequestView, SourceView};
use fairlead_types::Labels;
use http::{HeaderMap, Method};

use super::{Compiler, CompilerSettings, Problem, Update};
use crate::model::{ServicePort, Snapshot};
use crate::source::{Format, parse};

pub(super) type Objects = Vec<(ObjectKey, Option<Resource>)>;

/// Objects from YAML, all of which have to be valid.
pub(super) fn objects(yaml: &str) -> Objects {
    let parsed = parse(&Arc::new(PathBuf::from("test.yaml")), yaml, Format::Yaml);
    let errors: Vec<_> = parsed.problems.iter().filter(|p| p.is_error()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    parsed.objects.into_iter().map(|object| (object.key(), Some(object))).collect()
}

/// A compiler on node `node-a`, with objects from YAML.
pub(super) struct Fixture {
    pub(super) compiler: Compiler,
}

impl Fixture {
    pub(super) fn new(yaml: &str) -> Self {
        let mut fixture = Self { compiler: Compiler::new(CompilerSettings::new("node-a")) };
        fixture.apply(yaml);
        fixture
    }

    pub(super) fn apply(&mut self, yaml: &str) -> Vec<Problem> {
        let objects = objects(yaml);
        self.change(&objects)
    }

    pub(super) fn change(&mut self, objects: &[(ObjectKey, Option<Resource>)]) -> Vec<Problem> {
        self.compiler.apply(&Update { objects, fail_closed: None }).1
    }

    /// Takes the objects of `yaml` away.
    pub(super) fn remove(&mut self, yaml: &str) {
        let gone: Objects = objects(yaml).into_iter().map(|(key, _)| (key, None)).collect();
        self.change(&gone);
    }

    pub(super) fn snapshot(&self) -> &Arc<Snapshot> {
        self.compiler.snapshot()
    }

    pub(super) fn port(&self, namespace: &str, name: &str, port: u16) -> Arc<ServicePort> {
        Arc::clone(self.snapshot().service_port(namespace, name, port).unwrap())
    }

    pub(super) fn cluster_name(&self, id: ClusterId) -> String {
        self.snapshot().cluster(id).map_or("none".to_owned(), |c| c.name.to_string())
    }

    /// Names of clusters with their weights.
    pub(super) fn weights(&self, weighted: &Weighted) -> Vec<(String, u32)> {
        weighted.choices().iter().map(|c| (self.cluster_name(c.cluster), c.weight)).collect()
    }

    pub(super) fn forward(&self, route: &HttpRoute) -> Vec<(String, u32)> {
        match &route.action {
            HttpAction::Forward(weighted) => self.weights(weighted),
            other => panic!("{other:?}"),
        }
    }

    /// Addresses behind a cluster.
    pub(super) fn endpoints(&self, id: ClusterId) -> Vec<String> {
        let cluster = self.snapshot().cluster(id).unwrap();
        cluster.endpoints.iter().map(|e| e.addr().to_string()).collect()
    }

    pub(super) fn default_endpoints(&self, namespace: &str, name: &str, port: u16) -> Vec<String> {
        self.endpoints(self.port(namespace, name, port).common.default_cluster)
    }

    pub(super) fn messages(&self) -> Vec<String> {
        self.compiler.problems().iter().map(ToString::to_string).collect()
    }
}

/// A request, told in the little that routing looks at.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'static str, &'a str)],
    pub(super) source: &'a [(&'a str, &'a str)],
}

impl Default for Request<'_> {
    fn default() -> Self {
        Self { method: Method::GET, path: "/", headers: &[], source: &[] }
    }
}

/// The route of a port that a request takes.
pub(super) fn select<'p>(port: &'p ServicePort, request: &Request<'_>) -> Option<&'p HttpRoute> {
    let headers: HeaderMap =
        request.headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
    let labels: Labels = request.source.iter().copied().collect();
    let view = RequestView {
        method: &request.method,
        scheme: "http",
        authority: "host",
        path: request.path,
        query: None,
        headers: &headers,
    };
    let source =
        SourceView { labels: &labels, namespace: "default", ip: "10.0.0.9".parse().unwrap() };
    let table = port.common.http.as_ref()?;
    table.select(&view, &source, port.number).map(|selected| selected.route)
}

/// A pod: name, address, node and labels.
pub(super) fn pod(name: &str, ip: &str, node: &str, labels: &[(&str, &str)]) -> String {
    let labels: String = labels.iter().map(|(k, v)| format!("    {k}: \"{v}\"\n")).collect();
    format!(
        "---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: default
  labels:
    pod: {name}
{labels}spec:
  nodeName: {node}
  serviceAccountName: {sa}
  containers:
  - name: main
    ports:
    - name: web
      containerPort: 9080
status:
  phase: Running
  podIP: {ip}
  podIPs: [{{ip: {ip}}}]
",
        sa = name.split('-').next().unwrap()
    )
}

/// A service with one port that selects `app: <name>`.
pub(super) fn service(name: &str, vip: &str, port_name: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  clusterIP: {vip}
  selector: {{app: {name}}}
  ports:
  - {{name: {port_name}, port: 9080, targetPort: web}}
"
    )
}

/// The Bookinfo application on two nodes.
pub(super) fn bookinfo() -> String {
    let mut yaml = "---
apiVersion: v1
kind: Namespace
metadata:
  name: default
  labels: {istio.io/dataplane-mode: ambient}
"
    .to_owned();
    for (name, ip, node, app, version) in [
        ("productpage-v1", "10.0.0.1", "node-a", "productpage", "v1"),
        ("details-v1", "10.0.0.2", "node-a", "details", "v1"),
        ("reviews-v1", "10.0.1.1", "node-a", "reviews", "v1"),
        ("reviews-v2", "10.0.1.2", "node-b", "reviews", "v2"),
        ("reviews-v3", "10.0.1.3", "node-b", "reviews", "v3"),
        ("ratings-v1", "10.0.0.3", "node-b", "ratings", "v1"),
    ] {
        yaml += &pod(name, ip, node, &[("app", app), ("version", version)]);
    }
    for (name, vip) in [
        ("productpage", "10.96.0.1"),
        ("details", "10.96.0.2"),
        ("reviews", "10.96.0.3"),
        ("ratings", "10.96.0.4"),
    ] {
        yaml += &service(name, vip, "http");
    }
    yaml + REVIEWS_RULE
}

pub(super) const REVIEWS_RULE: &str = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - name: v3
    labels: {version: v3}
    trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
";
