//! WebSocket to a bridge: text frames, subprotocol `quorate.2`.

use super::{CHANNEL_FRAMES_MAX, Connecting, Connection, Transport, TransportError, hand_over};
use crate::wire::limits;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{
    Message, client::IntoClientRequest as _, http::HeaderValue, protocol::WebSocketConfig,
};

/// A bridge's address, `ws://` or `wss://`. Several addresses are tried in turn, so that a lost bridge is not a lost
/// session.
#[derive(Clone, Debug)]
pub struct WebSocket {
    urls: Vec<String>,
    next: usize,
}

impl WebSocket {
    /// One bridge.
    pub fn new(url: impl Into<String>) -> Self {
        Self { urls: vec![url.into()], next: 0 }
    }

    /// Another bridge, for when the ones before cannot be reached.
    #[must_use]
    pub fn or(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
        self
    }
}

impl Transport for WebSocket {
    fn connect(&mut self) -> Connecting {
        let url = self.urls.get(self.next % self.urls.len()).cloned().unwrap_or_default();
        self.next = self.next.wrapping_add(1);
        Box::pin(connect(url))
    }
}

async fn connect(url: String) -> Result<Connection, TransportError> {
    let mut request = url.as_str().into_client_request().map_err(TransportError::broken)?;
    let protocol = HeaderValue::from_static(limits::PROTOCOL);
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
    // The crate's own default provider is a process-wide choice; taking it twice is harmless.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let config = WebSocketConfig::default()
        .max_message_size(Some(limits::FRAME_BYTES_MAX))
        .max_frame_size(Some(limits::FRAME_BYTES_MAX));
    let (socket, _) = tokio_tungstenite::connect_async_with_config(request, Some(config), true)
        .await
        .map_err(TransportError::broken)?;
    let (mut sink, mut stream) = socket.split();
    let (to_server, mut outgoing) = mpsc::channel::<String>(CHANNEL_FRAMES_MAX);
    let (incoming, from_server) = mpsc::channel(CHANNEL_FRAMES_MAX);
    tokio::spawn(async move {
        // What the driver has no room for yet. Sending goes on meanwhile: the driver may be waiting for just that.
        let mut read = None;
        loop {
            tokio::select! {
                frame = outgoing.recv() => {
                    let Some(text) = frame else { break };
                    if sink.send(Message::text(text)).await.is_err() {
                        break;
                    }
                }
                room = incoming.reserve(), if read.is_some() => {
                    if !hand_over(room, &mut read) {
                        break;
                    }
                }
                message = stream.next(), if read.is_none() => {
                    read = Some(match message {
                        Some(Ok(Message::Text(text))) => Ok(text.as_str().to_owned()),
                        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_))) => continue,
                        Some(Ok(Message::Close(_))) | None => Err(TransportError::Closed),
                        Some(Err(error)) => Err(TransportError::broken(error)),
                    });
                }
            }
        }
        let _closing = sink.close().await;
    });
    Ok(Connection { to_server, from_server })
}
