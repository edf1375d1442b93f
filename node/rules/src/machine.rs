//! The machine of one node: its parts, its inputs, and the order in which they are told of each other's doings.
//!
//! What answers which message is in `router`.

use crate::{
    ChainCoin, Checked, EvidenceFile, Hold, Kept, Output, SessionId, Settings, Sizes, Source, Status,
    announcements::Announcements,
    archive::Archived,
    context::{Context, Identity},
    coordination::Coordination,
    effects::Effect,
    lookups::{Lookups, Parked, no_archive, no_backend, not_checked},
    records::ChangeSet,
    registrations::Registrations,
    release::Releases,
    searching::Searching,
    stored::Stored,
    succession::Sealing,
    vote::Voter,
};
use bitcoin::{Block, BlockHash, Network, OutPoint, Transaction, Txid, block::Header};
use quorate_protocol::{
    Federation, NodeId,
    digest::IdentityKey,
    evidence::Evidence,
    federation::SuccessionPlan,
    finality::FinalityProof,
    frost::NodeShare,
    headers::Checkpoint,
    seal::Handover,
    wire::{BlockRef, FeeEstimates, TransactionStatus, UtxoRecord, limits},
};
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// The rules of one node. See the crate's documentation for how it is driven.
#[derive(Debug)]
pub struct Machine {
    pub(crate) cx: Context,
    pub(crate) voter: Voter,
    pub(crate) coordination: Coordination,
    pub(crate) releases: Releases,
    pub(crate) registrations: Registrations,
    pub(crate) announcements: Announcements,
    pub(crate) sealing: Sealing,
    pub(crate) lookups: Lookups,
    searching: Searching,
    /// Outpoints about whose certificates the archive could not be asked yet.
    pub(crate) unanswered: Vec<OutPoint>,
}

impl Machine {
    /// The rules of node `me` over what its store holds.
    pub fn new(
        me: NodeId,
        federation: Federation,
        key: IdentityKey,
        share: NodeShare,
        settings: Settings,
        rng: ChaCha20Rng,
        mut stored: Stored,
    ) -> Self {
        let proven = stored.transactions.iter().filter(|record| record.proof.is_some());
        let announcements = Announcements::restore(proven.map(|record| record.target.txid()));
        let mut cx = Context::restore(Identity { me, federation, key }, settings, rng, &mut stored);
        cx.record_run();
        cx.notice_missing_store();
        let left = cx.ledger.unplaced();
        let mut machine = Self {
            voter: Voter::restore(share, stored.answers),
            coordination: Coordination::default(),
            releases: Releases::restore(&cx),
            registrations: Registrations::default(),
            announcements,
            sealing: Sealing::default(),
            lookups: Lookups::default(),
            searching: Searching::default(),
            unanswered: Vec::new(),
            cx,
        };
        if !left.is_empty() {
            machine.begin(Parked::Left { me, txids: left });
        }
        let outpoints = machine.cx.ledger.bound();
        if !machine.cx.ledger.unknown_of_bound(&outpoints).is_empty() {
            machine.begin(Parked::Bound { me, outpoints });
        }
        machine
    }

    /// Sets the clocks for the input that follows: monotonic time, and Unix time in milliseconds (for display in
    /// locks only).
    #[must_use]
    pub fn at(&mut self, now: Duration, wall_ms: u64) -> &mut Self {
        (self.cx.now, self.cx.wall_ms) = (now, wall_ms);
        self
    }

