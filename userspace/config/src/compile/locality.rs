//! Where endpoints are, seen from this node, and which of them a service wants used first.
//!
//! `internalTrafficPolicy: Local` leaves none but the node's own. Topology hints are followed as
//! kube-proxy does it: only where every endpoint has some, and one of them names this node's zone.
//! Else `trafficDistribution` orders the endpoints: this node, this zone, this region, the rest.
//! All of it is settled when a cluster is built; nothing of it is asked again by a request.

use std::collections::HashMap;
use std::sync::Arc;

use fairlead_api::core::{InternalTrafficPolicy, Node as KubeNode, Service as ApiService};
use foldhash::fast::RandomState;

use super::problem::Report;
use crate::model::{Endpoint, Locality};

/// Labels of a node, with those that they had before Kubernetes 1.17.
const ZONE: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
const REGION: [&str; 2] =
    ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"];
/// Annotation on a Service that stands in for `spec.trafficDistribution` (Istio).
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Where a node is; nothing is known of what is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    region: Arc<str>,
    zone: Arc<str>,
}

/// All nodes, by name.
#[derive(Debug, Default)]
pub(super) struct Nodes(HashMap<Arc<str>, Place, RandomState>);

impl Nodes {
    /// Takes a node in, or out; whether its place is another one now.
    pub(super) fn update(&mut self, name: &Arc<str>, object: Option<&KubeNode>) -> bool {
        let label = |node: &KubeNode, keys: [&str; 2]| -> Arc<str> {
            let found = keys.iter().find_map(|key| node.metadata.labels.get(key));
            found.map(String::as_str).unwrap_or_default().into()
        };
        let place = object
            .map(|node| Place { region: label(node, REGION), zone: label(node, ZONE) })
            .filter(|place| *place != Place::default());
        match place {
            Some(place) if self.0.get(name) == Some(&place) => false,
            Some(place) => {
                self.0.insert(Arc::clone(name), place);
                true
            }
            None => self.0.remove(name).is_some(),
        }
    }
}

/// What a service wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Preference {
    /// `internalTrafficPolicy: Local`.
    local_only: bool,
    distribution: Distribution,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Distribution {
    #[default]
    Any,
    SameZone,
    SameNode,
}

impl Preference {
    /// Reads it; the field comes before the annotation (Istio `GetTrafficDistribution`).
    pub(super) fn of(service: &ApiService, report: &mut Report<'_>) -> Self {
        let spec = &service.spec;
        let annotation = service.metadata.annotations.get(TRAFFIC_DISTRIBUTION);
        let (field, text) = match (spec.traffic_distribution.as_str(), annotation) {
            ("", None) => (String::new(), ""),
            ("", Some(text)) => {
                (format!("metadata.annotations[{TRAFFIC_DISTRIBUTION}]"), text.as_str())
            }
            (text, _) => ("spec.trafficDistribution".to_owned(), text),
        };
        let distribution = match text.to_ascii_lowercase().as_str() {
            "" | "any" => Distribution::Any,
            "preferclose" | "prefersamezone" => Distribution::SameZone,
            "prefersamenode" => Distribution::SameNode,
            _ => {
                report.warning(
                    field,
                    format!(
                        "{text:?} is not known: PreferClose, PreferSameZone or PreferSameNode; \
                         all endpoints are used alike"
                    ),
                );
                Distribution::Any
            }
        };
        let local_only = spec.internal_traffic_policy == InternalTrafficPolicy::Local;
        Self { local_only, distribution }
    }
}

/// How far away an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Distance {
    SameNode,
    SameZone,
    SameRegion,
    Elsewhere,
}

/// What the hints of an endpoint say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// There are none.
    None,
    /// It is for this node's zone.
    Here,
    /// It is for other zones.
    Elsewhere,
}

/// Endpoints in order of addresses, with where they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Sites {
    /// Shared with clusters that use all of them alike.
    pub(super) endpoints: Arc<[Arc<Endpoint>]>,
    spots: Box<[Spot]>,
}

