//! Rules V5 and V6 at one node: promises, release certificates, and pushing an unfinished release to its end.
//!
//! # Why it is safe
//!
//! * A promise leaves only after the higher round is durable ([`Releases::promise`]), and from that write on `vote`
//!   and `commit` refuse every lower round. It names the highest certificate that this node committed to; commits are
//!   durable before they leave, so it names every commit that anybody can have seen.
//! * A timer never frees anything. It only makes this node promise; what is free is decided by q promises (see
//!   [`quorate_protocol::release`]).
//!
//! # Why it ends
//!
//! A node that promised keeps asking the others until it holds a release certificate. n - q + 1 promises, one of them
//! of an honest node, are reason enough for every other, so if one honest lock runs out, all q responsive nodes
//! promise.

use crate::{
    Bug, Tag,
    context::Context,
    effects::{Effect, Reason},
    records::{Change, RoundRecord},
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    NodeId, Round,
    account::AccountCertificate,
    proposal::{JointProposal, Proposal},
    release::{ReleaseCertificate, SignedCancel, SignedPromise},
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget},
    wire::{Cancellation, VotingReply, VotingRequest, WireError},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// Wait before nodes that have not promised are asked again; doubles up to the longest.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(250);
/// Longest wait.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(1);
/// Releases that one node pushes at a time; more wait for the next sweep.
const RUNS_MAX: usize = 4_096;
/// Outpoints without a lock whose first release request by one peer is remembered, as the start of this node's timer
/// for them. More are not answered, so that no peer can make this node write about every coin there is.
const ASKED_PER_PEER_MAX: usize = 512;

/// A release that this node collects.
#[derive(Debug)]
pub(crate) struct ReleaseRun {
    round: Round,
    reason: Reason,
    promises: BTreeMap<NodeId, SignedPromise>,
    committed: Vec<ApprovalCertificate>,
    since: Duration,
    ask_at: Duration,
    wait: Duration,
}

/// What a release request says.
pub(crate) struct ReleaseCall {
    pub(crate) outpoint: OutPoint,
    pub(crate) round: Round,
    pub(crate) reason: Reason,
    pub(crate) promises: Vec<SignedPromise>,
}

/// What this node does about rounds that have to be left.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    /// Releases that this node pushes.
    runs: BTreeMap<OutPoint, ReleaseRun>,
    /// Promises given whose release this node takes up if the node that asked does not finish it.
    follow_up: BTreeMap<OutPoint, Duration>,
    /// When, and by whom, this node was first asked to release an outpoint that it has no lock for.
    asked: HashMap<OutPoint, (Round, Duration, NodeId)>,
}

impl Releases {
    /// Takes up the releases that this node promised to before it stopped.
    pub(crate) fn restore(cx: &Context) -> Self {
        let at = cx.patience();
        let follow_up = cx.ledger.pending().into_iter().map(|outpoint| (outpoint, at)).collect();
        Self { follow_up, ..Self::default() }
    }

    /// How many this node pushes.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Answers a request to leave a round.
    pub(crate) fn handle_request(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        call: ReleaseCall,
    ) -> Result<VotingReply, WireError> {
        let ReleaseCall { outpoint, round, mut reason, mut promises } = call;
        // Whatever else is a reason to leave the round, this node does not vote for what is cancelled in the next.
        reason.cancel = reason.cancel.filter(|cancel| cx.hear_cancel(cancel));
        promises.truncate(usize::from(cx.federation.quorum().nodes()));
        promises.retain(|promise| promise.outpoint == outpoint && promise.round == round);
        for promise in &promises {
            cx.watch_promise(promise);
        }
        let spender = cx.ledger.final_spend(&outpoint);
        let proof = spender.and_then(|txid| cx.ledger.record(&txid)?.proof.clone()).map(Box::new);
        let release = cx.ledger.release(&outpoint).filter(|known| known.round >= round).cloned();
        let mut promise = None;
        if proof.is_none() && release.is_none() {
            cx.may_vote()?;
            // Only the present round can be left, one at a time: nobody can have a node skip rounds or start its
            // timers early.
            let present = cx.ledger.round(&outpoint);
            let pending = cx.ledger.is_pending(&outpoint);
            let promised = pending && present == round.next();
            // What was said of a coin that was spent long ago is forgotten (`ledger/settling.rs`): no promise about one
            // that neither this node nor the chain has.
            let exists = cx.ledger.knows(&outpoint) && !cx.ledger.is_forgotten(&outpoint);
            // What follows the last round of an epoch is the next epoch's; no release of it would verify.
            let open = exists && !pending && present == round && !round.is_last();
            if promised || (open && self.is_shown_why(cx, from, outpoint, round, &reason, &promises)) {
                promise = Some(self.promise(cx, outpoint, round));
            }
        }
        let committed = promise.as_ref().and_then(|_| cx.ledger.committed(&outpoint).cloned());
        Ok(VotingReply::ReleaseResponse { promise, committed, release, proof })
    }

