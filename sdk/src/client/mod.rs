//! The client: a driver around [`crate::session::Session`], over a WebSocket to a bridge or, natively, QUIC straight
//! to a node.
//!
//! It runs on tokio with the feature `native`, and on the event loop of a JavaScript runtime with the feature `web`.
//!
//! ```no_run
//! # async fn example(federation: quorate::Federation) -> Result<(), Box<dyn std::error::Error>> {
//! use quorate::client::{Client, WebSocket};
//! use quorate::wallet::{AccountOptions, Destination, PaymentRequest, SecretWords, Wallet};
//!
//! let network = federation.network();
//! let wallet = Wallet::new(federation, &SecretWords::generate()?, &AccountOptions::default(), None)?;
//! let client = Client::start(wallet, WebSocket::new("ws://127.0.0.1:9000"));
//! client.ready().await?;
//! let to = Destination::parse("bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw", network)?;
//! let receipt = client.pay(PaymentRequest::new(to).exact(bitcoin::Amount::from_sat(5_000))).await?;
//! println!("{} is final", receipt.txid);
//! # Ok(())
//! # }
//! ```

mod calls;
mod driver;
mod error;
#[cfg(not(target_arch = "wasm32"))]
mod quic;
mod runtime;
mod store;
#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;
#[cfg(target_arch = "wasm32")]
mod web;
#[cfg(not(target_arch = "wasm32"))]
mod websocket;

pub use calls::Client;
pub use error::{ClientError, Receipt};
pub use runtime::{MaybeSend, PlatformFuture};
pub use store::{Saving, Store, StoreError};
#[cfg(target_arch = "wasm32")]
pub use web::{SocketFactory, WebSocket};
#[cfg(not(target_arch = "wasm32"))]
pub use websocket::WebSocket;
#[cfg(not(target_arch = "wasm32"))]
pub use {
    quic::Quic,
    quorate_quic::{TlsError, TlsIdentity},
};

use crate::{
    FederationDocument,
    wire::{ClientMessage, ServerMessage, WireError, decode, encode_text, limits},
};
use std::time::Duration;
use tokio::sync::mpsc;

/// Frames under way in each direction before the other side has to wait.
pub const CHANNEL_FRAMES_MAX: usize = 256;

/// An open connection: text frames out and in. It is closed when either end is dropped.
#[derive(Debug)]
pub struct Connection {
    /// Frames to the server.
    pub to_server: mpsc::Sender<String>,
    /// Frames from the server; the last item says why it ended.
    pub from_server: mpsc::Receiver<Result<String, TransportError>>,
}

/// A connection that could not be opened or broke. The client connects again by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// It could not be opened, or broke.
    #[error("{0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server closed it.
    #[error("closed by the server")]
    Closed,
    /// Nothing came within the time that the client waits.
    #[error("the server does not answer")]
    Silent,
    /// There is nobody to connect to.
    #[error("no server is configured")]
    NoServer,
    /// The server refuses, or what it said cannot be read.
    #[error(transparent)]
    Refused(#[from] WireError),
}

impl TransportError {
    /// For transports of your own: whatever the connection broke with.
    ///
    /// ```
    /// use quorate::client::TransportError;
    ///
    /// let error = TransportError::broken("the radio is off");
    /// assert_eq!(error.to_string(), "the radio is off");
    /// ```
    pub fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}

/// Gives the driver what a socket has read, once there is room; `false` if that was the last, or the driver is gone.
fn hand_over(
    room: Result<mpsc::Permit<'_, Result<String, TransportError>>, mpsc::error::SendError<()>>,
    read: &mut Option<Result<String, TransportError>>,
) -> bool {
    let (Ok(room), Some(item)) = (room, read.take()) else { return false };
    let goes_on = item.is_ok();
    room.send(item);
    goes_on
}

/// What opening a connection gives.
pub type Connecting = PlatformFuture<Result<Connection, TransportError>>;

/// A way to a server.
pub trait Transport: MaybeSend + 'static {
    /// Opens a new connection.
    fn connect(&mut self) -> Connecting;
}

/// A bridge that works answers within a second; this is for slow networks, as the driver allows for connecting.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Wait before a bridge is asked again that says so.
const FETCH_AGAIN: Duration = Duration::from_millis(250);

/// Asks a bridge for its federation document. Verify it against the id that you pin.
///
/// # Errors
/// The bridge cannot be reached, does not answer within 15 seconds, says all the time that it cannot now, or answers
/// something else.
pub async fn fetch_federation(transport: &mut dyn Transport) -> Result<FederationDocument, TransportError> {
    let end = runtime::Instant::now() + FETCH_TIMEOUT;
    loop {
        let answer = tokio::select! {
            answer = ask_for_document(transport) => answer,
            () = runtime::sleep_until(end) => return Err(TransportError::Silent),
        };
        // A bridge whose nodes have just started has nobody to ask yet.
        let passes = matches!(&answer, Err(TransportError::Refused(error)) if error.retry);
        let next = runtime::Instant::now() + FETCH_AGAIN;
        if !passes || next >= end {
            return answer;
        }
        runtime::sleep_until(next).await;
    }
}

async fn ask_for_document(transport: &mut dyn Transport) -> Result<FederationDocument, TransportError> {
    let mut connection = transport.connect().await?;
    let hello = ClientMessage::Hello {
        protocol: limits::PROTOCOL_VERSION,
        federation: None,
        agent: concat!("quorate/", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    for (id, message) in [(1, hello), (2, ClientMessage::FederationQuery)] {
        let closed = |_| TransportError::Closed;
        connection.to_server.send(encode_text(Some(id), &message)).await.map_err(closed)?;
    }
    while let Some(text) = connection.from_server.recv().await {
        match decode::<ServerMessage>(text?.as_bytes()).map_err(|(_, error)| error)?.body {
            ServerMessage::Federation { document } => return Ok(*document),
            ServerMessage::Error { error } => return Err(error.into()),
            ServerMessage::Welcome { .. }
            | ServerMessage::UTXOSubscribed { .. }
            | ServerMessage::UTXOUnsubscribed { .. }
            | ServerMessage::UTXOStateResponse { .. }
            | ServerMessage::UTXOStateNotification { .. }
            | ServerMessage::TransactionStatus { .. }
            | ServerMessage::SignRequest { .. }
            | ServerMessage::AccountCertified { .. }
            | ServerMessage::Headers { .. }
            | ServerMessage::Proof { .. }
            | ServerMessage::FeeRate { .. }
            | ServerMessage::Tip { .. }
            | ServerMessage::Gap { .. }
            | ServerMessage::GoingAway { .. }
            | ServerMessage::Pong => {}
        }
    }
    Err(TransportError::Closed)
}
