//! Which part answers which message, and in which order the parts hear of what it brings.

use crate::{
    Machine, Output, Party, ReplyTo, SessionId, Source, Tag,
    archive::Archived,
    effects::Reason,
    lookups::{History, PARKED_PER_SOURCE_MAX, Parked},
    release::ReleaseCall,
    vote::{CommitCall, VoteCall},
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    NodeId,
    account::AccountCertificate,
    federation::Succession,
    finality::FinalityProof,
    proposal::Proposal,
    relay_policy,
    wire::{
        Cancellation, ClientMessage, ErrorCode, Fault, Header, ServerMessage, SubscriptionKey,
        TransactionStatus, VotingReply, VotingRequest, WireError, limits, outpoints_of,
    },
};

impl Machine {
    /// A request of another node, or of this one.
    pub fn handle_request(&mut self, from: NodeId, to: ReplyTo, request: VotingRequest) {
        if self.cx.over {
            self.cx.outputs.push_back(Output::Reply { to, reply: epoch_over().into() });
            return;
        }
        self.begin(Parked::Request { from, to, request });
    }

    /// A message of a wallet or bridge.
    pub fn handle_client(&mut self, session: SessionId, id: Option<u64>, message: ClientMessage) {
        if self.cx.over {
            return self.cx.send_client(session, id, ServerMessage::Error { error: epoch_over() });
        }
        // Nobody is asked anything for who has not greeted.
        match self.check_greeting(session, &message) {
            Ok(()) => self.begin(Parked::Client { session, id, message }),
            Err(error) => self.cx.send_client(session, id, ServerMessage::Error { error }),
        }
    }

    /// Begins with an input, or begins again: the archive is asked first.
    pub(crate) fn begin(&mut self, input: Parked) {
        let wanted = self.cx.wanted_of_archive(&input);
        if wanted.is_empty() {
            return self.arrive(input, Archived::default());
        }
        let source = input.source();
        match self.lookups.park(self.cx.ledger.tip(), input, Archived::default()) {
            Ok(ticket) => self.cx.recall(ticket, source, wanted),
            Err(input) => self.refuse(*input, &too_many_lookups()),
        }
    }

    /// Goes on with an input, knowing what the archive has: the chain is asked next.
    pub(crate) fn arrive(&mut self, input: Parked, archived: Archived) {
        let wanted = match &input {
            Parked::Request { request, .. } => coins_of_request(request),
            Parked::Client { message, .. } => coins_of_message(message),
            Parked::Found { outpoints, .. } => outpoints.clone(),
            Parked::Shown { .. } | Parked::Left { .. } | Parked::Bound { .. } | Parked::Settling { .. } => {
                Vec::new()
            }
        };
        let below = self.cx.ledger.unknown_below(&wanted);
        let wanted = [wanted, below].concat();
        if let Some((input, archived)) = self.look_up(wanted, input, archived) {
            self.examine(input, archived);
        }
    }

    /// Goes on with an input, knowing what archive and chain have: what takes long is found out next.
    pub(crate) fn examine(&mut self, input: Parked, archived: Archived) {
        self.cx.party = input.source().party();
        let Some(check) = self.cx.wanted_check(&input) else { return self.resume(input, archived) };
        let (source, check) = (input.source(), Box::new(check));
        match self.lookups.park(self.cx.ledger.tip(), input, archived) {
            Ok(ticket) => self.cx.outputs.push_back(Output::Check { ticket, source, check }),
            Err(input) => self.refuse(*input, &too_many_lookups()),
        }
    }

    /// A proof that came with a peer's answer. One that does not hold changes nothing.
    fn take_shown(&mut self, from: NodeId, proof: Box<FinalityProof>) {
        self.begin(Parked::Shown { from, proof });
    }

