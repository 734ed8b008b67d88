//! Every metric the broker exposes: name, kind, labels, meaning. The only such list.
//!
//! Nothing can be registered that is not here, and a test holds this list and the table in
//! `docs/operations.md` equal. Names carry their unit last; counters end in `_total`. Labels have few values:
//! topics by default, partitions only when a scrape asks for them, clients never.

/// What a metric is, and for histograms the upper bounds of its buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

impl Kind {
    /// `counter`, `gauge` or `histogram`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One family of series.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// Names of the labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// 50 µs to 10 s: below lies the clock's noise, above lies a timeout.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];
/// 4 KiB to 256 MiB by factors of four.
const BYTES: &[f64] = &[
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
];
const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1_000.0, 10_000.0];

macro_rules! metrics {
    ($($id:ident = $kind:expr, $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(#[doc = concat!("`", $name, "`")] pub const $id: Metric =
            Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)+

        /// Every metric, in the order of the documents.
        pub const METRICS: &[Metric] = &[$($id,)+];
    };
}

metrics! {
    BUILD_INFO = Kind::Gauge, "tidemark_build_info" ["version"]
        "Always 1; the version is in the label.";
    UPTIME = Kind::Gauge, "tidemark_uptime_seconds" []
        "Time since the process started.";
    READY = Kind::Gauge, "tidemark_ready" []
        "1 when /health/ready answers 200, else 0.";
    HEALTH_REASON = Kind::Gauge, "tidemark_health_reason" ["reason"]
        "1 while the reason stands, else 0: starting, stopping, disk_failed, disk_full, controller, joining, fenced.";

    CLUSTER_BROKERS = Kind::Gauge, "tidemark_cluster_brokers" ["state"]
        "Brokers registered in the cluster: active, fenced. As this node knows it.";
    CONTROLLER_IS_LEADER = Kind::Gauge, "tidemark_controller_is_leader" []
        "1 on the active controller, 0 on the others.";
    QUORUM_TERM = Kind::Gauge, "tidemark_quorum_term" []
        "Raft term of the quorum of controllers.";
    QUORUM_LEADER_ID = Kind::Gauge, "tidemark_quorum_leader_id" []
        "Node id of the active controller, 0 when there is none.";
    QUORUM_COMMITTED_INDEX = Kind::Gauge, "tidemark_quorum_committed_index" []
        "End of what is committed in the metadata log, as this controller knows it.";
    QUORUM_LOG_END_INDEX = Kind::Gauge, "tidemark_quorum_log_end_index" []
        "End of this controller's metadata log.";
    QUORUM_ELECTIONS = Kind::Counter, "tidemark_quorum_elections_total" []
        "Times that this node saw another active controller.";
    METADATA_APPLIED_INDEX = Kind::Gauge, "tidemark_metadata_applied_index" []
        "Metadata up to which (exclusive) the partitions of this broker are as it says.";
    METADATA_LAG = Kind::Gauge, "tidemark_metadata_lag_seconds" []
        "How long this broker has known of metadata that it has not carried out yet; 0 when there is none.";
    UNDER_REPLICATED = Kind::Gauge, "tidemark_under_replicated_partitions" []
        "Partitions led here with fewer replicas in sync than they have.";
    UNDER_MIN_ISR = Kind::Gauge, "tidemark_under_min_isr_partitions" []
        "Partitions led here with fewer replicas in sync than min_insync_replicas: produce with acks=all is refused.";
    AT_MIN_ISR = Kind::Gauge, "tidemark_at_min_isr_partitions" []
        "Partitions led here that would be under their minimum with one replica less in sync, and have more than one replica.";
    OFFLINE_PARTITIONS = Kind::Gauge, "tidemark_offline_partitions" []
        "Partitions of the cluster without a leader, as this node knows it.";
    PREFERRED_LEADER_IMBALANCE = Kind::Gauge, "tidemark_preferred_leader_imbalance" []
        "Partitions of the cluster that are not led by their preferred replica.";
    REASSIGNING_PARTITIONS = Kind::Gauge, "tidemark_reassigning_partitions" []
        "Partitions of the cluster whose replicas are being moved.";
    LEADER_CHANGES = Kind::Counter, "tidemark_leader_changes_total" []
        "Times that this broker began to lead a partition.";
    UNCLEAN_ELECTIONS = Kind::Counter, "tidemark_unclean_elections_total" []
        "Elections by this controller of a replica that was not in sync.";
    ISR_SHRINKS = Kind::Counter, "tidemark_isr_shrinks_total" []
        "Times that the in-sync replicas of a partition led here became fewer.";
    ISR_EXPANDS = Kind::Counter, "tidemark_isr_expands_total" []
        "Times that the in-sync replicas of a partition led here became more.";
    REPLICA_LAG_RECORDS = Kind::Gauge, "tidemark_replica_lag_max_records" []
        "Most records that a replica of a partition led here has still to get.";
    REPLICA_LAG_BYTES = Kind::Gauge, "tidemark_replica_lag_max_bytes" []
        "Most bytes that a replica of a partition led here has still to get, about.";
    REPLICA_LAG_SECONDS = Kind::Gauge, "tidemark_replica_lag_max_seconds" []
        "Longest time since a replica of a partition led here had everything.";
    REPLICATION_BYTES = Kind::Counter, "tidemark_replication_bytes_total" ["direction"]
        "Bytes of record batches that went between brokers: in (from leaders), out (to followers).";

    BYTES_IN = Kind::Counter, "tidemark_bytes_in_total" ["topic", "protocol"]
        "Bytes of record batches appended.";
    RECORDS_IN = Kind::Counter, "tidemark_records_in_total" ["topic", "protocol"]
        "Records appended.";
    BATCHES_IN = Kind::Counter, "tidemark_batches_in_total" ["topic", "protocol"]
        "Record batches appended.";
    BYTES_OUT = Kind::Counter, "tidemark_bytes_out_total" ["topic", "protocol"]
        "Bytes of record batches handed to readers.";
    RECORDS_OUT = Kind::Counter, "tidemark_records_out_total" ["topic", "protocol"]
        "Records handed to readers, counted in whole batches.";
    BATCHES_OUT = Kind::Counter, "tidemark_batches_out_total" ["topic", "protocol"]
        "Record batches handed to readers.";
    RECORDS_REJECTED = Kind::Counter, "tidemark_records_rejected_total" ["reason"]
        "Records refused at produce, by error code.";

    REQUESTS = Kind::Counter, "tidemark_requests_total" ["api"]
        "Requests received.";
    REQUEST_ERRORS = Kind::Counter, "tidemark_request_errors_total" ["api", "error"]
        "Requests, or partitions of one, answered with an error, by error code.";
    REQUEST_SECONDS = Kind::Histogram(SECONDS), "tidemark_request_seconds" ["api", "stage"]
        "Time a request spent by stage: queue, append, flush, send, and total (waiting asked for by the client included).";
    API_UNSUPPORTED = Kind::Counter, "tidemark_api_unsupported_total" ["api"]
        "Requests for an API number this broker does not know; beyond 32 different numbers, api is `other`.";

    CONNECTIONS = Kind::Gauge, "tidemark_connections" []
        "Open connections on the data port.";
    CONNECTIONS_OPENED = Kind::Counter, "tidemark_connections_opened_total" []
        "Connections accepted on the data port.";
    CONNECTIONS_REJECTED = Kind::Counter, "tidemark_connections_rejected_total" ["reason"]
        "Connections closed before serving: limit (max_connections), preface (not our protocol), version.";
    CONNECTIONS_ENDED = Kind::Counter, "tidemark_connections_ended_total" ["reason"]
        "Served connections closed, by why: client, idle, stalled (took nothing it was sent), protocol_error, io_error, shutdown.";
    SUBSCRIPTIONS = Kind::Gauge, "tidemark_subscriptions" []
        "Push subscriptions being served.";

    PARTITIONS = Kind::Gauge, "tidemark_partitions" ["role"]
        "Partitions on this broker: leader, follower.";
    SEGMENTS = Kind::Gauge, "tidemark_segments" []
        "Segments of all logs.";
    LOG_SIZE = Kind::Gauge, "tidemark_log_size_bytes" ["topic"]
        "Bytes of records stored.";
    LOG_START_OFFSET = Kind::Gauge, "tidemark_log_start_offset" ["topic", "partition"]
        "First offset that can be read. Only with ?collect[]=partition.";
    LOG_END_OFFSET = Kind::Gauge, "tidemark_log_end_offset" ["topic", "partition"]
        "Offset of the next record. Only with ?collect[]=partition.";
    HIGH_WATERMARK = Kind::Gauge, "tidemark_high_watermark" ["topic", "partition"]
        "End of what readers may see. Only with ?collect[]=partition.";

    COORDINATORS = Kind::Gauge, "tidemark_coordinators" ["kind", "state"]
        "Partitions of internal topics led here, by kind (groups, transactions) and state: serving, loading (or waiting for enough replicas in sync), broken (their log cannot be read).";
    GROUP_COMMITS = Kind::Counter, "tidemark_group_commits_total" []
        "Offsets that members of groups, or others for them, have committed here, counted one by one.";
    GROUP_LAG_RECORDS = Kind::Gauge, "tidemark_group_lag_records" ["group", "topic"]
        "Records that a group has not read: from its committed offsets to the high watermarks. On the group's coordinator; beyond 1000 pairs of group and topic the rest is `other`.";
    GROUP_LAG_BYTES = Kind::Gauge, "tidemark_group_lag_bytes" ["group", "topic"]
        "Bytes of batches that a group has not read, about.";
    GROUP_LAG_SECONDS = Kind::Gauge, "tidemark_group_lag_seconds" ["group", "topic"]
        "Age of the oldest record that a group has not read; 0 when there is none.";
    GROUP_DRAINED_IN = Kind::Gauge, "tidemark_group_lag_drained_in_seconds" ["group", "topic"]
        "Time until a group has nothing left to read, at the rates of the last seconds. Absent while it does not get less.";
    GROUP_DELETED_IN = Kind::Gauge, "tidemark_group_unread_deleted_in_seconds" ["group", "topic"]
        "Time until retention by time may delete records that a group has not read. Absent when nothing is unread or kept for ever.";
    GROUP_LOST_RECORDS = Kind::Gauge, "tidemark_group_lost_records" ["group", "topic"]
        "Records that were deleted before a group has read them: from its committed offsets to the log starts.";
    GROUP_PARTITION_LAG_RECORDS = Kind::Gauge, "tidemark_group_partition_lag_records" ["group", "topic", "partition"]
        "Records of one partition that a group has not read. Like all that follow by partition, only with ?collect[]=partition.";
    GROUP_PARTITION_LAG_BYTES = Kind::Gauge, "tidemark_group_partition_lag_bytes" ["group", "topic", "partition"]
        "Bytes of batches of one partition that a group has not read, about.";
    GROUP_PARTITION_LAG_SECONDS = Kind::Gauge, "tidemark_group_partition_lag_seconds" ["group", "topic", "partition"]
        "Age of the oldest record of one partition that a group has not read; 0 when there is none.";
    GROUP_PARTITION_DRAINED_IN = Kind::Gauge, "tidemark_group_partition_lag_drained_in_seconds" ["group", "topic", "partition"]
        "Time until a group has nothing left to read in one partition. Absent while it does not get less.";
    GROUP_PARTITION_DELETED_IN = Kind::Gauge, "tidemark_group_partition_unread_deleted_in_seconds" ["group", "topic", "partition"]
        "Time until retention by time may delete records of one partition that a group has not read. Absent when nothing is unread or kept for ever.";
    GROUP_PARTITION_LOST_RECORDS = Kind::Gauge, "tidemark_group_partition_lost_records" ["group", "topic", "partition"]
        "Records of one partition that were deleted before a group has read them.";
    GROUP_REMOVALS = Kind::Counter, "tidemark_group_removals_total" ["reason"]
        "Members that are gone, by why: left, missed_processing_deadline, session_timed_out, missed_rebalance_deadline, kicked, replaced.";

    GROUPS = Kind::Gauge, "tidemark_groups" ["state"]
        "Groups that are coordinated here, by state: stable, rebalancing, empty (no members).";
    GROUP_MEMBERS = Kind::Gauge, "tidemark_group_members" ["group"]
        "Members of a group, on its coordinator; beyond 1000 groups the rest is `other`.";
    TRANSACTIONS = Kind::Gauge, "tidemark_transactions" ["state"]
        "Transactions that are coordinated here: open, ending (decided, and some of their markers are not written yet).";
    TRANSACTION_OLDEST = Kind::Gauge, "tidemark_transaction_oldest_open_seconds" []
        "Age of the oldest open transaction that is coordinated here; 0 when none is. Readers of committed records wait for it.";
    TRANSACTIONS_ENDED = Kind::Counter, "tidemark_transactions_ended_total" ["outcome"]
        "Transactions that were decided here: committed, aborted (by their producer), timed_out, operator (`txn abort`), fenced (another process began under the id).";
    UNDECIDED_RECORDS = Kind::Gauge, "tidemark_undecided_records" ["topic"]
        "Records below the high watermarks of partitions led here that `read_committed` does not show yet, because a transaction before them is open.";
    BATCHES_REPEATED = Kind::Counter, "tidemark_batches_repeated_total" []
        "Numbered batches that had been appended before, and were answered with their offsets and not appended again.";

    FSYNC_SECONDS = Kind::Histogram(SECONDS), "tidemark_fsync_seconds" []
        "Time of one group commit.";
    FSYNC_BATCH_BYTES = Kind::Histogram(BYTES), "tidemark_fsync_batch_bytes" []
        "Bytes made durable by one group commit.";
    FSYNC_BATCH_PARTITIONS = Kind::Histogram(COUNTS), "tidemark_fsync_batch_partitions" []
        "Partitions made durable by one group commit.";
    READ_BYTES = Kind::Counter, "tidemark_read_bytes_total" ["tier"]
        "Bytes read from logs: hot (surely in memory), cold (through the blocking pool).";
    CHECKSUM_FAILURES = Kind::Counter, "tidemark_checksum_failures_total" []
        "Stored data found damaged, and quarantined.";
    RETENTION_DELETED = Kind::Counter, "tidemark_retention_deleted_bytes_total" ["reason"]
        "Bytes deleted from logs: size, time, trim (asked for by a client).";
    COMPACTION_BYTES = Kind::Counter, "tidemark_compaction_bytes_total" ["kind"]
        "Bytes compaction has read and written.";
    RECOVERY_SECONDS = Kind::Gauge, "tidemark_recovery_seconds" []
        "Time it took to open all logs when this process started.";
    DISK_FREE = Kind::Gauge, "tidemark_disk_free_bytes" ["dir"]
        "Space left for an unprivileged process in the file system of the data directory.";
    DISK_TOTAL = Kind::Gauge, "tidemark_disk_total_bytes" ["dir"]
        "Size of the file system of the data directory.";
    DISK_STATE = Kind::Gauge, "tidemark_disk_state" ["dir"]
        "0 ok, 2 full (produce is refused), 3 failed (no writes until restart).";
    MMAP_REGIONS = Kind::Gauge, "tidemark_mmap_regions" []
        "Mapped regions of the process; the kernel's limit is vm.max_map_count.";

    PROCESS_CPU = Kind::Counter, "process_cpu_seconds_total" []
        "User and system CPU time, in whole seconds.";
    PROCESS_RESIDENT = Kind::Gauge, "process_resident_memory_bytes" []
        "Resident memory. Mapped log data that is in memory counts, and is given back under pressure.";
    PROCESS_ANONYMOUS = Kind::Gauge, "process_anonymous_memory_bytes" []
        "Resident memory that is not backed by files: what the broker itself uses.";
    PROCESS_VIRTUAL = Kind::Gauge, "process_virtual_memory_bytes" []
        "Address space.";
    PROCESS_OPEN_FDS = Kind::Gauge, "process_open_fds" []
        "Open file descriptors.";
    PROCESS_MAX_FDS = Kind::Gauge, "process_max_fds" []
        "Limit on open file descriptors.";
    PROCESS_THREADS = Kind::Gauge, "process_threads" []
        "Threads.";
    PROCESS_START = Kind::Gauge, "process_start_time_seconds" []
        "When the process started, in seconds since the Unix epoch.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for metric in METRICS {
            let Metric { name, kind, help, .. } = metric;
            assert!(name.starts_with("tidemark_") || name.starts_with("process_"), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(help.ends_with('.'), "{name}: help is a sentence");
        }
        let mut names: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name is used twice");
    }
}
