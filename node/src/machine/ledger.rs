//! Facts of outpoints and transactions, and the headers of the chain.
//!
//! Facts of the protocol (votes, certificates, proofs) are durable and restored; facts of blocks are rebuilt by the follower at every
//! start. Indexed are Taproot outputs and outputs of scripts that somebody asked for; other coins are looked up when a proposal
//! names them.

use crate::chain::ChainCoin;
use bitcoin::{
    Block, BlockHash, Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid, block::Header,
    constants::genesis_block,
};
use quorate::{
    Round,
    account::AccountCertificate,
    finality::FinalityProof,
    proposal::Proposal,
    vote::{ApprovalCertificate, SignedVote, VoteTarget},
    wire::{BlockRef, ConfirmedSpend, FinalSpend, Lock, UtxoRecord},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};

/// What this node holds about a transaction; the durable part of its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TxRecord {
    pub(crate) target: VoteTarget,
    pub(crate) proposal: Option<Proposal>,
    pub(crate) account: Option<AccountCertificate>,
    pub(crate) spent: Vec<TxOut>,
    pub(crate) vote: Option<SignedVote>,
    pub(crate) locked_at: u64,
    pub(crate) certificate: Option<ApprovalCertificate>,
    pub(crate) proof: Option<FinalityProof>,
}

#[derive(Debug)]
struct Coin {
    record: UtxoRecord,
    coinbase: bool,
}

#[derive(Debug, Default)]
struct BlockEffect {
    created: Vec<OutPoint>,
    spent: Vec<OutPoint>,
    txids: Vec<Txid>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    coins: HashMap<OutPoint, Coin>,
    scripts: HashMap<ScriptBuf, BTreeSet<OutPoint>>,
    wanted: HashSet<ScriptBuf>,
    records: HashMap<Txid, TxRecord>,
    blocks: HashMap<Txid, BlockRef>,
    headers: Vec<Header>,
    effects: Vec<BlockEffect>,
}

impl Ledger {
    pub(super) fn restore(network: Network, records: Vec<TxRecord>) -> Self {
        let mut ledger = Self {
            coins: HashMap::new(),
            scripts: HashMap::new(),
            wanted: HashSet::new(),
            records: HashMap::new(),
            blocks: HashMap::new(),
            headers: vec![genesis_block(network).header],
            effects: vec![BlockEffect::default()],
        };
        for record in records {
            ledger.put(record);
        }
        ledger
    }

    pub(super) fn knows(&self, outpoint: &OutPoint) -> bool {
        self.coins.contains_key(outpoint)
    }

    pub(super) fn record(&self, txid: &Txid) -> Option<&TxRecord> {
        self.records.get(txid)
    }

    pub(super) fn coin(&self, outpoint: &OutPoint) -> Option<&UtxoRecord> {
        self.coins.get(outpoint).map(|coin| &coin.record)
    }

    pub(super) fn is_coinbase(&self, outpoint: &OutPoint) -> bool {
        self.coins.get(outpoint).is_some_and(|coin| coin.coinbase)
    }

    pub(super) fn round(&self, _outpoint: &OutPoint) -> Round {
        // Rounds rise with release certificates only, which come with the protocol under faults.
        Round(0)
    }

    pub(super) fn by_script(&self, script: &ScriptBuf) -> Vec<OutPoint> {
        self.scripts.get(script).map(|set| set.iter().copied().collect()).unwrap_or_default()
    }

    pub(super) fn block_of(&self, txid: &Txid) -> Option<BlockRef> {
        self.blocks.get(txid).copied()
    }

    /// Has outputs of this script indexed from now on. Gives the height from which its history in blocks is known.
    pub(super) fn want(&mut self, script: &ScriptBuf) -> u32 {
        if script.is_p2tr() {
            return 0;
        }
        let new = self.wanted.insert(script.clone());
        if new { self.tip().height + 1 } else { 0 }
    }

    /// Takes over a transaction's record; gives the outpoints whose facts changed.
    pub(super) fn put(&mut self, record: TxRecord) -> Vec<OutPoint> {
        let txid = record.target.txid();
        let mut changed = Vec::new();
        let transaction = record.proof.as_ref().map(FinalityProof::transaction).cloned();
        let inputs: Vec<OutPoint> = match (&record.proof, &record.proposal) {
            (Some(proof), _) => proof.outpoints().collect(),
            (None, Some(proposal)) => proposal.outpoints(),
            (None, None) => Vec::new(),
        };
        for (index, outpoint) in inputs.iter().enumerate() {
            if let Some(output) = record.spent.get(index) {
                self.add(*outpoint, output, false);
            }
            let Some(coin) = self.coins.get_mut(outpoint) else { continue };
            if record.vote.is_some() {
                let round = record.target.inputs().get(outpoint).copied().unwrap_or_default();
                coin.record.lock = Some(Lock { txid, round, locked_at: record.locked_at });
            }
            if let Some(certificate) = &record.certificate {
                coin.record.votes = u16::try_from(certificate.approvals.len()).unwrap_or(u16::MAX);
            }
            if let Some(proof) = &record.proof {
                coin.record.spend = Some(FinalSpend { txid, kind: proof.kind() });
            }
            changed.push(*outpoint);
        }
        if let (Some(transaction), Some(proof)) = (transaction, &record.proof) {
            let kind = proof.kind();
            for (output, vout) in transaction.output.iter().zip(0..) {
                let outpoint = OutPoint { txid, vout };
                self.add(outpoint, output, false);
                if let Some(coin) = self.coins.get_mut(&outpoint) {
                    coin.record.final_parent = Some(kind);
                    changed.push(outpoint);
                }
            }
        }
        self.records.insert(txid, record);
        changed
    }

