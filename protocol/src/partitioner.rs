//! Which partition a key belongs to: the same as Kafka's default partitioner, so that both doors agree.
//!
//! It refuses to decide about records without a key; that is the producer's choice.

use crate::PartitionIndex;

/// The partition for a key: its murmur2 hash without the sign bit, modulo `partition_count`.
///
/// # Panics
/// When `partition_count` is 0.
pub fn partition_for_key(key: &[u8], partition_count: u32) -> PartitionIndex {
    assert!(partition_count > 0, "a topic has at least one partition");
    (murmur2(key) & 0x7fff_ffff) % partition_count
}

/// MurmurHash2, 32 bits, with the seed Kafka uses.
pub fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    // Kafka hashes at most 2 GiB; longer keys do not exist, a batch is smaller.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the hash is defined over 32 bits of the length"
    )]
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_kafka() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_loses_its_sign_bit_and_not_its_magnitude() {
        assert_eq!(
            partition_for_key(b"21", u32::MAX),
            (-973_932_308_i32).cast_unsigned() & 0x7fff_ffff
        );
        assert_eq!(partition_for_key(b"abc", 7), 479_470_107 % 7);
        assert_eq!(partition_for_key(b"", 1), 0);
    }
}
