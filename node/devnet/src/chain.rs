//! The embedded chain: an in-process regtest network with real blocks and real consensus checks.
//!
//! It has one miner, itself, and no peers. Its blocks are accepted by Bitcoin Core (`tests/tests/devnet_blocks.rs`
//! feeds them to one). With a directory, blocks are appended to `blocks.dat` and read back, checked again, at the
//! next start.

use crate::validate::{Position, check_transaction};
use bitcoin::{
    Amount, Block, BlockHash, FeeRate, Network, OutPoint, ScriptBuf, Sequence, Target, Transaction, TxIn,
    TxMerkleNode, TxOut, Txid, Weight, Witness, WitnessCommitment, WitnessMerkleNode,
    absolute::LockTime,
    block::{Header, Version},
    consensus::{Decodable as _, serialize},
    constants::genesis_block,
    hashes::Hash as _,
    opcodes::all::OP_RETURN,
    script::{Builder, PushBytesBuf},
    transaction,
};
use quorate::relay_policy::FEE_RATE_MIN;
use quorate_node::chain::{Answer, Chain, ChainError, Fees};
use quorate_rules::ChainCoin;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{File, OpenOptions},
    io::{BufReader, Write as _},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;

/// Blocks between halvings on regtest.
const HALVING_INTERVAL: u32 = 150;
/// Heaviest set of transactions put in a block, leaving room for the coinbase.
const BLOCK_WEIGHT_MAX: u64 = 3_900_000;
/// Fee rate told to wallets.
const FEE_RATE: FeeRate = FeeRate::from_sat_per_vb_u32(2);

/// The embedded chain.
#[derive(Debug)]
pub struct DevnetChain {
    state: Mutex<State>,
    tip: watch::Sender<BlockHash>,
    /// A transaction has been taken into the mempool.
    taken: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    blocks: Vec<Block>,
    hashes: HashMap<BlockHash, u32>,
    /// Blocks that a reorganisation took out; the follower may still ask for them.
    stale: HashMap<BlockHash, (Block, u32)>,
    coins: HashMap<OutPoint, ChainCoin>,
    /// Coins that each block spent, to put back.
    undo: Vec<Vec<(OutPoint, ChainCoin)>>,
    mempool: Vec<(Transaction, Txid)>,
    mempool_spent: HashSet<OutPoint>,
    file: Option<File>,
    /// Set if blocks have to be the same in every run: the salt of the next coinbase.
    salt: Option<u64>,
}

impl DevnetChain {
    /// A chain that is at its genesis block and lives in memory.
    pub fn new() -> Self {
        let state = State::genesis();
        Self::of(state)
    }

    fn of(state: State) -> Self {
        let (tip, taken) = (watch::Sender::new(state.tip()), watch::Sender::new(()));
        Self { state: Mutex::new(state), tip, taken }
    }

    /// A chain in memory whose blocks depend on nothing but the calls made and `seed`; starts with the blocks given.
    ///
    /// # Errors
    /// A block is not valid.
    pub fn deterministic(seed: u64, blocks: &[Block]) -> Result<Self, ChainError> {
        let mut state = State::genesis();
        state.salt = Some(seed);
        for block in blocks {
            state.connect(block.clone())?;
        }
        Ok(Self::of(state))
    }

    /// The block with this hash and its height, also of a branch that was left.
    pub fn find(&self, hash: BlockHash) -> Option<(Block, u32)> {
        self.lock().find(hash).ok()
    }

    /// The confirmed, unspent output at an outpoint.
    pub fn coin_at(&self, outpoint: &OutPoint) -> Option<ChainCoin> {
        self.lock().coins.get(outpoint).cloned()
    }

    /// The confirmed, unspent outputs with one of these scripts.
    pub fn coins_with(&self, scripts: &HashSet<ScriptBuf>) -> Vec<(OutPoint, ChainCoin)> {
        let state = self.lock();
        let coins = state.coins.iter().filter(|(_, coin)| scripts.contains(&coin.output.script_pubkey));
        coins.map(|(outpoint, coin)| (*outpoint, coin.clone())).collect()
    }

    /// Hash of the tip.
    pub fn tip_hash(&self) -> BlockHash {
        self.lock().tip()
    }

