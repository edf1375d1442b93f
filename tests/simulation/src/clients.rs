//! Wallets (the real session machine), clients that submit transactions of coins in sole custody, and plain
//! subscribers.

use crate::{
    base::{COIN, open_output, spend},
    event::{Event, Owner, Party, SubscriberEvent, WalletEvent},
    faults::Fault,
    parties::{Submission, Subscriber, hello},
    world::World,
};
use bitcoin::{Address, Amount, Network, OutPoint, TxOut};
use quorate::{
    NodeId,
    account::AccountCertificate,
    finality::FinalityProof,
    proposal::Proposal,
    session::{Event as Told, Output, PaymentState},
    wallet::{Destination, PaymentRequest},
    wire::{
        ClientMessage, KeyOutcome, ServerMessage, SubscriptionKey, TransactionStatus, UtxoRecord, decode,
        encode_text,
    },
};
use quorate_bridge::sans_io::ends_submission;
use quorate_rules::SessionId;
use std::{collections::BTreeMap, time::Duration};

/// A submission without news is made again, at another node.
const SILENCE: Duration = Duration::from_secs(5);

impl World {
    pub(crate) fn wallet_event(&mut self, index: usize, event: WalletEvent) {
        let now = self.now;
        let up = self.bridge.is_up();
        let Some(wallet) = self.wallets.get_mut(index) else { return };
        match event {
            WalletEvent::Wake => {
                wallet.timer_at = None;
                wallet.session.handle_timeout(now);
            }
            WalletEvent::Connected(_) if !up || now < wallet.offline_until => {
                wallet.session.handle_disconnected(now, "the bridge is not reachable");
            }
            WalletEvent::Connected(_) => {
                wallet.connection += 1;
                let party = Party::Wallet(index, wallet.connection);
                let number = self.bridge_open(party);
                let Some(wallet) = self.wallets.get_mut(index) else { return };
                wallet.bridge = number;
                wallet.session.handle_connected(now);
            }
            WalletEvent::Text { connection, text }
                if connection == wallet.connection && wallet.bridge.is_some() =>
            {
                wallet.session.handle_text(now, &text);
            }
            WalletEvent::Lost { connection }
                if connection == wallet.connection && wallet.bridge.is_some() =>
            {
                wallet.bridge = None;
                wallet.session.handle_disconnected(now, "the connection was lost");
            }
            WalletEvent::Cancel(txid) => {
                if wallet.session.cancel(now, txid).is_ok() {
                    self.counters.add(Fault::Cancel);
                }
            }
            WalletEvent::Text { .. } | WalletEvent::Lost { .. } => {}
        }
        self.drain_wallet(index);
    }

    fn drain_wallet(&mut self, index: usize) {
        while let Some(output) = self.wallets.get_mut(index).and_then(|wallet| wallet.session.poll_output()) {
            let Some(wallet) = self.wallets.get_mut(index) else { return };
            match output {
                Output::Connect => {
                    let wait = Duration::from_millis(2);
                    self.schedule(wait, Event::Wallet { index, event: WalletEvent::Connected(true) });
                }
                Output::Send(text) => {
                    let Some(number) = wallet.bridge else { continue };
                    let envelope = decode::<ClientMessage>(text.as_bytes()).expect("own messages parse");
                    self.bridge_hears(number, envelope.id, envelope.body);
                }
                Output::Close => {
                    if let Some(number) = wallet.bridge.take() {
                        self.bridge_close(number);
                    }
                }
                Output::Event(event) => self.wallet_told(index, event),
                Output::Save(_) => {}
            }
        }
        let now = self.now;
        let Some(wallet) = self.wallets.get_mut(index) else { return };
        let due = wallet.session.poll_timeout().map(|at| at.max(now + Duration::from_millis(1)));
        if let Some(at) = due.filter(|at| wallet.timer_at.is_none_or(|set| *at < set)) {
            wallet.timer_at = Some(at);
            self.schedule_at(at, Event::Wallet { index, event: WalletEvent::Wake });
        }
    }

    fn wallet_told(&mut self, index: usize, event: Told) {
        let Some(wallet) = self.wallets.get_mut(index) else { return };
        match event {
            Told::Payment { txid, state: PaymentState::Final { proof, .. } } => {
                wallet.finals.push(txid);
                wallet.open.retain(|open| *open != txid);
                self.acknowledge(&proof);
            }
            Told::Payment { txid, state: PaymentState::Rejected { .. } | PaymentState::Failed { .. } } => {
                wallet.open.retain(|open| *open != txid);
            }
            Told::Received { txid, .. } => wallet.finals.push(txid),
            _other => {}
        }
    }

    fn acknowledge(&mut self, proof: &FinalityProof) {
        self.oracle.acknowledged.insert(proof.txid());
        let federation = self.federation();
        self.oracle.proof(&federation, proof);
    }

