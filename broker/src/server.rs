//! Puts a broker together, runs it, and takes it apart in an order that loses nothing.
//!
//! Start: lock the directory, listen, recover the metadata, open the logs, register, serve. Stop: no new
//! requests, answer those in flight, flush and close the logs, say that the shutdown was clean. The parts start
//! their own work; here is only who is made with what, and in which order.

mod identity;
mod plane;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    thread,
    time::Duration,
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tidemark_controller::{IncarnationId, QuorumError, RegisterBroker};
use tidemark_coordinator::{GroupCoordinator, TransactionCoordinator};
use tidemark_protocol::{BrokerEpoch, DirectoryId, messages::WantedState};
use tidemark_storage::{Checkpoints, DataDir, DiskError, OpenError};
use tokio::{net::TcpListener, sync::watch, time::timeout};

use self::plane::Plane;
use crate::{
    assignments::Assignments,
    broker::Broker,
    clock::Clock,
    compactor,
    config::Config,
    controller::{ControllerHandle, LOCAL_CONNECTION},
    coordinators::{self, Host, Mailbox, Nudges},
    disk::{Disk, SegmentFiles},
    disk_watch::DiskWatch,
    flusher::Flusher,
    health::{Health, Reason},
    janitor::{self, Janitor},
    lag::{self, LagWatch},
    left_behind::LeftBehind,
    listen_error::ListenError,
    listener,
    log_dirs::LogDirs,
    member::{Member, Standing},
    metrics::Metrics,
    partitions::Partitions,
    producer_ids::ProducerIdBlocks,
    reads::ColdReads,
    relinquish,
    replicas::{IsrChanges, ReplicaNetwork, ReplicaPort, Sessions, Streams},
    shard::{self, Shard, ShardConfig, ShardHandle},
    tasks::{Shutdown, Tasks},
};

/// How often free space is looked at.
const DISK_WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Of the file descriptors a process may have, the part that segments may take.
const SEGMENT_FILES_SHARE: usize = 2;
/// Most segment files open, well under the usual `vm.max_map_count` of 65530.
const SEGMENT_FILES_MAX: usize = 24_000;
/// How long threads may take to end once they have nothing left to do.
const THREADS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a broker did not start, or did not stop as it should.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot use the data directory: {0}")]
    DataDir(#[from] OpenError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Metadata(#[from] QuorumError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    #[error("{0}")]
    Disk(#[from] DiskError),
    #[error(
        "the metadata of this controller is missing from {}; put it back from where it went, or start with an empty \
         directory and add this node to the controllers again with `tidemark cluster`",
        dir.display()
    )]
    MetadataGone { dir: PathBuf },
    #[error("{0} logs were not closed in order; the next start recovers them")]
    Unclean(usize),
    #[error("the mark of a clean shutdown was not written: {0}")]
    Close(DiskError),
}

/// Runs a broker until `shutdown`, and returns when it has stopped.
pub async fn run(
    config: Config,
    metrics: Metrics,
    health: Health,
    shutdown: Shutdown,
) -> Result<(), ServerError> {
    Box::pin(run_on(Disk::default(), config, metrics, health, shutdown)).await
}

async fn run_on(
    disk: Disk,
    config: Config,
    metrics: Metrics,
    health: Health,
    shutdown: Shutdown,
) -> Result<(), ServerError> {
    let refused = |cause| ListenError::new("listen", &config.listen, cause);
    let locked = identity::lock(disk, &config).await?;
    let listener = listener::bind(&config.listen).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let joining = identity::join(locked, &listener, &config, &health, &shutdown);
    let Some(data_dir) = joining.await? else {
        tracing::info!("told to stop before this node belonged to a cluster");
        return Ok(());
    };
    let (server, start) = Server::assemble(data_dir, config, &metrics, health)?;
    server.serve(listener, address);
    match shutdown.or_stop(Box::pin(server.start(start, address))).await {
        Some(Ok(())) => {
            shutdown.started().await;
            server.leave().await;
            server.stop().await
        }
        Some(Err(error)) => {
            server.abandon().await;
            Err(error)
        }
        None => {
            tracing::info!("told to stop while starting; the next start goes on with the recovery");
            server.abandon().await;
            Ok(())
        }
    }
}

