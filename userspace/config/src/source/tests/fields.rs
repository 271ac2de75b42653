//! Every field that the definitions have: each one is read, and what becomes of it is said.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use fairlead_api::extensions::{TrafficExtension, WasmPlugin};
use fairlead_api::networking::{
    DestinationRule, EnvoyFilter, Gateway, ProxyConfig, ServiceEntry, Sidecar, VirtualService,
    WorkloadEntry, WorkloadGroup,
};
use fairlead_api::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use fairlead_api::telemetry::Telemetry;
use fairlead_api::{Kind, schema};
use serde_json::{Map, Value, json};

use super::{Format, PathBuf};
use crate::source::path::Path;
use crate::source::{Effect, Problem, de, effect, json, parse, yaml};

fn istio() -> impl Iterator<Item = Kind> {
    Kind::ALL.iter().copied().filter(|kind| kind.is_istio())
}

/// A value that fits a schema and has every field, but for the oneofs: of these `choice` picks
/// one. Texts are what their checks want by the name of the field.
fn maximal(schema: &Value, name: &str, choice: usize) -> Value {
    match schema["type"].as_str() {
        Some("object") => {
            if let Some(values) = schema.get("additionalProperties") {
                let key = if name == "portLevelMtls" { "8080" } else { "some-key" };
                return json!({key: maximal(values, name, choice)});
            }
            let mut fields: Map<String, Value> = schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, field)| (name.clone(), maximal(field, name, choice)))
                .collect();
            // One of each oneof.
            let single = schema.get("oneOf").map(|one| vec![one]);
            let all =
                schema["allOf"].as_array().map(|all| all.iter().map(|o| &o["oneOf"]).collect());
            for oneof in single.or(all).unwrap_or_default() {
                let names: Vec<&str> = oneof
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter_map(|option| option["required"][0].as_str())
                    .collect();
                for (index, other) in names.iter().enumerate() {
                    if index != choice % names.len() {
                        fields.remove(*other);
                    }
                }
            }
            // The second name of a field.
            fields.retain(|name, _| !name.contains('_'));
            Value::Object(fields)
        }
        Some("array") => json!([maximal(&schema["items"], name, choice)]),
        Some("boolean") => json!(true),
        Some("integer") => json!(schema["minimum"].as_i64().unwrap_or(1).max(1)),
        Some("number") => json!(1.5),
        Some("string") => match schema["enum"].as_array() {
            Some(names) => names[choice % names.len()].clone(),
            None => json!(text(schema, name)),
        },
        other => panic!("{name}: {other:?}"),
    }
}

fn text(schema: &Value, name: &str) -> &'static str {
    let duration = |value: &Value| value.to_string().contains("duration(self)");
    let pattern = schema["pattern"].as_str().unwrap_or_default();
    match name {
        _ if duration(schema) || pattern.contains("ns|us") => "3s",
        "scheme" => "http",
        "protocol" => "CONNECT",
        "port" | "ports" | "notPorts" => "80",
        _ => "text",
    }
}

/// The problems of an object that has the spec.
fn problems(kind: Kind, version: &str, spec: &Value) -> Vec<Problem> {
    let api_version = format!("{}/{version}", kind.group());
    let object = json!({
        "apiVersion": api_version, "kind": kind.as_str(),
        "metadata": {"name": "x", "namespace": "ns"}, "spec": spec,
        "status": {"conditions": [], "validationMessages": [], "observedGeneration": "1"},
    });
    parse(&PathBuf::from("test.json").into(), &object.to_string(), Format::Json).problems
}

