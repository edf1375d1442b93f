//! Payments to several, with data, of chosen coins; what they would be, and what is kept out of them.

use super::{
    tests::{confirmed, confirmed_at, mine, paid, request, wallet},
    *,
};
use crate::wire::BlockRef;
use bitcoin::{Amount, FeeRate, OutPoint, Psbt, Transaction, TxIn, TxOut, hashes::Hash as _};

const RATE: FeeRate = FeeRate::BROADCAST_MIN;

/// A coin of this value in the block at height 1.
fn coin(wallet: &mut Wallet, sat: u64) -> OutPoint {
    let script_pubkey = wallet.next_address().expect("an address").script_pubkey;
    let transaction = Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint { txid: Txid::all_zeros(), vout: 9 },
            ..TxIn::default()
        }],
        output: vec![TxOut { value: Amount::from_sat(sat), script_pubkey }],
    };
    let hash = wallet.chain.header(1).expect("mined").block_hash();
    wallet.put_in_block(&transaction, BlockRef { height: 1, hash });
    OutPoint { txid: transaction.compute_txid(), vout: 0 }
}

fn inputs(psbt: &Psbt) -> BTreeSet<OutPoint> {
    psbt.unsigned_tx.input.iter().map(|input| input.previous_output).collect()
}

/// What is paid to a script.
fn value(psbt: &Psbt, to: &Destination) -> Option<u64> {
    let mut outputs = psbt.unsigned_tx.output.iter();
    outputs.find(|output| output.script_pubkey == to.script_pubkey()).map(|output| output.value.to_sat())
}

#[test]
fn several_are_paid_in_one_transaction_with_data() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    coin(&mut wallet, 100_000);
    let (first, second) = (request(&mut wallet, false), request(&mut wallet, true).destination);
    let payment = first.exact(Amount::from_sat(20_000)).and(second.clone(), Amount::from_sat(30_000));
    let payment = payment.data(b"order 17");
    let psbt = wallet.create_psbt(&payment, RATE).expect("enough");
    assert_eq!(value(&psbt, &payment.destination), Some(20_000));
    assert_eq!(value(&psbt, &second), Some(30_000));
    let data: Vec<_> =
        psbt.unsigned_tx.output.iter().filter(|output| output.script_pubkey.is_op_return()).collect();
    assert_eq!((data.len(), data[0].value), (1, Amount::ZERO));
    assert!(data[0].script_pubkey.as_bytes().ends_with(b"order 17"));
    assert_eq!(psbt.unsigned_tx.output.len(), 4, "and change");
    wallet.propose(psbt).expect("nodes take it");
}

#[test]
fn what_is_too_much_together_is_refused() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    coin(&mut wallet, 100_000);
    let half = Amount::MAX_MONEY / 2 + Amount::from_sat(1);
    let base = request(&mut wallet, false);
    let to = base.destination.clone();
    let both = base.clone().exact(half).and(to.clone(), half);
    let refused = wallet.create_psbt(&both, RATE);
    assert!(matches!(refused, Err(WalletError::AmountTooLarge { .. })), "{refused:?}");
    let many = (0..100).fold(base.clone().exact(half), |all, _| all.and(to.clone(), Amount::MAX_MONEY));
    assert!(matches!(wallet.create_psbt(&many, RATE), Err(WalletError::AmountTooLarge { .. })));
    let beyond = base.clone().everything().and(to.clone(), Amount::from_sat(u64::MAX));
    assert!(matches!(wallet.create_psbt(&beyond, RATE), Err(WalletError::AmountTooLarge { .. })));
    let dust = base.clone().exact(Amount::from_sat(1_000)).and(to, Amount::from_sat(1));
    assert!(matches!(wallet.create_psbt(&dust, RATE), Err(WalletError::Dust { .. })));
    let long = base.exact(Amount::from_sat(1_000)).data([0; DATA_MAX + 1]);
    assert_eq!(
        wallet.create_psbt(&long, RATE).expect_err("too long"),
        WalletError::DataTooLong { length: DATA_MAX + 1, max: DATA_MAX }
    );
}

