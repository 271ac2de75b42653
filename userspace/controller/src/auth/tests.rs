use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

use super::review::caller;
use super::*;

const AUDIENCE: &str = "istio-ca";

/// Attributes of a user, without their prefix.
type Extra = &'static [(&'static str, &'static [&'static str])];

fn status(username: &str, extra: Extra) -> TokenReviewStatus {
    let extra: BTreeMap<String, Vec<String>> = extra
        .iter()
        .map(|(key, values)| {
            let key = format!("authentication.kubernetes.io/{key}");
            (key, values.iter().map(|v| (*v).to_owned()).collect())
        })
        .collect();
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.to_owned()]),
        error: None,
        user: Some(UserInfo {
            username: Some(username.to_owned()),
            extra: Some(extra),
            ..UserInfo::default()
        }),
    }
}

fn authenticator() -> Authenticator {
    // Never reached: only what needs no API server is asked here.
    let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:9"));
    let client = kube::Client::try_from(config).expect("a client");
    Authenticator::new(client, AuthSettings::new("fairlead-system/fairlead-node"))
}

#[test]
fn a_bound_token_says_pod_and_node() {
    let status = status(
        "system:serviceaccount:fairlead-system:fairlead-node",
        &[("node-name", &["a"]), ("pod-name", &["p"]), ("pod-uid", &["u"])],
    );
    let caller = caller(&status, AUDIENCE).expect("a caller");
    assert_eq!(caller.account(), "fairlead-system/fairlead-node");
    let pod = BoundPod { name: "p".into(), uid: "u".into(), node: Some("a".into()) };
    assert_eq!(caller.pod, Some(pod));
}

#[test]
fn what_the_api_server_does_not_vouch_for_is_refused() {
    let good = status("system:serviceaccount:a:b", &[]);
    assert!(caller(&good, AUDIENCE).is_ok());
    let refused = [
        TokenReviewStatus { authenticated: None, ..good.clone() },
        TokenReviewStatus { authenticated: Some(false), ..good.clone() },
        TokenReviewStatus { audiences: None, ..good.clone() },
        TokenReviewStatus { audiences: Some(vec!["api".into()]), ..good.clone() },
        TokenReviewStatus { user: None, ..good.clone() },
        status("kubernetes-admin", &[]),
        status("system:serviceaccount:a", &[]),
        status("system:serviceaccount::b", &[]),
        status("system:serviceaccount:a:b:c", &[]),
        status("system:node:a", &[("node-name", &["a"]), ("pod-uid", &["u"])]),
    ];
    for status in refused {
        assert!(matches!(caller(&status, AUDIENCE), Err(Denied::Refused(_))), "{status:?}");
    }
}

#[tokio::test]
async fn only_the_daemons_account_with_a_bound_token_is_a_node() {
    let auth = authenticator();
    let of = |username: &str, extra: Extra| {
        auth.as_node(&caller(&status(username, extra), AUDIENCE).expect("a caller"))
    };
    let daemon = "system:serviceaccount:fairlead-system:fairlead-node";
    let bound: Extra = &[("node-name", &["a"]), ("pod-uid", &["u"])];
    assert_eq!(of(daemon, bound).expect("a node").node, "a");
    let others: [(&str, Extra); 5] = [
        ("system:serviceaccount:default:fairlead-node", bound),
        ("system:serviceaccount:fairlead-system:other", bound),
        (daemon, &[]),
        (daemon, &[("pod-uid", &["u"])]),
        // Two nodes are none.
        (daemon, &[("node-name", &["a", "b"]), ("pod-uid", &["u"])]),
    ];
    for (username, extra) in others {
        assert!(matches!(of(username, extra), Err(Denied::NotANode(_))), "{username} {extra:?}");
    }
}

#[tokio::test]
async fn an_api_server_that_is_away_lets_nobody_in() {
    let denied = authenticator().node("token").await.expect_err("denied");
    assert!(denied.is_passing(), "{denied}");
}

#[test]
fn the_token_stands_in_the_header() {
    let of = |value: &'static str| {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().expect("a header"));
        bearer(&metadata).map(ToOwned::to_owned)
    };
    assert_eq!(of("Bearer abc"), Ok("abc".to_owned()));
    assert_eq!(of("bearer abc"), Ok("abc".to_owned()));
    assert!(of("Basic abc").is_err() && of("abc").is_err());
    assert!(bearer(&MetadataMap::new()).is_err());
    assert!(key("").is_err() && key(&"x".repeat(MAX_TOKEN + 1)).is_err());
}
