//! One suite for all chain backends: the embedded chain, Bitcoin Core, and an Esplora in front of one; and a node with
//! several, some of which lie.

use anyhow::{Context as _, Result, ensure};
use bitcoin::{Amount, BlockHash, Network, OutPoint, Transaction, TxOut};
use quorate::{client::WebSocket, headers::Checkpoint, wallet::SecretWords};
use quorate_devnet::DevnetChain;
use quorate_node::chain::{Backends, Chain, ChainError, Esplora, birthday};
use quorate_tests::{
    Cluster, PATIENCE, bitcoind,
    daemon::{Daemon, IPV6, PRUNED},
    esplora::{EsploraServer, Fault, TXINDEX},
    operator::{metric, status, status_where},
    wallets::{
        PAYMENT_PATIENCE, federation, nobody, nobodys_spend, open_wallet, pay_out, request, wait_spendable,
    },
};
use serde_json::Value;
use std::{fs, path::Path, sync::Arc, time::Duration};
use tokio::time::timeout;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");

/// Who makes blocks and money behind a backend.
enum Miner {
    Devnet(Arc<DevnetChain>),
    Core(Box<Daemon>),
}

impl Miner {
    async fn mine(&self, count: u32) -> Result<()> {
        match self {
            Self::Devnet(chain) => {
                chain.mine(count, &nobody())?;
                Ok(())
            }
            Self::Core(daemon) => daemon.mine(count).await,
        }
    }

    async fn reorganise(&self) -> Result<()> {
        match self {
            Self::Devnet(chain) => {
                chain.reorganise(1, &nobody())?;
                Ok(())
            }
            Self::Core(daemon) => daemon.reorganise(1, vec![]).await,
        }
    }

    /// Spends the reward of block 1 to one coin of anybody's, into the mempool.
    async fn pay_out(&self) -> Result<Transaction> {
        let output = TxOut { value: Amount::from_sat(1_000_000), script_pubkey: nobody() };
        match self {
            Self::Devnet(chain) => pay_out(chain, 1, vec![output]),
            Self::Core(daemon) => daemon.pay_out(vec![output]).await,
        }
    }
}

/// What a node expects of any of them.
async fn suite(chain: &dyn Chain, miner: &Miner) -> Result<()> {
    miner.mine(101).await?;
    headers_and_blocks(chain, miner).await?;
    coins_and_transactions(chain, miner).await?;
    let before = chain.tip().await?;
    miner.reorganise().await?;
    let (_, height) = chain.header(chain.tip().await?).await?;
    ensure!(chain.hash_at(height - 1).await? != Some(before), "the block is not in the chain any more");
    Ok(())
}

async fn headers_and_blocks(chain: &dyn Chain, miner: &Miner) -> Result<()> {
    let found = birthday(chain, Network::Regtest).await?;
    ensure!(found.height == 0 && found.is_sound(Network::Regtest));
    let refused = birthday(chain, Network::Signet).await.expect_err("it is on regtest").to_string();
    ensure!(refused.contains("not on signet"), "{refused}");

    let tip = chain.tip().await?;
    let (header, height) = chain.header(tip).await?;
    ensure!(header.block_hash() == tip && height == 101);
    ensure!(chain.hash_at(101).await? == Some(tip) && chain.hash_at(102).await?.is_none());
    let block = chain.block(tip).await?;
    ensure!(block.block_hash() == tip && block.check_merkle_root());
    let unknown: BlockHash = "0000000000000000000000000000000000000000000000000000000000000001".parse()?;
    ensure!(chain.block(unknown).await.is_err() && chain.header(unknown).await.is_err());
    ensure!(chain.doubt().await?.is_none());
    let (mined, news) = tokio::join!(miner.mine(1), chain.wait_for_tip(tip));
    mined?;
    ensure!(news? != tip, "it hears of a block");
    Ok(())
}

