//! Coins as this node knows them, found by outpoint and by script.

use crate::index::IndexedCoin;
use bitcoin::{OutPoint, ScriptBuf, TxOut, Txid, hashes::Hash as _};
use quorate_protocol::{
    AccountId, Round,
    wire::{ConfirmedSpend, FinalSpend, UtxoRecord},
};
use std::collections::{BTreeMap, BTreeSet};

/// A coin with its facts, as subscribers are told them.
#[derive(Debug)]
pub(super) struct Coin {
    pub(super) record: UtxoRecord,
    pub(super) coinbase: bool,
    /// Whose it is, if its account is indexed.
    account: Option<AccountId>,
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

/// All coins. Most scripts and accounts have few, so that a set for each would take more room than its coins.
#[derive(Debug, Default)]
pub(super) struct Coins {
    coins: BTreeMap<OutPoint, Coin>,
    scripts: BTreeSet<(ScriptBuf, OutPoint)>,
    accounts: BTreeSet<(AccountId, OutPoint)>,
}

impl Coins {
    pub(super) fn get(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }

    pub(super) fn get_mut(&mut self, outpoint: &OutPoint) -> Option<&mut Coin> {
        self.coins.get_mut(outpoint)
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
        self.scripts.remove(&(coin.record.script_pubkey, *outpoint));
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
    pub(super) fn assign(&mut self, script: &ScriptBuf, account: AccountId) -> Vec<OutPoint> {
        let mut news = self.by_script(script);
        news.retain(|outpoint| {
            let coin = self.coins.get_mut(outpoint).filter(|coin| coin.account.is_none());
            coin.map(|coin| coin.account = Some(account)).is_some()
        });
        self.accounts.extend(news.iter().map(|outpoint| (account, *outpoint)));
        news
    }

    pub(super) fn by_script(&self, script: &ScriptBuf) -> Vec<OutPoint> {
        let own = self.scripts.range((script.clone(), first())..);
        own.take_while(|(of, _)| of == script).map(|(_, outpoint)| *outpoint).collect()
    }

    /// Adds a coin, or gives the one that is there.
    pub(super) fn insert(
        &mut self,
        outpoint: OutPoint,
        output: &TxOut,
        coinbase: bool,
        round: Round,
        spend: Option<FinalSpend>,
        account: Option<AccountId>,
    ) -> &mut Coin {
        let TxOut { value, script_pubkey } = output.clone();
        if !self.coins.contains_key(&outpoint) {
            self.scripts.insert((script_pubkey.clone(), outpoint));
            self.accounts.extend(account.map(|account| (account, outpoint)));
        }
        self.coins.entry(outpoint).or_insert_with(|| Coin {
            record: UtxoRecord {
                outpoint,
                value,
                script_pubkey,
                tip_height: 0,
                created: None,
                conflicted: None,
                final_parent: None,
                round,
                lock: None,
                votes: 0,
                spend,
                spent: None,
            },
            coinbase,
            account,
        })
    }
}
