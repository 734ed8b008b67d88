//! Which cluster the data directory belongs to: read from it, or found out when it is new.

use std::{io, process, sync::Arc};

use tidemark_controller::RaftQuorum;
use tidemark_protocol::{DirectoryId, messages::VoterId};
use tidemark_storage::{DataDir, DataDirIdentity, LockedDataDir};
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
        let (disk, metadata_dir) = (dir.disk().clone(), dir.metadata_dir());
        let Some(Membership { cluster_id, voters }) = membership else {
            check_metadata(&dir, is_controller && is_configured)?;
            if is_controller {
                prepare_controller(&dir, me, &identity)?;
            }
            return Ok::<_, ServerError>(dir.open(identity)?);
        };
        if is_controller {
            if !RaftQuorum::is_bootstrapped(&disk, &metadata_dir)? {
                // Before the directory belongs to the cluster: cut short, it is found out again.
                RaftQuorum::bootstrap(disk, &metadata_dir, me, &voters.unwrap_or_default())?;
            }
            prepare_controller(&dir, me, &identity)?;
        }
        tracing::info!(cluster_id, "this node belongs to a cluster now");
        Ok(dir.open(DataDirIdentity { cluster_id, ..identity })?)
    };
    let opened = tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??;
    Ok(Some(Arc::new(opened)))
}

/// A controller whose metadata is gone has forgotten whom it voted for: it must not go on under its old name.
fn check_metadata(dir: &LockedDataDir<Disk>, is_configured: bool) -> Result<(), ServerError> {
    let metadata_dir = dir.metadata_dir();
    let was_controller = is_configured || dir.was_controller()?;
    if was_controller && RaftQuorum::is_empty(dir.disk(), &metadata_dir)? {
        return Err(ServerError::MetadataGone { dir: metadata_dir });
    }
    Ok(())
}

/// Notes that this directory is a controller's from now on, also where no configuration says so: one that was added later,
/// and one that waits to be.
fn prepare_controller(
    dir: &LockedDataDir<Disk>,
    me: VoterId,
    identity: &DataDirIdentity,
) -> Result<(), ServerError> {
    let (disk, metadata_dir) = (dir.disk().clone(), dir.metadata_dir());
    if RaftQuorum::is_empty(&disk, &metadata_dir)? {
        RaftQuorum::bootstrap(disk, &metadata_dir, me, &[])?;
    }
    if let Err(error) = dir.mark_controller(identity) {
        // On a full disk, say. The next start tries again.
        tracing::warn!(%error, "it is not noted that this directory is a controller's");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const ME: VoterId = VoterId { node: 4, directory: DirectoryId([4; 16]) };

    fn locked(root: &Path) -> (LockedDataDir<Disk>, DataDirIdentity) {
        let dir = LockedDataDir::lock(Disk::default(), root, "test").unwrap();
        let identity = DataDirIdentity {
            cluster_id: "c".to_owned(),
            node_id: ME.node,
            directory_id: ME.directory.0,
        };
        (dir, identity)
    }

    #[test]
    fn a_controller_that_no_configuration_names_does_not_forget_its_votes_either() {
        let root = tempfile::tempdir().unwrap();
        let (dir, identity) = locked(root.path());
        // A broker that becomes a controller later has no metadata, and has lost none.
        check_metadata(&dir, false).unwrap();
        prepare_controller(&dir, ME, &identity).unwrap();
        check_metadata(&dir, false).unwrap();
        let metadata_dir = dir.metadata_dir();
        fs::remove_dir_all(&metadata_dir).unwrap();
        let refused = check_metadata(&dir, false).unwrap_err();
        assert!(matches!(refused, ServerError::MetadataGone { .. }), "{refused}");
        // What is kept for a full disk says nothing of votes.
        fs::create_dir(&metadata_dir).unwrap();
        fs::write(metadata_dir.join("reserve"), "").unwrap();
        check_metadata(&dir, false).unwrap_err();
    }
}
