//! Payments choose coins so that the network takes them with what they hang on.

use super::build::{self, SpendableCoin};
use super::clusters::{Clusters, too_large};
use super::tests::{confirmed, mine, request, wallet};
use super::*;
use crate::relay_policy::CLUSTER_TRANSACTIONS_MAX;
use bitcoin::{
    Amount, FeeRate, Psbt, Transaction, TxIn, TxOut, absolute::LockTime, hashes::Hash as _,
    transaction::Version,
};

const FREE: FeeRate = FeeRate::BROADCAST_MIN;
/// A cluster that takes one more payment, and after it what lifts, by its payer and its payee.
const LONGEST: usize = CLUSTER_TRANSACTIONS_MAX - 3;

/// Transactions of which each spends the one before; told apart from other chains by their lock time.
fn chain(length: usize, which: u32, value: Amount) -> Vec<Transaction> {
    let mut chain: Vec<Transaction> = Vec::new();
    for _ in 0..length {
        let txid = chain.last().map_or(Txid::all_zeros(), Transaction::compute_txid);
        chain.push(Transaction {
            version: Version::TWO,
            lock_time: LockTime::from_consensus(which),
            input: vec![TxIn { previous_output: OutPoint { txid, vout: 0 }, ..TxIn::default() }],
            output: vec![TxOut { value, script_pubkey: ScriptBuf::new_op_return([7]) }],
        });
    }
    chain
}

/// A wallet with a coin at the end of each chain, of its value, and confirmed ones.
struct World {
    wallet: Wallet,
    chains: Vec<Vec<Transaction>>,
    confirmed: Vec<OutPoint>,
    crowded: Vec<usize>,
}

impl World {
    fn new(chains: &[(usize, u64)]) -> Self {
        let mut wallet = wallet();
        mine(&mut wallet, 3);
        let made = chains.iter().zip(1..);
        let chains = made.map(|((length, sat), which)| chain(*length, which, Amount::from_sat(*sat)));
        Self { wallet, chains: chains.collect(), confirmed: Vec::new(), crowded: Vec::new() }
    }

    fn tip(&self, which: usize) -> OutPoint {
        OutPoint { txid: self.chains[which].last().expect("one").compute_txid(), vout: 0 }
    }

    fn build(&mut self, request: &PaymentRequest) -> Result<Vec<OutPoint>, WalletError> {
        let address = self.wallet.next_address()?;
        let all = self.chains.iter().flatten().map(|one| (one.compute_txid(), one)).collect();
        let coin = |outpoint, value, confirmed, crowded| {
            let address = address.clone();
            SpendableCoin { outpoint, value, confirmed, aging: false, crowded, address }
        };
        let tips = self.chains.iter().enumerate().map(|(which, chain)| {
            let value = chain[0].output[0].value;
            coin(self.tip(which), value, false, self.crowded.contains(&which))
        });
        let blocks =
            self.confirmed.iter().map(|outpoint| coin(*outpoint, Amount::from_sat(50_000), true, false));
        let coins = tips.chain(blocks).collect();
        let mut funds = self.wallet.funds(coins, address.clone());
        funds.clusters = Clusters::new(&all);
        build::build(request, FREE, &funds).map(|psbt| inputs(&psbt))
    }

    fn pay(&mut self, sat: u64) -> Result<Vec<OutPoint>, WalletError> {
        let request = request(&mut self.wallet, false).exact(Amount::from_sat(sat));
        self.build(&request)
    }
}

fn inputs(psbt: &Psbt) -> Vec<OutPoint> {
    psbt.unsigned_tx.input.iter().map(|input| input.previous_output).collect()
}