/// What the type of the kind makes of an object: the fields it does not know, or why it cannot be
/// read.
fn read(kind: Kind, object: &Value) -> Result<Vec<String>, String> {
    fn typed<T: serde::de::DeserializeOwned>(text: &str) -> Result<Vec<String>, String> {
        let node = json::Documents::new(text).next().unwrap().unwrap();
        let unknown = RefCell::default();
        match de::from_node::<T>(&node, &Path::Root, true, &unknown) {
            Ok(_) => Ok(unknown.into_inner().into_iter().map(|field| field.path).collect()),
            Err(mismatch) => {
                let parts = mismatch.into_parts();
                Err(format!("{:?}: {} ({:?})", parts.place, parts.message, parts.allowed))
            }
        }
    }
    let text = object.to_string();
    match kind {
        Kind::VirtualService => typed::<VirtualService>(&text),
        Kind::DestinationRule => typed::<DestinationRule>(&text),
        Kind::ServiceEntry => typed::<ServiceEntry>(&text),
        Kind::WorkloadEntry => typed::<WorkloadEntry>(&text),
        Kind::WorkloadGroup => typed::<WorkloadGroup>(&text),
        Kind::Gateway => typed::<Gateway>(&text),
        Kind::Sidecar => typed::<Sidecar>(&text),
        Kind::EnvoyFilter => typed::<EnvoyFilter>(&text),
        Kind::ProxyConfig => typed::<ProxyConfig>(&text),
        Kind::AuthorizationPolicy => typed::<AuthorizationPolicy>(&text),
        Kind::PeerAuthentication => typed::<PeerAuthentication>(&text),
        Kind::RequestAuthentication => typed::<RequestAuthentication>(&text),
        Kind::Telemetry => typed::<Telemetry>(&text),
        Kind::WasmPlugin => typed::<WasmPlugin>(&text),
        Kind::TrafficExtension => typed::<TrafficExtension>(&text),
        other => panic!("{other} is not Istio's"),
    }
}

/// Definitions and types agree: whatever the one accepts, the other reads.
#[test]
fn every_field_of_the_definitions_is_read() {
    // As many as the widest enumeration has names.
    const CHOICES: usize = 12;
    for kind in istio() {
        let schema = schema::spec_schema(kind).unwrap().unwrap();
        for choice in 0..CHOICES {
            let object =
                json!({"metadata": {"name": "x"}, "spec": maximal(&schema, "spec", choice)});
            assert_eq!(read(kind, &object), Ok(Vec::new()), "{kind} {choice}: {object:#}");
        }
    }
}

/// And the types have no field that the definitions lack: a misspelt one is told, at every depth.
#[test]
fn unknown_fields_are_errors_at_every_depth() {
    fn spoil(value: &mut Value, free: &BTreeSet<&str>, path: &str, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields.iter_mut() {
                    if !free.contains(name.as_str()) {
                        spoil(field, free, &format!("{path}.{name}"), into);
                    }
                }
                // Maps whose keys people choose take any.
                if !fields.contains_key("some-key") && !fields.contains_key("8080") {
                    fields.insert("notAField".to_owned(), json!(1));
                    into.push(path.to_owned());
                }
            }
            Value::Array(items) => {
                for item in items {
                    spoil(item, free, &format!("{path}[0]"), into);
                }
            }
            _ => {}
        }
    }
    let free = BTreeSet::from(["value", "pluginConfig"]);
    for kind in istio() {
        let schema = schema::spec_schema(kind).unwrap().unwrap();
        let mut spec = maximal(&schema, "spec", 0);
        let mut spoilt = Vec::new();
        spoil(&mut spec, &free, "spec", &mut spoilt);
        let found = problems(kind, kind.versions()[0], &spec);
        let unknown =
            found.iter().filter(|p| p.is_error() && p.field.ends_with("notAField")).count();
        // At most this many are told of one object.
        const MOST: usize = 50;
        assert_eq!(unknown, spoilt.len().min(MOST), "{kind}: {spoilt:?}\n{found:#?}");
    }
}

