//! What can go wrong before anything leaves the wallet.

use super::state::StateError;
use crate::{account::AccountError, frost::SigningError, proposal::ProposalError, relay_policy::RelayError};
use bitcoin::{Amount, Network, OutPoint, Txid};

/// Why the wallet refuses. Nothing has been sent; what the user can change is in the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalletError {
    /// The words are not a BIP39 mnemonic.
    #[error("the secret words are not valid: {0}")]
    Words(#[from] WordsError),
    /// No randomness.
    #[error("the platform has no source of randomness")]
    Randomness,
    /// A derived key is not usable (chance below 2^-120), or an index is out of range.
    #[error("a key cannot be derived at this path")]
    Derivation,
    /// So many receive addresses were given out after the last one that was paid to that no more could be watched: what
    /// was paid to them would not be noticed.
    #[error(
        "{limit} addresses are given out after the last one that was paid to, and no more can be watched: show one of them again, or try again after a payment"
    )]
    AddressesUnpaid {
        /// How many there may be.
        limit: u32,
    },
    /// Not an address or URI.
    #[error("{text:?} is not a bitcoin address or URI: {reason}")]
    Address {
        /// What was given, shortened.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Of another network.
    #[error("{address} is not an address of {expected}; ask the payee for another")]
    Network {
        /// The address.
        address: String,
        /// This wallet's network.
        expected: Network,
    },
    /// A witness version that this software does not know.
    #[error("{address} is of a type that this wallet does not know how to pay safely")]
    AddressType {
        /// The address.
        address: String,
    },
    /// Neither request nor URI name an amount.
    #[error("the payment needs an amount")]
    AmountMissing,
    /// More than there can be.
    #[error("{amount} is more than the 21 million bitcoin that there can be")]
    AmountTooLarge {
        /// Requested.
        amount: Amount,
    },
    /// More data than a payment can carry.
    #[error("{length} bytes of data are more than the {max} that a payment can carry")]
    DataTooLong {
        /// Bytes given.
        length: usize,
        /// Most bytes.
        max: usize,
    },
    /// What is missing is in a payment that is under way, and comes back with it.
    #[error(
        "{needed} are needed with the fee, {spendable} are spendable, and {busy} come back with payments that are under way; try again when they are final"
    )]
    CoinsBusy {
        /// Amount and fee.
        needed: Amount,
        /// Spendable now.
        spendable: Amount,
        /// Change of payments that are not final yet.
        busy: Amount,
    },
    /// The key was used for another payment. Nothing was paid again.
    #[error("this idempotency key was used for another payment, {txid}; take a new one")]
    KeyReused {
        /// What was paid with it.
        txid: Txid,
    },
    /// Below what the network relays.
    #[error("{amount} is dust; the least for this address is {limit}")]
    Dust {
        /// Requested.
        amount: Amount,
        /// The least.
        limit: Amount,
    },
    /// Too little spendable.
    #[error("{needed} are needed with the fee, {spendable} are spendable ({incoming} more are incoming)")]
    InsufficientFunds {
        /// Amount and fee.
        needed: Amount,
        /// Spendable now.
        spendable: Amount,
        /// Not spendable yet.
        incoming: Amount,
    },
    /// The fee rate is out of bounds.
    #[error("a fee rate of {sat_per_vb} sat/vB is outside {min} to {max} sat/vB")]
    FeeRate {
        /// Requested.
        sat_per_vb: u64,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// The fee at the rate that a server estimates is out of proportion. Nothing is paid on a server's word alone: name
    /// a fee rate to pay it all the same.
    #[error(
        "the server's fee rate of {sat_per_vb} sat/vB makes a fee of {fee} for a payment of {amount}, where up to {limit} is paid unasked; name a fee rate to pay so much"
    )]
    FeeUnreasonable {
        /// The server's rate.
        sat_per_vb: u64,
        /// What the payment would cost.
        fee: Amount,
        /// What it pays to others.
        amount: Amount,
        /// The highest fee that is paid without asking.
        limit: Amount,
    },
    /// The proposal spends a coin that is not this wallet's, or not spendable.
    #[error("{outpoint} is {}", if *retry { "not spendable at present; try again later" } else { "no unspent coin of this wallet" })]
    Coin {
        /// The coin.
        outpoint: OutPoint,
        /// Whether it may be spendable later: it waits for a proof or for blocks, or another payment holds it.
        retry: bool,
    },
    /// A coin is too old to pay with.
    #[error(
        "the recovery path of {outpoint} opens at height {opens_at}, too soon to pay with it; move everything to an address of this wallet first"
    )]
    Horizon {
        /// The coin.
        outpoint: OutPoint,
        /// Height at which its recovery path opens.
        opens_at: u32,
    },
    /// It is in a block, or pays as much already, or this wallet has no output of it that it could spend.
    #[error(
        "there is nothing to lift in {txid}: it is in a block, pays as much already, or left this wallet nothing"
    )]
    NothingToLift {
        /// The transaction.
        txid: Txid,
    },
    /// A lift would pay for nothing: the network refuses what this one descends from, and takes a child together with
    /// its own parents only. Whoever has an output of that one can lift it.
    #[error(
        "{txid} descends from {first}, which the network refuses too: that one has to be lifted first, by whoever has an output of it"
    )]
    LiftFirst {
        /// What was to be lifted.
        txid: Txid,
        /// What comes before.
        first: Txid,
    },
    /// What could be paid with hangs on too many unconfirmed transactions: the network takes no more of them together.
    #[error(
        "the coins hang on unconfirmed transactions, and the network takes {transactions} of them or {vbytes} vB together; pay less, or try again after the next block"
    )]
    UnconfirmedChain {
        /// Most transactions together.
        transactions: usize,
        /// Most virtual bytes together.
        vbytes: usize,
    },
    /// Coins of this account would have to be moved home all the time.
    #[error(
        "coins of this account can be paid with for {blocks} blocks only, where {least} are needed to move them home unasked; refresh them by hand"
    )]
    ShortLived {
        /// Blocks from a coin's own to its horizon.
        blocks: u32,
        /// Least.
        least: u32,
    },
    /// Headers cannot be verified from there on.
    #[error(
        "header verification cannot start at height {height}; a checkpoint is the first block of a difficulty period, at a multiple of 2016"
    )]
    Checkpoint {
        /// Its height.
        height: u32,
    },
    /// The account has no certificate yet; connect first.
    #[error("the account is not certified by the federation yet; connect and try again")]
    NotCertified,
    /// The server asked to sign something that this wallet did not propose.
    #[error("asked to sign a transaction that this wallet did not propose")]
    NotProposed,
    /// No payment of this wallet that could be waited for or stopped has this txid.
    #[error("this wallet knows no such payment; compare the txid")]
    UnknownPayment,
    /// The wallet was opened without its words.
    #[error("this wallet only watches its account; open it with its words to pay")]
    WatchOnly,
    /// The saved state cannot be used.
    #[error(transparent)]
    State(StateError),
    /// A key or certificate of the account.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The proposal breaks a rule.
    #[error(transparent)]
    Proposal(#[from] ProposalError),
    /// The transaction would not relay.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Signing failed.
    #[error(transparent)]
    Signing(#[from] SigningError),
}

impl WalletError {
    /// Whether the same call may succeed later.
    ///
    /// ```
    /// assert!(quorate::wallet::WalletError::NotCertified.is_retryable());
    /// ```
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotCertified
                | Self::Coin { retry: true, .. }
                | Self::AddressesUnpaid { .. }
                | Self::CoinsBusy { .. }
                | Self::UnconfirmedChain { .. }
                | Self::LiftFirst { .. }
        )
    }

    /// A stable name for programs, in `snake_case`; names are only added.
    ///
    /// ```
    /// assert_eq!(quorate::wallet::WalletError::AmountMissing.code(), "amount_missing");
    /// ```
    pub fn code(&self) -> &'static str {
        match self {
            Self::Words(_) => "invalid_words",
            Self::Randomness => "randomness_unavailable",
            Self::Derivation => "derivation_failed",
            Self::AddressesUnpaid { .. } => "addresses_unpaid",
            Self::Address { .. } => "invalid_address",
            Self::Network { .. } => "wrong_network",
            Self::AddressType { .. } => "unknown_address_type",
            Self::AmountMissing => "amount_missing",
            Self::AmountTooLarge { .. } => "amount_too_large",
            Self::DataTooLong { .. } => "data_too_long",
            Self::CoinsBusy { .. } => "coins_busy",
            Self::KeyReused { .. } => "key_reused",
            Self::Dust { .. } => "dust",
            Self::InsufficientFunds { .. } => "insufficient_funds",
            Self::FeeRate { .. } => "fee_rate_out_of_range",
            Self::FeeUnreasonable { .. } => "fee_unreasonable",
            Self::Coin { .. } => "coin_not_spendable",
            Self::Horizon { .. } => "coin_expired",
            Self::NothingToLift { .. } => "nothing_to_lift",
            Self::LiftFirst { .. } => "lift_first",
            Self::UnconfirmedChain { .. } => "unconfirmed_chain",
            Self::ShortLived { .. } => "coins_short_lived",
            Self::NotCertified => "not_certified",
            Self::NotProposed => "not_proposed",
            Self::UnknownPayment => "unknown_payment",
            Self::WatchOnly => "watch_only",
            Self::Checkpoint { .. } => "invalid_checkpoint",
            Self::State(StateError::OtherWallet) => "other_wallet",
            Self::State(error @ StateError::Version { .. }) if error.is_older() => "state_too_old",
            Self::State(StateError::Version { .. }) => "state_too_new",
            Self::State(StateError::Damaged { .. }) => "state_damaged",
            Self::Account(_) => "invalid_account",
            Self::Proposal(_) => "invalid_proposal",
            Self::Relay(_) => "not_standard",
            Self::Signing(_) => "signing_failed",
        }
    }
}

/// Why words are none of a wallet. Positions are counted from 1; no word is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WordsError {
    /// Too few or too many.
    #[error("there are {found} words, where 12, 15, 18, 21 or 24 make a wallet")]
    Count {
        /// Words given.
        found: usize,
    },
    /// Some are not in the list.
    #[error("{} in the English list of BIP39; check the spelling", named(positions))]
    Unknown {
        /// Which.
        positions: Vec<usize>,
    },
    /// They are of another language, or no words at all.
    #[error("they are not in English, and this wallet knows no other list of BIP39")]
    Language,
    /// Each is in the list, but they do not belong together.
    #[error("they do not belong together: one of them is another one of the list, or they are out of order")]
    Checksum,
}

fn named(positions: &[usize]) -> String {
    let listed: Vec<String> = positions.iter().map(usize::to_string).collect();
    match listed.as_slice() {
        [one] => format!("word {one} is not"),
        [first @ .., last] => format!("words {} and {last} are not", first.join(", ")),
        [] => "a word is not".to_owned(),
    }
}
