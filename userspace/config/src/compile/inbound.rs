//! The inbound side of local enrolled pods: ports, mTLS modes, authorization.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_api::Kind;
use fairlead_types::{AppProtocol, WorkloadId};

use super::{Compiler, Dirty, Origin, authz, peer_authentication};
use crate::model::{Inbound, InboundPort};

impl Compiler {
    pub(super) fn stage_security(&mut self, dirty: &mut Dirty) {
        if dirty.authz {
            let mut problems = Vec::new();
            let policies: Vec<_> = self.security.authorization.values().cloned().collect();
            let closed = self.security.closed_requests();
            self.security.authz_index = authz::compile(
                &policies,
                &closed,
                &self.mesh,
                &self.security.authz_index,
                &mut problems,
            );
            self.set_problems(Origin::Authz, problems, dirty);
        }
        if dirty.peer_authentication {
            let mut problems = Vec::new();
            let policies: Vec<_> = self.security.peer.values().cloned().collect();
            let closed: Vec<_> = self.security.closed(Kind::PeerAuthentication).cloned().collect();
            self.security.peer_index =
                peer_authentication::compile(&policies, &closed, &self.mesh, &mut problems);
            self.set_problems(Origin::PeerAuthentication, problems, dirty);
        }
        if dirty.authz || dirty.peer_authentication {
            dirty.inbound.extend(self.snapshot.local.keys().cloned());
        }
    }

    pub(super) fn stage_inbound(&mut self, dirty: &mut Dirty) {
        for id in std::mem::take(&mut dirty.inbound) {
            let compiled = self.compile_inbound(&id);
            let before = self.snapshot.inbound.get(&id);
            match compiled {
                Some(new) if before.is_some_and(|before| **before == new) => {}
                Some(new) => {
                    self.snapshot.inbound.insert(id, Arc::new(new));
                    self.changed = true;
                }
                None => self.changed |= self.snapshot.inbound.remove(&id).is_some(),
            }
        }
    }

    fn compile_inbound(&self, id: &WorkloadId) -> Option<Inbound> {
        let local = self.snapshot.local.get(id).filter(|local| local.workload.enrolled)?;
        let workload = &local.workload;
        let peer = self.security.peer_index.for_workload(workload);
        let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
        for target in self.snapshot.targets.get(id).into_iter().flat_map(|ports| ports.iter()) {
            ports.entry(target.number).or_insert_with(|| InboundPort {
                number: target.number,
                protocol: target.protocol,
                service: Some(Arc::clone(&target.service)),
                mtls: None,
            });
        }
        for (number, mode) in &peer.ports {
            let port = ports.entry(*number).or_insert_with(|| InboundPort {
                number: *number,
                protocol: AppProtocol::Detect,
                service: None,
                mtls: None,
            });
            port.mtls = Some(*mode);
        }
        Some(Inbound {
            workload: Arc::clone(workload),
            mtls: peer.mode,
            ports: ports.into_values().collect(),
            authz: self.security.authz_index.for_workload(workload),
        })
    }
}
