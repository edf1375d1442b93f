//! The end of an epoch: what its nodes hand on to the next one, so that no final transaction is ever undone across
//! epochs.
//!
//! When the next epoch's key is certified, a node *seals* its epoch: it records durably that it will never again
//! vote, commit, promise or release a share in it, and then signs a [`Seal`] over everything that it has committed to
//! or knows to be final and that the chain has not buried yet. A member of the next epoch begins with the
//! [`Handover`] of any q seals for the same succession.
//!
//! # Why no final transaction is undone
//!
//! Let T be final in epoch e with certificate C. q nodes of e committed to C, each before it sealed (afterwards it
//! would have refused). Any q seals share q + q - n >= f + 1 nodes with them, one of them honest, whose seal has C or
//! a later certificate of T. So every honest node begins epoch e + 1 as if it had committed to that certificate
//! itself: it votes for nothing else on T's inputs and names the certificate in every promise. That is the state in
//! which the argument of [`crate::release`] has every honest node after a release that forces T, so it goes on as
//! within one epoch: rounds go on from epoch to epoch, and a later certificate on one of the inputs is for T too.
//! Nodes may begin with different sets of q seals. What is not in all of them was not final, and whatever a node
//! inherited beside is settled by the rules of release.
//!
//! One of two rival plans at most is ever opened: a node seals once, for one succession, and two sets of q seals
//! share an honest node.
//!
//! # Which certificate of a transaction is kept
//!
//! Two certificates of one transaction have an honest voter in common, whose rounds only ever rise, so all rounds of
//! the one are at least those of the other. The later one is kept. If T is final under the earlier one, every release
//! of an input since has been for T, so the later one is not void (V6) either.

use crate::{
    Federation, NodeId,
    account::AccountCertificate,
    digest::{IdentityKey, Purpose, Writer},
    finality::FinalityProof,
    proposal::Proposal,
    relay_policy::INPUTS_MAX,
    vote::{ApprovalCertificate, CertificateError},
};
use bitcoin::{TxOut, Txid, secp256k1::schnorr};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A transaction that a node has committed to, or knows to be final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedTransaction {
    /// The transaction.
    pub txid: Txid,
    /// What its wallet handed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposal: Option<Proposal>,
    /// The paying account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountCertificate>,
    /// The outputs that it spends, in input order, if the node knows them: anybody who inherits the commit sees by
    /// them when the chain spends the coins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spent: Vec<TxOut>,
    /// The latest certificate that the node committed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<ApprovalCertificate>,
    /// The proof that it is final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<FinalityProof>,
}

/// A node's word that it has ended an epoch, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Who.
    pub node: NodeId,
    /// The succession that it ended the epoch for.
    #[serde(with = "hex::serde")]
    pub succession: [u8; 32],
    /// Hash over its transactions.
    #[serde(with = "hex::serde")]
    pub transactions: [u8; 32],
    /// BIP340 signature of the node's identity key in the epoch that ends.
    pub signature: schnorr::Signature,
}

/// The hash over a node's transactions.
pub fn transactions_hash(transactions: &[SealedTransaction]) -> [u8; 32] {
    transactions
        .iter()
        .fold(Writer::new(Purpose::SealedTransactions), |writer, transaction| {
            writer.bytes(&serde_json::to_vec(transaction).expect("sealed transactions have string keys only"))
        })
        .finish()
}

impl Seal {
    /// Signs a seal. The caller has recorded durably that the epoch is over for it, or does so before the seal leaves.
    pub fn sign(
        federation: &Federation,
        node: NodeId,
        key: &IdentityKey,
        succession: [u8; 32],
        transactions: &[SealedTransaction],
    ) -> Self {
        let transactions = transactions_hash(transactions);
        let signature = key.sign(seal_digest(federation, &succession, &transactions));
        Self { node, succession, transactions, signature }
    }

    /// Whether the node it names, a member of the federation's present epoch, signed it for exactly these transactions.
    pub fn verify(&self, federation: &Federation, transactions: &[SealedTransaction]) -> bool {
        let digest = seal_digest(federation, &self.succession, &self.transactions);
        self.transactions == transactions_hash(transactions)
            && federation.verify(self.node, digest, &self.signature)
    }
}

fn seal_digest(federation: &Federation, succession: &[u8; 32], transactions: &[u8; 32]) -> [u8; 32] {
    Writer::signed(Purpose::Seal, federation.context()).fixed(succession).fixed(transactions).finish()
}

