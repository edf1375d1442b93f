//! What has to hold after faults have stopped: everything contested ends, everybody knows the truth, nothing is kept
//! forever.

use crate::{event::Event, node::SimNode, world::World};
use bitcoin::{OutPoint, Txid};
use quorate::{Round, wire::UtxoState};
use quorate_rules::{Hold, Machine, Standing};
use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

/// Time after which an outpoint that was contested anew is judged.
const JUDGE_AGAIN: Duration = Duration::from_secs(10);
/// Blocks on top of one whose spends free what was left to another transaction (V6), with what nodes may be behind.
const DEEP: u32 = 144 + 6;
/// How often that may happen.
const JUDGED_AGAIN_MAX: u32 = 2;

impl World {
    fn honest(&self) -> impl Iterator<Item = (&SimNode, &Machine)> {
        self.nodes
            .values()
            .filter(|node| node.is_trusted())
            .filter_map(|node| Some((node, node.machine.as_ref()?)))
    }

    /// Coins in sole custody whose owner signed something.
    fn contested(&self) -> impl Iterator<Item = OutPoint> + '_ {
        self.base.coins.iter().take(self.next_coin).copied()
    }

    /// Whether a block has spent a coin that the transaction holding this one needs: then it ends on the chain, when
    /// that block is deep (V6).
    fn ends_on_the_chain(&self, outpoint: &OutPoint, hold: &Hold) -> bool {
        let (Hold::Forced(holder) | Hold::Approved(holder)) = hold else { return false };
        let of_holder = self.submissions.iter().filter(|one| one.proposal.txid() == *holder);
        let mut needed = of_holder.flat_map(|one| one.proposal.outpoints()).chain([*outpoint]);
        needed.any(|coin| {
            let spender = self.oracle.spender(&coin).filter(|(spender, _)| spender != holder);
            // The block may have been undone since.
            let stands = self.chain.coin_at(&coin).is_none();
            stands && spender.is_some_and(|(_, height)| self.chain.height() < height + DEEP)
        })
    }

    /// Final or free again, at every honest node. A joint coin forced to a transaction waits for its owner alone.
    pub(crate) fn judge_contested(&mut self) {
        let mut stuck = Vec::new();
        for outpoint in self.contested() {
            if self.oracle.final_for(&outpoint).is_some() {
                continue;
            }
            // What is under way at this moment because its owner submitted it again is not stuck.
            let under_way = self.submissions_open(&outpoint);
            for (node, machine) in self.honest() {
                let hold = machine.holds(&outpoint).filter(|_| !under_way);
                if let Some(hold) = hold.filter(|hold| !self.ends_on_the_chain(&outpoint, hold)) {
                    stuck.push(format!("{outpoint} at node {}: {hold:?}", node.id));
                }
            }
        }
        let Some(first) = stuck.first() else { return };
        // Its owner may have signed and submitted again after the faults stopped, and contested it anew; then that is
        // judged.
        if self.judged_again < JUDGED_AGAIN_MAX && self.submitted_since(self.now.saturating_sub(JUDGE_AGAIN))
        {
            self.judged_again += 1;
            return self.schedule(JUDGE_AGAIN, Event::Judge);
        }
        let what = format!("{first} and {} more", stuck.len() - 1);
        self.oracle.broken("every contested outpoint ends", what);
    }

    /// At the end everybody agrees and nothing is left over.
    pub(crate) fn judge_end(&mut self) {
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.judge_evidence(node);
        }
        let mut broken: Vec<(&str, String)> = Vec::new();
        for txid in self.oracle.acknowledged.clone() {
            let settled = self.is_settled(&txid);
            for (node, machine) in self.honest() {
                if !settled && !machine.knows_final(&txid) {
                    broken.push((
                        "what was acknowledged survives",
                        format!("node {} does not know that {txid} is final", node.id),
                    ));
                }
            }
        }
        broken.extend(self.behind_the_epoch());
        broken.extend(self.amnesiacs());
        broken.extend(self.left_over());
        broken.extend(self.forgotten_locks());
        broken.extend(self.subscribers_behind());
        broken.extend(self.wallets_behind());
        for (rule, what) in broken {
            self.oracle.broken(rule, what);
        }
        self.end();
    }

    /// Whether a transaction is so deep in the chain that a node which came later need not know of it.
    pub(crate) fn is_settled(&self, txid: &Txid) -> bool {
        self.oracle.is_settled(txid, self.chain.height())
    }

    /// When the epoch has changed, everybody comes to the new one.
    fn behind_the_epoch(&self) -> Vec<(&'static str, String)> {
        let epoch = self.federation().epoch();
        let behind = self.honest().filter(|(node, _)| node.epoch < epoch);
        let behind = behind.map(|(node, _)| {
            ("every node comes to the next epoch", format!("node {}: {:?}", node.id, node.progress()))
        });
        let down = self.nodes.values().filter(|node| node.is_newcomer());
        behind
            .chain(
                down.map(|node| {
                    ("a newcomer takes part", format!("node {}: {:?}", node.id, node.progress()))
                }),
            )
            .collect()
    }

    /// A node whose memory was set back behind what others had seen of it has noticed, and does not vote.
    fn amnesiacs(&self) -> Vec<(&'static str, String)> {
        let forgot = self
            .nodes
            .values()
            .filter(|node| node.amnesiac)
            .filter_map(|node| Some((node.id, node.machine.as_ref()?)));
        let voting = forgot.filter(|(_, machine)| !matches!(machine.standing(), Standing::Lost { .. }));
        voting
            .map(|(id, machine)| {
                ("no amnesia", format!("node {id} was set back and is {:?}", machine.standing()))
            })
            .collect()
    }

    fn left_over(&self) -> Vec<(&'static str, String)> {
        let mut broken = Vec::new();
        let open: usize = self.wallets.iter().map(|wallet| wallet.open.len()).sum();
        let submitted = self.submissions.iter().filter(|one| one.outcome.is_none());
        // Each of what is under way may be coordinated, and its inputs may be released to it.
        let inputs: usize = submitted.clone().map(|one| one.proposal.outpoints().len()).sum();
        let under_way = open + submitted.count();
        for (node, machine) in self.honest() {
            let sizes = machine.sizes();
            if sizes.coordinations > under_way || sizes.releases > open + inputs {
                broken.push(("memory is bounded", format!("node {} at rest keeps {sizes:?}", node.id)));
            }
        }
        broken
    }

    fn forgotten_locks(&self) -> Vec<(&'static str, String)> {
        let mut broken = Vec::new();
        for outpoint in self.contested() {
            let under_way = self.submissions_open(&outpoint);
            for (node, machine) in self.honest() {
                if let Some(hold) = machine.holds(&outpoint)
                    && !under_way
                    && !matches!(hold, Hold::Forced(_))
                {
                    broken.push((
                        "every contested outpoint ends",
                        format!("{outpoint} at node {}: {hold:?}", node.id),
                    ));
                }
            }
        }
        broken
    }

    fn subscribers_behind(&self) -> Vec<(&'static str, String)> {
        let mut broken = Vec::new();
        for outpoint in self.contested() {
            let truth =
                self.honest().find_map(|(_, machine)| machine.utxo(&outpoint).and_then(|utxo| utxo.spend));
            // A round that so many nodes are in that a bridge tells of it; fewer may have heard of it a moment ago.
            let mut rounds: Vec<Round> =
                self.honest().filter_map(|(_, machine)| Some(machine.utxo(&outpoint)?.round)).collect();
            rounds.sort_unstable_by_key(|round| Reverse(*round));
            let round = rounds.get(self.nodes.len().saturating_sub(1) / 3).copied();
            for (index, subscriber) in self.subscribers.iter().enumerate() {
                let Some(known) = subscriber.known.get(&outpoint) else {
                    // A script that nobody watched before is known from then on only, and the answer says so. A coin
                    // that a block spent behind the federation's back is gone for who asks after that.
                    let gone = self.oracle.spender(&outpoint).is_some() && truth.is_none();
                    if index > 0 && !gone {
                        broken.push((
                            "subscribers end at the truth",
                            format!("subscriber {index} never heard of {outpoint}"),
                        ));
                    }
                    continue;
                };
                let spend = known.spend.map(|spend| spend.txid);
                if truth.is_some() && spend != truth.map(|spend| spend.txid) {
                    broken.push((
                        "subscribers end at the truth",
                        format!("subscriber {index}, {outpoint}: {:?}", known.state()),
                    ));
                }
                if truth.is_none() && round.is_some_and(|round| known.round < round) {
                    let what = format!(
                        "subscriber {index} holds {outpoint} for in round {:?}, it is in {round:?}",
                        known.round
                    );
                    broken.push(("subscribers end at the truth", what));
                }
                let free = self.honest().all(|(_, machine)| {
                    machine.utxo(&outpoint).is_some_and(|utxo| utxo.state() == UtxoState::Unspent)
                });
                if truth.is_none() && free && known.state() != UtxoState::Unspent {
                    let what = format!("subscriber {index}, {outpoint} is free: {:?}", known.state());
                    broken.push(("subscribers end at the truth", what));
                }
            }
        }
        broken
    }

    fn wallets_behind(&self) -> Vec<(&'static str, String)> {
        let mut broken = Vec::new();
        for (index, wallet) in self.wallets.iter().enumerate() {
            let finals: BTreeSet<Txid> = wallet.finals.iter().copied().collect();
            let known = |txid: &Txid| {
                self.is_settled(txid) || self.honest().any(|(_, machine)| machine.knows_final(txid))
            };
            for txid in finals.iter().filter(|txid| !known(txid)) {
                broken.push((
                    "what was acknowledged survives",
                    format!("wallet {index} holds {txid} for final alone"),
                ));
            }
            if let Some(txid) = wallet.open.first() {
                let what = format!("wallet {index} still waits for {txid}");
                broken.push(("every payment ends", what));
            }
            if wallet.session.wallet().chain().tip().height + 2 < self.chain.height() {
                broken.push((
                    "subscribers end at the truth",
                    format!("wallet {index} is not in step with the chain"),
                ));
            }
        }
        broken
    }
}
