//! The invariants, checked on everything that honest nodes let out, at the moment they do.
//!
//! The oracle knows more than any party: it counts commits that nobody ever put together. A transaction counts as
//! final as soon as so many honest nodes have released their commit that the faulty ones could complete it.

use bitcoin::{Block, OutPoint, Txid};
use quorate::{
    Epoch, Federation, NodeId, NonceCommitment, Round,
    evidence::Evidence,
    finality::FinalityProof,
    log_head::SignedHead,
    release::{Outcome, ReleaseCertificate, SignedPromise},
    seal::SealedTransaction,
    vote::{NOT_BEFORE_ITS_BLOCK, SignedVote, Verdict, VoteTarget},
    wire::{
        CommitReply, PeerReply, PeerRequest, ServerMessage, TransactionStatus, VotingReply, VotingRequest,
    },
};
use quorate_rules::{
    index::UNDO_BLOCKS,
    records::{LogRecord, RoundRecord, Table, TxRecord},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What a node has on its disk, as far as the oracle can tell.
pub type Mirror = BTreeMap<Row, Vec<u8>>;
/// A record's table and key.
pub type Row = (Table, Vec<u8>);

/// More blocks than come while a vote is written.
const BLOCKS_PER_WRITE: u32 = 20;

/// The judge of one run.
#[derive(Debug, Default)]
pub struct Oracle {
    approvals: BTreeMap<(NodeId, OutPoint, Round), Txid>,
    nonces: BTreeMap<NonceCommitment, String>,
    commits: BTreeMap<String, BTreeSet<NodeId>>,
    finals: BTreeMap<OutPoint, Txid>,
    final_targets: BTreeMap<OutPoint, Vec<(Round, Txid)>>,
    promised: BTreeMap<(NodeId, OutPoint), Vec<SignedPromise>>,
    committed_to: BTreeMap<(NodeId, OutPoint), Vec<VoteTarget>>,
    releases: BTreeMap<OutPoint, Vec<(Round, Option<Txid>)>>,
    proven: BTreeSet<Txid>,
    /// Transactions that somebody outside was told are final.
    pub acknowledged: BTreeSet<Txid>,
    /// The first rule found broken.
    pub violation: Option<String>,
    /// Statements looked at.
    pub checks: u64,
    /// The transaction that pays all coins at the start, and the height of its block, which stays.
    funding: Option<(Txid, u32)>,
    /// Transactions that were in a block at some time, and may be again.
    pub mined: BTreeMap<Txid, u32>,
    /// What is final by enforcement, as far as honest nodes or wallets know, by the coins that it spends.
    enforced: BTreeMap<OutPoint, Txid>,
    /// The highest block so far.
    highest: u32,
    /// What blocks spent coins by last, and at which height.
    spent: BTreeMap<OutPoint, (Txid, u32)>,
    /// Transactions of sole custody that are final, and promise nothing about the chain.
    attested: BTreeSet<Txid>,
    /// Nodes that have sealed the first epoch.
    sealed: BTreeSet<NodeId>,
}

impl Oracle {
    /// A judge that knows the transaction that pays all coins, and the height of its block.
    pub fn new(funding: Option<(Txid, u32)>) -> Self {
        Self { funding, ..Self::default() }
    }

    /// Notes a broken rule; the first one counts.
    pub fn broken(&mut self, rule: &str, what: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("{rule}: {what}"));
        }
    }

    /// The transaction that is final for an outpoint.
    pub fn final_for(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.finals.get(outpoint).copied()
    }

    /// How many transactions became final.
    pub fn finals(&self) -> usize {
        self.finals.values().collect::<BTreeSet<_>>().len()
    }

    /// An honest node's answer to a peer leaves it.
    pub fn reply(
        &mut self,
        node: NodeId,
        mirror: &Mirror,
        request: &PeerRequest,
        reply: &PeerReply,
        weight: Weight,
    ) {
        self.checks += 1;
        match (request, reply) {
            (_, PeerReply::Voting(VotingReply::VoteResponse { vote, releases, proof, .. })) => {
                self.vote(node, mirror, vote, &weight);
                releases.iter().for_each(|release| self.release(release));
                if let Some(proof) = proof {
                    self.proof(&weight.federation, proof);
                }
            }
            (
                PeerRequest::Voting(VotingRequest::CommitRequest {
                    certificate, attempt, nodes, wallet, ..
                }),
                PeerReply::Voting(VotingReply::CommitResponse { commit }),
            ) => {
                let key = match commit {
                    CommitReply::Sole { .. } => format!("{:?}", certificate.target),
                    CommitReply::Joint { .. } => {
                        let wallet = wallet.as_ref().map(|wallet| &wallet.commitments);
                        let package = format!("{:?} {attempt} {nodes:?} {wallet:?}", certificate.target);
                        let own = nodes.get(&node).map(|own| own.commitments.clone()).unwrap_or_default();
                        for nonce in own {
                            let known = self.nonces.entry(nonce).or_insert_with(|| package.clone());
                            if *known != package {
                                let what = format!("node {node} used {nonce} in two packages");
                                self.broken("no nonce in two packages", what);
                            }
                        }
                        package
                    }
                };
                self.committed(node, mirror, &certificate.target);
                let committed = self.commits.entry(key).or_default();
                committed.insert(node);
                if committed.len() + weight.faulty >= weight.quorum {
                    self.became_final(&certificate.target);
                }
            }
            (_, PeerReply::Voting(VotingReply::ReleaseResponse { promise, release, proof, .. })) => {
                if let Some(promise) = promise {
                    self.promise(node, mirror, promise);
                }
                release.iter().for_each(|release| self.release(release));
                if let Some(proof) = proof {
                    self.proof(&weight.federation, proof);
                }
            }
            _other => {}
        }
    }

    /// Votes that a node finds on its disk when it starts: they may have left, and may leave again.
    pub fn found_votes(&mut self, node: NodeId, mirror: &Mirror) {
        let stored = mirror.iter().filter(|((table, _), _)| *table == Table::Transactions);
        let votes = stored.filter_map(|(_, value)| serde_json::from_slice::<TxRecord>(value).ok()?.vote);
        for vote in votes.filter(|vote| vote.verdict == Verdict::Approve) {
            for (outpoint, round) in vote.target.inputs() {
                self.approvals.entry((node, *outpoint, *round)).or_insert(vote.target.txid());
            }
        }
    }

    fn vote(&mut self, node: NodeId, mirror: &Mirror, vote: &SignedVote, weight: &Weight) {
        if vote.verdict != Verdict::Approve {
            return;
        }
        self.not_sealed(node, vote.target.inputs().values().next().copied());
        let txid = vote.target.txid();
        let first = vote.target.inputs().keys().any(|one| {
            let round = vote.target.inputs().get(one).copied().unwrap_or_default();
            !self.approvals.contains_key(&(node, *one, round))
        });
        for (outpoint, round) in vote.target.inputs() {
            let known = *self.approvals.entry((node, *outpoint, *round)).or_insert(txid);
            if known != txid {
                let what =
                    format!("node {node} approved {known} and {txid} for {outpoint} in round {}", round.0);
                self.broken("one approval per outpoint and round", what);
            }
        }
        if first {
            self.vote_that_will_be_mined(node, vote, weight);
        }
        // The same vote again is the same vote, whatever has happened since.
        for (outpoint, round) in vote.target.inputs().iter().filter(|_| first) {
            self.vote_for_free_coin(node, mirror, txid, *outpoint, *round);
        }
        let recorded = record(mirror, txid).and_then(|record| record.vote);
        if !recorded.is_some_and(|recorded| covers(&recorded.target, &vote.target)) {
            self.broken("nothing leaves that is not durable", format!("node {node}'s vote for {txid}"));
        }
    }

    /// A node votes for nothing that its owner can take back: by the recovery path after a deadline that lies too late,
    /// or by spending the coin of an attested parent another way.
    fn vote_that_will_be_mined(&mut self, node: NodeId, vote: &SignedVote, weight: &Weight) {
        let (txid, roster) = (vote.target.txid(), weight.federation.roster());
        let of_start =
            |(funding, _): &(Txid, u32)| vote.target.inputs().keys().any(|one| one.txid == *funding);
        // Other coins have blocks up to the tip.
        let youngest = self.funding.filter(of_start).map_or(weight.tip, |(_, height)| height);
        let latest = youngest + u32::from(roster.recovery_delay) - u32::from(roster.recovery_margin);
        let deadline = vote.target.custody().deadline().filter(|deadline| *deadline != NOT_BEFORE_ITS_BLOCK);
        // Blocks may come while the vote is written.
        if deadline.is_some_and(|deadline| deadline > latest || deadline + BLOCKS_PER_WRITE < weight.tip) {
            let what = format!("node {node} approved {txid} until {deadline:?} at height {}", weight.tip);
            self.broken("a deadline lies above the tip and below the horizon", what);
        }
        let parents = vote.target.inputs().keys().map(|outpoint| outpoint.txid);
        let mut unmined = parents.filter(|parent| !self.mined.contains_key(parent));
        if let Some(parent) = unmined.find(|parent| self.attested.contains(parent)) {
            let what = format!("node {node} approved {txid}, which spends the attested {parent}");
            self.broken("no promise is better than what it rests on", what);
        }
    }

    /// A node votes for nothing that it can know to be ruled out: by a final transaction, or by a release that is not
    /// void.
    fn vote_for_free_coin(
        &mut self,
        node: NodeId,
        mirror: &Mirror,
        txid: Txid,
        outpoint: OutPoint,
        round: Round,
    ) {
        let spender = self.finals.get(&outpoint).copied().filter(|spender| *spender != txid);
        if let Some(spender) =
            spender.filter(|spender| record(mirror, *spender).is_some_and(|one| one.proof.is_some()))
        {
            let what =
                format!("node {node} approved {txid} for {outpoint}, which the final {spender} spends");
            self.broken("valid first", what);
        }
        let release = stored(mirror, &outpoint).and_then(|record| record.release);
        let begins = round.epoch().first_round();
        if round > begins && release.as_ref().is_none_or(|release| release.round.0 + 1 < round.0) {
            let what = format!("node {node} approved {txid} for {outpoint} in round {}", round.0);
            self.broken("no vote before the release is complete", what);
        }
        if release.is_none()
            && let Some(inherited) =
                inherited(mirror, &outpoint, begins).filter(|inherited| *inherited != txid)
        {
            let what =
                format!("node {node} approved {txid} for {outpoint}, which it inherited for {inherited}");
            self.broken("what an epoch hands over binds the next", what);
        }
        let highest = release.filter(|release| release.round.next() == round).map(|release| release.highest);
        // Void by what the node itself has on its disk: releases of the other inputs, or final transactions that
        // spend them.
        let is_void = |forced: &VoteTarget| {
            forced.inputs().keys().filter(|other| **other != outpoint).any(|other| {
                let released = stored(mirror, other).and_then(|record| record.release);
                released.is_some_and(|release| release.voids(forced))
                    || self.finals.get(other).is_some_and(|spender| *spender != forced.txid())
            })
        };
        let bound = highest.iter().flatten().map(|one| &one.target).find(|forced| !is_void(forced));
        if let Some(forced) = bound.filter(|forced| forced.txid() != txid) {
            let what =
                format!("node {node} approved {txid} for {outpoint}, which is left to {}", forced.txid());
            self.broken("a forced outpoint is voted for one transaction only", what);
        }
    }

    /// A seal names every final transaction that its node has committed to.
    pub fn seal(&mut self, node: NodeId, sealed: &[SealedTransaction]) {
        self.sealed.insert(node);
        let finals = self.finals.iter().filter(|(outpoint, txid)| {
            let committed = self.committed_to.get(&(node, **outpoint));
            committed.is_some_and(|all| all.iter().any(|target| target.txid() == **txid))
        });
        let forgotten = finals.map(|(_, txid)| *txid).find(|txid| sealed.iter().all(|one| one.txid != *txid));
        if let Some(txid) = forgotten {
            self.broken("a seal is complete", format!("node {node} sealed without the final {txid}"));
        }
    }

    fn not_sealed(&mut self, node: NodeId, round: Option<Round>) {
        if round.is_some_and(|round| round.epoch() == Epoch::FIRST) && self.sealed.contains(&node) {
            self.broken("nothing is said after the seal", format!("by node {node}"));
        }
    }

    fn committed(&mut self, node: NodeId, mirror: &Mirror, target: &VoteTarget) {
        self.not_sealed(node, target.inputs().values().next().copied());
        let recorded = record(mirror, target.txid()).and_then(|record| record.certificate);
        if !recorded.is_some_and(|certificate| covers(&certificate.target, target)) {
            let what = format!("node {node}'s commit to {}", target.txid());
            self.broken("nothing leaves that is not durable", what);
        }
        for outpoint in target.inputs().keys() {
            let promises = self.promised.get(&(node, *outpoint));
            if promises.is_some_and(|all| all.iter().any(|promise| promise.contradicts_commit(target))) {
                self.broken("no commit against a promise", format!("node {node} for {outpoint}"));
            }
            self.committed_to.entry((node, *outpoint)).or_default().push(target.clone());
        }
    }

    fn promise(&mut self, node: NodeId, mirror: &Mirror, promise: &SignedPromise) {
        self.not_sealed(node, Some(promise.round));
        if stored_round(mirror, &promise.outpoint) <= promise.round {
            let what = format!("node {node}'s promise for {} in round {}", promise.outpoint, promise.round.0);
            self.broken("nothing leaves that is not durable", what);
        }
        let key = (node, promise.outpoint);
        let commits = self.committed_to.get(&key);
        if commits.is_some_and(|all| all.iter().any(|target| promise.contradicts_commit(target))) {
            self.broken("no commit against a promise", format!("node {node} for {}", promise.outpoint));
        }
        self.promised.entry(key).or_default().push(promise.clone());
    }

    /// A release that an honest node relies on.
    pub fn release(&mut self, release: &ReleaseCertificate) {
        let (outpoint, round, forced) = (release.outpoint, release.round, release.forced_txid());
        let known = self.releases.entry(outpoint).or_default();
        if known.contains(&(round, forced)) {
            return;
        }
        known.push((round, forced));
        for (final_round, txid) in self.final_targets.get(&outpoint).cloned().unwrap_or_default() {
            self.release_against_final(outpoint, round, forced, final_round, txid);
        }
        if let Outcome::Forced(targets) = release.outcome()
            && targets.iter().any(|target| target.inputs().get(&outpoint).is_none_or(|named| *named > round))
        {
            self.broken("a release names no later commit", format!("{outpoint} in round {}", round.0));
        }
    }

    fn release_against_final(
        &mut self,
        outpoint: OutPoint,
        round: Round,
        forced: Option<Txid>,
        made: Round,
        txid: Txid,
    ) {
        if round >= made && forced != Some(txid) {
            let what =
                format!("{outpoint} of the final {txid} was released in round {} to {forced:?}", round.0);
            self.broken("no final transaction is released", what);
        }
    }

    fn became_final(&mut self, target: &VoteTarget) {
        let txid = target.txid();
        if target.custody().deadline().is_none() {
            self.attested.insert(txid);
        }
        for (outpoint, round) in target.inputs() {
            self.spend(*outpoint, txid);
            let known = self.final_targets.entry(*outpoint).or_default();
            if !known.contains(&(*round, txid)) {
                known.push((*round, txid));
            }
            for (released, forced) in self.releases.get(outpoint).cloned().unwrap_or_default() {
                self.release_against_final(*outpoint, released, forced, *round, txid);
            }
        }
    }

    fn spend(&mut self, outpoint: OutPoint, txid: Txid) {
        let known = *self.finals.entry(outpoint).or_insert(txid);
        if known != txid {
            self.broken("two final transactions", format!("{known} and {txid} both spend {outpoint}"));
        }
    }

    /// A block was mined.
    pub fn block(&mut self, block: &Block, height: u32) {
        self.highest = self.highest.max(height);
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            self.mined.insert(txid, height);
            for outpoint in transaction.input.iter().map(|input| input.previous_output) {
                self.spent.insert(outpoint, (txid, height));
                self.stands(outpoint);
            }
        }
    }

    /// The height of the last block that had a transaction.
    pub fn mined_at(&self, txid: &Txid) -> Option<u32> {
        self.mined.get(txid).copied()
    }

    /// Whether a final transaction is no concern of nodes any more: it lies deep in the chain, or what contradicts it
    /// or one that it descends from does.
    pub fn is_settled(&self, txid: &Txid, tip: u32) -> bool {
        let deep = |height: u32| height.saturating_add(UNDO_BLOCKS) <= tip;
        self.mined_at(txid).is_some_and(deep) || self.is_contradicted(txid, &deep, &mut BTreeSet::new())
    }

    fn is_contradicted(&self, txid: &Txid, deep: &impl Fn(u32) -> bool, seen: &mut BTreeSet<Txid>) -> bool {
        if !seen.insert(*txid) || !self.proven.contains(txid) || self.mined_at(txid).is_some() {
            return false;
        }
        let inputs: Vec<OutPoint> =
            self.finals.iter().filter(|(_, by)| *by == txid).map(|(input, _)| *input).collect();
        inputs.iter().any(|input| {
            let other = self.spender(input).is_some_and(|(by, height)| by != *txid && deep(height));
            other || self.is_contradicted(&input.txid, deep, seen)
        })
    }

    /// What a block spent a coin by last, and the height of that block.
    pub fn spender(&self, outpoint: &OutPoint) -> Option<(Txid, u32)> {
        self.spent.get(outpoint).copied()
    }

    /// Nothing that anybody was told is final by enforcement is undone on the chain, by no set of keys.
    fn stands(&mut self, outpoint: OutPoint) {
        let (told, spent) =
            (self.enforced.get(&outpoint).copied(), self.spent.get(&outpoint).map(|one| one.0));
        if let Some((told, spent)) = told.zip(spent).filter(|(told, spent)| told != spent) {
            let what = format!("a block spends {outpoint} by {spent}, and {told} was final");
            self.broken("no final payment is undone by any set of keys", what);
        }
    }

    /// An honest node or wallet holds a proof of finality.
    pub fn proof(&mut self, federation: &Federation, proof: &FinalityProof) {
        let txid = proof.txid();
        if !self.proven.insert(txid) {
            return;
        }
        if let FinalityProof::Enforced { .. } = proof {
            for outpoint in proof.outpoints() {
                self.enforced.insert(outpoint, txid);
                self.stands(outpoint);
            }
        }
        if let Err(error) = proof.verify(federation) {
            self.broken("final means proven", format!("{txid}: {error}"));
        }
        for outpoint in proof.outpoints() {
            self.spend(outpoint, txid);
        }
    }

    /// An honest node tells a wallet or bridge something.
    pub fn told(&mut self, node: NodeId, mirror: &Mirror, message: &ServerMessage, federation: &Federation) {
        self.checks += 1;
        match message {
            ServerMessage::UTXOStateNotification { utxo, proof, .. } => {
                if let Some(proof) = proof {
                    self.proof(federation, proof);
                }
                let held = utxo.lock.filter(|lock| lock.round == utxo.round && lock.locked_at > 0);
                let unknown = held.filter(|lock| record(mirror, lock.txid).is_none());
                if let Some(lock) = unknown {
                    let what = format!("node {node} told of a lock for {}", lock.txid);
                    self.broken("nothing leaves that is not durable", what);
                }
                if let Some(spend) = utxo.spend {
                    self.durable_proof(node, mirror, spend.txid);
                }
            }
            ServerMessage::TransactionStatus { txid, status: TransactionStatus::Signed { proof } } => {
                self.proof(federation, proof);
                self.acknowledged.insert(*txid);
                self.durable_proof(node, mirror, *txid);
            }
            _other => {}
        }
    }

    fn durable_proof(&mut self, node: NodeId, mirror: &Mirror, txid: Txid) {
        // The archive may have what the store has forgotten.
        if self.is_settled(&txid, self.highest) {
            return;
        }
        if record(mirror, txid).is_none_or(|record| record.proof.is_none()) {
            self.broken(
                "nothing leaves that is not durable",
                format!("node {node} told that {txid} is final"),
            );
        }
    }

    /// Evidence that an honest node keeps.
    pub fn evidence(&mut self, federation: &Federation, evidence: &Evidence, may_cheat: bool) {
        if !may_cheat {
            let what = format!("node {} stands accused of {}", evidence.accused(), evidence.kind());
            self.broken("no honest node is accused", what);
        }
        if evidence.verify(federation).is_err() {
            self.broken("evidence convicts", format!("against node {}", evidence.accused()));
        }
    }
}

