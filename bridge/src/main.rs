//! `quorate-bridge`: runs a bridge until SIGTERM or Ctrl-C.

/// The allocator of the system's library keeps what a flood or a large snapshot took.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    quorate_bridge::cli::main()
}
