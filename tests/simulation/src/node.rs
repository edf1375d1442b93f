//! What one simulated node is: its real machines and store, and its disk, clock and files. How they are driven is in
//! `machines` and `epochs`.

use crate::{
    byzantine::{Evil, Proposals},
    disk::Disk,
    event::Owner,
    oracle::{Mirror, Row as RowKey},
};
use quorate::{
    Epoch, Federation, NodeId,
    federation::{Succession, SuccessionPlan},
    wire::PeerRequest,
};
use quorate_node::store::{Redb, Store as _, StoreError};
use quorate_rules::{
    Machine, Output, Progress, SessionId, Stored, Transition, WholeSeal,
    index::Indexed,
    records::{ChangeSet, Row, Table},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

pub(crate) type Item = (ChangeSet, Option<Output>);

/// Time for one answer of a peer, as in the real driver.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Unix time of the start, in milliseconds.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// A node.
#[derive(Debug)]
pub struct SimNode {
    /// Its number.
    pub id: NodeId,
    /// Its disk.
    pub disk: Disk,
    /// Running.
    pub machine: Option<Machine>,
    pub(crate) store: Option<Redb>,
    /// Counts starts; answers to an earlier one are lost.
    pub incarnation: u32,
    pub(crate) queue: VecDeque<Item>,
    pub(crate) writing: Option<Vec<Item>>,
    /// When its timer is set to fire.
    pub timer_at: Option<Duration>,
    /// How far its monotonic clock is ahead.
    pub clock: Duration,
    /// How far its wall clock is off, in milliseconds.
    pub wall_ms: u64,
    /// Power fails so many operations into its next write.
    pub doomed: Option<u64>,
    /// It does nothing until then.
    pub paused_until: Duration,
    /// Disk latency is high until then.
    pub slow_until: Duration,
    pub(crate) replies: BTreeMap<u64, (NodeId, u64, PeerRequest)>,
    pub(crate) next_reply: u64,
    /// Questions of its transition to its voter, by the number of the answer.
    pub own_seals: BTreeMap<u64, u64>,
    /// Requests of its own that wait for an answer.
    pub rpcs: BTreeMap<u64, Waiting>,
    /// Sessions.
    pub sessions: BTreeMap<SessionId, Owner>,
    pub(crate) next_session: u64,
    /// Height of the chain that its machine has.
    pub height: u32,
    /// Its character, if it is evil.
    pub evil: Option<Evil>,
    /// Its store may be set back; it counts as faulty from the start.
    pub forgetful: bool,
    /// What is durable.
    pub mirror: Mirror,
    /// What it has read of the chain, as it is on its disk.
    pub index: Mirror,
    /// Changes of the index that are not on the disk yet.
    pub index_late: VecDeque<ChangeSet>,
    /// Records of a write that was under way when the node died: on the disk is this or what was there before.
    pub(crate) interrupted: Vec<(RowKey, Vec<u8>)>,
    /// Its disk has held a whole store.
    pub created: bool,
    /// Its store was set back behind what an honest peer had seen of it.
    pub amnesiac: bool,
    /// An old copy of its disk, with what was durable then.
    pub snapshot: Option<(Vec<u8>, Mirror)>,
    /// Proposals that it has heard of.
    pub proposals: Proposals,
    /// The epoch that it has come to.
    pub epoch: Epoch,
    /// It takes a lost node's place from the second epoch on.
    pub newcomer: bool,
    /// The incarnation in which it got its number: what its predecessor sent is not its own.
    pub born: u32,
    /// Its way through the epochs, while it runs.
    pub transition: Option<Transition>,
    /// When the timer of that is set to fire.
    pub transition_at: Option<Duration>,
    /// Its files.
    pub files: Files,
}

impl SimNode {
    /// A node with an empty disk, not running.
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            disk: Disk::new(Vec::new()),
            machine: None,
            store: None,
            incarnation: 0,
            queue: VecDeque::new(),
            writing: None,
            timer_at: None,
            clock: Duration::ZERO,
            wall_ms: WALL_START_MS,
            doomed: None,
            paused_until: Duration::ZERO,
            slow_until: Duration::ZERO,
            replies: BTreeMap::new(),
            next_reply: 1,
            own_seals: BTreeMap::new(),
            rpcs: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            height: 0,
            evil: None,
            forgetful: false,
            mirror: Mirror::new(),
            index: Mirror::new(),
            index_late: VecDeque::new(),
            interrupted: Vec::new(),
            created: false,
            amnesiac: false,
            snapshot: None,
            proposals: Proposals::new(),
            epoch: Epoch::FIRST,
            newcomer: false,
            born: 0,
            transition: None,
            transition_at: None,
            files: Files::default(),
        }
    }

    /// Whether its epoch has not begun.
    pub fn is_newcomer(&self) -> bool {
        self.newcomer && self.epoch == Epoch::FIRST
    }

    /// How far its next epoch is.
    pub fn progress(&self) -> Option<Progress> {
        self.transition.as_ref()?.progress()
    }

    /// Whether the oracle holds it to the rules.
    pub fn is_trusted(&self) -> bool {
        self.evil.is_none() && !self.forgetful
    }

    /// Performs the write under way without anybody hearing of it, for a crash in its middle.
    pub fn write_half(&mut self) {
        let (Some(store), Some(batch)) = (&mut self.store, &self.writing) else { return };
        let changes: Vec<_> = batch.iter().map(|(change, _)| change).filter(|one| !one.is_empty()).collect();
        // Power fails in its middle.
        let _torn = store.write(&changes);
    }

    /// Forgets everything that is not on the disk.
    pub fn power_off(&mut self) -> Vec<Owner> {
        if let Some(batch) = &self.writing {
            self.interrupted = rows_of(batch);
        }
        (self.machine, self.store, self.writing, self.timer_at) = (None, None, None, None);
        self.queue.clear();
        self.replies.clear();
        self.rpcs.clear();
        self.own_seals.clear();
        (self.transition, self.transition_at) = (None, None);
        self.incarnation += 1;
        std::mem::take(&mut self.sessions).into_values().collect()
    }

    /// A number for the answer to a request.
    pub fn next_number(&mut self) -> u64 {
        self.next_reply += 1;
        self.next_reply
    }

    /// A new session of a client.
    pub fn open_session(&mut self, owner: Owner) -> SessionId {
        let session =
            SessionId { certificate: 0, number: u64::from(self.incarnation) << 32 | self.next_session };
        self.next_session += 1;
        self.sessions.insert(session, owner);
        session
    }
}

