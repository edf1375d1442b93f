//! The wallet's session with a server: a sans-IO machine around a [`Wallet`].
//!
//! It greets, registers the account, subscribes to every script, verifies what comes, asks for the headers and Merkle proofs that
//! are missing, takes part in signing, and submits again (which is idempotent) after a lost connection or coordinator. It has no socket
//! and no clock: a driver tells it what happened and does what [`Session::poll_output`] says. `now` is any monotonic time;
//! only differences count.
//!
//! The server is not trusted: a proof that does not verify is reported as [`Event::ServerMisbehaved`] and changes nothing.

mod backoff;
mod epoch;
mod events;
mod handle;
mod state;

pub use events::{Event, PaymentState, Reach};

use crate::{
    chain::Extension,
    proposal::Proposal,
    vote::VoteTarget,
    wallet::{Balance, PaymentRequest, StateChange, Wallet, WalletError},
    wire::{BlockRef, ClientMessage, ServerMessage, SubscriptionKey, WireError, decode, encode_text, limits},
};
use backoff::Backoff;
use bitcoin::{FeeRate, Psbt, ScriptBuf, Txid};
use rand_core::CryptoRngCore;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

/// Monotonic time from any fixed moment on.
pub type Now = Duration;

/// Shortest wait before a payment is submitted again.
const RESUBMIT_MIN: Duration = Duration::from_millis(100);
/// Longest wait before a payment is submitted again.
const RESUBMIT_MAX: Duration = Duration::from_secs(5);
/// Shortest wait before connecting again.
const RECONNECT_MIN: Duration = Duration::from_millis(200);
/// Longest wait before connecting again.
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// A submission without any answer for so long is made again.
const SUBMIT_SILENCE: Duration = Duration::from_secs(5);
/// A coordinator that has not brought a payment to its end in this time is left for another, however busy it seems.
const COORDINATOR_PATIENCE: Duration = Duration::from_secs(10);
/// Shortest wait before headers or proofs that a server did not have yet are asked for again.
const CHASE_MIN: Duration = Duration::from_millis(50);
/// Longest wait before they are asked for again.
const CHASE_MAX: Duration = Duration::from_secs(5);
/// How often a payment that nodes rejected for a passing reason is submitted again before the reason is reported.
const PASSING_REJECTS_MAX: u32 = 8;
/// A server that leaves a question unanswered for so long is given up: behind a bridge, another node may answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Ended payments that are remembered.
const DORMANT_MAX: usize = 256;
/// Ends of payments that are remembered.
const OUTCOMES_MAX: usize = 256;
/// A connection without any frame for so long is given up.
const LIVENESS: Duration = Duration::from_secs(45);

/// What the driver has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection; then call [`Session::handle_connected`] or [`Session::handle_disconnected`].
    Connect,
    /// Send a message on the open connection.
    Send(String),
    /// Close the connection.
    Close,
    /// Tell the application.
    Event(Event),
    /// Make this durable, as a whole, before any later output is carried out. Only given by a session of [`Session::restore`].
    Save(StateChange),
}

#[derive(Debug)]
enum Link {
    Down { retry_at: Now },
    Connecting,
    Greeting { until: Now },
    Live,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pending {
    Hello,
    Register,
    Subscribe,
    Federation,
    Headers { step: u32 },
    Proof { txid: Txid },
    FeeRate,
    Ping,
    Submit { txid: Txid },
}

impl Payment {
    fn new(now: Now, proposal: Proposal, cancelled: bool) -> Self {
        Self {
            proposal,
            backoff: Backoff::new(RESUBMIT_MIN, RESUBMIT_MAX),
            resubmit_at: None,
            submitted_at: now,
            passing_rejects: 0,
            state: PaymentState::Submitted,
            signed: Vec::new(),
            cancelled,
            ended: None,
        }
    }

