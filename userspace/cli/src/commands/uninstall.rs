//! `fairlead uninstall`: the steps of docs/kubernetes.md, through kubectl.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::bail;

use crate::kubectl::Kubectl;
use crate::manifests::{Images, Part, SYSTEM, Written};

/// Labels that put a namespace into the mesh.
const LABELS: [&str; 4] =
    ["istio.io/dataplane-mode", "istio-injection", "istio.io/rev", "fairlead.io/mesh"];
/// What they say when they do.
const ENROLLED: [&str; 4] = [
    "fairlead.io/mesh=enabled",
    "istio.io/dataplane-mode=ambient",
    "istio-injection=enabled",
    "istio.io/rev",
];

const HELP: &str = "\
Examples:
  fairlead uninstall                      no namespace may be in the mesh any more
  fairlead uninstall --unlabel            takes them out first; their pods go on in plaintext
  fairlead uninstall --unlabel --crds     with Istio's CRDs and all resources of these kinds";

/// Take the mesh off a cluster, and everything of it off the nodes.
///
/// Removes node daemons and CNI plugins, then what they leave on each node on purpose (the entry in
/// the network's chain, kernel programs, keys and state), then the rest. No pod is restarted.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    kubectl: Kubectl,

    #[command(flatten)]
    images: Images,

    /// Take the labels that the mesh goes by off all namespaces first, Istio's among them.
    #[arg(long)]
    unlabel: bool,

    /// Remove the definitions of Istio's resources too, with every resource of these kinds.
    #[arg(long)]
    crds: bool,
}

impl Uninstall {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let kubectl = &self.kubectl;
        if self.unlabel {
            let off = LABELS.map(|label| format!("{label}-"));
            let mut args = vec!["label", "namespaces", "--all"];
            args.extend(off.iter().map(String::as_str));
            kubectl.read(&args)?;
        }
        let mut enrolled = BTreeSet::new();
        for label in ENROLLED {
            let names = kubectl.read(&["get", "namespaces", "-l", label, "-o", "name"])?;
            enrolled.extend(names.lines().map(|l| l.trim_start_matches("namespace/").to_owned()));
        }
        if !enrolled.is_empty() {
            let names = enrolled.into_iter().collect::<Vec<_>>().join(" ");
            bail!(
                "still in the mesh by their labels: {names}. Their pods would be refused until all is \
                 gone. Next: kubectl label namespace {names} istio.io/dataplane-mode- (or --unlabel)"
            );
        }
        if !kubectl.finds_mesh()? {
            bail!(
                "there is no namespace {SYSTEM}: no mesh is installed. Next: --context, if another cluster is meant"
            );
        }
        kubectl.run(&[
            "delete",
            "daemonset",
            "--ignore-not-found",
            "-n",
            SYSTEM,
            "fairlead-cni",
            "fairlead-node",
        ])?;
        let steps = Written::new(Part::Uninstall, &self.images)?;
        let word = OsStr::new;
        let on = |verb: &'static str, dir: &Written| {
            let mut args = vec![word(verb), word("-k"), dir.dir().as_os_str()];
            if verb == "delete" {
                args.push(word("--ignore-not-found"));
            }
            kubectl.run(&args)
        };
        on("apply", &steps)?;
        kubectl.wait_rollout("daemonset/fairlead-uninstall")?;
        on("delete", &steps)?;
        let rest = if self.crds { Part::All } else { Part::Base };
        on("delete", &Written::new(rest, &self.images)?)?;
        println!("The mesh is gone from the cluster and from its nodes.");
        Ok(ExitCode::SUCCESS)
    }
}
