//! Where the pods of this node are: their network namespaces, from the CNI plugin, which tells of a
//! pod before it starts, or else from the processes that run in its cgroup.
//!
//! A namespace is held open from when it was found, and known by its descriptor: the number of a
//! process, or a path below `/run/netns`, may come to mean another. Nothing is remembered on disk:
//! after a restart everything is found anew.

mod processes;
mod remaining;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_config::model::LocalPod;
use fairlead_types::{NetnsCookie, WorkloadId};
use parking_lot::Mutex;

use crate::enrolment::Place;
use remaining::Remaining;

/// Sandboxes that the plugin has told of and that nobody has taken back.
const MAX_TOLD: usize = 8192;
/// Shortest and longest time between two looks at all processes, while pods are missing.
const SOON: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(10);

/// A network namespace that is held open.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    place: Place,
}

impl Namespace {
    /// Opens it.
    ///
    /// # Errors
    /// There is none at that path.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self { file, place: Place(metadata.dev(), metadata.ino()) })
    }

    /// Which one it is.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// A path to it that is good as long as this is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

#[derive(Debug)]
struct Told {
    uid: String,
    container_id: String,
    namespace: Namespace,
    /// Whether the configuration has had this very pod since.
    seen: bool,
}

impl Told {
    fn is_of(&self, uid: &str) -> bool {
        self.uid.is_empty() || self.uid == uid
    }
}

#[derive(Debug)]
struct Found {
    uid: Arc<str>,
    namespace: Namespace,
    /// A process of the pod that is there; none: it has ended, or is elsewhere.
    pid: Option<u32>,
}

/// Knows where pods are.
#[derive(Debug)]
pub struct Locator {
    proc: PathBuf,
    host: NetnsCookie,
    /// Whether a pod's own annotation counts where nobody knows better. Those of a directory do;
    /// those of a cluster are written by whoever may make pods.
    trust_annotations: bool,
    told: Mutex<HashMap<WorkloadId, Told>>,
    remaining: Mutex<Remaining>,
    search: Mutex<Search>,
}

#[derive(Debug)]
struct Search {
    found: HashMap<WorkloadId, Found>,
    /// Pods that were missing at the last look.
    missing: HashSet<Arc<str>>,
    /// Pods on the host's network: there is nothing to find.
    on_host: HashSet<Arc<str>>,
    next: Option<Instant>,
    pause: Duration,
}

impl Locator {
    /// Nothing is known yet. `proc` is the node's.
    #[must_use]
    pub fn new(proc: PathBuf, host: NetnsCookie, trust_annotations: bool) -> Self {
        Self {
            proc,
            host,
            trust_annotations,
            told: Mutex::default(),
            remaining: Mutex::default(),
            search: Mutex::new(Search {
                found: HashMap::new(),
                missing: HashSet::new(),
                on_host: HashSet::new(),
                next: None,
                pause: SOON,
            }),
        }
    }

