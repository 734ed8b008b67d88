//! What the fuzz targets do with their bytes. The ordinary tests do the same with the committed corpora, and
//! with bytes of proptest's choice.

use bytes::{Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use tidemark_protocol::{
    Failure,
    batch::{BatchHeader, batches, crc32c},
    frame::{Frame, FrameDecoder, FrameKind},
    limits,
    message::{Api, Request},
    messagepack,
    messages::{
        AddPartitionsRequest, AlterTopicRequest, ChangeBrokerRequest, ChangeQuorumRequest,
        CommitOffsetsRequest, ControllerCommandRequest, CreateTopicRequest, CreditHeader,
        DeleteGroupRequest, DeleteOffsetsRequest, DeleteRecordsRequest, DeleteTopicRequest,
        DescribeBrokerRequest, DescribeGroupRequest, DescribeLagRequest, DescribeLogDirsRequest,
        DescribeQuorumRequest, DescribeReplicasRequest, DescribeTopicRequest, ElectLeadersRequest,
        FetchMetadataRequest, FetchOffsetsRequest, FetchRequest, FindCoordinatorRequest,
        GroupHeartbeatRequest, HeartbeatRequest, InitProducerIdRequest, ListGroupsRequest,
        ListOffsetsRequest, MeasureLagRequest, MetadataRequest, PlanMovesRequest, ProduceRequest,
        PushHeader, QuorumHelloRequest, QuorumMessageRequest, ReassignPartitionsRequest,
        RemoveMemberRequest, ReplicaPositionsRequest, ReplicaPushHeader, ReplicateRequest,
        SeekGroupRequest, SeekHistoryRequest, SubscribeRequest, UndoSeekRequest,
    },
};

/// The first byte says how many bytes arrive at a time, the rest is the stream. Pieces and the whole must
/// make the same frames, and memory must stay near what has arrived.
pub fn frame(data: &[u8]) {
    let Some((&piece_bytes, stream)) = data.split_first() else { return };
    let whole = frames_of(stream, stream.len().max(1));
    let pieces = frames_of(stream, usize::from(piece_bytes) + 1);
    assert_eq!(whole, pieces, "a frame depends on how its bytes arrive");
    for frame in whole {
        read_message(Api::from_number(frame.api), frame.kind, &frame.header);
    }
}

fn frames_of(stream: &[u8], piece_bytes: usize) -> Vec<Frame> {
    let mut decoder = FrameDecoder::new(limits::FRAME_BYTES_MAX);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in stream.chunks(piece_bytes) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return frames,
            }
        }
        assert!(buffer.capacity() <= 4 * stream.len() + (256 << 10), "{} bytes", buffer.capacity());
    }
    frames
}

/// A row of batches, as it is and with magic, length and CRC of the first made right. What a broker would
/// accept must be readable, record by record.
pub fn batch(data: &[u8]) {
    read_batches(Bytes::copy_from_slice(data));
    if data.len() >= BatchHeader::BYTES {
        let mut repaired = data.to_vec();
        let length = u32::try_from(data.len() - 12).expect("fuzz inputs are small");
        repaired[8..12].copy_from_slice(&length.to_be_bytes());
        repaired[16] = 2;
        let crc = crc32c(&repaired[21..]);
        repaired[17..21].copy_from_slice(&crc.to_be_bytes());
        read_batches(repaired.into());
    }
}

fn read_batches(bytes: Bytes) {
    for batch in batches(bytes) {
        let Ok(batch) = batch else { return };
        let accepted = batch.validate_for_append(limits::BATCH_BYTES_MAX);
        let records = batch.records();
        if accepted.is_ok() {
            let records = records.expect("what a broker accepts, a consumer can read");
            let largest = records.iter().map(|record| record.timestamp_ms).max();
            assert_eq!(largest, Some(batch.header.max_timestamp));
            for (record, offset) in records.iter().zip(batch.header.base_offset..) {
                assert_eq!(record.offset, offset);
            }
        }
    }
}

/// The first byte chooses API and kind, the rest is the header. What can be read must survive being written.
pub fn message(data: &[u8]) {
    let Some((&choice, header)) = data.split_first() else { return };
    let kind = FrameKind::ALL[usize::from(choice) % FrameKind::ALL.len()];
    let api = Api::ALL.get(usize::from(choice) / FrameKind::ALL.len());
    read_message(api.copied(), kind, header);
}

