//! `quorate-devnet` as the tests of the npm package start it, from the build that the native tests made.

/// The allocator of the system's library keeps what a flood or a large snapshot took.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    quorate_devnet::cli::main()
}