    /// The plugin tells of a sandbox. A later one of the same pod takes its place.
    ///
    /// # Errors
    /// There are too many.
    pub fn tell(
        &self,
        id: WorkloadId,
        uid: &str,
        container_id: &str,
        namespace: Namespace,
    ) -> Result<(), &'static str> {
        let mut told = self.told.lock();
        if told.len() >= MAX_TOLD && !told.contains_key(&id) {
            return Err("too many sandboxes of which the API server has not told anything");
        }
        let (uid, container_id) = (uid.to_owned(), container_id.to_owned());
        let place = namespace.place();
        let before = told.insert(id, Told { uid, container_id, namespace, seen: false });
        if let Some(before) = before.filter(|before| before.namespace.place() != place) {
            self.remaining.lock().add(before.container_id, before.namespace.place());
        }
        Ok(())
    }

    /// A sandbox is gone.
    pub fn forget(&self, container_id: &str) {
        self.keep_only(|id| id != container_id);
    }

    /// Only these sandboxes still exist.
    pub fn retain(&self, containers: &HashSet<String>) {
        self.keep_only(|id| containers.contains(id));
    }

    /// The pods of sandboxes that the plugin has told of.
    #[cfg(test)]
    pub(crate) fn told(&self) -> Vec<WorkloadId> {
        self.told.lock().keys().cloned().collect()
    }

    fn keep_only(&self, stays: impl Fn(&str) -> bool) {
        let mut told = self.told.lock();
        told.retain(|_, told| stays(&told.container_id));
        self.remaining.lock().keep_only(stays);
    }

    /// Whether pods may run on that the configuration has no more. What is in a directory is taken
    /// out by somebody who means it; on a cluster, a pod's object may go before the pod does.
    #[must_use]
    pub fn pods_outlive_their_objects(&self) -> bool {
        !self.trust_annotations
    }

    /// Those of these namespaces that are of a sandbox which still exists, or in which processes
    /// run. They have to be held, and these are all that are asked about.
    #[must_use]
    pub fn remaining(&self, places: &HashSet<Place>, now: Instant) -> HashSet<Place> {
        let told: HashSet<Place> = {
            let told = self.told.lock();
            let all = told.values().map(|told| told.namespace.place());
            all.filter(|place| places.contains(place)).collect()
        };
        self.remaining.lock().of(places, &told, now, || processes::busy(&self.proc, places))
    }

    /// The network namespaces of pods that run and of which none of these uids is, each once.
    #[must_use]
    pub fn unlisted(&self, listed: &HashSet<&str>) -> Vec<(String, Namespace)> {
        let mut places = HashSet::new();
        let namespace = |(pid, uid): (u32, String)| {
            let namespace = Namespace::open(&self.proc.join(format!("{pid}/ns/net"))).ok()?;
            let is_its = processes::pod_of(&self.proc, pid).as_ref() == Some(&uid);
            (is_its && places.insert(namespace.place())).then_some((uid, namespace))
        };
        let pods = processes::all_of_pods(&self.proc).filter(|(_, uid)| !listed.contains(&**uid));
        pods.filter_map(namespace).take(MAX_TOLD).collect()
    }

    /// The pods as the configuration has them, each with the path of its namespace; and when to look
    /// again for those of which it is not known.
    pub fn locate<'p>(
        &self,
        pods: impl Iterator<Item = (&'p WorkloadId, &'p Arc<LocalPod>)>,
        now: Instant,
    ) -> (Vec<(WorkloadId, Arc<LocalPod>)>, Option<Instant>) {
        let mut told = self.told.lock();
        let mut search = self.search.lock();
        let pods: Vec<(&WorkloadId, &Arc<LocalPod>)> = pods.collect();
        let uids: HashMap<&WorkloadId, &Arc<str>> =
            pods.iter().map(|(id, pod)| (*id, &pod.workload.uid)).collect();
        search.found.retain(|id, found| uids.get(id).is_some_and(|uid| **uid == found.uid));
        for found in search.found.values_mut() {
            let place = found.pid.and_then(|pid| processes::place_of(&self.proc, pid));
            if place != Some(found.namespace.place()) {
                found.pid = None;
            }
        }
        let present: HashSet<&Arc<str>> = uids.values().copied().collect();
        search.on_host.retain(|uid| present.contains(uid));
        told.retain(|id, told| {
            // One that the configuration has not had yet is on its way there, also when it still has
            // the one before of that name, or has none for a moment.
            let listed = uids.get(id);
            let stays = listed.is_some() || !told.seen;
            told.seen |= listed.is_some_and(|uid| told.is_of(uid));
            if !stays {
                let container_id = std::mem::take(&mut told.container_id);
                self.remaining.lock().add(container_id, told.namespace.place());
            }
            stays
        });
        let known = |told: &HashMap<WorkloadId, Told>, search: &Search, pod: &LocalPod| {
            let workload = &pod.workload;
            let told = told.get(&workload.id).filter(|told| told.is_of(&workload.uid));
            let found = || search.found.get(&workload.id).filter(|found| found.pid.is_some());
            let found = || found().map(|found| found.namespace.path());
            told.map(|told| told.namespace.path()).or_else(found)
        };
        let annotated = |pod: &LocalPod| pod.netns.clone().filter(|_| self.trust_annotations);
        let missing: Vec<&LocalPod> = pods
            .iter()
            .map(|(_, pod)| &***pod)
            .filter(|pod| known(&told, &search, pod).is_none() && annotated(pod).is_none())
            // Without a uid there is nothing to find it by, without an address nothing to know it by.
            .filter(|pod| !pod.workload.uid.is_empty() && !pod.workload.ips.is_empty())
            .filter(|pod| !search.on_host.contains(&pod.workload.uid))
            .collect();
        let next = self.search(&mut search, &missing, now);
        search.found.retain(|_, found| found.pid.is_some());
        let located = pods
            .iter()
            .map(|(id, pod)| {
                let netns = known(&told, &search, pod).or_else(|| annotated(pod));
                let pod = if netns == pod.netns {
                    Arc::clone(pod)
                } else {
                    Arc::new(LocalPod { netns, ..LocalPod::clone(pod) })
                };
                ((*id).clone(), pod)
            })
            .collect();
        (located, next)
    }

    fn search(&self, search: &mut Search, missing: &[&LocalPod], now: Instant) -> Option<Instant> {
        let uids: HashSet<Arc<str>> =
            missing.iter().map(|pod| Arc::clone(&pod.workload.uid)).collect();
        if uids.is_empty() {
            search.missing.clear();
            search.next = None;
            return None;
        }
        if !uids.is_subset(&search.missing) {
            search.pause = SOON;
            search.next = None;
        }
        if let Some(next) = search.next.filter(|next| *next > now) {
            return Some(next);
        }
        let processes = processes::of_pods(&self.proc, |uid| uids.get(uid).map(|uid| &**uid));
        let mut left = HashSet::new();
        for pod in missing {
            let workload = &pod.workload;
            let pids = processes.get(&*workload.uid).map_or(&[][..], Vec::as_slice);
            // The process by which it was found may have ended, and others may be there still.
            if let Some(found) = search.found.get_mut(&workload.id) {
                let place = Some(found.namespace.place());
                let is_there = |pid: &&u32| processes::place_of(&self.proc, **pid) == place;
                found.pid = pids.iter().find(is_there).copied();
                if found.pid.is_some() {
                    continue;
                }
            }
            let namespace = |pid: &u32| {
                let namespace = self.namespace_of(*pid, &workload.uid, &workload.ips)?;
                Some((*pid, namespace))
            };
            match pids.iter().find_map(namespace) {
                Some((pid, namespace)) => {
                    tracing::debug!(pod = %workload.id, "its network namespace is found");
                    let (uid, pid) = (Arc::clone(&workload.uid), Some(pid));
                    search.found.insert(workload.id.clone(), Found { uid, namespace, pid });
                }
                // The first process of a sandbox is never elsewhere.
                None if pids.first().is_some_and(|pid| self.is_on_host(*pid)) => {
                    search.on_host.insert(Arc::clone(&workload.uid));
                }
                None => {
                    left.insert(Arc::clone(&workload.uid));
                }
            }
        }
        search.missing = left;
        search.next = (!search.missing.is_empty()).then(|| now + search.pause);
        search.pause = (search.pause * 2).min(LATEST);
        search.next
    }

    fn is_on_host(&self, pid: u32) -> bool {
        let path = self.proc.join(format!("{pid}/ns/net"));
        fairlead_capture::netns_cookie(&path).is_ok_and(|cookie| cookie == self.host)
    }

    /// The namespace of a process, if it is the pod's: the process is in the pod's cgroup still when
    /// the namespace is open, and the namespace has an address of the pod.
    fn namespace_of(&self, pid: u32, uid: &str, ips: &[IpAddr]) -> Option<Namespace> {
        let namespace = Namespace::open(&self.proc.join(format!("{pid}/ns/net"))).ok()?;
        if processes::pod_of(&self.proc, pid)? != uid {
            return None;
        }
        let path = namespace.path();
        if fairlead_capture::netns_cookie(&path).ok()? == self.host {
            return None;
        }
        let own = fairlead_capture::netns_addresses(&path).ok()?;
        ips.iter().any(|ip| own.contains(ip)).then_some(namespace)
    }
}

/// What of discovery reads text: public for `tests/fuzz` alone.
#[doc(hidden)]
pub mod fuzz {
    /// The uid of a pod in the text of `/proc/<pid>/cgroup`.
    #[must_use]
    pub fn pod_uid(text: &str) -> Option<String> {
        super::processes::pod_uid(text)
    }
}

#[cfg(test)]
mod tests;
