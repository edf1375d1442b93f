//! The transaction that takes coins out of an account by its recovery leaf, as a PSBT (BIP174, BIP371).

use super::{RecoverableCoin, Recovery, RecoveryError};
use crate::{
    account::{AccountDescriptor, Address, KeychainIndex},
    relay_policy::{FEE_RATE_MAX, FEE_RATE_MIN},
};
use bitcoin::{
    Amount, FeeRate, Psbt, ScriptBuf, Sequence, TapLeafHash, Transaction, TxIn, TxOut, Weight, Witness,
    absolute::LockTime,
    bip32::{DerivationPath, KeySource},
    taproot::LeafVersion,
    transaction::Version,
};

/// Most coins of one sweep; several make up for more.
pub const SWEEP_INPUTS_MAX: usize = 500;

/// What to sweep, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepRequest {
    /// Where everything goes.
    pub destination: ScriptBuf,
    /// The fee rate.
    pub fee_rate: FeeRate,
    /// Height of the chain's tip: what opens later stays.
    pub tip: u32,
}

/// An unsigned sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// For [`Recovery::sign`], or for any wallet that has the words.
    pub psbt: Psbt,
    /// What arrives.
    pub amount: Amount,
    /// What it costs.
    pub fee: Amount,
    /// Coins that stay: not open yet, one time too many for one transaction, or worth less than their part of the fee.
    pub left: Vec<RecoverableCoin>,
}

impl Recovery {
    /// Builds the transaction that moves all open coins to one address.
    ///
    /// ```
    /// # use quorate::recovery::{Found, Recovery, RecoveryError, SweepRequest};
    /// # fn example(recovery: &Recovery, found: &Found, to: bitcoin::Address) -> Result<(), RecoveryError> {
    /// let request = SweepRequest {
    ///     destination: to.script_pubkey(),
    ///     fee_rate: bitcoin::FeeRate::from_sat_per_vb_u32(5),
    ///     tip: found.tip,
    /// };
    /// let sweep = recovery.sweep(&found.coins, &request)?;
    /// println!("{} arrive, {} are paid, {} coins stay", sweep.amount, sweep.fee, sweep.left.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Nothing is open yet, the fee rate is out of bounds, or the fee would take everything.
    pub fn sweep(&self, coins: &[RecoverableCoin], request: &SweepRequest) -> Result<Sweep, RecoveryError> {
        let rate = request.fee_rate;
        if !(FEE_RATE_MIN..=FEE_RATE_MAX).contains(&rate) {
            return Err(RecoveryError::FeeRate {
                sat_per_vb: rate.to_sat_per_vb_ceil(),
                min: FEE_RATE_MIN.to_sat_per_vb_ceil(),
                max: FEE_RATE_MAX.to_sat_per_vb_ceil(),
            });
        }
        let (mut open, mut left): (Vec<&RecoverableCoin>, Vec<&RecoverableCoin>) =
            coins.iter().partition(|coin| self.is_open(coin, request.tip));
        if open.is_empty() {
            let next = coins.iter().filter_map(|coin| self.opens_at(coin)).min();
            return Err(RecoveryError::NothingOpen { next });
        }
        let opened: Amount = checked_sum(open.iter().map(|coin| coin.value))?;
        open.sort_by_key(|coin| std::cmp::Reverse(coin.value));
        left.extend(open.split_off(open.len().min(SWEEP_INPUTS_MAX)));
        let addresses = open.iter().map(|coin| self.address(coin.position)).collect::<Result<Vec<_>, _>>()?;
        let input_fee = rate.fee_wu(self.input_weight(addresses.first())).unwrap_or(Amount::MAX_MONEY);
        let (chosen, uneconomic): (Vec<_>, Vec<_>) =
            open.into_iter().zip(addresses).partition(|(coin, _)| coin.value > input_fee);
        left.extend(uneconomic.into_iter().map(|(coin, _)| coin));
        let total = checked_sum(chosen.iter().map(|(coin, _)| coin.value))?;
        let mut transaction = self.unsigned(&chosen, request);
        let fee = rate.fee_wu(self.signed_weight(&transaction, &chosen)).unwrap_or(Amount::MAX_MONEY);
        let amount = total.checked_sub(fee).filter(|left| *left >= request.destination.minimal_non_dust());
        let amount = amount.ok_or(RecoveryError::FeeTooHigh { total: opened, fee })?;
        if let Some(output) = transaction.output.first_mut() {
            output.value = amount;
        }
        let psbt = self.describe(transaction, &chosen);
        Ok(Sweep { psbt, amount, fee, left: left.into_iter().copied().collect() })
    }

