//! Numbered places at which a test build can be made to die, as by `kill -9`.
//!
//! Without the feature `crash-points` this is nothing. With it, the process sends itself SIGKILL the n-th time that
//! it comes to the place that `QUORATE_CRASH_AT` names, as `place` or `place:n`. No destructor runs, nothing is
//! flushed.

#[cfg(not(feature = "crash-points"))]
pub(crate) fn point(_place: &str) {}

#[cfg(feature = "crash-points")]
pub(crate) fn point(place: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };
    static TARGET: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let text = std::env::var("QUORATE_CRASH_AT").ok()?;
        let (place, count) = text.split_once(':').unwrap_or((&text, "1"));
        Some((place.to_owned(), AtomicU32::new(count.parse().ok()?)))
    });
    if let Some((target, left)) = &*TARGET
        && target == place
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        let _killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}
