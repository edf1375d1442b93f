//! The block that a federation begins with, and whether a backend has it.

use super::{Chain, ChainError};
use bitcoin::{Network, constants::genesis_block, params::Params};
use quorate_protocol::headers::Checkpoint;

/// Blocks that a birthday is below the tip at least: it is in every backend's chain.
const SETTLED: u32 = 144;

/// A birthday for a new federation: the first block of a difficulty period that is a day old.
///
/// # Errors
/// The backend cannot be reached, or is of another network.
pub async fn birthday(chain: &dyn Chain, network: Network) -> Result<Checkpoint, ChainError> {
    check(chain, network, Checkpoint::genesis(network)).await?;
    let (_, tip) = chain.header(chain.tip().await?).await?;
    let period = Params::new(network).difficulty_adjustment_interval();
    let period = u32::try_from(period).unwrap_or(u32::MAX);
    let height = tip.saturating_sub(SETTLED) / period * period;
    let expected = genesis_block(network).block_hash();
    let hash = chain.hash_at(height).await?;
    let hash = hash.ok_or(ChainError::OtherChain { network, height, expected, found: None })?;
    let (header, height) = chain.header(hash).await?;
    Ok(Checkpoint { height, header })
}

/// Whether a backend follows the chain that a block is in.
///
/// # Errors
/// It does not, or cannot be reached.
pub(super) async fn check(chain: &dyn Chain, network: Network, block: Checkpoint) -> Result<(), ChainError> {
    let (height, expected) = (block.height, block.hash());
    let found = chain.hash_at(height).await?;
    if found == Some(expected) {
        return Ok(());
    }
    Err(ChainError::OtherChain { network, height, expected, found })
}
