//! Consensus checks of one transaction: existence, maturity, time locks, values, and scripts through Bitcoin Core's
//! interpreter.
//!
//! Sources: Bitcoin Core `tx_verify.cpp`, BIP68, BIP113, BIP141, BIP341.

use bitcoin::{
    Amount, OutPoint, Sequence, Transaction, TxOut, absolute::LockTime, constants::COINBASE_MATURITY,
};
use quorate_node::chain::ChainError;
use quorate_rules::{ChainCoin, scripts::check_scripts};

/// Where a transaction would be included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// Height of the block.
    pub(crate) height: u32,
    /// Median time of the eleven blocks before it (BIP113).
    pub(crate) median_time: u32,
}

/// Checks a transaction against the coins it spends; gives its fee. `median_time_at` is the median time before the
/// block of a height.
pub(crate) fn check_transaction(
    transaction: &Transaction,
    position: Position,
    coin: impl Fn(&OutPoint) -> Option<ChainCoin>,
    median_time_at: impl Fn(u32) -> u32,
) -> Result<Amount, ChainError> {
    let refused = |reason: &'static str| Err(ChainError::Invalid(reason));
    if transaction.is_coinbase() || transaction.input.is_empty() || transaction.output.is_empty() {
        return refused("a coinbase transaction, or one without inputs or outputs");
    }
    let final_lock = match transaction.lock_time {
        LockTime::Blocks(height) => height.to_consensus_u32() < position.height,
        LockTime::Seconds(time) => time.to_consensus_u32() < position.median_time,
    };
    if !final_lock && transaction.is_lock_time_enabled() {
        return refused("its lock time has not passed");
    }
    let mut spent = Vec::with_capacity(transaction.input.len());
    let mut seen = std::collections::HashSet::new();
    for input in &transaction.input {
        let outpoint = input.previous_output;
        let found = coin(&outpoint).filter(|_| seen.insert(outpoint));
        let found = found.ok_or(ChainError::MissingInput(outpoint))?;
        let immature = found.coinbase && position.height < found.height + COINBASE_MATURITY;
        let relative = transaction.version.0 >= 2
            && !relative_lock_passed(input.sequence, &found, position, &median_time_at);
        if immature || relative {
            return Err(ChainError::Locked(outpoint));
        }
        spent.push(found.output);
    }
    check_scripts(transaction, &spent)?;
    let sum = |mut amounts: std::slice::Iter<'_, TxOut>| {
        amounts.try_fold(Amount::ZERO, |sum, output| sum.checked_add(output.value))
    };
    let (inputs, outputs) = (sum(spent.iter()), sum(transaction.output.iter()));
    let fee = inputs.zip(outputs).and_then(|(inputs, outputs)| inputs.checked_sub(outputs));
    fee.filter(|_| outputs.is_some_and(|sum| sum <= Amount::MAX_MONEY))
        .ok_or_else(|| ChainError::Invalid("its outputs are worth more than its inputs"))
}

fn relative_lock_passed(
    sequence: Sequence,
    coin: &ChainCoin,
    position: Position,
    median_time_at: impl Fn(u32) -> u32,
) -> bool {
    use bitcoin::relative::LockTime as Relative;
    match sequence.to_relative_lock_time() {
        None => true,
        Some(Relative::Blocks(blocks)) => position.height >= coin.height + u32::from(blocks.value()),
        Some(Relative::Time(time)) => {
            let needed = median_time_at(coin.height).saturating_add(u32::from(time.value()) * 512);
            position.median_time >= needed
        }
    }
}
