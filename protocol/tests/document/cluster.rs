//! Samples of what operates a cluster, and of what its nodes say to each other.

use tidemark_protocol::{DirectoryId, ErrorCode, frame::FrameKind, message::Api, messages::*};

use crate::samples::{PARTITION, Sample, api, encoded, failure, header, part};

const VOTER: VoterId = VoterId { node: 1, directory: DirectoryId([7; 16]) };
const OTHER: VoterId = VoterId { node: 2, directory: DirectoryId([8; 16]) };

/// What clients may ask, from `describe_quorum` on.
pub(crate) fn operations(all: &mut Vec<Sample>) {
    quorum(all);
    moves(all);
    let elect = ElectLeadersRequest {
        election: Election::Transfer,
        partitions: vec![PARTITION],
        to: Some(2),
        timeout_ms: 30_000,
    };
    let outcomes = vec![(PARTITION, Ok(2)), (PARTITION, Err(failure()))];
    api(all, &elect, ElectLeadersResponse { partitions: outcomes });

    let progress = ReplicaProgress {
        broker: 2,
        log_end_offset: Some(90),
        flushed_offset: Some(80),
        lag_bytes: 1 << 20,
        lag_ms: 150,
        in_sync: true,
    };
    let replicas = PartitionReplicas {
        leader_epoch: 3,
        log_start_offset: 5,
        high_watermark: 90,
        log_end_offset: 100,
        size_bytes: 1 << 30,
        replicas: vec![progress],
    };
    part(all, &progress);
    part(all, &replicas);
    let answer = DescribeReplicasResponse { partitions: vec![Ok(replicas), Err(failure())] };
    api(all, &DescribeReplicasRequest { partitions: vec![PARTITION] }, answer);
}

fn quorum(all: &mut Vec<Sample>) {
    let member = QuorumMember {
        id: VOTER,
        is_voter: true,
        address: "127.0.0.1:9092".to_owned(),
        log_end_index: 41,
        is_alive: true,
    };
    part(all, &VOTER);
    part(all, &member);
    let quorum = DescribeQuorumResponse {
        leader: 1,
        term: 2,
        committed_index: 40,
        log_end_index: 41,
        members: vec![member],
    };
    api(all, &DescribeQuorumRequest {}, quorum);
    let add =
        ChangeQuorumRequest { node: 2, add_at: Some("b:9092".to_owned()), timeout_ms: 30_000 };
    api(all, &add, ChangeQuorumResponse { voters: vec![VOTER, OTHER] });
}

fn moves(all: &mut Vec<Sample>) {
    let (validate_only, timeout_ms) = (false, 30_000);
    let drain =
        ChangeBrokerRequest { broker: 3, change: BrokerChange::Drain, validate_only, timeout_ms };
    api(all, &drain, ChangeBrokerResponse { replicas: 12 });

    let here = PartitionMove { partition: PARTITION, replicas: Some(vec![2, 3]) };
    part(all, &here);
    let reassign = ReassignPartitionsRequest {
        moves: vec![here, PartitionMove { partition: PARTITION, replicas: None }],
        throttle_bytes_per_second: Some(50 << 20),
        validate_only,
        timeout_ms,
    };
    let answer = ReassignPartitionsResponse { moves: vec![Ok(()), Err(failure())] };
    api(all, &reassign, answer);

    let planned = PlannedMove {
        topic: "clicks".to_owned(),
        partition: PARTITION,
        from: vec![1, 2],
        to: vec![2, 3],
    };
    part(all, &planned);
    let plan = PlanMovesRequest {
        goal: PlanGoal::Place,
        topics: vec!["clicks".to_owned()],
        partitions: vec![PARTITION],
        brokers: vec![2, 3],
        replication_factor: Some(2),
    };
    api(all, &plan, PlanMovesResponse { moves: vec![planned] });
}

/// What no client says.
pub(crate) fn nodes(all: &mut Vec<Sample>) {
    controllers(all);
    replication(all);
}

