//! What a payment rests on, and for how long: parents (V1) and deadlines (V10). Each test is a way by which what is
//! called final could be taken back or stranded.

use crate::testkit::{Kit, OTHER, open_script, sole, spend, target};
use bitcoin::{Amount, OutPoint, TxOut};
use quorate_protocol::{
    account::{Keychain, KeychainIndex},
    finality::FinalityProof,
    proposal::{JointProposal, Proposal, describe_output},
    testing::DEADLINE,
    vote::{Custody, NOT_BEFORE_ITS_BLOCK, VoteTarget},
    wire::{ClientMessage, ErrorCode, RejectReason, ServerMessage, TransactionStatus, VotingRequest},
};

fn joint(proposal: &JointProposal) -> Proposal {
    Proposal::Joint(Box::new(proposal.clone()))
}

fn until(kit: &Kit, deadline: u32) -> JointProposal {
    kit.world.authorise(kit.world.proposal().psbt, deadline)
}

/// A payment of what another one left at the account's address.
pub(super) fn child(kit: &Kit, parent: &FinalityProof, deadline: u32) -> JointProposal {
    let (coin, value) = (OutPoint { txid: parent.txid(), vout: 0 }, parent.transaction().output[0].value);
    let payment = TxOut { value: value - Amount::from_sat(500), script_pubkey: open_script().to_p2wsh() };
    kit.world.authorise(kit.world.psbt(coin, value, payment), deadline)
}

/// The payment of `testing`, finished, which this node voted for: it has looked the coin up.
pub(super) fn paid(kit: &mut Kit) -> FinalityProof {
    let (proposal, proof) = (kit.joint(), kit.world.final_payment());
    assert_eq!(kit.vote(proposal), Ok(()));
    assert_eq!(announce(kit, &proof), Ok(()));
    proof
}

pub(super) fn announce(kit: &mut Kit, proof: &FinalityProof) -> Result<(), ErrorCode> {
    let request = VotingRequest::FinalTransaction { proof: proof.clone(), head: None };
    kit.ask(OTHER, request).map(|_| ()).map_err(|error| error.code)
}

#[test]
fn a_deadline_lies_above_the_tip_and_a_margin_below_the_recovery_path() {
    let delay = 4_320;
    let latest = 5 + delay - 288;
    let cases = [
        (NOT_BEFORE_ITS_BLOCK, false),
        (9, false),
        (10, false),
        (11, true),
        (latest, true),
        (latest + 1, false),
        (u32::MAX, false),
    ];
    for (deadline, good) in cases {
        let mut kit = Kit::voting();
        kit.joint_coin(90_500, 5, false);
        let proposal = until(&kit, deadline);
        let expected = Err(RejectReason::Deadline { deadline, tip: 10, latest });
        assert_eq!(kit.vote(joint(&proposal)), if good { Ok(()) } else { expected }, "{deadline}");
    }
}

#[test]
fn nothing_is_committed_at_the_deadline() {
    for (blocks, refused) in [(0, None), (1, Some(ErrorCode::DeadlinePassed))] {
        let mut kit = Kit::voting();
        kit.joint_coin(90_500, 5, false);
        let proposal = until(&kit, 12);
        kit.mine(1);
        assert_eq!(kit.vote(joint(&proposal)), Ok(()));
        kit.mine(blocks);
        let target = kit.world.target_of(&proposal);
        let request = kit.commit_request(&target, &[1, 2, 3]);
        let answer = kit.ask(OTHER, request).expect_err("the wallet's part is missing in any case").code;
        assert_eq!(answer == ErrorCode::DeadlinePassed, refused.is_some(), "{answer}");
    }
}

#[test]
fn a_transaction_that_its_owner_kept_secret_is_not_taken_in_after_its_deadline() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let secret = kit.world.finish(&until(&kit, 12));
    kit.mine(2);
    assert_eq!(announce(&mut kit, &secret), Err(ErrorCode::DeadlinePassed));
    assert!(!kit.machine.knows_final(&secret.txid()));
    kit.mine_with(vec![secret.transaction().clone()]);
    assert_eq!(announce(&mut kit, &secret), Ok(()), "a block has it");

    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    assert_eq!(announce(&mut kit, &secret), Ok(()), "in time");
    kit.mine(100);
    assert!(kit.machine.knows_final(&secret.txid()), "what was known in time stays");
}