#[test]
fn named_coins_are_spent_all_of_them_and_no_others() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    let coins: Vec<_> = [10_000, 20_000, 40_000].map(|sat| coin(&mut wallet, sat)).into();
    let base = request(&mut wallet, false);
    let named = base.clone().exact(Amount::from_sat(5_000)).with_coins([coins[0], coins[1], coins[0]]);
    let psbt = wallet.create_psbt(&named, RATE).expect("enough");
    assert_eq!(inputs(&psbt), BTreeSet::from([coins[0], coins[1]]));
    let all = base.clone().everything().with_coins([coins[2]]);
    assert_eq!(inputs(&wallet.create_psbt(&all, RATE).expect("enough")), BTreeSet::from([coins[2]]));
    let short = base.clone().exact(Amount::from_sat(10_000)).with_coins([coins[0]]);
    let refused = wallet.create_psbt(&short, RATE).expect_err("the fee is missing");
    assert!(matches!(refused, WalletError::InsufficientFunds { .. }), "{refused}");
    let outpoint = OutPoint { txid: Txid::all_zeros(), vout: 0 };
    let foreign = base.clone().everything().with_coins([coins[0], outpoint]);
    assert_eq!(
        wallet.create_psbt(&foreign, RATE).expect_err("not ours"),
        WalletError::Coin { outpoint, retry: false }
    );
    assert!(wallet.create_psbt(&base.everything().with_coins([]), RATE).is_err());
}

#[test]
fn a_frozen_coin_is_spent_only_by_name_and_stays_frozen_on_the_disk() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    let [frozen, free] = [60_000, 40_000].map(|sat| coin(&mut wallet, sat));
    wallet.freeze(frozen).expect("a coin");
    assert!(wallet.is_frozen(&frozen));
    let all = request(&mut wallet, false).everything();
    assert_eq!(inputs(&wallet.create_psbt(&all, RATE).expect("the other")), BTreeSet::from([free]));
    let more = request(&mut wallet, false).exact(Amount::from_sat(50_000));
    assert!(matches!(wallet.create_psbt(&more, RATE), Err(WalletError::InsufficientFunds { .. })));
    let named = more.with_coins([frozen]);
    assert_eq!(inputs(&wallet.create_psbt(&named, RATE).expect("by name")), BTreeSet::from([frozen]));
    let mut disk = SavedState::new();
    apply_change(&mut disk, wallet.take_change());
    let mut again = self::wallet();
    again.restore(&disk).expect("its own");
    assert!(again.is_frozen(&frozen) && !again.is_frozen(&free));
    again.unfreeze(frozen);
    apply_change(&mut disk, again.take_change());
    let mut once_more = self::wallet();
    once_more.restore(&disk).expect("its own");
    assert!(!once_more.is_frozen(&frozen));
    let outpoint = OutPoint { txid: Txid::all_zeros(), vout: 0 };
    assert_eq!(once_more.freeze(outpoint), Err(WalletError::Coin { outpoint, retry: false }));
}

#[test]
fn what_costs_more_than_it_is_worth_is_no_part_of_everything() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    let large = coin(&mut wallet, 50_000);
    // 58 vB at 50 sat/vB are 2,900 sat.
    let dust: Vec<_> = (0..70).map(|more| coin(&mut wallet, 400 + more)).collect();
    let rate = FeeRate::from_sat_per_vb(50).expect("small");
    let all = request(&mut wallet, false).everything().fee_rate(rate);
    let psbt = wallet.create_psbt(&all, rate).expect("the large one");
    assert_eq!(inputs(&psbt), BTreeSet::from([large]));
    let named =
        request(&mut wallet, false).everything().fee_rate(RATE).with_coins(dust.iter().take(64).copied());
    assert_eq!(inputs(&wallet.create_psbt(&named, RATE).expect("economic at this rate")).len(), 64);
    let other = request(&mut wallet, false).destination;
    let rest =
        request(&mut wallet, false).everything().fee_rate(rate).and(other.clone(), Amount::from_sat(10_000));
    let psbt = wallet.create_psbt(&rest, rate).expect("enough");
    let fee = psbt.fee().expect("known").to_sat();
    let paid: u64 = psbt.unsigned_tx.output.iter().map(|output| output.value.to_sat()).sum();
    assert_eq!((paid + fee, psbt.unsigned_tx.output.len()), (50_000, 2));
    let second = psbt.unsigned_tx.output.iter().filter(|output| output.value.to_sat() == 10_000);
    assert_eq!(second.count(), 1);
}

