//! The native client: a tokio driver around [`crate::session::Session`], over a WebSocket to a bridge or QUIC straight to a node.
//!
//! ```no_run
//! # async fn example(federation: quorate::Federation) -> Result<(), Box<dyn std::error::Error>> {
//! use quorate::{account::AccountPolicy, client::{Client, WebSocket}};
//! use quorate::wallet::{Destination, PaymentRequest, SecretWords, Wallet};
//!
//! let network = federation.network();
//! let wallet = Wallet::new(federation, &SecretWords::generate()?, 0, AccountPolicy::default(), None)?;
//! let client = Client::start(wallet, WebSocket::new("ws://127.0.0.1:9000"));
//! client.ready().await?;
//! let to = Destination::parse("bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw", network)?;
//! let receipt = client.pay(PaymentRequest::new(to).exact(bitcoin::Amount::from_sat(5_000))).await?;
//! println!("{} is final", receipt.txid);
//! # Ok(())
//! # }
//! ```

mod driver;
pub mod quic;
mod websocket;

pub use driver::{Client, ClientError, Receipt};
pub use quic::{Quic, TlsError, TlsIdentity};
pub use websocket::{WebSocket, fetch_federation};

use std::{future::Future, pin::Pin};
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

impl TransportError {
    pub(crate) fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// What opening a connection gives.
pub type Connecting = Pin<Box<dyn Future<Output = Result<Connection, TransportError>> + Send>>;

/// A way to a server.
pub trait Transport: Send + 'static {
    /// Opens a new connection.
    fn connect(&mut self) -> Connecting;
}
