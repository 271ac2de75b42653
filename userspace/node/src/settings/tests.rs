use clap::{CommandFactory, Parser};

use super::*;

fn options(arguments: &[&str]) -> Options {
    Options::try_parse_from(std::iter::once(&"fairlead-node").chain(arguments)).unwrap()
}

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("fairlead-{name}-{}.yaml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn as_str(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn defaults() {
    let settings = Settings::resolve(Options::default()).unwrap();
    assert!(!settings.node.is_empty());
    assert_eq!(settings.source, Source::Directory("/etc/fairlead/config".into()));
    assert_eq!(settings.identity.authority, Authority::Directory("/var/lib/fairlead/ca".into()));
    assert_eq!(settings.metrics, None);
    assert_eq!(settings.identity.ttl, Duration::from_secs(3600));
    assert_eq!(settings.capture.unknown_netns, UnknownNetns::Pass);
    assert_eq!(settings.admin, "127.0.0.1:15000".parse().unwrap());
    let run = RunSettings {
        workers: 1,
        drain: Duration::from_secs(30),
        linger: Duration::ZERO,
        max_connections: 250_000,
    };
    assert_eq!(settings.run, run);
    assert!(!settings.capture.kernel_log);
    assert_eq!(settings.log.access_log_file, None);
}

#[test]
fn every_flag_reaches_its_setting() {
    let settings = Settings::resolve(options(&[
        "--node=a",
        "--config-dir=/c",
        "--admin=[::1]:9",
        "--metrics-address=0.0.0.0:10",
        "--ca-dir=/ca",
        "--cert-ttl=20s",
        "--pin-dir=/sys/fs/bpf/a",
        "--cgroup-root=/sys/fs/cgroup/a",
        "--unknown-netns=refuse",
        "--max-flows=100",
        "--kernel-log",
        "--workers=2",
        "--drain=1m30s",
        "--linger=2m",
        "--handover-socket=/run/h.sock",
        "--instance-socket=/run/i.sock",
        "--max-connections=9",
        "--log-level=debug",
        "--log-format=json",
        "--access-log-file=/dev/stdout",
    ]))
    .unwrap();
    let expected = Settings {
        node: "a".into(),
        source: Source::Directory("/c".into()),
        identity: IdentitySettings {
            authority: Authority::Directory("/ca".into()),
            ttl: Duration::from_secs(20),
        },
        pods: None,
        capture: CaptureSettings {
            pin_dir: "/sys/fs/bpf/a".into(),
            cgroup_root: Some("/sys/fs/cgroup/a".into()),
            pods_cgroup: None,
            unknown_netns: UnknownNetns::Refuse,
            max_flows: 100,
            kernel_log: true,
        },
        admin: "[::1]:9".parse().unwrap(),
        metrics: Some("0.0.0.0:10".parse().unwrap()),
        handover: Some("/run/h.sock".into()),
        instance: Some("/run/i.sock".into()),
        run: RunSettings {
            workers: 2,
            drain: Duration::from_secs(90),
            linger: Duration::from_secs(120),
            max_connections: 9,
        },
        log: LogSettings {
            level: "debug".into(),
            format: LogFormat::Json,
            access_log_file: Some("/dev/stdout".into()),
        },
    };
    assert_eq!(settings, expected);
}

#[test]
fn a_controller_takes_the_place_of_directories() {
    let settings = Settings::resolve(options(&[
        "--node-name=a",
        "--controller=https://fairlead.istio-system.svc:15012",
        "--ca-root=/root.pem",
        "--token-file=/token",
        "--state-dir=/state",
        "--cluster-id=one",
        "--unanswered=pass",
        "--proc=/host/proc",
    ]))
    .unwrap();
    let pods = settings.pods.as_ref().unwrap();
    assert_eq!(pods.cni_socket, std::path::Path::new("/run/fairlead/cni.sock"));
    assert_eq!(pods.proc, std::path::Path::new("/host/proc"));
    assert_eq!(settings.handover.as_deref(), Some("/run/fairlead/handover.sock".as_ref()));
    let service = ServiceSettings {
        address: "fairlead.istio-system.svc:15012".parse().unwrap(),
        ca_root: "/root.pem".into(),
        token_file: "/token".into(),
    };
    assert_eq!(
        settings.source,
        Source::Controller(ControllerSettings {
            service: service.clone(),
            state_dir: "/state".into(),
            cluster_id: "one".into(),
            root_namespace: "istio-system".into(),
            unanswered: Unanswered::Pass,
        })
    );
    let kept = Some("/state/identities".into());
    let own = Authority::Remote { service: service.clone(), foreign: false, kept };
    assert_eq!(settings.identity.authority, own);

    let other = Settings::resolve(options(&[
        "--controller=a:1",
        "--ca-address=https://istio-csr:443",
        "--keep-certificates=false",
    ]))
    .unwrap();
    let Authority::Remote { service, foreign: true, kept: None } = other.identity.authority else {
        panic!("{:?}", other.identity)
    };
    assert_eq!(service.address.to_string(), "https://istio-csr:443");
    // A directory of certificates beside a controller.
    let mixed = Settings::resolve(options(&["--controller=a:1", "--ca-dir=/ca"])).unwrap();
    assert_eq!(mixed.identity.authority, Authority::Directory("/ca".into()));
}

