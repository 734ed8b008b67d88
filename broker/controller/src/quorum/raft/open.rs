//! The beginning of a cluster, and every start after it: from what is on disk to a node that goes on where it was.
//!
//! Whatever is missing that this node had once promised to keep makes a start fail, in words. A write that a crash
//! tore was never promised and is forgotten.

use std::{collections::BTreeMap, path::Path};

use raft::{
    Config, RawNode,
    eraftpb::{Entry, HardState},
};
use tidemark_protocol::messages::VoterId;
use tidemark_storage::{Disk, DiskError};

use super::{Content, Durable, Failed, Latest, RaftQuorum, entry, library_log};
use crate::{
    image::Image,
    quorum::{
        Boxed, QuorumError,
        config::QuorumConfig,
        members::{CONTROLLERS_MAX, Change, Members, raft_id},
        snapshots::{Snapshot, Snapshots},
        store::Store,
        transfer::{Incoming, Outgoing},
        vote_file::{Vote, VoteFile},
        wal::{self, Found, RESERVE_FILE, Reserve, Wal, WalError},
    },
};

/// Bytes of entries in a message of the library.
const APPEND_BYTES: u64 = 256 << 10;
/// Messages with entries that are under way to one follower.
const APPENDS_IN_FLIGHT_MAX: usize = 64;
/// Term of the first entry of a cluster, which no leader wrote.
const FIRST_TERM: u64 = 1;

impl<D: Disk> RaftQuorum<D> {
    /// Begins a cluster: writes down who its voters are, which all of them must do with the same list. Without any, it
    /// makes a node that waits to be added to a cluster. The directory's parent exists; the directory may not belong
    /// to a cluster already.
    #[expect(clippy::needless_pass_by_value, reason = "a disk is a handle, given as to `open`")]
    pub fn bootstrap(
        disk: D,
        dir: &Path,
        me: VoterId,
        voters: &[VoterId],
    ) -> Result<(), QuorumError> {
        let begun = match voters {
            [] => prepare(&disk, dir, me),
            voters => begin(&disk, dir, me, voters),
        };
        begun.map_err(|source| {
            QuorumError::new(format!("beginning a cluster in {}", dir.display()), source)
        })
    }

    /// Whether this directory belongs to a cluster that has begun: then [`RaftQuorum::open`] is all there is to do.
    pub fn is_bootstrapped(disk: &D, dir: &Path) -> Result<bool, QuorumError> {
        belongs(disk, dir).map_err(|source| {
            QuorumError::new(format!("looking at the metadata in {}", dir.display()), source)
        })
    }

    /// Whether the directory has nothing that a controller keeps: a controller that finds it so has forgotten whom it
    /// voted for.
    pub fn is_empty(disk: &D, dir: &Path) -> Result<bool, DiskError> {
        if !disk.exists(dir)? {
            return Ok(true);
        }
        Ok(disk.list(dir)?.iter().all(|entry| entry.name == RESERVE_FILE))
    }

    /// Opens what is in the directory (its parent exists) and recovers the image of everything that is known to be
    /// committed. A directory without a cluster makes a node that waits to be added to one, and never stands for
    /// election before. Fails when anything that was durable is missing or damaged.
    #[expect(clippy::needless_pass_by_value, reason = "the quorum keeps the handle to the disk")]
    pub fn open(
        disk: D,
        dir: &Path,
        me: VoterId,
        config: QuorumConfig,
    ) -> Result<(Self, Image), QuorumError> {
        open(&disk, dir, me, config).map_err(|source| {
            QuorumError::new(format!("opening the metadata in {}", dir.display()), source)
        })
    }
}

/// A node without a cluster.
fn prepare<D: Disk>(disk: &D, dir: &Path, me: VoterId) -> Result<(), Boxed> {
    wal::create_dir(disk, dir)?;
    if !VoteFile::exists(disk, dir)? {
        VoteFile::create(disk, dir, me, (Vote::default(), 0))?;
    }
    Ok(())
}

fn begin<D: Disk>(disk: &D, dir: &Path, me: VoterId, voters: &[VoterId]) -> Result<(), Boxed> {
    let mut voters = voters.to_vec();
    voters.sort_unstable();
    let members = Members::new(&voters, &[])
        .ok_or(format!("at most {CONTROLLERS_MAX} voters, each once, make a cluster"))?;
    if !members.is_voter(raft_id(&me)) {
        return Err("this node is not among the voters".into());
    }
    wal::create_dir(disk, dir)?;
    if VoteFile::exists(disk, dir)? {
        let votes = VoteFile::open(disk, dir, me)?;
        if votes.vote() != Vote::default() || belongs(disk, dir)? {
            return Err("this node belongs to a cluster already".into());
        }
    }
    let mut wal = Wal::open(disk, dir, SEGMENT_BYTES)?;
    if wal.last() > 1 {
        return Err("there is metadata in it already, which this build did not write".into());
    }
    // What an attempt that was interrupted has left counts for nothing.
    drop(wal);
    wal::remove(disk, dir)?;
    wal = Wal::open(disk, dir, SEGMENT_BYTES)?;
    let payload = Change::Begin(voters).encode();
    let first = entry::entry(1, FIRST_TERM, entry::CHANGE, payload.into())?;
    let written = wal.write(&[first], 0, 0).and_then(|()| wal.flush());
    written.map_err(words)?;
    // With this it has happened.
    let vote = Vote { term: FIRST_TERM, for_id: 0 };
    Ok(VoteFile::create(disk, dir, me, (vote, 1))?)
}

