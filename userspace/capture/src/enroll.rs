//! Pods join and leave. Existing connections stay as they are; new ones follow the new state.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use fairlead_abi::{
    CIDR_NETNS_BITS, CIDR_V4_BITS, CidrKey, CidrPrefix, ListenerKey, PodEntry, PortKey, direction,
    pod_flags, range, role,
};
use fairlead_types::{NetnsCookie, PodSockets, WorkloadId};
use ipnet::IpNet;

use crate::addr::{loopback_sources, to_abi};
use crate::capture::{Capture, Enrolled, Inner, leftovers};
use crate::error::{CaptureError, Step};
use crate::listeners::Listeners;
use crate::port::Port;
use crate::programs::{self, Target};
use crate::settings::{Leaving, PodSpec};
use crate::sys::bpf::AttachType;
use crate::sys::netns::Netns;
use crate::sys::{ifaddrs, netlink};

/// Entries of the exclusion maps looked at when a pod's own are replaced.
const MAX_EXCLUSIONS_READ: usize = 65_536;

impl Capture {
    /// Captures a pod: from the return of this call on, every new TCP connection into it and out
    /// of it comes to the sockets returned, or is refused. Enrolling it again (with other
    /// exclusions, or after a restart of the daemon) replaces the sockets; dropping them refuses
    /// what comes.
    ///
    /// # Errors
    /// [`CaptureError`]. A pod that was not captured before is not captured then; one that was
    /// stays so, refused.
    pub fn enroll(&self, spec: &PodSpec) -> Result<PodSockets, CaptureError> {
        let started = Instant::now();
        let inner = &*self.inner;
        let netns = Netns::open(&spec.netns)
            .step(|| format!("opening the network namespace {}", spec.netns.display()))?;
        let cookie = netns.cookie();
        if cookie == inner.host {
            return Err(CaptureError::HostNetns(spec.id.clone()));
        }
        // Held throughout: enrolments of one pod must not interleave.
        let mut pods = inner.pods();
        if let Some(other) = pods.get(&cookie)
            && other.id != spec.id
            && other.port.strong_count() > 0
        {
            return Err(CaptureError::SharedNetns {
                pod: spec.id.clone(),
                other: other.id.clone(),
            });
        }
        let known = inner.maps.pods.get(&cookie.0).step(|| "reading pods".into())?;
        let was_enrolled = known.is_some_and(|pod| pod.flags & pod_flags::ENROLLED != 0);
        let (sockets, port) = join(inner, spec, netns, known).inspect_err(|_| {
            if !was_enrolled && let Err(error) = part(inner, cookie, known) {
                tracing::warn!(pod = %spec.id, %error, "undoing an enrolment");
            }
        })?;
        pods.insert(cookie, Enrolled { id: spec.id.clone(), port: Arc::downgrade(&port) });
        tracing::info!(
            pod = %spec.id, netns = %cookie, micros = started.elapsed().as_micros(),
            again = was_enrolled, "pod is captured"
        );
        Ok(sockets)
    }

    /// Lets a pod go: new connections pass. Those under way go on as long as their sockets do.
    ///
    /// # Errors
    /// [`CaptureError::NotEnrolled`], or the kernel refused a step; calling again goes on.
    pub fn leave(&self, id: &WorkloadId, leaving: Leaving) -> Result<(), CaptureError> {
        let mut pods = self.inner.pods();
        // Several, when the pod was made anew before what it had been was let go.
        let cookies: Vec<NetnsCookie> =
            pods.iter().filter(|(_, pod)| pod.id == *id).map(|(cookie, _)| *cookie).collect();
        if cookies.is_empty() {
            return Err(CaptureError::NotEnrolled(id.clone()));
        }
        for cookie in cookies {
            part(&self.inner, cookie, entry_after(leaving))?;
            pods.remove(&cookie);
            tracing::info!(pod = %id, netns = %cookie, "pod is no longer captured");
        }
        Ok(())
    }

    /// Lets the connections of a pod that is not to be enrolled pass where unknown namespaces are
    /// refused; returns the cookie, for [`Capture::release`].
    ///
    /// # Errors
    /// The namespace cannot be opened, or the table of pods is full.
    pub fn exempt(&self, netns: &Path) -> Result<NetnsCookie, CaptureError> {
        let cookie = netns_cookie(netns)?;
        let _pods = self.inner.pods();
        part(&self.inner, cookie, entry_after(Leaving::Exempt))?;
        Ok(cookie)
    }

    /// Pods that an earlier daemon left captured and this one has not enrolled: all their
    /// connections are refused. Once the wanted pods are enrolled, what remains here is to be
    /// released.
    ///
    /// # Errors
    /// The kernel refused to list them.
    pub fn leftovers(&self) -> Result<Vec<NetnsCookie>, CaptureError> {
        leftovers(&self.inner)
    }

    /// As [`Capture::leave`], for a pod of an earlier daemon or an exempted one.
    ///
    /// # Errors
    /// The kernel refused a step.
    pub fn release(&self, cookie: NetnsCookie, leaving: Leaving) -> Result<(), CaptureError> {
        let mut pods = self.inner.pods();
        part(&self.inner, cookie, entry_after(leaving))?;
        pods.remove(&cookie);
        Ok(())
    }
}

