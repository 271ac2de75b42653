//! DestinationRules: which applies to whom.

use std::time::Duration;

use fairlead_policy::balance::LoadBalancer;

use super::*;
use crate::model::UpstreamTls;

fn rule(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"
    )
}

const RATINGS: &str = "ratings.default.svc.cluster.local";

fn balancer_for(fixture: &Fixture, client: &str) -> LoadBalancer {
    let port = fixture.port("default", "ratings", 9080);
    fixture.snapshot().cluster(port.routes(client).default_cluster).unwrap().policy.balancer
}

#[test]
fn namespaces_and_hosts_decide_which_rule_applies() {
    let root = rule(
        "istio-system",
        "root",
        "{host: '*', trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
    );
    let wide = rule(
        "default",
        "wide",
        "{host: '*.default.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}",
    );
    let exact = rule(
        "default",
        "exact",
        "{host: ratings, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}",
    );
    let mut fixture = Fixture::new(&bookinfo());
    assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::default());
    fixture.apply(&root);
    assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::Random);
    fixture.apply(&wide);
    assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::Passthrough);
    fixture.apply(&exact);
    assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::RoundRobin);
    fixture.remove(&exact);
    assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::Passthrough);
    fixture.remove(&(root + &wide));
    assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::default());
}

/// A pod in namespace `shop` on this node, and one in `far` on another.
fn clients() -> String {
    let pod = |namespace: &str, node: &str, ip: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {namespace}, labels: {{fairlead.io/mesh: enabled}}}}
spec: {{nodeName: {node}, containers: [{{name: main}}]}}
status: {{phase: Running, podIP: {ip}}}
"
        )
    };
    pod("shop", "node-a", "10.0.5.1") + &pod("far", "node-b", "10.0.5.2")
}

#[test]
fn a_clients_own_rule_is_its_own() {
    let own = |namespace: &str| {
        let spec = format!(
            "{{host: {RATINGS}, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}, subsets: [{{name: mine, labels: {{version: v1}}}}]}}"
        );
        rule(namespace, "own", &spec)
    };
    let mut fixture = Fixture::new(&(bookinfo() + &own("shop") + &own("far")));
    // No client of these namespaces is here: nothing to compile for them.
    assert!(fixture.port("default", "ratings", 9080).namespaced.is_empty());
    fixture.apply(&clients());
    assert_eq!(balancer_for(&fixture, "shop"), LoadBalancer::Random);
    assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::default());
    assert_eq!(balancer_for(&fixture, "far"), LoadBalancer::default(), "its clients are elsewhere");

    // A subset that only `shop` knows is only there for its clients.
    fixture.apply(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  http: [{route: [{destination: {host: ratings, subset: mine}}]}]
",
    );
    let port = fixture.port("default", "ratings", 9080);
    let action = |client: &str| port.routes(client).http.as_ref().unwrap().routes[0].action.clone();
    assert_eq!(action("default"), HttpAction::NoCluster);
    assert!(matches!(action("shop"), HttpAction::Forward(_)));
    fixture.remove(&clients());
    assert!(fixture.port("default", "ratings", 9080).namespaced.is_empty());
}

#[test]
fn exports_are_honoured() {
    let private = rule(
        "default",
        "private",
        "{host: ratings, exportTo: ['.'], trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
    );
    let routes = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  exportTo: [shop]
  http: [{name: for-shop, route: [{destination: {host: ratings}}]}]
";
    let fixture = Fixture::new(&(bookinfo() + &clients() + &private + routes));
    assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::Random);
    assert_eq!(balancer_for(&fixture, "shop"), LoadBalancer::default());
    let port = fixture.port("default", "ratings", 9080);
    assert!(port.routes("shop").http.is_some());
    assert_eq!(port.routes("default").http, None);
    assert_eq!(port.routes("elsewhere").http, None);
}

/// MeshConfig's defaults hold for what says nothing of `exportTo`, whichever comes first, and no
/// longer than they are there.
#[test]
fn default_exports_hold_where_nothing_is_said() {
    let random = "trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    let silent = rule("default", "silent", &format!("{{host: ratings, {random}}}"));
    let public =
        rule("default", "public", &format!("{{host: reviews, exportTo: ['*'], {random}}}"));
    let routes = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  http: [{name: silent, route: [{destination: {host: ratings}}]}]
";
    let mesh = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    defaultVirtualServiceExportTo: [shop]
    defaultDestinationRuleExportTo: ['.']
";
    let clients_see = |fixture: &Fixture| {
        let port = fixture.port("default", "ratings", 9080);
        ["default", "shop", "elsewhere"].map(|client| port.routes(client).http.is_some())
    };
    let objects = bookinfo() + &clients() + &silent + &public + routes;
    for (first, then) in [(objects.clone() + mesh, ""), (objects.clone(), mesh)] {
        let mut fixture = Fixture::new(&first);
        fixture.apply(then);
        assert_eq!(balancer_for(&fixture, "default"), LoadBalancer::Random);
        assert_eq!(balancer_for(&fixture, "shop"), LoadBalancer::default());
        assert_eq!(clients_see(&fixture), [false, true, false]);
        fixture.remove(mesh);
        assert_eq!(balancer_for(&fixture, "shop"), LoadBalancer::Random);
        assert_eq!(clients_see(&fixture), [true; 3]);
    }
}

