//! A bridge that tells the truth, for a wallet that has met one that did not: there is one coin, final and unspent.

use bitcoin::{Amount, OutPoint, ScriptBuf};
use quorate::{
    NodeId,
    account::{ACCOUNT_GAP, AccountCertificate},
    finality::{FinalityKind, FinalityProof},
    session::{Event, Now, Output, PaymentState, Session},
    testing::{self, World},
    wallet::{AccountOptions, Balance, SavedState, SecretWords, Wallet, apply_change},
    wire::{
        ChainTip, ClientMessage, ErrorCode, FeeEstimates, Followed, KeyOutcome, KeyResult, ServerMessage,
        SubscriptionKey, UtxoRecord, WireError, decode, encode_text, limits,
    },
};
use std::{sync::OnceLock, time::Duration};

const WORDS: &str =
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
/// What the wallet was paid.
pub(super) const PAID: Amount = Amount::from_sat(90_000);
/// Rounds of messages and timers until a wallet has to know what it has.
const ROUNDS_MAX: u32 = 400;

/// What is so.
pub(super) struct Truth {
    pub(super) world: World,
    pub(super) proof: FinalityProof,
    pub(super) script: ScriptBuf,
    /// Another address of the wallet, where nothing was paid.
    pub(super) other: ScriptBuf,
    pub(super) certificate: AccountCertificate,
    pub(super) tip: ChainTip,
}

impl Truth {
    pub(super) fn get() -> &'static Self {
        static TRUTH: OnceLock<Truth> = OnceLock::new();
        TRUTH.get_or_init(Self::new)
    }

    fn new() -> Self {
        let world = testing::federation(4);
        let mut wallet = wallet(&world);
        let script = wallet.next_address().expect("an address").script_pubkey;
        let other = wallet.next_address().expect("an address").script_pubkey;
        let proof = world.finish(&world.proposal_to(script.clone(), PAID));
        let record = wallet.account().record().clone();
        let nodes = (1..).map(NodeId).zip(&world.keys);
        let acceptances = nodes.map(|(node, key)| (node, record.accept(&world.federation, key))).collect();
        let certificate = AccountCertificate { record, epoch: world.federation.epoch(), acceptances };
        let tip = ChainTip { block: wallet.chain().tip() };
        Self { world, proof, script, other, certificate, tip }
    }

    pub(super) fn outpoint(&self) -> OutPoint {
        let outputs = &self.proof.transaction().output;
        let vout = outputs.iter().position(|output| output.script_pubkey == self.script);
        let vout = u32::try_from(vout.expect("it pays the wallet")).expect("few outputs");
        OutPoint { txid: self.proof.txid(), vout }
    }

    pub(super) fn record(&self) -> UtxoRecord {
        let record = testing::utxo_record(self.outpoint(), PAID, self.script.clone());
        UtxoRecord { tip_height: 0, final_parent: Some(FinalityKind::Enforced), ..record }
    }

    /// What is known of a key.
    pub(super) fn snapshot(&self, key: &SubscriptionKey) -> KeyOutcome {
        let account = matches!(key, SubscriptionKey::Account(_));
        let paid = account
            || *key == SubscriptionKey::Script(self.script.clone())
            || *key == SubscriptionKey::Outpoint(self.outpoint());
        let proofs = paid || *key == SubscriptionKey::Txid(self.proof.txid());
        KeyOutcome::Snapshot {
            utxos: paid.then(|| self.record()).into_iter().collect(),
            proofs: proofs.then(|| self.proof.clone()).into_iter().collect(),
            status: None,
            history_from: None,
            followed: account.then_some(Followed { receive: ACCOUNT_GAP + 1, change: ACCOUNT_GAP }),
        }
    }

    /// What an honest bridge answers.
    pub(super) fn answer(&self, message: &ClientMessage) -> Option<ServerMessage> {
        let results = |keys: &[SubscriptionKey]| -> Vec<KeyResult> {
            keys.iter().map(|key| KeyResult { key: key.clone(), outcome: self.snapshot(key) }).collect()
        };
        let tip = self.tip;
        Some(match message {
            ClientMessage::Hello { .. } => ServerMessage::Welcome {
                protocol: limits::PROTOCOL_VERSION,
                federation: self.world.federation.id(),
                agent: String::new(),
                tip,
            },
            ClientMessage::AccountRegister { .. } => {
                ServerMessage::AccountCertified { certificate: self.certificate.clone() }
            }
            ClientMessage::UTXOSubscribe { keys, since, .. } => {
                ServerMessage::UTXOSubscribed { results: results(keys), tip, more: false, since: *since }
            }
            ClientMessage::UTXOStateQuery { keys } => {
                ServerMessage::UTXOStateResponse { results: results(keys), tip, more: false }
            }
            ClientMessage::UTXOUnsubscribe { keys } => ServerMessage::UTXOUnsubscribed { count: keys.len() },
            ClientMessage::FederationQuery => {
                ServerMessage::Federation { document: Box::new(self.world.federation.document().clone()) }
            }
            ClientMessage::HeadersQuery { from } => {
                ServerMessage::Headers { from: *from, headers: Vec::new() }
            }
            ClientMessage::ProofQuery { txid } => {
                ServerMessage::Proof { txid: *txid, proof: None, conflict: None }
            }
            ClientMessage::FeeRateQuery => ServerMessage::FeeRate { estimates: FeeEstimates::default() },
            ClientMessage::Ping => ServerMessage::Pong,
            // The nodes have seen nothing of it, and take nothing of it.
            ClientMessage::TransactionBroadcast { .. } | ClientMessage::TransactionCancel { .. } => {
                ServerMessage::Error { error: WireError::sender(ErrorCode::InvalidProposal, "no") }
            }
            ClientMessage::SignResponse { .. } | ClientMessage::FinalTransaction { .. } => return None,
        })
    }
}