    /// Opens or starts the chain kept in a directory.
    ///
    /// # Errors
    /// The file cannot be read or written, or holds a block that is not valid.
    pub fn open(directory: &Path) -> Result<Self, ChainError> {
        let io =
            |error: std::io::Error| ChainError::Backend(format!("{}: {error}", directory.display()).into());
        let path = directory.join("blocks.dat");
        let mut state = State::genesis();
        if let Ok(file) = File::open(&path) {
            let mut reader = BufReader::new(file);
            while let Ok(block) = Block::consensus_decode(&mut reader) {
                let connects = block.header.prev_blockhash == state.tip();
                if !connects {
                    let height = *state
                        .hashes
                        .get(&block.header.prev_blockhash)
                        .ok_or(ChainError::UnknownBlock(block.header.prev_blockhash))?;
                    while state.height() > height {
                        state.disconnect();
                    }
                    state.mempool.clear();
                    state.mempool_spent.clear();
                }
                state.connect(block)?;
            }
        }
        state.file = Some(OpenOptions::new().create(true).append(true).open(&path).map_err(io)?);
        Ok(Self::of(state))
    }

    /// Mines blocks that pay `script`, with everything from the mempool that fits.
    ///
    /// # Errors
    /// A block cannot be written to disk.
    pub fn mine(&self, count: u32, script: &ScriptBuf) -> Result<Vec<BlockHash>, ChainError> {
        let mut state = self.lock();
        let mined = (0..count).map(|_| state.mine_mempool(script)).collect();
        self.tip.send_replace(state.tip());
        mined
    }

    /// Replaces the last `depth` blocks by `depth + 1` empty ones; their transactions go back to the mempool.
    ///
    /// # Errors
    /// A block cannot be written to disk.
    pub fn reorganise(&self, depth: u32, script: &ScriptBuf) -> Result<Vec<BlockHash>, ChainError> {
        let mut state = self.lock();
        let depth = depth.min(state.height());
        for _ in 0..depth {
            state.disconnect();
        }
        let mined = (0..=depth).map(|_| state.mine(script, Vec::new(), Amount::ZERO)).collect();
        self.tip.send_replace(state.tip());
        mined
    }

    /// Mines a block with these transactions alone, whatever the mempool has against them.
    ///
    /// # Errors
    /// One of them is not valid.
    pub fn mine_only(
        &self,
        transactions: Vec<Transaction>,
        script: &ScriptBuf,
    ) -> Result<BlockHash, ChainError> {
        let mut state = self.lock();
        let mined = state.mine(script, transactions, Amount::ZERO)?;
        self.tip.send_replace(state.tip());
        Ok(mined)
    }

    /// Height of the tip.
    pub fn height(&self) -> u32 {
        self.lock().height()
    }

    /// Transactions that wait to be mined.
    pub fn mempool(&self) -> Vec<Txid> {
        self.lock().mempool.iter().map(|(_, txid)| *txid).collect()
    }

    /// Returns when a transaction waits to be mined.
    pub async fn in_mempool(&self, txid: Txid) {
        let mut taken = self.taken.subscribe();
        // This has the sender, so it is never closed.
        drop(taken.wait_for(|()| self.mempool().contains(&txid)).await);
    }

    /// All blocks after genesis, in order.
    pub fn blocks(&self) -> Vec<Block> {
        self.lock().blocks.iter().skip(1).cloned().collect()
    }

    /// Hash of the block at a height.
    pub fn block_hash(&self, height: u32) -> Option<BlockHash> {
        self.lock().blocks.get(usize::try_from(height).ok()?).map(Block::block_hash)
    }