    /// Whether one of the reasons to leave a round holds here.
    fn is_shown_why(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        outpoint: OutPoint,
        round: Round,
        reason: &Reason,
        promises: &[SignedPromise],
    ) -> bool {
        let blocking = usize::from(cx.federation.quorum().blocking());
        let approved = cx.ledger.approved(&outpoint);
        let since = match approved {
            Some((_, since)) => Some(since),
            None => self.first_asked(cx, from, outpoint, round),
        };
        if since.is_some_and(|since| cx.now >= since + cx.settings.voting_timeout) {
            return true;
        }
        let sound = |promise: &&SignedPromise| promise.verify(&cx.federation);
        let promised: BTreeSet<NodeId> = promises.iter().filter(sound).map(|promise| promise.node).collect();
        if promised.len() >= blocking {
            return true;
        }
        let rejected = approved.is_some_and(|(txid, _)| {
            let of_this = |vote: &&SignedVote| {
                vote.verdict == Verdict::Reject
                    && vote.target.txid() == txid
                    && vote.target.inputs().get(&outpoint) == Some(&round)
                    && vote.verify(&cx.federation)
            };
            let nodes: BTreeSet<NodeId> =
                reason.rejects.iter().filter(of_this).map(|vote| vote.node).collect();
            nodes.len() >= blocking
        });
        rejected || reason.cancel.as_ref().is_some_and(|cancel| frees(cx, outpoint, approved, cancel))
    }

    /// A node without a lock has no clock for it; the first request of its present round starts one. There is none
    /// for coins that do not exist, nor for more than a peer can have good reasons for.
    fn first_asked(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        outpoint: OutPoint,
        round: Round,
    ) -> Option<Duration> {
        cx.ledger.coin(&outpoint)?;
        match self.asked.get(&outpoint) {
            Some((asked, since, _)) if *asked == round => return Some(*since),
            Some(_) | None => {}
        }
        let (now, kept) = (cx.now, cx.settings.voting_timeout * 4);
        let mine = |asked: &HashMap<OutPoint, (Round, Duration, NodeId)>| {
            asked.values().filter(|(_, _, peer)| *peer == from).count()
        };
        if mine(&self.asked) >= ASKED_PER_PEER_MAX {
            self.asked.retain(|_, (_, since, _)| now < *since + kept);
        }
        if mine(&self.asked) >= ASKED_PER_PEER_MAX {
            return None;
        }
        self.asked.insert(outpoint, (round, now, from));
        Some(now)
    }

    /// Leaves a round for good, durably, and says so.
    fn promise(&mut self, cx: &mut Context, outpoint: OutPoint, round: Round) -> SignedPromise {
        if cx.ledger.round(&outpoint) <= round {
            let release = cx.ledger.release(&outpoint).cloned();
            let record = RoundRecord { outpoint, round: round.next(), release };
            let durable = !cx.planted(Bug::PromiseWithoutRecord);
            cx.put_round(record, durable);
            self.asked.remove(&outpoint);
            // If the node that asked does not finish, this node will.
            let at = cx.now + cx.patience();
            self.follow_up.entry(outpoint).or_insert(at);
        }
        let committed = cx.ledger.committed(&outpoint).map(|certificate| certificate.target.clone());
        let committed = committed.filter(|_| !cx.planted(Bug::PromiseHidesCommit));
        SignedPromise::sign(cx.federation.context(), cx.me, &cx.key, outpoint, round, committed)
    }

