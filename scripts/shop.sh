#!/usr/bin/env bash
# npm run shop: sets up what is missing, starts a devnet, a wallet of a shop's owner, an invoice server that watches its account, and the shop; stays up.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
setup_native
say "building the devnet (the first time takes some minutes)"
cargo build --release --locked -p quorate-devnet
say "building the package and the browser wallet"
bash scripts/build-npm.sh
npm run --silent build -w quorate-browser-wallet >&2
export QUORATE_DEVNET=$CARGO_TARGET_DIR/release/quorate-devnet SHOP_DIRECTORY="${SHOP_DIRECTORY:-$CARGO_TARGET_DIR/shop}"
exec node examples/shop/main.mjs --pages examples/browser/dist "$@"