/// What has an effect, by the code that gives it one. A new field belongs here or into the lists
/// of `unenforced`; it cannot be forgotten in both.
const ENFORCED: &[(Kind, &[&str])] = &[
    (
        Kind::VirtualService,
        &[
            "spec.hosts",
            "spec.gateways",
            "spec.exportTo",
            "spec.http[].name",
            "spec.http[].fault.delay.fixedDelay",
            "spec.http[].fault.delay.percent",
            "spec.http[].fault.delay.percentage",
            "spec.http[].fault.abort.httpStatus",
            "spec.http[].fault.abort.grpcStatus",
            "spec.http[].fault.abort.percentage",
            "spec.http[].headers",
            "spec.http[].match[].authority",
            "spec.http[].match[].gateways",
            "spec.http[].match[].headers",
            "spec.http[].match[].ignoreUriCase",
            "spec.http[].match[].method",
            "spec.http[].match[].port",
            "spec.http[].match[].queryParams",
            "spec.http[].match[].scheme",
            "spec.http[].match[].sourceLabels",
            "spec.http[].match[].sourceNamespace",
            "spec.http[].match[].uri",
            "spec.http[].match[].withoutHeaders",
            "spec.http[].retries",
            "spec.http[].rewrite",
            "spec.http[].route",
            "spec.http[].timeout",
            "spec.tcp",
        ],
    ),
    (
        Kind::DestinationRule,
        &[
            "spec.host",
            "spec.exportTo",
            "spec.workloadSelector",
            "spec.subsets[].name",
            "spec.subsets[].labels",
        ],
    ),
    (
        Kind::AuthorizationPolicy,
        &[
            "spec.selector",
            "spec.action",
            "spec.rules[].from[].source.principals",
            "spec.rules[].from[].source.notPrincipals",
            "spec.rules[].from[].source.namespaces",
            "spec.rules[].from[].source.notNamespaces",
            "spec.rules[].from[].source.serviceAccounts",
            "spec.rules[].from[].source.notServiceAccounts",
            "spec.rules[].from[].source.trustDomains",
            "spec.rules[].from[].source.notTrustDomains",
            "spec.rules[].from[].source.ipBlocks",
            "spec.rules[].from[].source.notIpBlocks",
            "spec.rules[].to[].operation",
            "spec.rules[].when",
        ],
    ),
    (Kind::PeerAuthentication, &["spec.selector", "spec.mtls", "spec.portLevelMtls"]),
];

/// The same within the traffic policies of a DestinationRule.
const ENFORCED_OF_POLICY: &[&str] = &[
    "port",
    "loadBalancer.simple",
    "connectionPool.tcp.connectTimeout",
    "tls.mode",
    "tls.subjectAltNames",
];

#[test]
fn every_field_has_its_place() {
    let policies = ["spec.trafficPolicy.", "spec.subsets[].trafficPolicy."];
    let listed: BTreeMap<Kind, &[&str]> = ENFORCED.iter().copied().collect();
    for kind in istio() {
        let enforced = listed.get(&kind).copied().unwrap_or_default();
        for schema::Field { path, leaf, .. } in schema::spec_fields(kind).unwrap() {
            if !leaf {
                continue;
            }
            let of_policy = kind == Kind::DestinationRule
                && policies.iter().any(|policy| {
                    path.strip_prefix(policy).is_some_and(|rest| {
                        let rest = rest.strip_prefix("portLevelSettings[].").unwrap_or(rest);
                        ENFORCED_OF_POLICY.iter().any(|field| within(field, rest))
                    })
                });
            let has_effect = of_policy || enforced.iter().any(|field| within(field, &path));
            let says = effect(kind, &path);
            assert_eq!(
                has_effect,
                says == Effect::Enforced,
                "{kind} {path}: {says:?}; list it in unenforced.rs or here"
            );
        }
    }
}

/// Whether `field` is `pattern`, or something within it.
fn within(pattern: &str, field: &str) -> bool {
    field
        .strip_prefix(pattern)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
}

