//! The chain's headers, what each block did to coins, and which block has a transaction.

use bitcoin::{BlockHash, Network, OutPoint, Txid, block::Header, constants::genesis_block};
use quorate_protocol::wire::BlockRef;
use std::collections::HashMap;

/// Blocks above a final transaction after which the next epoch need not be told of it: the chain says it.
pub(super) const BURIED: u32 = 144;

/// What a block did, to be undone with it.
#[derive(Debug, Default)]
pub(super) struct BlockEffect {
    pub(super) created: Vec<OutPoint>,
    pub(super) spent: Vec<OutPoint>,
    pub(super) txids: Vec<Txid>,
}

/// Headers and effects, by height.
#[derive(Debug)]
pub(super) struct Blocks {
    headers: Vec<Header>,
    effects: Vec<BlockEffect>,
    of: HashMap<Txid, BlockRef>,
}

impl Blocks {
    pub(super) fn new(network: Network) -> Self {
        let headers = vec![genesis_block(network).header];
        Self { headers, effects: vec![BlockEffect::default()], of: HashMap::new() }
    }

    pub(super) fn tip(&self) -> BlockRef {
        let height = u32::try_from(self.headers.len() - 1).unwrap_or(u32::MAX);
        let hash = self.headers.last().map(Header::block_hash).expect("genesis is never removed");
        BlockRef { height, hash }
    }

    pub(super) fn hash(&self, height: u32) -> Option<BlockHash> {
        self.headers.get(usize::try_from(height).ok()?).map(Header::block_hash)
    }

    pub(super) fn headers(&self, from: u32, count: usize) -> Vec<Header> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        self.headers.iter().skip(from).take(count).copied().collect()
    }

    /// Median time of the last eleven headers (BIP113).
    pub(super) fn median_time(&self) -> u32 {
        let mut times: Vec<u32> = self.headers.iter().rev().take(11).map(|header| header.time).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0)
    }

    /// The block that has a transaction.
    pub(super) fn of(&self, txid: &Txid) -> Option<BlockRef> {
        self.of.get(txid).copied()
    }

    pub(super) fn is_buried(&self, block: BlockRef) -> bool {
        self.tip().height >= block.height.saturating_add(BURIED)
    }

    /// A block on top of the one before; what it does follows with [`Self::put_effect`].
    pub(super) fn push(&mut self, header: Header) -> BlockRef {
        self.headers.push(header);
        self.tip()
    }

    pub(super) fn put_effect(&mut self, effect: BlockEffect) {
        let at = self.tip();
        self.of.extend(effect.txids.iter().map(|txid| (*txid, at)));
        self.effects.push(effect);
    }

    /// What the tip did.
    pub(super) fn tip_effect(&self) -> Option<&BlockEffect> {
        self.effects.last()
    }

    /// Takes the tip off; gives what it did. Genesis stays.
    pub(super) fn pop(&mut self) -> Option<BlockEffect> {
        if self.headers.len() <= 1 {
            return None;
        }
        self.headers.pop();
        let effect = self.effects.pop()?;
        for txid in &effect.txids {
            self.of.remove(txid);
        }
        Some(effect)
    }

    /// A coin that was looked up goes with its block.
    pub(super) fn note_created(&mut self, height: u32, outpoint: OutPoint) {
        let effect = usize::try_from(height).ok().and_then(|height| self.effects.get_mut(height));
        if let Some(effect) = effect.filter(|effect| !effect.created.contains(&outpoint)) {
            effect.created.push(outpoint);
        }
    }
}
