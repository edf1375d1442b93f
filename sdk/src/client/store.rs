//! Where a client keeps its state.

use super::{MaybeSend, PlatformFuture};
use crate::wallet::StateChange;

/// What saving gives.
pub type Saving = PlatformFuture<Result<(), StoreError>>;

/// A place for the state of one wallet. Only one client may use it at a time.
///
/// ```
/// use quorate::{client::{Saving, Store}, wallet::{SavedState, StateChange, apply_change}};
/// use std::sync::{Arc, Mutex};
///
/// /// Keeps the state in memory: for tests, and for wallets that are restored from their words each time.
/// #[derive(Clone, Default)]
/// struct Memory(Arc<Mutex<SavedState>>);
///
/// impl Store for Memory {
///     fn save(&mut self, change: StateChange) -> Saving {
///         apply_change(&mut self.0.lock().expect("not poisoned"), change);
///         Box::pin(async { Ok(()) })
///     }
/// }
/// ```
pub trait Store: MaybeSend + 'static {
    /// Makes a change durable: when this is done, either all of it survives a crash, or an error was given. After an
    /// error the client stops.
    fn save(&mut self, change: StateChange) -> Saving;
}

/// A state that could not be saved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the wallet's state cannot be saved: {0}")]
pub struct StoreError(pub String);
