//! The Quorate node: voting, finality, co-signing, chain following and storage.

pub mod chain;
pub mod cli;
pub mod config;
mod crash;
mod epoch;
mod files;
mod net;
mod operator;
pub mod provision;
pub mod run;
#[doc(hidden)]
pub mod store;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. A thread that panicked with it held left nothing half done: every change under these locks is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
