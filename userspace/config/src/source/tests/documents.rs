//! Envelopes: kinds, versions, lists, syntax, unknown fields, types, lines.

use fairlead_api::{AccessLogEncoding, Kind, ObjectKey, OutboundTrafficPolicyMode, Resource};

use super::*;
use crate::source::{locate, mesh_config};

const NETWORKING: &str = "networking.istio.io/v1";

#[test]
fn every_document_counts_by_itself() {
    let text = format!(
        "---\n# nothing\n---\n{}---\n{}---\n{}...\n---\n",
        namespace("a", "1"),
        object(NETWORKING, "VirtualService", "  hosts: []\n"),
        namespace("b", "1"),
    );
    let parsed = yaml(&text);
    let names: Vec<String> = parsed.objects.iter().map(|r| r.key().to_string()).collect();
    assert_eq!(names, ["Namespace a", "Namespace b"]);
    assert_eq!(parsed.rejected[0].key, ObjectKey::new(Kind::VirtualService, "ns", "x"));
    assert!(!parsed.lost && !parsed.unreadable);
    let problem = &parsed.problems[0];
    // The comment's document is empty and does not count.
    assert_eq!(
        (problem.document, problem.object.as_ref().unwrap().to_string().as_str()),
        (2, "VirtualService ns/x")
    );
}

#[test]
fn lists_with_and_without_kinds_of_their_own() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- {apiVersion: networking.istio.io/v1beta1, kind: Gateway, metadata: {name: g}}\n";
    assert_eq!(yaml(list).objects.len(), 2);
    let typed = "apiVersion: networking.istio.io/v1\nkind: GatewayList\nmetadata: {resourceVersion: \"1\"}\nitems:\n- metadata: {name: a, namespace: n}\n- metadata: {name: b, namespace: n}\n  spec: {serverss: []}\n";
    let parsed = yaml(typed);
    assert_eq!(parsed.objects.len(), 1);
    assert_eq!(parsed.rejected[0].key, ObjectKey::new(Kind::Gateway, "n", "b"));
    assert!(
        summary(&parsed.problems).contains(&"error 7 spec.serverss".to_owned()),
        "{:?}",
        parsed.problems
    );
    assert!(yaml("apiVersion: v1\nkind: PodList\nitems: []\n").problems.is_empty());
}

#[test]
fn namespaces_are_filled_in() {
    let parsed = yaml(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: wrong}\n",
    );
    let keys: Vec<ObjectKey> = parsed.objects.iter().map(Resource::key).collect();
    assert_eq!(
        keys,
        [ObjectKey::new(Kind::Pod, "default", "a"), ObjectKey::new(Kind::Node, "", "n")]
    );
}

#[test]
fn every_served_version_is_taken() {
    for kind in Kind::ALL {
        for version in kind.versions() {
            let api_version = if kind.group().is_empty() {
                (*version).to_owned()
            } else {
                format!("{}/{version}", kind.group())
            };
            let text = format!(
                "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{}}\n"
            );
            let parsed = yaml(&text);
            let known = parsed.objects.len() + parsed.rejected.len();
            assert_eq!(known, 1, "{api_version} {kind}: {:?}", parsed.problems);
        }
    }
}

#[test]
fn kinds_that_are_not_ours() {
    for (text, expected, lost) in [
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n", "warning 2 kind", false),
        ("apiVersion: v1\nkind: Servise\nmetadata: {name: a}\n", "warning 2 kind", false),
        (
            "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: a}\n",
            "warning 2 kind",
            false,
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualServices\nmetadata: {name: a}\n",
            "error 2 kind",
            true,
        ),
        (
            "apiVersion: networking.istio.io/v2\nkind: VirtualService\nmetadata: {name: a}\n",
            "error 1 apiVersion",
            true,
        ),
        ("kind: Pod\nmetadata: {name: a}\n", "error 1 apiVersion", true),
        ("apiVersion: v1\nmetadata: {name: a}\n", "error 1 kind", true),
        ("apiVersion: v1\nkind: Pod\nmetadata: {namespace: a}\n", "error 3 metadata.name", true),
        ("- a\n- b\n", "error 1 ", true),
        ("just text\n", "error 1 ", true),
    ] {
        let parsed = yaml(text);
        assert_eq!(summary(&parsed.problems), [expected], "{text}");
        assert_eq!(parsed.lost, lost, "{text}");
        assert!(parsed.objects.is_empty() && parsed.rejected.is_empty(), "{text}");
    }
    let near =
        yaml("apiVersion: networking.istio.io/v1\nkind: VirtualServices\nmetadata: {name: a}\n");
    assert_eq!(near.problems[0].allowed.as_deref(), Some("did you mean VirtualService?"));
}

