//! The wallet's light client: a header chain from a checkpoint, and proofs that a transaction is in it.
//!
//! `Confirmed` is computed here and never accepted as an event (design, section 10). Checked per header: it builds on
//! its predecessor, its hash meets its target (proof of work), the target is the one that the retarget rule gives,
//! and its time is above the median of the eleven before it. Per proof: the Merkle path leads to a header of the
//! chain (CVE-2012-2459 is guarded by rust-bitcoin's partial Merkle tree), and the transaction is not 64 bytes long
//! without its witness, the size of an inner Merkle node (CVE-2017-12842). Sources: BIP37, BIP113, Bitcoin Core
//! `pow.cpp`.

pub use crate::checkpoint::Checkpoint;
use crate::wire::{BlockRef, RawTransactionProof};
use bitcoin::{CompactTarget, Network, Transaction, Txid, Work, block::Header, consensus::Params};
use std::collections::HashMap;

/// Blocks between two retargets.
///
/// ```
/// assert_eq!(quorate::headers::RETARGET_INTERVAL, 2016);
/// ```
pub const RETARGET_INTERVAL: u32 = 2016;
/// Headers whose median time the next one must be above (BIP113).
///
/// ```
/// assert_eq!(quorate::headers::MEDIAN_TIME_SPAN, 11);
/// ```
pub const MEDIAN_TIME_SPAN: u32 = 11;
/// Size of an inner node of a Merkle tree, in bytes.
const MERKLE_NODE_SIZE: usize = 64;

/// Headers from a checkpoint to the tip with the most work that the wallet has seen.
///
/// ```
/// use quorate::headers::{Checkpoint, HeaderChain};
/// let chain = HeaderChain::new(bitcoin::Network::Regtest, Checkpoint::genesis(bitcoin::Network::Regtest));
/// assert_eq!(chain.tip().height, 0);
/// ```
#[derive(Clone, Debug)]
pub struct HeaderChain {
    params: Params,
    base: u32,
    headers: Vec<Header>,
    heights: HashMap<bitcoin::BlockHash, u32>,
}

impl HeaderChain {
    /// Starts at a checkpoint.
    pub fn new(network: Network, checkpoint: Checkpoint) -> Self {
        let hash = checkpoint.header.block_hash();
        Self {
            params: Params::new(network),
            base: checkpoint.height,
            headers: vec![checkpoint.header],
            heights: HashMap::from([(hash, checkpoint.height)]),
        }
    }

    /// The tip.
    pub fn tip(&self) -> BlockRef {
        let height = self.base + u32::try_from(self.headers.len() - 1).unwrap_or(u32::MAX);
        let hash = self.headers.last().map(Header::block_hash).expect("the checkpoint is never removed");
        BlockRef { height, hash }
    }

    /// The header at a height of the chain.
    pub fn header(&self, height: u32) -> Option<&Header> {
        self.headers.get(usize::try_from(height.checked_sub(self.base)?).ok()?)
    }

    /// Height of the checkpoint.
    pub fn base(&self) -> u32 {
        self.base
    }

    /// The height of a block of the chain.
    pub fn height_of(&self, hash: &bitcoin::BlockHash) -> Option<u32> {
        self.heights.get(hash).copied()
    }

    /// Whether a block is in the chain.
    pub fn contains(&self, block: &BlockRef) -> bool {
        self.heights.get(&block.hash) == Some(&block.height)
    }

    /// How deep a block is: 1 for the tip, 0 if it is not in the chain.
    pub fn confirmations(&self, block: &BlockRef) -> u32 {
        if self.contains(block) { self.tip().height - block.height + 1 } else { 0 }
    }

    /// Height from which to ask for headers, the `step`-th time that they did not connect.
    pub fn ask_from(&self, step: u32) -> u32 {
        let back = if step == 0 { 0 } else { 1_u32.checked_shl(step).unwrap_or(u32::MAX) };
        (self.tip().height + 1).saturating_sub(back).max(self.base + 1)
    }

