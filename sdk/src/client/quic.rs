//! QUIC straight to a node, and the TLS identities that every QUIC connection of a federation needs.
//!
//! TLS 1.3 with client certificates of the federation's own authority on every connection (design, section 8). A node's server name
//! is `node-N.quorate`, so the stock verifier checks that the peer is the roster entry that was called. 0-RTT stays off.

use super::{CHANNEL_FRAMES_MAX, Connecting, Connection, Transport, TransportError};
use crate::{
    NodeId,
    wire::{FrameBuffer, ServerMessage, limits},
};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Time without any packet after which a connection is given up.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(6);
/// Packets that keep an unused connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Streams that a peer may have open at once; each costs memory.
pub const STREAMS_MAX: u32 = 1_024;
/// Bytes read from a stream at once.
pub const READ_BYTES: usize = 64 * 1024;

/// A certificate of the federation's authority with its key.
#[derive(Debug)]
pub struct TlsIdentity {
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Clone for TlsIdentity {
    fn clone(&self) -> Self {
        Self {
            authority: self.authority.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// Why TLS cannot be set up. The operator's files are at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("{path}: {source}")]
    Pem {
        /// The file.
        path: String,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not fit.
    #[error("certificate, key and authority do not fit together: {0}")]
    Config(String),
}

impl TlsIdentity {
    /// Reads `ca.pem`, `tls.pem` and `tls.key` from a directory, as `quorate-node federation new` writes them.
    ///
    /// # Errors
    /// A file is missing or is not PEM.
    pub fn read(directory: &Path) -> Result<Self, TlsError> {
        let at = |name: &str| directory.join(name);
        let named = |name: &str| {
            let path = at(name).display().to_string();
            move |source| TlsError::Pem { path, source }
        };
        Ok(Self {
            authority: CertificateDer::from_pem_file(at("ca.pem")).map_err(named("ca.pem"))?,
            certificate: CertificateDer::from_pem_file(at("tls.pem")).map_err(named("tls.pem"))?,
            key: PrivatePkcs8KeyDer::from_pem_file(at("tls.key")).map_err(named("tls.key"))?,
        })
    }

    /// The authority's root store.
    ///
    /// # Errors
    /// The authority's certificate is not usable.
    pub fn roots(&self) -> Result<Arc<rustls::RootCertStore>, TlsError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.clone()).map_err(config_error)?;
        Ok(Arc::new(roots))
    }

    /// Certificate and key for a rustls configuration.
    pub fn certificate(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], PrivateKeyDer::Pkcs8(self.key.clone_key()))
    }

    /// A QUIC client configuration: this identity, the stock server verifier, ALPN `quorate.1`.
    ///
    /// # Errors
    /// Certificate and key do not fit.
    pub fn client_config(&self) -> Result<quinn::ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (chain, key) = self.certificate();
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(config_error)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .map_err(config_error)?;
        tls.alpn_protocols = vec![limits::PROTOCOL.into()];
        let mut config =
            quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(config_error)?));
        config.transport_config(transport_config());
        Ok(config)
    }
}

fn config_error(error: impl std::fmt::Display) -> TlsError {
    TlsError::Config(error.to_string())
}

/// Transport parameters of every connection in a federation.
pub fn transport_config() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    let idle = quinn::IdleTimeout::try_from(IDLE_TIMEOUT).expect("ten seconds fit a QUIC varint");
    transport.max_idle_timeout(Some(idle)).keep_alive_interval(Some(KEEP_ALIVE));
    transport.max_concurrent_bidi_streams(STREAMS_MAX.into()).max_concurrent_uni_streams(0_u8.into());
    Arc::new(transport)
}

/// The server name of a node.
pub fn server_name(node: NodeId) -> String {
    format!("node-{node}.quorate")
}

/// QUIC to one node of several, in turn.
#[derive(Debug)]
pub struct Quic {
    config: quinn::ClientConfig,
    nodes: Vec<(NodeId, SocketAddr)>,
    next: usize,
}

impl Quic {
    /// Connects with an identity of role client, bridge or node to any of the nodes.
    ///
    /// # Errors
    /// The identity cannot be used.
    pub fn new(identity: &TlsIdentity, nodes: Vec<(NodeId, SocketAddr)>) -> Result<Self, TlsError> {
        Ok(Self { config: identity.client_config()?, nodes, next: 0 })
    }
}

impl Transport for Quic {
    fn connect(&mut self) -> Connecting {
        let node = self.nodes.get(self.next % self.nodes.len().max(1)).copied();
        self.next = self.next.wrapping_add(1);
        let config = self.config.clone();
        Box::pin(async move {
            let (node, address) = node.ok_or_else(|| TransportError::new("no node is configured"))?;
            connect(config, node, address).await
        })
    }
}

async fn connect(
    config: quinn::ClientConfig,
    node: NodeId,
    address: SocketAddr,
) -> Result<Connection, TransportError> {
    let local: SocketAddr =
        if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().map_err(TransportError::new)?;
    let endpoint = quinn::Endpoint::client(local).map_err(TransportError::new)?;
    let connecting =
        endpoint.connect_with(config, address, &server_name(node)).map_err(TransportError::new)?;
    let connection = connecting.await.map_err(TransportError::new)?;
    let (mut send, receive) = connection.open_bi().await.map_err(TransportError::new)?;
    let (to_server, mut outgoing) = mpsc::channel::<String>(CHANNEL_FRAMES_MAX);
    let (incoming, from_server) = mpsc::channel(CHANNEL_FRAMES_MAX);
    let reader = tokio::spawn(read_frames(receive, incoming));
    tokio::spawn(async move {
        // The endpoint has to live as long as the connection.
        let _endpoint = endpoint;
        while let Some(text) = outgoing.recv().await {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
            let frame = [length.as_slice(), text.as_bytes()].concat();
            if send.write_all(&frame).await.is_err() {
                break;
            }
        }
        reader.abort();
        connection.close(0_u8.into(), b"done");
    });
    Ok(Connection { to_server, from_server })
}

async fn read_frames(mut receive: quinn::RecvStream, incoming: mpsc::Sender<Result<String, TransportError>>) {
    let mut buffer = FrameBuffer::of::<ServerMessage>();
    let error = loop {
        match receive.read_chunk(READ_BYTES, true).await {
            Ok(Some(chunk)) => buffer.extend(&chunk.bytes),
            Ok(None) => {
                break buffer
                    .finish()
                    .err()
                    .map_or_else(|| "closed by the node".to_owned(), |e| e.to_string());
            }
            Err(error) => break error.to_string(),
        }
        loop {
            let text = match buffer.next_frame() {
                Ok(Some(json)) => String::from_utf8_lossy(json).into_owned(),
                Ok(None) => break,
                Err(error) => {
                    let _receiver_gone = incoming.send(Err(TransportError::new(error))).await;
                    return;
                }
            };
            if incoming.send(Ok(text)).await.is_err() {
                return;
            }
        }
    };
    let _receiver_gone = incoming.send(Err(TransportError(error))).await;
}