    /// Asks the chain for the coins that the ledger does not have or has not seen in a block, and has the input wait
    /// for them. Gives it back if there are none.
    fn look_up(
        &mut self,
        wanted: Vec<OutPoint>,
        input: Parked,
        archived: Archived,
    ) -> Option<(Parked, Archived)> {
        let ledger = &self.cx.ledger;
        let unknown: Vec<_> = wanted.into_iter().filter(|outpoint| !ledger.knows_origin(outpoint)).collect();
        if unknown.is_empty() {
            return Some((input, archived));
        }
        let source = input.source();
        match self.lookups.park(self.cx.ledger.tip(), input, archived) {
            Ok(ticket) => self.cx.outputs.push_back(Output::LookUp { ticket, source, outpoints: unknown }),
            // A bridge has the subscriptions of all its wallets on one session; a refusal would take it from all of
            // them.
            Err(input) if input.is_subscription() => return Some((*input, Archived::default())),
            Err(input) => self.refuse(*input, &too_many_lookups()),
        }
        None
    }

    /// An input that cannot be handled now.
    pub(crate) fn refuse(&mut self, input: Parked, error: &WireError) {
        let error = error.clone();
        match input {
            Parked::Request { to, .. } => {
                self.cx.outputs.push_back(Output::Reply { to, reply: error.into() });
            }
            Parked::Client { session, id, .. } => {
                self.cx.send_client(session, id, ServerMessage::Error { error });
            }
            // It comes again when this node asks again, or starts.
            Parked::Shown { .. } | Parked::Left { .. } => {}
            Parked::Found { .. } => self.search_failed(),
            Parked::Bound { outpoints, .. } => self.unanswered.extend(outpoints),
            // At the next block.
            Parked::Settling { .. } => self.cx.ledger.forget_prepared(),
        }
    }

    /// Handles an input, knowing what archive and chain have of what it is about.
    pub(crate) fn resume(&mut self, input: Parked, archived: Archived) {
        (self.cx.recalled, self.cx.party) = (archived, input.source().party());
        self.answer_input(input);
        (self.cx.recalled, self.cx.party) = (Archived::default(), Party::Node(self.cx.me));
    }

    fn answer_input(&mut self, input: Parked) {
        // It may have waited for longer than its epoch.
        if self.cx.over {
            return self.refuse(input, &epoch_over());
        }
        match input {
            Parked::Request { from, to, request } => {
                let answer = self.answer(from, request);
                tracing::trace!(%from, ok = answer.is_ok(), "peer request");
                self.cx.outputs.push_back(Output::Reply { to, reply: answer.into() });
                self.run_effects();
            }
            Parked::Client { session, id, message } => {
                if let Err(error) = self.client(session, id, message) {
                    self.cx.send_client(session, id, ServerMessage::Error { error });
                }
                self.run_effects();
            }
            Parked::Left { txids, .. } => self.cx.forget_settled(&txids),
            Parked::Settling { .. } => self.forget(),
            Parked::Found { .. } => {
                self.cx.extend_accounts();
                self.run_effects();
                self.look_up_found();
            }
            Parked::Bound { outpoints, .. } => {
                self.cx.note_forgotten(outpoints);
                self.run_effects();
            }
            Parked::Shown { proof, .. } => {
                let _not_final = self.cx.take_final(*proof);
                self.run_effects();
            }
        }
    }