#[test]
fn ports_subsets_and_defaults_are_laid_over_each_other() {
    let rule = rule(
        "default",
        "reviews-two",
        "
  host: ratings
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {tcp: {connectTimeout: 30ms}}
    portLevelSettings:
    - port: {number: 8080}
      loadBalancer: {simple: ROUND_ROBIN}
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy: {tls: {mode: DISABLE}}",
    );
    let yaml = bookinfo().replace(
        "  - {name: http, port: 9080, targetPort: web}\n",
        "  - {name: http, port: 9080, targetPort: web}\n  - {name: http-alt, port: 8080, targetPort: web}\n",
    );
    let fixture = Fixture::new(&(yaml + &rule));
    let snapshot = fixture.snapshot();
    let policy =
        |name: &str| &snapshot.clusters.values().find(|c| &*c.name == name).unwrap().policy;
    let common = policy("outbound|9080||ratings.default.svc.cluster.local");
    assert_eq!(common.balancer, LoadBalancer::Random);
    assert_eq!(common.connect_timeout, Duration::from_millis(30));
    assert_eq!(common.tls, UpstreamTls::Auto);
    let subset = policy("outbound|9080|v1|ratings.default.svc.cluster.local");
    assert_eq!((subset.balancer, &subset.tls), (LoadBalancer::Random, &UpstreamTls::Disable));
    // Settings of a port do not inherit.
    let port = policy("outbound|8080||ratings.default.svc.cluster.local");
    assert_eq!(port.balancer, LoadBalancer::RoundRobin);
    assert_eq!(port.connect_timeout, Duration::from_secs(10));
}

#[test]
fn tls_modes() {
    let mut fixture = Fixture::new(&bookinfo());
    let mut tls = |spec: &str| {
        fixture.apply(&rule(
            "default",
            "r",
            &format!("{{host: ratings, trafficPolicy: {{tls: {spec}}}}}"),
        ));
        let port = fixture.port("default", "ratings", 9080);
        let tls =
            fixture.snapshot().cluster(port.common.default_cluster).unwrap().policy.tls.clone();
        (tls, fixture.messages())
    };
    assert_eq!(tls("{mode: DISABLE}").0, UpstreamTls::Disable);
    assert_eq!(tls("{mode: ISTIO_MUTUAL}").0, UpstreamTls::Mutual { sans: Box::default() });
    let san = "spiffe://cluster.local/ns/default/sa/ratings";
    let (mutual, messages) = tls(&format!("{{mode: ISTIO_MUTUAL, subjectAltNames: [\"{san}\"]}}"));
    assert_eq!(mutual, UpstreamTls::Mutual { sans: [san.parse().unwrap()].into() });
    assert_eq!(messages, Vec::<String>::new());
    let (simple, messages) = tls("{mode: SIMPLE}");
    assert!(matches!(simple, UpstreamTls::Refused { .. }));
    assert!(messages[0].contains("spec.trafficPolicy.tls.mode: error"), "{messages:?}");
}

#[test]
fn a_rule_for_some_workloads_is_theirs_alone() {
    let client = |name: &str, ip: &str, labels: &str| {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{{labels}}}}}
spec: {{nodeName: node-a, containers: [{{name: main}}]}}
status: {{phase: Running, podIP: {ip}}}
"
        )
    };
    let mut fixture = Fixture::new(&(bookinfo() + &client("red", "10.0.7.1", "color: red")));
    fixture.apply(&client("blue", "10.0.7.2", "color: blue"));
    let balancer = |fixture: &Fixture, pod: &str| {
        let snapshot = fixture.snapshot();
        let id = format!("default/{pod}");
        let local = snapshot.local.values().find(|local| local.workload.id.as_str() == id).unwrap();
        balancer_for(fixture, snapshot.client(&local.workload))
    };
    let for_all = rule(
        "default",
        "all",
        "{host: ratings, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: all, labels: {version: v1}}]}",
    );
    let some = |color: &str| {
        let spec = format!(
            "{{host: ratings, workloadSelector: {{matchLabels: {{color: {color}}}}}, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}, subsets: [{{name: some, labels: {{version: v1}}}}]}}"
        );
        rule("default", "some", &spec)
    };
    let (random, cyclic) = (LoadBalancer::Random, LoadBalancer::RoundRobin);
    fixture.apply(&some("red"));
    assert_eq!(balancer(&fixture, "red"), random);
    assert_eq!(balancer(&fixture, "blue"), LoadBalancer::default());
    assert_eq!(balancer(&fixture, "productpage-v1"), LoadBalancer::default());
    // Before a rule for all, though it is the younger by name, and apart from its subsets.
    fixture.apply(&for_all);
    assert_eq!((balancer(&fixture, "red"), balancer(&fixture, "blue")), (random, cyclic));
    let subsets = |fixture: &Fixture, client: Option<&str>| -> Vec<String> {
        let clusters = fixture.snapshot().clusters.values();
        let mut names: Vec<String> = clusters
            .filter(|c| &*c.service.name == "ratings" && c.client.as_deref() == client)
            .filter_map(|c| c.subset.as_deref().map(str::to_owned))
            .collect();
        names.sort();
        names
    };
    assert_eq!(subsets(&fixture, None), ["all"]);
    assert_eq!(subsets(&fixture, Some("default/some")), ["some"]);
    // Another selector, another label, another namespace.
    fixture.apply(&some("blue"));
    assert_eq!((balancer(&fixture, "red"), balancer(&fixture, "blue")), (cyclic, random));
    fixture.apply(&client("red", "10.0.7.1", "color: blue"));
    assert_eq!(balancer(&fixture, "red"), random);
    fixture.remove(&some("blue"));
    assert_eq!((balancer(&fixture, "red"), balancer(&fixture, "blue")), (cyclic, cyclic));
    assert!(fixture.snapshot().clients.is_empty());
    let elsewhere = some("blue").replace("namespace: default", "namespace: shop");
    fixture.apply(&elsewhere.replace("host: ratings", &format!("host: {RATINGS}")));
    assert_eq!((balancer(&fixture, "red"), balancer(&fixture, "blue")), (cyclic, cyclic));
}
