//! A node that may do anything: a real one whose messages are changed on their way out.

use crate::faults::{Counters, Dice, Fault};
use bitcoin::{BlockHash, OutPoint, Txid, hashes::Hash as _};
use quorate::{
    Federation, NodeId, Round, SignatureShare,
    account::AccountCertificate,
    digest::IdentityKey,
    finality::{FinalityKind, FinalityProof},
    frost::SigningSession,
    proposal::Proposal,
    release::SignedPromise,
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget, sign_commit},
    wire::{
        BlockRef, Cancellation, CommitReply, ConfirmedSpend, FinalSpend, KeygenReply, Lock, PeerReply,
        PeerRequest, RepairReply, ServerMessage, TransactionStatus, UtxoRecord, VotingReply, VotingRequest,
    },
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Proposals by transaction, as a node hears of them.
pub type Proposals = BTreeMap<Txid, (Proposal, Option<AccountCertificate>)>;

/// How often an evil node does each thing, per 1,000 messages of that kind.
#[derive(Clone, Debug)]
pub struct Evil {
    equivocate: usize,
    withhold: usize,
    garbage: usize,
    stale: usize,
    selective: usize,
    lie: usize,
    last_vote: Option<PeerReply>,
    last_commit: Option<PeerReply>,
    /// Outpoints heard of, to bother others with.
    pub heard: Vec<(OutPoint, Round)>,
    /// Certificates heard of, to name in promises.
    certificates: Vec<ApprovalCertificate>,
    /// Cancellations heard of, to be shown again.
    pub cancellations: Vec<Cancellation>,
}

impl Evil {
    /// Draws a character.
    pub fn draw(dice: &mut Dice) -> Self {
        let mut rate = || if dice.below(2) == 0 { 0 } else { dice.below(1_000) };
        Self {
            equivocate: rate(),
            withhold: rate() / 2,
            garbage: rate() / 2,
            stale: rate() / 3,
            selective: rate(),
            lie: rate(),
            last_vote: None,
            last_commit: None,
            heard: Vec::new(),
            certificates: Vec::new(),
            cancellations: Vec::new(),
        }
    }

    /// Notes what can be used later.
    pub fn hear(&mut self, request: &PeerRequest) {
        if let PeerRequest::Voting(VotingRequest::ReleaseRequest { cancel: Some(cancel), .. }) = request {
            self.cancellations.push((**cancel).clone());
        }
        if let PeerRequest::Voting(VotingRequest::VoteRequest { certificate: Some(certificate), .. })
        | PeerRequest::Voting(VotingRequest::CommitRequest { certificate, .. }) = request
        {
            self.certificates.push(certificate.clone());
        }
        if let PeerRequest::Voting(VotingRequest::CommitRequest { certificate, .. }) = request {
            self.heard
                .extend(certificate.target.inputs().iter().map(|(outpoint, round)| (*outpoint, *round)));
        }
        if let PeerRequest::Voting(VotingRequest::VoteRequest { proposal, .. }) = request {
            self.heard.extend(proposal.outpoints().into_iter().map(|outpoint| (outpoint, Round(0))));
        }
    }