    /// Takes in consecutive headers. A branch replaces the chain from where it forks, if it has more work.
    ///
    /// # Errors
    /// The headers do not connect (ask further back), or break a rule (their sender is at fault).
    pub fn extend(&mut self, headers: &[Header]) -> Result<Extension, HeaderError> {
        let Some(first) = headers.first() else { return Ok(Extension::Unchanged) };
        let parent = *self.heights.get(&first.prev_blockhash).ok_or(HeaderError::Disconnected)?;
        let keep = usize::try_from(parent - self.base + 1).unwrap_or(usize::MAX);
        let (kept, old) = self.headers.split_at(keep);
        let same = headers.iter().zip(old).take_while(|(new, old)| new == old).count();
        if same == headers.len() {
            return Ok(Extension::Unchanged);
        }
        if old.is_empty() {
            return self.append(parent, headers);
        }
        let mut branch = kept.to_vec();
        for header in headers {
            self.check(&branch, header)?;
            branch.push(*header);
        }
        let work = |headers: &[Header]| headers.iter().map(Header::work).reduce(|sum, one| sum + one);
        let new_work: Option<Work> = work(headers);
        if new_work <= work(old) {
            return Ok(Extension::Unchanged);
        }
        let fork = parent + u32::try_from(same).unwrap_or(0);
        let reorganised = same < old.len();
        for header in old {
            self.heights.remove(&header.block_hash());
        }
        for (header, height) in headers.iter().zip(parent + 1..) {
            self.heights.insert(header.block_hash(), height);
        }
        self.headers = branch;
        Ok(if reorganised { Extension::Reorganised { fork } } else { Extension::Extended })
    }

    /// Headers on top of the tip, all or none. Nothing is copied: this is how a wallet reads hundreds of thousands.
    fn append(&mut self, tip: u32, headers: &[Header]) -> Result<Extension, HeaderError> {
        let mut branch = std::mem::take(&mut self.headers);
        let before = branch.len();
        let checked = headers.iter().try_for_each(|header| {
            self.check(&branch, header)?;
            branch.push(*header);
            Ok(())
        });
        if checked.is_err() {
            branch.truncate(before);
        }
        self.headers = branch;
        checked?;
        self.heights.extend(headers.iter().map(Header::block_hash).zip(tip + 1..));
        Ok(Extension::Extended)
    }

    fn check(&self, branch: &[Header], header: &Header) -> Result<(), HeaderError> {
        let height = self.base + u32::try_from(branch.len()).unwrap_or(u32::MAX);
        let at = |height: u32| branch.get(usize::try_from(height.checked_sub(self.base)?).ok()?).copied();
        check_header(&self.params, header, height, at)
    }

    /// Checks that a transaction is in a block of the chain.
    ///
    /// # Errors
    /// The block is not known yet (get headers first), or the proof does not hold (its sender is at fault).
    pub fn verify(&self, txid: Txid, proof: &RawTransactionProof) -> Result<Transaction, ProofError> {
        if !self.contains(&proof.block) || proof.merkle_block.header.block_hash() != proof.block.hash {
            return Err(ProofError::UnknownBlock { block: proof.block });
        }
        if proof.transaction.compute_txid() != txid || proof.transaction.base_size() == MERKLE_NODE_SIZE {
            return Err(ProofError::Transaction);
        }
        let mut matches = Vec::new();
        let mut indices = Vec::new();
        proof.merkle_block.extract_matches(&mut matches, &mut indices).map_err(|_| ProofError::Path)?;
        if matches.contains(&txid) { Ok(proof.transaction.clone()) } else { Err(ProofError::Path) }
    }
}

