//! `fairlead install`: the manifests of this version, applied through kubectl.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::ExitCode;

use crate::kubectl::Kubectl;
use crate::manifests::{Images, Part, Written};

/// What is ready when the mesh is.
const PARTS: [&str; 3] =
    ["deployment/fairlead-controller", "daemonset/fairlead-node", "daemonset/fairlead-cni"];

const HELP: &str = "\
Examples:
  fairlead install                                  into the cluster of your current context
  fairlead install --overlay beside-istio           where Istio's CRDs are, and stay as they are
  fairlead install --image-registry example.org/mesh --tag 0.1.0
  fairlead install --dry-run                        what would be changed
  fairlead install -o yaml > mesh.yaml              what would be applied

Run it again to upgrade. Nothing is in the mesh before a namespace is labelled:
  kubectl label namespace default istio.io/dataplane-mode=ambient";

/// Install the mesh into a cluster, or upgrade it.
///
/// Applies the manifests that this program carries (those of manifests/ in its sources) on the
/// server's side through kubectl, and waits until controllers, node daemons and CNI plugins
/// are ready.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Install {
    #[command(flatten)]
    kubectl: Kubectl,

    #[command(flatten)]
    images: Images,

    /// A variation of the manifests.
    #[arg(long, value_enum, value_name = "NAME")]
    overlay: Option<Overlay>,

    /// Change nothing: have the API server check an upgrade, and kubectl a first installation.
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,

    /// Print the manifests instead of applying them.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Output>,

    /// Do not wait until everything is ready.
    #[arg(long)]
    no_wait: bool,
}

/// Variations of the manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Overlay {
    /// All but the CRDs, which Istio has installed.
    BesideIstio,
}

/// Forms of manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// YAML.
    Yaml,
}

impl Install {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let part = match self.overlay {
            None => Part::All,
            Some(Overlay::BesideIstio) => Part::Base,
        };
        let manifests = Written::new(part, &self.images)?;
        let dir = manifests.dir().as_os_str();
        let word = OsStr::new;
        if self.output == Some(Output::Yaml) {
            let text = self.kubectl.read(&[word("kustomize"), dir])?;
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut apply = vec![word("apply"), word("-k"), dir];
        if !self.dry_run {
            apply.push(word("--server-side"));
        } else if !self.kubectl.finds_mesh()? {
            // Nothing can be checked in a namespace that is not there.
            apply.push(word("--dry-run=client"));
        } else {
            apply.extend([word("--server-side"), word("--dry-run=server")]);
        }
        self.kubectl.run(&apply)?;
        if self.dry_run || self.no_wait {
            return Ok(ExitCode::SUCCESS);
        }
        for part in PARTS {
            self.kubectl.wait_rollout(part)?;
        }
        println!(
            "The mesh is ready. Next: kubectl label namespace NAME istio.io/dataplane-mode=ambient"
        );
        Ok(ExitCode::SUCCESS)
    }
}
