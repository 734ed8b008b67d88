//! The settings a topic has: one table with name, default, bounds and documentation, and what they parse to.
//!
//! Text goes in once, is checked, and is stored in one canonical form: bytes and milliseconds as plain
//! numbers, `unlimited` for no bound. Unknown names are refused; nothing is ever ignored.

mod quantity;

use std::fmt;

use serde::{Deserialize, Serialize};
use tidemark_protocol::{
    ErrorCode, Failure,
    limits::BATCH_BYTES_MAX,
    messages::{SettingValue, TopicSettings},
};

use crate::image::REPLICAS_MAX;
use crate::names::{did_you_mean, quote};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Longest span of time a setting may hold: past a human life, and far from overflowing a timestamp.
const SPAN_MS_MAX: u64 = 36_500 * DAY_MS;

/// The setting whose default depends on the topic's replicas.
const MIN_INSYNC_REPLICAS: &str = "min_insync_replicas";

/// One topic setting, as documented and as checked.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub name: &'static str,
    /// In canonical form.
    pub default: &'static str,
    pub doc: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Bytes {
        min: u64,
        max: u64,
    },
    Milliseconds {
        min: u64,
        max: u64,
    },
    /// As the two above, or [`quantity::UNLIMITED`].
    BytesOrUnlimited,
    MillisecondsOrUnlimited,
    Count {
        min: u64,
        max: u64,
    },
    OneOf(&'static [&'static str]),
}

/// Every topic setting, in the order they are shown.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "retention_ms",
        default: "604800000",
        doc: "Records older than this are deleted, a whole segment at a time. \
              A span of time (`7d`) or `unlimited`.",
        kind: Kind::MillisecondsOrUnlimited,
    },
    Setting {
        name: "retention_bytes",
        default: quantity::UNLIMITED,
        doc: "The oldest segments of a partition are deleted while it holds more than this. \
              A size (`10GiB`) or `unlimited`.",
        kind: Kind::BytesOrUnlimited,
    },
    Setting {
        name: "cleanup_policy",
        default: "delete",
        doc: "What becomes of old records: `delete` drops old segments, `compact` keeps the last \
              record of every key, `compact,delete` does both.",
        kind: Kind::OneOf(&["delete", "compact", "compact,delete"]),
    },
    Setting {
        name: "durability",
        default: "disk",
        doc: "When a record counts as stored: `disk` once it is flushed to stable storage, `memory` \
              once it is in the page cache (survives the process, not the machine).",
        kind: Kind::OneOf(&["disk", "memory"]),
    },
    Setting {
        name: MIN_INSYNC_REPLICAS,
        default: "1",
        doc: "Fewest in-sync replicas with which records are accepted with acks=all and committed. \
              A topic of three replicas or more that is created without it gets a majority of them.",
        kind: Kind::Count { min: 1, max: REPLICAS_MAX as u64 },
    },
    Setting {
        name: "max_batch_bytes",
        default: "1048576",
        doc: "Largest record batch accepted, header included. A size.",
        kind: Kind::Bytes { min: 1 << 10, max: BATCH_BYTES_MAX as u64 },
    },
    Setting {
        name: "segment_bytes",
        default: "268435456",
        doc: "A segment is closed when it would grow beyond this. Retention and compaction work on \
              closed segments. A size, at least max_batch_bytes.",
        kind: Kind::Bytes { min: 64 << 10, max: 1 << 31 },
    },
    Setting {
        name: "segment_ms",
        default: "604800000",
        doc: "A segment is closed when its first record is older than this. A span of time.",
        kind: Kind::Milliseconds { min: 1_000, max: SPAN_MS_MAX },
    },
    Setting {
        name: "delete_retention_ms",
        default: "86400000",
        doc: "How long compaction keeps the mark of a deleted key at least, so that readers see the deletion. \
              A span of time.",
        kind: Kind::Milliseconds { min: 0, max: SPAN_MS_MAX },
    },
    Setting {
        name: "min_compaction_lag_ms",
        default: "0",
        doc: "Compaction leaves records younger than this alone. A span of time.",
        kind: Kind::Milliseconds { min: 0, max: SPAN_MS_MAX },
    },
    Setting {
        name: "unclean_leader_election",
        default: "false",
        doc: "Whether a replica that is not in sync may lead when no other is left. Committed records \
              are lost when it does.",
        kind: Kind::OneOf(&["false", "true"]),
    },
];

