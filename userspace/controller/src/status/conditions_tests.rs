use fairlead_wire::config::Fault;

use super::*;

fn verdict(spec: &Value, interested: usize, took: usize) -> Verdict {
    let object = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "r", "namespace": "n", "uid": "u", "generation": 3}, "spec": spec,
    });
    let json = object.to_string().into_bytes().into();
    Verdict { generation: 3, interested, took, json, ..Verdict::default() }
}

fn good() -> Value {
    json!({"hosts": ["r"], "http": [{"route": [{"destination": {"host": "r"}}]}]})
}

fn said(outcome: &Outcome) -> Vec<(&str, &str)> {
    outcome.conditions.iter().map(|c| (c.status, c.reason)).collect()
}

#[test]
fn a_good_object_on_all_nodes_is_all_true() {
    let outcome = outcome(&verdict(&good(), 2, 2));
    assert_eq!(said(&outcome), [("True", "Valid"), ("True", "Reconciled"), ("True", "Enforced")]);
    assert_eq!(outcome.conditions[1].message, "taken by 2 of 2 nodes");
    assert!(outcome.validation.is_empty());
}

#[test]
fn nodes_that_have_not_answered_or_do_not_need_it_are_told_apart() {
    let pending = |interested, waiting: &[&str], behind| {
        let waiting = waiting.iter().map(|name| Arc::from(*name)).collect();
        let of = Verdict { waiting, behind, ..verdict(&good(), interested, 1) };
        let outcome = outcome(&of);
        assert_eq!(said(&outcome)[1], ("Unknown", "Pending"));
        outcome.conditions[1].message.clone()
    };
    assert_eq!(pending(3, &["a", "b"], 0), "taken by 1 of 3 nodes; no answer from a, b");
    assert_eq!(
        pending(1000, &["a", "b", "c", "d", "e", "f"], 0),
        "taken by 1 of 1000 nodes; no answer from a, b, c, d and 995 more"
    );
    assert_eq!(
        pending(2, &["b"], 1),
        "taken by 1 of 2 nodes; no answer from b; a replica of the controller has not told of its \
         nodes yet"
    );
    assert_eq!(said(&outcome(&verdict(&good(), 0, 0)))[1], ("True", "NoNodeNeedsIt"));
}

#[test]
fn a_wrong_field_is_named_with_what_is_allowed() {
    let mut spec = good();
    spec["http"][0]["route"][0]["weight"] = "many".into();
    let outcome = outcome(&verdict(&spec, 1, 1));
    let accepted = &outcome.conditions[0];
    assert_eq!((accepted.status, accepted.reason), ("False", "Invalid"));
    assert!(accepted.message.starts_with("spec.http[0].route[0].weight: "), "{accepted:?}");
    assert!(accepted.message.contains('('), "{accepted:?}");
    assert!(accepted.is_fault() && !outcome.conditions[2].is_fault());
    assert_eq!(outcome.validation[0]["level"], "ERROR");
}

#[test]
fn fields_without_effect_are_listed() {
    let mut spec = good();
    spec["http"][0]["match"] = json!([{"statPrefix": "x"}]);
    let outcome = outcome(&verdict(&spec, 1, 1));
    assert_eq!(
        said(&outcome),
        [("True", "Valid"), ("True", "Reconciled"), ("False", "NotEnforcedYet")]
    );
    assert!(outcome.conditions[2].message.starts_with("spec.http[0].match[0].statPrefix: "));
    assert_eq!(outcome.validation[0]["level"], "WARNING");
}

/// What is told of an object of that kind that two nodes took.
fn enforced(kind: &str, metadata: Value, spec: Value) -> Condition {
    let group = if kind == "AuthorizationPolicy" { "security" } else { "networking" };
    let mut metadata = metadata;
    metadata["name"] = "r".into();
    metadata["namespace"] = "n".into();
    let object = json!({
        "apiVersion": format!("{group}.istio.io/v1"), "kind": kind, "metadata": metadata,
        "spec": spec,
    });
    let json = object.to_string().into_bytes().into();
    let outcome = outcome(&Verdict { json, interested: 2, took: 2, ..Verdict::default() });
    let [accepted, _, enforced] = outcome.conditions;
    assert_eq!(accepted.status, "True", "{accepted:?}");
    assert_eq!(outcome.validation.is_empty(), enforced.status == "True", "{enforced:?}");
    enforced
}

#[test]
fn whatever_does_not_do_all_that_it_says_is_not_enforced() {
    let redirect = json!({"hosts": ["r"], "http": [
        {"match": [{"statPrefix": "x"}], "redirect": {"uri": "/x"}},
    ]});
    let sidecar = json!({"egress": [{"hosts": ["./*"]}]});
    let tls = json!({"host": "r", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}});
    let dry_run = json!({"annotations": {"istio.io/dry-run": "true"}});
    let gateways = json!({"hosts": ["r"], "gateways": ["mesh", "g"], "http": good()["http"]});
    let none = json!({});
    for (kind, metadata, spec, reason, field) in [
        ("VirtualService", &none, redirect, "RefusesTraffic", "spec.http[0].redirect: "),
        ("VirtualService", &none, gateways, "PartlyEnforced", "spec.gateways[1]: "),
        ("DestinationRule", &none, tls, "RefusesTraffic", "spec.trafficPolicy.tls.mode: "),
        ("Sidecar", &none, sidecar, "PartlyEnforced", "spec.egress[0].hosts: "),
        (
            "AuthorizationPolicy",
            &dry_run,
            json!({"rules": [{}]}),
            "NotEnforcedYet",
            "metadata.annotations[istio.io/dry-run]: ",
        ),
    ] {
        let enforced = enforced(kind, metadata.clone(), spec);
        assert_eq!((enforced.status, enforced.reason), ("False", reason), "{enforced:?}");
        assert!(enforced.message.starts_with(field), "{enforced:?}");
    }
}

