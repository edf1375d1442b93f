//! What a federation publishes of itself, and its verification from the pinned id on.

use super::{FederationError, Member, Quorum, Roster, check_members, verified::Verified, write_members};
use crate::{
    Epoch, FederationId, NodeId,
    checkpoint::Checkpoint,
    digest::{self, Context, IdentityKey, Purpose, Writer},
    frost::weights::weighted_shares,
    tagged,
    wire::limits::PROTOCOL_VERSION,
};
use bitcoin::{
    Network, XOnlyPublicKey,
    secp256k1::{PublicKey, schnorr},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The public result of a key generation or refresh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochKey {
    /// The epoch it serves.
    pub epoch: Epoch,
    /// The federation key `P_fed`.
    pub group_key: PublicKey,
    /// Each node's public share of it.
    pub verifying_shares: BTreeMap<NodeId, PublicKey>,
}

impl EpochKey {
    pub(crate) fn digest(&self, context: &Context) -> [u8; 32] {
        let mut writer = Writer::signed(Purpose::DkgSuccess, context).fixed(&self.group_key.serialize());
        for (node, share) in &self.verifying_shares {
            writer = writer.u16(node.0).fixed(&share.serialize());
        }
        writer.finish()
    }

    /// A member's signature that it holds its share of this key.
    pub(crate) fn sign(&self, context: &Context, key: &IdentityKey) -> schnorr::Signature {
        key.sign(self.digest(context))
    }

    /// The message that every node signs with its share before the key is used: bound to the group key and to all
    /// public shares.
    pub fn trial_message(&self, context: &Context) -> [u8; 32] {
        Writer::signed(Purpose::Trial, context).fixed(&self.digest(context)).finish()
    }
}

/// An epoch's key with the signatures that make it usable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCertificate {
    /// The key.
    pub key: EpochKey,
    /// The signature of every member of the epoch over the key.
    pub certificate: BTreeMap<NodeId, schnorr::Signature>,
    /// BIP340 signature under the group key itself, made with every share.
    pub trial_signature: schnorr::Signature,
}

impl KeyCertificate {
    /// Checks everything and gives each node's share as it is scaled for joint accounts.
    fn verify(
        &self,
        context: &Context,
        members: &[Member],
    ) -> Result<BTreeMap<NodeId, k256::ProjectivePoint>, FederationError> {
        let digest = self.key.digest(context);
        for member in members {
            let signed = self.certificate.get(&member.id);
            if !signed.is_some_and(|signature| digest::verify(&member.identity_key, digest, signature)) {
                return Err(FederationError::Certificate { node: member.id });
            }
            if !self.key.verifying_shares.contains_key(&member.id) {
                return Err(FederationError::Share { node: member.id });
            }
        }
        let group = self.key.group_key.x_only_public_key().0;
        if !digest::verify(&group, self.key.trial_message(context), &self.trial_signature) {
            return Err(FederationError::Trial);
        }
        weighted_shares(&self.key.verifying_shares).ok_or(FederationError::Trial)
    }
}

/// Who the members of the next epoch shall be. Operators agree on it; q nodes approve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccessionPlan {
    /// The epoch that shall follow.
    pub epoch: Epoch,
    /// Counts the plans for this epoch, from 1. A node leaves a plan only for one with a higher number.
    pub attempt: u32,
    /// Its members, in the order of their ids, 1 to n. As many as before.
    pub members: Vec<Member>,
}

impl SuccessionPlan {
    /// Checks that the plan can follow on the federation's present epoch.
    ///
    /// # Errors
    /// The maker of the plan is at fault.
    pub fn check(&self, federation: &Federation) -> Result<(), FederationError> {
        let wrong = |what| FederationError::Succession { epoch: self.epoch, what };
        if self.epoch != federation.epoch().next() || self.epoch.first_round().epoch() != self.epoch {
            return Err(wrong("it is not the next one"));
        }
        if check_members(&self.members)? != federation.quorum() {
            return Err(wrong("it has another number of members"));
        }
        // A node that stays keeps both keys; one that is replaced brings two new ones.
        for (before, after) in federation.members().iter().zip(&self.members) {
            if (before.identity_key == after.identity_key) != (before.tls_key == after.tls_key) {
                return Err(wrong("a node has one new key and one old one"));
            }
        }
        let stay = self.members.iter().zip(federation.members()).filter(|(after, before)| after == before);
        if stay.count() < usize::from(federation.quorum().votes()) {
            return Err(wrong(
                "fewer than a quorum of the members stay, and nobody could repair the others' shares",
            ));
        }
        Ok(())
    }

    /// The nodes that are new in it.
    pub fn newcomers<'a>(&'a self, federation: &'a Federation) -> impl Iterator<Item = NodeId> + 'a {
        let both = self.members.iter().zip(federation.members());
        both.filter(|(after, before)| after != before).map(|(after, _)| after.id)
    }

    /// The hash of the plan, bound to the federation's epoch before it.
    pub fn digest(&self, federation: &Federation) -> [u8; 32] {
        self.digest_in(federation.context())
    }