/// Checks a header against those below it, of which `at` gives what it has: it builds on the one before, its target is
/// the one that the retarget rule gives, its hash meets that, and its time is above the median of the eleven before it.
/// A chain begins with a whole difficulty period, or the first retarget cannot be checked and is refused.
///
/// ```
/// use bitcoin::{Network, consensus::Params, constants::genesis_block};
/// use quorate::headers::{HeaderError, check_header};
/// let genesis = genesis_block(Network::Regtest).header;
/// let params = Params::new(Network::Regtest);
/// assert_eq!(check_header(&params, &genesis, 1, |_| Some(genesis)), Err(HeaderError::Disconnected));
/// ```
///
/// # Errors
/// The first rule that it breaks.
pub fn check_header(
    params: &Params,
    header: &Header,
    height: u32,
    at: impl Fn(u32) -> Option<Header>,
) -> Result<(), HeaderError> {
    let previous = height.checked_sub(1).and_then(&at).ok_or(HeaderError::Disconnected)?;
    if header.prev_blockhash != previous.block_hash() {
        return Err(HeaderError::Disconnected);
    }
    if !target_allowed(params, &previous, header, height, &at) {
        return Err(HeaderError::Target { height });
    }
    if header.validate_pow(header.target()).is_err() {
        return Err(HeaderError::ProofOfWork { height });
    }
    let from = height.saturating_sub(MEDIAN_TIME_SPAN);
    let mut times: Vec<u32> = (from..height).filter_map(at).map(|one| one.time).collect();
    times.sort_unstable();
    if times.get(times.len() / 2).is_some_and(|median| header.time <= *median) {
        return Err(HeaderError::Time { height });
    }
    Ok(())
}

fn target_allowed(
    params: &Params,
    previous: &Header,
    header: &Header,
    height: u32,
    at: impl Fn(u32) -> Option<Header>,
) -> bool {
    if params.no_pow_retargeting {
        return header.bits == previous.bits;
    }
    if params.allow_min_difficulty_blocks {
        // Test networks let any block fall back to the least difficulty; the bound is all that can be asked.
        return header.target() <= params.max_attainable_target;
    }
    if !height.is_multiple_of(RETARGET_INTERVAL) {
        return header.bits == previous.bits;
    }
    let Some(start) = height.checked_sub(RETARGET_INTERVAL).and_then(at) else { return false };
    let span = u64::from(previous.time.saturating_sub(start.time));
    header.bits == CompactTarget::from_next_work_required(previous.bits, span, params)
}

/// What headers changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Nothing: known already, or a branch with less work.
    Unchanged,
    /// The chain grew.
    Extended,
    /// Blocks above `fork` were replaced.
    Reorganised {
        /// Last common height.
        fork: u32,
    },
}

/// Why headers are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// They do not connect to the chain; ask from further back.
    #[error("the headers do not connect to the chain")]
    Disconnected,
    /// The difficulty is not what the retarget rule gives.
    #[error("the header at height {height} has the wrong target")]
    Target {
        /// Height.
        height: u32,
    },
    /// The hash is above the target.
    #[error("the header at height {height} has no proof of work")]
    ProofOfWork {
        /// Height.
        height: u32,
    },
    /// The time is not above the median of the eleven before.
    #[error("the header at height {height} is too early")]
    Time {
        /// Height.
        height: u32,
    },
}

