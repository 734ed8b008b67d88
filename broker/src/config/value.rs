//! Kinds of setting values: how each is written by a person, read back, and shown.
//!
//! A kind parses text from any source in the same way, so a size means the same in a file, an environment
//! variable and a flag. Kinds know nothing of particular settings or of where a text came from.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::{self, PathBuf},
    time::Duration,
};

/// A kind of value. `Value` is what the program uses; the text is what people write.
pub trait Kind {
    type Value: Clone + PartialOrd + Debug;
    /// What stands for the value in `--help`.
    const PLACEHOLDER: &'static str;
    /// Reads a value. The error completes the sentence "`listen` …".
    fn parse(text: &str) -> Result<Self::Value, String>;
    /// Writes the value so that [`Kind::parse`] gives it back.
    fn render(value: &Self::Value) -> String;
}

/// A number of bytes: `1048576`, `1MiB`, `1.5GiB`, `100MB`.
#[derive(Debug)]
pub struct Bytes;

const BYTE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl Kind for Bytes {
    type Value = u64;
    const PLACEHOLDER: &'static str = "SIZE";

    fn parse(text: &str) -> Result<u64, String> {
        scaled(text, BYTE_UNITS)
            .ok_or_else(|| format!("must be a size such as 64MiB, 1.5GiB or 4096, not `{text}`"))
    }

    fn render(value: &u64) -> String {
        let binary = BYTE_UNITS.iter().filter(|(unit, _)| unit.ends_with("iB"));
        for (unit, scale) in binary {
            if *value > 0 && value.is_multiple_of(*scale) {
                return format!("{}{unit}", value / scale);
            }
        }
        format!("{value}B")
    }
}

/// A stretch of time, to the millisecond: `250ms`, `5s`, `10m`, `12h`, `7d`.
#[derive(Debug)]
pub struct Time;

const TIME_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];

impl Kind for Time {
    type Value = Duration;
    const PLACEHOLDER: &'static str = "TIME";

    fn parse(text: &str) -> Result<Duration, String> {
        let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
        let ms = if has_unit || text == "0" { scaled(text, TIME_UNITS) } else { None };
        let wanted =
            || format!("must be a time with its unit such as 250ms, 5s or 12h, not `{text}`");
        ms.map(Duration::from_millis).ok_or_else(wanted)
    }

    fn render(value: &Duration) -> String {
        let ms = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        let whole = |(_, scale): &&(&str, u64)| ms > 0 && ms.is_multiple_of(*scale);
        let (unit, scale) = TIME_UNITS
            .iter()
            .filter(whole)
            .max_by_key(|(_, scale)| *scale)
            .unwrap_or(&("s", 1_000));
        format!("{}{unit}", ms / scale)
    }
}

