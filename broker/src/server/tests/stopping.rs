//! An orderly stop waits for what is owed, and for nothing else.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tidemark_protocol::messages::{
    Acks, FetchMetadataRequest, FetchRequest, MetadataRequest, ReplicateRequest,
};

use super::{
    fetch_request,
    harness::{TestBroker, batch, produce_request},
};

/// Well below `shutdown_timeout`, after which everything is ended that has not ended by itself.
const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn whoever_only_waits_does_not_hold_up_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    let mut client = broker.connect().await;
    let topic = client.create_topic("orders", 1).await;
    client.send(&fetch_request(topic, 0, 60_000), Bytes::new()).await;

    let mut follower = broker.connect().await;
    let (metadata, _) = follower.call(&MetadataRequest::default(), Bytes::new()).await;
    let metadata = metadata.unwrap();
    let request = ReplicateRequest {
        cluster_id: metadata.cluster_id,
        broker_id: 2,
        broker_epoch: 1,
        leader_id: metadata.broker_id,
    };
    follower.call(&request, Bytes::new()).await.0.unwrap();

    let mut node = broker.connect().await;
    let mut request =
        FetchMetadataRequest { node: 2, from_index: 0, previous_term: 0, max_wait_ms: 60_000 };
    let (first, _) = node.call(&request, Bytes::new()).await;
    let last = first.unwrap().entries.pop().unwrap();
    (request.from_index, request.previous_term) = (last.index + 1, last.term);
    node.send(&request, Bytes::new()).await;
    // Requests of a connection begin in order: when this has taken effect, the one before it waits.
    let payload = batch(&["x"]);
    node.send(&produce_request(topic, Acks::All, &payload), payload).await;
    client.receive::<FetchRequest>().await.0.unwrap();

    let began = Instant::now();
    broker.stop().await;
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    let (waited, _) = node.receive::<FetchMetadataRequest>().await;
    assert_eq!(waited.unwrap().entries.len(), 0, "answered, with what there was");
}
