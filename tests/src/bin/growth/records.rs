//! `npm run bench -- growth --records N`: what a node holds whose archive has so many settled payments, and what the
//! next ones cost it beside nodes whose archives are short. The rows are those of real payments, as often as it takes
//! and each time under other transactions' ids, straight into its index.

use crate::{mean_cpu, measure, pay, payers};
use anyhow::{Context as _, Result, ensure};
use bitcoin::hashes::{Hash as _, sha256};
use quorate_rules::records::{CHECKSUM_BYTES, Row, Table};
use quorate_tests::{
    Cluster,
    operator::status,
    process::{cpu, memory, on_disk},
};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde_json::{Value, json};
use std::{path::Path, time::Instant};

/// Payments whose rows are copied, and that are paid afterwards.
const REAL: usize = 1_024;
/// Copies in one write.
const BATCH: usize = 16;
const TXID_BYTES: usize = 32;
/// Of a coin's history, the key ends with its outpoint.
const OUTPOINT_BYTES: usize = 36;

pub(crate) async fn measure_with(mut cluster: Cluster, count: usize, as_json: bool) -> Result<()> {
    let payers = payers(&cluster).await?;
    pay(&cluster, &payers, REAL).await?;
    let before = measure(&mut cluster, REAL, None).await?;
    let home = cluster.files.nodes.first().context("a node")?.clone();
    cluster.kill(1)?;
    let index = home.join("index.redb");
    let copies = count.div_ceil(REAL);
    tokio::task::block_in_place(|| copy(&index, copies))?;
    let (started, index) = (Instant::now(), on_disk(&index)?);
    cluster.start_node(1, None)?;
    status(&home, "voting").await?;
    let start = started.elapsed();
    cluster.connected(cluster.files.nodes.len()).await?;
    let pid = cluster.pid(1).context("it runs")?;
    let empty = memory(pid)?;
    let (own, all) = (cpu(pid)?, mean_cpu(&cluster)?);
    pay(&cluster, &payers, REAL).await?;
    let (own, all) = ((cpu(pid)? - own).as_secs_f64(), (mean_cpu(&cluster)? - all).as_secs_f64());
    let nodes = f64::from(u32::try_from(cluster.files.nodes.len())?);
    let others = (all * nodes - own) / (nodes - 1.0);
    let row = json!({
        "records": copies * REAL,
        "start_ms": u64::try_from(start.as_millis())?,
        "start_ms_before": before.get("start_ms"),
        "memory_bytes_after_start": empty,
        "memory_bytes_paying": memory(pid)?,
        "index_bytes": index,
        "cpu_to_others": own / others,
    });
    if as_json {
        println!("{row}");
        return Ok(());
    }
    let figure = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    println!("records   start (before)     after a start  paying   index     CPU to that of the others");
    println!(
        "{:>8}  {:>4.0} ms ({:.0} ms)  {:>4.0} MB       {:>4.0} MB  {:>4.0} MB   {:.2}",
        figure("records"),
        figure("start_ms"),
        figure("start_ms_before"),
        figure("memory_bytes_after_start") / 1e6,
        figure("memory_bytes_paying") / 1e6,
        figure("index_bytes") / 1e6,
        figure("cpu_to_others"),
    );
    Ok(())
}

const fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// Has what the archive has `copies` times.
fn copy(index: &Path, copies: usize) -> Result<()> {
    let database = Database::open(index)?;
    let mut rows = Vec::new();
    for table in Table::ARCHIVE {
        for row in database.begin_read()?.open_table(definition(table))?.iter()? {
            let (key, value) = row?;
            let value = value.value().get(CHECKSUM_BYTES..).context("a checksum")?.to_vec();
            rows.push(Row { table, key: key.value().to_vec(), value });
        }
    }
    ensure!(!rows.is_empty(), "payments are settled");
    let numbers: Vec<usize> = (1..copies).collect();
    for batch in numbers.chunks(BATCH) {
        let write = database.begin_write()?;
        for table in Table::ARCHIVE {
            let mut open = write.open_table(definition(table))?;
            for (number, row) in batch.iter().flat_map(|number| rows.iter().map(move |row| (number, row))) {
                if row.table == table {
                    let copy = Row { key: of_another(row, *number)?, ..row.clone() };
                    let stored = [&copy.checksum()[..], &copy.value].concat();
                    open.insert(copy.key.as_slice(), stored.as_slice())?;
                }
            }
        }
        write.commit()?;
    }
    Ok(())
}

/// A row's key with another transaction's id in place of its own.
fn of_another(row: &Row, number: usize) -> Result<Vec<u8>> {
    let mut key = row.key.clone();
    let is_history = row.table == Table::History;
    let from = if is_history { key.len().checked_sub(OUTPOINT_BYTES).context("an outpoint")? } else { 0 };
    let txid = key.get_mut(from..from + TXID_BYTES).context("a transaction's id")?;
    let other = sha256::Hash::hash(&[&number.to_be_bytes()[..], txid].concat());
    txid.copy_from_slice(other.as_byte_array());
    Ok(key)
}
