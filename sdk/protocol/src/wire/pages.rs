//! Snapshots in pages: an account's history may be larger than a frame.

use super::{KeyOutcome, KeyResult, limits::FRAME_BYTES_MAX};
use crate::finality::FinalityProof;
use serde::Serialize;
use std::{collections::BTreeMap, io, mem};

/// Bytes of records and proofs after which a page ends. The last record of a page comes with its proofs, which are
/// far below the rest of a frame.
const PAGE_BYTES: usize = FRAME_BYTES_MAX / 2;
/// Pages that are put together; a server that sends more wastes memory.
const PAGES_MAX: usize = 1_024;

/// How many bytes of JSON a value takes.
///
/// ```
/// assert_eq!(quorate::wire::encoded_len(&["a", "b"]), 9);
/// ```
pub fn encoded_len<T: Serialize>(value: &T) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, value).expect("message types have string keys only");
    counter.0
}

/// Cuts the results of a subscription or query into pages that fit a frame; all but the last are sent with `more`. A
/// key whose records do not fit comes in several pages, each record with the proofs about it.
///
/// ```
/// use quorate::wire::{KeyOutcome, KeyResult, SubscriptionKey, pages};
/// let (utxos, proofs) = (vec![], vec![]);
/// let outcome = KeyOutcome::Snapshot { utxos, proofs, status: None, history_from: None, followed: None };
/// let results = vec![KeyResult { key: SubscriptionKey::Tip, outcome }];
/// assert_eq!(pages(results.clone()), [results]);
/// ```
pub fn pages(results: Vec<KeyResult>) -> Vec<Vec<KeyResult>> {
    let mut cut = Cut::default();
    for result in results {
        cut.add(result);
    }
    cut.done.push(cut.page);
    cut.done
}

#[derive(Default)]
struct Cut {
    done: Vec<Vec<KeyResult>>,
    page: Vec<KeyResult>,
    bytes: usize,
}

impl Cut {
    fn add(&mut self, result: KeyResult) {
        let KeyResult { key, outcome } = result;
        let KeyOutcome::Snapshot { utxos, proofs, status, history_from, followed } = outcome else {
            let result = KeyResult { key, outcome };
            self.bytes += encoded_len(&result);
            return self.push(result);
        };
        let proofs: BTreeMap<_, FinalityProof> =
            proofs.into_iter().map(|proof| (proof.txid(), proof)).collect();
        let (mut records, mut shown) = (Vec::new(), BTreeMap::new());
        self.bytes += encoded_len(&key) + encoded_len(&status);
        for utxo in utxos {
            self.bytes += encoded_len(&utxo);
            for txid in [Some(utxo.outpoint.txid), utxo.spend.map(|spend| spend.txid)].into_iter().flatten() {
                if let Some(proof) = proofs.get(&txid).filter(|_| !shown.contains_key(&txid)) {
                    self.bytes += encoded_len(proof);
                    shown.insert(txid, proof.clone());
                }
            }
            records.push(utxo);
            if self.bytes > PAGE_BYTES {
                let outcome = KeyOutcome::Snapshot {
                    utxos: mem::take(&mut records),
                    proofs: mem::take(&mut shown).into_values().collect(),
                    status: None,
                    history_from,
                    followed,
                };
                self.push(KeyResult { key: key.clone(), outcome });
            }
        }
        let proofs = shown.into_values().collect();
        self.push(KeyResult {
            key,
            outcome: KeyOutcome::Snapshot { utxos: records, proofs, status, history_from, followed },
        });
    }

    fn push(&mut self, result: KeyResult) {
        self.page.push(result);
        if self.bytes > PAGE_BYTES {
            self.bytes = 0;
            self.done.push(mem::take(&mut self.page));
        }
    }
}

/// Puts the pages of one answer together again.
#[derive(Debug, Default)]
pub struct Pages {
    results: Vec<KeyResult>,
    pages: usize,
}

