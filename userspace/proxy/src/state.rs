//! What all connections of the daemon share, and what they share per pod.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use fairlead_config::SnapshotHandle;
use fairlead_config::model::{Inbound, LocalPod, Snapshot, Workload};
use fairlead_policy::route::ClusterId;
use fairlead_telemetry::{Counter, Telemetry};
use fairlead_types::{PodPort, Refusal, WorkloadId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::dataplane::Settings;
use crate::http::pool::Pool;
use crate::labels::LabelCache;
use crate::live::{Guarded, Live, Registry};
use crate::near::{Walks, Ways};
use crate::reach::{self, Failure};
use crate::transport::Transport;
use crate::unknown::UnknownDestinations;

/// Addresses that are remembered as server-first at most; beyond it the memory starts anew.
const SERVER_FIRST_MAX: usize = 4096;

/// Clusters that are remembered as used by a pod; beyond it the memory starts anew.
const USED_MAX: usize = 4096;

/// One pod of this node.
pub(crate) struct Pod {
    pub(crate) id: WorkloadId,
    /// What enrolment said, with other addresses where the configuration told none of the pod's;
    /// the snapshot may know it better.
    enrolled: Arc<Workload>,
    /// The addresses that the network plugins gave it, if they have told.
    given: Vec<IpAddr>,
    pub(crate) port: Arc<dyn PodPort>,
    /// HTTP connections that wait for the next request: to the pod's own application, and from
    /// the pod to elsewhere.
    pub(crate) pool: Pool,
    connections: AtomicUsize,
    /// Clusters that the pod has used.
    used: Mutex<HashSet<ClusterId>>,
    /// The ways to pods of this node.
    pub(crate) ways: Ways,
    /// `true` ends the accept loops.
    pub(crate) stop: watch::Sender<bool>,
}

impl Pod {
    pub(crate) fn new(
        local: &LocalPod,
        port: Arc<dyn PodPort>,
        interfaces: &[IpAddr],
        given: Vec<IpAddr>,
    ) -> Self {
        let mut enrolled = Arc::clone(&local.workload);
        if is_behind(&enrolled.ips, &given) {
            // What its interfaces have counts only where nobody else has a word: a pod that may
            // administer its network puts there what it likes.
            let ips = if given.is_empty() { interfaces } else { &given[..] };
            let of_family = |v4: bool| ips.iter().find(move |ip| ip.is_ipv4() == v4).copied();
            let first = of_family(true).into_iter().chain(of_family(false));
            Arc::make_mut(&mut enrolled).ips = first.collect();
        }
        Self {
            id: enrolled.id.clone(),
            enrolled,
            given,
            port,
            pool: Pool::default(),
            connections: AtomicUsize::new(0),
            used: Mutex::default(),
            ways: Ways::default(),
            stop: watch::Sender::new(false),
        }
    }

    /// Whether the pod has not used a cluster before, as far as is remembered.
    pub(crate) fn first_use(&self, cluster: ClusterId) -> bool {
        let mut used = self.used.lock();
        if used.len() >= USED_MAX {
            used.clear();
        }
        used.insert(cluster)
    }

    /// The pod as `snapshot` describes it, else as it was described when it was added: then there
    /// is no certificate for it.
    pub(crate) fn workload(&self, snapshot: &Snapshot) -> Arc<Workload> {
        let Some(LocalPod { workload, .. }) = snapshot.local.get(&self.id).map(|local| &**local)
        else {
            return Arc::clone(&self.enrolled);
        };
        let behind = workload.uid == self.enrolled.uid && is_behind(&workload.ips, &self.given);
        let kept = behind || is_another(workload, &self.enrolled);
        Arc::clone(if kept { &self.enrolled } else { workload })
    }

    /// What holds for connections to the pod; none: `snapshot` does not have it.
    pub(crate) fn inbound<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Arc<Inbound>> {
        let inbound = snapshot.inbound.get(&self.id);
        inbound.filter(|inbound| !is_another(&inbound.workload, &self.enrolled))
    }
}

/// Whether one pod has been made anew under the other's name.
fn is_another(one: &Workload, other: &Workload) -> bool {
    !one.uid.is_empty() && !other.uid.is_empty() && one.uid != other.uid
}

/// Whether an object does not name its pod's addresses yet. The API server learns them after
/// the first processes have started; until then it names none, or those that the pod had before
/// its node was booted: none of those that it was given.
fn is_behind(named: &[IpAddr], given: &[IpAddr]) -> bool {
    match given {
        [] => named.is_empty(),
        given => !named.iter().any(|ip| given.contains(ip)),
    }
}

/// The address of a workload that goes with `like`: of the same family where it has one.
pub(crate) fn address_like(workload: &Workload, like: IpAddr) -> Option<IpAddr> {
    let same = workload.ips.iter().find(|ip| ip.is_ipv4() == like.is_ipv4());
    same.or_else(|| workload.ips.first()).copied()
}

/// Counters of the data plane itself.
pub(crate) struct Counters {
    /// Captured connections without a flow entry.
    pub(crate) flow_miss: Counter,
    /// Connections refused because of a bound: by pod, and by node.
    pub(crate) overload: [Counter; 2],
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) snapshots: SnapshotHandle,
    pub(crate) transport: Arc<Transport>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) settings: Settings,
    pub(crate) live: Arc<Registry>,
    pub(crate) labels: LabelCache,
    pub(crate) counters: Counters,
    /// `true` once the daemon drains.
    pub(crate) draining: watch::Sender<bool>,
    /// `false` while connections are to wait in the kernel.
    pub(crate) accepting: watch::Sender<bool>,
    pods: ArcSwap<HashMap<WorkloadId, Arc<Pod>>>,
    connections: AtomicUsize,
    server_first: RwLock<HashSet<SocketAddr>>,
    /// Connections that ways between pods of this node are being walked with.
    pub(crate) walks: Walks,
    /// Who knows of destinations that the snapshot does not.
    pub(crate) unknown: OnceLock<Arc<dyn UnknownDestinations>>,
}

