//! What every rule works with: who this node is, what it knows, what it says, and what one part has to tell another.
//!
//! A part of the machine owns its fields and is called with the context. It never calls another part: what it wants
//! of one is an [`Effect`], which the machine carries out before it takes the next input.

use crate::{
    Bug, Output, Party, SessionId, Settings, Source, Tag,
    accounts::Accounts,
    archive::{Archived, Recall},
    bugs::Sabotage,
    cancellations::Cancellations,
    checks::{Checked, Checks},
    effects::{Effect, Reason},
    ledger::Ledger,
    shares::Newcomers,
    standing::Log,
    stored::Stored,
    subscriptions::{Subscriptions, Target},
    watch::Watch,
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    Federation, NodeId, Round,
    account::{AccountCertificate, AccountError, JointAccount},
    digest::IdentityKey,
    wire::{ConfirmedSpend, FeeEstimates, ServerMessage, VotingRequest},
};
use rand_chacha::{ChaCha20Rng, rand_core::RngCore as _};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// Blocks between two looks for accounts and scripts that nobody uses.
const SWEEP_BLOCKS: u32 = 144;
/// Wait for news of what this node voted for or promised before it takes it up itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Added per node number, so that not all take it up at once.
const PATIENCE_STEP: Duration = Duration::from_millis(250);

/// What every rule works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) me: NodeId,
    pub(crate) federation: Arc<Federation>,
    pub(crate) key: IdentityKey,
    pub(crate) settings: Settings,
    /// Monotonic time of the input being handled.
    pub(crate) now: Duration,
    /// Whose input is being handled: accounts that come with it are followed in this one's share.
    pub(crate) party: Party,
    /// Unix time of the input being handled, in milliseconds; for display in locks only.
    pub(crate) wall_ms: u64,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) ledger: Ledger,
    pub(crate) accounts: Accounts,
    pub(crate) checks: Checks,
    /// What was found out aside for the input that is being handled.
    pub(crate) checked: Option<Checked>,
    pub(crate) log: Log,
    pub(crate) watch: Watch,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) cancellations: Cancellations,
    pub(crate) newcomers: Newcomers,
    /// What the backend says of fees.
    pub(crate) fees: FeeEstimates,
    /// How the backend took final transactions that are in no block yet: what it says against each, if anything.
    pub(crate) broadcasts: BTreeMap<Txid, Option<String>>,
    /// What this node keeps has been handed to the next epoch: what came now would be in no store.
    pub(crate) over: bool,
    /// Enforced transactions that a block contradicts, for the operator.
    pub(crate) breaches: BTreeMap<Txid, ConfirmedSpend>,
    /// The chain has been read up to its tip once.
    pub(crate) caught_up: bool,
    /// Why the backend is not believed to be at the tip, and since when in Unix seconds.
    pub(crate) doubt: Option<(String, u64)>,
    /// Heights of the peers' tips, as they told last.
    pub(crate) heights: BTreeMap<NodeId, u32>,
    /// What f + 1 of them are at, if that is beyond this node's tip, and since when in Unix seconds.
    pub(crate) overtaken: Option<(u32, u64)>,
    /// What the archive has said to the input that is being handled.
    pub(crate) recalled: Archived,
    /// The tip when accounts and scripts were swept last.
    swept_at: u32,
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) sabotage: Sabotage,
}

/// Who a node is.
pub(crate) struct Identity {
    pub(crate) me: NodeId,
    pub(crate) federation: Federation,
    pub(crate) key: IdentityKey,
}

