//! DestinationRules: which one applies to a service for which clients, and what it says of a port
//! and subset.
//!
//! Lookup as Istio does it (`PushContext.destinationRule`): rules of the client's namespace first,
//! then those of the service's namespace, then those of the root namespace; within one namespace
//! the most specific host; rules of one namespace for the same host are merged, the oldest first:
//! subsets add up, the first traffic policy counts. A rule with a `workloadSelector` is one for the
//! clients of its own namespace that have the labels, and for them it comes before those of the
//! same host without one (Istio `SidecarScope.DestinationRule`). Which client asks matters only on
//! its own node, so variants are compiled for the local pods alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use fairlead_api::networking::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRule, LoadBalancer,
    SimpleLb, Subset, TrafficPolicy,
};
use fairlead_api::{Kind, ObjectKey};
use fairlead_policy::balance;
use fairlead_types::{Labels, SpiffeId};

use super::client::{Client, namespace_of};
use super::host::{ExportTo, HostPattern};
use super::problem::Report;
use super::route::labels;
use crate::model::{ClusterPolicy, MeshSettings, UpstreamTls};
use crate::source::CONNECTIONS_REFUSED;

/// What a cluster without a subset asks of endpoints.
static NO_LABELS: LazyLock<Arc<Labels>> = LazyLock::new(Default::default);

/// One rule, with what lookups need.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) key: ObjectKey,
    pub(super) pattern: HostPattern,
    export: ExportTo,
    created: String,
    /// The client workloads that it is for; `None`: all.
    selector: Option<Labels>,
    pub(super) object: Arc<DestinationRule>,
}

impl Rule {
    fn new(object: &Arc<DestinationRule>, domain: &str, export: &[String]) -> Self {
        let metadata = &object.metadata;
        Self {
            key: ObjectKey::new(Kind::DestinationRule, &metadata.namespace, &metadata.name),
            pattern: HostPattern::new(&object.spec.host, &metadata.namespace, domain),
            export: ExportTo::new(&object.spec.export_to, export, &metadata.namespace),
            created: metadata.creation_timestamp.clone().unwrap_or_default(),
            selector: object.spec.workload_selector.as_ref().map(|s| labels(&s.match_labels)),
            object: Arc::clone(object),
        }
    }

    /// Whether it is for these clients, if it is for any of their namespace.
    fn chooses(&self, client: Option<&Client>) -> bool {
        self.selector.is_none()
            || client.is_some_and(|client| {
                client.namespace() == &*self.key.namespace && client.is_chosen_by(&self.key.name)
            })
    }

    /// The order in which rules of one host are merged.
    fn age(&self) -> (&str, &str) {
        (&self.created, &self.key.name)
    }
}

/// The rules that apply to a host, merged in this order.
#[derive(Clone, Debug, Default)]
pub(super) struct Effective(Vec<Arc<Rule>>);

impl PartialEq for Effective {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Effective {
    /// All subsets, each name once.
    pub(super) fn subsets(&self) -> BTreeMap<&str, &Subset> {
        let mut all = BTreeMap::new();
        for subset in self.0.iter().flat_map(|rule| &rule.object.spec.subsets) {
            all.entry(subset.name.as_str()).or_insert(subset);
        }
        all
    }

    fn traffic_policy(&self) -> Option<&TrafficPolicy> {
        self.0.iter().find_map(|rule| rule.object.spec.traffic_policy.as_ref())
    }

    /// What holds for a port of the service, or for a subset of it.
    pub(super) fn policy(
        &self,
        port: u16,
        subset: Option<&Subset>,
        mesh: &MeshSettings,
    ) -> ClusterPolicy {
        let mut merged = Merged::default();
        if let Some(policy) = self.traffic_policy() {
            merged.apply(policy, port);
        }
        if let Some(policy) = subset.and_then(|subset| subset.traffic_policy.as_ref()) {
            merged.apply(policy, port);
        }
        ClusterPolicy {
            balancer: merged.load_balancer.map_or_else(Default::default, balancer),
            tls: merged.tls.map_or_else(
                || if mesh.auto_mtls { UpstreamTls::Auto } else { UpstreamTls::Disable },
                upstream_tls,
            ),
            connect_timeout: merged
                .connection_pool
                .and_then(|pool| pool.tcp.as_ref()?.connect_timeout)
                .map_or(mesh.connect_timeout, Into::into),
            labels: match subset {
                Some(subset) => Arc::new(subset.labels.iter().map(pair).collect()),
                None => Arc::clone(&NO_LABELS),
            },
        }
    }
}

fn pair<'a>((key, value): (&'a String, &'a String)) -> (&'a str, &'a str) {
    (key, value)
}

