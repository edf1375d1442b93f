//! Relay policy: what Bitcoin Core's defaults would relay, and sane fees.
//!
//! Source: Bitcoin Core `policy/policy.h` and BIP431 (version 3). The rules here are the stricter ones of the common
//! node versions, so that a final transaction is never refused by the network.

use bitcoin::{Amount, FeeRate, OutPoint, Transaction, TxOut, Weight, script::Script};
use std::collections::BTreeSet;

/// Most inputs of one proposal: bounds nonces and shares per signing session.
pub const INPUTS_MAX: usize = 64;
/// Most outputs of one proposal.
pub const OUTPUTS_MAX: usize = 512;
/// Lowest fee rate that relays by default, 1 sat/vB.
pub const FEE_RATE_MIN: FeeRate = FeeRate::BROADCAST_MIN;
/// Highest fee rate taken for intended, 2,000 sat/vB.
pub const FEE_RATE_MAX: FeeRate = FeeRate::from_sat_per_vb_u32(2_000);
/// Largest data carrier script, in bytes.
const OP_RETURN_MAX: usize = 83;

/// Checks version, counts, duplicates, output types and dust.
///
/// # Errors
/// The transaction would not be relayed.
pub fn check_shape(transaction: &Transaction) -> Result<(), RelayError> {
    if !(1..=3).contains(&transaction.version.0) {
        return Err(RelayError::Version { version: transaction.version.0 });
    }
    let count = |found: usize, max: usize, what: &'static str| {
        if (1..=max).contains(&found) { Ok(()) } else { Err(RelayError::Count { what, max, found }) }
    };
    count(transaction.input.len(), INPUTS_MAX, "inputs")?;
    count(transaction.output.len(), OUTPUTS_MAX, "outputs")?;
    if transaction.weight() > Transaction::MAX_STANDARD_WEIGHT {
        return Err(RelayError::Weight);
    }
    check_size(transaction.total_size())?;
    let mut seen = BTreeSet::new();
    for input in &transaction.input {
        if !seen.insert(input.previous_output) {
            return Err(RelayError::Duplicate { outpoint: input.previous_output });
        }
    }
    transaction.output.iter().enumerate().try_for_each(|(index, output)| check_output(index, output))
}

/// A limit of the protocol, not of the network: what is voted for has to fit into messages with what proves it.
pub(crate) fn check_size(found: usize) -> Result<(), RelayError> {
    let max = crate::wire::limits::PROPOSAL_BYTES_MAX;
    if found <= max { Ok(()) } else { Err(RelayError::Size { max, found }) }
}

fn check_output(index: usize, output: &TxOut) -> Result<(), RelayError> {
    let script = &output.script_pubkey;
    if script.is_op_return() {
        let fits = script.len() <= OP_RETURN_MAX && script.is_push_only_tail();
        return if fits { Ok(()) } else { Err(RelayError::OutputType { index }) };
    }
    let known =
        script.is_p2pkh() || script.is_p2sh() || script.is_p2wpkh() || script.is_p2wsh() || script.is_p2tr();
    if !known {
        return Err(RelayError::OutputType { index });
    }
    let limit = script.minimal_non_dust();
    if output.value < limit {
        return Err(RelayError::Dust { index, value: output.value, limit });
    }
    Ok(())
}

trait OpReturnTail {
    fn is_push_only_tail(&self) -> bool;
}

impl OpReturnTail for Script {
    fn is_push_only_tail(&self) -> bool {
        Script::from_bytes(self.as_bytes().get(1..).unwrap_or_default()).is_push_only()
    }
}

/// Checks amounts and fee of a transaction that will weigh `weight`; gives the fee.
///
/// # Errors
/// It spends more than it has, or its fee rate is out of bounds.
pub fn check_fee(transaction: &Transaction, spent: &[TxOut], weight: Weight) -> Result<Amount, RelayError> {
    let inputs = total(spent).ok_or(RelayError::Amounts)?;
    let outputs = total(&transaction.output).ok_or(RelayError::Amounts)?;
    let fee = inputs.checked_sub(outputs).ok_or(RelayError::Amounts)?;
    if FEE_RATE_MIN.fee_wu(weight).is_none_or(|least| fee < least) {
        return Err(RelayError::FeeTooLow { fee, limit: FEE_RATE_MIN });
    }
    if FEE_RATE_MAX.fee_wu(weight).is_some_and(|most| fee > most) {
        return Err(RelayError::FeeTooHigh { fee, limit: FEE_RATE_MAX });
    }
    Ok(fee)
}

fn total(outputs: &[TxOut]) -> Option<Amount> {
    let sum = outputs.iter().map(|output| output.value).try_fold(Amount::ZERO, Amount::checked_add);
    sum.filter(|sum| *sum <= Amount::MAX_MONEY)
}

/// Why the network would not relay a transaction, or its fee is surely a mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// Unknown version.
    #[error("transaction version {version} is not standard (1 to 3 are)")]
    Version {
        /// Given.
        version: i32,
    },
    /// None, or too many.
    #[error("a transaction here has 1 to {max} {what}, not {found}")]
    Count {
        /// Inputs or outputs.
        what: &'static str,
        /// Limit.
        max: usize,
        /// Given.
        found: usize,
    },
    /// More bytes than the protocol carries.
    #[error(
        "{found} bytes are more than the limit of {max} for a proposal or transaction; use fewer inputs or less data"
    )]
    Size {
        /// The limit, in bytes.
        max: usize,
        /// What was handed in, in bytes.
        found: usize,
    },
    /// Above 400,000 weight units.
    #[error("the transaction weighs more than 400,000 weight units")]
    Weight,
    /// The same outpoint twice.
    #[error("outpoint {outpoint} is spent twice by one transaction")]
    Duplicate {
        /// Which.
        outpoint: OutPoint,
    },
    /// An output of a type that does not relay.
    #[error("output {index} is of a type that the network does not relay")]
    OutputType {
        /// Which.
        index: usize,
    },
    /// An output below the dust limit.
    #[error("output {index} of {value} is dust; the least for its type is {limit}")]
    Dust {
        /// Which.
        index: usize,
        /// Its value.
        value: Amount,
        /// The least.
        limit: Amount,
    },
    /// Outputs above inputs, or sums out of range.
    #[error("the outputs are worth more than the inputs")]
    Amounts,
    /// Under the relay minimum.
    #[error("a fee of {fee} is under the least rate of {limit} sat/kwu")]
    FeeTooLow {
        /// Given.
        fee: Amount,
        /// Limit.
        limit: FeeRate,
    },
    /// Surely a mistake.
    #[error("a fee of {fee} is over the highest rate taken for intended, {limit} sat/kwu")]
    FeeTooHigh {
        /// Given.
        fee: Amount,
        /// Limit.
        limit: FeeRate,
    },
}
