//! Old coins: told of in time, taken first, moved home while they are still payable.

use super::tests::{confirmed, confirmed_at, deadline_of, mine, paid, request, wallet};
use super::*;
use crate::{proposal::Proposal, vote::NOT_BEFORE_ITS_BLOCK};
use bitcoin::{Amount, FeeRate, Psbt};

/// Height from which the coin of block 1 cannot be paid with, and the notice before, a quarter of the time until then.
const HORIZON: u32 = 1 + 4_320 - 288;
const NOTICE: u32 = (4_320 - 288) / 4;

fn inputs(psbt: &Psbt) -> Vec<OutPoint> {
    psbt.unsigned_tx.input.iter().map(|input| input.previous_output).collect()
}

#[test]
fn a_coin_that_grows_old_is_moved_home_in_time_and_stays_spendable() {
    let mut wallet = wallet();
    mine(&mut wallet, HORIZON - NOTICE - 1);
    let coin = confirmed(&mut wallet, false);
    let rate = FeeRate::BROADCAST_MIN;
    assert_eq!(wallet.expires_at(&coin), Some(HORIZON));
    assert!(wallet.aging().is_empty());
    assert_eq!(wallet.create_refresh(rate), Ok(None));
    mine(&mut wallet, HORIZON - NOTICE);
    assert_eq!(wallet.aging().iter().map(|coin| coin.outpoint).collect::<Vec<_>>(), [coin]);
    let psbt = wallet.create_refresh(rate).expect("a rate in bounds").expect("something to do");
    let fee = psbt.fee().expect("complete");
    assert_eq!(psbt.unsigned_tx.output[0].value + fee, Amount::from_sat(50_000));
    let proposal = wallet.propose(psbt).expect("allowed");
    assert_eq!(deadline_of(&proposal), Some(HORIZON), "final at once, as any payment");
    wallet.abandon(proposal.txid());
    // Past the horizon it waits for its block.
    mine(&mut wallet, HORIZON);
    assert!(wallet.aging().is_empty());
    let psbt = wallet.create_refresh(rate).expect("a rate in bounds").expect("something to do");
    let proposal = wallet.propose(psbt).expect("allowed");
    assert_eq!(deadline_of(&proposal), Some(NOT_BEFORE_ITS_BLOCK));
}

#[test]
fn old_coins_pay_first_and_apart_from_young_ones() {
    let mut wallet = wallet();
    mine(&mut wallet, HORIZON - NOTICE + 3);
    let old = confirmed(&mut wallet, false);
    let young = confirmed_at(&mut wallet, HORIZON - NOTICE, false);
    let pay = |wallet: &mut Wallet, sat| {
        let request = request(wallet, false).exact(Amount::from_sat(sat));
        wallet.create_psbt(&request, FeeRate::BROADCAST_MIN).expect("enough")
    };
    assert_eq!(inputs(&pay(&mut wallet, 20_000)), [old]);
    let psbt = pay(&mut wallet, 20_000);
    let payment = wallet.propose(psbt).expect("spendable");
    assert_eq!(inputs(&pay(&mut wallet, 20_000)), [young], "the old one is held");
    wallet.abandon(payment.txid());
    assert_eq!(inputs(&pay(&mut wallet, 70_000)).len(), 2);
    let refresh = wallet.create_refresh(FeeRate::BROADCAST_MIN).expect("in bounds").expect("one is old");
    assert_eq!(inputs(&refresh), [old]);
}

#[test]
fn what_is_not_worth_its_fee_stays() {
    let mut wallet = wallet();
    mine(&mut wallet, HORIZON - NOTICE);
    confirmed(&mut wallet, false);
    let rate = FeeRate::from_sat_per_vb(1_000).expect("small");
    assert_eq!(wallet.create_refresh(rate), Ok(None));
    let rate = FeeRate::from_sat_per_vb(3_000).expect("small");
    assert!(matches!(wallet.create_refresh(rate), Err(WalletError::FeeRate { .. })));
}

#[test]
fn a_payee_lifts_what_falls_behind_by_a_child_that_pays_for_both() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    let proof = paid(&mut wallet);
    assert_eq!(wallet.apply_proof(&proof), Ok(true));
    let txid = proof.txid();
    let rate = FeeRate::from_sat_per_vb_u32(40);
    let psbt = wallet.create_bump(txid, rate).expect("it pays less");
    assert_eq!(inputs(&psbt), [OutPoint { txid, vout: 0 }]);
    let fee = psbt.fee().expect("complete");
    let proposal = wallet.propose(psbt).expect("allowed");
    let Proposal::Joint(joint) = &proposal else { panic!("joint") };
    let checked = joint.check(&wallet.federation, &wallet.account).expect("valid");
    assert!(checked.returns_home);
    let FinalityProof::Enforced { transaction, spent, .. } = &proof else { panic!("enforced") };
    let sum = |outputs: &[bitcoin::TxOut]| outputs.iter().map(|output| output.value).sum::<Amount>();
    let both = fee + (sum(spent) - sum(&transaction.output));
    let wanted = rate.fee_wu(transaction.weight() + checked.weight).expect("small");
    assert!(both >= wanted && both < wanted + Amount::from_sat(5), "{both} for {wanted}");
    // Held by that payment now, and nothing that could pay less is made of it.
    assert_eq!(wallet.create_bump(txid, rate), Err(WalletError::NothingToLift { txid }));
    wallet.abandon(proposal.txid());
    assert_eq!(wallet.create_bump(txid, FeeRate::BROADCAST_MIN), Err(WalletError::NothingToLift { txid }));
    let dear = FeeRate::from_sat_per_vb_u32(1_900);
    assert!(matches!(wallet.create_bump(txid, dear), Err(WalletError::InsufficientFunds { .. })));
    let block = wallet.chain.tip();
    assert!(wallet.book.apply_block(proof.transaction(), block, &wallet.addresses));
    assert_eq!(wallet.create_bump(txid, rate), Err(WalletError::NothingToLift { txid }), "it is in a block");
}