pub(super) fn wallet(world: &World) -> Wallet {
    let words = SecretWords::parse(WORDS).expect("valid words");
    Wallet::new(world.federation.clone(), &words, &AccountOptions::default(), None).expect("opens")
}

/// A wallet with its disk.
pub(super) struct Device {
    pub(super) session: Session,
    pub(super) disk: SavedState,
    pub(super) now: Now,
    /// Requests that were not answered yet.
    pub(super) asked: Vec<(Option<u64>, ClientMessage)>,
    /// It wants a connection.
    pub(super) wants: bool,
}

impl Device {
    pub(super) fn new(disk: SavedState) -> Self {
        let wallet = wallet(&Truth::get().world);
        let session = Session::restore(wallet, Box::new(testing::rng(7)), &disk)
            .expect("what a wallet wrote, it reads");
        let mut device =
            Self { session, disk, now: Duration::from_secs(100), asked: Vec::new(), wants: false };
        device.drain();
        device
    }

    /// Carries out what the session puts out, as a driver does.
    pub(super) fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Save(change) => apply_change(&mut self.disk, change),
                Output::Send(text) => {
                    let envelope = decode::<ClientMessage>(text.as_bytes());
                    let envelope = envelope.map_err(|(_, error)| error).expect("own messages are read");
                    let signs = matches!(envelope.body, ClientMessage::SignResponse { .. });
                    assert!(!signs, "no certificate was good");
                    self.asked.push((envelope.id, envelope.body));
                }
                Output::Connect => self.wants = true,
                Output::Close => self.asked.clear(),
                Output::Event(Event::Received { txid, amount, .. }) => {
                    let truth = Truth::get();
                    assert_eq!((txid, amount), (truth.proof.txid(), PAID), "nothing else was paid");
                }
                Output::Event(Event::Payment { state: PaymentState::Final { .. }, txid }) => {
                    panic!("{txid} is not final")
                }
                Output::Event(_) => {}
            }
        }
    }

    pub(super) fn tell(&mut self, id: Option<u64>, message: &ServerMessage) {
        self.session.handle_text(self.now, &encode_text(id, message));
        self.drain();
    }

    pub(super) fn connect(&mut self) {
        self.asked.clear();
        self.wants = false;
        self.session.handle_connected(self.now);
        self.drain();
    }

    pub(super) fn cut(&mut self) {
        self.session.handle_disconnected(self.now, "cut");
        self.asked.clear();
        self.drain();
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now.saturating_add(time);
        self.session.handle_timeout(self.now);
        self.drain();
    }

    /// Meets the honest bridge until it knows what it has.
    pub(super) fn recover(&mut self) {
        let truth = Truth::get();
        let expected = Balance { spendable: PAID, ..Balance::default() };
        self.cut();
        for _ in 0..ROUNDS_MAX {
            if self.wants {
                self.connect();
            }
            while let Some((id, message)) = self.asked.pop() {
                if let Some(answer) = truth.answer(&message) {
                    self.tell(id, &answer);
                }
            }
            if self.session.is_synced() && self.session.wallet().balance() == expected {
                return;
            }
            self.pass(Duration::from_secs(1));
        }
        let (balance, synced) = (self.session.wallet().balance(), self.session.is_synced());
        let coins: Vec<_> = self.session.wallet().coins().collect();
        let payments: Vec<_> = self.session.payments().collect();
        panic!(
            "an honest bridge does not mend the wallet: {balance:?}, synced: {synced}, {coins:?}, {payments:?}"
        );
    }
}
