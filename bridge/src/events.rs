//! One event stream per node, kept open.

use crate::{
    driver::Driver,
    tips::LinkId,
    upstream::{Answers, Stream},
};
use anyhow::{Context as _, Result};
use quorate_protocol::wire::ClientMessage;
use quorate_quic::{NodeAddress, server_name, write_message};
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
    let (mut questions, mut events) = Stream::new(send, receive, meter).split();
    // Listening begins before what is wanted is read, so that no change is missed; one that comes twice changes
    // nothing.
    let mut interests = driver.interests.subscribe();
    let first = driver.with(|machine, _| machine.handle_link_opened(link));
    // At the same time: a node that has much to say reads on when that is read.
    let asking = async {
        for message in first {
            ask(&mut questions, &message).await?;
        }
        loop {
            let change = interests.recv().await.context("fell behind; connecting anew")?;
            ask(&mut questions, &change).await?;
        }
    };
    let hearing = async {
        // The first answer shows that the node is ready to serve.
        hear(driver, &mut events, link).await?;
        driver.upstream.set(index, Some(connection));
        tracing::info!(node = %node.id, "connected to a node");
        loop {
            hear(driver, &mut events, link).await?;
        }
    };
    tokio::select! {
        ended = asking => ended,
        ended = hearing => ended,
    }
}

async fn ask(questions: &mut quinn::SendStream, message: &ClientMessage) -> Result<()> {
    Ok(write_message(questions, None, message).await?)
}

async fn hear(driver: &Driver, events: &mut Answers, link: LinkId) -> Result<()> {
    let (_, message) = events.receive().await?;
    Ok(driver.with(|machine, _| machine.handle_event(link, message))?)
}
