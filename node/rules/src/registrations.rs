//! Accepting an account as one node, and collecting q acceptances for a wallet.

use crate::{SessionId, Tag, context::Context, shares::Counts};
use bitcoin::secp256k1::schnorr;
use quorate_protocol::{
    NodeId,
    account::{AccountCertificate, AccountRecord, JointAccount},
    wire::{ErrorCode, Fault, ServerMessage, VotingReply, VotingRequest, WireError},
};
use std::collections::BTreeMap;

/// Accounts being certified at a time for sessions with one certificate.
const REGISTRATIONS_MAX: usize = 4_096;

/// Accounts that this node has certified for wallets.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    open: BTreeMap<u64, Registration>,
    /// How many those of each certificate are.
    by_certificate: Counts<u64>,
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
        cx.accept_account(&record)?;
        let known = cx.accounts.certificate(&record.id(&cx.federation)).cloned();
        if let Some(certificate) = known {
            cx.send_client(session, id, ServerMessage::AccountCertified { certificate });
            return Ok(());
        }
        if self.by_certificate.of(&session.certificate) >= REGISTRATIONS_MAX {
            let message = "many accounts from where this one comes are being certified; try again";
            return Err(WireError::passing(ErrorCode::LimitExceeded, Fault::Receiver, message));
        }
        self.by_certificate.add(session.certificate, 1);
        self.last += 1;
        let registration = self.last;
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
            if cx.accounts.verify(&cx.federation, &certificate).is_ok() {
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
        self.by_certificate.take(ended.session.certificate, 1);
        Some(ended)
    }
}

impl Context {
    /// Accepts an account as one node, if its record is good.
    pub(crate) fn accept_account(&mut self, record: &AccountRecord) -> Result<VotingReply, WireError> {
        let invalid = |error| WireError::sender(ErrorCode::InvalidAccount, error);
        record.check(&self.federation).map_err(invalid)?;
        let account = JointAccount::new(&self.federation, record.clone()).map_err(invalid)?;
        self.index_account(&account);
        Ok(VotingReply::AccountResponse { signature: record.accept(&self.federation, &self.key) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{Kit, WALLET};
    use quorate_protocol::wire::ClientMessage;

    #[test]
    fn a_certificate_has_so_many_accounts_certified_at_a_time() {
        let mut kit = Kit::voting();
        let record = kit.world.certificate().record;
        let another = SessionId { certificate: WALLET.certificate + 1, number: 1 };
        kit.greet(WALLET);
        kit.greet(another);
        let open =
            |kit: &Kit, session: SessionId| kit.machine.registrations.by_certificate.of(&session.certificate);
        let register = ClientMessage::AccountRegister { record: record.clone() };
        for _ in 0..REGISTRATIONS_MAX {
            kit.say(register.clone());
        }
        kit.told();
        kit.say(register.clone());
        let refused = |message: &ServerMessage| {
            matches!(message, ServerMessage::Error { error }
            if error.code == ErrorCode::LimitExceeded && error.retry)
        };
        assert!(kit.told().iter().any(refused), "one too many");
        kit.say_in(another, register);
        assert_eq!((open(&kit, WALLET), open(&kit, another)), (REGISTRATIONS_MAX, 1));
        // The first is refused by as many as are needed, the second is accepted.
        let registrations: Vec<u64> = kit.machine.registrations.open.keys().copied().take(2).collect();
        let tag = |registration| Tag::Account { registration };
        for node in (2..=4).map(NodeId) {
            kit.machine.handle_reply(node, tag(registrations[0]), None);
            let signature = record.accept(&kit.world.federation, kit.key(node));
            let reply = VotingReply::AccountResponse { signature };
            kit.machine.handle_reply(node, tag(registrations[1]), Some(reply));
        }
        assert_eq!(open(&kit, WALLET), REGISTRATIONS_MAX - 2);
    }
}