async fn coins_and_transactions(chain: &dyn Chain, miner: &Miner) -> Result<()> {
    let hash = chain.hash_at(1).await?.context("a block")?;
    let reward = chain.block(hash).await?.txdata.first().context("a coinbase")?.clone();
    let reward_coin = OutPoint { txid: reward.compute_txid(), vout: 0 };
    let coin = chain.coin(reward_coin).await?.context("a coin")?;
    ensure!((coin.height, coin.hash, coin.coinbase) == (1, hash, true), "{coin:?}");
    ensure!(Some(&coin.output) == reward.output.first());
    ensure!(chain.coin(OutPoint { vout: 7, ..reward_coin }).await?.is_none(), "no such output");
    ensure!(chain.coin(OutPoint { txid: hash_as_txid(hash), vout: 0 }).await?.is_none(), "no transaction");

    let output = reward.output.first().context("an output")?.clone();
    let other_script = bitcoin::ScriptBuf::new_p2wsh(&output.script_pubkey.wscript_hash());
    ensure!(chain.unspent(vec![other_script.clone()]).await?.is_empty());
    let found = chain.unspent(vec![other_script, output.script_pubkey.clone()]).await?;
    ensure!(found.contains(&reward_coin) && found.len() > 100, "{} are found", found.len());

    let paid = miner.pay_out().await?;
    let txid = paid.compute_txid();
    ensure!(chain.coin(reward_coin).await?.is_some(), "a mempool spends no coin");
    ensure!(chain.coin(OutPoint { txid, vout: 0 }).await?.is_none(), "nor makes one");
    let child = nobodys_spend(
        OutPoint { txid, vout: 0 },
        vec![TxOut { value: Amount::from_sat(990_000), script_pubkey: nobody() }],
    );
    let other = nobodys_spend(
        OutPoint { txid, vout: 0 },
        vec![TxOut { value: Amount::from_sat(989_000), script_pubkey: nobody() }],
    );
    let txids = vec![txid, child.compute_txid()];
    ensure!(chain.missing(txids.clone()).await? == [child.compute_txid()].into());
    chain.broadcast(child.clone()).await?;
    chain.broadcast(child.clone()).await.context("what is known already is no error")?;
    ensure!(chain.missing(txids).await?.is_empty());
    let mut broken = other.clone();
    broken.input.iter_mut().for_each(|input| input.witness.clear());
    ensure!(chain.broadcast(broken.clone()).await.is_err());
    let answers = chain.broadcast_all(vec![broken, child.clone()]).await?;
    ensure!(
        matches!(&answers[..], [Err(refused), Ok(())] if refused.is_refusal()),
        "each has its own answer: {answers:?}"
    );

    miner.mine(1).await?;
    let tip = chain.tip().await?;
    let made = chain.coin(OutPoint { txid: child.compute_txid(), vout: 0 }).await?.context("a coin")?;
    ensure!(made.hash == tip && !made.coinbase && Some(&made.output) == child.output.first());
    ensure!(chain.coin(reward_coin).await?.is_none(), "it is spent");
    ensure!(!chain.unspent(vec![output.script_pubkey]).await?.contains(&reward_coin));
    chain.broadcast(child).await.context("what is in a block is known already")?;
    let refused = chain.broadcast(other).await.expect_err("its coin is spent");
    ensure!(
        matches!(refused, ChainError::Refused(_) | ChainError::MissingInput(_) | ChainError::Daemon(_)),
        "{refused}"
    );
    let fees = chain.fees().await?.estimates();
    ensure!(
        fees.floor >= 25 && fees.six_blocks >= fees.floor && fees.next_block >= fees.six_blocks,
        "{fees:?}"
    );
    Ok(())
}

fn hash_as_txid(hash: BlockHash) -> bitcoin::Txid {
    hash.to_string().parse().expect("32 bytes")
}

