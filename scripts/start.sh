#!/usr/bin/env bash
# npm start: sets up what is missing, starts a federation with its bridge on the embedded chain, makes a payment, serves the browser wallet, stays up.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
say "building the devnet (the first time takes some minutes)"
cargo build --release --locked -p quorate-devnet
say "building the browser wallet"
bash scripts/build-npm.sh
npm run --silent build -w quorate-browser-wallet >&2
web=()
# The same address each time, so that a browser finds its wallet again; another one if it is taken.
if [[ " $* " != *" --web "* ]] && ! (exec 3<>/dev/tcp/127.0.0.1/8480) 2>/dev/null; then web=(--web 127.0.0.1:8480); fi
exec "$CARGO_TARGET_DIR/release/quorate-devnet" --pages examples/browser/dist "${web[@]}" "$@"