/// A broker that serves.
struct Server {
    broker: Arc<Broker>,
    /// Threads that outlive the connections, because these wait for them.
    threads: Tasks,
    flusher: Flusher,
    data_dir: Arc<DataDir<Disk>>,
    left_behind: LeftBehind,
}

/// What a server needs once, to start.
struct Start {
    assignments: Assignments,
    checkpoints: Checkpoints,
    standing: watch::Sender<Standing>,
    isr_changes: IsrChanges,
    groups: Mailbox<GroupCoordinator>,
    transactions: Mailbox<TransactionCoordinator>,
}

impl Server {
    /// Starts the threads on an open directory. Nothing is served yet.
    fn assemble(
        data_dir: Arc<DataDir<Disk>>,
        config: Config,
        metrics: &Metrics,
        health: Health,
    ) -> Result<(Self, Start), ServerError> {
        let clock = Clock::start();
        let mut checkpoints = data_dir.load_checkpoints()?;
        let (disk, topics_dir) = (data_dir.disk().clone(), data_dir.topics_dir());
        let left_behind = LeftBehind::new(disk, data_dir.root(), topics_dir.clone());

        // Told to stop one by one, not by the signal: it begins with leaving the cluster in order.
        let (threads, tasks) = (Tasks::new(Shutdown::new()), Tasks::new(Shutdown::new()));
        let plane =
            Plane::start(&data_dir, &config, &clock, (metrics, &health), (&threads, &tasks))?;

        let disk_watch =
            DiskWatch::new(data_dir.root().to_owned(), config.disk_reserve_bytes, health.clone());
        let flusher = Flusher::start(&threads, &clock, metrics)?;
        let (sessions, streams) = (Arc::<Sessions>::default(), Arc::<Streams>::default());
        let (port, isr_changes) = ReplicaNetwork::new(Arc::clone(&sessions), Arc::clone(&streams));
        let port: Arc<dyn ReplicaPort> = Arc::new(port);
        let make = |index| {
            let config = shard_config(&config, index);
            let (metrics, disk_watch) = (metrics.clone(), disk_watch.clone());
            let (flusher, port) = (flusher.clone(), Arc::clone(&port));
            Shard::new(config, clock.clone(), metrics, disk_watch, flusher, port)
        };
        let shards = start_shards(&threads, config.shard_threads, make)?;
        let (assigned_in, assigned) = watch::channel(0);
        let (standing_in, standing) = watch::channel(Standing::default());
        let (groups, groups_in) = coordinators::channel();
        let (transactions, transactions_in) = coordinators::channel();
        let identity = data_dir.identity();
        let broker = Arc::new(Broker {
            id: config.node_id,
            cluster_id: identity.cluster_id.clone(),
            directory: DirectoryId(identity.directory_id),
            incarnation: IncarnationId(uuid::Uuid::new_v4().into_bytes()),
            clock,
            metrics: metrics.clone(),
            health,
            tasks,
            control: plane.control,
            images: plane.images,
            shards,
            partitions: Partitions::expecting(checkpoints.take_logs()),
            cold_reads: ColdReads::new(config.cold_read_threads),
            disk_watch,
            assigned,
            behind_since: watch::Sender::new(None),
            standing,
            wanted: watch::Sender::new(WantedState::Active),
            sessions,
            streams,
            connections: AtomicU64::new(LOCAL_CONNECTION),
            groups,
            transactions,
            nudges: Nudges::default(),
            lag: LagWatch::default(),
            producer_ids: ProducerIdBlocks::default(),
            config,
        });
        broker.streams.start(&broker);
        metrics.add_source(&broker);

        let files = SegmentFiles::new(data_dir.disk().clone(), raise_open_files_limit());
        let dirs = LogDirs { files, topics_dir, left_behind: left_behind.clone() };
        let assignments =
            Assignments::new(Arc::clone(&broker), Arc::clone(&data_dir), dirs, assigned_in);
        let server = Self { broker, threads, flusher, data_dir, left_behind };
        let start = Start {
            assignments,
            checkpoints,
            standing: standing_in,
            isr_changes,
            groups: groups_in,
            transactions: transactions_in,
        };
        Ok((server, start))
    }