#[test]
fn a_slip_in_the_group_does_not_hide_a_policy() {
    let text = "apiVersion: securty.istio/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n";
    let parsed = yaml(text);
    assert!(parsed.lost && parsed.problems[0].is_error(), "{parsed:?}");
    // Another kind of the same name as one of ours is somebody else's.
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: a}\n";
    assert!(!yaml(text).lost);
}

#[test]
fn fields_are_found_again() {
    let text = format!(
        "{}---\napiVersion: v1\nkind: PodList\nitems:\n- metadata:\n    name: p\n  spec:\n    containers:\n    - name: c\n      ports:\n      - containerPort: 80\n",
        namespace("a", "1")
    );
    let pod = ObjectKey::new(Kind::Pod, "default", "p");
    let space = ObjectKey::new(Kind::Namespace, "", "a");
    let none = ObjectKey::new(Kind::Pod, "other", "p");
    let found = locate(
        &text,
        Format::Yaml,
        &[
            (&pod, "spec.containers[0].ports[0].containerPort"),
            (&pod, "spec.containers[0].image"),
            (&space, "metadata.labels[v]"),
            (&space, ""),
            (&none, ""),
        ],
    );
    let lines: Vec<_> = found.iter().map(|l| l.map(|l| (l.document, l.line.unwrap()))).collect();
    assert_eq!(lines, [Some((2, 16)), Some((2, 14)), Some((1, 5)), Some((1, 1)), None]);
}

#[test]
fn unknown_fields_are_told_with_their_place() {
    let text = object(
        NETWORKING,
        "VirtualService",
        "  hosts: [a]\n  http:\n  - route:\n    - destination: {host: a, prot: {number: 1}}\n    timout: 5s\n    match:\n    - headers:\n        x: {exakt: a}\n",
    );
    let parsed = yaml(&text);
    let mut found = summary(&parsed.problems);
    found.retain(|line| !line.ends_with("match[0].headers[x]"));
    assert_eq!(
        found,
        [
            "error 8 spec.http[0].route[0].destination.prot",
            "error 9 spec.http[0].timout",
            "error 12 spec.http[0].match[0].headers[x].exakt",
        ]
    );
    let allowed: Vec<_> = parsed.problems.iter().filter_map(|p| p.allowed.as_deref()).collect();
    assert_eq!(
        allowed[..3],
        ["did you mean port?", "did you mean timeout?", "did you mean exact?"]
    );
    assert!(parsed.objects.is_empty());
}

#[test]
fn kubernetes_kinds_and_metadata_may_hold_anything() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, managedFields: [{x: 1}]}\nspec: {dnsPolicy: Default, containers: [{name: c, image: i, env: [{name: A, value: b}]}]}\nstatus: {qosClass: x}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, annotations: {a: b}, finalizers: [x]}\nspec: {host: a}\nstatus: {observedGeneration: 1}\n";
    let parsed = yaml(text);
    assert_eq!((parsed.objects.len(), parsed.problems.len()), (2, 0), "{:?}", parsed.problems);
}

