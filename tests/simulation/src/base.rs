//! What all seeds share and would be dear to make anew: a federation with its keys, and a chain with coins.

use crate::{node::apply, oracle::Mirror};
use bitcoin::{
    Amount, Block, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
    absolute::LockTime, transaction::Version,
};
use quorate::{
    Federation, NodeId,
    account::{AccountCertificate, AccountRecord, JointAccount},
    digest::IdentityKey,
    frost::{NodeCommitments, NodeShare, SigningSession, WalletSecret, WalletSignature, wallet_sign},
    proposal::{CheckedProposal, JointProposal, Proposal},
    testing,
    vote::VoteTarget,
    wallet::{AccountOptions, SecretWords, Wallet},
    wire::VotingRequest,
};
use quorate_devnet::DevnetChain;
use quorate_rules::{Machine, Output, ReplyTo, Settings, Stored};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

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

/// Coins of the owner that lies about deadlines.
const GREEDY_COINS: u32 = 8;
/// Value of each.
const GREEDY_COIN: Amount = Amount::from_sat(90_500);

/// Blocks between a block and the height from which its coin of the thief can be taken back: a little above the
/// federation's margin, so that it can be paid with for a while.
const THIEF_DELAY: u16 = 288 + 45;

const WORDS: [&str; WALLETS] = [
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about",
    "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong",
];

/// A federation and its chain.
pub struct Base {
    /// The federation in its first epoch.
    pub federation: Arc<Federation>,
    keys: Vec<IdentityKey>,
    shares: Vec<[u8; 32]>,
    /// The chain.
    pub blocks: Vec<Block>,
    /// The index of a node at which all accounts have registered, before the chain is read.
    pub index: Mirror,
    /// Coins that anybody can spend, standing for sole custody.
    pub coins: Vec<OutPoint>,
    /// Coins of the joint account of `testing`, which belongs to an owner that lies about deadlines.
    greedy: Vec<OutPoint>,
    /// The coin of the owner that works with an evil node, whose recovery path opens soon.
    stolen: OutPoint,
    thief: testing::World,
    world: testing::World,
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Base").field("coins", &self.coins).finish_non_exhaustive()
    }
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
        let chain = DevnetChain::deterministic(0, &[]).expect("an empty chain");
        chain.mine(101, &open_output()).expect("mines");
        let reward =
            chain.blocks().first().and_then(|block| block.txdata.first()).map(Transaction::compute_txid);
        let reward = reward.expect("a coinbase");
        let mut outputs = vec![TxOut { value: COIN, script_pubkey: open_output() }; COINS];
        let mut accounts = Vec::new();
        for index in 0..WALLETS {
            let mut wallet = open_wallet(&world.federation, index);
            accounts.push(wallet.account().record().clone());
            for _ in 0..COINS_PER_WALLET {
                let address = wallet.next_address().expect("an address");
                outputs.push(TxOut { value: COIN, script_pubkey: address.script_pubkey });
            }
        }
        let greedy = TxOut { value: GREEDY_COIN, script_pubkey: world.script() };
        let first = u32::try_from(outputs.len()).expect("few");
        outputs.extend((0..GREEDY_COINS).map(|_| greedy.clone()));
        let thief = world.with_delay(THIEF_DELAY);
        accounts.extend([world.account.record().clone(), thief.account.record().clone()]);
        let index = registered(&world, accounts);
        let last = u32::try_from(outputs.len()).expect("few");
        outputs.push(TxOut { value: GREEDY_COIN, script_pubkey: thief.script() });
        let funding = spend(&[OutPoint { txid: reward, vout: 0 }], outputs);
        let txid = chain.submit(funding).expect("valid");
        chain.mine(1 + BURIED, &open_output()).expect("mines");
        let coins = (0..).take(COINS).map(|vout| OutPoint { txid, vout }).collect();
        let greedy = (first..).take(GREEDY_COINS as usize).map(|vout| OutPoint { txid, vout }).collect();
        let stolen = OutPoint { txid, vout: last };
        let shares = world.shares.iter().map(|share| *share.to_bytes()).collect();
        let federation = Arc::new(world.federation.clone());
        let keys = world.keys.clone();
        Self { federation, keys, shares, blocks: chain.blocks(), index, coins, greedy, stolen, thief, world }
    }

    /// A node's identity key in the first epoch.
    pub fn key_of(&self, id: NodeId) -> Option<IdentityKey> {
        self.keys.get(usize::from(id.0).checked_sub(1)?).cloned()
    }

    /// The transaction that pays all coins, and the height of its block.
    pub fn funding(&self) -> Option<(Txid, u32)> {
        let height = u32::try_from(self.blocks.len()).ok()?.checked_sub(BURIED)?;
        Some((self.coins.first()?.txid, height))
    }

    /// The latest deadline that a coin of the start allows.
    pub fn latest_deadline(&self) -> u32 {
        let (roster, height) = (self.federation.roster(), self.funding().map_or(0, |(_, height)| height));
        height + u32::from(roster.recovery_delay) - u32::from(roster.recovery_margin)
    }

    /// A payment of a coin by the owner that lies about deadlines; `None` if there is no such coin.
    pub fn greedy_payment(&self, coin: usize, deadline: u32) -> Option<(Proposal, AccountCertificate)> {
        let payment = TxOut { value: GREEDY_COIN - Amount::from_sat(1_000), script_pubkey: open_output() };
        let psbt = self.world.psbt(*self.greedy.get(coin)?, GREEDY_COIN, payment);
        let proposal = Proposal::Joint(Box::new(self.world.authorise(psbt, deadline)));
        Some((proposal, self.world.certificate()))
    }

    /// The account of the thief.
    pub fn thief(&self) -> &JointAccount {
        &self.thief.account
    }

    /// Height of the first block that can have what the thief's recovery path makes.
    pub fn thief_opens_at(&self) -> u32 {
        self.funding().map_or(0, |(_, height)| height) + u32::from(THIEF_DELAY)
    }

    /// The payment that the thief means to take back, with the latest deadline that there is.
    pub fn theft(&self, to: ScriptBuf) -> (JointProposal, AccountCertificate) {
        let payment = TxOut { value: GREEDY_COIN - Amount::from_sat(1_000), script_pubkey: to };
        let psbt = self.thief.psbt(self.stolen, GREEDY_COIN, payment);
        let deadline = self.thief_opens_at() - u32::from(self.federation.roster().recovery_margin);
        (self.thief.authorise(psbt, deadline), self.thief.certificate())
    }

    /// The thief's part in a signing session.
    pub fn sign_as_thief(
        &self,
        checked: &CheckedProposal,
        target: &VoteTarget,
        attempt: u32,
        nodes: &BTreeMap<NodeId, NodeCommitments>,
        seed: u64,
    ) -> Option<(WalletSignature, SigningSession)> {
        let (federation, plan) = (&self.thief.federation, &checked.plan);
        let secret = WalletSecret::new(&self.thief.wallet);
        let (key, mut rng) = (&self.thief.authorisation, testing::rng(seed));
        let wallet = wallet_sign(federation, plan, target, attempt, nodes, &secret, key, &mut rng).ok()?;
        let session =
            SigningSession::new(federation, plan, target, attempt, nodes, &wallet.commitments).ok()?;
        Some((wallet, session))
    }

    /// The thief's coin, by its recovery path.
    pub fn take_back(&self, checked: &CheckedProposal, to: ScriptBuf) -> Option<Transaction> {
        let output = TxOut { value: GREEDY_COIN - Amount::from_sat(2_000), script_pubkey: to };
        Some(self.thief.recover(self.stolen, checked.spent.first()?, output))
    }

    /// A node's share in the first epoch.
    pub fn share_of(&self, id: NodeId) -> Option<[u8; 32]> {
        self.shares.get(usize::from(id.0).checked_sub(1)?).copied()
    }
}