    /// News of it: waits for more, but not for ever.
    fn heard(&mut self, now: Now) {
        self.resubmit_at = Some((now + SUBMIT_SILENCE).min(self.submitted_at + COORDINATOR_PATIENCE));
    }
}

#[derive(Debug)]
struct Payment {
    proposal: Proposal,
    backoff: Backoff,
    resubmit_at: Option<Now>,
    /// When it was last submitted.
    submitted_at: Now,
    /// Submissions that nodes rejected for a passing reason.
    passing_rejects: u32,
    state: PaymentState,
    /// What this wallet gave its signature shares for. Only these can have become final.
    signed: Vec<VoteTarget>,
    /// The owner wants it stopped.
    cancelled: bool,
    /// How it ended by the word of one server, until that is confirmed.
    ended: Option<PaymentState>,
}

/// The session machine.
pub struct Session {
    wallet: Wallet,
    rng: Box<dyn CryptoRngCore + Send>,
    link: Link,
    heard_at: Now,
    reconnect: Backoff,
    next_id: u64,
    pending: BTreeMap<u64, Pending>,
    /// When the requests under way were sent, for those that are always answered.
    asked_at: BTreeMap<u64, Now>,
    now: Now,
    payments: BTreeMap<Txid, Payment>,
    /// Payments that ended without becoming final, should a coin be left to one of them after all.
    dormant: BTreeMap<Txid, Proposal>,
    /// How payments of this run ended, for who asks later.
    outcomes: BTreeMap<Txid, PaymentState>,
    waiting_proofs: BTreeSet<Txid>,
    /// What cannot be understood before the federation's next document is here.
    postponed: epoch::Postponed,
    /// Requests that failed for a passing reason, and when to make them again.
    redo: Vec<(Now, Pending)>,
    /// The highest tip that a server told of. Behind a bridge, the node that answers may not have it yet.
    told_tip: Option<BlockRef>,
    chase: Backoff,
    chase_at: Option<Now>,
    fee_rate: FeeRate,
    last_balance: Balance,
    /// Whether the application knows that everything asked for has been answered.
    told_synced: bool,
    /// Whether changes are given to be saved.
    saves: bool,
    touched: state::Touched,
    outputs: VecDeque<Output>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("link", &self.link)
            .field("wallet", &self.wallet)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A session that wants to connect at once.
    pub fn new(wallet: Wallet, rng: Box<dyn CryptoRngCore + Send>) -> Self {
        Self {
            wallet,
            rng,
            link: Link::Connecting,
            heard_at: Now::ZERO,
            reconnect: Backoff::new(RECONNECT_MIN, RECONNECT_MAX),
            next_id: 1,
            pending: BTreeMap::new(),
            asked_at: BTreeMap::new(),
            now: Now::ZERO,
            payments: BTreeMap::new(),
            dormant: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            waiting_proofs: BTreeSet::new(),
            postponed: epoch::Postponed::default(),
            redo: Vec::new(),
            told_tip: None,
            chase: Backoff::new(CHASE_MIN, CHASE_MAX),
            chase_at: None,
            fee_rate: crate::standard::FEE_RATE_MIN,
            last_balance: Balance::default(),
            told_synced: false,
            saves: false,
            touched: state::Touched::default(),
            outputs: VecDeque::from([Output::Connect]),
        }
    }

    /// The wallet.
    pub fn wallet(&self) -> &Wallet {
        &self.wallet
    }

    /// Gives out the next receive address and watches it.
    ///
    /// # Errors
    /// All addresses have been given out.
    pub fn next_address(&mut self) -> Result<bitcoin::Address, WalletError> {
        let address = self.wallet.next_address()?;
        self.subscribe_new();
        Ok(address.to_address(self.wallet.federation().network()))
    }

    /// An address to show to anyone: the same until somebody has paid to it ([`Wallet::unused_address`]).
    ///
    /// # Errors
    /// All addresses have been given out.
    pub fn unused_address(&mut self) -> Result<bitcoin::Address, WalletError> {
        let address = self.wallet.unused_address()?;
        self.subscribe_new();
        Ok(address.to_address(self.wallet.federation().network()))
    }

    /// How far this session has come with its server.
    pub fn reach(&self) -> Reach {
        match self.link {
            Link::Live if self.wallet.certificate().is_some() => Reach::Ready,
            Link::Live => Reach::Connected,
            Link::Down { .. } | Link::Connecting | Link::Greeting { .. } => Reach::Offline,
        }
    }

