//! Nodes that die as by `kill -9`: between every pair of steps, two at a time, and all of them one after the other.

use anyhow::Result;
use bitcoin::Amount;
use futures_util::StreamExt as _;
use quorate::{
    client::{Client, ClientError, WebSocket},
    session::{Event, PaymentState},
    wallet::SecretWords,
};
use quorate_devnet::DevnetChain;
use quorate_tests::{
    Cluster, eventually,
    wallets::{PAYMENT_PATIENCE, federation, fund, nobody, open_wallet, request, wait_spendable},
};
use std::collections::HashSet;
use tokio::time::timeout;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
const COIN: Amount = Amount::from_sat(100_000);
const PAID: Amount = Amount::from_sat(5_000);
/// Payments within which the bridge surely chooses the node that is to die as the coordinator.
const TURNS_MAX: usize = 30;

async fn two_wallets(cluster: &Cluster, coins: usize) -> Result<(Client, Client)> {
    let federation = federation(cluster).await?;
    let payer = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let payee = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], coins, COIN)?;
    wait_spendable(&payer, COIN * u64::try_from(coins)?).await?;
    Ok((payer, payee))
}

/// Every final transaction reaches the chain, and no coin is spent twice.
async fn nothing_lost_or_doubled(chain: &DevnetChain, finals: &[bitcoin::Txid]) -> Result<()> {
    eventually("all final transactions are broadcast", || {
        let waiting = chain.mempool();
        let mined: HashSet<_> = chain
            .blocks()
            .iter()
            .flat_map(|block| &block.txdata)
            .map(bitcoin::Transaction::compute_txid)
            .collect();
        finals.iter().all(|txid| waiting.contains(txid) || mined.contains(txid))
    })
    .await?;
    chain.mine(1, &nobody())?;
    assert!(chain.mempool().is_empty(), "none of them conflict");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_survives_a_crash_at_every_step() -> Result<()> {
    let places = [
        "store.before_write",
        "store.after_write",
        "voter.before_vote_response",
        "voter.before_commit_response",
        "coordinator.before_vote_request",
        "coordinator.before_commit_request",
        "coordinator.before_broadcast",
        // The second write of a payment is the commit, the third the proof.
        "store.before_write:2",
        "store.after_write:2",
        "store.before_write:3",
    ];
    let mut cluster = Cluster::start(NODE, 4).await?;
    let (payer, payee) = two_wallets(&cluster, 60).await?;
    let mut finals = Vec::new();
    for place in places {
        // Whichever node the bridge chooses as coordinator, node 1 dies at the place when its turn comes.
        cluster.kill(1)?;
        cluster.start_node(1, Some(place))?;
        cluster.connected(4).await?;
        let mut payments = 0;
        while !cluster.has_died(1)? && payments < TURNS_MAX {
            let to = payee.next_address().await?;
            let receipt = timeout(PAYMENT_PATIENCE, payer.pay(request(&to, PAID)?)).await??;
            finals.push(receipt.txid);
            payments += 1;
        }
        let what = format!("node 1 dies at {place}");
        if !cluster.has_died(1)? {
            // On a busy machine it may be the slowest of the four each time. With three it is needed, until the
            // fourth is back.
            cluster.kill(4)?;
            let mut back = false;
            for _ in 0..TURNS_MAX {
                let to = payee.next_address().await?;
                let paying = timeout(PAYMENT_PATIENCE, payer.pay(request(&to, PAID)?));
                let dying = async {
                    eventually(&what, || cluster.has_died(1).unwrap_or(false)).await?;
                    cluster.start_node(4, None)?;
                    back = true;
                    std::future::pending::<Result<()>>().await
                };
                tokio::select! {
                    receipt = paying => finals.push(receipt??.txid),
                    failed = dying => failed?,
                }
                if cluster.has_died(1)? {
                    break;
                }
            }
            if !back {
                cluster.start_node(4, None)?;
            }
        }
        eventually(&what, || cluster.has_died(1).unwrap_or(false)).await?;
        cluster.start_node(1, None)?;
        cluster.connected(4).await?;
    }
    nothing_lost_or_doubled(&cluster.chain, &finals).await
}

#[tokio::test(flavor = "multi_thread")]
async fn any_two_of_seven_may_die_during_a_payment_and_all_one_after_the_other() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 7).await?;
    let (payer, payee) = two_wallets(&cluster, 20).await?;
    let mut finals = Vec::new();
    for pair in [[1, 2], [3, 7], [5, 6]] {
        let to = payee.next_address().await?;
        let paying = tokio::spawn({
            let (payer, request) = (payer.clone(), request(&to, PAID)?);
            async move { payer.pay(request).await }
        });
        for node in pair {
            cluster.kill(node)?;
        }
        finals.push(timeout(PAYMENT_PATIENCE, paying).await???.txid);
        for node in pair {
            cluster.start_node(node, None)?;
        }
        cluster.connected(7).await?;
    }
    for node in 1..=7 {
        let to = payee.next_address().await?;
        let paying = tokio::spawn({
            let (payer, request) = (payer.clone(), request(&to, PAID)?);
            async move { payer.pay(request).await }
        });
        cluster.kill(node)?;
        finals.push(timeout(PAYMENT_PATIENCE, paying).await???.txid);
        cluster.start_node(node, None)?;
        cluster.connected(7).await?;
    }
    nothing_lost_or_doubled(&cluster.chain, &finals).await?;
    wait_spendable(&payee, PAID * u64::try_from(finals.len())?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_payment_whose_coordinator_died_comes_to_its_end() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let (payer, payee) = two_wallets(&cluster, TURNS_MAX).await?;
    // It has aggregated the signature by then, so the nodes have committed: the payment may be final and has to be
    // finished.
    cluster.kill(1)?;
    cluster.start_node(1, Some("coordinator.before_broadcast"))?;
    cluster.connected(4).await?;
    let mut finals = Vec::new();
    for _ in 0..TURNS_MAX {
        let mut events = payer.events();
        let to = payee.next_address().await?;
        let txid = payer.send(request(&to, PAID)?).await?;
        let signed = async {
            while let Some(event) = events.next().await {
                if matches!(event, Event::Payment { txid: other, state: PaymentState::Approved } if other == txid)
                {
                    return;
                }
            }
        };
        timeout(PAYMENT_PATIENCE, signed).await?;
        // It may be over already.
        let _too_late = payer.cancel(txid).await;
        match timeout(PAYMENT_PATIENCE, payer.outcome(txid)).await? {
            Ok(receipt) => finals.push(receipt.txid),
            Err(ClientError::Failed { .. } | ClientError::Rejected { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if cluster.has_died(1)? {
            break;
        }
    }
    assert!(cluster.has_died(1)?, "node 1 coordinates at some time");
    let free = payer.balance().await?;
    assert_eq!((free.locked, free.incoming), (Amount::ZERO, Amount::ZERO));
    cluster.start_node(1, None)?;
    cluster.connected(4).await?;
    nothing_lost_or_doubled(&cluster.chain, &finals).await
}
