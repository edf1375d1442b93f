//! Repair of a lost share over the network (see [`RepairSession`]): the helper's side, and the side of the node that
//! lost it.

use super::desk::{Desk, Peer, Purpose, Side, not_ready, reason};
use quorate_protocol::{
    Federation, NodeId,
    federation::Member,
    frost::{NodeShare, RepairHelper, RepairPart, RepairSession, finish_repair},
    listed,
    wire::{ErrorCode, Fault, PeerReply, RepairReply, RepairRequest, WireError},
};
use rand_chacha::rand_core::RngCore as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Sessions that one participant may have open at a helper; the oldest goes.
const SESSIONS_MAX: usize = 8;
/// Sums that a helper may be adding up at once for one participant: nobody can keep others from being helped.
const SUMS_MAX: usize = 4;
/// Sets of helpers that are remembered as tried in vain.
const TRIED_MAX: usize = 1_000;
/// Sets that are drawn to find one that was not tried.
const DRAWS_MAX: usize = 100;
/// Wait before nodes that did not help are asked again.
const RETRY: Duration = Duration::from_millis(200);

/// What a node does for others that have lost their share.
#[derive(Debug, Default)]
pub(super) struct Helping {
    /// By the key of the certificate that asked: a node and the one that takes its place have the same number.
    open: BTreeMap<[u8; 32], Vec<RepairHelper>>,
    /// Members of a plan that a quorum has approved; newcomers among them get the share of the node that they replace.
    authorised: Vec<Member>,
    /// Sums for which the pieces of other helpers are on their way.
    sums: BTreeMap<u64, Sum>,
    next_sum: u64,
}

#[derive(Debug)]
struct Sum {
    reply_to: u64,
    /// Who asked, by its certificate's key.
    tls_key: [u8; 32],
    session: RepairSession,
    pieces: BTreeMap<NodeId, RepairPart>,
    waiting: BTreeSet<NodeId>,
}

impl Helping {
    /// A quorum has approved these members for the next epoch.
    pub(super) fn authorise(&mut self, members: &[Member]) {
        self.authorised = members.to_vec();
    }

    /// The epoch is over: nobody is left without an answer.
    pub(super) fn end(self, desk: &mut Desk) {
        for sum in self.sums.into_values() {
            desk.reply(sum.reply_to, Err::<RepairReply, _>(not_ready("the epoch has changed")));
        }
    }

    /// Answers a request, at once or when the other helpers have.
    pub(super) fn handle_request(
        &mut self,
        desk: &mut Desk,
        (federation, share): (&Federation, &NodeShare),
        peer: Peer,
        reply_to: u64,
        request: RepairRequest,
    ) {
        let answer = match request {
            RepairRequest::RepairOpen { session } => self.open(desk, federation, share, peer, session),
            RepairRequest::RepairPiece { session } => self.piece(federation, peer, &session),
            RepairRequest::RepairSum { session } => {
                match self.begin_sum(desk, federation, peer, reply_to, session) {
                    Ok(()) => return,
                    Err(error) => Err(error),
                }
            }
        };
        desk.reply(reply_to, answer);
    }

    /// The share goes to whom the federation's document or an approved plan names, and only on that node's own request.
    fn check_participant(
        &self,
        federation: &Federation,
        peer: Peer,
        session: &RepairSession,
    ) -> Result<(), WireError> {
        let known = peer.is_among(federation.members()) || peer.is_among(&self.authorised);
        if peer.id == session.participant && known {
            return Ok(());
        }
        Err(refused(
            "only the node itself, or the one that an approved plan puts in its place, has its share repaired",
        ))
    }

    fn open(
        &mut self,
        desk: &mut Desk,
        federation: &Federation,
        share: &NodeShare,
        peer: Peer,
        session: RepairSession,
    ) -> Result<RepairReply, WireError> {
        self.check_participant(federation, peer, &session)?;
        let mine = self.open.entry(peer.tls_key).or_default();
        if mine.iter().all(|helper| *helper.session() != session) {
            let helper =
                RepairHelper::new(share, federation.key(), federation.quorum(), session, &mut desk.rng);
            let helper = helper.ok_or_else(|| {
                refused("the repair needs exactly a quorum of other nodes, this one among them")
            })?;
            if mine.len() >= SESSIONS_MAX {
                mine.remove(0);
            }
            mine.push(helper);
        }
        tracing::info!(participant = %peer.id, "helps to repair a share");
        Ok(RepairReply::Done)
    }

    fn piece(
        &self,
        federation: &Federation,
        peer: Peer,
        session: &RepairSession,
    ) -> Result<RepairReply, WireError> {
        if !peer.is_among(federation.members()) || !session.helpers.contains(&peer.id) {
            return Err(refused("pieces are for the other helpers"));
        }
        Ok(RepairReply::RepairPart { part: self.own_piece(session, peer.id)? })
    }

