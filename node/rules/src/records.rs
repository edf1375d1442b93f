//! What a node keeps on disk: one typed [`Change`] per record, with its canonical bytes in one place.
//!
//! What it keeps of the chain, in a store of its own, is in [`crate::index`].
//!
//! A machine emits [`Output::Persist`](crate::Output::Persist) with a [`ChangeSet`] before anything that depends on
//! it. A set is written whole or not at all. A later record under the same key replaces the one before; nothing is
//! merged, because a record says all there is to say about its key.

use bitcoin::{
    OutPoint, TxOut, Txid,
    hashes::{Hash as _, HashEngine as _, sha256},
};
use quorate_protocol::{
    PackageDigest, Round,
    account::AccountCertificate,
    evidence::Evidence,
    finality::FinalityProof,
    log_head::{LogHead, SignedHead},
    proposal::Proposal,
    release::ReleaseCertificate,
    vote::{ApprovalCertificate, SignedVote, VoteTarget},
    wire::CommitReply,
};
use serde::{Deserialize, Serialize};

/// Bytes of a record's checksum.
pub const CHECKSUM_BYTES: usize = 8;

/// What this node holds about a transaction; the durable part of its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TxRecord {
    /// What votes on it are about.
    pub target: VoteTarget,
    /// How to check and finish it; absent if only its proof was heard of.
    pub proposal: Option<Proposal>,
    /// The account that pays, for a joint proposal.
    pub account: Option<AccountCertificate>,
    /// The outputs that it spends, in the order of its inputs; empty if they are not known.
    pub spent: Vec<TxOut>,
    /// This node's approval.
    pub vote: Option<SignedVote>,
    /// Unix time of the lock in milliseconds, for display only.
    pub locked_at: u64,
    /// The certificate that this node has committed to.
    pub certificate: Option<ApprovalCertificate>,
    /// That it is final.
    pub proof: Option<FinalityProof>,
}

/// Which round an outpoint is in and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The outpoint.
    pub outpoint: OutPoint,
    /// This node votes and commits in no lower round.
    pub round: Round,
    /// The latest release known. If it is not of the round before, this node has promised and the release is not
    /// complete.
    pub release: Option<ReleaseCertificate>,
}

/// An answer that used up nonces.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The signing package that was answered.
    pub digest: PackageDigest,
    /// The transaction that it signs, with which it is forgotten.
    #[serde(default)]
    pub txid: Option<Txid>,
    /// The answer, sent again byte for byte when the package comes again.
    pub reply: CommitReply,
}

/// What the store keeps about this node's own log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogRecord {
    /// This node's head.
    pub head: LogHead,
    /// Why this node lost its vote, if it did.
    #[serde(default)]
    pub lost: Option<String>,
    /// The succession that this node ended its epoch for.
    #[serde(default)]
    pub sealed: Option<[u8; 32]>,
    /// The runs of this node in this epoch, in order: their random numbers, and how long the log was when they began.
    #[serde(default)]
    pub runs: Vec<(u64, u64)>,
}

impl LogRecord {
    /// The record of a node that does not vote in this epoch (V9).
    pub fn lost(reason: &str) -> Self {
        Self { lost: Some(format!("{reason}; it votes again in the next epoch")), ..Self::default() }
    }
}

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Transactions with this node's vote, certificate and proof, by txid.
    Transactions,
    /// Rounds of outpoints with their latest release.
    Rounds,
    /// Answers that used up nonces, by package digest.
    Answers,
    /// Evidence against peers, by node and number.
    Evidence,
    /// This node's log head and standing.
    Log,
    /// The furthest log head seen of each peer.
    Peers,
    /// Headers of the chain, by height.
    Headers,
    /// What the last blocks did, to be undone with them, by height.
    Effects,
    /// Coins in blocks, by outpoint.
    Coins,
    /// What blocks spend coins with that this node does not know, by outpoint.
    Spends,
    /// Scripts whose outputs are indexed because somebody subscribed to them.
    Scripts,
    /// Registered accounts, by id.
    Accounts,
    /// Their addresses, by account, keychain and first index.
    Addresses,
    /// Coins that were spent long ago, by outpoint.
    Archive,
    /// Where in the archive a script's coins are, the latest first.
    History,
    /// What became of transactions that are settled, by txid.
    Settled,
    /// Proofs of those that have an unspent coin, by txid.
    Proofs,
}

