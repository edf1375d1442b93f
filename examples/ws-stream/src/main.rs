//! A plain WebSocket client, without the SDK: subscribes to an address and prints notifications.
//!
//! `ws-stream ws://127.0.0.1:9000 bcrt1p…`: what any language can do with a WebSocket and JSON. It verifies nothing;
//! a wallet does.

use anyhow::{Context as _, Result};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _, http::HeaderValue};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the program's purpose")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(address)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: ws-stream WS-URL ADDRESS");
    };
    let mut request = url.into_client_request().context("the first argument is a ws:// address")?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("quorate.2"));
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.context("cannot connect")?;
    let hello = json!({"id": 1, "type": "Hello", "protocol": 2, "agent": "ws-stream"});
    let subscribe = json!({"id": 2, "type": "UTXOSubscribe", "keys": [{"address": address}, "tip"]});
    for message in [hello, subscribe] {
        socket.send(Message::text(message.to_string())).await?;
    }
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message? {
            let message: Value = serde_json::from_str(&text)?;
            println!("{}", serde_json::to_string_pretty(&message)?);
        }
    }
    Ok(())
}
