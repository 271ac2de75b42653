//! The ranges of the nodes' pods: an address in one of them that nobody has is not outside of the
//! mesh, but of a pod that is starting or has gone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use fairlead_api::core::Node;
use ipnet::IpNet;

/// Ranges of one node that count.
const MAX_RANGES: usize = 16;

/// A range by its first and last address.
pub(crate) type Range = (IpAddr, IpAddr);

/// `spec.podCIDRs` of a Node (or `podCIDR`), in order.
pub(crate) fn of_node(node: &Node) -> Vec<Range> {
    let one = Some(&node.spec.pod_cidr).filter(|_| node.spec.pod_cidrs.is_empty());
    let texts = node.spec.pod_cidrs.iter().chain(one).take(MAX_RANGES);
    let nets = texts.filter_map(|text| text.parse::<IpNet>().ok());
    nets.map(|net| (net.network(), net.broadcast())).collect()
}

/// The ranges of all nodes, and how many nodes name each. They do not overlap; where they do, the one
/// that begins last counts.
#[derive(Debug, Default)]
pub(crate) struct PodRanges(BTreeMap<Range, usize>);

impl PodRanges {
    /// A node has these ranges in place of those.
    pub(super) fn replace(&mut self, old: &[Range], new: &[Range]) {
        for range in old {
            let Some(count) = self.0.get_mut(range) else { continue };
            *count -= 1;
            if *count == 0 {
                self.0.remove(range);
            }
        }
        for range in new {
            *self.0.entry(*range).or_default() += 1;
        }
    }

    /// Whether an address is one that a pod gets. The first two of a range are none: the range's own
    /// and, with many network plugins, the node's gateway.
    pub(super) fn is_of_a_pod(&self, ip: IpAddr) -> bool {
        const LAST: IpAddr = IpAddr::V6(Ipv6Addr::from_bits(u128::MAX));
        let before = self.0.range(..=(ip, LAST)).next_back();
        before.is_some_and(|((first, last), _)| ip <= *last && offset(*first, ip) > 1)
    }
}

/// How far an address is behind another of its family.
fn offset(first: IpAddr, ip: IpAddr) -> u128 {
    match (first, ip) {
        (IpAddr::V4(first), IpAddr::V4(ip)) => u128::from(ip.to_bits() - first.to_bits()),
        (IpAddr::V6(first), IpAddr::V6(ip)) => ip.to_bits() - first.to_bits(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        let node = serde_json::json!({"spec": {"podCIDRs": [text]}});
        of_node(&serde_json::from_value(node).unwrap())[0]
    }

    fn has(ranges: &PodRanges, ip: &str) -> bool {
        ranges.is_of_a_pod(ip.parse().unwrap())
    }

    #[test]
    fn addresses_of_pods_are_known_by_the_ranges_of_nodes() {
        let mut ranges = PodRanges::default();
        assert!(!has(&ranges, "10.244.1.3"));
        let (one, two) = (range("10.244.1.0/24"), range("10.244.2.0/24"));
        let six = range("fd00:1::/64");
        ranges.replace(&[], &[one, six]);
        ranges.replace(&[], &[two, one]);
        for (ip, wanted) in [
            ("10.244.1.0", false),
            ("10.244.1.1", false),
            ("10.244.1.2", true),
            ("10.244.1.255", true),
            ("10.244.2.9", true),
            ("10.244.3.1", false),
            ("10.244.0.255", false),
            ("fd00:1::1", false),
            ("fd00:1::17", true),
            ("fd00:2::17", false),
            ("::", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(has(&ranges, ip), wanted, "{ip}");
        }
        ranges.replace(&[two, one], &[]);
        assert!(has(&ranges, "10.244.1.2") && !has(&ranges, "10.244.2.9"));
        ranges.replace(&[one, six], &[]);
        assert!(!has(&ranges, "10.244.1.2") && ranges.0.is_empty());
    }

    #[test]
    fn what_is_no_range_is_none() {
        let node =
            serde_json::json!({"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["x", "::/129"]}});
        assert!(of_node(&serde_json::from_value(node).unwrap()).is_empty());
        let old = serde_json::json!({"spec": {"podCIDR": "10.1.0.0/24"}});
        assert_eq!(of_node(&serde_json::from_value(old).unwrap()).len(), 1);
    }
}
