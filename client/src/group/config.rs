//! Settings of a member of a group.

use std::time::Duration;

use crate::consumer::ConsumerConfig;

/// Where a member begins in a partition for which the group has committed nothing, or something that is not there any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartAt {
    /// At the first record that still exists.
    #[default]
    Earliest,
    /// At the next record to be written.
    Latest,
    /// Nowhere: the member is told, and somebody has to decide.
    Error,
}

/// How a [`crate::GroupConsumer`] takes part in its group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    pub group: String,
    /// Topics to read, by name. They need not exist yet.
    pub topics: Vec<String>,
    /// Also every topic whose whole name matches this regular expression, now and in future, internal ones excepted.
    pub pattern: Option<String>,
    /// Name of a static member: it keeps its partitions while it restarts, for as long as the broker's session timeout.
    pub instance: Option<String>,
    pub rack: Option<String>,
    /// The assignor this member would like (`sticky`, `uniform`, `range`); the group goes by the majority.
    pub assignor: Option<String>,
    /// How long the program may take between two polls. After it the member leaves, and others get its partitions.
    pub max_poll_interval: Duration,
    /// How often a poll commits what earlier polls returned; `None`: only the program commits.
    pub auto_commit: Option<Duration>,
    pub start_at: StartAt,
    /// How partitions are read. Its `out_of_range` is not looked at: `start_at` is.
    pub consumer: ConsumerConfig,
}

impl GroupConfig {
    /// The defaults, for this group. It still needs topics.
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            topics: Vec::new(),
            pattern: None,
            instance: None,
            rack: None,
            assignor: None,
            max_poll_interval: Duration::from_mins(5),
            auto_commit: Some(Duration::from_secs(5)),
            start_at: StartAt::default(),
            consumer: ConsumerConfig::default(),
        }
    }

    /// Reads this topic, too.
    #[must_use]
    pub fn topic(mut self, name: impl Into<String>) -> Self {
        self.topics.push(name.into());
        self
    }
}