    /// Accepts connections: controllers need to reach each other before anything else can happen.
    fn serve(&self, listener: TcpListener, address: SocketAddr) {
        let broker = &self.broker;
        broker.health.raise(Reason::Starting, "recovering logs");
        broker.tasks.spawn("listener", listener::run(listener, Arc::clone(broker)));
        tracing::info!(%address, "listening");
    }

    /// Recovers, registers, and takes part.
    async fn start(&self, start: Start, address: SocketAddr) -> Result<(), ServerError> {
        let Start { mut assignments, checkpoints, standing, isr_changes, groups, transactions } =
            start;
        let broker = &self.broker;
        let shutdown = broker.tasks.shutdown();
        let is_broker = broker.config.roles.is_broker();
        if is_broker {
            let clean_epoch = checkpoints.clean_epoch();
            self.open_logs(&mut assignments, &checkpoints).await;
            // Nobody is to count on what a damaged log holds, however cleanly it was closed.
            let previous_broker_epoch = clean_epoch.filter(|_| !broker.partitions.are_damaged());
            broker
                .tasks
                .spawn("assignments", assignments.run(broker.images.clone(), shutdown.clone()));
            let groups = Host::new(Arc::clone(broker), groups);
            broker.tasks.spawn("groups", groups.run(shutdown.clone()));
            let transactions = Host::new(Arc::clone(broker), transactions);
            broker.tasks.spawn("transactions", transactions.run(shutdown.clone()));
            broker.tasks.spawn("isr", isr_changes.run(Arc::clone(broker), shutdown.clone()));
            let registration = self.registration(address, previous_broker_epoch);
            let wanted = broker.wanted.subscribe();
            let member = Member::new(Arc::clone(broker), registration, standing, wanted);
            let relinquish = relinquish::run(Arc::clone(broker), shutdown.clone());
            broker.tasks.spawn("relinquish", relinquish);
            broker.tasks.spawn("member", member.run(shutdown.clone()));
        }
        self.take_care();
        broker.health.set_data_address(address);
        if is_broker {
            broker.health.raise(Reason::Joining, "registering with the active controller");
            self.joined().await;
        } else {
            // An error: told to stop while starting.
            drop(broker.control.leader_changes().wait_for(Option::is_some).await);
        }
        self.tell_standing_by().await;
        broker.health.clear(Reason::Joining);
        broker.health.clear(Reason::Starting);
        tracing::info!(%address, "serving");
        Ok(())
    }

    /// A node that could be a controller and is none says so: its operator may have meant it to be one.
    async fn tell_standing_by(&self) {
        let broker = &self.broker;
        let Some(local) = broker.control.local() else { return };
        let Ok(status) = local.status().await else { return };
        if status.voters.iter().all(|voter| voter.id != status.me) {
            tracing::info!(
                "this node is none of the controllers; `tidemark cluster add-controller {} ADDRESS` makes it one",
                broker.id
            );
        }
    }

    /// Opens what was here before.
    async fn open_logs(&self, assignments: &mut Assignments, checkpoints: &Checkpoints) {
        let broker = &self.broker;
        let (clean, began) = (checkpoints.is_clean(), broker.clock.now());
        let mut images = broker.images.clone();
        // Whoever is no controller has to be told first what there is. And the claim to have stopped cleanly is for every log
        // that was here, of some of which older metadata does not speak. Without that claim what there is need not wait.
        let wanted = checkpoints.metadata_index().max(1);
        if wanted > 1 && images.borrow().metadata_index() < wanted {
            let progress = format!("waiting for the metadata, up to entry {}", wanted - 1);
            broker.health.raise(Reason::Starting, progress);
        }
        let known = images.wait_for(|image| image.metadata_index() >= wanted).await;
        let Ok(image) = known.map(|image| Arc::clone(&image)) else { return };
        assignments.open_existing(&image).await;
        broker.metrics.disk().recovered(broker.clock.since(began));
        let (logs, took) = (broker.partitions.count(), broker.clock.since(began));
        tracing::info!(logs, clean, ?took, "logs open");
    }