    /// Builds a payment as a PSBT, without reserving or sending anything.
    ///
    /// # Errors
    /// Dust, too little money, a fee rate out of bounds, no amount.
    pub fn create_psbt(&mut self, request: &PaymentRequest) -> Result<Psbt, WalletError> {
        self.wallet.create_psbt(request, self.fee_rate)
    }

    /// Builds, authorises and submits a payment; progress comes as [`Event::Payment`].
    ///
    /// # Errors
    /// Nothing has been sent and nothing is reserved.
    pub fn send(&mut self, now: Now, request: &PaymentRequest) -> Result<Txid, WalletError> {
        let psbt = self.wallet.create_psbt(request, self.fee_rate)?;
        self.send_psbt(now, psbt)
    }

    /// Authorises and submits a PSBT of this account.
    ///
    /// # Errors
    /// Nothing has been sent and nothing is reserved.
    pub fn send_psbt(&mut self, now: Now, psbt: Psbt) -> Result<Txid, WalletError> {
        if self.wallet.is_watch_only() {
            return Err(WalletError::WatchOnly);
        }
        if self.wallet.certificate().is_none() {
            return Err(WalletError::NotCertified);
        }
        let proposal = self.wallet.propose(psbt)?;
        self.subscribe_new();
        self.balance_event();
        Ok(self.submit(now, proposal))
    }

    /// Submits a signed transaction of coins in sole custody. Its finality will be attested only.
    pub fn submit_signed(&mut self, now: Now, transaction: bitcoin::Transaction) -> Txid {
        self.submit(now, Proposal::Sole { transaction })
    }

    /// Asks the federation to stop a payment that is not final. Its outcome comes as [`Event::Payment`]: `Failed` or `Rejected` with
    /// the coins free again, or `Final` if it was too late.
    ///
    /// # Errors
    /// No such payment of this account is under way.
    pub fn cancel(&mut self, now: Now, txid: Txid) -> Result<(), WalletError> {
        let payment = self.payments.get_mut(&txid).ok_or(WalletError::UnknownPayment)?;
        if !matches!(payment.proposal, Proposal::Joint(_)) {
            return Err(WalletError::UnknownPayment);
        }
        payment.cancelled = true;
        self.touched.payments.insert(txid);
        self.send_submission(now, txid);
        Ok(())
    }

    fn submit(&mut self, now: Now, proposal: Proposal) -> Txid {
        self.submit_as(now, proposal, false)
    }

    fn submit_as(&mut self, now: Now, proposal: Proposal, cancelled: bool) -> Txid {
        let txid = proposal.txid();
        self.payments.insert(txid, Payment::new(now, proposal, cancelled));
        self.outcomes.remove(&txid);
        self.touched.payments.insert(txid);
        self.event(Event::Payment { txid, state: PaymentState::Submitted });
        self.send_submission(now, txid);
        txid
    }

    /// Payments that are under way.
    pub fn payments(&self) -> impl Iterator<Item = (Txid, &PaymentState)> + '_ {
        self.payments.iter().map(|(txid, payment)| (*txid, &payment.state))
    }

    /// Where a payment of this wallet stands, or how it ended; `None` if it is not known.
    pub fn payment(&self, txid: Txid) -> Option<PaymentState> {
        if let Some(payment) = self.payments.get(&txid) {
            return Some(payment.state.clone());
        }
        if let Some(proof) = self.wallet.proof(txid) {
            return Some(PaymentState::Final { kind: proof.kind(), proof: Box::new(proof.clone()) });
        }
        let before = || PaymentState::Failed {
            message:
                "the federation did not take this payment, before the wallet was opened; its coins are free"
                    .to_owned(),
            retry: false,
        };
        self.outcomes.get(&txid).cloned().or_else(|| self.dormant.contains_key(&txid).then(before))
    }

