//! What can happen in a run, and to whom.

use bitcoin::{OutPoint, Txid};
use quorate::{
    NodeId,
    wire::{ClientMessage, PeerReply, PeerRequest, ServerMessage},
};
use quorate_bridge::sans_io::RelayId;
use quorate_rules::{ChainCoin, Checked, SessionId, archive::Archived};

/// Whose session at a node it is.
#[expect(missing_docs, reason = "one number")]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The bridge's events.
    Events { connection: u64 },
    /// A request that the bridge relays.
    Relay { life: u64, relay: RelayId },
    /// A client that submits a transaction of coins in sole custody.
    Submission(usize),
}

/// Who is at the other end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A wallet, on its n-th connection.
    Wallet(usize, u64),
    /// A plain subscriber, on its n-th connection.
    Subscriber(usize, u64),
}

/// Something that happens to a wallet.
#[expect(missing_docs, reason = "a connection is a number, a frame is its text")]
#[derive(Debug)]
pub enum WalletEvent {
    /// It starts, or its timer fires.
    Wake,
    /// Its connection is open, or could not be opened.
    Connected(bool),
    /// A frame arrives.
    Text { connection: u64, text: String },
    /// Its connection is gone.
    Lost { connection: u64 },
    /// Its owner cancels a payment.
    Cancel(Txid),
}

/// Something that happens to a subscriber.
#[derive(Debug)]
pub enum SubscriberEvent {
    /// It connects.
    Connect,
    /// It reads slowly, or again as it should.
    Slow(bool),
}

/// What happens next.
#[expect(missing_docs, reason = "the names say it: who, to whom, what")]
#[derive(Debug)]
pub enum Event {
    Request { from: NodeId, to: NodeId, rpc: u64, incarnation: u32, request: Box<PeerRequest> },
    Reply { from: NodeId, to: NodeId, rpc: u64, reply: Box<PeerReply> },
    RpcTimeout { node: NodeId, incarnation: u32, rpc: u64 },
    Disk { node: NodeId, incarnation: u32 },
    Timer { node: NodeId, incarnation: u32 },
    Coins { node: NodeId, incarnation: u32, ticket: u64, height: u32, coins: Vec<(OutPoint, ChainCoin)> },
    Recalled { node: NodeId, incarnation: u32, ticket: u64, archived: Box<Archived> },
    Checked { node: NodeId, incarnation: u32, ticket: u64, checked: Box<Checked> },
    Found { node: NodeId, incarnation: u32, ticket: u64, found: Vec<OutPoint> },
    Settled { node: NodeId, incarnation: u32 },
    Sweep { node: NodeId },
    Start { node: NodeId },
    Chain { node: NodeId },
    Block,
    ClientSays { node: NodeId, session: SessionId, id: Option<u64>, message: Box<ClientMessage> },
    ToClient { node: NodeId, session: SessionId, owner: Owner, id: Option<u64>, message: Box<ServerMessage> },
    SessionLost { owner: Owner },
    BridgeConnect { node: NodeId },
    BridgeStart,
    BridgeTick,
    Wallet { index: usize, event: WalletEvent },
    Subscriber { index: usize, event: SubscriberEvent },
    Submit { index: usize },
    Work,
    Theft,
    Succession,
    Plan { node: NodeId },
    TransitionTimer { node: NodeId, incarnation: u32 },
    RepairAgain { node: NodeId, incarnation: u32 },
    MachineFault,
    NetworkFault,
    Calm,
    Judge,
    End,
}

pub(crate) fn copy_of(event: &Event) -> Option<Event> {
    match event {
        Event::Request { from, to, rpc, incarnation, request } => Some(Event::Request {
            from: *from,
            to: *to,
            rpc: *rpc,
            incarnation: *incarnation,
            request: request.clone(),
        }),
        _other => None,
    }
}

/// The node that an event happens at.
pub(crate) fn target(event: &Event) -> Option<NodeId> {
    match event {
        Event::Request { to, .. } | Event::Reply { to, .. } => Some(*to),
        Event::RpcTimeout { node, .. }
        | Event::Disk { node, .. }
        | Event::Timer { node, .. }
        | Event::Coins { node, .. }
        | Event::Recalled { node, .. }
        | Event::Checked { node, .. }
        | Event::Found { node, .. }
        | Event::Settled { node, .. }
        | Event::Sweep { node }
        | Event::Plan { node }
        | Event::TransitionTimer { node, .. }
        | Event::RepairAgain { node, .. }
        | Event::Chain { node }
        | Event::ClientSays { node, .. } => Some(*node),
        _elsewhere => None,
    }
}

/// What of an event goes into the trace: everything that names it, without the long parts.
pub(crate) fn describe(event: &Event) -> String {
    match event {
        Event::Request { from, to, rpc, request, .. } => format!("{from}->{to} {rpc} {}", name_of(request)),
        Event::Reply { from, to, rpc, reply } => format!("{from}->{to} {rpc} {}", name_of(reply)),
        Event::ToClient { node, session, id, message, .. } => {
            format!("{node}->client {} {id:?} {}", session.number, name_of(message))
        }
        Event::ClientSays { node, session, id, message } => {
            format!("client->{node} {} {id:?} {}", session.number, name_of(message))
        }
        Event::Coins { node, ticket, coins, .. } => format!("coins->{node} {ticket} {}", coins.len()),
        Event::Recalled { node, ticket, .. } => format!("recalled->{node} {ticket}"),
        Event::Found { node, ticket, found, .. } => format!("found->{node} {ticket} {}", found.len()),
        Event::Checked { node, ticket, .. } => format!("checked->{node} {ticket}"),
        other => format!("{other:?}"),
    }
}

/// The start of a message's debug text: its type and first fields.
fn name_of(message: &impl std::fmt::Debug) -> String {
    struct Short(String);

    impl std::fmt::Write for Short {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.push_str(text);
            if self.0.len() < 100 { Ok(()) } else { Err(std::fmt::Error) }
        }
    }

    let mut short = Short(String::new());
    // Stopping early is the point.
    let _cut = std::fmt::Write::write_fmt(&mut short, format_args!("{message:?}"));
    short.0
}

/// The run of a node that an event belongs to: nothing comes of it in a later one.
pub(crate) fn run_of(event: &Event) -> Option<(NodeId, u32)> {
    match event {
        Event::RpcTimeout { node, incarnation, .. }
        | Event::TransitionTimer { node, incarnation }
        | Event::RepairAgain { node, incarnation }
        | Event::Disk { node, incarnation }
        | Event::Timer { node, incarnation }
        | Event::Coins { node, incarnation, .. }
        | Event::Recalled { node, incarnation, .. }
        | Event::Checked { node, incarnation, .. }
        | Event::Found { node, incarnation, .. }
        | Event::Settled { node, incarnation } => Some((*node, *incarnation)),
        _of_any => None,
    }
}