    /// Starts to collect promises, or adds a reason to a run under way.
    pub(crate) fn start(&mut self, cx: &mut Context, outpoint: OutPoint, round: Round, reason: &Reason) {
        let (present, pending) = (cx.ledger.round(&outpoint), cx.ledger.is_pending(&outpoint));
        if (pending && round.next() != present) || (!pending && round != present) {
            return;
        }
        if let Some(run) = self.runs.get_mut(&outpoint).filter(|run| run.round == round) {
            let news = run.reason.rejects.len() < reason.rejects.len()
                || (run.reason.cancel.is_none() && reason.cancel.is_some());
            if news {
                run.reason = reason.clone();
                self.ask_promises(cx, outpoint);
            }
            return;
        }
        if self.runs.len() >= RUNS_MAX {
            return;
        }
        let run = ReleaseRun {
            round,
            reason: reason.clone(),
            promises: BTreeMap::new(),
            committed: Vec::new(),
            since: cx.now,
            ask_at: cx.now,
            wait: ASK_AGAIN_MIN,
        };
        self.runs.insert(outpoint, run);
        self.ask_promises(cx, outpoint);
    }

    fn ask_promises(&mut self, cx: &mut Context, outpoint: OutPoint) {
        let previous = cx.ledger.release(&outpoint).cloned();
        let everyone = cx.everyone();
        let Some(run) = self.runs.get_mut(&outpoint) else { return };
        run.ask_at = cx.now + run.wait;
        run.wait = (run.wait * 2).min(ASK_AGAIN_MAX);
        let round = run.round;
        let request = VotingRequest::ReleaseRequest {
            outpoint,
            round,
            rejects: run.reason.rejects.clone(),
            cancel: run.reason.cancel.clone().map(Box::new),
            promises: run.promises.values().cloned().collect(),
            previous,
        };
        let missing: Vec<_> = everyone.filter(|node| !run.promises.contains_key(node)).collect();
        cx.ask(missing, Tag::Release { outpoint, round }, &request);
    }

    /// A node's promise to leave a round, with the certificate that it names.
    pub(crate) fn handle_promise(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        (outpoint, round): (OutPoint, Round),
        promise: SignedPromise,
        committed: Option<ApprovalCertificate>,
    ) {
        let names = committed.as_ref().map(|certificate| &certificate.target) == promise.committed.as_ref();
        let sound = promise.node == from && promise.outpoint == outpoint && promise.round == round;
        if !sound || !names || !promise.verify(&cx.federation) {
            tracing::warn!(%from, %outpoint, "dropped a promise that does not verify");
            return;
        }
        cx.watch_promise(&promise);
        if let Some(certificate) = &committed {
            if certificate.verify(&cx.federation).is_err() {
                tracing::warn!(%from, %outpoint, "dropped a promise that names a certificate that does not verify");
                return;
            }
            cx.watch_certificate(certificate);
        }
        if let Some(release) = cx.ledger.release(&outpoint).filter(|release| release.round >= round) {
            // It came too late to be part of the release, and waits for it.
            let request = VotingRequest::Released { releases: vec![release.clone()] };
            cx.ask([from], Tag::Announce, &request);
            return;
        }
        let quorum = cx.federation.quorum();
        let Some(run) = self.runs.get_mut(&outpoint).filter(|run| run.round == round) else { return };
        run.committed.extend(committed);
        run.promises.insert(from, promise);
        let enough = cx.spoil_quorum(quorum.votes());
        let Some(run) = self.runs.get(&outpoint) else { return };
        if run.promises.len() >= usize::from(enough) {
            let release = ReleaseCertificate::assemble(outpoint, round, &run.promises, &run.committed);
            cx.take_releases(vec![release.clone()]);
            let promised: BTreeSet<NodeId> = release.promises.keys().copied().collect();
            let request = VotingRequest::Released { releases: vec![release] };
            cx.ask(cx.others().filter(|node| !promised.contains(node)), Tag::Announce, &request);
        } else if run.promises.len() == usize::from(quorum.blocking()) {
            // From here on the promises are reason enough for everybody.
            self.ask_promises(cx, outpoint);
        }
    }

