//! Follows the chain: finds the fork, hands over blocks out and in, waits for the next tip.

use super::Chain;
use crate::run::input::Input;
use anyhow::{Context as _, Result};
use bitcoin::BlockHash;
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// Blocks handed over at once.
const BATCH_BLOCKS: usize = 64;
/// Wait after the backend failed.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) async fn follow(chain: Arc<dyn Chain>, inputs: mpsc::Sender<Input>) {
    let mut height = 0;
    while !inputs.is_closed() {
        if let Err(error) = step(&*chain, &inputs, &mut height).await {
            tracing::warn!(error = format!("{error:#}"), "the chain cannot be followed at the moment");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Brings the machine, whose tip is at `height`, to the backend's tip; then waits until that changes.
async fn step(chain: &dyn Chain, inputs: &mpsc::Sender<Input>, height: &mut u32) -> Result<()> {
    let tip = chain.tip().await?;
    let mut branch = Vec::new();
    let mut cursor = tip;
    let fork = loop {
        let (header, at) = chain.header(cursor).await?;
        if at <= *height && known(inputs, at).await? == Some(cursor) {
            break at;
        }
        branch.push(cursor);
        cursor = header.prev_blockhash;
    };
    branch.reverse();
    let mut reached = fork;
    for hashes in branch.chunks(BATCH_BLOCKS) {
        let mut connect = Vec::with_capacity(hashes.len());
        for hash in hashes {
            connect.push(chain.block(*hash).await?);
        }
        let count = u32::try_from(connect.len()).unwrap_or(u32::MAX);
        inputs.send(Input::Blocks(connect)).await.context("the node has ended")?;
        reached += count;
        *height = reached;
    }
    inputs.send(Input::CaughtUp).await.context("the node has ended")?;
    let fees = chain.fees().await?.estimates();
    inputs.send(Input::Fees(fees)).await.context("the node has ended")?;
    chain.wait_for_tip(tip).await?;
    Ok(())
}

async fn known(inputs: &mpsc::Sender<Input>, height: u32) -> Result<Option<BlockHash>> {
    let (reply, answer) = oneshot::channel();
    inputs.send(Input::BlockHash { height, reply }).await.context("the node has ended")?;
    answer.await.context("the node has ended")
}