impl Context {
    /// What a node knows when it starts. The answers of `stored` are the voter's and are left in it.
    pub(crate) fn restore(
        identity: Identity,
        settings: Settings,
        mut rng: ChaCha20Rng,
        stored: &mut Stored,
    ) -> Self {
        let Identity { me, federation, key } = identity;
        let boot = rng.next_u64();
        let (birthday, epoch) = (federation.birthday(), federation.epoch());
        let index = std::mem::take(&mut stored.index);
        let transactions = std::mem::take(&mut stored.transactions);
        let rounds = std::mem::take(&mut stored.rounds);
        let mut ledger = Ledger::restore(birthday, epoch, transactions, rounds, index);
        ledger.derive_again(&federation);
        let peers = std::mem::take(&mut stored.peers);
        Self {
            me,
            key,
            settings,
            now: Duration::ZERO,
            party: Party::Node(me),
            wall_ms: 0,
            rng,
            ledger,
            accounts: Accounts::default(),
            checks: Checks::default(),
            checked: None,
            log: Log::restore(std::mem::take(&mut stored.log), peers, boot),
            watch: Watch::restore(std::mem::take(&mut stored.evidence), epoch),
            subscriptions: Subscriptions::default(),
            cancellations: Cancellations::default(),
            newcomers: Newcomers::default(),
            fees: FeeEstimates::default(),
            broadcasts: BTreeMap::new(),
            over: false,
            breaches: BTreeMap::new(),
            caught_up: false,
            doubt: None,
            heights: BTreeMap::new(),
            overtaken: None,
            recalled: Archived::default(),
            swept_at: 0,
            effects: VecDeque::new(),
            outputs: VecDeque::new(),
            sabotage: Sabotage::new(settings.bug),
            federation: Arc::new(federation),
        }
    }

    /// Whether a rule is broken on purpose; never outside the simulation.
    pub(crate) fn planted(&self, bug: Bug) -> bool {
        self.sabotage.planted(bug)
    }

    /// The next thing to do.
    pub(crate) fn next_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.write_late();
        }
        if self.outputs.is_empty() {
            self.extend_accounts();
            return self.ledger.take_index().map(Output::Index);
        }
        self.outputs.pop_front()
    }

    /// All nodes, this one included.
    pub(crate) fn everyone(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.federation.quorum().nodes()).map(NodeId)
    }

    /// All nodes but this one.
    pub(crate) fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        let me = self.me;
        self.everyone().filter(move |node| *node != me)
    }

    /// How long this node waits before it takes up what another one may still finish.
    pub(crate) fn patience(&self) -> Duration {
        PATIENCE + PATIENCE_STEP * u32::from(self.me.0)
    }

    /// The account of a certificate, verified once.
    pub(crate) fn verified_account(
        &mut self,
        certificate: &AccountCertificate,
    ) -> Result<Arc<JointAccount>, AccountError> {
        let account = self.accounts.verify(&self.federation, certificate)?;
        self.index_account(&account);
        Ok(account)
    }

    /// Once a day of blocks, forgets accounts and scripts that nobody uses.
    pub(crate) fn sweep_scripts(&mut self) {
        let height = self.ledger.tip().height;
        if height >= self.swept_at + SWEEP_BLOCKS {
            self.swept_at = height;
            let subscriptions = &self.subscriptions;
            self.ledger.sweep_scripts(subscriptions.scripts(), |account| {
                subscriptions.is_heard(&Target::Account(*account))
            });
            self.newcomers.sweep(|account| self.ledger.is_without_coin(account));
            self.ledger.sweep_coins(|outpoint| subscriptions.is_heard(&Target::Outpoint(*outpoint)));
        }
    }

    /// Asks nodes, each of which answers with the tag.
    pub(crate) fn ask(&mut self, nodes: impl IntoIterator<Item = NodeId>, tag: Tag, request: &VotingRequest) {
        let to: Vec<NodeId> = nodes.into_iter().collect();
        if !to.is_empty() {
            self.outputs.push_back(Output::Ask { to, tag, request: Box::new(request.clone()) });
        }
    }

    /// Asks the archive, which answers when it has written what came before the question.
    pub(crate) fn recall(&mut self, ticket: u64, source: Source, wanted: Vec<Recall>) {
        self.outputs.extend(self.ledger.take_index().map(Output::Index));
        self.outputs.push_back(Output::Recall { ticket, source, wanted });
    }

    /// Sends to a wallet or bridge.
    pub(crate) fn send_client(&mut self, session: SessionId, id: Option<u64>, message: ServerMessage) {
        self.outputs.push_back(Output::Client { session, id, message });
    }

    /// Wants an outpoint's round to be left.
    pub(crate) fn start_release(&mut self, outpoint: OutPoint, round: Round, reason: &Reason) {
        self.effects.push_back(Effect::Release { outpoint, round, reason: Box::new(reason.clone()) });
    }
}
