//! The wire protocol from outside: the document and the types agree, and bad input gets its own error.

use anyhow::{Context as _, Result};
use bitcoin::Amount;
use futures_util::{SinkExt as _, StreamExt as _};
use quorate::{
    client::{ClientError, Quic, TlsIdentity, Transport as _, WebSocket},
    federation::Federation,
    proposal::Proposal,
    wallet::{SecretWords, WalletError},
    wire::{ClientMessage, ErrorCode, Message as _, ServerMessage, WireError, decode, encode_text, limits},
};
use quorate_tests::{
    Cluster, PATIENCE,
    wallets::{federation, fund, nobody, open_wallet, request, sole_spend, wait_spendable},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");

#[test]
fn the_asyncapi_document_describes_exactly_the_message_types() -> Result<()> {
    let text = include_str!("../../docs/asyncapi.json");
    let document: Value = serde_json::from_str(text)?;
    let listed = |operation: &str| -> Result<Vec<String>> {
        let messages = document["operations"][operation]["messages"].as_array().context("messages")?;
        let name = |message: &Value| Some(message["$ref"].as_str()?.rsplit('/').next()?.to_owned());
        messages.iter().map(|message| name(message).context("a reference")).collect()
    };
    assert_eq!(listed("fromWallet")?, ClientMessage::TYPES);
    assert_eq!(listed("toWallet")?, ServerMessage::TYPES);
    let mut examples = 0;
    for (name, message) in document["components"]["messages"].as_object().context("messages")? {
        assert_eq!(message["payload"]["properties"]["type"]["const"], **name);
        for example in message["examples"].as_array().into_iter().flatten() {
            let payload = example["payload"].to_string();
            let known = decode::<ClientMessage>(payload.as_bytes()).is_ok()
                || decode::<ServerMessage>(payload.as_bytes()).is_ok();
            assert!(known, "the example of {name} is a message");
            examples += 1;
        }
    }
    assert!(examples > 10);
    Ok(())
}

/// Sends raw frames to the bridge and gives the errors that come back.
async fn errors(cluster: &Cluster, frames: Vec<Message>) -> Result<Vec<WireError>> {
    let (mut socket, _) = tokio_tungstenite::connect_async(cluster.url()).await?;
    let count = frames.len();
    for frame in frames {
        socket.send(frame).await?;
    }
    let mut errors = Vec::new();
    while errors.len() < count {
        let Some(Ok(Message::Text(text))) = timeout(PATIENCE, socket.next()).await? else { break };
        if let Ok(envelope) = decode::<ServerMessage>(text.as_bytes())
            && let ServerMessage::Error { error } = envelope.body
        {
            errors.push(error);
        } else {
            break;
        }
    }
    Ok(errors)
}

fn hello(federation: &str) -> Message {
    Message::text(
        json!({"id": 1, "type": "Hello", "protocol": limits::PROTOCOL_VERSION, "federation": federation})
            .to_string(),
    )
}

async fn quic_errors(federation: &Federation, cluster: &Cluster, frames: Vec<String>) -> Result<ErrorCode> {
    let identity = TlsIdentity::read(&cluster.files.client)?;
    let nodes = cluster.files.addresses.iter().map(|node| (node.id, node.address)).collect();
    let mut connection = Quic::new(&identity, nodes)?.connect().await?;
    let hello = ClientMessage::Hello {
        protocol: limits::PROTOCOL_VERSION,
        federation: Some(federation.id()),
        agent: String::new(),
    };
    connection.to_server.send(encode_text(Some(1), &hello)).await?;
    for frame in frames {
        connection.to_server.send(frame).await?;
    }
    loop {
        let text = timeout(PATIENCE, connection.from_server.recv()).await?.context("an answer")??;
        if let Ok(envelope) = decode::<ServerMessage>(text.as_bytes())
            && let ServerMessage::Error { error } = envelope.body
        {
            return Ok(error.code);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_get_their_own_errors() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let ping = || Message::text(json!({"id": 7, "type": "Ping"}).to_string());
    let code = async |frames: Vec<Message>| -> Result<ErrorCode> {
        Ok(errors(&cluster, frames).await?.first().context("an error")?.code)
    };
    assert_eq!(code(vec![ping()]).await?, ErrorCode::HelloExpected);
    assert_eq!(code(vec![hello(&"00".repeat(32))]).await?, ErrorCode::WrongFederation);
    assert_eq!(code(vec![Message::text("{")]).await?, ErrorCode::MalformedMessage);
    assert_eq!(code(vec![Message::binary(vec![1, 2])]).await?, ErrorCode::MalformedMessage);
    assert_eq!(code(vec![Message::text(r#"{"type":"Teleport"}"#)]).await?, ErrorCode::UnknownMessageType);
    // Over the frame limit the WebSocket itself is closed.
    let huge = Message::text("x".repeat(limits::FRAME_BYTES_MAX + 1));
    assert_eq!(errors(&cluster, vec![huge]).await.unwrap_or_default().len(), 0);

    let vote = json!({"type": "SuccessionPull", "epoch": 1}).to_string();
    assert_eq!(quic_errors(&federation, &cluster, vec![vote]).await?, ErrorCode::WrongRole);
    let unknown = json!({"type": "Teleport"}).to_string();
    assert_eq!(quic_errors(&federation, &cluster, vec![unknown]).await?, ErrorCode::UnknownMessageType);

    // A certificate of another federation does not get past the handshake.
    let other = tempfile::tempdir()?;
    let plan = quorate_node::provision::NewFederation {
        nodes: 4,
        network: bitcoin::Network::Regtest,
        birthday: quorate::headers::Checkpoint::genesis(bitcoin::Network::Regtest),
        first_port: None,
        chain: vec![quorate_node::config::ChainConfig::open("")],
    };
    let stranger = quorate_node::provision::federation(&other.path().join("other"), &plan)?;
    let identity = TlsIdentity::read(&stranger.client)?;
    let nodes = cluster.files.addresses.iter().map(|node| (node.id, node.address)).collect();
    assert!(Quic::new(&identity, nodes)?.connect().await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_payments_get_their_own_errors() -> Result<()> {
    let cluster = Cluster::start(NODE, 4).await?;
    let federation = federation(&cluster).await?;
    let words = SecretWords::generate()?;
    let wallet = open_wallet(&federation, &words, WebSocket::new(cluster.url())).await?;
    let own = wallet.next_address().await?;
    let coin = Amount::from_sat(100_000);
    fund(&cluster.chain, std::slice::from_ref(&own), 1, coin)?;
    wait_spendable(&wallet, coin).await?;

    let refused = |result: Result<quorate::client::Receipt, ClientError>| match result {
        Err(ClientError::Wallet(error)) => error,
        other => panic!("the wallet refuses, not {other:?}"),
    };
    let pay = async |amount: u64| wallet.pay(request(&own, Amount::from_sat(amount)).expect("regtest")).await;
    assert!(matches!(refused(pay(100).await), WalletError::Dust { .. }));
    assert!(matches!(refused(pay(100_000).await), WalletError::InsufficientFunds { .. }));
    let expensive =
        request(&own, Amount::from_sat(50_000))?.fee_rate(bitcoin::FeeRate::from_sat_per_vb_u32(5_000));
    assert!(matches!(refused(wallet.pay(expensive).await), WalletError::FeeRate { .. }));
    assert!(matches!(SecretWords::parse("one two three"), Err(WalletError::Words(_))));

    // A proposal whose PSBT was changed after it was authorised.
    let receipt = timeout(PATIENCE, wallet.pay(request(&own, Amount::from_sat(20_000))?)).await??;
    let spent_again = sole_spend(receipt.proof.outpoints().next().context("an input")?, coin, &own);
    let forged = timeout(PATIENCE, wallet.attest(spent_again)).await?;
    assert!(matches!(forged, Err(ClientError::Rejected { .. })), "{forged:?}");

    let proposal = Proposal::Sole { transaction: cluster.chain.blocks()[0].txdata[0].clone() };
    let message = ClientMessage::TransactionBroadcast { proposal, account: None };
    let frames = vec![hello(&federation.id().to_string()), Message::text(encode_text(Some(3), &message))];
    let (mut socket, _) = tokio_tungstenite::connect_async(cluster.url()).await?;
    for frame in frames {
        socket.send(frame).await?;
    }
    let rejected = async {
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Text(text) if text.contains("\"rejected\"")) {
                return true;
            }
        }
        false
    };
    assert!(timeout(PATIENCE, rejected).await?, "a coinbase transaction is no payment");
    cluster.chain.mine(1, &nobody())?;
    Ok(())
}
