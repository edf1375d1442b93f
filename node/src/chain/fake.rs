//! A chain backend for tests: blocks in memory, and how often it was asked for one.

use super::{Answer, Chain, ChainError, Fees};
use bitcoin::{
    Block, BlockHash, CompactTarget, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxMerkleNode, Txid,
    absolute::LockTime,
    block::{Header, Version},
    hashes::Hash as _,
    transaction,
};
use quorate_protocol::{headers::Checkpoint, relay_policy::FEE_RATE_MIN};
use quorate_rules::ChainCoin;
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

fn mine(parent: &Header, salt: u32) -> Block {
    let coinbase = Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::from_consensus(salt),
        input: vec![TxIn::default()],
        output: Vec::new(),
    };
    let header = Header {
        version: Version::TWO,
        prev_blockhash: parent.block_hash(),
        merkle_root: TxMerkleNode::from_byte_array(coinbase.compute_txid().to_byte_array()),
        time: parent.time + 1,
        bits: CompactTarget::from_consensus(0x207f_ffff),
        nonce: 0,
    };
    let mut block = Block { header, txdata: vec![coinbase] };
    while block.header.validate_pow(block.header.target()).is_err() {
        block.header.nonce += 1;
    }
    block
}

/// Blocks above the genesis block, and how many the follower has asked for.
#[derive(Debug, Default)]
pub(super) struct Backend(Mutex<(Vec<Block>, usize)>);

impl Backend {
    pub(super) fn mined(blocks: u32) -> Self {
        let backend = Self::default();
        backend.extend(0, blocks, 0);
        backend
    }

    /// Leaves so many blocks, and mines others on top.
    pub(super) fn extend(&self, keep: usize, blocks: u32, salt: u32) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.truncate(keep);
        for number in 0..blocks {
            let genesis = Checkpoint::genesis(Network::Regtest).header;
            let parent = state.0.last().map_or(genesis, |block| block.header);
            state.0.push(mine(&parent, salt + number));
        }
    }

    pub(super) fn with<T>(&self, read: impl FnOnce(&mut (Vec<Block>, usize)) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn hash(&self, height: u32) -> Option<BlockHash> {
        let Some(index) = height.checked_sub(1) else {
            return Some(Checkpoint::genesis(Network::Regtest).header.block_hash());
        };
        let index = usize::try_from(index).ok()?;
        self.with(|(blocks, _)| blocks.get(index).map(Block::block_hash))
    }
}

impl Chain for Backend {
    fn tip(&self) -> Answer<'_, BlockHash> {
        let height = self.with(|(blocks, _)| u32::try_from(blocks.len())).expect("few");
        Box::pin(async move { Ok(self.hash(height).expect("there")) })
    }

    fn wait_for_tip(&self, known: BlockHash) -> Answer<'_, BlockHash> {
        Box::pin(async move { Ok(known) })
    }

    fn header(&self, hash: BlockHash) -> Answer<'_, (Header, u32)> {
        let genesis = Checkpoint::genesis(Network::Regtest).header;
        let found = self.with(|(blocks, _)| {
            let mut headers = std::iter::once(genesis).chain(blocks.iter().map(|block| block.header));
            let at = headers.position(|header| header.block_hash() == hash)?;
            let header = at.checked_sub(1).map_or(genesis, |at| blocks[at].header);
            Some((header, u32::try_from(at).expect("few")))
        });
        Box::pin(async move { found.ok_or(ChainError::UnknownBlock(hash)) })
    }

    fn doubt(&self) -> Answer<'_, Option<String>> {
        Box::pin(async { Ok(None) })
    }

    fn hash_at(&self, height: u32) -> Answer<'_, Option<BlockHash>> {
        Box::pin(async move { Ok(self.hash(height)) })
    }

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        let found = self.with(|(blocks, asked)| {
            *asked += 1;
            blocks.iter().find(|block| block.block_hash() == hash).cloned()
        });
        Box::pin(async move { found.ok_or(ChainError::UnknownBlock(hash)) })
    }

    fn coin(&self, _outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>> {
        unreachable!("a follower asks for no coins")
    }

    fn unspent(&self, _scripts: Vec<ScriptBuf>) -> Answer<'_, Vec<OutPoint>> {
        unreachable!("nor for those of scripts")
    }

    fn broadcast(&self, _transaction: Transaction) -> Answer<'_, ()> {
        unreachable!("nor sends anything")
    }

    fn broadcast_package(&self, _package: Vec<Transaction>) -> Answer<'_, ()> {
        unreachable!("nor together")
    }

    fn missing(&self, _txids: Vec<Txid>) -> Answer<'_, BTreeSet<Txid>> {
        unreachable!("nor asks what is missing")
    }

    fn fees(&self) -> Answer<'_, Fees> {
        Box::pin(async {
            Ok(Fees { next_block: None, six_blocks: None, day: None, mempool_min: FEE_RATE_MIN })
        })
    }
}
