//! Record batches: built, checked as before an append, and read record by record; by codec and size of record.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidemark_protocol::batch::{Batch, BatchBuilder, Compression};

/// Of a batch before compression, about.
const BATCH_BYTES: usize = 64 << 10;
const RECORD_BYTES: [usize; 2] = [100, 1024];
const TIMESTAMP_MS: i64 = 1_700_000_000_000;

/// Values of random hexadecimal digits, which compress to about half.
fn values(record_bytes: usize) -> Vec<Vec<u8>> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut digit = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b"0123456789abcdef"[usize::try_from(state >> 60).expect("four bits")]
    };
    (0..BATCH_BYTES / record_bytes).map(|_| (0..record_bytes).map(|_| digit()).collect()).collect()
}

fn build(values: &[Vec<u8>], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(compression, BATCH_BYTES + (8 << 10));
    for value in values {
        builder.push(TIMESTAMP_MS, None, Some(value), &[]);
    }
    builder.build().expect("the batch is far below its limits")
}

fn batches(criterion: &mut Criterion) {
    for record_bytes in RECORD_BYTES {
        let values = values(record_bytes);
        for compression in Compression::ALL {
            let name = |what| BenchmarkId::new(what, format!("{compression} {record_bytes} B"));
            let batch = Batch::parse(&mut build(&values, compression)).expect("just built");
            let mut group = criterion.benchmark_group("batch");
            group.throughput(Throughput::Bytes((values.len() * record_bytes) as u64));
            group.bench_function(name("build"), |bencher| {
                bencher.iter(|| build(black_box(&values), compression));
            });
            group.bench_function(name("validate_for_append"), |bencher| {
                bencher.iter(|| {
                    black_box(&batch).validate_for_append(1 << 20).expect("just built");
                });
            });
            group.bench_function(name("iterate"), |bencher| {
                bencher.iter(|| {
                    let records = black_box(&batch).iter_records().expect("just built");
                    records.map(|record| record.expect("just built").offset).sum::<u64>()
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, batches);
criterion_main!(benches);
