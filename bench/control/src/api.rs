//! etcd and a kube-apiserver of their own, on loopback.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fairlead_cluster::binaries::Binaries;
use http::Method;
use serde_json::Value;

use crate::client::{Client, METADATA_ONLY, WHOLE};

/// The token of everybody here.
const TOKEN: &str = "bench";
/// How long the API server may take to start.
const START: Duration = Duration::from_secs(120);

/// The processes, ended with it, and a client.
pub(crate) struct Api {
    pub(crate) client: Client,
    kubectl: PathBuf,
    started: Started,
}

/// The processes and their directory.
struct Started {
    children: Vec<Child>,
    dir: PathBuf,
}

impl Started {
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

    /// The end of what a process said.
    fn said(&self, name: &str) -> String {
        let text = fs::read(self.dir.join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Api {
    /// Starts them. They run at `nice`: in a cluster they have a machine of their own, and must
    /// not keep the controller from its part of this one.
    pub(crate) async fn start(nice: u8, tell: &dyn Fn(&str)) -> Result<Self> {
        // Programs that somebody has built by hand, or the cluster tool's.
        let dir = match std::env::var_os("FAIRLEAD_BENCH_KUBERNETES") {
            Some(dir) => PathBuf::from(dir),
            None => Binaries::ensure(tell)?.dir().to_owned(),
        };
        let program = |name: &str| dir.join(name);
        let work = std::env::temp_dir().join(format!("fl-bench-{}", std::process::id()));
        fs::create_dir_all(work.join("certs"))?;
        let [client, peer, secure] = ports()?;
        let mut started = Started { children: Vec::new(), dir: work.clone() };
        let nice = |name: &str| {
            let mut command = Command::new("nice");
            command.args(["-n", &nice.to_string()]).arg(program(name));
            command
        };
        let etcd = format!("http://127.0.0.1:{client}");
        let peers = format!("http://127.0.0.1:{peer}");
        started.spawn(
            "etcd",
            nice("etcd")
                .arg("--data-dir")
                .arg(work.join("etcd"))
                .args(["--listen-client-urls", &etcd, "--advertise-client-urls", &etcd])
                .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
                .args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync"]),
        )?;
        fs::write(work.join("tokens.csv"), format!("{TOKEN},bench,bench,\"system:masters\"\n"))?;
        let key = work.join("key.pem");
        let made = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(&key)
            .arg("2048")
            .stderr(Stdio::null())
            .status()
            .context("openssl")?;
        ensure!(made.success(), "openssl made no key");
        started.spawn(
            "kube-apiserver",
            nice("kube-apiserver")
                // It shares two processors with what is measured: memory is cheaper here.
                .env("GOGC", "400")
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
             users: [{{name: bench, user: {{token: {TOKEN}}}}}]\n\
             contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]\n"
        );
        fs::write(work.join("kubeconfig"), kubeconfig)?;
        let certificates = work.join("certs/apiserver.crt");
        let deadline = Instant::now() + START;
        loop {
            let reason = match ready(secure, &certificates).await {
                Ok(client) => return Ok(Self { client, kubectl: program("kubectl"), started }),
                Err(reason) => reason,
            };
            if Instant::now() > deadline {
                return Err(reason.context(format!(
                    "the API server is not ready: {}",
                    started.said("kube-apiserver")
                )));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.started.dir
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

    /// Sends an object; gets it as it is stored.
    pub(crate) async fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let answer = self.write(method, path, WHOLE, body).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Sends an object.
    pub(crate) async fn put(&self, method: Method, path: &str, body: &Value) -> Result<()> {
        self.write(method, path, METADATA_ONLY, body).await.map(drop)
    }

    async fn write(&self, method: Method, path: &str, accept: &str, body: &Value) -> Result<Bytes> {
        let kind = if method == Method::PATCH {
            "application/json-patch+json"
        } else {
            "application/json"
        };
        let body = serde_json::to_vec(body)?.into();
        self.client.send(method, path, kind, accept, body).await
    }
}

/// A client, once the API server is ready.
async fn ready(port: u16, certificates: &Path) -> Result<Client> {
    let client = Client::connect(port, certificates, TOKEN).await?;
    let answer = client.send(Method::GET, "/readyz", WHOLE, "*/*", Bytes::new()).await?;
    if answer != "ok" {
        bail!("{}", String::from_utf8_lossy(&answer));
    }
    Ok(client)
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
