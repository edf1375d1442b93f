//! `npm run bench -- growth --accounts N`: what a node holds that knows so many accounts, each with a coin. It gets to
//! know them as it does from a bridge, and is alone meanwhile: the others would do the same.

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::{
    Amount, Network, TxOut,
    bip32::{Xpriv, Xpub},
    key::Keypair,
    secp256k1::{Secp256k1, SecretKey},
};
use quorate::{
    Federation,
    account::{AccountPolicy, AccountRecord, JointAccount, Keychain, KeychainIndex},
    client::{Connection, Quic, TlsIdentity, Transport as _},
    wire::{ClientMessage, KeyOutcome, ServerMessage, SubscriptionKey, decode, encode_text, limits},
};
use quorate_tests::{
    Cluster, PATIENCE,
    operator::status_where,
    process::{cpu, memory, on_disk},
    wallets::{federation, nobody, pay_out},
};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Instant};
use tokio::time::timeout;

/// Accounts in one request.
const AT_A_TIME: u32 = 100;
/// Accounts that one block pays to.
const IN_A_BLOCK: u32 = 2_000;
/// Any federation takes so many blocks.
const RECOVERY_DELAY: u16 = 52_560;
const COIN: Amount = Amount::from_sat(100_000);

pub(crate) async fn measure(mut cluster: Cluster, count: u32, as_json: bool) -> Result<()> {
    let federation = federation(&cluster).await?;
    let home = cluster.files.nodes.first().context("a node")?.clone();
    for number in 2..=cluster.files.nodes.len() {
        cluster.kill(number)?;
    }
    let mut matured = cluster.chain.height() + 1;
    cluster.chain.mine(101, &nobody())?;
    let pid = cluster.pid(1).context("it runs")?;
    let (empty, idle) = (memory(pid)?, cpu(pid)?);
    let mut session = greet(&cluster, &federation).await?;
    let (mut known, mut rng) = (0, ChaCha20Rng::seed_from_u64(1));
    while known < count {
        let mut outputs = Vec::new();
        while known < count && outputs.len() < usize::try_from(IN_A_BLOCK)? {
            let some = AT_A_TIME.min(count - known);
            let accounts = (0..some).map(|_| account(&federation, &mut rng)).collect::<Result<Vec<_>>>()?;
            subscribe(&mut session, &accounts).await?;
            for account in &accounts {
                let first = account.address(KeychainIndex { keychain: Keychain::Receive, index: 0 })?;
                outputs.push(TxOut { value: COIN, script_pubkey: first.script_pubkey });
            }
            known += some;
        }
        pay_out(&cluster.chain, matured, outputs)?;
        matured += 1;
        cluster.chain.mine(1, &nobody())?;
        let height = cluster.chain.height();
        status_where(&home, "at the tip", |status| status.pointer("/tip/height") == Some(&height.into()))
            .await?;
        eprintln!("{known} accounts, {} MB", megabytes(memory(pid)?));
    }
    let (full, spent) = (memory(pid)?, cpu(pid)? - idle);
    drop(session);
    cluster.kill(1)?;
    let index = on_disk(&home.join("index.redb"))?;
    let started = Instant::now();
    cluster.start_node(1, None)?;
    status_where(&home, "up", |status| status.pointer("/tip/height").is_some()).await?;
    let start = started.elapsed();
    let again = memory(cluster.pid(1).context("it runs")?)?;
    // The block that was indexed last may have to be read again. Each account has 20 addresses on each keychain, and
    // one more for its coin.
    let scripts = u64::from(count) * 41;
    status_where(&home, "all indexed", |status| {
        status.pointer("/held/scripts").and_then(Value::as_u64).is_some_and(|held| held >= scripts)
    })
    .await?;
    let each = spent.as_secs_f64() * 1e6 / f64::from(count);
    if as_json {
        println!(
            "{}",
            json!({"accounts": count, "memory_bytes": full, "memory_after_start_bytes": again, "index_bytes": index,
                "start_ms": u64::try_from(start.as_millis())?, "cpu_us_per_account": each})
        );
        return Ok(());
    }
    println!("accounts  scripts    empty  memory  after a start  index   start    CPU per account");
    println!(
        "{count:>8}  {scripts:>8}  {:>3} MB  {:>3} MB         {:>3} MB  {:>3} MB  {:>4} ms  {each:>6.0} us",
        megabytes(empty),
        megabytes(full),
        megabytes(again),
        megabytes(index),
        start.as_millis(),
    );
    Ok(())
}

fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000
}

fn account(federation: &Federation, rng: &mut ChaCha20Rng) -> Result<JointAccount> {
    let secp = Secp256k1::new();
    let mut secret = || {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    let [wallet, authorisation, recovery] = [secret(), secret(), secret()];
    let wallet = SecretKey::from_slice(&wallet)?;
    let (authorisation, _) = Keypair::from_seckey_slice(&secp, &authorisation)?.x_only_public_key();
    let recovery = Xpub::from_priv(&secp, &Xpriv::new_master(Network::Regtest, &recovery)?);
    let (delay, policy) = (RECOVERY_DELAY, AccountPolicy::default());
    let record = AccountRecord::new(federation, &wallet, authorisation, recovery, delay, policy);
    Ok(JointAccount::new(federation, record)?)
}

async fn greet(cluster: &Cluster, federation: &Federation) -> Result<Connection> {
    let identity = TlsIdentity::read(&cluster.files.client)?;
    let node = cluster.files.addresses.first().map(|node| (node.id, node.address)).context("a node")?;
    let mut session = Quic::new(&identity, vec![node])?.connect().await?;
    let hello = ClientMessage::Hello {
        protocol: limits::PROTOCOL_VERSION,
        federation: Some(federation.id()),
        agent: String::new(),
    };
    session.to_server.send(encode_text(Some(1), &hello)).await?;
    answer(&mut session).await?;
    Ok(session)
}

async fn answer(session: &mut Connection) -> Result<ServerMessage> {
    loop {
        let text = timeout(PATIENCE, session.from_server.recv()).await?.context("an answer")??;
        let envelope = decode::<ServerMessage>(text.as_bytes()).map_err(|(_, error)| error)?;
        // What comes without a number is news of coins.
        if envelope.id.is_some() {
            return Ok(envelope.body);
        }
    }
}

async fn subscribe(session: &mut Connection, accounts: &[JointAccount]) -> Result<()> {
    let keys = accounts.iter().map(|account| SubscriptionKey::Account(account.id())).collect();
    let records: BTreeMap<_, _> =
        accounts.iter().map(|account| (account.id(), account.record().clone())).collect();
    let message = ClientMessage::UTXOSubscribe { keys, accounts: records, since: None };
    session.to_server.send(encode_text(Some(2), &message)).await?;
    let answer = answer(session).await?;
    let ServerMessage::UTXOSubscribed { results, .. } = &answer else { bail!("{answer:?}") };
    let refused = results.iter().find(|result| !matches!(result.outcome, KeyOutcome::Snapshot { .. }));
    ensure!(refused.is_none(), "{refused:?}");
    Ok(())
}