    /// Takes a transaction into the mempool.
    ///
    /// # Errors
    /// It is not valid on top of chain and mempool, or pays too little.
    pub fn submit(&self, transaction: Transaction) -> Result<Txid, ChainError> {
        let txid = self.lock().submit(transaction)?;
        self.taken.send_replace(());
        Ok(txid)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for DevnetChain {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn genesis() -> Self {
        let block = genesis_block(Network::Regtest);
        Self {
            hashes: HashMap::from([(block.block_hash(), 0)]),
            blocks: vec![block],
            stale: HashMap::new(),
            coins: HashMap::new(),
            undo: vec![Vec::new()],
            mempool: Vec::new(),
            mempool_spent: HashSet::new(),
            file: None,
            salt: None,
        }
    }

    fn height(&self) -> u32 {
        u32::try_from(self.blocks.len() - 1).unwrap_or(u32::MAX)
    }

    fn tip(&self) -> BlockHash {
        self.blocks.last().map(Block::block_hash).expect("genesis is never removed")
    }

    /// Median time of the eleven blocks before `height`.
    fn median_time(&self, height: u32) -> u32 {
        let end = usize::try_from(height).unwrap_or(usize::MAX).min(self.blocks.len());
        let from = end.saturating_sub(11);
        let mut times: Vec<u32> =
            self.blocks.get(from..end).unwrap_or_default().iter().map(|block| block.header.time).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0)
    }

    fn next_position(&self) -> Position {
        let height = self.height() + 1;
        Position { height, median_time: self.median_time(height) }
    }

    fn submit(&mut self, transaction: Transaction) -> Result<Txid, ChainError> {
        let txid = transaction.compute_txid();
        let known = self.mempool.iter().any(|(_, known)| *known == txid);
        let confirmed = transaction
            .output
            .iter()
            .zip(0..)
            .any(|(_, vout)| self.coins.contains_key(&OutPoint { txid, vout }));
        if known || confirmed {
            return Ok(txid);
        }
        let position = self.next_position();
        let coin = |outpoint: &OutPoint| {
            if self.mempool_spent.contains(outpoint) {
                return None;
            }
            self.coins.get(outpoint).cloned().or_else(|| self.mempool_coin(outpoint, position.height))
        };
        let fee = check_transaction(&transaction, position, coin, |height| self.median_time(height))?;
        let least = FeeRate::BROADCAST_MIN.fee_wu(transaction.weight()).unwrap_or(Amount::MAX_MONEY);
        if fee < least {
            return Err(ChainError::FeeTooLow { fee, least });
        }
        self.mempool_spent.extend(transaction.input.iter().map(|input| input.previous_output));
        self.mempool.push((transaction, txid));
        Ok(txid)
    }

    fn mempool_coin(&self, outpoint: &OutPoint, height: u32) -> Option<ChainCoin> {
        let (parent, _) = self.mempool.iter().find(|(_, txid)| *txid == outpoint.txid)?;
        let output = parent.output.get(usize::try_from(outpoint.vout).ok()?)?.clone();
        Some(unmined(output, height))
    }

    fn mine_mempool(&mut self, script: &ScriptBuf) -> Result<BlockHash, ChainError> {
        let (transactions, fees) = self.take_mempool();
        self.mine(script, transactions, fees)
    }

    fn mine(
        &mut self,
        script: &ScriptBuf,
        transactions: Vec<Transaction>,
        fees: Amount,
    ) -> Result<BlockHash, ChainError> {
        let position = self.next_position();
        let subsidy = Amount::from_sat(
            Amount::from_int_btc(50).to_sat().checked_shr(position.height / HALVING_INTERVAL).unwrap_or(0),
        );
        let salt = self.next_salt();
        let coinbase = coinbase(position.height, subsidy + fees, script, &transactions, salt);
        let mut txdata = vec![coinbase];
        txdata.extend(transactions);
        let now = match self.salt {
            Some(_) => 0,
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        };
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        let mut block = Block {
            header: Header {
                version: Version::from_consensus(0x2000_0000),
                prev_blockhash: self.tip(),
                merkle_root: TxMerkleNode::all_zeros(),
                time: now.max(position.median_time + 1),
                bits: Target::MAX_ATTAINABLE_REGTEST.to_compact_lossy(),
                nonce: 0,
            },
            txdata,
        };
        block.header.merkle_root = block.compute_merkle_root().expect("a block has a coinbase transaction");
        while block.header.validate_pow(block.header.target()).is_err() {
            block.header.nonce += 1;
        }
        let bytes = serialize(&block);
        let hash = self.connect(block)?;
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(&bytes).and_then(|()| file.sync_data())
        {
            self.disconnect();
            return Err(ChainError::Backend(error.into()));
        }
        Ok(hash)
    }

    /// Tells branches of equal height apart.
    fn next_salt(&mut self) -> [u8; 8] {
        let mut salt = [0; 8];
        match &mut self.salt {
            Some(next) => {
                *next = next.wrapping_add(1);
                salt = next.to_be_bytes();
            }
            None => getrandom::getrandom(&mut salt).unwrap_or_default(),
        }
        salt
    }

    fn take_mempool(&mut self) -> (Vec<Transaction>, Amount) {
        let position = self.next_position();
        let mut weight = Weight::ZERO;
        let mut fees = Amount::ZERO;
        let mut taken: Vec<Transaction> = Vec::new();
        let mut created: HashMap<OutPoint, ChainCoin> = HashMap::new();
        // A reorganisation may have brought back what conflicts with what came since: the first stays.
        let mut spent: HashSet<OutPoint> = HashSet::new();
        for (transaction, txid) in std::mem::take(&mut self.mempool) {
            let coin = |outpoint: &OutPoint| {
                let coin = self.coins.get(outpoint).or_else(|| created.get(outpoint));
                coin.filter(|_| !spent.contains(outpoint)).cloned()
            };
            let checked = check_transaction(&transaction, position, coin, |height| self.median_time(height));
            let fits = (weight + transaction.weight()).to_wu() <= BLOCK_WEIGHT_MAX;
            match checked {
                Ok(fee) if fits => {
                    weight += transaction.weight();
                    fees += fee;
                    for (output, vout) in transaction.output.iter().zip(0..) {
                        created.insert(OutPoint { txid, vout }, unmined(output.clone(), position.height));
                    }
                    spent.extend(transaction.input.iter().map(|input| input.previous_output));
                    taken.push(transaction);
                }
                Ok(_) => self.mempool.push((transaction, txid)),
                Err(_) => {}
            }
        }
        self.mempool_spent = self
            .mempool
            .iter()
            .flat_map(|(tx, _)| tx.input.iter().map(|input| input.previous_output))
            .collect();
        (taken, fees)
    }

    /// Checks and applies a block on the tip.
    fn connect(&mut self, block: Block) -> Result<BlockHash, ChainError> {
        let position = self.next_position();
        let refused = |reason: &'static str| ChainError::InvalidBlock { height: position.height, reason };
        let header = &block.header;
        let valid_header = header.prev_blockhash == self.tip()
            && header.validate_pow(Target::MAX_ATTAINABLE_REGTEST).is_ok()
            && header.time > position.median_time
            && block.check_merkle_root()
            && block.check_witness_commitment()
            && commits_to_height(&block, position.height);
        if !valid_header {
            return Err(refused("its header or commitments are not valid"));
        }
        let hash = block.block_hash();
        let mut undo = Vec::new();
        for transaction in &block.txdata {
            if !transaction.is_coinbase() {
                let coin = |outpoint: &OutPoint| self.coins.get(outpoint).cloned();
                let checked =
                    check_transaction(transaction, position, coin, |height| self.median_time(height));
                if let Err(error) = checked {
                    self.restore(&block, undo);
                    return Err(error);
                }
                for input in &transaction.input {
                    if let Some(coin) = self.coins.remove(&input.previous_output) {
                        undo.push((input.previous_output, coin));
                    }
                }
            }
            let txid = transaction.compute_txid();
            for (output, vout) in transaction.output.iter().zip(0..) {
                if !output.script_pubkey.is_op_return() {
                    let coin = ChainCoin {
                        output: output.clone(),
                        height: position.height,
                        hash,
                        coinbase: transaction.is_coinbase(),
                    };
                    self.coins.insert(OutPoint { txid, vout }, coin);
                }
            }
        }
        self.stale.remove(&hash);
        self.hashes.insert(hash, position.height);
        self.undo.push(undo);
        self.blocks.push(block);
        Ok(hash)
    }

    fn restore(&mut self, block: &Block, undo: Vec<(OutPoint, ChainCoin)>) {
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            for (_, vout) in transaction.output.iter().zip(0..) {
                self.coins.remove(&OutPoint { txid, vout });
            }
        }
        let own: HashSet<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
        self.coins.extend(undo.into_iter().filter(|(outpoint, _)| !own.contains(&outpoint.txid)));
    }