/// Traffic policies laid over each other (Istio `MergeTrafficPolicy`): each one's fields replace
/// those of the one before, and settings of a port replace all of them, leaving what they do not
/// say at its default.
#[derive(Default)]
struct Merged<'a> {
    load_balancer: Option<&'a LoadBalancer>,
    connection_pool: Option<&'a ConnectionPoolSettings>,
    tls: Option<&'a ClientTlsSettings>,
}

impl<'a> Merged<'a> {
    fn apply(&mut self, policy: &'a TrafficPolicy, port: u16) {
        let of_port = policy
            .port_level_settings
            .iter()
            .find(|s| s.port.is_some_and(|p| p.number == u32::from(port)));
        if let Some(settings) = of_port {
            *self = Self {
                load_balancer: settings.load_balancer.as_ref(),
                connection_pool: settings.connection_pool.as_ref(),
                tls: settings.tls.as_ref(),
            };
            return;
        }
        self.load_balancer = policy.load_balancer.as_ref().or(self.load_balancer);
        self.connection_pool = policy.connection_pool.as_ref().or(self.connection_pool);
        self.tls = policy.tls.as_ref().or(self.tls);
    }
}

fn balancer(settings: &LoadBalancer) -> balance::LoadBalancer {
    match settings.simple.unwrap_or_default() {
        SimpleLb::Random => balance::LoadBalancer::Random,
        SimpleLb::Passthrough => balance::LoadBalancer::Passthrough,
        SimpleLb::RoundRobin => balance::LoadBalancer::RoundRobin,
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => {
            balance::LoadBalancer::default()
        }
    }
}

