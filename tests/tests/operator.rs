//! What an operator sees of a node: whether it votes, and why not.

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use quorate::{
    client::{Client, WebSocket},
    wallet::SecretWords,
};
use quorate_tests::{
    Cluster, PATIENCE, eventually,
    operator::{api, command, status, status_where},
    wallets::{
        Disk, PAYMENT_PATIENCE, federation, fund, nobody, open_wallet, reopen_wallet, request, wait_spendable,
    },
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
    let commits =
        metrics.lines().find_map(|line| line.strip_prefix("quorate_node_store_commit_seconds_count "));
    ensure!(commits.and_then(|count| count.parse().ok()).is_some_and(|count: u64| count > 0), "{metrics}");
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

/// One device pays while the other is away for weeks; meanwhile the nodes forget the payment.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_leaves_the_nodes_and_is_told_to_who_comes_back() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let (words, disks) = (SecretWords::generate()?, [Disk::default(), Disk::default()]);
    let open = |disk: &Disk| reopen_wallet(&federation, &words, WebSocket::new(cluster.url()), disk);
    let away = open(&disks[0])?;
    timeout(PATIENCE, away.ready()).await??;
    let own = away.next_address().await?;
    fund(&cluster.chain, &[own], 1, COIN)?;
    wait_spendable(&away, COIN).await?;
    drop(away);

    let payer = open(&disks[1])?;
    wait_spendable(&payer, COIN).await?;
    let payee = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    pay(&payer, &payee).await?;
    eventually("the payment is broadcast", || !cluster.chain.mempool().is_empty()).await?;
    cluster.chain.mine(300, &nobody())?;
    let settled = |status: &serde_json::Value| {
        let held = &status["held"];
        held["transactions"] == 0 && held["rounds"] == 0 && held["coins"] == 2
    };
    for home in &cluster.files.nodes {
        status_where(home, "settled", settled).await?;
    }
    let left = payer.balance().await?;
    let back = open(&disks[0])?;
    let same = move |session: &quorate::session::Session| {
        let balance = session.wallet().balance();
        (balance == left).then_some(())
    };
    timeout(PATIENCE, back.wait(same)).await.context("it does not hear of the payment")??;
    // And it can go on from there.
    pay(&back, &payee).await?;

    // What the node has on its disk, by command.
    let home = cluster.files.nodes[0].clone();
    let home = home.to_str().context("a path")?;
    let error = command(NODE, &["store", "check", home]).expect_err("the node runs");
    ensure!(error.to_string().contains("stop it"), "{error}");
    cluster.kill(1)?;
    let stats = command(NODE, &["store", "stats", home])?;
    ensure!(stats.contains("settled") && stats.contains("index.redb"), "{stats}");
    let check = command(NODE, &["store", "check", home])?;
    ensure!(check.matches("Good").count() == 2, "{check}");
    let kept = command(NODE, &["store", "prune", home, "--below", "1"])?;
    ensure!(kept.starts_with("0 rows"), "{kept}");
    let pruned = command(NODE, &["store", "prune", home, "--below", "1000000"])?;
    ensure!(!pruned.starts_with("0 rows"), "{pruned}");
    command(NODE, &["store", "check", home])?;
    cluster.start_node(1, None)?;
    status(&cluster.files.nodes[0], "voting").await?;

    cluster.kill(1)?;
    let store = cluster.files.nodes[0].join("store.redb");
    let length = fs::metadata(&store)?.len();
    fs::OpenOptions::new().write(true).open(&store)?.set_len(length / 2)?;
    let error = command(NODE, &["store", "check", home]).expect_err("it is cut off");
    ensure!(error.to_string().contains("damaged"), "{error}");
    ensure!(store.exists(), "checking changes nothing");
    Ok(())
}