/// Nothing is silently ignored: each field of the lists is told when it is written, with what becomes
/// of it.
#[test]
fn fields_without_effect_are_told() {
    for kind in istio() {
        let schema = schema::spec_schema(kind).unwrap().unwrap();
        let mut told: BTreeSet<(String, Effect)> = BTreeSet::new();
        for choice in 0..4 {
            // By parts: of one object no more than a hundred are told.
            let whole = maximal(&schema, "spec", choice);
            let parts = whole.as_object().unwrap().iter().map(|(name, value)| json!({name: value}));
            let of_effect = parts
                .flat_map(|spec| problems(kind, kind.versions()[0], &spec))
                .filter(|p| !p.effect.is_full());
            told.extend(of_effect.map(|p| (p.field.replace("[0]", "[]"), p.effect)));
        }
        let is_told = |path: &str, effect: Effect| {
            told.iter()
                .any(|(field, its)| *its == effect && (field.is_empty() || within(field, path)))
        };
        if effect(kind, "") != Effect::Enforced {
            assert!(is_told("", effect(kind, "")), "{kind}: {told:?}");
        }
        for schema::Field { path, leaf, .. } in schema::spec_fields(kind).unwrap() {
            let says = effect(kind, &path);
            if leaf && says != Effect::Enforced {
                assert!(is_told(&path, says), "{kind} {path} is not told: {told:?}");
            }
        }
        // And nothing else is: it would be said of what has its effect.
        let values: Vec<&str> =
            crate::source::partly_enforced(kind).map(|(path, _)| path).collect();
        for (field, its) in &told {
            let listed = effect(kind, field) >= *its
                || values.iter().any(|path| within(path, field))
                || field.contains("rafficPolicy");
            assert!(listed, "{kind} {field}: {its:?} is told, and not listed");
        }
    }
}

