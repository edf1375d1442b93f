#!/usr/bin/env bash
# npm start: sets up what is missing, starts a federation with its bridge on the embedded chain, makes a payment, stays up.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
say "building (the first time takes some minutes)"
cargo build --release --locked -p quorate-node
exec "$CARGO_TARGET_DIR/release/quorate-node" devnet "$@"
