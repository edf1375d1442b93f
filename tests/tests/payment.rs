//! Payments on a federation of real processes: joint and sole custody, both transports, restore, double spends.

use anyhow::{Context as _, Result};
use bitcoin::{Amount, OutPoint};
use futures_util::StreamExt as _;
use quorate::{
    client::{ClientError, Quic, TlsIdentity, WebSocket},
    finality::FinalityKind,
    session::{Event, PaymentState},
    wallet::SecretWords,
};
use quorate_tests::{
    Cluster, PATIENCE,
    wallets::{
        Disk, PAYMENT_PATIENCE, federation, fund, nobody, open_wallet, pay_out, reopen_wallet, request,
        sole_spend, wait_spendable,
    },
};
use tokio::time::timeout;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");
const COIN: Amount = Amount::from_sat(1_000_000);

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::wildcard_enum_match_arm, reason = "the story of one payment, from end to end")]
async fn a_payee_verifies_finality_and_then_the_block() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let payer = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    // The payee speaks QUIC straight to a node.
    let identity = TlsIdentity::read(&cluster.files.client)?;
    let nodes = cluster.files.addresses.iter().map(|node| (node.id, node.address)).collect();
    let payee_words = SecretWords::generate()?;
    let payee = open_wallet(&federation, &payee_words, Quic::new(&identity, nodes)?).await?;

    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], 2, COIN)?;
    wait_spendable(&payer, COIN * 2).await?;
    let to = payee.next_address().await?;
    let mut events = payee.events();
    let amount = Amount::from_sat(1_500_000);
    let receipt = timeout(PAYMENT_PATIENCE, payer.pay(request(&to, amount)?)).await??;
    assert_eq!(receipt.kind, FinalityKind::Enforced);
    assert_eq!(receipt.proof.transaction().input.len(), 2, "both coins are needed");

    let received = async {
        loop {
            match events.next().await.context("the payee has ended")? {
                Event::Received { txid, amount, kind, .. } => {
                    return Ok::<_, anyhow::Error>((txid, amount, kind));
                }
                Event::ServerMisbehaved { what } => anyhow::bail!("{what}"),
                _other => {}
            }
        }
    };
    assert_eq!(timeout(PATIENCE, received).await??, (receipt.txid, amount, FinalityKind::Enforced));
    wait_spendable(&payee, amount).await?;

    // Unconfirmed but final money can be paid on at once.
    let back = payer.next_address().await?;
    let onward = timeout(PAYMENT_PATIENCE, payee.pay(request(&back, Amount::from_sat(700_000))?)).await??;
    assert_eq!(onward.proof.transaction().input[0].previous_output.txid, receipt.txid);

    quorate_tests::eventually("both are in the mempool", || cluster.chain.mempool().len() == 2).await?;
    cluster.chain.mine(1, &nobody())?;
    let confirmed = move |session: &quorate::session::Session| {
        let entry = session.wallet().history().iter().find(|entry| entry.txid == receipt.txid);
        entry.and_then(|entry| entry.block)
    };
    let block = timeout(PATIENCE, payee.wait(confirmed)).await??;
    assert_eq!(block.height, cluster.chain.height());

    // Twelve words restore everything.
    let before = payee.balance().await?;
    drop(payee);
    let restored = open_wallet(&federation, &payee_words, WebSocket::new(cluster.url())).await?;
    wait_spendable(&restored, before.spendable).await?;
    assert_eq!(restored.balance().await?, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn coins_of_sole_custody_become_final_by_attestation() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let wallet = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let to = wallet.next_address().await?;
    cluster.chain.mine(101, &nobody())?;
    let output = bitcoin::TxOut { value: COIN, script_pubkey: nobody() };
    let parent = pay_out(&cluster.chain, 1, vec![output])?;
    cluster.chain.mine(1, &nobody())?;
    let coin = OutPoint { txid: parent.compute_txid(), vout: 0 };

    let receipt = timeout(PAYMENT_PATIENCE, wallet.attest(sole_spend(coin, COIN, &to))).await??;
    assert_eq!(receipt.kind, FinalityKind::Attested);

    let other = wallet.next_address().await?;
    let conflict = sole_spend(coin, COIN, &other);
    let refused = timeout(PAYMENT_PATIENCE, wallet.attest(conflict)).await?;
    assert!(matches!(refused, Err(ClientError::Rejected { .. })), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_wallets_with_the_same_coin_never_both_become_final() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let words = SecretWords::generate()?;
    let first = open_wallet(&federation, &words, WebSocket::new(cluster.url())).await?;
    let second = open_wallet(&federation, &words, WebSocket::new(cluster.url())).await?;
    let payee = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    const ROUNDS: usize = 8;
    let own = first.next_address().await?;
    fund(&cluster.chain, &[own], ROUNDS, COIN)?;
    wait_spendable(&first, COIN * 8).await?;
    wait_spendable(&second, COIN * 8).await?;
    for round in 0..ROUNDS {
        let to = payee.next_address().await?;
        // Both wallets choose among the same coins by the same rules; the amounts differ, so the transactions do.
        let amount = Amount::from_sat(900_000 + u64::try_from(round)?);
        let one = timeout(std::time::Duration::from_secs(3), first.pay(request(&to, amount)?));
        let two = timeout(
            std::time::Duration::from_secs(3),
            second.pay(request(&to, amount - Amount::from_sat(50))?),
        );
        let (one, two) = tokio::join!(one, two);
        let finals: Vec<_> = [one, two].into_iter().flatten().flatten().collect();
        if let [one, two] = finals.as_slice() {
            let inputs = |receipt: &quorate::client::Receipt| {
                receipt.proof.outpoints().collect::<std::collections::BTreeSet<_>>()
            };
            assert!(inputs(one).is_disjoint(&inputs(two)), "two final transactions spend one coin");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_payment_frees_its_coin_for_another() -> Result<()> {
    let mut cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let payer = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], 1, COIN)?;
    wait_spendable(&payer, COIN).await?;
    let to = payer.next_address().await?;
    // Two of four are down: votes come in, but no certificate.
    cluster.kill(3)?;
    cluster.kill(4)?;
    let mut events = payer.events();
    let amount = Amount::from_sat(500_000);
    let txid = payer.send(request(&to, amount)?).await?;
    let voting = async {
        while let Some(event) = events.next().await {
            if matches!(event, Event::Payment { state: PaymentState::Voting { .. }, .. }) {
                return;
            }
        }
    };
    timeout(PATIENCE, voting).await.context("no vote comes in")?;
    payer.cancel(txid).await?;
    cluster.start_node(3, None)?;
    cluster.start_node(4, None)?;
    let ended = async {
        while let Some(event) = events.next().await {
            if let Event::Payment { txid: other, state } = event
                && other == txid
                && !matches!(state, PaymentState::Voting { .. })
            {
                return Some(state);
            }
        }
        None
    };
    let ended = timeout(PATIENCE, ended).await.context("it does not end")?.context("an end")?;
    assert!(matches!(ended, PaymentState::Failed { .. } | PaymentState::Rejected { .. }), "{ended:?}");
    let other = timeout(PAYMENT_PATIENCE, payer.pay(request(&to, amount / 2)?)).await??;
    assert_ne!(other.txid, txid, "the same coin has paid something else");
    let error = payer.cancel(other.txid).await.expect_err("it is final");
    assert!(matches!(error, ClientError::Wallet(_)), "{error}");
    Ok(())
}

/// A page is closed at every state that its payment comes to; the next page ends the payment and knows everything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_is_closed_in_the_middle_of_a_payment_ends_it_when_it_is_opened_again() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let (words, disk) = (SecretWords::generate()?, Disk::default());
    let open = || reopen_wallet(&federation, &words, WebSocket::new(cluster.url()), &disk);
    let mut payer = open()?;
    timeout(PATIENCE, payer.ready()).await??;
    let payee = open_wallet(&federation, &SecretWords::generate()?, WebSocket::new(cluster.url())).await?;
    let own = payer.next_address().await?;
    fund(&cluster.chain, &[own], 6, COIN)?;
    wait_spendable(&payer, COIN * 6).await?;

    let stops: [fn(&PaymentState) -> bool; 3] = [
        |state| matches!(state, PaymentState::Submitted),
        |state| matches!(state, PaymentState::Voting { .. }),
        |state| matches!(state, PaymentState::Approved),
    ];
    for (count, stop) in (1..).zip(stops) {
        let mut events = payer.events();
        let to = payee.next_address().await?;
        let txid = payer.send(request(&to, Amount::from_sat(10_000))?).await?;
        let reached = async {
            while let Some(event) = events.next().await {
                if matches!(&event, Event::Payment { txid: other, state } if *other == txid && stop(state)) {
                    return Ok(());
                }
            }
            anyhow::bail!("the client has ended")
        };
        timeout(PATIENCE, reached).await??;
        drop((payer, events));
        payer = open()?;
        let known = payer.inspect(move |session| session.payments().any(|(open, _)| open == txid)).await?;
        let ended = move |session: &quorate::session::Session| session.wallet().proof(txid).map(drop);
        timeout(PAYMENT_PATIENCE, payer.wait(ended)).await??;
        assert!(known || stop(&PaymentState::Approved), "a payment that was only submitted is still open");
        wait_spendable(&payee, Amount::from_sat(10_000) * count).await?;
    }

    // Without a server, what is shown is what was known.
    let (balance, history) =
        payer.inspect(|session| (session.wallet().balance(), session.wallet().history().to_vec())).await?;
    drop(payer);
    let offline = reopen_wallet(&federation, &words, WebSocket::new("ws://127.0.0.1:9"), &disk)?;
    assert_eq!(offline.balance().await?, balance);
    assert_eq!(offline.inspect(|session| session.wallet().history().to_vec()).await?, history);
    assert_eq!(history.len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_larger_than_a_frame_is_read_in_pages() -> Result<()> {
    const COINS: usize = 5_000;
    let cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let words = SecretWords::generate()?;
    let wallet = open_wallet(&federation, &words, WebSocket::new(cluster.url())).await?;
    let own = wallet.next_address().await?;
    let value = Amount::from_sat(1_000);
    let all = value * u64::try_from(COINS)?;
    wallet.close().await;
    fund(&cluster.chain, &[own], COINS, value)?;
    // Over the bridge, which learns it from the nodes, and straight from a node.
    let over_bridge = open_wallet(&federation, &words, WebSocket::new(cluster.url())).await?;
    wait_spendable(&over_bridge, all).await?;
    let identity = TlsIdentity::read(&cluster.files.client)?;
    let nodes = cluster.files.addresses.iter().map(|node| (node.id, node.address)).collect();
    let straight = open_wallet(&federation, &words, Quic::new(&identity, nodes)?).await?;
    wait_spendable(&straight, all).await?;
    cluster.connected(4).await
}
