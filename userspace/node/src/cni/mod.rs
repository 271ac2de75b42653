//! What the CNI plugin asks: one line of JSON on a Unix socket, one line back
//! (`fairlead_wire::cni`).
//!
//! ADD is answered when the kernel captures the pod and its certificate is there, or when it is known
//! that the pod is none of the mesh's business. Whatever takes longer is for the plugin to decide,
//! which asks the API server.

mod assigned;
mod server;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_config::SnapshotHandle;
use fairlead_identity::IdentityStore;
use fairlead_types::{SpiffeId, WorkloadId};
use fairlead_wire::cni::{Request, Response, Sandbox};
use tokio::sync::watch;

use crate::discovery::{Locator, Namespace};
use crate::enrolment::{Place, PodState, Table};

pub use assigned::{Assigned, News};
pub use server::Server;

/// How long ADD waits for news of the pod and for its capture.
const ADD_PATIENCE: Duration = Duration::from_secs(5);

/// Answers the plugin. Cloning shares it.
#[derive(Clone)]
pub struct Answers {
    /// Where pods are.
    pub locator: Arc<Locator>,
    /// Which addresses they were given.
    pub assigned: Arc<Assigned>,
    /// What the configuration says of them.
    pub snapshots: SnapshotHandle,
    /// Where they stand.
    pub table: Table,
    /// Told after each pass of enrolment.
    pub passes: watch::Receiver<u64>,
    /// Whether a pod outside the mesh has to be exempted before it starts.
    pub refuse_unknown: bool,
    /// Certificates.
    pub identity: Arc<IdentityStore>,
    /// Has enrolment look again.
    pub wake: Arc<dyn Fn() + Send + Sync>,
}

/// What can be said of a pod now.
enum Standing {
    /// Captured, under this identity.
    Captured(SpiffeId),
    Outside,
    Unknown,
    Refused(String),
    NotYet(String),
}

impl Answers {
    /// The answer to one question. None: this daemon enrols nobody any more, and the next one is to
    /// be asked.
    pub async fn answer(&self, request: Request) -> Option<Response> {
        Some(match request {
            Request::Add(sandbox) => return self.add(&sandbox).await,
            Request::Check(sandbox) => self.check(&sandbox),
            Request::Del { container_id, .. } => {
                self.locator.forget(&container_id);
                self.assigned.forget(&container_id);
                Response::Done
            }
            Request::Gc { valid } => {
                let valid = valid.into_iter().collect::<HashSet<_>>();
                self.locator.retain(&valid);
                self.assigned.retain(&valid);
                Response::Done
            }
            Request::Status => Response::Done,
        })
    }

    async fn add(&self, sandbox: &Sandbox) -> Option<Response> {
        let deadline = Instant::now() + ADD_PATIENCE;
        let id = WorkloadId::new(&sandbox.pod_namespace, &sandbox.pod_name);
        let refused = |reason: String| Some(Response::Refused { reason });
        let namespace = match Namespace::open(Path::new(&sandbox.netns)) {
            Ok(namespace) => namespace,
            Err(error) => {
                return refused(format!("the node daemon cannot open {}: {error}", sandbox.netns));
            }
        };
        let place = namespace.place();
        if let Err(reason) =
            self.locator.tell(id.clone(), &sandbox.pod_uid, &sandbox.container_id, namespace)
        {
            return refused(reason.into());
        }
        // Before enrolment looks, and before the pod has a process that can tell others of them.
        self.assigned.tell(sandbox);
        let mut passes = self.passes.clone();
        (self.wake)();
        let mut standing;
        loop {
            // Marked before looking, so that a pass in between is not missed.
            passes.mark_unchanged();
            standing = self.standing(&id, &sandbox.pod_uid, place);
            if matches!(standing, Standing::Captured(_) | Standing::Outside | Standing::Refused(_))
            {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, passes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => break,
            }
        }
        match standing {
            Standing::Captured(identity) => {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.identity.certificate_within(&identity, left).await {
                    Ok(_) => Some(Response::Enrolled),
                    Err(error) => refused(error.to_string()),
                }
            }
            Standing::Outside => Some(Response::Outside),
            Standing::Unknown => Some(Response::Unknown),
            Standing::Refused(reason) | Standing::NotYet(reason) => refused(reason),
        }
    }

    fn check(&self, sandbox: &Sandbox) -> Response {
        let id = WorkloadId::new(&sandbox.pod_namespace, &sandbox.pod_name);
        let place = match Namespace::open(Path::new(&sandbox.netns)) {
            Ok(namespace) => namespace.place(),
            Err(error) => {
                let reason = format!("the node daemon cannot open {}: {error}", sandbox.netns);
                return Response::Refused { reason };
            }
        };
        match self.standing(&id, &sandbox.pod_uid, place) {
            Standing::Captured(_) => Response::Enrolled,
            Standing::Outside => Response::Outside,
            Standing::Unknown => Response::Unknown,
            Standing::Refused(reason) | Standing::NotYet(reason) => Response::Refused { reason },
        }
    }

    fn standing(&self, id: &WorkloadId, uid: &str, place: Place) -> Standing {
        let known = self.snapshots.with(|snapshot| {
            let workload = &snapshot.local.get(id)?.workload;
            let same = uid.is_empty() || *workload.uid == *uid;
            same.then(|| (workload.enrolled, workload.identity.clone()))
        });
        let Some((enrolled, identity)) = known else { return Standing::Unknown };
        if !enrolled && !self.refuse_unknown {
            return Standing::Outside;
        }
        let table = self.table.lock();
        let Some(row) = table.iter().find(|row| row.id == *id) else {
            return Standing::NotYet("the pod is about to be captured".into());
        };
        // A row of another namespace is of an earlier sandbox.
        let here = row.place == Some(place);
        match row.state {
            PodState::Captured if enrolled && here => Standing::Captured(identity),
            PodState::Outside if !enrolled && here => Standing::Outside,
            PodState::Refused if here => {
                Standing::Refused(row.reason.clone().unwrap_or_else(|| "it is refused".into()))
            }
            _ => {
                Standing::NotYet(row.reason.clone().unwrap_or_else(|| "it is not captured".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
