//! Collecting the seals of an epoch that ends, until a quorum's of them can be handed over (see
//! [`quorate_protocol::seal`]).
//!
//! All nodes are asked at once, each by itself, so that one that takes very long keeps nobody from the others. What a
//! node does not answer itself, another may have.

use super::{
    desk::{Desk, Purpose, Side, WholeSeal, reason},
    news::POLL,
};
use quorate_protocol::{
    Federation, NodeId,
    federation::Succession,
    listed,
    seal::Handover,
    wire::{PeerReply, SuccessionReply, SuccessionRequest},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Longest time for a whole seal from another node than the one that it is of, which may not have it.
const ELSEWHERE_TIMEOUT: Duration = Duration::from_secs(300);
/// Most transactions in one seal, for memory's sake: 11 final transactions a second over the 144 blocks that a seal
/// covers. A node that says it has more is not believed.
const SEALED_MAX: usize = 1_000_000;
/// Time without a new seal after which the operator is told how far it is.
const REPORT: Duration = Duration::from_secs(5);

/// The seals that one node collects.
#[derive(Debug)]
pub(super) struct Seals {
    succession: Succession,
    digest: [u8; 32],
    whole: BTreeMap<NodeId, WholeSeal>,
    fetches: BTreeMap<NodeId, Fetch>,
    handover: Option<Handover>,
    report_at: Duration,
}

/// One seal that is being fetched.
#[derive(Debug, Default)]
struct Fetch {
    /// Where it is asked for, and where next: of two nodes with one number, the present one or the next epoch's.
    places: VecDeque<(Side, NodeId)>,
    since: Duration,
    pages: Option<WholeSeal>,
    /// When the places are tried again from the first, if none had it.
    rest_until: Option<Duration>,
}

impl Seals {
    /// Asks all members for theirs.
    pub(super) fn begin(desk: &mut Desk, federation: &Federation, succession: Succession) -> Self {
        let digest = succession.digest(federation);
        let report_at = desk.now + REPORT;
        let fetches = federation.members().iter().map(|member| (member.id, Fetch::default())).collect();
        let mut seals =
            Self { succession, digest, whole: BTreeMap::new(), fetches, handover: None, report_at };
        for member in federation.members() {
            seals.begin_fetch(desk, federation, member.id);
        }
        seals
    }

    /// What a quorum hands over, and the seals that it follows from.
    pub(super) fn take(&mut self) -> Option<(Handover, Vec<WholeSeal>)> {
        let handover = self.handover.take()?;
        Some((handover, std::mem::take(&mut self.whole).into_values().collect()))
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    pub(super) fn poll_timeout(&self) -> Duration {
        self.fetches
            .values()
            .filter_map(|fetch| fetch.rest_until)
            .min()
            .map_or(self.report_at, |due| due.min(self.report_at))
    }

    pub(super) fn handle_timeout(&mut self, desk: &mut Desk, federation: &Federation) {
        if self.report_at <= desk.now {
            self.report_at = desk.now + REPORT;
            let (votes, sealed) = (federation.quorum().votes(), listed(self.whole.keys().copied()));
            desk.report(format!("{votes} nodes have to seal the epoch; sealed by: {sealed}"));
        }
        let rested = |(of, fetch): (&NodeId, &Fetch)| {
            fetch.rest_until.is_some_and(|until| until <= desk.now).then_some(*of)
        };
        for of in self.fetches.iter().filter_map(rested).collect::<Vec<_>>() {
            self.begin_fetch(desk, federation, of);
        }
    }

    fn begin_fetch(&mut self, desk: &mut Desk, federation: &Federation, of: NodeId) {
        // A newcomer has the number of the node that it replaces, but not its seal.
        let newcomer = federation.identity_key(desk.me) != Some(&desk.key.public());
        let others = federation.members().iter().map(|member| member.id).filter(|id| *id != of);
        let present = std::iter::once(of).chain(others);
        let elsewhere = |at: &NodeId| *at != desk.me || (*at == of && !newcomer);
        let present = present.filter(elsewhere).map(|at| (Side::Present, at));
        // One that is in the next epoch already has the seals that it began with.
        let newcomers = self.succession.plan.members.iter().filter(|one| !federation.members().contains(one));
        let own = desk.key.public();
        let newcomers = newcomers.filter(|one| one.identity_key != own).map(|one| (Side::Next, one.id));
        let places = present.chain(newcomers).collect();
        self.fetches.insert(of, Fetch { places, since: desk.now, pages: None, rest_until: None });
        self.ask_page(desk, of);
    }

    fn ask_page(&mut self, desk: &mut Desk, of: NodeId) {
        let Some(fetch) = self.fetches.get_mut(&of) else { return };
        let Some((side, at)) = fetch.places.front().copied() else {
            fetch.rest_until = Some(desk.now + POLL);
            return;
        };
        let have = fetch.pages.as_ref().map_or(0, |whole| whole.transactions.len());
        let skip = u32::try_from(have).unwrap_or(u32::MAX);
        let succession = Box::new(self.succession.clone());
        if (side, at) == (Side::Present, desk.me) {
            desk.ask_voter(succession, skip, Purpose::Seal(of));
        } else {
            let request = SuccessionRequest::SealRequest { succession, of, skip };
            desk.ask(side, at, request, Purpose::Seal(of));
        }
    }

    /// A page, or that none came.
    pub(super) fn handle_answer(
        &mut self,
        desk: &mut Desk,
        federation: &Federation,
        of: NodeId,
        reply: Option<PeerReply>,
    ) {
        let Some(fetch) = self.fetches.get_mut(&of) else { return };
        let late =
            fetch.places.front() != Some(&(Side::Present, of)) && desk.now > fetch.since + ELSEWHERE_TIMEOUT;
        let whole = match reply {
            _ if late => Err("no whole seal in time".to_owned()),
            Some(PeerReply::Succession(reply)) => fetch.add(reply),
            other => Err(reason(other)),
        };
        match whole {
            Ok(None) => self.ask_page(desk, of),
            Ok(Some(seal)) if seal.holds(of, self.digest, federation) => {
                self.fetches.remove(&of);
                self.whole.insert(of, seal);
                self.report_at = desk.now + REPORT;
                self.hand_over(federation);
            }
            Ok(Some(_)) => self.next_place(desk, of, "a seal that does not hold"),
            Err(problem) => self.next_place(desk, of, &problem),
        }
    }

    fn next_place(&mut self, desk: &mut Desk, of: NodeId, problem: &str) {
        let Some(fetch) = self.fetches.get_mut(&of) else { return };
        let at = fetch.places.pop_front();
        tracing::debug!(%of, ?at, problem, "no seal");
        (fetch.pages, fetch.since) = (None, desk.now);
        self.ask_page(desk, of);
    }

    fn hand_over(&mut self, federation: &Federation) {
        if self.whole.len() < usize::from(federation.quorum().votes()) {
            return;
        }
        let together: Vec<_> =
            self.whole.values().map(|whole| (whole.seal.clone(), whole.transactions.clone())).collect();
        self.handover = Handover::new(federation, self.digest, &together).ok();
    }
}

impl Fetch {
    /// Adds a page. The whole seal, if it was the last one.
    fn add(&mut self, reply: SuccessionReply) -> Result<Option<WholeSeal>, String> {
        let SuccessionReply::Sealed { seal, transactions, more } = reply else {
            return Err("answers something else".to_owned());
        };
        let whole =
            self.pages.get_or_insert_with(|| WholeSeal { seal: (*seal).clone(), transactions: Vec::new() });
        if *seal != whole.seal {
            return Err("the seal has changed".to_owned());
        }
        if more && transactions.is_empty() {
            return Err("an empty page".to_owned());
        }
        whole.transactions.extend(transactions);
        if whole.transactions.len() > SEALED_MAX {
            return Err(format!("more than {SEALED_MAX} transactions"));
        }
        Ok(if more { None } else { self.pages.take() })
    }
}