    fn unsigned(&self, chosen: &[(&RecoverableCoin, Address)], request: &SweepRequest) -> Transaction {
        let input = |(coin, _): &(&RecoverableCoin, Address)| TxIn {
            previous_output: coin.outpoint,
            sequence: Sequence::from_height(self.descriptor.recovery_delay()),
            ..TxIn::default()
        };
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: chosen.iter().map(input).collect(),
            output: vec![TxOut { value: Amount::ZERO, script_pubkey: request.destination.clone() }],
        }
    }

    fn input_weight(&self, address: Option<&Address>) -> Weight {
        let witness = address.map(|address| witness(&[0; 64], address)).unwrap_or_default();
        let size = u64::try_from(witness.size()).unwrap_or(u64::MAX);
        Weight::from_wu(TxIn::default().legacy_weight().to_wu().saturating_add(size))
    }

    fn signed_weight(&self, transaction: &Transaction, chosen: &[(&RecoverableCoin, Address)]) -> Weight {
        let mut signed = transaction.clone();
        for (input, (_, address)) in signed.input.iter_mut().zip(chosen) {
            input.witness = witness(&[0; 64], address);
        }
        signed.weight()
    }

    /// Everything that a signer needs: it may be another wallet with the same words.
    fn describe(&self, transaction: Transaction, chosen: &[(&RecoverableCoin, Address)]) -> Psbt {
        let mut psbt = Psbt::from_unsigned_tx(transaction).expect("no input is signed");
        for (input, (coin, address)) in psbt.inputs.iter_mut().zip(chosen) {
            let (leaf, version) = (address.leaf.clone(), LeafVersion::TapScript);
            let leaves = vec![TapLeafHash::from_script(&leaf, version)];
            input.witness_utxo =
                Some(TxOut { value: coin.value, script_pubkey: address.script_pubkey.clone() });
            input.tap_internal_key = Some(address.key.x_only_public_key().0);
            input.tap_merkle_root = Some(address.merkle_root);
            input.tap_scripts.insert(address.control_block(), (leaf, version));
            let source = key_source(&self.descriptor, coin.position);
            input.tap_key_origins.insert(address.recovery_key, (leaves, source));
        }
        psbt
    }
}

/// Where the recovery key of an address comes from, as a PSBT says it: from the words' master key, if the descriptor
/// names it, else from its own.
pub(super) fn key_source(descriptor: &AccountDescriptor, position: KeychainIndex) -> KeySource {
    let own = || (descriptor.recovery().fingerprint(), DerivationPath::default());
    let (fingerprint, path) = descriptor.origin().cloned().unwrap_or_else(own);
    (fingerprint, path.extend(position.path()))
}

/// Signature, leaf, control block (BIP341, BIP342).
pub(super) fn witness(signature: &[u8; 64], address: &Address) -> Witness {
    let control = address.control_block().serialize();
    Witness::from_slice(&[signature.as_slice(), address.leaf.as_bytes(), control.as_slice()])
}

pub(super) fn checked_sum(mut amounts: impl Iterator<Item = Amount>) -> Result<Amount, RecoveryError> {
    let sum = amounts.try_fold(Amount::ZERO, |sum, amount| sum.checked_add(amount));
    sum.filter(|sum| *sum <= Amount::MAX_MONEY).ok_or(RecoveryError::Amounts)
}
