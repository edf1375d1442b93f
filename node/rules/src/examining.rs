//! Which checks of a proposal are made on the way, and which aside.
//!
//! A payment with 64 inputs, or 512 outputs that its wallet describes as its own, has an address derived for each, and
//! scripts of sole custody are run one by one. The machine has these checked by the driver
//! ([`Output::Check`](crate::Output::Check)) and takes other inputs meanwhile; then it goes on with the one that needs
//! the check, with what the chain has by then. Small ones are done on the way.

use crate::{
    checks::{Check, JointResult},
    context::Context,
    lookups::Parked,
    scripts::{ScriptError, check_scripts},
};
use bitcoin::{Transaction, TxOut};
use quorate_protocol::{
    account::{AccountCertificate, JointAccount},
    proposal::{JointProposal, Proposal},
    relay_policy,
    wire::{ClientMessage, RejectReason, VotingRequest},
};
use std::sync::Arc;

/// Weight of a transaction whose scripts are run on the way.
const WEIGHT_MAX: u64 = 4_000;
impl Context {
    /// All checks of a joint proposal that need no chain. The account is that of its verified certificate.
    pub(crate) fn check_joint(&mut self, proposal: &JointProposal, account: &JointAccount) -> JointResult {
        if proposal.account == account.id()
            && let Some(known) = self.checks.get(proposal)
        {
            return Ok(known.clone());
        }
        let aside = self.checked.as_ref().and_then(|checked| checked.joint(proposal, account.id()).cloned());
        let result = aside.unwrap_or_else(|| proposal.check(&self.federation, account).map(Arc::new));
        if let Ok(checked) = &result {
            self.checks.remember(proposal, checked);
        }
        result
    }

    /// Runs the scripts of a transaction.
    pub(crate) fn check_scripts(
        &self,
        transaction: &Transaction,
        spent: &[TxOut],
    ) -> Result<(), ScriptError> {
        let aside = self.checked.as_ref().and_then(|checked| checked.scripts(transaction, spent));
        aside.unwrap_or_else(|| check_scripts(transaction, spent))
    }

    /// What is refused for less than the checks of a joint proposal take.
    pub(crate) fn glance(&self, proposal: &JointProposal) -> Result<(), RejectReason> {
        let transaction = &proposal.psbt.unsigned_tx;
        relay_policy::check_shape(transaction)
            .map_err(|error| RejectReason::Invalid { message: error.to_string() })?;
        for (input, described) in transaction.input.iter().zip(&proposal.psbt.inputs) {
            let outpoint = input.previous_output;
            let coin = self.ledger.coin(&outpoint).ok_or(RejectReason::UnknownCoin { outpoint })?;
            let is_it =
                |claimed: &TxOut| claimed.value == coin.value && claimed.script_pubkey == coin.script_pubkey;
            // What is not described at all is refused by the check, at once.
            if !described.witness_utxo.as_ref().is_none_or(is_it) {
                return Err(RejectReason::WrongCoin { outpoint });
            }
        }
        Ok(())
    }

    /// What takes long of what an input needs, and is not known.
    pub(crate) fn wanted_check(&mut self, input: &Parked) -> Option<Check> {
        let (proposal, account) = match input {
            Parked::Request { request: VotingRequest::VoteRequest { proposal, account, .. }, .. } => {
                (proposal, account)
            }
            Parked::Client { message: ClientMessage::TransactionBroadcast { proposal, account }, .. }
            | Parked::Client {
                message: ClientMessage::TransactionCancel { proposal, account, .. }, ..
            } => (proposal, account),
            Parked::Request { .. }
            | Parked::Client { .. }
            | Parked::Shown { .. }
            | Parked::Left { .. }
            | Parked::Settling { .. }
            | Parked::Bound { .. }
            | Parked::Found { .. } => return None,
        };
        let is_vote = matches!(input, Parked::Request { .. });
        match proposal {
            // A coordinator looks at no coins.
            Proposal::Joint(joint) if is_vote && self.glance(joint).is_err() => None,
            Proposal::Joint(joint) => self.wanted_of_joint(joint, account.as_ref()?),
            // It leaves scripts to the voters, of which it is one.
            Proposal::Sole { transaction } if is_vote => self.wanted_of_scripts(proposal, transaction),
            Proposal::Sole { .. } => None,
        }
    }

    fn wanted_of_joint(&mut self, proposal: &JointProposal, account: &AccountCertificate) -> Option<Check> {
        let described = proposal.psbt.outputs.iter().filter(|output| output.tap_internal_key.is_some());
        let few = proposal.psbt.inputs.len() + described.count() <= self.settings.small_proposal;
        let is_refused = relay_policy::check_shape(&proposal.psbt.unsigned_tx).is_err();
        if few || is_refused || self.checks.get(proposal).is_some() {
            return None;
        }
        let account = self.verified_account(account).ok()?;
        (account.id() == proposal.account)
            .then(|| Check::of_joint(self.federation.clone(), account, proposal.clone()))
    }

    fn wanted_of_scripts(&self, proposal: &Proposal, transaction: &Transaction) -> Option<Check> {
        let few = transaction.input.len() <= self.settings.small_proposal;
        if few && transaction.weight().to_wu() <= WEIGHT_MAX {
            return None;
        }
        let vote = self.ledger.record(&transaction.compute_txid()).and_then(|record| record.vote.as_ref());
        if vote.is_some_and(|vote| vote.target == self.present_target(proposal)) {
            return None;
        }
        let spent = self.sole_spends(transaction).ok()?;
        Some(Check::of_scripts(transaction.clone(), spent))
    }
}
