//! Follows the chain: goes on from the block that the machine has read last, finds the fork if there is one, hands over
//! blocks, waits for the next tip.

use super::{Chain, ChainError, birthday::check};
use crate::run::input::{Input, Reached};
use anyhow::{Context as _, Result};
use bitcoin::{Block, BlockHash, Network, Transaction, Txid, block::Header, params::Params};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use quorate_protocol::headers::Checkpoint;
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{mpsc, oneshot};

/// Blocks handed over at once.
const BATCH_BLOCKS: u32 = 16;
/// Blocks that the backend is asked for at a time.
const AT_A_TIME: usize = 4;
/// Time for which the backend may be away before this node stops voting.
const PATIENCE: Duration = Duration::from_secs(60);
/// Age of a tip that is believed; between two blocks there are three hours once in 65 million.
const TIP_AGE_MAX: Duration = Duration::from_secs(3 * 3_600);
/// Wait after the backend said different things of its tip.
const AGAIN: Duration = Duration::from_millis(100);
/// Wait after the backend failed.
const RETRY: Duration = Duration::from_secs(1);

/// What a node follows.
pub(crate) struct Follower {
    pub(crate) chain: Arc<dyn Chain>,
    pub(crate) network: Network,
    pub(crate) birthday: Checkpoint,
    pub(crate) inputs: mpsc::Sender<Input>,
}

impl Follower {
    pub(crate) async fn run(self) {
        let mut problem: Option<(String, Instant)> = None;
        while !self.inputs.is_closed() {
            let Err(error) = self.step().await else {
                if problem.take().is_some() {
                    tracing::info!("the chain is followed again");
                }
                continue;
            };
            // Once, not every second.
            let found = format!("{error:#}");
            if problem.as_ref().is_none_or(|(known, _)| *known != found) {
                tracing::warn!(error = found, "the chain cannot be followed at the moment");
            }
            let since = problem.map_or_else(Instant::now, |(_, since)| since);
            let final_word =
                matches!(error.downcast_ref(), Some(ChainError::OtherChain { .. } | ChainError::TooDeep));
            if final_word || since.elapsed() >= PATIENCE {
                let _node_ended = self.inputs.send(Input::Doubt(Some(found.clone()))).await;
            }
            problem = Some((found, since));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Why the backend may not be at the tip.
    async fn doubt(&self, tip: &Header) -> Result<Option<String>, ChainError> {
        let doubt = self.chain.doubt().await?;
        Ok(doubt.or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let age = now.saturating_sub(Duration::from_secs(u64::from(tip.time)));
            // Nobody mines on regtest by the clock.
            let old = self.network != Network::Regtest && age > TIP_AGE_MAX;
            old.then(|| format!("its last block is {} hours old", age.as_secs() / 3_600))
        }))
    }

    /// Brings the machine to the backend's tip; then waits until that changes.
    async fn step(&self) -> Result<()> {
        let chain = &*self.chain;
        check(chain, self.network, self.birthday).await?;
        let tip = chain.tip().await?;
        let (header, height) = chain.header(tip).await?;
        let fork = self.fork(height).await?;
        let mut last = fork;
        while last.0 < height {
            let to = height.min(last.0.saturating_add(BATCH_BLOCKS));
            let Some(blocks) = self.read(last, to).await? else {
                // A reorganisation came in between.
                tokio::time::sleep(AGAIN).await;
                return Ok(());
            };
            let Some(block) = blocks.last() else { return Ok(()) };
            last = (to, block.block_hash());
            self.inputs.send(Input::Blocks(blocks)).await.context("the node has ended")?;
        }
        if last.1 != tip {
            tokio::time::sleep(AGAIN).await;
            return Ok(());
        }
        let doubt = self.doubt(&header).await?;
        self.inputs.send(Input::Doubt(doubt)).await.context("the node has ended")?;
        self.inputs.send(Input::CaughtUp).await.context("the node has ended")?;
        let fees = chain.fees().await?.estimates();
        self.inputs.send(Input::Fees(fees)).await.context("the node has ended")?;
        chain.wait_for_tip(tip).await?;
        Ok(())
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
        let blocks = stream::iter(above.0 + 1..=to).map(|height| self.block(height));
        let blocks: Vec<Option<Block>> = blocks.buffered(AT_A_TIME).try_collect().await?;
        let mut parent = above.1;
        let linked = blocks.iter().all(|block| {
            let follows = block.as_ref().is_some_and(|block| block.header.prev_blockhash == parent);
            parent = block.as_ref().map_or(parent, Block::block_hash);
            follows
        });
        Ok(if linked { blocks.into_iter().collect() } else { None })
    }

