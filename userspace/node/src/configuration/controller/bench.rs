//! What the example `controller_memory` reaches of the private parts of this module. No part of the API.

use std::path::Path;
use std::sync::Arc;

use fairlead_config::model::Snapshot;
use fairlead_wire::config::Update;
use tokio::sync::watch;

use super::super::follower::{Follower, Form};
use super::core::{Core, Staged};
use super::state::Keeper;
use super::status::Status;
use crate::settings::{ControllerSettings, ServiceSettings, Unanswered};

/// What a daemon holds of a controller's objects: all of it, but the stream.
pub struct Node {
    core: Core,
    keeper: Keeper,
    staged: Staged,
}

impl Node {
    /// Takes in what an earlier one kept in that directory, if there is anything.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn open(state_dir: &Path, node: &str) -> anyhow::Result<Self> {
        let service = ServiceSettings {
            address: "controller:1".parse().map_err(anyhow::Error::msg)?,
            ca_root: "/".into(),
            token_file: "/".into(),
        };
        let settings = ControllerSettings {
            service,
            state_dir: state_dir.to_owned(),
            cluster_id: "c".into(),
            root_namespace: "fairlead-system".into(),
            unanswered: Unanswered::Refuse,
        };
        let follower = Follower::with_root(node, Form::Objects, &settings.root_namespace);
        let (bundle, _) = watch::channel(None);
        let (core, keeper) =
            Core::open(&settings, node, follower, Status::new("c".into()), bundle)?;
        Ok(Self { core, keeper, staged: Staged::default() })
    }

    /// Takes an Update in; how many objects of it were refused.
    ///
    /// # Errors
    /// It breaks the protocol or a bound.
    pub async fn take(&mut self, update: Update) -> Result<usize, String> {
        self.core.take(update, &mut self.staged, &self.keeper).await.map(|refused| refused.len())
    }

    /// Does what is done every few seconds.
    pub fn rest(&mut self) {
        self.core.rest();
    }

    /// What is in force.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.core.snapshot()
    }
}
