//! Relay policy: what Bitcoin Core's defaults would relay, and sane fees.
//!
//! Source: Bitcoin Core `policy/policy.h` and `policy/policy.cpp`. The rules here are the stricter ones of versions
//! 28 to 31, so that a final transaction is never refused by the network: version 2 alone (version 3 comes with rules
//! about its relatives, BIP431), one data output of no value, standard inputs. `tests/tests/relay.rs` compares them
//! with a daemon.

use bitcoin::{
    Amount, FeeRate, Network, OutPoint, Transaction, TxIn, TxOut, Weight, Witness,
    opcodes::{
        Class, ClassifyContext,
        all::{OP_CODESEPARATOR, OP_NOP1, OP_NOP4, OP_NOP5, OP_NOP6, OP_NOP7, OP_NOP8, OP_NOP9, OP_NOP10},
    },
    script::{Instruction, Script},
};
use std::collections::{BTreeMap, BTreeSet};

/// Most inputs of one proposal: bounds nonces and shares per signing session.
pub const INPUTS_MAX: usize = 64;
/// Most outputs of one proposal.
pub const OUTPUTS_MAX: usize = 512;
/// Confirmations that a coin needs before it counts as spendable without an enforced parent, by default: as many as
/// reorganisations of the network can be expected to be deep, and one more. Nodes may demand more, never less.
///
/// ```
/// use quorate::relay_policy::min_confirmations;
/// assert_eq!(min_confirmations(bitcoin::Network::Regtest), 1);
/// assert_eq!(min_confirmations(bitcoin::Network::Bitcoin), 3);
/// ```
pub const fn min_confirmations(network: Network) -> u32 {
    match network {
        Network::Regtest => 1,
        Network::Signet | Network::Testnet | Network::Testnet4 => 2,
        Network::Bitcoin => 3,
    }
}

/// Lowest fee rate that relays by default, 1 sat/vB.
pub const FEE_RATE_MIN: FeeRate = FeeRate::BROADCAST_MIN;
/// Highest fee rate taken for intended, 2,000 sat/vB.
pub const FEE_RATE_MAX: FeeRate = FeeRate::from_sat_per_vb_u32(2_000);
/// Most unconfirmed transactions that may hang together (a cluster): Bitcoin Core before 31 takes at most 25
/// unconfirmed ancestors and as many descendants, itself included; from 31 on, clusters of 64. A cluster of 25 is taken
/// by all.
pub const CLUSTER_TRANSACTIONS_MAX: usize = 25;
/// Most virtual bytes of such a cluster.
pub const CLUSTER_VBYTES_MAX: usize = 101_000;
/// Largest data carrier script, in bytes.
const OP_RETURN_MAX: usize = 83;
/// Least bytes of a transaction without its witnesses (CVE-2017-12842).
const BASE_SIZE_MIN: usize = 65;
/// Most signature operations, weighted as by BIP141.
const SIGOPS_MAX: usize = 16_000;
/// Weight units that one of them stands for in a transaction with many.
const SIGOP_WEIGHT: u64 = 20;
/// Most of them in a script behind a script hash.
const P2SH_SIGOPS_MAX: usize = 15;
/// Largest input script, in bytes.
const SCRIPT_SIG_MAX: usize = 1_650;
/// Largest script behind a witness script hash, in bytes.
const WITNESS_SCRIPT_MAX: usize = 3_600;
/// Most elements beside such a script.
const WITNESS_ITEMS_MAX: usize = 100;
/// Largest element beside a script of a witness, in bytes.
const WITNESS_ITEM_MAX: usize = 80;
/// Leaf version of tapscript (BIP342).
const TAPSCRIPT: u8 = 0xc0;
/// First byte of an annex (BIP341).
const ANNEX: u8 = 0x50;

/// Virtual bytes with the key-path signatures that a proposal of a joint account does not have yet (BIP141): per input
/// a count, a length and 64 bytes, of which each counts a quarter, and once marker and flag.
///
/// ```
/// # fn example(mut unsigned: bitcoin::Transaction) {
/// use quorate::relay_policy::signed_vbytes;
/// let before = signed_vbytes(&unsigned);
/// for input in &mut unsigned.input {
///     input.witness.push([0; 64]);
/// }
/// assert_eq!(unsigned.vsize(), before);
/// # }
/// ```
pub fn signed_vbytes(transaction: &Transaction) -> usize {
    let unsigned = transaction.input.iter().all(|input| input.witness.is_empty());
    let missing = if unsigned { 2 + 66 * transaction.input.len() } else { 0 };
    transaction.vsize() + missing.div_ceil(4)
}

