//! The native door: frames to requests of the service, and its answers back to frames.
//!
//! Requests that carry payload or outlive their answer have a file each; all others are a row in
//! [`NativeDoor::begin_request`]. Nothing here decides anything about topics or logs.

mod cluster;
mod fetch;
mod groups;
mod handshake;
mod produce;
mod replicate;
mod reply;
mod subscribe;

use std::{collections::HashMap, future::Future, sync::Arc, time::Instant};

use bytes::BytesMut;
use tidemark_protocol::{
    ErrorCode, Failure,
    frame::{Frame, FrameDecoder, FrameKind},
    message::{Api, Request},
    messages::{
        CreditHeader, DescribeBrokerRequest, DescribeLogDirsRequest, DescribeTopicRequest,
        MetadataRequest, PlanMovesRequest,
    },
};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::handshake::{GreetError, greet};
use self::{reply::Replier, subscribe::Subscriptions};
use crate::{
    broker::{Broker, Caller},
    connection::{Begun, Door, Pending, Refusal, Reply},
    service::{
        add_partitions::add_partitions,
        alter_topic::alter_topic,
        change_broker::change_broker,
        cluster::{controller_command, quorum_hello},
        create_topic::create_topic,
        delete_records::delete_records,
        delete_topic::delete_topic,
        describe_broker::describe_broker,
        describe_log_dirs::describe_log_dirs,
        describe_replicas::describe_replicas,
        describe_topic::describe_topic,
        elect_leaders::elect_leaders,
        find_coordinator::find_coordinator,
        groups::{administer, inspect, lag, offsets, seek},
        init_producer_id::init_producer_id,
        list_offsets::list_offsets,
        metadata::metadata,
        plan_moves::plan_moves,
        quorum::{change_quorum, describe_quorum},
        reassign_partitions::reassign_partitions,
        transactions::{
            end_transaction,
            inspect::{abort_transaction, describe_transaction, list_transactions},
            join::join_transaction,
            markers::write_markers,
            offsets::commit_transactional_offsets,
        },
    },
};

/// Fetches that can be cancelled are forgotten, once answered, when there are more than this.
const CANCELLABLE_KEPT_MAX: usize = 64;

/// One client's conversation in the native protocol.
pub(crate) struct NativeDoor {
    broker: Arc<Broker>,
    caller: Caller,
    decoder: FrameDecoder,
    subscriptions: Subscriptions,
    /// Fetches that may wait, by correlation. Bounded by the requests in flight of the connection.
    cancellable: HashMap<u32, oneshot::Sender<()>>,
    pushes: mpsc::Sender<Reply>,
    /// A follower's, if it is one that asks.
    stream: Option<replicate::Stream>,
    /// Tells this connection from every other of this process.
    connection: u64,
    /// A broker was heard over this connection.
    has_heartbeats: bool,
}

impl Drop for NativeDoor {
    fn drop(&mut self) {
        if self.has_heartbeats
            && let Some(local) = self.broker.control.local()
        {
            local.connection_closed(self.connection);
        }
    }
}

impl NativeDoor {
    /// `pushes`: where subscriptions send.
    pub(crate) fn new(broker: Arc<Broker>, caller: Caller, pushes: mpsc::Sender<Reply>) -> Self {
        let max_frame_bytes = usize::try_from(broker.config.max_frame_bytes).unwrap_or(usize::MAX);
        Self {
            subscriptions: Subscriptions::new(&broker, pushes.clone()),
            connection: broker.next_connection(),
            broker,
            caller,
            decoder: FrameDecoder::new(max_frame_bytes),
            cancellable: HashMap::new(),
            pushes,
            stream: None,
            has_heartbeats: false,
        }
    }

