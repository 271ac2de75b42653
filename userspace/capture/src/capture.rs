//! Capture as a whole: opened once by the daemon, it takes over what an earlier one left.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use fairlead_abi::{Counter, PodEntry, Settings, pod_flags};
use fairlead_types::{NetnsCookie, WorkloadId};

use crate::diagnostics;
use crate::error::{CaptureError, Step};
use crate::maps::{MAX_PODS_READ, Maps, PinDir, pods_of_version};
use crate::place;
use crate::port::Port;
use crate::programs::{Hooks, Loading};
use crate::settings::{CaptureSettings, UnknownNetns};
use crate::sweep;
use crate::sys::netns::Netns;

/// How often entries that nobody took are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(5);

/// The daemon's hold on the kernel. Dropping it (or dying) detaches nothing: the connections of
/// enrolled pods are refused from then on, until a daemon opens capture again.
#[derive(Debug)]
pub struct Capture {
    pub(crate) inner: Arc<Inner>,
    /// Dropped last of all: it ends the sweeper.
    _sweeper: mpsc::Sender<()>,
    /// Likewise for the reader of the programs' log.
    _diagnostics: Option<mpsc::Sender<()>>,
}

/// Who else is there when capture is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coming {
    /// Nobody: what an earlier daemon left is taken over.
    Alone,
    /// A daemon that serves.
    Beside,
}

/// What the handle and the pods' ports share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) settings: CaptureSettings,
    pub(crate) loading: Loading,
    pub(crate) maps: Arc<Maps>,
    pub(crate) host: NetnsCookie,
    /// Pods enrolled by this process. Touched by enrolment only, never per connection.
    pods: Mutex<HashMap<NetnsCookie, Enrolled>>,
    hooks: Hooks,
    /// The lock on the pin directory, while this daemon is the one that it belongs to.
    lock: Mutex<Option<File>>,
}

/// One pod as this process enrolled it.
#[derive(Debug)]
pub(crate) struct Enrolled {
    pub(crate) id: WorkloadId,
    /// Weak: the namespace of a pod that is gone must not be kept alive from here.
    pub(crate) port: Weak<Port>,
}

impl Inner {
    pub(crate) fn pods(&self) -> MutexGuard<'_, HashMap<NetnsCookie, Enrolled>> {
        // The table is whole between any two statements that change it.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capture {
    /// Loads and attaches the programs, or takes over those that an earlier daemon left: its pods
    /// stay captured (refused, until they are enrolled again), whatever its ABI version.
    ///
    /// # Errors
    /// [`CaptureError`]; what was attached before still is.
    pub fn open(settings: CaptureSettings) -> Result<Self, CaptureError> {
        Self::start(settings, Coming::Alone)
    }

    /// The same beside a living daemon of the same [`fairlead_abi::ABI_VERSION`], which has
    /// promised to hand over: nothing of what it has under way is touched, and each pod is its own
    /// until [`Capture::enroll`] of this one. [`Capture::take_hold`] is to follow when the other
    /// has let go.
    ///
    /// # Errors
    /// As [`Capture::open`].
    pub fn open_beside(settings: CaptureSettings) -> Result<Self, CaptureError> {
        Self::start(settings, Coming::Beside)
    }

    /// Takes the pin directory for this process, after [`Capture::open_beside`] or
    /// [`Capture::let_go`].
    ///
    /// # Errors
    /// [`CaptureError::InUse`]: the other has not let go.
    pub fn take_hold(&self) -> Result<(), CaptureError> {
        let pins = &self.inner.loading.pins;
        let lock = place::lock(&pins.0)?;
        remove_other_versions(pins)?;
        *self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
        Ok(())
    }

