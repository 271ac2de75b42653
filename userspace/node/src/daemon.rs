//! The daemon's life, in order.
//!
//! Start: settings, log, the admin address (so that a second daemon fails before it touches
//! anything), capabilities, the kernel, configuration, identities, data plane, enrolment, admin
//! API. From the moment the kernel programs are attached, connections of pods that an earlier
//! daemon captured are refused until they are enrolled again; pods that are enrolled come to
//! listeners that exist already. There is no step at which something is let through for want of a
//! later one.
//!
//! End: what is under way gets its time, then everything is dropped. The kernel keeps programs and
//! maps, and refuses.

use std::net::TcpListener as StdListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use fairlead_capture::{Capture, CaptureError};
use fairlead_config::model::LocalPod;
use fairlead_config::Subscription;
use fairlead_identity::IdentityStore;
use fairlead_proxy::transport::Transport;
use fairlead_proxy::{DataPlane, Deps};
use fairlead_telemetry::Telemetry;
use fairlead_types::{PodSockets, WorkloadId};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::admin::Server;
use crate::cni::{self, Answers};
use crate::configuration::Configuration;
use crate::discovery::Locator;
use crate::enrolment::{Carrier, Enrolment, Surroundings};
use crate::logging::Logging;
use crate::metrics::Sources;
use crate::pages::{Shown, open_pages, pages};
use crate::process::raise_descriptor_limit;
use crate::readiness::Readiness;
use crate::runtime::DataRuntime;
use crate::settings::{Settings, Source, UnknownNetns};
use crate::signals::{Asked, Signals};
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
        Ok(()) => {
            tracing::info!("ended; connections of enrolled pods are refused until a daemon runs");
        }
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
) -> anyhow::Result<()> {
    let admin = open::listener(settings.admin, "admin", "--admin")?;
    let metrics_listener = settings
        .metrics
        .map(|address| open::listener(address, "metrics", "--metrics-address"))
        .transpose()?;
    if let Source::Directory(dir) = &settings.source {
        ensure!(
            dir.is_dir(),
            "{} is not a directory: make it, or name another with --config-dir (an empty one is \
             fine: nothing is enrolled then)",
            dir.display()
        );
    }
    dropped.map_err(|error| anyhow!("start the daemon as root: {error}"))?;
    let features = open::kernel_features()?;
    let capture = open::capture(settings)?;

    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("starting the control runtime")?;
    let (supervisor, mut ends) = Supervisor::new();
    let configuration = open::configuration(settings, &supervisor)?;
    let telemetry = Telemetry::new();
    let (identity, authority) = open::identity(settings, configuration.snapshots())?;
    if let (Some(authority), Some(controller)) = (authority, configuration.controller()) {
        let bundles = controller.bundle();
        // What was kept counts before the first certificate does.
        let kept = bundles.borrow().clone();
        certificates::take_bundle(&identity, &authority, kept);
        control.spawn(certificates::follow_bundle(Arc::clone(&identity), authority, bundles));
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
    let enrolment = Enrolment::new(surroundings(
        settings,
        &configuration,
        &capture,
        &plane,
        &identity,
        &control,
        locator.clone(),
    ));
    let (table, passes) = (enrolment.table(), enrolment.passes());
    let held = Arc::clone(&identity);
    let sources = Sources {
        capture: Arc::clone(&capture),
        identity,
        data: Arc::clone(&plane),
        transport,
        report: configuration.report(),
        controller: configuration.controller().map(|c| c.status().clone()),
        pods: enrolment.table(),
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
    start_control(&control, &supervisor, admin, metrics_listener, &shown)?;
    let mut enroller = start_enrolment(&supervisor, enrolment, &configuration, &readiness)?;
    if let (Some(pods), Some(locator)) = (&settings.pods, locator) {
        let answers = Answers {
            locator,
            snapshots: configuration.snapshots().clone(),
            table,
            passes,
            refuse_unknown: settings.capture.unknown_netns == UnknownNetns::Refuse,
            identity: held,
            wake: enroller.wake(),
        };
        let server = {
            let _within = control.enter();
            cni::Server::bind(&pods.cni_socket)?
        };
        tracing::info!(socket = %pods.cni_socket.display(), "CNI plugins");
        enroller.plugins = Some(control.spawn(server.serve(answers)));
    }

    let outcome = control.block_on(live(
        signals,
        &mut ends,
        &configuration,
        &readiness,
        enroller,
        &plane,
        &data,
        settings.run.drain,
    ));
    telemetry.access_log().flush();
    drop(configuration);
    data.stop();
    control.shutdown_timeout(Duration::from_millis(500));
    outcome
}

fn surroundings(
    settings: &Settings,
    configuration: &Configuration,
    capture: &Arc<Capture>,
    plane: &Arc<DataPlane>,
    identity: &Arc<IdentityStore>,
    control: &Runtime,
    locator: Option<Arc<Locator>>,
) -> Surroundings {
    let report = configuration.report();
    let identity = Arc::clone(identity);
    let control = control.handle().clone();
    Surroundings {
        snapshots: configuration.snapshots().clone(),
        captor: Arc::<Capture>::clone(capture),
        carrier: Arc::<DataPlane>::clone(plane),
        retain: Box::new(move |ids| {
            // Certificates are asked for on the control runtime.
            let _within = control.enter();
            identity.retain(ids);
        }),
        complete: Box::new(move || report.lock().complete),
        refuse_unknown: settings.capture.unknown_netns == UnknownNetns::Refuse,
        locator,
    }
}

fn start_control(
    control: &Runtime,
    supervisor: &Supervisor,
    admin: StdListener,
    metrics: Option<StdListener>,
    shown: &Shown,
) -> anyhow::Result<()> {
    let (server, open) = {
        let _within = control.enter();
        (Server::from_std(admin)?, metrics.map(Server::from_std).transpose()?)
    };
    if let Some(open) = open {
        tracing::info!(address = %open.address(), "metrics and probes");
        supervisor.task(control.handle(), "metrics", open.for_anybody().serve(open_pages(shown)));
    }
    tracing::info!(address = %server.address(), "admin API");
    supervisor.task(control.handle(), "admin", server.serve(pages(shown)));
    let telemetry = Arc::clone(&shown.telemetry);
    supervisor.task(control.handle(), "sweep", async move {
        loop {
            tokio::time::sleep(SWEEP).await;
            telemetry.sweep();
        }
    });
    Ok(())
}

/// Enrolment, and what ends it when dropped.
struct Enroller {
    changed: Arc<SyncSender<()>>,
    plugins: Option<JoinHandle<()>>,
    _subscription: Subscription,
    thread: std::thread::JoinHandle<()>,
}

fn start_enrolment(
    supervisor: &Supervisor,
    enrolment: Enrolment,
    configuration: &Configuration,
    readiness: &Readiness,
) -> anyhow::Result<Enroller> {
    let (snapshots, report) = (configuration.snapshots(), configuration.report());
    // One waiting message stands for all changes: the thread looks at the newest snapshot.
    let (changed, told) = sync_channel(1);
    let changed = Arc::new(changed);
    let tell = SyncSender::clone(&changed);
    let subscription = snapshots.subscribe(move |_| {
        let _ = tell.try_send(());
    });
    let readiness = readiness.clone();
    let thread = supervisor
        .thread("enrolment", move || {
            // Without any configuration there is nobody to enrol, and to say so would be wrong.
            while report.lock().loads == 0 {
                if told.recv().is_err() {
                    return;
                }
            }
            enrolment.run(&told, || {
                readiness.started();
                tracing::info!("ready");
            });
        })
        .context("starting the enrolment thread")?;
    Ok(Enroller { changed, plugins: None, _subscription: subscription, thread })
}

impl Enroller {
    /// Has the thread look again, for as long as it lives.
    fn wake(&self) -> Arc<dyn Fn() + Send + Sync> {
        let changed = Arc::downgrade(&self.changed);
        Arc::new(move || {
            if let Some(changed) = changed.upgrade() {
                let _ = changed.try_send(());
            }
        })
    }

    /// No pod joins or leaves any more. Plugins wait for the next daemon's socket.
    fn stop(self) {
        let Self { changed, plugins, _subscription: subscription, thread } = self;
        if let Some(plugins) = plugins {
            plugins.abort();
        }
        drop((subscription, changed));
        let _ = thread.join();
    }
}

/// Until somebody or something ends it.
#[expect(clippy::too_many_arguments, reason = "everything that has to be ended, once")]
async fn live(
    mut signals: Signals,
    ends: &mut tokio::sync::mpsc::Receiver<supervise::Fatal>,
    configuration: &Configuration,
    readiness: &Readiness,
    enroller: Enroller,
    plane: &Arc<DataPlane>,
    data: &DataRuntime,
    deadline: Duration,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            fatal = ends.recv() => {
                let fatal = fatal.map_or_else(String::new, |f| format!("{}: {}", f.who, f.how));
                bail!("an essential part of the daemon has ended ({fatal}); it ends too, and what \
                       the kernel holds refuses connections until it is started again");
            }
            asked = signals.next() => match asked {
                Asked::End => break,
                Asked::Reread => {
                    tracing::info!("SIGHUP: reading the configuration again");
                    configuration.reread();
                }
            },
        }
    }
    tracing::info!(?deadline, connections = plane.connections().len(), "draining");
    readiness.draining();
    let stopping = tokio::task::spawn_blocking(move || enroller.stop());
    let plane = Arc::clone(plane);
    let drained = data.handle().spawn(async move { plane.drain(deadline).await });
    tokio::select! {
        cut = drained => match cut {
            Ok(0) => tracing::info!("drained"),
            Ok(cut) => tracing::warn!(cut, "the deadline has passed; connections were cut"),
            Err(error) => tracing::error!(%error, "draining failed"),
        },
        () = second(&mut signals) => tracing::warn!("second signal: ending at once"),
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), stopping).await;
    Ok(())
}

async fn second(signals: &mut Signals) {
    while signals.next().await != Asked::End {}
}
