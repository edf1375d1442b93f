//! Coins as this node knows them, found by outpoint and by script.

use crate::index::IndexedCoin;
use bitcoin::{OutPoint, ScriptBuf, TxOut, Txid};
use quorate_protocol::{
    Round,
    wire::{ConfirmedSpend, FinalSpend, UtxoRecord},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A coin with its facts, as subscribers are told them.
#[derive(Debug)]
pub(super) struct Coin {
    pub(super) record: UtxoRecord,
    pub(super) coinbase: bool,
}

/// A coin that has left memory and is to leave the index.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) outpoint: OutPoint,
    pub(super) coin: Option<IndexedCoin>,
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

/// All coins.
#[derive(Debug, Default)]
pub(super) struct Coins {
    coins: BTreeMap<OutPoint, Coin>,
    scripts: HashMap<ScriptBuf, BTreeSet<OutPoint>>,
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
        if let Some(others) = self.scripts.get_mut(&coin.record.script_pubkey) {
            others.remove(outpoint);
            if others.is_empty() {
                self.scripts.remove(&coin.record.script_pubkey);
            }
        }
    }

    pub(super) fn by_script(&self, script: &ScriptBuf) -> Vec<OutPoint> {
        self.scripts.get(script).map(|set| set.iter().copied().collect()).unwrap_or_default()
    }

    /// Adds a coin, or gives the one that is there.
    pub(super) fn insert(
        &mut self,
        outpoint: OutPoint,
        output: &TxOut,
        coinbase: bool,
        round: Round,
        spend: Option<FinalSpend>,
    ) -> &mut Coin {
        let TxOut { value, script_pubkey } = output.clone();
        self.scripts.entry(script_pubkey.clone()).or_default().insert(outpoint);
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
        })
    }
}
