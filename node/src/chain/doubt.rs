//! Why a backend is not believed to be at the tip of its network's chain.

use super::{Chain, ChainError};
use bitcoin::{Network, block::Header};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Age of a tip that is believed; between two blocks there are three hours once in 65 million.
const TIP_AGE_MAX: Duration = Duration::from_secs(3 * 3_600);
/// Blocks by which a backend may be behind what it, or another one, says that there is.
pub(super) const BEHIND_MAX: u32 = 2;

/// What there is against a backend whose tip this is.
///
/// # Errors
/// It does not answer.
pub(super) async fn doubt(
    chain: &dyn Chain,
    network: Network,
    tip: &Header,
) -> Result<Option<String>, ChainError> {
    let doubt = chain.doubt().await?;
    Ok(doubt.or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = now.saturating_sub(Duration::from_secs(u64::from(tip.time)));
        // Nobody mines on regtest by the clock.
        let old = network != Network::Regtest && age > TIP_AGE_MAX;
        old.then(|| format!("its last block is {} hours old", age.as_secs() / 3_600))
    }))
}

/// A backend's tip, if its chain has that at the height which it claims.
///
/// # Errors
/// It does not answer, or says different things of its tip.
pub(super) async fn tip_of(chain: &dyn Chain) -> Result<(Header, u32), ChainError> {
    let tip = chain.tip().await?;
    let (header, height) = chain.header(tip).await?;
    if chain.hash_at(height).await? == Some(tip) { Ok((header, height)) } else { Err(ChainError::Unsteady) }
}
