//! Nonces in memory, used once; and the durable record of what was answered with them.
//!
//! A nonce leaves the pool before it is used, whatever happens then. A package that was answered before gets the
//! stored bytes; another package that names a used nonce finds it gone. A restart loses the pool, never the record.

use crate::records::{Answer, ChangeSet};
use bitcoin::Txid;
use quorate_protocol::{NodeId, NonceCommitment, PackageDigest, frost::NodeNonces, wire::CommitReply};
use std::collections::{HashMap, HashSet, VecDeque};

/// Most unused nonces that one coordinator may have open; its oldest go first, and their session has to start again.
/// No coordinator can push out another's.
const OPEN_PER_PEER_MAX: usize = 16_384;
/// Most answers kept in memory for repeats.
const RESPONSES_MAX: usize = 65_536;

#[derive(Debug)]
pub(crate) struct NoncePool {
    unused: HashMap<NonceCommitment, NodeNonces>,
    order: HashMap<NodeId, VecDeque<NonceCommitment>>,
    responses: HashMap<PackageDigest, CommitReply>,
    response_order: VecDeque<(PackageDigest, Option<Txid>)>,
    /// Answers that memory had no room for, and that the store still has.
    evicted: Vec<PackageDigest>,
}

impl NoncePool {
    pub(crate) fn restore(stored: Vec<Answer>) -> Self {
        let mut pool = Self {
            unused: HashMap::new(),
            order: HashMap::new(),
            responses: HashMap::new(),
            response_order: VecDeque::new(),
            evicted: Vec::new(),
        };
        for response in stored {
            pool.remember(response);
        }
        pool
    }

    pub(crate) fn add(&mut self, coordinator: NodeId, nonces: NodeNonces) {
        let order = self.order.entry(coordinator).or_default();
        while order.len() >= OPEN_PER_PEER_MAX {
            if let Some(oldest) = order.pop_front() {
                self.unused.remove(&oldest);
            }
        }
        order.push_back(*nonces.commitment());
        self.unused.insert(*nonces.commitment(), nonces);
    }

    /// Takes nonces out for good. Gives nothing, but still takes them, if one is missing.
    pub(crate) fn take(&mut self, commitments: &[NonceCommitment]) -> Option<Vec<NodeNonces>> {
        let taken: Vec<_> = commitments.iter().filter_map(|one| self.unused.remove(one)).collect();
        (taken.len() == commitments.len()).then_some(taken)
    }

    pub(crate) fn answered(&self, digest: PackageDigest) -> Option<&CommitReply> {
        self.responses.get(&digest)
    }

    pub(crate) fn remember(&mut self, Answer { digest, txid, reply }: Answer) {
        while self.response_order.len() >= RESPONSES_MAX {
            if let Some((oldest, _)) = self.response_order.pop_front() {
                self.responses.remove(&oldest);
                self.evicted.push(oldest);
            }
        }
        self.response_order.push_back((digest, txid));
        self.responses.insert(digest, reply);
    }

    /// Forgets the answers about transactions that have come to rest. Their nonces are gone all the same: they were
    /// taken out of the pool before they were used.
    pub(crate) fn forget(&mut self, transactions: &[Txid], change: &mut ChangeSet) {
        self.evicted.drain(..).for_each(|digest| change.forget_answer(&digest));
        let transactions: HashSet<&Txid> = transactions.iter().collect();
        let Self { responses, response_order, .. } = self;
        response_order.retain(|(digest, txid)| {
            let over = txid.as_ref().is_some_and(|txid| transactions.contains(txid));
            if over {
                responses.remove(digest);
                change.forget_answer(digest);
            }
            !over
        });
    }
}
