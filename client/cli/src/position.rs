//! The grammar of offsets and times, the same wherever a command takes a position: `consume`, `topic trim`.
//!
//! Pure: "now" is an argument, and offsets of times are looked up by the caller between parsing and resolving.

use tidemark_protocol::{Offset, TimestampMs};

use crate::{exit::CliError, quantity};

/// The grammar, for `--help` and for parse errors.
pub(crate) const GRAMMAR: &str = "  start               the first record there is
  end                 after the last record there is now
  47                  exactly offset 47
  +10                 10 records after the start
  -10                 10 records before the end
  @2026-02-14         the first record of that day, UTC
  @2026-02-14T10:30:00Z   the first record at that time or later (RFC 3339; UTC without a zone)
  @1771065000000      the same in Unix milliseconds (up to 10 digits: seconds)
  @-1h                one hour ago (ms, s, m, h, d, w; also 1h30m)
A range is FROM:TO; either may be left out, and TO itself is not included:
  100:200             offsets 100 to 199
  100:+5              5 records from offset 100 on
  :end                everything there is now, then stop
  @-1h:@-5m           from one hour ago to five minutes ago (also @-1h:-5m)
  @2026-02-14:1h      one hour from then on";

/// One place in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Start,
    End,
    At(Offset),
    /// This many records after the start, or after FROM when it is the TO of a range.
    Plus(u64),
    /// This many records before the end.
    Minus(u64),
    /// The first record with this timestamp or a later one.
    Time(TimestampMs),
}

/// `FROM:TO`; TO is exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub from: Option<Point>,
    pub to: Option<Point>,
}

/// What must be known of a partition to turn a [`Point`] into an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Log start offset.
    pub start: Offset,
    /// High watermark.
    pub end: Offset,
    /// Where the time of FROM begins, if FROM is a time.
    pub from_time: Option<Offset>,
    /// Where the time of TO begins, if TO is a time.
    pub to_time: Option<Offset>,
}

impl Point {
    /// Parses one place. `now_ms` is what relative times count from.
    pub(crate) fn parse(text: &str, now_ms: TimestampMs) -> Result<Self, CliError> {
        point(text, now_ms).ok_or_else(|| problem(text))
    }

    /// The offset this stands for, limited to what the partition has.
    ///
    /// `time` is the offset at which this point's time begins.
    pub(crate) fn resolve(self, extent: &Extent, time: Option<Offset>) -> Offset {
        let offset = match self {
            Self::Start => extent.start,
            Self::End => extent.end,
            Self::At(offset) => offset,
            Self::Plus(count) => extent.start.saturating_add(count),
            Self::Minus(count) => extent.end.saturating_sub(count),
            Self::Time(_) => time.expect("the caller looks up every time before it resolves"),
        };
        offset.clamp(extent.start, extent.end.max(extent.start))
    }

    /// The time to look up before resolving.
    pub(crate) fn time(self) -> Option<TimestampMs> {
        match self {
            Self::Time(timestamp_ms) => Some(timestamp_ms),
            _ => None,
        }
    }
}

impl Range {
    /// Parses `FROM`, `FROM:TO`, `:TO` or `FROM:`.
    pub(crate) fn parse(text: &str, now_ms: TimestampMs) -> Result<Self, CliError> {
        // Times contain colons themselves: first the whole as one place, then each colon as the separator.
        if let Some(from) = point(text, now_ms) {
            return Ok(Self { from: Some(from), to: None });
        }
        for (at, _) in text.match_indices(':') {
            let (left, right) = (&text[..at], &text[at + 1..]);
            let from = if left.is_empty() { None } else { point(left, now_ms) };
            if from.is_none() && !left.is_empty() {
                continue;
            }
            if right.is_empty() {
                return Ok(Self { from, to: None });
            }
            if let Some(to) = stop(right, from, now_ms) {
                return Self { from, to: Some(to) }.check(text);
            }
        }
        Err(problem(text))
    }

    /// Refuses ranges that can be seen to be empty in any partition.
    fn check(self, text: &str) -> Result<Self, CliError> {
        let backwards = match (self.from, self.to) {
            (Some(Point::At(from)), Some(Point::At(to))) => from >= to,
            (Some(Point::Time(from)), Some(Point::Time(to))) => from >= to,
            (Some(Point::Minus(from)), Some(Point::Minus(to))) => from <= to,
            (Some(Point::End), Some(Point::Start)) => true,
            _ => false,
        };
        if backwards {
            return Err(CliError::usage(format!("`{text}` ends before it begins"))
                .with_hint("a range is FROM:TO, and TO itself is not included"));
        }
        Ok(self)
    }

