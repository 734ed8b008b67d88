//! Codecs: round trips, foreign framings, damage and bombs.

use proptest::{collection::vec, prelude::*};

use super::*;

const CODECS: [Compression; 4] =
    [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
const LIMIT: usize = 1 << 20;

fn compressed(codec: Compression, input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    codec.compress(input, &mut out).unwrap();
    out
}

#[test]
fn names_and_numbers_lead_back_to_the_codec() {
    for codec in Compression::ALL {
        assert_eq!(Compression::from_code(codec.code()), Some(codec));
        assert_eq!(codec.to_string().parse(), Ok(codec));
    }
    assert_eq!(Compression::from_code(5), None);
    let error = "brotli".parse::<Compression>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown compression `brotli`: expected none, gzip, snappy, lz4 or zstd"
    );
}

#[test]
fn text_shrinks_and_comes_back() {
    let text = b"nothing above the tidemark is ever read. ".repeat(5000);
    for codec in CODECS {
        let small = compressed(codec, &text);
        assert!(small.len() < text.len() / 10, "{codec}: {}", small.len());
        assert_eq!(codec.decompress(&small, LIMIT).as_deref(), Ok(&text[..]), "{codec}");
    }
}

#[test]
fn snappy_is_written_in_the_java_framing_and_read_in_both() {
    let text = b"tidemark ".repeat(10_000);
    let framed = compressed(Compression::Snappy, &text);
    assert_eq!(framed[..16], *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01");
    assert_eq!(Compression::Snappy.decompress(&framed, LIMIT).unwrap(), text);
    let raw = snap::raw::Encoder::new().compress_vec(&text).unwrap();
    assert_eq!(Compression::Snappy.decompress(&raw, LIMIT).unwrap(), text);
}

#[test]
fn members_of_a_gzip_file_follow_each_other() {
    let two =
        [compressed(Compression::Gzip, b"one"), compressed(Compression::Gzip, b"two")].concat();
    assert_eq!(Compression::Gzip.decompress(&two, LIMIT).unwrap(), b"onetwo");
}

#[test]
fn the_limit_is_exact_and_so_is_the_memory() {
    let zeros = vec![0; LIMIT];
    for codec in Compression::ALL {
        let small = compressed(codec, &zeros);
        let whole = codec.decompress(&small, LIMIT).unwrap();
        assert!(whole.len() == LIMIT && whole.capacity() <= LIMIT, "{codec}: {}", whole.capacity());
        assert_eq!(
            codec.decompress(&small, LIMIT - 1),
            Err(CompressionError::TooLarge { codec, limit_bytes: LIMIT - 1 })
        );
    }
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let zeros = vec![0; 64 << 20];
    for codec in CODECS {
        let bomb = compressed(codec, &zeros);
        assert!(bomb.len() < zeros.len() / 15, "{codec}: {}", bomb.len());
        let refused = codec.decompress(&bomb, LIMIT);
        assert_eq!(refused, Err(CompressionError::TooLarge { codec, limit_bytes: LIMIT }));
    }
}

#[test]
fn snappy_that_declares_more_than_it_can_hold_is_refused_before_memory_is_taken() {
    // One literal byte, declared as 100 MiB.
    let mut liar = vec![0x80, 0x80, 0x80, 0x32, 0x00, b'x'];
    let refused = |input: &[u8]| Compression::Snappy.decompress(input, 128 << 20).unwrap_err();
    assert!(refused(&liar).to_string().contains("declares more"), "{}", refused(&liar));
    liar.splice(0..0, *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0\0\x06");
    assert!(refused(&liar).to_string().contains("declares more"), "{}", refused(&liar));
}

#[test]
fn zstd_that_declares_a_huge_content_or_window_is_refused_or_costs_what_it_holds() {
    // Magic, single segment with an 8-byte content size, then a raw block of one byte.
    let content = b"\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\x0f\x09\x00\x00x";
    assert!(Compression::Zstd.decompress(content, LIMIT).is_err());
    // A window of 2 GiB.
    let window = b"\x28\xb5\x2f\xfd\x00\xa8\x09\x00\x00x";
    assert!(Compression::Zstd.decompress(window, LIMIT).is_err());
    // A window of 8 MiB is fine, and the output is one byte.
    let modest = b"\x28\xb5\x2f\xfd\x00\x68\x09\x00\x00x";
    assert_eq!(Compression::Zstd.decompress(modest, LIMIT).unwrap(), b"x");
}

#[test]
fn data_that_is_cut_off_is_refused() {
    let text: Vec<u8> = (0..2000_u32).flat_map(u32::to_le_bytes).collect();
    for codec in CODECS {
        let whole = compressed(codec, &text);
        for end in 1..whole.len() {
            let cut = codec.decompress(&whole[..end], LIMIT);
            // Snappy's framing has no end mark and LZ4's four bytes of it are not insisted on.
            let complete = codec == Compression::Lz4 && whole.len() - end <= 4;
            assert!(
                complete || cut.as_deref() != Ok(&text[..]),
                "{codec}: {end} of {}",
                whole.len()
            );
        }
    }
}

proptest! {
    #[test]
    fn every_input_comes_back(input in vec(any::<u8>(), 0..100_000)) {
        for codec in Compression::ALL {
            let small = compressed(codec, &input);
            prop_assert_eq!(codec.decompress(&small, LIMIT).unwrap(), &input[..], "{}", codec);
        }
    }

    #[test]
    fn damaged_and_random_data_never_panic_and_never_pass_the_limit(
        input in vec(any::<u8>(), 0..3000),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        limit in 0..10_000_usize,
    ) {
        for codec in CODECS {
            let mut damaged = compressed(codec, &input);
            for (at, byte) in &changes {
                let at = at.index(damaged.len());
                damaged[at] = *byte;
            }
            for bytes in [&damaged, &input] {
                if let Ok(out) = codec.decompress(bytes, limit) {
                    prop_assert!(out.capacity() <= limit.max(out.len()), "{}", codec);
                    prop_assert!(out.len() <= limit, "{}", codec);
                }
            }
        }
    }
}
