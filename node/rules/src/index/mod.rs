//! What a node keeps of the chain between two runs, so that a start reads what is new and nothing else.
//!
//! All of it can be read from the chain again, from the federation's birthday on. It is therefore in a store of its
//! own, which serves every epoch of the node, and losing or damaging it costs time and never the vote. A set of
//! changes is kept whole or not at all, and never without those before it: after a loss of power the index is that
//! of an earlier tip.

mod accounts;

pub(crate) use accounts::{AccountEntry, AddressRow, Place, ShortKey, short_key};

use crate::records::{ChangeSet, Row, Table, Unreadable};
use bitcoin::{OutPoint, ScriptBuf, TxOut, Txid, block::Header, consensus::encode, hashes::Hash as _};
use quorate_protocol::{
    AccountId,
    headers::Checkpoint,
    wire::{BlockRef, ConfirmedSpend},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// Blocks whose effects are kept: no reorganisation is followed that goes deeper.
pub const UNDO_BLOCKS: u32 = 288;

/// The first half of a transaction's id. To make two transactions with the same one takes some 2^64 hashes, and gains
/// that a node holds one of one's own for mined.
pub(crate) type ShortTxid = [u8; 16];

pub(crate) fn short(txid: &Txid) -> ShortTxid {
    let mut half = [0; 16];
    half.copy_from_slice(txid.as_byte_array().get(..16).unwrap_or_default());
    half
}

/// What a block did, to be undone with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockEffect {
    /// Coins that this node knows.
    pub(crate) created: Vec<OutPoint>,
    /// Coins that this node knows, or that something final spends.
    pub(crate) spent: Vec<OutPoint>,
    /// All its transactions.
    pub(crate) txids: Vec<ShortTxid>,
}

/// A coin that a block created or spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexedCoin {
    pub(crate) output: TxOut,
    pub(crate) coinbase: bool,
    pub(crate) created: Option<BlockRef>,
    pub(crate) spent: Option<ConfirmedSpend>,
}

/// A script whose outputs are indexed because somebody subscribed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// The height from which its history is known.
    pub(crate) from: u32,
    /// The tip when somebody wanted to hear of it last.
    pub(crate) wanted_at: u32,
}

/// The index as it is found at a start.
#[derive(Debug, Default)]
pub struct Indexed {
    pub(crate) headers: BTreeMap<u32, Header>,
    pub(crate) effects: BTreeMap<u32, BlockEffect>,
    pub(crate) coins: Vec<(OutPoint, IndexedCoin)>,
    pub(crate) spends: Vec<(OutPoint, ConfirmedSpend)>,
    pub(crate) leases: Vec<(ScriptBuf, Lease)>,
    /// In the order of their ids; a place's slot is its account's position here.
    pub(crate) accounts: Vec<(AccountId, AccountEntry)>,
    pub(crate) addresses: Vec<(ShortKey, Place)>,
}

impl Indexed {
    /// Takes in one row.
    ///
    /// # Errors
    /// It is not what a machine writes.
    pub(crate) fn take(&mut self, row: &Row) -> Result<(), Unreadable> {
        match row.table {
            Table::Headers => {
                let header = encode::deserialize(&row.value).map_err(|_| Unreadable::Index)?;
                self.headers.insert(height(&row.key)?, header);
            }
            Table::Effects => {
                self.effects.insert(height(&row.key)?, read(&row.value)?);
            }
            Table::Coins => self.coins.push((outpoint(&row.key)?, read(&row.value)?)),
            Table::Spends => self.spends.push((outpoint(&row.key)?, read(&row.value)?)),
            Table::Scripts => self.leases.push((ScriptBuf::from(row.key.clone()), read(&row.value)?)),
            Table::Accounts => self.take_account(row)?,
            Table::Addresses => self.take_addresses(row)?,
            Table::Transactions
            | Table::Rounds
            | Table::Answers
            | Table::Evidence
            | Table::Log
            | Table::Peers
            | Table::Archive
            | Table::History
            | Table::Settled
            | Table::Proofs => return Err(Unreadable::Index),
        }
        Ok(())
    }

