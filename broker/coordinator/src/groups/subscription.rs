//! From what members subscribed to, to topics that exist.

use std::collections::{BTreeMap, BTreeSet};

use regex_lite::{Regex, RegexBuilder};
use tidemark_protocol::{
    ErrorCode, Failure, TopicId, is_internal_topic, limits::TOPIC_NAME_BYTES_MAX,
};

use super::{record::Member, request::Subscription};
use crate::{
    limits::{REGEX_BYTES_MAX, REGEX_PROGRAM_BYTES_MAX, SUBSCRIPTION_TOPICS_MAX},
    topics::Topics,
};

/// Refuses what could never be resolved.
pub(super) fn check(subscription: &Subscription) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure::new(ErrorCode::InvalidRequest, message));
    if subscription.topics.is_empty() && subscription.regex.is_none() {
        return refuse("a subscription names at least one topic or a pattern".to_owned());
    }
    if subscription.topics.len() > SUBSCRIPTION_TOPICS_MAX {
        return refuse(format!("a subscription names at most {SUBSCRIPTION_TOPICS_MAX} topics"));
    }
    let is_name = |name: &String| (1..=TOPIC_NAME_BYTES_MAX).contains(&name.len());
    if !subscription.topics.iter().all(is_name) {
        return refuse(format!("topic names have 1 to {TOPIC_NAME_BYTES_MAX} bytes"));
    }
    match &subscription.regex {
        Some(regex) => compile(regex).map(drop),
        None => Ok(()),
    }
}

/// The topics of each member, by its id.
pub(super) fn resolve<'a>(
    members: &'a BTreeMap<String, Member>,
    topics: &Topics,
) -> BTreeMap<&'a str, BTreeSet<TopicId>> {
    let mut matches: BTreeMap<&str, BTreeSet<TopicId>> = BTreeMap::new();
    for pattern in members.values().filter_map(|member| member.regex.as_deref()) {
        matches.entry(pattern).or_insert_with(|| matching(pattern, topics));
    }
    let of_member = |member: &Member| {
        let named = member.topics.iter().filter_map(|name| topics.by_name(name));
        let named = named.map(|topic| topic.id);
        let matched = member.regex.as_deref().map(|pattern| &matches[pattern]);
        named.chain(matched.into_iter().flatten().copied()).collect()
    };
    members.iter().map(|(id, member)| (id.as_str(), of_member(member))).collect()
}

fn matching(pattern: &str, topics: &Topics) -> BTreeSet<TopicId> {
    // It was compiled when the member came. A later build may refuse what that one took: then it matches nothing.
    let Ok(regex) = compile(pattern) else { return BTreeSet::new() };
    let matched = topics
        .iter()
        .filter(|topic| !is_internal_topic(&topic.name) && regex.is_match(&topic.name));
    matched.map(|topic| topic.id).collect()
}

/// The expression, made to match whole names only.
fn compile(pattern: &str) -> Result<Regex, Failure> {
    let refuse = |message: String| Failure::new(ErrorCode::InvalidRegex, message);
    if pattern.is_empty() || pattern.len() > REGEX_BYTES_MAX {
        let message = format!("a pattern has 1 to {REGEX_BYTES_MAX} bytes");
        return Err(refuse(message));
    }
    let build = |pattern: &str| {
        RegexBuilder::new(pattern).size_limit(REGEX_PROGRAM_BYTES_MAX).build().map_err(|error| {
            refuse(format!("the pattern {pattern:?} is no regular expression: {error}"))
        })
    };
    // On its own first: put between parentheses, `a)(b` would pass.
    build(pattern)?;
    build(&format!("^(?:{pattern})$"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::Topic;

    fn subscription(pattern: &str) -> Subscription {
        Subscription { topics: BTreeSet::new(), regex: Some(pattern.to_owned()) }
    }

    #[test]
    fn invalid_expressions_are_refused_and_the_message_says_why() {
        for pattern in ["(", "a)(b", "[z-a]", "*", "", "(?:a{1000}){1000}", &"a".repeat(2000)] {
            let failure = check(&subscription(pattern)).expect_err(pattern);
            assert_eq!(failure.code, ErrorCode::InvalidRegex, "{pattern}");
        }
        let failure = check(&subscription("orders-(")).expect_err("unclosed");
        assert!(failure.message.contains("orders-("), "{failure}");
    }

    #[test]
    fn an_expression_matches_whole_names_and_no_internal_topic() {
        let names = ["orders", "orders-eu", "my-orders", "__groups", "x"];
        let topics: Topics = (1..).zip(names).map(|(id, name)| topic(id, name)).collect();
        let found = |pattern| {
            let ids = matching(pattern, &topics);
            ids.iter().map(|id| topics.get(*id).unwrap().name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(found("orders"), ["orders"]);
        assert_eq!(found("orders.*"), ["orders", "orders-eu"]);
        assert_eq!(found("orders|x"), ["orders", "x"]);
        assert_eq!(found(".*").len(), 4);
    }

    fn topic(id: u8, name: &str) -> Topic {
        Topic { id: TopicId([id; 16]), name: name.to_owned(), partitions: 1, racks: Vec::new() }
    }
}
