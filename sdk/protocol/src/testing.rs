//! A federation in memory for tests: real keys, real key generation, no network.

#![expect(clippy::indexing_slicing, reason = "a test helper panics on what cannot happen")]

use crate::{
    AccountId, Federation, FederationDocument, NodeId, NonceCommitment, Round, SignatureShare,
    account::{AccountCertificate, AccountPolicy, AccountRecord, JointAccount, Keychain, KeychainIndex},
    checkpoint::Checkpoint,
    curve::secp,
    digest::IdentityKey,
    evidence::SigningRecord,
    federation::{KeyCertificate, Member, Roster, Succession, SuccessionPlan},
    finality::FinalityProof,
    frost::{
        NodeCommitments, NodeNonces, NodeShare, SigningSession, WalletSecret, aggregate_trial,
        dkg::{Ceremony, Dkg},
        wallet_sign,
    },
    proposal::{JointProposal, Proposal, SpendInput, SpendPlan, describe_input},
    vote::{ApprovalCertificate, Custody, SignedVote, Verdict, VoteTarget},
    wire::UtxoRecord,
};
use bitcoin::{
    Amount, Network, NetworkKind, OutPoint, Psbt, ScriptBuf, Sequence, TapLeafHash, TapSighashType,
    Transaction, TxIn, TxOut, Txid,
    bip32::{Xpriv, Xpub},
    hashes::Hash as _,
    secp256k1::{Message, SecretKey, schnorr},
    sighash::{Prevouts, SighashCache},
    taproot::LeafVersion,
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::collections::BTreeMap;

/// What a node says of a coin that it knows nothing of but its output.
pub fn utxo_record(outpoint: OutPoint, value: Amount, script_pubkey: ScriptBuf) -> UtxoRecord {
    UtxoRecord {
        outpoint,
        value,
        script_pubkey,
        tip_height: 1,
        created: None,
        conflicted: None,
        final_parent: None,
        round: Round(0),
        lock: None,
        votes: 0,
        spend: None,
        spent: None,
    }
}

pub fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

#[derive(Debug)]
pub struct World {
    pub federation: Federation,
    pub keys: Vec<IdentityKey>,
    pub shares: Vec<NodeShare>,
    pub account: JointAccount,
    pub wallet: SecretKey,
    pub authorisation: IdentityKey,
}

pub fn roster(keys: &[IdentityKey]) -> Roster {
    let members = keys.iter().zip(1..);
    Roster {
        network: Network::Regtest,
        salt: [9; 32],
        birthday: Checkpoint::genesis(Network::Regtest),
        members: members.map(|(key, id)| member(id, key)).collect(),
        recovery_delay: 4320,
        recovery_margin: 288,
    }
}

pub fn member(id: u16, key: &IdentityKey) -> Member {
    Member { id: NodeId(id), identity_key: key.public(), tls_key: key.public().serialize() }
}

pub fn federation(nodes: u8) -> World {
    let keys: Vec<_> = (1..=nodes).map(|i| IdentityKey::from_bytes(&[i; 32]).expect("valid")).collect();
    let roster = roster(&keys);
    let ceremony = Ceremony::generation(&roster).expect("well formed");
    let (key, shares) = run_ceremony(&ceremony, &keys, None);
    let document = FederationDocument { roster: roster.clone(), key, successions: Vec::new() };
    let federation = document.verify(roster.id()).expect("verifies");
    let delay = federation.roster().recovery_delay;
    with_account(federation, keys, shares, delay)
}

/// Copies of shares, which are not `Clone` on purpose.
pub fn copy_shares(shares: &[NodeShare]) -> Vec<NodeShare> {
    let copy = |share: &NodeShare| NodeShare::from_bytes(share.node(), &share.to_bytes()).expect("a share");
    shares.iter().map(copy).collect()
}

/// Carries out a key generation or refresh among honest nodes.
pub fn run_ceremony(
    ceremony: &Ceremony,
    keys: &[IdentityKey],
    before: Option<&[NodeShare]>,
) -> (KeyCertificate, Vec<NodeShare>) {
    let mut old: Vec<Option<NodeShare>> = match before {
        Some(shares) => copy_shares(shares).into_iter().map(Some).collect(),
        None => keys.iter().map(|_| None).collect(),
    };
    let mut machines: Vec<Dkg> = keys
        .iter()
        .zip(&mut old)
        .zip(1..)
        .map(|((key, share), seed)| {
            let seed = rng(seed + 1_000 * ceremony.context().epoch.0);
            Dkg::new(ceremony.clone(), key.clone(), share.take(), seed).expect("a member")
        })
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
    let message = key.trial_message(ceremony.context());
    let quorum = ceremony.quorum();
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
    let trial_signature = aggregate_trial(&key, quorum, &message, &commitments, &signed).expect("aggregates");
    (KeyCertificate { key, certificate, trial_signature }, shares)
}

/// The deadline of the payments that are made here.
pub const DEADLINE: u32 = 1_000;

/// The custody of targets that are about no real transaction.
pub fn custody() -> Custody {
    Custody::joint(DEADLINE, [])
}

/// The epoch after, in which some nodes are replaced. Everybody approves.
pub fn succession(world: &World, replaced: &[NodeId]) -> World {
    let epoch = world.federation.epoch().next();
    let fresh = |id: u16| {
        let mut bytes = [0x80 + u8::try_from(epoch.0).expect("small"); 32];
        bytes[0] = u8::try_from(id).expect("small");
        IdentityKey::from_bytes(&bytes).expect("valid")
    };
    let keys: Vec<IdentityKey> = (1..)
        .zip(&world.keys)
        .map(|(id, key)| if replaced.contains(&NodeId(id)) { fresh(id) } else { key.clone() })
        .collect();
    let members = (1..).zip(&keys).map(|(id, key)| member(id, key)).collect();
    let plan = SuccessionPlan { epoch, attempt: 1, members };
    let approvals = (1..)
        .map(NodeId)
        .zip(&world.keys)
        .map(|(node, key)| (node, plan.approve(&world.federation, key)))
        .collect();
    let ceremony = Ceremony::refresh(&world.federation, &plan).expect("follows");
    let (key, shares) = run_ceremony(&ceremony, &keys, Some(&world.shares));
    let federation = world.federation.clone().succeed(Succession { plan, approvals, key }).expect("verifies");
    let delay = federation.roster().recovery_delay;
    with_account(federation, keys, shares, delay)
}

fn recovery() -> Xpriv {
    Xpriv::new_master(NetworkKind::Test, &[0x44; 32]).expect("valid")
}

fn with_account(federation: Federation, keys: Vec<IdentityKey>, shares: Vec<NodeShare>, delay: u16) -> World {
    let wallet = SecretKey::from_slice(&[0x42; 32]).expect("valid");
    let authorisation = IdentityKey::from_bytes(&[0x43; 32]).expect("valid");
    let record = AccountRecord::new(
        &federation,
        &wallet,
        authorisation.public(),
        Xpub::from_priv(secp(), &recovery()),
        delay,
        AccountPolicy::default(),
    );
    let acceptances = keys.iter().zip(1..).map(|(key, node)| (NodeId(node), record.accept(&federation, key)));
    let epoch = federation.epoch();
    let certificate =
        AccountCertificate { record: record.clone(), epoch, acceptances: acceptances.collect() };
    let account = certificate.verify(&federation).expect("verifies");
    World { federation, keys, shares, account, wallet, authorisation }
}

impl World {
    /// The same nodes, with an account of another recovery delay.
    pub fn with_delay(&self, delay: u16) -> Self {
        with_account(self.federation.clone(), self.keys.clone(), copy_shares(&self.shares), delay)
    }

    /// Spends a coin at [`World::script`] by the account's recovery leaf, to one output.
    pub fn recover(&self, coin: OutPoint, spent: &TxOut, to: TxOut) -> Transaction {
        let position = KeychainIndex { keychain: Keychain::Receive, index: 0 };
        let address = self.account.address(position).expect("derives");
        let sequence = Sequence::from_height(self.account.record().recovery_delay);
        let mut transaction = Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::ZERO,
            input: vec![TxIn { previous_output: coin, sequence, ..TxIn::default() }],
            output: vec![to],
        };
        let leaf = TapLeafHash::from_script(&address.leaf, LeafVersion::TapScript);
        let sighash = SighashCache::new(&transaction)
            .taproot_script_spend_signature_hash(0, &Prevouts::All(&[spent]), leaf, TapSighashType::Default)
            .expect("one input");
        let child = recovery().derive_priv(secp(), &position.path()).expect("derives");
        let message = Message::from_digest(sighash.to_byte_array());
        let signature = secp().sign_schnorr_no_aux_rand(&message, &child.to_keypair(secp()));
        let control = address.control_block().serialize();
        let parts = [signature.serialize().to_vec(), address.leaf.to_bytes(), control];
        transaction.input[0].witness = bitcoin::Witness::from_slice(&parts);
        transaction
    }

    /// A payment of one coin of the account to itself.
    pub fn proposal(&self) -> JointProposal {
        self.proposal_to(self.script(), Amount::from_sat(90_000))
    }

    /// The script of the coin that [`World::proposal`] spends.
    pub fn script(&self) -> ScriptBuf {
        let position = KeychainIndex { keychain: Keychain::Receive, index: 0 };
        self.account.address(position).expect("derives").script_pubkey
    }

    /// A payment of the same coin, of 90,500 sat, to any script.
    pub fn proposal_to(&self, script_pubkey: ScriptBuf, value: Amount) -> JointProposal {
        let coin = OutPoint { txid: Txid::all_zeros(), vout: 1 };
        let payment = TxOut { value, script_pubkey };
        self.authorise(self.psbt(coin, Amount::from_sat(90_500), payment), DEADLINE)
    }

    /// A transaction of one coin at [`World::script`] to one output.
    pub fn psbt(&self, coin: OutPoint, value: Amount, payment: TxOut) -> Psbt {
        let position = KeychainIndex { keychain: Keychain::Receive, index: 0 };
        let address = self.account.address(position).expect("derives");
        let transaction = Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::ZERO,
            input: vec![TxIn { previous_output: coin, ..TxIn::default() }],
            output: vec![payment],
        };
        let mut psbt = Psbt::from_unsigned_tx(transaction).expect("unsigned");
        psbt.inputs[0].witness_utxo = Some(TxOut { value, script_pubkey: address.script_pubkey.clone() });
        describe_input(&self.account, &address, &mut psbt.inputs[0]);
        psbt
    }

    /// The account's word for a transaction until a block height.
    pub fn authorise(&self, psbt: Psbt, deadline: u32) -> JointProposal {
        JointProposal::authorise(&self.federation, self.account.id(), &self.authorisation, psbt, deadline)
    }

    /// [`World::proposal`], finished.
    pub fn final_payment(&self) -> FinalityProof {
        self.finish(&self.proposal())
    }

    /// A payment, finished by the first q nodes.
    pub fn finish(&self, proposal: &JointProposal) -> FinalityProof {
        let checked = proposal.check(&self.federation, &self.account).expect("valid");
        let quorum = self.federation.quorum().votes();
        let signatures = self.sign(&checked.plan, |node| node.0 <= quorum).expect("a quorum");
        let mut transaction = checked.transaction;
        for (input, signature) in transaction.input.iter_mut().zip(signatures) {
            input.witness = bitcoin::Witness::from_slice(&[signature.serialize()]);
        }
        let certificate = Box::new(self.approve(&self.target_of(proposal)));
        FinalityProof::Enforced { transaction, spent: checked.spent, certificate }
    }

    /// [`World::proposal`] in the epoch's first round.
    pub fn payment_target(&self) -> VoteTarget {
        self.target_of(&self.proposal())
    }

    /// A payment in the epoch's first round.
    pub fn target_of(&self, proposal: &JointProposal) -> VoteTarget {
        let proposal = Proposal::Joint(Box::new(proposal.clone()));
        let round = self.federation.epoch().first_round();
        let inputs = proposal.outpoints().into_iter().map(|outpoint| (outpoint, round));
        VoteTarget::new(proposal.txid(), proposal.custody(), inputs)
    }

    /// The certificate of a target, by the first q nodes.
    pub fn approve(&self, target: &VoteTarget) -> ApprovalCertificate {
        let approvals = (1..).map(NodeId).zip(&self.keys).take(usize::from(self.federation.quorum().votes()));
        let approvals = approvals.map(|(node, key)| {
            let context = self.federation.context();
            (node, SignedVote::sign(context, node, key, target.clone(), Verdict::Approve).signature)
        });
        ApprovalCertificate { target: target.clone(), approvals: approvals.collect() }
    }

    /// The account as all nodes certify it.
    pub fn certificate(&self) -> AccountCertificate {
        let record = self.account.record().clone();
        let acceptances = (1..).map(NodeId).zip(&self.keys);
        let acceptances =
            acceptances.map(|(node, key)| (node, record.accept(&self.federation, key))).collect();
        AccountCertificate { record, epoch: self.federation.epoch(), acceptances }
    }

    /// A node's part in a session that signs [`World::proposal`].
    pub fn signing_record(&self, node: NodeId) -> (SigningRecord, bool) {
        let proposal = self.proposal();
        let plan = proposal.check(&self.federation, &self.account).expect("valid").plan;
        let target = self.payment_target();
        let (mut nonces, mut nodes) = (BTreeMap::new(), BTreeMap::new());
        for id in (1..=self.federation.quorum().votes()).map(NodeId) {
            let index = usize::from(id.0) - 1;
            let (secret, public) = self.shares[index].commit(&mut rng(u64::from(id.0))).expect("commits");
            nonces.insert(id, secret);
            let signed =
                NodeCommitments::sign(&self.federation, id, &self.keys[index], &target, vec![public]);
            nodes.insert(id, signed);
        }
        let secret = WalletSecret::new(&self.wallet);
        let (federation, key) = (&self.federation, &self.authorisation);
        let wallet =
            wallet_sign(federation, &plan, &target, 1, &nodes, &secret, key, &mut rng(9)).expect("signs");
        let session =
            SigningSession::new(federation, &plan, &target, 1, &nodes, &wallet.commitments).expect("builds");
        let index = usize::from(node.0) - 1;
        let nonces = nonces.remove(&node).expect("a signer");
        let shares = self.shares[index].sign(&session, vec![nonces]).expect("signs");
        let signature = session.sign_shares(federation, &self.keys[index], &shares);
        let good = session.share_is_valid(federation, self.account.record(), node, &shares);
        let account = self.certificate();
        let wallet = wallet.commitments;
        (SigningRecord { proposal, account, target, attempt: 1, nodes, wallet, shares, signature }, good)
    }

    /// A plan with random sighashes over real addresses.
    pub fn plan(&self, inputs: u32) -> SpendPlan {
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

    /// The plan's transaction with as many inputs, all in the epoch's first round.
    pub fn target(&self, plan: &SpendPlan) -> VoteTarget {
        let inputs = plan.inputs.iter().zip(0..);
        let round = self.federation.epoch().first_round();
        VoteTarget::new(
            plan.txid,
            custody(),
            inputs.map(|(_, vout)| (OutPoint { txid: plan.txid, vout }, round)),
        )
    }

    pub fn commitments(
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
                let signed = NodeCommitments::sign(&self.federation, node, key, &self.target(plan), public);
                ((node, nonces), (node, signed))
            })
            .unzip()
    }

    #[expect(clippy::type_complexity, reason = "a test helper's plain answer")]
    pub fn shares(
        &self,
        plan: &SpendPlan,
        chosen: impl Fn(NodeId) -> bool,
    ) -> Result<(SigningSession, BTreeMap<NodeId, Vec<SignatureShare>>, Vec<SignatureShare>), String> {
        let (nonces, commitments) = self.commitments(plan, chosen);
        let secret = WalletSecret::new(&self.wallet);
        let wallet = wallet_sign(
            &self.federation,
            plan,
            &self.target(plan),
            1,
            &commitments,
            &secret,
            &self.authorisation,
            &mut rng(3),
        )
        .map_err(|error| error.to_string())?;
        let session = SigningSession::new(
            &self.federation,
            plan,
            &self.target(plan),
            1,
            &commitments,
            &wallet.commitments,
        )
        .map_err(|error| error.to_string())?;
        assert!(session.verify_wallet(&self.federation, self.account.record(), &wallet));
        let shares = nonces
            .into_iter()
            .map(|(node, nonces)| {
                let share = &self.shares[usize::from(node.0) - 1];
                (node, share.sign(&session, nonces).expect("signs"))
            })
            .collect();
        Ok((session, shares, wallet.shares))
    }

    pub fn sign(
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
