//! Evidence: what proves by itself that a node cheated (design, V7).
//!
//! Every variant holds only statements that the accused signed, with what is needed to check them, so who has
//! the federation document can verify it offline and nobody can be framed: an honest node never signs two statements
//! that contradict each other, and signs no share that it did not compute itself for exactly the package it names.

use crate::{
    Epoch, Federation, NodeId, NonceCommitment, SignatureShare,
    account::{AccountCertificate, AccountError},
    frost::{NodeCommitments, SigningError, SigningSession},
    proposal::{JointProposal, ProposalError},
    release::SignedPromise,
    tagged::tagged,
    vote::{SignedVote, Verdict, VoteTarget, verify_commit},
};
use bitcoin::secp256k1::schnorr;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// A node's part in one signing session, with everything that it is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningRecord {
    /// The payment.
    pub proposal: JointProposal,
    /// The paying account.
    pub account: AccountCertificate,
    /// Transaction and rounds.
    pub target: VoteTarget,
    /// Attempt.
    pub attempt: u32,
    /// The signing nodes' commitments.
    pub nodes: BTreeMap<NodeId, NodeCommitments>,
    /// The wallet's commitments.
    pub wallet: Vec<NonceCommitment>,
    /// The node's shares.
    pub shares: Vec<SignatureShare>,
    /// The node's signature over package and shares.
    pub signature: schnorr::Signature,
}

/// A node's release of a commit: a commit signature, or shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
pub enum CommitStatement {
    /// For coins in sole custody.
    Sole {
        /// Transaction and rounds.
        target: VoteTarget,
        /// The commit signature.
        signature: schnorr::Signature,
    },
    /// For a joint account.
    Joint {
        /// The session.
        record: Box<SigningRecord>,
    },
}
tagged!("custody": CommitStatement);

/// What proves by itself that a node cheated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Evidence {
    /// Two approvals for one outpoint and round (against V2).
    TwoApprovals {
        /// One.
        first: SignedVote,
        /// The other.
        second: SignedVote,
    },
    /// Two promises for one outpoint and round that name different commits (against V5).
    TwoPromises {
        /// One.
        first: SignedPromise,
        /// The other.
        second: SignedPromise,
    },
    /// A commit that a promise denies (against V4 and V5).
    CommitAgainstPromise {
        /// The promise.
        promise: SignedPromise,
        /// Who signed the commit.
        node: NodeId,
        /// The commit.
        commit: CommitStatement,
    },
    /// A signature share that does not fit the package it was signed for.
    BadShare {
        /// Whose.
        node: NodeId,
        /// The session.
        record: Box<SigningRecord>,
    },
}
tagged!("kind": Evidence);

/// The kinds of [`Evidence`], for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceKind {
    /// [`Evidence::TwoApprovals`].
    TwoApprovals,
    /// [`Evidence::TwoPromises`].
    TwoPromises,
    /// [`Evidence::CommitAgainstPromise`].
    CommitAgainstPromise,
    /// [`Evidence::BadShare`].
    BadShare,
}

impl EvidenceKind {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::TwoApprovals, Self::TwoPromises, Self::CommitAgainstPromise, Self::BadShare];
}

impl fmt::Display for EvidenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Evidence {
    /// Which node it accuses.
    ///
    /// ```no_run
    /// # fn run(federation: &quorate::Federation, text: &str) -> Result<(), Box<dyn std::error::Error>> {
    /// let evidence: quorate::evidence::Evidence = serde_json::from_str(text)?;
    /// let culprit = evidence.verify(federation)?;
    /// println!("node {culprit} cheated: {}", evidence.kind());
    /// # Ok(())
    /// # }
    /// ```
    pub fn accused(&self) -> NodeId {
        match self {
            Self::TwoApprovals { first, .. } => first.node,
            Self::TwoPromises { first, .. } => first.node,
            Self::CommitAgainstPromise { node, .. } | Self::BadShare { node, .. } => *node,
        }
    }

