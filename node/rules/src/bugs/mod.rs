//! Planted bugs: switches that break one rule each, so that the simulation can show that it would notice.
//!
//! They exist only with the feature `simulation`, which no build that anybody runs has; without it [`Bug::is_on`] is
//! `false` at compile time.

mod sabotage;

use crate::records::ChangeSet;
use rand_chacha::ChaCha20Rng;

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bug {
    /// V1: approves coins that it does not know to be spendable.
    VoteForSpentCoin,
    /// V1: approves what spends the unconfirmed output of an attested transaction.
    TrustAttestedParent,
    /// V10: approves, commits to and takes in whatever the deadline says.
    IgnoreDeadline,
    /// V10: takes in a finished transaction whose deadline has passed.
    TakeLate,
    /// V2: approves a second transaction for one outpoint and round.
    VoteTwice,
    /// V2: the vote leaves before it is durable.
    VoteBeforeWrite,
    /// V3: takes a certificate of q - 1 approvals.
    SmallCertificate,
    /// V4: the commit leaves without being recorded.
    CommitWithoutRecord,
    /// V4: commits in a round that it has left.
    CommitAfterPromise,
    /// V5: a promise does not name the commit.
    PromiseHidesCommit,
    /// V5: a promise is not durable.
    PromiseWithoutRecord,
    /// V5: frees a lock by its own timer.
    ReleaseByTimer,
    /// V5: takes a release of a bare majority.
    ReleaseOnMajority,
    /// V5: votes for anything after a forced release.
    IgnoreForced,
    /// V5: votes while the release is not complete.
    VoteWhilePending,
    /// V5: never asks again for a release that did not complete.
    GiveUpRelease,
    /// V9: votes with a store that is older than what peers know.
    TrustOldStore,
    /// Calls a transaction final when it has its approval certificate.
    FinalAfterPhase1,
    /// A proof of finality is told but not recorded.
    ForgetProof,
    /// Subscribers hear of a lock before it is durable.
    NotifyBeforeWrite,
    /// Subscribers do not hear of releases.
    SilentRelease,
    /// A reorganisation takes back finality.
    ReorganisationUndoesFinality,
    /// A nonce stays in the pool after it was used.
    ReuseNonce,
    /// Ended coordinations are kept.
    LeakCoordinations,
    /// A seal leaves out what the node committed to.
    SealForgetsCommits,
    /// Votes and commits go on after the seal.
    VoteAfterSeal,
    /// What the epoch before left an outpoint to binds nobody.
    IgnoreInherited,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::VoteForSpentCoin,
        Self::TrustAttestedParent,
        Self::IgnoreDeadline,
        Self::TakeLate,
        Self::VoteTwice,
        Self::VoteBeforeWrite,
        Self::SmallCertificate,
        Self::CommitWithoutRecord,
        Self::CommitAfterPromise,
        Self::PromiseHidesCommit,
        Self::PromiseWithoutRecord,
        Self::ReleaseByTimer,
        Self::ReleaseOnMajority,
        Self::IgnoreForced,
        Self::VoteWhilePending,
        Self::GiveUpRelease,
        Self::TrustOldStore,
        Self::FinalAfterPhase1,
        Self::ForgetProof,
        Self::NotifyBeforeWrite,
        Self::SilentRelease,
        Self::ReorganisationUndoesFinality,
        Self::ReuseNonce,
        Self::LeakCoordinations,
        Self::SealForgetsCommits,
        Self::VoteAfterSeal,
        Self::IgnoreInherited,
    ];

    /// Whether this bug is the one planted.
    pub fn is_on(self, planted: Option<Self>) -> bool {
        cfg!(feature = "simulation") && planted == Some(self)
    }
}

/// The bug that is planted, and what it holds back.
#[derive(Debug)]
pub(crate) struct Sabotage {
    bug: Option<Bug>,
    /// A write that comes after what depends on it.
    pub(crate) late: Option<ChangeSet>,
    /// Randomness that is used again.
    pub(crate) frozen: Option<ChaCha20Rng>,
}

impl Sabotage {
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        Self { bug, late: None, frozen: None }
    }

    /// Whether a rule is broken on purpose; never outside the simulation.
    pub(crate) fn planted(&self, bug: Bug) -> bool {
        bug.is_on(self.bug)
    }
}