impl Pages {
    /// Takes a page; gives everything once the last is here. What a server sends in more than 1,024 pages is cut off
    /// there.
    ///
    /// ```
    /// let mut pages = quorate::wire::Pages::default();
    /// assert_eq!(pages.take(vec![], true), None);
    /// assert_eq!(pages.take(vec![], false), Some(vec![]));
    /// ```
    pub fn take(&mut self, results: Vec<KeyResult>, more: bool) -> Option<Vec<KeyResult>> {
        self.pages += 1;
        self.results.extend(results);
        if more && self.pages < PAGES_MAX {
            return None;
        }
        self.pages = 0;
        Some(mem::take(&mut self.results))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Round, testing,
        wire::{SubscriptionKey, UtxoRecord},
    };
    use bitcoin::{
        Amount, OutPoint, ScriptBuf, Transaction, TxIn, Txid, absolute::LockTime, hashes::Hash as _,
        transaction::Version,
    };
    use std::collections::BTreeSet;

    fn results(keys: u32, utxos: u32) -> Vec<KeyResult> {
        let record = |number: u32, vout| {
            let outpoint = OutPoint { txid: Txid::hash(&number.to_be_bytes()), vout };
            testing::utxo_record(outpoint, Amount::from_sat(u64::from(vout)), ScriptBuf::new())
        };
        (0..keys)
            .map(|number| {
                let utxos = (0..utxos).map(|vout| record(number, vout)).collect();
                let key = SubscriptionKey::Txid(Txid::hash(&number.to_be_bytes()));
                KeyResult {
                    key,
                    outcome: KeyOutcome::Snapshot {
                        utxos,
                        proofs: vec![],
                        status: None,
                        history_from: Some(0),
                        followed: None,
                    },
                }
            })
            .collect()
    }

    fn records(results: &[KeyResult]) -> Vec<UtxoRecord> {
        let of = |result: &KeyResult| match &result.outcome {
            KeyOutcome::Snapshot { utxos, .. } => utxos.clone(),
            KeyOutcome::Error(_) => Vec::new(),
        };
        results.iter().flat_map(of).collect()
    }

    #[test]
    fn whatever_is_cut_fits_and_comes_together_again() {
        for (keys, utxos) in [(0, 0), (1, 0), (1_000, 1), (1, 12_000), (3, 5_000), (700, 20)] {
            let whole = results(keys, utxos);
            let cut = pages(whole.clone());
            let mut together = Pages::default();
            let (last, before) = cut.split_last().expect("at least one page");
            assert!(cut.iter().all(|page| encoded_len(page) < FRAME_BYTES_MAX * 3 / 4));
            for page in before {
                assert_eq!(together.take(page.clone(), true), None);
            }
            let read = together.take(last.clone(), false).expect("the last page");
            assert_eq!(records(&read), records(&whole));
            let keys: BTreeSet<_> = whole.iter().map(|one| &one.key).collect();
            assert_eq!(read.iter().map(|one| &one.key).collect::<BTreeSet<_>>(), keys);
        }
    }

    #[test]
    fn records_keep_their_proofs() {
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn::default()],
            output: vec![],
        };
        let proof = FinalityProof::Attested { transaction, rounds: vec![Round(0)], commits: BTreeMap::new() };
        let mut whole = results(1, 9_000);
        let KeyOutcome::Snapshot { utxos, proofs, .. } = &mut whole[0].outcome else { panic!("a snapshot") };
        for utxo in utxos.iter_mut() {
            utxo.outpoint.txid = proof.txid();
        }
        proofs.push(proof);
        let cut = pages(whole);
        assert!(cut.len() > 1);
        for page in cut {
            let KeyOutcome::Snapshot { utxos, proofs, .. } = &page[0].outcome else { panic!("a snapshot") };
            assert_eq!(proofs.len(), usize::from(!utxos.is_empty()));
        }
    }
}
