//! One node of a federation of four, and what its peers, wallets and chain say to it: for the tests beside the rules.

use crate::{
    ChainCoin, Machine, Output, ReplyTo, SessionId, Settings, Tag,
    archive::recall,
    records::{ChangeSet, Row, Table, Unreadable},
    stored::Stored,
};
use bitcoin::{
    Amount, Block, BlockHash, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxMerkleNode, TxOut, Txid,
    Witness,
    absolute::LockTime,
    block::{Header, Version},
    hashes::Hash as _,
    opcodes::OP_TRUE,
    transaction,
};
use quorate_protocol::{
    NodeId, Round,
    digest::IdentityKey,
    log_head::{LogHead, SignedHead},
    proposal::Proposal,
    release::SignedPromise,
    testing::{self, World},
    vote::{ApprovalCertificate, Custody, SignedVote, Verdict, VoteTarget, sign_commit},
    wire::{
        ClientMessage, PeerReply, RejectReason, ServerMessage, VotingReply, VotingRequest, WireError, limits,
    },
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// The node that is tested.
pub(crate) const ME: NodeId = NodeId(1);
/// Another one.
pub(crate) const OTHER: NodeId = NodeId(2);
/// A wallet's session.
pub(crate) const WALLET: SessionId = SessionId { certificate: 9, number: 9 };

/// The node with its surroundings.
pub(crate) struct Kit {
    pub(crate) world: World,
    pub(crate) machine: Machine,
    pub(crate) now: Duration,
    /// What the chain has.
    pub(crate) coins: BTreeMap<OutPoint, ChainCoin>,
    /// What the machine has put out and no test has looked at.
    pub(crate) out: VecDeque<Output>,
    /// The archive cannot be read.
    pub(crate) archive_fails: bool,
    /// The backend does not answer.
    pub(crate) backend_fails: bool,
    /// Hands in by itself that what was settled is durable.
    pub(crate) settles: bool,
    /// What is in store and index.
    pub(crate) rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    replies: u64,
}

fn settings() -> Settings {
    Settings {
        min_confirmations: 1,
        voting_timeout: Duration::from_secs(30),
        signing_timeout: Duration::from_secs(2),
        small_proposal: 2,
        bug: None,
    }
}

impl Kit {
    /// A node that has just started: it has neither read the chain nor heard of its peers.
    pub(crate) fn fresh() -> Self {
        let world = testing::federation(4);
        let share = testing::copy_shares(&world.shares).remove(0);
        let machine = Machine::new(
            ME,
            world.federation.clone(),
            world.keys[0].clone(),
            share,
            settings(),
            testing::rng(1),
            Stored::default(),
        );
        let (now, coins, out) = (Duration::ZERO, BTreeMap::new(), VecDeque::new());
        Self {
            world,
            machine,
            now,
            coins,
            out,
            rows: BTreeMap::new(),
            archive_fails: false,
            backend_fails: false,
            settles: true,
            replies: 0,
        }
    }

    /// The node dies, and starts from what is in store and index.
    pub(crate) fn restart(&mut self) {
        let mut stored = Stored::default();
        for ((table, key), value) in
            self.rows.iter().filter(|((table, _), _)| !Table::ARCHIVE.contains(table))
        {
            let row = Row { table: *table, key: key.clone(), value: value.clone() };
            stored.take(&row).expect("what was written");
        }
        let share = testing::copy_shares(&self.world.shares).remove(0);
        let (federation, key) = (self.world.federation.clone(), self.world.keys[0].clone());
        self.machine = Machine::new(ME, federation, key, share, settings(), testing::rng(2), stored);
    }

    /// A node that votes, at block 10.
    pub(crate) fn voting() -> Self {
        let mut kit = Self::fresh();
        kit.mine(10);
        kit.wake();
        kit.out.clear();
        kit
    }

    /// The node is at the tip, and hears of its peers.
    pub(crate) fn wake(&mut self) {
        self.machine.handle_caught_up();
        for node in [NodeId(2), NodeId(3)] {
            let reply = VotingReply::HeartbeatResponse { head: self.head(node), known: None, height: 0 };
            self.hear(node, Tag::Heartbeat, Some(reply));
        }
    }

    pub(crate) fn key(&self, node: NodeId) -> &IdentityKey {
        &self.world.keys[usize::from(node.0) - 1]
    }

    pub(crate) fn head(&self, node: NodeId) -> SignedHead {
        let head = LogHead::default();
        SignedHead::sign(self.world.federation.context(), node, self.key(node), head, (head, 1))
    }

    /// Empty blocks.
    pub(crate) fn mine(&mut self, count: u32) {
        (0..count).for_each(|_| self.mine_with(Vec::new()));
    }

    pub(crate) fn mine_with(&mut self, txdata: Vec<Transaction>) {
        self.machine.handle_blocks(&[block_on(self.machine.tip().hash, txdata)]);
        self.drain();
    }

    /// Another block takes the place of the last one.
    pub(crate) fn reorganise(&mut self) {
        self.reorganise_with(Vec::new());
    }

    pub(crate) fn reorganise_with(&mut self, txdata: Vec<Transaction>) {
        let parent = self.machine.block_at(self.machine.tip().height - 1).expect("a parent");
        assert!(self.machine.handle_blocks(&[block_on(parent, txdata)]));
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::LookUp { ticket, outpoints, .. } => {
                    let found = outpoints.into_iter();
                    let found = found.filter_map(|one| Some((one, self.coins.get(&one)?.clone()))).collect();
                    let found = (!self.backend_fails).then_some(found);
                    self.machine.at(self.now, 0).handle_coins(ticket, found);
                }
                Output::Recall { ticket, wanted, .. } => {
                    let archived = recall(&wanted, |table, prefix, most| {
                        let from = (table, prefix.to_vec());
                        let rows = self.rows.range(from..);
                        let rows = rows
                            .take_while(|((of, key), _)| *of == table && key.starts_with(prefix))
                            .take(most);
                        let row = |((table, key), value): (&(Table, Vec<u8>), &Vec<u8>)| Row {
                            table: *table,
                            key: key.clone(),
                            value: value.clone(),
                        };
                        Ok::<_, Unreadable>(rows.map(row).collect())
                    });
                    let archived = archived.ok().filter(|_| !self.archive_fails);
                    self.machine.at(self.now, 0).handle_recalled(ticket, archived);
                }
                Output::Search { ticket, search } => {
                    let scripts = search.scripts();
                    let is_its =
                        |(_, coin): &(&OutPoint, &ChainCoin)| scripts.contains(&coin.output.script_pubkey);
                    let found = self.coins.iter().filter(is_its).map(|(outpoint, _)| *outpoint).collect();
                    let found = (!self.backend_fails).then_some(found);
                    self.machine.at(self.now, 0).handle_found(ticket, found);
                }
                Output::Check { ticket, check, .. } => {
                    self.machine.at(self.now, 0).handle_checked(ticket, Some(check.run()));
                }
                Output::Settled if self.settles => self.machine.at(self.now, 0).handle_settled(),
                other => {
                    if let Output::Persist(change) | Output::Index(change) = &other {
                        self.write(change);
                    }
                    self.out.push_back(other);
                }
            }
        }
    }

    fn write(&mut self, change: &ChangeSet) {
        for row in change.rows() {
            let key = (row.table, row.key.clone());
            if row.value.is_empty() {
                self.rows.remove(&key);
            } else {
                self.rows.insert(key, row.value.clone());
            }
        }
    }

    /// A peer asks; gives the answer.
    pub(crate) fn ask(&mut self, from: NodeId, request: VotingRequest) -> Result<VotingReply, WireError> {
        self.replies += 1;
        let number = self.replies;
        self.machine.at(self.now, 0).handle_request(from, ReplyTo::Peer(number), request);
        self.drain();
        let mine = |output: &Output| matches!(output, Output::Reply { to: ReplyTo::Peer(one), .. } if *one == number);
        let at = self.out.iter().position(mine).expect("an answer");
        match self.out.get(at) {
            Some(Output::Reply { reply: PeerReply::Voting(reply), .. }) => Ok(reply.clone()),
            Some(Output::Reply { reply: PeerReply::Refused(refusal), .. }) => {
                let quorate_protocol::wire::Refusal::Error { error } = refusal.clone();
                Err(error)
            }
            other => panic!("{other:?}"),
        }
    }

    /// A peer answers.
    pub(crate) fn hear(&mut self, from: NodeId, tag: Tag, reply: Option<VotingReply>) {
        self.machine.at(self.now, 0).handle_reply(from, tag, reply);
        self.drain();
    }

    /// A wallet says something.
    pub(crate) fn say(&mut self, message: ClientMessage) {
        self.say_in(WALLET, message);
    }

    /// The same in another session.
    pub(crate) fn say_in(&mut self, session: SessionId, message: ClientMessage) {
        self.machine.at(self.now, 0).handle_client(session, Some(1), message);
        self.drain();
    }

    /// Says hello.
    pub(crate) fn greet(&mut self, session: SessionId) {
        let (protocol, agent) = (limits::PROTOCOL_VERSION, "test".to_owned());
        self.say_in(session, ClientMessage::Hello { protocol, federation: None, agent });
        self.told();
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.machine.at(self.now, 0).handle_timeout();
        self.drain();
    }

    /// What has gone to the wallet since the last look.
    pub(crate) fn told(&mut self) -> Vec<ServerMessage> {
        let (told, rest): (Vec<_>, Vec<_>) =
            self.out.drain(..).partition(|output| matches!(output, Output::Client { .. }));
        self.out = rest.into();
        told.into_iter()
            .filter_map(
                |output| if let Output::Client { message, .. } = output { Some(message) } else { None },
            )
            .collect()
    }

    /// Requests to others since the last look, by whom they go to.
    pub(crate) fn asked(&mut self) -> Vec<(NodeId, VotingRequest)> {
        let (asks, rest): (Vec<_>, Vec<_>) =
            self.out.drain(..).partition(|output| matches!(output, Output::Ask { .. }));
        self.out = rest.into();
        asks.into_iter()
            .flat_map(|output| {
                let Output::Ask { to, request, .. } = output else { return Vec::new() };
                to.into_iter().map(|to| (to, (*request).clone())).collect()
            })
            .collect()
    }

    /// The write before the first answer to a peer, if there is any before it.
    pub(crate) fn written_before_reply(&self) -> Option<&ChangeSet> {
        let written = self.out.iter().take_while(|output| !matches!(output, Output::Reply { .. }));
        written
            .filter_map(|output| if let Output::Persist(change) = output { Some(change) } else { None })
            .last()
    }

    /// A coin that anybody can spend, at block 5.
    pub(crate) fn open_coin(&mut self, vout: u32) -> OutPoint {
        let outpoint = OutPoint { txid: Txid::from_byte_array([3; 32]), vout };
        self.put_coin(outpoint, open_script().to_p2wsh(), 100_000, 5, false);
        outpoint
    }

    /// The coin of the account that [`World::proposal`] spends.
    pub(crate) fn joint_coin(&mut self, sat: u64, height: u32, coinbase: bool) -> OutPoint {
        let outpoint = self.world.proposal().psbt.unsigned_tx.input[0].previous_output;
        self.put_coin(outpoint, self.world.script(), sat, height, coinbase);
        outpoint
    }

    fn put_coin(
        &mut self,
        outpoint: OutPoint,
        script_pubkey: ScriptBuf,
        sat: u64,
        height: u32,
        coinbase: bool,
    ) {
        let output = TxOut { value: Amount::from_sat(sat), script_pubkey };
        let hash = self.machine.block_at(height).unwrap_or_else(BlockHash::all_zeros);
        self.coins.insert(outpoint, ChainCoin { output, height, hash, coinbase });
    }

    pub(crate) fn vote_request(&self, proposal: Proposal) -> VotingRequest {
        let joint = matches!(proposal, Proposal::Joint(_));
        let account = joint.then(|| self.world.certificate());
        VotingRequest::VoteRequest { proposal, account, certificate: None, releases: vec![] }
    }

    /// The verdict on a proposal, with the reason for a reject.
    pub(crate) fn vote(&mut self, proposal: Proposal) -> Result<(), RejectReason> {
        let request = self.vote_request(proposal);
        let VotingReply::VoteResponse { vote, reason, .. } = self.ask(OTHER, request).expect("it votes")
        else {
            panic!("a vote")
        };
        assert_eq!(vote.verdict == Verdict::Approve, reason.is_none());
        reason.map_or(Ok(()), Err)
    }

    pub(crate) fn joint(&self) -> Proposal {
        Proposal::Joint(Box::new(self.world.proposal()))
    }

    /// Approvals of nodes for a target.
    pub(crate) fn certificate(&self, target: &VoteTarget, nodes: &[u16]) -> ApprovalCertificate {
        let context = self.world.federation.context();
        let approve = |node: NodeId| {
            SignedVote::sign(context, node, self.key(node), target.clone(), Verdict::Approve).signature
        };
        let approvals = nodes.iter().map(|node| (NodeId(*node), approve(NodeId(*node)))).collect();
        ApprovalCertificate { target: target.clone(), approvals }
    }

    pub(crate) fn commit_request(&self, target: &VoteTarget, nodes: &[u16]) -> VotingRequest {
        VotingRequest::CommitRequest {
            certificate: self.certificate(target, nodes),
            attempt: 1,
            nodes: BTreeMap::new(),
            wallet: None,
            releases: vec![],
            head: None,
        }
    }

    pub(crate) fn commit_signature(
        &self,
        node: NodeId,
        target: &VoteTarget,
    ) -> bitcoin::secp256k1::schnorr::Signature {
        sign_commit(self.world.federation.context(), self.key(node), target)
    }

    pub(crate) fn promise(&self, node: NodeId, outpoint: OutPoint, round: Round) -> SignedPromise {
        SignedPromise::sign(self.world.federation.context(), node, self.key(node), outpoint, round, None)
    }
}

