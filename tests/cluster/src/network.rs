//! Addresses of a cluster, and the wires between host, control plane and nodes.
//!
//! Addresses repeat from cluster to cluster, because each has namespaces of its own; only the wire
//! to the host has a /30 that no other cluster has. Nothing has a default route: a packet to an
//! address that the cluster does not know goes nowhere.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{namespaces, system};

/// Port of the API server.
pub(crate) const API_PORT: u16 = 6443;

/// What the names of the host's ends of the wires begin with.
pub(crate) const HOST_LINK: &str = "flc";

/// Wires to the host that this machine can have: /30s of 100.66.0.0/16, of the range that RFC 6598
/// keeps free of the Internet.
const HOST_WIRES: u16 = 1 << 14;

/// Addresses of a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) dual_stack: bool,
    /// Number of the wire to the host.
    pub(crate) wire: u16,
}

impl Plan {
    /// Both stacks of a list that kubernetes flags take.
    fn both(self, v4: String, v6: String) -> String {
        if self.dual_stack { format!("{v4},{v6}") } else { v4 }
    }

    pub(crate) fn services(self) -> String {
        self.both("10.96.0.0/16".into(), "fd00:96::/112".into())
    }

    pub(crate) fn pods(self) -> String {
        self.both("10.244.0.0/16".into(), "fd00:244::/32".into())
    }

    /// Pod ranges of a node, one for each stack.
    pub(crate) fn pods_of(self, node: usize) -> Vec<String> {
        let v6 = self.dual_stack.then(|| format!("fd00:244:{node}::/64"));
        [format!("10.244.{node}.0/24")].into_iter().chain(v6).collect()
    }

    pub(crate) fn node(self, node: usize) -> String {
        self.both(Self::node_v4(node), Self::node_v6(node))
    }

    pub(crate) fn node_v4(node: usize) -> String {
        format!("172.30.0.{}", 10 + node)
    }

    pub(crate) fn node_v6(node: usize) -> String {
        format!("fd00:30::{:x}", 16 + node)
    }

    /// Where nodes and pods reach the API server.
    pub(crate) const fn api() -> &'static str {
        "172.30.0.1"
    }

    pub(crate) const fn dns() -> &'static str {
        "10.96.0.10"
    }

    fn on_wire(self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(
            Ipv4Addr::new(100, 66, 0, 0).to_bits() + u32::from(self.wire) * 4 + host,
        )
    }

    /// The host's address on the wire to it.
    pub(crate) fn host(self) -> Ipv4Addr {
        self.on_wire(1)
    }

    /// The control plane's address on the wire to the host.
    pub(crate) fn outer(self) -> Ipv4Addr {
        self.on_wire(2)
    }

    /// Names and addresses that the API server's certificate has to have.
    pub(crate) fn api_names(self) -> Vec<String> {
        let dns = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let dns = dns.into_iter().chain(["kubernetes.default.svc.cluster.local", "localhost"]);
        let outer = self.outer().to_string();
        let ips = ["127.0.0.1", "10.96.0.1", "fd00:96::1", Self::api(), "fd00:30::1", &outer];
        let ips = ips.map(|ip| format!("IP:{ip}"));
        dns.map(|name| format!("DNS:{name}")).chain(ips).collect()
    }
}

/// Name of the host's end of a cluster's wire.
pub(crate) fn host_link(cluster: &str) -> String {
    let mut hasher = DefaultHasher::new();
    cluster.hash(&mut hasher);
    format!("{HOST_LINK}{:010x}", hasher.finish() >> 24)
}

/// A wire whose addresses nobody on this machine has, and no cluster in `taken`.
pub(crate) fn free_wire(taken: &[u16]) -> Result<u16> {
    let used = system::output(Command::new("ip").args(["-4", "-o", "addr"]))?;
    for wire in 0..HOST_WIRES {
        let plan = Plan { dual_stack: false, wire };
        let free = ![plan.host(), plan.outer()].iter().any(|ip| used.contains(&format!(" {ip}/")));
        if free && !taken.contains(&wire) {
            return Ok(wire);
        }
    }
    bail!("no free /30 in 100.66.0.0/16 for another cluster")
}

