//! The wallet's session with a server: a sans-IO machine around a [`Wallet`].
//!
//! It greets, registers the account, subscribes to it, verifies what comes, asks for the headers and Merkle
//! proofs that are missing, takes part in signing, and submits again (which is idempotent) after a lost connection or
//! coordinator. It has no socket and no clock: a driver tells it what happened and does what [`Session::poll_output`]
//! says. `now` is any monotonic time; only differences count.
//!
//! The server is not trusted: a proof that does not verify is reported as [`Event::ServerMisbehaved`] and changes
//! nothing.

mod aging;
mod backoff;
mod epoch;
mod events;
mod following;
mod freshness;
mod handle;
mod once;
mod payments;
mod pending;
mod requests;
mod state;

pub use aging::RefreshQuote;
pub use events::{Event, PaymentState, Reach};
pub use freshness::TIP_AGE_MAX;
pub use once::IDEMPOTENCY_KEYS_MAX;
pub use pending::Now;

use crate::{
    finality::FinalityProof,
    headers::Extension,
    proposal::Proposal,
    wallet::{Balance, StateChange, Wallet, WalletError},
    wire::{BlockRef, ClientMessage, Pages, ServerMessage, decode, limits},
};
use backoff::Backoff;
use bitcoin::{FeeRate, Txid};
use once::Once;
use pending::{Payment, Pending, RESUBMIT_MAX, RESUBMIT_MIN};
use rand_core::CryptoRngCore;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

/// Shortest wait before connecting again.
const RECONNECT_MIN: Duration = Duration::from_millis(200);
/// Longest wait before connecting again.
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Shortest wait before headers or proofs that a server did not have yet are asked for again.
const CHASE_MIN: Duration = Duration::from_millis(50);
/// Longest wait before they are asked for again.
const CHASE_MAX: Duration = Duration::from_secs(5);
/// Verified proofs that wait for headers.
const UNJUDGED_MAX: usize = 100;
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
    /// Make this durable, as a whole, before any later output is carried out. Only given by a session of
    /// [`Session::restore`].
    Save(StateChange),
}

#[derive(Debug)]
enum Link {
    Down { retry_at: Now },
    Connecting,
    Greeting { until: Now },
    Live,
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
    /// Answers that come in pages and are not whole yet.
    pages: BTreeMap<u64, Pages>,
    now: Now,
    payments: BTreeMap<Txid, Payment>,
    /// Payments that ended without becoming final, should a coin be left to one of them after all.
    dormant: BTreeMap<Txid, Proposal>,
    /// Which payment each idempotency key stands for.
    once: Once,
    /// How payments of this run ended, for who asks later.
    outcomes: BTreeMap<Txid, PaymentState>,
    /// The time of day, if it is known, the age by which a tip is stale, and the tip that the application was told so
    /// of.
    wall: Option<u64>,
    tip_age_max: Option<Duration>,
    told_stale: Option<BlockRef>,
    /// Final transactions that a node placed in no block, and how often it was asked.
    unplaced: BTreeMap<Txid, u8>,
    /// Final transactions that are in no block, with the height of the tip since when; the height at which they were
    /// looked for last; and those of them that are watched.
    unmined: BTreeMap<Txid, u32>,
    looked_at: u32,
    watched: BTreeSet<Txid>,
    /// What servers before this one told of, or blocks that are gone had, is to be looked through once all is told.
    claims_are_old: bool,
    following: following::Following,
    /// Watched transactions that the server did not know to be final.
    unknown: BTreeSet<Txid>,
    /// What the server says that the Bitcoin network has against final transactions of this wallet.
    refusals: BTreeMap<Txid, String>,
    waiting_proofs: BTreeSet<Txid>,
    /// Proofs whose deadline is compared with the tip once the headers are there.
    unjudged: BTreeMap<Txid, FinalityProof>,
    /// Transactions whose place is asked for when an answer to an earlier question has come.
    queued_proofs: BTreeSet<Txid>,
    /// What cannot be understood before the federation's next document is here.
    postponed: epoch::Postponed,
    /// Requests that failed for a passing reason, and when to make them again.
    redo: Vec<(Now, Pending)>,
    /// The tip that the server told of last. Behind a bridge, the node that answers may not have it yet.
    told_tip: Option<BlockRef>,
    chase: Backoff,
    /// Of keys that could not be watched.
    watch_again: Backoff,
    chase_at: Option<Now>,
    fee_rate: FeeRate,
    last_balance: Balance,
    aging: aging::Aging,
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
        let tip_age_max = freshness::age_max(wallet.federation().network());
        Self {
            wallet,
            rng,
            link: Link::Connecting,
            heard_at: Now::ZERO,
            reconnect: Backoff::new(RECONNECT_MIN, RECONNECT_MAX),
            next_id: 1,
            pending: BTreeMap::new(),
            asked_at: BTreeMap::new(),
            pages: BTreeMap::new(),
            now: Now::ZERO,
            payments: BTreeMap::new(),
            dormant: BTreeMap::new(),
            once: Once::default(),
            outcomes: BTreeMap::new(),
            wall: None,
            tip_age_max,
            told_stale: None,
            unplaced: BTreeMap::new(),
            unmined: BTreeMap::new(),
            looked_at: 0,
            claims_are_old: true,
            watched: BTreeSet::new(),
            following: following::Following::default(),
            unknown: BTreeSet::new(),
            refusals: BTreeMap::new(),
            waiting_proofs: BTreeSet::new(),
            queued_proofs: BTreeSet::new(),
            unjudged: BTreeMap::new(),
            postponed: epoch::Postponed::default(),
            redo: Vec::new(),
            told_tip: None,
            chase: Backoff::new(CHASE_MIN, CHASE_MAX),
            watch_again: Backoff::new(RESUBMIT_MIN, RESUBMIT_MAX),
            chase_at: None,
            fee_rate: crate::relay_policy::FEE_RATE_MIN,
            last_balance: Balance::default(),
            aging: aging::Aging::default(),
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
        self.follow_new();
        Ok(address.to_address(self.wallet.federation().network()))
    }