    fn answer(&mut self, from: NodeId, request: VotingRequest) -> Result<VotingReply, WireError> {
        match request {
            VotingRequest::VoteRequest { proposal, account, certificate, releases } => {
                self.cx.may_vote()?;
                let shown = releases.iter().map(|one| (one.outpoint, one.round)).collect();
                self.cx.take_releases(releases);
                self.run_effects();
                let txid = proposal.txid();
                self.coordination.heard_of(&self.cx, txid);
                let call = VoteCall { proposal, account, certificate, shown };
                self.voter.vote(&mut self.cx, from, call)
            }
            VotingRequest::CommitRequest { certificate, attempt, nodes, wallet, releases, head } => {
                self.cx.take_head(from, head);
                self.cx.may_vote()?;
                self.cx.take_releases(releases);
                self.run_effects();
                self.coordination.heard_of(&self.cx, certificate.target.txid());
                self.voter.commit(&mut self.cx, CommitCall { certificate, attempt, nodes, wallet })
            }
            VotingRequest::ReleaseRequest { outpoint, round, rejects, cancel, promises, previous } => {
                self.cx.take_releases(previous.into_iter().collect());
                self.run_effects();
                let reason = Reason { rejects, cancel: cancel.map(|cancel| *cancel) };
                let call = ReleaseCall { outpoint, round, reason, promises };
                self.releases.handle_request(&mut self.cx, from, call)
            }
            VotingRequest::Released { releases } => {
                self.cx.take_releases(releases);
                Ok(VotingReply::Done)
            }
            VotingRequest::Heartbeat { head, height } => {
                self.cx.hear_height(from, height);
                Ok(self.cx.heartbeat(from, head))
            }
            VotingRequest::FinalTransaction { proof, head } => {
                self.cx.take_head(from, head);
                self.cx.take_final(proof).map(|()| VotingReply::Done)
            }
            VotingRequest::AccountRequest { record } => self.cx.accept_account(&record),
        }
    }

    /// A node wants to know what this one ends its epoch with; see
    /// [`SuccessionRequest::SealRequest`](quorate_protocol::wire::SuccessionRequest).
    pub fn handle_seal_request(&mut self, to: ReplyTo, succession: &Succession, of: NodeId, skip: u32) {
        let reply = self.sealing.seal(&mut self.cx, succession, of, skip).into();
        self.cx.outputs.push_back(Output::Reply { to, reply });
        self.run_effects();
    }

    /// An answer of a node, or that there is none.
    pub fn handle_reply(&mut self, from: NodeId, tag: Tag, reply: Option<VotingReply>) {
        if self.cx.over {
            return;
        }
        match (tag, reply) {
            (
                Tag::Vote { txid, .. },
                Some(VotingReply::VoteResponse { vote, reason, commitments, releases, proof, head }),
            ) => {
                self.cx.take_head(from, head);
                self.cx.take_releases(releases);
                self.run_effects();
                if let Some(proof) = proof {
                    self.take_shown(from, proof);
                }
                if vote.target.txid() == txid {
                    self.coordination.handle_vote(&mut self.cx, from, vote, reason, commitments);
                }
            }
            (Tag::Commit { txid, attempt }, Some(VotingReply::CommitResponse { commit })) => {
                self.coordination.handle_commit(&mut self.cx, from, (txid, attempt), commit);
            }
            (Tag::Commit { txid, attempt }, _) => {
                self.coordination.handle_no_commit(&mut self.cx, from, (txid, attempt));
            }
            (Tag::Account { registration }, reply) => {
                self.registrations.handle_acceptance(&mut self.cx, from, registration, reply);
            }
            (
                Tag::Release { outpoint, round },
                Some(VotingReply::ReleaseResponse { promise, committed, release, proof }),
            ) => {
                if let Some(proof) = proof {
                    self.take_shown(from, proof);
                }
                self.cx.take_releases(release.into_iter().collect());
                self.run_effects();
                if let Some(promise) = promise {
                    self.releases.handle_promise(&mut self.cx, from, (outpoint, round), promise, committed);
                }
            }
            (Tag::Heartbeat, Some(VotingReply::HeartbeatResponse { head, known, height })) => {
                self.cx.hear_height(from, height);
                self.cx.take_heartbeat(from, head, known);
            }
            (Tag::Final { txid }, Some(VotingReply::Done)) => self.announcements.heard(from, txid),
            (
                Tag::Vote { .. } | Tag::Announce | Tag::Release { .. } | Tag::Heartbeat | Tag::Final { .. },
                _,
            ) => {}
        }
        self.run_effects();
    }

    /// A session says Hello once, and first.
    fn check_greeting(&self, session: SessionId, message: &ClientMessage) -> Result<(), WireError> {
        let hello = matches!(message, ClientMessage::Hello { .. });
        match (hello, self.cx.subscriptions.has_greeted(session)) {
            (false, false) => {
                Err(WireError::sender(ErrorCode::HelloExpected, "the first message has to be Hello"))
            }
            (true, true) => Err(WireError::sender(ErrorCode::AlreadyGreeted, "Hello comes once")),
            (true, false) | (false, true) => Ok(()),
        }
    }

