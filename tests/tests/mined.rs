//! What is final gets mined: a federation whose nodes follow a real Bitcoin Core.

use anyhow::{Context as _, Result, ensure};
use bitcoin::{Address, Amount, FeeRate, Network, OutPoint, TxOut, Txid};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use quorate::{
    Federation,
    account::{Keychain, KeychainIndex},
    client::{Client, ClientError, WebSocket},
    finality::FinalityKind,
    recovery::{RecoverableCoin, Recovery, SweepRequest},
    session::{Event, Session},
    wallet::{AccountOptions, Balance, CoinState, SecretWords, Wallet, WalletError},
    wire::{NodeReject, RejectReason},
};
use quorate_node::chain::Chain as _;
use quorate_tests::{
    Cluster, PATIENCE, bitcoind,
    daemon::Daemon,
    operator::status_where,
    wallets::{PAYMENT_PATIENCE, federation, nobody, request, sole_spend, wait_spendable},
};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{interval, timeout};

const NODE: &str = env!("CARGO_BIN_EXE_test-node");

/// Nodes on a daemon, and the federation that they are.
struct World {
    cluster: Cluster<Daemon>,
    federation: Federation,
}

impl World {
    /// `None` without a daemon.
    async fn start() -> Result<Option<Self>> {
        let Some(binary) = bitcoind() else {
            eprintln!("skipped: no bitcoind, neither in BITCOIND_EXE nor on the PATH");
            return Ok(None);
        };
        let daemon = Daemon::start(&binary, &[])?;
        daemon.ready().await?;
        daemon.mine(101).await?;
        let cluster = Cluster::on(daemon, NODE, 4).await?;
        let federation = federation(&cluster).await?;
        Ok(Some(Self { cluster, federation }))
    }

    fn daemon(&self) -> &Daemon {
        &self.cluster.chain
    }

    fn open(&self, words: &SecretWords, options: &AccountOptions) -> Result<Client> {
        let wallet = Wallet::new(self.federation.clone(), words, options, None)?;
        Ok(Client::start(wallet, WebSocket::new(self.cluster.url())))
    }

    async fn wallet(&self) -> Result<Client> {
        let client = self.open(&SecretWords::generate()?, &AccountOptions::default())?;
        timeout(PATIENCE, client.ready()).await.context("the account is not certified in time")??;
        Ok(client)
    }

    /// A wallet with so many confirmed coins.
    async fn funded(&self, coins: usize, value: Amount) -> Result<Client> {
        let client = self.wallet().await?;
        let script_pubkey = client.next_address().await?.script_pubkey();
        self.daemon().pay_out(vec![TxOut { value, script_pubkey }; coins]).await?;
        self.daemon().mine(1).await?;
        wait_spendable(&client, value * u64::try_from(coins)?).await?;
        Ok(client)
    }

    /// Waits until the daemon's mempool is as wanted.
    async fn mempool(&self, what: &str, wanted: impl Fn(&BTreeSet<Txid>) -> bool) -> Result<()> {
        let asked = async {
            let mut pause = interval(Duration::from_millis(50));
            loop {
                pause.tick().await;
                if wanted(&self.daemon().mempool().await?) {
                    return Ok(());
                }
            }
        };
        timeout(PATIENCE, asked).await.with_context(|| format!("never in the mempool: {what}"))?
    }
}

async fn until(
    client: &Client,
    what: &str,
    wanted: impl Fn(&Session) -> bool + Send + Sync + Clone + 'static,
) -> Result<()> {
    let told = client.wait(move |session| wanted(session).then_some(()));
    timeout(PATIENCE, told).await.with_context(|| format!("never: {what}"))??;
    Ok(())
}

/// Whether so many transactions of a wallet are in blocks, and all.
fn all_mined(count: usize) -> impl Fn(&Session) -> bool + Send + Sync + Clone + 'static {
    move |session| {
        let history = session.wallet().history();
        history.len() == count && history.iter().all(|entry| entry.block.is_some())
    }
}

