//! What can be done with a coin, by its parents' deadlines, its age and its block.

use super::*;
use crate::{
    account::KeychainIndex,
    proposal::Proposal,
    testing::{self, DEADLINE},
    vote::NOT_BEFORE_ITS_BLOCK,
    wire::BlockRef,
};
use bitcoin::{
    Amount, FeeRate, Network, Transaction, TxIn, TxMerkleNode, TxOut,
    block::{Header, Version},
    constants::genesis_block,
    hashes::Hash as _,
};

const DELAY: u32 = 4_320;
const MARGIN: u32 = 288;

pub(crate) fn wallet() -> Wallet {
    let words =
        "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
    let words = SecretWords::parse(words).expect("valid words");
    Wallet::new(testing::federation(4).federation, &words, &AccountOptions::default(), None).expect("opens")
}

impl Wallet {
    /// As if a transaction's place in a block had been proven.
    pub(crate) fn put_in_block(&mut self, transaction: &Transaction, block: BlockRef) {
        assert!(self.book.apply_block(transaction, block, &self.addresses));
    }
}

/// A header on the tip, changed as wanted before its work is done.
pub(crate) fn extend(wallet: &mut Wallet, change: impl FnOnce(&mut Header)) -> Header {
    let header = on(wallet, wallet.chain.tip().height, change);
    wallet.apply_headers(&[header]).expect("valid");
    header
}

fn on(wallet: &Wallet, height: u32, change: impl FnOnce(&mut Header)) -> Header {
    let previous = *wallet.chain.header(height).unwrap_or(&genesis_block(Network::Regtest).header);
    solve(previous, change)
}

fn solve(previous: Header, change: impl FnOnce(&mut Header)) -> Header {
    let mut header = Header {
        version: Version::TWO,
        prev_blockhash: previous.block_hash(),
        merkle_root: TxMerkleNode::all_zeros(),
        time: previous.time + 600,
        bits: previous.bits,
        nonce: 0,
    };
    change(&mut header);
    while header.validate_pow(header.target()).is_err() {
        header.nonce += 1;
    }
    header
}

/// Empty headers up to a height.
pub(crate) fn mine(wallet: &mut Wallet, height: u32) {
    for _ in wallet.chain.tip().height..height {
        extend(wallet, |_| {});
    }
}

/// Replaces the last blocks by one more empty ones.
pub(crate) fn reorganise(wallet: &mut Wallet, depth: u32) {
    let headers = branch(wallet, depth);
    wallet.apply_headers(&headers).expect("valid");
}

/// Headers that take the place of the last blocks, one more of them.
pub(crate) fn branch(wallet: &Wallet, depth: u32) -> Vec<Header> {
    let mut headers = vec![on(wallet, wallet.chain.tip().height - depth, |header| header.time += 1)];
    for _ in 0..depth {
        headers.push(solve(*headers.last().expect("one"), |_| {}));
    }
    headers
}

/// Somebody pays the wallet with a deadline of [`DEADLINE`].
pub(crate) fn paid(wallet: &mut Wallet) -> FinalityProof {
    let script = wallet.next_address().expect("an address").script_pubkey;
    let world = testing::federation(4);
    world.finish(&world.proposal_to(script, Amount::from_sat(90_000)))
}

/// A transaction in the block at height 1 pays the wallet.
pub(crate) fn confirmed(wallet: &mut Wallet, coinbase: bool) -> OutPoint {
    confirmed_at(wallet, 1, coinbase)
}

pub(crate) fn confirmed_at(wallet: &mut Wallet, height: u32, coinbase: bool) -> OutPoint {
    let script_pubkey = wallet.next_address().expect("an address").script_pubkey;
    let previous_output =
        if coinbase { OutPoint::null() } else { OutPoint { txid: Txid::all_zeros(), vout: 7 } };
    let transaction = Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![TxIn { previous_output, ..TxIn::default() }],
        output: vec![TxOut { value: Amount::from_sat(50_000), script_pubkey }],
    };
    let hash = wallet.chain.header(height).expect("mined").block_hash();
    assert!(wallet.book.apply_block(&transaction, BlockRef { height, hash }, &wallet.addresses));
    OutPoint { txid: transaction.compute_txid(), vout: 0 }
}