    /// Leaves the pin directory to another daemon. This one has to change nothing in the kernel
    /// from then on; its pods' sockets stay what they are.
    pub fn let_go(&self) {
        drop(self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn start(settings: CaptureSettings, coming: Coming) -> Result<Self, CaptureError> {
        let started = Instant::now();
        place::below_cgroup(&settings.cgroup_root)?;
        let cgroup = File::open(&settings.cgroup_root)
            .step(|| format!("opening {}", settings.cgroup_root.display()))?;
        let pins = PinDir(settings.pin_dir.clone());
        place::make_pin_dir(&pins.0)?;
        let lock = match coming {
            Coming::Alone => Some(place::lock(&pins.0)?),
            Coming::Beside => None,
        };
        for dir in [pins.links(), pins.steer(), pins.maps(), pins.programs()] {
            make_dir(&dir)?;
        }
        let host = Netns::open(Path::new("/proc/self/ns/net"))
            .step(|| "reading the host's network namespace".into())?
            .cookie();
        let loading = Loading::new(pins.clone(), &settings)?;
        let mut hooks = loading.hooks()?;
        let maps = Arc::new(Maps::open(&pins.maps())?);
        let pods_cgroup = place::pods_cgroup(&settings);
        write_settings(&maps, &settings, host, pods_cgroup)?;
        carry_over(&pins, &maps)?;
        if coming == Coming::Alone {
            // What is still there was meant for the listeners of a dead daemon.
            sweep::clear(&maps).step(|| "clearing old flows".into())?;
        }
        hooks.attach(&cgroup, &pins.links())?;
        hooks.pin(&pins.programs())?;
        let diagnostics = if settings.diagnostics {
            Some(diagnostics::start(hooks.logger()?).step(|| "starting diagnostics".into())?)
        } else {
            None
        };
        if coming == Coming::Alone {
            remove_other_versions(&pins)?;
        }
        tracing::info!(
            cgroup = %settings.cgroup_root.display(),
            pins = %pins.0.display(),
            millis = started.elapsed().as_millis(),
            "capture is attached"
        );
        let inner = Arc::new(Inner {
            settings,
            loading,
            maps,
            host,
            pods: Mutex::default(),
            hooks,
            lock: Mutex::new(lock),
        });
        if pods_cgroup.is_none() {
            tracing::info!(
                "no cgroup of pods is known yet: until then no probe of the node passes"
            );
        }
        let sweeper = start_sweeper(Arc::downgrade(&inner), pods_cgroup)?;
        Ok(Self { inner, _sweeper: sweeper, _diagnostics: diagnostics })
    }

    /// The cookie of the host's network namespace, which is never captured.
    #[must_use]
    pub fn host_netns(&self) -> NetnsCookie {
        self.inner.host
    }

    /// The outcomes that the programs counted since the maps were made, by name.
    ///
    /// # Errors
    /// The kernel refused to read them.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
        let cpus = place::possible_cpus().step(|| "counting CPUs".into())?;
        let read = |counter: &Counter| {
            let values = self.inner.maps.counters.per_cpu(*counter as u32, cpus)?;
            Ok((counter.name(), values.iter().sum()))
        };
        Counter::ALL.iter().map(read).collect::<Result<_, _>>().step(|| "reading counters".into())
    }

    /// One of [`Capture::counters`].
    ///
    /// # Errors
    /// As there.
    pub fn counter(&self, counter: Counter) -> Result<u64, CaptureError> {
        let cpus = place::possible_cpus().step(|| "counting CPUs".into())?;
        let values = self.inner.maps.counters.per_cpu(counter as u32, cpus);
        Ok(values.step(|| "reading counters".into())?.iter().sum())
    }

    /// Entries of the tables of connections under way: flows not yet taken by the daemon, and
    /// deliveries not yet accepted by an application.
    ///
    /// # Errors
    /// The kernel refused to read them.
    pub fn under_way(&self) -> Result<(usize, usize), CaptureError> {
        let limit = usize::try_from(self.inner.settings.max_flows).unwrap_or(usize::MAX);
        let count = || {
            let flows = self.inner.maps.flows.keys(limit)?.len();
            Ok((flows, self.inner.maps.clients.keys(limit)?.len()))
        };
        count().step(|| "reading the flow tables".into())
    }

    /// Removes entries that nobody took in time; returns how many. A thread does it every few
    /// seconds; tests do it when they like.
    ///
    /// # Errors
    /// The kernel refused to read them.
    pub fn sweep(&self) -> Result<usize, CaptureError> {
        sweep::sweep(&self.inner.maps).step(|| "sweeping the flow tables".into())
    }

    /// What the eBPF object is called in `bpftool`, for people who look.
    #[must_use]
    pub fn pinned_programs(&self) -> std::path::PathBuf {
        let _attached = &self.inner.hooks;
        self.inner.loading.pins.programs()
    }
}

/// Pods of other ABI versions are known to this one before its programs replace theirs: enrolled,
/// with no listener, so their connections are refused rather than let through.
fn carry_over(pins: &PinDir, maps: &Maps) -> Result<(), CaptureError> {
    for version in pins.other_versions().step(|| "listing old versions".into())? {
        let pods = pods_of_version(&version).step(|| format!("reading {}", version.display()))?;
        tracing::info!(version = %version.display(), pods = pods.len(), "taking over older pins");
        for pod in pods {
            let known = maps.pods.get(&pod).step(|| "reading pods".into())?.is_some();
            if !known {
                let entry = PodEntry { flags: pod_flags::ENROLLED, ..PodEntry::default() };
                maps.pods.insert(&pod, &entry).step(|| "carrying a pod over".into())?;
            }
        }
    }
    Ok(())
}

fn remove_other_versions(pins: &PinDir) -> Result<(), CaptureError> {
    for old in pins.other_versions().step(|| "listing old versions".into())? {
        fs::remove_dir_all(&old).step(|| format!("removing {}", old.display()))?;
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), CaptureError> {
    fs::create_dir_all(dir).step(|| format!("making {}", dir.display()))
}

fn write_settings(
    maps: &Maps,
    settings: &CaptureSettings,
    host: NetnsCookie,
    pods_cgroup: Option<u64>,
) -> Result<(), CaptureError> {
    let refuse_unknown = u32::from(settings.unknown_netns == UnknownNetns::Refuse);
    let pods_cgroup = pods_cgroup.unwrap_or(0);
    let settings = Settings { host_netns: host.0, pods_cgroup, refuse_unknown, pad: 0 };
    maps.settings.insert(&0, &settings).step(|| "writing the settings".into())
}

fn start_sweeper(
    inner: Weak<Inner>,
    mut pods_cgroup: Option<u64>,
) -> Result<mpsc::Sender<()>, CaptureError> {
    let (sender, receiver) = mpsc::channel::<()>();
    std::thread::Builder::new()
        .name("fairlead-sweep".into())
        .spawn(move || {
            while receiver.recv_timeout(SWEEP_PERIOD) == Err(mpsc::RecvTimeoutError::Timeout) {
                let Some(inner) = inner.upgrade() else { return };
                if let Err(error) = sweep::sweep(&inner.maps) {
                    tracing::warn!(%error, "sweeping the flow tables");
                }
                // Kubelet makes it when it starts first, and anew if it was removed.
                let now = place::pods_cgroup(&inner.settings);
                if now != pods_cgroup {
                    match write_settings(&inner.maps, &inner.settings, inner.host, now) {
                        Ok(()) => pods_cgroup = now,
                        Err(error) => tracing::warn!(%error, "following the cgroup of pods"),
                    }
                }
            }
        })
        .step(|| "starting the sweeper".into())?;
    Ok(sender)
}

/// Pods that the maps know as enrolled and this process has not enrolled: left by an earlier
/// daemon, and refused.
pub(crate) fn leftovers(inner: &Inner) -> Result<Vec<NetnsCookie>, CaptureError> {
    let pods = inner.pods();
    let mut left = Vec::new();
    for cookie in inner.maps.pods.keys(MAX_PODS_READ).step(|| "reading pods".into())? {
        let entry = inner.maps.pods.get(&cookie).step(|| "reading pods".into())?;
        let enrolled = entry.is_some_and(|pod| pod.flags & pod_flags::ENROLLED != 0);
        if enrolled && !pods.contains_key(&NetnsCookie(cookie)) {
            left.push(NetnsCookie(cookie));
        }
    }
    Ok(left)
}