    /// Forgets runs for outpoints that are released or spent for good.
    pub(crate) fn end(&mut self, cx: &mut Context, outpoints: &[OutPoint]) {
        for outpoint in outpoints {
            if self.asked.get(outpoint).is_some_and(|(round, ..)| *round < cx.ledger.round(outpoint)) {
                self.asked.remove(outpoint);
            }
            let over = cx.ledger.release(outpoint).map(|release| release.round);
            let spent = cx.ledger.spent_by(outpoint).is_some();
            let ended = |run: &ReleaseRun| spent || over.is_some_and(|round| round >= run.round);
            if self.runs.get(outpoint).is_some_and(ended)
                && let Some(run) = self.runs.remove(outpoint)
            {
                self.thank(cx, *outpoint, &run);
            }
            if spent || !cx.ledger.is_pending(outpoint) {
                self.follow_up.remove(outpoint);
            }
        }
    }

    /// A node that promised in a run waits for its end.
    fn thank(&mut self, cx: &mut Context, outpoint: OutPoint, run: &ReleaseRun) {
        let Some(release) = cx.ledger.release(&outpoint).filter(|release| release.round >= run.round) else {
            return;
        };
        let request = VotingRequest::Released { releases: vec![release.clone()] };
        let others = cx.others().filter(|node| run.promises.contains_key(node));
        cx.ask(others, Tag::Announce, &request);
    }

    /// Runs that this node started for others, and that found too few reasons in this time, are given up. What it
    /// promised itself it never gives up.
    fn drop_unfounded(&mut self, cx: &mut Context) {
        let settled: Vec<_> = self.runs.keys().copied().collect();
        self.end(cx, &settled);
        let (now, patience) = (cx.now, cx.settings.voting_timeout * 3);
        let pending: BTreeSet<_> = cx.ledger.pending().into_iter().collect();
        self.runs.retain(|outpoint, run| now < run.since + patience || pending.contains(outpoint));
    }

    /// Asks again where it is due, and takes up releases that the node that asked this one for a promise has not
    /// finished.
    pub(crate) fn push(&mut self, cx: &mut Context) {
        self.drop_unfounded(cx);
        let due: Vec<_> =
            self.runs.iter().filter(|(_, run)| cx.now >= run.ask_at).map(|(outpoint, _)| *outpoint).collect();
        for outpoint in due {
            self.ask_promises(cx, outpoint);
        }
        let late: Vec<_> =
            self.follow_up.iter().filter(|(_, at)| cx.now >= **at).map(|(outpoint, _)| *outpoint).collect();
        for outpoint in late {
            self.follow_up.remove(&outpoint);
            if cx.ledger.is_pending(&outpoint) && !cx.planted(Bug::GiveUpRelease) {
                let round = Round(cx.ledger.round(&outpoint).0.saturating_sub(1));
                self.start(cx, outpoint, round, &Reason::default());
                self.follow_up.insert(outpoint, cx.now + ASK_AGAIN_MAX);
            }
        }
    }

    pub(crate) fn next_push(&self) -> Option<Duration> {
        self.runs.values().map(|run| run.ask_at).chain(self.follow_up.values().copied()).min()
    }
}

/// Whether the cancellation, the owner's, is of what holds the coin here, or nothing holds it here.
fn frees(
    cx: &mut Context,
    outpoint: OutPoint,
    approved: Option<(Txid, Duration)>,
    cancellation: &Cancellation,
) -> bool {
    let txid = cancellation.cancel.txid;
    cancellation.proposal.outpoints().contains(&outpoint)
        && match approved {
            Some((held_by, _)) => held_by == txid,
            None => cx.cancellations.is_fresh(&txid, outpoint),
        }
}

