//! `quorate-devnet`.

fn main() -> std::process::ExitCode {
    quorate_devnet::cli::main()
}
