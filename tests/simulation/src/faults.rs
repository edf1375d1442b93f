//! What can go wrong, how often it did, and what one seed chooses of it.

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// A kind of fault. Every run of many seeds has to have seen each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Power fails at a node.
    Crash,
    /// Power fails in the middle of a write.
    CrashWhileWriting,
    /// Power fails again while the store is read.
    CrashInRecovery,
    /// A node comes back.
    Restart,
    /// A node does nothing for a while.
    Pause,
    /// A faulty node comes back with an older store.
    SnapshotRestore,
    /// A faulty node comes back with an empty disk.
    LostStore,
    /// Unsynced writes are lost in a crash.
    LostWrite,
    /// An unsynced write is cut in a crash.
    TornWrite,
    /// A sync fails; the node stops.
    FailedSync,
    /// A write finds no room; the node stops.
    FullDisk,
    /// A disk takes long.
    SlowDisk,
    /// A message is lost.
    Drop,
    /// A message is held back.
    Delay,
    /// A message is overtaken.
    Reorder,
    /// A request arrives twice.
    Duplicate,
    /// One node no longer reaches another.
    OneWayCut,
    /// The network falls in two.
    Partition,
    /// A clock jumps.
    ClockJump,
    /// An evil node says two things.
    Equivocate,
    /// An evil node keeps silent.
    Withhold,
    /// An evil node sends a vote that does not verify.
    GarbageVote,
    /// An evil node sends a share or commit that does not verify.
    GarbageShare,
    /// An evil node sends commitments that are no points.
    GarbageCommitment,
    /// An evil node repeats an old answer.
    Stale,
    /// An evil coordinator leaves nodes out.
    SelectiveDelivery,
    /// An evil node hides its commit in a promise.
    LyingPromise,
    /// An evil node asks for a release without reason.
    UnfoundedRelease,
    /// An evil node tells a client that its payment was rejected.
    FalseStatus,
    /// A reorganisation of 1 blocks.
    Reorganisation1,
    /// A reorganisation of 2 blocks.
    Reorganisation2,
    /// A reorganisation of 3 blocks.
    Reorganisation3,
    /// A reorganisation of 4 blocks.
    Reorganisation4,
    /// A reorganisation of 5 blocks.
    Reorganisation5,
    /// A reorganisation of 6 blocks.
    Reorganisation6,
    /// An owner signs two spends of one coin.
    ConflictingSpend,
    /// An owner spends what an attested transaction pays before a block has it.
    AttestedChild,
    /// An owner names a deadline after its recovery path opens, or one that has passed.
    WrongDeadline,
    /// A payment is finished in secret by its owner and an evil node.
    WithheldPayment,
    /// Its owner takes the coin back by the recovery path.
    TakenBack,
    /// And it is shown, late or in time.
    LateProof,
    /// An evil coordinator asks for shares of two packages with the same nonces.
    TwoPackages,
    /// A request of an evil node is changed somewhere.
    AlteredRequest,
    /// An evil node tells of a tip that is far ahead.
    WrongTip,
    /// An evil node says that a coin is locked, spent or mined as nobody else says.
    FalseCoin,
    /// An evil node shows a proof that does not verify.
    BrokenProof,
    /// A block has a spend of a coin that the federation knows nothing of.
    ChainOnlySpend,
    /// Three transactions, each sharing a coin with the next.
    Circle,
    /// An owner cancels a payment.
    Cancel,
    /// A wallet loses its connection for a while.
    WalletOffline,
    /// A subscriber does not read.
    SlowSubscriber,
    /// All clients lose their connection at once.
    ReconnectStorm,
    /// The bridge restarts.
    BridgeRestart,
    /// An epoch ends and the next one begins.
    Succession,
    /// A node is replaced by one with an empty disk and new keys.
    Replacement,
    /// An evil node seals its epoch without what it committed to, and goes on in it.
    LyingSeal,
    /// A node loses its share of the federation key.
    LostShare,
    /// Others have repaired a lost share.
    RepairedShare,
    /// Power fails around the saving of a share or of a succession.
    CrashWhileSaving,
    /// A share, a succession or the next epoch's store cannot be written; the node goes on and tries again.
    FailedSave,
    /// An evil node sends garbage in a key generation.
    GarbageKeygen,
    /// An evil node helps to repair a share with a false part.
    GarbageRepair,
    /// A block comes while the chain is asked for coins.
    OvertakenLookup,
    /// Other inputs come while a node has a large proposal checked.
    Checked,
    /// A node forgets what is settled.
    Settled,
    /// A node learns the seals of others from one that is in the next epoch already.
    LateSeals,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 66] = [
        Self::Crash,
        Self::CrashWhileWriting,
        Self::CrashInRecovery,
        Self::Restart,
        Self::Pause,
        Self::SnapshotRestore,
        Self::LostStore,
        Self::LostWrite,
        Self::TornWrite,
        Self::FailedSync,
        Self::FullDisk,
        Self::SlowDisk,
        Self::Drop,
        Self::Delay,
        Self::Reorder,
        Self::Duplicate,
        Self::OneWayCut,
        Self::Partition,
        Self::ClockJump,
        Self::Equivocate,
        Self::Withhold,
        Self::GarbageVote,
        Self::GarbageShare,
        Self::GarbageCommitment,
        Self::Stale,
        Self::SelectiveDelivery,
        Self::LyingPromise,
        Self::UnfoundedRelease,
        Self::FalseStatus,
        Self::Reorganisation1,
        Self::Reorganisation2,
        Self::Reorganisation3,
        Self::Reorganisation4,
        Self::Reorganisation5,
        Self::Reorganisation6,
        Self::ConflictingSpend,
        Self::AttestedChild,
        Self::WrongDeadline,
        Self::WithheldPayment,
        Self::TakenBack,
        Self::LateProof,
        Self::TwoPackages,
        Self::AlteredRequest,
        Self::WrongTip,
        Self::FalseCoin,
        Self::BrokenProof,
        Self::ChainOnlySpend,
        Self::Circle,
        Self::Cancel,
        Self::WalletOffline,
        Self::SlowSubscriber,
        Self::ReconnectStorm,
        Self::BridgeRestart,
        Self::Succession,
        Self::Replacement,
        Self::LyingSeal,
        Self::LateSeals,
        Self::OvertakenLookup,
        Self::Checked,
        Self::Settled,
        Self::LostShare,
        Self::RepairedShare,
        Self::CrashWhileSaving,
        Self::FailedSave,
        Self::GarbageKeygen,
        Self::GarbageRepair,
    ];

    /// The reorganisation of this depth.
    pub const fn reorganisation(depth: u32) -> Self {
        match depth {
            0 | 1 => Self::Reorganisation1,
            2 => Self::Reorganisation2,
            3 => Self::Reorganisation3,
            4 => Self::Reorganisation4,
            5 => Self::Reorganisation5,
            _ => Self::Reorganisation6,
        }
    }
}

