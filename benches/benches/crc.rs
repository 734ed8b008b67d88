//! CRC-32C, the checksum of record batches, by how much it covers.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidemark_protocol::batch::crc32c;

const SIZES_BYTES: [usize; 5] = [64, 1 << 10, 16 << 10, 64 << 10, 1 << 20];

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc");
    for bytes in SIZES_BYTES {
        let input: Vec<u8> = (0..=u8::MAX).cycle().take(bytes).collect();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("crc32c", bytes), |bencher| {
            bencher.iter(|| crc32c(black_box(&input)));
        });
    }
    group.finish();
}

criterion_group!(benches, checksums);
criterion_main!(benches);
