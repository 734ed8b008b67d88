//! Every setting of the broker: name, kind, default, bounds and what it is for. The only such list.
//!
//! `--help`, `--check-config`, `DescribeBroker` and the table in `docs/operations.md` come from here or are
//! tested against it. Settings of a topic are not here: they belong to the topic and live in the metadata.

use super::value::{
    Address, Bytes, Controllers, Count, DirPath, Kind, LogFormat, LogLevel, OptionalAddress,
    OptionalText, Roles, Threads, Time,
};

/// One row of the list, as text.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name in the file. The flag is `--` and the name with hyphens; the environment variable is `TIDEMARK_`
    /// and the name in capitals.
    pub name: &'static str,
    /// The default, as one would write it. Empty: derived, as `doc` says.
    pub default: &'static str,
    /// Smallest and largest value, as one would write them.
    pub bounds: Option<(&'static str, &'static str)>,
    /// What stands for the value in `--help`.
    pub placeholder: &'static str,
    /// What it is for, in sentences.
    pub doc: &'static str,
}

impl Setting {
    pub fn environment_name(&self) -> String {
        format!("TIDEMARK_{}", self.name.to_ascii_uppercase())
    }

    pub fn flag_name(&self) -> String {
        flag_name(self.name)
    }

    /// The doc comment as flowing text.
    pub fn doc_text(&self) -> String {
        self.doc.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The flag of a setting, without its hyphens in front.
pub fn flag_name(name: &str) -> String {
    name.replace('_', "-")
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident = $default:literal $(, $low:literal ..= $high:literal)?;)+) => {
        /// Every setting, resolved: what the program runs with.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Values { $($(#[doc = $doc])+ pub $name: <$kind as Kind>::Value,)+ }

        /// Every setting, in the order of the documents.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            name: stringify!($name),
            default: $default,
            bounds: settings!(@bounds $($low, $high)?),
            placeholder: <$kind as Kind>::PLACEHOLDER,
            doc: concat!($($doc,)+),
        },)+];

        impl Values {
            /// Reads every setting from its text. `text_of` gives what was written, or the default;
            /// `complain` is told every text that does not read or is out of bounds.
            pub(super) fn resolve<'t>(
                text_of: impl Fn(&'static str) -> &'t str,
                mut complain: impl FnMut(&'static str, String),
            ) -> Option<Self> {
                $(let $name = match bounded::<$kind>(text_of(stringify!($name)), settings!(@bounds $($low, $high)?)) {
                    Ok(value) => Some(value),
                    Err(why) => { complain(stringify!($name), why); None }
                };)+
                Some(Self { $($name: $name?,)+ })
            }

            /// Every value as text, in the order of [`SETTINGS`].
            pub(super) fn render(&self) -> Vec<String> {
                vec![$(<$kind as Kind>::render(&self.$name),)+]
            }
        }
    };
    (@bounds) => { None };
    (@bounds $low:literal, $high:literal) => { Some(($low, $high)) };
}

fn bounded<K: Kind>(text: &str, bounds: Option<(&str, &str)>) -> Result<K::Value, String> {
    let value = K::parse(text)?;
    if let Some((low, high)) = bounds {
        let bound = |text| K::parse(text).expect("bounds are written in this file and tested");
        if value < bound(low) || value > bound(high) {
            return Err(format!("must be between {low} and {high}, not {text}"));
        }
    }
    Ok(value)
}