/// A block on top of another.
pub(crate) fn block_on(prev_blockhash: BlockHash, txdata: Vec<Transaction>) -> Block {
    let header = Header {
        version: Version::TWO,
        prev_blockhash,
        merkle_root: TxMerkleNode::all_zeros(),
        time: 0,
        bits: bitcoin::CompactTarget::from_consensus(0x207f_ffff),
        nonce: 0,
    };
    Block { header, txdata }
}

pub(crate) fn open_script() -> ScriptBuf {
    bitcoin::script::Builder::new().push_opcode(OP_TRUE).into_script()
}

/// A transaction that spends open coins to one output; different values make different transactions.
pub(crate) fn spend(outpoints: &[OutPoint], sat: u64) -> Transaction {
    let input = outpoints.iter().map(|outpoint| TxIn {
        previous_output: *outpoint,
        sequence: Sequence::ENABLE_LOCKTIME_NO_RBF,
        witness: Witness::from_slice(&[open_script().as_bytes()]),
        ..TxIn::default()
    });
    Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: input.collect(),
        output: vec![TxOut { value: Amount::from_sat(sat), script_pubkey: open_script().to_p2wsh() }],
    }
}

pub(crate) fn sole(transaction: &Transaction) -> Proposal {
    Proposal::Sole { transaction: transaction.clone() }
}

/// A transaction in the first round of all its inputs.
pub(crate) fn target(transaction: &Transaction) -> VoteTarget {
    let inputs = transaction.input.iter().map(|input| (input.previous_output, Round(0)));
    VoteTarget::new(transaction.compute_txid(), Custody::sole(transaction), inputs)
}