/// Checks version, counts, duplicates, output types and dust.
///
/// # Errors
/// The transaction would not be relayed.
pub fn check_shape(transaction: &Transaction) -> Result<(), RelayError> {
    if transaction.version.0 != 2 {
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
    if transaction.base_size() < BASE_SIZE_MIN {
        return Err(RelayError::TooSmall { found: transaction.base_size() });
    }
    count_data(transaction)?;
    let mut seen = BTreeSet::new();
    for input in &transaction.input {
        if !seen.insert(input.previous_output) {
            return Err(RelayError::Duplicate { outpoint: input.previous_output });
        }
    }
    transaction.output.iter().enumerate().try_for_each(|(index, output)| check_output(index, output))
}

/// One data output, if any.
fn count_data(transaction: &Transaction) -> Result<(), RelayError> {
    let data = transaction.output.iter().filter(|output| output.script_pubkey.is_op_return()).count();
    if data <= 1 {
        Ok(())
    } else {
        Err(RelayError::Count { what: "data outputs at most", max: 1, found: data })
    }
}

/// Checks the signed inputs of a transaction against the outputs that it spends: their types, the sizes of scripts and
/// witnesses, signature operations. Gives the weight that its fee is for, which many signature operations raise.
///
/// # Errors
/// The transaction would not be relayed.
pub fn check_inputs(transaction: &Transaction, spent: &[TxOut]) -> Result<Weight, RelayError> {
    for (index, (input, output)) in transaction.input.iter().zip(spent).enumerate() {
        if !is_standard_input(input, &output.script_pubkey) {
            return Err(RelayError::InputType { index });
        }
    }
    let outputs = transaction.input.iter().map(|input| input.previous_output).zip(spent);
    let outputs: BTreeMap<OutPoint, &TxOut> = outputs.collect();
    let found =
        transaction.total_sigop_cost(|outpoint| outputs.get(outpoint).map(|output| (*output).clone()));
    if found > SIGOPS_MAX {
        return Err(RelayError::SignatureOperations { max: SIGOPS_MAX, found });
    }
    let operations = u64::try_from(found).unwrap_or(u64::MAX).saturating_mul(SIGOP_WEIGHT);
    Ok(transaction.weight().max(Weight::from_wu(operations)))
}

fn is_standard_input(input: &TxIn, script_pubkey: &Script) -> bool {
    let script_sig = &input.script_sig;
    if script_sig.len() > SCRIPT_SIG_MAX || !script_sig.is_push_only() || !is_plain(script_sig, Rules::Legacy)
    {
        return false;
    }
    // The script behind a hash is the last thing that the input script pushes.
    let redeem = match script_sig.instructions().last() {
        Some(Ok(Instruction::PushBytes(bytes))) => Some(Script::from_bytes(bytes.as_bytes())),
        Some(Ok(Instruction::Op(_)) | Err(_)) | None => None,
    };
    let program = match redeem {
        Some(redeem) if script_pubkey.is_p2sh() => {
            if redeem.count_sigops() > P2SH_SIGOPS_MAX || !is_plain(redeem, Rules::Legacy) {
                return false;
            }
            redeem
        }
        Some(_) | None => script_pubkey,
    };
    let known = script_pubkey.is_p2pkh()
        || script_pubkey.is_p2sh()
        || program.is_p2wpkh()
        || program.is_p2wsh()
        || script_pubkey.is_p2tr();
    known && is_standard_witness(&input.witness, program)
}

fn is_standard_witness(witness: &Witness, program: &Script) -> bool {
    let items: Vec<&[u8]> = witness.iter().collect();
    let small = |items: &[&[u8]]| items.iter().all(|item| item.len() <= WITNESS_ITEM_MAX);
    if program.is_p2wsh() {
        let Some((script, stack)) = items.split_last() else { return false };
        let fits = script.len() <= WITNESS_SCRIPT_MAX && stack.len() <= WITNESS_ITEMS_MAX && small(stack);
        return fits && is_plain(Script::from_bytes(script), Rules::Witness);
    }
    if program.is_p2tr() {
        if items.len() >= 2 && items.last().is_some_and(|last| last.first() == Some(&ANNEX)) {
            return false;
        }
        // Script path: the script and its control block are last. Other leaf versions are for later soft forks.
        let Some(([stack @ .., script], control)) = items.split_last().map(|(last, rest)| (rest, last))
        else {
            return true;
        };
        let tapscript = control.first().is_some_and(|first| first & 0xfe == TAPSCRIPT);
        return tapscript && small(stack) && is_plain(Script::from_bytes(script), Rules::Tapscript);
    }
    true
}

/// Which rules a script is run by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Legacy,
    Witness,
    Tapscript,
}