impl Table {
    /// Those of the store: what this node said and saw. To lose any of it costs the vote (V9).
    pub const STORE: [Self; 6] =
        [Self::Transactions, Self::Rounds, Self::Answers, Self::Evidence, Self::Log, Self::Peers];
    /// Those of the index: what can be read from the chain again.
    pub const INDEX: [Self; 7] = [
        Self::Headers,
        Self::Effects,
        Self::Coins,
        Self::Spends,
        Self::Scripts,
        Self::Accounts,
        Self::Addresses,
    ];
    /// Those of the archive, beside the index: what nobody can change any more. It is looked up and never held in
    /// memory.
    pub const ARCHIVE: [Self; 4] = [Self::Archive, Self::History, Self::Settled, Self::Proofs];

    /// Its name in a store, and in checksums.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transactions => "transactions",
            Self::Rounds => "rounds",
            Self::Answers => "responses",
            Self::Evidence => "evidence",
            Self::Log => "log",
            Self::Peers => "peers",
            Self::Headers => "headers",
            Self::Effects => "effects",
            Self::Coins => "coins",
            Self::Spends => "spends",
            Self::Scripts => "scripts",
            Self::Accounts => "accounts",
            Self::Addresses => "addresses",
            Self::Archive => "archive",
            Self::History => "history",
            Self::Settled => "settled",
            Self::Proofs => "proofs",
        }
    }
}

/// One record to write.
#[derive(Clone, Debug)]
pub enum Change {
    /// A transaction's vote, certificate or proof.
    Transaction(Box<TxRecord>),
    /// An outpoint's round.
    Round(Box<RoundRecord>),
    /// An answer that used up nonces.
    Answer(Box<Answer>),
    /// Evidence against a node.
    Evidence {
        /// How many pieces against the same node were kept before it.
        number: u32,
        /// The piece.
        evidence: Box<Evidence>,
    },
    /// This node's own log.
    Log(LogRecord),
    /// How far a peer's log has come.
    PeerHead(SignedHead),
}

impl Change {
    /// The record's canonical bytes.
    pub fn encode(&self) -> Row {
        let (table, key, value) = match self {
            Self::Transaction(record) => {
                (Table::Transactions, AsRef::<[u8]>::as_ref(&record.target.txid()).to_vec(), json(record))
            }
            Self::Round(record) => {
                (Table::Rounds, bitcoin::consensus::serialize(&record.outpoint), json(record))
            }
            Self::Answer(answer) => (Table::Answers, answer.digest.0.to_vec(), json(answer)),
            Self::Evidence { number, evidence } => {
                let node = evidence.accused().0.to_be_bytes();
                (Table::Evidence, [node.as_slice(), &number.to_be_bytes()].concat(), json(evidence))
            }
            Self::Log(record) => (Table::Log, b"log".to_vec(), json(record)),
            Self::PeerHead(head) => (Table::Peers, head.node.0.to_be_bytes().to_vec(), json(head)),
        };
        Row { table, key, value }
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have string keys only")
}

/// A record as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its kind.
    pub table: Table,
    /// What it is about.
    pub key: Vec<u8>,
    /// Its bytes. None at all take the row away: no record is empty.
    pub value: Vec<u8>,
}

impl Row {
    /// Covers table, key and value: a record that does not match is damage, which a node treats as a lost memory (V9).
    pub fn checksum(&self) -> [u8; CHECKSUM_BYTES] {
        let mut engine = sha256::Hash::engine();
        for part in [self.table.name().as_bytes(), &self.key, &self.value] {
            engine.input(&part.len().to_be_bytes());
            engine.input(part);
        }
        let hash = sha256::Hash::from_engine(engine).to_byte_array();
        let mut short = [0; CHECKSUM_BYTES];
        short.copy_from_slice(hash.get(..CHECKSUM_BYTES).unwrap_or_default());
        short
    }
}

/// Records to write, all or none.
#[derive(Clone, Debug, Default)]
pub struct ChangeSet(Vec<Row>);