fn upstream_tls(settings: &ClientTlsSettings) -> UpstreamTls {
    match settings.mode {
        ClientTlsMode::Disable => UpstreamTls::Disable,
        ClientTlsMode::IstioMutual => {
            let sans: Result<Box<[SpiffeId]>, _> =
                settings.subject_alt_names.iter().map(|san| san.parse()).collect();
            match sans {
                Ok(sans) => UpstreamTls::Mutual { sans },
                Err(error) => UpstreamTls::Refused {
                    reason: format!("DestinationRule subjectAltNames: {error}").into(),
                },
            }
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => UpstreamTls::Refused {
            reason: "DestinationRule asks for TLS origination, which is not supported yet".into(),
        },
    }
}

/// All rules.
#[derive(Debug, Default)]
pub(super) struct Rules {
    by_key: BTreeMap<(Arc<str>, Arc<str>), Arc<Rule>>,
    /// Those of them that are for some workloads only.
    choosing: BTreeMap<(Arc<str>, Arc<str>), Arc<Rule>>,
    exact: BTreeMap<Arc<str>, Vec<Arc<Rule>>>,
    wildcard: Vec<Arc<Rule>>,
}

impl Rules {
    /// Takes a rule in, or out; returns the patterns whose hosts may have changed. `export` is what
    /// holds where it says nothing of `exportTo`.
    pub(super) fn update(
        &mut self,
        key: &ObjectKey,
        object: Option<&Arc<DestinationRule>>,
        domain: &str,
        export: &[String],
    ) -> Vec<HostPattern> {
        let mut touched = Vec::new();
        let name = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        if let Some(old) = self.by_key.remove(&name) {
            match &old.pattern {
                HostPattern::Exact(host) => {
                    if let Some(rules) = self.exact.get_mut(host) {
                        rules.retain(|rule| !Arc::ptr_eq(rule, &old));
                        if rules.is_empty() {
                            self.exact.remove(host);
                        }
                    }
                }
                HostPattern::Wildcard(_) => self.wildcard.retain(|r| !Arc::ptr_eq(r, &old)),
            }
            self.choosing.remove(&name);
            touched.push(old.pattern.clone());
        }
        if let Some(object) = object {
            let rule = Arc::new(Rule::new(object, domain, export));
            let bucket = match &rule.pattern {
                HostPattern::Exact(host) => self.exact.entry(Arc::clone(host)).or_default(),
                HostPattern::Wildcard(_) => &mut self.wildcard,
            };
            bucket.push(Arc::clone(&rule));
            bucket.sort_by(|a, b| a.age().cmp(&b.age()));
            touched.push(rule.pattern.clone());
            if rule.selector.is_some() {
                self.choosing.insert(name.clone(), Arc::clone(&rule));
            }
            self.by_key.insert(name, rule);
        }
        touched
    }

    /// Those that say nothing of `exportTo`.
    pub(super) fn unexported(&self) -> Vec<(ObjectKey, Arc<DestinationRule>)> {
        let silent = self.by_key.values().filter(|rule| rule.object.spec.export_to.is_empty());
        silent.map(|rule| (rule.key.clone(), Arc::clone(&rule.object))).collect()
    }

    /// The rules whose pattern matches `host`.
    fn matching<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Arc<Rule>> {
        let exact = self.exact.get(host).into_iter().flatten();
        exact.chain(self.wildcard.iter().filter(move |rule| rule.pattern.matches(host)))
    }

    /// Namespaces whose clients may see `host` under another rule than everybody else.
    pub(super) fn special_clients(
        &self,
        host: &str,
        service_namespace: &str,
    ) -> BTreeSet<Arc<str>> {
        let mut namespaces = BTreeSet::new();
        for rule in self.matching(host) {
            namespaces.extend(rule.export.named().iter().cloned());
            if *rule.key.namespace != *service_namespace || rule.selector.is_some() {
                namespaces.insert(Arc::clone(&rule.key.namespace));
            }
        }
        namespaces
    }

    /// What a pod of `namespace` with these labels is to the rules.
    pub(super) fn client(&self, namespace: &Arc<str>, labels: &Labels) -> Client {
        let first = (Arc::clone(namespace), Arc::from(""));
        let rules: Vec<&str> = self
            .choosing
            .range(first..)
            .take_while(|((of, _), _)| of == namespace)
            .filter(|(_, rule)| rule.selector.as_ref().is_some_and(|s| labels.matches(s)))
            .map(|((_, name), _)| &**name)
            .collect();
        Client::new(namespace, &rules)
    }

    /// Whether any rule is for some workloads only.
    pub(super) fn choose_workloads(&self) -> bool {
        !self.choosing.is_empty()
    }

    /// Whether any rule makes a difference between clients.
    pub(super) fn tells_clients_apart(&self) -> bool {
        !self.by_key.is_empty()
    }

    /// The rules that apply to `host` of a service in `service_namespace`, for `client`, or for
    /// those of a namespace that no rule knows.
    pub(super) fn effective(
        &self,
        host: &str,
        service_namespace: &str,
        client: Option<&Client>,
        root_namespace: &str,
    ) -> Effective {
        let own = namespace_of(client);
        let tiers = [
            own.filter(|own| *own != root_namespace),
            Some(service_namespace),
            Some(root_namespace),
        ];
        for (tier, namespace) in tiers.into_iter().enumerate() {
            let Some(namespace) = namespace else { continue };
            let visible = |rule: &&Arc<Rule>| {
                *rule.key.namespace == *namespace
                    && (tier == 0 || rule.export.is_visible(own))
                    && rule.chooses(client)
            };
            let Some(best) =
                self.matching(host).filter(visible).max_by_key(|rule| match &rule.pattern {
                    HostPattern::Exact(_) => usize::MAX,
                    HostPattern::Wildcard(suffix) => suffix.len(),
                })
            else {
                continue;
            };
            let same = |rule: &&Arc<Rule>| visible(rule) && rule.pattern == best.pattern;
            let mut rules: Vec<_> = self.matching(host).filter(same).cloned().collect();
            // Of several that choose the client the oldest counts, with those for just the same.
            let chosen = rules.iter().find_map(|rule| rule.selector.clone());
            if chosen.is_some() {
                rules.retain(|rule| rule.selector == chosen);
            }
            return Effective(rules);
        }
        Effective::default()
    }
}

/// Says which connections a rule keeps from being made. (What is merely without effect yet is
/// the business of validation.)
pub(super) fn review(object: &DestinationRule, report: &mut Report<'_>) {
    let spec = &object.spec;
    let whole = spec.traffic_policy.iter().map(|policy| ("spec".to_owned(), policy));
    let subsets = spec.subsets.iter().enumerate().filter_map(|(i, subset)| {
        Some((format!("spec.subsets[{i}]"), subset.traffic_policy.as_ref()?))
    });
    for (path, policy) in whole.chain(subsets) {
        let path = format!("{path}.trafficPolicy");
        let ports = policy.port_level_settings.iter().enumerate().map(|(i, settings)| {
            (format!("{path}.portLevelSettings[{i}].tls"), settings.tls.as_ref())
        });
        for (path, tls) in
            std::iter::once((format!("{path}.tls"), policy.tls.as_ref())).chain(ports)
        {
            let Some(tls) = tls else { continue };
            if !matches!(upstream_tls(tls), UpstreamTls::Refused { .. }) {
                continue;
            }
            if tls.mode != ClientTlsMode::IstioMutual {
                report.error(format!("{path}.mode"), CONNECTIONS_REFUSED);
                continue;
            }
            // The same words as in advance ([`crate::source`]).
            for (i, san) in tls.subject_alt_names.iter().enumerate() {
                if let Err(error) = san.parse::<SpiffeId>() {
                    let path = format!("{path}.subjectAltNames[{i}]");
                    report.error(path, format!("{error}; connections are refused"));
                }
            }
        }
    }
}

/// The labels of a subset, for telling which endpoints belong to it.
pub(super) fn selects(labels: &Labels, workload: Option<&Labels>) -> bool {
    labels.is_empty() || workload.is_some_and(|own| own.matches(labels))
}
