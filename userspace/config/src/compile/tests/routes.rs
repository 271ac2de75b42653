//! Route tables of VirtualServices.

use std::time::Duration;

use fairlead_policy::route::HttpAction;

use super::*;

const JASON: &str = "---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - name: jason
    match:
    - headers: {end-user: {exact: jason}}
    - sourceLabels: {app: tester}
      uri: {prefix: /reviews}
    route:
    - destination: {host: reviews, subset: v2}
    timeout: 2s
    retries: {attempts: 3, perTryTimeout: 500ms, retryOn: '5xx,409'}
    fault:
      delay: {fixedDelay: 7s, percentage: {value: 10}}
      abort: {httpStatus: 418, percentage: {value: 0.5}}
    rewrite: {uri: /v2}
    headers:
      request: {set: {x-user: jason}, remove: [x-secret]}
  - route:
    - destination: {host: reviews.default.svc.cluster.local, subset: v1}
      weight: 80
    - destination: {host: reviews, subset: v3, port: {number: 9080}}
      weight: 20
";

#[test]
fn bookinfo_canary_with_header() {
    let fixture = Fixture::new(&(bookinfo() + JASON));
    assert_eq!(fixture.messages(), Vec::<String>::new());
    let port = fixture.port("default", "reviews", 9080);
    let everybody = select(&port, &Request::default()).unwrap();
    assert_eq!(&*everybody.name, "default");
    assert_eq!(
        fixture.forward(everybody),
        [
            ("outbound|9080|v1|reviews.default.svc.cluster.local".to_owned(), 80),
            ("outbound|9080|v3|reviews.default.svc.cluster.local".to_owned(), 20),
        ]
    );
    // Without `retries` the default of the mesh holds; without `timeout` there is none.
    assert_eq!(everybody.filters.retry.as_ref(), Some(&fixture.snapshot().mesh.default_retry));
    assert_eq!(everybody.filters.timeout, None);

    let jason = select(&port, &Request { headers: &[("end-user", "jason")], ..Request::default() })
        .unwrap();
    assert_eq!(&*jason.name, "jason");
    assert_eq!(
        fixture.forward(jason),
        [("outbound|9080|v2|reviews.default.svc.cluster.local".to_owned(), 1)]
    );
    let filters = &jason.filters;
    assert_eq!(filters.timeout, Some(Duration::from_secs(2)));
    let retry = filters.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.per_try_timeout), (3, Some(Duration::from_millis(500))));
    assert_eq!(retry.retry_on.to_string(), "5xx,retriable-status-codes,409");
    let fault = filters.fault.as_ref().unwrap();
    assert_eq!(fault.delay.as_ref().unwrap().fixed, Duration::from_secs(7));
    assert!(fault.abort.is_some() && filters.rewrite.is_some());
    assert!(!filters.headers.request.is_empty());

    // The second match is an OR; its fields are an AND.
    let tester = |path| Request { path, source: &[("app", "tester")], ..Request::default() };
    assert_eq!(&*select(&port, &tester("/reviews/1")).unwrap().name, "jason");
    assert_eq!(&*select(&port, &tester("/health")).unwrap().name, "default");
}

#[test]
fn retries_can_be_switched_off() {
    let yaml = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  http:
  - route: [{destination: {host: ratings}}]
    retries: {attempts: 0}
";
    let fixture = Fixture::new(&(bookinfo() + yaml));
    let port = fixture.port("default", "ratings", 9080);
    let filters = &select(&port, &Request::default()).unwrap().filters;
    assert_eq!(filters.retry.as_ref().map(|retry| retry.attempts), Some(0));
}

#[test]
fn subsets_have_their_endpoints_and_policy() {
    use fairlead_policy::balance::LoadBalancer;
    let fixture = Fixture::new(&(bookinfo() + JASON));
    let port = fixture.port("default", "reviews", 9080);
    let HttpAction::Forward(weighted) = &select(&port, &Request::default()).unwrap().action else {
        panic!("not forwarded");
    };
    let [v1, v3] = weighted.choices() else { panic!("{weighted:?}") };
    assert_eq!(fixture.endpoints(v1.cluster), ["10.0.1.1:9080"]);
    assert_eq!(fixture.endpoints(v3.cluster), ["10.0.1.3:9080"]);
    let balancer = |id| fixture.snapshot().cluster(id).unwrap().policy.balancer;
    assert_eq!(balancer(v1.cluster), LoadBalancer::Random);
    assert_eq!(balancer(v3.cluster), LoadBalancer::RoundRobin);
    assert_eq!(
        fixture.default_endpoints("default", "reviews", 9080),
        ["10.0.1.1:9080", "10.0.1.2:9080", "10.0.1.3:9080"]
    );
    assert_eq!(
        balancer(fixture.port("default", "ratings", 9080).common.default_cluster),
        LoadBalancer::default()
    );
}