    /// Whether the server has answered everything that this session asked for: what the wallet shows is then as of now.
    pub fn is_synced(&self) -> bool {
        let asked = |pending: &Pending| !matches!(pending, Pending::Submit { .. } | Pending::Ping);
        self.is_live() && !self.pending.values().any(asked) && self.waiting_proofs.is_empty()
    }

    /// The fee rate in use when a request names none: the server's estimate, within the relay limits.
    pub fn fee_rate(&self) -> FeeRate {
        self.fee_rate
    }

    /// The connection is open.
    pub fn handle_connected(&mut self, now: Now) {
        self.link = Link::Greeting { until: now + limits::HELLO_TIMEOUT };
        (self.heard_at, self.now) = (now, now);
        let federation = Some(self.wallet.federation().id());
        let agent = concat!("quorate/", env!("CARGO_PKG_VERSION")).to_owned();
        self.request(
            Pending::Hello,
            &ClientMessage::Hello { protocol: limits::PROTOCOL_VERSION, federation, agent },
        );
    }

    /// The connection is closed, or could not be opened.
    pub fn handle_disconnected(&mut self, now: Now, reason: &str) {
        if matches!(self.link, Link::Down { .. }) {
            return;
        }
        let wait = self.reconnect.next(&mut *self.rng);
        self.link = Link::Down { retry_at: now + wait };
        self.told_synced = false;
        self.pending.clear();
        self.asked_at.clear();
        self.waiting_proofs.clear();
        self.postponed = epoch::Postponed::default();
        self.redo.clear();
        (self.told_tip, self.chase_at) = (None, None);
        self.outputs.retain(|output| !matches!(output, Output::Send(_)));
        for payment in self.payments.values_mut() {
            payment.resubmit_at = None;
        }
        self.event(Event::Disconnected { reason: reason.to_owned(), retry_in: wait });
    }

    /// A text frame arrived.
    pub fn handle_text(&mut self, now: Now, text: &str) {
        self.heard_at = now;
        self.now = now;
        let open = &self.pending;
        self.asked_at.retain(|id, _| open.contains_key(id));
        match decode::<ServerMessage>(text.as_bytes()) {
            Ok(envelope) => {
                if let Some(message) = self.postpone(now, envelope.id, envelope.body) {
                    self.handle_message(now, envelope.id, message);
                }
            }
            Err((_, error)) => self.misbehaved(&error),
        }
        if !self.told_synced && self.is_synced() {
            self.told_synced = true;
            self.event(Event::Synced);
        }
        self.plan_chase(now);
        self.balance_event();
    }

    /// Sees to it that what the wallet lacks is asked for again, by a timer and not by the luck of another event.
    fn plan_chase(&mut self, now: Now) {
        let behind = self.told_tip.is_some_and(|tip| tip.height > self.wallet.chain().tip().height);
        if !behind && self.waiting_proofs.is_empty() {
            self.chase.reset();
            self.chase_at = None;
        } else if self.chase_at.is_none() {
            self.chase_at = Some(now + self.chase.next(&mut *self.rng));
        }
    }

