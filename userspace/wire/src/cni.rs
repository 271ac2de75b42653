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
    /// The daemon has not heard of the pod, so it cannot say. Whoever asks has to find out from the
    /// API server.
    Unknown,
    /// Done, or all is well ([`Request::Del`], [`Request::Gc`], [`Request::Status`]).
    Done,
    /// The pod is to be in the mesh and cannot be now: the sandbox must not start. Worth trying
    /// again.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// Why a line is not understood.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It is not JSON of this form.
    #[error("not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// It is longer than [`MAX_LINE`].
    #[error("longer than {MAX_LINE} bytes")]
    TooLong,
    /// A field cannot be what it says.
    #[error("{field}: {what}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Addresses of one sandbox: a handful of interfaces with both families.
pub const MAX_IPS: usize = 32;
/// Bytes of a name, a uid, a container id or a path.
pub const MAX_TEXT: usize = 4096;

/// Reads the line of a plugin, without its line feed.
///
/// # Errors
/// [`LineError`]: whoever wrote it gets no other answer.
pub fn read_request(line: &[u8]) -> Result<Request, LineError> {
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong);
    }
    let request: Request = serde_json::from_slice(line)?;
    match &request {
        Request::Add(sandbox) | Request::Check(sandbox) => sandbox.check()?,
        Request::Del { container_id, pod_uid } => {
            text("container_id", container_id, true)?;
            text("pod_uid", pod_uid, false)?;
        }
        Request::Gc { valid } => {
            valid.iter().try_for_each(|id| text("valid", id, true))?;
        }
        Request::Status => {}
    }
    Ok(request)
}

/// A message as a line, with its line feed.
///
/// # Errors
/// It would be longer than [`MAX_LINE`].
pub fn write_line(message: &impl Serialize) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message)?;
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong);
    }
    line.push(b'\n');
    Ok(line)
}

impl Sandbox {
    fn check(&self) -> Result<(), LineError> {
        text("container_id", &self.container_id, true)?;
        text("netns", &self.netns, true)?;
        text("pod_namespace", &self.pod_namespace, true)?;
        text("pod_name", &self.pod_name, true)?;
        text("pod_uid", &self.pod_uid, false)?;
        if !self.netns.starts_with('/') {
            return Err(LineError::Field { field: "netns", what: "it is not an absolute path" });
        }
        // They become `<namespace>/<name>`.
        for (field, name) in [("pod_namespace", &self.pod_namespace), ("pod_name", &self.pod_name)]
        {
            if name.contains('/') {
                return Err(LineError::Field { field, what: "a name has no slash" });
            }
        }
        if self.ips.len() > MAX_IPS {
            return Err(LineError::Field { field: "ips", what: "too many" });
        }
        Ok(())
    }
}

fn text(field: &'static str, text: &str, required: bool) -> Result<(), LineError> {
    let what = if text.len() > MAX_TEXT {
        "too long"
    } else if required && text.is_empty() {
        "it is empty"
    } else if text.contains('\0') {
        "it has a NUL"
    } else {
        return Ok(());
    };
    Err(LineError::Field { field, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused() {
        let add = |name: &str, netns: &str| {
            let sandbox = Sandbox {
                container_id: "c".into(),
                netns: netns.into(),
                pod_namespace: "a".into(),
                pod_name: name.into(),
                pod_uid: String::new(),
                ips: vec![],
            };
            let line = write_line(&Request::Add(sandbox)).expect("a line");
            read_request(line.trim_ascii_end()).map_err(|e| e.to_string())
        };
        assert!(add("p", "/run/netns/x").is_ok());
        assert_eq!(add("p/q", "/n"), Err("pod_name: a name has no slash".into()));
        assert_eq!(add("", "/n"), Err("pod_name: it is empty".into()));
        assert_eq!(add("p", "n"), Err("netns: it is not an absolute path".into()));
        assert_eq!(add("p", "/n\0"), Err("netns: it has a NUL".into()));
        assert!(read_request(&vec![b' '; MAX_LINE + 1]).is_err());
    }

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