    /// Something arrives at a party of the bridge.
    pub(crate) fn party_hears(&mut self, party: Party, id: Option<u64>, message: ServerMessage) {
        match party {
            Party::Wallet(index, connection) => {
                let text = encode_text(id, &message);
                // A connection keeps its order.
                let event = Event::Wallet { index, event: WalletEvent::Text { connection, text } };
                self.schedule(Duration::from_millis(1), event);
            }
            Party::Subscriber(index, connection) => self.subscriber_hears(index, connection, message),
        }
    }

    /// A party's connection to the bridge is cut.
    pub(crate) fn party_lost(&mut self, party: Party) {
        match party {
            Party::Wallet(index, connection) => {
                self.schedule(
                    Duration::from_millis(1),
                    Event::Wallet { index, event: WalletEvent::Lost { connection } },
                );
            }
            Party::Subscriber(index, connection) => {
                let Some(subscriber) = self.subscribers.get_mut(index) else { return };
                if subscriber.connection == connection {
                    subscriber.bridge = None;
                    let wait = self.dice.between(10_000, 1_500_000);
                    self.schedule(wait, Event::Subscriber { index, event: SubscriberEvent::Connect });
                }
            }
        }
    }

    pub(crate) fn add_subscribers(&mut self) {
        let script = vec![SubscriptionKey::Script(open_output())];
        let outpoints = self.base.coins.iter().map(|coin| SubscriptionKey::Outpoint(*coin)).collect();
        for (index, keys) in [script, outpoints].into_iter().enumerate() {
            let subscriber = Subscriber { keys, connection: 0, bridge: None, known: BTreeMap::new() };
            self.subscribers.push(subscriber);
            let wait = self.dice.between(300_000, 800_000);
            self.schedule(wait, Event::Subscriber { index, event: SubscriberEvent::Connect });
        }
    }

    pub(crate) fn subscriber_event(&mut self, index: usize, event: SubscriberEvent) {
        let Some(subscriber) = self.subscribers.get_mut(index) else { return };
        match event {
            SubscriberEvent::Slow(slow) => {
                if let Some(number) = subscriber.bridge {
                    self.bridge.set_slow(number, slow);
                    self.drain_queues();
                }
            }
            SubscriberEvent::Connect if subscriber.bridge.is_some() => {}
            SubscriberEvent::Connect => {
                subscriber.connection += 1;
                let party = Party::Subscriber(index, subscriber.connection);
                let keys = subscriber.keys.clone();
                let Some(number) = self.bridge_open(party) else {
                    return self.schedule(
                        Duration::from_millis(500),
                        Event::Subscriber { index, event: SubscriberEvent::Connect },
                    );
                };
                if let Some(subscriber) = self.subscribers.get_mut(index) {
                    subscriber.bridge = Some(number);
                }
                self.bridge_hears(number, None, hello());
                self.bridge_hears(number, None, ClientMessage::subscribe(keys));
            }
        }
    }

    fn subscriber_hears(&mut self, index: usize, connection: u64, message: ServerMessage) {
        let Some(subscriber) = self.subscribers.get_mut(index) else { return };
        if subscriber.connection != connection {
            return;
        }
        let news: Vec<UtxoRecord> = match message {
            ServerMessage::UTXOStateNotification { utxo, .. } => vec![utxo],
            ServerMessage::UTXOSubscribed { results, .. } => {
                let of_key = results.into_iter().map(|result| match result.outcome {
                    KeyOutcome::Snapshot { utxos, .. } => utxos,
                    KeyOutcome::Error(_) => Vec::new(),
                });
                of_key.flatten().collect()
            }
            ServerMessage::Gap { keys } => {
                if let Some(number) = subscriber.bridge {
                    self.bridge_hears(number, None, ClientMessage::subscribe(keys));
                }
                return;
            }
            // No node told the bridge in time, or it has none.
            ServerMessage::Error { error } if error.retry => {
                if let Some(number) = subscriber.bridge {
                    self.bridge_close(number);
                }
                return self.party_lost(Party::Subscriber(index, connection));
            }
            _other => return,
        };
        for utxo in news {
            let Some(subscriber) = self.subscribers.get_mut(index) else { return };
            let same_connection = subscriber.known.get(&utxo.outpoint);
            // A bridge that was restarted may have its first snapshot from a node that is behind; the protocol's
            // facts must not shrink for a subscriber that joins what it hears.
            let mut joined = same_connection.cloned().unwrap_or_else(|| utxo.clone());
            joined.join(&utxo);
            if let (Some(before), Some(after)) = (joined.spend, utxo.spend)
                && before.txid != after.txid
            {
                let what = format!("{} was told spent by {} and {}", utxo.outpoint, before.txid, after.txid);
                self.oracle.broken("subscribers hear one truth", what);
            }
            subscriber.known.insert(utxo.outpoint, joined);
        }
    }