    fn client(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        message: ClientMessage,
    ) -> Result<(), WireError> {
        match message {
            ClientMessage::Hello { protocol, federation, .. } => {
                self.cx.greet(session, id, protocol, federation)
            }
            ClientMessage::UTXOSubscribe { keys, accounts, since } => {
                SubscriptionKey::check(&keys)?;
                limits::check_accounts(accounts.len())?;
                self.cx.take_accounts(&keys, accounts);
                self.subscribe(session, id, SubscriptionKey::distinct(keys), since.unwrap_or(0));
                Ok(())
            }
            ClientMessage::UTXOUnsubscribe { keys } => {
                SubscriptionKey::check(&keys)?;
                self.lookups.remove_keys(session, &keys);
                let count = keys.iter().filter(|key| self.cx.unsubscribe(session, key)).count();
                self.cx.send_client(session, id, ServerMessage::UTXOUnsubscribed { count });
                Ok(())
            }
            ClientMessage::UTXOStateQuery { keys } => {
                SubscriptionKey::check(&keys)?;
                let keys = SubscriptionKey::distinct(keys).into_iter();
                let results = keys.map(|key| self.cx.query(key, 0)).collect();
                self.cx.send_pages(session, id, results, |results, tip, more| {
                    ServerMessage::UTXOStateResponse { results, tip, more }
                });
                Ok(())
            }
            ClientMessage::TransactionBroadcast { proposal, account } => {
                self.submit(session, id, proposal, account)
            }
            ClientMessage::TransactionCancel { cancel, proposal, account } => {
                self.cancel(session, id, Cancellation { cancel, proposal, account })
            }
            ClientMessage::SignResponse { txid, attempt, wallet } => {
                self.coordination.handle_wallet(&mut self.cx, (txid, attempt), wallet)
            }
            ClientMessage::AccountRegister { record } => {
                self.registrations.register(&mut self.cx, session, id, record)
            }
            ClientMessage::FederationQuery => {
                let document = Box::new(self.cx.federation.document().clone());
                self.cx.send_client(session, id, ServerMessage::Federation { document });
                Ok(())
            }
            ClientMessage::HeadersQuery { from } => {
                let headers = self.headers(from).into_iter().map(Header).collect();
                self.cx.send_client(session, id, ServerMessage::Headers { from, headers });
                Ok(())
            }
            ClientMessage::ProofQuery { txid } => {
                self.cx.find_place(session, id, txid);
                Ok(())
            }
            ClientMessage::FinalTransaction { proof } => self.handed_in(session, id, *proof),
            ClientMessage::FeeRateQuery => {
                let estimates = self.cx.fees;
                self.cx.send_client(session, id, ServerMessage::FeeRate { estimates });
                Ok(())
            }
            ClientMessage::Ping => {
                self.cx.send_client(session, id, ServerMessage::Pong);
                Ok(())
            }
        }
    }

    /// Subscribes at once, and answers when the archive has told what it has: news may come before the answer, so that
    /// nothing between the two is missed.
    fn subscribe(&mut self, session: SessionId, id: Option<u64>, keys: Vec<SubscriptionKey>, since: u32) {
        let cx = &mut self.cx;
        let wanted = cx.histories_of(&keys, since);
        let refuse = |key: &SubscriptionKey| Some((key.clone(), cx.subscribe(session, key).err()?));
        let refused = keys.iter().filter_map(refuse).collect();
        let history = History { session, id, keys, refused, since };
        if wanted.is_empty() {
            return self.cx.answer_subscription(history, Some(Archived::default()));
        }
        match self.lookups.add_history(history) {
            Ok(ticket) => self.cx.recall(ticket, Source::Session(session), wanted),
            Err(history) => self.cx.answer_subscription(*history, None),
        }
    }