    /// The next thing to do, in order. Drain to `None` after every `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.cx.next_output()
    }

    /// Fires expired deadlines; calling early or twice is harmless.
    pub fn handle_timeout(&mut self) {
        self.cx.beat();
        self.releases.push(&mut self.cx);
        self.run_effects();
        self.announcements.handle_timeout(&mut self.cx);
        for txid in self.coordination.due(&self.cx) {
            self.coordination.handle_due(&mut self.cx, txid);
            self.run_effects();
        }
        self.coordination.take_over(&mut self.cx);
        self.run_effects();
        self.free_by_timer();
        self.search();
    }

    /// Begins to look for what accounts were paid before they were known here.
    fn search(&mut self) {
        if self.cx.caught_up && !self.cx.over {
            let found = self.searching.begin(&self.cx.federation, &mut self.cx.ledger, self.cx.now);
            self.cx.outputs.extend(found.map(|(ticket, search)| Output::Search { ticket, search }));
        }
    }

    /// What an [`Output::Search`] found; nothing if the backend does not say.
    pub fn handle_found(&mut self, ticket: u64, found: Option<Vec<OutPoint>>) {
        let Some(found) = found else {
            return self.searching.fail(Some(ticket), &mut self.cx.ledger, self.cx.now);
        };
        if self.searching.take_found(ticket, found, &self.cx.ledger) {
            self.look_up_found();
        }
    }

    /// Looks up the next of what a search found, or ends the search.
    pub(crate) fn look_up_found(&mut self) {
        match self.searching.next_piece(&self.cx.ledger) {
            Some(outpoints) => self.begin(Parked::Found { me: self.cx.me, outpoints }),
            None => self.searching.end(&mut self.cx.ledger, self.cx.now),
        }
    }

    /// What a search found cannot be looked up now.
    pub(crate) fn search_failed(&mut self) {
        self.searching.fail(None, &mut self.cx.ledger, self.cx.now);
    }

    /// When [`Self::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let due = [
            self.coordination.next_event(&self.cx),
            self.releases.next_push(),
            self.announcements.next_event(&self.cx),
            Some(self.cx.log.next_beat()),
            self.searching.next_event(&self.cx.ledger).filter(|_| self.cx.caught_up && !self.cx.over),
        ];
        due.into_iter().flatten().min()
    }

    /// A session of a wallet or bridge ended.
    pub fn handle_session_closed(&mut self, session: SessionId) {
        self.cx.subscriptions.remove_session(session);
        self.coordination.remove_session(session);
        self.lookups.remove_session(session);
    }

    /// Blocks of the chain that the backend follows, each on the one before. What the machine has beyond the parent
    /// of the first was taken out by a reorganisation. `false`, and nothing done, if that parent is not known here, or
    /// more blocks would have to be undone than [`UNDO_BLOCKS`](crate::index::UNDO_BLOCKS).
    pub fn handle_blocks(&mut self, blocks: &[Block]) -> bool {
        let Some(first) = blocks.first() else { return true };
        let tip = self.cx.ledger.tip().height;
        let parent = first.header.prev_blockhash;
        let fork = (self.cx.ledger.undo_floor()..=tip)
            .rev()
            .find(|height| self.cx.ledger.block_hash(*height) == Some(parent));
        let Some(fork) = fork else { return false };
        (fork..tip).for_each(|_| self.disconnect());
        blocks.iter().for_each(|block| self.connect(block));
        self.cx.compare_heights();
        self.settle();
        let outpoints = std::mem::take(&mut self.unanswered);
        if !outpoints.is_empty() {
            self.begin(Parked::Bound { me: self.cx.me, outpoints });
        }
        self.cx.sweep_scripts();
        self.cx.notify_tip();
        true
    }

    /// Begins to forget what no block can change any more and nothing depends on (design, section 14): the archive has
    /// it first.
    fn settle(&mut self) {
        let coordination = &self.coordination;
        if self.cx.over || !self.cx.ledger.prepare(|txid| coordination.has(txid)) {
            return;
        }
        let waits = Parked::Settling { me: self.cx.me };
        let Ok(ticket) = self.lookups.park(self.cx.ledger.tip(), waits, Archived::default()) else {
            return self.cx.ledger.forget_prepared();
        };
        self.cx.recall(ticket, Source::Peer(self.cx.me), Vec::new());
    }

    /// The archive has what is to be forgotten.
    pub(crate) fn forget(&mut self) {
        let coordination = &self.coordination;
        let Some(settled) = self.cx.ledger.settle(|txid| coordination.has(txid)) else {
            return self.settle();
        };
        let mut change = ChangeSet::default();
        settled.transactions.iter().for_each(|txid| change.forget_transaction(txid));
        settled.rounds.iter().for_each(|outpoint| change.forget_round(outpoint));
        self.voter.forget(&settled.transactions, &mut change);
        self.cx.watch.forget(&settled.outpoints);
        if !change.is_empty() {
            self.cx.persist(change);
        }
        self.cx.outputs.push_back(Output::Settled);
    }

    /// What an [`Output::Settled`] came after is durable.
    pub fn handle_settled(&mut self) {
        self.cx.ledger.drop_settled();
        self.settle();
    }

    fn connect(&mut self, block: &Block) {
        let changed = self.cx.ledger.connect(block);
        self.cx.extend_accounts();
        self.cx.notify_outpoints(&changed, None);
        let dead = self.cx.ledger.contradicted(&changed);
        self.cx.alarm(&dead);
        self.cx.tell_conflicts(&dead);
        self.cx.broadcasts.retain(|txid, _| !dead.contains(txid));
        let tip = self.cx.ledger.tip();
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            if self.cx.ledger.record(&txid).is_some() {
                self.cx.broadcasts.remove(&txid);
                self.cx.notify_status(txid, &TransactionStatus::Confirmed { block: tip });
            }
        }
    }

    fn disconnect(&mut self) {
        let undone = self.cx.ledger.block_spends();
        let revived = self.cx.ledger.contradicted(&undone);
        let changed = self.cx.ledger.disconnect();
        self.undo_finality(&changed);
        self.cx.notify_outpoints(&changed, None);
        self.cx.end_alarm(&revived);
        self.cx.tell_conflicts(&revived);
    }

    /// The chain has been read up to the tip that its backend had.
    pub fn handle_caught_up(&mut self) {
        self.cx.caught_up = true;
    }

    /// Why the backend may not be at the tip of the chain, or that it is: meanwhile this node does not vote.
    pub fn handle_doubt(&mut self, reason: Option<String>) {
        let since = match &self.cx.doubt {
            Some((_, since)) => *since,
            None => self.cx.wall_ms / 1_000,
        };
        let doubt = reason.map(|reason| (reason, since));
        if doubt.is_some() != self.cx.doubt.is_some() {
            match &doubt {
                Some((reason, _)) => {
                    tracing::warn!(reason, "the chain backend may not be at the tip; this node does not vote")
                }
                None => tracing::info!("the chain backend is at the tip again"),
            }
        }
        self.cx.doubt = doubt;
    }

    /// What the backend says of fees.
    pub fn handle_fees(&mut self, fees: FeeEstimates) {
        self.cx.fees = fees;
    }

    /// How the backend took a final transaction, or what it says against it.
    pub fn handle_broadcast(&mut self, txid: Txid, refusal: Option<String>) {
        self.cx.take_broadcast(txid, refusal);
    }

    /// What the archive says to an [`Output::Recall`]; nothing if it cannot be read.
    pub fn handle_recalled(&mut self, ticket: u64, archived: Option<Archived>) {
        if let Some(history) = self.lookups.take_history(ticket) {
            return self.cx.answer_subscription(history, archived);
        }
        match (self.lookups.take(ticket), archived) {
            (Some((_, input, _)), Some(archived)) => self.arrive(input, archived),
            (Some((_, input, _)), None) => self.refuse(input, &no_archive()),
            (None, _) => {}
        }
    }

    /// What the chain says of coins that an [`Output::LookUp`] asked for; those that do not exist are missing. Nothing
    /// if it does not say: what needs them may be asked again.
    pub fn handle_coins(&mut self, ticket: u64, coins: Option<Vec<(OutPoint, ChainCoin)>>) {
        let Some((tip, input, archived)) = self.lookups.take(ticket) else { return };
        let coins = match coins {
            Some(coins) => coins,
            None if input.is_subscription() => Vec::new(),
            None => return self.refuse(input, &no_backend()),
        };
        // A block in between may have spent what was unspent. Before the chain has been read there is one all the
        // time, and no vote.
        let overtaken = tip != self.cx.ledger.tip() && self.cx.caught_up;
        if !overtaken {
            self.cx.take_coins(coins);
            return self.examine(input, archived);
        }
        self.begin(input);
    }

    /// What an [`Output::Check`] has found out; nothing if it could not be run.
    pub fn handle_checked(&mut self, ticket: u64, checked: Option<Checked>) {
        let Some((_, input, archived)) = self.lookups.take(ticket) else { return };
        let Some(checked) = checked else { return self.refuse(input, &not_checked()) };
        // What the chain has by now is in the ledger.
        self.cx.checked = Some(checked);
        self.resume(input, archived);
        self.cx.checked = None;
    }

    /// The operator has approved a plan for the next epoch: this node ends its epoch for no other.
    pub fn handle_plan(&mut self, plan: &SuccessionPlan) {
        self.sealing.approve(&self.cx, plan);
    }

    /// Carries out what parts have to tell each other, in order, until nobody has anything to tell.
    pub(crate) fn run_effects(&mut self) {
        while let Some(effect) = self.cx.effects.pop_front() {
            match effect {
                Effect::Release { outpoint, round, reason } => {
                    self.releases.start(&mut self.cx, outpoint, round, &reason);
                }
                Effect::Settled(outpoints) => {
                    self.releases.end(&mut self.cx, &outpoints);
                    self.coordination.inputs_settled(&mut self.cx, &outpoints);
                }
                Effect::Bound(outpoint) => {
                    self.begin(Parked::Bound { me: self.cx.me, outpoints: vec![outpoint] });
                }
                Effect::Final { txid, inputs, status } => {
                    self.releases.end(&mut self.cx, &inputs);
                    self.announcements.pass_on_later(&self.cx, txid);
                    self.coordination.close(&mut self.cx, txid, &status);
                    self.coordination.inputs_settled(&mut self.cx, &inputs);
                }
                Effect::Announce(proof) => self.announcements.announce(&mut self.cx, *proof),
            }
        }
    }
}

