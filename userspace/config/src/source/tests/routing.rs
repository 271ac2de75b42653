//! VirtualService, DestinationRule and ServiceEntry: each fault at its field.

use super::*;

const NETWORKING: &str = "networking.istio.io/v1";

fn http(route: &str, fields: &[&str]) {
    let spec = format!("  hosts: [reviews]\n  http:\n  - {route}\n");
    let fields: Vec<String> = fields.iter().map(|field| format!("spec.http[0]{field}")).collect();
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    assert_errors(NETWORKING, "VirtualService", &spec, &fields);
}

const TO: &str = "route: [{destination: {host: reviews}}]";

#[test]
fn virtual_services() {
    for (spec, fields) in [
        (
            "  hosts: [reviews, '*.example.com', 10.0.0.1, a_b.svc]\n  http: [{route: [{destination: {host: reviews, subset: v1, port: {number: 9080}}}]}]\n",
            &[][..],
        ),
        ("  hosts: [reviews]\n", &["spec"]),
        ("  hosts: ['*']\n  gateways: [gw]\n  http: [{route: [{destination: {host: a}}]}]\n", &[]),
        ("  hosts: ['*']\n  http: [{route: [{destination: {host: a}}]}]\n", &["spec.hosts[0]"]),
        ("  hosts: ['']\n  http: [{route: [{destination: {host: a}}]}]\n", &["spec.hosts[0]"]),
        (
            "  hosts: ['a b', 'x*.y', a, a]\n  http: [{route: [{destination: {host: a}}]}]\n",
            &["spec.hosts[0]", "spec.hosts[1]", "spec.hosts[3]"],
        ),
        (
            "  hosts: ['*.com', '*.foo.com']\n  http: [{route: [{destination: {host: a}}]}]\n",
            &["spec.hosts[1]"],
        ),
        (
            "  hosts: [a]\n  gateways: [mesh, ns/gw, 'bad ns/gw', '/gw']\n  http: [{route: [{destination: {host: a}}]}]\n",
            &["spec.gateways[2]", "spec.gateways[3]"],
        ),
        (
            "  hosts: [a]\n  exportTo: ['.', ns]\n  http: [{route: [{destination: {host: a}}]}]\n",
            &["spec.exportTo[1]"],
        ),
        (
            "  hosts: [a]\n  exportTo: ['*', b]\n  http: [{route: [{destination: {host: a}}]}]\n",
            &["spec.exportTo[0]"],
        ),
        (
            "  hosts: [a]\n  exportTo: ['A']\n  http: [{route: [{destination: {host: a}}]}]\n",
            &["spec.exportTo[0]"],
        ),
        ("  tcp: [{route: [{destination: {host: a}}]}]\n", &["spec.tcp", "spec.hosts"]),
    ] {
        assert_errors(NETWORKING, "VirtualService", spec, fields);
    }
}

#[test]
fn http_routes_and_weights() {
    http(TO, &[]);
    http(
        "route: [{destination: {host: a}, weight: 80}, {destination: {host: b}, weight: 20}]",
        &[],
    );
    http("route: [{destination: {host: a}, weight: 3}, {destination: {host: b}}]", &[]);
    http("route: [{destination: {host: a}}, {destination: {host: b}}]", &[".route"]);
    http(
        "route: [{destination: {host: a}, weight: -1}, {destination: {host: b}, weight: 1}]",
        &[".route[0].weight"],
    );
    http("route: [{weight: 1}]", &[".route[0].destination"]);
    http("route: [{destination: {}}]", &[".route[0].destination.host"]);
    http("route: [{destination: {host: '*.a'}}]", &[".route[0].destination.host"]);
    http(
        "route: [{destination: {host: a, subset: 'v 1', port: {number: 65536}}}]",
        &[".route[0].destination.subset", ".route[0].destination.port.number"],
    );
    http("route: [{destination: {host: a, port: {}}}]", &[".route[0].destination.port.number"]);
    http("name: x", &[".route"]);
    http(&format!("{{{TO}, redirect: {{uri: /x}}}}"), &[".redirect"]);
    http(
        "redirect: {uri: /x, port: 1, derivePort: FROM_REQUEST_PORT, redirectCode: 200}",
        &[".redirect.derivePort", ".redirect.redirectCode"],
    );
    http("redirect: {}", &[".redirect"]);
    http("{redirect: {uri: /x}, fault: {abort: {httpStatus: 500}}}", &[".fault"]);
    http("directResponse: {status: 42}", &[".directResponse.status"]);
    http("directResponse: {status: 503, body: {}}", &[".directResponse.body"]);
    http("delegate: {namespace: x}", &[".delegate.name"]);
    http(&format!("{{{TO}, timeout: 0.1ms}}"), &[".timeout"]);
    http(
        &format!(
            "{{{TO}, mirrorPercentage: {{value: 101}}, mirrors: [{{percentage: {{value: 5}}}}]}}"
        ),
        &[".mirrorPercentage.value", ".mirrors[0].destination"],
    );
}

