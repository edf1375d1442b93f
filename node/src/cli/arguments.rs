//! What `quorate-node` is told on its command line.

use crate::{config::ChainKind, secrets::KeySource};
use anyhow::Result;
use bitcoin::Network;
use clap::{Parser, Subcommand};
use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf};

#[derive(Parser)]
#[command(version, about = "A node of a Quorate federation")]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Run the node whose files are in a directory
    Run {
        /// Directory with node.toml, keys and certificates
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// Threads that speak to peers and bridges and run the rules, beside those for the disk and for costly checks.
        /// One thread takes the least of a machine for a payment: others would be woken for each message. More of them
        /// help a node that keeps one thread busy all the time
        #[arg(long, env = "QUORATE_NODE_THREADS", default_value_t = NonZeroUsize::MIN)]
        threads: NonZeroUsize,
        #[command(flatten)]
        risk: Risk,
    },
    /// Ask a running node how it is: whether it votes and why not, its peers, what it holds
    Status {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Proofs that a node cheated
    #[command(subcommand)]
    Evidence(EvidenceCommand),
    /// Make federations, and nodes that take the place of others
    #[command(subcommand)]
    Federation(FederationCommand),
    /// Prepare the next epoch: new shares for all nodes, new nodes in the place of lost ones
    #[command(subcommand)]
    Epoch(EpochCommand),
    /// This node's share of the federation key
    #[command(subcommand)]
    Share(ShareCommand),
    /// What this node has read of the chain
    #[command(subcommand)]
    Index(IndexCommand),
    /// The files of a node that is not running: how large they are, whether they are good
    #[command(subcommand)]
    Store(StoreCommand),
}