    /// What is sent instead of an answer; nothing if it is withheld.
    pub fn answer(
        &mut self,
        me: Me<'_>,
        request: &PeerRequest,
        reply: PeerReply,
        dice: &mut Dice,
        counters: &mut Counters,
    ) -> Option<PeerReply> {
        if dice.chance(self.withhold) {
            counters.add(Fault::Withhold);
            return None;
        }
        match (request, reply) {
            (PeerRequest::Voting(VotingRequest::VoteRequest { proposal, .. }), reply) => {
                let previous = self.last_vote.replace(reply.clone());
                if let Some(previous) = previous.filter(|_| dice.chance(self.stale)) {
                    counters.add(Fault::Stale);
                    return Some(previous);
                }
                Some(self.vote(me, proposal, reply, dice, counters))
            }
            (PeerRequest::Voting(VotingRequest::CommitRequest { .. }), reply) => {
                let previous = self.last_commit.replace(reply.clone());
                if let Some(previous) = previous.filter(|_| dice.chance(self.stale)) {
                    counters.add(Fault::Stale);
                    return Some(previous);
                }
                Some(self.commit(me, request, reply, dice, counters))
            }
            (PeerRequest::Voting(VotingRequest::ReleaseRequest { outpoint, round, .. }), reply) => {
                if !dice.chance(self.lie) {
                    return Some(reply);
                }
                counters.add(Fault::LyingPromise);
                // It names nothing, or any certificate there ever was for this outpoint.
                let of_this = |one: &&ApprovalCertificate| {
                    one.target.inputs().get(outpoint).is_some_and(|made| made <= round)
                };
                let known: Vec<_> = self.certificates.iter().filter(of_this).cloned().collect();
                let committed = if dice.chance(500) { dice.pick(&known).cloned() } else { None };
                let target = committed.as_ref().map(|one| one.target.clone());
                let context = me.federation.context();
                let promise = Some(SignedPromise::sign(context, me.id, me.key, *outpoint, *round, target));
                Some(PeerReply::Voting(VotingReply::ReleaseResponse {
                    promise,
                    committed,
                    release: None,
                    proof: None,
                }))
            }
            (PeerRequest::Repair(_), PeerReply::Repair(RepairReply::RepairPart { part })) => {
                let part = if dice.chance(self.garbage) {
                    counters.add(Fault::GarbageRepair);
                    serde_json::from_value("01".repeat(32).into()).expect("a number")
                } else {
                    part
                };
                Some(RepairReply::RepairPart { part }.into())
            }
            (PeerRequest::Keygen(_), PeerReply::Keygen(KeygenReply::DkgBundle { mut bundle }))
                if dice.chance(self.garbage / 8) =>
            {
                if let (Some(commitment), Some(echo)) = (&bundle.commitment, &mut bundle.echo) {
                    counters.add(Fault::GarbageKeygen);
                    echo.signature = commitment.signature;
                }
                Some(KeygenReply::DkgBundle { bundle }.into())
            }
            (_, reply) => Some(reply),
        }
    }

    fn vote(
        &mut self,
        me: Me<'_>,
        proposal: &Proposal,
        reply: PeerReply,
        dice: &mut Dice,
        counters: &mut Counters,
    ) -> PeerReply {
        let PeerReply::Voting(VotingReply::VoteResponse { vote, reason, commitments, releases, proof, head }) =
            reply
        else {
            return self.forged_vote(me, proposal, reply, dice, counters);
        };
        let (mut vote, mut commitments) = (vote, commitments);
        if dice.chance(self.equivocate) && vote.verdict == Verdict::Reject {
            counters.add(Fault::Equivocate);
            vote = SignedVote::sign(me.federation.context(), me.id, me.key, vote.target, Verdict::Approve);
        } else if dice.chance(self.lie) && vote.verdict == Verdict::Approve {
            counters.add(Fault::Equivocate);
            vote = SignedVote::sign(me.federation.context(), me.id, me.key, vote.target, Verdict::Reject);
        }
        if dice.chance(self.garbage) {
            counters.add(Fault::GarbageVote);
            vote.target = match dice.below(3) {
                0 => VoteTarget::new(vote.target.txid(), vote.target.custody(), []),
                // A vote of a round far ahead, signed: it must not move anybody.
                more => {
                    let ahead = u32::try_from(more).unwrap_or(1) * 1_000;
                    let inputs =
                        vote.target.inputs().iter().map(|(one, round)| (*one, Round(round.0 + ahead)));
                    let target = VoteTarget::new(vote.target.txid(), vote.target.custody(), inputs);
                    vote = SignedVote::sign(
                        me.federation.context(),
                        me.id,
                        me.key,
                        target.clone(),
                        vote.verdict,
                    );
                    target
                }
            };
        }
        if dice.chance(self.garbage)
            && let Some(made) = &mut commitments
        {
            counters.add(Fault::GarbageCommitment);
            for one in &mut made.commitments {
                one.0.fill(7);
            }
            let all = made.commitments.clone();
            *made = quorate::frost::NodeCommitments::sign(me.federation, me.id, me.key, &vote.target, all);
        }
        PeerReply::Voting(VotingReply::VoteResponse { vote, reason, commitments, releases, proof, head })
    }

    /// Votes although its own rules refuse to.
    fn forged_vote(
        &mut self,
        me: Me<'_>,
        proposal: &Proposal,
        reply: PeerReply,
        dice: &mut Dice,
        counters: &mut Counters,
    ) -> PeerReply {
        if !dice.chance(self.equivocate) {
            return reply;
        }
        counters.add(Fault::Equivocate);
        let target = VoteTarget::new(
            proposal.txid(),
            proposal.custody(),
            proposal.outpoints().into_iter().map(|one| (one, Round(0))),
        );
        let vote = SignedVote::sign(me.federation.context(), me.id, me.key, target, Verdict::Approve);
        PeerReply::Voting(VotingReply::VoteResponse {
            vote,
            reason: None,
            commitments: None,
            releases: vec![],
            proof: None,
            head: None,
        })
    }

