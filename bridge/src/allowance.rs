//! What one session, and all sessions of one address, may ask for in a time: bytes, and work for the nodes.
//!
//! Who asks for more is not refused but read from more slowly; the network then stops what it sends.

use quorate_protocol::wire::{ClientMessage, SubscriptionKey};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Bytes a second, and how many may come at once.
const BYTES: Rate = Rate { per_second: 1_048_576.0, at_once: 8 << 20 };
/// Work a second, and how much may come at once: a wallet that is restored asks for much.
const WORK: Rate = Rate { per_second: 200.0, at_once: 4_000 };
/// Scripts that an address has nodes index, which they do for a week: fewer in that time than a node has room for.
const NEW_SCRIPTS: Rate = Rate { per_second: 1.0, at_once: 65_536 };
/// Accounts that an address has nodes know, which they do for a month if no coin comes: its network has fewer
/// registered in that time than a node has room for.
const NEW_ACCOUNTS: Rate = Rate { per_second: 1.0 / 300.0, at_once: 4_096 };
/// An address may ask for as much as so many sessions: behind one there may be a whole mobile network.
const ADDRESS_SHARES: u32 = 16;

/// A frame without a message, or a question that is answered from memory.
const WORK_SMALL: u32 = 1;
/// Keys that are as much work as a small question.
const KEYS_PER_WORK: usize = 16;
/// A proof or block that has to be looked for.
const WORK_PROOF: u32 = 4;
/// A payment: signatures at all nodes.
const WORK_PAYMENT: u32 = 20;
/// Each of its inputs: a script that all nodes run.
const WORK_INPUT: u32 = 2;
/// Outputs that are as much work as a small question.
const OUTPUTS_PER_WORK: usize = 16;
/// The coins of an account.
const WORK_FOLLOWED: u32 = 10;
/// Bytes that are written for one that may be read.
const WRITTEN_PER_READ: usize = 16;
/// An account: forty addresses are derived at all nodes.
const WORK_ACCOUNT: u32 = 100;

/// Nobody waits longer than this: well below what counts as silence.
const DEBT_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    at_once: u32,
}

/// What is left of a rate.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// May be below zero: the last message was larger than what was left.
    left: f64,
    at: Duration,
}

impl Bucket {
    fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, left: rate.at_once.into(), at: now }
    }

    /// Takes out an amount; gives the time until there is something again.
    fn take(&mut self, now: Duration, amount: u32) -> Duration {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        let filled = self.left + passed * self.rate.per_second;
        let debt_max = self.rate.per_second * DEBT_MAX.as_secs_f64();
        self.left = (filled.min(self.rate.at_once.into()) - f64::from(amount)).max(-debt_max);
        self.at = now;
        Duration::from_secs_f64((-self.left).max(0.0) / self.rate.per_second)
    }

    fn is_whole(&mut self, now: Duration) -> bool {
        self.take(now, 0);
        self.left >= f64::from(self.rate.at_once)
    }
}

/// A network may have as much done anew as so many addresses.
const NETWORK_SHARES: u8 = 4;

/// What an address has in common with its neighbours, 48 bits (IPv6) or 24 (IPv4): who has one easily has these.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 80))),
        IpAddr::V4(four) => IpAddr::V4(Ipv4Addr::from_bits(four.to_bits() & (u32::MAX << 8))),
    }
}

/// How much of what nodes keep for long one address, or network, may still have them take in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota(Bucket);

impl Quota {
    /// Scripts that are indexed: of an address, and of its network.
    pub(crate) fn scripts(now: Duration) -> [Self; 2] {
        Self::both(now, NEW_SCRIPTS)
    }

    /// Accounts that are registered: of an address, and of its network.
    pub(crate) fn accounts(now: Duration) -> [Self; 2] {
        Self::both(now, NEW_ACCOUNTS)
    }

    fn both(now: Duration, rate: Rate) -> [Self; 2] {
        let network = Rate {
            per_second: rate.per_second * f64::from(NETWORK_SHARES),
            at_once: rate.at_once * u32::from(NETWORK_SHARES),
        };
        [rate, network].map(|rate| Self(Bucket::new(rate, now)))
    }

