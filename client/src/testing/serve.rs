//! The fake broker's side of a connection: requests in order, pushes beside them.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tidemark_protocol::{
    ErrorCode, Failure,
    frame::{Frame, FrameDecoder, FrameKind, Preface, encode_head},
    limits::FRAME_BYTES_MAX,
    message::{Api, Request},
    messages::{
        Acks, AddPartitionsRequest, AddPartitionsResponse, CreateTopicRequest, CreateTopicResponse,
        CreditHeader, DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicRequest,
        DeleteTopicResponse, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
        MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse, PushHeader,
        SubscribeRequest, SubscribeResponse, SubscribedPartition,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, Notify},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Fault, World, locked};
use crate::tasks;

/// Accepts connections until `stop`.
pub(super) async fn accept(listener: TcpListener, world: Arc<World>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { return };
        let broken = locked(&world.connected).clone();
        let world = world.clone();
        tasks::spawn("fake-connection", "", async move {
            world.connections.send_modify(|count| *count += 1);
            tokio::select! {
                () = broken.cancelled() => {}
                // However it ends, the client sees a closed connection.
                _ = serve(stream, world.clone()) => {}
            }
            world.connections.send_modify(|count| *count -= 1);
        });
    }
}

/// One connection.
struct Connection {
    world: Arc<World>,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    subscriptions: HashMap<u32, Subscription>,
}

struct Subscription {
    credit: Arc<Credit>,
    _stop: DropGuard,
}

struct Credit {
    bytes: AtomicI64,
    granted: Notify,
}

async fn serve(mut stream: TcpStream, world: Arc<World>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    world.going().await;
    let mut theirs = [0; 8];
    stream.read_exact(&mut theirs).await?;
    stream.write_all(&Preface::OURS.encode()).await?;
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(Mutex::new(writer));
    let mut connection = Connection { world, writer, subscriptions: HashMap::new() };
    let mut decoder = FrameDecoder::new(FRAME_BYTES_MAX);
    let mut buffer = BytesMut::new();
    while let Some(frame) = read_frame(&mut reader, &mut decoder, &mut buffer).await? {
        connection.handle(frame).await?;
    }
    Ok(())
}