#[test]
fn values_of_the_wrong_type() {
    for (spec, field, allowed) in [
        ("  hosts: a\n", "spec.hosts", "a list"),
        ("  hosts: [1]\n", "spec.hosts[0]", "a string; put it in quotes to make it text"),
        ("  hosts: [a]\n  http: [{timeout: 5}]\n", "spec.http[0].timeout", "a duration such as"),
        ("  hosts: [a]\n  http: [{timeout: 5x}]\n", "spec.http[0].timeout", "a duration such as"),
        (
            "  hosts: [a]\n  http: [{match: [{port: 4294967296}]}]\n",
            "spec.http[0].match[0].port",
            "0 to 4294967295",
        ),
        (
            "  hosts: [a]\n  http: [{match: [{port: http}]}]\n",
            "spec.http[0].match[0].port",
            "0 to 4294967295",
        ),
        (
            "  hosts: [a]\n  http: [{match: [{ignoreUriCase: 1}]}]\n",
            "spec.http[0].match[0].ignoreUriCase",
            "true or false",
        ),
        (
            "  hosts: [a]\n  http: [{fault: {abort: {percentage: {value: x}}}}]\n",
            "spec.http[0].fault.abort.percentage.value",
            "a number",
        ),
        ("  hosts: [a]\n  http: [null]\n", "spec.http[0]", "an object"),
        ("  hosts: [a]\n  http: {}\n", "spec.http", "a list"),
        ("  - a\n", "spec", "an object"),
    ] {
        let parsed = yaml(&object(NETWORKING, "VirtualService", spec));
        let problem = &parsed.problems[0];
        assert_eq!(problem.field, field, "{spec}: {problem}");
        assert!(problem.allowed.as_deref().unwrap_or_default().contains(allowed), "{problem}");
        assert!(problem.line.is_some(), "{problem}");
        assert_eq!(parsed.rejected.len(), 1);
    }
    let parsed = yaml(&object(
        NETWORKING,
        "DestinationRule",
        "  host: a\n  trafficPolicy: {loadBalancer: {simple: ROUND_ROBBIN}}\n",
    ));
    assert_eq!(parsed.problems[0].field, "spec.trafficPolicy.loadBalancer.simple");
    assert!(
        parsed.problems[0]
            .allowed
            .as_deref()
            .unwrap()
            .starts_with("did you mean ROUND_ROBIN? one of")
    );
}

#[test]
fn habits_of_protobuf_json() {
    let spec = "  hosts: [a]\n  export_to: ['.']\n  gateways: null\n  http:\n  - retries: {attempts: \"3\", per_try_timeout: 2s, retry_on: 5xx}\n    match: [{uri: {prefix: /}, ignore_uri_case: yes}]\n    route: [{destination: {host: b, port: {number: 80}}, weight: 100}]\n    timeout: 1m30s\n";
    assert_errors(NETWORKING, "VirtualService", spec, &[]);
    let parsed = yaml(&object(NETWORKING, "VirtualService", spec));
    let Resource::VirtualService(object) = &parsed.objects[0] else { panic!() };
    let route = &object.spec.http[0];
    assert_eq!(route.retries.as_ref().unwrap().attempts, 3);
    assert_eq!(route.retries.as_ref().unwrap().per_try_timeout.unwrap().get().as_secs(), 2);
    assert_eq!(route.timeout.unwrap().get().as_secs(), 90);
    assert!(route.matches[0].ignore_uri_case);
    assert_eq!(object.spec.export_to, ["."]);
}

#[test]
fn anchors_merge_keys_and_tags() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  one: &a !!str 1\n  two: *a\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: &l {a: b, c: d}}\nspec: {nodeName: n, containers: [{name: c, ports: [{<<: &p {containerPort: 80, name: x}, name: y}]}]}\n";
    let parsed = yaml(text);
    assert_eq!(parsed.problems, []);
    let Resource::ConfigMap(map) = &parsed.objects[0] else { panic!() };
    assert_eq!(map.data["two"], "1");
    let Resource::Pod(pod) = &parsed.objects[1] else { panic!() };
    let port = &pod.spec.containers[0].ports[0];
    assert_eq!((port.container_port, port.name.as_str()), (80, "y"));
}

