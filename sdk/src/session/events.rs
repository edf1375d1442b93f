//! What a session tells the application.

use crate::{
    Epoch,
    finality::{FinalityKind, FinalityProof},
    wallet::Balance,
    wire::{BlockRef, ConfirmedSpend, NodeReject, WireError},
};
use bitcoin::{Amount, OutPoint, Txid};
use std::time::Duration;

/// Where a payment of this wallet stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PaymentState {
    /// Handed to the session.
    Submitted,
    /// Nodes are voting.
    Voting {
        /// Approvals so far.
        votes: u16,
        /// Approvals needed.
        quorum: u16,
        /// Nodes asked.
        nodes: u16,
    },
    /// The wallet checked the approval certificate and signed.
    Approved,
    /// Shares are being collected.
    Signing {
        /// Attempt, from 1.
        attempt: u32,
    },
    /// Final, by a proof that this wallet verified.
    Final {
        /// Which promise.
        kind: FinalityKind,
        /// The proof, for the payee or for keeping.
        proof: Box<FinalityProof>,
    },
    /// No certificate is possible.
    Rejected {
        /// The nodes' reasons.
        rejects: Vec<NodeReject>,
        /// Whether a new attempt may pass later.
        retry: bool,
    },
    /// Given up.
    Failed {
        /// What happened and what to do.
        message: String,
        /// Whether a new attempt may pass later.
        retry: bool,
    },
}

/// How far a session has come with its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// There is no connection; the session opens one by itself.
    Offline,
    /// The server has greeted; the federation has not certified the account yet.
    Connected,
    /// Payments can be made.
    Ready,
}

/// What a session tells the application.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Greeted; subscriptions follow.
    Connected,
    /// The connection is gone; the session connects again by itself.
    Disconnected {
        /// Why.
        reason: String,
        /// After this long.
        retry_in: Duration,
    },
    /// The federation has certified the account; payments can be made.
    Ready,
    /// The server has answered everything that this session asked for: what the wallet shows is as of now.
    Synced,
    /// The federation has come to its next epoch, by a document that this wallet verified. There is nothing to do.
    Epoch {
        /// The epoch.
        epoch: Epoch,
    },
    /// What the wallet has changed.
    Balance(Balance),
    /// A payment of this wallet moved on.
    Payment {
        /// The transaction.
        txid: Txid,
        /// Where it stands.
        state: PaymentState,
    },
    /// Somebody paid this wallet, and it is final by a proof that this wallet verified: hand over the goods.
    Received {
        /// The transaction.
        txid: Txid,
        /// The first of its outputs to this wallet.
        outpoint: OutPoint,
        /// Sum of its outputs to this wallet.
        amount: Amount,
        /// Which promise.
        kind: FinalityKind,
    },
    /// A transaction of this wallet is in a block of the wallet's own chain.
    Confirmed {
        /// The transaction.
        txid: Txid,
        /// The block.
        block: BlockRef,
    },
    /// A transaction of this wallet can be in no block any more, by a proof that this wallet verified: a block
    /// contradicts it or an ancestor. What it paid is not paid. No event tells that a reorganisation undid this; look
    /// at the wallet.
    Conflicted {
        /// The transaction.
        txid: Txid,
        /// What the block has.
        by: ConfirmedSpend,
    },
    /// What the server says of how the Bitcoin network takes a final transaction of this wallet. A refusal does not
    /// change that it is final; nodes try again. If its fee is too low by now, lift it with [`super::Session::bump`].
    Broadcasting {
        /// The transaction.
        txid: Txid,
        /// What is said against it; nothing if it waits for its block.
        refusal: Option<String>,
    },
    /// A coin will soon be too old to pay with, or is: [`crate::wallet::EXPIRY_NOTICE`]. Told once for each coin, and
    /// again after a restart. Move it home with [`super::Session::refresh`].
    CoinExpiring {
        /// The coin.
        outpoint: OutPoint,
        /// Its value.
        value: Amount,
        /// Height of the chain from which it cannot be paid with.
        expires_at: u32,
    },
    /// Old coins could not be moved home unasked; it is tried again in a day.
    RefreshFailed {
        /// Why.
        reason: String,
    },
    /// The wallet's own chain has a new tip.
    Tip {
        /// The tip.
        tip: BlockRef,
    },
    /// The wallet's tip is old ([`super::TIP_AGE_MAX`]): this server withholds blocks, or the clock is wrong. Payments
    /// from others wait until there is a younger one; consider another server.
    TipStale {
        /// The tip.
        tip: BlockRef,
        /// Its header's time, in seconds since 1970.
        time: u64,
    },
    /// The application read events too slowly and missed some; look at the wallet.
    Lagged {
        /// How many.
        missed: u64,
    },
    /// The server refused a message.
    Refused {
        /// Why.
        error: WireError,
    },
    /// The server sent something that does not verify. Nothing of it was taken; consider another server.
    ServerMisbehaved {
        /// What.
        what: String,
    },
}
