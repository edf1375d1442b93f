//! Joint payments over four nodes: signing, and what happens to nodes that do not do their part.

use crate::{
    cluster::Cluster,
    testkit::{sole, spend},
};
use quorate_protocol::{
    NodeId,
    evidence::EvidenceKind,
    finality::FinalityKind,
    proposal::Proposal,
    testing::DEADLINE,
    wire::{
        ClientMessage, CommitReply, ErrorCode, Fault, PeerReply, ServerMessage, TransactionStatus,
        VotingReply, WireError,
    },
};
use std::time::Duration;

/// The wallet has submitted its payment to node 1, and is asked to sign.
fn submitted() -> (Cluster, ServerMessage) {
    let mut cluster = Cluster::voting();
    cluster.coins();
    let proposal = Proposal::Joint(Box::new(cluster.world.proposal()));
    let account = Some(cluster.world.certificate());
    cluster.say(NodeId(1), ClientMessage::TransactionBroadcast { proposal, account });
    let asked = sign_request(&mut cluster);
    (cluster, asked)
}

fn sign_request(cluster: &mut Cluster) -> ServerMessage {
    let asked = |(_, message): &(NodeId, ServerMessage)| matches!(message, ServerMessage::SignRequest { .. });
    let at = cluster.told.iter().position(asked).expect("the wallet is asked to sign");
    cluster.told.remove(at).1
}

fn attempt_of(asked: &ServerMessage) -> (u32, Vec<u16>) {
    let ServerMessage::SignRequest { attempt, nodes, .. } = asked else { panic!("{asked:?}") };
    (*attempt, nodes.keys().map(|node| node.0).collect())
}

fn is_final(cluster: &Cluster) -> bool {
    let txid = cluster.world.proposal().psbt.unsigned_tx.compute_txid();
    cluster.nodes.iter().all(|(id, node)| cluster.silent.contains(id) || node.machine.knows_final(&txid))
}

#[test]
fn a_joint_payment_is_final_everywhere_with_q_shares_and_the_wallets() {
    let (mut cluster, asked) = submitted();
    let (attempt, signers) = attempt_of(&asked);
    assert_eq!((attempt, signers.len()), (1, 3), "exactly q nodes sign");
    let txid = cluster.world.proposal().psbt.unsigned_tx.compute_txid();
    assert!(cluster.nodes.values().all(|node| !node.machine.knows_final(&txid)), "not without the wallet");
    let signed = cluster.sign(&asked);
    cluster.say(NodeId(1), signed);
    assert!(is_final(&cluster));
    assert!(cluster.broadcast.contains(&txid));
    let proof = cluster.get(4).machine.proof(&txid).expect("a proof").clone();
    assert_eq!(proof.kind(), FinalityKind::Enforced);
    proof.verify(&cluster.world.federation).expect("verifies");
    let sizes = cluster.get(1).machine.sizes();
    assert_eq!((sizes.coordinations, sizes.open), (0, 0));
}

#[test]
fn a_wallet_that_signs_at_the_deadline_is_too_late_and_one_block_before_it_is_not() {
    for (blocks, in_time) in [(1, true), (0, false)] {
        let (mut cluster, asked) = submitted();
        let signed = cluster.sign(&asked);
        let tip = cluster.get(1).machine.tip().height;
        (tip..DEADLINE - blocks).for_each(|_| cluster.mine(Vec::new()));
        cluster.say(NodeId(1), signed);
        assert_eq!(is_final(&cluster), in_time, "{blocks} blocks before the deadline");
    }
}

#[test]
fn a_signer_that_falls_silent_is_left_out_of_the_next_attempt() {
    let (mut cluster, asked) = submitted();
    let (_, signers) = attempt_of(&asked);
    let silent = *signers.iter().find(|node| **node != 1).expect("another node");
    cluster.silent.insert(NodeId(silent));
    let signed = cluster.sign(&asked);
    cluster.say(NodeId(1), signed);
    assert!(!is_final(&cluster));
    let again = |cluster: &Cluster| {
        cluster.told.iter().any(|(_, message)| matches!(message, ServerMessage::SignRequest { .. }))
    };
    cluster.until(again);
    let asked = sign_request(&mut cluster);
    let (attempt, signers) = attempt_of(&asked);
    assert!(attempt > 1 && !signers.contains(&silent), "{attempt} {signers:?}");
    let signed = cluster.sign(&asked);
    cluster.say(NodeId(1), signed);
    assert!(is_final(&cluster), "any q responsive nodes are enough");
}

#[test]
fn a_bad_share_convicts_its_node_and_costs_one_attempt() {
    let (mut cluster, asked) = submitted();
    let (_, signers) = attempt_of(&asked);
    let cheat = NodeId(*signers.iter().find(|node| **node != 1).expect("another node"));
    let (federation, world) = (cluster.world.federation.clone(), cluster.world.keys.clone());
    let plan = cluster.world.proposal().check(&federation, &cluster.world.account).expect("valid").plan;
    let ServerMessage::SignRequest { certificate, nodes, .. } = asked.clone() else { panic!("{asked:?}") };
    let signed = cluster.sign(&asked);
    let ClientMessage::SignResponse { wallet, .. } = signed.clone() else { panic!("{signed:?}") };
    let session = quorate_protocol::frost::SigningSession::new(
        &federation,
        &plan,
        &certificate.target,
        1,
        &nodes,
        &wallet.commitments,
    )
    .expect("builds");
    let key = world[usize::from(cheat.0) - 1].clone();
    // Its own signature over a share that is not one: it cannot say that somebody else made it up.
    cluster.alter = Some(Box::new(move |of, reply| match reply {
        PeerReply::Voting(VotingReply::CommitResponse { commit: CommitReply::Joint { mut shares, .. } })
            if of == cheat =>
        {
            shares.iter_mut().for_each(|share| share.0[31] ^= 1);
            let signature = session.sign_shares(&federation, &key, &shares);
            PeerReply::Voting(VotingReply::CommitResponse {
                commit: CommitReply::Joint { shares, signature },
            })
        }
        other => other,
    }));
    cluster.say(NodeId(1), signed);
    let status = cluster.get(1).machine.status();
    assert!(status.suspects.contains(&cheat), "{status:?}");
    assert_eq!(status.evidence.get(&EvidenceKind::BadShare), Some(&1));
    let asked = sign_request(&mut cluster);
    assert!(!attempt_of(&asked).1.contains(&cheat.0));
    let signed = cluster.sign(&asked);
    cluster.say(NodeId(1), signed);
    assert!(is_final(&cluster));
}