    fn helper(&self, session: &RepairSession) -> Result<&RepairHelper, WireError> {
        let found = self.open.values().flatten().find(|helper| helper.session() == session);
        found.ok_or_else(|| {
            WireError::passing(
                ErrorCode::NotReady,
                Fault::Sender,
                "this repair is not open here; start again",
            )
        })
    }

    fn own_piece(&self, session: &RepairSession, helper: NodeId) -> Result<RepairPart, WireError> {
        let part = self.helper(session)?.part_for(helper).cloned();
        part.ok_or_else(|| refused("this repair has no such helper"))
    }

    fn begin_sum(
        &mut self,
        desk: &mut Desk,
        federation: &Federation,
        peer: Peer,
        reply_to: u64,
        session: RepairSession,
    ) -> Result<(), WireError> {
        self.check_participant(federation, peer, &session)?;
        if self.sums.values().filter(|sum| sum.tls_key == peer.tls_key).count() >= SUMS_MAX {
            return Err(not_ready("this node helps you with too many repairs at once; try again"));
        }
        let pieces = BTreeMap::from([(desk.me, self.own_piece(&session, desk.me)?)]);
        let number = self.next_sum;
        self.next_sum += 1;
        let waiting: BTreeSet<_> =
            session.helpers.iter().copied().filter(|helper| *helper != desk.me).collect();
        for helper in &waiting {
            let request = RepairRequest::RepairPiece { session: session.clone() };
            desk.ask(Side::Present, *helper, request, Purpose::Piece(number, *helper));
        }
        self.sums.insert(number, Sum { reply_to, tls_key: peer.tls_key, session, pieces, waiting });
        Ok(())
    }

    /// Another helper's piece, or that none came.
    pub(super) fn handle_piece(
        &mut self,
        desk: &mut Desk,
        number: u64,
        from: NodeId,
        reply: Option<PeerReply>,
    ) {
        let Some(sum) = self.sums.get_mut(&number) else { return };
        sum.waiting.remove(&from);
        if let Some(PeerReply::Repair(RepairReply::RepairPart { part })) = reply {
            sum.pieces.insert(from, part);
        }
        if sum.waiting.is_empty()
            && let Some(sum) = self.sums.remove(&number)
        {
            let added = self.helper(&sum.session).and_then(|helper| {
                helper.sum(&sum.pieces).ok_or_else(|| {
                    WireError::passing(ErrorCode::NotReady, Fault::Network, "another helper does not answer")
                })
            });
            desk.reply(sum.reply_to, added.map(|part| RepairReply::RepairPart { part }));
        }
    }
}

fn refused(message: &str) -> WireError {
    WireError::sender(ErrorCode::WrongRole, message)
}

/// This node's share is computed anew by q of the others. Which of them lies, or keeps its piece from another helper,
/// cannot be seen, so other sets are tried before one is tried again.
#[derive(Debug, Default)]
pub(super) struct Repair {
    /// The session that is tried, with the sums so far.
    session: Option<RepairSession>,
    waiting: BTreeSet<NodeId>,
    sums: BTreeMap<NodeId, RepairPart>,
    /// Sets that were tried in vain.
    tried: BTreeSet<BTreeSet<NodeId>>,
    /// Nodes that do not help, and why.
    silent: BTreeMap<NodeId, String>,
    due: Option<Duration>,
    share: Option<NodeShare>,
}

impl Repair {
    pub(super) fn take_share(&mut self) -> Option<NodeShare> {
        self.share.take()
    }

    /// Whether too few nodes help at the moment.
    pub(super) fn is_stuck(&self) -> bool {
        self.due.is_some() && !self.silent.is_empty()
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.due
    }

    pub(super) fn handle_timeout(&mut self, desk: &mut Desk, federation: &Federation) {
        if self.due.is_some_and(|due| due <= desk.now) {
            self.silent.clear();
            self.begin(desk, federation);
        }
    }

