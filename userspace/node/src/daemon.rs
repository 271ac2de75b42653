//! The daemon's life, in order.
//!
//! Start: settings, log, the admin address (so that a second daemon fails before it touches
//! anything), capabilities, the kernel, configuration, identities, data plane, enrolment, admin
//! API. From the moment the kernel programs are attached, connections of pods that an earlier
//! daemon captured are refused until they are enrolled again; pods that are enrolled come to
//! listeners that exist already. There is no step at which something is let through for want of a
//! later one. A daemon that is started while another serves is its successor ([`crate::handover`]):
//! it takes pods over one by one, and addresses last.
//!
//! End: what is under way gets its time, then everything is dropped. The kernel keeps programs and
//! maps, and refuses, unless there is a successor ([`crate::life`]).

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use fairlead_capture::CaptureError;
use fairlead_config::model::LocalPod;
use fairlead_proxy::transport::Transport;
use fairlead_proxy::{DataPlane, Deps};
use fairlead_telemetry::Telemetry;
use fairlead_types::{PodSockets, WorkloadId};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::admin::Server;
use crate::calls::Calls;
use crate::cni::Assigned;
use crate::discovery::Locator;
use crate::enroller::Parts;
use crate::enrolment::{Carrier, Table};
use crate::handover::{self, Met, Successor};
use crate::instance::Instance;
use crate::life::{End, Life};
use crate::logging::Logging;
use crate::metrics::Sources;
use crate::open::Doors;
use crate::pages::{Shown, open_pages, pages};
use crate::process::raise_descriptor_limit;
use crate::readiness::Readiness;
use crate::runtime::DataRuntime;
use crate::settings::{Settings, Source};
use crate::signals::Signals;
use crate::supervise::Supervisor;
use crate::{certificates, logging, mesh, metrics, open, supervise};

/// How often idle metric series are looked for.
const SWEEP: Duration = Duration::from_secs(60);

impl Carrier for DataPlane {
    fn add_pod(&self, pod: Arc<LocalPod>, sockets: PodSockets) -> Result<(), String> {
        Self::add_pod(self, pod, sockets).map_err(|e| format!("registering its listeners: {e}"))
    }

    fn remove_pod(&self, id: &WorkloadId) {
        Self::remove_pod(self, id);
    }
}