#[test]
fn what_a_payee_hands_in_is_taken_while_its_deadline_has_not_come_and_told_to_all() {
    for (blocks, taken) in [(1, true), (2, false)] {
        let mut kit = Kit::voting();
        kit.joint_coin(90_500, 5, false);
        let proof = kit.world.finish(&until(&kit, 12));
        kit.mine(blocks);
        let protocol = quorate_protocol::wire::limits::PROTOCOL_VERSION;
        kit.say(ClientMessage::Hello { protocol, federation: None, agent: String::new() });
        kit.told();
        kit.say(ClientMessage::FinalTransaction { proof: Box::new(proof.clone()) });
        let answer = kit.told().pop();
        let good = matches!(
            &answer,
            Some(ServerMessage::TransactionStatus {
                status: TransactionStatus::Broadcasting { refusal: None },
                ..
            })
        );
        assert_eq!(good, taken, "{answer:?}");
        assert_eq!(kit.machine.knows_final(&proof.txid()), taken);
        let told = kit
            .asked()
            .into_iter()
            .filter(|(_, request)| matches!(request, VotingRequest::FinalTransaction { .. }));
        assert_eq!(told.count(), if taken { 3 } else { 0 }, "everybody else hears of it");
        kit.say(ClientMessage::FinalTransaction { proof: Box::new(proof) });
        assert!(kit.asked().is_empty(), "once");
    }
}

#[test]
fn what_was_moved_home_past_the_horizon_pays_nobody_before_its_block() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    kit.mine(4_320);
    let mut psbt = kit.world.proposal().psbt;
    let position = KeychainIndex { keychain: Keychain::Receive, index: 0 };
    let address = kit.world.account.address(position).expect("derives");
    describe_output(&kit.world.account, &address, &mut psbt.outputs[0]);
    let home = kit.world.authorise(psbt, NOT_BEFORE_ITS_BLOCK);
    assert_eq!(kit.vote(joint(&home)), Ok(()));
    let home = kit.world.finish(&home);
    assert_eq!(announce(&mut kit, &home), Ok(()));
    let tip = 10 + 4_320;
    let payment = child(&kit, &home, tip + 100);
    let outpoint = OutPoint { txid: home.txid(), vout: 0 };
    let waits = RejectReason::Unconfirmed { outpoint, confirmations: 0, needed: 1 };
    assert_eq!(kit.vote(joint(&payment)), Err(waits), "its owner can undo the move by the recovery path");
    kit.mine_with(vec![home.transaction().clone()]);
    assert_eq!(kit.vote(joint(&payment)), Ok(()));
}

#[test]
fn what_descends_from_an_enforced_payment_has_no_later_deadline() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let parent = paid(&mut kit);
    let later = child(&kit, &parent, DEADLINE + 1);
    let refused = RejectReason::Deadline { deadline: DEADLINE + 1, tip: 10, latest: DEADLINE };
    assert_eq!(kit.vote(joint(&later)), Err(refused));
    let child = child(&kit, &parent, DEADLINE);
    assert_eq!(kit.vote(joint(&child)), Ok(()));

    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let parent = paid(&mut kit);
    kit.mine(DEADLINE - 10);
    let late = self::child(&kit, &parent, DEADLINE + 1);
    assert!(
        matches!(kit.vote(joint(&late)), Err(RejectReason::Unconfirmed { .. })),
        "the parent's deadline has passed without a block"
    );
}

/// The payer's first account has a long delay and its second one a short one: a parent's deadline says nothing of the
/// child's own recovery path.
#[test]
fn an_unconfirmed_coin_lasts_no_longer_than_its_own_delay_from_now_on() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let mut parent = spend(&[coin], 91_000);
    parent.output[0].script_pubkey = kit.world.script();
    assert_eq!(kit.vote(sole(&parent)), Ok(()), "the coin is looked up");
    let spent = vec![TxOut { value: Amount::from_sat(100_000), script_pubkey: open_script().to_p2wsh() }];
    // A parent of another account, whose deadline lies beyond everything that this account could have.
    let custody = Custody::joint(60_000, &spent);
    let inputs = [(coin, quorate_protocol::Round(0))];
    let target = VoteTarget::new(parent.compute_txid(), custody, inputs);
    let certificate = Box::new(kit.world.approve(&target));
    let parent = FinalityProof::Enforced { transaction: parent, spent, certificate };
    kit.machine.trust_final(parent.clone());
    let latest = 10 + 4_320 - 288;
    let later = child(&kit, &parent, latest + 1);
    let refused = RejectReason::Deadline { deadline: latest + 1, tip: 10, latest };
    assert_eq!(kit.vote(joint(&later)), Err(refused));
    let in_time = child(&kit, &parent, latest);
    assert_eq!(kit.vote(joint(&in_time)), Ok(()));
}

#[test]
fn nothing_rests_on_an_ancestor_that_this_node_knows_nothing_of() {
    let mut kit = Kit::voting();
    let parent = kit.world.final_payment();
    assert_eq!(announce(&mut kit, &parent), Ok(()), "its coin has not been looked up");
    let child = child(&kit, &parent, DEADLINE);
    assert!(
        matches!(kit.vote(joint(&child)), Err(RejectReason::Unconfirmed { .. })),
        "the chain has no such coin"
    );
    kit.joint_coin(90_500, 5, false);
    assert_eq!(kit.vote(joint(&child)), Ok(()), "it is looked up again");
}

