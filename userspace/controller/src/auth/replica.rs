//! Which replica of the controller calls another.

use futures_util::future::BoxFuture;

use super::{AuthSettings, Authenticator, Caller, Denied, Identify, ReplicaIdentity};
use crate::scope::Own;

/// Takes tokens of the controller's own service account that are bound to a pod and made for
/// [`fairlead_wire::replica::TOKEN_AUDIENCE`]: what a node daemon's token is good for they are not,
/// and the other way around.
pub struct ReplicaAuthenticator {
    tokens: Authenticator,
    own: Own,
}

impl ReplicaAuthenticator {
    /// Has tokens reviewed by `client`'s API server.
    #[must_use]
    pub fn new(client: kube::Client, own: Own) -> Self {
        let settings = AuthSettings {
            audience: fairlead_wire::replica::TOKEN_AUDIENCE.to_owned(),
            node_accounts: Vec::new(),
            ..AuthSettings::new(String::new())
        };
        Self { tokens: Authenticator::new(client, settings), own }
    }

    /// The replica that a caller speaks for.
    ///
    /// # Errors
    /// [`Denied::NotAReplica`]: it is somebody else, or this very one.
    pub fn as_replica(&self, caller: &Caller) -> Result<ReplicaIdentity, Denied> {
        let account = caller.account();
        if caller.namespace != self.own.namespace
            || caller.service_account != self.own.service_account
        {
            return Err(Denied::NotAReplica(account));
        }
        match &caller.pod {
            Some(pod) if pod.name == self.own.pod => {
                Err(Denied::NotAReplica(format!("{}, which this is itself,", pod.name)))
            }
            Some(pod) if !pod.name.is_empty() => {
                Ok(ReplicaIdentity { pod: pod.name.clone(), pod_uid: pod.uid.clone() })
            }
            _ => {
                Err(Denied::NotAReplica(format!("{account} with a token that is bound to no pod")))
            }
        }
    }
}

impl Identify<ReplicaIdentity> for ReplicaAuthenticator {
    fn identify<'a>(&'a self, bearer: &'a str) -> BoxFuture<'a, Result<ReplicaIdentity, Denied>> {
        Box::pin(async move { self.as_replica(&*self.tokens.caller(bearer).await?) })
    }

    fn revoked<'a>(&'a self, bearer: &'a str, known: &'a ReplicaIdentity) -> BoxFuture<'a, Denied> {
        Box::pin(self.tokens.revoked_as(bearer, known, |caller| self.as_replica(caller)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::BoundPod;
    use super::*;

    #[tokio::test]
    async fn only_another_pod_of_the_own_account_is_a_replica() {
        let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:9"));
        let client = kube::Client::try_from(config).expect("a client");
        let own = Own {
            namespace: "mesh".into(),
            service_account: "controller".into(),
            pod: "me".into(),
        };
        let auth = ReplicaAuthenticator::new(client, own);
        let caller = |namespace: &str, account: &str, pod: Option<&str>| Caller {
            namespace: namespace.into(),
            service_account: account.into(),
            pod: pod.map(|name| BoundPod {
                name: name.into(),
                uid: "u".into(),
                node: Some("n".into()),
            }),
            ..Caller::default()
        };
        let other = auth.as_replica(&caller("mesh", "controller", Some("other")));
        assert_eq!(other.expect("a replica").pod, "other");
        for (namespace, account, pod) in [
            ("mesh", "controller", Some("me")),
            ("mesh", "controller", Some("")),
            ("mesh", "controller", None),
            ("mesh", "fairlead-node", Some("other")),
            ("elsewhere", "controller", Some("other")),
        ] {
            let denied = auth.as_replica(&caller(namespace, account, pod));
            assert!(matches!(denied, Err(Denied::NotAReplica(_))), "{namespace} {account} {pod:?}");
        }
    }
}
