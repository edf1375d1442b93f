//! Owners who use the chain against payees: one whose payment an evil node finishes in secret, to show it once the
//! recovery path is open; and such as spend coins of sole custody behind the federation's back.

use crate::{
    base::{COIN, open_output, spend},
    event::{Event, Party},
    faults::Fault,
    node::{SimNode, Waiting},
    parties::{Package, Shown, SimWallet, Step, Theft},
    world::World,
};
use bitcoin::{Amount, TxOut};
use quorate::{
    NodeId,
    finality::FinalityProof,
    frost::NodeCommitments,
    proposal::Proposal,
    vote::{ApprovalCertificate, SignedVote, Verdict},
    wire::{
        CommitReply, PeerReply, PeerRequest, ServerMessage, SubscriptionKey, UtxoState, VotingReply,
        VotingRequest,
    },
};
use std::{collections::BTreeMap, time::Duration};

/// Time for answers.
const ANSWERS: Duration = Duration::from_millis(1_500);
/// Time in which every node, however slow, has seen the blocks.
const SEEN: Duration = Duration::from_secs(10);
/// How often votes or shares are asked for.
const TRIES: u32 = 8;

impl World {
    /// An owner and an evil node begin.
    pub(crate) fn begin_theft(&mut self) {
        let Some(evil) = self.nodes.values().find(|node| node.evil.is_some()).map(|node| node.id) else {
            return;
        };
        let Some(payee) = self.wallets.first_mut() else { return };
        let Ok(address) = payee.session.next_address() else { return };
        let (proposal, account) = self.base.theft(address.script_pubkey());
        let checked = proposal.check(&self.base.federation, self.base.thief()).expect("its own proposal");
        let orders = [Shown::InTime, Shown::BeforeTaking, Shown::AfterTaking, Shown::AfterTaking];
        let shown = self.dice.pick(&orders).copied().unwrap_or(Shown::AfterTaking);
        self.theft = Some(Theft {
            evil,
            proposal,
            account,
            checked,
            shown,
            step: Step::Vote,
            attempt: 0,
            votes: BTreeMap::new(),
            package: None,
            shares: BTreeMap::new(),
            proof: None,
        });
        self.schedule(Duration::ZERO, Event::Theft);
    }

    /// The next thing that they do.
    pub(crate) fn theft_goes_on(&mut self) {
        let Some(mut theft) = self.theft.take() else { return };
        let (next, wait) = match theft.step {
            Step::Vote => self.steal_votes(&mut theft),
            Step::Sign => self.steal_shares(&mut theft),
            Step::Finish => self.finish_in_secret(&mut theft),
            // Who was shown the payment in time has two days of blocks to hand it in to a node.
            Step::Wait if theft.shown == Shown::InTime && self.payee_alone(&theft) => (Step::Wait, ANSWERS),
            Step::Wait => self.let_time_pass(),
            Step::Take => self.take_back(&theft),
            Step::Show => {
                self.show(&theft);
                if theft.shown == Shown::BeforeTaking { (Step::Take, ANSWERS) } else { (Step::Over, ANSWERS) }
            }
            Step::Over => return,
        };
        // The order of taking and showing.
        theft.step = match (theft.step, next, theft.shown) {
            (Step::Finish, Step::Wait, Shown::InTime) => {
                self.show(&theft);
                Step::Wait
            }
            (Step::Wait, Step::Take, Shown::BeforeTaking) => Step::Show,
            (Step::Take, _, Shown::AfterTaking) => Step::Show,
            (_, next, _) => next,
        };
        self.theft = Some(theft);
        self.schedule(wait, Event::Theft);
    }

    /// Whether the payee holds the payment for final and no honest node knows of it.
    fn payee_alone(&self, theft: &Theft) -> bool {
        let Some(txid) = theft.proof.as_ref().map(FinalityProof::txid) else { return false };
        let held = self.wallets.first().is_some_and(|payee| payee.session.wallet().proof(txid).is_some());
        let machines =
            self.nodes.values().filter(|node| node.is_trusted()).filter_map(|node| node.machine.as_ref());
        held && !self.is_settled(&txid) && !machines.into_iter().any(|machine| machine.knows_final(&txid))
    }