    #[expect(clippy::too_many_lines, reason = "a line for each API, and none forgotten")]
    async fn begin_request(&mut self, frame: Frame) -> Begun {
        let received_at = self.broker.clock.now();
        let Some(api) = Api::from_number(frame.api) else {
            self.broker.metrics.requests().unsupported(frame.api);
            return refuse_unknown(&frame);
        };
        self.broker.metrics.requests().api(api).received();
        match api {
            Api::Produce => produce::begin(self, frame, received_at).await,
            Api::Fetch => fetch::begin(self, &frame, received_at),
            Api::Subscribe => subscribe::begin(self, &frame, received_at),
            Api::FindCoordinator => self.answer(&frame, received_at, find_coordinator),
            Api::GroupHeartbeat => groups::begin_heartbeat(self, &frame, received_at),
            Api::CommitOffsets => self.answer(&frame, received_at, offsets::commit_offsets),
            Api::FetchOffsets => self.answer(&frame, received_at, offsets::fetch_offsets),
            Api::DeleteOffsets => self.answer(&frame, received_at, offsets::delete_offsets),
            Api::SeekGroup => self.answer(&frame, received_at, seek::seek_group),
            Api::UndoSeek => self.answer(&frame, received_at, seek::undo_seek),
            Api::SeekHistory => self.answer(&frame, received_at, seek::seek_history),
            Api::ListGroups => self.answer(&frame, received_at, inspect::list_groups),
            Api::DescribeGroup => self.answer(&frame, received_at, inspect::describe_group),
            Api::DeleteGroup => self.answer(&frame, received_at, administer::delete_group),
            Api::RemoveMember => self.answer(&frame, received_at, administer::remove_member),
            Api::DescribeLag => self.answer(&frame, received_at, lag::describe_lag),
            Api::MeasureLag => self.answer(&frame, received_at, lag::measure_lag),
            Api::ListOffsets => self.answer(&frame, received_at, list_offsets),
            Api::DeleteRecords => self.answer(&frame, received_at, delete_records),
            Api::CreateTopic => self.answer(&frame, received_at, create_topic),
            Api::DeleteTopic => self.answer(&frame, received_at, delete_topic),
            Api::AlterTopic => self.answer(&frame, received_at, alter_topic),
            Api::AddPartitions => self.answer(&frame, received_at, add_partitions),
            Api::Metadata => self.answer_now(&frame, received_at, |request: MetadataRequest| {
                Ok(metadata(&self.broker, self.caller, &request))
            }),
            Api::DescribeTopic => {
                self.answer_now(&frame, received_at, |request: DescribeTopicRequest| {
                    describe_topic(&self.broker, &request)
                })
            }
            Api::DescribeBroker => {
                self.answer_now(&frame, received_at, |request: DescribeBrokerRequest| {
                    Ok(describe_broker(&self.broker, request))
                })
            }
            Api::DescribeQuorum => self.answer(&frame, received_at, describe_quorum),
            Api::ChangeQuorum => self.answer(&frame, received_at, change_quorum),
            Api::ChangeBroker => self.answer(&frame, received_at, change_broker),
            Api::ReassignPartitions => self.answer(&frame, received_at, reassign_partitions),
            Api::ElectLeaders => self.answer(&frame, received_at, elect_leaders),
            Api::PlanMoves => self.answer_now(&frame, received_at, |request: PlanMovesRequest| {
                plan_moves(&self.broker, &request)
            }),
            Api::DescribeReplicas => self.answer(&frame, received_at, describe_replicas),
            Api::InitProducerId => self.answer(&frame, received_at, init_producer_id),
            Api::EndTransaction => self.answer(&frame, received_at, end_transaction),
            Api::CommitTransactionalOffsets => {
                self.answer(&frame, received_at, commit_transactional_offsets)
            }
            Api::ListTransactions => self.answer(&frame, received_at, list_transactions),
            Api::DescribeTransaction => self.answer(&frame, received_at, describe_transaction),
            Api::AbortTransaction => self.answer(&frame, received_at, abort_transaction),
            Api::JoinTransaction => self.answer(&frame, received_at, join_transaction),
            Api::WriteMarkers => self.answer(&frame, received_at, write_markers),
            Api::QuorumMessage => cluster::quorum_message(self, &frame),
            Api::QuorumHello => self.answer(&frame, received_at, quorum_hello),
            Api::ControllerCommand => self.answer(&frame, received_at, controller_command),
            Api::Heartbeat => cluster::heartbeat(self, &frame, received_at),
            Api::FetchMetadata => cluster::fetch_metadata(self, &frame, received_at),
            Api::Replicate => replicate::begin(self, &frame, received_at),
            Api::ReplicaPositions => replicate::positions(self, frame).await,
            Api::DescribeLogDirs => {
                self.answer_now(&frame, received_at, |_: DescribeLogDirsRequest| {
                    Ok(describe_log_dirs(&self.broker))
                })
            }
        }
    }