    /// The epoch that it is about.
    pub fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::TwoApprovals { first, .. } => first.target.epoch(),
            Self::TwoPromises { first, .. } => Some(first.round.epoch()),
            Self::CommitAgainstPromise { promise, .. } => Some(promise.round.epoch()),
            Self::BadShare { record, .. } => record.target.epoch(),
        }
    }

    /// What kind of cheat it is about.
    pub fn kind(&self) -> EvidenceKind {
        match self {
            Self::TwoApprovals { .. } => EvidenceKind::TwoApprovals,
            Self::TwoPromises { .. } => EvidenceKind::TwoPromises,
            Self::CommitAgainstPromise { .. } => EvidenceKind::CommitAgainstPromise,
            Self::BadShare { .. } => EvidenceKind::BadShare,
        }
    }

    /// Checks the evidence and gives the node that it convicts.
    ///
    /// # Errors
    /// It proves nothing: a signature is not the accused's, or the statements do not contradict each other. Anybody
    /// who presented it is at fault.
    pub fn verify(&self, federation: &Federation) -> Result<NodeId, EvidenceError> {
        let accused = self.accused();
        // What was signed in an earlier epoch is judged by the members and shares of that epoch.
        let past = self.epoch().and_then(|epoch| federation.at(epoch));
        let federation = past.as_ref().ok_or(EvidenceError::Epoch)?;
        let guilty = match self {
            Self::TwoApprovals { first, second } => {
                signed(first.verify(federation) && second.verify(federation) && second.node == accused)?;
                two_approvals(first, second)
            }
            Self::TwoPromises { first, second } => {
                signed(first.verify(federation) && second.verify(federation) && second.node == accused)?;
                let same = first.outpoint == second.outpoint && first.round == second.round;
                same && first.committed != second.committed
            }
            Self::CommitAgainstPromise { promise, commit, .. } => {
                signed(promise.verify(federation) && promise.node == accused)?;
                let target = match commit {
                    CommitStatement::Sole { target, signature } => {
                        signed(verify_commit(federation, accused, target, signature))?;
                        target
                    }
                    CommitStatement::Joint { record } => {
                        record.session(federation, accused)?;
                        &record.target
                    }
                };
                promise.contradicts_commit(target)
            }
            Self::BadShare { record, .. } => {
                let session = record.session(federation, accused)?;
                !session.share_is_valid(federation, &record.account.record, accused, &record.shares)
            }
        };
        guilty.then_some(accused).ok_or(EvidenceError::Consistent { node: accused })
    }
}

fn signed(valid: bool) -> Result<(), EvidenceError> {
    valid.then_some(()).ok_or(EvidenceError::Signature)
}

/// Whether two votes of one node contradict each other.
pub fn two_approvals(first: &SignedVote, second: &SignedVote) -> bool {
    let both = first.verdict == Verdict::Approve && second.verdict == Verdict::Approve;
    let shared = |(outpoint, round)| first.target.inputs().get(outpoint) == Some(round);
    both && first.target.txid() != second.target.txid() && second.target.inputs().iter().any(shared)
}

impl SigningRecord {
    /// Rebuilds the session and checks that `node` signed these shares in it.
    fn session(&self, federation: &Federation, node: NodeId) -> Result<SigningSession, EvidenceError> {
        let account = self.account.verify(federation)?;
        let plan = self.proposal.check(federation, &account)?.plan;
        let session =
            SigningSession::new(federation, &plan, &self.target, self.attempt, &self.nodes, &self.wallet)?;
        signed(session.verify_shares(federation, node, &self.shares, &self.signature))?;
        signed(session.nodes().contains(&node))?;
        Ok(session)
    }
}