/// Reads `<number><unit>`, with or without a space, case-insensitively, as a whole number of the smallest unit.
/// A number without a unit counts in the smallest unit.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let unit = unit.trim_start();
    let scale = match unit {
        "" => 1,
        unit => units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.len() > 9 {
        return None;
    }
    // In integers: a size must not depend on how a float rounds.
    let mut value = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if !fraction.is_empty() {
        let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / denominator;
        value = value.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(value)
}

/// A whole number.
#[derive(Debug)]
pub struct Count;

impl Kind for Count {
    type Value = u32;
    const PLACEHOLDER: &'static str = "N";

    fn parse(text: &str) -> Result<u32, String> {
        text.parse().map_err(|_| format!("must be a whole number, not `{text}`"))
    }

    fn render(value: &u32) -> String {
        value.to_string()
    }
}

/// A number of threads, or `auto` for one per core. The value is resolved when it is read.
#[derive(Debug)]
pub struct Threads;

impl Kind for Threads {
    type Value = u32;
    const PLACEHOLDER: &'static str = "N";

    fn parse(text: &str) -> Result<u32, String> {
        if text == "auto" {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            return Ok(u32::try_from(cores).unwrap_or(u32::MAX).clamp(1, AUTO_THREADS_MAX));
        }
        text.parse().map_err(|_| format!("must be a whole number or `auto`, not `{text}`"))
    }

    fn render(value: &u32) -> String {
        value.to_string()
    }
}

/// Past this many cores, more threads of one kind mostly wait for each other.
const AUTO_THREADS_MAX: u32 = 16;

/// Where to listen or connect: `host:port`, `[v6]:port`. Names are resolved when they are used.
#[derive(Debug)]
pub struct Address;

impl Kind for Address {
    type Value = String;
    const PLACEHOLDER: &'static str = "HOST:PORT";

    fn parse(text: &str) -> Result<String, String> {
        let wanted = || format!("must be host:port such as 127.0.0.1:9092, not `{text}`");
        let (host, port) = text.rsplit_once(':').ok_or_else(wanted)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let plausible = !host.is_empty() && (bracketed || !host.contains([':', '/', ' ']));
        if !plausible || port.parse::<u16>().is_err() {
            return Err(wanted());
        }
        Ok(text.to_owned())
    }

    fn render(value: &String) -> String {
        value.clone()
    }
}

/// An address, or nothing: the empty text.
#[derive(Debug)]
pub struct OptionalAddress;

impl Kind for OptionalAddress {
    type Value = Option<String>;
    const PLACEHOLDER: &'static str = "HOST:PORT";

    fn parse(text: &str) -> Result<Option<String>, String> {
        if text.is_empty() { Ok(None) } else { Address::parse(text).map(Some) }
    }

    fn render(value: &Option<String>) -> String {
        value.clone().unwrap_or_default()
    }
}

/// A word or more, or nothing: the empty text.
#[derive(Debug)]
pub struct OptionalText;

impl Kind for OptionalText {
    type Value = Option<String>;
    const PLACEHOLDER: &'static str = "TEXT";

    fn parse(text: &str) -> Result<Option<String>, String> {
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    fn render(value: &Option<String>) -> String {
        value.clone().unwrap_or_default()
    }
}

/// Nodes and where others reach them: `1@host:port,2@host:port`. In order of node id.
#[derive(Debug)]
pub struct Controllers;

impl Kind for Controllers {
    type Value = BTreeMap<u32, String>;
    const PLACEHOLDER: &'static str = "ID@HOST:PORT,...";

    fn parse(text: &str) -> Result<BTreeMap<u32, String>, String> {
        let mut controllers = BTreeMap::new();
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let wanted = || format!("must list nodes as 1@host:port, not `{one}`");
            let (node, address) = one.split_once('@').ok_or_else(wanted)?;
            let node = node.parse().ok().filter(|node| *node > 0).ok_or_else(wanted)?;
            let address = Address::parse(address).map_err(|_| wanted())?;
            if controllers.insert(node, address).is_some() {
                return Err(format!("names node {node} twice"));
            }
        }
        if controllers.len() > CONTROLLERS_MAX {
            return Err(format!("names more than {CONTROLLERS_MAX} controllers"));
        }
        Ok(controllers)
    }

    fn render(value: &BTreeMap<u32, String>) -> String {
        let all: Vec<_> = value.iter().map(|(node, address)| format!("{node}@{address}")).collect();
        all.join(",")
    }
}

/// Every decision waits for a majority of them.
const CONTROLLERS_MAX: usize = 9;

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Roles {
    Broker,
    Controller,
    Both,
}

impl Roles {
    pub fn is_broker(self) -> bool {
        self != Self::Controller
    }

    pub fn is_controller(self) -> bool {
        self != Self::Broker
    }
}

/// A path of this machine; a relative one counts from the working directory.
#[derive(Debug)]
pub struct DirPath;

impl Kind for DirPath {
    type Value = PathBuf;
    const PLACEHOLDER: &'static str = "DIR";

    fn parse(text: &str) -> Result<PathBuf, String> {
        if text.is_empty() {
            return Err("must name a directory".to_owned());
        }
        // Absolute from here on: the directory above it has a name, and messages say where it is.
        path::absolute(text).map_err(|error| format!("cannot be made absolute: {error}"))
    }

    fn render(value: &PathBuf) -> String {
        value.display().to_string()
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogFormat {
    /// For people; coloured when standard error is a terminal.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

macro_rules! choices {
    ($name:ident, $placeholder:literal, $($variant:ident = $text:literal),+) => {
        impl Kind for $name {
            type Value = Self;
            const PLACEHOLDER: &'static str = $placeholder;

            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(format!("must be one of {}, not `{other}`", [$($text),+].join(", "))),
                }
            }

            fn render(value: &Self) -> String {
                match value { $(Self::$variant => $text.to_owned()),+ }
            }
        }
    };
}

choices!(
    LogLevel,
    "LEVEL",
    Error = "error",
    Warn = "warn",
    Info = "info",
    Debug = "debug",
    Trace = "trace"
);
choices!(Roles, "ROLES", Broker = "broker", Controller = "controller", Both = "both");
choices!(LogFormat, "FORMAT", Text = "text", Json = "json");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them_and_come_back() {
        for (text, bytes, shown) in [
            ("0", 0, "0B"),
            ("4096", 4096, "4KiB"),
            ("64MiB", 64 << 20, "64MiB"),
            ("64 mib", 64 << 20, "64MiB"),
            ("1.5GiB", 3 << 29, "1536MiB"),
            ("100MB", 100_000_000, "100000000B"),
            ("7B", 7, "7B"),
        ] {
            assert_eq!(Bytes::parse(text), Ok(bytes), "{text}");
            assert_eq!(Bytes::render(&bytes), shown);
            assert_eq!(Bytes::parse(shown), Ok(bytes), "{shown}");
        }
        for text in ["", "MiB", "1XB", "-1", "1.", ".5MiB", "1.2.3", "99999999999TiB", "1e3"] {
            assert!(Bytes::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_read_as_people_write_them_and_come_back() {
        for (text, ms, shown) in [
            ("250ms", 250, "250ms"),
            ("0", 0, "0s"),
            ("5s", 5_000, "5s"),
            ("1.5s", 1_500, "1500ms"),
            ("90s", 90_000, "90s"),
            ("48h", 172_800_000, "2d"),
        ] {
            assert_eq!(Time::parse(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(Time::render(&Duration::from_millis(ms)), shown);
        }
        for text in ["", "5", "s", "5 parsecs"] {
            assert!(Time::parse(text).is_err(), "{text}: a time without its unit is a trap");
        }
    }

    #[test]
    fn controllers_are_nodes_with_addresses() {
        let text = "1@a:9092,3@[::1]:9093";
        let two = Controllers::parse(text).unwrap();
        assert_eq!(two.get(&3).map(String::as_str), Some("[::1]:9093"));
        assert_eq!(Controllers::render(&two), text);
        assert_eq!(Controllers::parse(""), Ok(BTreeMap::new()));
        for text in ["a:9092", "0@a:9092", "1@a", "1@a:1,1@b:1", "x@a:1"] {
            assert!(Controllers::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for text in ["127.0.0.1:9092", "[::1]:0", "broker-1.example:9092"] {
            assert!(Address::parse(text).is_ok(), "{text}");
        }
        for text in ["9092", ":9092", "host:", "host:70000", "::1:9092", "http://h:1"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
