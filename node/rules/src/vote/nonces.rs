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

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{hashes::Hash as _, secp256k1::schnorr};

    fn answer(number: usize) -> Answer {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        let signature = schnorr::Signature::from_slice(&[7; 64]).expect("as long as one");
        let txid = Some(Txid::hash(&digest));
        Answer { digest: PackageDigest(digest), txid, reply: CommitReply::Sole { signature } }
    }

    #[test]
    fn the_oldest_answers_go_and_leave_the_store_with_the_next_that_is_forgotten() {
        let mut pool = NoncePool::restore(Vec::new());
        for number in 0..RESPONSES_MAX + 3 {
            pool.remember(answer(number));
        }
        assert_eq!((pool.responses.len(), pool.response_order.len()), (RESPONSES_MAX, RESPONSES_MAX));
        let known = |pool: &NoncePool, number| pool.answered(answer(number).digest).is_some();
        assert!(!known(&pool, 2) && known(&pool, 3) && known(&pool, RESPONSES_MAX + 2));
        let mut change = ChangeSet::default();
        pool.forget(&[answer(5).txid.expect("named")], &mut change);
        assert!(!known(&pool, 5) && known(&pool, 6));
        assert_eq!(change.rows().len(), 4, "three that went, and the one of a payment that is settled");
    }

    #[test]
    fn a_coordinators_oldest_nonces_go_and_nobodys_push_out_anothers() {
        let world = quorate_protocol::testing::federation(4);
        let (mut pool, mut rng) = (NoncePool::restore(Vec::new()), quorate_protocol::testing::rng(1));
        let mut add = |pool: &mut NoncePool, coordinator| {
            let (nonces, commitment) = world.shares[0].commit(&mut rng).expect("nonces");
            pool.add(NodeId(coordinator), nonces);
            commitment
        };
        let others = add(&mut pool, 3);
        let first: Vec<_> = (0..3).map(|_| add(&mut pool, 2)).collect();
        assert!(pool.take(&first[1..2]).is_some() && pool.take(&first[1..2]).is_none(), "once");
        for _ in 3..OPEN_PER_PEER_MAX {
            add(&mut pool, 2);
        }
        assert_eq!(pool.unused.len(), OPEN_PER_PEER_MAX);
        let newest = add(&mut pool, 2);
        assert_eq!((pool.unused.len(), pool.order[&NodeId(2)].len()), (OPEN_PER_PEER_MAX, OPEN_PER_PEER_MAX));
        assert!(pool.take(&first[..1]).is_none(), "the oldest has gone");
        assert!(pool.take(&first[2..]).is_some() && pool.take(&[newest, others]).is_some());
    }
}
