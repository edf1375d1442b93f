//! Release: how a stuck lock ends without ever undoing a final transaction (design, V5 and V6).
//!
//! A node that is shown why signs a [`SignedPromise`] for one outpoint and round r: it will neither vote nor commit
//! for that outpoint in rounds up to r, and the highest certificate it has committed to there is the one it names. q
//! promises are a [`ReleaseCertificate`]; its [`ReleaseCertificate::outcome`] says what may be voted for in round r +
//! 1.
//!
//! # Why no final transaction is ever released
//!
//! Let T be final with the certificate C, whose round for the outpoint is r. Then q nodes committed to C, each
//! durably before its share left, and shares under different certificates do not add up because nonce commitments are
//! signed for one target. Any q promises for a round r' >= r come from q nodes, and the two sets share q + q - n >= f
//! + 1 nodes, one of them honest. It committed before it promised (afterwards it would have refused), so its promise
//!   names C or a certificate of a higher round. By induction over the rounds, every certificate of a round above r is
//!   for T too: round r + 1 is forced to T by this argument, and so on. So the highest certificates named are always
//!   T's, C or a later one among them, and the outcome is [`Outcome::Forced`] to T.
//!
//! T may have several certificates of the same round for this outpoint, which differ in the rounds of other inputs;
//! each honest node names its latest. A release carries *every* one that is named in the highest round. If it carried
//! one of them at the choice of the node that assembles it, a faulty node could name an old one that is void, and hide
//! behind it the one that made T final.
//!
//! # When a forced transaction binds nobody (V6)
//!
//! A transaction has one certificate C for all its inputs. If the release of *another* of its inputs, for that
//! input's round in C or a later one, has an outcome other than T, then T was not final under C by the argument
//! above. [`ReleaseCertificate::voids`] says so, and the forced transaction binds nobody once *all* certificates that
//! the release carries are void. This is more general than showing a conflicting final transaction, and it also opens
//! circles in which each of several transactions is forced on one input and blocked on another, where no transaction
//! could ever become final.

use crate::{
    Federation, NodeId, Round,
    account::AccountRecord,
    digest::{self, Context, IdentityKey, Purpose, Writer},
    relay_policy::INPUTS_MAX,
    vote::{ApprovalCertificate, CertificateError, VoteTarget},
};
use bitcoin::{OutPoint, Txid, secp256k1::schnorr};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

/// A node's promise for one outpoint: no vote and no commit in rounds up to `round`.
///
/// Signed bytes: `tagged_hash("quorate/promise/2", magic(4) || federation(32) || epoch(u64) || txid(32) || vout(u32)
/// || round(u32) || committed(1) [|| committed target_hash(32)])`.
///
/// ```
/// use quorate::{Epoch, FederationId, NodeId, Round, digest::{Context, IdentityKey}, release::SignedPromise};
/// let context = Context { magic: [0xfa, 0xbf, 0xb5, 0xda], federation: FederationId([1; 32]), epoch: Epoch(1) };
/// let key = IdentityKey::from_bytes(&[7; 32])?;
/// let promise = SignedPromise::sign(&context, NodeId(1), &key, bitcoin::OutPoint::null(), Round(0), None);
/// assert_eq!(promise.round, Round(0));
/// # Ok::<(), bitcoin::secp256k1::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPromise {
    /// Who promises.
    pub node: NodeId,
    /// For which outpoint.
    pub outpoint: OutPoint,
    /// Up to which round.
    pub round: Round,
    /// What the certificate of the highest round that it committed to for this outpoint was for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<VoteTarget>,
    /// BIP340 signature of the node's identity key.
    pub signature: schnorr::Signature,
}

impl SignedPromise {
    /// Signs a promise. The caller has recorded durably that it left the round, or does so before the promise leaves.
    pub fn sign(
        context: &Context,
        node: NodeId,
        key: &IdentityKey,
        outpoint: OutPoint,
        round: Round,
        committed: Option<VoteTarget>,
    ) -> Self {
        let signature = key.sign(promise_digest(context, outpoint, round, committed.as_ref()));
        Self { node, outpoint, round, committed, signature }
    }

