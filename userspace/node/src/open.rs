//! What the daemon opens before it starts: the kernel and the certificate authority. Each failure
//! says the next step.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use fairlead_capture::{Capture, CaptureSettings, Feature, UnknownNetns as CaptureUnknown};
use fairlead_config::SnapshotHandle;
use fairlead_identity::{CaClient, CaDirectory, IdentityStore, KeptCertificates, StoreSettings};

use crate::certificates::RemoteCa;
use crate::cni::Assigned;
use crate::configuration::Configuration;
use crate::rpc::Service;
use crate::settings::{Authority, Settings, Source, UnknownNetns};
use crate::supervise::Supervisor;

/// Descriptors of a carried connection: that of the client and that of the server.
const DESCRIPTORS_EACH: usize = 2;
/// Descriptors for everything else: listeners, kernel objects, sessions, files, the admin API.
const RESERVED: usize = 1024;

/// Looks at what the kernel offers, and says it.
pub(crate) fn kernel_features() -> anyhow::Result<Arc<[Feature]>> {
    let features = fairlead_capture::features();
    let mut missing = Vec::new();
    for Feature { name, present, required, without } in &features {
        if *present {
            tracing::info!(feature = name, "kernel feature: present");
        } else if *required {
            tracing::error!(feature = name, without, "kernel feature: missing");
            missing.push(*name);
        } else {
            tracing::warn!(feature = name, without, "kernel feature: missing, going on without");
        }
    }
    if !missing.is_empty() {
        bail!(
            "the kernel lacks, or does not let this user have: {}. Fairlead needs Linux 6.1 or \
             newer and root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)",
            missing.join(", ")
        );
    }
    Ok(features.into())
}

/// How many connections can be carried. One that could not get its descriptors would fail in the
/// middle; beyond the bound it is refused, and that is told.
pub(crate) fn connection_bounds(wanted: usize, descriptors: u64) -> fairlead_proxy::Settings {
    let possible = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(RESERVED)
        / DESCRIPTORS_EACH;
    let connections = wanted.min(possible.max(1));
    if connections < wanted {
        tracing::warn!(
            descriptors,
            connections,
            wanted,
            "the limit of descriptors allows fewer connections than wanted: raise it (ulimit -Hn, \
             LimitNOFILE) before the daemon starts"
        );
    }
    let usual = fairlead_proxy::Settings::default();
    let connections_per_pod = usual.connections_per_pod.min(connections);
    fairlead_proxy::Settings { connections, connections_per_pod }
}

/// Opens capture; `beside` a daemon that is about to hand over.
pub(crate) fn capture(settings: &Settings, beside: bool) -> anyhow::Result<Arc<Capture>> {
    let cgroup_root = match &settings.capture.cgroup_root {
        Some(root) => root.clone(),
        None => fairlead_capture::cgroup2_root().context(
            "no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup, or name one \
             with --cgroup-root",
        )?,
    };
    let open = if beside { Capture::open_beside } else { Capture::open };
    let capture = open(CaptureSettings {
        pin_dir: settings.capture.pin_dir.clone(),
        pods_cgroup: settings.capture.pods_cgroup.clone(),
        unknown_netns: match settings.capture.unknown_netns {
            UnknownNetns::Pass => CaptureUnknown::Pass,
            UnknownNetns::Refuse => CaptureUnknown::Refuse,
        },
        max_flows: settings.capture.max_flows,
        diagnostics: settings.capture.kernel_log,
        ..CaptureSettings::new(cgroup_root)
    })
    // Its text has its causes already.
    .map_err(|error| anyhow!("capture cannot be set up: {error}"))?;
    Ok(Arc::new(capture))
}

/// The certificates, and the authority if it is a service.
pub(crate) type Identities = (Arc<IdentityStore>, Option<Arc<RemoteCa>>);

pub(crate) fn identity(
    settings: &Settings,
    snapshots: &SnapshotHandle,
) -> anyhow::Result<Identities> {
    let mesh = Arc::clone(&snapshots.load().mesh);
    let store = StoreSettings {
        ttl: settings.identity.ttl,
        trust_domain_aliases: mesh.trust_domain_aliases.to_vec(),
    };
    match &settings.identity.authority {
        Authority::Directory(dir) => {
            let ca = CaDirectory::open(dir, &mesh.trust_domain).with_context(|| {
                format!(
                    "the certificate authority in {} cannot be used; name another directory with \
                     --ca-dir, or mend this one",
                    dir.display()
                )
            })?;
            Ok((IdentityStore::new(Arc::new(ca), store), None))
        }
        Authority::Remote { service, foreign, kept } => {
            let ca = Arc::new(RemoteCa::new(Service::new(service.clone()), *foreign));
            let client: Arc<dyn CaClient> = Arc::<RemoteCa>::clone(&ca);
            let identities = match kept {
                None => IdentityStore::new(client, store),
                Some(dir) => {
                    let kept = KeptCertificates::open(dir).with_context(|| {
                        format!(
                            "certificates cannot be kept in {}; name another directory with \
                             --state-dir, or do without: --keep-certificates=false",
                            dir.display()
                        )
                    })?;
                    IdentityStore::with_kept(client, store, kept)
                }
            };
            Ok((identities, Some(ca)))
        }
    }
}

/// The configuration, as the settings say where it comes from.
pub(crate) fn configuration(
    settings: &Settings,
    assigned: Option<&Arc<Assigned>>,
    supervisor: &Supervisor,
) -> anyhow::Result<Configuration> {
    match &settings.source {
        Source::Directory(dir) => Configuration::start(dir, &settings.node, supervisor),
        Source::Controller(controller) => {
            Configuration::follow(controller, &settings.node, assigned, supervisor)
        }
    }
}

/// Where the daemon answers over TCP.
pub(crate) struct Doors {
    pub(crate) admin: StdListener,
    pub(crate) metrics: Option<StdListener>,
}

/// How long the addresses of a daemon that has handed over may take to be free.
const DOORS_PATIENCE: Duration = Duration::from_secs(5);
const DOORS_RETRY: Duration = Duration::from_millis(10);

impl Doors {
    /// Binds the addresses of the settings.
    pub(crate) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let admin = listener(settings.admin, "admin", "--admin")?;
        let metrics = settings
            .metrics
            .map(|address| listener(address, "metrics", "--metrics-address"))
            .transpose()?;
        Ok(Self { admin, metrics })
    }

    /// The same when another daemon is letting go of them.
    pub(crate) fn take_over(settings: &Settings) -> anyhow::Result<Self> {
        let until = Instant::now() + DOORS_PATIENCE;
        loop {
            match Self::open(settings) {
                Err(_) if Instant::now() < until => std::thread::sleep(DOORS_RETRY),
                doors => return doors,
            }
        }
    }
}

/// The listener of an address that the settings name.
pub(crate) fn listener(
    address: SocketAddr,
    what: &str,
    setting: &str,
) -> anyhow::Result<StdListener> {
    let listener = StdListener::bind(address).with_context(|| {
        format!(
            "the {what} address {address} cannot be had: is another fairlead-node running on this \
             host? Choose another with {setting}"
        )
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
