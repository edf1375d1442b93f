//! The header that a chain of headers begins with.

use bitcoin::{BlockHash, Network, block::Header, blockdata::constants::genesis_block, consensus::Params};
use serde::{Deserialize, Serialize};

/// A header that is trusted, with its height: by the wallet's maker or user, or because it is a federation's birthday.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its height; must be a multiple of 2016 on networks that retarget.
    pub height: u32,
    /// The header, 80 bytes in hex in JSON.
    #[serde(with = "crate::consensus_hex")]
    pub header: Header,
}

impl Checkpoint {
    /// The genesis block of a network.
    pub fn genesis(network: Network) -> Self {
        Self { height: 0, header: genesis_block(network).header }
    }

    /// The block's hash.
    pub fn hash(&self) -> BlockHash {
        self.header.block_hash()
    }

    /// Whether headers can be verified from it on: it is the first block of a difficulty period, whose time the next
    /// retarget needs, and has the work that it claims. At height 0 only the genesis block is.
    pub fn is_sound(&self, network: Network) -> bool {
        let params = Params::new(network);
        let aligned = u64::from(self.height).is_multiple_of(params.difficulty_adjustment_interval());
        let first = self.height > 0 || *self == Self::genesis(network);
        let target = self.header.target();
        let works = target <= params.max_attainable_target && self.header.validate_pow(target).is_ok();
        (aligned || params.no_pow_retargeting) && first && works
    }
}
