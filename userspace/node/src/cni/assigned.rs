//! The addresses that the network plugins gave to the pods of this node, as CNI's ADD tells them
//! before a pod's first process starts.
//!
//! They are kept in a file beside the plugins' socket, which lives as long as the sandboxes do: until
//! the node boots. So a daemon that starts has them, too: what the API server says may be behind,
//! and what a pod's interfaces say the pod may have written itself.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fairlead_types::WorkloadId;
use fairlead_wire::cni::{MAX_IPS, MAX_TEXT, Sandbox};
use fairlead_wire::config::AddressedPod;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// What the file is called after the socket.
const EXTENSION: &str = "addresses.json";
/// Sandboxes that are remembered.
const MAX_SANDBOXES: usize = 8192;
/// Bytes of the longest file that is read.
const MAX_FILE: u64 = 64 << 20;
/// How long a sandbox is remembered whose pod the configuration does not have.
const UNLISTED: Duration = Duration::from_secs(600);

/// Addresses of pods, and what of them is news to the controller.
#[derive(Debug, Default)]
pub struct Assigned {
    file: Option<PathBuf>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<WorkloadId, Pod>,
    /// Pods that have other addresses than before, by UID, and whether all is to be told.
    news: HashMap<String, WorkloadId>,
    all: bool,
    /// Another daemon tells now.
    silent: bool,
}

#[derive(Debug)]
struct Pod {
    kept: Kept,
    /// When the configuration last had it.
    listed: Instant,
}

/// A sandbox as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    container_id: String,
    uid: String,
    namespace: String,
    name: String,
    addresses: Vec<IpAddr>,
}

/// What the controller is to be told.
#[derive(Debug, Default, PartialEq)]
pub struct News {
    /// Pods; without addresses: theirs are gone.
    pub pods: Vec<AddressedPod>,
    /// These are all that there are.
    pub all: bool,
}

impl Assigned {
    /// Those that are kept beside the socket at `socket`.
    #[must_use]
    pub fn kept_beside(socket: &Path) -> Self {
        let assigned = Self { file: Some(Self::file_beside(socket)), ..Self::default() };
        assigned.reload();
        assigned
    }

    /// The file of the socket at `socket`.
    #[must_use]
    pub(crate) fn file_beside(socket: &Path) -> PathBuf {
        socket.with_extension(EXTENSION)
    }

