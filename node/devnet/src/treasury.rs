//! Money on the play chain: rewards that anybody could spend, paid out to the asker.

use crate::DevnetChain;
use anyhow::Result;
use bitcoin::{
    Address, Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute::LockTime,
    transaction::Version,
};
use std::sync::Arc;

/// Blocks until the first reward is mature, and one more.
const FIRST_BLOCKS: u32 = 101;
/// Fee of a payment from a reward.
const FEE: Amount = Amount::from_sat(1_000);

/// The miner of a devnet.
#[derive(Clone, Debug)]
pub struct Treasury {
    chain: Arc<DevnetChain>,
    miner: ScriptBuf,
}

impl Treasury {
    pub(crate) fn new(chain: Arc<DevnetChain>) -> Self {
        // A bare OP_TRUE is nobody's and can be spent by anybody: right for the rewards of a play chain.
        Self { chain, miner: ScriptBuf::new_p2wsh(&any_one_can_spend().wscript_hash()) }
    }

    /// Mines blocks.
    ///
    /// # Errors
    /// The chain cannot be written.
    pub fn mine(&self, count: u32) -> Result<()> {
        self.chain.mine(count, &self.miner)?;
        Ok(())
    }

    /// Sends money from a mature reward to an address, and mines a block with it.
    ///
    /// # Errors
    /// There is no mature reward left.
    pub fn fund(&self, address: &Address, amount: Amount) -> Result<()> {
        let needed = FIRST_BLOCKS.saturating_sub(self.chain.height());
        self.mine(needed)?;
        self.spend_reward(address, amount)?;
        self.mine(1)
    }

    fn spend_reward(&self, address: &Address, amount: Amount) -> Result<()> {
        let mempool = self.chain.mempool();
        let mature = usize::try_from(self.chain.height().saturating_sub(99))?;
        for block in self.chain.blocks().iter().take(mature) {
            let Some(reward) = block.txdata.first() else { continue };
            let outpoint = OutPoint { txid: reward.compute_txid(), vout: 0 };
            // One that was spent for the same gift before would be taken for this one.
            let Some(coin) = self.chain.coin_at(&outpoint) else { continue };
            let output = &coin.output;
            let Some(change) = output.value.checked_sub(amount + FEE) else { continue };
            let transaction = Transaction {
                version: Version::TWO,
                lock_time: LockTime::ZERO,
                input: vec![TxIn {
                    previous_output: outpoint,
                    script_sig: ScriptBuf::new(),
                    sequence: Sequence::MAX,
                    witness: Witness::from_slice(&[any_one_can_spend().as_bytes()]),
                }],
                output: vec![
                    TxOut { value: amount, script_pubkey: address.script_pubkey() },
                    TxOut { value: change, script_pubkey: self.miner.clone() },
                ],
            };
            if output.script_pubkey == self.miner
                && !mempool.contains(&transaction.compute_txid())
                && self.chain.submit(transaction).is_ok()
            {
                return Ok(());
            }
        }
        anyhow::bail!("no mature reward of {amount} is left; mine more blocks")
    }
}

fn any_one_can_spend() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![bitcoin::opcodes::OP_TRUE.to_u8()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Network;
    use std::collections::HashSet;

    #[test]
    fn who_asks_twice_for_the_same_is_given_it_twice() -> Result<()> {
        let chain = Arc::new(DevnetChain::new());
        let treasury = Treasury::new(chain.clone());
        let script = ScriptBuf::from_bytes(vec![0x51; 34]).to_p2wsh();
        let address = Address::from_script(&script, Network::Regtest)?;
        for _ in 0..3 {
            treasury.fund(&address, Amount::from_sat(200_000))?;
        }
        assert_eq!(chain.coins_with(&HashSet::from([script])).len(), 3);
        Ok(())
    }
}