/// The index of a node that has accepted these accounts and read nothing.
fn registered(world: &testing::World, accounts: Vec<AccountRecord>) -> Mirror {
    let (me, peer) = (NodeId(1), NodeId(2));
    let share = world.shares.first().and_then(|share| NodeShare::from_bytes(me, &share.to_bytes()));
    let (key, share) = (world.keys.first().cloned().expect("a key"), share.expect("a share"));
    let settings = Settings {
        min_confirmations: 1,
        voting_timeout: Duration::from_secs(1),
        signing_timeout: Duration::from_secs(1),
        small_proposal: 0,
        bug: None,
    };
    let (federation, rng) = (world.federation.clone(), testing::rng(0));
    let mut machine = Machine::new(me, federation, key, share, settings, rng, Stored::default());
    let mut index = Mirror::new();
    for (record, number) in accounts.into_iter().zip(1..) {
        let request = VotingRequest::AccountRequest { record };
        machine.handle_request(peer, ReplyTo::Peer(number), request);
        while let Some(output) = machine.poll_output() {
            if let Output::Index(change) = output {
                apply(&mut index, &change);
            }
        }
    }
    index
}

/// A wallet of fixed words.
pub fn open_wallet(federation: &Federation, index: usize) -> Wallet {
    let words = WORDS.get(index).expect("a wallet of the simulation");
    let words = SecretWords::parse(words).expect("valid words");
    Wallet::new(federation.clone(), &words, &AccountOptions::default(), None).expect("opens")
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
