//! What a node asks of Bitcoin Core, on a real daemon: fees, what the mempool lacks, packages.

use anyhow::{Context as _, Result, ensure};
use bitcoin::{
    Address, Amount, FeeRate, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid,
    Witness, absolute::LockTime, transaction::Version,
};
use quorate_node::chain::{Chain as _, Fees};
use quorate_tests::{bitcoind, daemon::Daemon};
use serde_json::json;

/// What anybody can spend.
fn open() -> ScriptBuf {
    ScriptBuf::builder().push_int(1).into_script()
}

fn spend(coin: OutPoint, value: Amount, fee: u64) -> Transaction {
    let mut witness = Witness::new();
    witness.push(open().as_bytes());
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: coin,
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness,
            ..TxIn::default()
        }],
        output: vec![TxOut { value: value - Amount::from_sat(fee), script_pubkey: open().to_p2wsh() }],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_below_the_mempools_minimum_goes_with_a_child_that_pays_for_it() -> Result<()> {
    let Some(binary) = bitcoind() else {
        eprintln!("skipped: no bitcoind, neither in BITCOIND_EXE nor on the PATH");
        return Ok(());
    };
    // A mempool that has become expensive: 5 sat/vB.
    let daemon = Daemon::start(&binary, &["-minrelaytxfee=0.00005"])?;
    daemon.ready().await?;
    let address = Address::p2wsh(&open(), Network::Regtest);
    let mined = daemon.rpc.call_raw("generatetoaddress", json!([101, address])).await?;
    let first = mined.get(0).cloned().context("a block")?;
    let block = daemon.rpc.block(serde_json::from_value(first)?).await?;
    let reward = block.txdata.first().context("a coinbase")?;
    let coin = OutPoint { txid: reward.compute_txid(), vout: 0 };
    let value = reward.output.first().context("an output")?.value;

    let fees = daemon.rpc.fees().await?;
    ensure!(fees.mempool_min == FeeRate::from_sat_per_vb_u32(5) && fees.day.is_none(), "{fees:?}");
    let estimates = fees.estimates();
    ensure!(estimates.floor == 1_562 && estimates.six_blocks == 1_562, "a quarter above: {estimates:?}");

    let parent = spend(coin, value, 150);
    let left = value - Amount::from_sat(150);
    let child = spend(OutPoint { txid: parent.compute_txid(), vout: 0 }, left, 5_000);
    let refused = daemon.rpc.broadcast(parent.clone()).await.expect_err("too cheap by now");
    ensure!(refused.is_low_fee(), "{refused}");
    let both: Vec<Txid> = vec![parent.compute_txid(), child.compute_txid()];
    ensure!(daemon.rpc.missing(both.clone()).await?.len() == 2);
    daemon.rpc.broadcast_package(vec![parent.clone(), child.clone()]).await?;
    ensure!(daemon.rpc.missing(both.clone()).await?.is_empty());
    daemon.rpc.broadcast(child).await.context("what is known already is no error")?;
    let poor = spend(OutPoint { txid: both[1], vout: 0 }, left - Amount::from_sat(5_000), 10);
    let refused = daemon.rpc.broadcast_package(vec![parent, poor]).await;
    ensure!(refused.is_err(), "a package that pays too little is refused");
    Ok(())
}

#[test]
fn the_floor_is_the_highest_of_what_keeps_a_transaction_out_of_blocks() {
    let rate = |sat_per_vb| Some(FeeRate::from_sat_per_vb_u32(sat_per_vb));
    let floor = |day: Option<FeeRate>, mempool_min: u32| {
        let mempool_min = FeeRate::from_sat_per_vb_u32(mempool_min);
        let told = Fees { next_block: rate(3), six_blocks: rate(2), day, mempool_min }.estimates();
        assert!(
            [told.next_block, told.six_blocks, told.day].iter().all(|one| *one >= told.floor),
            "{told:?}"
        );
        told.floor
    };
    assert_eq!(floor(None, 1), 250);
    assert_eq!(floor(rate(4), 1), 1_000);
    assert_eq!(floor(rate(4), 8), 2_500);
    assert_eq!(floor(rate(100_000), 1), 500_000, "no higher than what anybody may pay");
}
