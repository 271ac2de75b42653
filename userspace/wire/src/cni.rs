//! What the CNI plugin and the node daemon say to each other: one line of JSON, one line back,
//! over a Unix socket that only root can open.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where the daemon listens, as seen from the node.
pub const SOCKET: &str = "/run/fairlead/cni.sock";
/// Bytes of the longest line.
pub const MAX_LINE: usize = 64 << 10;

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE", deny_unknown_fields)]
pub enum Request {
    /// A sandbox has its addresses and no process yet.
    Add(Sandbox),
    /// Is it as [`Request::Add`] left it?
    Check(Sandbox),
    /// The sandbox goes away.
    Del {
        /// `CNI_CONTAINERID`.
        container_id: String,
        /// `K8S_POD_UID` of `CNI_ARGS`; empty if the runtime did not say.
        pod_uid: String,
    },
    /// Only these sandboxes still exist (CNI 1.1 `GC`).
    Gc {
        /// `CNI_CONTAINERID` of each.
        valid: Vec<String>,
    },
    /// Is the daemon ready to take pods (CNI 1.1 `STATUS`)?
    Status,
}

/// A pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`, a path on the node.
    pub netns: String,
    /// `K8S_POD_NAMESPACE`.
    pub pod_namespace: String,
    /// `K8S_POD_NAME`.
    pub pod_name: String,
    /// `K8S_POD_UID`; empty if the runtime did not say.
    pub pod_uid: String,
    /// The addresses that the plugins before gave it.
    pub ips: Vec<IpAddr>,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "lowercase", deny_unknown_fields)]
pub enum Response {
    /// The pod's connections are captured from now on.
    Enrolled,
    /// The pod is not in the mesh.
    Outside,
    /// Done, or all is well ([`Request::Del`], [`Request::Gc`], [`Request::Status`]).
    Done,
    /// The pod is to be in the mesh and cannot be now: the sandbox must not start. Worth trying
    /// again.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_documented() {
        let text = r#"{"command":"ADD","container_id":"c","netns":"/n","pod_namespace":"a","pod_name":"p","pod_uid":"u","ips":["10.0.0.1","fd00::1"]}"#;
        let request: Request = serde_json::from_str(text).expect("a request");
        assert_eq!(serde_json::to_string(&request).expect("text"), text);
        let refused = Response::Refused { reason: "no certificate".into() };
        let text = serde_json::to_string(&refused).expect("text");
        assert_eq!(text, r#"{"result":"refused","reason":"no certificate"}"#);
        assert!(
            serde_json::from_str::<Request>(
                r#"{"command":"DEL","container_id":"c","pod_uid":"","more":1}"#
            )
            .is_err()
        );
    }
}
