//! Kafka's variable-length integers: zigzag, then groups of seven bits, lowest first.
//!
//! Reading refuses encodings longer than the type needs, nothing else: like Kafka, it accepts padding zeros.

/// Longest encoding of an `i64`, in bytes.
pub(super) const VARLONG_BYTES_MAX: usize = 10;

/// How many bytes `value` takes.
pub(super) const fn encoded_bytes(value: i64) -> usize {
    // Each byte holds seven bits; zero takes one byte as well.
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Writes `value` at `at`; answers where it ends.
#[inline]
pub(super) fn write(out: &mut [u8], mut at: usize, value: i64) -> usize {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out[at] = rest.to_le_bytes()[0] | 0x80;
        rest >>= 7;
        at += 1;
    }
    out[at] = rest.to_le_bytes()[0];
    at + 1
}

/// Reads a value that must fit an `i32`, and moves `at` past it. `None`: malformed or cut off.
#[inline]
pub(super) fn read_i32(bytes: &[u8], at: &mut usize) -> Option<i32> {
    let first = *bytes.get(*at)?;
    if first < 0x80 {
        *at += 1;
        let raw = i32::from(first);
        return Some((raw >> 1) ^ -(raw & 1));
    }
    read_i64(bytes, at, 5).and_then(|value| i32::try_from(value).ok())
}

/// Reads a value of any size, and moves `at` past it. `None`: malformed or cut off.
#[inline]
pub(super) fn read_long(bytes: &[u8], at: &mut usize) -> Option<i64> {
    read_i64(bytes, at, VARLONG_BYTES_MAX)
}

fn read_i64(bytes: &[u8], at: &mut usize, bytes_max: usize) -> Option<i64> {
    let mut raw = 0_u64;
    for index in 0..bytes_max {
        let byte = *bytes.get(*at + index)?;
        let bits = u64::from(byte & 0x7f);
        if index == VARLONG_BYTES_MAX - 1 && bits > 1 {
            return None;
        }
        raw |= bits << (7 * index);
        if byte < 0x80 {
            *at += index + 1;
            return Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed());
        }
    }
    None
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_at_the_edges_have_the_bytes_of_the_specification() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            let mut out = [0; VARLONG_BYTES_MAX];
            let end = write(&mut out, 0, value);
            assert_eq!(&out[..end], bytes, "{value}");
        }
    }

    #[test]
    fn an_encoding_that_does_not_fit_or_does_not_end_is_refused() {
        assert_eq!(read_i32(&[0x80, 0x80, 0x80, 0x80, 0x10], &mut 0), None, "33 bits");
        assert_eq!(read_i32(&[0xff; 5], &mut 0), None);
        assert_eq!(read_long(&[0xff; 10], &mut 0), None);
        assert_eq!(
            read_long(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2], &mut 0),
            None
        );
        assert_eq!(read_i32(&[], &mut 0), None);
        assert_eq!(read_i32(&[0x80], &mut 0), None);
    }

    proptest! {
        #[test]
        fn every_value_survives_and_takes_as_many_bytes_as_predicted(value: i64) {
            let mut out = [0; VARLONG_BYTES_MAX];
            let end = write(&mut out, 0, value);
            prop_assert_eq!(end, encoded_bytes(value));
            let mut at = 0;
            prop_assert_eq!(read_long(&out, &mut at), Some(value));
            prop_assert_eq!(at, end);
            let mut at = 0;
            prop_assert_eq!(read_i32(&out, &mut at), i32::try_from(value).ok());
        }
    }
}