    fn honest_ids(&self) -> Vec<NodeId> {
        self.nodes.values().filter(|node| SimNode::is_trusted(node)).map(|node| node.id).collect()
    }

    fn steal_votes(&mut self, theft: &mut Theft) -> (Step, Duration) {
        theft.attempt += 1;
        if theft.attempt > TRIES {
            return (Step::Over, ANSWERS);
        }
        theft.votes.clear();
        let request = VotingRequest::VoteRequest {
            proposal: Proposal::Joint(Box::new(theft.proposal.clone())),
            account: Some(theft.account.clone()),
            certificate: None,
            releases: Vec::new(),
        };
        for to in self.honest_ids() {
            self.ask_as(theft.evil, to, &request);
        }
        (Step::Sign, ANSWERS)
    }

    /// With enough approvals of one target: their certificate, and a package, or two, for the nodes that gave them.
    fn steal_shares(&mut self, theft: &mut Theft) -> (Step, Duration) {
        let quorum = usize::from(self.base.federation.quorum().votes());
        let Some(target) = theft.votes.values().next().map(|(vote, _)| vote.target.clone()) else {
            return (Step::Vote, ANSWERS);
        };
        let same = theft.votes.iter().filter(|(_, (vote, _))| vote.target == target);
        let chosen: BTreeMap<NodeId, (SignedVote, NodeCommitments)> =
            same.take(quorum).map(|(node, voted)| (*node, voted.clone())).collect();
        if chosen.len() < quorum {
            return (Step::Vote, ANSWERS);
        }
        let approvals = chosen.iter().map(|(node, (vote, _))| (*node, vote.signature)).collect();
        let certificate = ApprovalCertificate { target, approvals };
        let nodes: BTreeMap<_, _> = chosen.into_iter().map(|(node, (_, made))| (node, made)).collect();
        let seed = self.dice.number();
        let sign = |seed: u64| {
            self.base.sign_as_thief(&theft.checked, &certificate.target, theft.attempt, &nodes, seed)
        };
        let Some((wallet, session)) = sign(seed) else { return (Step::Vote, ANSWERS) };
        // Another package with the same nonces of the nodes.
        let second = sign(seed.wrapping_add(1)).map(|(wallet, _)| wallet);
        let second = second.filter(|_| self.dice.below(2) == 0);
        let to: Vec<NodeId> = nodes.keys().copied().collect();
        theft.shares.clear();
        if second.is_some() {
            self.counters.add(Fault::TwoPackages);
        }
        for wallet in [Some(wallet.clone()), second].into_iter().flatten() {
            let request = VotingRequest::CommitRequest {
                certificate: certificate.clone(),
                attempt: theft.attempt,
                nodes: nodes.clone(),
                wallet: Some(wallet),
                releases: Vec::new(),
                head: None,
            };
            for to in &to {
                self.ask_as(theft.evil, *to, &request);
            }
        }
        theft.package = Some(Package { certificate, wallet, session });
        (Step::Finish, ANSWERS)
    }

    fn finish_in_secret(&mut self, theft: &mut Theft) -> (Step, Duration) {
        let Some(Package { certificate, wallet, session }) = theft.package.take() else {
            return (Step::Vote, ANSWERS);
        };
        let record = self.base.thief().record();
        let signed = session.aggregate(&self.base.federation, record, &theft.shares, &wallet.shares);
        let transaction = signed.ok().and_then(|signatures| theft.checked.complete(&signatures).ok());
        let Some(transaction) = transaction else { return (Step::Vote, ANSWERS) };
        self.counters.add(Fault::WithheldPayment);
        let (spent, certificate) = (theft.checked.spent.clone(), Box::new(certificate));
        theft.proof = Some(FinalityProof::Enforced { transaction, spent, certificate });
        (Step::Wait, 2 * ANSWERS)
    }

