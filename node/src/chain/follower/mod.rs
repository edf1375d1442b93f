//! Follows the chain: goes on from the block that the machine has read last, finds the fork if there is one, hands over
//! blocks, waits for the next tip.

mod checks;

use super::{Chain, ChainError, birthday::check, doubt::doubt};
use crate::run::{
    input::{Input, Reached},
    queue::Inputs,
};
use anyhow::{Context as _, Result};
use bitcoin::{Block, BlockHash, Network, Work, block::Header};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use quorate_protocol::headers::Checkpoint;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Blocks handed over at once.
const BATCH_BLOCKS: u32 = 16;
/// Blocks that the backend is asked for at a time.
const AT_A_TIME: usize = 4;
/// Time for which the backend may be away before this node stops voting.
const PATIENCE: Duration = Duration::from_secs(60);
/// Wait after the backend said different things of its tip.
const AGAIN: Duration = Duration::from_millis(100);
/// Wait after the backend failed, or while its tip is in doubt.
const RETRY: Duration = Duration::from_secs(1);

/// Times that a backend may say different things of its tip, one after the other: a few while blocks come fast.
const UNSTEADY_MAX: u32 = 20;

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// At the backend's tip, which has changed since.
    AtTip,
    /// At the backend's tip, which is not believed.
    Doubted,
    /// The backend's chain changed meanwhile, or does not have what it says.
    Unsteady,
}

/// What a node follows.
pub(crate) struct Follower {
    pub(crate) chain: Arc<dyn Chain>,
    pub(crate) network: Network,
    pub(crate) birthday: Checkpoint,
    pub(crate) inputs: Inputs,
}