/// The addresses of interfaces other than loopback in the network namespace at `path`.
///
/// # Errors
/// It cannot be opened, entered or read.
pub fn netns_addresses(path: &Path) -> Result<Vec<IpAddr>, CaptureError> {
    Netns::open(path)
        .and_then(|netns| netns.within(ifaddrs::addresses)?)
        .step(|| format!("reading the addresses of {}", path.display()))
}

/// The cookie of the network namespace at `path`.
///
/// # Errors
/// It cannot be opened or entered.
pub fn netns_cookie(path: &Path) -> Result<NetnsCookie, CaptureError> {
    Netns::open(path)
        .step(|| format!("opening the network namespace {}", path.display()))
        .map(|netns| netns.cookie())
}

fn entry_after(leaving: Leaving) -> Option<PodEntry> {
    match leaving {
        Leaving::Exempt => Some(PodEntry { flags: pod_flags::PASS, ..PodEntry::default() }),
        Leaving::Gone => None,
    }
}

/// Joins: what captures comes last, and each of the two steps that capture is whole in itself.
fn join(
    inner: &Inner,
    spec: &PodSpec,
    netns: Netns,
    known: Option<PodEntry>,
) -> Result<(PodSockets, Arc<Port>), CaptureError> {
    let cookie = netns.cookie();
    let backlog = i32::try_from(inner.settings.listen_backlog).unwrap_or(i32::MAX);
    let listeners = netns
        .within(|| Listeners::make(backlog, &ports_of(spec)))
        .and_then(|made| made)
        .step(|| format!("making the listeners of {}", spec.id))?;
    let (inbound_v4, inbound_v6) =
        listeners.inbound_ports().step(|| "reading the listeners' ports".into())?;
    let ips = own_addresses(&netns)?;
    let of_family = |v4: bool| ips.iter().find(|ip| ip.is_ipv4() == v4).copied();
    let addr_v4 = of_family(true).map_or(0, |ip| to_abi(ip)[3]);
    let addr_v6 = of_family(false).map_or([0; 4], to_abi);
    let mut flags = pod_flags::ENROLLED | exclude(inner, cookie, spec)?;
    // Pods without IPv6 do not get the sources: resolvers would take them for IPv6-capable.
    if addr_v6 != [0; 4] && listeners.v6.is_some() {
        netns
            .within(|| netlink::add_loopback_addrs(loopback_sources()))
            .and_then(|added| added)
            .step(|| "adding IPv6 sources to the pod's loopback".into())?;
        flags |= pod_flags::V6_SOURCES;
    }
    for (role, listener) in listeners.by_role() {
        let key = ListenerKey { netns: cookie.0, role, pad: 0 };
        let fd = listener.as_raw_fd().unsigned_abs();
        inner.maps.listeners.insert(&key, &fd).step(|| "publishing a listener".into())?;
    }
    let link = inner.loading.pins.steer_link(cookie);
    let build = inner.loading.build();
    let steered = known.is_some_and(|pod| pod.build == build) && link.exists();
    let publish = |build| {
        let entry = PodEntry { flags, inbound_v4, inbound_v6, build, addr_v6, addr_v4, pad: 0 };
        inner.maps.pods.insert(&cookie.0, &entry).step(|| format!("publishing {}", spec.id))
    };
    if steered {
        publish(build)?;
    } else {
        let steer = inner.loading.steer(cookie)?;
        // Not of this build before its program is in place.
        publish(0)?;
        programs::put(steer.as_fd(), Target::Netns(netns.fd()), AttachType::SkLookup, &link)
            .step(|| format!("attaching to the network namespace of {}", spec.id))?;
        publish(build)?;
    }
    let port = Arc::new(Port::new(netns, Arc::clone(&inner.maps)));
    let Listeners { outbound_v4, inbound_v4, v6 } = listeners;
    let (mut outbound, mut inbound) = (vec![outbound_v4], vec![inbound_v4]);
    if let Some((outbound_v6, inbound_v6)) = v6 {
        outbound.push(outbound_v6);
        inbound.push(inbound_v6);
    }
    Ok((PodSockets { outbound, inbound, port: port.clone(), ips, given: vec![] }, port))
}

/// Ports that are known to be the application's.
fn ports_of(spec: &PodSpec) -> Vec<u16> {
    let included = spec.only_inbound_ports.iter().flatten();
    let all = spec.probe_ports.iter().chain(&spec.excluded_inbound_ports).chain(included);
    all.copied().collect()
}

/// The pod's global addresses.
fn own_addresses(netns: &Netns) -> Result<Vec<IpAddr>, CaptureError> {
    let all = netns
        .within(ifaddrs::addresses)
        .and_then(|all| all)
        .step(|| "reading the pod's addresses".into())?;
    let is_global = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    Ok(all.into_iter().filter(is_global).collect())
}

