//! What nobody can change any more, on disk and nowhere else: coins that were spent more than
//! [`UNDO_BLOCKS`](crate::index::UNDO_BLOCKS) ago, and the blocks of transactions that are settled.
//!
//! Rules need none of it: a coin that is here is no coin for the chain either. It is for wallets that come back after
//! weeks, or are restored, and it tells a proof of long ago from a new one. It is beside the index, in every epoch the
//! same; to lose it costs no vote.

use crate::{
    index::{IndexedCoin, read, written},
    records::{ChangeSet, Row, Table, Unreadable},
};
use bitcoin::{
    OutPoint, ScriptBuf, Txid,
    consensus::encode,
    hashes::{Hash as _, sha256},
};
use quorate_protocol::{
    Round,
    finality::FinalityProof,
    wire::{BlockRef, UtxoRecord},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Coins of one script that are told of, the latest first: an address that is used for years has its history on the
/// chain.
const COINS_PER_SCRIPT_MAX: usize = 256;
/// Coins of one transaction that are looked at for its block.
const COINS_PER_TRANSACTION: usize = 1;

/// What the archive is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recall {
    /// The coins of a script.
    Script(ScriptBuf),
    /// What became of a transaction.
    Transaction(Txid),
}

/// A transaction that is settled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SettledTransaction {
    pub(crate) block: BlockRef,
    /// As long as one of its coins is unspent.
    pub(crate) proof: Option<Box<FinalityProof>>,
}

/// What the archive answers.
#[derive(Clone, Debug, Default)]
pub struct Archived {
    pub(crate) coins: Vec<UtxoRecord>,
    pub(crate) transactions: BTreeMap<Txid, SettledTransaction>,
}

/// Reads the archive. `scan` gives the first rows of a table whose keys begin with some bytes, in order.
///
/// # Errors
/// Those of `scan`, or a row is not what a machine writes.
pub fn recall<E: From<Unreadable>>(
    wanted: &[Recall],
    mut scan: impl FnMut(Table, &[u8], usize) -> Result<Vec<Row>, E>,
) -> Result<Archived, E> {
    let mut archived = Archived::default();
    for one in wanted {
        match one {
            Recall::Script(script) => {
                let prefix = script_prefix(script);
                for row in scan(Table::History, &prefix, COINS_PER_SCRIPT_MAX)? {
                    let key = row.key.get(prefix.len() + HEIGHT_BYTES..).unwrap_or_default();
                    for row in scan(Table::Archive, key, 1)? {
                        archived
                            .coins
                            .extend(Some(coin_of(&row)?).filter(|coin| coin.script_pubkey == *script));
                    }
                }
            }
            Recall::Transaction(txid) => {
                let key: &[u8] = txid.as_byte_array();
                if let Some(row) = scan(Table::Settled, key, 1)?.first() {
                    let settled = serde_json::from_slice(&row.value).map_err(Unreadable::from)?;
                    archived.transactions.insert(*txid, settled);
                    continue;
                }
                // What created a coin.
                for row in scan(Table::Archive, key, COINS_PER_TRANSACTION)? {
                    if let Some(block) = coin_of(&row)?.created {
                        archived.transactions.insert(*txid, SettledTransaction { block, proof: None });
                    }
                }
            }
        }
    }
    Ok(archived)
}

/// Whether a row of the archive is of what was settled below a height.
///
/// # Errors
/// It is not what a machine writes.
pub fn is_older(row: &Row, below: u32) -> Result<bool, Unreadable> {
    let height = match row.table {
        Table::Archive => {
            let coin: IndexedCoin = read(&row.value)?;
            coin.spent.map(|spent| spent.block.height)
        }
        Table::History => {
            let latest_first = row.key.get(SCRIPT_BYTES..SCRIPT_BYTES + HEIGHT_BYTES);
            let bytes = latest_first.and_then(|bytes| bytes.try_into().ok()).ok_or(Unreadable::Index)?;
            Some(u32::MAX - u32::from_be_bytes(bytes))
        }
        // A proof that somebody may ask for stays.
        Table::Settled => {
            let settled: SettledTransaction = serde_json::from_slice(&row.value)?;
            Some(settled.block.height).filter(|_| settled.proof.is_none())
        }
        Table::Transactions
        | Table::Rounds
        | Table::Answers
        | Table::Evidence
        | Table::Log
        | Table::Peers
        | Table::Headers
        | Table::Effects
        | Table::Coins
        | Table::Spends
        | Table::Scripts
        | Table::Accounts => return Err(Unreadable::Index),
    };
    Ok(height.is_some_and(|height| height < below))
}

/// Bytes of a script's hash in keys. Another script with the same ones is told apart.
const SCRIPT_BYTES: usize = 16;
const HEIGHT_BYTES: usize = 4;

fn script_prefix(script: &ScriptBuf) -> Vec<u8> {
    let hash = sha256::Hash::hash(script.as_bytes());
    hash.as_byte_array().get(..SCRIPT_BYTES).unwrap_or_default().to_vec()
}

fn coin_of(row: &Row) -> Result<UtxoRecord, Unreadable> {
    let outpoint = encode::deserialize(&row.key).map_err(|_| Unreadable::Index)?;
    let IndexedCoin { output, created, spent, .. } = read(&row.value)?;
    Ok(UtxoRecord {
        outpoint,
        value: output.value,
        script_pubkey: output.script_pubkey,
        tip_height: 0,
        created,
        conflicted: None,
        final_parent: None,
        round: Round(0),
        lock: None,
        votes: 0,
        spend: None,
        spent,
    })
}

impl ChangeSet {
    /// Keeps a coin that was spent long ago.
    pub(crate) fn archive_coin(&mut self, outpoint: &OutPoint, coin: &IndexedCoin) {
        let spent = coin.spent.map_or(0, |spent| spent.block.height);
        let (key, latest_first) = (encode::serialize(outpoint), (u32::MAX - spent).to_be_bytes());
        let place = [&script_prefix(&coin.output.script_pubkey)[..], &latest_first, &key].concat();
        self.put_row(Row { table: Table::Archive, key, value: written(coin) });
        self.put_row(Row { table: Table::History, key: place, value: vec![1] });
    }

    /// Keeps the block of a transaction, with its proof as long as somebody may want it.
    pub(crate) fn archive_transaction(&mut self, txid: &Txid, settled: &SettledTransaction) {
        let value = serde_json::to_vec(settled).expect("a proof has string keys only");
        self.put_row(Row { table: Table::Settled, key: txid.as_byte_array().to_vec(), value });
    }
}