/// A topic's settings, parsed: what the rest of the broker uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// `None`: unlimited.
    pub retention_ms: Option<u64>,
    /// `None`: unlimited.
    pub retention_bytes: Option<u64>,
    pub cleanup_policy: CleanupPolicy,
    pub durability: TopicDurability,
    pub min_insync_replicas: u16,
    pub max_batch_bytes: u32,
    pub segment_bytes: u64,
    pub segment_ms: u64,
    pub delete_retention_ms: u64,
    pub min_compaction_lag_ms: u64,
    pub unclean_leader_election: bool,
}

/// What becomes of old records; at least one is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupPolicy {
    pub delete: bool,
    pub compact: bool,
}

/// When a record of the topic counts as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TopicDurability {
    Disk,
    Memory,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self::from_settings(&TopicSettings::new()).expect("the table's defaults are valid")
    }
}

impl TopicConfig {
    /// Checks and parses settings; those absent have their default. Refuses with `InvalidConfig`.
    pub fn from_settings(settings: &TopicSettings) -> Result<Self, Failure> {
        for (name, value) in settings {
            find(name)?.canonical(value)?;
        }
        let values = Values(settings);
        let config = Self {
            retention_ms: values.bound("retention_ms")?,
            retention_bytes: values.bound("retention_bytes")?,
            cleanup_policy: CleanupPolicy {
                delete: values.text("cleanup_policy")?.ends_with("delete"),
                compact: values.text("cleanup_policy")?.starts_with("compact"),
            },
            durability: match values.text("durability")?.as_str() {
                "memory" => TopicDurability::Memory,
                _ => TopicDurability::Disk,
            },
            min_insync_replicas: values.number(MIN_INSYNC_REPLICAS)?,
            max_batch_bytes: values.number("max_batch_bytes")?,
            segment_bytes: values.number("segment_bytes")?,
            segment_ms: values.number("segment_ms")?,
            delete_retention_ms: values.number("delete_retention_ms")?,
            min_compaction_lag_ms: values.number("min_compaction_lag_ms")?,
            unclean_leader_election: values.text("unclean_leader_election")? == "true",
        };
        config.check()
    }

    /// What no setting can say alone.
    fn check(self) -> Result<Self, Failure> {
        if u64::from(self.max_batch_bytes) > self.segment_bytes {
            return Err(refusal(format!(
                "max_batch_bytes ({}) must fit into segment_bytes ({})",
                self.max_batch_bytes, self.segment_bytes
            )));
        }
        Ok(self)
    }
}

/// The fewest in-sync replicas of a topic that is created without saying: a majority of its replicas if it has three or
/// more. Of two it is one: who asks for no third wants a spare that may be away.
pub fn min_insync_replicas_for(replication_factor: usize) -> usize {
    if replication_factor < 3 { 1 } else { replication_factor / 2 + 1 }
}

/// The same settings, with what depends on the number of replicas where nothing else is said. What is the default of every
/// topic is left out.
pub(crate) fn completed(mut settings: TopicSettings, replication_factor: usize) -> TopicSettings {
    let min = min_insync_replicas_for(replication_factor).to_string();
    let setting = find(MIN_INSYNC_REPLICAS).expect("it is in the list");
    if min != setting.default {
        settings.entry(MIN_INSYNC_REPLICAS.to_owned()).or_insert(min);
    }
    settings
}

/// Checks settings, each by itself and all together, and brings their values into canonical form.
pub fn canonical(settings: &TopicSettings) -> Result<TopicSettings, Failure> {
    let canonical: TopicSettings = settings
        .iter()
        .map(|(name, value)| Ok((name.clone(), find(name)?.canonical(value)?)))
        .collect::<Result<_, Failure>>()?;
    TopicConfig::from_settings(&canonical)?;
    Ok(canonical)
}

