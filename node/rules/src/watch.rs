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
    wire::encoded_len,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

/// Bytes of the statements that are remembered to be compared with later ones: so many of commits, and as many of votes
/// and promises, some 15,000 of them. The oldest go first, and large commits push out no votes. A statement about many
/// outpoints is held once.
const STATEMENT_BYTES_MAX: usize = 16 << 20;
/// Of these, what each outpoint of a statement takes.
const PLACE_BYTES: usize = 128;
/// What a vote takes in memory, and each outpoint of its target.
const TARGET_BYTES: usize = 768;
/// What a promise takes.
const PROMISE_BYTES: usize = 1_024;
const OUTPOINT_BYTES: usize = 44;
/// Evidence kept per node; one piece convicts, more shows a pattern.
const EVIDENCE_PER_NODE_MAX: usize = 64;

type Key = (NodeId, OutPoint);

#[derive(Debug, Default)]
pub(crate) struct Watch {
    approvals: HashMap<Key, Vec<Arc<SignedVote>>>,
    promises: HashMap<Key, Vec<SignedPromise>>,
    commits: HashMap<Key, Vec<Arc<(VoteTarget, CommitStatement)>>>,
    spoken: Line,
    committed: Line,
    evidence: BTreeMap<NodeId, Vec<Evidence>>,
    suspects: BTreeSet<NodeId>,
}

/// Statements of a kind, the oldest first, with the bytes that each holds.
#[derive(Debug, Default)]
struct Line {
    order: VecDeque<(Key, Statement, usize)>,
    held: usize,
}

impl Line {
    fn push(&mut self, key: Key, statement: Statement, bytes: usize) {
        self.order.push_back((key, statement, bytes));
        self.held += bytes;
    }

    /// The oldest one, if there is no room for it.
    fn pop_excess(&mut self) -> Option<(Key, Statement)> {
        if self.held <= STATEMENT_BYTES_MAX {
            return None;
        }
        let (key, statement, bytes) = self.order.pop_front()?;
        self.held -= bytes;
        Some((key, statement))
    }

    fn retain(&mut self, stays: impl Fn(&Key) -> bool) {
        self.order.retain(|(key, ..)| stays(key));
        self.held = self.order.iter().map(|(.., bytes)| bytes).sum();
    }
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
        self.spoken.retain(stays);
        self.committed.retain(stays);
    }

    fn remember(&mut self, key: Key, statement: Statement, bytes: usize) {
        let line = match statement {
            Statement::Approval | Statement::Promise => &mut self.spoken,
            Statement::Commit => &mut self.committed,
        };
        line.push(key, statement, bytes);
        while let Some((key, statement)) = line.pop_excess() {
            match statement {
                Statement::Approval => forget_first(&mut self.approvals, &key),
                Statement::Promise => forget_first(&mut self.promises, &key),
                Statement::Commit => forget_first(&mut self.commits, &key),
            }
        }
    }
}

