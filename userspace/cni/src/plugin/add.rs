//! ADD and CHECK: may this pod start?

use std::io;
use std::time::{Duration, Instant};

use fairlead_wire::cni::{Request, Response, Sandbox};

use super::api::Membership;
use super::daemon::Daemon;
use super::error::{CniError, Code};
use super::request::Conf;

/// How long the daemon may take for one answer: it waits itself for news of the pod.
const ANSWER: Duration = Duration::from_secs(10);
/// The namespace of the cluster's own parts, which may be what the API server waits for.
const SYSTEM: &str = "kube-system";

fn later(details: String) -> CniError {
    CniError::new(Code::TryAgainLater, details)
}

/// Returns once the pod is captured, or known to be no business of the mesh.
pub(super) fn add(
    conf: &Conf,
    sandbox: Sandbox,
    daemon: &mut impl Daemon,
    api: &mut impl Membership,
    deadline: Instant,
) -> Result<(), CniError> {
    if sandbox.pod_namespace == conf.namespace {
        // The mesh's own parts: what would tell the daemon about them may be among them.
        return Ok(());
    }
    let lenient = is_lenient(conf, &sandbox.pod_namespace);
    let request = Request::Add(sandbox);
    let Request::Add(sandbox) = &request else { return Ok(()) };
    let mut to_be_enrolled = false;
    loop {
        let answered = daemon.ask(&request, deadline.min(Instant::now() + ANSWER));
        let why = match answered {
            Ok(Response::Enrolled | Response::Outside | Response::Done) => return Ok(()),
            Ok(Response::Refused { reason }) => return Err(later(reason)),
            Ok(Response::Unknown) => "the node daemon has not heard of the pod yet".to_owned(),
            Err(error) => format!("the node daemon does not answer: {error}"),
        };
        let mut why_not_asked = None;
        if !to_be_enrolled {
            match api.is_to_be_enrolled(sandbox, deadline) {
                Ok(false) => return Ok(()),
                Ok(true) => to_be_enrolled = true,
                Err(_) if lenient => return Ok(()),
                Err(error) => why_not_asked = Some(error),
            }
        }
        if !daemon.wait(deadline) {
            return Err(later(refusal(&why, why_not_asked)));
        }
    }
}

fn refusal(why: &str, why_not_asked: Option<io::Error>) -> String {
    match why_not_asked {
        None => why.to_owned(),
        Some(error) => {
            format!("{why}; and whether the pod is to be in the mesh cannot be found out: {error}")
        }
    }
}

/// Whether the namespace's pods start when nobody can say what they are.
fn is_lenient(conf: &Conf, namespace: &str) -> bool {
    namespace == SYSTEM || conf.exclude_namespaces.iter().any(|excluded| excluded == namespace)
}

/// As ADD left it?
pub(super) fn check(
    conf: &Conf,
    sandbox: Sandbox,
    daemon: &mut impl Daemon,
    api: &mut impl Membership,
    deadline: Instant,
) -> Result<(), CniError> {
    if sandbox.pod_namespace == conf.namespace {
        return Ok(());
    }
    let why = match daemon.ask(&Request::Check(sandbox.clone()), deadline) {
        Ok(Response::Enrolled | Response::Outside | Response::Done) => return Ok(()),
        Ok(Response::Refused { reason }) => return Err(later(reason)),
        Ok(Response::Unknown) => "the node daemon does not know the pod".to_owned(),
        Err(error) => format!("the node daemon does not answer: {error}"),
    };
    match api.is_to_be_enrolled(&sandbox, deadline) {
        Ok(false) => Ok(()),
        Err(_) if is_lenient(conf, &sandbox.pod_namespace) => Ok(()),
        Ok(true) => Err(later(why)),
        Err(error) => Err(later(refusal(&why, Some(error)))),
    }
}
