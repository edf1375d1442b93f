//! Which checks of a proposal are made on the way, and which aside.
//!
//! A payment with 64 inputs, or 512 outputs that its wallet describes as its own, has an address derived for each, and
//! scripts of sole custody are run one by one. The machine has these checked by the driver
//! ([`Output::Check`](crate::Output::Check)) and takes other inputs meanwhile; then the input that needs one begins
//! anew and finds it done. Small ones are done on the way.

use crate::{
    checks::{Check, Work},
    context::Context,
    lookups::Parked,
    records::TxRecord,
    scripts::{ScriptError, check_scripts},
};
use bitcoin::{Transaction, TxOut};
use quorate_protocol::{
    account::{AccountCertificate, JointAccount},
    proposal::{CheckedProposal, JointProposal, Proposal, ProposalError},
    wire::{ClientMessage, VotingRequest},
};
use std::sync::Arc;

/// Addresses that are derived on the way.
const ADDRESSES_MAX: usize = 3;
/// Inputs whose scripts are run on the way, if the whole transaction is no heavier than this.
const INPUTS_MAX: usize = 2;
const WEIGHT_MAX: u64 = 4_000;
impl Context {
    /// All checks of a joint proposal that need no chain. The account is that of its verified certificate.
    pub(crate) fn check_joint(
        &mut self,
        proposal: &JointProposal,
        account: &JointAccount,
    ) -> Result<Arc<CheckedProposal>, ProposalError> {
        if proposal.account == account.id()
            && let Some(known) = self.checks.joint(proposal)
        {
            return known.clone();
        }
        let result = proposal.check(&self.federation, account).map(Arc::new);
        self.checks.remember_joint(proposal.clone(), result.clone());
        result
    }

    /// Runs the scripts of a transaction.
    pub(crate) fn check_scripts(
        &self,
        transaction: &Transaction,
        spent: &[TxOut],
    ) -> Result<(), ScriptError> {
        self.checks.scripts(transaction, spent).unwrap_or_else(|| check_scripts(transaction, spent))
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
        match proposal {
            Proposal::Joint(joint) => self.wanted_of_joint(joint, account.as_ref()?),
            // A coordinator leaves it to the voters, of which it is one.
            Proposal::Sole { transaction } if matches!(input, Parked::Request { .. }) => {
                self.wanted_of_scripts(transaction)
            }
            Proposal::Sole { .. } => None,
        }
    }

    fn wanted_of_joint(&mut self, proposal: &JointProposal, account: &AccountCertificate) -> Option<Check> {
        let described = proposal.psbt.outputs.iter().filter(|output| output.tap_internal_key.is_some());
        if proposal.psbt.inputs.len() + described.count() <= ADDRESSES_MAX
            || self.checks.joint(proposal).is_some()
        {
            return None;
        }
        // What is refused for less is refused on the way.
        let account = Box::new(self.verified_account(account).ok()?);
        let (federation, proposal) = (self.federation.clone(), Box::new(proposal.clone()));
        Some(Check(Work::Joint { federation, account, proposal }))
    }

    fn wanted_of_scripts(&self, transaction: &Transaction) -> Option<Check> {
        if transaction.input.len() <= INPUTS_MAX && transaction.weight().to_wu() <= WEIGHT_MAX {
            return None;
        }
        let voted = |record: &TxRecord| record.vote.is_some();
        if self.ledger.record(&transaction.compute_txid()).is_some_and(voted) {
            return None;
        }
        let spent = self.sole_spends(transaction).ok()?;
        if self.checks.scripts(transaction, &spent).is_some() {
            return None;
        }
        Some(Check(Work::Scripts { transaction: Box::new(transaction.clone()), spent }))
    }
}
