use serde_json::{Value, json};

use super::*;

fn route(weight: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "reviews", "namespace": "default", "uid": "u", "generation": 1,
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"hosts": ["reviews"], "http": [{"route": [
            {"destination": {"host": "reviews"}, "weight": weight}]}]},
    })
}

fn review(operation: &str, object: &Value, old: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "7", "operation": operation, "name": object["metadata"]["name"],
            "kind": {"group": "networking.istio.io", "version": "v1", "kind": object["kind"]},
            "resource": {"group": "networking.istio.io", "version": "v1", "resource": "x"},
            "object": object, "oldObject": old, "dryRun": false, "userInfo": {},
        },
    })
}

async fn ask(hook: &Webhook, review: &Value) -> Value {
    let body = Full::new(Bytes::from(review.to_string()));
    let request = Request::post(PATH).body(body).expect("a request");
    let response = hook.handle(request).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        (&answer["apiVersion"], &answer["kind"]),
        (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
    );
    assert_eq!(answer["response"]["uid"], "7");
    answer["response"].clone()
}

fn metrics(hook: &Webhook) -> String {
    let mut out = fairlead_telemetry::Exposition::default();
    hook.registry.expose(&mut out);
    out.take()
}

#[tokio::test]
async fn bad_resources_are_denied_with_field_reason_and_what_is_allowed() {
    let hook = Webhook::new(Arc::default());
    let good = ask(&hook, &review("CREATE", &route(json!(100)), &Value::Null)).await;
    assert_eq!(good["allowed"], true, "{good}");
    let bad = ask(&hook, &review("CREATE", &route(json!("many")), &Value::Null)).await;
    assert_eq!(bad["allowed"], false);
    let message = bad["status"]["message"].as_str().expect("text");
    assert!(message.contains("spec.http[0].route[0].weight"), "{message}");
    assert!(message.contains("whole number"), "{message}");
    let cause = &bad["status"]["details"]["causes"][0];
    assert_eq!(cause["field"], "spec.http[0].route[0].weight", "{cause}");
    let text = metrics(&hook);
    let labels = r#"group="networking.istio.io",version="v1",resource="virtualservices""#;
    assert!(text.contains(&format!("galley_validation_passed{{{labels}}} 1")), "{text}");
    let failed = format!("galley_validation_failed{{{labels},reason=\"invalid_resource\"}} 1");
    assert!(text.contains(&failed), "{text}");
}

#[tokio::test]
async fn what_has_no_effect_yet_is_warned_of() {
    let hook = Webhook::new(Arc::default());
    let mut object = route(json!(100));
    object["spec"]["http"][0]["match"] = json!([{"statPrefix": "x"}]);
    let answer = ask(&hook, &review("CREATE", &object, &Value::Null)).await;
    assert_eq!(answer["allowed"], true);
    let warnings = answer["warnings"].as_array().expect("warnings");
    assert!(warnings[0].as_str().is_some_and(|w| w.contains("not enforced yet")), "{warnings:?}");
    // And of what makes traffic fail.
    let mut object = route(json!(100));
    object["spec"]["http"][0] = json!({"redirect": {"uri": "/x"}});
    let answer = ask(&hook, &review("CREATE", &object, &Value::Null)).await;
    assert_eq!(answer["allowed"], true);
    let warning = answer["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("spec.http[0].redirect") && warning.contains("503"), "{warning}");
}

#[tokio::test]
async fn a_broken_object_can_be_touched_mended_and_deleted() {
    let hook = Webhook::new(Arc::default());
    let bad = route(json!("many"));
    // Labels and finalizers of it.
    let mut labelled = bad.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    labelled["status"] = json!({"conditions": []});
    assert_eq!(ask(&hook, &review("UPDATE", &labelled, &bad)).await["allowed"], true);
    // Something that is going.
    let mut going = route(json!("more"));
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(ask(&hook, &review("UPDATE", &going, &bad)).await["allowed"], true);
    // Mended.
    assert_eq!(ask(&hook, &review("UPDATE", &route(json!(1)), &bad)).await["allowed"], true);
    // Broken in another way.
    assert_eq!(ask(&hook, &review("UPDATE", &route(json!("x")), &bad)).await["allowed"], false);
    // Never asked, and allowed if it is.
    assert_eq!(ask(&hook, &review("DELETE", &bad, &bad)).await["allowed"], true);
    let mut status = review("UPDATE", &route(json!("x")), &bad);
    status["request"]["subResource"] = "status".into();
    assert_eq!(ask(&hook, &status).await["allowed"], true);
}

#[tokio::test]
async fn names_that_the_api_server_makes_and_kinds_of_others_pass() {
    let hook = Webhook::new(Arc::default());
    let mut object = route(json!(100));
    object["metadata"] = json!({"generateName": "reviews-", "namespace": "default"});
    let answer = ask(&hook, &review("CREATE", &object, &Value::Null)).await;
    assert_eq!(answer["allowed"], true, "{answer}");
    let mut review = review("CREATE", &json!({"kind": "Foo", "spec": 1}), &Value::Null);
    review["request"]["kind"]["kind"] = "Foo".into();
    let answer = ask(&hook, &review).await;
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(answer["warnings"][0].as_str().is_some_and(|w| w.contains("not known")));
    assert!(!metrics(&hook).contains("Foo"));
}

#[tokio::test]
async fn the_probe_is_refused_and_only_as_a_dry_run() {
    let hook = Webhook::new(Arc::default());
    let mut object = route(json!(100));
    object["metadata"]["name"] = decide::PROBE.into();
    let mut asked = review("CREATE", &object, &Value::Null);
    assert_eq!(ask(&hook, &asked).await["allowed"], true);
    asked["request"]["dryRun"] = true.into();
    let answer = ask(&hook, &asked).await;
    assert_eq!(answer["allowed"], false);
    assert_eq!(answer["status"]["message"], decide::PROBE_REFUSAL);
}

#[tokio::test]
async fn what_is_no_review_is_answered_and_bounded() {
    let hook = Webhook::new(Arc::default());
    let send = async |method: &str, path: &str, body: Vec<u8>| {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Full::new(Bytes::from(body))).expect("a request");
        hook.handle(request).await.status()
    };
    assert_eq!(send("POST", "/", Vec::new()).await, StatusCode::NOT_FOUND);
    assert_eq!(send("GET", PATH, Vec::new()).await, StatusCode::METHOD_NOT_ALLOWED);
    for body in [
        "",
        "{}",
        "[]",
        "null",
        "{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\"}",
    ] {
        assert_eq!(send("POST", PATH, body.into()).await, StatusCode::BAD_REQUEST, "{body}");
    }
    let large = vec![b' '; MAX_REVIEW_BYTES + 1];
    assert_eq!(send("POST", PATH, large).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(metrics(&hook).contains("galley_validation_http_error{status=\"413\"} 1"));
    assert_eq!(fuzz::review(b"x"), None);
}