    fn disconnect(&mut self) {
        let height = self.height();
        let (Some(block), Some(undo)) = (self.blocks.pop(), self.undo.pop()) else { return };
        let hash = block.block_hash();
        self.restore(&block, undo);
        self.hashes.remove(&hash);
        let back: Vec<_> = block.txdata.iter().skip(1).cloned().collect();
        for (transaction, at) in back.into_iter().zip(0..) {
            self.mempool_spent.extend(transaction.input.iter().map(|input| input.previous_output));
            let txid = transaction.compute_txid();
            self.mempool.insert(at, (transaction, txid));
        }
        self.stale.insert(hash, (block, height));
    }
}

/// BIP34, as Bitcoin Core checks it: the script starts with the height, which up to 16 is an opcode.
fn commits_to_height(block: &Block, height: u32) -> bool {
    let expected = Builder::new().push_int(i64::from(height)).into_script();
    let script = block.coinbase().and_then(|coinbase| coinbase.input.first()).map(|input| &input.script_sig);
    script.is_some_and(|script| script.as_bytes().starts_with(expected.as_bytes()))
}

fn coinbase(
    height: u32,
    value: Amount,
    script: &ScriptBuf,
    transactions: &[Transaction],
    salt: [u8; 8],
) -> Transaction {
    // The extra push keeps the script at its least length of two bytes and tells branches of equal height apart.
    let script_sig = Builder::new().push_int(i64::from(height)).push_slice(salt).into_script();
    let reserved = [0; 32];
    let wtxids = std::iter::once(bitcoin::Wtxid::all_zeros())
        .chain(transactions.iter().map(Transaction::compute_wtxid));
    let root = bitcoin::merkle_tree::calculate_root(wtxids.map(|wtxid| wtxid.to_raw_hash()));
    let root = root.map_or_else(WitnessMerkleNode::all_zeros, WitnessMerkleNode::from_raw_hash);
    let commitment: WitnessCommitment = Block::compute_witness_commitment(&root, &reserved);
    let mut data = PushBytesBuf::from([0xaa, 0x21, 0xa9, 0xed]);
    data.extend_from_slice(commitment.as_ref()).expect("36 bytes");
    Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::null(),
            script_sig,
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[reserved]),
        }],
        output: vec![
            TxOut { value, script_pubkey: script.clone() },
            TxOut {
                value: Amount::ZERO,
                script_pubkey: Builder::new().push_opcode(OP_RETURN).push_slice(data).into_script(),
            },
        ],
    }
}

