//! Coins as this node knows them, found by outpoint and by script. A node that has been paid for years has many that
//! rest: of these it holds what a block said, and the rest only of those that somebody said something about.

use crate::index::{IndexedCoin, short_key};
use bitcoin::{Amount, OutPoint, Script, ScriptBuf, TxOut, Txid, hashes::Hash as _};
use quorate_protocol::{
    AccountId, Round,
    finality::FinalityKind,
    wire::{BlockRef, ConfirmedSpend, FinalSpend, Lock, UtxoRecord},
};
use std::collections::{BTreeMap, BTreeSet};

/// A coin with its facts.
#[derive(Debug)]
pub(crate) struct Coin {
    pub(crate) value: Amount,
    pub(crate) script: Box<Script>,
    /// The block that created it.
    pub(crate) created: Option<BlockRef>,
    pub(crate) coinbase: bool,
    /// Whose it is, if its account is indexed.
    account: Option<AccountId>,
    said: Option<Box<Said>>,
}

/// What was said about a coin, or spends it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) final_parent: Option<FinalityKind>,
    pub(super) round: Round,
    pub(super) lock: Option<Lock>,
    pub(super) votes: u16,
    pub(super) spend: Option<FinalSpend>,
    pub(super) spent: Option<ConfirmedSpend>,
}

impl Said {
    fn nothing(round: Round) -> Self {
        Self { final_parent: None, round, lock: None, votes: 0, spend: None, spent: None }
    }
}

impl Coin {
    pub(crate) fn output(&self) -> TxOut {
        TxOut { value: self.value, script_pubkey: self.script.to_owned() }
    }

    /// What a block spends it with.
    pub(crate) fn spent(&self) -> Option<ConfirmedSpend> {
        self.said.as_ref()?.spent
    }

    /// What spends it that is final.
    pub(crate) fn spend(&self) -> Option<FinalSpend> {
        self.said.as_ref()?.spend
    }

    /// Whether a block has created or spent it.
    pub(crate) fn is_in_chain(&self) -> bool {
        self.created.is_some() || self.spent().is_some()
    }
}

/// A coin that has left memory and is to leave the index.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) outpoint: OutPoint,
    pub(super) coin: Option<IndexedCoin>,
    pub(super) account: Option<AccountId>,
    /// What a block spends it with, if this node does not know the coin.
    pub(super) spent: Option<ConfirmedSpend>,
}

impl Leaving {
    /// What spends it.
    pub(super) fn spender(&self) -> Option<Txid> {
        let spent = self.coin.as_ref().and_then(|coin| coin.spent).or(self.spent);
        spent.map(|spent| spent.txid)
    }
}

/// The least outpoint.
fn first() -> OutPoint {
    OutPoint { txid: Txid::all_zeros(), vout: 0 }
}

/// A script's hash or key, which others may share: each coin has its script.
type ShortScript = [u8; 12];

fn short(script: &Script) -> ShortScript {
    short_key(script).unwrap_or_else(|| {
        let mut short = [0; 12];
        short.copy_from_slice(script.script_hash().as_byte_array().get(..12).unwrap_or_default());
        short
    })
}

/// All coins. Most scripts and accounts have few, so that a set for each would take more room than its coins.
#[derive(Debug)]
pub(super) struct Coins {
    /// The round of a coin that nothing was said about.
    first: Round,
    coins: BTreeMap<OutPoint, Coin>,
    scripts: BTreeSet<(ShortScript, OutPoint)>,
    accounts: BTreeSet<(AccountId, OutPoint)>,
}

impl Coins {
    pub(super) fn new(first: Round) -> Self {
        let (coins, scripts, accounts) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { first, coins, scripts, accounts }
    }

    /// Coins as the index has them, in trees without room to spare.
    pub(super) fn restore(
        first: Round,
        coins: Vec<(OutPoint, IndexedCoin)>,
        account_of: impl Fn(&Script) -> Option<AccountId>,
    ) -> Self {
        let coin = |(outpoint, IndexedCoin { output, coinbase, created, spent }): (OutPoint, IndexedCoin)| {
            let account = account_of(&output.script_pubkey);
            let said = spent.map(|_| Box::new(Said { spent, ..Said::nothing(first) }));
            let (value, script) = (output.value, output.script_pubkey.into_boxed_script());
            (outpoint, Coin { value, script, created, coinbase, account, said })
        };
        let coins: BTreeMap<OutPoint, Coin> = coins.into_iter().map(coin).collect();
        let scripts = coins.iter().map(|(outpoint, coin)| (short(&coin.script), *outpoint)).collect();
        let accounts = coins.iter().filter_map(|(outpoint, coin)| Some((coin.account?, *outpoint))).collect();
        Self { first, coins, scripts, accounts }
    }