#[test]
fn duplicate_keys_spoil_their_document_alone() {
    let text = format!("a: 1\na: 2\n---\n{}", namespace("b", "1"));
    let parsed = yaml(&text);
    assert_eq!(parsed.objects.len(), 1);
    assert!(parsed.lost && !parsed.unreadable);
    assert_eq!(summary(&parsed.problems), ["error 2 "]);
    assert!(parsed.problems[0].message.contains("\"a\" is there twice"));
}

#[test]
fn a_file_that_is_no_yaml_counts_for_nothing() {
    let text = format!("{}---\nspec: [a\n", namespace("a", "1"));
    let parsed = yaml(&text);
    assert!(parsed.unreadable && parsed.objects.is_empty());
    assert!(parsed.problems[0].message.starts_with("not valid YAML"), "{:?}", parsed.problems);
    assert!(parsed.problems[0].line.is_some_and(|line| line >= 7), "{:?}", parsed.problems);
}

#[test]
fn json_files() {
    let file = Arc::new(PathBuf::from("a.json"));
    let text = "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\",\"labels\":{\"x\":\"\\ud83d\\ude00\\/\"}},\n\t\"spec\":{\"hostNetwork\":true,\"containers\":[{\"name\":\"c\",\"ports\":[{\"containerPort\":80}]}]}}";
    let parsed = parse(&file, text, Format::Json);
    assert_eq!(parsed.problems, []);
    let Resource::Pod(pod) = &parsed.objects[0] else { panic!() };
    assert_eq!(pod.metadata.labels["x"], "\u{1f600}/");
    assert!(pod.spec.host_network);
    assert!(parse(&file, "{\"a\":1,\"a\":2}", Format::Json).unreadable);
    assert!(parse(&file, &"[".repeat(100_000), Format::Json).unreadable);
}

#[test]
fn enrolment_that_says_nothing_is_told() {
    for (kind, metadata, path) in [
        (
            "Namespace",
            "labels: {istio.io/dataplane-mode: Ambient}",
            "labels[istio.io/dataplane-mode]",
        ),
        ("Namespace", "labels: {istio-injection: 'true'}", "labels[istio-injection]"),
        ("Pod", "labels: {fairlead.io/mesh: enable}", "labels[fairlead.io/mesh]"),
        (
            "Pod",
            "annotations: {sidecar.istio.io/inject: 'no'}",
            "annotations[sidecar.istio.io/inject]",
        ),
        ("Pod", "labels: {fairlead.io/mesh: enabled, sidecar.istio.io/inject: 'false'}", ""),
        ("Namespace", "labels: {istio-injection: disabled, sidecar.istio.io/inject: x}", ""),
    ] {
        let text = format!("apiVersion: v1\nkind: {kind}\nmetadata:\n  name: a\n  {metadata}\n");
        let parsed = yaml(&text);
        assert_eq!(parsed.objects.len(), 1, "{metadata}");
        let told: Vec<&str> = parsed.problems.iter().map(|p| p.field.as_str()).collect();
        match path {
            "" => assert!(told.is_empty(), "{metadata}: {told:?}"),
            _ => assert_eq!(told, [format!("metadata.{path}")], "{metadata}"),
        }
        assert!(!parsed.problems.iter().any(Problem::is_error));
    }
}

