//! Accepting an account as one node, and collecting q acceptances for a wallet.

use crate::{Party, SessionId, Tag, context::Context};
use bitcoin::secp256k1::schnorr;
use quorate_protocol::{
    NodeId,
    account::{AccountCertificate, AccountRecord, JointAccount},
    wire::{ErrorCode, Fault, ServerMessage, VotingReply, VotingRequest, WireError},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Accounts being certified at a time for sessions with one certificate.
const REGISTRATIONS_MAX: usize = 4_096;

/// Accounts that this node has certified for wallets.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    open: BTreeMap<u64, Registration>,
    /// Those of each certificate.
    by_certificate: HashMap<u64, BTreeSet<u64>>,
    last: u64,
}

/// An account being certified.
#[derive(Debug)]
struct Registration {
    session: SessionId,
    id: Option<u64>,
    record: AccountRecord,
    acceptances: BTreeMap<NodeId, schnorr::Signature>,
    failures: usize,
}

impl Registrations {
    /// A wallet wants its account certified.
    pub(crate) fn register(
        &mut self,
        cx: &mut Context,
        session: SessionId,
        id: Option<u64>,
        record: AccountRecord,
    ) -> Result<(), WireError> {
        cx.accept_account(Party::Certificate(session.certificate), &record)?;
        let known = cx.accounts.certificate(&record.id(&cx.federation)).cloned();
        if let Some(certificate) = known {
            cx.send_client(session, id, ServerMessage::AccountCertified { certificate });
            return Ok(());
        }
        let mine = self.by_certificate.entry(session.certificate).or_default();
        if mine.len() >= REGISTRATIONS_MAX
            && let Some(oldest) = mine.pop_first()
        {
            // It has waited for answers longest, and its wallet asks again.
            self.open.remove(&oldest);
        }
        self.last += 1;
        let registration = self.last;
        mine.insert(registration);
        let request = VotingRequest::AccountRequest { record: record.clone() };
        let started = Registration { session, id, record, acceptances: BTreeMap::new(), failures: 0 };
        self.open.insert(registration, started);
        cx.ask(cx.everyone(), Tag::Account { registration }, &request);
        Ok(())
    }

    /// A node accepts an account, refuses it, or does not answer.
    pub(crate) fn handle_acceptance(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        registration: u64,
        reply: Option<VotingReply>,
    ) {
        let quorum = cx.federation.quorum();
        let Some(open) = self.open.get_mut(&registration) else { return };
        match reply {
            Some(VotingReply::AccountResponse { signature })
                if open.record.verify_acceptance(&cx.federation, from, &signature) =>
            {
                open.acceptances.insert(from, signature);
            }
            _bad_or_none => open.failures += 1,
        }
        if open.acceptances.len() >= usize::from(quorum.votes()) {
            let Some(open) = self.remove(registration) else { return };
            let epoch = cx.federation.epoch();
            let certificate =
                AccountCertificate { record: open.record, epoch, acceptances: open.acceptances };
            if cx.verified_account(&certificate).is_ok() {
                cx.send_client(open.session, open.id, ServerMessage::AccountCertified { certificate });
            }
        } else if open.failures >= usize::from(quorum.blocking()) {
            let Some(open) = self.remove(registration) else { return };
            let message = "too few nodes are reachable to certify an account; try again";
            let error = WireError::passing(ErrorCode::NoNodeAvailable, Fault::Network, message);
            cx.send_client(open.session, open.id, ServerMessage::Error { error });
        }
    }

    fn remove(&mut self, registration: u64) -> Option<Registration> {
        let ended = self.open.remove(&registration)?;
        let certificate = ended.session.certificate;
        if let Some(mine) = self.by_certificate.get_mut(&certificate) {
            mine.remove(&registration);
            if mine.is_empty() {
                self.by_certificate.remove(&certificate);
            }
        }
        Some(ended)
    }
}

impl Context {
    /// Accepts an account as one node, if its record is good, and if whoever wants it has not had too many accepted.
    pub(crate) fn accept_account(
        &mut self,
        party: Party,
        record: &AccountRecord,
    ) -> Result<VotingReply, WireError> {
        let invalid = |error| WireError::sender(ErrorCode::InvalidAccount, error);
        record.check(&self.federation).map_err(invalid)?;
        self.admit_account(party, &record.id(&self.federation))?;
        let account = JointAccount::new(&self.federation, record.clone()).map_err(invalid)?;
        self.index_account(&account);
        Ok(VotingReply::AccountResponse { signature: record.accept(&self.federation, &self.key) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Kit, WALLET};
    use quorate_protocol::wire::{ClientMessage, limits};

    #[test]
    fn a_certificate_s_oldest_registration_goes_for_its_next() {
        let mut kit = Kit::voting();
        let record = kit.world.certificate().record;
        let registrations = &mut kit.machine.registrations;
        let other = SessionId { certificate: 1, number: 1 };
        for session in std::iter::once(other).chain(std::iter::repeat_n(WALLET, REGISTRATIONS_MAX)) {
            registrations.last += 1;
            let number = registrations.last;
            registrations.by_certificate.entry(session.certificate).or_default().insert(number);
            let (id, record, acceptances) = (Some(7), record.clone(), BTreeMap::new());
            let open = Registration { session, id, record, acceptances, failures: 0 };
            registrations.open.insert(number, open);
        }
        let (protocol, agent) = (limits::PROTOCOL_VERSION, "test".to_owned());
        kit.say(ClientMessage::Hello { protocol, federation: None, agent });
        kit.say(ClientMessage::AccountRegister { record });
        let registrations = &kit.machine.registrations;
        assert_eq!(registrations.open.len(), REGISTRATIONS_MAX + 1);
        let is_open = |number| registrations.open.contains_key(&number);
        assert!(!is_open(2) && is_open(registrations.last), "its own oldest");
        assert!(is_open(1), "another's stays");
        let shares = registrations.by_certificate.values().map(BTreeSet::len);
        assert_eq!(shares.sum::<usize>(), registrations.open.len());
    }
}
