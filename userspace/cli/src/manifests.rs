//! The manifests that users get, inside the program: nothing has to lie beside it.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Registry of the images, unless another is told.
const REGISTRY: &str = "fairlead.dev";
/// Tag of the images, unless another is told: the version of this program.
const TAG: &str = env!("CARGO_PKG_VERSION");
/// Namespace of the mesh.
pub(crate) const SYSTEM: &str = "fairlead-system";
/// Images that the manifests name.
const IMAGES: [&str; 3] = ["fairlead-controller", "fairlead-node", "fairlead-cni"];
/// How many names for a directory are tried.
const ATTEMPTS: u32 = 16;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../manifests/", $path)))),*]
    };
}

/// Path below `manifests/`, and content.
const FILES: &[(&str, &str)] = files![
    "base/cni-access.yaml",
    "base/cni.yaml",
    "base/controller-access.yaml",
    "base/controller.yaml",
    "base/kustomization.yaml",
    "base/mesh.yaml",
    "base/namespace.yaml",
    "base/node-access.yaml",
    "base/node.yaml",
    "base/priority.yaml",
    "base/webhook.yaml",
    "crds/authorizationpolicies.security.istio.io.yaml",
    "crds/destinationrules.networking.istio.io.yaml",
    "crds/envoyfilters.networking.istio.io.yaml",
    "crds/gateways.networking.istio.io.yaml",
    "crds/kustomization.yaml",
    "crds/peerauthentications.security.istio.io.yaml",
    "crds/proxyconfigs.networking.istio.io.yaml",
    "crds/requestauthentications.security.istio.io.yaml",
    "crds/serviceentries.networking.istio.io.yaml",
    "crds/sidecars.networking.istio.io.yaml",
    "crds/telemetries.telemetry.istio.io.yaml",
    "crds/trafficextensions.extensions.istio.io.yaml",
    "crds/virtualservices.networking.istio.io.yaml",
    "crds/wasmplugins.extensions.istio.io.yaml",
    "crds/workloadentries.networking.istio.io.yaml",
    "crds/workloadgroups.networking.istio.io.yaml",
    "uninstall/kustomization.yaml",
    "uninstall/uninstall.yaml",
];

/// Which of the manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The mesh and the definitions of its resources.
    All,
    /// The mesh alone.
    Base,
    /// What takes it off the nodes.
    Uninstall,
}

impl Part {
    fn directories(self) -> &'static [&'static str] {
        match self {
            Self::All => &["crds", "base"],
            Self::Base => &["base"],
            Self::Uninstall => &["uninstall"],
        }
    }
}

/// Where the images come from.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Images {
    /// Registry of the images, with a path if it has one.
    #[arg(long, value_name = "REGISTRY", default_value = REGISTRY)]
    image_registry: String,

    /// Tag of the images.
    #[arg(long, value_name = "TAG", default_value = TAG)]
    tag: String,
}

impl Images {
    /// A kustomization of these directories, with these images.
    fn kustomization(&self, part: Part) -> String {
        let mut text = String::from(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n",
        );
        for directory in part.directories() {
            let _ = writeln!(text, "- {directory}");
        }
        text.push_str("images:\n");
        let registry = self.image_registry.trim_end_matches('/');
        for image in IMAGES {
            // Quoted as JSON, which YAML understands: a tag may look like a number.
            let name = serde_json::json!(format!("{registry}/{image}"));
            let tag = serde_json::json!(self.tag);
            let _ =
                writeln!(text, "- name: {REGISTRY}/{image}\n  newName: {name}\n  newTag: {tag}");
        }
        text
    }
}

/// Manifests in a directory of their own, for kubectl; dropping it removes them.
#[derive(Debug)]
pub(crate) struct Written {
    dir: PathBuf,
}

impl Written {
    /// Writes them where only this user can.
    ///
    /// # Errors
    /// There is no place for them.
    pub(crate) fn new(part: Part, images: &Images) -> anyhow::Result<Self> {
        let written = Self { dir: own_directory()? };
        let put = |path: &Path, content: &str| -> anyhow::Result<()> {
            let path = written.dir.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, content).with_context(|| path.display().to_string())
        };
        for (path, content) in FILES {
            put(Path::new(path), content)?;
        }
        put(Path::new("kustomization.yaml"), &images.kustomization(part))?;
        Ok(written)
    }

    /// The directory, for `kubectl -k`.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A new directory: never one that somebody else has made.
fn own_directory() -> anyhow::Result<PathBuf> {
    let place = std::env::temp_dir();
    for attempt in 0..ATTEMPTS {
        let dir = place.join(format!("fairlead-{}-{attempt}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| dir.display().to_string()),
        }
    }
    bail!("{}: no name for a directory is free", place.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_manifests_is_forgotten() -> anyhow::Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests");
        let mut there = Vec::new();
        for directory in ["base", "crds", "uninstall"] {
            for entry in fs::read_dir(root.join(directory))? {
                there.push(format!("{directory}/{}", entry?.file_name().to_string_lossy()));
            }
        }
        there.sort();
        let inside: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
        assert_eq!(inside, there);
        Ok(())
    }

    #[test]
    fn images_are_those_that_were_told_and_the_directory_goes() -> anyhow::Result<()> {
        let images =
            Images { image_registry: "example.org/mesh/".to_owned(), tag: "1.0".to_owned() };
        let written = Written::new(Part::Base, &images)?;
        let text = fs::read_to_string(written.dir().join("kustomization.yaml"))?;
        assert!(text.contains("- base\n") && !text.contains("- crds\n"), "{text}");
        let node = "- name: fairlead.dev/fairlead-node\n  newName: \"example.org/mesh/fairlead-node\"\n  newTag: \"1.0\"\n";
        assert!(text.contains(node), "{text}");
        let dir = written.dir().to_owned();
        assert!(dir.join("base/node.yaml").is_file());
        drop(written);
        assert!(!dir.exists());
        Ok(())
    }
}
