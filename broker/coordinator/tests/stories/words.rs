//! The words of a line, and values in them.

use std::{collections::BTreeMap, str::FromStr};

use tidemark_protocol::{TopicId, TopicPartition};

pub(crate) struct Words<'a> {
    pub(crate) line: &'a str,
    pub(crate) now_ms: u64,
    pub(crate) verb: &'a str,
    /// The first word after the verb that is no `key=value`.
    pub(crate) name: &'a str,
    values: BTreeMap<&'a str, &'a str>,
    /// In the order of the line, the name not among them.
    pub(crate) rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    pub(crate) fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace().peekable();
        let time = words.next_if(|word| word.ends_with("ms") && !word.contains('='));
        let now_ms = time.map_or(0, |time| time.trim_end_matches("ms").parse().unwrap());
        let verb = words.next().unwrap_or_else(|| panic!("{line}: no verb"));
        let name = words.next_if(|word| !word.contains('=')).unwrap_or("");
        let rest: Vec<&str> = words.collect();
        let values = rest.iter().map(|word| word.split_once('=').unwrap_or((word, ""))).collect();
        Self { line, now_ms, verb, name, values, rest }
    }

    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.values.get(key).map(|value| (*value).to_owned())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub(crate) fn number<T: FromStr>(&self, key: &str) -> Option<T> {
        let parse = |value: &&str| {
            value.parse().unwrap_or_else(|_| panic!("{}: {key} is no number", self.line))
        };
        self.values.get(key).map(parse)
    }

    pub(crate) fn list(&self, key: &str) -> Option<Vec<&'a str>> {
        let split = |value: &&'a str| value.split(',').filter(|one| !one.is_empty()).collect();
        self.values.get(key).map(split)
    }

    /// `a/0,b/3`: partitions of the topics `a` and `b`.
    pub(crate) fn partitions<C: FromIterator<TopicPartition>>(&self, key: &str) -> Option<C> {
        Some(self.list(key)?.into_iter().map(partition).collect())
    }
}

/// Topics are called by one letter; their ids are made of it.
pub(crate) fn topic_id(name: &str) -> TopicId {
    TopicId([name.as_bytes()[0]; 16])
}

pub(crate) fn partition(text: &str) -> TopicPartition {
    let (topic, partition) =
        text.split_once('/').unwrap_or_else(|| panic!("{text}: topic/partition"));
    TopicPartition { topic_id: topic_id(topic), partition: partition.parse().unwrap() }
}

pub(crate) fn show(partition: &TopicPartition) -> String {
    format!("{}/{}", char::from(partition.topic_id.0[0]), partition.partition)
}

pub(crate) fn show_all<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>) -> String {
    let all: Vec<String> = partitions.into_iter().map(show).collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(" ") }
}
