use super::{dkg::*, *};
use crate::NodeId;
use crate::{
    FederationDocument, SignatureShare,
    curve::secp,
    digest::IdentityKey,
    federation::SuccessionPlan,
    testing::{self, rng},
};
use bitcoin::secp256k1::Message;
use std::collections::BTreeMap;

#[test]
fn a_key_generation_gives_a_federation_that_verifies() {
    let world = testing::federation(4);
    let document = world.federation.document().clone();
    let id = document.roster.id();
    assert!(document.clone().verify(id).is_ok());

    let mut forged = document.clone();
    let second = forged.key.certificate.remove(&NodeId(2)).expect("was signed");
    assert!(forged.clone().verify(id).is_err());
    forged.key.certificate.insert(NodeId(2), second);
    forged.key.trial_signature = second;
    assert!(forged.verify(id).is_err());
    assert!(document.verify(crate::FederationId([0; 32])).is_err());
}

#[test]
fn an_equivocator_is_noticed_before_any_share_leaves() {
    let keys: Vec<_> = (1..=4).map(|i| IdentityKey::from_bytes(&[i; 32]).expect("valid")).collect();
    let ceremony = Ceremony::generation(&testing::roster(&keys)).expect("well formed");
    let mut machines: Vec<_> = keys
        .iter()
        .zip(1..)
        .map(|(key, seed)| Dkg::new(ceremony.clone(), key.clone(), None, rng(seed)).expect("member"))
        .collect();
    let twin = Dkg::new(ceremony, keys[3].clone(), None, rng(99)).expect("member");
    let first: Vec<_> = machines.iter().map(|machine| machine.bundle_for(machine.me())).collect();
    for receiver in 0..3 {
        for sender in (0..4).filter(|sender| *sender != receiver) {
            let lie = sender == 3 && receiver == 0;
            let bundle = if lie { twin.bundle_for(NodeId(1)) } else { first[sender].clone() };
            let from = machines[sender].me();
            machines[receiver].handle_bundle(from, bundle).expect("step 1 looks fine");
        }
    }
    let echo = machines[1].bundle_for(NodeId(1));
    assert!(echo.share.is_none());
    assert_eq!(machines[0].handle_bundle(NodeId(2), echo), Err(DkgError::Split { peer: NodeId(2) }));
    assert!(machines[0].bundle_for(NodeId(3)).share.is_none());
}

#[test]
fn a_restarted_node_says_the_same_again() {
    let keys: Vec<_> = (1..=4).map(|i| IdentityKey::from_bytes(&[i; 32]).expect("valid")).collect();
    let ceremony = Ceremony::generation(&testing::roster(&keys)).expect("well formed");
    let make = |seed| Dkg::new(ceremony.clone(), keys[0].clone(), None, rng(seed)).expect("member");
    assert_eq!(make(5).bundle_for(NodeId(2)), make(5).bundle_for(NodeId(2)));
    let mut other = Dkg::new(ceremony.clone(), keys[1].clone(), None, rng(7)).expect("member");
    other.handle_bundle(NodeId(1), make(5).bundle_for(NodeId(2))).expect("first");
    other.handle_bundle(NodeId(1), make(5).bundle_for(NodeId(2))).expect("again");
    assert_eq!(
        other.handle_bundle(NodeId(1), make(6).bundle_for(NodeId(2))),
        Err(DkgError::Equivocation { culprit: NodeId(1) })
    );
}

