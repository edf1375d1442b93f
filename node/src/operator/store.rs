//! `store stats | check | prune`: the files of a node that is not running.

#![expect(clippy::print_stdout, reason = "the commands' output")]

use crate::{
    files::NodeFiles,
    store::{
        StoreError, index_place,
        inspect::{Count, check_index, check_store, count_index, count_store, prune_archive},
    },
};
use anyhow::{Context as _, Result, ensure};
use quorate_rules::records::Table;
use std::path::{Path, PathBuf};

/// Where a node's two files are.
struct Places {
    files: NodeFiles,
    store: PathBuf,
    index: PathBuf,
}

impl Places {
    fn of(directory: &Path) -> Result<Self> {
        let files = NodeFiles::new(directory);
        let epoch = match files.federation()? {
            Some(federation) => files.epoch(federation.document()),
            None => files.first_epoch(),
        };
        let (store, index) = (epoch.path("store.redb"), index_place(directory));
        for path in [&store, &index] {
            ensure!(path.exists(), "there is no {}: has this node ever run?", path.display());
        }
        Ok(Self { files, store, index })
    }
}

/// A running node holds a lock on its files.
fn advice(error: StoreError) -> anyhow::Error {
    let advice = match &error {
        StoreError::Environment { .. } => {
            "if the node is running, stop it, or ask it with `quorate-node status`"
        }
        StoreError::Version { .. } => "nothing was changed",
        StoreError::Damaged { .. } => {
            "a node with a damaged store keeps it aside and does not vote before the next epoch; a damaged index is made anew from the chain"
        }
    };
    anyhow::Error::from(error).context(advice)
}

/// `store stats`.
///
/// # Errors
/// There is no store, the node runs, or a file is damaged.
pub(crate) fn stats(directory: &Path) -> Result<()> {
    let places = Places::of(directory)?;
    for (path, contents) in [
        (&places.store, count_store(&places.store).map_err(advice)?),
        (&places.index, count_index(&places.index).map_err(advice)?),
    ] {
        let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        println!("{}, {size} bytes, {} of them in use", path.display(), contents.in_use);
        contents.tables.iter().for_each(print);
    }
    Ok(())
}

fn print(count: &Count) {
    let Count { table, rows, bytes } = count;
    println!("  {:<13} {rows:>10} rows {bytes:>13} bytes  {}", table.name(), meaning(*table));
}

fn meaning(table: Table) -> &'static str {
    match table {
        Table::Transactions => "transactions that are not settled, with this node's vote and the proof",
        Table::Rounds => "outpoints that were released, with the certificate",
        Table::Answers => "answers that used up nonces",
        Table::Evidence => "what nodes can be convicted by",
        Table::Log => "this node's log",
        Table::Peers => "how far the logs of the others have come",
        Table::Headers => "headers from the federation's birthday on",
        Table::Effects => "what the last 288 blocks did",
        Table::Coins => "coins in blocks",
        Table::Spends => "spends of coins that are not known",
        Table::Scripts => "scripts that somebody subscribed to",
        Table::Accounts => "registered accounts",
        Table::Addresses => "addresses of these, some in a row",
        Table::Archive => "coins that were spent more than 288 blocks ago",
        Table::History => "the same by script",
        Table::Settled => "what became of settled transactions",
        Table::Proofs => "proofs of those that have an unspent coin",
    }
}

/// `store check`.
///
/// # Errors
/// There is no store, the node runs, or a file is damaged.
pub(crate) fn check(directory: &Path) -> Result<()> {
    let places = Places::of(directory)?;
    let stored = check_store(&places.store).map_err(advice)?;
    println!(
        "{}: {} transactions, {} rounds, {} answers, {} pieces of evidence, log of {} records. Good",
        places.store.display(),
        stored.transactions.len(),
        stored.rounds.len(),
        stored.answers.len(),
        stored.evidence.len(),
        stored.log.head.sequence,
    );
    if let Some(lost) = stored.log.lost {
        println!("This node does not vote in this epoch: {lost}");
    }
    let archived = check_index(&places.index, places.files.roster()?.birthday).map_err(advice)?;
    println!("{}: no gap, {archived} rows in the archive. Good", places.index.display());
    Ok(())
}

/// `store prune`.
///
/// # Errors
/// There is no store, the node runs, or a file is damaged.
pub(crate) fn prune(directory: &Path, below: u32) -> Result<()> {
    let places = Places::of(directory)?;
    let pruned = prune_archive(&places.index, below).map_err(advice)?;
    println!(
        "{pruned} rows of what was settled below block {below} are gone: wallets that were away for longer do not hear of it from this node"
    );
    Ok(())
}