    fn commit(
        &mut self,
        me: Me<'_>,
        request: &PeerRequest,
        reply: PeerReply,
        dice: &mut Dice,
        counters: &mut Counters,
    ) -> PeerReply {
        let PeerRequest::Voting(VotingRequest::CommitRequest { certificate, .. }) = request else {
            return reply;
        };
        match reply {
            PeerReply::Voting(VotingReply::CommitResponse {
                commit: CommitReply::Joint { mut shares, signature },
            }) => {
                if !dice.chance(self.garbage) {
                    return PeerReply::Voting(VotingReply::CommitResponse {
                        commit: CommitReply::Joint { shares, signature },
                    });
                }
                counters.add(Fault::GarbageShare);
                shares.fill(SignatureShare([3; 32]));
                // Half of them signed, so that they prove the cheat; half not.
                let signed = dice.below(2) == 0;
                let signature =
                    signed.then(|| me.sign_shares(request, &shares)).flatten().unwrap_or(signature);
                PeerReply::Voting(VotingReply::CommitResponse {
                    commit: CommitReply::Joint { shares, signature },
                })
            }
            PeerReply::Voting(VotingReply::CommitResponse { commit: CommitReply::Sole { .. } })
                if dice.chance(self.garbage) =>
            {
                counters.add(Fault::GarbageShare);
                let other = VoteTarget::new(certificate.target.txid(), certificate.target.custody(), []);
                let signature = sign_commit(me.federation.context(), me.key, &other);
                PeerReply::Voting(VotingReply::CommitResponse { commit: CommitReply::Sole { signature } })
            }
            PeerReply::Refused(_) if dice.chance(self.equivocate) => {
                counters.add(Fault::Equivocate);
                let signature = sign_commit(me.federation.context(), me.key, &certificate.target);
                PeerReply::Voting(VotingReply::CommitResponse { commit: CommitReply::Sole { signature } })
            }
            other => other,
        }
    }

    /// Whether a request of its own leaves; an evil coordinator serves whom it likes.
    pub fn asks(&mut self, dice: &mut Dice, counters: &mut Counters) -> bool {
        let skipped = dice.chance(self.selective / 2);
        if skipped {
            counters.add(Fault::SelectiveDelivery);
        }
        !skipped
    }

    /// A request of its own with one thing changed somewhere, if it still is one.
    pub fn alters(
        &self,
        request: &VotingRequest,
        dice: &mut Dice,
        counters: &mut Counters,
    ) -> Option<VotingRequest> {
        if !dice.chance(self.garbage / 4) {
            return None;
        }
        let mut value = serde_json::to_value(request).ok()?;
        let leaves = count_leaves(&value);
        alter_leaf(&mut value, &mut dice.below(leaves), dice);
        let altered =
            serde_json::from_value::<VotingRequest>(value).ok().filter(|altered| altered != request)?;
        counters.add(Fault::AlteredRequest);
        Some(altered)
    }

    /// What a wallet is told instead.
    pub fn tells(
        &mut self,
        message: ServerMessage,
        dice: &mut Dice,
        counters: &mut Counters,
    ) -> Option<ServerMessage> {
        match message {
            ServerMessage::TransactionStatus { txid, .. } if dice.chance(self.lie / 2) => {
                counters.add(Fault::FalseStatus);
                let status = TransactionStatus::Rejected { rejects: vec![], retry: false, releases: vec![] };
                Some(ServerMessage::TransactionStatus { txid, status })
            }
            ServerMessage::Tip { mut tip } if dice.chance(self.lie) => {
                counters.add(Fault::WrongTip);
                tip.block.height = u32::MAX;
                Some(ServerMessage::Tip { tip })
            }
            ServerMessage::UTXOStateNotification { key, mut utxo, proof, .. }
                if dice.chance(self.lie / 2) =>
            {
                counters.add(Fault::FalseCoin);
                falsify(&mut utxo, dice);
                let state = utxo.state();
                Some(ServerMessage::UTXOStateNotification { key, utxo, state, proof, followed: None })
            }
            ServerMessage::UTXOStateNotification {
                key,
                utxo,
                state,
                proof: Some(mut proof),
                followed: None,
            } if dice.chance(self.lie) => {
                counters.add(Fault::BrokenProof);
                spoil(&mut proof);
                Some(ServerMessage::UTXOStateNotification {
                    key,
                    utxo,
                    state,
                    proof: Some(proof),
                    followed: None,
                })
            }
            ServerMessage::UTXOStateNotification { .. } | ServerMessage::SignRequest { .. }
                if dice.chance(self.withhold) =>
            {
                counters.add(Fault::Withhold);
                None
            }
            other => Some(other),
        }
    }
}

