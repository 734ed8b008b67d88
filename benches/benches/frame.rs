//! Native frames: the head of a produce request encoded, and the frame with its batch decoded.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidemark_benches::load;
use tidemark_protocol::{
    TopicId, TopicPartition,
    frame::{FrameDecoder, FrameKind, encode_head},
    limits::FRAME_BYTES_MAX,
    message::Request,
    messages::{Acks, Durability, ProducePartition, ProduceRequest},
};

const BATCH_BYTES: usize = 64 << 10;

fn request(batch_bytes: usize) -> ProduceRequest {
    ProduceRequest {
        acks: Acks::All,
        durability: Durability::Topic,
        timeout_ms: 30_000,
        partitions: vec![ProducePartition {
            partition: TopicPartition { topic_id: TopicId([7; 16]), partition: 3 },
            leader_epoch: None,
            batch_bytes: u32::try_from(batch_bytes).expect("below the batch limit"),
        }],
        transactional_id: None,
    }
}

fn frames(criterion: &mut Criterion) {
    let batch = load::batch(1024, BATCH_BYTES);
    let request = request(batch.len());
    let api = ProduceRequest::API.number();
    let head = |request: &ProduceRequest| {
        encode_head(FrameKind::Request, api, 1, request, batch.len()).expect("the request encodes")
    };
    let frame = [&head(&request)[..], &batch].concat();

    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode_head of a produce request", |bencher| {
        bencher.iter(|| head(black_box(&request)));
    });
    group.bench_function("decode a produce request of 64 KiB", |bencher| {
        let received = || (FrameDecoder::new(FRAME_BYTES_MAX), BytesMut::from(&frame[..]));
        bencher.iter_batched(
            received,
            |(mut decoder, mut bytes)| {
                let frame = decoder.decode(&mut bytes).expect("well-formed").expect("complete");
                (frame.message::<ProduceRequest>().expect("well-formed"), frame)
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
