//! What a session does when the federation has come to its next epoch: it gets the document, verifies it from the
//! pinned id on, and only then looks at statements of that epoch. The wallet's keys, addresses and account stay as
//! they are.

use super::{Event, Now, Session, backoff::Backoff, pending::Pending};
use crate::{
    Epoch, FederationDocument,
    vote::VoteTarget,
    wire::{ClientMessage, KeyOutcome, ServerMessage, TransactionStatus},
};
use std::{collections::VecDeque, time::Duration};

/// Messages that may wait for a document; a server that sends more is left.
const POSTPONED_MAX: usize = 1_024;
/// Shortest wait before the document is asked for again: the node that answered may not have come so far.
const ASK_MIN: Duration = Duration::from_millis(50);
/// Longest wait before it is asked for again.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Answers that are not new enough after which the messages are taken as they are, and fail.
const TRIES_MAX: u32 = 16;

/// Messages that speak of an epoch that the wallet does not know.
#[derive(Debug)]
pub(super) struct Postponed {
    messages: VecDeque<(Option<u64>, ServerMessage)>,
    needed: Epoch,
    tries: u32,
    backoff: Backoff,
    pub(super) ask_at: Option<Now>,
}

impl Default for Postponed {
    fn default() -> Self {
        Self {
            messages: VecDeque::new(),
            needed: Epoch::FIRST,
            tries: 0,
            backoff: Backoff::new(ASK_MIN, ASK_MAX),
            ask_at: None,
        }
    }
}

impl Session {
    /// Keeps a message for later if it speaks of an epoch that the wallet does not know yet.
    pub(super) fn postpone(
        &mut self,
        now: Now,
        id: Option<u64>,
        message: ServerMessage,
    ) -> Option<ServerMessage> {
        let known = self.wallet.federation().epoch();
        let epoch = epoch_of(&message);
        let waits = epoch > known || (!self.postponed.messages.is_empty() && is_ordered(&message));
        if !waits {
            return Some(message);
        }
        if self.postponed.messages.len() >= POSTPONED_MAX {
            self.hang_up(now, "the server speaks of an epoch that it does not show");
            return None;
        }
        self.postponed.needed = self.postponed.needed.max(epoch);
        self.postponed.messages.push_back((id, message));
        self.ask_document();
        None
    }

    pub(super) fn ask_document(&mut self) {
        self.postponed.ask_at = None;
        if !self.pending.values().any(|pending| *pending == Pending::Federation) {
            self.request(Pending::Federation, &ClientMessage::FederationQuery);
        }
    }

    pub(super) fn take_document(&mut self, now: Now, document: FederationDocument) {
        let known = self.wallet.federation();
        if document.epoch() > known.epoch() {
            match document.verify(known.id()) {
                Ok(federation) => {
                    let epoch = federation.epoch();
                    self.wallet.adopt(federation);
                    self.event(Event::Epoch { epoch });
                }
                Err(error) => self.misbehaved(&error),
            }
        }
        self.postponed.tries += 1;
        if self.wallet.federation().epoch() < self.postponed.needed && self.postponed.tries < TRIES_MAX {
            self.postponed.ask_at = Some(now + self.postponed.backoff.next(&mut *self.rng));
            return;
        }
        let messages = std::mem::take(&mut self.postponed).messages;
        for (id, message) in messages {
            self.handle_message(now, id, message);
        }
    }
}

/// Messages whose order matters among each other.
fn is_ordered(message: &ServerMessage) -> bool {
    matches!(
        message,
        ServerMessage::UTXOSubscribed { .. }
            | ServerMessage::UTXOStateResponse { .. }
            | ServerMessage::UTXOStateNotification { .. }
            | ServerMessage::TransactionStatus { .. }
    )
}

/// The latest epoch that a message's statements are of.
#[expect(clippy::wildcard_enum_match_arm, reason = "the others hold no statement of a node")]
fn epoch_of(message: &ServerMessage) -> Epoch {
    let of_target = |target: &VoteTarget| target.epoch().unwrap_or(Epoch::FIRST);
    let epoch = match message {
        ServerMessage::UTXOSubscribed { results, .. } | ServerMessage::UTXOStateResponse { results, .. } => {
            let snapshots = results.iter().filter_map(|result| match &result.outcome {
                KeyOutcome::Snapshot { proofs, .. } => Some(proofs),
                KeyOutcome::Error(_) => None,
            });
            snapshots.flatten().map(crate::finality::FinalityProof::epoch).max()
        }
        ServerMessage::UTXOStateNotification { proof, .. } => proof.as_ref().map(|proof| proof.epoch()),
        ServerMessage::SignRequest { certificate, .. } => Some(of_target(&certificate.target)),
        ServerMessage::AccountCertified { certificate } => Some(certificate.epoch),
        ServerMessage::TransactionStatus { status, .. } => match status {
            TransactionStatus::Signed { proof } => Some(proof.epoch()),
            TransactionStatus::Rejected { releases, .. } | TransactionStatus::Failed { releases, .. } => {
                releases.iter().map(|release| release.round.epoch()).max()
            }
            TransactionStatus::AbortedByzantine { evidence, .. } => {
                evidence.iter().filter_map(crate::evidence::Evidence::epoch).max()
            }
            _ => None,
        },
        _ => None,
    };
    epoch.unwrap_or(Epoch::FIRST)
}
