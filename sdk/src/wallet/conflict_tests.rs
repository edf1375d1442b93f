//! What a wallet makes of a block that contradicts what it was told is final.

use super::tests::{extend, mine, paid, request, wallet};
use super::*;
use crate::{
    testing,
    wire::{Bare, BlockRef, ConfirmedSpend, ConflictProof, RawTransactionProof},
};
use bitcoin::{
    Amount, FeeRate, MerkleBlock, Transaction, TxIn, TxOut,
    block::{Block, Header},
};

/// A block on the tip with a transaction, and that transaction's place in it.
fn mine_with(wallet: &mut Wallet, transaction: &Transaction) -> RawTransactionProof {
    let header = extend(wallet, |header| {
        header.merkle_root = block(*header, transaction).compute_merkle_root().expect("not empty");
    });
    let block = block(header, transaction);
    let txid = transaction.compute_txid();
    RawTransactionProof {
        block: BlockRef { height: wallet.chain.tip().height, hash: header.block_hash() },
        merkle_block: MerkleBlock::from_block_with_predicate(&block, |one| *one == txid),
        transaction: transaction.clone(),
    }
}

fn block(header: Header, transaction: &Transaction) -> Block {
    let mut coinbase = transaction.clone();
    coinbase.input.truncate(1);
    coinbase.input[0].previous_output = OutPoint::null();
    coinbase.lock_time = bitcoin::absolute::LockTime::from_consensus(7);
    Block { header, txdata: vec![coinbase, transaction.clone()] }
}

/// What the payer's recovery key makes of the coin of a payment.
fn taken_back(proof: &FinalityProof) -> Transaction {
    let mut taken = proof.transaction().clone();
    for output in &mut taken.output {
        output.script_pubkey = testing::federation(4).script();
    }
    taken
}

#[test]
fn a_payment_that_was_taken_back_on_the_chain_is_no_money_until_the_block_is_undone() {
    let mut wallet = wallet();
    let proof = paid(&mut wallet);
    mine(&mut wallet, 3);
    assert_eq!(wallet.apply_proof(&proof), Ok(true));
    let (txid, outpoint) = (proof.txid(), OutPoint { txid: proof.txid(), vout: 0 });
    // It has been paid with: that payment is dead too, and its change.
    let request = request(&mut wallet, false).exact(Amount::from_sat(10_000));
    let psbt = wallet.create_psbt(&request, FeeRate::BROADCAST_MIN).expect("one coin");
    let onward = wallet.propose(psbt).expect("spendable").txid();
    let place = mine_with(&mut wallet, &taken_back(&proof));
    let by = ConfirmedSpend { txid: place.transaction.compute_txid(), block: place.block };
    let conflict = ConflictProof { path: vec![Bare::from(proof.transaction().clone())], spender: place };
    assert_eq!(wallet.apply_conflict(txid, &conflict), Ok(()));
    assert_eq!(wallet.coin_state(&outpoint), Some(CoinState::Conflicted { by }));
    assert_eq!(wallet.balance(), Balance::default());
    let mut dead: Vec<_> = wallet.take_conflicts().into_iter().map(|(txid, _)| txid).collect();
    dead.sort_unstable();
    let mut both = vec![txid, onward];
    both.sort_unstable();
    assert_eq!(dead, both);
    assert!(wallet.history().iter().all(|entry| entry.conflicted == Some(by)));
    // The same again is no news.
    assert_eq!(wallet.apply_conflict(txid, &conflict), Ok(()));
    assert!(wallet.take_conflicts().is_empty());

    // Two blocks on the parent of that one.
    wallet.abandon(onward);
    tests::reorganise(&mut wallet, 1);
    assert!(matches!(wallet.coin_state(&outpoint), Some(CoinState::Spendable { .. })));
    assert_eq!(wallet.balance().spendable, Amount::from_sat(90_000));
    assert!(wallet.history().iter().all(|entry| entry.conflicted.is_none()));
    assert!(wallet.apply_conflict(txid, &conflict).is_err(), "its block is not in the chain any more");
}

#[test]
fn a_claim_of_a_conflict_changes_nothing_and_asks_for_its_proof() {
    let mut wallet = wallet();
    let proof = paid(&mut wallet);
    mine(&mut wallet, 3);
    assert_eq!(wallet.apply_proof(&proof), Ok(true));
    let output = &proof.transaction().output[0];
    let outpoint = OutPoint { txid: proof.txid(), vout: 0 };
    let mut claim = testing::utxo_record(outpoint, output.value, output.script_pubkey.clone());
    let block = wallet.chain.tip();
    claim.conflicted =
        Some(ConfirmedSpend { txid: Txid::from_raw_hash(bitcoin::hashes::Hash::all_zeros()), block });
    assert_eq!(wallet.apply_record(&claim), Ok(vec![proof.txid()]));
    assert_eq!(wallet.balance().spendable, Amount::from_sat(90_000));
}