    /// Whether the node it names signed it, and what it says of its commit can be true.
    pub fn verify(&self, federation: &Federation) -> bool {
        let short = self.committed.as_ref().is_none_or(|target| target.inputs().len() <= INPUTS_MAX);
        let possible = short
            && !self.round.is_last()
            && self.committed_round().is_none_or(|round| round.is_some_and(|round| round <= self.round));
        let epoch = self.round.epoch();
        let context = federation.context_of(epoch);
        let digest = promise_digest(&context, self.outpoint, self.round, self.committed.as_ref());
        possible && federation.verify_in(epoch, self.node, digest, &self.signature)
    }

    /// The round of the outpoint in the named certificate; `Some(None)` if that certificate is not about this outpoint.
    fn committed_round(&self) -> Option<Option<Round>> {
        self.committed.as_ref().map(|target| target.inputs().get(&self.outpoint).copied())
    }

    /// Whether a commit to `target` by the same node contradicts this promise, whichever came first: the promise
    /// covers the commit's round, and names neither it nor a later one. Of an earlier epoch a node knows only what
    /// the seals of a quorum say, which may be without its own commit, so a commit contradicts promises of its own
    /// epoch only.
    pub fn contradicts_commit(&self, target: &VoteTarget) -> bool {
        let Some(round) = target.inputs().get(&self.outpoint) else { return false };
        if *round > self.round || round.epoch() != self.round.epoch() {
            return false;
        }
        match &self.committed {
            None => true,
            Some(named) => match named.inputs().get(&self.outpoint).map(|named_round| named_round.cmp(round))
            {
                Some(Ordering::Greater) => false,
                Some(Ordering::Equal) => named.txid() != target.txid(),
                Some(Ordering::Less) | None => true,
            },
        }
    }
}

fn promise_digest(
    context: &Context,
    outpoint: OutPoint,
    round: Round,
    committed: Option<&VoteTarget>,
) -> [u8; 32] {
    let writer = Writer::signed(Purpose::Promise, context)
        .fixed(outpoint.txid.as_ref())
        .u32(outpoint.vout)
        .u32(round.0);
    match committed {
        None => writer.u8(0),
        Some(target) => writer.u8(1).fixed(&target.hash().0),
    }
    .finish()
}

/// What one node said in a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// What it had committed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<VoteTarget>,
    /// Its signature.
    pub signature: schnorr::Signature,
}

/// The promises of at least q distinct nodes for one outpoint and round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseCertificate {
    /// The outpoint.
    pub outpoint: OutPoint,
    /// The round that is over.
    pub round: Round,
    /// The promises.
    pub promises: BTreeMap<NodeId, Promise>,
    /// Every certificate of the highest round that the promises name, in the order of their targets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub highest: Vec<ApprovalCertificate>,
}

/// What may be voted for in the round after a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Anything: no transaction can have become final in this round or before.
    Free,
    /// Only this transaction, which may be final under any of these targets, unless other inputs show that it is
    /// under none.
    Forced(Vec<VoteTarget>),
}

impl ReleaseCertificate {
    /// Puts promises together. Those of other outpoints or rounds are left out.
    pub fn assemble(
        outpoint: OutPoint,
        round: Round,
        promises: &BTreeMap<NodeId, SignedPromise>,
        certificates: &[ApprovalCertificate],
    ) -> Self {
        let of_this =
            promises.iter().filter(|(_, promise)| promise.outpoint == outpoint && promise.round == round);
        let promises: BTreeMap<_, _> = of_this
            .map(|(node, promise)| {
                (*node, Promise { committed: promise.committed.clone(), signature: promise.signature })
            })
            .collect();
        let mut named = highest_targets(outpoint, promises.values());
        let highest = std::mem::take(&mut named)
            .into_iter()
            .filter_map(|target| {
                certificates.iter().find(|certificate| certificate.target == *target).cloned()
            })
            .collect();
        Self { outpoint, round, promises, highest }
    }