    /// Blocks come until the next one can have what the recovery path makes.
    fn let_time_pass(&mut self) -> (Step, Duration) {
        let opens_at = self.base.thief_opens_at();
        let count = opens_at.saturating_sub(self.chain.height() + 1);
        // What a node said before may still wait for its disk.
        self.time_passed = Some((self.now, self.chain.height()));
        let mined = self.chain.mine(count, &open_output()).expect("mines");
        self.take_blocks(mined);
        (Step::Take, SEEN)
    }

    fn take_back(&mut self, theft: &Theft) -> (Step, Duration) {
        let taken = self.base.take_back(&theft.checked, open_output());
        // A block may have the payment: then nothing can be taken back.
        if taken.is_some_and(|taken| self.chain.submit(taken).is_ok()) {
            self.counters.add(Fault::TakenBack);
            let mined = self.chain.mine(1, &open_output()).expect("mines");
            self.take_blocks(mined);
        }
        (Step::Over, SEEN)
    }

    /// Everybody is shown the payment: nodes by the evil one, the payee by its bridge.
    fn show(&mut self, theft: &Theft) {
        let Some(proof) = theft.proof.clone() else { return };
        self.counters.add(Fault::LateProof);
        let request = VotingRequest::FinalTransaction { proof: proof.clone(), head: None };
        for to in self.honest_ids() {
            self.ask_as(theft.evil, to, &request);
        }
        let Some(output) = proof.transaction().output.first().cloned() else { return };
        let outpoint = bitcoin::OutPoint { txid: proof.txid(), vout: 0 };
        let utxo = quorate::testing::utxo_record(outpoint, output.value, output.script_pubkey.clone());
        let key = SubscriptionKey::Script(output.script_pubkey);
        let (state, proof) = (UtxoState::Unspent, Some(Box::new(proof)));
        // What a payee with an old tip makes of it is the business of its clock, which it does not have here.
        let height = self.chain.height();
        let fresh = |wallet: &&SimWallet| {
            wallet.bridge.is_some() && wallet.session.wallet().chain().tip().height + 2 >= height
        };
        let connection = self.wallets.first().filter(fresh).map(|wallet| wallet.connection);
        if let Some(connection) = connection {
            let message = ServerMessage::UTXOStateNotification { key, utxo, state, proof, followed: None };
            self.party_hears(Party::Wallet(0, connection), None, message);
        }
    }

    fn ask_as(&mut self, evil: NodeId, to: NodeId, request: &VotingRequest) {
        let rpc = self.next_rpc;
        self.next_rpc += 1;
        let Some(node) = self.nodes.get_mut(&evil) else { return };
        node.rpcs.insert(rpc, Waiting::Theft(to));
        let incarnation = node.incarnation;
        let request = Box::new(PeerRequest::Voting(request.clone()));
        self.transmit(evil, to, Event::Request { from: evil, to, rpc, incarnation, request });
    }

    /// A node answers the evil one.
    pub(crate) fn theft_hears(&mut self, from: NodeId, reply: Option<PeerReply>) {
        let Some(theft) = &mut self.theft else { return };
        match reply {
            Some(PeerReply::Voting(VotingReply::VoteResponse { vote, commitments: Some(made), .. }))
                if vote.verdict == Verdict::Approve =>
            {
                theft.votes.insert(from, (vote, made));
            }
            Some(PeerReply::Voting(VotingReply::CommitResponse {
                commit: CommitReply::Joint { shares, .. },
            })) => {
                theft.shares.entry(from).or_insert(shares);
            }
            _other => {}
        }
    }

    /// A coin of sole custody whose owner submitted a payment is spent otherwise by a block.
    pub(crate) fn chain_only_spend(&mut self) {
        let spent: Vec<_> = self.base.coins.iter().take(self.next_coin).copied().collect();
        let unspent: Vec<_> = spent.into_iter().filter(|coin| self.chain.coin_at(coin).is_some()).collect();
        let Some(coin) = self.dice.pick(&unspent).copied() else { return };
        let value = COIN - Amount::from_sat(9_000);
        let transaction = spend(&[coin], vec![TxOut { value, script_pubkey: open_output() }]);
        if let Ok(mined) = self.chain.mine_only(vec![transaction], &open_output()) {
            self.counters.add(Fault::ChainOnlySpend);
            self.take_blocks(vec![mined]);
        }
    }
}