/// A place among the bounded number of connections.
pub(crate) struct Admission {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.pod.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    pub(crate) fn new(
        snapshots: SnapshotHandle,
        transport: Arc<Transport>,
        telemetry: Arc<Telemetry>,
        settings: Settings,
    ) -> Self {
        let registry = telemetry.registry();
        let overload = |bound| {
            registry.counter(
                "fairlead_connections_over_bound_total",
                "Connections refused because the number of connections is bounded.",
                &[("bound", bound)],
            )
        };
        let counters = Counters {
            flow_miss: registry.counter(
                "fairlead_flow_miss_total",
                "Connections at a capture listener that no flow entry explains; refused.",
                &[],
            ),
            overload: [overload("pod"), overload("node")],
        };
        Self {
            snapshots,
            transport,
            telemetry,
            settings,
            live: Arc::default(),
            labels: LabelCache::default(),
            counters,
            draining: watch::Sender::new(false),
            accepting: watch::Sender::new(true),
            pods: ArcSwap::default(),
            connections: AtomicUsize::new(0),
            server_first: RwLock::default(),
            walks: Walks::default(),
            unknown: OnceLock::new(),
        }
    }

    /// A pod of this node whose namespace is ours to use.
    pub(crate) fn pod(&self, id: &WorkloadId) -> Option<Arc<Pod>> {
        self.pods.load().get(id).cloned()
    }

    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.load().values().cloned().collect()
    }

    /// Adds a pod, returning the one that it replaces.
    pub(crate) fn insert(&self, pod: Arc<Pod>) -> Option<Arc<Pod>> {
        let mut replaced = None;
        self.pods.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            replaced = pods.insert(pod.id.clone(), Arc::clone(&pod));
            pods
        });
        replaced
    }

    pub(crate) fn remove(&self, id: &WorkloadId) -> Option<Arc<Pod>> {
        let mut removed = None;
        self.pods.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            removed = pods.remove(id);
            pods
        });
        removed
    }

    /// Takes a place for a connection of `pod`, if there is one.
    pub(crate) fn admit(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<Admission, Refusal> {
        let of_pod = pod.connections.fetch_add(1, Ordering::Relaxed);
        let of_node = self.connections.fetch_add(1, Ordering::Relaxed);
        // From here on dropping it gives the place back.
        let admission = Admission { shared: Arc::clone(self), pod: Arc::clone(pod) };
        if of_pod >= self.settings.connections_per_pod {
            self.counters.overload[0].inc();
            return Err(Refusal::Overload);
        }
        if of_node >= self.settings.connections {
            self.counters.overload[1].inc();
            return Err(Refusal::Overload);
        }
        Ok(admission)
    }

    /// From here on a change of policy is asked again about a connection to a pod of this node,
    /// which `snapshot` has admitted. One that came between is asked at once.
    pub(crate) fn guard(
        &self,
        live: &Live,
        snapshot: &Snapshot,
        guarded: Guarded,
    ) -> Result<(), Failure> {
        let guarded = Arc::new(guarded);
        live.guard(Arc::clone(&guarded));
        self.snapshots.with(|now| {
            if now.version == snapshot.version {
                return Ok(());
            }
            reach::still_admitted(now, &guarded)
        })
    }

    /// Whether the server behind `addr` was seen to speak first.
    pub(crate) fn is_server_first(&self, addr: &SocketAddr) -> bool {
        self.server_first.read().contains(addr)
    }

    /// Remembers who speaks first behind `addr`, so that later connections need not wait.
    pub(crate) fn note_server_first(&self, addr: SocketAddr, server_first: bool) {
        if self.is_server_first(&addr) == server_first {
            return;
        }
        let mut known = self.server_first.write();
        if server_first {
            if known.len() >= SERVER_FIRST_MAX {
                known.clear();
            }
            known.insert(addr);
        } else {
            known.remove(&addr);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::OwnedFd;

    use fairlead_config::model::{MtlsMode, PeerWire};
    use fairlead_policy::authz::AuthzSet;
    use fairlead_types::{ClientAddr, FlowMiss, Labels, NetnsCookie, OriginalDst};

    use super::*;

    struct NoPort;

    impl PodPort for NoPort {
        fn cookie(&self) -> NetnsCookie {
            NetnsCookie(0)
        }

        fn outbound_socket(&self, _: SocketAddr) -> io::Result<OwnedFd> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn delivery_socket(&self, _: ClientAddr, _: SocketAddr) -> io::Result<OwnedFd> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn take_original_dst(&self, _: SocketAddr) -> Result<OriginalDst, FlowMiss> {
            Err(FlowMiss::Unknown)
        }
    }

    /// The pod `web-0`, under a service account.
    fn web(uid: &str, account: &str) -> LocalPod {
        let workload = Workload {
            id: WorkloadId::new("default", "web-0"),
            name: "web-0".into(),
            namespace: "default".into(),
            uid: uid.into(),
            workload_name: "web".into(),
            canonical_name: "web".into(),
            canonical_revision: "latest".into(),
            app: "web".into(),
            version: "v1".into(),
            labels: Arc::new(Labels::default()),
            identity: format!("spiffe://cluster.local/ns/default/sa/{account}")
                .parse()
                .expect("an identity"),
            ips: Box::new([IpAddr::from([10, 0, 0, 1])]),
            node: "a".into(),
            enrolled: true,
            wire: PeerWire::Native,
            exclude_inbound_ports: Box::default(),
            include_inbound_ports: None,
        };
        LocalPod {
            workload: Arc::new(workload),
            netns: None,
            exclude_outbound_ports: Box::default(),
            exclude_outbound_cidrs: Box::default(),
            include_outbound_cidrs: None,
            include_outbound_ports: Box::default(),
            probe_ports: Box::default(),
        }
    }

    fn snapshot(local: LocalPod) -> Snapshot {
        let workload = Arc::clone(&local.workload);
        let mut snapshot = Snapshot::default();
        let inbound = Inbound {
            workload: Arc::clone(&workload),
            mtls: MtlsMode::Permissive,
            ports: Box::default(),
            authz: Arc::new(AuthzSet::default()),
        };
        snapshot.inbound.insert(workload.id.clone(), Arc::new(inbound));
        snapshot.local.insert(workload.id.clone(), Arc::new(local));
        snapshot
    }

    #[test]
    fn a_pod_is_not_the_next_one_of_its_name() {
        let pod = |uid, account| Pod::new(&web(uid, account), Arc::new(NoPort), &[], Vec::new());
        let old = pod("u1", "old");
        let next = snapshot(web("u2", "new"));
        assert_eq!(old.workload(&next).identity, old.enrolled.identity);
        assert!(old.inbound(&next).is_none(), "what holds for the next one");
        // Itself, described anew; and where nobody says which one it is.
        for (enrolled, now) in [("u1", "u1"), ("", "u1"), ("u1", ""), ("", "")] {
            let next = snapshot(web(now, "new"));
            let pod = pod(enrolled, "old");
            assert_eq!(pod.workload(&next).identity, next.local[&pod.id].workload.identity);
            assert!(pod.inbound(&next).is_some(), "{enrolled:?} {now:?}");
        }
    }

    #[test]
    fn who_knows_the_addresses_of_a_pod() {
        let ips = |all: &[&str]| -> Vec<IpAddr> {
            all.iter().map(|ip| ip.parse().expect("an address")).collect()
        };
        let behind = |named: &[&str], given: &[&str]| is_behind(&ips(named), &ips(given));
        // Its object, as soon as it names one that it was given.
        assert!(behind(&[], &["10.0.0.1", "fd00::1"]));
        assert!(behind(&["10.0.0.9"], &["10.0.0.1", "fd00::1"]), "of before the boot");
        assert!(!behind(&["10.0.0.1"], &["10.0.0.1", "fd00::1"]));
        // Where nobody has told what it was given, whatever its object names.
        assert!(!behind(&["10.0.0.9"], &[]));
        assert!(behind(&[], &[]));
    }
}