    /// Checks that q distinct members promised, and that every certificate of the highest round they name is there.
    ///
    /// # Errors
    /// The certificate does not hold; its sender is at fault.
    pub fn verify(&self, federation: &Federation) -> Result<(), ReleaseError> {
        let needed = federation.quorum().votes();
        if self.promises.len() < usize::from(needed) {
            return Err(CertificateError::TooFew { needed, found: self.promises.len() }.into());
        }
        for signed in self.signed_promises() {
            if !signed.verify(federation) {
                return Err(CertificateError::Signature { node: signed.node }.into());
            }
        }
        let named = highest_targets(self.outpoint, self.promises.values());
        if !named.into_iter().eq(self.highest.iter().map(|certificate| &certificate.target)) {
            return Err(ReleaseError::Highest { outpoint: self.outpoint });
        }
        Ok(self.highest.iter().try_for_each(|certificate| certificate.verify(federation))?)
    }

    /// The promises as their nodes signed them.
    pub fn signed_promises(&self) -> impl Iterator<Item = SignedPromise> + '_ {
        self.promises.iter().map(|(node, promise)| SignedPromise {
            node: *node,
            outpoint: self.outpoint,
            round: self.round,
            committed: promise.committed.clone(),
            signature: promise.signature,
        })
    }

    /// What may be voted for in the next round. Call [`ReleaseCertificate::verify`] first.
    pub fn outcome(&self) -> Outcome {
        if self.highest.is_empty() {
            return Outcome::Free;
        }
        Outcome::Forced(self.highest.iter().map(|certificate| certificate.target.clone()).collect())
    }

    /// The transaction that alone may be voted for, if there is one.
    pub fn forced_txid(&self) -> Option<Txid> {
        self.highest.first().map(|certificate| certificate.target.txid())
    }

    /// Rule V6: whether this release shows that the transaction of `target` did not become final under that target's
    /// rounds.
    pub fn voids(&self, target: &VoteTarget) -> bool {
        let reached = target.inputs().get(&self.outpoint).is_some_and(|round| *round <= self.round);
        reached && self.forced_txid() != Some(target.txid())
    }
}

/// The distinct targets that promises name in the highest round of the outpoint.
fn highest_targets<'a>(
    outpoint: OutPoint,
    promises: impl Iterator<Item = &'a Promise>,
) -> BTreeSet<&'a VoteTarget> {
    let mut top = None;
    let mut targets = BTreeSet::new();
    for target in promises.filter_map(|promise| promise.committed.as_ref()) {
        let Some(round) = target.inputs().get(&outpoint).copied() else { continue };
        if top < Some(round) {
            targets.clear();
            top = Some(round);
        }
        if top == Some(round) {
            targets.insert(target);
        }
    }
    targets
}

/// An owner's wish that a payment of a joint account should not happen, signed by the account's authorisation key.
///
/// It frees the inputs unless the payment may already be final; then the payment goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCancel {
    /// The transaction.
    pub txid: Txid,
    /// Signature over network, federation, the epoch of the federation key, and txid.
    pub signature: schnorr::Signature,
}

impl SignedCancel {
    /// Signs the wish.
    pub fn sign(federation: &Federation, key: &IdentityKey, txid: Txid) -> Self {
        Self { txid, signature: key.sign(cancel_digest(federation, txid)) }
    }

    /// Whether the account's owner signed it.
    pub fn verify(&self, federation: &Federation, account: &AccountRecord) -> bool {
        digest::verify(&account.authorisation_key, cancel_digest(federation, self.txid), &self.signature)
    }
}

fn cancel_digest(federation: &Federation, txid: Txid) -> [u8; 32] {
    Writer::signed(Purpose::Cancel, &federation.key_context()).fixed(txid.as_ref()).finish()
}