fn belongs<D: Disk>(disk: &D, dir: &Path) -> Result<bool, Boxed> {
    if !disk.exists(dir)? {
        return Ok(false);
    }
    let snapshots = Snapshots::new(disk, dir);
    if !snapshots.list()?.is_empty() || snapshots.has_arrived()? {
        return Ok(true);
    }
    Ok(VoteFile::<D>::peek(disk, dir)?.is_some_and(|commit| commit > 0))
}

fn open<D: Disk>(
    disk: &D,
    dir: &Path,
    me: VoterId,
    config: QuorumConfig,
) -> Result<(RaftQuorum<D>, Image), Boxed> {
    wal::create_dir(disk, dir)?;
    let mut reserve = Reserve::find(disk.clone(), dir)?;
    let snapshots = Snapshots::new(disk, dir);
    let arrived = snapshots.arrived()?;
    if arrived.is_some() {
        wal::remove(disk, dir)?;
    }
    let segment_bytes = 2 * config.snapshot_every_bytes;
    let open_wal = || Wal::open(disk, dir, segment_bytes);
    let mut wal = match open_wal() {
        Err(error) if wal::is_full(&error) && reserve.release() => open_wal(),
        other => other,
    }?;
    if let Some(end) = arrived {
        wal.restart(end).map_err(words)?;
        snapshots.settle(end)?;
    }
    let mut votes = open_votes(disk, dir, me, &mut wal, &snapshots)?;
    let recovered = recover(&wal, &mut votes, &snapshots)?;
    wal.bytes_since_snapshot = recovered.bytes_since_snapshot;
    reserve.renew();
    let Recovered { store, members, image, latest, .. } = recovered;
    let my_id = raft_id(&me);
    let applied = store.hard_state.commit;
    tracing::debug!(committed = applied, last = store.last(), "metadata recovered");
    let mut quorum = RaftQuorum {
        node: new_node(&config, my_id, store, applied)?,
        disk: Durable { wal, votes, snapshots, reserve, dir: dir.to_owned() },
        elections: super::Elections::new(&config),
        config,
        me,
        my_id,
        members,
        heard: BTreeMap::new(),
        applied,
        outgoing: Outgoing::default(),
        incoming: Incoming::default(),
        arrived: None,
        latest,
        refused: None,
        role: None,
        failed: Failed::No,
        now_ms: 0,
    };
    quorum.elections.settle(&mut quorum.node);
    if quorum.is_only_voter() {
        quorum.elections.stand_at_once();
    }
    Ok((quorum, image))
}

/// This node's votes. Without the file, whatever else there is but the beginnings of a bootstrap is damage.
fn open_votes<D: Disk>(
    disk: &D,
    dir: &Path,
    me: VoterId,
    wal: &mut Wal<D>,
    snapshots: &Snapshots<D>,
) -> Result<VoteFile<D>, Boxed> {
    if !VoteFile::exists(disk, dir)? {
        if wal.last() > 1 || !snapshots.list()?.is_empty() {
            return Err("there is metadata, but not the file `vote` that belongs to it".into());
        }
        if wal.last() == 1 {
            wal.restart(0).map_err(words)?;
        }
        VoteFile::create(disk, dir, me, (Vote::default(), 0))?;
    }
    Ok(VoteFile::open(disk, dir, me)?)
}

/// What the disk comes to.
struct Recovered {
    store: Store,
    members: Members,
    image: Image,
    latest: Option<Latest>,
    bytes_since_snapshot: u64,
}

