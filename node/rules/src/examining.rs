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
                |claimed: &TxOut| claimed.value == coin.value && *claimed.script_pubkey == *coin.script;
            // What is not described at all is refused by the check, at once.
            if !described.witness_utxo.as_ref().is_none_or(is_it) {
                return Err(RejectReason::WrongCoin { outpoint });
            }
        }
        Ok(())
    }

    /// What takes long of what an input needs, and is not known.
    pub(crate) fn wanted_check(&mut self, input: &Parked) -> Option<Check> {
        match input {
            Parked::Request { request, .. } => self.wanted_of_request(request),
            Parked::Client { message: ClientMessage::TransactionBroadcast { proposal, account }, .. }
            | Parked::Client {
                message: ClientMessage::TransactionCancel { proposal, account, .. }, ..
            } => self.wanted_of_proposal(proposal, account.as_ref()),
            Parked::Client { .. }
            | Parked::Shown { .. }
            | Parked::Left { .. }
            | Parked::Settling { .. }
            | Parked::Bound { .. }
            | Parked::Found { .. } => None,
        }
    }

    fn wanted_of_request(&mut self, request: &VotingRequest) -> Option<Check> {
        match request {
            VotingRequest::VoteRequest { proposal, account, .. } => {
                // The vote of before is repeated for what it was given for.
                if let Some((voted, account)) = self.voted_for(proposal) {
                    return self.wanted_of_proposal(&voted, account.as_ref());
                }
                match proposal {
                    Proposal::Joint(joint) if self.glance(joint).is_err() => None,
                    Proposal::Joint(_) => self.wanted_of_proposal(proposal, account.as_ref()),
                    Proposal::Sole { transaction } => self.wanted_of_scripts(transaction),
                }
            }
            VotingRequest::CommitRequest { certificate, .. } => {
                let record = self.ledger.record(&certificate.target.txid())?;
                let (proposal, account) = (record.proposal.clone()?, record.account.clone());
                self.wanted_of_proposal(&proposal, account.as_ref())
            }
            VotingRequest::ReleaseRequest { cancel: Some(cancel), .. } => {
                self.wanted_of_proposal(&cancel.proposal, cancel.account.as_ref())
            }
            VotingRequest::ReleaseRequest { cancel: None, .. }
            | VotingRequest::Released { .. }
            | VotingRequest::Heartbeat { .. }
            | VotingRequest::FinalTransaction { .. }
            | VotingRequest::AccountRequest { .. } => None,
        }
    }

    /// What this node has approved of a proposal as it stands now, if it has.
    fn voted_for(&self, proposal: &Proposal) -> Option<(Proposal, Option<AccountCertificate>)> {
        let record = self.ledger.record(&proposal.txid())?;
        let is_it = record.vote.as_ref().is_some_and(|vote| vote.target == self.present_target(proposal));
        is_it.then(|| Some((record.proposal.clone()?, record.account.clone())))?
    }

    /// A joint proposal. Nobody but its voters runs scripts of sole custody.
    fn wanted_of_proposal(
        &mut self,
        proposal: &Proposal,
        account: Option<&AccountCertificate>,
    ) -> Option<Check> {
        let Proposal::Joint(joint) = proposal else { return None };
        self.wanted_of_joint(joint, account?)
    }

    fn wanted_of_joint(&mut self, proposal: &JointProposal, account: &AccountCertificate) -> Option<Check> {
        let described = proposal.psbt.outputs.iter().filter(|output| output.tap_internal_key.is_some());
        let few = proposal.psbt.inputs.len() + described.count() <= self.settings.small_proposal;
        let is_refused = relay_policy::check_shape(&proposal.psbt.unsigned_tx).is_err();
        if few || is_refused || self.checks.get(proposal).is_some() {
            return None;
        }
        let account = self.verified_account(account).ok()?;
        // What its owner did not sign is refused at once, and stands in nobody's line.
        (account.id() == proposal.account && proposal.is_authorised(&self.federation, &account))
            .then(|| Check::of_joint(self.federation.clone(), account, proposal.clone()))
    }

    fn wanted_of_scripts(&self, transaction: &Transaction) -> Option<Check> {
        let few = transaction.input.len() <= self.settings.small_proposal;
        if few && transaction.weight().to_wu() <= WEIGHT_MAX {
            return None;
        }
        let spent = self.sole_spends(transaction).ok()?;
        Some(Check::of_scripts(transaction.clone(), spent))
    }
}