/// What others may ask of it between two inputs.
impl Machine {
    /// How much this node holds, for metrics and the bound on memory.
    pub fn sizes(&self) -> Sizes {
        let [transactions, rounds, open, coins] = self.cx.ledger.sizes();
        let (scripts, accounts) = self.cx.ledger.index_sizes();
        Sizes {
            transactions,
            rounds,
            open,
            coins,
            scripts,
            accounts,
            coordinations: self.coordination.len(),
            releases: self.releases.len(),
            announcements: self.announcements.len(),
            sessions: self.cx.subscriptions.sessions(),
        }
    }

    /// What an operator wants to know first.
    pub fn status(&self) -> Status {
        let heard = self.silence().into_iter().map(|(node, time)| (node, time.as_secs_f64()));
        Status {
            node: self.cx.me,
            federation: self.cx.federation.id(),
            epoch: self.cx.federation.epoch(),
            standing: self.standing(),
            tip: self.cx.ledger.tip(),
            log_records: self.cx.log.records(),
            seconds_since_heard: heard.collect(),
            evidence: self.cx.watch.counts(),
            suspects: self.cx.watch.suspects().iter().copied().collect(),
            refusals: self.cx.refusals(),
            breaches: self.cx.breaches.clone(),
            held: self.sizes(),
        }
    }