    /// A block, checked against its header whoever sent it.
    async fn block(&self, height: u32) -> Result<Option<Block>, ChainError> {
        let Some(hash) = self.chain.hash_at(height).await? else { return Ok(None) };
        let block = self.chain.block(hash).await?;
        let target = block.header.target();
        let least_work = Params::new(self.network).max_attainable_target;
        let works = target <= least_work && block.header.validate_pow(target).is_ok();
        // The same root comes of a list whose end is there twice (CVE-2012-2459).
        let txids: BTreeSet<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
        let whole = block.check_merkle_root()
            && block.check_witness_commitment()
            && txids.len() == block.txdata.len();
        if block.block_hash() == hash && works && whole {
            return Ok(Some(block));
        }
        Err(ChainError::WrongBlock(hash))
    }

    async fn reached(&self, height: u32) -> Result<Reached> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Reached { height, reply }).await.context("the node has ended")?;
        answer.await.context("the node has ended")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Answer, Fees};
    use bitcoin::{
        CompactTarget, OutPoint, TxIn, TxMerkleNode, absolute::LockTime, block::Version, hashes::Hash as _,
        transaction,
    };
    use quorate_protocol::relay_policy::FEE_RATE_MIN;
    use quorate_rules::ChainCoin;
    use std::sync::{Mutex, PoisonError};

    fn mine(parent: &Header, salt: u32) -> Block {
        let coinbase = Transaction {
            version: transaction::Version::TWO,
            lock_time: LockTime::from_consensus(salt),
            input: vec![TxIn::default()],
            output: Vec::new(),
        };
        let header = Header {
            version: Version::TWO,
            prev_blockhash: parent.block_hash(),
            merkle_root: TxMerkleNode::from_byte_array(coinbase.compute_txid().to_byte_array()),
            time: parent.time + 1,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: 0,
        };
        let mut block = Block { header, txdata: vec![coinbase] };
        while block.header.validate_pow(block.header.target()).is_err() {
            block.header.nonce += 1;
        }
        block
    }

    /// Blocks above the genesis block, and how many the follower has asked for.
    #[derive(Debug, Default)]
    struct Backend(Mutex<(Vec<Block>, usize)>);

    impl Backend {
        fn mined(blocks: u32) -> Self {
            let backend = Self::default();
            backend.extend(0, blocks, 0);
            backend
        }

        /// Leaves so many blocks, and mines others on top.
        fn extend(&self, keep: usize, blocks: u32, salt: u32) {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.0.truncate(keep);
            for number in 0..blocks {
                let genesis = Checkpoint::genesis(Network::Regtest).header;
                let parent = state.0.last().map_or(genesis, |block| block.header);
                state.0.push(mine(&parent, salt + number));
            }
        }

        fn with<T>(&self, read: impl FnOnce(&mut (Vec<Block>, usize)) -> T) -> T {
            read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }

        fn hash(&self, height: u32) -> Option<BlockHash> {
            let Some(index) = height.checked_sub(1) else {
                return Some(Checkpoint::genesis(Network::Regtest).header.block_hash());
            };
            let index = usize::try_from(index).ok()?;
            self.with(|(blocks, _)| blocks.get(index).map(Block::block_hash))
        }
    }

    impl Chain for Backend {
        fn tip(&self) -> Answer<'_, BlockHash> {
            let height = self.with(|(blocks, _)| u32::try_from(blocks.len())).expect("few");
            Box::pin(async move { Ok(self.hash(height).expect("there")) })
        }

        fn wait_for_tip(&self, known: BlockHash) -> Answer<'_, BlockHash> {
            Box::pin(async move { Ok(known) })
        }

        fn header(&self, hash: BlockHash) -> Answer<'_, (Header, u32)> {
            let genesis = Checkpoint::genesis(Network::Regtest).header;
            let found = self.with(|(blocks, _)| {
                let mut headers = std::iter::once(genesis).chain(blocks.iter().map(|block| block.header));
                let at = headers.position(|header| header.block_hash() == hash)?;
                let header = at.checked_sub(1).map_or(genesis, |at| blocks[at].header);
                Some((header, u32::try_from(at).expect("few")))
            });
            Box::pin(async move { found.ok_or(ChainError::UnknownBlock(hash)) })
        }

        fn doubt(&self) -> Answer<'_, Option<String>> {
            Box::pin(async { Ok(None) })
        }

        fn hash_at(&self, height: u32) -> Answer<'_, Option<BlockHash>> {
            Box::pin(async move { Ok(self.hash(height)) })
        }

        fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
            let found = self.with(|(blocks, asked)| {
                *asked += 1;
                blocks.iter().find(|block| block.block_hash() == hash).cloned()
            });
            Box::pin(async move { found.ok_or(ChainError::UnknownBlock(hash)) })
        }

        fn coin(&self, _outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>> {
            unreachable!("a follower asks for no coins")
        }

        fn broadcast(&self, _transaction: Transaction) -> Answer<'_, ()> {
            unreachable!("nor sends anything")
        }

        fn broadcast_package(&self, _package: Vec<Transaction>) -> Answer<'_, ()> {
            unreachable!("nor together")
        }

        fn missing(&self, _txids: Vec<Txid>) -> Answer<'_, BTreeSet<Txid>> {
            unreachable!("nor asks what is missing")
        }

        fn fees(&self) -> Answer<'_, Fees> {
            Box::pin(async {
                Ok(Fees { next_block: None, six_blocks: None, day: None, mempool_min: FEE_RATE_MIN })
            })
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "a follower says nothing else")]
    /// Answers as a machine does that has read these blocks above the genesis block and can undo back to a height.
    /// Gives the blocks that it has in the end.
    async fn machine(mut read: Vec<Block>, floor: u32, mut inputs: mpsc::Receiver<Input>) -> Vec<Block> {
        while let Some(input) = inputs.recv().await {
            match input {
                Input::Reached { height, reply } => {
                    let tip = u32::try_from(read.len()).expect("few");
                    let at = height.checked_sub(1).map(|index| usize::try_from(index).expect("small"));
                    let genesis = Checkpoint::genesis(Network::Regtest).header.block_hash();
                    let hash = at.map_or(Some(genesis), |at| read.get(at).map(Block::block_hash));
                    reply.send(Reached { tip, floor, hash }).expect("somebody waits");
                }
                Input::Blocks(blocks) => {
                    let parent = blocks[0].header.prev_blockhash;
                    let at = read.iter().position(|block| block.block_hash() == parent);
                    read.truncate(at.map_or(0, |at| at + 1));
                    read.extend(blocks);
                }
                Input::CaughtUp | Input::Doubt(None) | Input::Fees(_) => {}
                other => panic!("{other:?}"),
            }
        }
        read
    }

    /// One step of a follower whose machine has read that; gives what it has read then.
    async fn step(backend: &Arc<Backend>, read: Vec<Block>, floor: u32) -> (Result<()>, Vec<Block>) {
        let (inputs, receiver) = mpsc::channel(8);
        let follower = Follower {
            chain: backend.clone(),
            network: Network::Regtest,
            birthday: Checkpoint::genesis(Network::Regtest),
            inputs,
        };
        let machine = tokio::spawn(machine(read, floor, receiver));
        let result = follower.step().await;
        drop(follower);
        (result, machine.await.expect("no panic"))
    }

    fn blocks(backend: &Backend) -> Vec<Block> {
        backend.with(|(blocks, _)| blocks.clone())
    }

    #[tokio::test]
    async fn it_goes_on_from_the_block_that_was_read_last() {
        let backend = Arc::new(Backend::mined(50));
        let (result, read) = step(&backend, Vec::new(), 0).await;
        result.expect("follows");
        assert_eq!(read, blocks(&backend));
        backend.extend(50, 3, 100);
        backend.with(|(_, asked)| *asked = 0);
        let (result, read) = step(&backend, read, 0).await;
        result.expect("follows");
        assert_eq!(read, blocks(&backend));
        assert_eq!(backend.with(|(_, asked)| *asked), 3, "and asks for no block that it has read");
    }

    #[tokio::test]
    async fn it_finds_the_fork_and_says_when_that_is_too_deep() {
        let backend = Arc::new(Backend::mined(50));
        let read = blocks(&backend);
        backend.extend(40, 12, 200);
        let (result, read_anew) = step(&backend, read.clone(), 40).await;
        result.expect("follows");
        assert_eq!(read_anew, blocks(&backend));
        let (result, kept) = step(&backend, read.clone(), 41).await;
        let error = result.expect_err("one more than can be undone").to_string();
        assert!(error.contains("quorate-node index rebuild"), "{error}");
        assert_eq!(kept, read);
    }

    #[tokio::test]
    async fn a_backend_that_is_behind_is_waited_for_and_is_no_reorganisation() {
        let backend = Arc::new(Backend::mined(50));
        let read = blocks(&backend);
        backend.extend(20, 0, 0);
        for floor in [0, 40] {
            let (result, kept) = step(&backend, read.clone(), floor).await;
            let error = result.expect_err("30 blocks are missing").to_string();
            assert!(error.contains("at block 20") && error.contains("up to 50"), "{error}");
            assert_eq!(kept, read);
        }
    }

    #[tokio::test]
    async fn a_damaged_block_and_another_network_are_refused() {
        let backend = Arc::new(Backend::mined(5));
        backend.with(|(blocks, _)| blocks[3].txdata[0].lock_time = LockTime::from_consensus(7));
        let (result, read) = step(&backend, Vec::new(), 0).await;
        let error = result.expect_err("its transactions are not those of its header").to_string();
        assert!(error.contains("another block"), "{error}");
        assert!(read.is_empty());
        // A list whose end is there twice has the same root.
        let backend = Arc::new(Backend::mined(1));
        backend.with(|(blocks, _)| {
            let coinbase = blocks[0].txdata[0].clone();
            blocks[0].txdata.push(coinbase);
            let root = blocks[0].compute_merkle_root().expect("transactions");
            blocks[0].header.merkle_root = root;
            while blocks[0].header.validate_pow(blocks[0].header.target()).is_err() {
                blocks[0].header.nonce += 1;
            }
        });
        let (result, read) = step(&backend, Vec::new(), 0).await;
        assert!(result.is_err() && read.is_empty());
        let birthday = Checkpoint::genesis(Network::Signet);
        let error = check(&*backend, Network::Signet, birthday).await.expect_err("regtest").to_string();
        assert!(error.contains("not on signet"), "{error}");
    }

    #[tokio::test]
    async fn a_birthday_begins_a_period_and_is_a_day_old() {
        for (tip, height) in [(1, 0), (2_159, 0), (2_160, 2_016), (4_100, 2_016)] {
            let backend = Backend::mined(tip);
            let found = super::super::birthday(&backend, Network::Regtest).await.expect("there");
            assert_eq!(found.height, height, "at tip {tip}");
            assert!(found.is_sound(Network::Regtest));
        }
    }
}
