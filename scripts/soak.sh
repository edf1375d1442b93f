#!/usr/bin/env bash
# npm run soak [-- --seconds N --seed N]: an hour of payments with everything going wrong at once, on Bitcoin Core.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
cargo build --release --locked -p quorate-tests --bin soak --bin test-node --bin test-bridge
exec "$CARGO_TARGET_DIR/release/soak" "$@"
