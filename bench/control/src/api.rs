//! etcd and a kube-apiserver of their own, on loopback.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_cluster::binaries::Binaries;
use http::Request;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

/// How long the API server may take to start.
const START: Duration = Duration::from_secs(120);

/// The processes, ended with it, and a client.
pub(crate) struct Api {
    pub(crate) client: Client,
    dir: PathBuf,
    kubectl: PathBuf,
    children: Vec<Child>,
}

impl Drop for Api {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Api {
    pub(crate) async fn start(tell: &dyn Fn(&str)) -> Result<Self> {
        // Programs that somebody has built by hand, or the cluster tool's.
        let dir = match std::env::var_os("FAIRLEAD_BENCH_KUBERNETES") {
            Some(dir) => PathBuf::from(dir),
            None => Binaries::ensure(tell)?.dir().to_owned(),
        };
        let program = |name: &str| dir.join(name);
        let work = std::env::temp_dir().join(format!("fl-bench-{}", std::process::id()));
        fs::create_dir_all(work.join("certs"))?;
        let [client, peer, secure] = ports()?;
        let mut api = Self {
            client: Client::try_from(kube::Config::new("http://127.0.0.1:1".parse()?))?,
            kubectl: program("kubectl"),
            children: Vec::new(),
            dir: work.clone(),
        };
        let etcd = format!("http://127.0.0.1:{client}");
        let peers = format!("http://127.0.0.1:{peer}");
        api.spawn(
            "etcd",
            Command::new(program("etcd"))
                .arg("--data-dir")
                .arg(work.join("etcd"))
                .args(["--listen-client-urls", &etcd, "--advertise-client-urls", &etcd])
                .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
                .args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync"]),
        )?;
        fs::write(work.join("tokens.csv"), "bench,bench,bench,\"system:masters\"\n")?;
        let key = work.join("key.pem");
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048")
            .stderr(Stdio::null())
            .status()
            .context("openssl")?;
        ensure!(made.success(), "openssl made no key");
        api.spawn(
            "kube-apiserver",
            Command::new(program("kube-apiserver"))
                .args(["--etcd-servers", &etcd, "--bind-address", "127.0.0.1"])
                .args(["--secure-port", &secure.to_string(), "--authorization-mode", "RBAC"])
                .arg("--cert-dir")
                .arg(work.join("certs"))
                .arg("--token-auth-file")
                .arg(work.join("tokens.csv"))
                .arg("--service-account-key-file")
                .arg(&key)
                .arg("--service-account-signing-key-file")
                .arg(&key)
                .args(["--service-account-issuer", "https://bench"])
                .args(["--service-cluster-ip-range", "10.96.0.0/12"])
                // Nobody makes service accounts' tokens, limits or quotas here.
                .args(["--disable-admission-plugins", "ServiceAccount"]),
        )?;
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
             clusters: [{{name: bench, cluster: {{server: \"https://127.0.0.1:{secure}\", \
             insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: bench, user: {{token: bench}}}}]\n\
             contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]\n"
        );
        fs::write(api.kubeconfig(), kubeconfig)?;
        let file = Kubeconfig::read_from(api.kubeconfig())?;
        let config =
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        api.client = Client::try_from(config)?;
        let deadline = Instant::now() + START;
        loop {
            let ready = api.client.request_text(Request::get("/readyz").body(Vec::new())?).await;
            if ready.is_ok_and(|text| text == "ok") {
                return Ok(api);
            }
            if Instant::now() > deadline {
                bail!("the API server is not ready; see {}", work.display());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn spawn(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let log = fs::File::create(self.dir.join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| name.to_owned())?;
        self.children.push(child);
        Ok(())
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn apply_crds(&self, dir: &Path) -> Result<()> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(["apply", "--server-side"]);
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            let is_crd = path.file_name().is_some_and(|name| name != "kustomization.yaml");
            if is_crd {
                command.arg("-f").arg(path);
            }
        }
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Sends an object.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let kind =
            if method == "PATCH" { "application/json-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(serde_json::to_vec(body)?)?;
        self.client.request(request).await.with_context(|| format!("{method} {path}"))
    }
}

fn ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// Ports that are free now.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    ports()
}
