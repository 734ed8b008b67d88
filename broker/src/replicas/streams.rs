//! The follower's side of replication: one stream to each broker that leads something we hold. It sends our positions as
//! they change, and hands the leader's answers to the shards.
//!
//! A stream that breaks is opened again, and every partition that follows through it begins anew.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tidemark_protocol::{
    BrokerEpoch, BrokerId, Failure, TopicPartition,
    frame::Frame,
    messages::{
        Position, ReplicaPosition, ReplicaPositionsRequest, ReplicaPushHeader, ReplicateRequest,
        ReplicateResponse,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{outbox::Outbox, throttle::Throttle};
use crate::{
    broker::Broker,
    peer::Peer,
    peers::pause,
    shard::{Command, LeaderAnswer},
};

/// Positions in one frame.
const POSITIONS_PER_FRAME_MAX: usize = 4096;
/// How often a stream asks for a sign of life, and how long it does without.
const PING_INTERVAL: Duration = Duration::from_millis(500);
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// How long a leader may take to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// The streams of this broker, by leader.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    by_leader: Mutex<HashMap<BrokerId, Arc<Outbox<Position>>>>,
    throttle: Throttle,
    /// Set once, when the broker is put together.
    broker: std::sync::OnceLock<Weak<Broker>>,
}

impl Streams {
    /// From now on streams are opened for positions that come in.
    pub(crate) fn start(self: &Arc<Self>, broker: &Arc<Broker>) {
        self.broker.set(Arc::downgrade(broker)).expect("a broker starts its streams once");
        let (tasks, mut images) = (broker.tasks.clone(), broker.images.clone());
        let (streams, broker) = (Arc::clone(self), Arc::downgrade(broker));
        let shutdown = tasks.shutdown().clone();
        tasks.spawn("throttle", async move {
            let releasing = streams.throttle.release(|leader, partition, position| {
                if let Some(broker) = broker.upgrade() {
                    streams.send(&broker, leader, partition, position);
                }
            });
            let following = async {
                loop {
                    let bound = images.borrow_and_update().replication_throttle();
                    streams.throttle.set_bound(bound);
                    if images.changed().await.is_err() {
                        return;
                    }
                }
            };
            shutdown.or_stop(async { tokio::join!(releasing, following) }).await;
        });
    }

    /// Sends a position to its leader, as soon as there is a stream, and room for the answer if the replica is not in
    /// sync.
    pub(crate) fn position(&self, leader: BrokerId, partition: TopicPartition, position: Position) {
        let Some(broker) = self.broker.get().and_then(Weak::upgrade) else { return };
        if self.throttle.holds() && !is_in_sync(&broker, partition) {
            self.throttle.keep(leader, partition, position);
        } else {
            self.send(&broker, leader, partition, position);
        }
    }

    fn send(
        &self,
        broker: &Arc<Broker>,
        leader: BrokerId,
        partition: TopicPartition,
        position: Position,
    ) {
        let outbox = {
            let mut streams = self.lock();
            let open = || {
                let outbox = Arc::<Outbox<Position>>::default();
                let stream = Stream { leader, outbox: Arc::clone(&outbox) };
                spawn(broker, stream);
                outbox
            };
            Arc::clone(streams.entry(leader).or_insert_with(open))
        };
        outbox.put(partition, position, |_, _| false);
    }

