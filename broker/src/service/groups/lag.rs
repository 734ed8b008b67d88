//! How far a group is behind: its offsets from here, the ends from the leaders.

use std::{collections::BTreeMap, sync::Arc};

use tidemark_coordinator::groups::{FetchOffsets, GroupRequest, GroupResponse};
use tidemark_protocol::{
    ErrorCode, Failure, Offset, TopicPartition,
    messages::{
        DescribeLagRequest, DescribeLagResponse, GroupLag, MeasureLagRequest, MeasureLagResponse,
        OffsetToMeasure,
    },
};

use super::{ask, wrong_answer};
use crate::{
    broker::Broker,
    lag::{measure_anywhere, measure_here},
};

pub(crate) async fn measure_lag(
    broker: Arc<Broker>,
    request: MeasureLagRequest,
) -> Result<MeasureLagResponse, Failure> {
    Ok(MeasureLagResponse { partitions: measure_here(&broker, &request.offsets).await })
}

pub(crate) async fn describe_lag(
    broker: Arc<Broker>,
    request: DescribeLagRequest,
) -> Result<DescribeLagResponse, Failure> {
    let DescribeLagRequest { group, timeout_ms } = request;
    let known = positions(&broker, &group, timeout_ms).await?;
    let questions: Vec<_> = known
        .iter()
        .map(|(partition, known)| OffsetToMeasure {
            partition: *partition,
            offset: known.committed.unwrap_or(0),
        })
        .collect();
    let measured = measure_anywhere(&broker, &questions).await;
    let now_ms = broker.clock.monotonic_ms();
    let lags = known.into_iter().zip(measured).map(|((partition, known), mut lag)| {
        let Known { member, committed } = known;
        if let (None, Ok(lag)) = (committed, &mut lag) {
            // Nothing was read that could have been lost.
            lag.lost_records = 0;
        }
        let drained_in_ms = committed.zip(lag.as_ref().ok()).and_then(|(committed, lag)| {
            broker.lag.drained_in_ms(now_ms, &group, partition, (committed, lag))
        });
        GroupLag { partition, member, committed, lag, drained_in_ms }
    });
    Ok(DescribeLagResponse { partitions: lags.collect() })
}

/// What is known of one partition of a group.
#[derive(Default)]
struct Known {
    member: Option<String>,
    committed: Option<Offset>,
}

/// Every partition that the group has committed an offset for, or reads.
async fn positions(
    broker: &Broker,
    group: &str,
    timeout_ms: u32,
) -> Result<BTreeMap<TopicPartition, Known>, Failure> {
    let mut known: BTreeMap<TopicPartition, Known> = BTreeMap::new();
    let asked = GroupRequest::DescribeGroup { group: group.to_owned() };
    match ask(broker, group, timeout_ms, asked).await? {
        GroupResponse::DescribeGroup(described) => {
            for member in described.members {
                for partition in member.assigned {
                    known.entry(partition).or_default().member = Some(member.member.clone());
                }
            }
        }
        other => return Err(wrong_answer(&other)),
    }
    let fetch = FetchOffsets {
        group: group.to_owned(),
        member: None,
        partitions: None,
        require_stable: false,
    };
    match ask(broker, group, timeout_ms, GroupRequest::FetchOffsets(fetch)).await? {
        GroupResponse::FetchOffsets(found) => {
            for one in found {
                let committed = one.outcome.ok().flatten().map(|committed| committed.offset);
                known.entry(one.partition).or_default().committed = committed;
            }
        }
        other => return Err(wrong_answer(&other)),
    }
    if known.len() > tidemark_protocol::limits::REQUEST_PARTITIONS_MAX {
        let message =
            format!("group {group:?} reads {} partitions: too many for one answer", known.len());
        return Err(Failure::new(ErrorCode::TooLarge, message));
    }
    Ok(known)
}
