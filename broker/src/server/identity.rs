//! Which cluster the data directory belongs to: read from it, or found out when it is new.

use std::{io, process, sync::Arc};

use tidemark_controller::RaftQuorum;
use tidemark_protocol::{DirectoryId, messages::VoterId};
use tidemark_storage::{DataDir, DataDirIdentity, Disk as _, DiskError, LockedDataDir};
use tokio::net::TcpListener;

use super::ServerError;
use crate::{
    bootstrap::{self, Membership, Newcomer},
    config::Config,
    disk::Disk,
    health::Health,
    tasks::Shutdown,
};

/// A directory that is ours, and perhaps belongs to no cluster yet.
pub(super) struct Claimed {
    dir: LockedDataDir<Disk>,
    identity: DataDirIdentity,
}

/// Locks the directory and makes it this node's.
pub(super) async fn lock(disk: Disk, config: &Config) -> Result<Claimed, ServerError> {
    let (root, node_id) = (config.data_dir.clone(), config.node_id);
    let lock = move || {
        let holder = format!("process {}", process::id());
        let dir = LockedDataDir::lock(disk, &root, &holder)?;
        let identity = dir.claim(DataDirIdentity {
            cluster_id: String::new(),
            node_id,
            directory_id: uuid::Uuid::new_v4().into_bytes(),
        })?;
        Ok::<_, ServerError>(Claimed { dir, identity })
    };
    tokio::task::spawn_blocking(lock).await.map_err(io::Error::other)?
}

/// Opens the directory, once it is known which cluster it belongs to. `None`: told to stop before.
pub(super) async fn join(
    claimed: Claimed,
    listener: &TcpListener,
    config: &Config,
    health: &Health,
    shutdown: &Shutdown,
) -> Result<Option<Arc<DataDir<Disk>>>, ServerError> {
    let Claimed { dir, identity } = claimed;
    let directory = DirectoryId(identity.directory_id);
    let me = VoterId { node: identity.node_id, directory };
    let membership = if identity.cluster_id.is_empty() {
        let newcomer = Newcomer {
            me,
            cluster_id: uuid::Uuid::new_v4().to_string(),
            controllers: config.controllers.clone(),
        };
        let joining = bootstrap::join(&newcomer, listener, config, health, shutdown);
        let Some(membership) = joining.await else { return Ok(None) };
        Some(membership)
    } else {
        None
    };
    let is_controller = config.roles.is_controller();
    let is_configured =
        config.controllers.is_empty() || config.controllers.contains_key(&identity.node_id);
    let open = move || {
        let Some(Membership { cluster_id, voters }) = membership else {
            check_metadata(&dir, is_controller && is_configured)?;
            return Ok::<_, ServerError>(dir.open(identity)?);
        };
        if is_controller && !RaftQuorum::is_bootstrapped(dir.disk(), &dir.metadata_dir())? {
            // Before the directory belongs to the cluster: cut short, it is found out again.
            let (disk, voters) = (dir.disk().clone(), voters.unwrap_or_default());
            RaftQuorum::bootstrap(disk, &dir.metadata_dir(), me, &voters)?;
        }
        tracing::info!(cluster_id, "this node belongs to a cluster now");
        Ok(dir.open(DataDirIdentity { cluster_id, ..identity })?)
    };
    let opened = tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??;
    Ok(Some(Arc::new(opened)))
}

/// A controller whose metadata is gone has forgotten whom it voted for: it must not go on under its old name.
fn check_metadata(dir: &LockedDataDir<Disk>, was_controller: bool) -> Result<(), ServerError> {
    let metadata_dir = dir.metadata_dir();
    let is_gone = || {
        let is_there = dir.disk().exists(&metadata_dir)?;
        Ok::<_, DiskError>(!is_there || dir.disk().list(&metadata_dir)?.is_empty())
    };
    if was_controller && is_gone()? {
        return Err(ServerError::MetadataGone { dir: metadata_dir });
    }
    Ok(())
}