#[test]
fn matches() {
    let with = |one: &str| format!("{{{TO}, match: [{one}]}}");
    http(
        &with(
            "{uri: {prefix: /a}, method: {exact: GET}, headers: {x: {}, cookie: {regex: '^(.*?; )?(user=jason)(;.*)?$'}}, port: 80, sourceLabels: {app: a}, gateways: [mesh]}",
        ),
        &[],
    );
    http(&with("{uri: {}}"), &[".match[0].uri"]);
    http(&with("{uri: {prefix: ''}}"), &[".match[0].uri.prefix"]);
    http(&with("{uri: {regex: ''}}"), &[".match[0].uri.regex"]);
    http(&with("{uri: {regex: '('}}"), &[".match[0].uri.regex"]);
    http(&with(&format!("{{uri: {{regex: '{}'}}}}", "a".repeat(1025))), &[".match[0].uri.regex"]);
    http(&with("{uri: {regex: '(((a{100}){100}){100}){100}'}}"), &[".match[0].uri.regex"]);
    // Look-around is not RE2.
    http(&with("{uri: {regex: '(?!x)'}}"), &[".match[0].uri.regex"]);
    http(&with("{uri: {exact: /a, prefix: /b}}"), &[".match[0].uri"]);
    http(&with("{headers: {'a b': {exact: c}}}"), &[".match[0].headers[a b]"]);
    http(&with("{headers: {':method': {exact: GET}}}"), &[]);
    http(
        &with("{headers: {'@request.auth.claims.x': {exact: c}}}"),
        &[".match[0].headers[@request.auth.claims.x]"],
    );
    http(&with("{queryParams: {v: {regex: '['}}}"), &[".match[0].queryParams[v].regex"]);
    http(&with("{withoutHeaders: {x: {prefix: ''}}}"), &[".match[0].withoutHeaders[x].prefix"]);
    http(&with("{port: 0}"), &[".match[0].port"]);
    http(
        &with("{sourceLabels: {'a b': 'c d'}}"),
        &[".match[0].sourceLabels[a b]", ".match[0].sourceLabels[a b]"],
    );
    http(&with("{sourceNamespace: 'A'}"), &[".match[0].sourceNamespace"]);
}