#[test]
fn a_refresh_changes_every_share_and_signs_for_the_same_coins() {
    let before = testing::federation(4);
    let after = testing::succession(&before, &[]);
    assert_eq!(before.federation.group_key(), after.federation.group_key());
    assert_eq!(before.account.descriptor(), after.account.descriptor());
    for (old, new) in before.shares.iter().zip(&after.shares) {
        assert!(old.fits(before.federation.key()) && new.fits(after.federation.key()));
        assert!(!old.fits(after.federation.key()) && !new.fits(before.federation.key()));
    }
    let plan = after.plan(1);
    assert_eq!(plan.inputs, before.plan(1).inputs);
    for left_out in 1..=4 {
        after.sign(&plan, |node| node.0 != left_out).expect("three refreshed shares");
    }
    let mut mixed = testing::succession(&before, &[]);
    mixed.shares[0] = testing::copy_shares(&before.shares).remove(0);
    let error = mixed.sign(&plan, |node| node.0 != 4).expect_err("a share of the epoch before is of no use");
    assert!(error.contains("node 1"), "{error}");
}

#[test]
fn a_bad_refreshing_share_names_its_sender() {
    let world = testing::federation(4);
    let members = world.federation.members().to_vec();
    let plan = SuccessionPlan { epoch: world.federation.epoch().next(), attempt: 1, members };
    let ceremony = Ceremony::refresh(&world.federation, &plan).expect("follows");
    let start = |index: usize, seed| {
        let share = testing::copy_shares(&world.shares).remove(index);
        Dkg::new(ceremony.clone(), world.keys[index].clone(), Some(share), rng(seed)).expect("a member")
    };
    let mut machines: Vec<_> = (0..4).map(|index| start(index, 1 + index as u64)).collect();
    for _echoes in 0..2 {
        for to in 0..4 {
            for from in (0..4).filter(|from| *from != to) {
                let mut bundle = machines[from].bundle_for(machines[to].me());
                bundle.share = None;
                let peer = machines[from].me();
                machines[to].handle_bundle(peer, bundle).expect("honest");
            }
        }
    }
    // Node 3 gives node 1 what was meant for node 2.
    for from in [1, 2, 3] {
        let recipient = if from == 2 { NodeId(2) } else { NodeId(1) };
        let bundle = machines[from].bundle_for(recipient);
        let peer = machines[from].me();
        let taken = machines[0].handle_bundle(peer, bundle);
        let last = from == 3;
        assert_eq!(taken.is_err(), last);
        if last {
            assert_eq!(taken, Err(DkgError::Share { culprit: NodeId(3) }));
        }
    }
}

#[test]
fn a_refresh_needs_the_share_of_the_epoch_before() {
    let world = testing::federation(4);
    let members = world.federation.members().to_vec();
    let plan = SuccessionPlan { epoch: world.federation.epoch().next(), attempt: 1, members };
    let ceremony = Ceremony::refresh(&world.federation, &plan).expect("follows");
    let wrong = NodeShare::from_bytes(NodeId(1), &[9; 32]);
    for share in [None, wrong] {
        let started = Dkg::new(ceremony.clone(), world.keys[0].clone(), share, rng(1));
        assert_eq!(started.map(|_| ()).expect_err("no such share"), DkgError::Parameters);
    }
}