fn target_bytes(target: &VoteTarget) -> usize {
    TARGET_BYTES + OUTPOINT_BYTES * target.inputs().len()
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
        let shared = Arc::new(vote.clone());
        let mut bytes = target_bytes(&vote.target);
        for outpoint in vote.target.inputs().keys() {
            let key = (vote.node, *outpoint);
            let known = self.approvals.entry(key).or_default();
            if known.iter().any(|known| **known == *vote) {
                continue;
            }
            let other = known.iter().find(|other| two_approvals(other, vote));
            let other = other.map(|first| SignedVote::clone(first));
            known.push(shared.clone());
            self.remember(key, Statement::Approval, std::mem::take(&mut bytes) + PLACE_BYTES);
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
        let bytes = PROMISE_BYTES + promise.committed.as_ref().map_or(0, target_bytes) + PLACE_BYTES;
        self.remember(key, Statement::Promise, bytes);
        proven.extend(other.map(|first| Evidence::TwoPromises { first, second: promise.clone() }));
        let commits = self.commits.get(&key);
        let denied = commits.and_then(|all| all.iter().find(|known| promise.contradicts_commit(&known.0)));
        proven.extend(denied.map(|known| Evidence::CommitAgainstPromise {
            promise: promise.clone(),
            node: promise.node,
            commit: known.1.clone(),
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
        let shared = Arc::new((target.clone(), commit.clone()));
        let mut bytes = encoded_len(commit) + target_bytes(target);
        for outpoint in target.inputs().keys() {
            let key = (node, *outpoint);
            let known = self.commits.entry(key).or_default();
            if known.iter().any(|known| known.0 == *target) {
                continue;
            }
            known.push(shared.clone());
            self.remember(key, Statement::Commit, std::mem::take(&mut bytes) + PLACE_BYTES);
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
    fn of_a_node_that_cheats_without_end_so_much_evidence_is_kept() {
        let world = testing::federation(4);
        let mut watch = Watch::default();
        let most = u32::try_from(EVIDENCE_PER_NODE_MAX).expect("few");
        for round in 0..most + 6 {
            let [first, second] = [b"a", b"b"].map(|name| approval(&world, 1, target(name, round)));
            let kept = watch.keep(&world.federation, Evidence::TwoApprovals { first, second });
            assert_eq!(kept.is_some(), round < most, "of round {round}");
        }
        assert_eq!(watch.evidence().count(), EVIDENCE_PER_NODE_MAX);
        let [first, second] = [b"a", b"b"].map(|name| approval(&world, 2, target(name, 0)));
        assert!(
            watch.keep(&world.federation, Evidence::TwoApprovals { first, second }).is_some(),
            "another's"
        );
    }

    #[test]
    fn the_oldest_statements_are_forgotten_first() {
        let world = testing::federation(4);
        let mut watch = Watch::default();
        let first = approval(&world, 1, target(b"a", 0));
        watch.vote(&first);
        let (key, shared) = ((NodeId(9), coin()), Arc::new(first));
        for _ in 0..=STATEMENT_BYTES_MAX / PLACE_BYTES {
            // As many of somebody else push it out; what they say does not matter here.
            watch.approvals.entry(key).or_default().push(shared.clone());
            watch.remember(key, Statement::Approval, PLACE_BYTES);
        }
        assert!(watch.vote(&approval(&world, 1, target(b"b", 0))).is_empty());
        assert!(watch.spoken.held <= STATEMENT_BYTES_MAX);
    }

    /// A commit to a payment names the proposal and everybody's commitments: it is held once, and its bytes count.
    #[test]
    fn statements_are_held_within_their_bytes_however_many_coins_they_are_about() {
        let world = testing::federation(4);
        let (record, _) = world.signing_record(NodeId(2));
        let statement = CommitStatement::Joint { record: Box::new(record) };
        let bytes = encoded_len(&statement);
        let mut watch = Watch::default();
        watch.vote(&approval(&world, 1, target(b"a", 0)));
        let inputs = |payment: u32| {
            (0..64).map(move |vout| (OutPoint { vout: payment * 64 + vout, ..coin() }, Round(0)))
        };
        let payments = u32::try_from(STATEMENT_BYTES_MAX / bytes).expect("few") + 10;
        for payment in 0..payments {
            let target =
                VoteTarget::new(Txid::hash(&payment.to_be_bytes()), testing::custody(), inputs(payment));
            assert!(watch.commit(NodeId(2), &target, &statement).is_empty());
        }
        assert!(watch.committed.held <= STATEMENT_BYTES_MAX, "{}", watch.committed.held);
        let shared: BTreeSet<_> = watch.commits.values().flatten().map(Arc::as_ptr).collect();
        assert!(shared.len() * bytes <= STATEMENT_BYTES_MAX, "{} of {bytes} bytes", shared.len());
        let each = bytes + TARGET_BYTES + 64 * (OUTPOINT_BYTES + PLACE_BYTES);
        assert!(shared.len() >= STATEMENT_BYTES_MAX / each, "{} of {each} bytes", shared.len());
        let last: BTreeSet<OutPoint> = inputs(payments - 1).map(|(outpoint, _)| outpoint).collect();
        let before = watch.committed.held;
        watch.forget(&last);
        assert!(before - watch.committed.held > bytes, "what has come to rest leaves room");
        assert_eq!(
            watch.vote(&approval(&world, 1, target(b"b", 0))).len(),
            1,
            "votes have room of their own"
        );
        watch.forget(&watch.committed.order.iter().map(|((_, outpoint), ..)| *outpoint).collect());
        assert_eq!((watch.committed.held, watch.commits.len()), (0, 0));
    }
}