/// Whether a script has nothing that relay refuses although consensus does not: pushes that are longer than they have
/// to be, opcodes that are kept for soft forks, code separators before segwit. What depends on the values that a
/// script is run with (its signatures' encodings, the arguments of conditions) is not looked at.
fn is_plain(script: &Script, rules: Rules) -> bool {
    script.instructions_minimal().all(|instruction| match instruction {
        Ok(Instruction::PushBytes(_)) => true,
        Ok(Instruction::Op(opcode)) => {
            let success = opcode.classify(ClassifyContext::TapScript) == Class::SuccessOp;
            let later =
                [OP_NOP1, OP_NOP4, OP_NOP5, OP_NOP6, OP_NOP7, OP_NOP8, OP_NOP9, OP_NOP10].contains(&opcode);
            let reserved = later || (success && rules == Rules::Tapscript);
            !reserved && (rules != Rules::Legacy || opcode != OP_CODESEPARATOR)
        }
        Err(_) => false,
    })
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
        return match output.value {
            _ if !fits => Err(RelayError::OutputType { index }),
            Amount::ZERO => Ok(()),
            value => Err(RelayError::DataValue { index, value }),
        };
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

/// The sum of amounts, at most all the bitcoin that there is: what was only claimed may be absurd, and no sum of it
/// panics.
///
/// ```
/// use bitcoin::Amount;
/// let absurd = [Amount::from_sat(u64::MAX), Amount::ONE_BTC];
/// assert_eq!(quorate::relay_policy::bounded_sum(absurd), Amount::MAX_MONEY);
/// ```
pub fn bounded_sum(amounts: impl IntoIterator<Item = Amount>) -> Amount {
    let add = |sum: Amount, one| sum.checked_add(one).unwrap_or(Amount::MAX_MONEY).min(Amount::MAX_MONEY);
    amounts.into_iter().fold(Amount::ZERO, add)
}

fn total(outputs: &[TxOut]) -> Option<Amount> {
    let sum = outputs.iter().map(|output| output.value).try_fold(Amount::ZERO, Amount::checked_add);
    sum.filter(|sum| *sum <= Amount::MAX_MONEY)
}

/// Why the network would not relay a transaction, or its fee is surely a mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// A version other than 2.
    #[error("transaction version {version} is not taken: 2 alone relays without further rules")]
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
    /// So small that a block could be read as it (CVE-2017-12842).
    #[error("{found} bytes without witnesses are fewer than the 65 that a transaction has to have")]
    TooSmall {
        /// What was handed in, in bytes.
        found: usize,
    },
    /// An input of a type that does not relay, or with a script or witness that is too large.
    #[error("input {index} is of a type, or has a script or witness, that the network does not relay")]
    InputType {
        /// Which.
        index: usize,
    },
    /// Too many signature operations.
    #[error("{found} signature operations are more than the {max} that relay")]
    SignatureOperations {
        /// Limit, weighted as by BIP141.
        max: usize,
        /// Found.
        found: usize,
    },
    /// A data output that would burn money.
    #[error("data output {index} has a value of {value}, which nobody could ever spend")]
    DataValue {
        /// Which.
        index: usize,
        /// Its value.
        value: Amount,
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

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{
        ScriptBuf, Sequence, Txid, WPubkeyHash, absolute::LockTime, hashes::Hash as _, script::Builder,
        transaction::Version,
    };

    fn paying() -> TxOut {
        let script_pubkey = ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros());
        TxOut { value: Amount::from_sat(10_000), script_pubkey }
    }

    fn data(length: usize, sat: u64) -> TxOut {
        let bytes = bitcoin::script::PushBytesBuf::try_from(vec![0; length]).expect("short");
        TxOut { value: Amount::from_sat(sat), script_pubkey: ScriptBuf::new_op_return(bytes) }
    }

    fn transaction(version: i32, output: Vec<TxOut>) -> Transaction {
        let previous_output = OutPoint { txid: Txid::all_zeros(), vout: 0 };
        let input = TxIn { previous_output, sequence: Sequence::MAX, ..TxIn::default() };
        Transaction { version: Version(version), lock_time: LockTime::ZERO, input: vec![input], output }
    }

    #[test]
    fn only_what_every_common_daemon_relays_has_a_good_shape() {
        let check = |version, outputs| check_shape(&transaction(version, outputs));
        assert_eq!(check(2, vec![paying()]), Ok(()));
        assert_eq!(check(2, vec![paying(), data(80, 0)]), Ok(()));
        for version in [-1, 0, 1, 3, 4] {
            assert_eq!(check(version, vec![paying()]), Err(RelayError::Version { version }));
        }
        assert!(matches!(check(2, vec![paying(), data(81, 0)]), Err(RelayError::OutputType { index: 1 })));
        let burnt = check(2, vec![paying(), data(1, 1)]);
        assert_eq!(burnt, Err(RelayError::DataValue { index: 1, value: Amount::from_sat(1) }));
        assert!(matches!(check(2, vec![data(1, 0), paying(), data(1, 0)]), Err(RelayError::Count { .. })));
        assert!(matches!(check(2, vec![data(1, 0)]), Err(RelayError::TooSmall { found: 63 })));
    }

    fn spends(
        script_pubkey: ScriptBuf,
        script_sig: ScriptBuf,
        witness: &[&[u8]],
    ) -> Result<Weight, RelayError> {
        let mut transaction = transaction(2, vec![paying()]);
        let input = transaction.input.first_mut().expect("one");
        (input.script_sig, input.witness) = (script_sig, Witness::from_slice(witness));
        check_inputs(&transaction, &[TxOut { value: Amount::from_sat(20_000), script_pubkey }])
    }

    #[test]
    fn inputs_that_do_not_relay_are_named() {
        let refused = Err(RelayError::InputType { index: 0 });
        let open = Builder::new().push_int(1).into_script();
        let (hash, none) = (open.to_p2wsh(), ScriptBuf::new);
        assert!(spends(hash.clone(), none(), &[open.as_bytes()]).is_ok());
        assert_eq!(spends(open.clone(), none(), &[]), refused, "a bare script");
        assert_eq!(spends(hash.clone(), none(), &[&[0; 81], open.as_bytes()]), refused, "a large element");
        let many: Vec<&[u8]> = std::iter::repeat_n([].as_slice(), 101).chain([open.as_bytes()]).collect();
        assert_eq!(spends(hash, none(), &many), refused, "many elements");
        let long = Builder::new().push_slice([7; 1]).push_opcode(bitcoin::opcodes::all::OP_DROP).push_int(1);
        let long = long.into_script();
        assert_eq!(spends(long.to_p2wsh(), none(), &[long.as_bytes()]), refused, "a push that is too long");
        let kept = Builder::new().push_opcode(OP_NOP4).push_int(1).into_script();
        assert_eq!(spends(kept.to_p2wsh(), none(), &[kept.as_bytes()]), refused, "kept for a soft fork");
        let annexed: &[&[u8]] = &[&[0; 64], &[ANNEX]];
        let taproot = paying_taproot();
        assert!(spends(taproot.clone(), none(), &[&[0; 64]]).is_ok());
        assert_eq!(spends(taproot, none(), annexed), refused, "an annex");
    }

    fn paying_taproot() -> ScriptBuf {
        ScriptBuf::from_bytes([[0x51, 0x20].as_slice(), &[7; 32]].concat())
    }

    #[test]
    fn many_signature_operations_cost_as_much_as_their_weight_or_do_not_relay() {
        let checks = |count: usize| {
            let mut bytes = vec![0x00, 0x63];
            bytes.extend(std::iter::repeat_n(0xac, count));
            bytes.extend([0x68, 0x51]);
            ScriptBuf::from_bytes(bytes)
        };
        let few = checks(1);
        let light = spends(few.to_p2wsh(), ScriptBuf::new(), &[few.as_bytes()]).expect("relays");
        assert!(light < Weight::from_wu(1_000));
        let many = checks(400);
        let heavy = spends(many.to_p2wsh(), ScriptBuf::new(), &[many.as_bytes()]).expect("relays");
        assert_eq!(heavy, Weight::from_wu(400 * SIGOP_WEIGHT));
    }
}
