//! Signing a sweep with the words: no connection, and nothing of the PSBT is believed that the descriptor decides.

use super::{
    Recovery, RecoveryError,
    sweep::{checked_sum, key_source, witness},
};
use crate::{
    account::{Address, KeychainIndex},
    wallet::{SecretWords, recovery_key},
};
use bitcoin::{
    Amount, Psbt, Sequence, TapLeafHash, TapSighashType, Transaction, TxOut,
    bip32::{ChildNumber, Xpriv},
    hashes::Hash as _,
    sighash::{Prevouts, SighashCache},
    taproot::LeafVersion,
};
use quorate_protocol::curve;

/// A sweep that any Bitcoin node takes once its coins are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The transaction.
    pub transaction: Transaction,
    /// What it costs.
    pub fee: Amount,
}

impl Recovery {
    /// Signs a sweep. Show its outputs and fee to the user first if the PSBT comes from another machine.
    ///
    /// ```
    /// # use quorate::{recovery::{Recovery, RecoveryError}, wallet::SecretWords};
    /// # fn example(recovery: &Recovery, words: &SecretWords, psbt: &bitcoin::Psbt) -> Result<(), RecoveryError> {
    /// let signed = recovery.sign(words, psbt)?;
    /// println!("{}", bitcoin::consensus::encode::serialize_hex(&signed.transaction));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The words are of another wallet; an input is not the account's, or asks for another kind of signature.
    pub fn sign(&self, words: &SecretWords, psbt: &Psbt) -> Result<Signed, RecoveryError> {
        let mut key = self.key(words)?;
        let signed = self.sign_with(&key, psbt);
        key.private_key.non_secure_erase();
        signed
    }

    /// Whether words are those of the descriptor.
    ///
    /// # Errors
    /// They are of another wallet, account or network.
    pub fn check_words(&self, words: &SecretWords) -> Result<(), RecoveryError> {
        self.key(words).map(|mut key| key.private_key.non_secure_erase())
    }

    fn key(&self, words: &SecretWords) -> Result<Xpriv, RecoveryError> {
        let recovery = self.descriptor.recovery();
        let ChildNumber::Hardened { index } = recovery.child_number else {
            return Err(RecoveryError::OtherWords);
        };
        let mut key = recovery_key(words, recovery.network, index)?;
        let public = curve::neutered(&key);
        let same = (public.public_key, public.chain_code) == (recovery.public_key, recovery.chain_code);
        if same {
            return Ok(key);
        }
        key.private_key.non_secure_erase();
        Err(RecoveryError::OtherWords)
    }

    fn sign_with(&self, key: &Xpriv, psbt: &Psbt) -> Result<Signed, RecoveryError> {
        let mut transaction = psbt.unsigned_tx.clone();
        if psbt.inputs.len() != transaction.input.len() {
            return Err(RecoveryError::Input { index: psbt.inputs.len(), reason: "it is not described" });
        }
        let (mut spent, mut addresses) = (Vec::new(), Vec::new());
        for index in 0..transaction.input.len() {
            let (output, address) = self.check_input(psbt, index)?;
            spent.push(output);
            addresses.push(address);
        }
        let total = checked_sum(spent.iter().map(|output| output.value))?;
        let paid = checked_sum(transaction.output.iter().map(|output| output.value))?;
        let fee = total.checked_sub(paid).ok_or(RecoveryError::Amounts)?;
        let mut witnesses = Vec::new();
        let mut cache = SighashCache::new(&transaction);
        for (index, address) in addresses.iter().enumerate() {
            let leaf = TapLeafHash::from_script(&address.leaf, LeafVersion::TapScript);
            let kind = TapSighashType::Default;
            let sighash =
                cache.taproot_script_spend_signature_hash(index, &Prevouts::All(&spent), leaf, kind);
            let sighash = sighash.map_err(|_| RecoveryError::Input { index, reason: "it has no digest" })?;
            let child = curve::derive(key, &address.position.path());
            let mut child = child.ok_or(crate::wallet::WalletError::Derivation)?;
            let signature = curve::sign(&child.private_key, sighash.to_byte_array());
            child.private_key.non_secure_erase();
            witnesses.push(witness(signature.as_ref(), address));
        }
        for (input, witness) in transaction.input.iter_mut().zip(witnesses) {
            input.witness = witness;
        }
        Ok(Signed { transaction, fee })
    }

    fn check_input(&self, psbt: &Psbt, index: usize) -> Result<(TxOut, Address), RecoveryError> {
        let fail = |reason| RecoveryError::Input { index, reason };
        let input = psbt.inputs.get(index).ok_or_else(|| fail("it is not described"))?;
        let output = input.witness_utxo.clone().ok_or_else(|| fail("what it spends is missing"))?;
        if input.sighash_type.is_some_and(|kind| kind != TapSighashType::Default.into()) {
            return Err(fail("it asks for a signature that does not cover everything"));
        }
        let sequence = psbt.unsigned_tx.input.get(index).map(|input| input.sequence);
        if sequence != Some(Sequence::from_height(self.descriptor.recovery_delay())) {
            return Err(fail("its sequence number is not the account's delay"));
        }
        let positions = input.tap_key_origins.values().filter_map(|(_, (_, path))| {
            let steps = path.as_ref();
            KeychainIndex::from_path(&steps.get(steps.len().checked_sub(2)?..)?.into())
        });
        for position in positions {
            let address = self.address(position)?;
            let named = input.tap_key_origins.get(&address.recovery_key);
            if address.script_pubkey == output.script_pubkey
                && named.is_some_and(|(_, source)| *source == key_source(&self.descriptor, position))
            {
                return Ok((output, address));
            }
        }
        Err(fail("it is not an address of this account"))
    }
}
