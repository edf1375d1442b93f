//! `quorate-node`.

fn main() -> anyhow::Result<()> {
    quorate_node::cli::main()
}
