//! Puts a broker together, runs it, and takes it apart in an order that loses nothing.
//!
//! Start: lock the directory, listen, recover the metadata, open the logs, register, serve. Stop: no new
//! requests, answer those in flight, flush and close the logs, say that the shutdown was clean. The parts start
//! their own work; here is only who is made with what, and in which order.

use std::{
    future::Future, io, net::SocketAddr, path::PathBuf, process, sync::Arc, thread, time::Duration,
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tidemark_controller::{
    Command, Controller, ControllerHandle, Image, IncarnationId, QuorumError, QuorumOfOne,
    RegisterBroker,
};
use tidemark_protocol::Failure;
use tidemark_storage::{
    Checkpoints, DataDir, DataDirIdentity, DiskError, LockedDataDir, OpenError,
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use crate::{
    assignments::Assignments,
    broker::Broker,
    clock::Clock,
    compactor,
    config::Config,
    disk::{Disk, SegmentFiles},
    disk_watch::DiskWatch,
    flusher::Flusher,
    health::{Health, Reason},
    janitor::{self, Janitor},
    left_behind::LeftBehind,
    listen_error::ListenError,
    listener,
    log_dirs::LogDirs,
    metrics::Metrics,
    partitions::Partitions,
    reads::ColdReads,
    replicas::Alone,
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
    #[error(
        "{} has logs, but the metadata that says what they are is missing from {}; put it back from a copy of \
         the data directory",
        topics_dir.display(), dir.display()
    )]
    MetadataLost { dir: PathBuf, topics_dir: PathBuf },
    #[error("{0}")]
    Disk(#[from] DiskError),
    #[error("the controller refused to register this broker: {0}")]
    Register(Failure),
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
    run_on(Disk::default(), config, metrics, health, shutdown).await
}

async fn run_on(
    disk: Disk,
    config: Config,
    metrics: Metrics,
    health: Health,
    shutdown: Shutdown,
) -> Result<(), ServerError> {
    let (server, start) = Server::assemble(disk, config, metrics, health, shutdown.clone()).await?;
    match shutdown.or_stop(server.start(start)).await {
        Some(Ok(())) => {
            shutdown.started().await;
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
    shards: Vec<ShardHandle>,
    flusher: Flusher,
    data_dir: Arc<DataDir<Disk>>,
    left_behind: LeftBehind,
}

/// What a server needs once, to start.
struct Start {
    assignments: Assignments,
    images: watch::Receiver<Arc<Image>>,
    checkpoints: Checkpoints,
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Takes the directory and the port, and starts the threads. Nothing is served yet.
    async fn assemble(
        disk: Disk,
        config: Config,
        metrics: Metrics,
        health: Health,
        shutdown: Shutdown,
    ) -> Result<(Self, Start), ServerError> {
        let clock = Clock::start();
        let open_files_max = raise_open_files_limit();
        let data_dir = open_data_dir(disk, &config).await?;
        let refused = |cause| ListenError::new("listen", &config.listen, cause);
        let listener = listener::bind(&config.listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let checkpoints = data_dir.load_checkpoints()?;
        let topics_dir = data_dir.topics_dir();
        let left_behind =
            LeftBehind::new(data_dir.disk().clone(), data_dir.root(), topics_dir.clone());

        // Told to stop one by one, not by the signal.
        let threads = Tasks::new(Shutdown::new());
        let (quorum, image) =
            QuorumOfOne::open(data_dir.disk().clone(), &data_dir.metadata_dir(), clock.wall_ms())?;
        if left_behind.is_metadata_lost(&image)? {
            return Err(ServerError::MetadataLost { dir: data_dir.metadata_dir(), topics_dir });
        }
        let (mut controller, controller_handle) = Controller::new(quorum, image);
        let (images_in, images) = watch::channel(controller_handle.image());
        controller.subscribe(Box::new(move |applied| {
            images_in.send_replace(Arc::clone(&applied.image));
        }));
        threads.spawn_thread("controller", move || controller.run())?;

        let root = data_dir.root().to_owned();
        let disk_watch = DiskWatch::new(root, config.disk_reserve_bytes, health.clone());
        let flusher = Flusher::start(&threads, &clock, &metrics)?;
        let make = |index| {
            let config = ShardConfig {
                index,
                queue_max: config.shard_queue_requests as usize,
                flush_interval: config.flush_interval,
            };
            let port = Arc::new(Alone);
            let (metrics, disk_watch) = (metrics.clone(), disk_watch.clone());
            Shard::new(config, clock.clone(), metrics, disk_watch, flusher.clone(), port)
        };
        let shards = start_shards(&threads, config.shard_threads, make)?;
        let (assigned_in, assigned) = watch::channel(0);
        let broker = Arc::new(Broker {
            id: config.node_id,
            cluster_id: data_dir.identity().cluster_id.clone(),
            clock,
            metrics: metrics.clone(),
            health,
            tasks: Tasks::new(shutdown),
            controller: controller_handle,
            partitions: Partitions::default(),
            cold_reads: ColdReads::new(config.cold_read_threads),
            disk_watch,
            assigned,
            config,
        });
        metrics.add_source(&broker);

        let files = SegmentFiles::new(data_dir.disk().clone(), open_files_max);
        let dirs = LogDirs { files, topics_dir, left_behind: left_behind.clone() };
        let assignments = Assignments::new(Arc::clone(&broker), shards.clone(), dirs, assigned_in);
        let server = Self { broker, threads, shards, flusher, data_dir, left_behind };
        Ok((server, Start { assignments, images, checkpoints, listener, address }))
    }

    /// Recovers, registers and serves.
    async fn start(&self, start: Start) -> Result<(), ServerError> {
        let Start { assignments, images, checkpoints, listener, address } = start;
        self.open_logs(assignments, images, checkpoints).await;
        self.register(address).await?;
        self.serve(listener, address);
        Ok(())
    }

    /// Opens what was here before, and follows the metadata from then on.
    async fn open_logs(
        &self,
        mut assignments: Assignments,
        images: watch::Receiver<Arc<Image>>,
        checkpoints: Checkpoints,
    ) {
        let broker = &self.broker;
        let (clean, began) = (checkpoints.is_clean(), broker.clock.now());
        broker.health.raise(Reason::Starting, "recovering logs");
        let image = Arc::clone(&images.borrow());
        let now_ms = u64::try_from(broker.clock.wall_ms()).unwrap_or(0);
        let (left_behind, known) = (self.left_behind.clone(), Arc::clone(&image));
        let cleared = tokio::task::spawn_blocking(move || left_behind.clear_topics(&known, now_ms));
        if let Ok(Err(error)) = cleared.await {
            // On a full disk, say. What nobody knows of is in nobody's way.
            tracing::warn!(%error, "directories without partitions stay where they are");
        }
        assignments.open_existing(&image, checkpoints).await;
        broker.metrics.disk().recovered(broker.clock.since(began));
        let (logs, took) = (broker.partitions.count(), broker.clock.since(began));
        tracing::info!(logs, clean, ?took, "logs open");
        let shutdown = broker.tasks.shutdown().clone();
        broker.tasks.spawn("assignments", assignments.run(images, shutdown));
    }

    /// Tells the controller that this broker is up, and waits until it leads what that makes it lead.
    async fn register(&self, address: SocketAddr) -> Result<(), ServerError> {
        let broker = &self.broker;
        let advertised = broker.config.advertised_address.as_deref().and_then(split_address);
        let (host, port) = advertised.unwrap_or_else(|| (address.ip().to_string(), address.port()));
        let command = Command::RegisterBroker(RegisterBroker {
            broker_id: broker.id,
            incarnation: IncarnationId(uuid::Uuid::new_v4().into_bytes()),
            host,
            port,
            rack: None,
        });
        let (done, outcome) = oneshot::channel();
        let completion = Box::new(move |outcome| drop(done.send(outcome)));
        broker.controller.propose(command, broker.clock.wall_ms(), completion);
        let committed = outcome.await.expect("the controller runs until `stop`");
        let committed = committed.map_err(ServerError::Register)?;
        let mut assigned = broker.assigned.clone();
        // An error: told to stop while starting.
        drop(assigned.wait_for(|index| *index >= committed.metadata_index).await);
        Ok(())
    }

    fn serve(&self, listener: TcpListener, address: SocketAddr) {
        let (broker, tasks) = (&self.broker, &self.broker.tasks);
        let shutdown = tasks.shutdown();
        let data_dir = Arc::clone(&self.data_dir);
        let space = move || janitor::space(&data_dir);
        let disk_watch = broker.disk_watch.clone();
        tasks.spawn("disk-watch", disk_watch.run(space, DISK_WATCH_INTERVAL, shutdown.clone()));
        let janitor = Janitor {
            broker: Arc::clone(broker),
            shards: self.shards.clone(),
            flusher: self.flusher.clone(),
            data_dir: Arc::clone(&self.data_dir),
            left_behind: self.left_behind.clone(),
        };
        tasks.spawn("janitor", janitor.run(shutdown.clone()));
        tasks.spawn("compactor", compactor::run(Arc::clone(broker), shutdown.clone()));
        tasks.spawn("listener", listener::run(listener, Arc::clone(broker)));
        broker.health.set_data_address(address);
        broker.health.clear(Reason::Starting);
        tracing::info!(%address, "serving");
    }

    /// Connections have been told to stop; everything else follows here.
    async fn stop(self) -> Result<(), ServerError> {
        let broker = Arc::clone(&self.broker);
        let (closed, data_dir) = self.take_apart().await;
        if closed.unclean > 0 {
            return Err(ServerError::Unclean(closed.unclean));
        }
        if let Some(failure) = broker.disk_watch.failure() {
            tracing::warn!(failure, "a directory that failed is not marked as cleanly closed");
            return Ok(());
        }
        let unopened = broker.partitions.unopened();
        let Some(data_dir) = Arc::into_inner(data_dir) else {
            tracing::warn!("the data directory is still in use; the next start scans the logs");
            return Ok(());
        };
        if unopened.is_empty() {
            return data_dir.close(&closed.checkpoints).map_err(ServerError::Close);
        }
        // Nobody knows whether these are in order: there is no clean shutdown with them.
        tracing::warn!(logs = unopened.len(), "logs that cannot be opened; the next start scans");
        let unopened = unopened.into_iter().filter_map(|(id, known)| Some((id, known?)));
        let checkpoints: Vec<_> = closed.checkpoints.into_iter().chain(unopened).collect();
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
        let Self { broker, threads, shards, flusher, data_dir, .. } = self;
        let timeout = broker.config.shutdown_timeout;
        if let Err(error) = broker.tasks.finished(timeout).await {
            tracing::warn!(%error, "stopping all the same");
        }
        let mut closed = shard::Closed::default();
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
        close_controller(&broker.controller).await;
        drop((shards, broker));
        if let Err(error) = threads.finished(THREADS_TIMEOUT).await {
            tracing::warn!(%error, "stopping all the same");
        }
        (closed, data_dir)
    }
}

/// Locks the directory and makes it ours. A directory that was never used becomes a cluster of its own.
async fn open_data_dir(disk: Disk, config: &Config) -> Result<Arc<DataDir<Disk>>, ServerError> {
    let (root, node_id) = (config.data_dir.clone(), config.node_id);
    let open = move || {
        let holder = format!("process {}", process::id());
        let locked = LockedDataDir::lock(disk, &root, &holder)?;
        let identity = locked.identity()?.map_or_else(
            || DataDirIdentity {
                cluster_id: uuid::Uuid::new_v4().to_string(),
                node_id,
                directory_id: uuid::Uuid::new_v4().into_bytes(),
            },
            // Refused by `open`, in words, when it is another node's.
            |found| DataDirIdentity { node_id, ..found },
        );
        locked.open(identity)
    };
    let opened = tokio::task::spawn_blocking(open).await;
    Ok(Arc::new(opened.map_err(io::Error::other)??))
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