    /// The first offset to read and the offset to stop before, if any.
    pub(crate) fn resolve(&self, extent: &Extent) -> (Offset, Option<Offset>) {
        let from = match self.from {
            // An exact offset beyond the end is waited for, not replaced by another.
            Some(Point::At(offset)) => offset.max(extent.start),
            Some(point) => point.resolve(extent, extent.from_time),
            None => extent.start,
        };
        let to = self.to.map(|to| match to {
            Point::At(offset) => offset,
            Point::Plus(count) => from.saturating_add(count),
            point => point.resolve(extent, extent.to_time),
        });
        (from, to)
    }
}

fn point(text: &str, now_ms: TimestampMs) -> Option<Point> {
    match text {
        "start" => return Some(Point::Start),
        "end" => return Some(Point::End),
        _ => {}
    }
    if let Some(time) = text.strip_prefix('@') {
        return timestamp(time, now_ms).map(Point::Time);
    }
    if let Some(count) = text.strip_prefix('+') {
        return digits(count).map(Point::Plus);
    }
    if let Some(count) = text.strip_prefix('-') {
        return digits(count).map(Point::Minus);
    }
    digits(text).map(Point::At)
}

/// The TO of a range. After a time it may leave out the `@`, and a bare duration counts from FROM.
fn stop(text: &str, from: Option<Point>, now_ms: TimestampMs) -> Option<Point> {
    let Some(Point::Time(from_ms)) = from else { return point(text, now_ms) };
    let bare = text.strip_prefix('@').unwrap_or(text);
    if let Ok(length) = quantity::parse_duration(bare)
        && bare != "0"
    {
        let length_ms = i64::try_from(length.as_millis()).ok()?;
        return from_ms.checked_add(length_ms).map(Point::Time);
    }
    match text {
        "start" | "end" => point(text, now_ms),
        _ if text.starts_with('+') => point(text, now_ms),
        _ => timestamp(bare, now_ms).map(Point::Time),
    }
}

fn timestamp(text: &str, now_ms: TimestampMs) -> Option<TimestampMs> {
    if text == "now" {
        return Some(now_ms);
    }
    if let Some(back) = text.strip_prefix('-') {
        let back_ms = i64::try_from(quantity::parse_duration(back).ok()?.as_millis()).ok()?;
        return now_ms.checked_sub(back_ms).map(|ms| ms.max(0));
    }
    if let Some(number) = digits(text) {
        let number = i64::try_from(number).ok()?;
        // Ten digits of seconds reach the year 2286; ten digits of milliseconds end in April 1970.
        return if text.len() <= 10 { number.checked_mul(1_000) } else { Some(number) };
    }
    let millisecond = if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        timestamp.as_millisecond()
    } else if let Ok(date) = text.parse::<jiff::civil::DateTime>()
        && text.len() != "2026-02-14T10".len()
    {
        date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_millisecond()
    } else {
        return None;
    };
    (millisecond >= 0).then_some(millisecond)
}

