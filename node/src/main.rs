//! `quorate-node`.

fn main() -> std::process::ExitCode {
    quorate_node::cli::main()
}