#[test]
fn a_lost_share_is_repaired_and_a_lying_helper_is_noticed() {
    let world = testing::federation(7);
    let (key, quorum) = (world.federation.key(), world.federation.quorum());
    let session = RepairSession {
        epoch: world.federation.epoch(),
        number: 1,
        participant: NodeId(3),
        helpers: [1, 2, 4, 6, 7].into_iter().map(NodeId).collect(),
    };
    let helper = |node: &NodeId| {
        let share = &world.shares[usize::from(node.0) - 1];
        RepairHelper::new(share, key, quorum, session.clone(), &mut rng(u64::from(node.0))).expect("a helper")
    };
    let helpers: Vec<_> = session.helpers.iter().map(helper).collect();
    let sums: BTreeMap<_, _> = session
        .helpers
        .iter()
        .map(|node| {
            let pieces = session.helpers.iter().zip(&helpers);
            let pieces = pieces.map(|(from, one)| (*from, one.part_for(*node).expect("a piece").clone()));
            (*node, helpers[0].sum(&pieces.collect()).expect("adds up"))
        })
        .collect();
    assert_eq!(format!("{:?}", sums[&NodeId(1)]), "RepairPart(..)");
    let repaired = finish_repair(&session, &sums, key, quorum).expect("the share");
    assert_eq!(*repaired.to_bytes(), *world.shares[2].to_bytes());

    let mut lie = sums.clone();
    lie.insert(NodeId(1), sums[&NodeId(2)].clone());
    assert!(finish_repair(&session, &lie, key, quorum).is_none());
    lie.remove(&NodeId(1));
    assert!(finish_repair(&session, &lie, key, quorum).is_none());

    let unsound = [
        RepairSession { epoch: world.federation.epoch().next(), ..session.clone() },
        RepairSession { participant: NodeId(1), ..session.clone() },
        RepairSession { participant: NodeId(8), ..session.clone() },
        RepairSession { helpers: [1, 2, 4, 6].into_iter().map(NodeId).collect(), ..session.clone() },
        RepairSession { helpers: [1, 2, 4, 6, 8].into_iter().map(NodeId).collect(), ..session },
    ];
    for session in unsound {
        assert!(RepairHelper::new(&world.shares[0], key, quorum, session, &mut rng(1)).is_none());
    }
}

#[test]
fn an_epoch_follows_only_with_a_quorum_and_the_same_key() {
    let world = testing::federation(7);
    let next = testing::succession(&world, &[NodeId(2)]);
    let document = next.federation.document().clone();
    let id = document.roster.id();
    let verified = document.clone().verify(id).expect("verifies from the pinned id on");
    assert_eq!(verified.epoch(), crate::Epoch(2));
    assert_eq!(verified.at(crate::Epoch(1)).expect("known").members(), world.federation.members());
    assert_ne!(verified.members()[1], world.federation.members()[1]);

    let refused = |change: &dyn Fn(&mut crate::federation::Succession)| {
        let mut forged = document.clone();
        change(&mut forged.successions[0]);
        forged.verify(id).expect_err("refused")
    };
    refused(&|one| {
        one.approvals.retain(|node, _| node.0 > 3);
    });
    refused(&|one| one.plan.attempt += 1);
    refused(&|one| one.plan.epoch = crate::Epoch(3));
    refused(&|one| one.plan.members[0].tls_key = [1; 32]);
    refused(&|one| {
        one.plan.members.pop();
    });
    refused(&|one| one.key.key.group_key = world.federation.key().verifying_shares[&NodeId(1)]);
    refused(&|one| {
        one.key.certificate.remove(&NodeId(2));
    });
    let other = testing::succession(&world, &[NodeId(2), NodeId(3)]);
    let two_new = other.federation.document().clone().successions.remove(0);
    let members = |one: &mut crate::federation::Succession| one.plan.members = two_new.plan.members.clone();
    refused(&members);
}

#[test]
fn every_quorum_with_the_wallet_signs_and_fewer_do_not() {
    let world = testing::federation(4);
    let plan = world.plan(2);
    for left_out in 1..=4 {
        let signatures = world.sign(&plan, |node| node.0 != left_out).expect("three honest nodes");
        assert_eq!(signatures.len(), 2);
        for (input, signature) in plan.inputs.iter().zip(signatures) {
            let message = Message::from_digest(input.sighash);
            secp().verify_schnorr(&signature, &message, &input.output_key).expect("a BIP340 signature");
        }
    }
    let error = world.sign(&plan, |node| node.0 > 2).expect_err("two nodes are not enough");
    assert!(error.contains("exactly 3 nodes"), "{error}");
}