impl Context {
    /// Whether a payment's owner is known to have cancelled it, and nothing says that it may be final.
    pub(crate) fn is_cancelled(&self, target: &VoteTarget) -> bool {
        self.cancellations.contains(&target.txid()) && !self.is_forced(target.inputs(), target.txid())
    }

    /// Remembers a cancellation that is the owner's and says of what it is; `false` if it is not.
    pub(crate) fn hear_cancel(&mut self, cancellation: &Cancellation) -> bool {
        let Cancellation { cancel, proposal, account } = cancellation;
        let Proposal::Joint(joint) = proposal else { return false };
        let own = proposal.txid() == cancel.txid && self.is_own_cancel(cancel, joint, account.as_ref());
        if own {
            self.cancellations.remember(joint.account, cancel.txid);
        }
        own
    }

    /// Whether the account that authorised the proposal signed the cancellation, and the coins are the account's.
    fn is_own_cancel(
        &mut self,
        cancel: &SignedCancel,
        joint: &JointProposal,
        account: Option<&AccountCertificate>,
    ) -> bool {
        let Some(Ok(account)) = account.map(|certificate| self.verified_account(certificate)) else {
            return false;
        };
        if !cancel.verify(&self.federation, account.record()) {
            return false;
        }
        let Ok(checked) = self.check_joint(joint, &account) else { return false };
        let coins = checked.transaction.input.iter().zip(&checked.spent).all(|(input, claimed)| {
            self.ledger
                .coin(&input.previous_output)
                .is_some_and(|coin| *coin.script == *claimed.script_pubkey)
        });
        coins && cancel.txid == checked.plan.txid
    }

    pub(crate) fn put_round(&mut self, record: RoundRecord, durable: bool) {
        let outpoint = record.outpoint;
        if durable {
            self.persist(Change::Round(Box::new(record.clone())).into());
        }
        self.ledger.put_round(record);
        if !self.planted(Bug::SilentRelease) {
            self.notify_outpoint(outpoint, None);
        }
    }

    /// Takes in releases that verify and are news.
    pub(crate) fn take_releases(&mut self, releases: Vec<ReleaseCertificate>) {
        for release in releases {
            let outpoint = release.outpoint;
            let known = self.ledger.release(&outpoint).is_some_and(|known| known.round >= release.round);
            // What the epoch before left to this one stands in the seals.
            if known || release.round.epoch() != self.federation.epoch() {
                continue;
            }
            let verified = release.verify(&self.federation).is_ok() || self.takes_small(&release);
            if !verified {
                tracing::warn!(%outpoint, "dropped a release that does not verify");
                continue;
            }
            // A node that said something else to others is caught by what it says here.
            for promise in release.signed_promises() {
                self.watch_promise(&promise);
            }
            for certificate in &release.highest {
                self.watch_certificate(certificate);
            }
            let left = release.round.next();
            let round = self.ledger.round(&outpoint).max(left);
            tracing::info!(%outpoint, round = left.0, forced = ?release.forced_txid(), "a round is over");
            self.put_round(RoundRecord { outpoint, round, release: Some(release) }, true);
            self.effects.push_back(Effect::Settled(vec![outpoint]));
            if !self.ledger.unknown_of_bound(&[outpoint]).is_empty() {
                self.effects.push_back(Effect::Bound(outpoint));
            }
        }
    }

    /// The latest releases of a target's inputs, and of the inputs of what they are forced to: they show whether that
    /// is void (V6).
    pub(crate) fn releases_of(&self, target: &VoteTarget) -> Vec<ReleaseCertificate> {
        let mut found = BTreeMap::new();
        for outpoint in target.inputs().keys() {
            let Some(release) = self.ledger.release(outpoint) else { continue };
            found.insert(*outpoint, release.clone());
            let forced =
                release.highest.iter().filter(|certificate| certificate.target.txid() != target.txid());
            for other in forced.flat_map(|certificate| certificate.target.inputs().keys()) {
                if let Some(release) = self.ledger.release(other) {
                    found.insert(*other, release.clone());
                }
            }
        }
        found.into_values().collect()
    }
}
