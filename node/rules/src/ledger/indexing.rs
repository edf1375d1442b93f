//! What the ledger has of the chain, to and from the index.

use super::{Coin, Ledger, coins::Coins};
use crate::{index::IndexedCoin, records::ChangeSet};
use bitcoin::OutPoint;
use quorate_protocol::wire::ConfirmedSpend;

impl Ledger {
    /// Takes over what blocks did to coins, as the index has it.
    pub(super) fn restore_chain(
        &mut self,
        coins: Vec<(OutPoint, IndexedCoin)>,
        spends: Vec<(OutPoint, ConfirmedSpend)>,
    ) {
        for (outpoint, IndexedCoin { created, spent, .. }) in &coins {
            if let Some(block) = created {
                self.blocks.note_transaction(outpoint.txid, block.height);
            }
            if let Some(spent) = spent {
                self.blocks.note_transaction(spent.txid, spent.block.height);
            }
        }
        self.coins = Coins::restore(self.rounds.first(), coins, |script| self.scripts.account_of(script));
        for outpoint in self.rounds.bound() {
            self.show_round(&outpoint);
        }
        for (outpoint, spent) in spends {
            self.blocks.note_transaction(spent.txid, spent.block.height);
            self.unknown_spent.insert(outpoint, spent);
        }
    }

    /// Whether something that may still be mined spends a coin of which this node does not know what the chain did to
    /// it: the epoch before left it to this node, which had not heard of it when it read the blocks.
    pub(super) fn is_doubtful(&self) -> bool {
        let unmined = self.transactions.all().filter(|(txid, _)| self.block_of(txid).is_none());
        let targets = unmined.map(|(_, record)| &record.target);
        targets.flat_map(|target| target.inputs().keys()).any(|input| {
            let unmined_parent = self.proof(&input.txid).is_some() && self.block_of(&input.txid).is_none();
            !self.coin(input).is_some_and(Coin::is_in_chain)
                && !self.unknown_spent.contains_key(input)
                && !unmined_parent
        })
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
        for outpoint in std::mem::take(&mut self.stale) {
            change.put_coin(&outpoint, self.indexed_coin(&outpoint).as_ref());
            change.put_spend(&outpoint, self.unknown_spent.get(&outpoint));
        }
        change.merge(self.scripts.take_index());
        change.merge(std::mem::take(&mut self.archive));
        (!change.is_empty()).then_some(change)
    }

    /// A coin that a block created or spent.
    pub(super) fn indexed_coin(&self, outpoint: &OutPoint) -> Option<IndexedCoin> {
        let coin = self.coins.get(outpoint).filter(|coin| coin.is_in_chain())?;
        let (output, spent) = (coin.output(), coin.spent());
        Some(IndexedCoin { output, coinbase: coin.coinbase, created: coin.created, spent })
    }

    /// A final transaction whose block was read before it was known to be final.
    pub(super) fn note_spent(&mut self, outpoint: &OutPoint, spent: ConfirmedSpend) {
        match self.coins.said_mut(outpoint) {
            Some(said) if said.spent.is_none() => said.spent = Some(spent),
            Some(_) => return,
            None => {
                self.unknown_spent.insert(*outpoint, spent);
            }
        }
        self.blocks.note_transaction(spent.txid, spent.block.height);
        self.blocks.note_spent(spent.block.height, *outpoint);
        if self.is_out_of_reach(spent.block) {
            self.resting.insert(*outpoint);
        }
        self.stale.insert(*outpoint);
    }

    /// A coin that was looked up is kept if something was said about it, or its script is indexed: nobody else can make
    /// the index grow.
    pub(super) fn note_in_block(&mut self, outpoint: &OutPoint) {
        let Some(coin) = self.coin(outpoint) else { return };
        let (created, indexed) = (coin.created.is_some(), self.scripts.has(&coin.script));
        let spoken_of = self.rounds.contains(outpoint) || self.transactions.final_spend(outpoint).is_some();
        if created && (spoken_of || indexed) {
            self.stale.insert(*outpoint);
        }
    }
}
