use super::*;
use bitcoin::{
    Amount, OutPoint, TxIn, absolute::LockTime, block, consensus::Params, hashes::Hash as _,
    transaction::Version,
};
use quorate_protocol::vote::{Custody, VoteTarget};
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
    Ledger::restore(Network::Regtest, Epoch::FIRST, Vec::new(), rounds)
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
}

#[test]
fn a_coin_that_was_looked_up_goes_with_its_block() {
    let mut ledger = ledger(Vec::new());
    let funding = transaction(&[OutPoint::null()], 1);
    let coin = OutPoint { txid: Txid::hash(b"looked up"), vout: 0 };
    mine(&mut ledger, Vec::new());
    let output = funding.output[0].clone();
    ledger.add_coin(coin, ChainCoin { output, height: 1, coinbase: false });
    assert!(ledger.coin(&coin).is_some_and(|coin| coin.created.is_some()));
    ledger.disconnect();
    assert!(ledger.coin(&coin).is_some_and(|coin| coin.created.is_none()));
}

#[test]
fn the_history_of_a_script_is_known_from_when_it_was_asked_for() {
    let mut ledger = ledger(Vec::new());
    let other = ScriptBuf::from_bytes(vec![0x51]);
    assert_eq!((ledger.history_of(&taproot()), ledger.history_of(&other)), (0, 1));
    assert_eq!(ledger.want(&other), 1);
    mine(&mut ledger, Vec::new());
    mine(&mut ledger, Vec::new());
    assert_eq!(ledger.want(&other), 1, "anybody who comes later learns as much");
}
