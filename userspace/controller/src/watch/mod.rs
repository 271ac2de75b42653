//! The API server's objects, trimmed to what nodes read, kept up to date by watches.
//!
//! Each kind is listed in pages and then watched. A watch that breaks goes on where it was; if the
//! API server does not remember that any more (410), all is listed again and what is gone taken
//! out. While the API server is away everything stays as it is.

mod crds;
mod follow;
pub mod raw;
pub mod trim;

use std::sync::Arc;

use fairlead_api::Kind;
use fairlead_config::source::MESH_CONFIG_MAP;
use kube::core::{ApiResource, GroupVersionKind};
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::scope::World;

/// What all watches share.
pub(crate) struct Context {
    client: kube::Client,
    world: Arc<World>,
    metrics: Arc<Metrics>,
}

/// Held by each kind until it has been listed: when the last of them is dropped, all has been.
#[derive(Debug, Default)]
pub(crate) struct Listed(Option<Arc<World>>);

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(world) = &self.0 {
            tracing::info!("all objects have been listed");
            world.set_synced();
        }
    }
}

/// Follows the API server for ever and brings all that nodes read into `world`. The mesh's
/// settings are read from the root namespace.
pub async fn run(
    client: kube::Client,
    world: Arc<World>,
    metrics: Arc<Metrics>,
    root_namespace: String,
) {
    let listed = Arc::new(Listed(Some(Arc::clone(&world))));
    let context = Arc::new(Context { client, world, metrics });
    let mut tasks = JoinSet::new();
    for kind in Kind::ALL.iter().copied().filter(|kind| !crds::is_custom(*kind)) {
        let only = match kind {
            // Nodes read none of them.
            Kind::Secret | Kind::ServiceAccount => continue,
            Kind::ConfigMap => Some((root_namespace.clone(), MESH_CONFIG_MAP)),
            _ => None,
        };
        let version = kind.versions().first().copied().unwrap_or_default();
        let resource = resource(kind, version);
        let (context, listed) = (Arc::clone(&context), Arc::clone(&listed));
        tasks.spawn(follow::follow(context, kind, resource, only, listed));
    }
    tasks.spawn(crds::follow_crds(context, listed));
    // None of them ends but by a panic, which must not go unnoticed.
    while let Some(end) = tasks.join_next().await {
        if let Err(error) = end {
            tracing::error!(%error, "a watch has failed");
            return;
        }
    }
}

/// Where the API server has objects of a kind.
fn resource(kind: Kind, version: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(kind.group(), version, kind.as_str()))
}
