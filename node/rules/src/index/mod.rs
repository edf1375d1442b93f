//! What a node keeps of the chain between two runs, so that a start reads what is new and nothing else.
//!
//! All of it can be read from the chain again, from the federation's birthday on. It is therefore in a store of its
//! own, which serves every epoch of the node, and losing or damaging it costs time and never the vote. A set of
//! changes is kept whole or not at all, and never without those before it: after a loss of power the index is that
//! of an earlier tip.

mod accounts;
mod addresses;
mod values;

use accounts::address_row;
pub(crate) use accounts::{AccountEntry, AddressRow, Place, ShortKey, short_key};
pub(crate) use addresses::{Addresses, Found as FoundAddresses};
use values::read_whole;
pub(crate) use values::{read, written};

use crate::records::{ChangeSet, Row, Table, Unreadable};
use bitcoin::{OutPoint, ScriptBuf, TxOut, Txid, block::Header, consensus::encode, hashes::Hash as _};
use quorate_protocol::{
    AccountId,
    headers::Checkpoint,
    wire::{BlockRef, ConfirmedSpend},
};
use serde::{Deserialize, Serialize};
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
    pub(crate) addresses: FoundAddresses,
    /// The rows that these are from, by the place of the first one, with how many follow on it.
    pub(crate) rows: Vec<(Place, usize)>,
    /// Keys of rows that say nothing any more.
    pub(crate) useless: Vec<(Table, Vec<u8>)>,
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
            Table::Scripts => match read_whole(&row.value) {
                Some(lease) => self.leases.push((ScriptBuf::from(row.key.clone()), lease)),
                // As it was written when accounts' scripts were among them.
                None => self.useless.push((row.table, row.key.clone())),
            },
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

    fn take_account(&mut self, row: &Row) -> Result<(), Unreadable> {
        let id = AccountId(row.key.as_slice().try_into().map_err(|_| Unreadable::Index)?);
        if self.accounts.last().is_some_and(|(last, _)| *last >= id) {
            return Err(Unreadable::Index);
        }
        self.accounts.push((id, AccountEntry::read(&row.value).ok_or(Unreadable::Index)?));
        self.addresses.open(id);
        Ok(())
    }

    /// Comes after the accounts.
    fn take_addresses(&mut self, row: &Row) -> Result<(), Unreadable> {
        let (start, keys) = address_row(row).ok_or(Unreadable::Index)?;
        let Ok(slot) = self.accounts.binary_search_by_key(&start.account, |(id, _)| *id) else {
            // Left when the account's row was lost.
            self.useless.push((row.table, row.key.clone()));
            return Ok(());
        };
        let slot = u32::try_from(slot).map_err(|_| Unreadable::Index)?;
        self.rows.extend(start.places(slot).take(1).map(|place| (place, keys.len())));
        for (key, place) in keys.iter().zip(start.places(slot)) {
            self.addresses.push(key, place);
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
        Table::Archive | Table::History | Table::Settled | Table::Proofs => Some(row),
        Table::Accounts => Some(Row { value: AccountEntry::for_another_reading(&row.value, from)?, ..row }),
        Table::Addresses => address_row(&row).is_some().then_some(row),
        Table::Scripts => {
            let lease: Lease = read_whole(&row.value)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Amount;
    use quorate_protocol::account::{Keychain, KeychainIndex};
    use quorate_protocol::testing;

    #[test]
    fn a_record_is_packed_and_unpacked() {
        let mut record = testing::federation(4).account.record().clone();
        for payment_max in [None, Some(Amount::ZERO), Some(Amount::MAX_MONEY)] {
            record.policy.payment_max = payment_max;
            let entry = AccountEntry::new(&record, 7);
            assert_eq!(entry.record().as_ref(), Some(&record));
        }
    }

    #[test]
    fn rows_read_back_and_what_is_of_no_account_is_left_out() {
        let record = testing::federation(4).account.record().clone();
        let mut entry = AccountEntry::new(&record, 7);
        entry.extend(Keychain::Change, 3, 9);
        let (known, other) = (AccountId([1; 32]), AccountId([2; 32]));
        let at = |index| KeychainIndex { keychain: Keychain::Change, index };
        let mut written = ChangeSet::default();
        written.put_account(&known, Some(&entry));
        written.put_addresses(&AddressRow::new(known, at(20)), &[[5; 12], [6; 12]]);
        written.put_addresses(&AddressRow::new(other, at(0)), &[[7; 12]]);
        let mut indexed = Indexed::default();
        written.rows().iter().for_each(|row| indexed.take(row).expect("what was written"));
        assert_eq!(indexed.accounts, [(known, entry)]);
        let address = |byte: u8| ScriptBuf::from([&[0x51, 0x20][..], &[byte; 32]].concat());
        assert_eq!(indexed.rows, [(Place::new(0, at(20)), 2)]);
        assert_eq!(indexed.useless, [(Table::Addresses, AddressRow::new(other, at(0)).key())]);
        let addresses = std::mem::take(&mut indexed.addresses).sorted(|place| place);
        let found = [5, 6, 7].map(|byte| addresses.get(&address(byte)));
        assert_eq!(found, [Some((known, at(20))), Some((known, at(21))), None]);
        assert_eq!(addresses.len(), 2);
        let mut cut = written.rows()[1].clone();
        cut.value.pop();
        indexed.take(&cut).expect_err("no whole key at its end");
        assert_eq!(for_another_reading(cut, 0), None, "and none that is kept");
    }

    #[test]
    fn what_cannot_be_read_is_not_kept_and_what_is_kept_is_known_from_the_new_start() {
        let record = testing::federation(4).account.record().clone();
        let mut entry = AccountEntry::new(&record, 70);
        entry.extend(Keychain::Receive, 3, 90);
        let kept = |entry: &AccountEntry, from| {
            let mut set = ChangeSet::default();
            set.put_account(&AccountId([1; 32]), Some(entry));
            let row = for_another_reading(set.rows()[0].clone(), from)?;
            AccountEntry::read(&row.value)
        };
        let at = |index| KeychainIndex { keychain: Keychain::Receive, index };
        let known = |entry: AccountEntry| (entry.history_from(), entry.history_of(at(22)));
        assert_eq!(kept(&entry, 10).map(known), Some((11, 11)));
        assert_eq!(kept(&entry, 80).map(known), Some((71, 81)));
        let damaged = Row { table: Table::Accounts, key: vec![1; 32], value: vec![0xff; 9] };
        assert_eq!(for_another_reading(damaged, 10), None);
        let json = serde_json::json!({"record": record, "since": 5, "next": [0, 3]});
        let before = AccountEntry::read(json.to_string().as_bytes()).expect("it was written like this");
        assert_eq!((before.history_from(), before.next_of(Keychain::Change)), (6, 3));
    }
}
