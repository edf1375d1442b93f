//! Telling all nodes that a transaction is final, until they have heard it, even if whoever completed it does not.

use crate::{Machine, Output, Tag};
use bitcoin::Txid;
use quorate_protocol::{NodeId, wire::PeerRequest};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Wait before nodes that have not answered are told again; doubles each time.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait. A node that is down for longer hears of it when it asks for votes, or from the chain.
const TELL_AGAIN_MAX: Duration = Duration::from_secs(16);
/// What is in no block after this time is told by everybody who knows it: whoever completed it may have crashed, or told only some.
pub(crate) const GOSSIP_AFTER: Duration = Duration::from_secs(10);
/// Transactions that are passed on at once, so that a node that starts with many does not drown in them.
const GOSSIP_BATCH: usize = 16;
/// Wait before the next ones.
const GOSSIP_PAUSE: Duration = Duration::from_millis(100);
/// Announcements under way; more are told once.
const ANNOUNCEMENTS_MAX: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Announcement {
    missing: BTreeSet<NodeId>,
    wait: Duration,
    at: Duration,
}

impl Machine {
    pub(crate) fn announce(&mut self, txid: Txid, request: &PeerRequest) {
        let missing: BTreeSet<NodeId> = self.everyone().filter(|node| *node != self.me).collect();
        for to in &missing {
            self.outputs.push_back(Output::Ask {
                to: *to,
                tag: Tag::Final { txid },
                request: request.clone(),
            });
        }
        if self.announcements.len() < ANNOUNCEMENTS_MAX {
            let at = self.now + TELL_AGAIN;
            self.announcements.insert(txid, Announcement { missing, wait: TELL_AGAIN, at });
        }
    }

    pub(crate) fn heard_final(&mut self, from: NodeId, txid: Txid) {
        if let Some(announcement) = self.announcements.get_mut(&txid) {
            announcement.missing.remove(&from);
            if announcement.missing.is_empty() {
                self.announcements.remove(&txid);
            }
        }
    }

    pub(crate) fn announce_again(&mut self) {
        let mut due = Vec::new();
        self.announcements.retain(|txid, one| {
            if self.now >= one.at {
                due.push((*txid, one.missing.clone()));
                one.wait *= 2;
                one.at = self.now + one.wait;
            }
            one.wait <= TELL_AGAIN_MAX
        });
        for (txid, missing) in due {
            let Some(proof) = self.ledger.record(&txid).and_then(|record| record.proof.clone()) else {
                continue;
            };
            let request = PeerRequest::FinalTransaction { proof, head: None };
            for to in missing {
                self.outputs.push_back(Output::Ask {
                    to,
                    tag: Tag::Final { txid },
                    request: request.clone(),
                });
            }
        }
    }

    /// Passes on what should be in a block by now and is not, some at a time. A node that has not read the chain yet cannot tell.
    pub(crate) fn gossip(&mut self) {
        if !self.caught_up || self.now < self.gossip_next {
            return;
        }
        for _ in 0..GOSSIP_BATCH {
            let Some((_, txid)) = self.gossip_at.pop_front_if(|(at, _)| self.now >= *at) else { return };
            let proof = self.ledger.record(&txid).and_then(|record| record.proof.clone());
            if let Some(proof) = proof.filter(|_| self.ledger.block_of(&txid).is_none()) {
                self.announce(txid, &PeerRequest::FinalTransaction { proof, head: None });
                self.gossip_next = self.now + GOSSIP_PAUSE;
            }
        }
    }

    pub(crate) fn next_announcement(&self) -> Option<Duration> {
        let again = self.announcements.values().map(|one| one.at).min();
        let gossip = self.gossip_at.front().filter(|_| self.caught_up);
        again.into_iter().chain(gossip.map(|(at, _)| (*at).max(self.gossip_next))).min()
    }
}

pub(crate) type Announcements = BTreeMap<Txid, Announcement>;
