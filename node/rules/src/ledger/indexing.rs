//! What the ledger has of the chain, to and from the index.

use super::Ledger;
use crate::{index::IndexedCoin, records::ChangeSet};
use bitcoin::{OutPoint, ScriptBuf, TxOut};
use quorate_protocol::wire::ConfirmedSpend;
use std::collections::BTreeSet;

/// What of the index is not as the ledger has it, beside blocks.
#[derive(Debug, Default)]
pub(super) struct Stale {
    /// Coins, and spends of coins that are not known.
    pub(super) outpoints: BTreeSet<OutPoint>,
    pub(super) scripts: BTreeSet<ScriptBuf>,
}

impl Ledger {
    /// Takes over what blocks did to coins, as the index has it.
    pub(super) fn restore_chain(
        &mut self,
        coins: Vec<(OutPoint, IndexedCoin)>,
        spends: Vec<(OutPoint, ConfirmedSpend)>,
        scripts: Vec<(ScriptBuf, u32)>,
    ) {
        for (outpoint, IndexedCoin { output, coinbase, created, spent }) in coins {
            let coin = self.add(outpoint, &output, coinbase);
            (coin.record.created, coin.record.spent) = (created, spent);
            if let Some(block) = created {
                self.blocks.note_transaction(outpoint.txid, block.height);
            }
            if let Some(spent) = spent {
                self.blocks.note_transaction(spent.txid, spent.block.height);
            }
        }
        for (outpoint, spent) in spends {
            self.blocks.note_transaction(spent.txid, spent.block.height);
            self.unknown_spent.insert(outpoint, spent);
        }
        for (script, from) in scripts {
            self.coins.want(&script, from);
        }
    }

    /// What has changed since this was last asked for; nothing if nothing has.
    pub(crate) fn take_index(&mut self) -> Option<ChangeSet> {
        let mut change = ChangeSet::default();
        for height in std::mem::take(&mut self.blocks.stale_headers) {
            change.put_header(height, self.blocks.indexed(height));
        }
        for height in std::mem::take(&mut self.blocks.stale_effects) {
            change.put_effect(height, self.blocks.effect(height));
        }
        let Stale { outpoints, scripts } = std::mem::take(&mut self.stale);
        for outpoint in outpoints {
            change.put_coin(&outpoint, self.indexed_coin(&outpoint).as_ref());
            change.put_spend(&outpoint, self.unknown_spent.get(&outpoint));
        }
        for script in scripts {
            change.put_script(&script, self.coins.indexed_from(&script));
        }
        (!change.is_empty()).then_some(change)
    }

    /// A coin that a block created or spent.
    fn indexed_coin(&self, outpoint: &OutPoint) -> Option<IndexedCoin> {
        let coin = self.coins.get(outpoint)?;
        let record = &coin.record;
        let in_chain = record.created.is_some() || record.spent.is_some();
        in_chain.then(|| IndexedCoin {
            output: TxOut { value: record.value, script_pubkey: record.script_pubkey.clone() },
            coinbase: coin.coinbase,
            created: record.created,
            spent: record.spent,
        })
    }

    /// A final transaction whose block was read before it was known to be final.
    pub(super) fn note_spent(&mut self, outpoint: &OutPoint, spent: ConfirmedSpend) {
        match self.coins.get_mut(outpoint) {
            Some(coin) if coin.record.spent.is_none() => coin.record.spent = Some(spent),
            Some(_) => return,
            None => {
                self.unknown_spent.insert(*outpoint, spent);
            }
        }
        self.blocks.note_transaction(spent.txid, spent.block.height);
        self.blocks.note_spent(spent.block.height, *outpoint);
        self.stale.outpoints.insert(*outpoint);
    }

    /// A coin that was looked up is kept if something was said about it: nobody else can make the index grow.
    pub(super) fn note_in_block(&mut self, outpoint: &OutPoint) {
        let created = self.coin(outpoint).is_some_and(|coin| coin.created.is_some());
        if created && self.rounds.contains(outpoint) {
            self.stale.outpoints.insert(*outpoint);
        }
    }
}