fn digits(text: &str) -> Option<u64> {
    // `u64::from_str` accepts a sign, which means something else here.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn problem(text: &str) -> CliError {
    CliError::usage(format!(
        "`{text}` is neither an offset nor a time. A position is one of\n{GRAMMAR}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-02-14T10:30:00Z
    const NOW: TimestampMs = 1_771_065_000_000;
    const HOUR: TimestampMs = 3_600_000;
    const EXTENT: Extent = Extent { start: 10, end: 110, from_time: None, to_time: None };

    fn range(text: &str) -> (Option<Point>, Option<Point>) {
        let range = Range::parse(text, NOW).unwrap_or_else(|error| panic!("{text}: {error}"));
        (range.from, range.to)
    }

    fn resolved(text: &str) -> (Offset, Option<Offset>) {
        Range::parse(text, NOW).unwrap().resolve(&EXTENT)
    }

    #[test]
    fn single_places_are_read() {
        assert_eq!(range("start"), (Some(Point::Start), None));
        assert_eq!(range("end"), (Some(Point::End), None));
        assert_eq!(range("47"), (Some(Point::At(47)), None));
        assert_eq!(range("47:"), (Some(Point::At(47)), None));
        assert_eq!(range("+10"), (Some(Point::Plus(10)), None));
        assert_eq!(range("-10"), (Some(Point::Minus(10)), None));
    }

    #[test]
    fn times_are_read_in_every_spelling() {
        let time = |text| range(text).0.and_then(Point::time).expect("a time");
        assert_eq!(time("@2026-02-14T10:30:00Z"), NOW);
        assert_eq!(time("@2026-02-14T10:30:00"), NOW);
        assert_eq!(time("@2026-02-14T10:30"), NOW);
        assert_eq!(time("@2026-02-14T11:30:00+01:00"), NOW);
        assert_eq!(time("@2026-02-14T10:30:00.250Z"), NOW + 250);
        assert_eq!(time("@1771065000000"), NOW);
        assert_eq!(time("@1771065000"), NOW);
        assert_eq!(time("@2026-02-14"), NOW - 10 * HOUR - HOUR / 2);
        assert_eq!(time("@-1h30m"), NOW - HOUR - HOUR / 2);
        assert_eq!(time("@now"), NOW);
    }

    #[test]
    fn ranges_are_split_at_the_colon_that_separates_and_not_at_one_inside_a_time() {
        let both = |from, to| (Some(from), Some(to));
        assert_eq!(range(":end"), (None, Some(Point::End)));
        assert_eq!(range("100:200"), both(Point::At(100), Point::At(200)));
        assert_eq!(range("-20:-10"), both(Point::Minus(20), Point::Minus(10)));
        assert_eq!(range("start:+5"), both(Point::Start, Point::Plus(5)));
        assert_eq!(
            range("@2026-02-14T09:30:00Z:2026-02-14T10:30:00Z"),
            both(Point::Time(NOW - HOUR), Point::Time(NOW))
        );
        assert_eq!(
            range("@2026-02-14T09:30:@2026-02-14T10:30"),
            both(Point::Time(NOW - HOUR), Point::Time(NOW))
        );
        assert_eq!(range("@-2h:-1h"), both(Point::Time(NOW - 2 * HOUR), Point::Time(NOW - HOUR)));
        assert_eq!(range("@-2h:@-1h"), both(Point::Time(NOW - 2 * HOUR), Point::Time(NOW - HOUR)));
        assert_eq!(range("@-2h:1h"), both(Point::Time(NOW - 2 * HOUR), Point::Time(NOW - HOUR)));
        assert_eq!(range("@-2h:end"), both(Point::Time(NOW - 2 * HOUR), Point::End));
        assert_eq!(range("@-2h:+7"), both(Point::Time(NOW - 2 * HOUR), Point::Plus(7)));
        assert_eq!(range("5:@-1h"), both(Point::At(5), Point::Time(NOW - HOUR)));
    }

    #[test]
    fn nonsense_is_refused_with_the_grammar() {
        for wrong in [
            "",
            ":x",
            "--5",
            "++5",
            "+",
            "@",
            "@yesterdy",
            "1.5",
            "@-",
            "tail",
            "5:x",
            "@2026-13-01",
        ] {
            let error = Range::parse(wrong, NOW).expect_err(wrong);
            assert_eq!(error.exit, crate::exit::Exit::Usage);
            assert!(error.message.contains("@-1h:@-5m"), "{}", error.message);
        }
    }

    #[test]
    fn ranges_that_run_backwards_are_refused() {
        for wrong in ["200:100", "7:7", "-5:-10", "@-1h:-2h", "end:start"] {
            let error = Range::parse(wrong, NOW).expect_err(wrong);
            assert!(error.message.contains("ends before"), "{}", error.message);
        }
    }

    #[test]
    fn places_resolve_within_what_the_partition_has() {
        assert_eq!(resolved("start"), (10, None));
        assert_eq!(resolved("end"), (110, None));
        assert_eq!(resolved("+5"), (15, None));
        assert_eq!(resolved("-5"), (105, None));
        assert_eq!(resolved("-5000"), (10, None));
        assert_eq!(resolved("+5000"), (110, None));
        assert_eq!(resolved("3"), (10, None));
        assert_eq!(resolved("500"), (500, None), "an offset that is not there yet is waited for");
        assert_eq!(resolved(":end"), (10, Some(110)));
        assert_eq!(resolved("50:+7"), (50, Some(57)));
        assert_eq!(resolved("50:60"), (50, Some(60)));
        let timed = Extent { from_time: Some(70), to_time: Some(90), ..EXTENT };
        assert_eq!(Range::parse("@-2h:-1h", NOW).unwrap().resolve(&timed), (70, Some(90)));
    }

    #[test]
    fn the_example_of_every_line_of_the_grammar_parses() {
        for line in GRAMMAR.lines().filter(|line| line.starts_with("  ")) {
            let example = line.split_whitespace().next().expect("an example");
            Range::parse(example, NOW).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
}