async fn core(arguments: &[&str]) -> Result<Option<Daemon>> {
    let Some(binary) = bitcoind() else {
        eprintln!("skipped: no bitcoind, neither in BITCOIND_EXE nor on the PATH");
        return Ok(None);
    };
    let daemon = Daemon::start(&binary, arguments)?;
    daemon.ready().await?;
    Ok(Some(daemon))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_chain_is_a_backend() -> Result<()> {
    let chain = Arc::new(DevnetChain::new());
    suite(&*chain, &Miner::Devnet(chain.clone())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bitcoin_core_is_a_backend() -> Result<()> {
    let Some(daemon) = core(&[]).await? else { return Ok(()) };
    let rpc = daemon.rpc.clone();
    suite(&rpc, &Miner::Core(daemon.into())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_esplora_is_a_backend_and_shows_its_coins() -> Result<()> {
    let Some(daemon) = core(&TXINDEX).await? else { return Ok(()) };
    let server = EsploraServer::start(&daemon).await?;
    let chain = Esplora::new(server.url())?;
    let miner = Miner::Core(daemon.into());
    suite(&chain, &miner).await?;

    let hash = chain.hash_at(2).await?.context("a block")?;
    let reward = chain.block(hash).await?.txdata.first().context("a coinbase")?.compute_txid();
    server.lie(Fault::WrongProof);
    let refused = chain.coin(OutPoint { txid: reward, vout: 0 }).await.expect_err("no proof").to_string();
    ensure!(refused.contains("Merkle proof"), "{refused}");
    server.lie(Fault::Busy);
    let refused = chain.tip().await.expect_err("busy").to_string();
    ensure!(refused.contains("503") && refused.contains("busy"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_backend_is_asked_while_the_preferred_one_is_in_trouble() -> Result<()> {
    let Some(daemon) = core(&TXINDEX).await? else { return Ok(()) };
    daemon.mine(10).await?;
    let server = EsploraServer::start(&daemon).await?;
    let (first, second) = (server.url().to_owned(), daemon.url());
    let open = || -> Result<Backends> {
        let esplora: Box<dyn Chain> = Box::new(Esplora::new(&first)?);
        let core: Box<dyn Chain> = Box::new(daemon.rpc.clone());
        Ok(Backends::new(vec![(first.clone(), esplora), (second.clone(), core)]))
    };
    let birthday = Checkpoint::genesis(Network::Regtest);
    let choose = async |backends: &Backends, troubled: bool| {
        backends.choose(Network::Regtest, birthday, troubled).await?;
        Ok::<_, ChainError>(backends.name().to_owned())
    };
    let backends = open()?;
    ensure!(choose(&backends, false).await? == first, "the preferred one");
    server.lie(Fault::Busy);
    ensure!(choose(&backends, true).await? == second, "it does not answer");
    ensure!(backends.tip().await? == daemon.rpc.tip().await?);
    server.lie(Fault::None);
    ensure!(choose(&backends, true).await? == first, "when both gave cause, the one that answers first");

    // One that is behind the other is doubted, and left.
    let backends = open()?;
    ensure!(choose(&backends, false).await? == first);
    server.lie(Fault::Stuck(7));
    let doubt = backends.doubt().await?.context("behind")?;
    ensure!(doubt.contains(&first) && doubt.contains("block 7") && doubt.contains("block 10"), "{doubt}");
    ensure!(choose(&backends, true).await? == second);
    ensure!(backends.doubt().await?.is_none());
    ensure!(choose(&open()?, false).await? == second, "at the start, too");

    // What one claims and does not have counts for nothing, whichever is asked.
    let backends = open()?;
    server.lie(Fault::Ahead(1_000));
    ensure!(choose(&backends, false).await? == second, "a tip that its own chain does not have");
    ensure!(backends.doubt().await?.is_none());
    server.lie(Fault::None);
    let backends = open()?;
    ensure!(choose(&backends, false).await? == first);
    server.lie(Fault::Ahead(1_000));
    ensure!(choose(&backends, true).await? == second);
    Ok(())
}

fn home(cluster: &Cluster<Daemon>, node: usize) -> Result<&Path> {
    Ok(cluster.files.nodes.get(node - 1).context("no such node")?)
}

/// Has a node ask these backends from its next start on.
fn set_backends(home: &Path, backends: &str) -> Result<()> {
    let place = home.join("node.toml");
    let text = fs::read_to_string(&place)?;
    let (before, _) = text.split_once("[[chain]]").context("backends")?;
    // The peers are tables, too, and come first.
    Ok(fs::write(place, format!("{before}{backends}"))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_on_different_backends_pay_and_one_whose_backend_lies_goes_on_with_another() -> Result<()> {
    let Some(daemon) = core(&TXINDEX).await? else { return Ok(()) };
    daemon.mine(101).await?;
    let server = EsploraServer::start(&daemon).await?;
    let esplora = format!("[[chain]]\nkind = \"esplora\"\nurl = \"{}\"\n", server.url());
    let core = format!("[[chain]]\nurl = \"{}\"\nuser = \"test\"\npassword = \"test\"\n", daemon.url());
    let mut cluster = Cluster::on(daemon, NODE, 4).await?;
    // Two nodes with an Esplora alone, one with both.
    for (node, backends) in [(2, esplora.clone()), (3, esplora.clone()), (4, format!("{esplora}{core}"))] {
        cluster.kill(node)?;
        set_backends(home(&cluster, node)?, &backends)?;
        cluster.start_node(node, None)?;
    }
    for home in &cluster.files.nodes {
        status(home, "voting").await?;
    }
    let federation = federation(&cluster).await?;
    let words = || SecretWords::generate();
    let payer = open_wallet(&federation, &words()?, WebSocket::new(cluster.url())).await?;
    let shop = open_wallet(&federation, &words()?, WebSocket::new(cluster.url())).await?;
    let script_pubkey = payer.next_address().await?.script_pubkey();
    let value = Amount::from_sat(1_000_000);
    cluster.chain.pay_out(vec![TxOut { value, script_pubkey }; 2]).await?;
    cluster.chain.mine(1).await?;
    wait_spendable(&payer, value * 2).await?;
    let price = Amount::from_sat(30_000);
    let pay = async || {
        let to = shop.next_address().await?;
        timeout(PAYMENT_PATIENCE, payer.pay(request(&to, price)?)).await?.context("it is paid")
    };
    let paid = pay().await?;
    let sent = async {
        while !cluster.chain.mempool().await?.contains(&paid.txid) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, sent).await.context("it is never sent")??;
    cluster.chain.mine(1).await?;

    // The server hides blocks: the node that has a second backend hears of it there.
    let height = cluster.chain.height().await?;
    server.lie(Fault::Stuck(height));
    cluster.chain.mine(5).await?;
    let at_tip = |status: &Value| {
        status.pointer("/tip/height").and_then(Value::as_u64) == Some(u64::from(height) + 5)
            && status.get("standing").is_some_and(|standing| standing == "voting")
    };
    status_where(home(&cluster, 4)?, "at the tip", at_tip).await?;
    let backend = metric(home(&cluster, 4)?, "quorate_node_backend").await?;
    ensure!((backend - 1.0).abs() < f64::EPSILON, "it says which one it asks: {backend}");
    // Those without one hear from the others that there are blocks, and do not vote.
    for node in [2, 3] {
        let hidden = |status: &Value| {
            let reason = status.get("reason").and_then(Value::as_str).unwrap_or_default();
            status.get("standing").is_some_and(|standing| standing == "following")
                && reason.contains("behind")
                && status.get("since").is_some()
        };
        status_where(home(&cluster, node)?, "left behind", hidden).await?;
        ensure!(metric(home(&cluster, node)?, "quorate_node_following").await? > 0.0);
        ensure!(metric(home(&cluster, node)?, "quorate_node_following_since_seconds").await? > 0.0);
    }
    // It hides nothing any more: all of them are there again.
    server.lie(Fault::None);
    for home in &cluster.files.nodes {
        status_where(home, "at the tip", at_tip).await?;
    }
    pay().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_daemon_is_a_backend_by_ipv6_too_and_says_which_block_it_has_deleted() -> Result<()> {
    let Some(daemon) = core(&[PRUNED, IPV6].concat()).await? else { return Ok(()) };
    let rpc = daemon.rpc_by_ipv6();
    let miner = Miner::Core(daemon.into());
    suite(&rpc, &miner).await?;
    let Miner::Core(daemon) = miner else { unreachable!("it was put in there") };
    daemon.mine(1_000).await?;
    let gone = daemon.prune(700).await?;
    ensure!(gone > 100, "{gone}");
    let hash = rpc.hash_at(gone).await?.context("its hash is known still")?;
    ensure!(rpc.header(hash).await?.1 == gone, "and its header");
    let refused = rpc.block(hash).await.expect_err("it is gone");
    ensure!(matches!(refused, ChainError::Pruned(of) if of == hash), "{refused}");
    let there = rpc.hash_at(1_000).await?.context("a hash")?;
    ensure!(rpc.block(there).await?.block_hash() == there);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_while_its_blocks_were_pruned_says_so_and_goes_on_with_another_backend()
-> Result<()> {
    let Some(daemon) = core(&[]).await? else { return Ok(()) };
    let Some(pruned) = core(&PRUNED).await? else { return Ok(()) };
    daemon.mine(101).await?;
    let backend = |daemon: &Daemon| {
        format!("[[chain]]\nurl = \"{}\"\nuser = \"test\"\npassword = \"test\"\n", daemon.url())
    };
    let (small, whole) = (backend(&pruned), backend(&daemon));
    let mut cluster = Cluster::on(daemon, NODE, 4).await?;
    status(home(&cluster, 4)?, "voting").await?;
    cluster.kill(4)?;
    cluster.chain.mine(1_000).await?;
    pruned.copy_blocks(&cluster.chain).await?;
    ensure!(pruned.prune(700).await? > 101);

    set_backends(home(&cluster, 4)?, &small)?;
    cluster.start_node(4, None)?;
    let told = |status: &Value| {
        let reason = status.get("reason").and_then(Value::as_str).unwrap_or_default();
        reason.contains("pruned") && status.get("standing").is_some_and(|standing| standing == "following")
    };
    status_where(home(&cluster, 4)?, "without blocks", told).await?;

    cluster.kill(4)?;
    set_backends(home(&cluster, 4)?, &format!("{small}{whole}"))?;
    cluster.start_node(4, None)?;
    let at_tip = |status: &Value| {
        status.pointer("/tip/height").and_then(Value::as_u64) == Some(1_101)
            && status.get("standing").is_some_and(|standing| standing == "voting")
    };
    status_where(home(&cluster, 4)?, "at the tip", at_tip).await?;
    Ok(())
}
