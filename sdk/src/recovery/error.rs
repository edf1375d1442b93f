use crate::{
    account::{AccountError, DescriptorError},
    wallet::WalletError,
};
use bitcoin::{Amount, Network};

/// Why an account cannot be left like this. Nothing has been sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoveryError {
    /// The descriptor cannot be read.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// The descriptor is of another network.
    #[error("the descriptor is not of {network}; name the network that the backup names")]
    Network {
        /// As asked for.
        network: Network,
    },
    /// A backup cannot be read.
    #[error("the backup has no valid line {field:?}: {reason}")]
    Kit {
        /// The line.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The words are of another wallet than the descriptor.
    #[error(
        "these words do not make the recovery key of this descriptor: they are of another wallet, account or network, or need another passphrase"
    )]
    OtherWords,
    /// No coin has been found that could be moved now.
    #[error("no coin can be moved yet: {}", match .next { Some(height) => format!("the first one opens at height {height}"), None => "none was found in a block".to_owned() })]
    NothingOpen {
        /// Height at which the first one opens, if one is in a block.
        next: Option<u32>,
    },
    /// What is open is worth less than what moving it costs.
    #[error(
        "moving {total} would cost {fee} at this fee rate; try a lower rate, or wait for the other coins"
    )]
    FeeTooHigh {
        /// Value of what is open.
        total: Amount,
        /// The fee.
        fee: Amount,
    },
    /// The fee rate is out of bounds.
    #[error("a fee rate of {sat_per_vb} sat/vB is outside {min} to {max} sat/vB")]
    FeeRate {
        /// As asked for.
        sat_per_vb: u64,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// The PSBT is not a sweep of this account.
    #[error("input {index} of the PSBT is not one that this account's recovery key signs: {reason}")]
    Input {
        /// Its index.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The PSBT creates more than it spends.
    #[error("the PSBT creates more than it spends, or amounts that do not exist")]
    Amounts,
    /// A line of a list of coins cannot be read.
    #[error("line {line} of the list of coins: {reason}; a line reads TXID:VOUT SATOSHIS HEIGHT ADDRESS")]
    List {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Esplora or Bitcoin Core does not answer, or refuses. Trying again, or at another one, may help.
    #[error("{url}: {reason}")]
    Source {
        /// Which one.
        url: String,
        /// What it says.
        reason: String,
    },
    /// The source is of another network.
    #[error("{url} is on {found}, the account on {expected}")]
    SourceNetwork {
        /// Which one.
        url: String,
        /// Its network.
        found: String,
        /// The account's.
        expected: Network,
    },
    /// The words cannot be used.
    #[error(transparent)]
    Words(#[from] WalletError),
    /// A key cannot be derived.
    #[error(transparent)]
    Account(#[from] AccountError),
}

impl RecoveryError {
    /// Whether the same call may succeed later.
    ///
    /// ```
    /// assert!(quorate::recovery::RecoveryError::NothingOpen { next: Some(900_000) }.is_retryable());
    /// ```
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NothingOpen { .. } | Self::Source { .. } | Self::FeeTooHigh { .. })
    }

    /// A stable name for programs, in `snake_case`; names are only added.
    ///
    /// ```
    /// assert_eq!(quorate::recovery::RecoveryError::OtherWords.code(), "other_words");
    /// ```
    pub fn code(&self) -> &'static str {
        match self {
            Self::Descriptor(_) => "invalid_descriptor",
            Self::Network { .. } => "wrong_network",
            Self::Kit { .. } => "invalid_backup",
            Self::OtherWords => "other_words",
            Self::NothingOpen { .. } => "nothing_open",
            Self::FeeTooHigh { .. } => "insufficient_funds",
            Self::FeeRate { .. } => "fee_rate_out_of_range",
            Self::Input { .. } | Self::Amounts => "invalid_psbt",
            Self::List { .. } => "invalid_coin_list",
            Self::Source { .. } => "source_unavailable",
            Self::SourceNetwork { .. } => "source_wrong_network",
            Self::Words(error) => error.code(),
            Self::Account(_) => "invalid_account",
        }
    }
}