#[test]
fn a_garbage_share_names_its_node_and_a_garbage_wallet_names_the_wallet() {
    let world = testing::federation(4);
    let plan = world.plan(1);
    let (session, mut shares, wallet) = world.shares(&plan, |node| node.0 != 4).expect("signed");
    let good = shares.clone();
    let bad = shares.get_mut(&NodeId(2)).expect("a signer");
    bad[0] = SignatureShare([3; 32]);
    let record = world.account.record();
    assert_eq!(
        session.aggregate(&world.federation, record, &shares, &wallet),
        Err(AggregateError::Shares { culprits: vec![Culprit::Node(NodeId(2))] })
    );
    assert_eq!(
        session.aggregate(&world.federation, record, &good, &[SignatureShare([3; 32])]),
        Err(AggregateError::Shares { culprits: vec![Culprit::Wallet] })
    );
}

#[test]
fn a_wallets_signature_is_over_as_many_shares_as_inputs_and_its_own() {
    let world = testing::federation(4);
    let (session, _, shares) = world.shares(&world.plan(2), |node| node.0 != 4).expect("signed");
    let commitments = Vec::new();
    let sent = |shares: &[SignatureShare], key: &IdentityKey| {
        let signature = session.sign_shares(&world.federation, key, shares);
        let wallet = WalletSignature { commitments: commitments.clone(), shares: shares.to_vec(), signature };
        session.verify_wallet(&world.federation, world.account.record(), &wallet)
    };
    assert!(sent(&shares, &world.authorisation));
    assert!(!sent(&shares, &world.keys[0]), "another key");
    assert!(!sent(&shares[..1], &world.authorisation), "too few");
}

#[test]
fn commitments_are_curve_points() {
    let world = testing::federation(4);
    let (_, nodes) = world.commitments(&world.plan(2), |node| node.0 == 1);
    let mut commitments = nodes[&NodeId(1)].clone();
    assert!(commitments.is_well_formed());
    commitments.commitments[1] = crate::NonceCommitment([7; 66]);
    assert!(!commitments.is_well_formed());
}

#[test]
fn nonces_of_another_session_are_refused() {
    let world = testing::federation(4);
    let plan = world.plan(1);
    let (session, ..) = world.shares(&plan, |node| node.0 != 4).expect("signed");
    let share = &world.shares[0];
    let (nonces, _) = share.commit(&mut rng(77)).expect("commits");
    assert_eq!(share.sign(&session, vec![nonces]), Err(SigningError::Nonce));
}

#[test]
fn swapped_commitments_are_traced_to_their_owner() {
    let world = testing::federation(4);
    let plan = world.plan(1);
    let mut commitments = world.commitments(&plan, |node| node.0 != 4).1;
    let other = commitments[&NodeId(1)].clone();
    commitments.insert(NodeId(2), other);
    let wallet = commitments[&NodeId(1)].commitments.clone();
    let error = SigningSession::new(&world.federation, &plan, &world.target(&plan), 1, &commitments, &wallet)
        .expect_err("refused");
    assert_eq!(error, SigningError::Commitments { culprit: Culprit::Node(NodeId(2)) });
}

#[test]
fn commitments_of_one_round_are_refused_in_another() {
    let world = testing::federation(4);
    let plan = world.plan(1);
    let commitments = world.commitments(&plan, |node| node.0 != 4).1;
    let wallet = commitments[&NodeId(1)].commitments.clone();
    let later =
        world.target(&plan).inputs().keys().map(|outpoint| (*outpoint, crate::Round(1))).collect::<Vec<_>>();
    let later = crate::vote::VoteTarget::new(plan.txid, testing::custody(), later);
    let error =
        SigningSession::new(&world.federation, &plan, &later, 1, &commitments, &wallet).expect_err("refused");
    assert_eq!(error, SigningError::Commitments { culprit: Culprit::Node(NodeId(1)) });
}

#[test]
fn the_federation_document_keeps_its_meaning_through_json() {
    let document = testing::federation(4).federation.document().clone();
    let json = serde_json::to_string(&document).expect("serialises");
    let back: FederationDocument = serde_json::from_str(&json).expect("parses");
    assert_eq!(back, document);
}
