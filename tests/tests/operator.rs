//! What an operator sees of a node: whether it votes, and why not.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use quorate::{
    client::{Client, WebSocket},
    wallet::SecretWords,
};
use quorate_tests::{
    Cluster,
    operator::{api, status},
    wallets::{PAYMENT_PATIENCE, federation, fund, open_wallet, request, wait_spendable},
};
use std::fs;
use tokio::time::timeout;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
const COIN: Amount = Amount::from_sat(100_000);
const PAID: Amount = Amount::from_sat(5_000);

async fn pay(payer: &Client, payee: &Client) -> Result<()> {
    let to = payee.next_address().await?;
    timeout(PAYMENT_PATIENCE, payer.pay(request(&to, PAID)?)).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_is_gone_says_so_and_does_not_vote() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let home = cluster.files.nodes[1].clone();
    let url = api(&home)?;
    let federation = federation(&cluster).await?;
    let payer = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let payee = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], 4, COIN)?;
    wait_spendable(&payer, COIN * 4).await?;
    pay(&payer, &payee).await?;
    let before = status(&home, "voting").await?;
    ensure!(before["log_records"].as_u64() > Some(0), "it has voted: {before}");
    ensure!(before["evidence"] == serde_json::json!({}), "nobody cheated: {before}");
    ensure!(reqwest::get(format!("{url}/health")).await?.status().is_success());

    cluster.kill(2)?;
    fs::remove_file(home.join("store.redb"))?;
    cluster.start_node(2, None)?;
    let after = status(&home, "lost").await?;
    let reason = after["reason"].as_str().context("a reason")?;
    ensure!(reason.contains("missing or older") && reason.contains("next epoch"), "{reason}");
    let health = reqwest::get(format!("{url}/health")).await?;
    ensure!(health.status() == 503, "a node without a vote is not healthy: {health:?}");
    let metrics = reqwest::get(format!("{url}/metrics")).await?.text().await?;
    ensure!(metrics.contains("quorate_node_lost_its_vote 1"), "{metrics}");
    // The others are enough, and it stays without a vote when it starts again.
    pay(&payer, &payee).await?;
    cluster.kill(2)?;
    cluster.start_node(2, None)?;
    status(&home, "lost").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_kept_aside_and_costs_the_vote() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let home = cluster.files.nodes[2].clone();
    status(&home, "voting").await?;
    cluster.kill(3)?;
    fs::write(home.join("store.redb"), b"not what was written here")?;
    cluster.start_node(3, None)?;
    let after = status(&home, "lost").await?;
    ensure!(after["reason"].as_str().is_some_and(|reason| reason.contains("damaged")), "{after}");
    ensure!(home.join("store.damaged.redb").exists(), "the file is kept for the operator");
    Ok(())
}