fn read_message(api: Option<Api>, kind: FrameKind, header: &[u8]) {
    let Some(api) = api else { return };
    match kind {
        FrameKind::Push if api == Api::Replicate => survives::<ReplicaPushHeader>(header),
        FrameKind::Push => survives::<PushHeader>(header),
        FrameKind::Credit => survives::<CreditHeader>(header),
        FrameKind::Cancel => {}
        FrameKind::Request | FrameKind::Response => read_by_api(api, kind, header),
    }
}

fn read_by_api(api: Api, kind: FrameKind, header: &[u8]) {
    let read = match api {
        Api::Produce => request_or_response::<ProduceRequest>,
        Api::Fetch => request_or_response::<FetchRequest>,
        Api::Subscribe => request_or_response::<SubscribeRequest>,
        Api::ListOffsets => request_or_response::<ListOffsetsRequest>,
        Api::DeleteRecords => request_or_response::<DeleteRecordsRequest>,
        Api::Metadata => request_or_response::<MetadataRequest>,
        Api::CreateTopic => request_or_response::<CreateTopicRequest>,
        Api::DeleteTopic => request_or_response::<DeleteTopicRequest>,
        Api::AlterTopic => request_or_response::<AlterTopicRequest>,
        Api::AddPartitions => request_or_response::<AddPartitionsRequest>,
        Api::DescribeTopic => request_or_response::<DescribeTopicRequest>,
        Api::FindCoordinator => request_or_response::<FindCoordinatorRequest>,
        Api::GroupHeartbeat => request_or_response::<GroupHeartbeatRequest>,
        Api::CommitOffsets => request_or_response::<CommitOffsetsRequest>,
        Api::FetchOffsets => request_or_response::<FetchOffsetsRequest>,
        Api::DeleteOffsets => request_or_response::<DeleteOffsetsRequest>,
        Api::SeekGroup => request_or_response::<SeekGroupRequest>,
        Api::UndoSeek => request_or_response::<UndoSeekRequest>,
        Api::SeekHistory => request_or_response::<SeekHistoryRequest>,
        Api::ListGroups => request_or_response::<ListGroupsRequest>,
        Api::DescribeGroup => request_or_response::<DescribeGroupRequest>,
        Api::DeleteGroup => request_or_response::<DeleteGroupRequest>,
        Api::RemoveMember => request_or_response::<RemoveMemberRequest>,
        Api::DescribeLag => request_or_response::<DescribeLagRequest>,
        Api::DescribeBroker => request_or_response::<DescribeBrokerRequest>,
        Api::DescribeLogDirs => request_or_response::<DescribeLogDirsRequest>,
        Api::DescribeQuorum => request_or_response::<DescribeQuorumRequest>,
        Api::ChangeQuorum => request_or_response::<ChangeQuorumRequest>,
        Api::ChangeBroker => request_or_response::<ChangeBrokerRequest>,
        Api::ReassignPartitions => request_or_response::<ReassignPartitionsRequest>,
        Api::PlanMoves => request_or_response::<PlanMovesRequest>,
        Api::ElectLeaders => request_or_response::<ElectLeadersRequest>,
        Api::DescribeReplicas => request_or_response::<DescribeReplicasRequest>,
        Api::InitProducerId => request_or_response::<InitProducerIdRequest>,
        Api::QuorumMessage => request_or_response::<QuorumMessageRequest>,
        Api::QuorumHello => request_or_response::<QuorumHelloRequest>,
        Api::ControllerCommand => request_or_response::<ControllerCommandRequest>,
        Api::Heartbeat => request_or_response::<HeartbeatRequest>,
        Api::FetchMetadata => request_or_response::<FetchMetadataRequest>,
        Api::Replicate => request_or_response::<ReplicateRequest>,
        Api::ReplicaPositions => request_or_response::<ReplicaPositionsRequest>,
        Api::MeasureLag => request_or_response::<MeasureLagRequest>,
    };
    read(kind, header);
}

fn request_or_response<R: Request>(kind: FrameKind, header: &[u8]) {
    if kind == FrameKind::Request {
        survives::<R>(header);
    } else {
        survives::<Result<R::Response, Failure>>(header);
    }
}

fn survives<T: Serialize + DeserializeOwned>(header: &[u8]) {
    let list_elements_max = limits::TOPIC_PARTITIONS_MAX as usize;
    let Ok(message) = messagepack::decode::<T>(header, list_elements_max) else { return };
    let written = encoded(&message);
    let again: T =
        messagepack::decode(&written, list_elements_max).expect("own bytes are readable");
    assert_eq!(encoded(&again), written, "a message changes when it is read");
}

fn encoded<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    messagepack::encode(message, &mut out).expect("a message can be written");
    out
}
