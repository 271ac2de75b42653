//! Hosts of VirtualServices that are no service, and what an authority names.

use super::*;
use crate::model::AuthorityTarget;

const HOSTS: &str = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: site, namespace: default}
spec:
  hosts: [bookinfo.example.com, 10.1.2.3]
  http:
  - {name: site, route: [{destination: {host: productpage}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wide, namespace: default}
spec:
  hosts: ['*.example.com']
  http:
  - {name: wide, route: [{destination: {host: productpage}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: deep, namespace: default}
spec:
  hosts: ['*.deep.example.com']
  http:
  - {name: deep, route: [{destination: {host: details}}]}
";

fn target(fixture: &Fixture, authority: &str, namespace: &str) -> String {
    match fixture.snapshot().by_authority(authority, namespace, 9080) {
        Some(AuthorityTarget::Service(port)) => format!("service {}", port.service.name),
        Some(AuthorityTarget::VirtualHost(host)) => {
            let table = host.http(namespace, 9080).unwrap();
            format!("host {} by {}", host.host, table.routes[0].name)
        }
        None => "nothing".to_owned(),
    }
}

#[test]
fn authorities() {
    let fixture = Fixture::new(&(bookinfo() + HOSTS));
    for (authority, namespace, what) in [
        ("reviews", "default", "service reviews"),
        ("reviews:9080", "default", "service reviews"),
        ("Reviews.Default:1234", "elsewhere", "service reviews"),
        ("reviews.default.svc", "elsewhere", "service reviews"),
        ("reviews.default.svc.cluster.local.", "elsewhere", "service reviews"),
        ("reviews", "elsewhere", "nothing"),
        ("bookinfo.example.com", "default", "host bookinfo.example.com by site"),
        ("BOOKINFO.example.com:443", "default", "host bookinfo.example.com by site"),
        ("other.example.com", "default", "host *.example.com by wide"),
        ("a.b.deep.example.com", "default", "host *.deep.example.com by deep"),
        ("10.1.2.3:80", "default", "host 10.1.2.3 by site"),
        ("example.com", "default", "nothing"),
        ("notexample.com", "default", "nothing"),
        ("", "default", "nothing"),
    ] {
        assert_eq!(target(&fixture, authority, namespace), what, "{authority:?}");
    }
}

#[test]
fn a_service_of_the_same_name_takes_the_host_over() {
    let yaml = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v, namespace: default}
spec:
  hosts: [shop]
  http:
  - {name: shop, route: [{destination: {host: details}}]}
";
    let mut fixture = Fixture::new(&(bookinfo() + yaml));
    let host = "shop.default.svc.cluster.local";
    assert!(fixture.snapshot().virtual_host(host).is_some());
    fixture.apply(&service("shop", "10.96.0.77", "http"));
    assert!(fixture.snapshot().virtual_host(host).is_none());
    let port = fixture.port("default", "shop", 9080);
    assert_eq!(&*select(&port, &Request::default()).unwrap().name, "shop");
    fixture.remove(&service("shop", "10.96.0.77", "http"));
    assert!(fixture.snapshot().virtual_host(host).is_some());
    fixture.remove(yaml);
    assert!(fixture.snapshot().virtual_host(host).is_none());
}

#[test]
fn destinations_without_a_port_take_that_of_the_request() {
    let yaml = bookinfo().replace(
        "  - {name: http, port: 9080, targetPort: web}\n",
        "  - {name: http, port: 9080, targetPort: web}\n  - {name: http-alt, port: 8080, targetPort: web}\n",
    );
    let fixture = Fixture::new(&(yaml + HOSTS));
    let snapshot = fixture.snapshot();
    let host = snapshot.virtual_host("bookinfo.example.com").unwrap();
    let route = |port| &host.http("default", port).unwrap().routes[0];
    let cluster =
        |port: u16| vec![(format!("outbound|{port}||productpage.default.svc.cluster.local"), 1)];
    assert_eq!(fixture.forward(route(8080)), cluster(8080));
    assert_eq!(fixture.forward(route(9080)), cluster(9080));
    assert_eq!(route(80).action, HttpAction::NoCluster);
    assert_eq!(fixture.messages(), Vec::<String>::new());
}

#[test]
fn tcp_routes_of_what_is_no_service_are_reported() {
    let yaml = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: far, namespace: default}
spec:
  hosts: [db.example.com]
  tcp: [{route: [{destination: {host: ratings}}]}]
";
    let fixture = Fixture::new(&(bookinfo() + yaml));
    assert!(fixture.snapshot().virtual_host("db.example.com").is_none());
    let messages = fixture.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].contains("spec.tcp: warning: there is no service db.example.com"));
}
