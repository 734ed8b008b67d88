//! Questions about many partitions: each goes to its leader, one request per leader.

use std::{collections::BTreeMap, sync::Arc};

use tidemark_protocol::{
    ErrorCode, Failure, LeaderEpoch, PartitionIndex, TopicPartition,
    limits::REQUEST_PARTITIONS_MAX,
    message::Request,
    messages::{ListOffsetsPartition, ListOffsetsRequest, ListedOffset, OffsetQuery},
};
use tokio::time::{Instant, sleep};

use crate::{
    admin::OffsetSpec,
    cluster::{Cluster, Repeat, Target},
    error::{AdminError, RequestError},
};

/// A partition in a request: its place among those asked for, its identity and its leader's epoch.
pub(crate) type Chosen = (usize, TopicPartition, LeaderEpoch);

/// Looks up offsets, one outcome for each question in their order.
pub(crate) async fn list_offsets<T: AsRef<str>>(
    cluster: &Cluster,
    questions: &[(T, PartitionIndex, OffsetSpec)],
    deadline: Instant,
) -> Result<Vec<Result<ListedOffset, AdminError>>, AdminError> {
    let named: Vec<_> = questions.iter().map(|(topic, index, _)| (topic, *index)).collect();
    let request = |chosen: &[Chosen]| ListOffsetsRequest {
        partitions: chosen
            .iter()
            .map(|(at, partition, epoch)| {
                let (query, timestamp_ms) = match questions[*at].2 {
                    OffsetSpec::Earliest => (OffsetQuery::Earliest, 0),
                    OffsetSpec::Latest => (OffsetQuery::Latest, 0),
                    OffsetSpec::Timestamp(timestamp_ms) => (OffsetQuery::Timestamp, timestamp_ms),
                    OffsetSpec::MaxTimestamp => (OffsetQuery::MaxTimestamp, 0),
                };
                let leader_epoch = Some(*epoch);
                ListOffsetsPartition { partition: *partition, leader_epoch, query, timestamp_ms }
            })
            .collect(),
    };
    let asking = Asking { cluster, repeat: Repeat::Question, deadline };
    asking.leaders(&named, request, |answer| answer.partitions).await
}

/// How leaders are asked, and for how long. Nothing may be asked this way that does harm when repeated.
pub(crate) struct Asking<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) repeat: Repeat,
    pub(crate) deadline: Instant,
}

impl Asking<'_> {
    /// Asks the leader of each partition, and again after new metadata while errors are retriable and time
    /// is left.
    pub(crate) async fn leaders<N, R, T>(
        &self,
        named: &[(N, PartitionIndex)],
        request: impl Fn(&[Chosen]) -> R,
        outcomes: impl Fn(R::Response) -> Vec<Result<T, Failure>>,
    ) -> Result<Vec<Result<T, AdminError>>, AdminError>
    where
        N: AsRef<str>,
        R: Request,
    {
        let Self { cluster, repeat, deadline } = *self;
        let mut results: Vec<Option<Result<T, AdminError>>> = named.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..named.len()).collect();
        let mut backoff = cluster.backoff();
        loop {
            let (by_leader, unplaced) = place(cluster, named, &open, deadline).await?;
            for (at, error) in unplaced {
                results[at] = Some(Err(error));
            }
            for (address, chosen) in by_leader {
                let target = Target::Address(address);
                for chosen in chosen.chunks(REQUEST_PARTITIONS_MAX) {
                    let asked = cluster.ask(&target, &request(chosen), repeat, deadline).await;
                    let asked = spread(asked, chosen.len(), &outcomes);
                    for ((at, ..), outcome) in chosen.iter().zip(asked) {
                        results[*at] = Some(outcome.map_err(AdminError::from));
                    }
                }
            }
            open.retain(|at| matches!(&results[*at], Some(Err(error)) if error.is_retriable()));
            let pause = backoff.after_failure();
            if open.is_empty() || Instant::now() + pause >= deadline {
                let asked = results.into_iter().map(|outcome| outcome.expect("all were asked"));
                return Ok(asked.collect());
            }
            sleep(pause).await;
            let topics: Vec<Arc<str>> =
                open.iter().map(|at| named[*at].0.as_ref().into()).collect();
            cluster.refresh(&topics, deadline).await?;
        }
    }
}

type Placed = (BTreeMap<Arc<str>, Vec<Chosen>>, Vec<(usize, AdminError)>);

/// Sorts partitions by the address of their leader; those without one get their error.
async fn place<N: AsRef<str>>(
    cluster: &Cluster,
    named: &[(N, PartitionIndex)],
    open: &[usize],
    deadline: Instant,
) -> Result<Placed, AdminError> {
    let mut by_leader: BTreeMap<Arc<str>, Vec<Chosen>> = BTreeMap::new();
    let mut unplaced = Vec::new();
    for &at in open {
        let (topic, partition) = (named[at].0.as_ref(), named[at].1);
        let Some(known) = cluster.topic(topic, deadline).await? else {
            unplaced.push((at, AdminError::UnknownTopic { topic: topic.into() }));
            continue;
        };
        let partitions = known.partition_count();
        if partition >= partitions {
            let topic = known.name.clone();
            unplaced.push((at, AdminError::UnknownPartition { topic, partition, partitions }));
            continue;
        }
        match cluster.metadata().leader(topic, partition) {
            Some(leader) => {
                let chosen = (at, TopicPartition { topic_id: known.id, partition }, leader.epoch);
                by_leader.entry(leader.address).or_default().push(chosen);
            }
            None => {
                unplaced.push((at, AdminError::NoLeader { topic: known.name.clone(), partition }));
            }
        }
    }
    Ok((by_leader, unplaced))
}

/// One outcome per partition out of one answer for all of them.
fn spread<A, T>(
    asked: Result<A, RequestError>,
    count: usize,
    outcomes: impl Fn(A) -> Vec<Result<T, Failure>>,
) -> Vec<Result<T, RequestError>> {
    match asked {
        Ok(answer) => {
            let mut all: Vec<_> = outcomes(answer)
                .into_iter()
                .map(|outcome| outcome.map_err(RequestError::Refused))
                .collect();
            let missing = || {
                Err(RequestError::Refused(Failure::new(
                    ErrorCode::Internal,
                    "the broker's answer leaves this partition out",
                )))
            };
            all.resize_with(count, missing);
            all
        }
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    }
}