settings! {
    /// Number of this node in its cluster. It is written into the data directory on first start and cannot
    /// change afterwards.
    node_id: Count = "1", "1" ..= "2147483647";
    /// Where clients and tools connect: data and administration.
    listen: Address = "127.0.0.1:9092";
    /// The address that clients are told to connect to, when it differs from `listen` (containers, NAT). When
    /// it is not set, clients are told the address at which they reached this broker.
    advertised_address: OptionalAddress = "";
    /// Where metrics and health checks are served over HTTP, without authentication: keep it off public networks.
    http_listen: Address = "127.0.0.1:9644";
    /// Where everything is stored; one process at a time. Created when it does not exist, but not the directory
    /// above it: a disk that is not mounted should be noticed.
    data_dir: DirPath = "./tidemark-data";
    /// The nodes that decide on the cluster's metadata, with the addresses at which the others reach them:
    /// `1@host-1:9092,2@host-2:9092,3@host-3:9092`. One, three or five of them, the same list on every node, whether it is
    /// among them or not. Empty: this node is a cluster of its own. Counts when a cluster begins; afterwards controllers are
    /// added and removed with `tidemark cluster`.
    controllers: Controllers = "";
    /// What this node does: `broker` stores partitions, `controller` decides on metadata, `both` does both.
    roles: Roles = "both";
    /// Where this node stands, in any words that tell places apart that fail alone. Replicas are spread over racks.
    rack: OptionalText = "";
    /// A broker that is silent for this long is replaced as leader. One whose process ends is replaced at once,
    /// since its connection closes.
    broker_session_timeout: Time = "900ms", "100ms" ..= "10m";
    /// Controllers that hear nothing from the active one elect another after this long, and up to twice as long.
    election_timeout: Time = "300ms", "50ms" ..= "1m";
    /// A replica that has not had everything its leader has for this long is no longer in sync, and not waited for.
    replica_lag_timeout: Time = "10s", "100ms" ..= "1h";
    /// How often leadership goes back to the preferred replicas, those that a partition's list begins with.
    leader_balance_interval: Time = "1m", "1s" ..= "7d";
    /// Partitions of a topic that is created without saying how many.
    default_partitions: Count = "1", "1" ..= "100000";
    /// Replicas of a partition of a topic that is created without saying how many; fewer when the cluster has fewer brokers.
    default_replication_factor: Count = "3", "1" ..= "32";
    /// A member of a consumer group that is not heard of for this long is put out, and its partitions go to others. Members
    /// that the broker cannot be reached by stop by themselves after this time.
    group_session_timeout: Time = "10s", "1s" ..= "30m";
    /// How often a member of a group is to be heard of at least. Well under `group_session_timeout`.
    group_heartbeat_interval: Time = "2s", "100ms" ..= "1m";
    /// Members that one consumer group may have; one more is refused.
    group_members_max: Count = "5000", "1" ..= "100000";
    /// How long the committed offsets of a group without members are kept; `0`: as long as their topic.
    group_offset_retention: Time = "0";
    /// How long a transaction may be open at most, whatever its producer asks for: readers of committed records wait for it.
    transaction_timeout_max: Time = "15m", "1s" ..= "7d";
    /// Threads that receive, decode and send.
    network_threads: Threads = "auto", "1" ..= "256";
    /// Threads that own partitions and append to their logs. A partition stays on one thread.
    shard_threads: Threads = "auto", "1" ..= "256";
    /// Threads for reads of data that may have to come from the disk.
    cold_read_threads: Count = "4", "1" ..= "256";
    /// Connections beyond this many are closed at once.
    max_connections: Count = "10000", "1" ..= "1000000";
    /// Largest request accepted, in one frame. Must exceed the largest `max_batch_bytes` of any topic.
    max_frame_bytes: Bytes = "40MiB", "64KiB" ..= "64MiB";
    /// Most bytes of requests in progress and of responses not yet sent on one connection. When they are
    /// reached, the broker stops reading from that connection until its client catches up.
    connection_memory_bytes: Bytes = "64MiB", "64KiB" ..= "4GiB";
    /// Most requests in progress on one connection; further ones wait in the socket.
    max_connection_requests: Count = "1024", "1" ..= "65536";
    /// A client that takes nothing of what it is sent for this long is disconnected.
    send_timeout: Time = "30s", "100ms" ..= "1h";
    /// A connection without any traffic for this long is closed.
    idle_timeout: Time = "10m", "1s" ..= "7d";
    /// Requests waiting for one shard thread. While there are so many, connections with more for it wait, and
    /// are not read.
    shard_queue_requests: Count = "4096", "16" ..= "1048576";
    /// How often logs of topics with `durability=memory` are flushed in the background.
    flush_interval: Time = "1s", "10ms" ..= "1h";
    /// How often what is proven durable is written down, which is what recovery after a crash need not read.
    checkpoint_interval: Time = "5s", "100ms" ..= "1h";
    /// How often retention, compaction and rolling by age are considered.
    retention_interval: Time = "10s", "100ms" ..= "1h";
    /// Free space below which produce is refused with the retriable error `DiskFull`. Reading,
    /// administration and deletion go on, and produce resumes by itself when space returns.
    disk_reserve_bytes: Bytes = "256MiB", "0" ..= "1024TiB";
    /// How much is logged. `TIDEMARK_LOG` overrides it with filters per module: `info,tidemark_storage=debug`.
    log_level: LogLevel = "info";
    /// How log lines look on standard error: `text` for people, `json` for collectors.
    log_format: LogFormat = "text";
    /// How long connections and tasks may take to end once the broker is told to stop.
    shutdown_timeout: Time = "5s", "100ms" ..= "10m";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_and_bound_reads_and_there_are_fewer_than_forty() {
        let defaults = |name| SETTINGS.iter().find(|setting| setting.name == name).unwrap().default;
        let values = Values::resolve(defaults, |name, why| panic!("{name} {why}")).unwrap();
        assert_eq!(values.render().len(), SETTINGS.len());
        assert!(SETTINGS.len() < 40, "{} settings: delete one before adding one", SETTINGS.len());
    }

    #[test]
    fn every_setting_is_documented_in_sentences() {
        for setting in SETTINGS {
            assert!(setting.doc_text().ends_with(['.', '`']), "{}: {}", setting.name, setting.doc);
        }
    }
}