pub(crate) fn request(wallet: &mut Wallet, home: bool) -> PaymentRequest {
    let address = if home { wallet.next_address().expect("an address") } else { elsewhere() };
    let address = address.to_address(Network::Regtest).to_string();
    PaymentRequest::new(Destination::parse(&address, Network::Regtest).expect("an address"))
}

fn elsewhere() -> Address {
    let world = testing::federation(4);
    world.account.address(KeychainIndex { keychain: Keychain::Receive, index: 3 }).expect("derives")
}

pub(crate) fn deadline_of(proposal: &Proposal) -> Option<u32> {
    proposal.custody().deadline()
}

#[test]
fn a_payment_that_its_payer_kept_back_is_no_news_before_its_block() {
    let mut wallet = wallet();
    let proof = paid(&mut wallet);
    mine(&mut wallet, DEADLINE);
    assert_eq!(wallet.apply_proof(&proof), Ok(false));
    assert_eq!((wallet.balance(), wallet.history().len()), (Balance::default(), 0), "nothing of it counts");
    let hash = wallet.chain.header(1).expect("mined").block_hash();
    let block = BlockRef { height: 1, hash };
    assert!(wallet.book.apply_block(proof.transaction(), block, &wallet.addresses));
    assert_eq!(wallet.apply_proof(&proof), Ok(false));
    let entry = &wallet.history()[0];
    assert_eq!((entry.finality, entry.block), (None, Some(block)), "it counts by its block alone");

    // A server that claims the payer's coin for the wallet's own does not make it the wallet's own payment.
    let mut wallet = self::wallet();
    let proof = paid(&mut wallet);
    mine(&mut wallet, DEADLINE);
    let own = wallet.next_address().expect("an address").script_pubkey;
    let spent = proof.outpoints().next().expect("one");
    let claim = testing::utxo_record(spent, Amount::from_sat(90_500), own);
    wallet.apply_record(&claim).expect("a claim");
    assert_eq!(wallet.apply_proof(&proof), Ok(false));
    assert!(wallet.history().is_empty());
}

#[test]
fn no_payment_is_of_more_than_there_can_be() {
    let mut wallet = wallet();
    mine(&mut wallet, 3);
    confirmed(&mut wallet, false);
    for sat in [Amount::MAX_MONEY.to_sat() + 1, 1 << 63, u64::MAX] {
        let amount = Amount::from_sat(sat);
        let request = request(&mut wallet, false).exact(amount);
        let refused = wallet.create_psbt(&request, FeeRate::BROADCAST_MIN).expect_err("too much");
        assert_eq!(refused, WalletError::AmountTooLarge { amount });
    }
    let request = request(&mut wallet, false).exact(Amount::MAX_MONEY);
    let refused = wallet.create_psbt(&request, FeeRate::BROADCAST_MIN).expect_err("not that rich");
    assert!(matches!(refused, WalletError::InsufficientFunds { .. }), "{refused:?}");
}