    /// Whether this node votes, and why not (V9).
    pub fn standing(&self) -> crate::Standing {
        self.cx.standing()
    }

    /// What this node keeps when its epoch ends, beside what is handed over. From then on it takes in nothing more of
    /// the epoch: that would be told and then be in no store.
    pub fn keeps(&mut self, handover: &Handover) -> Kept {
        self.cx.over = true;
        let sealed = handover.transactions().filter(|one| one.proof.is_some());
        let known: BTreeSet<Txid> = sealed.map(|one| one.txid).collect();
        let finals = self.cx.ledger.finals().filter(|record| !known.contains(&record.target.txid()));
        Kept { evidence: self.evidence().cloned().collect(), finals: finals.cloned().collect() }
    }

    /// All evidence, by node.
    pub fn evidence(&self) -> impl Iterator<Item = &Evidence> {
        self.cx.watch.evidence()
    }

    /// All evidence, with what is needed to verify it.
    pub fn evidence_file(&self) -> EvidenceFile {
        let federation = self.cx.federation.document().clone();
        EvidenceFile { federation, evidence: self.evidence().cloned().collect() }
    }

    /// Time since each peer was last heard of.
    pub fn silence(&self) -> BTreeMap<NodeId, Duration> {
        let heard = self.cx.log.heard().iter();
        heard.map(|(node, at)| (*node, self.cx.now.saturating_sub(*at))).collect()
    }

