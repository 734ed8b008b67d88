//! What a quorum is told about time, size and chance. A plain value; the defaults are for a local network.

/// The settings of one node's quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumConfig {
    /// How often the owner steps [`crate::QuorumEvent::Tick`]; every other time is rounded to it.
    pub tick_ms: u64,
    /// How often a leader says that it is there.
    pub heartbeat_ms: u64,
    /// Silence after which a follower may stand for election: each draws between this and twice as much, again for
    /// every election. A leader that hears nothing from a majority for this long steps down. Longer than the disk
    /// takes to flush, or a slow disk costs leaderships.
    pub election_timeout_ms: u64,
    /// Followers that see the connection to their leader close stand for election one after the other, this far apart:
    /// longer than an election takes, so that the first wins.
    pub lost_leader_pause_ms: u64,
    /// Log written since the last snapshot before another is due: what a restart replays.
    pub snapshot_every_bytes: u64,
    /// Where all this node's chances come from. Two nodes should not have the same.
    pub seed: u64,
}

impl Default for QuorumConfig {
    fn default() -> Self {
        Self {
            tick_ms: 20,
            heartbeat_ms: 60,
            election_timeout_ms: 200,
            lost_leader_pause_ms: 60,
            snapshot_every_bytes: 4 << 20,
            seed: 0,
        }
    }
}

/// Numbers of ticks, as the library counts time. Always in the order it demands, whatever the settings say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    pub heartbeat: usize,
    pub election_min: usize,
    /// Exclusive.
    pub election_max: usize,
    pub lost_leader_pause: usize,
}

impl QuorumConfig {
    pub(super) fn ticks(&self) -> Ticks {
        let ticks = |ms: u64| usize::try_from(ms / self.tick_ms.max(1)).unwrap_or(usize::MAX / 4);
        let heartbeat = ticks(self.heartbeat_ms).max(1);
        let election_min = ticks(self.election_timeout_ms).max(heartbeat + 1);
        Ticks {
            heartbeat,
            election_min,
            election_max: 2 * election_min,
            lost_leader_pause: ticks(self.lost_leader_pause_ms).max(1),
        }
    }
}

/// `SplitMix64`: every chance a node takes, from one seed.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Uniform in `0..bound`, which is not empty.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let drawn = mix(self.0) % bound.max(1) as u64;
        usize::try_from(drawn).expect("below a usize")
    }
}

/// Spreads what is in a number over all of its bits.
pub(super) fn mix(number: u64) -> u64 {
    let mut mixed = number;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
