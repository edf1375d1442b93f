//! Rule V7: notices statements of one node that contradict each other, and keeps the evidence.
//!
//! Only statements whose signature verifies are looked at, and [`Evidence::verify`] has the last word before a node
//! is accused, so nobody is framed by forged or mixed messages.

use crate::records::Change;
use bitcoin::OutPoint;
use quorate_protocol::{
    Epoch, Federation, NodeId,
    evidence::{CommitStatement, Evidence, EvidenceKind, two_approvals},
    release::SignedPromise,
    vote::{SignedVote, Verdict, VoteTarget},
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Statements remembered to be compared with later ones; the oldest go first.
const STATEMENTS_MAX: usize = 100_000;
/// Evidence kept per node; one piece convicts, more shows a pattern.
const EVIDENCE_PER_NODE_MAX: usize = 64;

type Key = (NodeId, OutPoint);

#[derive(Debug, Default)]
pub(crate) struct Watch {
    approvals: HashMap<Key, Vec<SignedVote>>,
    promises: HashMap<Key, Vec<SignedPromise>>,
    commits: HashMap<Key, Vec<(VoteTarget, CommitStatement)>>,
    order: VecDeque<(Key, Statement)>,
    evidence: BTreeMap<NodeId, Vec<Evidence>>,
    suspects: BTreeSet<NodeId>,
}

#[derive(Clone, Copy, Debug)]
enum Statement {
    Approval,
    Promise,
    Commit,
}

impl Watch {
    /// Evidence of earlier epochs is kept, but the node that has the accused one's number now may be another one.
    pub(crate) fn restore(evidence: Vec<Evidence>, epoch: Epoch) -> Self {
        let mut watch = Self::default();
        for piece in evidence {
            if piece.epoch() == Some(epoch) {
                watch.suspects.insert(piece.accused());
            }
            watch.evidence.entry(piece.accused()).or_default().push(piece);
        }
        watch
    }

    /// Nodes that have cheated in this epoch; their messages are ignored.
    pub(crate) fn suspects(&self) -> &BTreeSet<NodeId> {
        &self.suspects
    }

    /// All evidence, by node.
    pub(crate) fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.evidence.values().flatten()
    }

    /// How often each kind of cheat was proven.
    pub(crate) fn counts(&self) -> BTreeMap<EvidenceKind, usize> {
        let mut counts = BTreeMap::new();
        for evidence in self.evidence() {
            *counts.entry(evidence.kind()).or_default() += 1;
        }
        counts
    }

    /// Forgets what was said about outpoints that have come to rest.
    pub(crate) fn forget(&mut self, outpoints: &BTreeSet<OutPoint>) {
        let stays = |(_, outpoint): &Key| !outpoints.contains(outpoint);
        self.approvals.retain(|key, _| stays(key));
        self.promises.retain(|key, _| stays(key));
        self.commits.retain(|key, _| stays(key));
        self.order.retain(|(key, _)| stays(key));
    }

    fn remember(&mut self, key: Key, statement: Statement) {
        self.order.push_back((key, statement));
        while self.order.len() > STATEMENTS_MAX {
            let Some((key, statement)) = self.order.pop_front() else { return };
            match statement {
                Statement::Approval => forget_first(&mut self.approvals, &key),
                Statement::Promise => forget_first(&mut self.promises, &key),
                Statement::Commit => forget_first(&mut self.commits, &key),
            }
        }
    }
}

fn forget_first<T>(map: &mut HashMap<Key, Vec<T>>, key: &Key) {
    if let Some(kept) = map.get_mut(key) {
        kept.remove(0);
        if kept.is_empty() {
            map.remove(key);
        }
    }
}