    /// Starts something: a payment, a conflict, a circle of conflicts, a cancellation.
    pub(crate) fn work(&mut self) {
        match self.dice.below(10) {
            0 => self.sole_payment(1),
            1 => match self.dice.below(4) {
                0 => self.sole_payment(1),
                1 => self.attested_child(),
                2 => self.chain_only_spend(),
                _ => self.wrong_deadline(),
            },
            2..=4 => self.sole_payment(2),
            5 => self.circle(),
            6 => self.wallet_goes_offline(),
            7 => self.slow_subscriber(),
            _ => self.wallet_pays(),
        }
    }

    fn take_coin(&mut self) -> Option<OutPoint> {
        let coin = self.base.coins.get(self.next_coin).copied();
        self.next_coin += 1;
        coin
    }

    /// One coin, spent by one or more transactions that conflict.
    fn sole_payment(&mut self, versions: u64) {
        let Some(coin) = self.take_coin() else { return };
        if versions > 1 {
            self.counters.add(Fault::ConflictingSpend);
        }
        for version in 0..versions {
            self.submit(&[coin], version);
        }
    }

    /// Three transactions, each sharing a coin with the next: a and b, b and c, c and a.
    fn circle(&mut self) {
        let (Some(a), Some(b), Some(c)) = (self.take_coin(), self.take_coin(), self.take_coin()) else {
            return;
        };
        self.counters.add(Fault::Circle);
        for pair in [[a, b], [b, c], [c, a]] {
            self.submit(&pair, 0);
        }
    }

    /// What a transaction of sole custody pays is spent again at once, whether a block has the first or not.
    fn attested_child(&mut self) {
        let childless = |one: &&Submission| matches!(one.outcome, Some(TransactionStatus::Signed { .. }));
        let parents: Vec<_> = self.submissions.iter().filter(childless).collect();
        let Some(Proposal::Sole { transaction }) = self.dice.pick(&parents).map(|one| &one.proposal) else {
            return;
        };
        let outpoint = OutPoint { txid: transaction.compute_txid(), vout: 0 };
        let Some(output) = transaction.output.first() else { return };
        let value = output.value - Amount::from_sat(1_000);
        let child = spend(&[outpoint], vec![TxOut { value, script_pubkey: open_output() }]);
        self.counters.add(Fault::AttestedChild);
        self.hand_in(Proposal::Sole { transaction: child }, None);
    }

    /// A payment whose deadline lies after its recovery path opens, or below the tip.
    fn wrong_deadline(&mut self) {
        let deadlines = [u32::MAX, self.base.latest_deadline() + 1, 1];
        let deadline = self.dice.pick(&deadlines).copied().unwrap_or(u32::MAX);
        let Some((proposal, account)) = self.base.greedy_payment(self.next_greedy, deadline) else { return };
        self.next_greedy += 1;
        self.counters.add(Fault::WrongDeadline);
        self.hand_in(proposal, Some(account));
    }

    fn submit(&mut self, inputs: &[OutPoint], version: u64) {
        let value = COIN * u64::try_from(inputs.len()).unwrap_or(1) - Amount::from_sat(2_000 + version);
        let transaction = spend(inputs, vec![TxOut { value, script_pubkey: open_output() }]);
        self.hand_in(Proposal::Sole { transaction }, None);
    }

    fn hand_in(&mut self, proposal: Proposal, account: Option<AccountCertificate>) {
        let index = self.submissions.len();
        self.submissions.push(Submission {
            proposal,
            account,
            at: None,
            heard: Duration::ZERO,
            submitted: Duration::ZERO,
            outcome: None,
        });
        let wait = self.dice.between(0, 20_000);
        self.schedule(wait, Event::Submit { index });
    }

    /// Submits at a node, unless there is news of an earlier submission.
    pub(crate) fn submit_again(&mut self, index: usize) {
        let now = self.now;
        let Some(submission) = self.submissions.get_mut(index) else { return };
        if submission.outcome.is_some() {
            return;
        }
        if submission.at.is_some() && now < submission.heard + SILENCE {
            return self.schedule(SILENCE, Event::Submit { index });
        }
        if let Some((node, session)) = submission.at.take() {
            self.close_session(node, session);
        }
        let running: Vec<_> =
            self.nodes.iter().filter(|(_, node)| node.machine.is_some()).map(|(id, _)| *id).collect();
        let chosen = self.dice.pick(&running).copied();
        self.schedule(SILENCE, Event::Submit { index });
        let Some(node) = chosen else { return };
        let Some(session) = self.nodes.get_mut(&node).map(|node| node.open_session(Owner::Submission(index)))
        else {
            return;
        };
        let Some(submission) = self.submissions.get_mut(index) else { return };
        submission.at = Some((node, session));
        (submission.heard, submission.submitted) = (now, now);
        let (proposal, account) = (submission.proposal.clone(), submission.account.clone());
        self.say(node, session, None, hello());
        self.say(node, session, Some(1), ClientMessage::TransactionBroadcast { proposal, account });
    }

