//! Whether the wallet's tip is of today. A payment is final without a confirmation only while the payee's tip is below
//! its deadline (rule V10). A bridge that withholds headers could have a wallet judge by a height of long ago, so what
//! a deadline decides waits while the tip is old.

use super::{Event, Session};
use bitcoin::Network;
use std::time::Duration;

/// Age from which a tip counts as stale: no chain but regtest is without a block for so long. Deadlines end two days
/// before a payer could take anything back (`recovery_margin`), so that a clock that is some hours wrong does no harm.
pub const TIP_AGE_MAX: Duration = Duration::from_secs(12 * 60 * 60);

/// The age for a network, if its blocks come by themselves.
pub(super) fn age_max(network: Network) -> Option<Duration> {
    (network != Network::Regtest).then_some(TIP_AGE_MAX)
}

impl Session {
    /// Says what time it is, in seconds since 1970 (UTC); the client does it by itself. Without it no tip counts as
    /// stale.
    ///
    /// ```
    /// # fn example(session: &mut quorate::session::Session) {
    /// let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    /// session.set_wall_time(now.as_secs());
    /// # }
    /// ```
    pub fn set_wall_time(&mut self, unix: u64) {
        self.wall = Some(unix);
    }

    /// Whether the wallet's tip is older than [`TIP_AGE_MAX`], by the time that it was told. Payments from others that
    /// are final by a deadline are not taken for final then; regtest, where blocks come when somebody wants them, is
    /// never stale.
    ///
    /// ```
    /// # fn example(session: &quorate::session::Session) {
    /// if session.tip_is_stale() {
    ///     println!("this server tells of no new blocks, or the clock is wrong");
    /// }
    /// # }
    /// ```
    pub fn tip_is_stale(&self) -> bool {
        let Some((wall, age)) = self.wall.zip(self.tip_age_max) else { return false };
        self.tip_time().saturating_add(age.as_secs()) < wall
    }

    fn tip_time(&self) -> u64 {
        let chain = self.wallet.chain();
        chain.header(chain.tip().height).map_or(0, |header| header.time.into())
    }

    /// Tells once of each tip that is stale, when nothing more is to be expected of the server.
    pub(super) fn look_after_tip(&mut self) {
        let tip = self.wallet.chain().tip();
        if self.tip_is_stale() && self.told_stale != Some(tip) && self.is_synced() {
            self.event(Event::TipStale { tip, time: self.tip_time() });
            self.told_stale = Some(tip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        session::tests::{drain, live},
        wallet::tests::{extend, paid},
        wire::ChainTip,
    };
    use bitcoin::Amount;

    fn tells(session: &mut Session) -> usize {
        let (_, others) = drain(session);
        let stale = |output: &&super::super::Output| {
            matches!(output, super::super::Output::Event(Event::TipStale { .. }))
        };
        others.iter().filter(stale).count()
    }

    #[test]
    fn an_old_tip_decides_nothing_until_a_block_comes() {
        let mut session = live();
        session.tip_age_max = age_max(Network::Bitcoin);
        extend(&mut session.wallet, |_| {});
        let proof = paid(&mut session.wallet);
        let tip = ChainTip { block: session.wallet.chain().tip() };
        session.take_tip(tip);
        session.pending.clear();
        assert!(!session.tip_is_stale(), "without a clock no tip is");
        let time = session.tip_time();
        session.set_wall_time(time + TIP_AGE_MAX.as_secs());
        assert!(!session.tip_is_stale());
        session.set_wall_time(time + TIP_AGE_MAX.as_secs() + 1);
        assert!(session.tip_is_stale());
        session.take_proof(&proof);
        assert_eq!(session.wallet.balance().spendable, Amount::ZERO);
        session.look_after_tip();
        session.look_after_tip();
        assert_eq!(tells(&mut session), 1, "told once");
        // A block of today: what waited is judged by it.
        extend(&mut session.wallet, |header| header.time += 13 * 60 * 60);
        assert!(!session.tip_is_stale());
        session.take_extension(crate::headers::Extension::Extended);
        assert_eq!(session.wallet.balance().spendable, Amount::from_sat(90_000));
        session.look_after_tip();
        assert_eq!(tells(&mut session), 0);
    }

    #[test]
    fn blocks_of_regtest_come_when_they_come() {
        let mut session = live();
        session.set_wall_time(u64::MAX);
        assert!(!session.tip_is_stale());
        let proof = paid(&mut session.wallet);
        session.take_proof(&proof);
        assert_eq!(session.wallet.balance().spendable, Amount::from_sat(90_000));
    }
}
