//! Telling all nodes that a transaction is final, until they have heard it, even if the node that completed it does
//! not.

use crate::{Tag, context::Context};
use bitcoin::Txid;
use quorate_protocol::{NodeId, finality::FinalityProof, wire::VotingRequest};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Wait before nodes that have not answered are told again; doubles each time.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait. A node that is down for longer hears of it when it asks for votes, or from the chain.
const TELL_AGAIN_MAX: Duration = Duration::from_secs(16);
/// What is in no block after this time is told by everybody who knows it: the node that completed it may have crashed,
/// or told only some.
const PASS_ON_AFTER: Duration = Duration::from_secs(10);
/// Transactions that are passed on at once, so that a node that starts with many does not drown in them.
const PASS_ON_BATCH: usize = 16;
/// Wait before the next ones.
const PASS_ON_PAUSE: Duration = Duration::from_millis(100);
/// Announcements under way; more are told once.
const ANNOUNCEMENTS_MAX: usize = 10_000;

#[derive(Debug)]
struct Announcement {
    missing: BTreeSet<NodeId>,
    wait: Duration,
    at: Duration,
}

/// What this node still tells others.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    /// Final transactions that some node has not confirmed to know.
    open: BTreeMap<Txid, Announcement>,
    /// When to tell everybody of a final transaction that is still in no block.
    pass_on_at: VecDeque<(Duration, Txid)>,
    pass_on_next: Duration,
}

impl Announcements {
    /// What was final before a start may not have been told to everybody.
    pub(crate) fn restore(proven: impl Iterator<Item = Txid>) -> Self {
        Self { pass_on_at: proven.map(|txid| (PASS_ON_AFTER, txid)).collect(), ..Self::default() }
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Tells everybody that this node has completed a transaction.
    pub(crate) fn announce(&mut self, cx: &mut Context, proof: FinalityProof) {
        let head = Some(cx.signed_head());
        self.tell(cx, proof.txid(), &VotingRequest::FinalTransaction { proof, head });
    }

    /// The node that completed it may have crashed: if no block has it after a while, everybody who knows it tells it.
    pub(crate) fn pass_on_later(&mut self, cx: &Context, txid: Txid) {
        self.pass_on_at.push_back((cx.now + PASS_ON_AFTER, txid));
    }

    /// A node has confirmed that it knows a transaction.
    pub(crate) fn heard(&mut self, from: NodeId, txid: Txid) {
        if let Some(announcement) = self.open.get_mut(&txid) {
            announcement.missing.remove(&from);
            if announcement.missing.is_empty() {
                self.open.remove(&txid);
            }
        }
    }

    /// Tells again where it is due.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context) {
        self.tell_again(cx);
        self.pass_on(cx);
    }

    /// When [`Self::handle_timeout`] is next due.
    pub(crate) fn next_event(&self, cx: &Context) -> Option<Duration> {
        let again = self.open.values().map(|untold| untold.at).min();
        let pass_on = self.pass_on_at.front().filter(|_| cx.caught_up);
        again.into_iter().chain(pass_on.map(|(at, _)| (*at).max(self.pass_on_next))).min()
    }

    fn tell(&mut self, cx: &mut Context, txid: Txid, request: &VotingRequest) {
        cx.ask(cx.others(), Tag::Final { txid }, request);
        if self.open.len() < ANNOUNCEMENTS_MAX {
            let missing = cx.others().collect();
            self.open.insert(txid, Announcement { missing, wait: TELL_AGAIN, at: cx.now + TELL_AGAIN });
        }
    }

    fn tell_again(&mut self, cx: &mut Context) {
        let mut due = Vec::new();
        self.open.retain(|txid, untold| {
            if cx.now >= untold.at {
                due.push((*txid, untold.missing.clone()));
                untold.wait *= 2;
                untold.at = cx.now + untold.wait;
            }
            untold.wait <= TELL_AGAIN_MAX
        });
        for (txid, missing) in due {
            if let Some(proof) = cx.ledger.proof(&txid).cloned() {
                let request = VotingRequest::FinalTransaction { proof, head: None };
                cx.ask(missing, Tag::Final { txid }, &request);
            }
        }
    }

    /// Passes on what should be in a block by now and is not, some at a time. A node that has not read the chain yet
    /// cannot tell.
    fn pass_on(&mut self, cx: &mut Context) {
        if !cx.caught_up || cx.now < self.pass_on_next {
            return;
        }
        for _ in 0..PASS_ON_BATCH {
            let Some((_, txid)) = self.pass_on_at.pop_front_if(|(at, _)| cx.now >= *at) else { return };
            let proof = cx.ledger.proof(&txid).filter(|_| cx.ledger.block_of(&txid).is_none());
            if let Some(proof) = proof.cloned() {
                self.tell(cx, txid, &VotingRequest::FinalTransaction { proof, head: None });
                self.pass_on_next = cx.now + PASS_ON_PAUSE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Kit, OTHER};
    use bitcoin::hashes::Hash as _;

    #[test]
    fn so_many_are_told_again_and_more_are_told_once() {
        let mut kit = Kit::voting();
        let request = VotingRequest::Released { releases: vec![] };
        let txid = |number: usize| Txid::hash(&number.to_be_bytes());
        let mut announcements = Announcements::default();
        let mut tell = |announcements: &mut Announcements, number| {
            announcements.tell(&mut kit.machine.cx, txid(number), &request);
            kit.drain();
            assert_eq!(kit.asked().len(), 3, "all others hear of it");
        };
        (0..=ANNOUNCEMENTS_MAX).for_each(|number| tell(&mut announcements, number));
        assert_eq!(announcements.open.len(), ANNOUNCEMENTS_MAX);
        for node in [OTHER, NodeId(3), NodeId(4)] {
            assert!(announcements.open.contains_key(&txid(0)));
            announcements.heard(node, txid(0));
        }
        assert!(!announcements.open.contains_key(&txid(0)), "all have heard of it");
        tell(&mut announcements, ANNOUNCEMENTS_MAX);
        assert_eq!(announcements.open.len(), ANNOUNCEMENTS_MAX, "there is room again");
    }
}