#[test]
fn enforced_where_no_node_needs_it_or_nodes_refuse_it_says_so() {
    let enforced = |verdict: &Verdict| outcome(verdict).conditions[2].clone();
    let nobody = enforced(&verdict(&good(), 0, 0));
    assert_eq!((nobody.status, nobody.reason), ("True", "Enforced"));
    assert!(nobody.message.contains("none does now"), "{nobody:?}");
    let mut of = verdict(&good(), 2, 1);
    of.refused = 1;
    let refused = enforced(&of);
    assert_eq!((refused.status, refused.reason), ("False", "Refused"));
}

#[test]
fn a_policy_that_cannot_be_enforced_is_not_accepted() {
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "r", "namespace": "n"},
        "spec": {"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]},
    });
    let json = object.to_string().into_bytes().into();
    let outcome = outcome(&Verdict { json, ..Verdict::default() });
    assert_eq!(said(&outcome)[0], ("False", "NotSupported"), "{outcome:?}");
}

#[test]
fn refusals_name_the_node_and_the_reason() {
    let mut of = verdict(&good(), 5, 3);
    of.refused = 2;
    let fault = Fault { field: "spec.x".into(), message: "no".into(), allowed: "yes".into() };
    let rejection = Rejection { last_good: true, faults: vec![fault], ..Rejection::default() };
    of.rejections = vec![("a".into(), Arc::new(rejection))];
    let outcome = outcome(&of);
    let reconciled = &outcome.conditions[1];
    assert_eq!((reconciled.status, reconciled.reason), ("False", "Refused"));
    assert_eq!(
        reconciled.message,
        "refused by 2 of 5 nodes; a: spec.x: no (yes); its last good version is in force"
    );
    // Whatever the reasons are, all that has to be said has room.
    let fault = Fault { field: "spec.x".into(), message: "no".repeat(400), ..Fault::default() };
    let rejection = Rejection { faults: vec![fault], more: 3, ..Rejection::default() };
    let rejection = Arc::new(rejection);
    of.refused = 5;
    of.rejections =
        ["a", "b", "c", "d", "e"].map(|node| (node.into(), Arc::clone(&rejection))).to_vec();
    let outcome = super::outcome(&of);
    let message = &outcome.conditions[1].message;
    assert!(message.ends_with("; and 1 more"), "{message}");
    assert!(message.contains("; d: spec.x: nono") && !message.contains("; e: "), "{message}");
    assert_eq!(message.matches("… and 3 more").count(), 4, "{message}");
}

#[test]
fn what_is_there_already_is_not_written_again_and_times_stay() {
    let first = outcome(&verdict(&good(), 3, 1));
    let (written, changed) = merged(&first, None, "T1");
    assert_eq!(changed.len(), 3);
    let existing = Value::Array(written.clone());
    let (again, changed) = merged(&first, Some(&existing), "T2");
    assert_eq!((again, changed.len()), (written, 0));
    let second = outcome(&verdict(&good(), 3, 3));
    let (conditions, changed) = merged(&second, Some(&existing), "T3");
    assert_eq!(changed, [RECONCILED]);
    let time = |n: usize| conditions[n]["lastTransitionTime"].as_str().map(ToOwned::to_owned);
    assert_eq!((time(0).as_deref(), time(1).as_deref()), (Some("T1"), Some("T3")));
}

#[test]
fn a_count_alone_is_no_news() {
    let of = |nodes| outcome(&verdict(&good(), nodes, nodes));
    assert!(of(2).is_alike(&of(9)));
    assert!(!of(2).is_alike(&outcome(&verdict(&good(), 2, 1))));
    let waiting = |took| outcome(&verdict(&good(), 3, took));
    assert!(!waiting(1).is_alike(&waiting(2)));
}

#[test]
fn conditions_of_others_are_kept_and_messages_bounded() {
    let existing = json!([{"type": "Accepted", "status": "True"}, {"type": "Other", "x": 1}]);
    assert_eq!(others(Some(&existing)), [json!({"type": "Other", "x": 1})]);
    assert!(others(None).is_empty());
    let long = Condition::new(ACCEPTED, "False", "Invalid", &"é".repeat(5000));
    assert_eq!(long.message.chars().count(), MAX_MESSAGE + 1);
}

#[test]
fn a_fault_is_told_once_per_generation() {
    let mut of = verdict(&good(), 3, 1);
    of.refused = 1;
    let first = outcome(&of);
    let fault = &first.conditions[1];
    assert!(fault.is_fault() && fault.is_news(3, None));
    let existing = Value::Array(merged(&first, None, "T1").0);
    assert!(!fault.is_news(3, Some(&existing)));
    of.refused = 2;
    assert!(!outcome(&of).conditions[1].is_news(3, Some(&existing)), "more nodes of the same mind");
    assert!(fault.is_news(4, Some(&existing)), "it was touched, and is not mended");
    let mended = Value::Array(merged(&outcome(&verdict(&good(), 3, 3)), None, "T2").0);
    assert!(fault.is_news(3, Some(&mended)), "it has come back");
}