const FILE: &str = "
node: from-file
configDir: /c
admin: 127.0.0.1:7
identity: {caDir: /ca, certTtl: 20s}
capture:
  pinDir: /sys/fs/bpf/a
  cgroupRoot: /sys/fs/cgroup/a
  unknownNetns: refuse
  maxFlows: 100
  kernelLog: true
run: {workers: 2, drain: 1m30s, linger: 2m, maxConnections: 9}
log: {level: debug, format: json, accessLogFile: /dev/stdout}
";

#[test]
fn a_file_says_the_same_and_flags_come_before_it() {
    let file = TempFile::new("settings", FILE);
    let from_file = Settings::resolve(options(&["--settings", file.as_str()])).unwrap();
    assert_eq!(from_file.node, "from-file");
    assert_eq!(from_file.identity.ttl, Duration::from_secs(20));
    assert_eq!(from_file.capture.unknown_netns, UnknownNetns::Refuse);
    assert_eq!(from_file.run.workers, 2);
    assert_eq!(from_file.log.format, LogFormat::Json);
    let flags = ["--settings", file.as_str(), "--node=flag", "--workers=3", "--cert-ttl=1h"];
    let both = Settings::resolve(options(&flags)).unwrap();
    assert_eq!(both.node, "flag");
    assert_eq!((both.run.workers, both.run.drain), (3, Duration::from_secs(90)));
    assert_eq!(both.run.linger, Duration::from_secs(120));
    assert_eq!((both.run.max_connections, both.capture.max_flows), (9, 100));
    assert!(both.capture.kernel_log);
    assert_eq!(both.identity.ttl, Duration::from_secs(3600));
    assert_eq!(both.admin, from_file.admin);
}

#[test]
fn what_is_wrong_is_named() {
    for (arguments, part) in [
        (&["--admin=0.0.0.0:15000"][..], "loopback"),
        (&["--admin=[fd00::1]:15000"], "--admin"),
        (&["--workers=0"], "1 to 256"),
        (&["--cert-ttl=1s"], "--cert-ttl"),
        (&["--max-connections=0"], "--max-connections"),
        (&["--max-flows=0"], "--max-flows"),
        (&["--drain=2h"], "--drain"),
        (&["--linger=2h"], "--linger"),
        (&["--node="], "--node"),
        (&["--controller=a:1", "--config-dir=/c"], "one of the two"),
        (&["--ca-address=a:1", "--ca-dir=/c"], "one of the two"),
        (&["--controller=a:1", "--cluster-id="], "--cluster-id"),
        (&["--metrics-address=127.0.0.1:15000"], "--metrics-address"),
        (&["--settings=/nowhere/at/all"], "/nowhere/at/all"),
    ] {
        let error = Settings::resolve(options(arguments)).unwrap_err().to_string();
        assert!(error.contains(part), "{arguments:?}: {error}");
    }
    for text in ["noed: a\n", "run: {worker: 1}\n", "run: [1]\n", "identity: {certTtl: soon}\n"] {
        let file = TempFile::new("wrong", text);
        let error = Options::read(&file.0).unwrap_err();
        assert!(matches!(error, SettingsError::File { .. }), "{text:?}");
    }
    for bad in [
        "--cert-ttl=soon",
        "--config-dir=",
        "--unknown-netns=ignore",
        "--admin=localhost",
        "--nod=a",
    ] {
        assert!(Options::try_parse_from(["fairlead-node", bad]).is_err(), "{bad}");
    }
}

#[test]
fn the_help_is_consistent_and_has_examples() {
    Options::command().debug_assert();
    let help = Options::command().render_long_help().to_string();
    for part in ["Examples:", "--cgroup-root", "FAIRLEAD_NODE", "SIGTERM"] {
        assert!(help.contains(part), "{part} is missing in --help");
    }
}
