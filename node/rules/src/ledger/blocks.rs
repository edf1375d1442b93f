//! The chain's headers, what the last blocks did to coins, and which block has a transaction.

use crate::index::{BlockEffect, ShortTxid, UNDO_BLOCKS, short};
use bitcoin::{BlockHash, OutPoint, Txid, block::Header};
use quorate_protocol::{headers::Checkpoint, wire::BlockRef};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Blocks above a final transaction after which the next epoch need not be told of it: the chain says it.
pub(super) const BURIED: u32 = 144;

/// Headers by height, from the federation's birthday on, and the effects of the last blocks.
#[derive(Debug)]
pub(super) struct Blocks {
    base: u32,
    headers: Vec<Header>,
    effects: BTreeMap<u32, BlockEffect>,
    /// Transactions that touched a coin which this node knows.
    of: HashMap<Txid, u32>,
    /// All transactions of the blocks whose effects are kept.
    recent: HashMap<ShortTxid, u32>,
    /// Heights at which the index has another header.
    pub(super) stale_headers: BTreeSet<u32>,
    /// Heights at which the index has another effect.
    pub(super) stale_effects: BTreeSet<u32>,
}

impl Blocks {
    pub(super) fn restore(
        birthday: Checkpoint,
        headers: BTreeMap<u32, Header>,
        effects: BTreeMap<u32, BlockEffect>,
    ) -> Self {
        let headers = std::iter::once(birthday.header).chain(headers.into_values()).collect();
        let recent = effects.iter().flat_map(|(height, effect)| {
            let height = *height;
            effect.txids.iter().map(move |txid| (*txid, height))
        });
        let (recent, of) = (recent.collect(), HashMap::new());
        let (stale_headers, stale_effects) = (BTreeSet::new(), BTreeSet::new());
        Self { base: birthday.height, headers, effects, of, recent, stale_headers, stale_effects }
    }

    pub(super) fn tip(&self) -> BlockRef {
        let above = u32::try_from(self.headers.len() - 1).unwrap_or(u32::MAX);
        let hash = self.headers.last().map(Header::block_hash).expect("the first one is never removed");
        BlockRef { height: self.base.saturating_add(above), hash }
    }

    /// The birthday's height.
    pub(super) fn base(&self) -> u32 {
        self.base
    }

    fn header(&self, height: u32) -> Option<&Header> {
        self.headers.get(usize::try_from(height.checked_sub(self.base)?).ok()?)
    }

    pub(super) fn hash(&self, height: u32) -> Option<BlockHash> {
        self.header(height).map(Header::block_hash)
    }

    /// From a height on; none if that is before the birthday.
    pub(super) fn headers(&self, from: u32, count: usize) -> Vec<Header> {
        let above = from.checked_sub(self.base).and_then(|above| usize::try_from(above).ok());
        self.headers.iter().skip(above.unwrap_or(usize::MAX)).take(count).copied().collect()
    }

    /// Median time of the last eleven headers (BIP113).
    pub(super) fn median_time(&self) -> u32 {
        let mut times: Vec<u32> = self.headers.iter().rev().take(11).map(|header| header.time).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0)
    }

    /// The block that has a transaction, as far as this node can tell: it touched a coin that the node knows, or is in
    /// one of the last blocks.
    pub(super) fn of(&self, txid: &Txid) -> Option<BlockRef> {
        let height = self.of.get(txid).or_else(|| self.recent.get(&short(txid))).copied()?;
        Some(BlockRef { height, hash: self.hash(height)? })
    }

    /// A transaction touched a coin that this node knows.
    pub(super) fn note_transaction(&mut self, txid: Txid, height: u32) {
        self.of.insert(txid, height);
    }

    pub(super) fn is_buried(&self, block: BlockRef) -> bool {
        self.tip().height >= block.height.saturating_add(BURIED)
    }

    /// The lowest tip to which blocks can be undone.
    pub(super) fn undo_floor(&self) -> u32 {
        self.effects.first_key_value().map_or(self.tip().height, |(height, _)| height.saturating_sub(1))
    }

    /// A block on top of the one before; what it does follows with [`Self::put_effect`].
    pub(super) fn push(&mut self, header: Header) -> BlockRef {
        self.headers.push(header);
        let tip = self.tip();
        self.stale_headers.insert(tip.height);
        tip
    }

    /// Takes over what the block at the tip did. Gives what those did that cannot be undone any more.
    pub(super) fn put_effect(&mut self, effect: BlockEffect) -> Vec<BlockEffect> {
        let height = self.tip().height;
        self.recent.extend(effect.txids.iter().map(|txid| (*txid, height)));
        self.effects.insert(height, effect);
        self.stale_effects.insert(height);
        let mut settled = Vec::new();
        while let Some((old, _)) =
            self.effects.first_key_value().filter(|(old, _)| **old + UNDO_BLOCKS <= height)
        {
            let old = *old;
            settled.extend(self.forget_effect(old));
        }
        settled
    }

    /// Forgets where transactions are, but for those that `is_wanted` names.
    pub(super) fn forget_places(&mut self, is_wanted: impl Fn(&Txid, u32) -> bool) {
        self.of.retain(|txid, height| is_wanted(txid, *height));
    }

    fn forget_effect(&mut self, height: u32) -> Option<BlockEffect> {
        let effect = self.effects.remove(&height)?;
        for txid in &effect.txids {
            if self.recent.get(txid) == Some(&height) {
                self.recent.remove(txid);
            }
        }
        self.stale_effects.insert(height);
        Some(effect)
    }

    pub(super) fn effect(&self, height: u32) -> Option<&BlockEffect> {
        self.effects.get(&height)
    }

    /// Takes the tip off; gives what it did. Nothing happens to a block that is too deep or the first one.
    pub(super) fn pop(&mut self) -> Option<BlockEffect> {
        let height = self.tip().height;
        let effect = self.forget_effect(height)?;
        self.headers.pop();
        self.stale_headers.insert(height);
        self.of.retain(|_, at| *at != height);
        Some(effect)
    }

    /// A coin that was looked up goes with its block.
    pub(super) fn note_created(&mut self, height: u32, outpoint: OutPoint) {
        if let Some(effect) = self.effects.get_mut(&height).filter(|one| !one.created.contains(&outpoint)) {
            effect.created.push(outpoint);
            self.stale_effects.insert(height);
        }
    }

    /// A spend that this node learns of after its block goes with it.
    pub(super) fn note_spent(&mut self, height: u32, outpoint: OutPoint) {
        if let Some(effect) = self.effects.get_mut(&height).filter(|one| !one.spent.contains(&outpoint)) {
            effect.spent.push(outpoint);
            self.stale_effects.insert(height);
        }
    }

    /// A header for the index.
    pub(super) fn indexed(&self, height: u32) -> Option<&Header> {
        self.header(height).filter(|_| height > self.base)
    }
}