/// Parts: the reverse of [`join`]. `after` is what the table of pods says from then on.
fn part(inner: &Inner, cookie: NetnsCookie, after: Option<PodEntry>) -> Result<(), CaptureError> {
    let maps = &inner.maps;
    programs::take_away(&inner.loading.pins.steer_link(cookie))
        .step(|| "detaching from a network namespace".into())?;
    match after {
        Some(entry) => maps.pods.insert(&cookie.0, &entry).step(|| "writing a pod".into())?,
        None => {
            maps.pods.remove(&cookie.0).step(|| "removing a pod".into())?;
        }
    }
    for role in [role::OUTBOUND_V4, role::OUTBOUND_V6, role::INBOUND_V4, role::INBOUND_V6] {
        let key = ListenerKey { netns: cookie.0, role, pad: 0 };
        maps.listeners.remove(&key).step(|| "removing a listener".into())?;
    }
    include_all(inner, cookie)
}

/// Writes the pod's exclusions in place of earlier ones; returns the flags that announce them.
/// What stays excluded is so at every moment: another daemon may serve the pod.
fn exclude(inner: &Inner, cookie: NetnsCookie, spec: &PodSpec) -> Result<u32, CaptureError> {
    let netns = cookie.0;
    let (mut written_ports, mut written_ranges) = (HashSet::new(), Vec::new());
    let only_inbound = spec.only_inbound_ports.as_deref().unwrap_or_default();
    let only_outbound =
        if spec.only_outbound_ranges.is_some() { &*spec.only_outbound_ports } else { &[] };
    let mut flags = 0;
    if spec.only_outbound_ranges.is_some() {
        flags |= pod_flags::ONLY_OUTBOUND;
    }
    if spec.only_inbound_ports.is_some() {
        flags |= pod_flags::ONLY_INBOUND;
    }
    for (ports, direction, flag) in [
        (&*spec.excluded_outbound_ports, direction::OUTBOUND, pod_flags::HAS_OUTBOUND_PORTS),
        (&spec.excluded_inbound_ports, direction::INBOUND, pod_flags::HAS_INBOUND_PORTS),
        (&spec.probe_ports, direction::PROBE, pod_flags::HAS_PROBE_PORTS),
        (only_outbound, direction::INCLUDED_OUTBOUND, pod_flags::ONLY_OUTBOUND),
        (only_inbound, direction::INCLUDED_INBOUND, pod_flags::ONLY_INBOUND),
    ] {
        for port in ports {
            let key = PortKey { netns, port: *port, direction, pad: 0 };
            inner.maps.excluded_ports.insert(&key, &1).step(|| format!("excluding port {port}"))?;
            written_ports.insert((*port, direction));
            flags |= flag;
        }
    }
    let excluded = &spec.excluded_outbound_ranges;
    // The longest match decides in the kernel; here, whatever is excluded is.
    let included = spec.only_outbound_ranges.iter().flatten();
    let included = included.filter(|range| !excluded.iter().any(|ex| ex.contains(*range)));
    let ranges = included.map(|range| (range, range::INCLUDED));
    for (cidr_range, value) in ranges.chain(excluded.iter().map(|r| (r, range::EXCLUDED))) {
        let key = cidr(cookie, cidr_range);
        let written = inner.maps.excluded_cidrs.insert(&key, &value);
        written.step(|| format!("excluding {cidr_range}"))?;
        written_ranges.push(key);
        flags |= pod_flags::HAS_CIDRS;
    }
    include_all_but(inner, cookie, &written_ports, &written_ranges)?;
    Ok(flags)
}

/// Removes the pod's exclusions.
fn include_all(inner: &Inner, cookie: NetnsCookie) -> Result<(), CaptureError> {
    include_all_but(inner, cookie, &HashSet::new(), &[])
}

/// Removes the pod's exclusions but these: ports with their direction, and ranges.
fn include_all_but(
    inner: &Inner,
    cookie: NetnsCookie,
    ports: &HashSet<(u16, u16)>,
    ranges: &[CidrPrefix],
) -> Result<(), CaptureError> {
    let clear = || {
        for key in inner.maps.excluded_ports.keys(MAX_EXCLUSIONS_READ)? {
            if key.netns == cookie.0 && !ports.contains(&(key.port, key.direction)) {
                inner.maps.excluded_ports.remove(&key)?;
            }
        }
        for prefix in inner.maps.excluded_cidrs.keys(MAX_EXCLUSIONS_READ)? {
            if prefix.key.netns == halves(cookie) && !ranges.contains(&prefix) {
                inner.maps.excluded_cidrs.remove(&prefix)?;
            }
        }
        Ok(())
    };
    clear().step(|| "removing exclusions".into())
}

fn cidr(cookie: NetnsCookie, range: &IpNet) -> CidrPrefix {
    let before = if range.addr().is_ipv4() { CIDR_V4_BITS } else { CIDR_NETNS_BITS };
    CidrPrefix {
        prefix_len: before + u32::from(range.prefix_len()),
        key: CidrKey { netns: halves(cookie), addr: to_abi(range.network()) },
    }
}

/// The cookie as the trie has it.
fn halves(cookie: NetnsCookie) -> [u32; 2] {
    [cookie.0 as u32, (cookie.0 >> 32) as u32]
}