/// Bridge, wire to the host, and routes of the control plane.
pub(crate) fn lay_outer(cluster: &str, plan: Plan, nodes: usize, outer: u32) -> Result<()> {
    let link = host_link(cluster);
    namespaces::ip(
        None,
        &format!(
            "link add {link} type veth peer name host0 netns {outer}\n\
             link set {link} addrgenmode none\n\
             addr add {}/30 dev {link}\n\
             link set {link} up\n",
            plan.host()
        ),
    )?;
    quiet_v6(outer)?;
    // Pods must not reach the host or one another through here.
    namespaces::sysctl(outer, &[("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")])?;
    let mut batch = format!(
        "link set lo up\n\
         link add br0 type bridge mcast_snooping 0\n\
         addr add {}/24 dev br0\n\
         addr add fd00:30::1/64 dev br0 nodad\n\
         link set br0 up\n\
         link set host0 addrgenmode none\n\
         addr add {}/30 dev host0\n\
         link set host0 up\n\
         route add unreachable 10.96.0.0/16\n\
         route add unreachable default metric 9999\n\
         route add unreachable fd00:96::/112\n",
        Plan::api(),
        plan.outer()
    );
    for node in 1..=nodes {
        batch += &route_to_pods(plan, node);
    }
    namespaces::ip(Some(outer), &batch)
}

fn route_to_pods(plan: Plan, node: usize) -> String {
    let via = |range: &String| {
        let hop = if range.contains(':') { Plan::node_v6(node) } else { Plan::node_v4(node) };
        format!("route add {range} via {hop}\n")
    };
    plan.pods_of(node).iter().map(via).collect()
}

/// No duplicate address detection, which would keep addresses unusable for a second.
fn quiet_v6(pid: u32) -> Result<()> {
    namespaces::sysctl(
        pid,
        &[
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/accept_ra", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
        ],
    )
}

/// The wire of a node to the bridge, and the node's routes.
pub(crate) fn lay_node(
    plan: Plan,
    nodes: usize,
    node: usize,
    outer: u32,
    inner: u32,
) -> Result<()> {
    // A wire from before may still be waiting for the kernel to take its namespace down.
    let gone = "no wire of the node's life before";
    system::eventually(gone, std::time::Duration::from_secs(10), || {
        let mut look = Command::new("nsenter");
        look.args(["-t", &outer.to_string(), "-n", "--", "ip", "-o", "link"]);
        let links = system::output(&mut look)?;
        Ok((!links.contains(&format!(" n{node}@"))).then_some(()))
    })?;
    // A machine keeps its hardware address across a boot: its neighbours remember it for a minute.
    namespaces::ip(
        Some(outer),
        &format!(
            "link add n{node} type veth peer name eth0 address 06:30:00:00:00:{node:02x} netns \
             {inner}\n\
             link set n{node} addrgenmode none\n\
             link set n{node} master br0\n\
             link set n{node} up\n"
        ),
    )
    .context("the wire of a node")?;
    quiet_v6(inner)?;
    namespaces::sysctl(
        inner,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ],
    )?;
    let (v4, v6) = (Plan::node_v4(node), Plan::node_v6(node));
    // Services are routed to the bridge, where nobody has them: kube-proxy rewrites a packet on
    // the way, and one that it does not know ends there.
    let mut batch = format!(
        "link set lo up\n\
         addr add {v4}/24 dev eth0\n\
         addr add {v6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add 10.96.0.0/16 via {} dev eth0\n\
         route add fd00:96::/112 via fd00:30::1 dev eth0\n\
         route add unreachable default metric 9999\n",
        Plan::api()
    );
    for other in (1..=nodes).filter(|other| *other != node) {
        batch += &route_to_pods(plan, other);
    }
    namespaces::ip(Some(inner), &batch)
}