    /// Fires expired timers; calling early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        match self.link {
            Link::Down { retry_at } if now >= retry_at => {
                self.link = Link::Connecting;
                self.outputs.push_back(Output::Connect);
            }
            Link::Greeting { until } if now >= until => {
                self.hang_up(now, "the server did not answer the greeting")
            }
            Link::Live if now >= self.heard_at + LIVENESS => self.hang_up(now, "the server went silent"),
            Link::Live if self.unanswered().is_some_and(|at| now >= at) => {
                self.hang_up(now, "the server left a question unanswered");
            }
            Link::Down { .. } | Link::Connecting | Link::Greeting { .. } | Link::Live => {}
        }
        if matches!(self.link, Link::Live) {
            if self.postponed.ask_at.is_some_and(|at| now >= at) {
                self.ask_document();
            }
            if now >= self.ping_at() {
                self.request(Pending::Ping, &ClientMessage::Ping);
            }
            let (due, later) = std::mem::take(&mut self.redo).into_iter().partition(|(at, _)| now >= *at);
            self.redo = later;
            self.ask_again(due);
            if self.chase_at.is_some_and(|at| now >= at) {
                self.chase_at = None;
                self.ask_headers(0);
                let waiting = std::mem::take(&mut self.waiting_proofs);
                self.ask_proofs(waiting);
                self.plan_chase(now);
            }
            let due = |payment: &Payment| payment.resubmit_at.is_some_and(|at| now >= at);
            let due: Vec<Txid> =
                self.payments.iter().filter(|(_, payment)| due(payment)).map(|(txid, _)| *txid).collect();
            for txid in due {
                self.send_submission(now, txid);
            }
        }
    }

    /// When [`Session::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Now> {
        let link = match self.link {
            Link::Down { retry_at } => Some(retry_at),
            Link::Connecting => None,
            Link::Greeting { until } => Some(until),
            Link::Live => {
                let fixed = [self.heard_at + LIVENESS, self.ping_at()];
                self.unanswered().into_iter().chain(fixed).chain(self.redo.iter().map(|(at, _)| *at)).min()
            }
        };
        let live = matches!(self.link, Link::Live);
        let payments = self.payments.values().filter_map(|payment| payment.resubmit_at).filter(|_| live);
        payments
            .chain(link)
            .chain(self.chase_at.into_iter().chain(self.postponed.ask_at).filter(|_| live))
            .min()
    }

    /// Next action, in order. Drain to `None` after every call.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.take_save().or_else(|| self.outputs.pop_front())
    }

    /// When the oldest question under way should have been answered.
    fn unanswered(&self) -> Option<Now> {
        let open = self.asked_at.iter().filter(|(id, _)| self.pending.contains_key(*id));
        open.map(|(_, at)| *at + ANSWER_TIMEOUT).min()
    }

    /// When a server that has been silent is asked whether it is still there. Never while that question is open.
    fn ping_at(&self) -> Now {
        let asked = self.pending.values().any(|pending| *pending == Pending::Ping);
        if asked { Now::MAX } else { self.heard_at + limits::PING_INTERVAL }
    }

    fn ask_again(&mut self, due: Vec<(Now, Pending)>) {
        for (_, pending) in due {
            if pending == Pending::Register {
                self.register();
            } else if pending == Pending::FeeRate {
                self.request(pending, &ClientMessage::FeeRateQuery);
            } else {
                self.ask_document();
            }
        }
    }

    fn register(&mut self) {
        let record = self.wallet.account().record().clone();
        self.request(Pending::Register, &ClientMessage::AccountRegister { record });
    }

    fn hang_up(&mut self, now: Now, reason: &str) {
        self.outputs.push_back(Output::Close);
        self.handle_disconnected(now, reason);
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn misbehaved(&mut self, error: &dyn fmt::Display) {
        self.event(Event::ServerMisbehaved { what: error.to_string() });
    }

    fn balance_event(&mut self) {
        let balance = self.wallet.balance();
        if balance != self.last_balance {
            self.last_balance = balance;
            self.event(Event::Balance(balance));
        }
    }

    fn request(&mut self, pending: Pending, message: &ClientMessage) {
        let id = self.next_id;
        self.next_id += 1;
        if !matches!(pending, Pending::Submit { .. }) {
            self.asked_at.insert(id, self.now);
        }
        self.told_synced &= matches!(pending, Pending::Submit { .. } | Pending::Ping);
        self.pending.insert(id, pending);
        self.outputs.push_back(Output::Send(encode_text(Some(id), message)));
    }

    fn is_live(&self) -> bool {
        matches!(self.link, Link::Live)
    }

    fn subscribe_new(&mut self) {
        if self.is_live() {
            let scripts = self.wallet.take_unwatched();
            self.subscribe(scripts);
        }
    }

    fn subscribe(&mut self, scripts: Vec<ScriptBuf>) {
        let keys: Vec<_> = scripts.into_iter().map(SubscriptionKey::Script).collect();
        for keys in keys.chunks(limits::KEYS_PER_MESSAGE_MAX) {
            self.request(Pending::Subscribe, &ClientMessage::UTXOSubscribe { keys: keys.to_vec() });
        }
    }

    fn send_submission(&mut self, now: Now, txid: Txid) {
        if !self.is_live() {
            return;
        }
        let Some(payment) = self.payments.get_mut(&txid) else { return };
        payment.submitted_at = now;
        payment.resubmit_at = Some(now + SUBMIT_SILENCE);
        let joint = matches!(payment.proposal, Proposal::Joint(_));
        let account = self.wallet.certificate().filter(|_| joint).cloned();
        let proposal = payment.proposal.clone();
        let message = if payment.cancelled {
            // A wallet that only watches has no payments.
            let Ok(cancel) = self.wallet.sign_cancel(txid) else { return };
            ClientMessage::TransactionCancel { cancel, proposal, account }
        } else {
            ClientMessage::TransactionBroadcast { proposal, account }
        };
        self.pending.retain(|_, pending| *pending != Pending::Submit { txid });
        self.request(Pending::Submit { txid }, &message);
    }

    fn ask_headers(&mut self, step: u32) {
        let asked = |pending: &Pending| matches!(pending, Pending::Headers { .. });
        if !self.pending.values().any(asked) {
            let from = self.wallet.chain().ask_from(step);
            self.request(Pending::Headers { step }, &ClientMessage::HeadersQuery { from });
        }
    }

    fn ask_proofs(&mut self, txids: impl IntoIterator<Item = Txid>) {
        for txid in txids {
            let pending = Pending::Proof { txid };
            if !self.pending.values().any(|other| *other == pending) {
                self.request(pending, &ClientMessage::ProofQuery { txid });
            }
        }
    }

    fn take_extension(&mut self, extension: Extension) {
        if extension != Extension::Unchanged {
            let tip = self.wallet.chain().tip();
            self.event(Event::Tip { tip });
            let waiting = std::mem::take(&mut self.waiting_proofs);
            self.ask_proofs(waiting);
        }
    }

    fn refused(&mut self, now: Now, id: Option<u64>, error: &WireError) {
        let pending = id.and_then(|id| self.pending.remove(&id));
        match pending {
            Some(Pending::Submit { txid }) if error.retry => self.retry_later(now, txid),
            Some(Pending::Submit { txid }) => {
                let state = PaymentState::Failed { message: error.to_string(), retry: false };
                self.finish(txid, state);
            }
            Some(Pending::Hello) => {
                self.event(Event::Refused { error: error.clone() });
                self.hang_up(now, &error.to_string());
            }
            Some(Pending::Proof { txid }) if error.retry => {
                self.waiting_proofs.insert(txid);
            }
            Some(pending @ (Pending::Register | Pending::FeeRate | Pending::Federation)) if error.retry => {
                let wait = self.chase.next(&mut *self.rng);
                self.redo.push((now + wait, pending));
            }
            // Its keys would be watched by nobody.
            Some(Pending::Subscribe) if error.retry => self.hang_up(now, &error.to_string()),
            Some(_) | None => self.event(Event::Refused { error: error.clone() }),
        }
    }

    fn retry_later(&mut self, now: Now, txid: Txid) {
        if let Some(payment) = self.payments.get_mut(&txid) {
            payment.resubmit_at = Some(now + payment.backoff.next(&mut *self.rng));
        }
    }

    fn finish(&mut self, txid: Txid, state: PaymentState) {
        let ended = self.payments.remove(&txid);
        self.touched.payments.insert(txid);
        self.pending.retain(|_, pending| *pending != Pending::Submit { txid });
        if !matches!(state, PaymentState::Final { .. }) {
            self.wallet.abandon(txid);
            if let Some(ended) = ended.filter(|ended| matches!(ended.proposal, Proposal::Joint(_))) {
                self.dormant.insert(txid, ended.proposal);
                self.touched.dormant.insert(txid);
            }
            while self.dormant.len() > DORMANT_MAX {
                self.touched.dormant.extend(self.dormant.pop_first().map(|(txid, _)| txid));
            }
        }
        while self.outcomes.len() >= OUTCOMES_MAX {
            self.outcomes.pop_first();
        }
        self.outcomes.insert(txid, state.clone());
        self.event(Event::Payment { txid, state });
    }
}

#[cfg(test)]
mod tests;
