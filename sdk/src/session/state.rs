//! The session on a disk: the wallet's state and the payments that are under way.
//!
//! What a session sends may bind its owner: a payment that the wallet signed may become final long after the page
//! that made it was closed, and only a wallet that remembers which rounds it signed for can tell a server's "this
//! payment has failed" from the truth. A session that was opened with [`Session::restore`] therefore gives an
//! [`Output::Save`] ahead of everything else that it gives, and the driver makes it durable before it goes on.
//!
//! | key | value, as JSON |
//! | --- | --- |
//! | `payment/TXID` | a payment under way: proposal, what was signed, whether its owner cancelled it |
//! | `once/HASH` | the payment that an idempotency key stands for |
//! | `ended/TXID` | a payment that ended without becoming final, should a coin be left to it after all |

use super::{Now, Output, Session, pending::Payment};
use crate::{
    proposal::Proposal,
    vote::VoteTarget,
    wallet::{SavedState, StateChange, StateError, Wallet, read_state, state_value, under_state},
};
use bitcoin::Txid;
use rand_core::CryptoRngCore;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[derive(Serialize, Deserialize)]
struct SavedPayment {
    proposal: Proposal,
    signed: Vec<VoteTarget>,
    cancelled: bool,
}

/// Payments that changed since the last save.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) payments: BTreeSet<Txid>,
    pub(super) dormant: BTreeSet<Txid>,
}

impl Session {
    /// A session that goes on where a saved one stopped, and saves itself. An empty state is a new beginning.
    ///
    /// ```
    /// # fn example(wallet: quorate::wallet::Wallet) -> Result<(), quorate::wallet::StateError> {
    /// use quorate::{session::{Output, Session}, wallet::{SavedState, apply_change}};
    /// let mut disk = SavedState::new();
    /// let mut session = Session::restore(wallet, Box::new(rand_core::OsRng), &disk)?;
    /// while let Some(output) = session.poll_output() {
    ///     if let Output::Save(change) = output {
    ///         apply_change(&mut disk, change);
    ///     }
    /// }
    /// assert!(disk.contains_key("wallet"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The state is damaged, or another wallet's. Nothing was changed.
    pub fn restore(
        mut wallet: Wallet,
        rng: Box<dyn CryptoRngCore + Send>,
        state: &SavedState,
    ) -> Result<Self, StateError> {
        wallet.restore(state)?;
        let mut session = Self::new(wallet, rng);
        session.saves = true;
        if session.wallet.is_watch_only() {
            return Ok(session);
        }
        for (key, _, value) in under_state(state, "payment/") {
            let mut saved: SavedPayment = read_state(key, value)?;
            saved.proposal = lean(saved.proposal);
            if let Proposal::Joint(joint) = &saved.proposal {
                session.wallet.take_proposal(joint).map_err(|error| StateError::damaged(key, error))?;
            }
            let (txid, mut payment) =
                (saved.proposal.txid(), Payment::new(Now::ZERO, saved.proposal, saved.cancelled));
            payment.signed = saved.signed;
            session.payments.insert(txid, payment);
        }
        session.once.restore(state)?;
        for (key, _, value) in under_state(state, "ended/") {
            let proposal = lean(read_state(key, value)?);
            session.dormant.insert(proposal.txid(), proposal);
        }
        session.last_balance = session.wallet.balance();
        Ok(session)
    }

    /// What has to be saved before anything else happens.
    pub(super) fn take_save(&mut self) -> Option<Output> {
        if !self.saves {
            self.touched = Touched::default();
            self.once.take_change(&mut StateChange::new());
            self.wallet.drop_change();
            return None;
        }
        let mut change: StateChange = self.wallet.take_change();
        let touched = std::mem::take(&mut self.touched);
        for txid in touched.payments {
            let saved = self.payments.get(&txid).map(|payment| SavedPayment {
                proposal: payment.proposal.clone(),
                signed: payment.signed.clone(),
                cancelled: payment.cancelled,
            });
            change.insert(format!("payment/{txid}"), saved.as_ref().and_then(state_value));
        }
        for txid in touched.dormant {
            change.insert(format!("ended/{txid}"), self.dormant.get(&txid).and_then(state_value));
        }
        self.once.take_change(&mut change);
        (!change.is_empty()).then_some(Output::Save(change))
    }
}

/// What was saved before nodes refused what they do not need.
fn lean(proposal: Proposal) -> Proposal {
    match proposal {
        Proposal::Joint(joint) => Proposal::Joint(Box::new(joint.without_unneeded())),
        sole @ Proposal::Sole { .. } => sole,
    }
}