/// How many nodes may lie in this run, and how many make a quorum.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The federation.
    pub federation: Arc<Federation>,
    /// Nodes that may do anything.
    pub faulty: usize,
    /// q.
    pub quorum: usize,
    /// Height of the node's tip.
    pub tip: u32,
}

fn record(mirror: &Mirror, txid: Txid) -> Option<TxRecord> {
    let key: &[u8] = txid.as_ref();
    serde_json::from_slice(mirror.get(&(Table::Transactions, key.to_vec()))?).ok()
}

/// What the epoch before left an outpoint to by a node's disk, if that spends nothing else and so cannot be void.
fn inherited(mirror: &Mirror, outpoint: &OutPoint, begins: Round) -> Option<Txid> {
    let stored = mirror.iter().filter(|((table, _), _)| *table == Table::Transactions);
    let records = stored.filter_map(|(_, value)| serde_json::from_slice::<TxRecord>(value).ok());
    let certified = records.filter(|record| record.proof.is_none()).filter_map(|record| record.certificate);
    let mut of_this = certified.filter(|one| {
        one.target.inputs().len() == 1
            && one.target.inputs().get(outpoint).is_some_and(|round| *round < begins)
    });
    of_this.next().map(|one| one.target.txid())
}

/// Whether a record shows a statement: it is of the same transaction and the same rounds, or of later ones that came
/// in the same write.
fn covers(recorded: &VoteTarget, stated: &VoteTarget) -> bool {
    let reached = |(outpoint, round): (&OutPoint, &Round)| {
        recorded.inputs().get(outpoint).is_some_and(|kept| kept >= round)
    };
    recorded.txid() == stated.txid() && stated.inputs().iter().all(reached)
}

/// How far a node's log is by its disk.
pub fn log_sequence(mirror: &Mirror) -> u64 {
    let stored = mirror.get(&(Table::Log, b"log".to_vec()));
    let parsed = stored.and_then(|value| serde_json::from_slice::<LogRecord>(value).ok());
    parsed.map_or(0, |record| record.head.sequence)
}

/// How far a node has durably seen a peer's log.
pub fn known_sequence(mirror: &Mirror, peer: NodeId) -> u64 {
    let stored = mirror.get(&(Table::Peers, peer.0.to_be_bytes().to_vec()));
    let parsed = stored.and_then(|value| serde_json::from_slice::<SignedHead>(value).ok());
    parsed.map_or(0, |known| known.head.sequence)
}

fn stored(mirror: &Mirror, outpoint: &OutPoint) -> Option<RoundRecord> {
    let key = bitcoin::consensus::serialize(outpoint);
    serde_json::from_slice(mirror.get(&(Table::Rounds, key))?).ok()
}

fn stored_round(mirror: &Mirror, outpoint: &OutPoint) -> Round {
    stored(mirror, outpoint).map_or(Round(0), |record| record.round)
}
