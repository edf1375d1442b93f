//! What a hostile bridge can say, over the whole client. Whatever it says, the wallet answers, believes in no money
//! that there is not, and has the right balance once it meets an honest bridge, with its memory or from its disk.

use super::honest::{Device, PAID, Truth};
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Txid, hashes::Hash as _};
use quorate::{
    Round,
    finality::{FinalityKind, FinalityProof},
    wallet::{Destination, PaymentRequest, SavedState},
    wire::{
        BlockRef, ChainTip, ConfirmedSpend, ErrorCode, FeeEstimates, FinalSpend, Followed, KeyOutcome,
        KeyResult, Lock, ServerMessage, SubscriptionKey, TransactionStatus, UtxoRecord, WireError, limits,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Steps of one run.
const STEPS_MAX: usize = 96;
/// Numbers at which arithmetic ends.
const EDGES: [u64; 12] = [
    0,
    1,
    546,
    90_000,
    90_001,
    2_100_000_000_000_000,
    2_100_000_000_000_001,
    u32::MAX as u64,
    1 << 32,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Bytes as choices; zeros once there are none left.
struct Choices<'a> {
    bytes: &'a [u8],
    /// Payments of the wallet.
    made: BTreeSet<Txid>,
}

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((first, rest)) => {
                self.bytes = rest;
                *first
            }
            None => 0,
        }
    }

    fn maybe(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn edge(&mut self) -> u64 {
        EDGES.get(usize::from(self.byte()) % EDGES.len()).copied().unwrap_or_default()
    }

    fn height(&mut self) -> u32 {
        u32::try_from(self.edge()).unwrap_or(u32::MAX)
    }

    fn text(&mut self) -> String {
        let length = usize::from(self.byte()).min(self.bytes.len());
        let (text, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    fn block(&mut self) -> BlockRef {
        let hash = bitcoin::BlockHash::from_byte_array([self.byte(); 32]);
        BlockRef { height: self.height(), hash }
    }

    fn txid(&mut self, truth: &Truth) -> Txid {
        let byte = self.byte();
        let made = self.made.iter().nth(usize::from(byte / 3) % self.made.len().max(1)).copied();
        match (byte % 3, made) {
            (0, Some(made)) => made,
            (0 | 1, _) => truth.proof.txid(),
            _ => Txid::from_byte_array([byte; 32]),
        }
    }

    fn outpoint(&mut self, truth: &Truth) -> OutPoint {
        if self.maybe() {
            return truth.outpoint();
        }
        OutPoint { txid: self.txid(truth), vout: self.height() }
    }

    fn script(&mut self, truth: &Truth) -> ScriptBuf {
        match self.byte() % 3 {
            0 => truth.script.clone(),
            1 => truth.other.clone(),
            _ => ScriptBuf::from_bytes(vec![0x51]),
        }
    }

    /// What no node would say of a coin.
    fn record(&mut self, truth: &Truth) -> UtxoRecord {
        let mut record = truth.record();
        record.outpoint = self.outpoint(truth);
        record.script_pubkey = self.script(truth);
        record.value = Amount::from_sat(self.edge());
        record.tip_height = self.height();
        record.created = self.maybe().then(|| self.block());
        record.final_parent = self.maybe().then_some(FinalityKind::Attested);
        record.round = Round(self.height());
        record.votes = u16::try_from(self.edge()).unwrap_or(u16::MAX);
        record.conflicted =
            self.maybe().then(|| ConfirmedSpend { txid: self.txid(truth), block: self.block() });
        record.lock = self.maybe().then(|| Lock {
            txid: self.txid(truth),
            round: Round(self.height()),
            locked_at: self.edge(),
        });
        record.spend =
            self.maybe().then(|| FinalSpend { txid: self.txid(truth), kind: FinalityKind::Enforced });
        record.spent = self.maybe().then(|| ConfirmedSpend { txid: self.txid(truth), block: self.block() });
        record
    }

    /// The proof that there is, or one that is none.
    fn proof(&mut self, truth: &Truth) -> FinalityProof {
        let mut proof = truth.proof.clone();
        let FinalityProof::Enforced { transaction, spent, certificate } = &mut proof else { return proof };
        match self.byte() % 6 {
            0 => {}
            1 => {
                transaction.output.iter_mut().for_each(|output| output.value = Amount::from_sat(self.edge()))
            }
            2 => spent.clear(),
            3 => certificate.approvals.clear(),
            4 => transaction.input.clear(),
            _ => transaction.output.iter_mut().for_each(|output| output.script_pubkey = truth.other.clone()),
        }
        proof
    }

    fn status(&mut self, truth: &Truth) -> TransactionStatus {
        let retry = self.maybe();
        match self.byte() % 10 {
            0 => TransactionStatus::Pending,
            1 => {
                let [votes, quorum, nodes] = [0; 3].map(|_: u8| u16::from(self.byte()));
                TransactionStatus::Voting { votes, quorum, nodes }
            }
            2 => TransactionStatus::Approved,
            3 => TransactionStatus::Signing { attempt: self.height() },
            4 => TransactionStatus::Signed { proof: Box::new(self.proof(truth)) },
            5 => TransactionStatus::Broadcasting { refusal: self.maybe().then(|| self.text()) },
            6 => TransactionStatus::Confirmed { block: self.block() },
            7 => TransactionStatus::Conflicted {
                by: ConfirmedSpend { txid: self.txid(truth), block: self.block() },
            },
            8 => TransactionStatus::Rejected { rejects: Vec::new(), retry, releases: Vec::new() },
            _ => TransactionStatus::Failed { message: self.text(), retry, releases: Vec::new() },
        }
    }

    fn outcome(&mut self, truth: &Truth) -> KeyOutcome {
        if self.maybe() {
            return KeyOutcome::Error(self.error());
        }
        KeyOutcome::Snapshot {
            utxos: (0..self.byte() % 4).map(|_| self.record(truth)).collect(),
            proofs: (0..self.byte() % 3).map(|_| self.proof(truth)).collect(),
            status: self.maybe().then(|| self.status(truth)),
            history_from: self.maybe().then(|| self.height()),
            followed: self.maybe().then(|| Followed { receive: self.height(), change: self.height() }),
        }
    }

    fn error(&mut self) -> WireError {
        let code = match self.byte() % 4 {
            0 => ErrorCode::UnknownAccount,
            1 => ErrorCode::LimitExceeded,
            2 => ErrorCode::InvalidProposal,
            _ => ErrorCode::NotReady,
        };
        WireError { retry: self.maybe(), ..WireError::sender(code, self.text()) }
    }

    fn message(&mut self, truth: &Truth, key: SubscriptionKey) -> ServerMessage {
        let tip = ChainTip { block: self.block() };
        match self.byte() % 14 {
            0 | 1 => {
                let results = vec![KeyResult { key, outcome: self.outcome(truth) }];
                let since = self.maybe().then(|| self.height());
                ServerMessage::UTXOSubscribed { results, tip, more: self.maybe(), since }
            }
            2 | 3 => {
                let utxo = self.record(truth);
                let proof = self.maybe().then(|| Box::new(self.proof(truth)));
                let followed =
                    self.maybe().then(|| Followed { receive: self.height(), change: self.height() });
                ServerMessage::UTXOStateNotification { state: utxo.state(), key, utxo, proof, followed }
            }
            4 => ServerMessage::TransactionStatus { txid: self.txid(truth), status: self.status(truth) },
            5 => ServerMessage::Tip { tip },
            6 => ServerMessage::Headers { from: self.height(), headers: Vec::new() },
            7 => ServerMessage::Proof { txid: self.txid(truth), proof: None, conflict: None },
            8 => ServerMessage::Error { error: self.error() },
            9 => ServerMessage::Gap { keys: vec![key] },
            10 => ServerMessage::GoingAway { retry_after: self.edge() },
            11 => {
                let [next_block, six_blocks, day, floor] = [0; 4].map(|_: u8| self.edge());
                ServerMessage::FeeRate { estimates: FeeEstimates { next_block, six_blocks, day, floor } }
            }
            12 => {
                let FinalityProof::Enforced { certificate, .. } = &truth.proof else {
                    return ServerMessage::Pong;
                };
                let mut certificate = (**certificate).clone();
                if self.maybe() {
                    certificate.approvals.clear();
                }
                ServerMessage::SignRequest {
                    txid: self.txid(truth),
                    attempt: self.height(),
                    certificate,
                    nodes: BTreeMap::new(),
                    releases: Vec::new(),
                }
            }
            _ => ServerMessage::Welcome {
                protocol: limits::PROTOCOL_VERSION,
                federation: truth.world.federation.id(),
                agent: self.text(),
                tip,
            },
        }
    }
}

/// Runs a wallet that was paid once against a bridge that says what the bytes choose.
pub fn bridge(data: &[u8]) {
    let truth = Truth::get();
    let mut choices = Choices { bytes: data, made: BTreeSet::new() };
    let mut device = Device::new(SavedState::new());
    if choices.maybe() {
        device.recover();
    } else {
        device.connect();
    }
    for _ in 0..STEPS_MAX {
        if choices.bytes.is_empty() {
            break;
        }
        step(&mut device, &mut choices, truth);
        choices.made.extend(device.session.payments().map(|(txid, _)| txid));
        let balance = device.session.wallet().balance();
        let parts = [balance.spendable, balance.incoming, balance.locked, balance.immature, balance.expired];
        assert!(parts.iter().all(|part| *part <= Amount::MAX_MONEY), "{balance:?}");
        assert!(balance.spendable + balance.expired <= PAID, "{balance:?}: a bridge makes no money");
    }
    let disk = device.disk.clone();
    device.recover();
    Device::new(device.disk).recover();
    // What was on the disk while the bridge still lied.
    Device::new(disk).recover();
}

fn step(device: &mut Device, choices: &mut Choices<'_>, truth: &Truth) {
    let index = usize::from(choices.byte()) % device.asked.len().max(1);
    let chosen = device.asked.get(index).cloned();
    let id = match chosen.as_ref().filter(|_| choices.maybe()) {
        Some((id, _)) => *id,
        None => choices.maybe().then(|| choices.edge()),
    };
    let account = SubscriptionKey::Account(device.session.wallet().account().id());
    match choices.byte() % 8 {
        // The truth, so that it gets further.
        0 => {
            if let Some((id, request)) = chosen
                && let Some(answer) = truth.answer(&request)
            {
                device.asked.remove(index);
                device.tell(id, &answer);
            }
        }
        1..=3 => {
            let key = match choices.byte() % 5 {
                0 => SubscriptionKey::Script(choices.script(truth)),
                1 => SubscriptionKey::Outpoint(choices.outpoint(truth)),
                2 => SubscriptionKey::Txid(choices.txid(truth)),
                3 => SubscriptionKey::Tip,
                _ => account,
            };
            let message = choices.message(truth, key);
            device.tell(id, &message);
        }
        4 => {
            let text = choices.text();
            device.session.handle_text(device.now, &text);
            device.drain();
        }
        5 => {
            device.cut();
            if device.wants {
                device.connect();
            }
        }
        6 => device.pass(Duration::from_millis(choices.edge().min(86_400_000))),
        _ => act(device, choices),
    }
    if device.wants && choices.maybe() {
        device.connect();
    }
}

/// What an application does meanwhile.
fn act(device: &mut Device, choices: &mut Choices<'_>) {
    let now = device.now;
    let session = &mut device.session;
    let to = "bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw";
    let to = Destination::parse(to, bitcoin::Network::Regtest).expect("an address");
    let request = PaymentRequest::new(to).exact(Amount::from_sat(choices.edge()));
    let request = if choices.maybe() { request.fee_rate(FeeRate::BROADCAST_MIN) } else { request };
    // Whether it succeeds depends on what the bridge said; it has to answer.
    match choices.byte() % 6 {
        0 => drop(session.next_address()),
        1 => drop(session.quote(&request)),
        2 => drop(session.send_once(now, "key", &request)),
        3 => {
            let under_way: Vec<Txid> = session.payments().map(|(txid, _)| txid).collect();
            under_way.into_iter().for_each(|txid| drop(session.cancel(now, txid)));
        }
        4 => drop(session.create_psbt(&request.everything())),
        _ => session.wake(now),
    }
    device.drain();
}