    /// How the controller gets to know this broker.
    fn registration(
        &self,
        address: SocketAddr,
        previous_broker_epoch: Option<BrokerEpoch>,
    ) -> RegisterBroker {
        let (broker, config) = (&self.broker, &self.broker.config);
        let configured = config.controllers.get(&config.node_id);
        let advertised = config.advertised_address.as_ref().or(configured);
        let advertised = advertised.and_then(|address| split_address(address));
        let (host, port) = advertised.unwrap_or_else(|| (address.ip().to_string(), address.port()));
        RegisterBroker {
            broker_id: broker.id,
            incarnation: broker.incarnation,
            directory: broker.directory,
            host,
            port,
            rack: config.rack.clone(),
            previous_broker_epoch,
        }
    }

    /// Waits until the controller has let this broker in, and it is as the metadata says.
    async fn joined(&self) {
        let broker = &self.broker;
        let mut standing = broker.standing.clone();
        // Errors: told to stop while starting.
        drop(standing.wait_for(|standing| standing.active).await);
        let index = broker.image().metadata_index();
        drop(broker.assigned.clone().wait_for(|assigned| *assigned >= index).await);
        // By now the metadata is at least as new as what this broker followed before it stopped.
        let (left_behind, known) = (self.left_behind.clone(), broker.image());
        let now_ms = u64::try_from(broker.clock.wall_ms()).unwrap_or(0);
        let cleared = tokio::task::spawn_blocking(move || left_behind.clear_topics(&known, now_ms));
        if let Ok(Err(error)) = cleared.await {
            // On a full disk, say. What nobody knows of is in nobody's way.
            tracing::warn!(%error, "directories without partitions stay where they are");
        }
    }

    /// Starts what looks after disk and logs.
    fn take_care(&self) {
        let (broker, tasks) = (&self.broker, &self.broker.tasks);
        let shutdown = tasks.shutdown();
        let data_dir = Arc::clone(&self.data_dir);
        let space = move || janitor::space(&data_dir);
        let disk_watch = broker.disk_watch.clone();
        tasks.spawn("disk-watch", disk_watch.run(space, DISK_WATCH_INTERVAL, shutdown.clone()));
        let janitor = Janitor {
            broker: Arc::clone(broker),
            flusher: self.flusher.clone(),
            data_dir: Arc::clone(&self.data_dir),
            left_behind: self.left_behind.clone(),
        };
        tasks.spawn("janitor", janitor.run(shutdown.clone()));
        tasks.spawn("lag", lag::watch::run(Arc::clone(broker), shutdown.clone()));
        let counting = coordinators::watch::run(Arc::clone(broker), shutdown.clone());
        tasks.spawn("coordinator-watch", counting);
        tasks.spawn("compactor", compactor::run(Arc::clone(broker), shutdown.clone()));
    }

    /// Has others lead what this broker leads, and gives up the quorum's leadership, as far as the time for stopping
    /// allows. A broker that is alone has nobody to leave to.
    async fn leave(&self) {
        let broker = &self.broker;
        let is_alone = broker.image().live_brokers().all(|other| other.id == broker.id);
        let leaving = async {
            if !is_alone && broker.config.roles.is_broker() {
                broker.wanted.send_replace(WantedState::ShutDown);
                let mut standing = broker.standing.clone();
                drop(standing.wait_for(|standing| standing.may_shut_down).await);
            }
            if broker.control.leader() == Some(broker.id)
                && let Some(local) = broker.control.local()
                && local.transfer_leadership().await.is_ok()
            {
                let mut leader = broker.control.leader_changes();
                drop(leader.wait_for(|leader| *leader != Some(broker.id)).await);
            }
        };
        if !is_alone && timeout(broker.config.shutdown_timeout, leaving).await.is_err() {
            tracing::warn!("stopping although this node still leads something");
        }
        broker.tasks.shutdown().start();
    }

