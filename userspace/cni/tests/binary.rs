//! The binary as a container runtime and a DaemonSet run it.
#![expect(clippy::unwrap_used, reason = "a step that fails is the test's failure")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_fairlead-cni");

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fl-cni-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn make(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An API server that knows two pods, and answers over TLS.
fn api_server() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, tcp.unwrap()));
            loop {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    if stream.read_line(&mut head).unwrap_or(0) == 0 {
                        break;
                    }
                }
                if head.is_empty() {
                    break;
                }
                let path = head.split(' ').nth(1).unwrap();
                let authorized = head.to_ascii_lowercase().contains("authorization: bearer sesame");
                let (status, body) = match path {
                    _ if !authorized => ("401 Unauthorized", json!({})),
                    "/api/v1/namespaces/shop" => (
                        "200 OK",
                        json!({"kind": "Namespace", "metadata": {"name": "shop", "labels":
                               {"istio.io/dataplane-mode": "ambient"}}}),
                    ),
                    "/api/v1/namespaces/shop/pods/in" => (
                        "200 OK",
                        json!({"kind": "Pod", "metadata": {"name": "in", "namespace": "shop"},
                               "spec": {"containers": [{"name": "c"}]}}),
                    ),
                    "/api/v1/namespaces/shop/pods/out" => (
                        "200 OK",
                        json!({"kind": "Pod", "metadata": {"name": "out", "labels":
                               {"istio.io/dataplane-mode": "none"}}}),
                    ),
                    _ => ("404 Not Found", json!({})),
                };
                let body = body.to_string();
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    (format!("https://{address}"), certificate.pem())
}

fn plugin(command: &str, pod: &str, conf: &Value) -> Output {
    let mut child = Command::new(BINARY)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/none")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID=u"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn conf(dir: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "n", "type": "fairlead-cni",
        "socket": dir.join("cni.sock"), "api": dir.join("api.json"),
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.9/24"}]},
    })
}

#[test]
fn without_a_daemon_the_api_server_decides() {
    let dir = Dir::new("api");
    let (server, ca) = api_server();
    let access = |token: &str| {
        let access = json!({"servers": [server], "ca": ca, "token": token});
        fs::write(dir.0.join("api.json"), access.to_string()).unwrap();
    };
    let conf = conf(&dir.0);
    access("sesame");
    let started = Instant::now();
    let out = plugin("ADD", "out", &conf);
    assert!(out.status.success(), "{out:?}");
    let result: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(result, conf["prevResult"]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());

    // A pod to be enrolled waits for the daemon, which comes.
    let socket = dir.0.join("cni.sock");
    let daemon = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let listener = UnixListener::bind(socket).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (&stream).write_all(b"{\"result\":\"enrolled\"}\n").unwrap();
        line
    });
    let out = plugin("ADD", "in", &conf);
    assert!(out.status.success(), "{out:?}");
    let line: Value = serde_json::from_str(&daemon.join().unwrap()).unwrap();
    assert_eq!((&line["command"], &line["ips"]), (&json!("ADD"), &json!(["10.0.0.9"])));

    // It does not come.
    let started = Instant::now();
    let out = plugin("ADD", "in", &conf);
    let error: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(!out.status.success());
    assert_eq!((&error["code"], &error["cniVersion"]), (&json!(11), &json!("1.0.0")));
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

fn install(dir: &Dir, command: &str) -> Command {
    let mut install = Command::new(BINARY);
    install.env_remove("CNI_COMMAND").arg(command);
    install.arg("--cni-conf-dir").arg(dir.make("net.d"));
    install.arg("--cni-bin-dir").arg(dir.make("bin"));
    install.arg("--state-dir").arg(dir.0.join("state"));
    if command != "uninstall" {
        install.arg("--host-state-dir").arg(dir.0.join("state"));
        install.arg("--service-account").arg(dir.make("sa"));
        install.args(["--api-server", "https://127.0.0.1:1", "--exclude-namespace", "infra"]);
    }
    install
}

/// Ends the installer as a DaemonSet does.
struct Installer(Child);

impl Installer {
    fn terminate(&mut self) {
        // The shell has one of its own where nothing else brings it.
        let kill = format!("kill -TERM {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_installer_stays_and_leaves_no_trace() {
    let dir = Dir::new("install");
    let (net, bin, sa) = (dir.make("net.d"), dir.make("bin"), dir.make("sa"));
    let list =
        "{ \"cniVersion\": \"1.1.0\", \"name\": \"n\", \"plugins\": [ {\"type\":\"ptp\"} ] }";
    let file = net.join("10-n.conflist");
    fs::write(&file, list).unwrap();
    fs::write(bin.join("ptp"), "x").unwrap();
    fs::write(sa.join("token"), "one\n").unwrap();
    fs::write(sa.join("ca.crt"), "pem").unwrap();
    let is_in = |file: &Path| fs::read_to_string(file).unwrap_or_default().contains("fairlead-cni");

    let mut installer = Installer(install(&dir, "install").spawn().unwrap());
    until("entered", || is_in(&file));
    until("ready", || install(&dir, "check").output().unwrap().status.success());
    let entered = fs::read_to_string(&file).unwrap();
    let list_now: Value = serde_json::from_str(&entered).unwrap();
    assert_eq!(list_now["plugins"][1]["excludeNamespaces"], json!(["infra"]));

    // Rewritten by the owner of the network.
    fs::write(&file, list).unwrap();
    until("entered again", || is_in(&file));
    // Another network comes first.
    fs::write(net.join("05-m.conflist"), list).unwrap();
    until("the new one", || is_in(&net.join("05-m.conflist")) && !is_in(&file));
    assert_eq!(fs::read_to_string(&file).unwrap(), list);
    // The token is renewed, the binary lost.
    fs::write(sa.join("token"), "two").unwrap();
    let api = dir.0.join("state/api.json");
    until("the token", || fs::read_to_string(&api).unwrap_or_default().contains("two"));
    fs::remove_file(bin.join("fairlead-cni")).unwrap();
    until("the binary", || bin.join("fairlead-cni").exists());
    // What is installed runs.
    let version = Command::new(bin.join("fairlead-cni")).arg("--version").output().unwrap();
    assert!(version.status.success());

    installer.terminate();
    assert!(is_in(&net.join("05-m.conflist")), "the plugin outlives the pod that installed it");
    assert!(install(&dir, "check").output().unwrap().status.success());

    let out = install(&dir, "uninstall").output().unwrap();
    assert!(out.status.success(), "{out:?}");
    assert_eq!(fs::read_to_string(net.join("05-m.conflist")).unwrap(), list);
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&net), ["05-m.conflist", "10-n.conflist"]);
    assert_eq!(names(&bin), ["ptp"]);
    assert!(!dir.0.join("state").exists());
    assert!(install(&dir, "uninstall").output().unwrap().status.success(), "again is fine");
}
