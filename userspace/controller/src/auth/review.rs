//! What the API server's answer to a TokenReview says.

use k8s_openapi::api::authentication::v1::TokenReviewStatus;

use super::Denied;

/// Prefix of the user names of service accounts.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// Extra attributes of tokens that are bound to a pod (Kubernetes, "Service account tokens").
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// The owner of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: Option<BoundPod>,
    /// Id of the token (`JTI=…`), for logs.
    pub credential: String,
}

/// The pod of a bound token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoundPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node that it runs on.
    pub node: Option<String>,
}

impl Caller {
    /// `namespace/name` of the service account.
    #[must_use]
    pub fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.service_account)
    }
}

/// Reads the answer.
pub(super) fn caller(status: &TokenReviewStatus, audience: &str) -> Result<Caller, Denied> {
    let refused = |text: &str| Err(Denied::Refused(text.to_owned()));
    if status.authenticated != Some(true) {
        let reason = status.error.as_deref().unwrap_or("not authenticated");
        // The API server repeats parts of what it was given; keep it short.
        return refused(&reason.chars().take(200).collect::<String>());
    }
    // An API server that knows nothing of audiences takes a token that was made for it itself.
    if !status.audiences.iter().flatten().any(|a| a == audience) {
        return refused(&format!("it is not for the audience {audience}"));
    }
    let Some(user) = &status.user else { return refused("it names no user") };
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return refused("it is not that of a service account");
    };
    if namespace.is_empty() || service_account.is_empty() || service_account.contains(':') {
        return refused("it is not that of a service account");
    }
    let extra = |key: &str| match user.extra.as_ref().and_then(|extra| extra.get(key)) {
        Some(values) if values.len() == 1 && !values[0].is_empty() => Some(values[0].clone()),
        _ => None,
    };
    let pod = extra(POD_UID).map(|uid| BoundPod {
        name: extra(POD_NAME).unwrap_or_default(),
        uid,
        node: extra(NODE_NAME),
    });
    Ok(Caller {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod,
        credential: extra(CREDENTIAL).unwrap_or_default(),
    })
}