async fn read_frame(
    reader: &mut OwnedReadHalf,
    decoder: &mut FrameDecoder,
    buffer: &mut BytesMut,
) -> io::Result<Option<Frame>> {
    loop {
        if let Some(frame) = decoder.decode(buffer).map_err(io::Error::other)? {
            return Ok(Some(frame));
        }
        if reader.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

impl Connection {
    async fn handle(&mut self, frame: Frame) -> io::Result<()> {
        match frame.kind {
            FrameKind::Credit => {
                let header: CreditHeader = frame.message().map_err(io::Error::other)?;
                if let Some(subscription) = self.subscriptions.get(&frame.correlation) {
                    let bytes = i64::from(header.bytes);
                    subscription.credit.bytes.fetch_add(bytes, Ordering::AcqRel);
                    subscription.credit.granted.notify_one();
                }
                Ok(())
            }
            FrameKind::Cancel => {
                self.subscriptions.remove(&frame.correlation);
                Ok(())
            }
            _ => self.request(frame).await,
        }
    }

    async fn request(&mut self, frame: Frame) -> io::Result<()> {
        let api = Api::from_number(frame.api).ok_or_else(|| io::Error::other("unknown API"))?;
        let mut refused = None;
        let mut broken = false;
        self.world.going().await;
        match self.world.arrived(api) {
            Some(Fault::Refuse(code)) => {
                let refusal: Result<(), Failure> = Err(Failure::new(code, "injected"));
                return self.answer(&frame, &refusal, Bytes::new()).await;
            }
            Some(Fault::RefuseFirstPartition(code)) => refused = Some(code),
            Some(Fault::BreakBefore) => return Err(io::Error::other("injected")),
            Some(Fault::BreakAfter) => broken = true,
            Some(Fault::Delay(time)) => sleep(time).await,
            Some(Fault::Swallow) => return Ok(()),
            None => {}
        }
        match api {
            Api::Produce => self.produce(&frame, refused, broken).await,
            Api::Fetch => self.fetch(&frame, refused).await,
            Api::Subscribe => self.subscribe(&frame, refused).await,
            _ => self.administer(api, &frame, refused, broken).await,
        }
    }

    async fn produce(
        &self,
        frame: &Frame,
        refused: Option<ErrorCode>,
        broken: bool,
    ) -> io::Result<()> {
        let request: ProduceRequest = decode(frame)?;
        let mut payload = frame.payload.clone();
        let mut refused = refused;
        let mut outcomes = Vec::new();
        for part in &request.partitions {
            let share = payload.split_to(part.batch_bytes as usize);
            outcomes.push(match refused.take() {
                Some(code) => Err(Failure::new(code, "injected")),
                None => locked(&self.world.shared.topics).append(self.world.id, part, share),
            });
        }
        self.world.shared.changed();
        if broken {
            return Err(io::Error::other("injected"));
        }
        if request.acks == Acks::None {
            return Ok(());
        }
        let answer: Result<_, Failure> = Ok(ProduceResponse { partitions: outcomes });
        self.answer(frame, &answer, Bytes::new()).await
    }

    async fn fetch(&self, frame: &Frame, refused: Option<ErrorCode>) -> io::Result<()> {
        let request: FetchRequest = decode(frame)?;
        let deadline = Instant::now() + Duration::from_millis(request.max_wait_ms.into());
        let mut changes = self.world.shared.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let mut refused = refused;
            let mut outcomes = Vec::new();
            let mut payload = BytesMut::new();
            for part in &request.partitions {
                let left =
                    (request.max_bytes.min(part.max_bytes) as usize).saturating_sub(payload.len());
                let read = if let Some(code) = refused.take() {
                    Err(Failure::new(code, "injected"))
                } else {
                    let at = (self.world.id, part.leader_epoch);
                    locked(&self.world.shared.topics).read(at, part.partition, part.offset, left)
                };
                outcomes.push(read.map(|(mut fetched, bytes, _)| {
                    if payload.is_empty() || bytes.len() <= left {
                        payload.extend_from_slice(&bytes);
                    } else {
                        fetched.batch_bytes = 0;
                    }
                    fetched
                }));
            }
            let enough = payload.len() >= request.min_bytes as usize;
            let failed = outcomes.iter().any(Result::is_err);
            if enough || failed || timeout_at(deadline, changes.changed()).await.is_err() {
                let answer: Result<_, Failure> = Ok(FetchResponse { partitions: outcomes });
                return self.answer(frame, &answer, payload.freeze()).await;
            }
        }
    }

    async fn subscribe(&mut self, frame: &Frame, refused: Option<ErrorCode>) -> io::Result<()> {
        let request: SubscribeRequest = decode(frame)?;
        let mut refused = refused;
        let mut outcomes = Vec::new();
        let mut positions = Vec::new();
        for part in &request.partitions {
            let read = if let Some(code) = refused.take() {
                Err(Failure::new(code, "injected"))
            } else {
                let at = (self.world.id, part.leader_epoch);
                locked(&self.world.shared.topics).read(at, part.partition, part.offset, 0)
            };
            if read.is_ok() {
                positions.push((part.partition, part.offset));
            }
            outcomes.push(read.map(|(fetched, ..)| SubscribedPartition {
                high_watermark: fetched.high_watermark,
                log_start_offset: fetched.log_start_offset,
                leader_epoch: fetched.leader_epoch,
            }));
        }
        let answer: Result<_, Failure> = Ok(SubscribeResponse { partitions: outcomes });
        self.answer(frame, &answer, Bytes::new()).await?;
        let credit =
            Credit { bytes: i64::from(request.credit_bytes).into(), granted: Notify::new() };
        let credit = Arc::new(credit);
        let stop = CancellationToken::new();
        let pushing = Pushing {
            world: self.world.clone(),
            writer: self.writer.clone(),
            correlation: frame.correlation,
            credit: credit.clone(),
            max_push_bytes: request.max_push_bytes as usize,
        };
        let stopped = stop.clone();
        tasks::spawn("fake-subscription", "", async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                // A broken connection ends the connection's own loop.
                _ = pushing.run(positions) => {}
            }
        });
        let subscription = Subscription { credit, _stop: stop.drop_guard() };
        self.subscriptions.insert(frame.correlation, subscription);
        Ok(())
    }

    async fn administer(
        &self,
        api: Api,
        frame: &Frame,
        refused: Option<ErrorCode>,
        broken: bool,
    ) -> io::Result<()> {
        let (topics, at) = (&self.world.shared.topics, self.world.id);
        let decides = matches!(
            api,
            Api::CreateTopic | Api::DeleteTopic | Api::AddPartitions | Api::ChangeBroker
        );
        if decides && locked(&self.world.shared.members).controller != Some(at) {
            let refusal: Result<(), _> =
                Err(Failure::new(ErrorCode::NotController, "this node is not the controller"));
            return self.answer(frame, &refusal, Bytes::new()).await;
        }
        let head = match api {
            Api::Metadata => {
                let request: MetadataRequest = decode(frame)?;
                head(frame, &Ok(self.metadata(&request)))
            }
            Api::CreateTopic => {
                let request: CreateTopicRequest = decode(frame)?;
                let partitions = request.partitions.unwrap_or(1);
                let created = locked(topics).create(&request.name, partitions);
                head(
                    frame,
                    &created.map(|id| CreateTopicResponse {
                        id,
                        partitions,
                        replication_factor: 1,
                        settings: request.settings,
                    }),
                )
            }
            Api::DeleteTopic => {
                let request: DeleteTopicRequest = decode(frame)?;
                let deleted = locked(topics).delete(&request.name);
                head(frame, &deleted.map(|id| DeleteTopicResponse { id }))
            }
            Api::AddPartitions => {
                let request: AddPartitionsRequest = decode(frame)?;
                let added = locked(topics).add_partitions(&request.name, request.partitions);
                head(frame, &added.map(|partitions| AddPartitionsResponse { partitions }))
            }
            Api::ListOffsets => {
                let request: ListOffsetsRequest = decode(frame)?;
                let list = |question| locked(topics).list(at, question);
                let partitions = request.partitions.iter().map(list).collect();
                head(frame, &Ok(ListOffsetsResponse { partitions }))
            }
            Api::DeleteRecords => {
                let request: DeleteRecordsRequest = decode(frame)?;
                let delete = request.partitions.iter().map(|part| {
                    locked(topics).delete_records(at, part.partition, part.before_offset)
                });
                head(frame, &Ok(DeleteRecordsResponse { partitions: delete.collect() }))
            }
            _ => self.world.coordinate(api, frame, refused),
        }?;
        if broken {
            return Err(io::Error::other("injected"));
        }
        self.writer.lock().await.write_all(&head).await
    }

    fn metadata(&self, request: &MetadataRequest) -> MetadataResponse {
        let (controller_id, metadata_index, brokers) = {
            let members = locked(&self.world.shared.members);
            let brokers = members.brokers.values().cloned().collect();
            (members.controller, members.metadata_index, brokers)
        };
        MetadataResponse {
            cluster_id: "fake".to_owned(),
            controller_id,
            broker_id: self.world.id,
            metadata_index,
            brokers,
            // Read last: what changes meanwhile is told too early, never under an index that has it already.
            topics: locked(&self.world.shared.topics).metadata(request.topics.as_deref()),
        }
    }

    async fn answer<T: Serialize>(
        &self,
        frame: &Frame,
        answer: &Result<T, Failure>,
        payload: Bytes,
    ) -> io::Result<()> {
        let kind = FrameKind::Response;
        let head = encode_head(kind, frame.api, frame.correlation, answer, payload.len());
        let mut writer = self.writer.lock().await;
        writer.write_all(&head.map_err(io::Error::other)?).await?;
        writer.write_all(&payload).await
    }
}

