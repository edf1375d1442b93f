//! Rules V1 and V10, and whether an outpoint's round leaves room for a transaction (V2, V4, V5).
//!
//! # Why what is final is not taken back by its owner
//!
//! The owner of a joint account can spend a coin alone once its recovery path has opened, `recovery_delay` blocks
//! after the coin's block. Every honest vote names a deadline that lies `recovery_margin` blocks before that for each
//! coin that the transaction spends, and for each coin that its unconfirmed ancestors spend: a confirmed coin gives
//! that height itself, an unconfirmed one the lower of two: its parent's deadline, which was bounded in the same way
//! when the parent was voted for, and what its own account's delay gives from the present tip on, because its block
//! comes later than that. (Accounts choose their delays: a parent's deadline says nothing of a child with a short
//! one.) So no certificate exists with a later deadline, and who takes the transaction in below it
//! ([`Context::check_deadline`], and the payee by its own tip) has it `recovery_margin` blocks before anybody can
//! spend around it: time to have it mined. Who sees it first at the deadline or later does not take it for final
//! before it is in a block.
//!
//! A coin that is not confirmed is spendable only if its parent is final *enforced*: what sole custody signed can be
//! spent another way on the chain at any time, and no promise about a coin is better than the weakest promise that it
//! rests on.

use crate::{
    Bug,
    context::Context,
    ledger::{Ancestry, Coin},
    scripts::ScriptError,
};
use bitcoin::{Amount, FeeRate, OutPoint, Transaction, TxOut, Txid, Weight, constants::COINBASE_MATURITY};
use quorate_protocol::{
    account::{AccountCertificate, JointAccount},
    proposal::{CheckedProposal, Proposal, ProposalError, SpendPlan},
    relay_policy::{self, CLUSTER_TRANSACTIONS_MAX, CLUSTER_VBYTES_MAX},
    vote::{Custody, NOT_BEFORE_ITS_BLOCK, VoteTarget},
    wire::{ErrorCode, Fault, RejectReason, WireError},
};

/// How long what a coin rests on holds.
struct Support {
    /// The height below which it does.
    until: u32,
    /// For a confirmed coin of a joint account: which, and when its recovery path opens.
    horizon: Option<(OutPoint, u32)>,
}

/// The latest deadline that the inputs allow, and by which of them.
#[derive(Default)]
struct Bound {
    least: Option<Support>,
}

impl Bound {
    fn lower(&mut self, support: Support) {
        if self.least.as_ref().is_none_or(|least| support.until < least.until) {
            self.least = Some(support);
        }
    }

