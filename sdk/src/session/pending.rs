//! What a session waits for: answers to its questions, and the ends of its payments.

use super::{backoff::Backoff, events::PaymentState};
use crate::{proposal::Proposal, vote::VoteTarget, wire::SubscriptionKey};
use bitcoin::Txid;
use std::{collections::BTreeSet, time::Duration};

/// Shortest wait before a payment is submitted again.
pub(super) const RESUBMIT_MIN: Duration = Duration::from_millis(100);
/// Longest wait before a payment is submitted again.
pub(super) const RESUBMIT_MAX: Duration = Duration::from_secs(5);
/// A submission without any answer for so long is made again.
pub(super) const SUBMIT_SILENCE: Duration = Duration::from_secs(5);
/// A coordinator that has not brought a payment to its end in this time is left for another, however busy it seems.
const COORDINATOR_PATIENCE: Duration = Duration::from_secs(10);

/// Monotonic time from any fixed moment on.
pub type Now = Duration;

/// A question to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    Hello,
    Register,
    Subscribe { keys: BTreeSet<SubscriptionKey>, since: Option<u32> },
    Unsubscribe,
    Query,
    Federation,
    Headers { step: u32 },
    Proof { txid: Txid },
    FeeRate,
    Ping,
    HandIn,
    Submit { txid: Txid },
}

/// A payment that is not over.
#[derive(Debug)]
pub(super) struct Payment {
    pub(super) proposal: Proposal,
    pub(super) backoff: Backoff,
    pub(super) resubmit_at: Option<Now>,
    /// When it was last submitted.
    pub(super) submitted_at: Now,
    /// Submissions that nodes rejected for a passing reason.
    pub(super) passing_rejects: u32,
    pub(super) state: PaymentState,
    /// What this wallet gave its signature shares for. Only these can have become final.
    pub(super) signed: Vec<VoteTarget>,
    /// The owner wants it stopped.
    pub(super) cancelled: bool,
    /// How it ended by the word of one server, until that is confirmed.
    pub(super) ended: Option<PaymentState>,
}

impl Payment {
    pub(super) fn new(now: Now, proposal: Proposal, cancelled: bool) -> Self {
        Self {
            proposal,
            backoff: Backoff::new(RESUBMIT_MIN, RESUBMIT_MAX),
            resubmit_at: None,
            submitted_at: now,
            passing_rejects: 0,
            state: PaymentState::Submitted,
            signed: Vec::new(),
            cancelled,
            ended: None,
        }
    }

    /// News of it: waits for more, but not forever.
    pub(super) fn heard(&mut self, now: Now) {
        self.resubmit_at = Some((now + SUBMIT_SILENCE).min(self.submitted_at + COORDINATOR_PATIENCE));
    }
}