/// An endpoint, with where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'s> {
    pub(super) endpoint: &'s Arc<Endpoint>,
    at: Spot,
}

impl Sites {
    /// One after the other.
    pub(super) fn iter(&self) -> impl Iterator<Item = Site<'_>> {
        let spots = self.spots.iter().copied();
        self.endpoints.iter().zip(spots).map(|(endpoint, at)| Site { endpoint, at })
    }
}

impl FromIterator<(Arc<Endpoint>, Spot)> for Sites {
    fn from_iter<T: IntoIterator<Item = (Arc<Endpoint>, Spot)>>(sites: T) -> Self {
        let (endpoints, spots): (Vec<_>, Vec<_>) = sites.into_iter().unzip();
        Self { endpoints: endpoints.into(), spots: spots.into() }
    }
}

/// Where an endpoint is, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    distance: Distance,
    hint: Hint,
}

/// This node among the others.
pub(super) struct Here<'a> {
    node: &'a str,
    place: Option<&'a Place>,
    nodes: &'a Nodes,
}

impl<'a> Here<'a> {
    pub(super) fn new(node: &'a str, nodes: &'a Nodes) -> Self {
        Self { node, place: nodes.0.get(node), nodes }
    }

    /// Where something on `node` is, or, should nobody know that node, in `zone`.
    pub(super) fn spot<'z>(
        &self,
        node: &str,
        zone: &str,
        hints: impl IntoIterator<Item = &'z str>,
    ) -> Spot {
        Spot { distance: self.distance(node, zone), hint: self.hint(hints) }
    }

    fn distance(&self, node: &str, zone: &str) -> Distance {
        if !node.is_empty() && node == self.node {
            return Distance::SameNode;
        }
        let Some(own) = self.place else { return Distance::Elsewhere };
        let same = |own: &str, other: &str| !own.is_empty() && own == other;
        match self.nodes.0.get(node) {
            // Zones of two regions may have one name.
            Some(place) if place.region != own.region => Distance::Elsewhere,
            Some(place) if same(&own.zone, &place.zone) => Distance::SameZone,
            Some(place) if same(&own.region, &place.region) => Distance::SameRegion,
            None if same(&own.zone, zone) => Distance::SameZone,
            _ => Distance::Elsewhere,
        }
    }

    fn hint<'z>(&self, zones: impl IntoIterator<Item = &'z str>) -> Hint {
        let mut zones = zones.into_iter().peekable();
        let own = self.place.map(|place| &*place.zone).filter(|zone| !zone.is_empty());
        match own {
            _ if zones.peek().is_none() => Hint::None,
            Some(own) if zones.any(|zone| zone == own) => Hint::Here,
            _ => Hint::Elsewhere,
        }
    }
}

/// The endpoints to be used of `sites`, which are in order of addresses: the near ones first.
pub(super) fn choose<'s>(
    sites: impl Iterator<Item = Site<'s>>,
    preference: Preference,
) -> (Vec<&'s Arc<Endpoint>>, Locality) {
    let Preference { local_only, distribution } = preference;
    let mut sites: Vec<Site<'_>> =
        sites.filter(|site| !local_only || site.at.distance == Distance::SameNode).collect();
    let hinted = sites.iter().all(|site| site.at.hint != Hint::None)
        && sites.iter().any(|site| site.at.hint == Hint::Here);
    let group = |site: &Site<'_>| match (hinted, distribution) {
        (true, _) if site.at.hint == Hint::Here => Distance::SameZone,
        (true, _) | (false, Distribution::Any) => Distance::Elsewhere,
        (false, Distribution::SameZone) => site.at.distance.max(Distance::SameZone),
        (false, Distribution::SameNode) => site.at.distance,
    };
    // Stable, so that addresses stay in order within each group.
    sites.sort_by_key(group);
    let ends = sites
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| group(&pair[0]) != group(&pair[1]))
        .map(|(index, _)| index + 1)
        .collect();
    (sites.into_iter().map(|site| site.endpoint).collect(), Locality { ends, local_only })
}