    /// Takes one of both; `false`, and none taken, if one of them has none.
    pub(crate) fn take_both(now: Duration, both: [&mut Self; 2]) -> bool {
        let mut both = both;
        let there = both.iter_mut().all(|one| {
            one.0.take(now, 0);
            one.0.left >= 1.0
        });
        both.into_iter().for_each(|one| {
            one.0.take(now, u32::from(there));
        });
        there
    }

    /// Whether they are all there.
    pub(crate) fn is_whole(&mut self, now: Duration) -> bool {
        self.0.is_whole(now)
    }
}

/// What one session may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    bytes: Bucket,
    work: Bucket,
}

impl Allowance {
    pub(crate) fn new(now: Duration) -> Self {
        Self { bytes: Bucket::new(BYTES, now), work: Bucket::new(WORK, now) }
    }

    /// What all sessions of an address may ask for together.
    fn of_address(now: Duration) -> Self {
        let times = |rate: Rate| Rate {
            per_second: rate.per_second * f64::from(ADDRESS_SHARES),
            at_once: rate.at_once * ADDRESS_SHARES,
        };
        Self { bytes: Bucket::new(times(BYTES), now), work: Bucket::new(times(WORK), now) }
    }

    /// Whether it is all there.
    fn is_whole(&mut self, now: Duration) -> bool {
        [&mut self.bytes, &mut self.work].into_iter().all(|bucket| bucket.is_whole(now))
    }

