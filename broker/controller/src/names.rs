//! What a topic may be called, and what somebody who mistyped a name probably meant.

use tidemark_protocol::{ErrorCode, Failure, limits::TOPIC_NAME_BYTES_MAX};

/// Longest name a suggestion is looked for, in bytes: the distance costs the product of both lengths.
const SUGGESTION_BYTES_MAX: usize = 64;
/// Most names compared for one suggestion.
const SUGGESTION_CANDIDATES_MAX: usize = 2_000;
/// Longest piece of the caller's text that is repeated in a message, in characters.
const QUOTE_CHARS_MAX: usize = 80;

/// Kafka's rules, because a topic is also the name of a directory and of a metric: 1 to
/// [`TOPIC_NAME_BYTES_MAX`] ASCII letters, digits, dots, underscores and hyphens, but neither `.` nor `..`.
pub fn check_topic_name(name: &str) -> Result<(), Failure> {
    let refuse = |why: &str| {
        let message = format!("topic name {} {why}", quote(name));
        Err(Failure::new(ErrorCode::InvalidTopicName, message))
    };
    if name.is_empty() {
        return refuse("is empty");
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        let length = name.len();
        return refuse(&format!("is {length} bytes long; at most {TOPIC_NAME_BYTES_MAX} fit"));
    }
    if name == "." || name == ".." {
        return refuse("names a directory, not a topic");
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|c| !allowed(*c)) {
        Some(c) => refuse(&format!("contains {c:?}; use letters, digits, '.', '_' and '-'")),
        None => Ok(()),
    }
}

/// The caller's text, escaped and cut short: it may be a megabyte of control characters.
pub(crate) fn quote(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(QUOTE_CHARS_MAX).collect();
    if chars.next().is_none() { format!("{head:?}") } else { format!("{head:?}...") }
}

/// ` Did you mean "x"?` for the candidate closest to `wanted`, or nothing when none is close.
pub(crate) fn did_you_mean<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    nearest(wanted, candidates).map_or_else(String::new, |name| format!(" Did you mean {name:?}?"))
}

fn nearest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.is_empty() || wanted.len() > SUGGESTION_BYTES_MAX {
        return None;
    }
    let edits_max = (wanted.len() / 3).max(1);
    candidates
        .take(SUGGESTION_CANDIDATES_MAX)
        .filter(|name| name.len().abs_diff(wanted.len()) <= edits_max)
        .map(|name| (strsim::osa_distance(&wanted.to_ascii_lowercase(), name), name))
        .filter(|(edits, _)| *edits <= edits_max)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_follow_the_rules() {
        let longest = "x".repeat(TOPIC_NAME_BYTES_MAX);
        for name in ["a", "orders", "a.b_c-D9", "...", "-", "_", &longest] {
            assert_eq!(check_topic_name(name), Ok(()), "{name:?}");
        }
        let too_long = "x".repeat(TOPIC_NAME_BYTES_MAX + 1);
        for name in
            ["", ".", "..", "a b", "a/b", "../etc", "\u{e9}t\u{e9}", "a\0", "a\n", &too_long]
        {
            let failure = check_topic_name(name).expect_err(name);
            assert_eq!(failure.code, ErrorCode::InvalidTopicName, "{name:?}");
            assert!(failure.message.len() < 300, "{}", failure.message);
        }
    }

    #[test]
    fn a_typing_error_is_recognised_and_a_different_word_is_not() {
        let names = ["orders", "orders-eu", "payments"];
        let suggestion = |wanted| did_you_mean(wanted, names.into_iter());
        assert_eq!(suggestion("odrers"), " Did you mean \"orders\"?");
        assert_eq!(suggestion("Payment"), " Did you mean \"payments\"?");
        assert_eq!(suggestion("clicks"), "");
        assert_eq!(suggestion(""), "");
        assert_eq!(suggestion(&"orders".repeat(1_000)), "");
    }

    #[test]
    fn a_hostile_name_is_repeated_short_and_escaped() {
        let quoted = quote(&"\u{1b}[2J".repeat(100_000));
        assert!(quoted.len() < 1_000 && !quoted.contains('\u{1b}'), "{quoted}");
    }
}
