//! Exponential backoff with full jitter, without end.

use rand_core::RngCore;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    attempt: u32,
}

impl Backoff {
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, attempt: 0 }
    }

    /// A wait between half and all of the step's ceiling, so that clients that lost the same server spread out and
    /// never spin.
    pub(super) fn next(&mut self, rng: &mut (impl RngCore + ?Sized)) -> Duration {
        let factor = 1_u32.checked_shl(self.attempt.min(16)).unwrap_or(u32::MAX);
        let ceiling = self.least.saturating_mul(factor).min(self.most);
        self.attempt = self.attempt.saturating_add(1);
        let half = ceiling / 2;
        half + half.mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX))
    }

    pub(super) fn reset(&mut self) {
        self.attempt = 0;
    }
}