#[test]
fn a_quote_is_what_is_paid_then() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    let own = [30_000, 50_000].map(|sat| coin(&mut wallet, sat));
    let payment = request(&mut wallet, false).exact(Amount::from_sat(12_345)).data(b"x");
    let quote = wallet.quote(&payment, RATE).expect("enough");
    assert_eq!(quote.amount, Amount::from_sat(12_345));
    let spent: u64 = quote.coins.iter().map(|coin| if *coin == own[0] { 30_000 } else { 50_000 }).sum();
    assert_eq!((quote.total() + quote.change).to_sat(), spent);
    assert!(!quote.unconfirmed);
    assert!(quote.fee_rate >= RATE && quote.fee_rate.to_sat_per_kwu() < RATE.to_sat_per_kwu() * 11 / 10);
    let most = quote.most.expect("something");
    let all = wallet.create_psbt(&payment.clone().exact(most), RATE).expect("so much can be paid");
    assert_eq!((all.unsigned_tx.output.len(), inputs(&all).len()), (2, 2), "no change");
    let beyond = payment.clone().exact(most + Amount::from_sat(1));
    assert!(wallet.create_psbt(&beyond, RATE).is_err(), "and not a satoshi more");
    let proposal = wallet.propose(quote.psbt.clone()).expect("as it was shown");
    assert_eq!(proposal.txid(), quote.psbt.unsigned_tx.compute_txid());
    assert!(
        matches!(wallet.propose(quote.psbt), Err(WalletError::Coin { retry: true, .. })),
        "its coins are taken by now"
    );
    let proof = paid(&mut wallet);
    assert_eq!(wallet.apply_proof(&proof), Ok(true));
    let payment = request(&mut wallet, false).exact(Amount::from_sat(60_000));
    assert!(wallet.quote(&payment, RATE).expect("enough").unconfirmed);
}

#[test]
fn money_that_comes_back_is_told_apart_from_money_that_is_missing() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    coin(&mut wallet, 100_000);
    let first = request(&mut wallet, false).exact(Amount::from_sat(10_000));
    let psbt = wallet.create_psbt(&first, RATE).expect("enough");
    let proposal = wallet.propose(psbt).expect("spendable");
    let second = request(&mut wallet, false).exact(Amount::from_sat(20_000));
    let busy = wallet.create_psbt(&second, RATE).expect_err("its coin is taken");
    assert!(
        matches!(busy, WalletError::CoinsBusy { spendable: Amount::ZERO, busy, .. } if busy > Amount::from_sat(89_000)),
        "{busy}"
    );
    assert!(busy.is_retryable());
    let third = request(&mut wallet, false).exact(Amount::from_sat(95_000));
    let missing = wallet.create_psbt(&third, RATE).expect_err("more than there is");
    assert!(matches!(missing, WalletError::InsufficientFunds { .. }), "{missing}");
    wallet.abandon(proposal.txid());
    wallet.create_psbt(&second, RATE).expect("free again");
}

#[test]
fn the_history_is_in_the_order_of_blocks_and_says_what_was_paid() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    // As a restored wallet hears of them.
    let late = confirmed_at(&mut wallet, 4, false).txid;
    let early = confirmed(&mut wallet, false).txid;
    let proof = paid(&mut wallet);
    assert_eq!(wallet.apply_proof(&proof), Ok(true));
    let order: Vec<_> = wallet.history_by_block().iter().map(|entry| entry.txid).collect();
    assert_eq!(order, [early, late, proof.txid()]);
    let details: Vec<_> =
        wallet.history_by_block().iter().map(|entry| wallet.history_details(entry)).collect();
    let time = |height| wallet.chain.header(height).map(|header| header.time);
    assert_eq!(details[0], HistoryDetails { time: time(1), ..HistoryDetails::default() });
    assert_eq!(details[1].time, time(4));
    assert_eq!(details[2], HistoryDetails::default(), "somebody else's fee is nobody's business here");
}