    /// Tries a set of helpers at random.
    pub(super) fn begin(&mut self, desk: &mut Desk, federation: &Federation) {
        desk.forget(|purpose| matches!(purpose, Purpose::RepairOpen(_) | Purpose::RepairSum(_)));
        (self.session, self.due) = (None, None);
        let votes = usize::from(federation.quorum().votes());
        let others = federation.members().iter().map(|member| member.id).filter(|id| *id != desk.me);
        let mut candidates: Vec<NodeId> = others.filter(|node| !self.silent.contains_key(node)).collect();
        if candidates.len() < votes {
            let why: Vec<String> =
                self.silent.iter().map(|(node, error)| format!("node {node} {error}")).collect();
            desk.report(format!("fewer than {votes} nodes help to repair the share: {}", why.join("; ")));
            self.due = Some(desk.now + RETRY);
            return;
        }
        let helpers = self.pick_helpers(desk, &mut candidates, votes);
        let number = desk.rng.next_u64();
        let session = RepairSession {
            epoch: federation.epoch(),
            number,
            participant: desk.me,
            helpers: helpers.clone(),
        };
        for helper in &helpers {
            let request = RepairRequest::RepairOpen { session: session.clone() };
            desk.ask(Side::Present, *helper, request, Purpose::RepairOpen(*helper));
        }
        (self.waiting, self.sums, self.session) = (helpers, BTreeMap::new(), Some(session));
    }

    /// A set that was not tried before, where a few draws find one.
    fn pick_helpers(&mut self, desk: &mut Desk, candidates: &mut [NodeId], votes: usize) -> BTreeSet<NodeId> {
        let mut draw = |desk: &mut Desk| -> BTreeSet<NodeId> {
            candidates.sort_by_cached_key(|_| desk.rng.next_u64());
            candidates.iter().copied().take(votes).collect()
        };
        let mut helpers = draw(desk);
        for _ in 0..DRAWS_MAX {
            if !self.tried.contains(&helpers) {
                break;
            }
            helpers = draw(desk);
        }
        if self.tried.len() >= TRIED_MAX || self.tried.contains(&helpers) {
            self.tried.clear();
        }
        self.tried.insert(helpers.clone());
        helpers
    }

    /// A helper's answer, or that none came.
    pub(super) fn handle_answer(
        &mut self,
        desk: &mut Desk,
        federation: &Federation,
        purpose: Purpose,
        reply: Option<PeerReply>,
    ) {
        let Some(session) = self.session.clone() else { return };
        match (purpose, reply) {
            (Purpose::RepairOpen(helper), Some(PeerReply::Repair(RepairReply::Done))) => {
                self.waiting.remove(&helper);
                if self.waiting.is_empty() {
                    self.ask_sums(desk, &session);
                }
            }
            (Purpose::RepairSum(helper), Some(PeerReply::Repair(RepairReply::RepairPart { part }))) => {
                self.waiting.remove(&helper);
                self.sums.insert(helper, part);
                if self.waiting.is_empty() {
                    self.finish(desk, federation, &session);
                }
            }
            (Purpose::RepairOpen(helper) | Purpose::RepairSum(helper), other) => {
                self.silent.insert(helper, reason(other));
                self.begin(desk, federation);
            }
            (
                Purpose::News
                | Purpose::Pull(_)
                | Purpose::TrialCommit(_)
                | Purpose::TrialSign(_)
                | Purpose::Piece(..)
                | Purpose::Seal(_),
                _,
            ) => {}
        }
    }

    fn ask_sums(&mut self, desk: &mut Desk, session: &RepairSession) {
        self.waiting = session.helpers.clone();
        for helper in &session.helpers {
            let request = RepairRequest::RepairSum { session: session.clone() };
            desk.ask(Side::Present, *helper, request, Purpose::RepairSum(*helper));
        }
    }

    fn finish(&mut self, desk: &mut Desk, federation: &Federation, session: &RepairSession) {
        match finish_repair(session, &self.sums, federation.key(), federation.quorum()) {
            Some(share) => {
                tracing::info!(node = %desk.me, "the share is repaired, and is the one that the document shows");
                (self.session, self.share) = (None, Some(share));
            }
            None => {
                desk.report(format!(
                    "one of the helpers {} sent something else than its part; others are tried",
                    listed(session.helpers.iter().copied())
                ));
                (self.session, self.due) = (None, Some(desk.now + RETRY));
                self.silent.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::digest::IdentityKey;
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};

    #[test]
    fn every_set_of_helpers_is_tried_before_one_is_tried_again() {
        let key = IdentityKey::from_bytes(&[7; 32]).expect("a key");
        let mut desk = Desk::new(NodeId(1), key, ChaCha20Rng::seed_from_u64(7));
        let mut repair = Repair::default();
        let mut others: Vec<NodeId> = (2..=7).map(NodeId).collect();
        // Five of six: six sets, one of them without the liar.
        let mut tries = |count: usize| -> BTreeSet<BTreeSet<NodeId>> {
            (0..count).map(|_| repair.pick_helpers(&mut desk, &mut others, 5)).collect()
        };
        assert_eq!(tries(6).len(), 6);
        assert_eq!(tries(1).len(), 1, "then they are tried again");
    }
}