    /// Connections have been told to stop; everything else follows here.
    async fn stop(self) -> Result<(), ServerError> {
        let broker = Arc::clone(&self.broker);
        let broker_epoch = broker.standing.borrow().epoch;
        let (closed, data_dir) = self.take_apart().await;
        if closed.unclean > 0 {
            return Err(ServerError::Unclean(closed.unclean));
        }
        if let Some(failure) = broker.disk_watch.failure() {
            tracing::warn!(failure, "a directory that failed is not marked as cleanly closed");
            return Ok(());
        }
        let Some(data_dir) = Arc::into_inner(data_dir) else {
            tracing::warn!("the data directory is still in use; the next start scans the logs");
            return Ok(());
        };
        let logs = broker.partitions.not_open();
        if logs == 0 {
            let (open, index) = (&closed.checkpoints, broker.image().metadata_index());
            return data_dir.close(open, broker_epoch, index).map_err(ServerError::Close);
        }
        // Nobody knows whether these are in order: there is no clean shutdown with them.
        tracing::warn!(logs, "logs that cannot be opened; the next start scans");
        let mut checkpoints = broker.partitions.not_open_checkpoints();
        checkpoints.extend(closed.checkpoints);
        let checkpoints: Vec<_> = checkpoints.into_iter().collect();
        data_dir.write_checkpoints(&checkpoints).map_err(ServerError::Close)
    }

    /// Ends what has not come to serve. What the directory says about its logs stays as it is: for them, this
    /// is a crash.
    async fn abandon(self) {
        self.broker.tasks.shutdown().start();
        self.take_apart().await;
    }

    /// Ends everything, flushing what is not durable.
    async fn take_apart(self) -> (shard::Closed, Arc<DataDir<Disk>>) {
        let Self { broker, threads, flusher, data_dir, .. } = self;
        let shards = broker.shards.clone();
        let timeout = broker.config.shutdown_timeout;
        if let Err(error) = broker.tasks.finished(timeout).await {
            tracing::warn!(%error, "stopping all the same");
        }
        let mut closed = shard::Closed::default();
        data_dir.begin_checkpoints();
        for shard in &shards {
            let Ok(mut one) = shard.ask(|reply| shard::Command::Close { reply }).await else {
                tracing::error!(shard = shard.index, "a shard has ended before its time");
                closed.unclean += 1;
                continue;
            };
            closed.checkpoints.append(&mut one.checkpoints);
            closed.unclean += one.unclean;
        }
        flusher.close();
        if let Some(controller) = broker.control.local() {
            close_controller(controller).await;
        }
        drop((shards, broker));
        if let Err(error) = threads.finished(THREADS_TIMEOUT).await {
            tracing::warn!(%error, "stopping all the same");
        }
        (closed, data_dir)
    }
}

fn shard_config(config: &Config, index: usize) -> ShardConfig {
    ShardConfig {
        index,
        queue_max: config.shard_queue_requests as usize,
        flush_interval: config.flush_interval,
    }
}

fn start_shards(
    threads: &Tasks,
    count: u32,
    make: impl Fn(usize) -> (Shard, ShardHandle),
) -> io::Result<Vec<ShardHandle>> {
    let start = |index| {
        let (shard, handle) = make(index);
        let _: thread::JoinHandle<()> =
            threads.spawn_thread(&format!("shard-{index}"), move || shard.run())?;
        Ok(handle)
    };
    (0..count as usize).map(start).collect()
}

/// It waits for a commit under way, which is a flush.
fn close_controller(controller: &ControllerHandle) -> impl Future<Output = ()> + use<> {
    let controller = controller.clone();
    let closing = tokio::task::spawn_blocking(move || controller.close());
    async move { drop(closing.await) }
}

/// Takes as many file descriptors as the system allows, and says how many segments may have.
fn raise_open_files_limit() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    (limit / SEGMENT_FILES_SHARE).min(SEGMENT_FILES_MAX)
}

/// `host:port`, the host perhaps in brackets; the configuration has been checked.
fn split_address(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests;