impl Watch {
    /// Looks at an approval whose signature has been checked. Gives what it proves together with one seen before.
    pub(crate) fn vote(&mut self, vote: &SignedVote) -> Vec<Evidence> {
        let mut proven = Vec::new();
        if vote.verdict != Verdict::Approve {
            return proven;
        }
        for outpoint in vote.target.inputs().keys() {
            let key = (vote.node, *outpoint);
            let known = self.approvals.entry(key).or_default();
            if known.contains(vote) {
                continue;
            }
            let other = known.iter().find(|other| two_approvals(other, vote)).cloned();
            known.push(vote.clone());
            self.remember(key, Statement::Approval);
            proven.extend(other.map(|first| Evidence::TwoApprovals { first, second: vote.clone() }));
        }
        proven
    }

    /// Whether a promise has been looked at already.
    pub(crate) fn knows_promise(&self, promise: &SignedPromise) -> bool {
        let known = self.promises.get(&(promise.node, promise.outpoint));
        known.is_some_and(|known| known.contains(promise))
    }

    /// Looks at a promise whose signature has been checked.
    pub(crate) fn promise(&mut self, promise: &SignedPromise) -> Vec<Evidence> {
        let mut proven = Vec::new();
        if self.knows_promise(promise) {
            return proven;
        }
        let key = (promise.node, promise.outpoint);
        let known = self.promises.entry(key).or_default();
        let same =
            |other: &&SignedPromise| other.round == promise.round && other.committed != promise.committed;
        let other = known.iter().find(same).cloned();
        known.push(promise.clone());
        self.remember(key, Statement::Promise);
        proven.extend(other.map(|first| Evidence::TwoPromises { first, second: promise.clone() }));
        let commits = self.commits.get(&key);
        let denied =
            commits.and_then(|all| all.iter().find(|(target, _)| promise.contradicts_commit(target)));
        proven.extend(denied.cloned().map(|(_, commit)| Evidence::CommitAgainstPromise {
            promise: promise.clone(),
            node: promise.node,
            commit,
        }));
        proven
    }

    /// Looks at a commit signature or shares whose signature has been checked.
    pub(crate) fn commit(
        &mut self,
        node: NodeId,
        target: &VoteTarget,
        commit: &CommitStatement,
    ) -> Vec<Evidence> {
        let mut proven = Vec::new();
        for outpoint in target.inputs().keys() {
            let key = (node, *outpoint);
            let known = self.commits.entry(key).or_default();
            if known.iter().any(|(other, _)| other == target) {
                continue;
            }
            known.push((target.clone(), commit.clone()));
            self.remember(key, Statement::Commit);
            let promises = self.promises.get(&key);
            let denial =
                promises.and_then(|all| all.iter().find(|promise| promise.contradicts_commit(target)));
            proven.extend(denial.cloned().map(|promise| Evidence::CommitAgainstPromise {
                promise,
                node,
                commit: commit.clone(),
            }));
        }
        proven
    }

