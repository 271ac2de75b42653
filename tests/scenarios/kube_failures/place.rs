//! Where a server is: its pod has another address when its node was booted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fairlead_tests::kube::KubeMesh;

use super::NS;
use crate::kube;

/// How often a server that moves is looked for.
const LOOK: Duration = Duration::from_millis(300);

/// A server's pod, and its address.
#[derive(Debug)]
pub(super) struct Place {
    pod: &'static str,
    ip: Mutex<String>,
}

impl Place {
    pub(super) fn of(mesh: &KubeMesh, pod: &'static str) -> Result<Self> {
        Ok(Self { pod, ip: Mutex::new(mesh.pod_ip(NS, pod)?) })
    }

    pub(super) fn pod(&self) -> &'static str {
        self.pod
    }

    pub(super) fn ip(&self) -> String {
        self.ip.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is(&self, ip: &str) {
        ip.clone_into(&mut self.ip.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Looks for the pod on its node until told otherwise: as soon as it has an address, which is
    /// before kubelet reports it. Which ones it had.
    pub(super) fn follow(&self, mesh: &KubeMesh, node: usize, over: &AtomicBool) -> Vec<String> {
        let mut had = vec![self.ip()];
        loop {
            let last = over.load(Ordering::Acquire);
            // While the node is down there is nothing to look at.
            if let Ok(ip) = given(mesh, node, self.pod)
                && had.last() != Some(&ip)
            {
                self.is(&ip);
                had.push(ip);
            }
            if last {
                return had;
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn given(mesh: &KubeMesh, node: usize, pod: &str) -> Result<String> {
    let kept = kube::given(mesh, node)?;
    let found = kept.iter().find(|kept| kept["namespace"] == NS && kept["name"] == pod);
    let ip = found.and_then(|kept| kept["addresses"][0].as_str());
    Ok(ip.with_context(|| format!("{pod} has no address yet"))?.to_owned())
}
