//! Script checks of one transaction, by Bitcoin Core's interpreter with all soft forks active (BIP141, BIP341).

use bitcoin::{Transaction, TxOut, consensus::serialize};

/// The script of an input does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the script of input {index} does not verify")]
pub struct ScriptError {
    /// Which input, from 0.
    pub index: usize,
}

/// Runs every input's script against the outputs that the transaction spends, given in the order of its inputs.
///
/// # Errors
/// A script does not verify.
pub fn check_scripts(transaction: &Transaction, spent: &[TxOut]) -> Result<(), ScriptError> {
    let raw = serialize(transaction);
    let outputs: Vec<bitcoinconsensus::Utxo> = spent
        .iter()
        .map(|output| bitcoinconsensus::Utxo {
            script_pubkey: output.script_pubkey.as_bytes().as_ptr(),
            script_pubkey_len: u32::try_from(output.script_pubkey.len()).unwrap_or(u32::MAX),
            value: i64::try_from(output.value.to_sat()).unwrap_or(i64::MAX),
        })
        .collect();
    let flags = bitcoinconsensus::VERIFY_ALL_PRE_TAPROOT | bitcoinconsensus::VERIFY_TAPROOT;
    for (index, output) in spent.iter().enumerate() {
        bitcoinconsensus::verify_with_flags(
            output.script_pubkey.as_bytes(),
            output.value.to_sat(),
            &raw,
            Some(&outputs),
            index,
            flags,
        )
        .map_err(|_| ScriptError { index })?;
    }
    Ok(())
}