/// Why evidence proves nothing. Its presenter is at fault; the accused node is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// Its epoch is not in the federation document, which may be too old.
    #[error("the evidence is of an epoch that the federation document does not have")]
    Epoch,
    /// The accused did not sign what it is accused of.
    #[error("the accused node did not sign these statements")]
    Signature,
    /// What it signed is what an honest node may sign.
    #[error("the statements of node {node} do not contradict each other")]
    Consistent {
        /// The accused.
        node: NodeId,
    },
    /// The account in it is not certified.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The proposal in it is not valid.
    #[error(transparent)]
    Proposal(#[from] ProposalError),
    /// The signing package in it cannot be built.
    #[error(transparent)]
    Signing(#[from] SigningError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Round, testing, vote::sign_commit};
    use bitcoin::{OutPoint, Txid, hashes::Hash as _};
    use proptest::prelude::*;

    fn outpoint(vout: u32) -> OutPoint {
        OutPoint { txid: Txid::all_zeros(), vout }
    }

    fn target(txid: u8, inputs: &[(u32, u32)]) -> VoteTarget {
        let inputs = inputs.iter().map(|(vout, round)| (outpoint(*vout), Round(*round)));
        VoteTarget::new(Txid::from_byte_array([txid; 32]), testing::custody(), inputs)
    }

    fn vote(world: &testing::World, node: u16, target: VoteTarget, verdict: Verdict) -> SignedVote {
        let key = &world.keys[usize::from(node) - 1];
        SignedVote::sign(world.federation.context(), NodeId(node), key, target, verdict)
    }

    fn promise(
        world: &testing::World,
        node: u16,
        round: u32,
        committed: Option<VoteTarget>,
    ) -> SignedPromise {
        let key = &world.keys[usize::from(node) - 1];
        let context = world.federation.context();
        SignedPromise::sign(context, NodeId(node), key, outpoint(0), Round(round), committed)
    }

    #[test]
    fn two_approvals_of_one_round_convict_and_other_pairs_do_not() {
        let world = testing::federation(4);
        let first = vote(&world, 2, target(1, &[(0, 0), (1, 0)]), Verdict::Approve);
        let cases = [
            (vote(&world, 2, target(2, &[(0, 0)]), Verdict::Approve), true),
            (vote(&world, 2, target(2, &[(0, 1)]), Verdict::Approve), false),
            (vote(&world, 2, target(2, &[(5, 0)]), Verdict::Approve), false),
            (vote(&world, 2, target(2, &[(0, 0)]), Verdict::Reject), false),
            (vote(&world, 3, target(2, &[(0, 0)]), Verdict::Approve), false),
            (vote(&world, 2, target(1, &[(0, 0), (1, 1)]), Verdict::Approve), false),
        ];
        for (second, guilty) in cases {
            let evidence = Evidence::TwoApprovals { first: first.clone(), second };
            assert_eq!(evidence.verify(&world.federation).is_ok(), guilty, "{evidence:?}");
        }
    }

    #[test]
    fn a_commit_that_a_promise_denies_convicts() {
        let world = testing::federation(4);
        let late = target(1, &[(0, 0)]);
        let signature = sign_commit(world.federation.context(), &world.keys[1], &late);
        let commit = CommitStatement::Sole { target: late.clone(), signature };
        let evidence =
            |promise| Evidence::CommitAgainstPromise { promise, node: NodeId(2), commit: commit.clone() };
        assert_eq!(evidence(promise(&world, 2, 0, None)).verify(&world.federation), Ok(NodeId(2)));
        assert_eq!(evidence(promise(&world, 2, 3, None)).verify(&world.federation), Ok(NodeId(2)));
        let named = promise(&world, 2, 0, Some(late));
        assert_eq!(
            evidence(named).verify(&world.federation),
            Err(EvidenceError::Consistent { node: NodeId(2) })
        );
        assert_eq!(
            evidence(promise(&world, 3, 0, None)).verify(&world.federation),
            Err(EvidenceError::Signature)
        );
        let two = Evidence::TwoPromises {
            first: promise(&world, 2, 1, None),
            second: promise(&world, 2, 1, Some(target(1, &[(0, 1)]))),
        };
        assert_eq!(two.verify(&world.federation), Ok(NodeId(2)));
    }

    #[test]
    fn two_promises_convict_only_who_signed_both() {
        let world = testing::federation(4);
        let pair = |first: SignedPromise, second: SignedPromise| {
            Evidence::TwoPromises { first, second }.verify(&world.federation)
        };
        let other = || promise(&world, 2, 1, Some(target(1, &[(0, 1)])));
        let forged = |one: SignedPromise| SignedPromise { signature: other().signature, ..one };
        assert_eq!(pair(promise(&world, 2, 1, None), other()), Ok(NodeId(2)));
        assert_eq!(pair(forged(promise(&world, 2, 1, None)), other()), Err(EvidenceError::Signature));
        assert_eq!(pair(other(), forged(promise(&world, 2, 1, None))), Err(EvidenceError::Signature));
        assert_eq!(pair(promise(&world, 3, 1, None), other()), Err(EvidenceError::Signature));
        let consistent = Err(EvidenceError::Consistent { node: NodeId(2) });
        assert_eq!(pair(other(), other()), consistent);
        assert_eq!(pair(promise(&world, 2, 2, None), other()), consistent);
    }

    #[test]
    fn every_kind_has_the_name_that_operators_see() {
        let names = EvidenceKind::ALL.map(|kind| kind.to_string());
        assert_eq!(names, ["two_approvals", "two_promises", "commit_against_promise", "bad_share"]);
    }

    #[test]
    fn a_bad_share_convicts_and_a_good_or_foreign_one_does_not() {
        let world = testing::federation(4);
        let (record, good) = world.signing_record(NodeId(2));
        let honest = Evidence::BadShare { node: NodeId(2), record: Box::new(record.clone()) };
        assert_eq!(honest.verify(&world.federation), Err(EvidenceError::Consistent { node: NodeId(2) }));
        let mut forged = record.clone();
        forged.shares[0] = SignatureShare([3; 32]);
        let framed = Evidence::BadShare { node: NodeId(2), record: Box::new(forged.clone()) };
        assert_eq!(
            framed.verify(&world.federation),
            Err(EvidenceError::Signature),
            "a relay cannot frame it"
        );
        let account = record.account.verify(&world.federation).expect("certified");
        let plan = record.proposal.check(&world.federation, &account).expect("valid").plan;
        let session = SigningSession::new(
            &world.federation,
            &plan,
            &record.target,
            record.attempt,
            &record.nodes,
            &record.wallet,
        );
        forged.signature =
            session.expect("builds").sign_shares(&world.federation, &world.keys[1], &forged.shares);
        let guilty = Evidence::BadShare { node: NodeId(2), record: Box::new(forged) };
        assert_eq!(guilty.verify(&world.federation), Ok(NodeId(2)));
        let json = serde_json::to_string(&guilty).expect("serialises");
        assert_eq!(serde_json::from_str::<Evidence>(&json).expect("parses"), guilty);
        assert!(good);
    }

    proptest! {
        /// Whatever statements of an honest node are put together, in whatever order, they convict nobody.
        #[test]
        fn an_honest_node_cannot_be_framed(steps in prop::collection::vec((0_u8..3, 0_u8..3), 1..10)) {
            let world = testing::federation(4);
            let (mut round, mut locked, mut highest) = (0, None, None::<VoteTarget>);
            let (mut votes, mut commits, mut promises) = (Vec::new(), Vec::new(), Vec::new());
            for (step, txid) in steps {
                match step {
                    0 => {
                        let verdict = if *locked.get_or_insert(txid) == txid { Verdict::Approve } else { Verdict::Reject };
                        votes.push(vote(&world, 2, target(txid, &[(0, round)]), verdict));
                    }
                    1 => {
                        let target = target(*locked.get_or_insert(txid), &[(0, round)]);
                        let signature = sign_commit(world.federation.context(), &world.keys[1], &target);
                        highest = Some(target.clone());
                        commits.push(CommitStatement::Sole { target, signature });
                    }
                    _promise => {
                        promises.push(promise(&world, 2, round, highest.clone()));
                        (round, locked) = (round + 1, None);
                    }
                }
            }
            let mut accusations = Vec::new();
            for first in &votes {
                accusations.extend(votes.iter().map(|second| Evidence::TwoApprovals { first: first.clone(), second: second.clone() }));
            }
            for promise in &promises {
                accusations.extend(promises.iter().map(|second| Evidence::TwoPromises { first: promise.clone(), second: second.clone() }));
                accusations.extend(commits.iter().map(|commit| Evidence::CommitAgainstPromise {
                    promise: promise.clone(), node: NodeId(2), commit: commit.clone(),
                }));
            }
            for evidence in accusations {
                prop_assert!(evidence.verify(&world.federation).is_err(), "{:?}", evidence);
                // A relay that puts another name or round on a statement gains nothing either.
                if let Evidence::TwoApprovals { first, mut second } = evidence {
                    second.verdict = Verdict::Approve;
                    second.target = target(9, &[(0, 0)]);
                    let forged = Evidence::TwoApprovals { first, second };
                    prop_assert!(forged.verify(&world.federation).is_err());
                }
            }
        }
    }
}