    /// A request whose header says everything, whose answer does too, and may take a while.
    fn answer<R, F>(
        &self,
        frame: &Frame,
        received_at: Instant,
        verb: impl FnOnce(Arc<Broker>, R) -> F,
    ) -> Begun
    where
        R: Request,
        F: Future<Output = Result<R::Response, Failure>> + Send + 'static,
    {
        let replier = Replier::new(&self.broker, R::API, frame.correlation, received_at);
        let request = match frame.message::<R>() {
            Ok(request) => request,
            Err(error) => return replier.refuse(&invalid_header(&error)),
        };
        let answer = verb(Arc::clone(&self.broker), request);
        let pending = async move { replier.reply::<R>(&answer.await, Vec::new()) };
        Begun::Reply {
            held_bytes: frame.wire_bytes(),
            pending: Pending::Waiting(Box::pin(pending)),
        }
    }

    /// The same, when the answer is at hand.
    fn answer_now<R: Request>(
        &self,
        frame: &Frame,
        received_at: Instant,
        verb: impl FnOnce(R) -> Result<R::Response, Failure>,
    ) -> Begun {
        let replier = Replier::new(&self.broker, R::API, frame.correlation, received_at);
        let request = match frame.message::<R>() {
            Ok(request) => request,
            Err(error) => return replier.refuse(&invalid_header(&error)),
        };
        let reply = replier.reply::<R>(&verb(request), Vec::new());
        Begun::Reply { held_bytes: frame.wire_bytes(), pending: Pending::Ready(reply) }
    }

    fn credit(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let credit: CreditHeader = frame.message().map_err(|error| Refusal(error.to_string()))?;
        self.subscriptions.add_credit(frame.correlation, credit.bytes);
        Ok(())
    }

    /// Cancels a fetch that waits or a subscription; anything else is answered soon anyway.
    fn cancel(&mut self, correlation: u32) {
        if let Some(cancel) = self.cancellable.remove(&correlation) {
            // It may have been answered already.
            cancel.send(()).ok();
        }
        self.subscriptions.cancel(correlation);
    }

    /// Lets a cancel frame reach a request that is about to wait.
    fn make_cancellable(&mut self, correlation: u32) -> oneshot::Receiver<()> {
        if self.cancellable.len() >= CANCELLABLE_KEPT_MAX {
            self.cancellable.retain(|_, cancel| !cancel.is_closed());
        }
        let (cancel, cancelled) = oneshot::channel();
        self.cancellable.insert(correlation, cancel);
        cancelled
    }
}

impl Door for NativeDoor {
    type Request = Frame;

    /// Credits and cancels take effect here: they are not requests, and get no answer.
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Refusal> {
        loop {
            let frame = self.decoder.decode(buffer).map_err(|error| Refusal(error.to_string()))?;
            let Some(frame) = frame else { return Ok(None) };
            match frame.kind {
                FrameKind::Request => return Ok(Some(frame)),
                FrameKind::Credit => self.credit(&frame)?,
                FrameKind::Cancel => self.cancel(frame.correlation),
                FrameKind::Response | FrameKind::Push => {
                    return Err(Refusal(format!("a client sent a {:?} frame", frame.kind)));
                }
            }
        }
    }

    fn begin(&mut self, request: Frame) -> impl Future<Output = Begun> + Send {
        self.begin_request(request)
    }

    fn has_subscriptions(&self) -> bool {
        !self.subscriptions.is_empty() || self.stream.is_some()
    }

    /// A follower's stream has no last word: that its connection closes says all.
    fn owes_last_pushes(&self) -> bool {
        !self.subscriptions.is_empty()
    }
}

fn refuse_unknown(frame: &Frame) -> Begun {
    let message = format!("this broker knows no API number {}", frame.api);
    let failure = Failure::new(ErrorCode::UnsupportedApi, message);
    let reply = reply::encode_failure(frame.api, frame.correlation, &failure);
    Begun::Reply { held_bytes: 0, pending: Pending::Ready(reply) }
}

fn invalid_header(error: &tidemark_protocol::frame::FrameError) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, error.to_string())
}