    fn add(&mut self, outpoint: OutPoint, output: &TxOut, coinbase: bool) -> &mut Coin {
        self.scripts.entry(output.script_pubkey.clone()).or_default().insert(outpoint);
        self.coins.entry(outpoint).or_insert_with(|| Coin {
            record: UtxoRecord {
                outpoint,
                value: output.value,
                script_pubkey: output.script_pubkey.clone(),
                tip_height: 0,
                created: None,
                final_parent: None,
                lock: None,
                votes: 0,
                spend: None,
                spent: None,
            },
            coinbase,
        })
    }

    /// A coin that the backend looked up.
    pub(super) fn add_coin(&mut self, outpoint: OutPoint, found: ChainCoin) {
        let hash = self.block_hash(found.height);
        let tip = self.tip().height;
        let coin = self.add(outpoint, &found.output, found.coinbase);
        coin.coinbase = found.coinbase;
        coin.record.tip_height = tip;
        coin.record.created = hash.map(|hash| BlockRef { height: found.height, hash });
    }

    /// A record as of the present tip.
    pub(super) fn current(&self, outpoint: &OutPoint) -> Option<UtxoRecord> {
        let mut record = self.coin(outpoint)?.clone();
        record.tip_height = self.tip().height;
        Some(record)
    }

    pub(super) fn tip(&self) -> BlockRef {
        let height = u32::try_from(self.headers.len() - 1).unwrap_or(u32::MAX);
        let hash = self.headers.last().map(Header::block_hash).expect("genesis is never removed");
        BlockRef { height, hash }
    }

    pub(super) fn block_hash(&self, height: u32) -> Option<BlockHash> {
        self.headers.get(usize::try_from(height).ok()?).map(Header::block_hash)
    }

    pub(super) fn headers(&self, from: u32, count: usize) -> Vec<Header> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        self.headers.iter().skip(from).take(count).copied().collect()
    }

    /// Median time of the last eleven headers (BIP113).
    pub(super) fn median_time(&self) -> u32 {
        let mut times: Vec<u32> = self.headers.iter().rev().take(11).map(|header| header.time).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0)
    }

    pub(super) fn connect(&mut self, block: &Block) -> Vec<OutPoint> {
        self.headers.push(block.header);
        let at = self.tip();
        let mut effect = BlockEffect::default();
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            self.blocks.insert(txid, at);
            effect.txids.push(txid);
            for input in &transaction.input {
                if let Some(coin) = self.coins.get_mut(&input.previous_output) {
                    coin.record.spent = Some(ConfirmedSpend { txid, block: at });
                    effect.spent.push(input.previous_output);
                }
            }
            for (output, vout) in transaction.output.iter().zip(0..) {
                let outpoint = OutPoint { txid, vout };
                let script = &output.script_pubkey;
                if script.is_p2tr() || self.wanted.contains(script) || self.knows(&outpoint) {
                    let coin = self.add(outpoint, output, transaction.is_coinbase());
                    coin.coinbase = transaction.is_coinbase();
                    coin.record.created = Some(at);
                    effect.created.push(outpoint);
                }
            }
        }
        let changed = effect.created.iter().chain(&effect.spent).copied().collect();
        self.effects.push(effect);
        changed
    }

    pub(super) fn disconnect(&mut self) -> Vec<OutPoint> {
        if self.headers.len() <= 1 {
            return Vec::new();
        }
        self.headers.pop();
        let Some(effect) = self.effects.pop() else { return Vec::new() };
        for txid in &effect.txids {
            self.blocks.remove(txid);
        }
        for outpoint in &effect.spent {
            if let Some(coin) = self.coins.get_mut(outpoint) {
                coin.record.spent = None;
            }
        }
        for outpoint in &effect.created {
            if let Some(coin) = self.coins.get_mut(outpoint) {
                coin.record.created = None;
            }
        }
        effect.created.into_iter().chain(effect.spent).collect()
    }

    pub(super) fn unconfirmed(&self) -> Vec<Transaction> {
        let open = self.records.iter().filter(|(txid, _)| !self.blocks.contains_key(*txid));
        open.filter_map(|(_, record)| record.proof.as_ref())
            .map(|proof| proof.transaction().clone())
            .collect()
    }
}
