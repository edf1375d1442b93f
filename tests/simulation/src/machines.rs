//! What a driver does for the machines of a simulated node: its store, its questions and answers, its clients.

use crate::{
    Fault,
    disk::Disk,
    event::Event,
    node::{REQUEST_TIMEOUT, SimNode, Waiting, apply, mirror_of, rows_of},
    oracle::Row,
    world::World,
};
use bitcoin::OutPoint;
use quorate::{
    Epoch, NodeId,
    account::AccountCertificate,
    frost::NodeShare,
    proposal::Proposal,
    seal::transactions_hash,
    wire::{ClientMessage, PeerReply, PeerRequest, SuccessionReply, VotingRequest},
};
use quorate_node::store::{BATCH_MAX, Redb, Store as _};
use quorate_rules::{
    ChainCoin, Checked, Machine, Output, ReplyTo, SessionId, Settings, Tag,
    archive::{Recall, recall},
    records::{self, ChangeSet},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::{collections::BTreeSet, time::Duration};

impl World {
    /// Starts a node from its disk. `false` if the disk failed again while it was read.
    pub fn start_node(&mut self, id: NodeId) -> bool {
        let settings = self.settings();
        let federation = self.federation_of(id);
        if self.nodes.get(&id).is_some_and(|node| node.is_newcomer() || node.files.share.is_none()) {
            self.start_transition(id);
            return false;
        }
        let (Some(key), rng) = (self.key_of(id), self.node_rng(id, 0)) else { return false };
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.is_newcomer()) else { return false };
        if !node.created {
            // The real store is made beside its place and moved there when it is whole.
            node.disk = Disk::new(Vec::new());
        }
        let opened = Redb::open_backend(node.disk.clone(), "simulated").and_then(|store| {
            let stored = store.load()?;
            let mirror = mirror_of(&store)?;
            Ok((store, stored, mirror))
        });
        let (store, mut stored, mirror) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let found = error.to_string();
                self.recovery_failed(id, &found);
                return false;
            }
        };
        // A write that the crash interrupted may be there or not; what was confirmed has to be.
        let survives = |(row, confirmed): &(&Row, &Vec<u8>)| match mirror.get(*row) {
            // What was set back may have the value of another interrupted write.
            Some(found) if *confirmed == found || node.forgetful => true,
            Some(found) => {
                node.interrupted.iter().any(|(under_way, value)| under_way == *row && value == found)
            }
            // An interrupted write may have taken it away.
            None => {
                node.forgetful
                    || node.interrupted.iter().any(|(under_way, value)| under_way == *row && value.is_empty())
            }
        };
        if let Some(((table, key), confirmed)) = node.mirror.iter().find(|row| !survives(row)) {
            let found = mirror.get(&(*table, key.clone())).map(hex::encode);
            let what = format!(
                "node {id} lost record {} of {table:?}: {} confirmed, {found:?} found, {} records under way",
                hex::encode(key),
                hex::encode(confirmed),
                node.interrupted.len()
            );
            self.oracle.broken("what is durable survives", what);
        }
        (node.mirror, node.interrupted) = (mirror, Vec::new());
        node.created = true;
        if node.is_trusted() {
            self.oracle.found_votes(id, &node.mirror);
        }
        // Of the index, what was written last may be lost.
        let written = self.dice.below(node.index_late.len() + 1);
        stored.index = node.read_index(written);
        if !stored.index.is_whole(federation.birthday()) {
            self.oracle.broken("the index has no gap", format!("node {id}"));
        }
        let share = node.files.share.and_then(|share| NodeShare::from_bytes(id, &share)).expect("a share");
        let machine = Machine::new(id, (*federation).clone(), key, share, settings, rng, stored);
        (node.machine, node.store, node.height) = (Some(machine), Some(store), 0);
        self.follow_chain(id);
        self.step(id, Machine::handle_caught_up);
        self.schedule(Duration::from_millis(10), Event::Sweep { node: id });
        self.step(id, |machine| machine.handle_timeout());
        self.start_transition(id);
        true
    }

    /// Randomness of one run of a node, for one of its machines.
    pub(crate) fn node_rng(&self, id: NodeId, machine: u8) -> ChaCha20Rng {
        let incarnation = self.nodes.get(&id).map_or(0, |node| node.incarnation);
        let parts = self.seed.to_be_bytes().into_iter().chain(id.0.to_be_bytes());
        let parts = parts.chain(incarnation.to_be_bytes()).chain([machine]);
        let mut random = [0; 32];
        random.iter_mut().zip(parts).for_each(|(place, byte)| *place = byte);
        ChaCha20Rng::from_seed(random)
    }

    fn settings(&self) -> Settings {
        Settings {
            min_confirmations: 1,
            voting_timeout: self.voting_timeout,
            signing_timeout: Duration::from_millis(300),
            small_proposal: 0,
            bug: self.bug,
        }
    }

    /// Its timer fires.
    pub(crate) fn machine_due(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.timer_at = None;
        }
        self.step(id, Machine::handle_timeout);
        self.judge_evidence(id);
    }

    /// Lets a node's machine handle something, and carries out what it puts out.
    pub fn step(&mut self, id: NodeId, input: impl FnOnce(&mut Machine)) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(machine) = &mut node.machine else { return };
        let local = now + node.clock;
        let wall = node.wall_ms + u64::try_from(now.as_millis()).unwrap_or(0);
        input(machine.at(local, wall));
        let mut change = ChangeSet::default();
        while let Some(output) = machine.poll_output() {
            match output {
                Output::Persist(more) => change.merge(more),
                // Nothing waits for it.
                Output::Index(change) => node.index_late.push_back(change),
                other => node.queue.push_back((std::mem::take(&mut change), Some(other))),
            }
        }
        if !change.is_empty() {
            node.queue.push_back((change, None));
        }
        let due = machine
            .poll_timeout()
            .map(|at| at.saturating_sub(node.clock).max(now + Duration::from_millis(1)));
        if let Some(at) = due.filter(|at| node.timer_at.is_none_or(|set| *at < set)) {
            node.timer_at = Some(at);
            let incarnation = node.incarnation;
            self.schedule_at(at, Event::Timer { node: id, incarnation });
        }
        self.pump(id);
    }

    /// Starts the next write, or releases what needs none.
    fn pump(&mut self, id: NodeId) {
        loop {
            let Some(node) = self.nodes.get_mut(&id) else { return };
            if node.writing.is_some() {
                return;
            }
            match node.queue.front() {
                None => return,
                Some((change, _)) if change.is_empty() => {
                    if let Some((_, Some(output))) = node.queue.pop_front() {
                        self.release(id, output);
                    }
                }
                Some(_) => {
                    let count = node.queue.len().min(BATCH_MAX);
                    node.writing = Some(node.queue.drain(..count).collect());
                    let incarnation = node.incarnation;
                    let slow = self.now < node.slow_until;
                    let wait = if slow {
                        self.dice.between(200_000, 1_500_000)
                    } else {
                        self.dice.between(300, 4_000)
                    };
                    self.schedule(wait, Event::Disk { node: id, incarnation });
                    return;
                }
            }
        }
    }

    /// The write under way reaches the disk.
    pub fn disk_done(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some(operations) = node.doomed.take().filter(|_| node.writing.is_some()) {
            return self.doom(id, operations);
        }
        let (Some(batch), Some(store)) = (node.writing.take(), &mut node.store) else { return };
        let changes: Vec<_> = batch.iter().map(|(change, _)| change).filter(|one| !one.is_empty()).collect();
        if let Err(error) = store.write(&changes) {
            // It says that it failed; it may be there all the same.
            node.interrupted = rows_of(&batch);
            let what = error.to_string();
            self.write_failed(id, &what);
            return;
        }
        let incarnation = node.incarnation;
        for (change, output) in batch {
            // What was released may have ended this run: the next one has a store of its own.
            let Some(node) = self.nodes.get_mut(&id).filter(|node| node.incarnation == incarnation) else {
                return;
            };
            apply(&mut node.mirror, &change);
            if let Some(output) = output {
                self.release(id, output);
            }
        }
        self.pump(id);
    }

    /// Carries out an output whose writes are durable.
    fn release(&mut self, id: NodeId, output: Output) {
        match output {
            Output::Persist(_) | Output::Index(_) => {}
            Output::Ask { to, tag, request } => {
                for to in to {
                    self.ask(id, to, tag, (*request).clone());
                }
            }
            // Its own requests take the way of a peer's here, so that the oracle sees them.
            Output::Reply { to: ReplyTo::Myself(_), .. } => {}
            Output::Reply { to: ReplyTo::Peer(number), reply } => self.answer(id, number, reply),
            Output::LookUp { ticket, outpoints, .. } => self.look_up(id, ticket, outpoints),
            Output::Search { ticket, search } => {
                let incarnation = self.nodes.get(&id).map_or(0, |node| node.incarnation);
                let coins = self.chain.coins_with(&search.scripts().into_iter().collect());
                let found: BTreeSet<OutPoint> = coins.into_iter().map(|(outpoint, _)| outpoint).collect();
                let found = found.into_iter().collect();
                let wait = self.dice.between(1_000, 2_000_000);
                self.schedule(wait, Event::Found { node: id, incarnation, ticket, found });
            }
            Output::Check { ticket, check, .. } => {
                let incarnation = self.nodes.get(&id).map_or(0, |node| node.incarnation);
                let wait = self.dice.between(10, 20_000);
                let checked = Box::new(check.run());
                self.schedule(wait, Event::Checked { node: id, incarnation, ticket, checked });
            }
            Output::Recall { ticket, wanted, .. } => self.recall(id, ticket, &wanted),
            Output::Settled => {
                let incarnation = self.nodes.get(&id).map_or(0, |node| node.incarnation);
                let wait = self.dice.between(10, 1_000);
                self.schedule(wait, Event::Settled { node: id, incarnation });
            }
            Output::Client { session, id: request, message } => {
                self.tell_client(id, session, request, message)
            }
            Output::Broadcast(transactions) => {
                // The sweep tries again what the chain does not take now.
                for transaction in transactions {
                    let _not_yet = self.chain.submit(transaction);
                }
            }
            Output::Prove { session, id: request, txid, of, path } => {
                let block = self.chain.find(of.block.hash).map(|(block, _)| block.into());
                let message = quorate_node::chain::answer_proof(block.as_ref(), txid, of, path);
                self.tell_client(id, session, request, message);
            }
        }
    }

    fn ask(&mut self, id: NodeId, to: NodeId, tag: Tag, request: VotingRequest) {
        if let VotingRequest::FinalTransaction { proof, .. } = &request
            && self.nodes.get(&id).is_some_and(SimNode::is_trusted)
        {
            let federation = self.federation();
            self.oracle.proof(&federation, proof);
        }
        if let VotingRequest::Released { releases } = &request
            && self.nodes.get(&id).is_some_and(SimNode::is_trusted)
        {
            releases.iter().for_each(|release| self.oracle.release(release));
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let leaves =
            to == id || node.evil.as_mut().is_none_or(|evil| evil.asks(&mut self.dice, &mut self.counters));
        let rpc = self.next_rpc;
        self.next_rpc += 1;
        node.rpcs.insert(rpc, Waiting::Voter(to, tag));
        let incarnation = node.incarnation;
        let altered = node.evil.as_ref().filter(|_| to != id);
        let altered = altered.and_then(|evil| evil.alters(&request, &mut self.dice, &mut self.counters));
        let request = altered.unwrap_or(request);
        if leaves {
            self.transmit(
                id,
                to,
                Event::Request { from: id, to, rpc, incarnation, request: Box::new(request.into()) },
            );
        }
        self.schedule(REQUEST_TIMEOUT, Event::RpcTimeout { node: id, incarnation, rpc });
    }

    /// A peer's request arrives.
    pub fn requested(&mut self, from: NodeId, to: NodeId, rpc: u64, request: PeerRequest) {
        let Some(node) = self.nodes.get_mut(&to) else { return };
        if let Some(evil) = &mut node.evil {
            evil.hear(&request);
        }
        let number = node.next_number();
        node.replies.insert(number, (from, rpc, request.clone()));
        let PeerRequest::Voting(request) = request else {
            return self.epoch_asked(from, to, number, request);
        };
        if let VotingRequest::VoteRequest { proposal, account, .. } = &request {
            self.hear_proposal(to, proposal, account.as_ref());
        }
        self.step(to, |machine| machine.handle_request(from, ReplyTo::Peer(number), request));
    }

    /// An answer arrives, or the time for it is over.
    pub fn answered(&mut self, id: NodeId, rpc: u64, reply: Option<PeerReply>) {
        match self.nodes.get_mut(&id).and_then(|node| node.rpcs.remove(&rpc)) {
            Some(Waiting::Voter(to, tag)) => {
                // As the real driver: a refusal is no answer.
                let reply = if let Some(PeerReply::Voting(reply)) = reply { Some(reply) } else { None };
                self.step(id, |machine| machine.handle_reply(to, tag, reply));
            }
            Some(Waiting::Transition(ask)) => {
                self.step_transition(id, |transition| transition.handle_answer(ask, reply));
            }
            Some(Waiting::Theft(to)) => self.theft_hears(to, reply),
            None => {}
        }
    }

    /// What a Byzantine node may say more of later.
    fn hear_proposal(&mut self, id: NodeId, proposal: &Proposal, account: Option<&AccountCertificate>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.proposals.insert(proposal.txid(), (proposal.clone(), account.cloned()));
        }
    }

    /// The chain answers a node, after a time in which a block may come.
    fn look_up(&mut self, id: NodeId, ticket: u64, outpoints: Vec<OutPoint>) {
        let Some(node) = self.nodes.get(&id) else { return };
        let (incarnation, height) = (node.incarnation, node.height);
        let coins =
            outpoints.into_iter().filter_map(|outpoint| Some((outpoint, self.chain.coin_at(&outpoint)?)));
        let coins = coins.collect();
        let wait = self.dice.between(100, 30_000);
        self.schedule(wait, Event::Coins { node: id, incarnation, ticket, height, coins });
    }

    /// The archive answers a node.
    fn recall(&mut self, id: NodeId, ticket: u64, wanted: &[Recall]) {
        let Some(node) = self.nodes.get(&id) else { return };
        let (incarnation, index) = (node.incarnation, node.index_now());
        let archived = recall(wanted, |table, prefix, most| {
            let from = (table, prefix.to_vec());
            let rows =
                index.range(from..).take_while(|((of, key), _)| *of == table && key.starts_with(prefix));
            let row = |((table, key), value): (&Row, &Vec<u8>)| records::Row {
                table: *table,
                key: key.clone(),
                value: value.clone(),
            };
            Ok::<_, records::Unreadable>(rows.take(most).map(row).collect())
        });
        let archived = Box::new(archived.expect("what a machine wrote"));
        let wait = self.dice.between(50, 5_000);
        self.schedule(wait, Event::Recalled { node: id, incarnation, ticket, archived });
    }

    /// A check that was run aside is done.
    pub(crate) fn checked(&mut self, id: NodeId, ticket: u64, checked: Checked) {
        self.counters.add(Fault::Checked);
        self.step(id, |machine| machine.handle_checked(ticket, Some(checked)));
    }

    /// The chain says what accounts have.
    pub(crate) fn found(&mut self, id: NodeId, ticket: u64, found: Vec<OutPoint>) {
        self.step(id, |machine| machine.handle_found(ticket, Some(found)));
    }

    /// The chain's answer arrives.
    pub fn coins_found(&mut self, id: NodeId, ticket: u64, height: u32, coins: Vec<(OutPoint, ChainCoin)>) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.height != height {
            self.counters.add(Fault::OvertakenLookup);
        }
        self.step(id, |machine| machine.handle_coins(ticket, Some(coins)));
    }

    pub(crate) fn answer(&mut self, id: NodeId, number: u64, reply: PeerReply) {
        let (federation, key) = (self.federation_of(id), self.key_of(id));
        let weight = self.weight(id);
        self.judge_seal(id, &reply);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some(ask) = node.own_seals.remove(&number) {
            return self.step_transition(id, |transition| transition.handle_answer(ask, Some(reply)));
        }
        let Some((to, rpc, request)) = node.replies.remove(&number) else { return };
        if node.is_trusted() {
            self.oracle.reply(id, &node.mirror, &request, &reply, weight);
        }
        // One silent member stops a key generation, which needs all, and two the repair of a lost node's share, which
        // needs q of the others; after the storm that would only show that they do.
        let needed = matches!(request, PeerRequest::Keygen(_) | PeerRequest::Repair(_)) && !self.stormy;
        let reply = match node.evil.as_mut().filter(|_| !needed) {
            None => Some(reply),
            Some(evil) => {
                let Some(key) = &key else { return };
                let proposals = &node.proposals;
                let me = crate::byzantine::Me { id, key, federation: &federation, proposals };
                evil.answer(me, &request, reply, &mut self.dice, &mut self.counters)
            }
        };
        if let Some(reply) = reply {
            self.transmit(id, to, Event::Reply { from: id, to, rpc, reply: Box::new(reply) });
        }
    }

    /// What a node's own voter ends its epoch with, if one answer holds it all.
    fn judge_seal(&mut self, id: NodeId, reply: &PeerReply) {
        let PeerReply::Succession(SuccessionReply::Sealed { seal, transactions, more: false }) = reply else {
            return;
        };
        let own = self.nodes.get(&id).is_some_and(|node| node.is_trusted() && node.epoch == Epoch::FIRST);
        if own && seal.node == id && seal.transactions == transactions_hash(transactions) {
            self.oracle.seal(id, transactions);
        }
    }

    fn tell_client(
        &mut self,
        id: NodeId,
        session: SessionId,
        request: Option<u64>,
        message: quorate::wire::ServerMessage,
    ) {
        let federation = self.federation();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(owner) = node.sessions.get(&session).cloned() else { return };
        if node.is_trusted() {
            self.oracle.told(id, &node.mirror, &message, &federation);
            if let quorate::wire::ServerMessage::SignRequest { attempt, certificate, .. } = &message {
                self.sessions.entry((id, certificate.target.clone())).or_default().insert(*attempt);
            }
        }
        let message = match &mut node.evil {
            None => Some(message),
            Some(evil) => evil.tells(message, &mut self.dice, &mut self.counters),
        };
        if let Some(message) = message {
            let wait = self.dice.between(100, 2_000);
            let wait = self.in_order(id, session, wait);
            self.schedule_at(
                wait,
                Event::ToClient { node: id, session, owner, id: request, message: Box::new(message) },
            );
        }
    }

    /// A client's message arrives at a node.
    pub fn client_says(
        &mut self,
        id: NodeId,
        session: SessionId,
        request: Option<u64>,
        message: ClientMessage,
    ) {
        if let ClientMessage::TransactionBroadcast { proposal, account }
        | ClientMessage::TransactionCancel { proposal, account, .. } = &message
        {
            self.hear_proposal(id, proposal, account.as_ref());
        }
        if self.nodes.get(&id).is_some_and(|node| node.sessions.contains_key(&session)) {
            self.step(id, |machine| machine.handle_client(session, request, message));
        }
    }
}
