//! What a block has to be, whoever sent it.

use super::super::{Chain, ChainError};
use bitcoin::{Block, Network, Transaction, Txid, block::Header, params::Params};
use quorate_protocol::headers::{MEDIAN_TIME_SPAN, RETARGET_INTERVAL, check_header};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

/// The block at a height, with the transactions that its header commits to.
pub(super) async fn block(chain: &dyn Chain, height: u32) -> Result<Option<Block>, ChainError> {
    let Some(hash) = chain.hash_at(height).await? else { return Ok(None) };
    let block = chain.block(hash).await?;
    // The same root comes of a list whose end is there twice (CVE-2012-2459).
    let txids: BTreeSet<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
    let whole =
        block.check_merkle_root() && block.check_witness_commitment() && txids.len() == block.txdata.len();
    if block.block_hash() == hash && whole { Ok(Some(block)) } else { Err(ChainError::WrongBlock(hash)) }
}

/// The heights of headers that are needed to check those above a height: the last ones, and the first of a difficulty
/// period that ends among them.
pub(super) fn wanted(birthday: u32, above: u32, to: u32) -> Vec<RangeInclusive<u32>> {
    let last = above.saturating_sub(MEDIAN_TIME_SPAN - 1).max(birthday)..=above;
    let retarget = (above + 1..=to).find(|height| height.is_multiple_of(RETARGET_INTERVAL));
    let start = retarget.and_then(|height| height.checked_sub(RETARGET_INTERVAL));
    let start = start.filter(|start| *start >= birthday && !last.contains(start));
    start.map(|start| start..=start).into_iter().chain([last]).collect()
}

/// Checks the headers of blocks above a height: proof of work, retarget, median time.
pub(super) fn headers(
    network: Network,
    mut known: BTreeMap<u32, Header>,
    above: u32,
    blocks: &[Block],
) -> Result<(), ChainError> {
    let params = Params::new(network);
    for (block, height) in blocks.iter().zip(above + 1..) {
        check_header(&params, &block.header, height, |height| known.get(&height).copied())?;
        known.insert(height, block.header);
    }
    Ok(())
}