impl SimNode {
    /// The index with all changes under way, as its thread reads it.
    pub(crate) fn index_now(&self) -> Mirror {
        let archive = self.index.iter().filter(|((table, _), _)| Table::ARCHIVE.contains(table));
        let mut index: Mirror = archive.map(|(row, value)| (row.clone(), value.clone())).collect();
        self.index_late.iter().for_each(|change| apply(&mut index, change));
        index
    }

    /// The index that a start finds, if so many of the changes under way came to the disk.
    pub(crate) fn read_index(&mut self, written: usize) -> Indexed {
        for change in self.index_late.drain(..).take(written) {
            apply(&mut self.index, &change);
        }
        let mut stored = Stored::default();
        let held = self.index.iter().filter(|((table, _), _)| !Table::ARCHIVE.contains(table));
        for ((table, key), value) in held {
            let row = Row { table: *table, key: key.clone(), value: value.clone() };
            stored.take(&row).expect("what a machine wrote");
        }
        stored.index
    }
}

/// Applies changes as a store does.
pub(crate) fn apply(mirror: &mut Mirror, change: &ChangeSet) {
    for row in change.rows() {
        let key = (row.table, row.key.clone());
        if row.value.is_empty() {
            mirror.remove(&key);
        } else {
            mirror.insert(key, row.value.clone());
        }
    }
}

pub(crate) fn rows_of(batch: &[Item]) -> Vec<(RowKey, Vec<u8>)> {
    let rows = batch.iter().flat_map(|(change, _)| change.rows());
    rows.map(|row| ((row.table, row.key.clone()), row.value.clone())).collect()
}

/// What a store holds, as the oracle sees it.
///
/// # Errors
/// The simulated disk failed.
pub fn mirror_of(store: &Redb) -> Result<Mirror, StoreError> {
    Ok(store.rows()?.into_iter().map(|row| ((row.table, row.key), row.value)).collect())
}

/// Waiting for one answer: the voter's question, or the transition's.
#[derive(Clone, Copy, Debug)]
pub enum Waiting {
    /// The voter's.
    Voter(NodeId, quorate_rules::Tag),
    /// The transition's.
    Transition(u64),
    /// Those who keep a payment secret; asked is this node.
    Theft(NodeId),
}

/// A node's files, apart from its store.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Its share of the epoch that it is in.
    pub share: Option<[u8; 32]>,
    /// Its share of the epoch that is prepared.
    pub next_share: Option<[u8; 32]>,
    /// The succession, once its key is certified.
    pub succession: Option<Succession>,
    /// The seals that its epoch began with.
    pub seals: Vec<WholeSeal>,
}

/// The change of epoch of a run.
#[derive(Clone, Debug)]
pub struct Change {
    pub(crate) plan: SuccessionPlan,
    /// The node that is another one in it.
    pub replaced: Option<NodeId>,
    /// The federation in the second epoch, once a node has its key.
    pub(crate) federation: Option<Arc<Federation>>,
}
