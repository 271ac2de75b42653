//! What an installation could leave behind: on a node, in the network namespace of a pod, and in
//! the kernel.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::{ProgramInfo, loaded_links, loaded_programs};
use fairlead_tests::eventually;
use fairlead_tests::kube::KubeMesh;

/// The kernel lets go of programs and maps when their last user is through with them.
const LET_GO: Duration = Duration::from_secs(20);

/// Of a node: pins, state and sockets with their directories, the runtime's configuration and
/// plugins with what is in them, rules, routes and links.
const NODE: &str = "\
    find /sys/fs/bpf -mindepth 1; find /var/lib/fairlead /run/fairlead 2>/dev/null; \
    find /etc/cni/net.d /opt/cni/bin -type f -exec md5sum {} +; \
    nft list tables | grep -i fairlead; ip rule | grep -v 'from all lookup'; \
    ip -o link | cut -d' ' -f2 | grep -i fairlead; true";

/// Of a pod's network namespace: addresses (those on its loopback among them, those that the kernel
/// makes by itself not), rules, routes, and who listens where.
const POD: &str = "\
    (ip -o addr | sed 's/^[0-9]*: //'; ip rule; ip -6 rule; ip route show table all) | \
    grep -v fe80:; nft list ruleset; \
    cat /proc/self/net/tcp /proc/self/net/tcp6 | awk '$4 == \"0A\" {print \"listens\", $2}'";

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

pub(super) fn of_node(mesh: &KubeMesh, node: usize) -> Result<BTreeSet<String>> {
    Ok(lines(&mesh.on_node(node, &["sh", "-c", NODE])?))
}

pub(super) fn of_pod(
    mesh: &KubeMesh,
    node: usize,
    namespace: &str,
    pod: &str,
) -> Result<BTreeSet<String>> {
    Ok(lines(&mesh.in_netns(node, namespace, pod, &["sh", "-c", POD])?))
}

/// Nothing has come and nothing has gone.
pub(super) fn same<T: Ord + Debug>(
    what: &str,
    before: &BTreeSet<T>,
    after: &BTreeSet<T>,
) -> Result<()> {
    let more: Vec<_> = after.difference(before).collect();
    let less: Vec<_> = before.difference(after).collect();
    ensure!(more.is_empty() && less.is_empty(), "{what}: more {more:?}, less {less:?}");
    Ok(())
}

/// The numbers of what a node's daemon has in the kernel. Other nodes of this machine have their
/// own; no number comes twice.
#[derive(Debug)]
pub(super) struct Kernel {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    /// Of these programs: on cgroups, and on the network namespaces of pods.
    links: BTreeSet<u32>,
}

fn links_of(programs: &BTreeSet<u32>) -> BTreeSet<u32> {
    // Those that end meanwhile are errors.
    let all = loaded_links().flatten();
    all.filter(|link| programs.contains(&link.program_id())).map(|link| link.id()).collect()
}

impl Kernel {
    pub(super) fn of_node(mesh: &KubeMesh, node: usize) -> Result<Self> {
        let root = format!("/proc/{}/root/sys/fs/bpf/fairlead", mesh.node_init(node)?);
        let pins = |kind: &str| -> Result<Vec<PathBuf>> {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(&root).context("no pins")?.flatten() {
                let dir = entry.path().join(kind);
                let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
                found.extend(all.map(|pin| pin.path()));
            }
            Ok(found)
        };
        let mut programs = BTreeSet::new();
        for pin in pins("programs")? {
            programs.insert(ProgramInfo::from_pin(&pin)?.id());
        }
        let mut maps = BTreeSet::new();
        for pin in pins("maps")? {
            maps.insert(MapInfo::from_pin(&pin)?.id());
        }
        let links = links_of(&programs);
        // The hooks of the node, and a pod at least.
        ensure!(programs.len() > 4 && maps.len() > 4 && links.len() > 4, "of node {node}: little");
        Ok(Self { programs, maps, links })
    }

    /// Waits until nothing of it is left.
    pub(super) fn gone(&self) -> Result<()> {
        eventually("the kernel lets go", LET_GO, || {
            let links = links_of(&self.programs);
            ensure!(links.is_empty(), "links {links:?} of {:?}", self.links);
            let programs = loaded_programs().flatten();
            let named = |program: &ProgramInfo| program.name_as_str().map(str::to_owned);
            let left: Vec<_> = programs
                .filter(|program| self.programs.contains(&program.id()))
                .map(|program| (program.id(), named(&program)))
                .collect();
            ensure!(left.is_empty(), "programs {left:?}");
            let maps = loaded_maps().flatten().map(|map| map.id());
            let left: Vec<_> = maps.filter(|id| self.maps.contains(id)).collect();
            ensure!(left.is_empty(), "maps {left:?}");
            Ok(Some(()))
        })
    }
}
