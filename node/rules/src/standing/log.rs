//! This node's own log head and what it knows of its peers'. What follows from it is in `standing`.

use crate::records::LogRecord;
use quorate_protocol::{
    NodeId,
    log_head::{LogHead, SignedHead},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// The last heads of a peer's earlier runs, and which of them it is told next.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    pub(super) heads: VecDeque<SignedHead>,
    pub(super) turn: usize,
}

/// Heads of logs.
#[derive(Debug)]
pub(crate) struct Log {
    pub(super) head: LogHead,
    /// The head at the start of this run, and the run's number.
    pub(super) start: (LogHead, u64),
    /// As [`LogRecord::runs`], this one included.
    pub(super) runs: Vec<(u64, u64)>,
    /// The head as it was last signed.
    pub(super) signed: Option<SignedHead>,
    pub(super) lost: Option<String>,
    pub(super) sealed: Option<[u8; 32]>,
    pub(super) answered: BTreeSet<NodeId>,
    pub(super) peers: BTreeMap<NodeId, SignedHead>,
    /// Further ones of the same runs, as they came last.
    pub(super) unverified: BTreeMap<NodeId, SignedHead>,
    /// The last heads of peers' earlier runs, oldest first, to tell them in turn with the last one.
    pub(super) earlier: BTreeMap<NodeId, Earlier>,
    pub(super) heard: BTreeMap<NodeId, Duration>,
    pub(super) peers_written: BTreeMap<NodeId, SignedHead>,
    pub(super) beat_at: Duration,
}

impl Log {
    pub(crate) fn restore(record: LogRecord, peers: Vec<SignedHead>, boot: u64) -> Self {
        let peers: BTreeMap<_, _> = peers.into_iter().map(|head| (head.node, head)).collect();
        Self {
            head: record.head,
            start: (record.head, boot),
            runs: record.runs.into_iter().chain([(boot, record.head.sequence)]).collect(),
            signed: None,
            lost: record.lost,
            sealed: record.sealed,
            answered: BTreeSet::new(),
            peers_written: peers.clone(),
            peers,
            unverified: BTreeMap::new(),
            earlier: BTreeMap::new(),
            heard: BTreeMap::new(),
            beat_at: Duration::ZERO,
        }
    }

    pub(crate) fn heard(&self) -> &BTreeMap<NodeId, Duration> {
        &self.heard
    }

    pub(crate) fn sealed(&self) -> Option<[u8; 32]> {
        self.sealed
    }

    pub(crate) fn set_sealed(&mut self, succession: [u8; 32]) {
        self.sealed = Some(succession);
    }

    /// How many records this node's durable log has.
    pub(crate) fn records(&self) -> u64 {
        self.head.sequence
    }

    pub(crate) fn next_beat(&self) -> Duration {
        self.beat_at
    }
}
