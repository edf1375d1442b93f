# Shared by the scripts: says what it does, installs what a fresh Debian or Ubuntu lacks, and tells what to do elsewhere.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
# What is built once needs no notes for the next time.
[ "${CI:-}" = true ] && export CARGO_INCREMENTAL=0
# One cargo for everything; a toolchain that rustup put beside is found even in a fresh shell.
[ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"

say() { printf '[%4ds] %s\n' "$SECONDS" "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

APT_UPDATED=0
# need_packages PACKAGE… : installs the Debian packages that are missing.
need_packages() {
  command -v dpkg >/dev/null || fail "this system is no Debian or Ubuntu: please install the counterparts of: $*"
  local missing=() package sudo=()
  for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
  [ ${#missing[@]} = 0 ] && return 0
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  say "installing ${missing[*]}"
  if [ $APT_UPDATED = 0 ]; then
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get -o DPkg::Lock::Timeout=600 -qq update >/dev/null
    APT_UPDATED=1
  fi
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get -o DPkg::Lock::Timeout=600 -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# need COMMAND PACKAGE… : installs the packages unless the command is there.
need() {
  local command=$1; shift
  command -v "$command" >/dev/null || need_packages "$@"
}

# A C and C++ compiler (libsecp256k1, Bitcoin Core's script interpreter) and Rust as Cargo.toml asks for it.
setup_native() {
  need cc build-essential
  need c++ build-essential
  local wanted have
  wanted=$(awk -F'"' '/^rust-version/{print $2; exit}' Cargo.toml)
  if ! command -v cargo >/dev/null; then
    if command -v rustup >/dev/null; then
      rustup toolchain install stable --profile minimal --component clippy,rustfmt
    else
      need_packages rustc cargo
    fi
  fi
  have=$(cargo --version | awk '{print $2}')
  if [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
    fail "cargo $have is older than $wanted: install Rust with rustup (https://rustup.rs), then run this again"
  fi
}

# Node with npm, and the packages of the lock file.
setup_node() {
  need node nodejs
  need npm npm
  local major
  major=$(node -p 'process.versions.node.split(".")[0]')
  [ "$major" -ge 20 ] || fail "node $(node --version) is too old: install Node 20.19 or later (https://nodejs.org), then run this again"
  if ! cmp -s package-lock.json node_modules/.quorate-lock; then
    say "npm packages"
    npm ci --no-audit --no-fund --silent
    cp package-lock.json node_modules/.quorate-lock
  fi
}

# Chromium for the browser tests; another one may be named in CHROMIUM.
need_browser() {
  [ -n "${CHROMIUM:-}" ] || [ -x /usr/bin/chromium ] || need_packages chromium
  [ -n "${CHROMEDRIVER:-}" ] || [ -x /usr/bin/chromedriver ] || need_packages chromium-driver
}