    fn digest_in(&self, before: &Context) -> [u8; 32] {
        let writer = Writer::signed(Purpose::Succession, before).u64(self.epoch.0).u32(self.attempt);
        write_members(writer, &self.members).finish()
    }

    /// A member's approval.
    pub fn approve(&self, federation: &Federation, key: &IdentityKey) -> schnorr::Signature {
        key.sign(self.digest(federation))
    }

    /// Whether `node`, a member of the present epoch, approved.
    pub fn verify_approval(
        &self,
        federation: &Federation,
        node: NodeId,
        signature: &schnorr::Signature,
    ) -> bool {
        federation.verify(node, self.digest(federation), signature)
    }
}

/// An epoch that followed on another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Succession {
    /// Its members.
    pub plan: SuccessionPlan,
    /// Approvals of at least q members of the epoch before.
    pub approvals: BTreeMap<NodeId, schnorr::Signature>,
    /// Its shares of the same federation key.
    #[serde(flatten)]
    pub key: KeyCertificate,
}

impl<'de> Deserialize<'de> for Succession {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Approved {
            plan: SuccessionPlan,
            approvals: BTreeMap<NodeId, schnorr::Signature>,
        }
        tagged::both(deserializer).map(|(Approved { plan, approvals }, key)| Self { plan, approvals, key })
    }
}

/// The federation as it publishes itself (`GET /federation` at a bridge). Not trusted before
/// [`FederationDocument::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationDocument {
    /// Members of the first epoch, and parameters.
    pub roster: Roster,
    /// The first epoch's key.
    pub key: KeyCertificate,
    /// The epochs after the first, in order.
    pub successions: Vec<Succession>,
}

impl<'de> Deserialize<'de> for FederationDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default = "first_protocol")]
            protocol: u32,
        }
        #[derive(Deserialize)]
        struct Epochs {
            roster: Roster,
            #[serde(default)]
            successions: Vec<Succession>,
        }
        // Whatever else differs in it, the version is what its reader has to hear of.
        let (Head { protocol }, whole): (Head, Box<RawValue>) = tagged::both(deserializer)?;
        if protocol != PROTOCOL_VERSION {
            let advice = if protocol < PROTOCOL_VERSION {
                "such a federation has to be made anew"
            } else {
                "use a later release"
            };
            let what = format!(
                "a federation document of protocol {protocol}, and this software speaks {PROTOCOL_VERSION}: {advice}"
            );
            return Err(serde::de::Error::custom(what));
        }
        let (Epochs { roster, successions }, key) =
            tagged::both(&*whole).map_err(serde::de::Error::custom)?;
        Ok(Self { roster, key, successions })
    }
}

/// Documents of the first protocol do not name it.
const fn first_protocol() -> u32 {
    1
}

impl Serialize for FederationDocument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Document<'a> {
            protocol: u32,
            roster: &'a Roster,
            #[serde(flatten)]
            key: &'a KeyCertificate,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            successions: &'a [Succession],
        }
        let Self { roster, key, successions } = self;
        Document { protocol: PROTOCOL_VERSION, roster, key, successions }.serialize(serializer)
    }
}

impl Succession {
    /// What seals of the epoch before are bound to: the plan and the key.
    pub fn digest(&self, before: &Federation) -> [u8; 32] {
        let context = before.context_of(self.plan.epoch);
        Writer::signed(Purpose::Succession, &context)
            .fixed(&self.plan.digest(before))
            .fixed(&self.key.key.digest(&context))
            .finish()
    }
}

impl FederationDocument {
    /// The last epoch in it.
    pub fn epoch(&self) -> Epoch {
        self.successions.last().map_or(Epoch::FIRST, |succession| succession.plan.epoch)
    }

    /// Checks everything against the pinned id and gives the federation to work with.
    ///
    /// # Errors
    /// The document is not that of the pinned federation, or not complete. The server is at fault; ask
    /// another bridge.
    pub fn verify(self, pinned: FederationId) -> Result<Federation, FederationError> {
        let quorum = self.roster.check()?;
        let id = self.roster.id();
        if id != pinned {
            return Err(FederationError::Pinned { expected: pinned, found: id });
        }
        let context = self.roster.context(Epoch::FIRST);
        if self.key.key.epoch != Epoch::FIRST {
            return Err(FederationError::Succession {
                epoch: self.key.key.epoch,
                what: "it is not the first",
            });
        }
        let members = self.roster.members.clone();
        let weighted_shares = self.key.verify(&context, &members)?;
        let first = Era { context, members, weighted_shares };
        let successions = self.successions.clone();
        let document = Self { successions: Vec::new(), ..self };
        let mut federation =
            Federation { quorum, eras: vec![first], document, verified: Verified::default() };
        for succession in successions {
            federation = federation.succeed(succession)?;
        }
        Ok(federation)
    }
}

/// One epoch of a federation.
#[derive(Clone, Debug)]
struct Era {
    context: Context,
    members: Vec<Member>,
    weighted_shares: BTreeMap<NodeId, k256::ProjectivePoint>,
}