/// Runs the daemon to its end. Why it cannot start, or which part that it cannot do without has
/// ended, is logged with what to do.
#[must_use]
pub fn run(settings: &Settings) -> ExitCode {
    let descriptors = raise_descriptor_limit();
    // Before any thread is started, that of the log included: capabilities belong to threads.
    let dropped = fairlead_capture::drop_capabilities(settings.pods.is_some());
    let log = match logging::start(&settings.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("fairlead-node: {error}");
            return ExitCode::FAILURE;
        }
    };
    supervise::log_panics();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = settings.node,
        source = ?settings.source,
        admin = %settings.admin,
        workers = settings.run.workers,
        descriptors,
        "fairlead-node is starting"
    );
    let outcome = run_logged(settings, &log, dropped, descriptors);
    match &outcome {
        Ok(End::HandedOver) => tracing::info!("ended; another daemon serves"),
        Ok(End::Stopped) => {
            tracing::info!("ended; connections of enrolled pods are refused until a daemon runs");
        }
        Ok(End::CalledOff) => tracing::info!("ended; the daemon that served before goes on"),
        Err(error) => tracing::error!("{error:#}"),
    }
    log.lines.flush();
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_logged(
    settings: &Settings,
    log: &Logging,
    dropped: Result<(), CaptureError>,
    descriptors: u64,
) -> anyhow::Result<End> {
    let met = match &settings.handover {
        Some(path) => Successor::meet(path)?,
        None => Met::Nobody,
    };
    let mut doors = match &met {
        Met::Nobody => Some(Doors::open(settings)?),
        Met::Vacant(_) => Some(Doors::take_over(settings)?),
        Met::Serving(_) => {
            tracing::info!("another daemon serves this node: taking over from it");
            None
        }
    };
    let alone = !matches!(met, Met::Serving(_));
    if let Source::Directory(dir) = &settings.source {
        ensure!(
            dir.is_dir(),
            "{} is not a directory: make it, or name another with --config-dir (an empty one is \
             fine: nothing is enrolled then)",
            dir.display()
        );
    }
    dropped.map_err(|error| {
        anyhow!(
            "start the daemon as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN (`fairlead-node --check` \
             says what this machine lacks): {error}"
        )
    })?;
    let features = open::kernel_features()?;
    let capture = open::capture(settings, !alone)?;

    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("starting the control runtime")?;
    let (supervisor, mut ends) = Supervisor::new();
    let assigned =
        settings.pods.as_ref().map(|pods| Arc::new(Assigned::kept_beside(&pods.cni_socket)));
    let configuration = open::configuration(settings, assigned.as_ref(), &supervisor)?;
    let telemetry = Telemetry::new();
    let (identity, authority) = open::identity(settings, configuration.snapshots())?;
    if let (Some(authority), Some(controller)) = (authority, configuration.controller()) {
        let bundles = controller.bundle();
        // What was kept counts before the first certificate does.
        let kept = bundles.borrow().clone();
        certificates::take_bundle(&identity, &authority, kept);
        let following = certificates::follow_bundle(Arc::clone(&identity), authority, bundles);
        supervisor.task_that_may_end(control.handle(), "trust", following);
    }
    let (own_problems, _following) = mesh::follow(settings, &configuration, &telemetry, &identity);
    let data = DataRuntime::start(settings.run.workers, &supervisor)?;
    let (plane, transport) = {
        let _within = data.handle().enter();
        let transport = Transport::new(Arc::clone(&identity));
        let plane = DataPlane::new(Deps {
            snapshots: configuration.snapshots().clone(),
            transport: Arc::clone(&transport),
            telemetry: Arc::clone(&telemetry),
            settings: open::connection_bounds(settings.run.max_connections, descriptors),
        });
        if let Some(controller) = configuration.controller() {
            plane.ask_about_unknown(controller.lookups());
        }
        (Arc::new(plane), transport)
    };

    let readiness = Readiness::default();
    let locator = settings.pods.as_ref().map(|pods| {
        let trusted = matches!(settings.source, Source::Directory(_));
        Arc::new(Locator::new(pods.proc.clone(), capture.host_netns(), trusted))
    });
    let table = Table::default();
    let sources = Sources {
        capture: Arc::clone(&capture),
        identity: Arc::clone(&identity),
        data: Arc::clone(&plane),
        transport,
        report: configuration.report(),
        controller: configuration.controller().map(|c| c.status().clone()),
        pods: Arc::clone(&table),
    };
    metrics::register(telemetry.registry(), sources.clone());
    log.lines.export(telemetry.registry());
    let shown = Shown {
        readiness: readiness.clone(),
        telemetry: Arc::clone(&telemetry),
        snapshots: configuration.snapshots().clone(),
        level: log.level.clone(),
        sources,
        features,
        own_problems,
    };
    let signals = control.block_on(async { Signals::new() }).context("listening to signals")?;
    if let Some(path) = &settings.instance {
        let instance = {
            let _within = control.enter();
            Instance::bind(path)?
        };
        supervisor.task(control.handle(), "instance", instance.serve(shown.clone()));
    }
    start_sweep(&control, &supervisor, &telemetry);
    let mut tasks = match doors.take() {
        Some(doors) => start_control(&control, &supervisor, doors, &shown)?,
        None => Vec::new(),
    };
    let parts = Parts {
        settings: settings.clone(),
        capture,
        plane,
        identity,
        control: control.handle().clone(),
        locator,
        assigned,
        snapshots: configuration.snapshots().clone(),
        report: configuration.report(),
        table,
        supervisor: supervisor.clone(),
    };
    let (tell, taken) = oneshot::channel();
    let ready = readiness.clone();
    let mut enroller = parts.start(met, move || {
        if alone {
            ready.started();
            tracing::info!("ready");
        }
        let _ = tell.send(());
    })?;
    let reread = || configuration.reread();
    let mut calls = Calls { signals, ends: &mut ends, reread: &reread };
    if !alone {
        let Some(taken) = control.block_on(calls.during(taken))? else {
            // Until this process ends it may be taking a pod, or wait for a certificate: the line ends
            // with the process, and what is waited for goes on as long.
            std::mem::forget(control);
            return Ok(End::CalledOff);
        };
        taken.context("taking over from the daemon before has ended")?;
        let doors = Doors::take_over(settings)?;
        tasks = start_control(&control, &supervisor, doors, &shown)?;
    }
    parts.serve_plugins(&mut enroller)?;
    let server = match &settings.handover {
        Some(path) => {
            let _within = control.enter();
            Some(handover::Server::bind(path)?)
        }
        None => None,
    };
    if !alone {
        readiness.started();
        tracing::info!("ready");
    }
    let life = Life {
        parts,
        configuration: &configuration,
        readiness,
        data: &data,
        doors: tasks,
        server,
        enroller: Some(enroller),
        freezing: None,
    };
    let outcome = control.block_on(life.live(calls));
    telemetry.access_log().flush();
    drop(configuration);
    data.stop();
    control.shutdown_timeout(Duration::from_millis(500));
    outcome
}

/// Opens the admin API and, where wanted, metrics: the tasks that hold the addresses.
fn start_control(
    control: &Runtime,
    supervisor: &Supervisor,
    doors: Doors,
    shown: &Shown,
) -> anyhow::Result<Vec<AbortHandle>> {
    let (server, open) = {
        let _within = control.enter();
        (Server::from_std(doors.admin)?, doors.metrics.map(Server::from_std).transpose()?)
    };
    let mut tasks = Vec::new();
    if let Some(open) = open {
        tracing::info!(address = %open.address(), "metrics and probes");
        let pages = open_pages(shown);
        tasks.push(supervisor.task(control.handle(), "metrics", open.for_anybody().serve(pages)));
    }
    tracing::info!(address = %server.address(), "admin API");
    tasks.push(supervisor.task(control.handle(), "admin", server.serve(pages(shown))));
    Ok(tasks)
}

fn start_sweep(control: &Runtime, supervisor: &Supervisor, telemetry: &Arc<Telemetry>) {
    let telemetry = Arc::clone(telemetry);
    supervisor.task(control.handle(), "sweep", async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            telemetry.sweep();
        }
    });
}