    pub(crate) fn submission_lost(&mut self, index: usize) {
        if let Some(submission) = self.submissions.get_mut(index) {
            submission.at = None;
            self.schedule(Duration::from_millis(200), Event::Submit { index });
        }
    }

    /// A node's message arrives at whom its session belongs to.
    pub(crate) fn client_hears(
        &mut self,
        node: NodeId,
        session: SessionId,
        owner: Owner,
        id: Option<u64>,
        message: ServerMessage,
    ) {
        match owner {
            Owner::Events { connection } => self.bridge_event(node, connection, message),
            Owner::Relay { life, relay } => self.relay_hears(life, relay, id, message),
            Owner::Submission(index) => self.submission_hears(index, (node, session), message),
        }
    }

    fn submission_hears(&mut self, index: usize, from: (NodeId, SessionId), message: ServerMessage) {
        let now = self.now;
        let Some(submission) = self.submissions.get_mut(index) else { return };
        if submission.at != Some(from) {
            return;
        }
        submission.heard = now;
        if !ends_submission(&message) {
            return;
        }
        submission.at = None;
        match message {
            ServerMessage::TransactionStatus {
                status: TransactionStatus::Failed { retry: true, .. },
                ..
            }
            | ServerMessage::TransactionStatus {
                status: TransactionStatus::Rejected { retry: true, .. },
                ..
            } => {
                self.schedule(Duration::from_millis(500), Event::Submit { index });
            }
            ServerMessage::TransactionStatus { status, .. } => {
                let proof = if let TransactionStatus::Signed { proof } = &status {
                    Some(proof.clone())
                } else {
                    None
                };
                submission.outcome = Some(status);
                if let Some(proof) = proof {
                    self.acknowledge(&proof);
                }
            }
            _refused => self.schedule(Duration::from_millis(500), Event::Submit { index }),
        }
        self.close_session(from.0, from.1);
    }

    fn wallet_pays(&mut self) {
        let index = self.dice.below(self.wallets.len());
        let to = (index + 1) % self.wallets.len();
        let now = self.now;
        let Some(payee) = self.wallets.get_mut(to) else { return };
        let Ok(address) = payee.session.next_address() else { return };
        self.drain_wallet(to);
        let request = request(&address, Amount::from_sat(100_000));
        let cancels = self.dice.below(3) == 0;
        let Some(wallet) = self.wallets.get_mut(index) else { return };
        let Ok(txid) = wallet.session.send(now, &request) else { return };
        wallet.open.push(txid);
        self.drain_wallet(index);
        if cancels {
            let wait = self.dice.between(0, 3_000_000);
            self.schedule(wait, Event::Wallet { index, event: WalletEvent::Cancel(txid) });
        }
    }

    fn wallet_goes_offline(&mut self) {
        self.counters.add(Fault::WalletOffline);
        let index = self.dice.below(self.wallets.len());
        let away = self.dice.between(500_000, 8_000_000);
        let Some(wallet) = self.wallets.get_mut(index) else { return };
        wallet.offline_until = self.now + away;
        if let Some(number) = wallet.bridge.take() {
            self.bridge_close(number);
            let now = self.now;
            if let Some(wallet) = self.wallets.get_mut(index) {
                wallet.session.handle_disconnected(now, "the phone is in a tunnel");
            }
            self.drain_wallet(index);
        }
    }

    fn slow_subscriber(&mut self) {
        self.counters.add(Fault::SlowSubscriber);
        let index = self.dice.below(self.subscribers.len());
        self.subscriber_event(index, SubscriberEvent::Slow(true));
        let wait = self.dice.between(500_000, 6_000_000);
        self.schedule(wait, Event::Subscriber { index, event: SubscriberEvent::Slow(false) });
    }
}

fn request(to: &Address, amount: Amount) -> PaymentRequest {
    let destination = Destination::parse(&to.to_string(), Network::Regtest).expect("a regtest address");
    PaymentRequest::new(destination).exact(amount)
}

impl World {
    /// Whether somebody has submitted anything since then.
    pub(crate) fn submitted_since(&self, then: Duration) -> bool {
        self.submissions.iter().any(|one| one.submitted > then)
    }

    /// Whether the owner of a coin is still submitting something that spends it.
    pub(crate) fn submissions_open(&self, outpoint: &OutPoint) -> bool {
        let spends = |one: &Submission| one.proposal.outpoints().contains(outpoint);
        self.submissions.iter().any(|one| one.outcome.is_none() && spends(one))
    }
}
