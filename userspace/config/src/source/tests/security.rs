//! Security policies: what is refused, and that nothing in them is ever passed over.

use super::*;

const SECURITY: &str = "security.istio.io/v1";

fn policy(spec: &str, fields: &[&str]) {
    assert_errors(SECURITY, "AuthorizationPolicy", spec, fields);
}

fn rule(rule: &str, fields: &[&str]) {
    for action in ["ALLOW", "DENY"] {
        let spec = format!("  action: {action}\n  rules:\n  - {rule}\n");
        let fields: Vec<String> =
            fields.iter().map(|field| format!("spec.rules[0]{field}")).collect();
        policy(&spec, &fields.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn policies_as_a_whole() {
    policy("  {}\n", &[]);
    policy("  action: ALLOW\n  rules: [{}]\n", &[]);
    policy("  action: DENY\n", &["spec.rules"]);
    policy("  action: DENY\n  rules: []\n", &["spec.rules"]);
    policy(
        "  action: CUSTOM\n  provider: {name: x}\n  rules: [{}]\n",
        &["spec.action", "spec.provider"],
    );
    policy("  action: allow\n", &["spec.action"]);
    policy("  selector: {matchLabels: {app: 'a*'}}\n", &["spec.selector.matchLabels[app]"]);
    policy("  selector: {matchLabel: {app: a}}\n", &["spec.selector.matchLabel"]);
    policy(
        "  selector: {matchLabels: {app: a}}\n  targetRefs: [{kind: Pod}]\n",
        &["spec", "spec.targetRefs[0].name", "spec.targetRefs[0].kind", "spec.targetRefs"],
    );
    policy("  rules: [null]\n", &["spec.rules[0]"]);
    policy("  rule: [{}]\n", &["spec.rule"]);
}

#[test]
fn sources() {
    rule(
        "from: [{source: {principals: [cluster.local/ns/a/sa/b, '*/sa/c', '*'], notNamespaces: [x]}}]",
        &[],
    );
    rule(
        "from: [{source: {ipBlocks: [10.0.0.1, 10.0.0.0/8, 'fd00::/8'], notIpBlocks: [10.1.0.0/16]}}]",
        &[],
    );
    rule("from: [{source: {serviceAccounts: [a, ns/b], notServiceAccounts: [c]}}]", &[]);
    rule("from: []", &[".from"]);
    rule("from: [{}]", &[".from[0].source"]);
    rule("from: [{source: {}}]", &[".from[0].source"]);
    rule("from: [{source: null}]", &[".from[0].source"]);
    rule("from: [{source: {principals: []}}]", &[".from[0].source", ".from[0].source.principals"]);
    rule(
        "from: [{source: {principals: []}}, {source: {namespaces: ['']}}]",
        &[".from[0].source", ".from[0].source.principals", ".from[1].source.namespaces[0]"],
    );
    rule(
        "from: [{source: {principals: ['spiffe://cluster.local/ns/a/sa/b']}}]",
        &[".from[0].source.principals[0]"],
    );
    rule(
        "from: [{source: {ipBlocks: [10.0.0.0/33, '*', 10.0.0]}}]",
        &[
            ".from[0].source.ipBlocks[0]",
            ".from[0].source.ipBlocks[1]",
            ".from[0].source.ipBlocks[2]",
        ],
    );
    rule(
        "from: [{source: {serviceAccounts: [a/b/c, 'a*'], principals: ['*']}}]",
        &[
            ".from[0].source.serviceAccounts[0]",
            ".from[0].source.serviceAccounts[1]",
            ".from[0].source.serviceAccounts",
        ],
    );
    // A typing error must not widen a rule.
    rule(
        "from: [{source: {namespaces: [a], notPrincipal: [b]}}]",
        &[".from[0].source.notPrincipal"],
    );
}

#[test]
fn operations() {
    rule(
        "to: [{operation: {methods: [GET, '*'], paths: [/a, /b*, '*/c', '/d/{*}/e/{**}'], hosts: [a, '*.b'], ports: ['80'], notPorts: ['81']}}]",
        &[],
    );
    rule("to: []", &[".to"]);
    rule("to: [{}]", &[".to[0].operation"]);
    rule("to: [{operation: {}}]", &[".to[0].operation"]);
    rule(
        "to: [{operation: {ports: ['0', '65536', http, '+1', '80-90']}}]",
        &[
            ".to[0].operation.ports[0]",
            ".to[0].operation.ports[1]",
            ".to[0].operation.ports[2]",
            ".to[0].operation.ports[3]",
            ".to[0].operation.ports[4]",
        ],
    );
    rule("to: [{operation: {methods: ['']}}]", &[".to[0].operation.methods[0]"]);
    for bad in ["/{**}/a/{*}", "/{**}/{**}", "/a{*}", "/{x}", "/a/{*}*", "/{*}/b*"] {
        rule(&format!("to: [{{operation: {{paths: ['{bad}']}}}}]"), &[".to[0].operation.paths[0]"]);
    }
    // A number where a text is needed is a slip that YAML makes easy.
    rule("to: [{operation: {ports: [80]}}]", &[".to[0].operation.ports[0]"]);
}

#[test]
fn conditions() {
    rule(
        "when: [{key: 'request.headers[x-token]', values: [a]}, {key: source.ip, notValues: [10.0.0.0/8]}, {key: destination.port, values: ['80']}]",
        &[],
    );
    rule("when: []", &[".when"]);
    rule("when: [{key: source.ip}]", &[".when[0]"]);
    rule("when: [{values: [a]}]", &[".when[0].key"]);
    rule("when: [{key: 'request.header[x]', values: [a]}]", &[".when[0].key"]);
    rule("when: [{key: 'request.headers[]', values: [a]}]", &[".when[0].key"]);
    rule(
        "when: [{key: source.ip, values: [x]}, {key: destination.port, values: [http]}]",
        &[".when[0].values[0]", ".when[1].values[0]"],
    );
    rule("when: [{key: source.principal, values: ['']}]", &[".when[0].values[0]"]);
}

/// Every field that cannot be enforced refuses its policy: it must never just be left out.
#[test]
fn what_cannot_be_enforced_is_refused() {
    for source in ["requestPrincipals", "notRequestPrincipals"] {
        rule(
            &format!("from: [{{source: {{{source}: [a]}}}}]"),
            &[&format!(".from[0].source.{source}")],
        );
    }
    for source in ["remoteIpBlocks", "notRemoteIpBlocks"] {
        rule(
            &format!("from: [{{source: {{{source}: [10.0.0.1]}}}}]"),
            &[&format!(".from[0].source.{source}")],
        );
    }
    for key in [
        "remote.ip",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.claims[iss]",
        "experimental.envoy.filters.network.mysql_proxy[db.t]",
    ] {
        rule(&format!("when: [{{key: '{key}', values: [10.0.0.1]}}]"), &[".when[0].key"]);
    }
    policy("  targetRefs: [{kind: Service, name: a}]\n", &["spec.targetRefs"]);
    policy("  targetRef: {kind: Service, name: a}\n", &["spec.targetRef"]);
    assert_errors(SECURITY, "RequestAuthentication", "  jwtRules: [{issuer: a}]\n", &[""]);
}

#[test]
fn a_refused_policy_tells_its_scope() {
    let parsed = yaml(&object(
        SECURITY,
        "AuthorizationPolicy",
        "  selector: {matchLabels: {app: a}}\n  action: NOPE\n",
    ));
    assert_eq!(parsed.rejected[0].key.to_string(), "AuthorizationPolicy ns/x");
    assert_eq!(parsed.rejected[0].selector, [("app".to_owned(), "a".to_owned())].into());
    // Unreadable labels: all of the namespace, rather than none of it.
    let parsed =
        yaml(&object(SECURITY, "AuthorizationPolicy", "  selector: {matchLabels: {app: 1}}\n"));
    assert!(parsed.rejected[0].selector.is_empty());
}

#[test]
fn hints() {
    let spec = "  action: DENY\n  rules: [{to: [{operation: {methods: [POST]}}]}]\n";
    assert_warnings(SECURITY, "AuthorizationPolicy", spec, &["spec.rules[0].to"]);
    assert_warnings(
        SECURITY,
        "AuthorizationPolicy",
        "  action: AUDIT\n  rules: [{}]\n",
        &["spec.action"],
    );
    let spec =
        "  action: DENY\n  rules: [{to: [{operation: {notPaths: [secret], ports: ['80']}}]}]\n";
    let parsed = yaml(&object(SECURITY, "AuthorizationPolicy", spec));
    assert_eq!(summary(&parsed.problems), ["error 6 spec.rules[0].to[0].operation.notPaths[0]"]);
}

#[test]
fn a_dry_run_neither_counts_nor_fails_closed() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, annotations: {istio.io/dry-run: 'true'}}\nspec: {}\n";
    let parsed = yaml(text);
    assert_eq!((parsed.objects.len(), parsed.rejected.len()), (0, 0));
    assert_eq!(summary(&parsed.problems), ["warning 3 metadata.annotations[istio.io/dry-run]"]);
    assert_eq!(yaml(&text.replace("'true'", "'false'")).objects.len(), 1);
}

#[test]
fn peer_authentication() {
    for (spec, fields) in [
        ("  mtls: {mode: STRICT}\n", &[][..]),
        ("  {}\n", &[]),
        (
            "  selector: {matchLabels: {app: a}}\n  mtls: {mode: PERMISSIVE}\n  portLevelMtls: {8080: {mode: DISABLE}, '81': {mode: UNSET}}\n",
            &[],
        ),
        ("  mtls: {mode: strict}\n", &["spec.mtls.mode"]),
        ("  mtls: {mod: STRICT}\n", &["spec.mtls.mod"]),
        ("  portLevelMtls: {8080: {mode: DISABLE}}\n", &["spec.portLevelMtls"]),
        ("  selector: {}\n  portLevelMtls: {8080: {mode: DISABLE}}\n", &["spec.portLevelMtls"]),
        (
            "  selector: {matchLabels: {a: b}}\n  portLevelMtls: {0: {mode: DISABLE}}\n",
            &["spec.portLevelMtls[0]"],
        ),
        (
            "  selector: {matchLabels: {a: b}}\n  portLevelMtls: {http: {mode: DISABLE}}\n",
            &["spec.portLevelMtls[http]"],
        ),
        ("  selector: {matchLabels: {a: '*'}}\n", &["spec.selector.matchLabels[a]"]),
    ] {
        assert_errors(SECURITY, "PeerAuthentication", spec, fields);
    }
}

#[test]
fn request_authentication_is_validated_too() {
    // Any issuer, if it is said where the keys are.
    let keyless = "  jwtRules: [{audiences: [a]}]\n";
    assert_errors(SECURITY, "RequestAuthentication", keyless, &["spec.jwtRules[0].issuer", ""]);
    let anybody = "  jwtRules: [{jwksUri: 'https://a/keys'}]\n";
    assert_errors(SECURITY, "RequestAuthentication", anybody, &[""]);
    let spec = "  jwtRules: [{jwksUri: 'ftp://x', jwks: '{', fromHeaders: [{name: ''}], outputClaimToHeaders: [{header: 'a b'}], timeout: 0s, audiences: ['']}]\n";
    let at = "spec.jwtRules[0]";
    let fields: Vec<String> = [
        ".audiences[0]",
        ".jwksUri",
        ".jwks",
        ".fromHeaders[0].name",
        ".outputClaimToHeaders[0].header",
        ".outputClaimToHeaders[0].claim",
        ".timeout",
    ]
    .iter()
    .map(|f| format!("{at}{f}"))
    .chain([String::new()])
    .collect();
    assert_errors(
        SECURITY,
        "RequestAuthentication",
        spec,
        &fields.iter().map(String::as_str).collect::<Vec<_>>(),
    );
}