    /// A wallet submits a payment; it may have been settled while the wallet was away.
    fn submit(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        proposal: Proposal,
        account: Option<AccountCertificate>,
    ) -> Result<(), WireError> {
        if self.tell_settled(session, id, proposal.txid()) {
            return Ok(());
        }
        self.coordination.submit(&mut self.cx, session, id, proposal, account)
    }

    /// Tells a wallet what became of a transaction that was settled while it was away; `false` if it was not.
    fn tell_settled(&mut self, session: SessionId, id: Option<u64>, txid: Txid) -> bool {
        let Some(status) = self.cx.recalled_status(&txid) else { return false };
        self.cx.send_client(session, id, ServerMessage::TransactionStatus { txid, status });
        true
    }

    /// A wallet wants a payment stopped.
    fn cancel(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        cancellation: Cancellation,
    ) -> Result<(), WireError> {
        if self.tell_settled(session, id, cancellation.proposal.txid()) {
            return Ok(());
        }
        self.coordination.cancel(&mut self.cx, session, id, cancellation)
    }

    /// A wallet hands in a finished transaction.
    fn handed_in(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        proof: FinalityProof,
    ) -> Result<(), WireError> {
        let txid = proof.txid();
        self.cx.take_handed_in(proof)?;
        if !self.tell_settled(session, id, txid) {
            let status = TransactionStatus::Broadcasting { refusal: None };
            self.cx.send_client(session, id, ServerMessage::TransactionStatus { txid, status });
        }
        Ok(())
    }
}

/// The coins that the rules behind a request need.
fn coins_of_request(request: &VotingRequest) -> Vec<OutPoint> {
    match request {
        VotingRequest::VoteRequest { proposal, .. } => few(proposal.outpoints()),
        VotingRequest::ReleaseRequest { outpoint, .. } => vec![*outpoint],
        VotingRequest::CommitRequest { .. }
        | VotingRequest::Released { .. }
        | VotingRequest::Heartbeat { .. }
        | VotingRequest::FinalTransaction { .. }
        | VotingRequest::AccountRequest { .. } => Vec::new(),
    }
}

/// The coins that the rules behind a message need.
fn coins_of_message(message: &ClientMessage) -> Vec<OutPoint> {
    match message {
        ClientMessage::TransactionBroadcast { proposal, .. }
        | ClientMessage::TransactionCancel { proposal, .. } => few(proposal.outpoints()),
        ClientMessage::UTXOSubscribe { keys, .. } | ClientMessage::UTXOStateQuery { keys }
            if keys.len() <= limits::KEYS_PER_MESSAGE_MAX =>
        {
            outpoints_of(keys)
        }
        ClientMessage::UTXOSubscribe { .. }
        | ClientMessage::UTXOStateQuery { .. }
        | ClientMessage::Hello { .. }
        | ClientMessage::UTXOUnsubscribe { .. }
        | ClientMessage::SignResponse { .. }
        | ClientMessage::AccountRegister { .. }
        | ClientMessage::FederationQuery
        | ClientMessage::HeadersQuery { .. }
        | ClientMessage::ProofQuery { .. }
        | ClientMessage::FinalTransaction { .. }
        | ClientMessage::FeeRateQuery
        | ClientMessage::Ping => Vec::new(),
    }
}

/// More inputs than a transaction may have are refused, not looked up.
fn few(outpoints: Vec<OutPoint>) -> Vec<OutPoint> {
    if outpoints.len() > relay_policy::INPUTS_MAX { Vec::new() } else { outpoints }
}

fn too_many_lookups() -> WireError {
    let error = WireError::limit(
        ErrorCode::LimitExceeded,
        "messages that wait for coins",
        PARKED_PER_SOURCE_MAX,
        PARKED_PER_SOURCE_MAX + 1,
    );
    WireError { retry: true, fault: Fault::Receiver, ..error }
}

fn epoch_over() -> WireError {
    let message = "this epoch is over; the next one is being opened";
    WireError::passing(ErrorCode::NotReady, Fault::Receiver, message)
}
