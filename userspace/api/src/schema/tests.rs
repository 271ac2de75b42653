//! What the API server asks of a structural schema, checked without one; and the rules of the pass.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::Kind;

fn istio() -> impl Iterator<Item = Kind> {
    Kind::ALL.iter().copied().filter(|kind| kind.is_istio())
}

#[test]
fn every_kind_of_istio_has_a_definition_and_no_other() {
    for kind in Kind::ALL {
        let definition = custom_resource_definition(*kind).unwrap();
        assert_eq!(definition.is_some(), kind.is_istio(), "{kind}");
        assert_eq!(definition_name(*kind).is_some(), kind.is_istio(), "{kind}");
        let Some(definition) = definition else { continue };
        let versions = definition["spec"]["versions"].as_array().unwrap();
        assert_eq!(versions.iter().filter(|v| v["storage"] == true).count(), 1, "{kind}");
        assert!(
            versions
                .iter()
                .all(|v| v["served"] == true && v["subresources"]["status"] == json!({}))
        );
        assert_eq!(definition["metadata"]["name"], definition_name(*kind).unwrap());
    }
}

/// Istio's own definitions, without their words (`cargo xtask manifests --help` says how it is written).
const ISTIO: &str = include_str!("istio.txt");

/// Where ours differ: each is something without which Istio's webhook refuses the object too, so that
/// the API server says so at once, and also where no webhook is there.
const DIFFERENT: &[(&str, &str, &str)] = &[
    // Neither may be missing (ValidateAuthorizationPolicy).
    ("AuthorizationPolicy spec.rules[].from[]", "object", "object needs source"),
    ("AuthorizationPolicy spec.rules[].to[]", "object", "object needs operation"),
    // A policy for a port has one (validatePortTrafficPolicies).
    (
        "DestinationRule spec.subsets[].trafficPolicy.portLevelSettings[]",
        "object",
        "object needs port",
    ),
    ("DestinationRule spec.trafficPolicy.portLevelSettings[]", "object", "object needs port"),
    // At least one destination (validateTCPRoute, validateTLSRoute).
    ("VirtualService spec.tcp[]", "object", "object needs route"),
    ("VirtualService spec.tls[]", "object needs match", "object needs match,route"),
];

/// Every kind, version and field of Istio's is in ours, with the same type and the same values; and
/// none besides, which objects written for Istio could not have.
#[test]
fn the_definitions_are_istios() {
    let ours: String = Kind::ALL
        .iter()
        .filter_map(|kind| custom_resource_definition(*kind).unwrap())
        .map(|definition| outline(&definition))
        .collect();
    let (ours, istios) = (outline_fields(&ours), outline_fields(ISTIO));
    // All of them were read.
    assert_eq!(istios.keys().filter(|path| !path.contains(' ')).count(), 15);
    assert!(istios.len() > 1400, "{}", istios.len());
    assert_eq!(istios["VirtualService spec.http[].timeout"], "string");
    let paths: BTreeSet<&String> = ours.keys().chain(istios.keys()).collect();
    let of = |all: &BTreeMap<String, String>, path| all.get(path).cloned().unwrap_or_default();
    let found: Vec<(&str, String, String)> = paths
        .into_iter()
        .map(|path| (path.as_str(), of(&istios, path), of(&ours, path)))
        .filter(|(_, istios, ours)| istios != ours)
        .collect();
    let found: Vec<(&str, &str, &str)> = found.iter().map(|(p, a, b)| (*p, &**a, &**b)).collect();
    assert_eq!(found, DIFFERENT, "(path, Istio's, ours)");
}

/// `apiextensions/v1`: a type everywhere, no keyword that is not structural, and within oneOf and
/// its neighbours nothing but `required`, `not` and each other.
fn check(schema: &Value, at: &str) {
    const KNOWN: &[&str] = &[
        "description",
        "type",
        "format",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "nullable",
        "oneOf",
        "allOf",
        "anyOf",
        "x-kubernetes-validations",
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    ];
    let object = schema.as_object().unwrap_or_else(|| panic!("{at}: no object"));
    for key in object.keys() {
        assert!(KNOWN.contains(&key.as_str()), "{at}: {key}");
    }
    let free = object.contains_key("x-kubernetes-int-or-string");
    assert!(free || object.get("type").is_some_and(Value::is_string), "{at}: no type");
    for key in ["oneOf", "allOf"] {
        object
            .get(key)
            .into_iter()
            .flat_map(|list| list.as_array().unwrap())
            .for_each(|v| logic(v, at));
    }
    let has = |field: &Value| object["properties"].get(field.as_str().unwrap()).is_some();
    for field in object.get("required").into_iter().flat_map(|list| list.as_array().unwrap()) {
        assert!(has(field), "{at}: {field} is required and not there");
    }
    if let Some(keys) = object.get("x-kubernetes-list-map-keys") {
        let required = schema["items"]["required"].as_array().unwrap();
        assert!(keys.as_array().unwrap().iter().all(|key| required.contains(key)), "{at}");
    }
    for rule in
        object.get("x-kubernetes-validations").into_iter().flat_map(|r| r.as_array().unwrap())
    {
        assert!(rule["rule"].as_str().is_some_and(|r| r.contains("self")), "{at}: {rule}");
        assert!(rule["message"].as_str().is_some_and(|m| !m.contains('\n')), "{at}: {rule}");
    }
    for (name, field) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let said = field.get("description").and_then(Value::as_str).unwrap_or_default();
        assert!(
            said.ends_with('.') && !said.contains('\n') && !said.contains("[`"),
            "{at}.{name}: {said:?}"
        );
        check(field, &format!("{at}.{name}"));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get(key) {
            check(inner, &format!("{at}.{key}"));
        }
    }
}

