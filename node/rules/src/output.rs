//! What the machine asks of its driver.

use crate::{archive::Recall, checks::Check, records::ChangeSet, searching::Search};
use bitcoin::{OutPoint, Transaction, Txid};
use quorate_protocol::{
    NodeId, Round,
    wire::{ConfirmedSpend, KeyOutcome, KeyResult, PeerReply, ServerMessage, VotingRequest},
};

/// A session of a wallet or bridge, by the driver's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// The certificate that it was opened with.
    pub certificate: u64,
    /// The session.
    pub number: u64,
}

impl SessionId {
    /// The first of all sessions in their order.
    pub(crate) const FIRST: Self = Self { certificate: u64::MIN, number: u64::MIN };
    /// The last of them.
    pub(crate) const LAST: Self = Self { certificate: u64::MAX, number: u64::MAX };
}

/// Who has a share of what a node has room and time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A node; it may be this one itself.
    Node(NodeId),
    /// All sessions with one certificate, by the driver's number.
    Certificate(u64),
}

/// Whom an input came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A node; it may be this one itself.
    Peer(NodeId),
    /// A wallet or bridge.
    Session(SessionId),
}

impl Source {
    /// Whose share it has a part of.
    pub const fn party(self) -> Party {
        match self {
            Self::Peer(node) => Party::Node(node),
            Self::Session(session) => Party::Certificate(session.certificate),
        }
    }
}

/// Whom a reply goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyTo {
    /// A peer's request, by the driver's number.
    Peer(u64),
    /// This node's own request.
    Myself(Tag),
}

/// What a request to a peer was for; its answer comes back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Votes.
    Vote {
        /// On which transaction.
        txid: Txid,
        /// In which signing attempt its nonce commitments are to be used.
        attempt: u32,
    },
    /// Commit signatures or signature shares.
    Commit {
        /// For which transaction.
        txid: Txid,
        /// In which signing attempt.
        attempt: u32,
    },
    /// Acceptance of an account.
    Account {
        /// This node's number of the registration.
        registration: u64,
    },
    /// A promise to leave a round.
    Release {
        /// Of which outpoint.
        outpoint: OutPoint,
        /// Which round.
        round: Round,
    },
    /// Telling that a transaction is final.
    Final {
        /// Which.
        txid: Txid,
    },
    /// A heartbeat.
    Heartbeat,
    /// Telling of a release; the answer says nothing.
    Announce,
}

/// What the driver has to do, in order.
#[derive(Debug)]
pub enum Output {
    /// Make durable before anything that follows leaves.
    Persist(ChangeSet),
    /// Keep in the index, in order. Nothing waits for it: what is lost is read from the chain again.
    Index(ChangeSet),
    /// Ask nodes; the answer of each comes back with the tag.
    Ask {
        /// Whom; this node itself may be among them.
        to: Vec<NodeId>,
        /// What for.
        tag: Tag,
        /// The question.
        request: Box<VotingRequest>,
    },
    /// Answer a node.
    Reply {
        /// Which request.
        to: ReplyTo,
        /// The answer.
        reply: PeerReply,
    },
    /// Send to a wallet or bridge.
    Client {
        /// Which session.
        session: SessionId,
        /// The message that this answers, if it is an answer.
        id: Option<u64>,
        /// What to send.
        message: ServerMessage,
    },
    /// Ask the chain for coins, and hand in with [`Machine::handle_coins`](crate::Machine::handle_coins) what it says.
    LookUp {
        /// To be handed in with the answer.
        ticket: u64,
        /// Whose input needs them.
        source: Source,
        /// The coins.
        outpoints: Vec<OutPoint>,
    },
    /// Run a check aside, so that other inputs need not wait for it, and hand in with
    /// [`Machine::handle_checked`](crate::Machine::handle_checked) what it finds. Who asks for many delays nobody
    /// else's.
    Check {
        /// To be handed in with what it finds.
        ticket: u64,
        /// Whose input needs it.
        source: Source,
        /// What is to be found out.
        check: Box<Check>,
    },
    /// Ask the chain for all unspent outputs of some accounts, and hand in with
    /// [`Machine::handle_found`](crate::Machine::handle_found) what it says; it may take minutes.
    Search {
        /// To be handed in with the answer.
        ticket: u64,
        /// Which.
        search: Search,
    },
    /// Read the archive after everything that was put into the index before, and hand in with
    /// [`Machine::handle_recalled`](crate::Machine::handle_recalled) what it says.
    Recall {
        /// To be handed in with the answer.
        ticket: u64,
        /// Whose input needs it.
        source: Source,
        /// What is wanted.
        wanted: Vec<Recall>,
    },
    /// What was persisted before is durable: call [`Machine::handle_settled`](crate::Machine::handle_settled).
    Settled,
    /// Hand a transaction to the Bitcoin network, now and until it confirms; with it come those that it descends from
    /// and that the backend did not take.
    Broadcast(Vec<Transaction>),
    /// Find a transaction's place in a block for a wallet: its own, or that of what contradicts it.
    Prove {
        /// Which session asked.
        session: SessionId,
        /// Its message.
        id: Option<u64>,
        /// What the wallet asked about.
        txid: Txid,
        /// What is in the block.
        of: ConfirmedSpend,
        /// If that is another transaction: from the one asked about to the ancestor that it contradicts.
        path: Vec<Transaction>,
    },
}

/// A record of a coin, with its key.
const RECORD_BYTES: usize = 1 << 10;
/// A proof of a payment of usual size.
const PROOF_BYTES: usize = 4 << 10;
/// Anything else.
const USUAL_BYTES: usize = 4 << 10;

impl Output {
    /// About how many bytes it takes until it is carried out.
    #[expect(clippy::wildcard_enum_match_arm, reason = "no other output or message grows with what is asked")]
    pub fn bytes(&self) -> usize {
        let Self::Client { message, .. } = self else { return USUAL_BYTES };
        let more = match message {
            ServerMessage::UTXOSubscribed { results, .. }
            | ServerMessage::UTXOStateResponse { results, .. } => results.iter().map(bytes_of).sum(),
            ServerMessage::Headers { headers, .. } => headers.len() * size_of::<bitcoin::block::Header>(),
            _other => 0,
        };
        more + USUAL_BYTES
    }
}

fn bytes_of(result: &KeyResult) -> usize {
    let snapshot = match &result.outcome {
        KeyOutcome::Snapshot { utxos, proofs, .. } => utxos.len() * RECORD_BYTES + proofs.len() * PROOF_BYTES,
        KeyOutcome::Error(_) => 0,
    };
    snapshot + RECORD_BYTES
}