fn recover<D: Disk>(
    wal: &Wal<D>,
    votes: &mut VoteFile<D>,
    snapshots: &Snapshots<D>,
) -> Result<Recovered, Boxed> {
    let (start, last) = (wal.start(), wal.last());
    let listed = snapshots.list()?;
    if let Some(newest) = listed.first().filter(|newest| **newest > last) {
        return Err(format!("the log ends at {last}, before the snapshot of {newest}").into());
    }
    if votes.commit() > last {
        let committed = votes.commit();
        return Err(
            format!("the log ends at {last}; entries up to {committed} were committed").into()
        );
    }
    let snapshot = newest_good(snapshots, &listed)?;
    let end = snapshot.as_ref().map_or(0, |snapshot| snapshot.end);
    if end < start {
        return Err(format!(
            "the log begins at {start}, and the newest snapshot that can be read is of {end}"
        )
        .into());
    }
    let Found { entries, commit } = wal.read()?;
    check_terms(&entries, snapshot.as_ref())?;
    let mut store = match (start, &snapshot) {
        (0, _) => Store::new((0, 0)),
        (_, Some(snapshot)) if snapshot.end == start => Store::new((start, snapshot.term)),
        (_, snapshot) => match snapshots.term_of(start)? {
            Some(term) => Store::new((start, term)),
            None => Store::new((end, snapshot.as_ref().map_or(0, |snapshot| snapshot.term))),
        },
    };
    let kept = entries.partition_point(|entry| entry.index < store.first());
    store.append(&entries[kept..]);
    let commit = commit.max(votes.commit()).max(end);
    store.hard_state = hard_state(votes, &store, commit)?;
    let (image, members) = replay(&store, snapshot.as_ref(), commit)?;
    store.conf = members.conf_state();
    let latest = snapshot.as_ref().map(Latest::of);
    store.snapshot = latest.as_ref().map(|latest| latest.mark.clone());
    let bytes = |index: u64| store.get(index).map_or(0, |entry| entry::bytes(entry) as u64);
    let bytes_since_snapshot = (end + 1..=last).map(bytes).sum();
    Ok(Recovered { store, members, image, latest, bytes_since_snapshot })
}

fn newest_good<D: Disk>(
    snapshots: &Snapshots<D>,
    listed: &[u64],
) -> Result<Option<Snapshot>, Boxed> {
    for index in listed {
        if let Some(snapshot) = snapshots.read(*index)? {
            return Ok(Some(snapshot));
        }
        tracing::error!(index, "falling back to an older snapshot of the metadata");
    }
    Ok(None)
}

/// Terms never go back along a log, and the snapshot stands for this log and no other.
fn check_terms(entries: &[Entry], snapshot: Option<&Snapshot>) -> Result<(), Boxed> {
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].term > pair[1].term) {
        return Err(format!("the term goes back at entry {}", entry::shown(pair[1].index)).into());
    }
    let Some(snapshot) = snapshot else { return Ok(()) };
    match entries.iter().find(|entry| entry.index == snapshot.end) {
        Some(entry) if entry.term != snapshot.term => {
            Err(format!("the snapshot of {} is of another log", snapshot.end).into())
        }
        _ => Ok(()),
    }
}

/// Term and vote; a crash may have come between an entry of a new term and the note of it. Nobody was given a vote in
/// that term, since nobody had heard of it.
fn hard_state<D: Disk>(
    votes: &mut VoteFile<D>,
    store: &Store,
    commit: u64,
) -> Result<HardState, Boxed> {
    let last_term = store.term_at(store.last()).unwrap_or(0);
    if votes.vote().term < last_term {
        votes.store(Vote { term: last_term, for_id: 0 })?;
    }
    let Vote { term, for_id } = votes.vote();
    let mut state = HardState::default();
    (state.term, state.vote, state.commit) = (term, for_id, commit);
    Ok(state)
}

/// The image and the voters behind the last entry that is known to be committed.
fn replay(
    store: &Store,
    snapshot: Option<&Snapshot>,
    commit: u64,
) -> Result<(Image, Members), Boxed> {
    let (mut image, mut members) = snapshot.map_or_else(Default::default, |snapshot| {
        (snapshot.image.clone(), snapshot.members.clone())
    });
    for index in image.metadata_index() + 1..=commit {
        let entry = store.get(index).ok_or_else(|| {
            format!("the log has nothing to say about entry {}", entry::shown(index))
        })?;
        let records = match entry::content(entry)? {
            Content::Records(records) => records,
            Content::Change(change) => {
                members.apply(&change);
                Vec::new()
            }
        };
        image.apply(entry::shown(index), &records)?;
    }
    Ok((image, members))
}

/// The library over what is durable, as it is after a start.
pub(super) fn new_node(
    config: &QuorumConfig,
    my_id: u64,
    store: Store,
    applied: u64,
) -> Result<RawNode<Store>, Boxed> {
    let ticks = config.ticks();
    let config = Config {
        id: my_id,
        election_tick: ticks.election_min,
        min_election_tick: ticks.election_min,
        max_election_tick: ticks.election_max,
        heartbeat_tick: ticks.heartbeat,
        applied,
        max_size_per_msg: APPEND_BYTES,
        max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
        check_quorum: true,
        pre_vote: true,
        batch_append: true,
        ..Config::default()
    };
    Ok(RawNode::new(&config, store, &library_log::logger())?)
}

fn words(error: WalError) -> Boxed {
    match error {
        WalError::Full => "the disk is full".into(),
        WalError::Failed(error) => error,
    }
}

/// Of the first segment of a cluster's log.
const SEGMENT_BYTES: u64 = 8 << 20;