#[test]
fn an_enforced_coin_is_spendable_below_its_deadline_and_waits_for_its_block_after_it() {
    let mut wallet = wallet();
    let proof = paid(&mut wallet);
    mine(&mut wallet, DEADLINE - coins::LEAD - 1);
    assert_eq!(wallet.apply_proof(&proof), Ok(true));
    let outpoint = OutPoint { txid: proof.txid(), vout: 0 };
    assert_eq!(wallet.coin_state(&outpoint), Some(CoinState::Spendable { until: DEADLINE }));
    let request = request(&mut wallet, false).exact(Amount::from_sat(10_000));
    let psbt = wallet.create_psbt(&request, FeeRate::BROADCAST_MIN).expect("one coin");
    let proposal = wallet.propose(psbt).expect("spendable");
    assert_eq!(deadline_of(&proposal), Some(DEADLINE), "not later than its parent's");
    wallet.abandon(proposal.txid());
    mine(&mut wallet, DEADLINE - coins::LEAD);
    assert_eq!(
        wallet.coin_state(&outpoint),
        Some(CoinState::Incoming),
        "too few blocks are left to pay with it"
    );
    assert_eq!(wallet.balance().incoming, Amount::from_sat(90_000));
}

/// The payer's account has a longer delay than this one, so the parent's deadline is no help; a node that is behind
/// goes by its own tip.
#[test]
fn a_fresh_coin_is_paid_with_so_that_a_node_behind_agrees() {
    let mut wallet = wallet();
    let script_pubkey = wallet.next_address().expect("an address").script_pubkey;
    let world = testing::federation(4);
    let psbt = world.proposal_to(script_pubkey, Amount::from_sat(90_000)).psbt;
    let proof = world.finish(&world.authorise(psbt, 60_000));
    mine(&mut wallet, 20);
    assert_eq!(wallet.apply_proof(&proof), Ok(true));
    let outpoint = OutPoint { txid: proof.txid(), vout: 0 };
    let until = |wallet: &Wallet| match wallet.coin_state(&outpoint) {
        Some(CoinState::Spendable { until }) => until,
        other => panic!("{other:?}"),
    };
    assert_eq!(until(&wallet), 20 + DELAY - MARGIN - coins::BEHIND);
    let block = wallet.chain.tip();
    assert!(wallet.book.apply_block(proof.transaction(), block, &wallet.addresses));
    assert_eq!(until(&wallet), 20 + DELAY - MARGIN - coins::BEHIND, "seen here, perhaps not there");
    mine(&mut wallet, 20 + coins::BEHIND);
    assert_eq!(until(&wallet), 20 + DELAY - MARGIN, "every node has the block by now");
}

#[test]
fn a_block_reward_matures() {
    let mut wallet = wallet();
    mine(&mut wallet, 99);
    let reward = confirmed(&mut wallet, true);
    assert_eq!(wallet.coin_state(&reward), Some(CoinState::Immature));
    let balance = wallet.balance();
    assert_eq!((balance.immature, balance.spendable), (Amount::from_sat(50_000), Amount::ZERO));
    mine(&mut wallet, 100);
    assert!(matches!(wallet.coin_state(&reward), Some(CoinState::Spendable { .. })));
}

#[test]
fn an_old_coin_goes_home_and_pays_nobody() {
    let mut wallet = wallet();
    mine(&mut wallet, DELAY - MARGIN - coins::LEAD);
    let coin = confirmed(&mut wallet, false);
    let horizon = 1 + DELAY - MARGIN;
    assert_eq!(wallet.coin_state(&coin), Some(CoinState::Spendable { until: horizon }));
    let payment = request(&mut wallet, false).everything();
    let psbt = wallet.create_psbt(&payment, FeeRate::BROADCAST_MIN).expect("spendable yet");
    mine(&mut wallet, horizon - coins::LEAD);
    let opens_at = 1 + DELAY;
    assert_eq!(wallet.coin_state(&coin), Some(CoinState::Expired { opens_at }));
    assert_eq!(wallet.balance().expired, Amount::from_sat(50_000));
    let refused = wallet.propose(psbt).expect_err("too old by now");
    assert_eq!(refused, WalletError::Horizon { outpoint: coin, opens_at });
    let again = wallet.create_psbt(&payment, FeeRate::BROADCAST_MIN);
    assert!(matches!(again, Err(WalletError::InsufficientFunds { .. })), "{again:?}");

    let named = request(&mut wallet, false).everything().with_coins([coin]);
    let refused = wallet.create_psbt(&named, FeeRate::BROADCAST_MIN).expect_err("too old");
    assert_eq!(refused, WalletError::Horizon { outpoint: coin, opens_at }, "by name, too");

    let home = request(&mut wallet, true).everything().with_coins([coin]);
    let psbt = wallet.create_psbt(&home, FeeRate::BROADCAST_MIN).expect("a move within the account");
    let proposal = wallet.propose(psbt).expect("allowed");
    assert_eq!(deadline_of(&proposal), Some(NOT_BEFORE_ITS_BLOCK));
    let Proposal::Joint(joint) = proposal else { panic!("joint") };
    let checked = joint.check(&wallet.federation, &wallet.account).expect("valid");
    assert!(checked.returns_home, "the PSBT describes every output of the account");
}

