//! The round that each outpoint is in at this node, and what it did there.

use crate::records::RoundRecord;
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{Round, release::ReleaseCertificate};
use std::{collections::HashMap, time::Duration};

/// An outpoint's round at this node, with what it did there.
#[derive(Clone, Debug)]
struct RoundState {
    round: Round,
    release: Option<ReleaseCertificate>,
    /// Approved in `round`, and since when by the monotonic clock.
    approved: Option<(Txid, Duration)>,
    /// The transaction of the highest certificate committed to.
    committed: Option<(Round, Txid)>,
    /// What the epoch before left the outpoint to: seals named its certificate.
    inherited: Option<Txid>,
}

impl RoundState {
    fn new(round: Round) -> Self {
        Self { round, release: None, approved: None, committed: None, inherited: None }
    }

    fn is_pending(&self) -> bool {
        self.round > self.round.epoch().first_round()
            && self.release.as_ref().is_none_or(|release| release.round.next() != self.round)
    }
}

/// Rounds of all outpoints that are not at rest in the first one.
#[derive(Debug)]
pub(super) struct Rounds {
    /// The round in which every outpoint began this epoch.
    first: Round,
    rounds: HashMap<OutPoint, RoundState>,
}

impl Rounds {
    pub(super) fn restore(first: Round, stored: Vec<RoundRecord>) -> Self {
        let state = |RoundRecord { outpoint, round, release }| {
            (outpoint, RoundState { release, ..RoundState::new(round) })
        };
        Self { first, rounds: stored.into_iter().map(state).collect() }
    }

    pub(super) fn first(&self) -> Round {
        self.first
    }

    pub(super) fn len(&self) -> usize {
        self.rounds.len()
    }

    pub(super) fn contains(&self, outpoint: &OutPoint) -> bool {
        self.rounds.contains_key(outpoint)
    }

    pub(super) fn round(&self, outpoint: &OutPoint) -> Round {
        self.rounds.get(outpoint).map_or(self.first, |state| state.round)
    }

    pub(super) fn is_pending(&self, outpoint: &OutPoint) -> bool {
        self.rounds.get(outpoint).is_some_and(RoundState::is_pending)
    }

    pub(super) fn pending(&self) -> Vec<OutPoint> {
        let pending = self.rounds.iter().filter(|(_, state)| state.is_pending());
        let mut pending: Vec<_> = pending.map(|(outpoint, _)| *outpoint).collect();
        pending.sort_unstable();
        pending
    }

    pub(super) fn release(&self, outpoint: &OutPoint) -> Option<&ReleaseCertificate> {
        self.rounds.get(outpoint)?.release.as_ref()
    }

    /// Outpoints that were released, with the latest release.
    pub(super) fn released(&self) -> impl Iterator<Item = (&OutPoint, &ReleaseCertificate)> {
        self.rounds.iter().filter_map(|(outpoint, state)| Some((outpoint, state.release.as_ref()?)))
    }

    /// Outpoints that were released, or that the epoch before left to something.
    pub(super) fn bound(&self) -> Vec<OutPoint> {
        let bound = self.rounds.iter().filter(|(_, one)| one.release.is_some() || one.inherited.is_some());
        bound.map(|(outpoint, _)| *outpoint).collect()
    }

    pub(super) fn approved(&self, outpoint: &OutPoint) -> Option<(Txid, Duration)> {
        self.rounds.get(outpoint)?.approved
    }

    /// The transaction of the highest certificate that this node committed to.
    pub(super) fn committed(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.rounds.get(outpoint)?.committed.map(|(_, txid)| txid)
    }

    pub(super) fn inherited(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.rounds.get(outpoint)?.inherited
    }

    pub(super) fn put(&mut self, record: RoundRecord) {
        let RoundRecord { outpoint, round, release } = record;
        let first = self.first;
        let state = self.rounds.entry(outpoint).or_insert_with(|| RoundState::new(first));
        if round > state.round {
            (state.round, state.approved) = (round, None);
        }
        state.release = release;
    }

    /// A transaction was approved, or its certificate committed to, in these rounds. Gives whether the epoch before
    /// left the outpoint to it.
    pub(super) fn note(
        &mut self,
        outpoint: &OutPoint,
        txid: Txid,
        voted: Option<Round>,
        committed: Option<Round>,
        now: Duration,
    ) -> bool {
        if voted.is_none() && committed.is_none() {
            return false;
        }
        let first = self.first;
        let state = self.rounds.entry(*outpoint).or_insert_with(|| RoundState::new(first));
        if voted == Some(state.round) && state.approved.is_none() {
            state.approved = Some((txid, now));
        }
        let Some(round) = committed.filter(|round| state.committed.is_none_or(|(known, _)| known <= *round))
        else {
            return false;
        };
        state.committed = Some((round, txid));
        if round < first {
            state.inherited = Some(txid);
        }
        round < first
    }

    /// Forgets an outpoint: it has come to rest.
    pub(super) fn forget(&mut self, outpoint: &OutPoint) {
        self.rounds.remove(outpoint);
    }

    /// Forgets an approval; no rule does.
    pub(super) fn forget_approval(&mut self, outpoint: &OutPoint, round: Round) {
        if let Some(state) = self.rounds.get_mut(outpoint).filter(|state| state.round == round) {
            state.approved = None;
        }
    }
}
