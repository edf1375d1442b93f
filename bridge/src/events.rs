//! One event stream per node, kept open.

use crate::{driver::Driver, tips::LinkId, upstream::Stream};
use anyhow::{Context as _, Result};
use quorate_quic::{NodeAddress, server_name};
use std::{sync::Arc, time::Duration};

/// Wait before connecting to a node again.
const RECONNECT: Duration = Duration::from_millis(250);

/// Connects to a node again and again.
pub(crate) async fn keep_connected(
    driver: Arc<Driver>,
    endpoint: quinn::Endpoint,
    index: usize,
    node: NodeAddress,
) {
    // One stream per node at a time.
    let link = LinkId(u64::try_from(index).unwrap_or(u64::MAX));
    loop {
        if let Err(error) = connected(&driver, &endpoint, index, &node, link).await {
            tracing::debug!(node = %node.id, error = format!("{error:#}"), "not connected to a node");
        }
        driver.upstream.set(index, None);
        driver.with(|machine, _| machine.handle_link_lost(link));
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn connected(
    driver: &Driver,
    endpoint: &quinn::Endpoint,
    index: usize,
    node: &NodeAddress,
    link: LinkId,
) -> Result<()> {
    let connection = endpoint.connect(node.address, &server_name(node.id))?.await?;
    let (send, receive) = connection.open_bi().await?;
    let meter = driver.upstream.meter(index).context("a node that is configured")?;
    let mut events = Stream::new(send, receive, meter);
    // Listening begins before what is wanted is read, so that no change is missed; one that comes twice changes
    // nothing.
    let mut interests = driver.interests.subscribe();
    for message in driver.with(|machine, _| machine.handle_link_opened(link)) {
        events.send(None, &message).await?;
    }
    // The first answer shows that the node is ready to serve.
    let (_, first) = events.receive().await?;
    driver.with(|machine, _| machine.handle_event(link, first))?;
    driver.upstream.set(index, Some(connection));
    tracing::info!(node = %node.id, "connected to a node");
    loop {
        tokio::select! {
            event = events.receive() => {
                let (_, message) = event?;
                driver.with(|machine, _| machine.handle_event(link, message))?;
            }
            change = interests.recv() => {
                events.send(None, &change.context("fell behind; connecting anew")?).await?;
            }
        }
    }
}