    /// How many scripts are indexed that are of no account.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Whether it is an index of a chain on this block, without a gap: each header builds on the one before, and blocks
    /// can be undone one after the other. An empty one is of any chain.
    pub fn is_whole(&self, birthday: Checkpoint) -> bool {
        let Some((tip, _)) = self.headers.last_key_value() else {
            return self.effects.is_empty() && self.coins.is_empty() && self.spends.is_empty();
        };
        let base = BlockRef { height: birthday.height, hash: birthday.hash() };
        let mut last = base;
        for (height, header) in &self.headers {
            if *height != last.height + 1 || header.prev_blockhash != last.hash {
                return false;
            }
            last = BlockRef { height: *height, hash: header.block_hash() };
        }
        // After blocks were undone there are fewer than `UNDO_BLOCKS`.
        let undo = self.effects.first_key_value().map_or(tip + 1, |(height, _)| *height);
        undo > base.height && self.effects.keys().copied().eq(undo..=*tip)
    }
}

/// What stays of an index whose chain is read again from a height on: the archive, accounts, and scripts, whose history
/// is then known from there. `None` for every other row.
pub fn for_another_reading(row: Row, from: u32) -> Option<Row> {
    match row.table {
        Table::Accounts
        | Table::Addresses
        | Table::Archive
        | Table::History
        | Table::Settled
        | Table::Proofs => Some(row),
        Table::Scripts => {
            let lease: Lease = read(&row.value).ok()?;
            Some(Row { value: written(&Lease { from, ..lease }), ..row })
        }
        Table::Headers
        | Table::Effects
        | Table::Coins
        | Table::Spends
        | Table::Transactions
        | Table::Rounds
        | Table::Answers
        | Table::Evidence
        | Table::Log
        | Table::Peers => None,
    }
}

fn height(key: &[u8]) -> Result<u32, Unreadable> {
    Ok(u32::from_be_bytes(key.try_into().map_err(|_| Unreadable::Index)?))
}

pub(crate) fn outpoint(key: &[u8]) -> Result<OutPoint, Unreadable> {
    encode::deserialize(key).map_err(|_| Unreadable::Index)
}

pub(crate) fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, Unreadable> {
    postcard::from_bytes(value).map_err(|_| Unreadable::Index)
}

pub(crate) fn written(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("no record has a part without a length")
}

/// Rows of the index; what is absent is taken away.
impl ChangeSet {
    pub(crate) fn put_header(&mut self, height: u32, header: Option<&Header>) {
        let value = header.map(encode::serialize).unwrap_or_default();
        self.put_row(Row { table: Table::Headers, key: height.to_be_bytes().to_vec(), value });
    }

    pub(crate) fn put_effect(&mut self, height: u32, effect: Option<&BlockEffect>) {
        let value = effect.map(written).unwrap_or_default();
        self.put_row(Row { table: Table::Effects, key: height.to_be_bytes().to_vec(), value });
    }

    pub(crate) fn put_coin(&mut self, outpoint: &OutPoint, coin: Option<&IndexedCoin>) {
        let value = coin.map(written).unwrap_or_default();
        self.put_row(Row { table: Table::Coins, key: encode::serialize(outpoint), value });
    }

    pub(crate) fn put_spend(&mut self, outpoint: &OutPoint, spend: Option<&ConfirmedSpend>) {
        let value = spend.map(written).unwrap_or_default();
        self.put_row(Row { table: Table::Spends, key: encode::serialize(outpoint), value });
    }

    pub(crate) fn put_lease(&mut self, script: &ScriptBuf, lease: Option<&Lease>) {
        let value = lease.map(written).unwrap_or_default();
        self.put_row(Row { table: Table::Scripts, key: script.to_bytes(), value });
    }
}