#[test]
fn actions() {
    let with = |action: &str| format!("{{{TO}, {action}}}");
    http(
        &with(
            "retries: {attempts: 3, perTryTimeout: 2s, retryOn: 'connect-failure,503, gateway-error'}",
        ),
        &[],
    );
    http(&with("retries: {attempts: -1}"), &[".retries.attempts"]);
    http(&with("retries: {attempts: 0}"), &[]);
    http(&with("retries: {attempts: 0, retryOn: 5xx}"), &[".retries.attempts"]);
    http(
        &with("retries: {attempts: 1, perTryTimeout: 0s, retryOn: nope}"),
        &[".retries.perTryTimeout", ".retries.retryOn"],
    );
    http(&with("fault: {}"), &[".fault"]);
    http(
        &with(
            "fault: {delay: {fixedDelay: 5s, percentage: {value: 10.5}}, abort: {httpStatus: 503, percentage: {value: 0}}}",
        ),
        &[],
    );
    http(&with("fault: {delay: {percentage: {value: 10}}}"), &[".fault.delay.fixedDelay"]);
    http(
        &with("fault: {delay: {fixedDelay: 0s, percentage: {value: 100.1}}}"),
        &[".fault.delay.fixedDelay", ".fault.delay.percentage.value"],
    );
    http(
        &with("fault: {abort: {percentage: {value: -1}}}"),
        &[".fault.abort", ".fault.abort.percentage.value"],
    );
    http(&with("fault: {abort: {httpStatus: 500, grpcStatus: UNAVAILABLE}}"), &[".fault.abort"]);
    http(&with("fault: {abort: {httpStatus: 199}}"), &[".fault.abort.httpStatus"]);
    http(&with("fault: {abort: {grpcStatus: NOPE}}"), &[".fault.abort.grpcStatus"]);
    http(&with("rewrite: {uri: /x, authority: b}"), &[]);
    http(&with("rewrite: {}"), &[".rewrite"]);
    http(
        &with("rewrite: {uri: /x, uriRegexRewrite: {match: '(', rewrite: x}}"),
        &[".rewrite.uriRegexRewrite", ".rewrite.uriRegexRewrite.match"],
    );
    http(
        &with("rewrite: {authority: b}, headers: {request: {set: {Host: c}}}"),
        &[".rewrite.authority"],
    );
    http(
        &with(
            "headers: {request: {set: {x: y, ':authority': z}, add: {a: b}, remove: [c]}, response: {remove: [d]}}",
        ),
        &[],
    );
    http(
        &with(
            "headers: {request: {set: {':path': y}, remove: [host]}, response: {add: {'a b': c, x: \"a\\nb\"}}}",
        ),
        &[
            ".headers.request.set[:path]",
            ".headers.request.remove[0]",
            ".headers.response.add[a b]",
            ".headers.response.add[x]",
        ],
    );
    http(
        "route: [{destination: {host: a}, headers: {response: {set: {':status': '1'}}}}]",
        &[".route[0].headers.response.set[:status]"],
    );
}

#[test]
fn tls_and_tcp_routes() {
    for (spec, fields) in [
        (
            "  hosts: [a]\n  tcp: [{match: [{port: 27017, destinationSubnets: [10.0.0.0/8]}], route: [{destination: {host: a}, weight: 80}, {destination: {host: b}, weight: 20}]}]\n",
            &[][..],
        ),
        (
            "  hosts: [a]\n  tcp: [{match: [{port: 0, destinationSubnets: [10.0.0.0/33], sourceSubnet: x}]}]\n",
            &[
                "spec.tcp[0].match[0].destinationSubnets[0]",
                "spec.tcp[0].match[0].sourceSubnet",
                "spec.tcp[0].match[0].port",
                "spec.tcp[0].route",
            ],
        ),
        (
            "  hosts: [a]\n  tls: [{match: [{sniHosts: [a]}], route: [{destination: {host: a}}]}]\n",
            &[],
        ),
        ("  hosts: [a]\n  tls: [{route: [{destination: {host: a}}]}]\n", &["spec.tls[0].match"]),
        (
            "  hosts: [a]\n  tls: [{match: [{port: 443}], route: []}]\n",
            &["spec.tls[0].match[0].sniHosts", "spec.tls[0].route"],
        ),
    ] {
        assert_errors(NETWORKING, "VirtualService", spec, fields);
    }
}

#[test]
fn what_has_no_effect_is_told() {
    let spec = "  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}]\n    mirror: {host: b}\n    corsPolicy: {allowOrigins: [{exact: x}]}\n";
    assert_warnings(
        NETWORKING,
        "VirtualService",
        spec,
        &["spec.http[0].mirror", "spec.http[0].corsPolicy"],
    );
    // Routes behind one that takes everything.
    let spec = "  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}]\n  - route: [{destination: {host: b}}]\n    match: [{uri: {prefix: /}}]\n";
    assert_warnings(NETWORKING, "VirtualService", spec, &["spec.http[1]"]);
    let spec = "  hosts: [a]\n  http:\n  - route: [{destination: {host: a}}]\n    match: [{uri: {prefix: /}}]\n  - route: [{destination: {host: b}}]\n    match: [{name: two, uri: {prefix: /}}]\n";
    assert_warnings(
        NETWORKING,
        "VirtualService",
        spec,
        &["spec.http[1].match[0]", "spec.http[1].match[0].name"],
    );
    let spec = "  host: a\n  trafficPolicy: {outlierDetection: {interval: 1s}, loadBalancer: {simple: RANDOM}}\n";
    assert_warnings(NETWORKING, "DestinationRule", spec, &["spec.trafficPolicy.outlierDetection"]);
    let parsed = yaml(&object(NETWORKING, "Gateway", "  servers: []\n"));
    assert_eq!(parsed.problems[0].message, "Gateway is accepted, not enforced yet");
}

