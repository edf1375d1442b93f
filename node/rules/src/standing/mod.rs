//! Rule V9: whether this node may trust its memory, and vote.
//!
//! The log head (see [`quorate_protocol::log_head`]) grows with every durable write of the protocol. Peers learn it
//! with every vote and heartbeat. After a start this node votes only when q - 1 others have said how far they know
//! its log, and none knows it further than it is. A node whose store was missing, older or damaged says so plainly
//! and stays without a vote until the next epoch gives it a new key.
//!
//! Every run of a node has a random number that is on its disk before a head of the run leaves. A head of a run that
//! the store does not have, or further than that run came by the store, shows a lost memory, whenever the peer that
//! knows it answers, and however far the log has grown since. What this cannot see is a lost part that no peer heard
//! of, or that all who did forgot in a crash of their own before their next heartbeat. Such a node counts as one of
//! the f faulty ones, like any that lies.

mod log;

pub(crate) use log::Log;

use crate::{
    Bug, Output, Tag,
    context::Context,
    records::{Change, ChangeSet, LogRecord},
};
use quorate_protocol::{
    Epoch, NodeId,
    log_head::SignedHead,
    wire::{ErrorCode, Fault, VotingReply, VotingRequest, WireError},
};
use serde::Serialize;
use std::{cmp::Reverse, time::Duration};

/// Blocks by which peers may be further: they take a while to spread.
const BEHIND_MAX: u32 = 2;
/// Time between two heartbeats to every peer.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// The same while this node does not know yet whether it may vote.
const HEARTBEAT_ASKING: Duration = Duration::from_millis(100);

/// Earlier runs of a peer whose last head is remembered, to tell the peer of it.
const EARLIER_MAX: usize = 8;
/// Runs of a node that it remembers, 16 bytes each.
const RUNS_MAX: usize = 64;

/// Whether this node votes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "standing", rename_all = "snake_case")]
pub enum Standing {
    /// Not before enough peers have said how far they know this node's log.
    Asking {
        /// Peers that have answered.
        answered: usize,
        /// Peers that have to.
        needed: usize,
    },
    /// It votes.
    Voting,
    /// It does not vote in this epoch.
    Lost {
        /// Why.
        reason: String,
    },
    /// The epoch is over for it; the next one is being opened.
    Sealed,
    /// Not before it has read the chain up to its tip, and not while its backend may not be at the tip: it would take
    /// coins for unspent that the chain has spent.
    Following {
        /// Why the backend is not believed to be at the tip; absent while blocks are read.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Since when, in Unix seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<u64>,
    },
}

impl Context {
    /// Whether this node votes, and why not.
    pub(crate) fn standing(&self) -> Standing {
        let needed = usize::from(self.federation.quorum().votes()) - 1;
        match &self.log.lost {
            Some(reason) => Standing::Lost { reason: reason.clone() },
            None if self.log.sealed.is_some() && !self.planted(Bug::VoteAfterSeal) => Standing::Sealed,
            None if self.doubt.is_some() || !self.caught_up => {
                let (reason, since) = self.doubt.clone().unzip();
                Standing::Following { reason, since }
            }
            None if self.overtaken.is_some() => {
                let (heights, since) = self.overtaken.unzip();
                let reason = heights.map(|height| {
                    let own = self.ledger.tip().height;
                    format!(
                        "its backend is behind: this node is at block {own}, and others are at block {height}"
                    )
                });
                Standing::Following { reason, since }
            }
            None if self.log.answered.len() < needed && !self.planted(Bug::TrustOldStore) => {
                Standing::Asking { answered: self.log.answered.len(), needed }
            }
            None => Standing::Voting,
        }
    }

    /// A peer tells of its tip.
    pub(crate) fn hear_height(&mut self, from: NodeId, height: u32) {
        self.heights.insert(from, height);
        self.compare_heights();
    }

