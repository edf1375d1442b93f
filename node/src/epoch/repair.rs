//! Repair of a lost share over the network (see [`quorate_protocol::frost::RepairSession`]): the helper's desk, and the one who asks.

use crate::{
    lock,
    net::{membership::Peer, peers::Peers},
};
use anyhow::{Result, bail};
use quorate_protocol::{
    Federation, NodeId,
    federation::Member,
    frost::{NodeShare, RepairHelper, RepairPart, RepairSession, finish_repair},
    wire::{ErrorCode, Fault, RepairReply, RepairRequest, WireError},
};
use rand_core::RngCore as _;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Sessions that one participant may have open at a helper; the oldest goes.
const SESSIONS_MAX: usize = 8;
/// Sets of helpers that are tried before giving up.
const TRIES_MAX: usize = 64;

/// A node's side as a helper, while it runs.
#[derive(Debug)]
pub(crate) struct RepairDesk {
    federation: Federation,
    share: NodeShare,
    peers: Arc<Peers>,
    /// By the key of the certificate that asked: a node and the one that takes its place have the same number.
    open: Mutex<BTreeMap<[u8; 32], Vec<RepairHelper>>>,
    /// Newcomers whose plan a quorum has approved; they get the share of the node that they replace.
    newcomers: Mutex<Vec<Member>>,
}

impl RepairDesk {
    pub(crate) fn new(federation: Federation, share: NodeShare, peers: Arc<Peers>) -> Self {
        Self { federation, share, peers, open: Mutex::default(), newcomers: Mutex::default() }
    }

    /// A quorum has approved these members for the next epoch.
    pub(crate) fn authorise(&self, members: &[Member]) {
        *lock(&self.newcomers) = members.to_vec();
    }

    pub(crate) async fn answer(&self, peer: &Peer, request: RepairRequest) -> Result<RepairReply, WireError> {
        match request {
            RepairRequest::RepairOpen { session } => self.open(peer, session),
            RepairRequest::RepairPiece { session } => self.piece(peer, &session),
            RepairRequest::RepairSum { session } => self.sum(peer, &session).await,
        }
    }

    /// The share goes to whom the federation's document or an approved plan names, and only on that node's own request.
    fn check_participant(&self, peer: &Peer, session: &RepairSession) -> Result<(), WireError> {
        let known = peer.is_among(self.federation.members()) || peer.is_among(&lock(&self.newcomers));
        if peer.id == session.participant && known {
            return Ok(());
        }
        Err(refused(
            "only the node itself, or the one that an approved plan puts in its place, has its share repaired",
        ))
    }

    fn open(&self, peer: &Peer, session: RepairSession) -> Result<RepairReply, WireError> {
        self.check_participant(peer, &session)?;
        let mut open = lock(&self.open);
        let mine = open.entry(peer.tls_key).or_default();
        if mine.iter().all(|helper| *helper.session() != session) {
            let (key, quorum) = (self.federation.key(), self.federation.quorum());
            let helper = RepairHelper::new(&self.share, key, quorum, session, &mut rand_core::OsRng);
            if mine.len() >= SESSIONS_MAX {
                mine.remove(0);
            }
            mine.push(helper.ok_or_else(|| {
                refused("the repair needs exactly a quorum of other nodes, this one among them")
            })?);
        }
        tracing::info!(participant = %peer.id, "helps to repair a share");
        Ok(RepairReply::Done)
    }

    fn piece(&self, peer: &Peer, session: &RepairSession) -> Result<RepairReply, WireError> {
        if !peer.is_among(self.federation.members()) || !session.helpers.contains(&peer.id) {
            return Err(refused("pieces are for the other helpers"));
        }
        Ok(RepairReply::RepairPart { part: self.own_piece(session, peer.id)? })
    }

    fn own_piece(&self, session: &RepairSession, helper: NodeId) -> Result<RepairPart, WireError> {
        let open = lock(&self.open);
        let found = open.values().flatten().find(|one| one.session() == session);
        found.and_then(|one| one.part_for(helper).cloned()).ok_or_else(unknown)
    }