    /// An address to show to anyone: the same until somebody has paid to it ([`Wallet::unused_address`]).
    ///
    /// # Errors
    /// All addresses have been given out.
    pub fn unused_address(&mut self) -> Result<bitcoin::Address, WalletError> {
        let address = self.wallet.unused_address()?;
        self.follow_new();
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

    /// What the Bitcoin network has against a final transaction of this wallet at present, by the word of the server.
    /// Its nodes try again; one that pays too little by now can be lifted with [`Session::bump`].
    ///
    /// ```
    /// # fn example(session: &quorate::session::Session, txid: bitcoin::Txid) {
    /// if let Some(reason) = session.refusal(txid) {
    ///     println!("{txid} is final, and a node's mempool does not take it: {reason}");
    /// }
    /// # }
    /// ```
    pub fn refusal(&self, txid: Txid) -> Option<&str> {
        self.refusals.get(&txid).map(String::as_str)
    }

    /// Whether the server has answered everything that this session asked for: what the wallet shows is then as of now.
    pub fn is_synced(&self) -> bool {
        let asked = |pending: &Pending| !matches!(pending, Pending::Submit { .. } | Pending::Ping);
        // Keys that the server could not watch are asked for again.
        let unwatched = |(_, pending): &(Now, Pending)| matches!(pending, Pending::Subscribe { .. });
        self.is_live()
            && !self.pending.values().any(asked)
            && !self.redo.iter().any(unwatched)
            && self.waiting_proofs.is_empty()
            && self.queued_proofs.is_empty()
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
        self.pages.clear();
        self.waiting_proofs.clear();
        self.unplaced.clear();
        self.watched.clear();
        self.unknown.clear();
        self.refusals.clear();
        self.queued_proofs.clear();
        self.wallet.forget_claims();
        self.claims_are_old = true;
        self.postponed = epoch::Postponed::default();
        self.redo.clear();
        self.watch_again.reset();
        self.unjudged.clear();
        (self.told_tip, self.chase_at) = (None, None);
        self.outputs.retain(|output| !matches!(output, Output::Send(_)));
        for payment in self.payments.values_mut() {
            payment.resubmit_at = None;
        }
        self.event(Event::Disconnected { reason: reason.to_owned(), retry_in: wait });
    }

    /// The network may be back, or this device awake: does at once what would wait for a timer. Connects, or sees
    /// whether the server is still there.
    pub fn wake(&mut self, now: Now) {
        self.now = now;
        match self.link {
            Link::Down { .. } => {
                self.reconnect.reset();
                self.link = Link::Connecting;
                self.outputs.push_back(Output::Connect);
            }
            Link::Live if self.ping_at() < Now::MAX => self.request(Pending::Ping, &ClientMessage::Ping),
            Link::Live | Link::Connecting | Link::Greeting { .. } => {}
        }
    }

    /// A text frame arrived.
    pub fn handle_text(&mut self, now: Now, text: &str) {
        // What a server said before its connection was closed is said by nobody.
        if matches!(self.link, Link::Down { .. } | Link::Connecting) {
            return;
        }
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
        self.ask_queued_proofs();
        if !self.told_synced && self.is_synced() {
            self.told_synced = true;
            self.note_synced();
            self.event(Event::Synced);
        }
        self.drop_old_claims();
        self.plan_chase(now);
        self.look_after_age(now);
        self.look_after_tip();
        self.balance_event();
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
                self.take_unjudged();
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

    fn is_live(&self) -> bool {
        matches!(self.link, Link::Live)
    }

    fn take_extension(&mut self, extension: Extension) {
        if extension != Extension::Unchanged {
            let tip = self.wallet.chain().tip();
            self.event(Event::Tip { tip });
            let waiting = std::mem::take(&mut self.waiting_proofs);
            self.ask_proofs(waiting);
            self.place_again();
            self.watch_unmined();
            self.take_unjudged();
        }
    }
}

#[cfg(test)]
mod late_tests;
#[cfg(test)]
mod payment_tests;
#[cfg(test)]
mod tests;