/// The setting of that name, or a refusal that names the nearest one.
pub fn find(name: &str) -> Result<&'static Setting, Failure> {
    SETTINGS.iter().find(|setting| setting.name == name).ok_or_else(|| {
        let suggestion = did_you_mean(name, SETTINGS.iter().map(|setting| setting.name));
        refusal(format!("there is no topic setting {}.{suggestion}", quote(name)))
    })
}

/// Every setting with the value in force, for `topic describe`. `settings` are a topic's, as stored.
pub fn describe(settings: &TopicSettings) -> Vec<SettingValue> {
    let describe_one = |setting: &Setting| {
        let own = settings.get(setting.name);
        SettingValue {
            name: setting.name.to_owned(),
            value: own.map_or_else(|| setting.default.to_owned(), Clone::clone),
            default: setting.default.to_owned(),
            source: if own.is_some() { "topic" } else { "default" }.to_owned(),
            doc: setting.doc.to_owned(),
        }
    };
    SETTINGS.iter().map(describe_one).collect()
}

impl Setting {
    /// The values it takes, in words.
    pub fn bounds(&self) -> String {
        self.kind.to_string()
    }

    /// Checks a value and brings it into the form that is stored.
    pub fn canonical(&self, value: &str) -> Result<String, Failure> {
        self.kind.canonical(value.trim()).ok_or_else(|| {
            refusal(format!("{} cannot be {}; it takes {}", self.name, quote(value), self.kind))
        })
    }
}

impl Kind {
    fn canonical(self, text: &str) -> Option<String> {
        let within = |value: u64, min: u64, max: u64| {
            (min..=max).contains(&value).then(|| value.to_string())
        };
        let unlimited = matches!(text, "-1" | quantity::UNLIMITED);
        match self {
            Self::BytesOrUnlimited | Self::MillisecondsOrUnlimited if unlimited => {
                Some(quantity::UNLIMITED.to_owned())
            }
            Self::Bytes { min, max } => within(quantity::bytes(text)?, min, max),
            Self::Milliseconds { min, max } => within(quantity::milliseconds(text)?, min, max),
            Self::BytesOrUnlimited => within(quantity::bytes(text)?, 0, i64::MAX as u64),
            Self::MillisecondsOrUnlimited => within(quantity::milliseconds(text)?, 1, SPAN_MS_MAX),
            Self::Count { min, max } => within(text.parse().ok()?, min, max),
            Self::OneOf(choices) => {
                // `delete,compact` and `Compact, Delete` mean what they seem to.
                let mut words: Vec<_> =
                    text.split(',').map(|word| word.trim().to_ascii_lowercase()).collect();
                words.sort_unstable();
                choices.iter().find(|choice| **choice == words.join(",")).map(ToString::to_string)
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { min, max } => {
                write!(out, "a size from {min} to {max} bytes, as in 1048576 or 1MiB")
            }
            Self::Milliseconds { min, max } => {
                write!(out, "a span of time from {min} to {max} ms, as in 90s or 7d")
            }
            Self::BytesOrUnlimited => out.write_str("a size, as in 10GiB, or unlimited"),
            Self::MillisecondsOrUnlimited => {
                out.write_str("a span of time of 1 ms to 36500d, as in 90s or 7d, or unlimited")
            }
            Self::Count { min, max } => write!(out, "a number from {min} to {max}"),
            Self::OneOf(choices) => {
                let (last, rest) = choices.split_last().expect("no setting has no choices");
                write!(out, "{} or {last}", rest.join(", "))
            }
        }
    }
}

/// Settings with the defaults behind them. Values are brought into canonical form on the way out, so that
/// one that was stored by an older build is read like one that was just typed.
struct Values<'a>(&'a TopicSettings);

