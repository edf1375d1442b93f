//! `quorate-node federation new`: roster, authority, certificates, keys and configurations.
//!
//! Roles are DNS names in certificates: `node-N.quorate`, `bridge.quorate`, `client.quorate`. The authority's key
//! signs all of them and is left in `ca.key` for the operator to take off the machine.

use crate::{
    certificates::{Authority, Subject},
    chain::{self, Chain},
    config::{ChainConfig, NodeAddress, NodeConfig},
    disk::write_secret,
    files::NodeFiles,
};
use anyhow::{Context as _, Result, bail};
use bitcoin::Network;
use quorate_protocol::{
    FederationId, NodeId,
    digest::IdentityKey,
    federation::{Member, Roster},
    headers::Checkpoint,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Default delay of the recovery path: 90 days of blocks. Each coin has to be moved once in that time to stay payable,
/// so a shorter one costs fees, and a longer one makes leaving slow.
pub const RECOVERY_DELAY: u16 = 12_960;
/// Default margin of the horizon rule: two days of blocks.
pub const RECOVERY_MARGIN: u16 = 288;

/// What to make.
#[derive(Clone, Debug)]
pub struct NewFederation {
    /// Nodes.
    pub nodes: u16,
    /// Bitcoin network.
    pub network: Network,
    /// The block that headers are read from on; [`birthday`] finds one.
    pub birthday: Checkpoint,
    /// First UDP port; free ports are chosen if absent.
    pub first_port: Option<u16>,
    /// The nodes' chain backends.
    pub chain: Vec<ChainConfig>,
}

/// Where things are.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// The roster's hash, to pin.
    pub id: FederationId,
    /// One directory per node, in order.
    pub nodes: Vec<PathBuf>,
    /// The bridge's directory.
    pub bridge: PathBuf,
    /// An identity for native clients.
    pub client: PathBuf,
    /// Where the nodes listen.
    pub addresses: Vec<NodeAddress>,
}

#[derive(Serialize)]
struct BridgeFile<'a> {
    listen: String,
    federation: FederationId,
    nodes: &'a [NodeAddress],
}

/// The birthday of a new federation, from a backend that is at the tip.
///
/// # Errors
/// The backend cannot be reached, is of another network, is not at the tip, or lacks the blocks that nodes will read.
pub async fn birthday(backend: &dyn Chain, network: Network) -> Result<Checkpoint> {
    // First of all whether it is of this network.
    let found = chain::birthday(backend, network).await;
    let found = found.context("the federation's birthday is a block of its chain backend")?;
    if let Some(doubt) = chain::doubt_of(backend, network).await? {
        bail!("the chain backend is not at the tip: {doubt}; make the federation when it is");
    }
    if let Some(next) = backend.hash_at(found.height + 1).await? {
        let missing = || {
            format!(
                "the chain backend has not got block {}, the first that nodes will read: a pruned Bitcoin Core has to keep two weeks of blocks (-prune=10000), or use one that is not pruned",
                found.height + 1
            )
        };
        backend.block(next).await.with_context(missing)?;
    }
    Ok(found)
}

/// Makes a federation's files in a new directory.
///
/// # Errors
/// The directory exists already and is not empty, or cannot be written.
pub fn federation(directory: &Path, plan: &NewFederation) -> Result<Provisioned> {
    quorate_protocol::Quorum::new(plan.nodes.into())?;
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        anyhow::bail!("{} is not empty: choose a new directory", directory.display());
    }
    anyhow::ensure!(
        plan.birthday.is_sound(plan.network),
        "the birthday at height {} is not the first block of a difficulty period of {}",
        plan.birthday.height,
        plan.network
    );
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let authority = Authority::generate()?;
    authority.write_key(&directory.join("ca.key"))?;
    let addresses = addresses(plan)?;
    let home = |id: NodeId| directory.join(format!("node-{id}"));
    let members = addresses.iter().map(|node| new_member(&home(node.id), node.id, &authority));
    let roster = Roster {
        network: plan.network,
        salt: *secret()?,
        birthday: plan.birthday,
        members: members.collect::<Result<_>>()?,
        recovery_delay: RECOVERY_DELAY,
        recovery_margin: RECOVERY_MARGIN,
    };
    let roster_json = serde_json::to_string_pretty(&roster)?;
    fs::write(directory.join("roster.json"), &roster_json)?;
    let mut nodes = Vec::new();
    for node in &addresses {
        let home = home(node.id);
        fs::write(home.join("roster.json"), &roster_json)?;
        let config = NodeConfig {
            id: node.id,
            listen: node.address,
            api: None,
            peers: addresses.iter().filter(|peer| peer.id != node.id).cloned().collect(),
            chain: plan.chain.clone(),
            min_confirmations: None,
            voting_timeout_s: 30,
            signing_timeout_ms: 2_000,
        };
        // It may hold a password.
        write_secret(&home.join("node.toml"), &toml::to_string(&config)?)?;
        nodes.push(home);
    }
    let bridge = directory.join("bridge");
    authority.issue(&bridge, Subject::Bridge)?;
    let file = BridgeFile { listen: "127.0.0.1:0".to_owned(), federation: roster.id(), nodes: &addresses };
    fs::write(bridge.join("bridge.toml"), toml::to_string(&file)?)?;
    let client = directory.join("client");
    authority.issue(&client, Subject::Client)?;
    Ok(Provisioned { id: roster.id(), nodes, bridge, client, addresses })
}