#[test]
fn what_cannot_be_done_is_refused_and_said() {
    let fixture = Fixture::new(
        &(bookinfo()
            + "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  http:
  - match: [{uri: {exact: /none}}]
    route: [{destination: {host: ratings, subset: v9}}]
  - match: [{uri: {exact: /nobody}}]
    route: [{destination: {host: nobody}}]
  - match: [{uri: {exact: /short}}]
    route: [{destination: {host: ratings.default}}]
  - match: [{uri: {exact: /port}}]
    route: [{destination: {host: ratings, port: {number: 81}}}]
  - match: [{uri: {exact: /gone}}]
    redirect: {uri: /elsewhere}
  - match: [{uri: {exact: /part}}]
    route:
    - {destination: {host: ratings}, weight: 60}
    - {destination: {host: ratings, subset: v9}, weight: 40}
  - route: [{destination: {host: ratings}}]
"),
    );
    let port = fixture.port("default", "ratings", 9080);
    for path in ["/none", "/nobody", "/short", "/port", "/gone"] {
        let route = select(&port, &Request { path, ..Request::default() }).unwrap();
        assert_eq!(route.action, HttpAction::NoCluster, "{path}");
    }
    let part = select(&port, &Request { path: "/part", ..Request::default() }).unwrap();
    assert_eq!(
        fixture.forward(part),
        [
            ("outbound|9080||ratings.default.svc.cluster.local".to_owned(), 60),
            ("none".to_owned(), 40)
        ]
    );
    let messages = fixture.messages();
    for (field, what) in [
        ("spec.http[0].route[0].destination.subset", "no DestinationRule defines subset \"v9\""),
        ("spec.http[1].route[0].destination.host", "no service nobody.default.svc.cluster.local"),
        ("spec.http[2].route[0].destination.host", "<name>.<namespace>.svc.cluster.local"),
        ("spec.http[3].route[0].destination.port", "no TCP port 81; it has 9080"),
        ("spec.http[4].redirect", "answered 503"),
        ("spec.http[5].route[1].destination.subset", "its share of traffic is refused"),
    ] {
        let found = messages.iter().any(|m| {
            m.starts_with("VirtualService default/ratings: ")
                && m.contains(field)
                && m.contains(what)
        });
        assert!(found, "{field}: {what} is not in {messages:#?}");
    }
    assert_eq!(messages.len(), 6, "{messages:#?}");
}

#[test]
fn a_route_comes_to_life_with_its_destination() {
    let virtual_service = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  http: [{route: [{destination: {host: ratings-next}}]}]
";
    let next = service("ratings-next", "10.96.0.9", "http");
    let mut fixture = Fixture::new(&(bookinfo() + virtual_service));
    let action = |fixture: &Fixture| {
        let port = fixture.port("default", "ratings", 9080);
        select(&port, &Request::default()).unwrap().action.clone()
    };
    assert_eq!(action(&fixture), HttpAction::NoCluster);
    assert_eq!(fixture.messages().len(), 1);
    fixture.apply(&next);
    assert!(matches!(action(&fixture), HttpAction::Forward(_)));
    assert_eq!(fixture.messages().len(), 0);
    fixture.remove(&next);
    assert_eq!(action(&fixture), HttpAction::NoCluster);
    assert_eq!(fixture.messages().len(), 1);
}

#[test]
fn gateways_and_ports_choose_routes() {
    let yaml = bookinfo()
        + "---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: default}
spec:
  clusterIP: 10.96.0.7
  selector: {app: ratings}
  ports:
  - {name: http, port: 80}
  - {name: http-alt, port: 8080}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: default}
spec:
  hosts: [details]
  gateways: [edge]
  http: [{route: [{destination: {host: ratings}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: two, namespace: default}
spec:
  hosts: [two]
  gateways: [edge, mesh]
  http:
  - match: [{gateways: [edge]}]
    route: [{destination: {host: details}}]
  - match: [{port: 8080, gateways: [mesh]}]
    route: [{destination: {host: two}}]
";
    let fixture = Fixture::new(&yaml);
    assert_eq!(fixture.port("default", "details", 9080).common.http, None);
    // No route concerns port 80: it behaves as without a VirtualService (as with Istio).
    assert_eq!(fixture.port("default", "two", 80).common.http, None);
    let alt = fixture.port("default", "two", 8080);
    assert_eq!(
        fixture.forward(select(&alt, &Request::default()).unwrap()),
        [("outbound|8080||two.default.svc.cluster.local".to_owned(), 1)]
    );
}

#[test]
fn of_two_the_more_specific_then_the_older_wins() {
    let virtual_service = |name: &str, host: &str, created: &str, to: &str| {
        format!(
            "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: default, creationTimestamp: \"{created}\"}}
spec:
  hosts: [\"{host}\"]
  http: [{{name: {name}, route: [{{destination: {{host: {to}}}}}]}}]
"
        )
    };
    let name = |fixture: &Fixture, service: &str| {
        let port = fixture.port("default", service, 9080);
        select(&port, &Request::default()).map(|route| route.name.to_string())
    };
    let wide =
        virtual_service("wide", "*.default.svc.cluster.local", "2020-01-01T00:00:00Z", "details");
    let young = virtual_service("young", "ratings", "2024-02-01T00:00:00Z", "ratings");
    let old = virtual_service(
        "old",
        "ratings.default.svc.cluster.local",
        "2024-01-01T00:00:00Z",
        "ratings",
    );
    let mut fixture = Fixture::new(&(bookinfo() + &wide + &young));
    assert_eq!(name(&fixture, "ratings").as_deref(), Some("young"));
    assert_eq!(name(&fixture, "details").as_deref(), Some("wide"));
    fixture.apply(&old);
    assert_eq!(name(&fixture, "ratings").as_deref(), Some("old"));
    let messages = fixture.messages();
    assert_eq!(messages.len(), 1, "{messages:#?}");
    assert!(messages[0].starts_with("VirtualService default/young: spec.hosts[0]: warning"));
    assert!(messages[0].contains("VirtualService default/old"));
    fixture.remove(&old);
    assert_eq!(name(&fixture, "ratings").as_deref(), Some("young"));
    assert_eq!(fixture.messages().len(), 0);
    fixture.remove(&(wide + &young));
    assert_eq!(name(&fixture, "details"), None);
}

#[test]
fn tcp_routes() {
    let yaml = bookinfo()
        + "---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec:
  clusterIP: 10.96.0.8
  selector: {app: reviews}
  ports: [{name: tcp, port: 3306, targetPort: 3306}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: default}
spec:
  host: db
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: default}
spec:
  hosts: [db]
  tcp:
  - match: [{port: 3306, sourceLabels: {version: v2}}]
    route: [{destination: {host: db, subset: v2}}]
  - match: [{port: 3307}]
    route: [{destination: {host: ratings}}]
  - route:
    - {destination: {host: db, subset: v1}, weight: 80}
    - {destination: {host: db, subset: v2}, weight: 20}
";
    let fixture = Fixture::new(&yaml);
    let port = fixture.port("default", "db", 3306);
    assert_eq!(port.common.http, None);
    let table = port.common.tcp.as_ref().unwrap();
    assert_eq!(table.routes.len(), 2, "the route of another port is left out");
    let weights = |i: usize| fixture.weights(table.routes[i].destinations.as_ref().unwrap());
    let cluster = |subset: &str| format!("outbound|3306|{subset}|db.default.svc.cluster.local");
    assert_eq!(weights(0), [(cluster("v2"), 1)]);
    assert_eq!(weights(1), [(cluster("v1"), 80), (cluster("v2"), 20)]);
    assert_eq!(fixture.messages(), Vec::<String>::new());
}

#[test]
fn routes_of_other_sources_alone_are_none_at_all() {
    let yaml = |rest: &str| {
        bookinfo()
            + "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings, namespace: default}
spec:
  hosts: [ratings]
  http:
  - match: [{sourceLabels: {app: reviews}, uri: {prefix: /only}}]
    route: [{destination: {host: ratings}}]
" + rest
    };
    let asked = |fixture: &Fixture, app: &str| {
        let labels: Labels = [("app", app)].into_iter().collect();
        let source =
            SourceView { labels: &labels, namespace: "default", ip: "10.0.0.9".parse().unwrap() };
        fixture.port("default", "ratings", 9080).common.http(&source).is_some()
    };
    let fixture = Fixture::new(&yaml(""));
    assert!(asked(&fixture, "reviews"));
    assert!(!asked(&fixture, "productpage"));
    let fixture = Fixture::new(&yaml("  - route: [{destination: {host: ratings}}]\n"));
    assert!(asked(&fixture, "reviews") && asked(&fixture, "productpage"));
    let other = "  - match: [{uri: {exact: /x}}]\n    route: [{destination: {host: ratings}}]\n";
    assert!(asked(&Fixture::new(&yaml(other)), "productpage"));
}

#[test]
fn the_dump_shows_no_secrets() {
    let mut fixture = Fixture::new(&bookinfo());
    fixture.apply(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match:
    - headers:
        authorization: {exact: Bearer hunter1}
        x-api-key: {prefix: hunter2}
        cookie: {regex: \"(.*; )?session=hunter3(;.*)?\"}
        end-user: {exact: jason}
    headers:
      request:
        set: {authorization: Basic hunter4, x-plain: shown1}
        add: {Cookie: a=hunter5, X-API-Key: hunter6}
      response:
        set: {set-cookie: a=hunter7}
    route:
    - destination: {host: reviews}
      headers: {request: {set: {proxy-authorization: hunter8, x-other: shown2}}}
",
    );
    let text = crate::dump(fixture.snapshot()).to_string();
    for shown in ["shown1", "shown2", "jason", "authorization", "set-cookie", "redacted"] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    assert!(!text.contains("hunter"), "{text}");
    // They are sent all the same.
    let port = fixture.port("default", "reviews", 9080);
    let route = &port.common.http.as_ref().unwrap().routes[0];
    let mut headers = HeaderMap::new();
    route.filters.headers.request.apply(&mut headers);
    assert_eq!(headers["authorization"], "Basic hunter4");
}