/// Makes a coin look held or gone.
fn falsify(utxo: &mut UtxoRecord, dice: &mut Dice) {
    let txid = Txid::from_byte_array([u8::try_from(dice.below(4)).unwrap_or(0); 32]);
    match dice.below(4) {
        0 => {
            utxo.round = Round(u32::MAX);
            utxo.lock = Some(Lock { txid, round: utxo.round, locked_at: 0 });
        }
        1 => utxo.lock = Some(Lock { txid, round: utxo.round, locked_at: 0 }),
        2 => utxo.spend = Some(FinalSpend { txid, kind: FinalityKind::Enforced }),
        _ => {
            let block = BlockRef { height: u32::MAX, hash: BlockHash::all_zeros() };
            utxo.tip_height = u32::MAX;
            (utxo.created, utxo.spent) = (None, Some(ConfirmedSpend { txid, block }));
        }
    }
}

/// Takes away what a proof rests on.
fn spoil(proof: &mut FinalityProof) {
    match proof {
        FinalityProof::Enforced { transaction, .. } => {
            transaction.input.iter_mut().for_each(|input| input.witness.clear());
        }
        FinalityProof::Attested { commits, .. } => commits.clear(),
    }
}

fn count_leaves(value: &Value) -> usize {
    match value {
        Value::Array(all) => all.iter().map(count_leaves).sum(),
        Value::Object(all) => all.values().map(count_leaves).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
    }
}

/// Changes the leaf with this number: a number a little, one character of a text, a list is cut short.
fn alter_leaf(value: &mut Value, number: &mut usize, dice: &mut Dice) {
    match value {
        Value::Array(all) => {
            if *number < all.iter().map(count_leaves).sum() && dice.below(8) == 0 {
                all.pop();
                *number = usize::MAX;
                return;
            }
            all.iter_mut().for_each(|one| alter_leaf(one, number, dice));
        }
        Value::Object(all) => all.values_mut().for_each(|one| alter_leaf(one, number, dice)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            if *number == 0 {
                *value = alter(value, dice);
            }
            *number = number.wrapping_sub(1);
        }
    }
}

fn alter(leaf: &Value, dice: &mut Dice) -> Value {
    match leaf {
        Value::Number(number) => {
            let number = number.as_u64().unwrap_or_default();
            let others = [number.wrapping_add(1), number.saturating_sub(1), 0, u64::from(u32::MAX)];
            dice.pick(&others).copied().unwrap_or_default().into()
        }
        Value::String(text) => {
            let mut bytes = text.clone().into_bytes();
            let place = dice.below(bytes.len());
            if let Some(byte) = bytes.get_mut(place) {
                *byte = if *byte == b'7' { b'3' } else { b'7' };
            }
            String::from_utf8_lossy(&bytes).into_owned().into()
        }
        Value::Bool(flag) => (!flag).into(),
        Value::Null | Value::Array(_) | Value::Object(_) => Value::Null,
    }
}

/// Who an evil node is.
#[derive(Clone, Copy, Debug)]
pub struct Me<'a> {
    /// Its number.
    pub id: NodeId,
    /// Its key.
    pub key: &'a IdentityKey,
    /// Its federation.
    pub federation: &'a Federation,
    /// The session's input in a commit request: proposal and account, by transaction.
    pub proposals: &'a Proposals,
}

impl Me<'_> {
    fn sign_shares(
        &self,
        request: &PeerRequest,
        shares: &[SignatureShare],
    ) -> Option<bitcoin::secp256k1::schnorr::Signature> {
        let PeerRequest::Voting(VotingRequest::CommitRequest { certificate, attempt, nodes, wallet, .. }) =
            request
        else {
            return None;
        };
        let (Proposal::Joint(joint), Some(account)) = self.proposals.get(&certificate.target.txid())? else {
            return None;
        };
        let account = account.verify(self.federation).ok()?;
        let plan = joint.check(self.federation, &account).ok()?.plan;
        let commitments = &wallet.as_ref()?.commitments;
        let session =
            SigningSession::new(self.federation, &plan, &certificate.target, *attempt, nodes, commitments)
                .ok()?;
        Some(session.sign_shares(self.federation, self.key, shares))
    }
}
