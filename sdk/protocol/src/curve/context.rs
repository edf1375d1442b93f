//! libsecp256k1's context.

use bitcoin::secp256k1::{All, Secp256k1};
use std::sync::LazyLock;

/// The process-wide libsecp256k1 context, blinded with fresh randomness where the platform has some.
pub fn secp() -> &'static Secp256k1<All> {
    static CONTEXT: LazyLock<Secp256k1<All>> = LazyLock::new(|| {
        let mut context = Secp256k1::new();
        let mut seed = [0; 32];
        if getrandom::getrandom(&mut seed).is_ok() {
            context.seeded_randomize(&seed);
        }
        context
    });
    &CONTEXT
}