/// The same for fields of which some values alone have an effect: for each, objects with the others.
#[test]
fn values_without_effect_are_told() {
    let route = json!([{"route": [{"destination": {"host": "a"}}]}]);
    let http = |one: &str, value: Value| {
        let mut route = route.clone();
        route[0][one] = value;
        json!({"hosts": ["a"], "http": route})
    };
    let tls = |tls: Value| json!({"host": "a", "trafficPolicy": {"tls": tls}});
    let rules = json!([{"from": [{"source": {"namespaces": ["a"]}}]}]);
    let when = |key: &str| json!({"rules": [{"when": [{"key": key, "values": ["1.2.3.4"]}]}]});
    let cases = [
        (
            Kind::VirtualService,
            "spec.gateways",
            json!({"hosts": ["a"], "gateways": ["g"], "http": route}),
            Effect::NotEnforced,
        ),
        (
            Kind::VirtualService,
            "spec.gateways",
            json!({"hosts": ["a"], "gateways": ["mesh", "g"], "http": route}),
            Effect::Partly,
        ),
        (
            Kind::VirtualService,
            "spec.http[].match[].gateways",
            http("match", json!([{"gateways": ["g"]}])),
            Effect::Partly,
        ),
        (
            Kind::VirtualService,
            "spec.tcp[].match[].gateways",
            json!({"hosts": ["a"], "tcp": [
                {"match": [{"gateways": ["mesh", "g"]}], "route": route[0]["route"]},
            ]}),
            Effect::Partly,
        ),
        (Kind::VirtualService, "spec.hosts", json!({"http": route}), Effect::NotEnforced),
        (
            Kind::VirtualService,
            "spec.http[].retries.retryOn",
            http("retries", json!({"attempts": 1, "retryOn": "5xx, retriable-headers"})),
            Effect::Partly,
        ),
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.tls.mode",
            tls(json!({"mode": "SIMPLE"})),
            Effect::Refused,
        ),
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.tls.mode",
            tls(json!({"mode": "MUTUAL", "credentialName": "c"})),
            Effect::Refused,
        ),
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.tls.subjectAltNames",
            tls(json!({"mode": "ISTIO_MUTUAL", "subjectAltNames": ["example.org"]})),
            Effect::Refused,
        ),
        (
            Kind::AuthorizationPolicy,
            "spec.action",
            json!({"action": "AUDIT", "rules": rules}),
            Effect::NotEnforced,
        ),
        (
            Kind::AuthorizationPolicy,
            "spec.action",
            json!({"action": "CUSTOM", "provider": {"name": "p"}, "rules": rules}),
            Effect::NotEnforced,
        ),
        (
            Kind::AuthorizationPolicy,
            "spec.rules[].when[].key",
            when("request.auth.claims[a]"),
            Effect::NotEnforced,
        ),
        (
            Kind::AuthorizationPolicy,
            "spec.rules[].when[].key",
            when("remote.ip"),
            Effect::NotEnforced,
        ),
        (
            Kind::AuthorizationPolicy,
            "spec.rules[].when[].key",
            when("experimental.envoy.filters.x"),
            Effect::NotEnforced,
        ),
    ];
    let mut shown = BTreeSet::new();
    for (kind, path, spec, effect) in cases {
        let found = problems(kind, kind.versions()[0], &spec);
        let told = found.iter().any(|problem| {
            let field = problem.field.replace("[0]", "[]");
            problem.effect == effect && within(path, &field)
        });
        assert!(told, "{kind} {path} {spec}: {found:#?}");
        shown.insert((kind, path));
    }
    let dry_run = super::yaml(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: a, annotations: {istio.io/dry-run: 'true'}}\nspec: {rules: [{}]}\n",
    );
    let dry = "metadata.annotations[istio.io/dry-run]";
    assert_eq!(dry_run.problems.len(), 1, "{:?}", dry_run.problems);
    assert_eq!(
        (dry_run.problems[0].field.as_str(), dry_run.problems[0].effect),
        (dry, Effect::NotEnforced)
    );
    shown.insert((Kind::AuthorizationPolicy, dry));
    let listed: BTreeSet<_> = istio()
        .flat_map(|kind| crate::source::partly_enforced(kind).map(move |(path, _)| (kind, path)))
        .collect();
    assert_eq!(shown, listed, "each has its example here");
    // A rule for other gateways refuses nothing within the mesh.
    let mut other = http("redirect", json!({"authority": "b"}));
    assert!(
        problems(Kind::VirtualService, "v1", &other).iter().any(|p| p.effect == Effect::Refused)
    );
    other["gateways"] = json!(["g"]);
    let found = problems(Kind::VirtualService, "v1", &other);
    assert_eq!(found.iter().map(|p| p.effect).max(), Some(Effect::NotEnforced), "{found:?}");
    // What has its effect is not told.
    for spec in [
        json!({"hosts": ["a"], "gateways": ["mesh"], "http": route}),
        http("retries", json!({"attempts": 1, "retryOn": "5xx,reset"})),
    ] {
        let found = problems(Kind::VirtualService, "v1", &spec);
        assert!(found.iter().all(|problem| problem.effect.is_full()), "{spec}: {found:?}");
    }
    let san = "spiffe://cluster.local/ns/a/sa/b";
    let spec = tls(json!({"mode": "ISTIO_MUTUAL", "subjectAltNames": [san]}));
    assert_eq!(problems(Kind::DestinationRule, "v1", &spec), []);
}

/// What is left out of a long list counts all the same.
#[test]
fn many_problems_keep_their_worst_effect() {
    let mut matches = vec![json!({"uri": {"prefix": "/"}}); 150];
    matches.push(json!({"uri": {"exact": "/x"}}));
    let mut spec = json!({"hosts": ["a"], "http": [
        {"match": matches, "route": [{"destination": {"host": "a"}}], "redirect": {"uri": "/y"}},
    ]});
    spec["http"][0].as_object_mut().unwrap().remove("route");
    let found = problems(Kind::VirtualService, "v1", &spec);
    assert!(found.len() > 100 && found[..100].iter().all(|p| p.effect.is_full()), "{found:?}");
    assert_eq!(found.iter().map(|p| p.effect).max(), Some(Effect::Refused));
}

