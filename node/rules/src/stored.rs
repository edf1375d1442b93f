//! What a node finds on its disk when it starts.

use crate::{
    index::Indexed,
    records::{Answer, LogRecord, RoundRecord, Row, Table, TxRecord, Unreadable},
};
use quorate_protocol::{evidence::Evidence, log_head::SignedHead};

/// What a node finds in its store when it starts.
#[derive(Debug, Default)]
pub struct Stored {
    /// All transactions.
    pub transactions: Vec<TxRecord>,
    /// All rounds.
    pub rounds: Vec<RoundRecord>,
    /// All answers that used up nonces.
    pub answers: Vec<Answer>,
    /// All evidence.
    pub evidence: Vec<Evidence>,
    /// This node's own log.
    pub log: LogRecord,
    /// How far the logs of its peers have come.
    pub peers: Vec<SignedHead>,
    /// What it has read of the chain.
    pub index: Indexed,
}

impl Stored {
    /// Takes in one row of a store.
    ///
    /// # Errors
    /// The value is not what a machine writes: the store is damaged, or was written by another version.
    pub fn take(&mut self, row: &Row) -> Result<(), Unreadable> {
        match row.table {
            Table::Transactions => self.transactions.push(serde_json::from_slice(&row.value)?),
            Table::Rounds => self.rounds.push(serde_json::from_slice(&row.value)?),
            Table::Answers => self.answers.push(serde_json::from_slice(&row.value)?),
            Table::Evidence => self.evidence.push(serde_json::from_slice(&row.value)?),
            Table::Log => self.log = serde_json::from_slice(&row.value)?,
            Table::Peers => self.peers.push(serde_json::from_slice(&row.value)?),
            Table::Headers
            | Table::Effects
            | Table::Coins
            | Table::Spends
            | Table::Scripts
            | Table::Accounts
            | Table::Addresses
            | Table::Archive
            | Table::History
            | Table::Settled
            | Table::Proofs => {
                self.index.take(row)?;
            }
        }
        Ok(())
    }
}