    async fn sum(&self, peer: &Peer, session: &RepairSession) -> Result<RepairReply, WireError> {
        self.check_participant(peer, session)?;
        let me = self.share.node();
        let mut pieces = BTreeMap::from([(me, self.own_piece(session, me)?)]);
        let mut asking = tokio::task::JoinSet::new();
        for helper in session.helpers.iter().copied().filter(|helper| *helper != me) {
            let request = RepairRequest::RepairPiece { session: session.clone() };
            let peers = self.peers.clone();
            asking.spawn(async move { (helper, peers.ask(helper, &request).await) });
        }
        while let Some(answered) = asking.join_next().await {
            if let Ok((helper, Ok(RepairReply::RepairPart { part }))) = answered {
                pieces.insert(helper, part);
            }
        }
        let open = lock(&self.open);
        let found = open.values().flatten().find(|one| one.session() == session);
        let part = found.ok_or_else(unknown)?.sum(&pieces);
        let missing =
            || WireError::passing(ErrorCode::NotReady, Fault::Network, "another helper does not answer");
        Ok(RepairReply::RepairPart { part: part.ok_or_else(missing)? })
    }
}

fn refused(message: &str) -> WireError {
    WireError::sender(ErrorCode::WrongRole, message)
}

fn unknown() -> WireError {
    WireError::passing(ErrorCode::NotReady, Fault::Sender, "this repair is not open here; start again")
}

/// Has this node's share repaired by q of the others. Which of them lies cannot be seen, so other sets are tried: with few liars one
/// without any is found soon.
pub(crate) async fn repair(me: NodeId, federation: &Federation, peers: &Peers) -> Result<NodeShare> {
    let quorum = federation.quorum();
    let mut silent = BTreeMap::new();
    for attempt in 1..=TRIES_MAX {
        let mut candidates: Vec<NodeId> = peers.ids().filter(|node| !silent.contains_key(node)).collect();
        if candidates.len() < usize::from(quorum.votes()) {
            let why: Vec<String> =
                silent.iter().map(|(node, error)| format!("node {node}: {error}")).collect();
            bail!(
                "fewer than {} nodes help to repair the share of node {me}: {}",
                quorum.votes(),
                why.join("; ")
            );
        }
        // Any order, but another one each time.
        candidates.sort_by_cached_key(|_| rand_core::OsRng.next_u64());
        let helpers = candidates.into_iter().take(quorum.votes().into()).collect();
        let epoch = federation.epoch();
        let session = RepairSession { epoch, number: rand_core::OsRng.next_u64(), participant: me, helpers };
        match try_repair(&session, federation, peers).await {
            Ok(Some(share)) => {
                tracing::info!(node = %me, attempt, "the share is repaired, and is the one that the document shows");
                return Ok(share);
            }
            Ok(None) => {
                tracing::warn!(helpers = ?session.helpers, "one of these helpers sent something else than its part");
            }
            Err((node, error)) => {
                silent.insert(node, format!("{error:#}"));
            }
        }
    }
    bail!("no set of helpers gave the right share in {TRIES_MAX} tries")
}

async fn try_repair(
    session: &RepairSession,
    federation: &Federation,
    peers: &Peers,
) -> Result<Option<NodeShare>, (NodeId, anyhow::Error)> {
    for helper in &session.helpers {
        let request = RepairRequest::RepairOpen { session: session.clone() };
        peers.ask(*helper, &request).await.map_err(|error| (*helper, error))?;
    }
    let mut sums = BTreeMap::new();
    for helper in &session.helpers {
        let request = RepairRequest::RepairSum { session: session.clone() };
        let reply = peers.ask(*helper, &request).await.map_err(|error| (*helper, error))?;
        if let RepairReply::RepairPart { part } = reply {
            sums.insert(*helper, part);
        }
    }
    Ok(finish_repair(session, &sums, federation.key(), federation.quorum()))
}
