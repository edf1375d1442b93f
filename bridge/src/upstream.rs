//! Connections to the nodes, and streams on them.

use crate::machine::hello;
use anyhow::{Context as _, Result};
use quorate_protocol::wire::{ClientMessage, ServerMessage, decode};
use quorate_quic::{FrameReader, Meter, write_message};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// How long a request waits for a node while none is connected.
const NOBODY_PATIENCE: Duration = Duration::from_secs(3);

/// How long a node may take to let a stream be opened.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of one node's messages that are being read at a time.
const NODE_BYTES_MAX: usize = 32 << 20;

/// All nodes.
#[derive(Debug)]
pub(crate) struct Upstream {
    links: Vec<(watch::Sender<Option<quinn::Connection>>, Meter)>,
    next: AtomicUsize,
    /// Woken when a node is connected.
    up: Notify,
}

impl Upstream {
    /// So many nodes, none of which is connected.
    pub(crate) fn new(nodes: usize) -> Self {
        let links = (0..nodes).map(|_| (watch::Sender::new(None), Meter::new(NODE_BYTES_MAX))).collect();
        Self { links, next: AtomicUsize::new(0), up: Notify::new() }
    }

    /// A node is connected and ready to serve, or is not any more.
    pub(crate) fn set(&self, index: usize, connection: Option<quinn::Connection>) {
        let up = connection.is_some();
        if let Some((link, _)) = self.links.get(index) {
            link.send_replace(connection);
        }
        if up {
            self.up.notify_waiters();
        }
    }

    /// Room for what this node's streams say.
    pub(crate) fn meter(&self, index: usize) -> Option<Meter> {
        self.links.get(index).map(|(_, meter)| meter.clone())
    }

    /// Nodes that are connected.
    pub(crate) fn connected(&self) -> usize {
        self.links.iter().filter(|(link, _)| link.borrow().is_some()).count()
    }

    /// Opens a session stream to the next node in turn and sends a message on it.
    pub(crate) async fn open(&self, id: Option<u64>, message: &ClientMessage) -> Result<Stream> {
        // Between two epochs no node is there for a moment.
        let up = async {
            loop {
                let change = self.up.notified();
                if self.connected() > 0 {
                    return;
                }
                change.await;
            }
        };
        let _nobody_in_time = tokio::time::timeout(NOBODY_PATIENCE, up).await;
        let hello = hello();
        let count = self.links.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let live = (0..count).filter_map(|step| {
            let (link, meter) = self.links.get((first + step) % count)?;
            Some((link.borrow().clone()?, meter.clone()))
        });
        for (connection, meter) in live.collect::<Vec<_>>() {
            // One that has no stream to spare, or gives none, is passed over.
            let opened = tokio::time::timeout(STREAM_PATIENCE, connection.open_bi()).await;
            if let Ok(Ok((send, receive))) = opened {
                let mut relay = Stream::new(send, receive, meter);
                if relay.send(None, &hello).await.is_ok() && relay.send(id, message).await.is_ok() {
                    return Ok(relay);
                }
            }
        }
        anyhow::bail!("no node is reachable at the moment")
    }
}

/// A session stream to one node.
#[derive(Debug)]
pub(crate) struct Stream {
    send: quinn::SendStream,
    answers: Answers,
}

/// What a node says on a session stream.
#[derive(Debug)]
pub(crate) struct Answers {
    frames: FrameReader,
    meter: Meter,
}

impl Stream {
    pub(crate) fn new(send: quinn::SendStream, receive: quinn::RecvStream, meter: Meter) -> Self {
        Self { send, answers: Answers { frames: FrameReader::of::<ServerMessage>(receive), meter } }
    }

    /// Both directions, for whoever has much to say in each.
    pub(crate) fn split(self) -> (quinn::SendStream, Answers) {
        (self.send, self.answers)
    }

    pub(crate) async fn send(&mut self, id: Option<u64>, message: &ClientMessage) -> Result<()> {
        Ok(write_message(&mut self.send, id, message).await?)
    }

    /// As [`Answers::receive`].
    pub(crate) async fn receive(&mut self) -> Result<(Option<u64>, ServerMessage)> {
        self.answers.receive().await
    }
}

impl Answers {
    /// The next message of the node but its greeting. Cancelling it loses nothing.
    pub(crate) async fn receive(&mut self) -> Result<(Option<u64>, ServerMessage)> {
        loop {
            let message = self.meter.next(&mut self.frames).await?;
            let (json, _room) = message.context("the node closed the stream")?;
            let envelope = decode::<ServerMessage>(&json).map_err(|(_, error)| error)?;
            if !matches!(envelope.body, ServerMessage::Welcome { .. }) {
                return Ok((envelope.id, envelope.body));
            }
        }
    }
}