#[test]
fn confirmed_coins_are_taken_before_unconfirmed_ones() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    let proof = paid(&mut wallet);
    assert_eq!(wallet.apply_proof(&proof), Ok(true));
    let coin = confirmed(&mut wallet, false);
    let inputs = |wallet: &mut Wallet, sat| {
        let request = request(wallet, false).exact(Amount::from_sat(sat));
        let psbt = wallet.create_psbt(&request, FeeRate::BROADCAST_MIN).expect("enough");
        psbt.unsigned_tx.input.iter().map(|input| input.previous_output).collect::<Vec<_>>()
    };
    assert_eq!(inputs(&mut wallet, 40_000), [coin]);
    assert_eq!(inputs(&mut wallet, 120_000).len(), 2);
}

#[test]
fn nothing_is_signed_under_another_deadline_than_the_one_proposed() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    confirmed(&mut wallet, false);
    let request = request(&mut wallet, false).exact(Amount::from_sat(10_000));
    let psbt = wallet.create_psbt(&request, FeeRate::BROADCAST_MIN).expect("enough");
    let proposal = wallet.propose(psbt).expect("spendable");
    let (world, round) = (testing::federation(4), crate::Round(0));
    let certified = |wallet: &Wallet, custody| {
        let inputs = proposal.outpoints().into_iter().map(|outpoint| (outpoint, round));
        let target = crate::vote::VoteTarget::new(proposal.txid(), custody, inputs);
        wallet.sign(1, &world.approve(&target), &BTreeMap::new(), &mut testing::rng(1)).err()
    };
    let crate::vote::Custody::Joint { deadline, spent } = proposal.custody() else { panic!("joint") };
    let other = crate::vote::Custody::Joint { deadline: deadline + 1, spent };
    assert_eq!(certified(&wallet, other), Some(WalletError::NotProposed));
    assert!(
        matches!(certified(&wallet, proposal.custody()), Some(WalletError::Signing(_))),
        "no signers here"
    );
}

#[test]
fn a_servers_fee_rate_is_not_paid_out_of_proportion_without_asking() {
    let mut wallet = wallet();
    mine(&mut wallet, 5);
    confirmed(&mut wallet, false);
    let rate = FeeRate::from_sat_per_vb(200).expect("small");
    let small = request(&mut wallet, false).exact(Amount::from_sat(10_000));
    let refused = wallet.create_psbt(&small, rate).expect_err("more than the payment");
    let WalletError::FeeUnreasonable { sat_per_vb: 200, fee, amount, limit } = refused else {
        panic!("{refused}")
    };
    assert_eq!((amount, limit), (Amount::from_sat(10_000), FEE_UNASKED_MAX));
    assert!(fee > limit);
    let asked = small.fee_rate(rate);
    wallet.create_psbt(&asked, FeeRate::BROADCAST_MIN).expect("its caller wants to");
    let ordinary = request(&mut wallet, false).exact(Amount::from_sat(10_000));
    let rate = FeeRate::from_sat_per_vb(20).expect("small");
    wallet.create_psbt(&ordinary, rate).expect("in proportion");
}