#[test]
fn destination_rules() {
    for (spec, fields) in [
        (
            "  host: reviews\n  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}]\n",
            &[][..],
        ),
        ("  subsets: []\n", &["spec.host"]),
        ("  host: 'a b'\n", &["spec.host"]),
        ("  host: '*.prod.svc.cluster.local'\n", &[]),
        (
            "  host: a\n  subsets: [{name: v1}, {name: v1}, {}, {name: 'v 3'}]\n",
            &["spec.subsets[1].name", "spec.subsets[2].name", "spec.subsets[3].name"],
        ),
        (
            "  host: a\n  subsets: [{name: v1, labels: {version: 'a b'}}]\n",
            &["spec.subsets[0].labels[version]"],
        ),
        ("  host: a\n  trafficPolicy: {}\n", &["spec.trafficPolicy"]),
        (
            "  host: a\n  trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}\n",
            &["spec.trafficPolicy.loadBalancer.consistentHash"],
        ),
        (
            "  host: a\n  trafficPolicy: {loadBalancer: {consistentHash: {}}}\n",
            &["spec.trafficPolicy.loadBalancer.consistentHash"],
        ),
        (
            "  host: a\n  trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {ttl: 0s}, maglev: {tableSize: 8}}}}\n",
            &[
                "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.name",
                "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
            ],
        ),
        (
            "  host: a\n  trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 50}}]}}}\n",
            &["spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to"],
        ),
        (
            "  host: a\n  trafficPolicy: {connectionPool: {}}\n",
            &["spec.trafficPolicy.connectionPool"],
        ),
        (
            "  host: a\n  trafficPolicy: {connectionPool: {tcp: {maxConnections: -1, connectTimeout: 0s}, http: {maxRetries: -2}}}\n",
            &[
                "spec.trafficPolicy.connectionPool.http.maxRetries",
                "spec.trafficPolicy.connectionPool.tcp.maxConnections",
                "spec.trafficPolicy.connectionPool.tcp.connectTimeout",
            ],
        ),
        (
            "  host: a\n  trafficPolicy: {outlierDetection: {maxEjectionPercent: 101, interval: 0s, consecutiveLocalOriginFailures: 3}}\n",
            &[
                "spec.trafficPolicy.outlierDetection.interval",
                "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
                "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
            ],
        ),
        (
            "  host: a\n  trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}, {port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}, {loadBalancer: {simple: RANDOM}}, {port: {number: 1}}]}\n",
            &[
                "spec.trafficPolicy.portLevelSettings[1].port",
                "spec.trafficPolicy.portLevelSettings[2].port",
                "spec.trafficPolicy.portLevelSettings[3]",
            ],
        ),
        (
            "  host: a\n  trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /c}}\n",
            &["spec.trafficPolicy.tls.privateKey"],
        ),
        (
            "  host: a\n  trafficPolicy: {tls: {mode: ISTIO_MUTUAL, privateKey: /c}}\n",
            &["spec.trafficPolicy.tls.privateKey"],
        ),
        (
            "  host: a\n  exportTo: ['*']\n  workloadSelector: {matchLabels: {app: 'a*'}}\n",
            &["spec.workloadSelector.matchLabels[app]", "spec.exportTo"],
        ),
    ] {
        assert_errors(NETWORKING, "DestinationRule", spec, fields);
    }
}

#[test]
fn service_entries() {
    for (spec, fields) in [
        (
            "  hosts: [api.example.com]\n  ports: [{number: 443, name: tls, protocol: TLS}]\n  resolution: DNS\n",
            &[][..],
        ),
        (
            "  ports: [{number: 0, name: a}, {number: 1, name: a}]\n",
            &["spec.hosts", "spec.ports[0].number", "spec.ports[1].name"],
        ),
        ("  hosts: ['*', '*.a.com']\n  resolution: DNS\n", &["spec.hosts[0]", "spec.hosts[1]"]),
        (
            "  hosts: [a]\n  resolution: STATIC\n  addresses: [x]\n  endpoints: [{address: b.com}]\n",
            &["spec.addresses[0]", "spec.endpoints[0].address"],
        ),
    ] {
        assert_errors(NETWORKING, "ServiceEntry", spec, fields);
    }
}
