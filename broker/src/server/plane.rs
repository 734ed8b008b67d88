//! The control plane of a node: its controller if it is one, or the feed of metadata from one; the connections to the other
//! nodes; and the way to the active controller.

use std::sync::Arc;

use tidemark_controller::Image;
use tidemark_protocol::{DirectoryId, NodeId, messages::VoterId};
use tidemark_storage::DataDir;
use tokio::sync::watch;

use super::ServerError;
use crate::{
    clock::Clock,
    config::Config,
    control::Control,
    controller::{ControllerHandle, Runner, RunnerConfig},
    disk::Disk,
    health::Health,
    metadata_feed::MetadataFeed,
    metrics::Metrics,
    peers::{Addresses, Peers},
    tasks::{Shutdown, Tasks},
};

pub(super) struct Plane {
    pub(super) control: Control,
    pub(super) images: watch::Receiver<Arc<Image>>,
}

impl Plane {
    /// Starts what the node's roles ask for: threads among the first, tasks among the second.
    pub(super) fn start(
        data_dir: &DataDir<Disk>,
        config: &Config,
        clock: &Clock,
        (metrics, health): (&Metrics, &Health),
        (threads, tasks): (&Tasks, &Tasks),
    ) -> Result<Self, ServerError> {
        let identity = data_dir.identity();
        let me = VoterId { node: identity.node_id, directory: DirectoryId(identity.directory_id) };
        let (images_in, images) = watch::channel(Arc::<Image>::default());
        let (leader_in, leader) = watch::channel(None);
        let addresses = Addresses::new(config.controllers.clone(), images.clone());
        let (peers, losses) = Peers::new(tasks.clone(), addresses.clone());
        let local = if config.roles.is_controller() {
            let runner = RunnerConfig {
                me,
                cluster_id: identity.cluster_id.clone(),
                broker_session_timeout: config.broker_session_timeout,
                election_timeout: config.election_timeout,
                leader_balance_interval: config.leader_balance_interval,
            };
            let outlets = (images_in.clone(), leader_in.clone(), peers.clone());
            let (runner, handle) = Runner::open(
                data_dir.disk().clone(),
                &data_dir.metadata_dir(),
                runner,
                (clock.clone(), metrics.clone(), health.clone()),
                outlets,
            )?;
            // A thread has nobody to tell of a failure: the handle's questions fail.
            drop(threads.spawn_thread("controller", move || runner.run())?);
            tasks.spawn("losses", tell_losses(losses, handle.clone(), tasks.shutdown().clone()));
            Some(handle)
        } else {
            None
        };
        let feed = MetadataFeed::new(
            me,
            identity.cluster_id.clone(),
            (tasks.clone(), addresses),
            local.clone(),
            (images_in, leader_in),
        );
        tasks.spawn("metadata", feed.run(tasks.shutdown().clone()));
        let control = Control::new(me.node, local, peers, leader);
        Ok(Self { control, images })
    }
}

async fn tell_losses(
    mut losses: tokio::sync::mpsc::Receiver<NodeId>,
    controller: ControllerHandle,
    shutdown: Shutdown,
) {
    while let Some(Some(node)) = shutdown.or_stop(losses.recv()).await {
        controller.peer_lost(node);
    }
}