/// Whether a payment has to wait for a block.
fn waits_for_a_block(error: &ClientError) -> bool {
    let told = |rejects: &[NodeReject]| {
        rejects.iter().any(|one| matches!(one.reason, RejectReason::UnconfirmedChain { .. }))
    };
    matches!(error, ClientError::Wallet(WalletError::UnconfirmedChain { .. }))
        || matches!(error, ClientError::Rejected { rejects, .. } if told(rejects))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_payments_between_two_blocks_are_all_mined() -> Result<()> {
    const COINS: usize = 14;
    /// From each coin a chain as long as payments may make it: two places of a cluster are for what lifts.
    const PAYMENTS: usize = COINS * 23;
    let Some(world) = World::start().await? else { return Ok(()) };
    let payer = world.funded(COINS, Amount::from_sat(1_000_000)).await?;
    let shop = world.wallet().await?;
    let price = Amount::from_sat(5_000);
    let to = shop.next_address().await?;
    for number in 1..=PAYMENTS {
        let paid = timeout(PAYMENT_PATIENCE, payer.pay(request(&to, price)?)).await;
        let receipt =
            paid.context("a payment takes too long")?.with_context(|| format!("payment {number}"))?;
        ensure!(receipt.proof.kind() == FinalityKind::Enforced);
    }
    let sum = price * u64::try_from(PAYMENTS)?;
    until(&shop, "all are told", move |session| session.wallet().balance().spendable == sum).await?;
    world.mempool("all payments", |pool| pool.len() == PAYMENTS).await?;
    // There is money, but it hangs on too much; after a block it does not.
    let refused = payer.pay(request(&to, price)?).await.expect_err("every cluster is full");
    ensure!(waits_for_a_block(&refused) && refused.is_retryable(), "{refused}");
    // What is full can still be lifted, from both ends: a payment in the middle by its payee, the last one by its
    // payer.
    let history = payer.inspect(|session| session.wallet().history().to_vec()).await?;
    let (middle, last) = (history[history.len() / 2].txid, history[history.len() - 1].txid);
    let rate = FeeRate::from_sat_per_vb_u32(3);
    for (client, txid) in [(&shop, middle), (&payer, last)] {
        timeout(PAYMENT_PATIENCE, client.bump(txid, rate))
            .await
            .context("too long")?
            .context("room to lift")?;
    }
    world.mempool("and what lifts", |pool| pool.len() == PAYMENTS + 2).await?;
    world.daemon().mine(1).await?;
    until(&payer, "all are in a block", all_mined(PAYMENTS + 2)).await?;
    until(&shop, "all are in a block", all_mined(PAYMENTS + 1)).await?;
    timeout(PAYMENT_PATIENCE, payer.pay(request(&to, price)?)).await.context("too long")??;
    world.mempool("the last payment", |pool| pool.len() == 1).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mempool_that_became_dear_threw_out_is_lifted_by_payers_and_payees() -> Result<()> {
    const PAYMENTS: usize = 50;
    let Some(mut world) = World::start().await? else { return Ok(()) };
    let payer = world.funded(PAYMENTS, Amount::from_sat(100_000)).await?;
    let chained = world.funded(1, Amount::from_sat(500_000)).await?;
    let shop = world.wallet().await?;
    let to = shop.next_address().await?;
    let mut txids = Vec::new();
    for _ in 0..PAYMENTS {
        let payment = request(&to, Amount::from_sat(40_000))?.fee_rate(FeeRate::from_sat_per_vb_u32(1));
        txids.push(timeout(PAYMENT_PATIENCE, payer.pay(payment)).await.context("too long")??.txid);
    }
    // And three that hang on each other, from one coin.
    let mut chain = Vec::new();
    for _ in 0..3 {
        let payment = request(&to, Amount::from_sat(40_000))?.fee_rate(FeeRate::from_sat_per_vb_u32(1));
        chain.push(timeout(PAYMENT_PATIENCE, chained.pay(payment)).await.context("too long")??.txid);
    }
    world.mempool("the chain", |pool| chain.iter().all(|txid| pool.contains(txid))).await?;
    let mut told = payer.events();
    world.cluster.chain.restart(&["-minrelaytxfee=0.0001"]).await?;
    world.mempool("nothing, at ten times the fee", BTreeSet::is_empty).await?;
    // Nodes say why it does not work: to operators, and to who waits for longer than a block.
    for _ in 0..2 {
        world.daemon().mine(1).await?;
        let height = world.daemon().height().await?;
        until(&payer, "a block", move |session| session.wallet().chain().tip().height == height).await?;
    }
    let refused = async {
        loop {
            if let Event::Broadcasting { txid, refusal: Some(refusal) } =
                told.next().await.context("ended")?
            {
                return anyhow::Ok((txid, refusal));
            }
        }
    };
    let (txid, refusal) = timeout(PATIENCE, refused).await.context("nobody is told of the refusal")??;
    ensure!(txids.contains(&txid) && refusal.contains("fee not met"), "{txid}: {refusal}");
    let all = |status: &Value| status["refusals"].as_object().is_some_and(|all| all.len() == PAYMENTS + 3);
    status_where(&world.cluster.files.nodes[0], "all refused", all).await?;
    // Every second one by the payee, the others by the payer.
    let rate = FeeRate::from_sat_per_vb_u32(20);
    let lift = |(index, txid): (usize, Txid)| {
        let client = if index % 2 == 0 { &shop } else { &payer };
        async move {
            let quoted = client.bump_quote(txid, rate).await?;
            let lifted = timeout(PAYMENT_PATIENCE, client.bump(txid, rate)).await.context("too long")??;
            ensure!(quoted > Amount::from_sat(2_000), "{quoted} for {}", lifted.txid);
            Ok(())
        }
    };
    stream::iter(txids.into_iter().enumerate()).map(lift).buffer_unordered(4).try_collect::<()>().await?;
    // A chain has to be lifted from its beginning, where its payer has nothing left: it is told so before it pays.
    let (first, last) = (chain[0], chain[2]);
    until(&chained, "what is refused", move |session| session.refusal(first).is_some()).await?;
    let refused = chained.bump(last, rate).await.expect_err("it would not be taken");
    ensure!(
        matches!(&refused, ClientError::Wallet(WalletError::LiftFirst { first: one, .. }) if *one == first),
        "{refused}"
    );
    for txid in chain {
        timeout(PAYMENT_PATIENCE, shop.bump(txid, rate)).await.context("too long")??;
        until(&shop, "it is taken", move |session| session.refusal(txid).is_none()).await?;
    }
    world.mempool("payments and what lifts them", |pool| pool.len() == 2 * (PAYMENTS + 3)).await?;
    world.daemon().mine(1).await?;
    until(&payer, "all are in a block", all_mined(1 + PAYMENTS + PAYMENTS / 2)).await?;
    until(&chained, "all are in a block", all_mined(1 + 3)).await?;
    until(&shop, "all are in a block", all_mined(PAYMENTS + PAYMENTS / 2 + 6)).await?;
    let none = |status: &Value| status["refusals"].as_object().is_some_and(serde_json::Map::is_empty);
    status_where(&world.cluster.files.nodes[0], "nothing refused", none).await?;
    Ok(())
}

/// A reorganisation as deep as this after a joint and an attested payment were mined; its blocks have a double spend of
/// the second.
async fn reorganise(world: &World, payer: &Client, shop: &Client, depth: u32) -> Result<()> {
    let (price, gift) = (Amount::from_sat(5_000), Amount::from_sat(30_000));
    let daemon = world.daemon();
    let coin = daemon.pay_out(vec![TxOut { value: gift, script_pubkey: nobody() }]).await?;
    daemon.mine(1).await?;
    let coin = OutPoint { txid: coin.compute_txid(), vout: 0 };
    let before = shop.balance().await?.spendable;
    let to = shop.next_address().await?;
    let promised = sole_spend(coin, gift, &to);
    // Waits for nodes that have not seen the coin's block yet.
    let attested = timeout(PAYMENT_PATIENCE, payer.attest(promised)).await.context("too long")??;
    ensure!(attested.proof.kind() == FinalityKind::Attested);
    let enforced = timeout(PAYMENT_PATIENCE, payer.pay(request(&to, price)?)).await.context("too long")??;
    // What only a promise stands behind is nothing to pay on with.
    until(shop, "told of both", move |session| {
        let balance = session.wallet().balance();
        balance.spendable == before + price && balance.incoming == gift - Amount::from_sat(1_000)
    })
    .await?;
    let state = shop
        .inspect(move |session| session.wallet().coin_state(&OutPoint { txid: attested.txid, vout: 0 }))
        .await?;
    ensure!(state == Some(CoinState::Incoming), "{state:?}");
    let both = [attested.txid, enforced.txid];
    world.mempool("both", |pool| both.iter().all(|txid| pool.contains(txid))).await?;
    daemon.mine(depth).await?;
    let mined = move |session: &Session| {
        let history = session.wallet().history();
        both.iter().all(|txid| history.iter().any(|entry| entry.txid == *txid && entry.block.is_some()))
    };
    until(shop, "both are mined", mined).await?;
    // One block more, and the first has the double spend.
    let taken = sole_spend(coin, gift - Amount::from_sat(500), &Address::p2wsh(&nobody(), Network::Regtest));
    daemon.reorganise(depth, vec![taken]).await?;
    until(shop, "the attested payment is undone, the enforced one stands", move |session| {
        let history = session.wallet().history();
        let find = |txid: Txid| history.iter().find(|entry| entry.txid == txid);
        let undone = find(attested.txid).is_some_and(|entry| entry.conflicted.is_some());
        let stands = find(enforced.txid).is_some_and(|entry| {
            entry.conflicted.is_none() && entry.finality == Some(FinalityKind::Enforced)
        });
        undone && stands && session.wallet().balance().spendable == before + price
    })
    .await?;
    world.mempool("the enforced payment, again", |pool| pool.contains(&enforced.txid)).await?;
    daemon.mine(1).await?;
    until(shop, "mined again", move |session| {
        let mut history = session.wallet().history().iter();
        let wallet = session.wallet();
        history.any(|entry| {
            entry.txid == enforced.txid && entry.block.is_some_and(|block| wallet.chain().contains(&block))
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn reorganisations_undo_what_was_promised_and_nothing_that_is_enforced() -> Result<()> {
    let Some(world) = World::start().await? else { return Ok(()) };
    let payer = world.funded(1, Amount::from_sat(1_000_000)).await?;
    let shop = world.wallet().await?;
    for depth in 1..=6 {
        reorganise(&world, &payer, &shop, depth).await.with_context(|| format!("{depth} deep"))?;
    }
    let spendable = shop.balance().await?.spendable;
    ensure!(spendable == Amount::from_sat(6 * 5_000), "{spendable}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_was_kept_back_until_the_leaf_opened_fools_no_payee() -> Result<()> {
    /// Payable for 42 blocks.
    const DELAY: u16 = 330;
    const FIRST: KeychainIndex = KeychainIndex { keychain: Keychain::Receive, index: 0 };
    let Some(mut world) = World::start().await? else { return Ok(()) };
    let options = AccountOptions { recovery_delay: Some(DELAY), ..AccountOptions::default() };
    let words = SecretWords::generate()?;
    let payer = world.open(&words, &options)?;
    timeout(PATIENCE, payer.ready()).await.context("not certified")??;
    let value = Amount::from_sat(500_000);
    let own = payer.next_address().await?;
    let output = TxOut { value, script_pubkey: own.script_pubkey() };
    let funding = world.daemon().pay_out(vec![output.clone()]).await?;
    world.daemon().mine(1).await?;
    wait_spendable(&payer, value).await?;
    let height = world.daemon().height().await?;
    let descriptor = payer.inspect(|session| session.wallet().descriptor().to_string()).await?;
    let payee_words = SecretWords::generate()?;
    let payee = || Wallet::new(world.federation.clone(), &payee_words, &AccountOptions::default(), None);
    let (mut early, mut late) = (payee()?, payee()?);
    let (to, _) = (early.next_address()?, late.next_address()?);
    let paid = timeout(
        PAYMENT_PATIENCE,
        payer.pay(request(&to.to_address(Network::Regtest), Amount::from_sat(100_000))?),
    )
    .await;
    let proof = paid.context("too long")??.proof;
    early.apply_headers(&world.daemon().headers().await?)?;
    ensure!(early.apply_proof(&proof)?, "final, while its deadline has not come");
    drop(payer);
    // It reaches no miner: the nodes are gone, and what the daemon had in its mempool.
    for number in 1..=4 {
        world.cluster.kill(number)?;
    }
    world.cluster.chain.restart(&["-persistmempool=0"]).await?;
    world.daemon().mine(u32::from(DELAY)).await?;
    ensure!(world.daemon().mempool().await?.is_empty());
    late.apply_headers(&world.daemon().headers().await?)?;
    ensure!(!late.apply_proof(&proof)?, "no news any more");
    ensure!(late.balance() == Balance::default() && late.history().is_empty());
    // The owner takes the coin by the leaf.
    let vout = funding.output.iter().position(|one| *one == output).context("paid")?;
    let outpoint = OutPoint { txid: funding.compute_txid(), vout: u32::try_from(vout)? };
    let coin = RecoverableCoin { outpoint, value, position: FIRST, height: Some(height) };
    let recovery = Recovery::new(&descriptor, Network::Regtest)?;
    let wanted = SweepRequest {
        destination: nobody(),
        fee_rate: FeeRate::from_sat_per_vb_u32(2),
        tip: world.daemon().height().await?,
    };
    let sweep = recovery.sweep(&[coin], &wanted)?;
    let taken = recovery.sign(&words, &sweep.psbt)?.transaction;
    world.daemon().rpc.broadcast(taken.clone()).await.context("the leaf is open")?;
    world.daemon().mine(1).await?;
    // The nodes are back with what they had promised. They see what became of it, and the payee is told no lie.
    for number in 1..=4 {
        world.cluster.start_node(number, None)?;
    }
    world.cluster.connected(4).await?;
    let breached = |status: &Value| status["breaches"].as_object().is_some_and(|all| all.len() == 1);
    for home in &world.cluster.files.nodes {
        status_where(home, "seen as undone", breached).await?;
    }
    let tip = world.daemon().height().await?;
    let payee = world.open(&payee_words, &AccountOptions::default())?;
    until(&payee, "up to date", move |session| {
        session.is_synced() && session.wallet().chain().tip().height == tip
    })
    .await?;
    let balance = payee.balance().await?;
    ensure!(balance == Balance::default(), "{balance:?}");
    Ok(())
}
