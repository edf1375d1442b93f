//! What nobody can change any more, on disk and nowhere else: coins that were spent more than
//! [`UNDO_BLOCKS`](crate::index::UNDO_BLOCKS) ago, and what became of transactions that are settled.
//!
//! It is for wallets that come back after weeks, or are restored, and it tells a proof of long ago from a new one: a
//! proof is not taken in while the archive cannot be read. It is beside the index, in every epoch the same; to lose it
//! costs no vote.

use crate::{
    index::{IndexedCoin, read, written},
    records::{ChangeSet, Row, Table, Unreadable},
};
use bitcoin::{
    OutPoint, ScriptBuf, Transaction, Txid,
    consensus::encode,
    hashes::{Hash as _, sha256},
};
use quorate_protocol::{
    AccountId, Round,
    finality::FinalityProof,
    wire::{BlockRef, ConfirmedSpend, TransactionStatus, UtxoRecord},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Coins that one question is answered with, the latest of each script first: what is older is on the chain.
pub(crate) const COINS_MAX: usize = 4_096;
/// Of these, coins of one script: an address that is used for years.
pub(crate) const COINS_PER_SCRIPT_MAX: usize = 256;
/// Rows that are read first.
const FIRST_ROWS: usize = 64;

/// What the archive is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recall {
    /// The coins of a script.
    Script(ScriptBuf),
    /// The coins of an account that blocks from a height on spend.
    Account(AccountId, u32),
    /// A coin.
    Coin(OutPoint),
    /// What became of a transaction.
    Transaction(Txid),
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum SettledTransaction {
    /// It was mined.
    Mined {
        block: BlockRef,
        /// A height below which somebody may show its proof as news.
        until: u32,
    },
    /// A block contradicts it.
    Conflicted {
        by: ConfirmedSpend,
        /// From it to the ancestor that the block contradicts.
        path: Vec<Transaction>,
    },
}

impl SettledTransaction {
    pub(crate) fn status(&self) -> TransactionStatus {
        match self {
            Self::Mined { block, .. } => TransactionStatus::Confirmed { block: *block },
            Self::Conflicted { by, .. } => TransactionStatus::Conflicted { by: *by },
        }
    }

    /// What a wallet has to be shown to know the same: what is in a block, and how the transaction depends on it.
    pub(crate) fn place(&self, txid: Txid) -> (ConfirmedSpend, Vec<Transaction>) {
        match self {
            Self::Mined { block, .. } => (ConfirmedSpend { txid, block: *block }, Vec::new()),
            Self::Conflicted { by, path } => (*by, path.clone()),
        }
    }
}

/// What the archive answers.
#[derive(Clone, Debug, Default)]
pub struct Archived {
    pub(crate) coins: BTreeMap<OutPoint, UtxoRecord>,
    by_script: HashMap<ScriptBuf, BTreeSet<OutPoint>>,
    cut: Option<u32>,
    pub(crate) transactions: BTreeMap<Txid, SettledTransaction>,
    /// Proofs, as long as one of a transaction's coins is unspent.
    pub(crate) proofs: BTreeMap<Txid, Box<FinalityProof>>,
}

impl Archived {
    fn add(&mut self, coin: UtxoRecord) {
        self.by_script.entry(coin.script_pubkey.clone()).or_default().insert(coin.outpoint);
        self.coins.insert(coin.outpoint, coin);
    }

    /// The height from which all is there, if there was more than one answer holds.
    pub(crate) fn cut(&self) -> Option<u32> {
        self.cut
    }

    pub(crate) fn of_script(&self, script: &ScriptBuf) -> Vec<&UtxoRecord> {
        let outpoints = self.by_script.get(script).into_iter().flatten();
        outpoints.filter_map(|outpoint| self.coins.get(outpoint)).collect()
    }
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
                let most = COINS_PER_SCRIPT_MAX.min(COINS_MAX.saturating_sub(archived.coins.len()));
                let is_of = |coin: &UtxoRecord| coin.script_pubkey == *script;
                recall_coins(&script_prefix(script), 0, most, is_of, &mut archived, &mut scan)?;
            }
            Recall::Account(account, since) => {
                let most = COINS_MAX.saturating_sub(archived.coins.len());
                recall_coins(account_prefix(account), *since, most, |_| true, &mut archived, &mut scan)?;
            }
            Recall::Coin(outpoint) => {
                for row in scan(Table::Archive, &encode::serialize(outpoint), 1)? {
                    archived.add(coin_of(&row)?);
                }
            }
            Recall::Transaction(txid) => recall_transaction(txid, &mut archived, &mut scan)?,
        }
    }
    Ok(archived)
}