impl Chain for DevnetChain {
    fn tip(&self) -> Answer<'_, BlockHash> {
        Box::pin(async { Ok(self.lock().tip()) })
    }

    fn wait_for_tip(&self, known: BlockHash) -> Answer<'_, BlockHash> {
        Box::pin(async move {
            let mut tip = self.tip.subscribe();
            let changed = tip.wait_for(|tip| *tip != known).await;
            changed.map(|tip| *tip).map_err(|error| ChainError::Backend(error.into()))
        })
    }

    fn header(&self, hash: BlockHash) -> Answer<'_, (Header, u32)> {
        Box::pin(async move { self.lock().find(hash).map(|(block, height)| (block.header, height)) })
    }

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        Box::pin(async move { self.lock().find(hash).map(|(block, _)| block) })
    }

    fn doubt(&self) -> Answer<'_, Option<String>> {
        Box::pin(async { Ok(None) })
    }

    fn hash_at(&self, height: u32) -> Answer<'_, Option<BlockHash>> {
        Box::pin(async move { Ok(self.block_hash(height)) })
    }

    fn unspent(&self, scripts: Vec<ScriptBuf>) -> Answer<'_, Vec<OutPoint>> {
        let found = self.coins_with(&scripts.into_iter().collect());
        Box::pin(async { Ok(found.into_iter().map(|(outpoint, _)| outpoint).collect()) })
    }

    fn coin(&self, outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>> {
        Box::pin(async move { Ok(self.lock().coins.get(&outpoint).cloned()) })
    }

    fn broadcast(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move { self.submit(transaction).map(|_| ()) })
    }

    fn broadcast_package(&self, package: Vec<Transaction>) -> Answer<'_, ()> {
        Box::pin(async move { package.into_iter().try_for_each(|one| self.submit(one).map(|_| ())) })
    }

    fn missing(&self, txids: Vec<Txid>) -> Answer<'_, BTreeSet<Txid>> {
        Box::pin(async move {
            let known: BTreeSet<Txid> = self.mempool().into_iter().collect();
            Ok(txids.into_iter().filter(|txid| !known.contains(txid)).collect())
        })
    }

    fn fees(&self) -> Answer<'_, Fees> {
        Box::pin(async {
            let estimate = Some(FEE_RATE);
            Ok(Fees { next_block: estimate, six_blocks: estimate, day: None, mempool_min: FEE_RATE_MIN })
        })
    }
}

/// A coin as the next block would have it.
fn unmined(output: TxOut, height: u32) -> ChainCoin {
    ChainCoin { output, height, hash: BlockHash::all_zeros(), coinbase: false }
}

impl State {
    fn find(&self, hash: BlockHash) -> Result<(Block, u32), ChainError> {
        if let Some((block, height)) = self.stale.get(&hash) {
            return Ok((block.clone(), *height));
        }
        let height = *self.hashes.get(&hash).ok_or(ChainError::UnknownBlock(hash))?;
        let block = usize::try_from(height).ok().and_then(|index| self.blocks.get(index));
        block.map(|block| (block.clone(), height)).ok_or(ChainError::UnknownBlock(hash))
    }
}
