//! `quorate-node` with crash points, for the tests that kill it.

fn main() -> std::process::ExitCode {
    quorate_node::cli::main()
}
