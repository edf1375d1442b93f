//! What all seeds share and would be dear to make anew: a federation with its keys, and a chain with coins.

use bitcoin::{
    Amount, Block, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    transaction::Version,
};
use quorate::{
    Federation, NodeId,
    account::AccountPolicy,
    digest::IdentityKey,
    testing,
    wallet::{SecretWords, Wallet},
};
use quorate_devnet::DevnetChain;
use std::sync::OnceLock;

/// Value of every coin at the start.
pub const COIN: Amount = Amount::from_sat(1_000_000);
/// Coins in sole custody.
pub const COINS: usize = 48;
/// Wallets with joint accounts.
pub const WALLETS: usize = 2;
/// Coins per wallet.
const COINS_PER_WALLET: usize = 4;
/// Blocks on top of the funding, more than any reorganisation takes out.
const BURIED: u32 = 8;

const WORDS: [&str; WALLETS] = [
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about",
    "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong",
];

/// One epoch with the secrets of all its nodes.
#[derive(Debug)]
pub struct Era {
    /// The verified federation.
    pub federation: Federation,
    /// Identity keys, by node.
    pub keys: Vec<IdentityKey>,
    /// Shares, by node.
    pub shares: Vec<[u8; 32]>,
}

impl Era {
    fn of(world: &testing::World) -> Self {
        Self {
            federation: world.federation.clone(),
            keys: world.keys.clone(),
            shares: world.shares.iter().map(|share| *share.to_bytes()).collect(),
        }
    }

    /// What a node has in it.
    pub fn of_node(&self, id: NodeId) -> Option<(&Federation, &IdentityKey, &[u8; 32])> {
        let index = usize::from(id.0).checked_sub(1)?;
        Some((&self.federation, self.keys.get(index)?, self.shares.get(index)?))
    }
}

/// A federation and its chain.
#[derive(Debug)]
pub struct Base {
    /// The first epoch.
    pub first: Era,
    /// The second, with nobody replaced and with each of the nodes; made when they are first wanted.
    second: Vec<OnceLock<Era>>,
    world: testing::World,
    /// The chain.
    pub blocks: Vec<Block>,
    /// Coins that anybody can spend, standing for sole custody.
    pub coins: Vec<OutPoint>,
}

impl Base {
    /// The base for 4 or 7 nodes; made once.
    pub fn of(nodes: u8) -> &'static Self {
        static FOUR: OnceLock<Base> = OnceLock::new();
        static SEVEN: OnceLock<Base> = OnceLock::new();
        let (cell, nodes) = if nodes == 4 { (&FOUR, 4) } else { (&SEVEN, 7) };
        cell.get_or_init(|| Self::make(nodes))
    }

    fn make(nodes: u8) -> Self {
        let world = testing::federation(nodes);
        let first = Era::of(&world);
        let second = (0..=nodes).map(|_| OnceLock::new()).collect();
        let chain = DevnetChain::deterministic(0, &[]).expect("an empty chain");
        chain.mine(101, &open_output()).expect("mines");
        let reward =
            chain.blocks().first().and_then(|block| block.txdata.first()).map(Transaction::compute_txid);
        let reward = reward.expect("a coinbase");
        let mut outputs = vec![TxOut { value: COIN, script_pubkey: open_output() }; COINS];
        for index in 0..WALLETS {
            let mut wallet = open_wallet(&first.federation, index);
            for _ in 0..COINS_PER_WALLET {
                let address = wallet.next_address().expect("an address");
                outputs.push(TxOut { value: COIN, script_pubkey: address.script_pubkey });
            }
        }
        let funding = spend(&[OutPoint { txid: reward, vout: 0 }], outputs);
        let txid = chain.submit(funding).expect("valid");
        chain.mine(1 + BURIED, &open_output()).expect("mines");
        let coins = (0..).take(COINS).map(|vout| OutPoint { txid, vout }).collect();
        Self { first, second, world, blocks: chain.blocks(), coins }
    }

    /// The second epoch, in which a node may be another one.
    pub fn second(&self, replaced: Option<NodeId>) -> &Era {
        let index = replaced.map_or(0, |node| usize::from(node.0));
        let replaced: Vec<_> = replaced.into_iter().collect();
        let cell = self.second.get(index).expect("a node of the federation");
        cell.get_or_init(|| Era::of(&testing::succession(&self.world, &replaced)))
    }
}

/// A wallet of fixed words.
pub fn open_wallet(federation: &Federation, index: usize) -> Wallet {
    let words = WORDS.get(index).expect("a wallet of the simulation");
    let words = SecretWords::parse(words).expect("valid words");
    Wallet::new(federation.clone(), &words, 0, AccountPolicy::default(), None).expect("opens")
}

/// Script of a coin that anybody can spend, wrapped in P2WSH.
pub fn open_output() -> ScriptBuf {
    ScriptBuf::new_p2wsh(&open_script().wscript_hash())
}

fn open_script() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![bitcoin::opcodes::OP_TRUE.to_u8()])
}

/// A signed transaction of such coins.
pub fn spend(inputs: &[OutPoint], output: Vec<TxOut>) -> Transaction {
    let input = inputs.iter().map(|outpoint| TxIn {
        previous_output: *outpoint,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::MAX,
        witness: Witness::from_slice(&[open_script().as_bytes()]),
    });
    Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: input.collect(), output }
}