#[test]
fn in_one_round_a_node_stands_by_one_deadline() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let (first, second) = (until(&kit, 500), until(&kit, 600));
    assert_eq!(kit.vote(joint(&first)), Ok(()));
    assert!(matches!(kit.vote(joint(&second)), Err(RejectReason::Invalid { .. })));
    assert_eq!(kit.vote(joint(&first)), Ok(()), "the first vote is repeated");
}

#[test]
fn who_has_not_read_the_chain_takes_in_nothing_that_has_a_deadline() {
    let mut kit = Kit::fresh();
    kit.mine(3);
    let proof = kit.world.final_payment();
    assert_eq!(announce(&mut kit, &proof), Err(ErrorCode::NotReady));
    kit.mine(7);
    kit.machine.handle_caught_up();
    assert_eq!(announce(&mut kit, &proof), Ok(()));
}

#[test]
fn what_descends_from_an_attested_transaction_waits_for_its_block() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let mut parent = spend(&[coin], 91_000);
    parent.output[0].script_pubkey = kit.world.script();
    let target = target(&parent);
    let commits = [1, 2, 3].map(quorate_protocol::NodeId);
    let commits = commits.map(|node| (node, kit.commit_signature(node, &target))).into();
    let rounds = vec![quorate_protocol::Round(0)];
    let attested = FinalityProof::Attested { transaction: parent.clone(), rounds, commits };
    assert_eq!(announce(&mut kit, &attested), Ok(()));
    let payment = child(&kit, &attested, DEADLINE);
    let outpoint = OutPoint { txid: parent.compute_txid(), vout: 0 };
    let waits = RejectReason::Unconfirmed { outpoint, confirmations: 0, needed: 1 };
    assert_eq!(kit.vote(joint(&payment)), Err(waits), "its owner can spend the coin another way");
    kit.mine_with(vec![parent]);
    assert_eq!(kit.vote(joint(&payment)), Ok(()));
}

#[test]
fn nothing_rests_on_a_transaction_that_lost_on_the_chain() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let parent = paid(&mut kit);
    let child = child(&kit, &parent, DEADLINE);
    let mut recovery = parent.transaction().clone();
    recovery.output[0].value -= Amount::from_sat(1_000);
    kit.mine_with(vec![recovery.clone()]);
    let outpoint = OutPoint { txid: parent.txid(), vout: 0 };
    let dead = RejectReason::Spent { outpoint, txid: recovery.compute_txid() };
    assert_eq!(kit.vote(joint(&child)), Err(dead));
    kit.reorganise();
    assert_eq!(kit.vote(joint(&child)), Ok(()), "and a reorganisation takes that back");
}

#[test]
fn a_chain_of_unconfirmed_payments_is_no_longer_than_every_mempool_takes() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let mut last = paid(&mut kit);
    let onward = |kit: &Kit, parent: &FinalityProof| {
        let (coin, value) = (OutPoint { txid: parent.txid(), vout: 0 }, parent.transaction().output[0].value);
        let payment = TxOut { value: value - Amount::from_sat(500), script_pubkey: kit.world.script() };
        kit.world.authorise(kit.world.psbt(coin, value, payment), DEADLINE)
    };
    let mut transactions = vec![last.transaction().clone()];
    while transactions.len() < 25 {
        let next = onward(&kit, &last);
        assert_eq!(kit.vote(joint(&next)), Ok(()), "{} before it", transactions.len());
        last = kit.world.finish(&next);
        assert_eq!(announce(&mut kit, &last), Ok(()));
        transactions.push(last.transaction().clone());
    }
    let next = onward(&kit, &last);
    let refused = RejectReason::UnconfirmedChain { transactions: 25, vbytes: 101_000 };
    assert!(refused.retry(), "a block makes room");
    assert_eq!(kit.vote(joint(&next)), Err(refused));
    kit.mine_with(transactions[..1].to_vec());
    assert_eq!(kit.vote(joint(&next)), Ok(()));
}

#[test]
fn the_witness_of_a_sole_transaction_cannot_be_exchanged() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let good = spend(&[coin], 99_000);
    assert_eq!(kit.vote(sole(&good)), Ok(()));
    let target = target(&good);
    let commits = [1, 2, 3].map(quorate_protocol::NodeId);
    let commits = commits.map(|node| (node, kit.commit_signature(node, &target))).into();
    let mut transaction = good.clone();
    transaction.input[0].witness.push([1]);
    let rounds = vec![quorate_protocol::Round(0)];
    let broken = FinalityProof::Attested { transaction, rounds, commits };
    assert_eq!(broken.txid(), good.compute_txid());
    assert_eq!(announce(&mut kit, &broken), Err(ErrorCode::InvalidSignature));
    assert!(!kit.machine.knows_final(&good.compute_txid()));
}
