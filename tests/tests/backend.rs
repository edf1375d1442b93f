//! What a node asks of Bitcoin Core, on a real daemon: fees, what the mempool lacks, packages.

use anyhow::{Context as _, Result, ensure};
use bitcoin::{
    Address, Amount, BlockHash, FeeRate, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut,
    Txid, Witness, absolute::LockTime, hashes::Hash as _, transaction::Version,
};
use quorate_node::{
    chain::{Bitcoind, Chain as _, ChainError, Fees, birthday},
    config::ChainConfig,
};
use quorate_tests::{
    bitcoind,
    daemon::{COOKIE, Daemon},
};
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_read_again_when_the_daemon_has_started_anew() -> Result<()> {
    let Some(binary) = bitcoind() else {
        eprintln!("skipped: no bitcoind, neither in BITCOIND_EXE nor on the PATH");
        return Ok(());
    };
    let mut daemon = Daemon::with_cookie(&binary)?;
    daemon.ready().await?;
    daemon.mine(3).await?;
    daemon.restart(&COOKIE).await?;
    ensure!(daemon.height().await? == 3);
    ensure!(daemon.rpc.doubt().await?.is_none(), "regtest has no clock");

    let stranger = Bitcoind::new(&daemon.url(), "somebody", "a secret word");
    let refused = stranger.tip().await.expect_err("not let in");
    ensure!(matches!(&refused, ChainError::Unauthorized(_)), "{refused}");
    ensure!(refused.to_string().contains("somebody") && !refused.to_string().contains("secret"));
    ensure!(!format!("{stranger:?}").contains("secret"));
    let cookie = Some("/nowhere/.cookie".into());
    let lost = Bitcoind::open(&ChainConfig { cookie, ..ChainConfig::open(&daemon.url()) });
    let refused = lost.tip().await.expect_err("no cookie").to_string();
    ensure!(refused.contains("/nowhere/.cookie"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn heights_coins_and_birthdays_are_those_of_the_chain() -> Result<()> {
    let Some(binary) = bitcoind() else {
        eprintln!("skipped: no bitcoind, neither in BITCOIND_EXE nor on the PATH");
        return Ok(());
    };
    let daemon = Daemon::start(&binary, &[])?;
    daemon.ready().await?;
    daemon.mine(5).await?;
    let hash = daemon.rpc.hash_at(2).await?.context("a block")?;
    ensure!(daemon.rpc.header(hash).await?.1 == 2);
    ensure!(daemon.rpc.hash_at(6).await?.is_none(), "above the tip");
    let reward = daemon.rpc.block(hash).await?.txdata.first().context("a coinbase")?.compute_txid();
    let coin = daemon.rpc.coin(OutPoint { txid: reward, vout: 0 }).await?.context("a coin")?;
    ensure!((coin.height, coin.hash, coin.coinbase) == (2, hash, true));
    let found = birthday(&daemon.rpc, Network::Regtest).await?;
    ensure!(found.height == 0 && found.is_sound(Network::Regtest));
    let refused = birthday(&daemon.rpc, Network::Signet).await.expect_err("it is on regtest");
    ensure!(refused.to_string().contains("not on signet"), "{refused}");
    Ok(())
}

/// Answers HTTP requests one after the other with a status line and a body; gives its address.
async fn served(answer: impl Fn(&str) -> (&'static str, String) + Send + 'static) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = String::new();
            // The body is the last thing that comes, in braces or brackets.
            while !request.trim_end().ends_with(['}', ']']) {
                let mut part = [0; 4_096];
                let Ok(count @ 1..) = socket.read(&mut part).await else { break };
                request.push_str(&String::from_utf8_lossy(part.get(..count).unwrap_or_default()));
            }
            let (status, body) = answer(&request);
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _client_gone = socket.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_a_daemon_is_told_as_it_is() -> Result<()> {
    let url = served(|_| ("503 Service Unavailable", "Work queue depth exceeded".to_owned())).await?;
    let refused = Bitcoind::new(&url, "", "").tip().await.expect_err("no daemon").to_string();
    ensure!(refused.contains("503 Service Unavailable: Work queue depth exceeded"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_cannot_be_told_the_known_tip_is_asked_without() -> Result<()> {
    let tip = BlockHash::all_zeros();
    // As Bitcoin Core 28 and 29: the second parameter is answered with the help text.
    let url = served(move |request| {
        if request.contains(&tip.to_string()) {
            let error = json!({"code": -1, "message": "waitfornewblock ( timeout )"});
            ("500 Internal Server Error", json!({"result": null, "error": error, "id": 1}).to_string())
        } else {
            let result = json!({"hash": tip, "height": 7});
            ("200 OK", json!({"result": result, "error": null, "id": 1}).to_string())
        }
    })
    .await?;
    ensure!(Bitcoind::new(&url, "", "").wait_for_tip(tip).await? == tip);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_questions_are_few_requests_and_each_has_its_own_answer() -> Result<()> {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    // Of each request the last one is answered first; the mempool has those whose id is even.
    let url = served(move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let calls: Vec<Value> = serde_json::from_str(body).unwrap_or_default();
        let absent = json!({"code": -5, "message": "Transaction not in mempool"});
        let reply = |call: &Value| {
            let id = call["id"].as_u64().unwrap_or_default();
            let error = if id.is_multiple_of(2) { Value::Null } else { absent.clone() };
            json!({"result": {}, "error": error, "id": id})
        };
        ("200 OK", Value::Array(calls.iter().rev().map(reply).collect()).to_string())
    })
    .await?;
    let txids: Vec<Txid> = (0..120).map(|byte| Txid::from_byte_array([byte; 32])).collect();
    let missing = Bitcoind::new(&url, "", "").missing(txids.clone()).await?;
    ensure!(missing == txids.into_iter().skip(1).step_by(2).collect(), "{missing:?}");
    ensure!(requests.load(Ordering::Relaxed) == 3);

    let reply = json!([{"result": {}, "error": null, "id": 8}]).to_string();
    let url = served(move |_| ("200 OK", reply.clone())).await?;
    let refused = Bitcoind::new(&url, "", "").missing(vec![Txid::all_zeros()]).await;
    ensure!(refused.is_err_and(|error| error.to_string().contains("nobody asked for")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_on_a_connection_that_is_closed_in_that_moment_is_made_again_on_a_new_one() -> Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const AT_ONCE: usize = 2;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let answer = json!({"result": BlockHash::all_zeros(), "error": null, "id": 1}).to_string();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
    // One answer on each connection, which is then kept until something more is asked on it. The first ones are there
    // at once, so that several are closed later; whichever of them the client uses first.
    let server = tokio::spawn(async move {
        let mut first = Vec::new();
        for _ in 0..AT_ONCE {
            first.push(listener.accept().await?.0);
        }
        for mut socket in first {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                if socket.read(&mut request).await? > 0 {
                    socket.write_all(answer.as_bytes()).await?;
                }
                socket.read(&mut request).await
            });
        }
        let (mut socket, _) = listener.accept().await?;
        ensure!(socket.read(&mut [0; 4_096]).await? > 0);
        socket.write_all(answer.as_bytes()).await?;
        // With what has not been read it would be reset, and its answer with it.
        Ok(socket)
    });
    let daemon = Bitcoind::new(&url, "", "");
    let (one, two) = tokio::join!(daemon.tip(), daemon.tip());
    ensure!([one?, two?, daemon.tip().await?] == [BlockHash::all_zeros(); 3]);
    server.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_has_few_requests_at_a_time_and_is_asked_again_when_it_has_no_room() -> Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const AT_A_TIME: usize = 4;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    // There is no such coin.
    let body = json!({"result": null, "error": null, "id": 1}).to_string();
    let answer =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let busy = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 5\r\n\r\nbusy!";
    let (requests, open, most) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // Answers go out when so many requests are there; the first of them say that there is no room.
    let all_there = Arc::new(tokio::sync::Barrier::new(AT_A_TIME));
    let (counted, reached) = (requests.clone(), most.clone());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (counted, open, reached) = (counted.clone(), open.clone(), reached.clone());
            let (all_there, answer) = (all_there.clone(), answer.clone());
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                let _client_gone = socket.read(&mut request).await;
                let number = counted.fetch_add(1, Ordering::SeqCst);
                reached.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                all_there.wait().await;
                open.fetch_sub(1, Ordering::SeqCst);
                let answer = if number < AT_A_TIME { busy } else { &answer };
                let _client_gone = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    let daemon = Bitcoind::new(&url, "", "");
    let asked = (0..3 * AT_A_TIME).map(|_| daemon.coin(OutPoint::null()));
    for coin in futures_util::future::join_all(asked).await {
        ensure!(coin?.is_none());
    }
    ensure!(requests.load(Ordering::SeqCst) == 4 * AT_A_TIME);
    ensure!(most.load(Ordering::SeqCst) == AT_A_TIME);
    Ok(())
}