#[test]
fn a_payment_takes_the_shortest_chain_and_none_that_is_too_long() {
    let mut world = World::new(&[(LONGEST, 100_000), (3, 100_000), (LONGEST + 1, 900_000)]);
    assert_eq!(world.pay(50_000), Ok(vec![world.tip(1)]), "the shortest");
    world.crowded.push(1);
    assert_eq!(world.pay(50_000), Ok(vec![world.tip(0)]), "nodes found the shortest too long");
    world.crowded.push(0);
    assert_eq!(world.pay(50_000), Ok(vec![world.tip(1)]), "better one that may be refused than none");
    assert_eq!(world.pay(150_000), Err(too_large()), "two that are too long together");
    assert_eq!(world.pay(500_000), Err(too_large()), "there is money, and a block has to come first");
    assert!(matches!(world.pay(2_000_000), Err(WalletError::InsufficientFunds { .. })));
}

#[test]
fn several_chains_pay_together_if_they_are_short() {
    let mut world = World::new(&[(LONGEST, 100_000), (3, 100_000), (2, 100_000)]);
    let mut chosen = world.pay(150_000).expect("the two short ones");
    chosen.sort();
    let mut expected = vec![world.tip(1), world.tip(2)];
    expected.sort();
    assert_eq!(chosen, expected);
    // Nothing that could go alone is left: a block has to come, and that is said.
    let mut world = World::new(&[(25, 100_000)]);
    let everything = request(&mut world.wallet, false).everything();
    assert_eq!(world.build(&everything), Err(too_large()));
}

#[test]
fn confirmed_coins_come_first_and_fill_up_what_a_chain_lacks() {
    let mut world = World::new(&[(LONGEST, 100_000), (4, 90_000)]);
    world.confirmed.push(confirmed(&mut world.wallet, false));
    assert_eq!(world.pay(40_000), Ok(vec![world.confirmed[0]]));
    let mut both = world.pay(120_000).expect("one chain and the confirmed coin");
    both.sort();
    let mut expected = vec![world.tip(1), world.confirmed[0]];
    expected.sort();
    assert_eq!(both, expected);
    // Everything: what may go together; the rest after the next block.
    let everything = request(&mut world.wallet, false).everything();
    let chosen = world.build(&everything).expect("what fits");
    assert_eq!(chosen, [world.tip(0), world.confirmed[0]]);
}

#[test]
fn chains_that_share_a_transaction_are_one_cluster() {
    let mut trunk = chain(20, 1, Amount::from_sat(1_000));
    let output = trunk[19].output[0].clone();
    trunk[19].output.push(output);
    let txid = trunk[19].compute_txid();
    let branch = |vout| {
        let mut one = chain(1, 2, Amount::from_sat(1_000)).remove(0);
        one.input[0].previous_output = OutPoint { txid, vout };
        one
    };
    let branches = [branch(0), branch(1)];
    let all = trunk.iter().chain(&branches).map(|one| (one.compute_txid(), one)).collect();
    let clusters = Clusters::new(&all);
    let coins = branches.each_ref().map(|one| OutPoint { txid: one.compute_txid(), vout: 0 });
    assert_eq!(clusters.of(&coins[0]), clusters.of(&coins[1]));
    assert_eq!(clusters.with_room().len(), 1);
    assert!(clusters.fit(&coins, 200), "22 and one");
    assert!(!clusters.fit(&coins, 100_000), "too many bytes");
}

#[test]
fn what_nodes_find_too_long_is_remembered_until_the_next_block() {
    let mut wallet = wallet();
    mine(&mut wallet, 3);
    let coin = confirmed(&mut wallet, false);
    let request = request(&mut wallet, false).exact(Amount::from_sat(10_000));
    let psbt = wallet.create_psbt(&request, FREE).expect("enough");
    let proposal = wallet.propose(psbt).expect("spendable");
    wallet.crowded(proposal.txid());
    wallet.abandon(proposal.txid());
    assert!(wallet.is_crowded(&coin));
    assert!(wallet.create_psbt(&request, FREE).is_ok(), "it is a preference, no lock");
    mine(&mut wallet, 4);
    assert!(!wallet.is_crowded(&coin));
}