/// A federation whose document has been verified. What it says of itself is of the last epoch that it knows, unless
/// it says otherwise.
#[derive(Clone, Debug)]
pub struct Federation {
    quorum: Quorum,
    /// All epochs, from the first to the last; never empty.
    eras: Vec<Era>,
    document: FederationDocument,
    verified: Verified,
}

impl Federation {
    fn era(&self) -> &Era {
        self.eras.last().expect("a federation has a first epoch")
    }

    fn era_of(&self, epoch: Epoch) -> Option<&Era> {
        self.eras.get(usize::try_from(epoch.0).ok()?.checked_sub(1)?)
    }

    /// The federation in the epoch after, which q of its present members have approved.
    ///
    /// # Errors
    /// The epoch does not follow. Its presenter is at fault.
    pub fn succeed(mut self, succession: Succession) -> Result<Self, FederationError> {
        let Succession { plan, approvals, key } = &succession;
        plan.check(&self)?;
        let wrong = |what| FederationError::Succession { epoch: plan.epoch, what };
        let approved = approvals.iter().filter(|(node, one)| plan.verify_approval(&self, **node, one));
        if approved.count() < usize::from(self.quorum.votes()) {
            return Err(wrong("too few members of the epoch before have approved it"));
        }
        if key.key.epoch != plan.epoch {
            return Err(wrong("its key is of another epoch"));
        }
        if key.key.group_key != *self.group_key() {
            return Err(wrong("it has another federation key"));
        }
        let context = Context { epoch: plan.epoch, ..*self.context() };
        let members = plan.members.clone();
        let weighted_shares = key.verify(&context, &members)?;
        self.eras.push(Era { context, members, weighted_shares });
        self.document.successions.push(succession);
        Ok(self)
    }

    /// The federation as it was in an earlier epoch, to check what was signed then; `None` if it has not come so far.
    pub fn at(&self, epoch: Epoch) -> Option<Self> {
        let length = usize::try_from(epoch.0).ok().filter(|length| (1..=self.eras.len()).contains(length))?;
        let mut past = self.clone();
        past.eras.truncate(length);
        past.document.successions.truncate(length - 1);
        Some(past)
    }

    /// Its id.
    pub fn id(&self) -> FederationId {
        self.context().federation
    }

    /// What signatures of this epoch are bound to.
    pub fn context(&self) -> &Context {
        &self.era().context
    }

    /// What signatures of owners are bound to, and the ids of accounts: the epoch in which the federation key was
    /// made. They stay valid while the key does.
    pub fn key_context(&self) -> Context {
        Context { epoch: Epoch::FIRST, ..*self.context() }
    }

    /// Its thresholds, the same in all epochs.
    pub fn quorum(&self) -> Quorum {
        self.quorum
    }

    /// The block that headers are read from on.
    pub fn birthday(&self) -> Checkpoint {
        self.document.roster.birthday
    }

    /// The Bitcoin network.
    pub fn network(&self) -> Network {
        self.document.roster.network
    }

    /// The epoch of the key in force.
    pub fn epoch(&self) -> Epoch {
        self.context().epoch
    }

    /// The federation key `P_fed`, the same in all epochs.
    pub fn group_key(&self) -> &PublicKey {
        &self.document.key.key.group_key
    }

    /// The shares of the federation key in force.
    pub fn key(&self) -> &EpochKey {
        let last = self.document.successions.last();
        last.map_or(&self.document.key.key, |succession| &succession.key.key)
    }

    /// Members of the first epoch, and parameters.
    pub fn roster(&self) -> &Roster {
        &self.document.roster
    }

    /// Members in the order of their ids, 1 to n.
    pub fn members(&self) -> &[Member] {
        &self.era().members
    }

    /// The document it was made from.
    pub fn document(&self) -> &FederationDocument {
        &self.document
    }

    /// The node's key for votes, or `None` if it is not a member.
    pub fn identity_key(&self, node: NodeId) -> Option<&XOnlyPublicKey> {
        identity_key(self.era(), node)
    }

    pub(crate) fn weighted_share(&self, node: NodeId) -> Option<&k256::ProjectivePoint> {
        self.era().weighted_shares.get(&node)
    }

    pub(crate) fn verify(&self, node: NodeId, digest: [u8; 32], signature: &schnorr::Signature) -> bool {
        self.verify_in(self.epoch(), node, digest, signature)
    }

    /// Checks a signature of a member of an epoch.
    pub(crate) fn verify_in(
        &self,
        epoch: Epoch,
        node: NodeId,
        digest: [u8; 32],
        signature: &schnorr::Signature,
    ) -> bool {
        let key = self.era_of(epoch).and_then(|era| identity_key(era, node));
        key.is_some_and(|key| self.verified.check(key, digest, signature))
    }

    /// What signatures of an epoch are bound to.
    pub(crate) fn context_of(&self, epoch: Epoch) -> Context {
        Context { epoch, ..*self.context() }
    }
}

fn identity_key(era: &Era, node: NodeId) -> Option<&XOnlyPublicKey> {
    let index = usize::from(node.0).checked_sub(1)?;
    era.members.get(index).map(|member| &member.identity_key)
}
