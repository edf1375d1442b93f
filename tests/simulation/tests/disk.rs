//! The real store on a disk that fails: power lost at every single operation of a run, and again while the store
//! recovers.

#![expect(clippy::indexing_slicing, reason = "a test panics on what cannot happen")]

use bitcoin::{OutPoint, secp256k1::schnorr};
use quorate::{PackageDigest, Round, wire::CommitReply};
use quorate_node::store::{Redb, Store as _};
use quorate_rules::records::{Answer, Change, ChangeSet, LogRecord, RoundRecord, Row, Table};
use quorate_simulation::disk::{Disk, DiskFault};

/// Change sets of the scripted run.
const WRITES: u32 = 10;

fn log(number: u32) -> Change {
    Change::Log(LogRecord { runs: vec![(number.into(), 0)], ..LogRecord::default() })
}

/// A change set whose two records have to be there both or not at all.
fn change(number: u32) -> ChangeSet {
    let mut change = ChangeSet::default();
    let outpoint = OutPoint { vout: number, ..OutPoint::null() };
    let round = RoundRecord { outpoint, round: Round(number), release: None };
    change.put(&Change::Round(Box::new(round)));
    let mut digest = PackageDigest([0; 32]);
    digest.0[..4].copy_from_slice(&number.to_be_bytes());
    let signature = schnorr::Signature::from_slice(&[1; 64]).expect("64 bytes");
    change.put(&Change::Answer(Box::new(Answer {
        digest,
        txid: None,
        reply: CommitReply::Sole { signature },
    })));
    // One record is written again each time.
    change.put(&log(number));
    change
}

/// A disk with an empty store: making that is one step, as the real one is made beside its place and moved there.
fn prepared() -> Disk {
    let disk = Disk::new(Vec::new());
    drop(Redb::open_backend(disk.clone(), "disk").expect("opens"));
    Disk::new(disk.snapshot())
}

/// Opens, writes until something fails, and gives how many writes were confirmed.
fn scripted_run(disk: &Disk) -> u32 {
    let Ok(mut store) = Redb::open_backend(disk.clone(), "disk") else { return 0 };
    let confirmed = (0..WRITES).find(|number| store.write(&[&change(*number)]).is_err());
    confirmed.unwrap_or(WRITES)
}

/// What is there after a crash: every confirmed write, and of the one under way all or nothing.
fn check(store: &Redb, confirmed: u32, at: u64) {
    let rows = store.rows().expect("reads");
    let of = |table| rows.iter().filter(move |row: &&Row| row.table == table);
    // The number is at the start of one key and at the end of the other.
    let answers: Vec<&[u8]> = of(Table::Answers).map(|row| &row.key[..4]).collect();
    let mut rounds: Vec<[u8; 4]> = of(Table::Rounds)
        .map(|row| u32::from_le_bytes(row.key[32..].try_into().expect("an output's number")).to_be_bytes())
        .collect();
    rounds.sort_unstable();
    assert_eq!(answers, rounds, "power lost at operation {at}: a change set is there in part");
    let found = u32::try_from(answers.len()).expect("few");
    assert!(
        found >= confirmed,
        "power lost at operation {at}: {confirmed} writes were confirmed, {found} are there"
    );
    let last = of(Table::Log).next().cloned();
    let expected = found.checked_sub(1).map(|number| log(number).encode());
    assert_eq!(last, expected, "power lost at operation {at}: a record has a value of another time");
    assert!(found <= confirmed + 1, "power lost at operation {at}: {found} of {confirmed} confirmed writes");
}

#[test]
fn power_lost_at_every_operation_loses_nothing_that_was_confirmed() {
    let whole = prepared();
    assert_eq!(scripted_run(&whole), WRITES);
    let operations = whole.operations();
    assert!(operations > 40, "the run has {operations} operations");
    for at in 0..operations {
        for seed in 0..3 {
            let disk = prepared();
            disk.plan(DiskFault { power_fails_after: Some(at), ..DiskFault::default() });
            let confirmed = scripted_run(&disk);
            let (found, _) = disk.crash(seed * 1_000 + at);
            let store = Redb::open_backend(found, "disk").expect("a store survives any crash");
            check(&store, confirmed, at);
        }
    }
}

#[test]
fn power_lost_again_at_every_operation_of_the_recovery_loses_nothing_either() {
    let whole = prepared();
    scripted_run(&whole);
    for at in (0..whole.operations()).step_by(7) {
        for again in 0..20 {
            let disk = prepared();
            disk.plan(DiskFault { power_fails_after: Some(at), ..DiskFault::default() });
            let confirmed = scripted_run(&disk);
            let (found, _) = disk.crash(at);
            found.plan(DiskFault { power_fails_after: Some(again), ..DiskFault::default() });
            let recovered = Redb::open_backend(found.clone(), "disk");
            drop(recovered);
            let (found, _) = found.crash(again);
            let store = Redb::open_backend(found, "disk").expect("a store survives any crash");
            check(&store, confirmed, at);
        }
    }
}

#[test]
fn a_sync_that_fails_and_a_disk_that_is_full_fail_the_write_and_lose_nothing() {
    let faults = [
        DiskFault { failing_sync: Some(0), ..DiskFault::default() },
        DiskFault { failing_sync: Some(1), ..DiskFault::default() },
        DiskFault { full: true, ..DiskFault::default() },
    ];
    for fault in faults {
        let disk = Disk::new(Vec::new());
        let mut store = Redb::open_backend(disk.clone(), "disk").expect("opens");
        store.write(&[&change(0)]).expect("writes");
        disk.plan(fault);
        let failed = (1..WRITES).find(|number| store.write(&[&change(*number)]).is_err());
        let failed = failed.expect("the writer hears of it");
        drop(store);
        let (found, _) = disk.crash(1);
        check(&Redb::open_backend(found, "disk").expect("opens again"), failed, 0);
    }
}

#[test]
fn a_record_that_was_changed_on_the_disk_is_noticed() {
    let disk = Disk::new(Vec::new());
    let mut store = Redb::open_backend(disk.clone(), "disk").expect("opens");
    store.write(&[&change(3)]).expect("writes");
    drop(store);
    let mut content = disk.snapshot();
    let place = content.windows(9).rposition(|bytes| bytes == br#""round":3"#).expect("the record is there");
    content[place + 8] = b'4';
    let damaged = Redb::open_backend(Disk::new(content), "disk").and_then(|store| store.load().map(drop));
    let error = damaged.expect_err("a changed record is not read as if it were good");
    assert!(error.to_string().contains("damaged"), "{error}");
}
