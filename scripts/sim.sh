#!/usr/bin/env bash
# npm run sim [-- --seeds N | --replay SEED | --bugs N]: simulates the whole federation under faults.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
cargo build --locked -q -p quorate-simulation --bin sim
exec "$CARGO_TARGET_DIR/debug/sim" "$@"