/// What a member of the next epoch begins with.
#[derive(Clone, Debug, Default)]
pub struct Handover {
    transactions: BTreeMap<Txid, SealedTransaction>,
}

impl Handover {
    /// Puts the seals of at least q nodes of the epoch that ends together. A node has one word on each transaction,
    /// its first. What does not verify is left out, and only that: an honest node's seal has everything that matters.
    ///
    /// # Errors
    /// Fewer than q of the seals hold for this succession.
    pub fn new(
        federation: &Federation,
        succession: [u8; 32],
        seals: &[(Seal, Vec<SealedTransaction>)],
    ) -> Result<Self, CertificateError> {
        let valid: BTreeMap<NodeId, &Vec<SealedTransaction>> = seals
            .iter()
            .filter(|(seal, sealed)| seal.succession == succession && seal.verify(federation, sealed))
            .map(|(seal, sealed)| (seal.node, sealed))
            .collect();
        let needed = federation.quorum().votes();
        if valid.len() < usize::from(needed) {
            return Err(CertificateError::TooFew { needed, found: valid.len() });
        }
        let mut candidates: BTreeMap<Txid, Vec<&SealedTransaction>> = BTreeMap::new();
        for sealed in valid.into_values() {
            // A node has one word on each transaction, however often it repeats itself.
            let words: BTreeMap<Txid, &SealedTransaction> =
                sealed.iter().rev().map(|transaction| (transaction.txid, transaction)).collect();
            for (txid, word) in words {
                candidates.entry(txid).or_default().push(word);
            }
        }
        let kept = candidates
            .into_iter()
            .filter_map(|(txid, sealed)| Some((txid, resolve(federation, txid, &sealed)?)));
        Ok(Self { transactions: kept.collect() })
    }

    /// The transactions, by id.
    pub fn transactions(&self) -> impl Iterator<Item = &SealedTransaction> {
        self.transactions.values()
    }
}

/// What holds of all that was sealed of one transaction: a proof, the latest certificate, and the payment as most
/// describe it. If it may be final, more honest nodes describe it than there are faulty ones.
fn resolve(federation: &Federation, txid: Txid, sealed: &[&SealedTransaction]) -> Option<SealedTransaction> {
    let proofs = sealed
        .iter()
        .filter_map(|transaction| transaction.proof.as_ref())
        .filter(|proof| proof.txid() == txid);
    let proof = proofs.into_iter().find(|proof| proof.verify(federation).is_ok()).cloned();
    let certified = |transaction: &&&SealedTransaction| {
        let of_this =
            transaction.certificate.as_ref().filter(|certificate| certificate.target.txid() == txid);
        of_this.is_some_and(|certificate| {
            transaction.is_described(certificate, federation) && certificate.verify(federation).is_ok()
        })
    };
    let certified: Vec<&&SealedTransaction> = sealed.iter().filter(certified).collect();
    let votes = |transaction: &SealedTransaction| {
        let same = |other: &&&&SealedTransaction| {
            other.proposal == transaction.proposal && other.account == transaction.account
        };
        certified.iter().filter(same).count()
    };
    let age_of = |transaction: &&&SealedTransaction| transaction.certificate.as_ref().map(age);
    let latest = certified.iter().copied().max_by_key(age_of);
    // The node with a later certificate than the others does not choose the description: each fits every
    // certificate of the transaction.
    let described = certified.iter().copied().max_by_key(|transaction| votes(transaction));
    if proof.is_none() && latest.is_none() {
        return None;
    }
    Some(SealedTransaction {
        txid,
        proposal: described.and_then(|transaction| transaction.proposal.clone()),
        account: described.and_then(|transaction| transaction.account.clone()),
        spent: most_said(certified.iter().map(|transaction| &transaction.spent)),
        certificate: latest.and_then(|transaction| transaction.certificate.clone()),
        proof,
    })
}

/// What most of those say that say anything.
fn most_said<'a>(all: impl Iterator<Item = &'a Vec<TxOut>>) -> Vec<TxOut> {
    let said: Vec<&Vec<TxOut>> = all.filter(|outputs| !outputs.is_empty()).collect();
    let votes = |outputs: &&&Vec<TxOut>| said.iter().filter(|other| *other == *outputs).count();
    said.iter().max_by_key(votes).map(|outputs| (*outputs).clone()).unwrap_or_default()
}