    pub(super) fn get(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }

    pub(super) fn get_mut(&mut self, outpoint: &OutPoint) -> Option<&mut Coin> {
        self.coins.get_mut(outpoint)
    }

    /// To say something about a coin, or to take it back.
    pub(super) fn said_mut(&mut self, outpoint: &OutPoint) -> Option<&mut Said> {
        let coin = self.coins.get_mut(outpoint)?;
        Some(coin.said.get_or_insert_with(|| Box::new(Said::nothing(self.first))))
    }

    /// What subscribers are told of a coin, of blocks up to a height.
    pub(super) fn record(&self, outpoint: &OutPoint, tip_height: u32) -> Option<UtxoRecord> {
        let coin = self.coins.get(outpoint)?;
        let nothing = Said::nothing(self.first);
        let Said { final_parent, round, lock, votes, spend, spent } =
            coin.said.as_ref().map_or(nothing, |said| **said);
        Some(UtxoRecord {
            outpoint: *outpoint,
            value: coin.value,
            script_pubkey: ScriptBuf::from(&*coin.script),
            tip_height,
            created: coin.created,
            conflicted: None,
            final_parent,
            round,
            lock,
            votes,
            spend,
            spent,
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OutPoint, &Coin)> {
        self.coins.iter()
    }

    /// Those that a transaction created.
    pub(super) fn of_transaction(&self, txid: &Txid) -> impl Iterator<Item = (&OutPoint, &Coin)> {
        let [first, last] = [u32::MIN, u32::MAX].map(|vout| OutPoint { txid: *txid, vout });
        self.coins.range(first..=last)
    }

    pub(super) fn len(&self) -> usize {
        self.coins.len()
    }

    pub(super) fn remove(&mut self, outpoint: &OutPoint) {
        let Some(coin) = self.coins.remove(outpoint) else { return };
        self.scripts.remove(&(short(&coin.script), *outpoint));
        if let Some(account) = coin.account {
            self.accounts.remove(&(account, *outpoint));
        }
    }

    /// The coins of an account.
    pub(super) fn by_account(&self, account: &AccountId) -> Vec<OutPoint> {
        let own = self.accounts.range((*account, first())..);
        own.take_while(|(of, _)| of == account).map(|(_, outpoint)| *outpoint).collect()
    }

    /// The account that a coin is of.
    pub(super) fn account(&self, outpoint: &OutPoint) -> Option<AccountId> {
        self.coins.get(outpoint)?.account
    }

    /// A script is of an account: its coins are, too. Gives those of which this is news.
    pub(super) fn assign(&mut self, script: &Script, account: AccountId) -> Vec<OutPoint> {
        let mut news = self.by_script(script);
        news.retain(|outpoint| {
            let coin = self.coins.get_mut(outpoint).filter(|coin| coin.account.is_none());
            coin.map(|coin| coin.account = Some(account)).is_some()
        });
        self.accounts.extend(news.iter().map(|outpoint| (account, *outpoint)));
        news
    }

    pub(super) fn by_script(&self, script: &Script) -> Vec<OutPoint> {
        let short = short(script);
        let alike = self.scripts.range((short, first())..).take_while(|(of, _)| *of == short);
        let is_its = |outpoint: &OutPoint| self.get(outpoint).is_some_and(|coin| *coin.script == *script);
        alike.map(|(_, outpoint)| *outpoint).filter(is_its).collect()
    }

    /// Adds a coin unless it is there.
    pub(super) fn insert(
        &mut self,
        outpoint: OutPoint,
        output: &TxOut,
        coinbase: bool,
        spend: Option<FinalSpend>,
        account: Option<AccountId>,
    ) {
        if self.coins.contains_key(&outpoint) {
            return;
        }
        self.scripts.insert((short(&output.script_pubkey), outpoint));
        self.accounts.extend(account.map(|account| (account, outpoint)));
        let (value, script) = (output.value, output.script_pubkey.clone().into_boxed_script());
        self.coins.insert(outpoint, Coin { value, script, created: None, coinbase, account, said: None });
        if spend.is_some()
            && let Some(said) = self.said_mut(&outpoint)
        {
            said.spend = spend;
        }
    }
}