#[test]
fn new_kinds_are_stored_and_reported() {
    for (text, count) in [
        (
            "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a}\nspec: {configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {a: [1, {b: null}]}}}]}\n",
            1,
        ),
        (
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: a}\nspec: {accessLogging: [{disabled: true}]}\n",
            1,
        ),
        (
            "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {url: example.org/plugin, pluginConfig: {a: 1}}\n",
            1,
        ),
    ] {
        let parsed = super::yaml(text);
        assert_eq!(parsed.objects.len(), count, "{text}: {:?}", parsed.problems);
        assert_eq!(parsed.problems.len(), 1, "{text}: {:?}", parsed.problems);
        assert_eq!(parsed.problems[0].effect, Effect::NotEnforced, "{text}");
        assert!(parsed.problems[0].message.contains("not enforced yet"), "{text}");
    }
}

/// The paths that an object writes, in the notation of [`schema::Field`].
fn written(schema: &Value, value: &Value, path: &str, into: &mut BTreeSet<String>) {
    into.insert(path.to_owned());
    match value {
        Value::Array(items) => {
            let path = format!("{path}[]");
            items.iter().for_each(|item| written(&schema["items"], item, &path, into));
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                match schema.get("additionalProperties") {
                    Some(values) => written(values, field, &format!("{path}{{}}"), into),
                    None => {
                        let path = format!("{path}.{name}");
                        written(&schema["properties"][name], field, &path, into);
                    }
                }
            }
        }
        _ => {}
    }
}

/// The examples of tests/resources, which a scenario shows to an API server: each is good, and
/// together they write every field.
#[test]
fn examples_are_good_and_write_every_field() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/resources");
    let mut wrote: BTreeMap<Kind, BTreeSet<String>> = BTreeMap::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let parsed = parse(&path.clone().into(), &text, Format::Yaml);
        let wrong = parsed.problems.iter().filter(|p| p.is_error() && p.effect.is_full());
        assert_eq!(wrong.map(ToString::to_string).collect::<Vec<_>>(), [""; 0]);
        for node in yaml::Documents::new(&text) {
            let object: Value =
                de::from_node(&node.unwrap(), &Path::Root, false, &RefCell::default()).unwrap();
            let kind = Kind::from_name(object["kind"].as_str().unwrap()).unwrap();
            let schema = schema::spec_schema(kind).unwrap().unwrap();
            written(&schema, &object["spec"], "spec", wrote.entry(kind).or_default());
        }
    }
    for kind in istio() {
        let fields = schema::spec_fields(kind).unwrap();
        let wrote = wrote.get(&kind).unwrap_or_else(|| panic!("no example of {kind}"));
        let missing: Vec<_> =
            fields.iter().filter(|f| f.leaf && !wrote.contains(&f.path)).map(|f| &f.path).collect();
        assert!(missing.is_empty(), "{kind}: no example writes {missing:#?}");
    }
}

/// What the definitions refuse (a scenario shows it to an API server) is refused in files too.
#[test]
fn what_the_definitions_refuse_is_refused_in_files() {
    let all: Vec<Value> =
        serde_json::from_str(include_str!("../../../../../tests/resources/refused.json")).unwrap();
    let mut taken = Vec::new();
    for mut object in all {
        let words = object["words"].take();
        object["metadata"] = json!({"name": "x", "namespace": "ns"});
        object.as_object_mut().unwrap().remove("words");
        let parsed = parse(&PathBuf::from("test.json").into(), &object.to_string(), Format::Json);
        if !parsed.problems.iter().any(Problem::is_error) {
            taken.push(format!("{object} ({words})"));
        }
    }
    assert!(taken.is_empty(), "taken:\n{}", taken.join("\n"));
}

/// Notes on values are about fields that exist and that have an effect.
#[test]
fn notes_on_values_are_about_fields_with_an_effect() {
    for kind in istio() {
        let fields = schema::spec_fields(kind).unwrap();
        for (path, _) in crate::source::partly_enforced(kind) {
            assert_eq!(effect(kind, path), Effect::Enforced, "{kind} {path}");
            let there = fields.iter().any(|field| field.path == path);
            assert!(there || path.starts_with("metadata."), "{kind} {path}");
        }
    }
}