impl SealedTransaction {
    /// Whether it comes with the proposal that the certificate is about: with it, anybody who inherits the commit can
    /// finish the payment.
    fn is_described(&self, certificate: &ApprovalCertificate, federation: &Federation) -> bool {
        let inputs = certificate.target.inputs();
        let same = self.proposal.as_ref().is_some_and(|proposal| {
            let outpoints = proposal.outpoints();
            proposal.txid() == self.txid
                && outpoints.len() <= INPUTS_MAX
                && outpoints.len() == inputs.len()
                && outpoints.iter().all(|outpoint| inputs.contains_key(outpoint))
        });
        let authorised = match (&self.proposal, &self.account) {
            (Some(Proposal::Joint(joint)), Some(account)) => {
                account.verify(federation).is_ok_and(|account| joint.check(federation, &account).is_ok())
            }
            (Some(Proposal::Joint(_)), None) | (None, _) => false,
            (Some(Proposal::Sole { .. }), _) => true,
        };
        same && authorised
    }
}

/// Of two certificates of one transaction none of whose rounds is below the other's, the later one has the larger sum.
fn age(certificate: &ApprovalCertificate) -> u64 {
    certificate.target.inputs().values().map(|round| u64::from(round.0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Epoch, Round,
        testing::{self, World},
        vote::{SignedVote, Verdict, VoteTarget},
    };
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SUCCESSION: [u8; 32] = [5; 32];

    /// A payment of the world's account that is certified in these rounds.
    fn certified(world: &World, round: u32) -> SealedTransaction {
        let proposal = world.proposal();
        let outpoint = proposal.psbt.unsigned_tx.input[0].previous_output;
        let target = VoteTarget::new(
            proposal.psbt.unsigned_tx.compute_txid(),
            world.payment_target().custody(),
            [(outpoint, Round(round))],
        );
        let approvals = (1..).map(NodeId).zip(&world.keys).map(|(node, key)| {
            let context = world.federation.context();
            (node, SignedVote::sign(context, node, key, target.clone(), Verdict::Approve).signature)
        });
        let approvals = approvals.collect();
        SealedTransaction {
            txid: target.txid(),
            certificate: Some(ApprovalCertificate { target, approvals }),
            proposal: Some(Proposal::Joint(Box::new(proposal))),
            account: Some(world.certificate()),
            spent: Vec::new(),
            proof: None,
        }
    }

    fn sealed(
        world: &World,
        node: u16,
        transactions: Vec<SealedTransaction>,
    ) -> (Seal, Vec<SealedTransaction>) {
        let key = &world.keys[usize::from(node) - 1];
        (Seal::sign(&world.federation, NodeId(node), key, SUCCESSION, &transactions), transactions)
    }

    #[test]
    fn a_handover_needs_a_quorum_of_distinct_valid_seals() {
        let world = testing::federation(4);
        let good = |node| sealed(&world, node, vec![certified(&world, 0)]);
        let handover = |seals: &[_]| Handover::new(&world.federation, SUCCESSION, seals);
        assert_eq!(handover(&[good(1), good(2), good(3)]).expect("a quorum").transactions().count(), 1);
        let too_few = CertificateError::TooFew { needed: 3, found: 2 };
        assert_eq!(handover(&[good(1), good(2), good(2)]).expect_err("two nodes"), too_few);

        let mut of_another_plan = good(3);
        of_another_plan.0 =
            Seal::sign(&world.federation, NodeId(3), &world.keys[2], [6; 32], &of_another_plan.1);
        let mut cut = good(3);
        cut.1.clear();
        let mut stranger = good(3);
        stranger.0.node = NodeId(4);
        for bad in [of_another_plan, cut, stranger] {
            assert_eq!(handover(&[good(1), good(2), bad]).expect_err("two nodes"), too_few);
        }
    }

    #[test]
    fn what_does_not_verify_is_left_out_and_the_later_certificate_stays() {
        let world = testing::federation(4);
        let (early, late) = (certified(&world, 0), certified(&world, 2));
        let mut forged = certified(&world, 7);
        forged.certificate.as_mut().expect("certified").approvals.retain(|node, _| node.0 < 3);
        let mut bare = certified(&world, 9);
        bare.proposal = None;
        for order in [[&early, &late, &forged, &bare], [&bare, &forged, &late, &early]] {
            let [a, b, c, d] = order.map(Clone::clone);
            let seals =
                [sealed(&world, 1, vec![a]), sealed(&world, 2, vec![b]), sealed(&world, 4, vec![c, d])];
            let handover = Handover::new(&world.federation, SUCCESSION, &seals).expect("a quorum");
            let kept: Vec<_> = handover.transactions().collect();
            assert_eq!(kept, [&late]);
        }
    }

    #[test]
    fn the_layout_of_a_seals_signed_bytes_is_pinned() {
        let world = testing::federation(4);
        let (seal, transactions) = sealed(&world, 1, vec![certified(&world, 0)]);
        assert!(seal.verify(&world.federation, &transactions));
        let other = Seal { succession: [6; 32], ..seal.clone() };
        assert!(!other.verify(&world.federation, &transactions), "the succession is signed");
        let other = Seal { transactions: transactions_hash(&[]), ..seal };
        assert!(!other.verify(&world.federation, &[]), "and so are the transactions");
    }

    #[test]
    fn a_certificate_counts_only_with_what_finishes_its_payment() {
        let world = testing::federation(4);
        let good = certified(&world, 0);
        let outpoint =
            *good.certificate.as_ref().expect("certified").target.inputs().keys().next().expect("one");
        let sign = |inputs: &[bitcoin::OutPoint]| {
            let inputs = inputs.iter().map(|outpoint| (*outpoint, Round(0)));
            let target = VoteTarget::new(good.txid, world.payment_target().custody(), inputs);
            let approvals = (1..).map(NodeId).zip(&world.keys).map(|(node, key)| {
                let context = world.federation.context();
                (node, SignedVote::sign(context, node, key, target.clone(), Verdict::Approve).signature)
            });
            Some(ApprovalCertificate { approvals: approvals.collect(), target })
        };
        let elsewhere = bitcoin::OutPoint { vout: 7, ..outpoint };
        let Some(Proposal::Joint(mut other)) = good.proposal.clone() else { panic!("a joint payment") };
        other.psbt.unsigned_tx.output[0].value -= bitcoin::Amount::ONE_SAT;
        let other = crate::proposal::JointProposal::authorise(
            &world.federation,
            world.account.id(),
            &world.authorisation,
            other.psbt,
            testing::DEADLINE,
        );
        other.check(&world.federation, &world.account).expect("valid in itself");
        let bad = [
            SealedTransaction { certificate: sign(&[outpoint, elsewhere]), ..good.clone() },
            SealedTransaction { certificate: sign(&[elsewhere]), ..good.clone() },
            SealedTransaction { proposal: Some(Proposal::Joint(Box::new(other))), ..good.clone() },
            SealedTransaction { account: None, ..good.clone() },
        ];
        let kept = |one: &SealedTransaction| {
            let seals = [1, 2, 3].map(|node| sealed(&world, node, vec![one.clone()]));
            let handover = Handover::new(&world.federation, SUCCESSION, &seals).expect("a quorum");
            handover.transactions().cloned().collect::<Vec<_>>()
        };
        assert_eq!(kept(&good), std::slice::from_ref(&good));
        for bad in &bad {
            assert_eq!(kept(bad), []);
        }
    }

    #[test]
    fn of_several_descriptions_the_one_of_most_nodes_stays_however_often_one_repeats_itself() {
        let world = testing::federation(4);
        let spent = |sats| vec![TxOut { value: bitcoin::Amount::from_sat(sats), ..TxOut::NULL }];
        let good = SealedTransaction { spent: spent(90_500), ..certified(&world, 0) };
        // Both verify: a certificate of fewer nodes, and a proposal without something that no rule reads.
        let mut account = good.account.clone();
        account.as_mut().expect("certified").acceptances.remove(&NodeId(4));
        let mut proposal = good.proposal.clone();
        if let Some(Proposal::Joint(joint)) = &mut proposal {
            joint.psbt.inputs[0].tap_scripts.clear();
        }
        let alternatives = [
            SealedTransaction { account: account.clone(), ..good.clone() },
            SealedTransaction { proposal: proposal.clone(), ..good.clone() },
            SealedTransaction { account, proposal, spent: spent(1), ..good.clone() },
        ];
        let mut later = alternatives[2].clone();
        later.certificate = certified(&world, 2).certificate;
        let latest = later.certificate.clone();
        for liar in 1..=3 {
            let seals = [1, 2, 3].map(|node| {
                sealed(&world, node, vec![if node == liar { later.clone() } else { good.clone() }])
            });
            let handover = Handover::new(&world.federation, SUCCESSION, &seals).expect("a quorum");
            let expected = SealedTransaction { certificate: latest.clone(), ..good.clone() };
            assert_eq!(
                handover.transactions().collect::<Vec<_>>(),
                [&expected],
                "its certificate, not its words"
            );
        }
        for other in &alternatives {
            for liar in 1..=3 {
                let seals = [1, 2, 3].map(|node| {
                    let lies = vec![other.clone(); 5];
                    sealed(&world, node, if node == liar { lies } else { vec![good.clone()] })
                });
                let handover = Handover::new(&world.federation, SUCCESSION, &seals).expect("a quorum");
                assert_eq!(handover.transactions().collect::<Vec<_>>(), [&good]);
            }
        }
    }

    #[test]
    fn a_proof_stays_with_its_transaction_whatever_else_was_sealed() {
        let world = testing::federation(4);
        let proof = world.final_payment();
        let proven = |proof: &FinalityProof| SealedTransaction {
            certificate: None,
            proposal: None,
            account: None,
            proof: Some(proof.clone()),
            ..certified(&world, 0)
        };
        let mut forged = proof.clone();
        if let FinalityProof::Enforced { spent, .. } = &mut forged {
            spent.clear();
        }
        let elsewhere = SealedTransaction { txid: bitcoin::hashes::Hash::all_zeros(), ..proven(&proof) };
        let seals = [
            sealed(&world, 1, vec![elsewhere]),
            sealed(&world, 2, vec![proven(&forged)]),
            sealed(&world, 3, vec![proven(&proof)]),
        ];
        let handover = Handover::new(&world.federation, SUCCESSION, &seals).expect("a quorum");
        assert_eq!(handover.transactions().collect::<Vec<_>>(), [&proven(&proof)]);
    }

    #[test]
    fn who_says_nothing_has_no_vote_on_what_is_spent() {
        let spent = |sats| vec![TxOut { value: bitcoin::Amount::from_sat(sats), ..TxOut::NULL }];
        let (one, two, none) = (spent(1), spent(2), Vec::new());
        for order in [[&one, &none, &two, &none, &one, &none], [&none, &one, &one, &none, &none, &two]] {
            assert_eq!(most_said(order.into_iter()), one);
        }
        assert_eq!(most_said([&none, &none].into_iter()), none);
    }

    #[test]
    fn certificates_of_an_earlier_epoch_hold_in_the_next_one() {
        let world = testing::federation(4);
        let certificate = certified(&world, 3).certificate.expect("certified");
        let next = testing::succession(&world, &[NodeId(1)]);
        certificate.verify(&next.federation).expect("by the members of its own epoch");
        let late = certified(&next, Epoch(2).first_round().0).certificate.expect("certified");
        late.verify(&next.federation).expect("of the present epoch");
        assert_eq!(late.verify(&world.federation), Err(CertificateError::Unknown { epoch: Epoch(2) }));
        let stale = certified(&world, Epoch(2).first_round().0).certificate.expect("signed in the old epoch");
        assert!(stale.verify(&next.federation).is_err());
        let target = VoteTarget::new(
            stale.target.txid(),
            stale.target.custody(),
            [
                (bitcoin::OutPoint::null(), Round(0)),
                (*stale.target.inputs().keys().next().expect("one"), Epoch(2).first_round()),
            ],
        );
        let mixed = ApprovalCertificate { target, approvals: stale.approvals };
        assert_eq!(mixed.verify(&next.federation), Err(CertificateError::Epochs));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        /// Whatever q nodes committed to before they sealed is in the handover of any q seals.
        #[test]
        fn a_final_transaction_is_in_every_handover(
            committed in proptest::sample::subsequence((1..=7_u16).collect::<Vec<_>>(), 5),
            asked in proptest::sample::subsequence((1..=7_u16).collect::<Vec<_>>(), 5),
            liars in proptest::sample::subsequence((1..=7_u16).collect::<Vec<_>>(), 2),
        ) {
            let world = testing::federation(7);
            let (committed, liars): (BTreeSet<_>, BTreeSet<_>) =
                (committed.into_iter().collect(), liars.into_iter().collect());
            let seals: Vec<_> = asked
                .into_iter()
                .map(|node| {
                    let tells = committed.contains(&node) && !liars.contains(&node);
                    sealed(&world, node, if tells { vec![certified(&world, 0)] } else { Vec::new() })
                })
                .collect();
            let handover = Handover::new(&world.federation, SUCCESSION, &seals).expect("a quorum");
            prop_assert_eq!(handover.transactions().count(), 1);
        }
    }
}