#[test]
fn without_q_nodes_the_wallet_hears_that_it_failed_and_may_try_again() {
    let mut cluster = Cluster::voting();
    cluster.coins();
    cluster.silent.extend([NodeId(3), NodeId(4)]);
    let proposal = Proposal::Joint(Box::new(cluster.world.proposal()));
    let account = Some(cluster.world.certificate());
    let message = ClientMessage::TransactionBroadcast { proposal, account };
    cluster.say(NodeId(1), message.clone());
    let failed = |cluster: &Cluster| {
        cluster.told.iter().any(|(_, message)| {
            matches!(
                message,
                ServerMessage::TransactionStatus {
                    status: TransactionStatus::Failed { retry: true, .. },
                    ..
                }
            )
        })
    };
    // Two nodes are not enough to release a lock either: its end is told when a third is back.
    cluster.wait(Duration::from_secs(31));
    assert!(!failed(&cluster));
    cluster.silent.clear();
    cluster.until(failed);
    cluster.told.clear();
    cluster.say(NodeId(1), message);
    let asked = sign_request(&mut cluster);
    let signed = cluster.sign(&asked);
    cluster.say(NodeId(1), signed);
    assert!(is_final(&cluster), "the next try is good");
}

#[test]
fn an_account_is_certified_by_q_nodes_and_not_by_fewer() {
    let mut cluster = Cluster::voting();
    let record = cluster.world.account.record().clone();
    cluster.say(NodeId(2), ClientMessage::AccountRegister { record: record.clone() });
    let [(_, ServerMessage::AccountCertified { certificate })] = &cluster.told[..] else {
        panic!("{:?}", cluster.told)
    };
    assert!(certificate.acceptances.len() >= 3);
    certificate.verify(&cluster.world.federation).expect("verifies");
    // Who has not certified it yet cannot without q.
    let mut cluster = Cluster::voting();
    cluster.silent.extend([NodeId(3), NodeId(4)]);
    cluster.say(NodeId(2), ClientMessage::AccountRegister { record: record.clone() });
    let [(_, ServerMessage::Error { error })] = &cluster.told[..] else { panic!("{:?}", cluster.told) };
    assert_eq!((error.code, error.retry), (ErrorCode::NoNodeAvailable, true));
    cluster.told.clear();
    cluster.silent.clear();
    let mut forged = record;
    forged.wallet_key = cluster.world.keys[0].public().public_key(bitcoin::secp256k1::Parity::Even);
    cluster.say(NodeId(2), ClientMessage::AccountRegister { record: forged });
    let [(_, ServerMessage::Error { error })] = &cluster.told[..] else { panic!("{:?}", cluster.told) };
    assert_eq!((error.code, error.retry), (ErrorCode::InvalidAccount, false));
}

#[test]
fn what_a_lost_coordinator_left_is_brought_to_its_end_by_the_others() {
    let mut cluster = Cluster::voting();
    let coin = cluster.coins();
    let transaction = spend(&[coin], 99_000);
    let txid = transaction.compute_txid();
    // Everybody has committed, and the coordinator never hears of it.
    cluster.alter = Some(Box::new(|_, reply| match reply {
        PeerReply::Voting(VotingReply::CommitResponse { .. }) => {
            WireError::passing(ErrorCode::NotReady, Fault::Network, "lost on its way").into()
        }
        other => other,
    }));
    let proposal = sole(&transaction);
    cluster.say(NodeId(1), ClientMessage::TransactionBroadcast { proposal, account: None });
    cluster.alter = None;
    cluster.silent.insert(NodeId(1));
    assert!(cluster.nodes.values().all(|node| !node.machine.knows_final(&txid)));
    cluster.until(|cluster| {
        cluster.nodes.iter().filter(|(id, _)| id.0 != 1).all(|(_, node)| node.machine.knows_final(&txid))
    });
}

#[test]
fn a_payment_whose_wallet_and_coordinator_are_gone_frees_its_coin() {
    let (mut cluster, _) = submitted();
    let coin = cluster.world.proposal().psbt.unsigned_tx.input[0].previous_output;
    cluster.silent.insert(NodeId(1));
    let held = |cluster: &Cluster, id: u16| cluster.nodes[&NodeId(id)].machine.holds(&coin);
    assert!((2..=4).all(|id| held(&cluster, id).is_some()));
    cluster.until(|cluster| (2..=4).all(|id| held(cluster, id).is_none()));
    let rounds = (2..=4).map(|id| cluster.nodes[&NodeId(id)].machine.utxo(&coin).expect("known").round.0);
    assert!(rounds.min() >= Some(1), "by a release: the next vote is in a later round");
}