    /// What this node knows of an outpoint.
    pub fn utxo(&self, outpoint: &OutPoint) -> Option<UtxoRecord> {
        self.cx.ledger.current(outpoint)
    }

    /// The proof of a transaction that this node holds for final.
    pub fn proof(&self, txid: &Txid) -> Option<&FinalityProof> {
        self.cx.ledger.proof(txid)
    }

    /// Takes a proof for verified.
    #[cfg(test)]
    pub(crate) fn trust_final(&mut self, proof: FinalityProof) {
        self.cx.record_final(proof);
    }

    /// Whether this node knows that a transaction can no longer be undone: it has its proof, or a block has it.
    pub fn knows_final(&self, txid: &Txid) -> bool {
        self.proof(txid).is_some() || self.cx.ledger.block_of(txid).is_some()
    }

    /// What holds an outpoint in its present round here: an approval, a release that is not complete, or a forced
    /// transaction.
    pub fn holds(&self, outpoint: &OutPoint) -> Option<Hold> {
        let ledger = &self.cx.ledger;
        if ledger.spent_by(outpoint).is_some() {
            return None;
        }
        if ledger.is_pending(outpoint) {
            return Some(Hold::Releasing);
        }
        let approved = ledger.approved(outpoint).map(|(txid, _)| Hold::Approved(txid));
        approved.or_else(|| ledger.forced(outpoint).map(Hold::Forced))
    }

    /// Proven final transactions that are not in a block, to broadcast again.
    pub fn unconfirmed(&self) -> Vec<Transaction> {
        self.cx.ledger.unconfirmed()
    }

    /// The tip of the chain as far as it has been read.
    pub fn tip(&self) -> BlockRef {
        self.cx.ledger.tip()
    }

    /// Whether the chain has been read to its tip.
    pub fn is_caught_up(&self) -> bool {
        self.cx.caught_up
    }

    /// The hash that the follower builds on at a height.
    pub fn block_at(&self, height: u32) -> Option<BlockHash> {
        self.cx.ledger.block_hash(height)
    }

    /// The network, and the block that its chain is read from.
    pub fn chain(&self) -> (Network, Checkpoint) {
        (self.cx.federation.network(), self.cx.federation.birthday())
    }

    /// The lowest tip to which blocks can be undone.
    pub fn undo_floor(&self) -> u32 {
        self.cx.ledger.undo_floor()
    }

    /// Headers from a height on, as many as fit in one answer.
    pub fn headers(&self, from: u32) -> Vec<Header> {
        self.cx.ledger.headers(from, limits::HEADERS_MAX)
    }
}