/// The latest coins under a prefix, and from which height these are all.
fn recall_coins<E: From<Unreadable>>(
    prefix: &[u8],
    since: u32,
    most: usize,
    is_of: impl Fn(&UtxoRecord) -> bool,
    archived: &mut Archived,
    scan: &mut impl FnMut(Table, &[u8], usize) -> Result<Vec<Row>, E>,
) -> Result<(), E> {
    if most == 0 {
        // Others have used up the room: nothing is known of this one.
        archived.cut = Some(u32::MAX);
        return Ok(());
    }
    // Most who ask have been away for a short time: no more is read than that takes.
    let mut first = FIRST_ROWS.min(most);
    let mut rows = scan(Table::History, prefix, first)?;
    while rows.len() >= first && first < most && spent_in(rows.last())? >= Some(since) {
        first = first.saturating_mul(8).min(most);
        rows = scan(Table::History, prefix, first)?;
    }
    let full = rows.len() >= most;
    let mut oldest = None;
    for row in rows {
        let spent = spent_at(&row)?;
        oldest = Some(spent);
        if spent < since {
            break;
        }
        let key = row.key.get(PREFIX_BYTES + HEIGHT_BYTES..).unwrap_or_default();
        for row in scan(Table::Archive, key, 1)? {
            let coin = coin_of(&row)?;
            if is_of(&coin) {
                archived.add(coin);
            }
        }
    }
    // Others of the oldest one's block may be missing.
    if full && let Some(oldest) = oldest.filter(|oldest| *oldest >= since) {
        archived.cut = archived.cut.max(Some(oldest.saturating_add(1)));
    }
    Ok(())
}

fn spent_in(row: Option<&Row>) -> Result<Option<u32>, Unreadable> {
    row.map(spent_at).transpose()
}

/// The height at which a coin was spent, in a row of the history.
fn spent_at(row: &Row) -> Result<u32, Unreadable> {
    let latest_first = row.key.get(PREFIX_BYTES..PREFIX_BYTES + HEIGHT_BYTES);
    let bytes = latest_first.and_then(|bytes| bytes.try_into().ok()).ok_or(Unreadable::Index)?;
    Ok(u32::MAX - u32::from_be_bytes(bytes))
}

fn recall_transaction<E: From<Unreadable>>(
    txid: &Txid,
    archived: &mut Archived,
    scan: &mut impl FnMut(Table, &[u8], usize) -> Result<Vec<Row>, E>,
) -> Result<(), E> {
    let key: &[u8] = txid.as_byte_array();
    if let Some(row) = scan(Table::Settled, key, 1)?.first() {
        let settled = settled_of(row)?;
        archived.transactions.insert(*txid, settled);
        for row in scan(Table::Proofs, key, 1)? {
            archived.proofs.insert(*txid, Box::new(proof_of(&row)?));
        }
        return Ok(());
    }
    // What created a coin.
    for row in scan(Table::Archive, key, 1)? {
        if let Some(block) = coin_of(&row)?.created {
            archived.transactions.insert(*txid, SettledTransaction::Mined { block, until: 0 });
        }
    }
    Ok(())
}

