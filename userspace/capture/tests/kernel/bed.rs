//! What the kernel tests share: a cgroup for the process, a pod with a neighbour, and the daemon's
//! half of the work.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fairlead_capture::{Capture, CaptureSettings, PodSpec, clean};
use fairlead_types::{ClientAddr, OriginalDst, PodSockets, WorkloadId};

use crate::app;

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The cgroup of this test process and its applications, made once and removed at a later start
/// (a process cannot remove the cgroup that it is in).
pub(crate) fn cgroup() -> &'static Path {
    static CGROUP: OnceLock<PathBuf> = OnceLock::new();
    CGROUP.get_or_init(|| {
        let root = fairlead_capture::cgroup2_root().expect("these tests need cgroup v2");
        remove_stale(&root);
        let dir = root.join(format!("fairlead-test-{}", std::process::id()));
        fs::create_dir(&dir).expect("these tests need root: cannot make a cgroup");
        fs::write(dir.join("cgroup.procs"), "0").expect("joining the cgroup");
        dir
    })
}

/// What test processes that were killed have left: their names end in their pid, or in that and a
/// number.
fn remove_stale(root: &Path) {
    let dead = |name: &str, prefix: &str| {
        let pid = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
    };
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let bpffs = Path::new("/sys/fs/bpf");
    for name in names(bpffs).iter().filter(|name| dead(name, "fairlead-test-")) {
        let _ = clean(&bpffs.join(name));
    }
    for name in names(Path::new("/run/netns")) {
        if ["fl-pod-", "fl-peer-", "fl-many-"].iter().any(|prefix| dead(&name, prefix)) {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
    for name in names(root).iter().filter(|name| dead(name, "fairlead-test-")) {
        let _ = fs::remove_dir(root.join(name));
    }
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs `ip` with words.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("running ip");
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// A network namespace, removed at the end.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn new(role: &str) -> Self {
        let name = format!("fl-{role}-{}", unique());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self { name }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A pod and a neighbour on one wire.
pub(crate) struct Wire {
    pub(crate) pod: Namespace,
    pub(crate) peer: Namespace,
}

pub(crate) const POD4: &str = "10.77.0.1";
pub(crate) const PEER4: &str = "10.77.0.2";
pub(crate) const POD6: &str = "fd77::1";
pub(crate) const PEER6: &str = "fd77::2";

impl Wire {
    pub(crate) fn new() -> Self {
        cgroup();
        let (pod, peer) = (Namespace::new("pod"), Namespace::new("peer"));
        ip(&format!("-n {} link add eth0 type veth peer eth0 netns {}", pod.name, peer.name));
        for (ns, v4, v6) in [(&pod, POD4, POD6), (&peer, PEER4, PEER6)] {
            ip(&format!("-n {} addr add {v4}/24 dev eth0", ns.name));
            ip(&format!("-n {} addr add {v6}/64 dev eth0 nodad", ns.name));
            ip(&format!("-n {} link set eth0 up", ns.name));
        }
        Self { pod, peer }
    }
}

impl Wire {
    /// A listener of this process in the neighbour's namespace.
    pub(crate) fn listen_in_peer(&self, port: u16) -> TcpListener {
        within(&self.peer, move || {
            let listener = TcpListener::bind(("0.0.0.0", port))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// Does something of this process in the pod's namespace.
    pub(crate) fn in_pod<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> T {
        within(&self.pod, f)
    }
}

/// On a thread of its own, which ends in that namespace.
fn within<T: Send + 'static>(
    ns: &Namespace,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> T {
    let path = ns.path();
    std::thread::spawn(move || {
        let ns = fs::File::open(path).expect("namespace");
        // SAFETY: an open namespace; only this thread moves.
        assert_eq!(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
        f().expect("in the namespace")
    })
    .join()
    .expect("the thread")
}

/// Runs the test `name` once more in a process of its own, and says false; true in that process.
pub(crate) fn isolated(name: &str) -> bool {
    isolated_by(Command::new(std::env::current_exe().expect("own path")), name)
}

/// The same in a network namespace of its own, which is the host's for that process.
pub(crate) fn isolated_host(name: &str) -> bool {
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let host = Namespace::new("peer");
    // Not `ip netns exec`: it hides the cgroups.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", host.path().display()));
    command.arg(std::env::current_exe().expect("own path"));
    isolated_by(command, name)
}

const VARIABLE: &str = "FAIRLEAD_CAPTURE_TEST_ISOLATED";

fn isolated_by(mut command: Command, name: &str) -> bool {
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let output = command
        .args(["--exact", name, "--nocapture"])
        .env(VARIABLE, "1")
        .output()
        .expect("running the test again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// Capture with pins of its own, removed at the end.
pub(crate) struct Node {
    pub(crate) settings: CaptureSettings,
    pub(crate) capture: Option<Capture>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut CaptureSettings)) -> Self {
        let mut settings = CaptureSettings::new(cgroup().into());
        settings.pin_dir = format!("/sys/fs/bpf/fairlead-test-{}", unique()).into();
        change(&mut settings);
        let mut node = Self { settings, capture: None };
        node.start();
        node
    }

    pub(crate) fn start(&mut self) {
        assert!(self.capture.is_none(), "the node runs");
        self.capture = Some(Capture::open(self.settings.clone()).expect("capture"));
    }

    /// What `kill -9` leaves: pins and nothing else.
    pub(crate) fn die(&mut self) {
        self.capture = None;
    }

    pub(crate) fn capture(&self) -> &Capture {
        self.capture.as_ref().expect("the node runs")
    }

    pub(crate) fn enroll(&self, pod: &Namespace) -> PodSockets {
        self.capture().enroll(&spec(pod)).expect("enrolment")
    }

    pub(crate) fn counter(&self, counter: fairlead_capture::Counter) -> u64 {
        self.capture().counter(counter).expect("counters")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(Ok(counters)) = self.capture.as_ref().map(Capture::counters)
        {
            eprintln!("counters: {:?}", counters.iter().filter(|c| c.1 > 0).collect::<Vec<_>>());
        }
        self.capture = None;
        if let Err(error) = clean(&self.settings.pin_dir) {
            eprintln!("cleaning up: {error}");
        }
    }
}

pub(crate) fn id(pod: &Namespace) -> WorkloadId {
    WorkloadId::new("test", &pod.name)
}

pub(crate) fn spec(pod: &Namespace) -> PodSpec {
    PodSpec::new(id(pod), pod.path())
}

pub(crate) fn addr(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// Accepts one connection from a non-blocking listener, or fails after [`PATIENCE`].
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    try_accept(listener, PATIENCE).expect("nothing was captured")
}

pub(crate) fn try_accept(
    listener: &TcpListener,
    patience: Duration,
) -> Option<(TcpStream, SocketAddr)> {
    let deadline = Instant::now() + patience;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).expect("blocking");
                stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
                return Some((stream, peer));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Accepts one captured outbound connection of a family and takes its destination.
pub(crate) fn take(pod: &PodSockets, v6: bool) -> (TcpStream, OriginalDst) {
    let (stream, peer) = accept(listener(&pod.outbound, v6));
    let dst = pod.port.take_original_dst(peer).expect("a flow");
    (stream, dst)
}

pub(crate) fn listener(listeners: &[TcpListener], v6: bool) -> &TcpListener {
    listeners
        .iter()
        .find(|listener| listener.local_addr().expect("bound").is_ipv6() == v6)
        .expect("a listener of the family")
}

/// Hands a connection of `client` to the application at `to`, as the daemon does.
pub(crate) fn deliver(
    pod: &PodSockets,
    client: SocketAddr,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = pod.port.delivery_socket(ClientAddr(client), to)?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    app::connect_fd(&stream, to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

pub(crate) fn is_v6(ip: &str) -> bool {
    ip.parse::<IpAddr>().expect("an address").is_ipv6()
}
