//! `quorate-node federation new`: roster, authority, certificates, keys and configurations.
//!
//! Roles are DNS names in certificates: `node-N.quorate`, `bridge.quorate`, `client.quorate`. The authority's key signs all of them and is
//! left in `ca.key` for the operator to take off the machine.

use crate::config::{ChainConfig, NodeAddress, NodeConfig};
use anyhow::{Context as _, Result};
use bitcoin::Network;
use quorate::{
    FederationId, NodeId,
    digest::IdentityKey,
    federation::{Member, Roster},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde::Serialize;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Default delay of the recovery path: 30 days of blocks.
pub const RECOVERY_DELAY: u16 = 4_320;
/// Default margin of the horizon rule: two days of blocks.
pub const RECOVERY_MARGIN: u16 = 288;

/// What to make.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes.
    pub nodes: u16,
    /// Bitcoin network.
    pub network: Network,
    /// First UDP port; free ports are chosen if absent.
    pub first_port: Option<u16>,
    /// The nodes' chain backend.
    pub chain: ChainConfig,
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

/// Makes a federation's files in a new directory.
///
/// # Errors
/// The directory exists already and is not empty, or cannot be written.
pub fn federation(directory: &Path, plan: &Plan) -> Result<Provisioned> {
    quorate::Quorum::new(plan.nodes.into())?;
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        anyhow::bail!("{} is not empty: choose a new directory", directory.display());
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let authority = authority()?;
    write_secret(&directory.join("ca.key"), &authority.key().serialize_pem())?;
    let addresses = addresses(plan)?;
    let keys: Vec<_> = addresses.iter().map(|_| secret()).collect::<Result<_>>()?;
    let members = addresses
        .iter()
        .zip(&keys)
        .map(|(node, key)| Ok(Member { id: node.id, identity_key: IdentityKey::from_bytes(key)?.public() }));
    let roster = Roster {
        network: plan.network,
        salt: *secret()?,
        members: members.collect::<Result<_>>()?,
        recovery_delay: RECOVERY_DELAY,
        recovery_margin: RECOVERY_MARGIN,
    };
    let roster_json = serde_json::to_string_pretty(&roster)?;
    fs::write(directory.join("roster.json"), &roster_json)?;
    let mut nodes = Vec::new();
    for (node, key) in addresses.iter().zip(&keys) {
        let home = directory.join(format!("node-{}", node.id));
        certificate(&home, &authority, &format!("node-{}.quorate", node.id))?;
        fs::write(home.join("roster.json"), &roster_json)?;
        for (name, bytes) in [("identity.key", key), ("dkg.seed", &secret()?), ("seal.key", &secret()?)] {
            write_secret(&home.join(name), &Zeroizing::new(hex::encode(bytes.as_slice())))?;
        }
        let config = NodeConfig {
            id: node.id,
            listen: node.address,
            api: None,
            peers: addresses.iter().filter(|peer| peer.id != node.id).cloned().collect(),
            chain: plan.chain.clone(),
            min_confirmations: 1,
            voting_timeout_s: 30,
            signing_timeout_ms: 2_000,
        };
        fs::write(home.join("node.toml"), toml::to_string(&config)?)?;
        nodes.push(home);
    }
    let bridge = directory.join("bridge");
    certificate(&bridge, &authority, "bridge.quorate")?;
    let file = BridgeFile { listen: "127.0.0.1:0".to_owned(), federation: roster.id(), nodes: &addresses };
    fs::write(bridge.join("bridge.toml"), toml::to_string(&file)?)?;
    let client = directory.join("client");
    certificate(&client, &authority, "client.quorate")?;
    Ok(Provisioned { id: roster.id(), nodes, bridge, client, addresses })
}

fn addresses(plan: &Plan) -> Result<Vec<NodeAddress>> {
    // The sockets are held until all ports are chosen, so that none is chosen twice.
    let mut held = Vec::new();
    (1..=plan.nodes)
        .map(|id| {
            let port = match plan.first_port {
                Some(first) => first.checked_add(id - 1).context("the ports do not fit below 65536")?,
                None => {
                    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                    let port = socket.local_addr()?.port();
                    held.push(socket);
                    port
                }
            };
            Ok(NodeAddress { id: NodeId(id), address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) })
        })
        .collect()
}

fn secret() -> Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::getrandom(bytes.as_mut()).context("no source of randomness")?;
    Ok(bytes)
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "Quorate federation authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// Makes one more certificate of the authority; for tests and for further bridges and clients.
///
/// # Errors
/// The directory cannot be written.
fn certificate(home: &Path, authority: &CertifiedIssuer<'static, KeyPair>, name: &str) -> Result<()> {
    fs::create_dir_all(home).with_context(|| format!("cannot create {}", home.display()))?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    fs::write(home.join("ca.pem"), authority.pem())?;
    fs::write(home.join("tls.pem"), certificate.pem())?;
    write_secret(&home.join("tls.key"), &Zeroizing::new(key.serialize_pem()))
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
