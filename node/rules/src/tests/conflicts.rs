//! The chain has the last word (design, section 4): what a block contradicts is dead with all that descends from it,
//! who was told is told again, and a reorganisation takes it back.

use super::deadlines::{announce, child, paid};
use crate::{Output, testkit::Kit};
use bitcoin::{Amount, OutPoint, Transaction, Txid};
use quorate_protocol::{
    finality::FinalityProof,
    testing::DEADLINE,
    wire::{ClientMessage, KeyOutcome, ServerMessage, SubscriptionKey, TransactionStatus, UtxoState, limits},
};

/// An enforced payment, an enforced payment of what it left, and what the payer's recovery key makes of the first coin.
fn family(kit: &mut Kit) -> (FinalityProof, FinalityProof, Transaction) {
    kit.joint_coin(90_500, 5, false);
    let parent = paid(kit);
    let child = child(kit, &parent, DEADLINE);
    let child = kit.world.finish(&child);
    assert_eq!(announce(kit, &child), Ok(()));
    let mut recovery = parent.transaction().clone();
    recovery.output[0].value -= Amount::from_sat(1_000);
    (parent, child, recovery)
}

fn subscribe(kit: &mut Kit, txid: Txid) {
    kit.say(ClientMessage::Hello {
        protocol: limits::PROTOCOL_VERSION,
        federation: None,
        agent: String::new(),
    });
    let outpoint = SubscriptionKey::Outpoint(OutPoint { txid, vout: 0 });
    kit.say(ClientMessage::subscribe(vec![SubscriptionKey::Txid(txid), outpoint]));
    kit.told();
}

/// What the wallet has heard of status and output since the last look, the latest of each.
fn heard(kit: &mut Kit) -> (Option<TransactionStatus>, Option<UtxoState>) {
    let (mut status, mut output) = (None, None);
    for message in kit.told() {
        match message {
            ServerMessage::TransactionStatus { status: news, .. } => status = Some(news),
            ServerMessage::UTXOStateNotification { state, .. } => output = Some(state),
            _ => {}
        }
    }
    (status, output)
}

#[test]
fn what_descends_from_what_lost_on_the_chain_is_dead_and_everybody_is_told() {
    let mut kit = Kit::voting();
    let (parent, child, recovery) = family(&mut kit);
    subscribe(&mut kit, child.txid());
    assert_eq!(kit.machine.unconfirmed().len(), 2);
    kit.mine_with(vec![recovery.clone()]);
    let by = recovery.compute_txid();
    let (status, output) = heard(&mut kit);
    assert!(
        matches!(status, Some(TransactionStatus::Conflicted { by: spend }) if spend.txid == by),
        "{status:?}"
    );
    assert!(matches!(output, Some(UtxoState::Conflicted { txid, .. }) if txid == by), "{output:?}");
    assert!(kit.machine.unconfirmed().is_empty(), "nobody hands it to the network any more");
    let breaches = kit.machine.status().breaches;
    assert_eq!(breaches.keys().collect::<Vec<_>>().len(), 2, "both were promised");
    assert!([parent.txid(), child.txid()].iter().all(|txid| breaches[txid].txid == by));

    // Who asks later sees it in the snapshot too, and is told why.
    kit.say(ClientMessage::UTXOStateQuery { keys: vec![SubscriptionKey::Txid(child.txid())] });
    let told = kit.told();
    let Some(ServerMessage::UTXOStateResponse { results, .. }) = told.last() else { panic!("{told:?}") };
    let KeyOutcome::Snapshot { status, .. } = &results[0].outcome else { panic!("{results:?}") };
    assert!(matches!(status, Some(TransactionStatus::Conflicted { .. })));
    kit.say(ClientMessage::ProofQuery { txid: child.txid() });
    let asked = kit.out.iter().find_map(|output| match output {
        Output::Prove { txid, of, path, .. } => Some((*txid, of.txid, path.clone())),
        _ => None,
    });
    let path = vec![child.transaction().clone(), parent.transaction().clone()];
    assert_eq!(asked, Some((child.txid(), by, path)));

    kit.reorganise();
    let (status, output) = heard(&mut kit);
    assert!(matches!(status, Some(TransactionStatus::Signed { .. })), "{status:?}");
    assert!(matches!(output, Some(UtxoState::Unspent)), "{output:?}");
    assert!(kit.machine.status().breaches.is_empty());
    assert_eq!(kit.machine.unconfirmed().len(), 2);
}

#[test]
fn another_block_that_contradicts_it_too_keeps_it_dead() {
    let mut kit = Kit::voting();
    let (parent, child, recovery) = family(&mut kit);
    subscribe(&mut kit, child.txid());
    kit.mine_with(vec![recovery]);
    let mut other = parent.transaction().clone();
    other.output[0].value -= Amount::from_sat(2_000);
    kit.reorganise_with(vec![other.clone()]);
    let (status, _) = heard(&mut kit);
    let by = other.compute_txid();
    assert!(
        matches!(status, Some(TransactionStatus::Conflicted { by: spend }) if spend.txid == by),
        "{status:?}"
    );
    assert_eq!(kit.machine.status().breaches.values().map(|spend| spend.txid).collect::<Vec<_>>(), [by, by]);
}

#[test]
fn its_own_block_is_no_conflict() {
    let mut kit = Kit::voting();
    let (parent, child, _) = family(&mut kit);
    subscribe(&mut kit, child.txid());
    kit.mine_with(vec![parent.transaction().clone(), child.transaction().clone()]);
    let (status, _) = heard(&mut kit);
    assert!(matches!(status, Some(TransactionStatus::Confirmed { .. })), "{status:?}");
    assert!(kit.machine.status().breaches.is_empty());
}