    fn check(&self, deadline: u32, tip: u32) -> Result<(), RejectReason> {
        let Some(Support { until, horizon }) = &self.least else { return Ok(()) };
        match horizon {
            Some((outpoint, opens_at)) if tip >= *until => {
                Err(RejectReason::Horizon { outpoint: *outpoint, opens_at: *opens_at })
            }
            Some(_) | None if deadline <= tip || deadline > *until => {
                Err(RejectReason::Deadline { deadline, tip, latest: *until })
            }
            Some(_) | None => Ok(()),
        }
    }
}

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
                self.glance(joint)?;
                self.check_news(proposal).map_err(|error| invalid(&error))?;
                let certificate = account.ok_or_else(|| invalid(&"the account certificate is missing"))?;
                let account = self.verified_account(certificate).map_err(|error| invalid(&error))?;
                let checked = self.check_joint(joint, &account).map_err(|error| invalid(&error))?;
                let spent = self.spendable(&checked.transaction, Some((&account, &checked)))?;
                for ((input, claimed), actual) in
                    checked.transaction.input.iter().zip(&checked.spent).zip(&spent)
                {
                    if claimed != actual {
                        return Err(RejectReason::WrongCoin { outpoint: input.previous_output });
                    }
                }
                self.check_floor(checked.fee, checked.weight)?;
                Ok((Some(checked.plan.clone()), spent))
            }
            Proposal::Sole { transaction } => {
                let spent = self.sole_spends(transaction)?;
                self.check_scripts(transaction, &spent)
                    .map_err(|ScriptError { index }| RejectReason::Script { index })?;
                Ok((None, spent))
            }
        }
    }

    /// A proposal that is new here has nothing that no rule reads: it would be kept until it is settled. What was taken
    /// in before, or is left its coins, may be final.
    pub(crate) fn check_news(&self, proposal: &Proposal) -> Result<(), ProposalError> {
        let Proposal::Joint(joint) = proposal else { return Ok(()) };
        let fat = joint.check_lean();
        if fat.is_ok() {
            return Ok(());
        }
        let target = self.present_target(proposal);
        let known = self.ledger.record(&target.txid()).is_some();
        if known || self.is_forced(target.inputs(), target.txid()) { Ok(()) } else { fat }
    }

    /// What a transaction in sole custody spends, if nothing but its scripts is left to check.
    pub(crate) fn sole_spends(&self, transaction: &Transaction) -> Result<Vec<TxOut>, RejectReason> {
        let invalid = |error: &dyn std::fmt::Display| RejectReason::Invalid { message: error.to_string() };
        relay_policy::check_shape(transaction).map_err(|error| invalid(&error))?;
        let spent = self.spendable(transaction, None)?;
        let weight = relay_policy::check_inputs(transaction, &spent).map_err(|error| invalid(&error))?;
        let fee = relay_policy::check_fee(transaction, &spent, weight).map_err(|error| invalid(&error))?;
        self.check_floor(fee, weight)?;
        Ok(spent)
    }

    /// What is final has to be mined: nothing below the floor is voted for.
    fn check_floor(&self, fee: Amount, weight: Weight) -> Result<(), RejectReason> {
        let floor = self.fees.floor;
        if FeeRate::from_sat_per_kwu(floor).fee_wu(weight).is_some_and(|least| fee >= least) {
            return Ok(());
        }
        let rate = (fee / weight).to_sat_per_kwu();
        Err(RejectReason::FeeTooLow { rate, floor })
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
        let home = joint.is_some_and(|(_, checked)| {
            checked.returns_home && checked.custody.deadline() == Some(NOT_BEFORE_ITS_BLOCK)
        });
        let mut bound = Bound::default();
        let mut spent = Vec::with_capacity(transaction.input.len());
        for outpoint in transaction.input.iter().map(|input| input.previous_output) {
            let coin = self.ledger.coin(&outpoint).ok_or(RejectReason::UnknownCoin { outpoint })?;
            match self.ledger.spent_by(&outpoint).filter(|other| *other != txid) {
                Some(_) if self.planted(Bug::VoteForSpentCoin) => {}
                Some(other) => return Err(RejectReason::Spent { outpoint, txid: other }),
                None => self.votable(outpoint, txid)?,
            }
            let delay = joint.map(|(account, _)| account.record().recovery_delay);
            bound.lower(self.support(outpoint, coin, delay, home)?);
            spent.push(coin.output());
        }
        if let Some((_, checked)) = joint.filter(|_| !home && !self.planted(Bug::IgnoreDeadline)) {
            bound.check(checked.custody.deadline().unwrap_or(NOT_BEFORE_ITS_BLOCK), tip)?;
        }
        let cluster = self.ledger.cluster(transaction);
        if cluster.is_too_large() {
            return Err(RejectReason::UnconfirmedChain {
                transactions: CLUSTER_TRANSACTIONS_MAX,
                vbytes: CLUSTER_VBYTES_MAX,
            });
        }
        Ok(spent)
    }

    /// What a coin rests on, if that is enough to vote for what spends it: its block, or an enforced parent. Gives how
    /// long that holds.
    fn support(
        &self,
        outpoint: OutPoint,
        coin: &Coin,
        delay: Option<u16>,
        home: bool,
    ) -> Result<Support, RejectReason> {
        let tip = self.ledger.tip().height;
        let depth = coin.created.map_or(0, |block| tip + 1 - block.height.min(tip + 1));
        let coinbase = self.ledger.is_coinbase(&outpoint);
        let needed = if coinbase { COINBASE_MATURITY } else { self.settings.min_confirmations.max(1) };
        let margin = u32::from(self.federation.roster().recovery_margin);
        // A coin that is in no block gets one above the tip at the earliest.
        let from = coin.created.map_or(tip, |block| block.height);
        let opens_at = delay.map(|delay| from.saturating_add(delay.into()));
        let own = opens_at.map_or(u32::MAX, |height| height.saturating_sub(margin));
        if depth >= needed {
            return Ok(Support { until: own, horizon: opens_at.map(|opens_at| (outpoint, opens_at)) });
        }
        let unconfirmed = RejectReason::Unconfirmed { outpoint, confirmations: depth, needed };
        let parent = self.ledger.proof(&outpoint.txid).filter(|_| !coinbase).ok_or(unconfirmed.clone())?;
        match self.ledger.ancestry(outpoint.txid) {
            Ancestry::Alive => {}
            Ancestry::Conflicted(conflict) => {
                return Err(RejectReason::Spent { outpoint, txid: conflict.by.txid });
            }
            Ancestry::Unknown => return Err(unconfirmed),
        }
        match parent.custody().deadline() {
            None if self.planted(Bug::TrustAttestedParent) => Ok(Support { until: u32::MAX, horizon: None }),
            Some(until) if until != NOT_BEFORE_ITS_BLOCK && (tip < until || home) => {
                Ok(Support { until: until.min(own), horizon: None })
            }
            Some(_) | None => Err(unconfirmed),
        }
    }

    /// Rule V10: what is not known yet is taken in, committed to or signed only below its deadline, unless a block has
    /// it.
    pub(crate) fn check_deadline(&self, txid: Txid, custody: Custody) -> Result<(), WireError> {
        let tip = self.ledger.tip().height;
        let broken = self.planted(Bug::IgnoreDeadline) || self.planted(Bug::TakeLate);
        if !custody.is_over(tip) || self.ledger.block_of(&txid).is_some() || broken {
            return Ok(());
        }
        let deadline = custody.deadline().unwrap_or(NOT_BEFORE_ITS_BLOCK);
        let message = format!(
            "the deadline of {txid} was height {deadline} and the tip is {tip}: propose it with a later one, or wait for its block"
        );
        Err(WireError::sender(ErrorCode::DeadlinePassed, message))
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
        self.check_deadline(target.txid(), target.custody())?;
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
