//! Old coins: told of in time, taken first, moved home while they are still payable.

use super::tests::{confirmed, confirmed_at, deadline_of, mine, request, wallet};
use super::*;
use bitcoin::Amount;

/// Height from which the coin of block 1 cannot be paid with, and the notice before, a quarter of the delay.
const HORIZON: u32 = 1 + 4_320 - 288;
const NOTICE: u32 = 4_320 / 4;

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