    /// Takes what the file has in place of what is known: another daemon may have written it. A
    /// file that cannot be used is told, and is as none.
    pub fn reload(&self) {
        let Some(file) = &self.file else { return };
        let kept = match read(file) {
            Ok(kept) => kept,
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "addresses of pods are not used");
                Vec::new()
            }
        };
        let listed = Instant::now();
        let mut state = self.state.lock();
        state.pods = kept.into_iter().map(|kept| (kept.id(), Pod { kept, listed })).collect();
        state.all = true;
        drop(state);
        self.changed.notify_one();
    }

    /// A sandbox has its addresses. A later one of the same pod takes its place.
    pub fn tell(&self, sandbox: &Sandbox) {
        let mut addresses: Vec<IpAddr> = Vec::with_capacity(sandbox.ips.len());
        for ip in sandbox.ips.iter().map(IpAddr::to_canonical) {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        let kept = Kept {
            container_id: sandbox.container_id.clone(),
            uid: sandbox.pod_uid.clone(),
            namespace: sandbox.pod_namespace.clone(),
            name: sandbox.pod_name.clone(),
            addresses,
        };
        let id = kept.id();
        let mut state = self.state.lock();
        if state.pods.get(&id).is_some_and(|pod| pod.kept == kept) {
            return;
        }
        if state.pods.len() >= MAX_SANDBOXES && !state.pods.contains_key(&id) {
            tracing::warn!(pod = %id, "too many sandboxes; the addresses of this one are not kept");
            return;
        }
        let pod = Pod { kept, listed: Instant::now() };
        if let Some(before) = state.pods.insert(id.clone(), pod)
            && before.kept.uid != sandbox.pod_uid
        {
            state.note(before.kept.uid, id.clone());
        }
        state.note(sandbox.pod_uid.clone(), id);
        self.save(state);
    }

    /// A sandbox is gone.
    pub fn forget(&self, container_id: &str) {
        self.keep_only(self.state.lock(), |pod| pod.kept.container_id != container_id);
    }

    /// Only these sandboxes still exist.
    pub fn retain(&self, containers: &HashSet<String>) {
        self.keep_only(self.state.lock(), |pod| containers.contains(&pod.kept.container_id));
    }

    /// Forgets pods that the configuration has not had for long: the plugin's word that they are
    /// gone may have come while no daemon ran.
    pub fn prune(&self, is_listed: impl Fn(&WorkloadId) -> bool, now: Instant) {
        let mut state = self.state.lock();
        for (id, pod) in &mut state.pods {
            if is_listed(id) {
                pod.listed = now;
            }
        }
        self.keep_only(state, |pod| now.saturating_duration_since(pod.listed) < UNLISTED);
    }

    fn keep_only(&self, mut state: MutexGuard<'_, State>, stays: impl Fn(&Pod) -> bool) {
        let gone: Vec<WorkloadId> =
            state.pods.iter().filter(|(_, pod)| !stays(pod)).map(|(id, _)| id.clone()).collect();
        for id in &gone {
            if let Some(pod) = state.pods.remove(id) {
                state.note(pod.kept.uid, id.clone());
            }
        }
        if !gone.is_empty() {
            self.save(state);
        }
    }

    /// The addresses that a pod was given; none: nobody has said.
    #[must_use]
    pub fn of(&self, id: &WorkloadId, uid: &str) -> Vec<IpAddr> {
        let state = self.state.lock();
        let pod = state.pods.get(id).map(|pod| &pod.kept);
        let pod = pod.filter(|kept| kept.uid.is_empty() || kept.uid == uid);
        pod.map(|kept| kept.addresses.clone()).unwrap_or_default()
    }

    /// All is news: there is somebody new to be told.
    pub fn tell_all(&self) {
        self.state.lock().all = true;
    }

    /// Nothing is told any more: the daemon after this one hears of pods, and knows better.
    pub fn fall_silent(&self) {
        self.state.lock().silent = true;
    }

    /// Waits until there is something to be told.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is to be told since the last time.
    #[must_use]
    pub fn news(&self) -> News {
        let mut state = self.state.lock();
        if state.silent {
            return News::default();
        }
        let all = std::mem::take(&mut state.all);
        let news = std::mem::take(&mut state.news);
        let now = |uid: &str, id: &WorkloadId| {
            let pod = state.pods.get(id).map(|pod| &pod.kept);
            let pod = pod.filter(|kept| kept.uid == uid && !kept.addresses.is_empty());
            pod.map(Kept::told)
        };
        let pods = if all {
            let known = state.pods.values().map(|pod| &pod.kept);
            let known = known.filter(|kept| !kept.uid.is_empty() && !kept.addresses.is_empty());
            known.map(Kept::told).collect()
        } else {
            let told = |(uid, id): (&String, &WorkloadId)| {
                now(uid, id).unwrap_or_else(|| {
                    let (namespace, name) = id.as_str().split_once('/').unwrap_or_default();
                    AddressedPod {
                        uid: uid.clone(),
                        namespace: namespace.to_owned(),
                        name: name.to_owned(),
                        addresses: Vec::new(),
                    }
                })
            };
            news.iter().map(told).collect()
        };
        News { pods, all }
    }

    /// Writes the file, and wakes whoever tells the controller.
    fn save(&self, state: MutexGuard<'_, State>) {
        if let Some(file) = &self.file {
            let kept: Vec<&Kept> = state.pods.values().map(|pod| &pod.kept).collect();
            // Within the lock: a later state must not be overtaken by this one.
            if let Err(error) = write(file, &kept) {
                tracing::error!(
                    file = %file.display(), %error,
                    "addresses of pods cannot be kept; a daemon that starts again will not know them"
                );
            }
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl State {
    fn note(&mut self, uid: String, id: WorkloadId) {
        if uid.is_empty() {
            return;
        }
        // Without anybody who takes it, news would pile up.
        if self.news.len() >= MAX_SANDBOXES {
            self.news.clear();
            self.all = true;
        }
        self.news.insert(uid, id);
    }
}

impl Kept {
    fn id(&self) -> WorkloadId {
        WorkloadId::new(&self.namespace, &self.name)
    }

    fn told(&self) -> AddressedPod {
        AddressedPod {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
        }
    }

    fn is_sound(&self) -> bool {
        let texts = [&self.container_id, &self.uid, &self.namespace, &self.name];
        texts.iter().all(|text| text.len() <= MAX_TEXT) && self.addresses.len() <= MAX_IPS
    }
}

/// What a file has; nothing if there is none.
fn read(path: &Path) -> io::Result<Vec<Kept>> {
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(nofollow).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_file() || !ours || metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other("others may have written it"));
    }
    parse(file)
}

fn parse(file: File) -> io::Result<Vec<Kept>> {
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it is too long"));
    }
    let kept: Vec<Kept> = serde_json::from_slice(&text).map_err(io::Error::other)?;
    if kept.len() > MAX_SANDBOXES || !kept.iter().all(Kept::is_sound) {
        return Err(io::Error::other("it has what no daemon writes"));
    }
    Ok(kept)
}

/// Puts a new file in place of the old one. That it outlives a crash of the machine is not needed:
/// no sandbox does.
fn write(path: &Path, kept: &[&Kept]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut making = path.as_os_str().to_owned();
    making.push(".new");
    let making = PathBuf::from(making);
    match fs::remove_file(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&making)?;
    let text = serde_json::to_vec(kept).map_err(io::Error::other)?;
    file.write_all(&text)?;
    fs::rename(&making, path)
}

#[cfg(test)]
#[path = "assigned_tests.rs"]
mod tests;
