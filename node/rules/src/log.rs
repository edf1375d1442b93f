//! This node's own log head and what it knows of its peers' (rule V9; what follows from it is in `standing`).

use crate::records::LogRecord;
use quorate_protocol::{
    NodeId,
    log_head::{LogHead, SignedHead},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Heads of logs.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) head: LogHead,
    /// The head at the start of this run, and the run's number.
    pub(crate) start: (LogHead, u64),
    /// As [`LogRecord::runs`], this one included.
    pub(crate) runs: Vec<(u64, u64)>,
    /// The head as it was last signed.
    pub(crate) signed: Option<SignedHead>,
    pub(crate) lost: Option<String>,
    pub(crate) sealed: Option<[u8; 32]>,
    pub(crate) answered: BTreeSet<NodeId>,
    pub(crate) peers: BTreeMap<NodeId, SignedHead>,
    /// The last heads of peers' earlier runs, oldest first, to tell them in turn with the last one.
    pub(crate) earlier: BTreeMap<NodeId, VecDeque<SignedHead>>,
    pub(crate) turn: usize,
    pub(crate) heard: BTreeMap<NodeId, Duration>,
    pub(crate) peers_written: BTreeMap<NodeId, SignedHead>,
    pub(crate) beat_at: Duration,
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
            earlier: BTreeMap::new(),
            turn: 0,
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
