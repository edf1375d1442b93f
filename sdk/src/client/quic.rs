//! QUIC straight to a node, with an identity of the federation's own authority.

use super::{CHANNEL_FRAMES_MAX, Connecting, Connection, Transport, TransportError};
use crate::{NodeId, wire::ServerMessage};
use quorate_quic::{FrameReader, TlsError, TlsIdentity, server_name};
use std::net::SocketAddr;
use tokio::sync::mpsc;

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
            let (node, address) = node.ok_or_else(|| TransportError::NoServer)?;
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
        if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().map_err(TransportError::broken)?;
    let endpoint = quinn::Endpoint::client(local).map_err(TransportError::broken)?;
    let connecting =
        endpoint.connect_with(config, address, &server_name(node)).map_err(TransportError::broken)?;
    let connection = connecting.await.map_err(TransportError::broken)?;
    let (mut send, receive) = connection.open_bi().await.map_err(TransportError::broken)?;
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

async fn read_frames(stream: quinn::RecvStream, incoming: mpsc::Sender<Result<String, TransportError>>) {
    let mut frames = FrameReader::of::<ServerMessage>(stream);
    let ended = loop {
        match frames.next().await {
            Ok(Some(json)) => {
                if incoming.send(Ok(String::from_utf8_lossy(&json).into_owned())).await.is_err() {
                    return;
                }
            }
            Ok(None) => break TransportError::Closed,
            Err(error) => break TransportError::broken(error),
        }
    };
    let _receiver_gone = incoming.send(Err(ended)).await;
}
