use super::*;
use crate::{
    index::UNDO_BLOCKS,
    records::{Row, Table},
    stored::Stored,
};
use bitcoin::{
    Amount, Network, OutPoint, TxIn, absolute::LockTime, block, consensus::Params, hashes::Hash as _,
    transaction::Version,
};
use quorate_protocol::{
    testing,
    vote::{Custody, VoteTarget},
};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use std::collections::BTreeMap;

fn taproot() -> ScriptBuf {
    ScriptBuf::from_bytes([[0x51, 0x20].as_slice(), &[7; 32]].concat())
}

fn transaction(inputs: &[OutPoint], outputs: usize) -> Transaction {
    let input = inputs.iter().map(|outpoint| TxIn { previous_output: *outpoint, ..TxIn::default() });
    let output = TxOut { value: Amount::from_sat(1_000), script_pubkey: taproot() };
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: input.collect(),
        output: vec![output; outputs],
    }
}

fn ledger(rounds: Vec<RoundRecord>) -> Ledger {
    let birthday = Checkpoint::genesis(Network::Regtest);
    Ledger::restore(birthday, Epoch::FIRST, Vec::new(), rounds, Indexed::default())
}

fn mine(ledger: &mut Ledger, txdata: Vec<Transaction>) {
    let header = Header {
        version: block::Version::TWO,
        prev_blockhash: ledger.tip().hash,
        merkle_root: bitcoin::TxMerkleNode::all_zeros(),
        time: 0,
        bits: Params::new(Network::Regtest).max_attainable_target.to_compact_lossy(),
        nonce: 0,
    };
    ledger.connect(&Block { header, txdata });
}

#[test]
fn a_spend_in_a_block_frees_what_is_left_to_another_only_once_it_is_deep() {
    let funding = transaction(&[OutPoint::null()], 2);
    let [a, b] = [0, 1].map(|vout| OutPoint { txid: funding.compute_txid(), vout });
    let left = Txid::hash(b"left");
    let certificate = ApprovalCertificate {
        target: VoteTarget::new(left, Custody::joint(1_000, []), [(a, Round(0)), (b, Round(0))]),
        approvals: BTreeMap::new(),
    };
    let release = ReleaseCertificate {
        outpoint: a,
        round: Round(0),
        promises: BTreeMap::new(),
        highest: vec![certificate],
    };
    let mut ledger = ledger(vec![RoundRecord { outpoint: a, round: Round(1), release: Some(release) }]);
    ledger.want(&taproot());
    mine(&mut ledger, vec![funding]);
    assert_eq!(ledger.forced(&a), Some(left));
    mine(&mut ledger, vec![transaction(&[b], 1)]);
    for _block in 0..blocks::BURIED {
        assert_eq!(
            ledger.forced(&a),
            Some(left),
            "the block may be undone, and the transaction may be final"
        );
        mine(&mut ledger, Vec::new());
    }
    assert_eq!(ledger.forced(&a), None);
    ledger.disconnect();
    assert_eq!(ledger.forced(&a), Some(left));
    // What shows that the certificate is void stays as long as the outpoint that it would hold.
    for _block in 0..2 * UNDO_BLOCKS {
        mine(&mut ledger, Vec::new());
        ledger.prepare(|_| false);
        ledger.settle(|_| false);
        ledger.drop_settled();
    }
    assert_eq!(ledger.forced(&a), None);
    assert!(ledger.knows(&b));
}

#[test]
fn a_coin_that_was_looked_up_goes_with_its_block() {
    let mut ledger = ledger(Vec::new());
    let funding = transaction(&[OutPoint::null()], 1);
    let coin = OutPoint { txid: Txid::hash(b"looked up"), vout: 0 };
    mine(&mut ledger, Vec::new());
    let output = funding.output[0].clone();
    ledger.add_coin(coin, ChainCoin { output, height: 1, hash: ledger.tip().hash, coinbase: false });
    assert!(ledger.coin(&coin).is_some_and(|coin| coin.created.is_some()));
    ledger.disconnect();
    assert!(ledger.coin(&coin).is_some_and(|coin| coin.created.is_none()));
}

#[test]
fn the_history_of_a_script_is_known_from_when_it_was_asked_for() {
    let mut ledger = ledger(Vec::new());
    let other = ScriptBuf::from_bytes(vec![0x51]);
    assert_eq!(ledger.history_of(&other), 1);
    assert!(ledger.want(&other));
    assert_eq!(ledger.history_of(&other), 1);
    mine(&mut ledger, Vec::new());
    mine(&mut ledger, Vec::new());
    assert!(ledger.want(&other));
    assert_eq!(ledger.history_of(&other), 1, "anybody who comes later learns as much");
}

fn read(index: &BTreeMap<(Table, Vec<u8>), Vec<u8>>) -> Indexed {
    let mut stored = Stored::default();
    let held = index.iter().filter(|((table, _), _)| !Table::ARCHIVE.contains(table));
    for ((table, key), value) in held {
        let row = Row { table: *table, key: key.clone(), value: value.clone() };
        stored.take(&row).expect("what was written");
    }
    stored.index
}

/// What the ledger has of the chain, from its index alone.
fn restored(index: &BTreeMap<(Table, Vec<u8>), Vec<u8>>) -> Ledger {
    let (birthday, index) = (Checkpoint::genesis(Network::Regtest), read(index));
    assert!(index.is_whole(birthday));
    Ledger::restore(birthday, Epoch::FIRST, Vec::new(), Vec::new(), index)
}

