//! What the driver needs of the platform: time and tasks. tokio natively, the event loop on the web.

#[cfg(not(target_arch = "wasm32"))]
mod platform {
    use futures_util::future::BoxFuture;
    pub(in crate::client) use std::time::SystemTime;
    pub(in crate::client) use tokio::time::{Instant, sleep_until};

    /// A future that the driver may be given.
    pub type PlatformFuture<T> = BoxFuture<'static, T>;

    /// What may be moved to the driver's task.
    pub trait MaybeSend: Send {}
    impl<T: Send> MaybeSend for T {}

    pub(in crate::client) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

#[cfg(target_arch = "wasm32")]
mod platform {
    use futures_util::future::LocalBoxFuture;
    pub(in crate::client) use web_time::{Instant, SystemTime};

    /// A future that the driver may be given.
    pub type PlatformFuture<T> = LocalBoxFuture<'static, T>;

    /// What may be moved to the driver's task.
    pub trait MaybeSend {}
    impl<T> MaybeSend for T {}

    pub(in crate::client) fn spawn(task: impl Future<Output = ()> + 'static) {
        wasm_bindgen_futures::spawn_local(task);
    }

    pub(in crate::client) async fn sleep_until(at: Instant) {
        let left = at.saturating_duration_since(Instant::now()).as_nanos().div_ceil(1_000_000);
        // `setTimeout` takes 31 bits; the driver looks again when it wakes early.
        let left = u32::try_from(left).unwrap_or(u32::MAX).min(i32::MAX.unsigned_abs());
        gloo_timers::future::TimeoutFuture::new(left).await;
    }
}

/// The time of day, in seconds since 1970.
pub(super) fn wall_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

use platform::SystemTime;
pub(super) use platform::{Instant, sleep_until, spawn};
pub use platform::{MaybeSend, PlatformFuture};