fn controllers(all: &mut Vec<Sample>) {
    let cluster_id = "demo".to_owned();
    let message = QuorumMessageRequest { cluster_id: cluster_id.clone(), from: VOTER, to: OTHER };
    // There is no response.
    header(all, Api::QuorumMessage, FrameKind::Request, &message);
    let (node, directory, controllers) = (VOTER.node, VOTER.directory, vec![1, 2, 3]);
    let hello = QuorumHelloRequest {
        node,
        directory,
        cluster_id: cluster_id.clone(),
        controllers: controllers.clone(),
    };
    let answer = QuorumHelloResponse {
        node: OTHER.node,
        directory: OTHER.directory,
        cluster_id: cluster_id.clone(),
        controllers,
        voters: Some(vec![VOTER, OTHER]),
    };
    api(all, &hello, answer);
    let command = ControllerCommandRequest { command: vec![1, 2, 3], timeout_ms: 30_000 };
    api(all, &command, ControllerCommandResponse { answer: vec![4, 5], metadata_index: 41 });
    let heartbeat = HeartbeatRequest {
        broker_id: 1,
        broker_epoch: 7,
        metadata_index: 41,
        wanted: WantedState::Active,
    };
    api(all, &heartbeat, HeartbeatResponse { fenced: false, may_shut_down: false });

    let entry = MetadataEntry { index: 40, term: 2, record_bytes: 90 };
    let snapshot = MetadataSnapshot { index: 40, term: 2 };
    part(all, &entry);
    part(all, &snapshot);
    let fetch =
        FetchMetadataRequest { node: 3, from_index: 40, previous_term: 2, max_wait_ms: 500 };
    let fetched = FetchMetadataResponse {
        cluster_id,
        leader: Some(1),
        term: 2,
        committed_index: 41,
        entries: vec![entry],
        snapshot: Some(snapshot),
        payload_crc: 0x1234_5678,
    };
    api(all, &fetch, fetched);
}

pub(crate) fn refusals() -> [ReplicaRefusal; 3] {
    [
        ReplicaRefusal::Diverging { epoch: 3, end_offset: 90 },
        ReplicaRefusal::OutOfRange { log_start_offset: 5, log_end_offset: 90 },
        ReplicaRefusal::Error { code: ErrorCode::NotLeader },
    ]
}

fn replication(all: &mut Vec<Sample>) {
    let cluster_id = "demo".to_owned();
    let replicate = ReplicateRequest { cluster_id, broker_id: 2, broker_epoch: 7, leader_id: 1 };
    api(all, &replicate, ReplicateResponse {});
    let position = Position {
        leader_epoch: 3,
        round: 9,
        fetch_offset: 90,
        flushed_offset: 80,
        last_fetched_epoch: Some(2),
        log_start_offset: 5,
    };
    let of_one = ReplicaPosition { partition: PARTITION, position };
    part(all, &position);
    part(all, &of_one);
    let positions = ReplicaPositionsRequest { stream: 1, positions: vec![of_one] };
    // There is no response.
    header(all, Api::ReplicaPositions, FrameKind::Request, &positions);

    let push = ReplicaPush {
        partition: PARTITION,
        leader_epoch: 3,
        round: 9,
        high_watermark: 90,
        log_start_offset: 5,
        batch_bytes: 77,
        refusal: None,
        removals_end: 40,
    };
    part(all, &push);
    let refused =
        refusals().map(|refusal| ReplicaPush { batch_bytes: 0, refusal: Some(refusal), ..push });
    let partitions = [&[push][..], &refused].concat();
    header(all, Api::Replicate, FrameKind::Push, &ReplicaPushHeader { partitions });
}

#[test]
fn fields_that_came_later_may_be_missing() {
    // A broker and a partition as a build wrote them that knew nothing of clusters.
    let broker = encoded(&(1, "a", 9092, None::<&str>, false));
    let broker: BrokerMetadata = tidemark_protocol::messagepack::decode(&broker, 10).unwrap();
    assert_eq!(
        (broker.port, broker.epoch, broker.shutting_down, broker.draining),
        (9092, 0, false, false)
    );
    let partition = encoded(&(Some(1), 3, 4, [1, 2], [1]));
    let partition: PartitionMetadata =
        tidemark_protocol::messagepack::decode(&partition, 10).unwrap();
    assert_eq!((partition.isr, partition.elr), (vec![1], vec![]));
    assert!(partition.adding.is_empty() && partition.removing.is_empty());
}
