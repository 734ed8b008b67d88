//! Samples of what members, administrators and coordinators of groups say.

use tidemark_protocol::messages::*;

use crate::samples::{PARTITION, Sample, api, failure, part};

pub(crate) fn all(all: &mut Vec<Sample>) {
    let find = FindCoordinatorRequest {
        kind: CoordinatorKind::Group,
        key: "billing".to_owned(),
        timeout_ms: 10_000,
    };
    let found = FindCoordinatorResponse { broker: 2, partition: PARTITION, leader_epoch: 3 };
    api(all, &find, found);
    membership(all);
    offsets(all);
    seeks(all);
    inspection(all);
    administration(all);
    lag(all);
}

fn group() -> String {
    "billing".to_owned()
}

fn membership(all: &mut Vec<Sample>) {
    let subscription = GroupSubscription {
        topics: vec!["orders".to_owned()],
        regex: Some("orders-.*".to_owned()),
    };
    part(all, &subscription);
    let heartbeat = GroupHeartbeatRequest {
        group: group(),
        member: "worker-1".to_owned(),
        epoch: -1,
        sequence: 7,
        instance: Some("worker".to_owned()),
        rack: None,
        client_id: "worker".to_owned(),
        subscription: Some(subscription),
        rebalance_timeout_ms: Some(300_000),
        assignor: Some("sticky".to_owned()),
        owned: Some(vec![PARTITION]),
        missed_processing_deadline: false,
        wait_ms: 2_000,
    };
    let answer = GroupHeartbeatResponse {
        epoch: 5,
        heartbeat_interval_ms: 0,
        session_timeout_ms: 10_000,
        assignment: Some(vec![PARTITION]),
    };
    api(all, &heartbeat, answer);
}

fn offsets(all: &mut Vec<Sample>) {
    let member = GroupMember { member: "worker-1".to_owned(), epoch: 5, instance: None };
    let commit = OffsetToCommit {
        partition: PARTITION,
        offset: 1 << 40,
        leader_epoch: Some(3),
        metadata: "m".to_owned(),
    };
    part(all, &member);
    part(all, &commit);
    let request = CommitOffsetsRequest {
        group: group(),
        member: Some(member.clone()),
        offsets: vec![commit],
        timeout_ms: 30_000,
    };
    let outcomes = || vec![Ok(()), Err(failure())];
    api(all, &request, CommitOffsetsResponse { partitions: outcomes() });

    let committed = CommittedOffset {
        offset: 9,
        leader_epoch: None,
        metadata: String::new(),
        committed_ms: 1_771_065_000_000,
    };
    part(all, &committed);
    let found = FetchedOffset { partition: PARTITION, outcome: Ok(Some(committed)) };
    part(all, &found);
    let unstable = FetchedOffset { partition: PARTITION, outcome: Err(failure()) };
    let request = FetchOffsetsRequest {
        group: group(),
        member: Some(member),
        partitions: Some(vec![PARTITION]),
        require_stable: true,
    };
    api(all, &request, FetchOffsetsResponse { partitions: vec![found, unstable] });

    let request =
        DeleteOffsetsRequest { group: group(), partitions: vec![PARTITION], timeout_ms: 30_000 };
    api(all, &request, DeleteOffsetsResponse { partitions: outcomes() });
}

fn seeks(all: &mut Vec<Sample>) {
    let target = SeekTarget { partition: PARTITION, offset: 40 };
    let change = OffsetChange { partition: PARTITION, before: Some(90), after: None };
    let seek = GroupSeek {
        id: Some(3),
        at_ms: 1_771_065_000_000,
        by: "ada".to_owned(),
        undo_of: Some(2),
        changes: vec![change],
    };
    part(all, &target);
    part(all, &change);
    part(all, &seek);
    let (by, timeout_ms) = ("ada".to_owned(), 30_000);
    let request = SeekGroupRequest {
        group: group(),
        by: by.clone(),
        offsets: vec![target],
        dry_run: true,
        timeout_ms,
    };
    api(all, &request, SeekGroupResponse { seek: seek.clone() });
    let request = UndoSeekRequest { group: group(), by, id: Some(2), timeout_ms };
    api(all, &request, UndoSeekResponse { seek: seek.clone() });
    api(all, &SeekHistoryRequest { group: group() }, SeekHistoryResponse { seeks: vec![seek] });
}

fn inspection(all: &mut Vec<Sample>) {
    let listing =
        GroupListing { group: group(), state: GroupState::Stable, is_classic: false, members: 3 };
    let unavailable = UnavailableGroups { partition: PARTITION, failure: failure() };
    part(all, &listing);
    part(all, &unavailable);
    let list = ListGroupsResponse { groups: vec![listing], unavailable: vec![unavailable] };
    api(all, &ListGroupsRequest {}, list);

    let member = MemberDescription {
        member: "worker-1".to_owned(),
        instance: None,
        client_id: "worker".to_owned(),
        host: "10.0.0.7".to_owned(),
        epoch: 5,
        state: MemberState::Revoking,
        assigned: vec![PARTITION],
        revoking: vec![PARTITION],
        target: vec![PARTITION],
        session_left_ms: Some(9_000),
        revocation_left_ms: None,
    };
    let removal = MemberRemoval {
        member: "worker-2".to_owned(),
        instance: Some("two".to_owned()),
        client_id: "worker".to_owned(),
        host: "10.0.0.8".to_owned(),
        reason: RemovalReason::SessionTimedOut,
        at_ms: 1_771_065_000_000,
    };
    part(all, &member);
    part(all, &removal);
    let described = DescribeGroupResponse {
        group: group(),
        state: GroupState::Reconciling,
        is_classic: false,
        epoch: 5,
        protocol: None,
        coordinator: 2,
        members: vec![member],
        removals: vec![removal],
    };
    api(all, &DescribeGroupRequest { group: group() }, described);
}

fn administration(all: &mut Vec<Sample>) {
    let timeout_ms = 30_000;
    api(all, &DeleteGroupRequest { group: group(), timeout_ms }, DeleteGroupResponse {});
    let remove = RemoveMemberRequest {
        group: group(),
        name: "worker-1".to_owned(),
        is_instance: false,
        timeout_ms,
    };
    api(all, &remove, RemoveMemberResponse {});
}

fn lag(all: &mut Vec<Sample>) {
    let lag = PartitionLag {
        log_start_offset: 5,
        high_watermark: 100,
        records: 60,
        bytes: 1 << 20,
        first_unread_ms: Some(1_771_065_000_000),
        age_ms: 1_500,
        deleted_in_ms: Some(3_600_000),
        lost_records: 0,
    };
    part(all, &lag);
    let of_group = GroupLag {
        partition: PARTITION,
        member: Some("worker-1".to_owned()),
        committed: Some(40),
        lag: Ok(lag),
        drained_in_ms: Some(12_000),
    };
    part(all, &of_group);
    let request = DescribeLagRequest { group: group(), timeout_ms: 30_000 };
    api(all, &request, DescribeLagResponse { partitions: vec![of_group] });

    let offset = OffsetToMeasure { partition: PARTITION, offset: 40 };
    part(all, &offset);
    let answer = MeasureLagResponse { partitions: vec![Ok(lag), Err(failure())] };
    api(all, &MeasureLagRequest { offsets: vec![offset] }, answer);
}