    /// Whether f + 1 peers, one of them honest, are further than this node by more than blocks take to spread.
    pub(crate) fn compare_heights(&mut self) {
        let mut heights: Vec<u32> = self.heights.values().copied().collect();
        heights.sort_unstable_by_key(|height| Reverse(*height));
        let honest = usize::from(self.federation.quorum().blocking()) - 1;
        let own = self.ledger.tip().height;
        let ahead = heights.get(honest).copied().filter(|height| *height > own.saturating_add(BEHIND_MAX));
        let before = self.overtaken;
        self.overtaken =
            ahead.map(|height| (height, before.map_or(self.wall_ms / 1_000, |(_, since)| since)));
        match (before, self.overtaken) {
            (None, Some((height, _))) => {
                tracing::warn!(own, height, "the chain backend is behind those of other nodes");
            }
            (Some(_), None) => tracing::info!("the chain backend is as far as those of other nodes"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// Refuses to vote, commit or promise with a memory that cannot be trusted.
    pub(crate) fn may_vote(&self) -> Result<(), WireError> {
        let message = match self.standing() {
            Standing::Voting => return Ok(()),
            Standing::Asking { answered, needed } => {
                format!("this node has just started; {answered} of {needed} peers have confirmed its log")
            }
            Standing::Lost { reason } => format!("this node does not vote in this epoch: {reason}"),
            Standing::Sealed => "this epoch is over; the next one is being opened".to_owned(),
            Standing::Following { reason: None, .. } => "this node is still reading the chain".to_owned(),
            Standing::Following { reason: Some(reason), .. } => {
                format!("this node does not know the tip of the chain: {reason}")
            }
        };
        Err(WireError::passing(ErrorCode::NotReady, Fault::Receiver, message))
    }

    /// Emits a durable write and extends the log by it.
    pub(crate) fn persist(&mut self, mut change: ChangeSet) {
        self.log.head = self.log.head.extend(&change.digest());
        self.put_log(&mut change);
        self.outputs.push_back(Output::Persist(change));
    }

    fn put_log(&self, change: &mut ChangeSet) {
        let Log { head, lost, sealed, runs, .. } = &self.log;
        let record = LogRecord { head: *head, lost: lost.clone(), sealed: *sealed, runs: runs.clone() };
        change.put(&Change::Log(record));
    }

    /// A run is on the disk before a head of it leaves: a node that is set back to before it does not know it.
    pub(crate) fn record_run(&mut self) {
        let old = self.log.runs.len().saturating_sub(RUNS_MAX);
        self.log.runs.drain(..old);
        let mut change = ChangeSet::default();
        self.put_log(&mut change);
        self.outputs.push_back(Output::Persist(change));
    }

    /// Whether a head that a peer knows of this node is one that this node remembers having had: of one of its runs,
    /// and no further than that run came.
    fn remembers(&self, known: &SignedHead) -> bool {
        let runs = &self.log.runs;
        match runs.iter().position(|(boot, _)| *boot == known.boot) {
            Some(run) => {
                let end = runs.get(run + 1).map_or(self.log.head.sequence, |(_, start)| *start);
                known.head.sequence <= end
            }
            // Runs of very long ago are forgotten.
            None => {
                runs.len() >= RUNS_MAX && runs.first().is_some_and(|(_, start)| known.head.sequence <= *start)
            }
        }
    }

    /// This node's head, to be sent after the writes before it.
    pub(crate) fn signed_head(&mut self) -> SignedHead {
        let signed = self.log.signed.filter(|signed| signed.head == self.log.head);
        let signed = signed.unwrap_or_else(|| {
            SignedHead::sign(self.federation.context(), self.me, &self.key, self.log.head, self.log.start)
        });
        self.log.signed = Some(signed);
        signed
    }

    /// Remembers how far a peer's log has come. Only that peer can have sent it, and harms only itself by a lie: so a
    /// head that is further in a run of which one was verified is verified when it is needed, not with every message.
    pub(crate) fn take_head(&mut self, from: NodeId, head: Option<SignedHead>) {
        let Some(head) = head.filter(|head| head.node == from && from != self.me) else { return };
        self.log.heard.insert(from, self.now);
        let verified = self.log.peers.get(&from);
        let latest = self.log.unverified.get(&from).or(verified);
        if !latest.is_none_or(|known| head.follows(known)) {
            return;
        }
        if verified.is_some_and(|known| known.boot == head.boot) {
            self.log.unverified.insert(from, head);
            return;
        }
        self.verify_head(from);
        let news = self.log.peers.get(&from).is_none_or(|known| head.follows(known));
        if news && head.verify(&self.federation) {
            let before = self.log.peers.insert(from, head);
            if let Some(before) = before.filter(|before| before.boot != head.boot) {
                let earlier = self.log.earlier.entry(from).or_default();
                if earlier.heads.len() >= EARLIER_MAX {
                    earlier.heads.pop_front();
                }
                earlier.heads.push_back(before);
                // It was told of this one just now; if that is lost, it hears of it in the next answer.
                earlier.turn = earlier.heads.len() - 1;
            }
        }
    }

    /// Verifies the last head that a peer sent, if it was not.
    fn verify_head(&mut self, from: NodeId) {
        if let Some(head) = self.log.unverified.remove(&from).filter(|head| head.verify(&self.federation)) {
            self.log.peers.insert(from, head);
        }
    }

    pub(crate) fn heartbeat(&mut self, from: NodeId, head: SignedHead) -> VotingReply {
        self.verify_head(from);
        let mut known = self.log.peers.get(&from).copied();
        if known.is_some_and(|known| known.boot == head.boot) {
            // What an earlier run had shown is told in turn with the last: the answer that said so first may have
            // been lost.
            if let Some(earlier) = self.log.earlier.get_mut(&from) {
                known = earlier.heads.get(earlier.turn).copied().or(known);
                earlier.turn = (earlier.turn + 1) % (earlier.heads.len() + 1);
            }
        }
        self.take_head(from, Some(head));
        let height = self.ledger.tip().height;
        VotingReply::HeartbeatResponse { head: self.signed_head(), known, height }
    }

    /// A peer's answer: what it knows of this node's log.
    pub(crate) fn take_heartbeat(&mut self, from: NodeId, head: SignedHead, known: Option<SignedHead>) {
        self.take_head(from, Some(head));
        // A peer that has gone on to the next epoch, or not come to this one, knows nothing of this node's log in it.
        self.verify_head(from);
        let of_this_epoch =
            self.log.peers.get(&from).is_some_and(|known| *known == head) || head.verify(&self.federation);
        if !of_this_epoch || head.node != from {
            return;
        }
        if let Some(known) = known.filter(|known| known.node == self.me) {
            let lost = !self.remembers(&known) && self.log.lost.is_none() && known.verify(&self.federation);
            if lost && !self.planted(Bug::TrustOldStore) {
                self.lose(format!(
                    "its store is missing or older than what node {from} has seen of it (record {} of {}); it votes again in the next epoch",
                    self.log.head.sequence, known.head.sequence
                ));
                return;
            }
        }
        let before = self.standing();
        self.log.answered.insert(from);
        if before != Standing::Voting && self.standing() == Standing::Voting {
            tracing::info!(node = %self.me, records = self.log.head.sequence, "peers have confirmed this node's log; it votes");
        }
    }

    /// In every epoch but the first the store began with what was handed over, and a log: one without has been lost.
    pub(crate) fn notice_missing_store(&mut self) {
        let empty = self.log.head.sequence == 0 && self.log.lost.is_none();
        if empty && self.federation.epoch() > Epoch::FIRST {
            self.lose("its store is missing; it votes again in the next epoch".to_owned());
        }
    }

    /// Gives up voting in this epoch, durably.
    fn lose(&mut self, reason: String) {
        tracing::error!(node = %self.me, reason, "this node does not vote in this epoch");
        self.log.lost = Some(reason);
        self.persist(ChangeSet::default());
    }

    /// Tells every peer that this node is here, and asks what they know of its log.
    pub(crate) fn beat(&mut self) {
        if self.now < self.log.beat_at {
            return;
        }
        // Until it votes it asks often: its peers may have started a moment later, and payments wait for it.
        let asking = matches!(self.standing(), Standing::Asking { .. } | Standing::Following { .. });
        self.log.beat_at = self.now + if asking { HEARTBEAT_ASKING } else { HEARTBEAT };
        let height = self.ledger.tip().height;
        let request = VotingRequest::Heartbeat { head: self.signed_head(), height };
        self.ask(self.others(), Tag::Heartbeat, &request);
        for peer in self.others() {
            self.verify_head(peer);
        }
        if self.log.peers != self.log.peers_written {
            let mut change = ChangeSet::default();
            for (node, head) in &self.log.peers {
                if self.log.peers_written.get(node) != Some(head) {
                    change.put(&Change::PeerHead(*head));
                }
            }
            self.log.peers_written = self.log.peers.clone();
            // Not part of this node's own log, or two idle nodes would keep each other writing.
            self.outputs.push_back(Output::Persist(change));
        }
    }
}
