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
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(doubt.or_else(|| too_old(network, tip.time, now)))
}

/// What there is against a backend, whatever its tip is.
///
/// # Errors
/// It does not answer, or says different things of its tip.
pub(crate) async fn doubt_of(chain: &dyn Chain, network: Network) -> Result<Option<String>, ChainError> {
    let (tip, _) = tip_of(chain).await?;
    doubt(chain, network, &tip).await
}

fn too_old(network: Network, time: u32, now: Duration) -> Option<String> {
    let age = now.saturating_sub(Duration::from_secs(u64::from(time)));
    // Nobody mines on regtest by the clock.
    let old = network != Network::Regtest && age > TIP_AGE_MAX;
    old.then(|| format!("its last block is {} hours old", age.as_secs() / 3_600))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tip_of_more_than_three_hours_is_not_believed_except_on_regtest() {
        let tip = 1_700_000_000;
        let after = |hours: u64, seconds: u64| Duration::from_secs(u64::from(tip) + hours * 3_600 + seconds);
        for network in [Network::Bitcoin, Network::Signet, Network::Testnet4] {
            assert_eq!(too_old(network, tip, after(3, 0)), None);
            let doubt = too_old(network, tip, after(3, 1)).expect("too old");
            assert_eq!(doubt, "its last block is 3 hours old");
            assert_eq!(too_old(network, tip, Duration::ZERO), None, "a clock that is behind");
        }
        assert_eq!(too_old(Network::Regtest, tip, after(9, 0)), None);
    }
}
