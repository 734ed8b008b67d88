//! Sizes, spans of time and counts as people write them: `64MiB`, `7d`, `unlimited`. Integers only, so that
//! what is stored is exactly what was meant.

/// What to write for "no bound".
pub(super) const UNLIMITED: &str = "unlimited";

const BYTE_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

const MILLISECOND_UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
];

/// Bytes; `None` when the text is no size.
pub(super) fn bytes(text: &str) -> Option<u64> {
    with_unit(text, BYTE_UNITS)
}

/// Milliseconds; `None` when the text is no span of time.
pub(super) fn milliseconds(text: &str) -> Option<u64> {
    with_unit(text, MILLISECOND_UNITS)
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_and_without_units() {
        assert_eq!(bytes("1048576"), Some(1 << 20));
        assert_eq!(bytes("64MiB"), Some(64 << 20));
        assert_eq!(bytes("64 mib"), Some(64 << 20));
        assert_eq!(bytes("1GB"), Some(1_000_000_000));
        assert_eq!(milliseconds("7d"), Some(604_800_000));
        assert_eq!(milliseconds("90s"), Some(90_000));
        assert_eq!(milliseconds("0"), Some(0));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            "MiB",
            "-1",
            "1.5GiB",
            "12 parsecs",
            "0x10",
            "99999999999999999999",
            "17179869184TiB",
        ] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
        assert_eq!(milliseconds("5MiB"), None);
    }
}