fn write(index: &mut BTreeMap<(Table, Vec<u8>), Vec<u8>>, ledger: &mut Ledger) {
    let Some(change) = ledger.take_index() else { return };
    for row in change.rows() {
        let key = (row.table, row.key.clone());
        if row.value.is_empty() {
            index.remove(&key);
        } else {
            index.insert(key, row.value.clone());
        }
    }
}

#[test]
fn the_index_gives_back_what_blocks_did_and_what_undoing_them_needs() {
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    let mut random = |most: u32| rng.next_u32() % most;
    let (mut ledger, mut index) = (ledger(Vec::new()), BTreeMap::new());
    ledger.want(&taproot());
    let mut coins: Vec<OutPoint> = Vec::new();
    for _ in 0..2_000 {
        if random(4) == 0 {
            ledger.disconnect();
        } else {
            let spent: Vec<OutPoint> = coins.iter().copied().filter(|_| random(40) == 0).take(2).collect();
            let salt = OutPoint { vout: random(u32::MAX), ..OutPoint::null() };
            let made = transaction(&[spent, vec![salt]].concat(), usize::try_from(random(3)).expect("few"));
            let txid = made.compute_txid();
            coins.extend((0..).take(made.output.len()).map(|vout| OutPoint { txid, vout }));
            mine(&mut ledger, vec![made]);
        }
        if random(3) == 0 {
            write(&mut index, &mut ledger);
        }
        if random(100) == 0 {
            ledger.prepare(|_| false);
            ledger.settle(|_| false);
            ledger.drop_settled();
            write(&mut index, &mut ledger);
            let again = restored(&index);
            assert_eq!((again.tip(), again.undo_floor()), (ledger.tip(), ledger.undo_floor()));
            assert_eq!(again.headers(0, usize::MAX), ledger.headers(0, usize::MAX));
            for outpoint in &coins {
                let in_chain = |coin: &UtxoRecord| coin.created.is_some() || coin.spent.is_some();
                assert_eq!(again.current(outpoint), ledger.current(outpoint).filter(in_chain));
                assert_eq!(again.block_of(&outpoint.txid), ledger.block_of(&outpoint.txid));
            }
            // Undoing goes on from there.
            ledger = again;
        }
    }
    assert!(ledger.tip().height > UNDO_BLOCKS, "some effects were dropped");
    let effects = index.keys().filter(|(table, _)| *table == Table::Effects).count();
    assert!(u32::try_from(effects).is_ok_and(|effects| effects <= UNDO_BLOCKS));
}

#[test]
fn no_more_is_undone_than_can_be() {
    let mut ledger = ledger(Vec::new());
    for _block in 0..UNDO_BLOCKS + 10 {
        mine(&mut ledger, Vec::new());
    }
    assert_eq!(ledger.undo_floor(), 10);
    for _block in 0..UNDO_BLOCKS + 10 {
        ledger.disconnect();
    }
    assert_eq!(ledger.tip().height, 10);
}

#[test]
fn a_gap_in_the_index_is_seen() {
    let (mut ledger, mut index) = (ledger(Vec::new()), BTreeMap::new());
    for _block in 0..5 {
        mine(&mut ledger, vec![transaction(&[OutPoint::null()], 1)]);
    }
    write(&mut index, &mut ledger);
    let genesis = Checkpoint::genesis(Network::Regtest);
    assert!(read(&index).is_whole(genesis));
    assert!(!read(&index).is_whole(Checkpoint { height: 2016, ..genesis }), "of another birthday");
    let oldest = (Table::Effects, 1_u32.to_be_bytes().to_vec());
    for key in index.keys().filter(|(table, _)| matches!(table, Table::Headers | Table::Effects)) {
        // The oldest effect is dropped in time.
        if *key == oldest {
            continue;
        }
        let mut cut = index.clone();
        cut.remove(key);
        assert!(!read(&cut).is_whole(genesis), "without {key:?}");
    }
}

#[test]
fn a_transaction_that_is_known_to_be_final_after_its_block_is_in_it_and_its_outputs_are_no_coins_by_that() {
    let mut ledger = ledger(Vec::new());
    let open = ScriptBuf::from_bytes(vec![0x00, 0x14]);
    let funding = OutPoint { txid: Txid::hash(b"funding"), vout: 0 };
    let mut made = transaction(&[funding], 1);
    made.output[0].script_pubkey = open;
    let txid = made.compute_txid();
    mine(&mut ledger, vec![made.clone()]);
    let block = ledger.tip();
    assert_eq!(ledger.block_of(&txid), Some(block));
    let proof = FinalityProof::Attested {
        transaction: made.clone(),
        rounds: vec![Round(0)],
        commits: BTreeMap::new(),
    };
    let record = TxRecord {
        target: VoteTarget::new(txid, testing::custody(), [(funding, Round(0))]),
        proposal: None,
        account: None,
        spent: vec![TxOut { value: Amount::from_sat(2_000), script_pubkey: taproot() }],
        vote: None,
        locked_at: 0,
        certificate: None,
        proof: Some(proof),
    };
    ledger.put(record, Duration::ZERO);
    assert_eq!(ledger.unconfirmed(), Vec::<Transaction>::new());
    assert_eq!(ledger.coin(&funding).and_then(Coin::spent).map(|spent| spent.block), Some(block));
    assert!(!ledger.knows(&OutPoint { txid, vout: 0 }), "a later block may have spent it: it is looked up");
    ledger.disconnect();
    assert_eq!(ledger.unconfirmed(), vec![made]);
    assert_eq!(ledger.coin(&funding).and_then(Coin::spent), None);
}