/// The task of one subscription.
struct Pushing {
    world: Arc<World>,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    correlation: u32,
    credit: Arc<Credit>,
    max_push_bytes: usize,
}

impl Pushing {
    async fn run(
        self,
        mut positions: Vec<(tidemark_protocol::TopicPartition, u64)>,
    ) -> io::Result<()> {
        let mut changes = self.world.shared.changes.subscribe();
        while !positions.is_empty() {
            changes.mark_unchanged();
            let mut idle = true;
            let mut gone = Vec::new();
            for (at, (partition, offset)) in positions.iter_mut().enumerate() {
                while self.credit.bytes.load(Ordering::Acquire) <= 0 {
                    self.credit.granted.notified().await;
                }
                let max_bytes = self.max_push_bytes;
                self.world.going().await;
                let whom = (self.world.id, None);
                let read =
                    locked(&self.world.shared.topics).read(whom, *partition, *offset, max_bytes);
                let (outcome, payload) = match read {
                    Ok((_, payload, _)) if payload.is_empty() => continue,
                    Ok((fetched, payload, next)) => {
                        *offset = next;
                        idle = false;
                        (Ok(fetched), payload)
                    }
                    Err(failure) => {
                        gone.push(at);
                        (Err(failure), Bytes::new())
                    }
                };
                let spent = i64::try_from(payload.len()).unwrap_or(i64::MAX);
                self.credit.bytes.fetch_sub(spent, Ordering::AcqRel);
                let header = PushHeader { partition: Some(*partition), outcome };
                self.send(&header, &payload).await?;
            }
            for at in gone.into_iter().rev() {
                positions.remove(at);
            }
            if idle && changes.changed().await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn send(&self, header: &PushHeader, payload: &Bytes) -> io::Result<()> {
        let api = Api::Subscribe.number();
        let head = encode_head(FrameKind::Push, api, self.correlation, header, payload.len());
        let mut writer = self.writer.lock().await;
        writer.write_all(&head.map_err(io::Error::other)?).await?;
        writer.write_all(payload).await
    }
}

pub(super) fn decode<R: Request>(frame: &Frame) -> io::Result<R> {
    frame.message().map_err(io::Error::other)
}

pub(super) fn head<T: Serialize>(frame: &Frame, answer: &Result<T, Failure>) -> io::Result<Bytes> {
    encode_head(FrameKind::Response, frame.api, frame.correlation, answer, 0)
        .map_err(io::Error::other)
}