/// Why a proof of inclusion is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The block is not in the wallet's chain.
    #[error("block {} at height {} is not in the wallet's chain", .block.hash, .block.height)]
    UnknownBlock {
        /// The block.
        block: BlockRef,
    },
    /// The Merkle path does not lead to the block, or to another transaction.
    #[error("the Merkle path does not prove the transaction")]
    Path,
    /// Another transaction, or one of the size of a Merkle node.
    #[error("the proof carries another transaction, or one that could be an inner Merkle node")]
    Transaction,
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{BlockHash, TxMerkleNode, block::Version, hashes::Hash as _};

    fn mine(prev: &Header, salt: u8) -> Header {
        let mut header = Header {
            version: Version::TWO,
            prev_blockhash: prev.block_hash(),
            merkle_root: TxMerkleNode::from_byte_array([salt; 32]),
            time: prev.time + 600,
            bits: prev.bits,
            nonce: 0,
        };
        while header.validate_pow(header.target()).is_err() {
            header.nonce += 1;
        }
        header
    }

    fn branch(from: &Header, length: usize, salt: u8) -> Vec<Header> {
        let mut headers = vec![mine(from, salt)];
        while headers.len() < length {
            headers.push(mine(&headers[headers.len() - 1], salt));
        }
        headers
    }

    fn chain() -> HeaderChain {
        HeaderChain::new(Network::Regtest, Checkpoint::genesis(Network::Regtest))
    }

    #[test]
    fn the_longer_branch_wins_and_the_shorter_does_not() {
        let mut chain = chain();
        let genesis = *chain.header(0).expect("base");
        let first = branch(&genesis, 3, 1);
        assert_eq!(chain.extend(&first), Ok(Extension::Extended));
        assert_eq!(chain.extend(&first), Ok(Extension::Unchanged));
        assert_eq!(chain.extend(&branch(&genesis, 3, 2)), Ok(Extension::Unchanged), "same work");
        let block = BlockRef { height: 2, hash: first[1].block_hash() };
        assert_eq!(chain.confirmations(&block), 2);
        assert_eq!(chain.extend(&branch(&first[0], 3, 3)), Ok(Extension::Reorganised { fork: 1 }));
        assert_eq!(chain.confirmations(&block), 0);
        assert_eq!(chain.tip().height, 4);
    }

    #[test]
    fn headers_that_break_a_rule_are_refused() {
        let genesis = Checkpoint::genesis(Network::Regtest).header;
        let good = mine(&genesis, 1);
        let mut lazy = good;
        while lazy.validate_pow(lazy.target()).is_ok() {
            lazy.nonce += 1;
        }
        assert_eq!(chain().extend(&[lazy]), Err(HeaderError::ProofOfWork { height: 1 }));
        let easy = Header { bits: CompactTarget::from_consensus(0x207f_fffe), ..good };
        assert_eq!(chain().extend(&[easy]), Err(HeaderError::Target { height: 1 }));
        let mut early = Header { time: genesis.time, ..good };
        while early.validate_pow(early.target()).is_err() {
            early.nonce += 1;
        }
        assert_eq!(chain().extend(&[early]), Err(HeaderError::Time { height: 1 }));
        let stray = Header { prev_blockhash: BlockHash::all_zeros(), ..good };
        assert_eq!(chain().extend(&[stray]), Err(HeaderError::Disconnected));
    }

    #[test]
    fn the_first_header_of_a_period_has_the_target_that_the_period_before_it_gives() {
        let params = Params::new(Network::Bitcoin);
        let genesis = Checkpoint::genesis(Network::Bitcoin).header;
        let period = |seconds: u32| {
            let step = seconds / (RETARGET_INTERVAL - 1);
            let mut headers = vec![genesis];
            while headers.len() < 2016 {
                let last = headers[headers.len() - 1];
                headers.push(Header { prev_blockhash: last.block_hash(), time: last.time + step, ..genesis });
            }
            headers
        };
        // Blocks twice as fast as wanted, so that the next ones are twice as hard. Nobody has mined any of them.
        let headers = period(RETARGET_INTERVAL * 300);
        let at = |height: u32| headers.get(height as usize).copied();
        let last = headers[2015];
        let next =
            |bits| Header { prev_blockhash: last.block_hash(), time: last.time + 300, bits, ..genesis };
        let span = u64::from(last.time - genesis.time);
        let right = CompactTarget::from_next_work_required(genesis.bits, span, &params);
        assert_ne!(right, genesis.bits);
        let check = |bits, height| check_header(&params, &next(bits), height, at);
        assert_eq!(check(genesis.bits, 2016), Err(HeaderError::Target { height: 2016 }), "too easy");
        assert_eq!(check(right, 2016), Err(HeaderError::ProofOfWork { height: 2016 }), "as it has to be");
        let without_start = |height: u32| (height > 0).then(|| at(height)).flatten();
        assert_eq!(
            check_header(&params, &next(right), 2016, without_start),
            Err(HeaderError::Target { height: 2016 }),
            "what cannot be checked is refused"
        );
    }
}