#[derive(Subcommand)]
pub(super) enum StoreCommand {
    /// Count what store, index and archive hold, by kind
    Stats {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Read every record: exit status 0 if all of them are as they were written
    Check {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Take what was settled below a block out of the archive. Wallets that were away for longer do not hear of it, and
    /// what a certificate of long ago holds may stay held at this node
    Prune {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// Height of the block
        #[arg(long)]
        below: u32,
    },
}

#[derive(Subcommand)]
pub(super) enum IndexCommand {
    /// Have the chain read again from the federation's birthday at the next start; accounts and scripts are kept
    Rebuild {
        /// Directory of the node, which is not running
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
}

#[derive(Subcommand)]
pub(super) enum EvidenceCommand {
    /// Write a running node's evidence to standard output, to be handed on
    Export {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Check a file of evidence, offline: exit status 0 if all of it convicts
    Verify {
        /// The file, as `export` writes it
        file: PathBuf,
        /// The federation that the file has to be about
        #[arg(long)]
        federation: Option<quorate_protocol::FederationId>,
    },
}

#[derive(Subcommand)]
pub(super) enum EpochCommand {
    /// Print a plan for the next epoch, for all operators to approve
    Plan {
        /// Directory of a node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// member.json of a node that takes the place of the one with its number; can be given several times
        #[arg(long)]
        replace: Vec<PathBuf>,
    },
    /// Approve a plan. A quorum of nodes has to; the running nodes then carry it out by themselves
    Approve {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// The plan
        plan: PathBuf,
        /// Only say what would happen, and who answers and has approved
        #[arg(long)]
        dry_run: bool,
    },
    /// Take back this node's part in a plan that can never be completed
    Withdraw {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// Only say what would happen
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum ShareCommand {
    /// Seal this node's secrets with a key that comes from elsewhere, so that who has its disk does not have them
    Lock {
        /// Directory of the node, which is not running
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        #[command(flatten)]
        key: KeyArguments,
    },
    /// Write this node's identity and share into one sealed file
    Backup {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// The new file
        #[arg(long)]
        to: PathBuf,
        #[command(flatten)]
        key: KeyArguments,
    },
    /// Make a node's directory of such a file; it votes again from the next epoch on
    Restore {
        /// The new directory
        directory: PathBuf,
        /// The file
        #[arg(long)]
        from: PathBuf,
        #[command(flatten)]
        key: KeyArguments,
    },
    /// Have a lost or damaged share computed anew by a quorum of the other nodes, none of which learns it
    Repair {
        /// Directory of the node, which is not running
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// Only say what would happen, and who answers
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum FederationCommand {
    /// Make the files of a node that is to take the place of another one, with new keys
    Replacement {
        /// The new node's directory
        directory: PathBuf,
        /// Number of the node that is replaced
        #[arg(long)]
        id: u16,
        /// UDP address that the new node listens on
        #[arg(long)]
        listen: SocketAddr,
        /// Directory of any node that is up to date
        #[arg(long)]
        like: PathBuf,
        /// The authority's key, which `federation new` left in ca.key
        #[arg(long)]
        authority: PathBuf,
    },
    /// Renew a certificate for two years: same role, same key. Running nodes and bridges read it by themselves
    Renew {
        /// The certificate, tls.pem of a node, bridge or client; the new one takes its place
        certificate: PathBuf,
        /// The authority's key, which `federation new` left in ca.key
        #[arg(long)]
        authority: PathBuf,
    },
    /// Make a new key and certificate for a bridge, or a client that speaks to nodes without one
    Issue {
        /// A directory that has none yet
        directory: PathBuf,
        /// What it is for
        #[arg(long, value_enum)]
        role: IssuedRole,
        /// The authority's key, which `federation new` left in ca.key
        #[arg(long)]
        authority: PathBuf,
    },
    /// Have a node take a bridge's or client's certificate no more, from now on; each operator tells their own node
    Revoke {
        /// Directory of the node, which may be running
        directory: PathBuf,
        /// The certificate
        #[arg(long)]
        certificate: PathBuf,
    },
    /// Make roster, authority, certificates, keys and configurations in a new directory
    New {
        /// The directory
        directory: PathBuf,
        /// Number of nodes
        #[arg(long, default_value_t = 7)]
        nodes: u16,
        /// Bitcoin network
        #[arg(long, default_value = "regtest")]
        network: Network,
        /// First UDP port of the nodes; free ports by default
        #[arg(long)]
        first_port: Option<u16>,
        /// What the chain backend speaks
        #[arg(long, value_enum, default_value = "bitcoind")]
        chain_kind: ChainKind,
        /// Address of the chain backend; an Esplora's with the path of its API
        #[arg(long, default_value = "http://127.0.0.1:18443")]
        chain_url: String,
        /// User of the chain backend
        #[arg(long, default_value = "")]
        chain_user: String,
        /// Password of the chain backend
        #[arg(long, default_value = "", env = "QUORATE_CHAIN_PASSWORD", hide_env_values = true)]
        chain_password: String,
        /// Cookie file of the chain backend, in place of user and password
        #[arg(long, conflicts_with_all = ["chain_user", "chain_password"])]
        chain_cookie: Option<PathBuf>,
        #[command(flatten)]
        risk: Risk,
    },
}

/// Who can be given a new key at any time.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum IssuedRole {
    /// `quorate-bridge`
    Bridge,
    /// A program with the SDK's QUIC transport
    Client,
}

/// Where a key comes from.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct KeyArguments {
    /// A file with 64 hex digits, which is made if it is not there; keep it where the node's disk is not
    #[arg(long)]
    key_file: Option<PathBuf>,
    /// A credential of systemd: LoadCredentialEncrypted= in the node's unit
    #[arg(long)]
    credential: Option<String>,
    /// A passphrase, typed at each start or in QUORATE_SEAL_PASSPHRASE
    #[arg(long)]
    passphrase: bool,
    /// A program with its arguments that prints 64 hex digits, such as one that asks a KMS
    #[arg(long, num_args = 1.., allow_hyphen_values = true)]
    command: Option<Vec<String>>,
}

impl KeyArguments {
    pub(super) fn source(self) -> Result<KeySource> {
        let Self { key_file, credential, passphrase: _, command } = self;
        let file = key_file.map(|path| std::path::absolute(path).map(KeySource::File)).transpose()?;
        let named = file.or(credential.map(KeySource::Credential)).or(command.map(KeySource::Command));
        named.map_or_else(KeySource::new_passphrase, Ok)
    }
}

/// What somebody has to say who wants to lose money to software below version 1.0.
#[derive(clap::Args)]
pub(super) struct Risk {
    /// Bitcoin's main network: needed there as long as this is below version 1.0
    #[arg(long)]
    i_know_this_is_real_money: bool,
}

impl Risk {
    pub(super) fn allow(&self, network: Network) -> Result<()> {
        match network {
            Network::Regtest | Network::Signet | Network::Testnet4 => Ok(()),
            Network::Bitcoin if self.i_know_this_is_real_money => Ok(()),
            Network::Bitcoin => anyhow::bail!(
                "this is version {}, and the main network is real money: try signet first, or say --i-know-this-is-real-money",
                env!("CARGO_PKG_VERSION")
            ),
            other => anyhow::bail!("{other} is not served: use regtest, signet, testnet4 or bitcoin"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_money_has_to_be_named_and_forgotten_networks_are_not_served() {
        let allowed = |network: &str, more: &[&str]| {
            let words = ["quorate-node", "federation", "new", "here", "--network", network];
            let parsed = Arguments::try_parse_from(words.iter().chain(more)).expect("arguments");
            let Command::Federation(FederationCommand::New { network, risk, .. }) = parsed.command else {
                panic!("another command")
            };
            risk.allow(network).map_err(|error| error.to_string())
        };
        for network in ["regtest", "signet", "testnet4"] {
            assert_eq!(allowed(network, &[]), Ok(()), "{network}");
        }
        let refused = allowed("bitcoin", &[]).expect_err("real money");
        assert!(refused.contains("say --i-know-this-is-real-money"), "{refused}");
        assert_eq!(allowed("bitcoin", &["--i-know-this-is-real-money"]), Ok(()));
        assert!(allowed("testnet", &[]).expect_err("gone").contains("not served"));
        let run = Arguments::try_parse_from(["quorate-node", "run", "here", "--i-know-this-is-real-money"]);
        assert!(run.is_ok(), "a node is started with it, too");
    }

    #[test]
    fn a_key_comes_from_one_place() {
        let lock = |more: &[&str]| {
            let words = ["quorate-node", "share", "lock", "here"];
            let Command::Share(ShareCommand::Lock { key, .. }) =
                Arguments::try_parse_from(words.iter().chain(more)).ok()?.command
            else {
                panic!("another command")
            };
            key.source().ok()
        };
        assert_eq!(lock(&[]), None);
        assert_eq!(lock(&["--passphrase", "--credential", "x"]), None);
        assert_eq!(lock(&["--credential", "x"]), Some(KeySource::Credential("x".to_owned())));
        let words = ["kms", "decrypt", "--key", "7"].map(str::to_owned).to_vec();
        assert_eq!(lock(&["--command", "kms", "decrypt", "--key", "7"]), Some(KeySource::Command(words)));
        assert!(matches!(lock(&["--passphrase"]), Some(KeySource::Passphrase(_))));
    }
}
