//! Rule V1, and whether an outpoint's round leaves room for a transaction (V2, V4, V5).

use crate::{
    Bug,
    context::Context,
    scripts::{ScriptError, check_scripts},
};
use bitcoin::{OutPoint, Transaction, TxOut, Txid, constants::COINBASE_MATURITY};
use quorate_protocol::{
    account::{AccountCertificate, JointAccount},
    proposal::{CheckedProposal, Proposal, SpendPlan},
    relay_policy,
    vote::VoteTarget,
    wire::{ErrorCode, Fault, RejectReason, WireError},
};

impl Context {
    /// Rule V1. Gives what is to be signed (for a joint account) and the outputs that are spent.
    pub(crate) fn evaluate(
        &mut self,
        proposal: &Proposal,
        account: Option<&AccountCertificate>,
    ) -> Result<(Option<SpendPlan>, Vec<TxOut>), RejectReason> {
        let invalid = |error: &dyn std::fmt::Display| RejectReason::Invalid { message: error.to_string() };
        match proposal {
            Proposal::Joint(joint) => {
                let certificate = account.ok_or_else(|| invalid(&"the account certificate is missing"))?;
                let account = self.verified_account(certificate).map_err(|error| invalid(&error))?;
                let checked = joint.check(&self.federation, &account).map_err(|error| invalid(&error))?;
                let spent = self.spendable(&checked.transaction, Some((&account, &checked)))?;
                for ((input, claimed), actual) in
                    checked.transaction.input.iter().zip(&checked.spent).zip(&spent)
                {
                    if claimed != actual {
                        return Err(RejectReason::WrongCoin { outpoint: input.previous_output });
                    }
                }
                Ok((Some(checked.plan), spent))
            }
            Proposal::Sole { transaction } => {
                relay_policy::check_shape(transaction).map_err(|error| invalid(&error))?;
                let spent = self.spendable(transaction, None)?;
                let weight =
                    relay_policy::check_inputs(transaction, &spent).map_err(|error| invalid(&error))?;
                relay_policy::check_fee(transaction, &spent, weight).map_err(|error| invalid(&error))?;
                check_scripts(transaction, &spent)
                    .map_err(|ScriptError { index }| RejectReason::Script { index })?;
                Ok((None, spent))
            }
        }
    }

    fn spendable(
        &self,
        transaction: &Transaction,
        joint: Option<(&JointAccount, &CheckedProposal)>,
    ) -> Result<Vec<TxOut>, RejectReason> {
        let tip = self.ledger.tip().height;
        let final_lock = match transaction.lock_time {
            bitcoin::absolute::LockTime::Blocks(height) => height.to_consensus_u32() <= tip,
            bitcoin::absolute::LockTime::Seconds(time) => time.to_consensus_u32() < self.ledger.median_time(),
        };
        // Relative locks are refused outright: the wallet's own transactions never have any.
        let relative = transaction.version.0 >= 2
            && transaction.input.iter().any(|input| input.sequence.is_relative_lock_time());
        if relative || (!final_lock && transaction.is_lock_time_enabled()) {
            return Err(RejectReason::TimeLock);
        }
        let txid = transaction.compute_txid();
        let check = |outpoint: OutPoint| {
            let coin = self.ledger.coin(&outpoint).ok_or(RejectReason::UnknownCoin { outpoint })?;
            match self.ledger.spent_by(&outpoint).filter(|other| *other != txid) {
                Some(_) if self.planted(Bug::VoteForSpentCoin) => {}
                Some(other) => return Err(RejectReason::Spent { outpoint, txid: other }),
                None => self.votable(outpoint, txid)?,
            }
            let depth = coin.created.map_or(0, |block| tip + 1 - block.height.min(tip + 1));
            let immature = self.ledger.is_coinbase(&outpoint);
            let needed = if immature { COINBASE_MATURITY } else { self.settings.min_confirmations };
            if (coin.final_parent.is_none() || immature) && depth < needed {
                return Err(RejectReason::Unconfirmed { outpoint, confirmations: depth, needed });
            }
            if let (Some((account, checked)), Some(block)) = (joint, coin.created) {
                let opens_at = block.height + u32::from(account.record().recovery_delay);
                let margin = u32::from(self.federation.roster().recovery_margin);
                if tip + margin >= opens_at && !checked.returns_home {
                    return Err(RejectReason::Horizon { outpoint, opens_at });
                }
            }
            Ok(TxOut { value: coin.value, script_pubkey: coin.script_pubkey.clone() })
        };
        transaction.input.iter().map(|input| check(input.previous_output)).collect()
    }

    /// Rules V2 and V5: whether the outpoint's round leaves room for this transaction.
    fn votable(&self, outpoint: OutPoint, txid: Txid) -> Result<(), RejectReason> {
        if self.ledger.is_pending(&outpoint) && !self.planted(Bug::VoteWhilePending) {
            return Err(RejectReason::Round { outpoint, round: self.ledger.round(&outpoint) });
        }
        if let Some((other, _)) = self.ledger.approved(&outpoint)
            && other != txid
            && !self.planted(Bug::VoteTwice)
        {
            return Err(RejectReason::Conflict { outpoint, txid: other });
        }
        match self.ledger.forced(&outpoint) {
            Some(forced) if forced != txid && !self.ignores_forced(&outpoint) => {
                Err(RejectReason::Conflict { outpoint, txid: forced })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The certificate has to be of the present round of every input, none of which is being left, and for nothing
    /// that another release or a final transaction rules out.
    pub(crate) fn check_rounds(&self, target: &VoteTarget, proposal: &Proposal) -> Result<(), WireError> {
        if self.planted(Bug::CommitAfterPromise) {
            return Ok(());
        }
        let outpoints = proposal.outpoints();
        if *target != self.present_target(proposal) || outpoints.iter().any(|one| self.ledger.is_pending(one))
        {
            let message = "the certificate is not of the rounds that its inputs are in here; vote again";
            return Err(WireError::passing(ErrorCode::RoundOver, Fault::Network, message));
        }
        for outpoint in &outpoints {
            let forced = self.ledger.forced(outpoint).filter(|_| !self.planted(Bug::IgnoreInherited));
            let other = self.ledger.spent_by(outpoint).or(forced).filter(|other| *other != target.txid());
            if let Some(other) = other {
                let message = format!("{outpoint} is held by {other}");
                return Err(WireError::sender(ErrorCode::RoundOver, message));
            }
        }
        Ok(())
    }
}
