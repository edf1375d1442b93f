//! `quorate-devnet` as the tests of the npm package start it, from the build that the native tests made.

fn main() -> std::process::ExitCode {
    quorate_devnet::cli::main()
}