    /// Notes what came, if it counts against the bound on replicas that catch up.
    fn received(&self, broker: &Broker, partition: TopicPartition, bytes: usize) {
        if bytes > 0 && !is_in_sync(broker, partition) {
            self.throttle.spend(bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BrokerId, Arc<Outbox<Position>>>> {
        self.by_leader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(broker: &Arc<Broker>, stream: Stream) {
    let (shutdown, alive) = (broker.tasks.shutdown().clone(), Arc::clone(broker));
    broker.tasks.spawn("follow", async move {
        shutdown.or_stop(stream.run(&alive)).await;
    });
}

fn is_in_sync(broker: &Broker, partition: TopicPartition) -> bool {
    let image = broker.images.borrow();
    image.partition(partition).is_some_and(|partition| partition.isr.contains(&broker.id))
}

/// One stream, over any number of connections.
struct Stream {
    leader: BrokerId,
    outbox: Arc<Outbox<Position>>,
}

/// One connection of a stream.
struct Connected {
    peer: Peer,
    pushes: mpsc::Receiver<Frame>,
    correlation: u32,
    /// What the leader knows us by.
    broker_epoch: BrokerEpoch,
}

impl Stream {
    async fn run(self, broker: &Arc<Broker>) {
        let mut failures = 0;
        loop {
            // Nobody to connect for: wait for somebody.
            self.outbox.filled().await;
            match self.connect(broker).await {
                Ok(connected) => {
                    failures = 0;
                    tracing::debug!(leader = self.leader, "following");
                    self.follow(broker, connected).await;
                    // What was sent over it may be lost, and whoever waits for an answer says nothing by itself.
                    self.ask_positions(broker).await;
                }
                Err(failure) => {
                    failures += 1;
                    tracing::debug!(leader = self.leader, %failure, "cannot follow");
                }
            }
            sleep(pause(failures.max(1))).await;
        }
    }

    async fn connect(&self, broker: &Broker) -> Result<Connected, Failure> {
        let broker_epoch = broker.registered_epoch().await?;
        let (peer, pushes) = broker.connect_to(self.leader).await?;
        let request = ReplicateRequest {
            cluster_id: broker.cluster_id.clone(),
            broker_id: broker.id,
            broker_epoch,
            leader_id: self.leader,
        };
        let (correlation, answer) = peer.begin(&request).await?;
        let _opened: ReplicateResponse =
            peer.finish::<ReplicateRequest>(answer, OPEN_TIMEOUT).await?.0;
        Ok(Connected { peer, pushes, correlation, broker_epoch })
    }

    /// Lets every partition that follows this leader say anew where it is.
    async fn ask_positions(&self, broker: &Broker) {
        for shard in &broker.shards {
            // A shard that has ended follows nobody.
            shard.send(Command::LeaderConnected { leader: self.leader }).await.ok();
        }
    }

    async fn follow(&self, broker: &Broker, mut connected: Connected) {
        // What was meant for the connection before: every partition says anew where it is.
        self.outbox.clear();
        self.ask_positions(broker).await;
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut superseded = pin!(broker.registration_ended(connected.broker_epoch));
        loop {
            tokio::select! {
                positions = self.outbox.take(POSITIONS_PER_FRAME_MAX) => {
                    if connected.send(positions).await.is_err() {
                        return;
                    }
                }
                push = connected.pushes.recv() => {
                    heard = Instant::now();
                    let Some(frame) = push else { return };
                    if let Err(problem) = deal_out(broker, self.leader, &frame).await {
                        tracing::warn!(leader = self.leader, problem, "a push cannot be used");
                        return;
                    }
                }
                _ = ping.tick() => {
                    if heard.elapsed() > SILENCE_MAX || connected.send(Vec::new()).await.is_err() {
                        return;
                    }
                }
                () = connected.peer.closed() => return,
                // What a broker says in another run than the metadata knows counts for nothing.
                () = &mut superseded => return,
            }
        }
    }
}

impl Connected {
    async fn send(&self, positions: Vec<(TopicPartition, Position)>) -> Result<(), Failure> {
        let positions = positions
            .into_iter()
            .map(|(partition, position)| ReplicaPosition { partition, position })
            .collect();
        self.peer.tell(&ReplicaPositionsRequest { stream: self.correlation, positions }).await
    }
}

/// Cuts a push into the partitions' answers and sends each to its shard.
async fn deal_out(broker: &Broker, leader: BrokerId, frame: &Frame) -> Result<(), String> {
    let header: ReplicaPushHeader = frame.message().map_err(|error| error.to_string())?;
    let mut payload = frame.payload.clone();
    for push in header.partitions {
        if push.batch_bytes as usize > payload.len() {
            return Err("it is shorter than it says".to_owned());
        }
        let bytes = payload.split_to(push.batch_bytes as usize);
        broker.metrics.cluster().received(bytes.len() as u64);
        broker.streams.received(broker, push.partition, bytes.len());
        // Not by way of the partition's view, which is shown only after the shard serves it, and asks: an answer that was
        // faster would be lost, and there is only one to each question.
        let shard = broker.shard_of(push.partition);
        let answer = LeaderAnswer::new(leader, push, bytes);
        if shard.send(Command::LeaderAnswer(Box::new(answer))).await.is_err() {
            return Err("the broker is stopping".to_owned());
        }
    }
    Ok(())
}