/// How often each fault fired.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters(pub BTreeMap<Fault, u64>);

impl Counters {
    /// Counts one.
    pub fn add(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        for (fault, count) in &other.0 {
            *self.0.entry(*fault).or_default() += count;
        }
    }

    /// Faults that never fired.
    pub fn missing(&self) -> Vec<Fault> {
        Fault::ALL.into_iter().filter(|fault| !self.0.contains_key(fault)).collect()
    }
}

/// Choices: first those of a script, if there is one, then random ones from the seed.
#[derive(Debug)]
pub struct Dice {
    script: std::vec::IntoIter<u8>,
    rng: ChaCha20Rng,
}

impl Dice {
    /// Choices that begin with those of a script, one byte each.
    pub fn new(seed: u64, script: &[u8]) -> Self {
        let script = Vec::from(script).into_iter();
        Self { script, rng: ChaCha20Rng::seed_from_u64(seed) }
    }

    /// A number.
    pub fn number(&mut self) -> u64 {
        match self.script.next() {
            Some(byte) => u64::from(byte),
            None => self.rng.next_u64(),
        }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(1);
        usize::try_from(self.number() % bound).unwrap_or(0)
    }

    /// True in `per_mille` of 1,000 cases.
    pub fn chance(&mut self, per_mille: usize) -> bool {
        self.below(1_000) < per_mille
    }

    /// A time from `low` up to `high`, in microseconds.
    pub fn between(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_micros(low + self.number() % (high - low).max(1))
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }
}

/// What one seed does; a random subset of faults at random rates, so that each seed looks for something else.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Number of nodes.
    pub nodes: u8,
    /// Messages dropped, per 1,000.
    pub drop: usize,
    /// Messages delivered twice, per 1,000.
    pub duplicate: usize,
    /// Messages held back long enough to be overtaken, per 1,000.
    pub delay: usize,
    /// Mean time between faults of machines, in milliseconds; 0 is never.
    pub machine_faults_ms: u64,
    /// Mean time between network faults, in milliseconds; 0 is never.
    pub network_faults_ms: u64,
    /// Mean time between blocks, in milliseconds.
    pub blocks_ms: u64,
    /// Blocks that are a reorganisation, per 1,000.
    pub reorganisations: usize,
    /// Nodes that may do anything.
    pub byzantine: usize,
    /// Nodes whose store may be set back.
    pub forgetful: usize,
    /// Payments and conflicts to start.
    pub work: usize,
    /// Time with faults.
    pub storm: Duration,
    /// When the epoch changes, if it does.
    pub succession: Option<Duration>,
    /// Whether a node is replaced then.
    pub replace: bool,
    /// When an owner and an evil node begin to keep a payment secret, if they do.
    pub theft: Option<Duration>,
}

impl Weather {
    /// Draws a plan.
    pub fn draw(dice: &mut Dice) -> Self {
        let nodes = if dice.below(4) == 0 { 7 } else { 4 };
        let f = usize::from(nodes - 1) / 3;
        let faulty = dice.below(f + 1);
        let byzantine = dice.below(faulty + 1);
        let sometimes = |dice: &mut Dice, most: usize| if dice.below(2) == 0 { 0 } else { dice.below(most) };
        let every = |dice: &mut Dice, low: u64, high: u64| match dice.below(3) {
            0 => 0,
            _ => low + u64::try_from(dice.below(usize::try_from(high - low).unwrap_or(1))).unwrap_or(0),
        };
        let storm = Duration::from_secs(12) + dice.between(0, 15_000_000);
        let most = u64::try_from(storm.as_micros()).unwrap_or(u64::MAX);
        let succession = (dice.below(3) == 0).then(|| dice.between(3_000_000, most));
        let replace = dice.below(2) == 0;
        let thieves = byzantine > 0 && succession.is_none() && dice.below(2) == 0;
        let theft = thieves.then(|| dice.between(1_500_000, 4_000_000));
        Self {
            nodes,
            drop: sometimes(dice, 200),
            duplicate: sometimes(dice, 100),
            delay: sometimes(dice, 150),
            machine_faults_ms: every(dice, 700, 8_000),
            network_faults_ms: every(dice, 700, 8_000),
            blocks_ms: every(dice, 1_500, 8_000).max(1_500),
            reorganisations: sometimes(dice, 500),
            byzantine,
            forgetful: faulty - byzantine,
            work: 4 + dice.below(8),
            storm,
            succession,
            replace,
            theft,
        }
    }
}
