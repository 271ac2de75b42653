//! Which process belongs to which pod: by its cgroup, which carries the pod's uid.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::enrolment::Place;

/// Processes of one pod that are kept for a look at their namespace.
const MAX_PIDS: usize = 64;
/// Processes of a node that are looked at.
const MAX_PROCESSES: usize = 1 << 20;

/// The processes of the pods with these uids, from the lowest number on.
///
/// Works from any pid namespace, as long as `proc` is that of the node.
pub(super) fn of_pods<'u>(
    proc: &Path,
    uids: impl Fn(&str) -> Option<&'u str>,
) -> HashMap<&'u str, Vec<u32>> {
    let mut found: HashMap<&str, Vec<u32>> = HashMap::new();
    for (pid, uid) in all_of_pods(proc) {
        if let Some(uid) = uids(&uid) {
            found.entry(uid).or_default().push(pid);
        }
    }
    for pids in found.values_mut() {
        pids.sort_unstable();
        pids.truncate(MAX_PIDS);
    }
    found
}

fn all(proc: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten().take(MAX_PROCESSES);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// All processes of pods, with the pods' uids.
pub(super) fn all_of_pods(proc: &Path) -> impl Iterator<Item = (u32, String)> {
    all(proc).filter_map(move |pid| Some((pid, pod_of(proc, pid)?)))
}

/// Those of these network namespaces in which processes run, of a pod or not.
pub(super) fn busy(proc: &Path, places: &HashSet<Place>) -> HashSet<Place> {
    let own = all(proc).filter_map(|pid| place_of(proc, pid));
    own.filter(|place| places.contains(place)).collect()
}

/// The network namespace of a process.
pub(super) fn place_of(proc: &Path, pid: u32) -> Option<Place> {
    let metadata = fs::metadata(proc.join(format!("{pid}/ns/net"))).ok()?;
    Some(Place(metadata.dev(), metadata.ino()))
}

/// The uid of the pod that a process belongs to.
pub(super) fn pod_of(proc: &Path, pid: u32) -> Option<String> {
    pod_uid(&fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?)
}

/// The uid in the text of `/proc/<pid>/cgroup`: the unified hierarchy's line (cgroups(7)), or else
/// the first of the others that has one.
pub(super) fn pod_uid(text: &str) -> Option<String> {
    let paths = || text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let unified = text.lines().filter_map(|line| line.strip_prefix("0::"));
    unified.chain(paths()).find_map(uid_in)
}

/// The uid in a cgroup's path. The outermost counts: below its own, a pod may name cgroups as it
/// likes.
fn uid_in(path: &str) -> Option<String> {
    path.split('/').find_map(|part| {
        // kubelet with cgroupfs: `pod<uid>`; with systemd: `kubepods-<class>-pod<uid>.slice`, the
        // dashes of the uid as underscores.
        let uid = match part.strip_suffix(".slice") {
            Some(slice) if slice.starts_with("kubepods") => {
                slice.rsplit_once("pod")?.1.replace('_', "-")
            }
            Some(_) => return None,
            None => part.strip_prefix("pod")?.to_owned(),
        };
        // A UUID, or the hash of a static pod.
        let shaped = uid.len() >= 32
            && uid.len() <= 36
            && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        shaped.then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids() {
        const UID: &str = "0f1e2d3c-4b5a-6978-8695-a4b3c2d1e0f9";
        let slice = UID.replace('-', "_");
        for text in [
            format!("0::/kubepods/besteffort/pod{UID}/abc\n"),
            format!("0::/node-1/kubepods/pod{UID}\n"),
            format!("0::/../../kubepods/burstable/pod{UID}/c\n"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-x.scope\n"
            ),
            format!("0::/kubepods.slice/kubepods-pod{slice}.slice\n"),
            format!("12:memory:/kubepods/pod{UID}/x\n0::/\n"),
            // Inside of its own cgroup a pod may call one like another's.
            format!("0::/kubepods/pod{UID}/c/pod00000000-0000-0000-0000-000000000000\n"),
        ] {
            assert_eq!(pod_uid(&text).as_deref(), Some(UID), "{text}");
        }
        for text in [
            "",
            "0::/\n",
            "0::/system.slice/kubelet.service",
            "0::/podman/x",
            "0::/kubepods/podx",
            "0::/user.slice/x-pod0f1e2d3c_4b5a_6978_8695_a4b3c2d1e0f9.slice",
            "0::/kubepods.slice/kubepods-besteffort.slice",
            "no colon",
        ] {
            assert_eq!(pod_uid(text), None, "{text}");
        }
    }

    #[test]
    fn this_process_is_in_no_pod() {
        assert_eq!(pod_of(Path::new("/proc"), std::process::id()), None);
        let none: Option<&str> = None;
        assert!(of_pods(Path::new("/proc"), |_| none).is_empty());
    }
}