/// Why a release certificate does not hold. Its sender is at fault; another copy may be good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Too few promises, or one that does not verify; or so for the certificate inside.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The certificate inside is missing, or not the one of the highest round that the promises name.
    #[error("the release of {outpoint} does not come with the highest certificate that its promises name")]
    Highest {
        /// The outpoint.
        outpoint: OutPoint,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Epoch, testing,
        vote::{SignedVote, Verdict},
    };
    use bitcoin::hashes::Hash as _;
    use proptest::prelude::*;

    fn outpoint(vout: u32) -> OutPoint {
        OutPoint { txid: Txid::all_zeros(), vout }
    }

    fn target(txid: u8, inputs: &[(u32, u32)]) -> VoteTarget {
        let inputs = inputs.iter().map(|(vout, round)| (outpoint(*vout), Round(*round)));
        VoteTarget::new(Txid::from_byte_array([txid; 32]), testing::custody(), inputs)
    }

    fn approved(world: &testing::World, target: &VoteTarget) -> ApprovalCertificate {
        let context = world.federation.context();
        let approvals = (1..=3).map(|node: u16| {
            let key = &world.keys[usize::from(node) - 1];
            (
                NodeId(node),
                SignedVote::sign(context, NodeId(node), key, target.clone(), Verdict::Approve).signature,
            )
        });
        ApprovalCertificate { target: target.clone(), approvals: approvals.collect() }
    }

    fn promise(
        world: &testing::World,
        node: u16,
        round: u32,
        committed: Option<&VoteTarget>,
    ) -> SignedPromise {
        let key = &world.keys[usize::from(node) - 1];
        let context = world.federation.context();
        SignedPromise::sign(context, NodeId(node), key, outpoint(0), Round(round), committed.cloned())
    }

    fn release(world: &testing::World, round: u32, committed: &[Option<&VoteTarget>]) -> ReleaseCertificate {
        let promises = committed
            .iter()
            .zip(1..)
            .map(|(target, node)| (NodeId(node), promise(world, node, round, *target)));
        let certificates: Vec<_> = committed.iter().flatten().map(|target| approved(world, target)).collect();
        ReleaseCertificate::assemble(outpoint(0), Round(round), &promises.collect(), &certificates)
    }

    #[test]
    fn q_empty_promises_free_the_outpoint_and_fewer_do_not() {
        let world = testing::federation(4);
        let free = release(&world, 0, &[None, None, None]);
        assert_eq!(free.verify(&world.federation), Ok(()));
        assert_eq!(free.outcome(), Outcome::Free);
        assert!(release(&world, 0, &[None, None]).verify(&world.federation).is_err());
        let mut other = free;
        other.round = Round(1);
        assert!(other.verify(&world.federation).is_err(), "promises of one round do not release another");
    }

    #[test]
    fn the_highest_commit_named_is_forced_and_cannot_be_left_out() {
        let world = testing::federation(4);
        let (low, high) = (target(1, &[(0, 0), (1, 0)]), target(2, &[(0, 1)]));
        let forced = release(&world, 1, &[Some(&low), Some(&high), None]);
        assert_eq!(forced.verify(&world.federation), Ok(()));
        assert_eq!(forced.outcome(), Outcome::Forced(vec![high]));
        let mut hidden = forced.clone();
        hidden.highest.clear();
        assert!(hidden.verify(&world.federation).is_err());
        let mut lower = forced.clone();
        lower.highest = vec![approved(&world, &low)];
        assert!(lower.verify(&world.federation).is_err());
        let mut stripped = forced;
        if let Some(promise) = stripped.promises.get_mut(&NodeId(2)) {
            promise.committed = None;
        }
        assert!(stripped.verify(&world.federation).is_err(), "what a promise names is signed");
    }

    #[test]
    fn every_certificate_of_the_highest_round_is_carried() {
        let world = testing::federation(4);
        let (old, new) = (target(1, &[(0, 0), (1, 0)]), target(1, &[(0, 0), (1, 1)]));
        let both = release(&world, 0, &[Some(&old), Some(&new), None]);
        assert_eq!(both.verify(&world.federation), Ok(()));
        assert_eq!(both.outcome(), Outcome::Forced(vec![old.clone(), new.clone()]));
        for kept in [&old, &new] {
            let mut chosen = both.clone();
            chosen.highest.retain(|certificate| certificate.target == *kept);
            assert!(chosen.verify(&world.federation).is_err(), "none may be left out");
        }
    }

    #[test]
    fn a_promise_cannot_name_a_commit_of_a_later_round_or_another_outpoint() {
        let world = testing::federation(4);
        assert!(!promise(&world, 1, 0, Some(&target(1, &[(0, 1)]))).verify(&world.federation));
        assert!(!promise(&world, 1, 0, Some(&target(1, &[(7, 0)]))).verify(&world.federation));
        assert!(promise(&world, 1, 0, Some(&target(1, &[(0, 0)]))).verify(&world.federation));
    }

    #[test]
    fn a_promise_contradicts_the_commits_that_it_denies_and_no_others() {
        let world = testing::federation(4);
        let contradicts = |named: Option<&VoteTarget>, commit: &VoteTarget| {
            promise(&world, 1, 2, named).contradicts_commit(commit)
        };
        let of = |txid, round| target(txid, &[(0, round)]);
        assert!(contradicts(None, &of(1, 2)));
        assert!(!contradicts(None, &of(1, 3)), "a later round");
        assert!(!contradicts(None, &target(1, &[(1, 0)])), "another outpoint");
        let named = of(1, 1);
        assert!(!contradicts(Some(&named), &of(2, 0)), "an earlier round than the one it names");
        assert!(!contradicts(Some(&named), &of(1, 1)), "the one it names");
        assert!(contradicts(Some(&named), &of(2, 1)), "another transaction of that round");
        assert!(contradicts(Some(&named), &of(1, 2)), "a later round than the one it names");
        let later = Epoch(2).first_round();
        let of_next_epoch = SignedPromise { round: Round(later.0 + 1), ..promise(&world, 1, 2, None) };
        assert!(!of_next_epoch.contradicts_commit(&of(1, 2)), "an earlier epoch");
        assert!(of_next_epoch.contradicts_commit(&of(1, later.0)));
    }

    #[test]
    fn promises_of_other_outpoints_and_rounds_are_left_out() {
        let world = testing::federation(4);
        let mut other_outpoint = promise(&world, 2, 1, None);
        other_outpoint.outpoint = outpoint(7);
        let promises = [promise(&world, 1, 1, None), other_outpoint, promise(&world, 3, 0, None)];
        let promises = promises.into_iter().map(|promise| (promise.node, promise)).collect();
        let release = ReleaseCertificate::assemble(outpoint(0), Round(1), &promises, &[]);
        assert_eq!(release.promises.into_keys().collect::<Vec<_>>(), [NodeId(1)]);
    }

    #[test]
    fn only_a_release_that_reached_the_targets_round_voids_it() {
        let world = testing::federation(4);
        let free = release(&world, 1, &[None, None, None]);
        assert!(free.voids(&target(1, &[(0, 1), (1, 0)])));
        assert!(free.voids(&target(1, &[(0, 0), (1, 5)])));
        assert!(!free.voids(&target(1, &[(0, 2), (1, 0)])), "the target is of a later round");
        assert!(!free.voids(&target(1, &[(1, 0)])), "another outpoint");
        let own = target(1, &[(0, 1)]);
        assert!(!release(&world, 1, &[Some(&own), None, None]).voids(&own), "it is forced here as well");
    }

    #[test]
    fn a_cancel_is_of_one_transaction_and_one_owner() {
        let world = testing::federation(4);
        let txid = Txid::from_byte_array([1; 32]);
        let cancel = SignedCancel::sign(&world.federation, &world.authorisation, txid);
        assert!(cancel.verify(&world.federation, world.account.record()));
        let other = SignedCancel { txid: Txid::all_zeros(), ..cancel };
        assert!(!other.verify(&world.federation, world.account.record()));
        let stranger = SignedCancel::sign(&world.federation, &world.keys[0], txid);
        assert!(!stranger.verify(&world.federation, world.account.record()));
    }

    proptest! {
        /// What an honest node does, in any order, never contradicts itself: it commits only in rounds above its last
        /// promise, and each promise names its highest commit.
        #[test]
        fn an_honest_history_contradicts_itself_nowhere(steps in prop::collection::vec((any::<bool>(), 0_u8..3), 1..12)) {
            let world = testing::federation(4);
            let mut round = 0;
            let mut highest: Option<VoteTarget> = None;
            let (mut commits, mut promises) = (Vec::new(), Vec::new());
            let mut in_round: Option<u8> = None;
            for (commit, txid) in steps {
                if commit {
                    // Two certificates of one round never conflict, so all commits of a round are for one transaction.
                    let target = target(*in_round.get_or_insert(txid), &[(0, round)]);
                    highest = Some(target.clone());
                    commits.push(target);
                } else {
                    promises.push(promise(&world, 1, round, highest.as_ref()));
                    round += 1;
                    in_round = None;
                }
            }
            for promise in &promises {
                prop_assert!(promise.verify(&world.federation));
                for commit in &commits {
                    prop_assert!(!promise.contradicts_commit(commit));
                }
            }
        }
    }
}