    /// Keeps evidence that verifies; gives the record to write if it is news.
    pub(crate) fn keep(&mut self, federation: &Federation, evidence: Evidence) -> Option<Change> {
        let node = match evidence.verify(federation) {
            Ok(node) => node,
            Err(error) => {
                tracing::debug!(%error, "an accusation that proves nothing was dropped");
                return None;
            }
        };
        // The one that had the number in an earlier epoch may have been another node.
        if evidence.epoch() == Some(federation.epoch()) {
            self.suspects.insert(node);
        }
        let known = self.evidence.entry(node).or_default();
        if known.len() >= EVIDENCE_PER_NODE_MAX || known.contains(&evidence) {
            return None;
        }
        tracing::warn!(%node, kind = %evidence.kind(), "a node cheated; the evidence is kept");
        let number = u32::try_from(known.len()).unwrap_or(u32::MAX);
        known.push(evidence.clone());
        Some(Change::Evidence { number, evidence: Box::new(evidence) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{Txid, hashes::Hash as _};
    use quorate_protocol::{Round, digest::IdentityKey, testing, testing::World, vote::sign_commit};

    fn key(world: &World, node: u16) -> &IdentityKey {
        &world.keys[usize::from(node) - 1]
    }

    fn coin() -> OutPoint {
        OutPoint::null()
    }

    fn target(name: &[u8], round: u32) -> VoteTarget {
        VoteTarget::new(Txid::hash(name), testing::custody(), [(coin(), Round(round))])
    }

    fn approval(world: &World, node: u16, target: VoteTarget) -> SignedVote {
        let context = world.federation.context();
        SignedVote::sign(context, NodeId(node), key(world, node), target, Verdict::Approve)
    }

    fn promise(world: &World, node: u16, committed: Option<VoteTarget>) -> SignedPromise {
        let context = world.federation.context();
        SignedPromise::sign(context, NodeId(node), key(world, node), coin(), Round(1), committed)
    }

    fn commit(world: &World, node: u16, target: &VoteTarget) -> CommitStatement {
        let signature = sign_commit(world.federation.context(), key(world, node), target);
        CommitStatement::Sole { target: target.clone(), signature }
    }

    #[test]
    fn only_two_approvals_by_one_node_for_one_round_prove_anything() {
        let world = testing::federation(4);
        let mut watch = Watch::default();
        let first = approval(&world, 1, target(b"a", 0));
        assert!(watch.vote(&first).is_empty());
        assert!(watch.vote(&first).is_empty(), "the same again");
        assert!(watch.vote(&approval(&world, 2, target(b"b", 0))).is_empty(), "another node");
        assert!(watch.vote(&approval(&world, 1, target(b"b", 1))).is_empty(), "another round");
        let proven = watch.vote(&approval(&world, 1, target(b"b", 0)));
        assert!(matches!(&proven[..], [Evidence::TwoApprovals { first: one, .. }] if *one == first));
        for evidence in proven {
            assert!(watch.keep(&world.federation, evidence.clone()).is_some());
            assert!(watch.keep(&world.federation, evidence).is_none(), "kept once");
        }
        assert_eq!(watch.suspects().iter().collect::<Vec<_>>(), [&NodeId(1)]);
        assert_eq!(watch.counts().values().sum::<usize>(), 1);
    }

    #[test]
    fn a_promise_that_denies_a_commit_convicts_in_either_order() {
        let world = testing::federation(4);
        let made = target(b"a", 1);
        let statement = commit(&world, 3, &made);
        let denial = promise(&world, 3, None);
        let honest = promise(&world, 3, Some(made.clone()));
        let mut watch = Watch::default();
        assert!(watch.commit(NodeId(3), &made, &statement).is_empty());
        assert!(watch.promise(&honest).is_empty());
        assert!(watch.knows_promise(&honest) && !watch.knows_promise(&denial));
        let proven = watch.promise(&denial);
        let kinds: Vec<_> = proven.iter().map(Evidence::kind).collect();
        assert_eq!(kinds.len(), 2, "two promises, and a commit that one of them denies: {kinds:?}");
        let mut watch = Watch::default();
        assert!(watch.promise(&denial).is_empty());
        let proven = watch.commit(NodeId(3), &made, &statement);
        assert!(matches!(&proven[..], [Evidence::CommitAgainstPromise { node: NodeId(3), .. }]));
    }

    #[test]
    fn evidence_that_does_not_verify_accuses_nobody() {
        let world = testing::federation(4);
        let mut watch = Watch::default();
        let first = approval(&world, 1, target(b"a", 0));
        let mut second = approval(&world, 2, target(b"b", 0));
        second.node = NodeId(1);
        assert!(watch.keep(&world.federation, Evidence::TwoApprovals { first, second }).is_none());
        assert!(watch.suspects().is_empty());
    }

    #[test]
    fn the_oldest_statements_are_forgotten_first() {
        let world = testing::federation(4);
        let mut watch = Watch::default();
        let first = approval(&world, 1, target(b"a", 0));
        watch.vote(&first);
        let key = (NodeId(9), coin());
        for _ in 0..STATEMENTS_MAX {
            // As many of somebody else push it out; what they say does not matter here.
            watch.approvals.entry(key).or_default().push(first.clone());
            watch.remember(key, Statement::Approval);
        }
        assert!(watch.vote(&approval(&world, 1, target(b"b", 0))).is_empty());
        assert_eq!(watch.order.len(), STATEMENTS_MAX);
    }
}