impl Values<'_> {
    fn text(&self, name: &'static str) -> Result<String, Failure> {
        let setting = find(name)?;
        setting.canonical(self.0.get(name).map_or(setting.default, String::as_str))
    }

    fn number<N: TryFrom<u64>>(&self, name: &'static str) -> Result<N, Failure> {
        let number = self.text(name)?.parse().ok().and_then(|value: u64| N::try_from(value).ok());
        number.ok_or_else(|| refusal(format!("{name} is no number")))
    }

    fn bound(&self, name: &'static str) -> Result<Option<u64>, Failure> {
        if self.text(name)? == quantity::UNLIMITED {
            return Ok(None);
        }
        self.number(name).map(Some)
    }
}

fn refusal(message: String) -> Failure {
    Failure::new(ErrorCode::InvalidConfig, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> TopicSettings {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_default_is_valid_and_canonical() {
        for setting in SETTINGS {
            assert_eq!(setting.canonical(setting.default).unwrap(), setting.default, "{setting:?}");
            assert!(!setting.doc.contains("  "), "{}", setting.name);
        }
        let config = TopicConfig::default();
        assert_eq!(config.retention_ms, Some(7 * DAY_MS));
        assert_eq!(config.retention_bytes, None);
        assert_eq!(config.cleanup_policy, CleanupPolicy { delete: true, compact: false });
        assert_eq!(config.durability, TopicDurability::Disk);
        assert!(!config.unclean_leader_election);
    }

    #[test]
    fn values_are_stored_in_one_form_however_they_were_written() {
        for (name, written, stored) in [
            ("segment_bytes", "64MiB", "67108864"),
            ("segment_bytes", " 67108864 ", "67108864"),
            ("retention_ms", "1h", "3600000"),
            ("retention_ms", "-1", "unlimited"),
            ("retention_bytes", "unlimited", "unlimited"),
            ("cleanup_policy", "delete, compact", "compact,delete"),
            ("cleanup_policy", "Compact", "compact"),
            ("unclean_leader_election", "TRUE", "true"),
            ("min_insync_replicas", "02", "2"),
        ] {
            let stored_now = canonical(&settings(&[(name, written)])).unwrap();
            assert_eq!(stored_now, settings(&[(name, stored)]), "{written:?}");
            assert_eq!(canonical(&stored_now).unwrap(), stored_now, "{written:?}");
        }
    }

    #[test]
    fn what_a_setting_cannot_be_is_refused_with_what_it_can() {
        for (name, value, hint) in [
            ("retention_msec", "1", "Did you mean \"retention_ms\"?"),
            ("zzz", "1", "no topic setting \"zzz\"."),
            ("segment_bytes", "1", "65536"),
            ("segment_bytes", "-1", "a size from"),
            ("segment_ms", "0", "1000"),
            ("retention_ms", "0", "1 ms"),
            ("retention_ms", "soon", "as in 90s or 7d"),
            ("cleanup_policy", "shred", "delete, compact or compact,delete"),
            ("cleanup_policy", "", "delete, compact or"),
            ("cleanup_policy", "delete,delete", "delete, compact or"),
            ("durability", "maybe", "disk or memory"),
            ("min_insync_replicas", "0", "from 1 to 32"),
            ("max_batch_bytes", "1GiB", "33554432"),
        ] {
            let failure = canonical(&settings(&[(name, value)])).expect_err(name);
            assert_eq!(failure.code, ErrorCode::InvalidConfig);
            assert!(failure.message.contains(hint), "{} lacks {hint:?}", failure.message);
        }
    }

    #[test]
    fn a_batch_must_fit_into_a_segment() {
        let pairs = [("segment_bytes", "64KiB"), ("max_batch_bytes", "65KiB")];
        let failure = canonical(&settings(&pairs)).expect_err("does not fit");
        assert!(failure.message.contains("must fit into segment_bytes"), "{}", failure.message);
    }

    #[test]
    fn describe_lists_every_setting_with_where_its_value_comes_from() {
        let described = describe(&settings(&[("durability", "memory")]));
        assert_eq!(described.len(), SETTINGS.len());
        for value in described {
            let own = value.name == "durability";
            assert_eq!(value.source, if own { "topic" } else { "default" });
            assert_eq!(value.value == value.default, !own);
        }
    }
}