impl ChangeSet {
    /// Adds a record; it replaces an earlier one under the same key.
    pub fn put(&mut self, change: &Change) {
        self.0.push(change.encode());
    }

    /// A set of rows as they are.
    pub fn of_rows(rows: impl IntoIterator<Item = Row>) -> Self {
        Self(rows.into_iter().collect())
    }

    /// Takes a transaction's record away.
    pub(crate) fn forget_transaction(&mut self, txid: &Txid) {
        self.forget(Table::Transactions, AsRef::<[u8]>::as_ref(txid).to_vec());
    }

    /// Takes an outpoint's round away.
    pub(crate) fn forget_round(&mut self, outpoint: &OutPoint) {
        self.forget(Table::Rounds, bitcoin::consensus::serialize(outpoint));
    }

    /// Takes an answer away.
    pub(crate) fn forget_answer(&mut self, digest: &PackageDigest) {
        self.forget(Table::Answers, digest.0.to_vec());
    }

    fn forget(&mut self, table: Table, key: Vec<u8>) {
        self.0.push(Row { table, key, value: Vec::new() });
    }

    /// Adds a row of the index.
    pub(crate) fn put_row(&mut self, row: Row) {
        self.0.push(row);
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of its records.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|row| row.key.len() + row.value.len()).sum()
    }

    /// Adds another set after this one.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The records, in order.
    pub fn rows(&self) -> &[Row] {
        &self.0
    }

    /// A hash of all records, for the log's chain.
    pub fn digest(&self) -> [u8; 32] {
        let mut engine = sha256::Hash::engine();
        for row in &self.0 {
            engine.input(&row.checksum());
        }
        sha256::Hash::from_engine(engine).to_byte_array()
    }
}

impl From<Change> for ChangeSet {
    fn from(change: Change) -> Self {
        Self(vec![change.encode()])
    }
}

/// A row whose value is not what a machine writes.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// A record of the store.
    #[error("{0}")]
    Record(#[from] serde_json::Error),
    /// A record of the index.
    #[error("a record of the index cannot be read")]
    Index,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stored;

    fn round(vout: u32, round: u32) -> Change {
        let outpoint = OutPoint { vout, ..OutPoint::null() };
        Change::Round(Box::new(RoundRecord { outpoint, round: Round(round), release: None }))
    }

    #[test]
    fn a_row_reads_back_and_its_bytes_are_pinned() {
        let row = round(7, 3).encode();
        assert_eq!(row.table, Table::Rounds);
        let outpoint = format!("{}:7", "0".repeat(64));
        let json = format!(r#"{{"outpoint":"{outpoint}","round":3,"release":null}}"#);
        assert_eq!(String::from_utf8_lossy(&row.value), json);
        assert_eq!(row.key.len(), 36);
        let mut stored = Stored::default();
        stored.take(&row).expect("what was written");
        assert_eq!(stored.rounds[0].round, Round(3));
    }

    #[test]
    fn a_damaged_value_is_refused_and_a_moved_one_has_another_checksum() {
        let row = round(7, 3).encode();
        let cut = Row { value: row.value[1..].to_vec(), ..row.clone() };
        assert!(Stored::default().take(&cut).is_err());
        for other in [
            Row { table: Table::Answers, ..row.clone() },
            Row { key: vec![1], ..row.clone() },
            Row { value: Vec::new(), ..row.clone() },
        ] {
            assert_ne!(other.checksum(), row.checksum());
        }
    }

    #[test]
    fn the_digest_depends_on_records_and_order() {
        let set = |changes: &[Change]| {
            let mut set = ChangeSet::default();
            changes.iter().for_each(|change| set.put(change));
            set
        };
        let both = set(&[round(1, 1), round(2, 1)]);
        assert_ne!(both.digest(), set(&[round(2, 1), round(1, 1)]).digest());
        assert_ne!(both.digest(), set(&[round(1, 1)]).digest());
        let mut merged = set(&[round(1, 1)]);
        merged.merge(round(2, 1).into());
        assert_eq!(merged.digest(), both.digest());
    }

    #[test]
    fn a_lost_memory_says_why_and_until_when() {
        let lost = LogRecord::lost("its store is missing").lost;
        assert_eq!(lost.as_deref(), Some("its store is missing; it votes again in the next epoch"));
    }
}
