//! What holds where an object or a namespace says nothing: MeshConfig's `exportTo`, and Sidecars of
//! namespaces and of the root namespace.

use std::collections::HashSet;
use std::sync::Arc;

use fairlead_api::Kind;
use fairlead_config::source::{MESH_CONFIG_MAP, mesh_config};

use super::facts::Facts;
use super::object::Slot;
use super::reach::{Export, Reach};
use super::state::{Exports, State};

impl State {
    pub(super) fn set_mesh_config(&mut self, slot: Slot) {
        let object = self.object(slot);
        if *object.key.namespace != *self.root_namespace || &*object.key.name != MESH_CONFIG_MAP {
            return;
        }
        let content = object.content.as_ref();
        let config = content
            .and_then(|content| serde_json::from_slice(&content.json).ok())
            .and_then(|map| mesh_config(&map));
        let exports = config.map_or_else(Exports::default, |config| Exports {
            service: config.default_service_export_to,
            virtual_service: config.default_virtual_service_export_to,
            destination_rule: config.default_destination_rule_export_to,
        });
        if exports != self.default_exports {
            self.default_exports = exports;
            self.refresh_all();
        }
    }

    /// Reads the Sidecars of a namespace again.
    pub(super) fn refresh_reach(&mut self, namespace: &Arc<str>) {
        let is_root = **namespace == *self.root_namespace;
        let of_namespace = self.sidecars.get(namespace);
        if of_namespace.is_some_and(HashSet::is_empty) {
            self.sidecars.remove(namespace);
        }
        if is_root {
            self.default_reach = self.general_reach(namespace).unwrap_or_default();
            // Those with Sidecars for some workloads only have it for the rest.
            let mut namespaces: Vec<Arc<str>> = self.sidecars.keys().cloned().collect();
            namespaces.push(Arc::clone(namespace));
            for namespace in namespaces {
                self.set_reach(&namespace);
            }
            for node in self.enrolled.clone().iter() {
                self.rescope(node);
            }
        } else {
            self.set_reach(namespace);
            let nodes = self.clients.get(namespace).cloned().unwrap_or_default();
            for node in nodes.iter() {
                self.rescope(node);
            }
        }
    }

    /// Of workloads that no Sidecar selects.
    fn general_reach(&self, namespace: &str) -> Option<Reach> {
        let sidecars = self.sidecars.get(namespace).into_iter().flatten();
        let mut all = sidecars.filter_map(|slot| match &self.object(*slot).facts {
            Facts::Sidecar { selects: false, egress } => Some(egress.clone()),
            _ => None,
        });
        // Should there be several, Istio takes the oldest; what all of them name is never too
        // little.
        let first = all.next()?;
        let several: Option<Vec<_>> = std::iter::once(first).chain(all).collect();
        Some(several.map_or(Reach::All, Reach::Some))
    }

    fn set_reach(&mut self, namespace: &Arc<str>) {
        let sidecars = self.sidecars.get(namespace).into_iter().flatten();
        let selecting: Option<Vec<_>> = sidecars
            .filter_map(|slot| match &self.object(*slot).facts {
                Facts::Sidecar { selects: true, egress } => Some(egress.clone()),
                _ => None,
            })
            .collect();
        let general = self.general_reach(namespace).unwrap_or_else(|| self.default_reach.clone());
        let reach = match (general, selecting) {
            (Reach::Some(mut all), Some(selecting)) => {
                all.extend(selecting);
                Reach::Some(all)
            }
            _ => Reach::All,
        };
        if self.sidecars.contains_key(namespace) {
            self.reaches.insert(Arc::clone(namespace), reach);
        } else {
            self.reaches.remove(namespace);
        }
    }

    pub(crate) fn reach(&self, client: &str) -> &Reach {
        self.reaches.get(client).unwrap_or(&self.default_reach)
    }

    /// Whether clients in `client` see an object of `namespace`.
    pub(crate) fn is_visible(
        &self,
        kind: Kind,
        export: &Export,
        namespace: &str,
        client: &str,
    ) -> bool {
        if *export != Export::Default {
            return export.is_visible(client);
        }
        let default = match kind {
            Kind::Service => &self.default_exports.service,
            Kind::VirtualService => &self.default_exports.virtual_service,
            Kind::DestinationRule => &self.default_exports.destination_rule,
            _ => return true,
        };
        default.is_empty()
            || default.iter().any(|entry| match entry.as_str() {
                "*" => true,
                "." => namespace == client,
                name => name == client,
            })
    }
}
