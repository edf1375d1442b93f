use super::{dkg::*, *};
use crate::{
    Epoch, FederationDocument,
    digest::{IdentityKey, secp},
    testing::{self, rng},
};
use bitcoin::secp256k1::Message;

#[test]
fn a_key_generation_gives_a_federation_that_verifies() {
    let world = testing::federation(4);
    let document = world.federation.document().clone();
    let id = document.roster.id();
    assert!(document.clone().verify(id).is_ok());

    let mut forged = document.clone();
    let second = forged.certificate.remove(&NodeId(2)).expect("was signed");
    assert!(forged.clone().verify(id).is_err());
    forged.certificate.insert(NodeId(2), second);
    forged.trial_signature = second;
    assert!(forged.verify(id).is_err());
    assert!(document.verify(crate::FederationId([0; 32])).is_err());
}

#[test]
fn an_equivocator_is_noticed_before_any_share_leaves() {
    let keys: Vec<_> = (1..=4).map(|i| IdentityKey::from_bytes(&[i; 32]).expect("valid")).collect();
    let roster = testing::roster(&keys);
    let mut machines: Vec<_> = keys
        .iter()
        .zip(1..)
        .map(|(key, seed)| Dkg::new(roster.clone(), Epoch(1), key.clone(), rng(seed)).expect("member"))
        .collect();
    let twin = Dkg::new(roster, Epoch(1), keys[3].clone(), rng(99)).expect("member");
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
    let roster = testing::roster(&keys);
    let make = |seed| Dkg::new(roster.clone(), Epoch(1), keys[0].clone(), rng(seed)).expect("member");
    assert_eq!(make(5).bundle_for(NodeId(2)), make(5).bundle_for(NodeId(2)));
    let mut other = Dkg::new(roster.clone(), Epoch(1), keys[1].clone(), rng(7)).expect("member");
    other.handle_bundle(NodeId(1), make(5).bundle_for(NodeId(2))).expect("first");
    other.handle_bundle(NodeId(1), make(5).bundle_for(NodeId(2))).expect("again");
    assert_eq!(
        other.handle_bundle(NodeId(1), make(6).bundle_for(NodeId(2))),
        Err(DkgError::Equivocation { culprit: NodeId(1) })
    );
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
    bad[0] = crate::SignatureShare([3; 32]);
    let record = world.account.record();
    assert_eq!(
        session.aggregate(&world.federation, record, &shares, &wallet),
        Err(AggregateError::Shares { culprits: vec![Culprit::Node(NodeId(2))] })
    );
    assert_eq!(
        session.aggregate(&world.federation, record, &good, &[crate::SignatureShare([3; 32])]),
        Err(AggregateError::Shares { culprits: vec![Culprit::Wallet] })
    );
}

#[test]
fn nonces_of_another_session_are_refused() {
    let world = testing::federation(4);
    let plan = world.plan(1);
    let (session, ..) = world.shares(&plan, |node| node.0 != 4).expect("signed");
    let share = &world.shares[0];
    let (nonces, _) = share.commit(&mut rng(77)).expect("commits");
    assert_eq!(share.sign(&world.federation, &session, vec![nonces]), Err(SigningError::Nonce));
}

#[test]
fn swapped_commitments_are_traced_to_their_owner() {
    let world = testing::federation(4);
    let plan = world.plan(1);
    let mut commitments = world.commitments(&plan, |node| node.0 != 4).1;
    let other = commitments[&NodeId(1)].clone();
    commitments.insert(NodeId(2), other);
    let wallet = commitments[&NodeId(1)].commitments.clone();
    let error = Session::new(&world.federation, &plan, &world.target(&plan), 1, &commitments, &wallet)
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
    let later = crate::vote::VoteTarget::new(plan.txid, later);
    let error =
        Session::new(&world.federation, &plan, &later, 1, &commitments, &wallet).expect_err("refused");
    assert_eq!(error, SigningError::Commitments { culprit: Culprit::Node(NodeId(1)) });
}

#[test]
fn the_federation_document_keeps_its_meaning_through_json() {
    let document = testing::federation(4).federation.document().clone();
    let json = serde_json::to_string(&document).expect("serialises");
    let back: FederationDocument = serde_json::from_str(&json).expect("parses");
    assert_eq!(back, document);
}
