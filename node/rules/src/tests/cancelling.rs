//! What an owner's cancellation does, at the node that is told and at others that coordinate the same payment.

use super::subscribing::{coin, submit};
use crate::cluster::Cluster;
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    NodeId, Round,
    proposal::Proposal,
    release::SignedCancel,
    wire::{ClientMessage, ServerMessage, TransactionStatus},
};
use std::time::Duration;

fn txid(cluster: &Cluster) -> Txid {
    cluster.world.proposal().psbt.unsigned_tx.compute_txid()
}

fn cancel(cluster: &mut Cluster, at: u16) {
    let cancel = SignedCancel::sign(&cluster.world.federation, &cluster.world.authorisation, txid(cluster));
    let proposal = Proposal::Joint(Box::new(cluster.world.proposal()));
    let account = Some(cluster.world.certificate());
    cluster.say(NodeId(at), ClientMessage::TransactionCancel { cancel, proposal, account });
}

/// How the payment ended, by the last word of a node.
fn ended(cluster: &Cluster, at: u16) -> Option<&TransactionStatus> {
    cluster.told.iter().rev().find_map(|(node, message)| match message {
        ServerMessage::TransactionStatus { status, .. } if *node == NodeId(at) => Some(status),
        _ => None,
    })
}

/// Both nodes that coordinate it say for good that it came to nothing.
fn assert_ended(cluster: &Cluster) {
    for at in [1, 2] {
        let ended = ended(cluster, at);
        assert!(matches!(ended, Some(TransactionStatus::Failed { retry: false, .. })), "{ended:?}");
    }
}

/// One round was released, and nobody has locked the coin since.
fn assert_free_in_round_1(cluster: &Cluster, outpoint: &OutPoint) {
    for node in cluster.nodes.values() {
        let coin = node.machine.utxo(outpoint).expect("known");
        assert!(coin.round == Round(1) && coin.lock.is_none(), "{coin:?}");
    }
}

#[test]
fn a_payment_that_its_owner_cancels_in_time_ends_and_its_coin_is_free_in_the_next_round() {
    let mut cluster = Cluster::voting();
    cluster.coins();
    submit(&mut cluster);
    let outpoint = coin(&cluster);
    cancel(&mut cluster, 1);
    cluster.until(|cluster| cluster.nodes.values().all(|node| node.machine.holds(&outpoint).is_none()));
    assert!(cluster.now < Duration::from_secs(10), "without waiting for the time for votes");
    let ended = ended(&cluster, 1);
    assert!(
        matches!(ended, Some(TransactionStatus::Failed { .. } | TransactionStatus::Rejected { .. })),
        "{ended:?}"
    );
    assert!(cluster.get(3).machine.utxo(&outpoint).expect("known").round.0 >= 1);
}

#[test]
fn a_payment_that_is_cancelled_at_one_node_is_not_voted_for_again_by_another_that_coordinates_it() {
    let mut cluster = Cluster::voting();
    cluster.coins();
    let outpoint = coin(&cluster);
    cluster.silent.extend([NodeId(3), NodeId(4)]);
    let (proposal, account) =
        (Proposal::Joint(Box::new(cluster.world.proposal())), Some(cluster.world.certificate()));
    cluster.say(NodeId(1), ClientMessage::TransactionBroadcast { proposal, account });
    assert!(cluster.get(2).machine.holds(&outpoint).is_some(), "it is voted for");
    // The wallet has lost its connection, and is at another node now.
    cancel(&mut cluster, 2);
    cluster.silent.clear();
    cluster.until(|cluster| {
        cluster.nodes.values().all(|node| {
            node.machine.utxo(&outpoint).is_some_and(|coin| coin.round > Round(0) && coin.lock.is_none())
        })
    });
    cluster.wait(Duration::from_secs(1));
    assert_free_in_round_1(&cluster, &outpoint);
    assert_ended(&cluster);
}

/// The other node waits for the wallet's part when the release comes, and asks nobody for anything before.
#[test]
fn a_payment_that_waits_for_its_wallet_and_is_cancelled_elsewhere_ends_at_once_and_releases_one_round() {
    let mut cluster = Cluster::voting();
    cluster.coins();
    submit(&mut cluster);
    let outpoint = coin(&cluster);
    cancel(&mut cluster, 2);
    assert_ended(&cluster);
    for _ in 0..120 {
        cluster.wait(Duration::from_secs(1));
    }
    assert_free_in_round_1(&cluster, &outpoint);
}