fn logic(value: &Value, at: &str) {
    for (key, value) in value.as_object().unwrap() {
        match key.as_str() {
            "required" => {}
            "not" => logic(value, at),
            "anyOf" | "oneOf" | "allOf" => {
                value.as_array().unwrap().iter().for_each(|v| logic(v, at))
            }
            other => panic!("{at}: {other} within oneOf"),
        }
    }
}

#[test]
fn schemas_are_structural() {
    for kind in istio() {
        let definition = custom_resource_definition(kind).unwrap().unwrap();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            check(&version["schema"]["openAPIV3Schema"], kind.as_str());
        }
    }
}

#[test]
fn what_the_attributes_say_is_there() {
    let spec = spec_schema(Kind::VirtualService).unwrap().unwrap();
    let route = &spec["properties"]["http"]["items"];
    assert_eq!(route["properties"]["mirror_percent"], route["properties"]["mirrorPercent"]);
    assert_eq!(route["properties"]["mirrorPercent"]["nullable"], true);
    let timeout = &route["properties"]["timeout"];
    assert_eq!(timeout["x-kubernetes-validations"][0]["rule"], "duration(self) >= duration('1ms')");
    assert_eq!(
        timeout["description"],
        "Limit of the whole request, retries included; off by default."
    );
    let redirect = &route["properties"]["redirect"];
    assert_eq!(redirect["oneOf"][1], json!({"required": ["port"]}));
    assert_eq!(
        redirect["properties"]["derivePort"]["enum"],
        json!(["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"])
    );
    let said = redirect["properties"]["derivePort"]["description"].as_str().unwrap();
    assert!(said.contains("FROM_REQUEST_PORT: The port of the request."), "{said}");
    let spec = spec_schema(Kind::DestinationRule).unwrap().unwrap();
    let hash = &spec["properties"]["trafficPolicy"]["properties"]["loadBalancer"]["properties"]["consistentHash"];
    assert_eq!(hash["allOf"].as_array().map(Vec::len), Some(2));
    let spec = spec_schema(Kind::EnvoyFilter).unwrap().unwrap();
    let value =
        &spec["properties"]["configPatches"]["items"]["properties"]["patch"]["properties"]["value"];
    assert_eq!(value["x-kubernetes-preserve-unknown-fields"], true);
    // What the field says stands before what the type says.
    let spec = spec_schema(Kind::WorkloadGroup).unwrap().unwrap();
    assert_eq!(
        spec["properties"]["template"]["x-kubernetes-validations"].as_array().map(Vec::len),
        Some(1)
    );
    let spec = spec_schema(Kind::WorkloadEntry).unwrap().unwrap();
    assert_eq!(spec["x-kubernetes-validations"].as_array().map(Vec::len), Some(2));
}

#[test]
fn fields_are_listed_with_their_paths() {
    let fields = spec_fields(Kind::VirtualService).unwrap();
    let of =
        |path: &str| fields.iter().find(|f| f.path == path).unwrap_or_else(|| panic!("{path}"));
    assert!(!of("spec.http").leaf);
    assert!(of("spec.hosts").leaf);
    assert!(of("spec.http[].match[].headers{}.exact").leaf);
    assert_eq!(
        of("spec.http[].timeout").description,
        "Limit of the whole request, retries included; off by default."
    );
}

#[test]
fn what_has_no_structural_form_is_an_error() {
    let endless = json!({"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}}});
    assert!(matches!(structural(&endless), Err(SchemaError::Depth(_))));
    assert!(matches!(structural(&json!({"$ref": "#/$defs/B"})), Err(SchemaError::Reference(_))));
    let choice = json!({"oneOf": [{"type": "string"}, {"type": "integer"}]});
    assert!(matches!(structural(&choice), Err(SchemaError::Form(..))));
    let open = json!({"type": "object", "additionalProperties": true});
    assert!(matches!(structural(&open), Err(SchemaError::Form(..))));
}

/// `kubectl apply` without `--server-side` keeps the whole object in an annotation, and the API
/// server bounds annotations (`TotalAnnotationSizeLimitB`).
#[test]
fn definitions_are_small_enough_for_any_kubectl() {
    const MOST: usize = 256 * 1024;
    for kind in istio() {
        let size = custom_resource_definition(kind).unwrap().unwrap().to_string().len();
        assert!(size < MOST * 9 / 10, "{kind}: {size} bytes");
    }
}