/// Whether a row of the archive may be pruned: it is of what was settled below a height, and no rule needs it.
///
/// # Errors
/// It is not what a machine writes.
pub fn is_older(row: &Row, below: u32) -> Result<bool, Unreadable> {
    let height = match row.table {
        Table::Archive => {
            let coin: IndexedCoin = read(&row.value)?;
            coin.spent.map(|spent| spent.block.height)
        }
        Table::History => Some(spent_at(row)?),
        Table::Settled => match settled_of(row)? {
            SettledTransaction::Mined { block, until } => Some(block.height.max(until)),
            // Only here is it known that its proof is worth nothing.
            SettledTransaction::Conflicted { .. } => None,
        },
        // It goes with the last coin.
        Table::Proofs => {
            let _readable = proof_of(row)?;
            None
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
        | Table::Accounts
        | Table::Addresses => return Err(Unreadable::Index),
    };
    Ok(height.is_some_and(|height| height < below))
}

/// Bytes of a script's hash, or of an account's id, in keys. Another script with the same ones is told apart.
const PREFIX_BYTES: usize = 16;
const HEIGHT_BYTES: usize = 4;

fn script_prefix(script: &ScriptBuf) -> Vec<u8> {
    let hash = sha256::Hash::hash(script.as_bytes());
    hash.as_byte_array().get(..PREFIX_BYTES).unwrap_or_default().to_vec()
}

fn account_prefix(account: &AccountId) -> &[u8] {
    account.0.get(..PREFIX_BYTES).unwrap_or_default()
}

/// Both were JSON before they were binary, where nothing begins with a brace. Rows of then stay as they are.
const JSON: u8 = b'{';

fn settled_of(row: &Row) -> Result<SettledTransaction, Unreadable> {
    match row.value.first() {
        Some(&JSON) => Ok(serde_json::from_slice(&row.value)?),
        Some(_) | None => read(&row.value),
    }
}

fn proof_of(row: &Row) -> Result<FinalityProof, Unreadable> {
    match row.value.first() {
        Some(&JSON) => Ok(serde_json::from_slice(&row.value)?),
        Some(_) | None => FinalityProof::from_bytes(&row.value).map_err(|_| Unreadable::Index),
    }
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
    /// Keeps a coin that was spent long ago, to be found by its script and by its account.
    pub(crate) fn archive_coin(
        &mut self,
        outpoint: &OutPoint,
        coin: &IndexedCoin,
        account: Option<&AccountId>,
    ) {
        let spent = coin.spent.map_or(0, |spent| spent.block.height);
        let (key, latest_first) = (encode::serialize(outpoint), (u32::MAX - spent).to_be_bytes());
        let script = script_prefix(&coin.output.script_pubkey);
        for prefix in [Some(&script[..]), account.map(account_prefix)].into_iter().flatten() {
            let place = [prefix, &latest_first, &key].concat();
            self.put_row(Row { table: Table::History, key: place, value: vec![1] });
        }
        self.put_row(Row { table: Table::Archive, key, value: written(coin) });
    }

    /// Keeps what became of a transaction.
    pub(crate) fn archive_transaction(&mut self, txid: &Txid, settled: &SettledTransaction) {
        self.put_row(Row {
            table: Table::Settled,
            key: txid.as_byte_array().to_vec(),
            value: written(settled),
        });
    }

    /// Keeps the proof of a transaction that has an unspent coin, or takes it away.
    pub(crate) fn archive_proof(&mut self, txid: &Txid, proof: Option<&FinalityProof>) {
        let value = proof.map(FinalityProof::to_bytes).unwrap_or_default();
        self.put_row(Row { table: Table::Proofs, key: txid.as_byte_array().to_vec(), value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{Amount, BlockHash, TxOut};
    use quorate_protocol::testing;

    const OURS: AccountId = AccountId([7; 32]);
    const OTHERS: AccountId = AccountId([9; 32]);

    fn script(number: u32) -> ScriptBuf {
        ScriptBuf::from_bytes(number.to_be_bytes().to_vec())
    }

    /// Coins of an account, each of an address of its own, one spent in each block from 1 on.
    fn archive(coins: u32) -> BTreeMap<(Table, Vec<u8>), Vec<u8>> {
        let mut change = ChangeSet::default();
        for height in 1..=coins {
            let block = BlockRef { height, hash: BlockHash::all_zeros() };
            let outpoint = OutPoint { txid: Txid::all_zeros(), vout: height };
            let output = TxOut { value: Amount::ONE_SAT, script_pubkey: script(height) };
            let spent = Some(ConfirmedSpend { txid: Txid::all_zeros(), block });
            let coin = IndexedCoin { output, coinbase: false, created: None, spent };
            change.archive_coin(&outpoint, &coin, Some(&OURS));
        }
        change.rows().iter().map(|row| ((row.table, row.key.clone()), row.value.clone())).collect()
    }

    /// What the archive answers, and how many rows were read for it.
    fn ask(rows: &BTreeMap<(Table, Vec<u8>), Vec<u8>>, wanted: &[Recall]) -> (Archived, usize) {
        let mut read = 0;
        let archived = recall(wanted, |table, prefix, most| {
            let from = rows.range((table, prefix.to_vec())..);
            let found = from.take_while(|((of, key), _)| *of == table && key.starts_with(prefix)).take(most);
            let row = |((table, key), value): (&(Table, Vec<u8>), &Vec<u8>)| Row {
                table: *table,
                key: key.clone(),
                value: value.clone(),
            };
            let found: Vec<Row> = found.map(row).collect();
            read += found.len();
            Ok::<_, Unreadable>(found)
        });
        (archived.expect("what a machine wrote"), read)
    }

    #[test]
    fn what_became_of_a_transaction_and_its_proof_come_back_also_as_they_were_written_before() {
        let proof = testing::federation(4).final_payment();
        let (txid, block) = (proof.txid(), BlockRef { height: 7, hash: BlockHash::all_zeros() });
        let by = ConfirmedSpend { txid, block };
        let path = vec![proof.transaction().clone()];
        let conflicted = SettledTransaction::Conflicted { by, path };
        for value in [written(&conflicted), serde_json::to_vec(&conflicted).expect("written")] {
            let row = Row { table: Table::Settled, key: Vec::new(), value };
            assert_eq!(settled_of(&row).expect("readable"), conflicted);
        }
        let settled = SettledTransaction::Mined { block, until: 9 };
        let mut change = ChangeSet::default();
        change.archive_transaction(&txid, &settled);
        change.archive_proof(&txid, Some(&proof));
        let rows: BTreeMap<_, _> =
            change.rows().iter().map(|row| ((row.table, row.key.clone()), row.value.clone())).collect();
        let mut older = rows.clone();
        for ((table, _), value) in &mut older {
            *value = if *table == Table::Proofs {
                serde_json::to_vec(&proof).expect("written")
            } else {
                serde_json::to_vec(&settled).expect("written")
            };
        }
        for rows in [rows, older] {
            let (found, _) = ask(&rows, &[Recall::Transaction(txid)]);
            assert_eq!(found.transactions.get(&txid), Some(&settled));
            assert_eq!(found.proofs.get(&txid).map(|proof| &**proof), Some(&proof));
            for ((table, key), value) in rows {
                let row = Row { table, key, value };
                assert_eq!(is_older(&row, 10).expect("readable"), table == Table::Settled);
                assert!(!is_older(&row, 9).expect("readable"), "its proof may still be shown as news");
            }
        }
    }

    #[test]
    fn coins_of_an_account_are_found_by_it_and_by_their_script() {
        let rows = archive(100);
        let (all, _) = ask(&rows, &[Recall::Account(OURS, 0)]);
        assert_eq!((all.coins.len(), all.cut()), (100, None));
        assert!(ask(&rows, &[Recall::Account(OTHERS, 0)]).0.coins.is_empty());
        assert_eq!(ask(&rows, &[Recall::Script(script(5))]).0.of_script(&script(5)).len(), 1);
    }

    #[test]
    fn who_was_away_for_a_short_time_costs_little_however_long_the_history_is() {
        let rows = archive(3_000);
        let (recent, read) = ask(&rows, &[Recall::Account(OURS, 2_990)]);
        let spent: BTreeSet<u32> =
            recent.coins.values().filter_map(|coin| coin.spent).map(|spent| spent.block.height).collect();
        assert_eq!(spent, (2_990..=3_000).collect());
        assert_eq!(recent.cut(), None, "nothing is missing");
        assert!(read <= 2 * FIRST_ROWS, "{read} rows");
    }

    #[test]
    fn an_answer_is_bounded_and_says_from_when_on_it_is_whole() {
        let rows = archive(5_000);
        let (latest, _) = ask(&rows, &[Recall::Account(OURS, 0)]);
        assert_eq!((latest.coins.len(), latest.cut()), (COINS_MAX, Some(5_000 - 4_096 + 2)));
        assert_eq!(ask(&rows, &[Recall::Account(OURS, 1_000)]).0.cut(), None, "all of these fit");
        let both = [Recall::Account(OURS, 0), Recall::Account(OTHERS, 0)];
        assert_eq!(ask(&rows, &both).0.cut(), Some(u32::MAX), "there was no room for the second one");
    }

    #[test]
    fn an_address_that_is_used_for_years_is_told_of_its_latest_coins() {
        let mut change = ChangeSet::default();
        for height in 1..=300 {
            let block = BlockRef { height, hash: BlockHash::all_zeros() };
            let outpoint = OutPoint { txid: Txid::all_zeros(), vout: height };
            let output = TxOut { value: Amount::ONE_SAT, script_pubkey: script(1) };
            let spent = Some(ConfirmedSpend { txid: Txid::all_zeros(), block });
            change.archive_coin(
                &outpoint,
                &IndexedCoin { output, coinbase: false, created: None, spent },
                None,
            );
        }
        let rows =
            change.rows().iter().map(|row| ((row.table, row.key.clone()), row.value.clone())).collect();
        let (latest, _) = ask(&rows, &[Recall::Script(script(1))]);
        assert_eq!((latest.coins.len(), latest.cut()), (COINS_PER_SCRIPT_MAX, Some(300 - 256 + 2)));
    }
}
