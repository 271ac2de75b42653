//! Keys and certificates of a cluster, made with openssl: one authority, one certificate for each
//! component, with the names that Kubernetes' RBAC knows them by.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::system;

/// openssl wants a configuration file even where all is said on the command line.
const CONFIG: &str = "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = unused\n";

/// How long certificates live: longer than any cluster of this kind.
const DAYS: &str = "365";

/// The directory with a cluster's keys.
pub(crate) struct Pki {
    dir: PathBuf,
}

impl Pki {
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The authority, and the key that signs service account tokens.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let pki = Self::at(dir);
        fs::write(pki.file("openssl.cnf"), CONFIG)?;
        let mut request = pki.request("ca", "/CN=fairlead-cluster");
        request.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
        request.args(["-addext", "keyUsage=critical,digitalSignature,keyCertSign,cRLSign"]);
        system::output(&mut request)?;
        let key = pki.file("sa.key");
        let curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"];
        system::output(Command::new("openssl").arg("genpkey").args(curve).arg(&key))?;
        let mut public = Command::new("openssl");
        public.args(["pkey", "-pubout", "-in"]).arg(&key).arg("-out").arg(pki.file("sa.pub"));
        system::output(&mut public)?;
        Ok(pki)
    }

    fn request(&self, name: &str, subject: &str) -> Command {
        let mut command = Command::new("openssl");
        command
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-sha256", "-days", DAYS, "-subj", subject, "-config"])
            .arg(self.file("openssl.cnf"))
            .arg("-keyout")
            .arg(self.file(&format!("{name}.key")))
            .arg("-out")
            .arg(self.file(&format!("{name}.crt")));
        command
    }

    /// `NAME.key` and `NAME.crt` for a client or server; `alternatives` such as `DNS:x`, `IP:y`.
    pub(crate) fn issue(&self, name: &str, subject: &str, alternatives: &[String]) -> Result<()> {
        let mut request = self.request(name, subject);
        request.arg("-CA").arg(self.file("ca.crt")).arg("-CAkey").arg(self.file("ca.key"));
        request.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        request.args(["-addext", "keyUsage=critical,digitalSignature,keyEncipherment"]);
        request.args(["-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
        if !alternatives.is_empty() {
            request.args(["-addext", &format!("subjectAltName={}", alternatives.join(","))]);
        }
        system::output(&mut request)?;
        Ok(())
    }
}

/// A kubeconfig for `server` with a client certificate; paths are those of whoever reads it.
pub(crate) fn kubeconfig(
    cluster: &str,
    server: &str,
    ca: &Path,
    cert: &Path,
    key: &Path,
) -> String {
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": cluster, "user": {"client-certificate": cert, "client-key": key}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
        "current-context": cluster,
    });
    // JSON is YAML.
    format!("{config:#}\n")
}