fn addresses(plan: &NewFederation) -> Result<Vec<NodeAddress>> {
    // Held until all ports are chosen, so that none is chosen twice.
    let mut held = Vec::new();
    (1..=plan.nodes)
        .map(|id| {
            let port = match plan.first_port {
                Some(first) => first.checked_add(id - 1).context("the ports do not fit below 65536")?,
                None => {
                    let (port, sockets) = free_port()?;
                    held.push(sockets);
                    port
                }
            };
            Ok(NodeAddress { id: NodeId(id), address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) })
        })
        .collect()
}

/// A port that is free for QUIC and for the API, below those that systems give to outgoing connections: one of them
/// could have it before the node starts.
fn free_port() -> Result<(u16, (UdpSocket, TcpListener))> {
    for _ in 0..100 {
        let mut random = [0; 2];
        getrandom::getrandom(&mut random).context("no source of randomness")?;
        let port = 10_000 + u16::from_le_bytes(random) % 20_000;
        let at = (Ipv4Addr::LOCALHOST, port);
        if let (Ok(udp), Ok(tcp)) = (UdpSocket::bind(at), TcpListener::bind(at)) {
            return Ok((port, (udp, tcp)));
        }
    }
    bail!("found no free port from 10000 to 29999; name the first one")
}

fn secret() -> Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::getrandom(bytes.as_mut()).context("no source of randomness")?;
    Ok(bytes)
}

/// Makes the keys of a node in its directory.
fn new_member(home: &Path, id: NodeId, authority: &Authority) -> Result<Member> {
    let tls_key = authority.issue(home, Subject::Node(id))?;
    let key = secret()?;
    for (name, bytes) in [("identity.key", &key), ("seal.key", &secret()?)] {
        write_secret(&home.join(name), &Zeroizing::new(hex::encode(bytes.as_slice())))?;
    }
    Ok(Member { id, identity_key: IdentityKey::from_bytes(&key)?.public(), tls_key })
}

/// What takes the place of a node.
#[derive(Clone, Debug)]
pub struct Replacement<'a> {
    /// Whose place.
    pub id: NodeId,
    /// Where the new node listens.
    pub listen: SocketAddr,
    /// The directory of any node that is up to date: roster, federation document, addresses and chain backend are
    /// taken from it.
    pub like: &'a Path,
    /// The authority's key, as `federation new` left it in `ca.key`.
    pub authority: &'a Path,
}

/// Makes the files of a node that is to take another one's place, with new keys, in a new directory. Gives what a
/// plan has to name it by.
///
/// # Errors
/// The directory exists and is not empty, or what the files are made from cannot be read.
pub fn replacement(directory: &Path, made: &Replacement<'_>) -> Result<MemberFile> {
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        anyhow::bail!("{} is not empty: choose a new directory", directory.display());
    }
    let like = NodeFiles::new(made.like);
    let federation = like.federation()?.context("that node has no federation document yet")?;
    anyhow::ensure!(federation.identity_key(made.id).is_some(), "the federation has no node {}", made.id);
    let config = NodeConfig::read(&made.like.join("node.toml"))?;
    let mut addresses = like.addresses(&config, federation.document())?;
    addresses.insert(config.id, config.listen);
    addresses.remove(&made.id);
    let authority = Authority::read(made.authority)?;
    let shown = fs::read_to_string(made.like.join("ca.pem"))?;
    let member = new_member(directory, made.id, &authority)?;
    // The certificate of the authority is the one that all others trust, not the one made anew from its key.
    fs::write(directory.join("ca.pem"), shown)?;
    if like.revoked().exists() {
        fs::copy(like.revoked(), directory.join("revoked.txt"))?;
    }
    fs::copy(made.like.join("roster.json"), directory.join("roster.json"))?;
    fs::copy(made.like.join("federation.json"), directory.join("federation.json"))?;
    let peers = addresses.into_iter().map(|(id, address)| NodeAddress { id, address }).collect();
    let config = NodeConfig { id: made.id, listen: made.listen, api: None, peers, ..config };
    // It may hold a password.
    write_secret(&directory.join("node.toml"), &toml::to_string(&config)?)?;
    let file = MemberFile { member, address: made.listen };
    fs::write(directory.join("member.json"), serde_json::to_string_pretty(&file)?)?;
    Ok(file)
}

/// `member.json`: what a plan has to name a new node by. Public.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFile {
    /// Number and keys.
    pub member: Member,
    /// Where it listens.
    pub address: SocketAddr,
}
