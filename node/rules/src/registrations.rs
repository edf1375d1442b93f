//! Accepting an account as one node, and collecting q acceptances for a wallet.

use crate::{SessionId, Tag, context::Context};
use bitcoin::secp256k1::schnorr;
use quorate_protocol::{
    NodeId,
    account::{AccountCertificate, AccountRecord, JointAccount},
    wire::{ErrorCode, Fault, ServerMessage, VotingReply, VotingRequest, WireError},
};
use std::collections::BTreeMap;

/// Accounts being certified at a time; more are told to come back.
const REGISTRATIONS_MAX: usize = 4_096;

/// Accounts that this node has certified for wallets.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    open: BTreeMap<u64, Registration>,
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
        while self.open.len() >= REGISTRATIONS_MAX {
            // The oldest has waited for answers longest, and its wallet asks again.
            self.open.pop_first();
        }
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
            let Some(open) = self.open.remove(&registration) else { return };
            let epoch = cx.federation.epoch();
            let certificate =
                AccountCertificate { record: open.record, epoch, acceptances: open.acceptances };
            if cx.verified_account(&certificate).is_ok() {
                cx.send_client(open.session, open.id, ServerMessage::AccountCertified { certificate });
            }
        } else if open.failures >= usize::from(quorum.blocking()) {
            let Some(open) = self.open.remove(&registration) else { return };
            let message = "too few nodes are reachable to certify an account; try again";
            let error = WireError::passing(ErrorCode::NoNodeAvailable, Fault::Network, message);
            cx.send_client(open.session, open.id, ServerMessage::Error { error });
        }
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
    use quorate_protocol::wire::{ClientMessage, limits};

    #[test]
    fn the_oldest_registration_goes_for_the_next() {
        let mut kit = Kit::voting();
        let record = kit.world.certificate().record;
        let fill = |kit: &mut Kit| {
            let registrations = &mut kit.machine.registrations;
            while registrations.open.len() < REGISTRATIONS_MAX {
                registrations.last += 1;
                let (id, acceptances, failures) = (Some(7), BTreeMap::new(), 0);
                let open =
                    Registration { session: WALLET, id, record: record.clone(), acceptances, failures };
                registrations.open.insert(registrations.last, open);
            }
        };
        fill(&mut kit);
        let (protocol, agent) = (limits::PROTOCOL_VERSION, "test".to_owned());
        kit.say(ClientMessage::Hello { protocol, federation: None, agent });
        kit.say(ClientMessage::AccountRegister { record: record.clone() });
        let registrations = &kit.machine.registrations;
        assert_eq!(registrations.open.len(), REGISTRATIONS_MAX);
        assert!(!registrations.open.contains_key(&1) && registrations.open.contains_key(&registrations.last));
    }
}