impl Follower {
    pub(crate) async fn run(self) {
        let mut problem: Option<(String, Instant)> = None;
        let (mut troubled, mut unsteady) = (false, 0);
        while !self.inputs.is_closed() {
            let step = self.step(troubled).await;
            unsteady = if matches!(step, Ok(Step::Unsteady)) { unsteady + 1 } else { 0 };
            let error = match step {
                Ok(Step::Unsteady) if unsteady < UNSTEADY_MAX => {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                Ok(Step::Unsteady) => ChainError::Unsteady.into(),
                Ok(step @ (Step::AtTip | Step::Doubted)) => {
                    troubled = step == Step::Doubted;
                    if problem.take().is_some() {
                        tracing::info!("the chain is followed again");
                    }
                    continue;
                }
                Err(error) => error,
            };
            troubled = true;
            // Once, not every second.
            let found = format!("{error:#}");
            if problem.as_ref().is_none_or(|(known, _)| *known != found) {
                tracing::warn!(error = found, "the chain cannot be followed at the moment");
            }
            let since = problem.map_or_else(Instant::now, |(_, since)| since);
            // What has answered so does not know which coins are unspent.
            let final_word = matches!(
                error.downcast_ref(),
                Some(
                    ChainError::OtherChain { .. }
                        | ChainError::TooDeep
                        | ChainError::Behind { .. }
                        | ChainError::LessWork { .. }
                        | ChainError::Pruned(_)
                )
            );
            if final_word || since.elapsed() >= PATIENCE {
                let _node_ended = self.inputs.send(Input::Doubt(Some(found.clone()))).await;
            }
            problem = Some((found, since));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Brings the machine to the backend's tip; then waits until that changes.
    async fn step(&self, troubled: bool) -> Result<Step> {
        let chain = &*self.chain;
        chain.choose(self.network, self.birthday, troubled).await?;
        check(chain, self.network, self.birthday).await?;
        let tip = chain.tip().await?;
        let (header, height) = chain.header(tip).await?;
        if chain.hash_at(height).await? != Some(tip) {
            return Ok(Step::Unsteady);
        }
        let fork = self.fork(height).await?;
        self.check_work(fork.0, height).await?;
        let mut last = fork;
        while last.0 < height {
            let to = height.min(last.0.saturating_add(BATCH_BLOCKS));
            let Some(blocks) = self.read(last, to).await? else {
                // A reorganisation came in between.
                return Ok(Step::Unsteady);
            };
            let Some(block) = blocks.last() else { return Ok(Step::Unsteady) };
            last = (to, block.block_hash());
            self.inputs.send(Input::Blocks(blocks)).await.context("the node has ended")?;
        }
        if last.1 != tip {
            return Ok(Step::Unsteady);
        }
        let doubt = doubt(chain, self.network, &header).await?;
        let doubted = doubt.is_some();
        self.inputs.send(Input::Doubt(doubt)).await.context("the node has ended")?;
        self.inputs.send(Input::CaughtUp).await.context("the node has ended")?;
        let fees = chain.fees().await?.estimates();
        self.inputs.send(Input::Fees(fees)).await.context("the node has ended")?;
        if doubted {
            tokio::time::sleep(RETRY).await;
            return Ok(Step::Doubted);
        }
        chain.wait_for_tip(tip).await?;
        Ok(Step::AtTip)
    }

    /// A branch has to have taken more work than what it takes the place of.
    async fn check_work(&self, fork: u32, to: u32) -> Result<()> {
        let tip = self.reached(fork).await?.tip;
        let old = self.headers(fork + 1, usize::try_from(tip.saturating_sub(fork))?).await?;
        let Some(old) = old.iter().map(Header::work).reduce(|sum, one| sum + one) else { return Ok(()) };
        let mut new: Option<Work> = None;
        for height in fork + 1..=to {
            let hash = self.chain.hash_at(height).await?.ok_or(ChainError::Unsteady)?;
            let (header, _) = self.chain.header(hash).await?;
            if header.block_hash() != hash || header.validate_pow(header.target()).is_err() {
                return Err(ChainError::WrongBlock(hash).into());
            }
            let work = new.map_or(header.work(), |work| work + header.work());
            if work > old {
                return Ok(());
            }
            new = Some(work);
        }
        Err(ChainError::LessWork { fork }.into())
    }

    /// The last block that both the machine and the backend have.
    async fn fork(&self, backend: u32) -> Result<(u32, BlockHash)> {
        let Reached { tip, floor, .. } = self.reached(0).await?;
        let mut height = tip.min(backend);
        // One that reads its own blocks again is no reorganisation, and takes coins for unspent that are spent.
        if backend < tip {
            let same = self.reached(backend).await?.hash;
            if same.is_some() && same == self.chain.hash_at(backend).await? {
                return Err(ChainError::Behind { backend, node: tip }.into());
            }
        }
        loop {
            let known = self.reached(height).await?.hash;
            match known.filter(|_| height >= floor) {
                Some(hash) if self.chain.hash_at(height).await? == Some(hash) => return Ok((height, hash)),
                Some(_) if height > floor => height -= 1,
                Some(_) | None => return Err(ChainError::TooDeep.into()),
            }
        }
    }

    /// The blocks above one, up to a height; `None` if they do not follow on each other.
    async fn read(&self, above: (u32, BlockHash), to: u32) -> Result<Option<Vec<Block>>> {
        let blocks = stream::iter(above.0 + 1..=to).map(|height| checks::block(&*self.chain, height));
        let blocks: Vec<Option<Block>> = blocks.buffered(AT_A_TIME).try_collect().await?;
        let mut parent = above.1;
        let linked = blocks.iter().all(|block| {
            let follows = block.as_ref().is_some_and(|block| block.header.prev_blockhash == parent);
            parent = block.as_ref().map_or(parent, Block::block_hash);
            follows
        });
        let Some(blocks) = blocks.into_iter().collect::<Option<Vec<Block>>>().filter(|_| linked) else {
            return Ok(None);
        };
        let mut known = BTreeMap::new();
        for heights in checks::wanted(self.birthday.height, above.0, to) {
            let headers = self.headers(*heights.start(), heights.clone().count()).await?;
            known.extend(heights.zip(headers));
        }
        checks::headers(self.network, known, above.0, &blocks)?;
        Ok(Some(blocks))
    }

    async fn headers(&self, from: u32, count: usize) -> Result<Vec<Header>> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Headers { from, count, reply }).await.context("the node has ended")?;
        answer.await.context("the node has ended")
    }

    async fn reached(&self, height: u32) -> Result<Reached> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Reached { height, reply }).await.context("the node has ended")?;
        answer.await.context("the node has ended")
    }
}

#[cfg(test)]
mod tests;