/// The same words on another device spend what this one has only heard of.
#[test]
fn a_spend_that_is_shown_before_its_coin_counts_once_the_coin_does() {
    let mut wallet = wallet();
    mine(&mut wallet, 3);
    let script = wallet.next_address().expect("an address").script_pubkey;
    let transaction = |previous_output, script_pubkey| Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![TxIn { previous_output, ..TxIn::default() }],
        output: vec![TxOut { value: Amount::from_sat(50_000), script_pubkey }],
    };
    let theirs = testing::federation(4).script();
    let paying = transaction(OutPoint { txid: paid(&mut wallet).txid(), vout: 5 }, script.clone());
    let coin = OutPoint { txid: paying.compute_txid(), vout: 0 };
    let spending = transaction(coin, theirs);
    let (place, spent) = (mine_with(&mut wallet, &paying), mine_with(&mut wallet, &spending));
    let spend = spending.compute_txid();
    assert_eq!(wallet.apply_inclusion(spend, &spent), Ok(false));
    assert!(wallet.take_early(coin.txid).is_empty(), "no coin of this wallet, as far as anybody says");
    wallet.apply_record(&testing::utxo_record(coin, paying.output[0].value, script)).expect("a claim");
    for _ in 0..2 {
        assert_eq!(wallet.apply_inclusion(spend, &spent), Ok(false));
    }
    assert!(wallet.history().is_empty(), "what is claimed counts for nothing");
    assert_eq!(wallet.apply_inclusion(coin.txid, &place), Ok(true));
    let [Early::Mined(txid, place)] = &wallet.take_early(coin.txid)[..] else { panic!("the spend, once") };
    assert_eq!(wallet.apply_inclusion(*txid, place), Ok(true));
    assert_eq!((wallet.spender(&coin), wallet.balance()), (Some(spend), Balance::default()));
}

#[test]
fn a_final_spend_is_kept_until_its_coin_is_verified_or_the_server_is_gone() {
    let mut wallet = wallet();
    let world = testing::federation(4);
    let proof = world.finish(&world.proposal_to(world.script(), Amount::from_sat(90_000)));
    let coin = proof.outpoints().next().expect("one");
    let own = wallet.next_address().expect("an address").script_pubkey;
    let claim = testing::utxo_record(coin, Amount::from_sat(90_500), own);
    for gone in [false, true] {
        wallet.apply_record(&claim).expect("a claim");
        assert_eq!(wallet.apply_proof(&proof), Ok(false));
        assert!(wallet.take_early(proof.txid()).is_empty(), "it spends another one");
        if gone {
            wallet.forget_claims();
        }
        let kept = wallet.take_early(coin.txid);
        assert_eq!(matches!(&kept[..], [Early::Final(kept)] if **kept == proof), !gone, "{kept:?}");
    }
}

/// One with change, of two coins, is in the history at once; what it spent is counted as the coins are verified.
#[test]
fn what_a_spend_took_is_counted_as_its_coins_are_verified() {
    let mut wallet = wallet();
    mine(&mut wallet, 3);
    let own = |wallet: &mut Wallet| wallet.next_address().expect("an address").script_pubkey;
    let transaction = |inputs: &[OutPoint], sat: u64, script_pubkey| Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: inputs.iter().map(|one| TxIn { previous_output: *one, ..TxIn::default() }).collect(),
        output: vec![TxOut { value: Amount::from_sat(sat), script_pubkey }],
    };
    let elsewhere = paid(&mut wallet).txid();
    let parents: Vec<Transaction> = (5..7)
        .map(|vout| transaction(&[OutPoint { txid: elsewhere, vout }], 50_000, own(&mut wallet)))
        .collect();
    let coins: Vec<OutPoint> =
        parents.iter().map(|parent| OutPoint { txid: parent.compute_txid(), vout: 0 }).collect();
    let spending = transaction(&coins, 70_000, own(&mut wallet));
    let places: Vec<_> = parents.iter().map(|parent| mine_with(&mut wallet, parent)).collect();
    let spent = mine_with(&mut wallet, &spending);
    for (coin, parent) in coins.iter().zip(&parents) {
        let script = parent.output[0].script_pubkey.clone();
        wallet.apply_record(&testing::utxo_record(*coin, Amount::from_sat(50_000), script)).expect("a claim");
    }
    assert!(wallet.may_spend_own(&spending));
    assert_eq!(wallet.apply_inclusion(spending.compute_txid(), &spent), Ok(true));
    let counted = |wallet: &Wallet| {
        let entry = wallet.history().iter().find(|entry| entry.txid == spending.compute_txid());
        entry.expect("in the history").spent.to_sat()
    };
    assert_eq!(counted(&wallet), 0, "what is claimed counts for nothing");
    for (verified, (coin, place)) in (1..).zip(coins.iter().zip(&places)) {
        assert_eq!(wallet.apply_inclusion(coin.txid, place), Ok(true));
        assert_eq!(counted(&wallet), verified * 50_000);
    }
    assert_eq!(wallet.balance().spendable.to_sat(), 70_000, "what it left");
}

/// The same words on another device, or their owner's recovery.
#[test]
fn a_coin_that_a_block_spends_otherwise_is_not_spent_by_the_final_payment() {
    let mut wallet = wallet();
    mine(&mut wallet, 3);
    let coin = tests::confirmed(&mut wallet, false);
    let request = request(&mut wallet, false).exact(Amount::from_sat(10_000));
    let psbt = wallet.create_psbt(&request, FeeRate::BROADCAST_MIN).expect("one coin");
    let payment = wallet.propose(psbt).expect("spendable");
    let mut other = payment.transaction().clone();
    other.output.truncate(1);
    other.output[0].value -= Amount::from_sat(1_000);
    let place = mine_with(&mut wallet, &other);
    assert_eq!(wallet.apply_inclusion(other.compute_txid(), &place), Ok(true));
    assert_eq!(wallet.spender(&coin), Some(other.compute_txid()));
    let dead = wallet.take_conflicts();
    assert_eq!(
        dead.iter().map(|(txid, by)| (*txid, by.txid)).collect::<Vec<_>>(),
        [(payment.txid(), other.compute_txid())]
    );
}
