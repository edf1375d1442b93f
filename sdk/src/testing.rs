//! A federation in memory for unit tests: real keys, real key generation, no network.

use crate::{
    AccountId, Epoch, Federation, FederationDocument, NodeId, NonceCommitment, SignatureShare,
    account::{AccountCertificate, AccountPolicy, AccountRecord, JointAccount, Keychain, KeychainIndex},
    digest::{IdentityKey, secp},
    federation::{Member, Roster},
    frost::{
        NodeCommitments, NodeNonces, NodeShare, Session, WalletSecret, aggregate_trial, dkg::Dkg, wallet_sign,
    },
    proposal::{SpendInput, SpendPlan},
};
use bitcoin::{
    Network, NetworkKind, Txid,
    bip32::{Xpriv, Xpub},
    hashes::Hash as _,
    key::Keypair,
    secp256k1::{SecretKey, schnorr},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::collections::BTreeMap;

pub(crate) fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

pub(crate) struct World {
    pub(crate) federation: Federation,
    pub(crate) keys: Vec<IdentityKey>,
    pub(crate) shares: Vec<NodeShare>,
    pub(crate) account: JointAccount,
    pub(crate) wallet: SecretKey,
    pub(crate) authorisation: IdentityKey,
}

pub(crate) fn roster(keys: &[IdentityKey]) -> Roster {
    let members = keys.iter().zip(1..);
    Roster {
        network: Network::Regtest,
        salt: [9; 32],
        members: members.map(|(key, id)| Member { id: NodeId(id), identity_key: key.public() }).collect(),
        recovery_delay: 4320,
        recovery_margin: 288,
    }
}

pub(crate) fn federation(nodes: u8) -> World {
    let keys: Vec<_> = (1..=nodes).map(|i| IdentityKey::from_bytes(&[i; 32]).expect("valid")).collect();
    let roster = roster(&keys);
    let mut machines: Vec<Dkg> = keys
        .iter()
        .zip(1..)
        .map(|(key, seed)| Dkg::new(roster.clone(), Epoch(1), key.clone(), rng(seed)).expect("a member"))
        .collect();
    while machines.iter().any(|machine| machine.outcome().is_none()) {
        for to in 0..machines.len() {
            for from in (0..machines.len()).filter(|from| *from != to) {
                let (peer, bundle) = (machines[from].me(), machines[from].bundle_for(machines[to].me()));
                machines[to].handle_bundle(peer, bundle).expect("honest");
            }
            machines[to].confirm_stored();
        }
    }
    let (key, certificate) = machines[0].outcome().expect("finished");
    let shares: Vec<NodeShare> = machines
        .iter()
        .map(|machine| {
            let (_, share) = machine.result().expect("finished");
            NodeShare::from_bytes(machine.me(), &share.to_bytes()).expect("a share")
        })
        .collect();
    let message = key.trial_message(&roster);
    let quorum = roster.check().expect("well formed").votes();
    let (nonces, commitments): (Vec<_>, BTreeMap<_, _>) = shares
        .iter()
        .zip(1..)
        .map(|(share, node)| {
            let (nonces, commitment) = share.commit(&mut rng(100)).expect("commits");
            (nonces, (NodeId(node), commitment))
        })
        .unzip();
    let signed: BTreeMap<NodeId, SignatureShare> = shares
        .iter()
        .zip(nonces)
        .zip(1..)
        .map(|((share, nonces), node)| {
            let signed = share.sign_trial(&key.group_key, quorum, &message, &commitments, nonces);
            (NodeId(node), signed.expect("signs"))
        })
        .collect();
    let trial = aggregate_trial(&key, quorum, &message, &commitments, &signed).expect("aggregates");
    let document = FederationDocument { roster: roster.clone(), key, certificate, trial_signature: trial };
    let federation = document.verify(roster.id()).expect("verifies");
    with_account(federation, keys, shares)
}

fn with_account(federation: Federation, keys: Vec<IdentityKey>, shares: Vec<NodeShare>) -> World {
    let wallet = SecretKey::from_slice(&[0x42; 32]).expect("valid");
    let authorisation = IdentityKey::from_bytes(&[0x43; 32]).expect("valid");
    let recovery = Xpriv::new_master(NetworkKind::Test, &[0x44; 32]).expect("valid");
    let record = AccountRecord::new(
        &federation,
        &Keypair::from_secret_key(secp(), &wallet),
        authorisation.public(),
        Xpub::from_priv(secp(), &recovery),
        AccountPolicy::default(),
    );
    let acceptances = keys.iter().zip(1..).map(|(key, node)| (NodeId(node), record.accept(&federation, key)));
    let certificate = AccountCertificate { record: record.clone(), acceptances: acceptances.collect() };
    let account = certificate.verify(&federation).expect("verifies");
    World { federation, keys, shares, account, wallet, authorisation }
}

impl World {
    /// A plan with random sighashes over real addresses.
    pub(crate) fn plan(&self, inputs: u32) -> SpendPlan {
        let input = |index| {
            let position = KeychainIndex { keychain: Keychain::Receive, index };
            let address = self.account.address(position).expect("derives");
            SpendInput {
                key: address.key,
                tweak: address.tweak,
                merkle_root: address.merkle_root.to_byte_array(),
                sighash: [u8::try_from(index).expect("small") + 1; 32],
                output_key: address.output_key,
            }
        };
        let AccountId(_) = self.account.id();
        SpendPlan {
            txid: Txid::from_byte_array([5; 32]),
            account: self.account.id(),
            inputs: (0..inputs).map(input).collect(),
        }
    }

    pub(crate) fn commitments(
        &self,
        plan: &SpendPlan,
        chosen: impl Fn(NodeId) -> bool,
    ) -> (BTreeMap<NodeId, Vec<NodeNonces>>, BTreeMap<NodeId, NodeCommitments>) {
        let nodes = (1..).map(NodeId).zip(&self.shares).zip(&self.keys);
        nodes
            .filter(|((node, _), _)| chosen(*node))
            .map(|((node, share), key)| {
                let made = plan.inputs.iter().zip(0..).map(|(_, seed)| {
                    share.commit(&mut rng(1000 * u64::from(node.0) + seed)).expect("commits")
                });
                let (nonces, public): (Vec<NodeNonces>, Vec<NonceCommitment>) = made.unzip();
                let signed = NodeCommitments::sign(&self.federation, node, key, plan, public);
                ((node, nonces), (node, signed))
            })
            .unzip()
    }

    #[expect(clippy::type_complexity, reason = "a test helper's plain answer")]
    pub(crate) fn shares(
        &self,
        plan: &SpendPlan,
        chosen: impl Fn(NodeId) -> bool,
    ) -> Result<(Session, BTreeMap<NodeId, Vec<SignatureShare>>, Vec<SignatureShare>), String> {
        let (nonces, commitments) = self.commitments(plan, chosen);
        let secret = WalletSecret::new(&self.wallet);
        let wallet =
            wallet_sign(&self.federation, plan, 1, &commitments, &secret, &self.authorisation, &mut rng(3))
                .map_err(|error| error.to_string())?;
        let session = Session::new(&self.federation, plan, 1, &commitments, &wallet.commitments)
            .map_err(|error| error.to_string())?;
        assert!(session.verify_wallet(&self.federation, self.account.record(), &wallet));
        let shares = nonces
            .into_iter()
            .map(|(node, nonces)| {
                let share = &self.shares[usize::from(node.0) - 1];
                (node, share.sign(&self.federation, &session, nonces).expect("signs"))
            })
            .collect();
        Ok((session, shares, wallet.shares))
    }

    pub(crate) fn sign(
        &self,
        plan: &SpendPlan,
        chosen: impl Fn(NodeId) -> bool,
    ) -> Result<Vec<schnorr::Signature>, String> {
        let (session, shares, wallet) = self.shares(plan, chosen)?;
        session
            .aggregate(&self.federation, self.account.record(), &shares, &wallet)
            .map_err(|error| error.to_string())
    }
}
