//! Sizes, durations, counts and rates: reading them from the command line and writing them for a person.
//!
//! Machine output never goes through here; it carries plain numbers with their unit in the key.

use std::time::Duration;

use tidemark_protocol::TimestampMs;

/// Reads a size in bytes: `512`, `64k` or `64KiB` (times 1024), `64KB` (times 1000), up to `G`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let problem = || format!("`{text}` is not a size; write it like 512, 64KiB, 1.5MiB or 1GB");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(problem()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(problem);
    }
    let value: f64 = number.parse().map_err(|_| problem())?;
    #[expect(clippy::cast_precision_loss, reason = "the factor is a power of 2 or 10")]
    let bytes = value * factor as f64;
    if !(0.0..9e15).contains(&bytes) {
        return Err(problem());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "range checked")]
    Ok(bytes as u64)
}

/// Reads a count: `1000`, `10k` (times 1000), `5M`, `1_000_000`.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    let problem = || format!("`{text}` is not a count; write it like 1000, 10k or 5M");
    let plain = text.replace('_', "");
    let (number, factor) = match plain.char_indices().last() {
        Some((at, 'k' | 'K')) => (&plain[..at], 1_000),
        Some((at, 'm' | 'M')) => (&plain[..at], 1_000_000),
        Some((at, 'g' | 'G')) => (&plain[..at], 1_000_000_000),
        _ => (plain.as_str(), 1_u64),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(problem)
}

/// Reads a duration: `500ms`, `30s`, `5m`, `1h30m`, `2d`, `1w`; `0` is allowed, a bare number is not.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem =
        || format!("`{text}` is not a duration; write it like 500ms, 30s, 5m, 1h30m, 2d or 1w");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return Err(problem());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(problem)?;
        let count: u64 = rest[..digits].parse().map_err(|_| problem())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            _ => return Err(problem()),
        };
        rest = &rest[unit..];
        total_ms = count
            .checked_mul(unit_ms)
            .and_then(|ms| total_ms.checked_add(ms))
            .ok_or_else(problem)?;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Bytes in binary units, three digits: `1.21 MiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 and up would print as four digits.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value >= 99.95 { 0 } else { usize::from(value < 9.995) + 1 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A count with its thousands apart: `1,234,567`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 record`, `2 records`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A duration in its two largest units: `3d 4h`, `2m 5s`, `1.50s`, `12ms`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        86_400.. => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
        3_600.. => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        60.. => format!("{}m {}s", seconds / 60, seconds % 60),
        1.. => format!("{:.2}s", duration.as_secs_f64()),
        0 if duration.is_zero() => "0s".to_owned(),
        0 if duration >= Duration::from_millis(1) => format!("{}ms", duration.as_millis()),
        0 => format!("{}us", duration.as_micros()),
    }
}

/// RFC 3339 in UTC with milliseconds; empty for "no timestamp".
pub(crate) fn timestamp(timestamp_ms: TimestampMs) -> String {
    match jiff::Timestamp::from_millisecond(timestamp_ms) {
        Ok(timestamp) if timestamp_ms >= 0 => format!("{timestamp:.3}"),
        _ => String::new(),
    }
}

/// How long before `now_ms` that was: `5m 2s ago`; `in 3s` for the future.
pub(crate) fn ago(timestamp_ms: TimestampMs, now_ms: TimestampMs) -> String {
    let apart = Duration::from_millis(now_ms.abs_diff(timestamp_ms));
    if timestamp_ms > now_ms {
        format!("in {}", duration(apart))
    } else {
        format!("{} ago", duration(apart))
    }
}

/// Per second, safe for an elapsed time of nothing.
#[expect(clippy::cast_precision_loss, reason = "a rate for a person or a report")]
pub(crate) fn per_second(amount: u64, elapsed: Duration) -> f64 {
    amount as f64 / elapsed.as_secs_f64().max(1e-9)
}

/// A rate as a count: `812,345`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are small and positive"
)]
pub(crate) fn rate(per_second: f64) -> String {
    count(per_second.round() as u64)
}

/// A rate in bytes, without its `/s`: `50.0 MiB`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are positive and far below what a u64 holds"
)]
pub(crate) fn bytes_of_rate(per_second: f64) -> String {
    bytes(per_second.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        assert_eq!(parse_bytes("512"), Ok(512));
        assert_eq!(parse_bytes("64k"), Ok(65_536));
        assert_eq!(parse_bytes("64KiB"), Ok(65_536));
        assert_eq!(parse_bytes("64KB"), Ok(64_000));
        assert_eq!(parse_bytes("1.5MiB"), Ok(1_572_864));
        for wrong in ["", "k", "-1", "1.2.3", "5 parsecs", "99999999999G", "1e3"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn counts_are_read_with_decimal_suffixes() {
        assert_eq!(parse_count("10k"), Ok(10_000));
        assert_eq!(parse_count("1_000_000"), Ok(1_000_000));
        assert_eq!(parse_count("5M"), Ok(5_000_000));
        assert!(parse_count("many").is_err());
        assert!(parse_count("99999999999999G").is_err());
    }

    #[test]
    fn durations_add_up_their_units_and_demand_one() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1w"), Ok(Duration::from_hours(168)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "h", "-1h", "1y", "99999999999999999w"] {
            assert!(parse_duration(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn quantities_are_written_with_three_digits_and_grouped_thousands() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(1_268_776), "1.21 MiB");
        assert_eq!(bytes(12 << 20), "12.0 MiB");
        assert_eq!(bytes(1023 << 20), "1.00 GiB");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(1, "record"), "1 record");
        assert_eq!(duration(Duration::from_secs(90_061)), "1d 1h");
        assert_eq!(duration(Duration::from_millis(1_500)), "1.50s");
    }

    #[test]
    fn times_are_written_in_utc_and_relative_to_now() {
        assert_eq!(timestamp(1_644_832_800_123), "2022-02-14T10:00:00.123Z");
        assert_eq!(timestamp(-1), "");
        assert_eq!(ago(1_000, 61_000), "1m 0s ago");
        assert_eq!(ago(61_000, 1_000), "in 1m 0s");
    }
}