    /// So many bytes count as read; gives the time for which nothing more is.
    pub(crate) fn take_bytes(&mut self, now: Duration, bytes: usize) -> Duration {
        self.bytes.take(now, u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    /// A frame came; gives the time for which nothing more is read.
    pub(crate) fn take(&mut self, now: Duration, bytes: usize, message: Option<&ClientMessage>) -> Duration {
        self.take_bytes(now, bytes).max(self.work.take(now, message.map_or(WORK_SMALL, work)))
    }
}

/// What answers count for among what is read: who asks for much gets much written.
pub(crate) fn read_for(written: usize) -> usize {
    written / WRITTEN_PER_READ
}

/// The part of all sessions of one address; a clone is the same part.
#[derive(Clone, Debug)]
pub(crate) struct AddressAllowance {
    address: IpAddr,
    started: Instant,
    left: Arc<Mutex<Allowance>>,
}

impl AddressAllowance {
    pub(crate) fn new(address: IpAddr) -> Self {
        let left = Arc::new(Mutex::new(Allowance::of_address(Duration::ZERO)));
        Self { address, started: Instant::now(), left }
    }

    /// Whose it is.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether nothing of it is used up.
    pub(crate) fn is_whole(&self) -> bool {
        let mut left = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.is_whole(self.started.elapsed())
    }

    /// As [`Allowance::take_bytes`].
    pub(crate) fn take_bytes(&self, bytes: usize) -> Duration {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.take_bytes(self.started.elapsed(), bytes)
    }

    /// As [`Allowance::take`].
    pub(crate) fn take(&self, bytes: usize, message: Option<&ClientMessage>) -> Duration {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.take(self.started.elapsed(), bytes, message)
    }
}

fn work(message: &ClientMessage) -> u32 {
    match message {
        ClientMessage::UTXOSubscribe { keys, accounts, .. } => {
            let accounts = u32::try_from(accounts.len()).unwrap_or(u32::MAX);
            work_of_keys(keys).saturating_add(accounts.saturating_mul(WORK_ACCOUNT))
        }
        ClientMessage::UTXOUnsubscribe { keys } | ClientMessage::UTXOStateQuery { keys } => {
            work_of_keys(keys)
        }
        ClientMessage::TransactionBroadcast { proposal, .. }
        | ClientMessage::TransactionCancel { proposal, .. } => {
            let transaction = proposal.transaction();
            let inputs = u32::try_from(transaction.input.len()).unwrap_or(u32::MAX);
            let outputs = u32::try_from(transaction.output.len() / OUTPUTS_PER_WORK).unwrap_or(u32::MAX);
            WORK_PAYMENT.saturating_add(inputs.saturating_mul(WORK_INPUT)).saturating_add(outputs)
        }
        ClientMessage::AccountRegister { .. } => WORK_ACCOUNT,
        ClientMessage::ProofQuery { .. }
        | ClientMessage::FinalTransaction { .. }
        | ClientMessage::SignResponse { .. }
        | ClientMessage::HeadersQuery { .. } => WORK_PROOF,
        ClientMessage::Hello { .. }
        | ClientMessage::FederationQuery
        | ClientMessage::FeeRateQuery
        | ClientMessage::Ping => WORK_SMALL,
    }
}

fn work_of_keys(keys: &[SubscriptionKey]) -> u32 {
    let accounts = keys.iter().filter(|key| matches!(key, SubscriptionKey::Account(_))).count();
    let [keys, accounts] =
        [keys.len() / KEYS_PER_WORK, accounts].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    WORK_SMALL.saturating_add(keys).saturating_add(accounts.saturating_mul(WORK_FOLLOWED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Transaction;
    use quorate_protocol::{proposal::Proposal, testing};

    #[test]
    fn what_came_at_once_is_free_and_then_the_rate_holds() {
        let mut allowance = Allowance::new(Duration::ZERO);
        let ping = ClientMessage::Ping;
        for _ in 0..WORK.at_once {
            assert_eq!(allowance.take(Duration::ZERO, 10, Some(&ping)), Duration::ZERO);
        }
        assert_eq!(allowance.take(Duration::ZERO, 10, Some(&ping)), Duration::from_millis(5));
        let later = Duration::from_secs(1);
        for _ in 0..199 {
            assert_eq!(allowance.take(later, 10, Some(&ping)), Duration::ZERO);
        }
        assert_ne!(allowance.take(later, 10, Some(&ping)), Duration::ZERO);
    }

    #[test]
    fn bytes_and_expensive_questions_count_for_what_they_are() {
        let mut allowance = Allowance::new(Duration::ZERO);
        for _ in 0..8 {
            assert_eq!(allowance.take(Duration::ZERO, 1 << 20, None), Duration::ZERO);
        }
        assert_eq!(allowance.take(Duration::ZERO, 1 << 20, None), Duration::from_secs(1));
        let keys = vec![SubscriptionKey::Tip; 1_000];
        assert_eq!(work(&ClientMessage::subscribe(keys)), 63);
        let mut psbt = testing::federation(4).proposal().psbt;
        let of = |transaction: &Transaction| {
            let proposal = Proposal::Sole { transaction: transaction.clone() };
            work(&ClientMessage::TransactionBroadcast { proposal, account: None })
        };
        let small = of(&psbt.unsigned_tx);
        let input = psbt.unsigned_tx.input[0].clone();
        psbt.unsigned_tx.input.extend(vec![input; 63]);
        assert_eq!(of(&psbt.unsigned_tx), small + 63 * WORK_INPUT, "each script is run");
    }

    #[test]
    fn sessions_of_one_address_share_what_it_may_ask_for() {
        let at = IpAddr::from([10, 0, 0, 1]);
        let address = AddressAllowance::new(at);
        for _ in 0..ADDRESS_SHARES {
            assert_eq!(address.clone().take(8 << 20, None), Duration::ZERO, "each has what one may have");
        }
        let waits = (0..1 << 10).map(|_| address.clone().take(1 << 20, None));
        let longest = waits.max().unwrap_or_default();
        assert!(longest > DEBT_MAX / 2, "they are counted together: {longest:?}");
        assert!(longest <= DEBT_MAX, "{longest:?}");
        assert!(!address.is_whole() && AddressAllowance::new(at).is_whole());
    }

    #[test]
    fn waiting_is_never_long() {
        // The largest frame and the most expensive message right after all was used up.
        let mut allowance = Allowance::new(Duration::ZERO);
        (0..100).for_each(|_| {
            allowance.take(Duration::ZERO, 0, None);
        });
        let mut now = Duration::ZERO;
        for _ in 0..100 {
            let wait = allowance.take(now, 1 << 20, None);
            assert!(wait <= Duration::from_millis(1_001), "{wait:?}");
            now += wait;
        }
    }
}