#[test]
fn core_kinds() {
    let service = "  clusterIP: 10.0.0.999\n  ports:\n  - {port: 0}\n  - {port: 80, name: a}\n  - {port: 80, name: a, targetPort: 70000}\n";
    let parsed = yaml(&object("v1", "Service", service));
    assert_eq!(parsed.problems[0].field, "spec.ports[2].targetPort");
    let service = "  clusterIP: 10.0.0.999\n  ports:\n  - {port: 0}\n  - {port: 80, name: a}\n  - {port: 80, name: a}\n";
    assert_errors(
        "v1",
        "Service",
        service,
        &[
            "spec.clusterIP",
            "spec.ports[0].port",
            "spec.ports[0].name",
            "spec.ports[2].name",
            "spec.ports[2].port",
        ],
    );
    assert_errors("v1", "Service", "  type: ClusterIP\n", &["spec.ports"]);
    assert_errors("v1", "Service", "  clusterIP: None\n", &[]);
    assert_errors("v1", "Service", "  type: ExternalName\n  externalName: db.example.com\n", &[]);
    let pod = "  containers: [{name: c, ports: [{containerPort: 0}]}]\nstatus: {podIPs: [{ip: fd00::1}, {ip: x}]}\n";
    assert_errors(
        "v1",
        "Pod",
        pod,
        &["status.podIPs[1].ip", "spec.containers[0].ports[0].containerPort"],
    );
    let slice = "  {}\naddressType: IPv4\nendpoints: [{addresses: ['fd00::1']}, {addresses: []}]\nports: [{port: 0}]\n";
    let parsed = yaml(&object("discovery.k8s.io/v1", "EndpointSlice", slice));
    assert_eq!(
        parsed.problems.iter().map(|p| p.field.as_str()).collect::<Vec<_>>(),
        ["metadata.labels", "endpoints[0].addresses[0]", "endpoints[1].addresses", "ports[0].port"]
    );
    assert_errors("v1", "Node", "  podCIDR: 10.0.0.1\n", &["spec.podCIDR"]);
    let bad_name = yaml("apiVersion: v1\nkind: Pod\nmetadata: {name: A_b, namespace: x.y}\n");
    assert_eq!(
        summary(&bad_name.problems),
        ["error 3 metadata.name", "error 3 metadata.namespace"]
    );
}

#[test]
fn secrets_do_not_leak_into_problems() {
    let parsed =
        yaml("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {password: 31337}\n");
    let text = format!("{:?} {:?}", parsed.problems, parsed.objects);
    assert_eq!(parsed.problems[0].field, "stringData[password]");
    assert!(!text.contains("31337"), "{text}");
}

#[test]
fn mesh_settings() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |-\n    trustDomain: example.org\n    accessLogFile: /dev/stdout\n    accessLogEncoding: JSON\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n    enableTracing: true\n    ingressClass: istio\n    defaultConfig: {concurrency: 2, tracing: {}}\n";
    let parsed = yaml(text);
    let found = summary(&parsed.problems);
    assert_eq!(
        found,
        [
            "warning 11 data[mesh].ingressClass",
            "warning 12 data[mesh].defaultConfig.tracing",
            "warning 10 data[mesh].enableTracing",
            "warning 12 data[mesh].defaultConfig"
        ]
    );
    let Resource::ConfigMap(map) = &parsed.objects[0] else { panic!() };
    let mesh = mesh_config(map).unwrap();
    assert_eq!(
        (mesh.trust_domain.as_str(), mesh.access_log_encoding),
        ("example.org", AccessLogEncoding::Json)
    );
    assert_eq!(mesh.outbound_traffic_policy.mode, OutboundTrafficPolicyMode::RegistryOnly);

    for (mesh, expected) in [
        ("trustDomain: Foo_Bar", "error 6 data[mesh].trustDomain"),
        ("rootNamespace: a.b", "error 6 data[mesh].rootNamespace"),
        ("connectTimeout: 0s", "error 6 data[mesh].connectTimeout"),
        ("accessLogEncoding: XML", "error 6 data[mesh].accessLogEncoding"),
        ("trustDomainAliases: [ok, 'a b']", "error 6 data[mesh].trustDomainAliases[1]"),
        (
            "defaultHttpRetryPolicy: {attempts: 2, retryOn: bogus}",
            "error 6 data[mesh].defaultHttpRetryPolicy.retryOn",
        ),
        ("[", "error 7 data[mesh]"),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {mesh}\n"
        );
        let parsed = yaml(&text);
        assert_eq!(summary(&parsed.problems), [expected], "{mesh}: {:?}", parsed.problems);
        assert_eq!(parsed.rejected.len(), 1);
    }
}
