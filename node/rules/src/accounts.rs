//! Accounts: accepting a record as one node, and collecting q acceptances for a wallet.

use crate::{Machine, SessionId, Tag};
use bitcoin::secp256k1::schnorr;
use quorate_protocol::{
    NodeId,
    account::{AccountCertificate, AccountError, AccountRecord, JointAccount},
    wire::{ErrorCode, Fault, PeerReply, PeerRequest, ServerMessage, WireError},
};
use std::collections::BTreeMap;

/// Verified accounts kept; one that was dropped is verified again from its certificate.
const ACCOUNTS_MAX: usize = 65_536;
/// Accounts being certified at a time; more are told to come back.
const REGISTRATIONS_MAX: usize = 4_096;

/// An account being certified.
#[derive(Debug)]
pub(crate) struct Registration {
    session: SessionId,
    id: Option<u64>,
    record: AccountRecord,
    acceptances: BTreeMap<NodeId, schnorr::Signature>,
    failures: usize,
}

impl Machine {
    /// The account of a certificate, verified once.
    pub(crate) fn verified_account(
        &mut self,
        certificate: &AccountCertificate,
    ) -> Result<JointAccount, AccountError> {
        let id = certificate.record.id(&self.federation);
        if let Some((account, known)) = self.accounts.get(&id)
            && known == certificate
        {
            return Ok(account.clone());
        }
        let account = certificate.verify(&self.federation)?;
        while self.accounts.len() >= ACCOUNTS_MAX {
            self.accounts.pop_first();
        }
        self.accounts.insert(id, (account.clone(), certificate.clone()));
        Ok(account)
    }

    pub(crate) fn accept_account(&self, record: &AccountRecord) -> Result<PeerReply, WireError> {
        let invalid = |error| WireError::sender(ErrorCode::InvalidAccount, error);
        record.check(&self.federation).map_err(invalid)?;
        JointAccount::new(&self.federation, record.clone()).map_err(invalid)?;
        Ok(PeerReply::AccountResponse { signature: record.accept(&self.federation, &self.key) })
    }

    pub(crate) fn register(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        record: AccountRecord,
    ) -> Result<(), WireError> {
        self.accept_account(&record)?;
        let known =
            self.accounts.get(&record.id(&self.federation)).map(|(_, certificate)| certificate.clone());
        if let Some(certificate) = known {
            self.send_client(session, id, ServerMessage::AccountCertified { certificate });
            return Ok(());
        }
        while self.registrations.len() >= REGISTRATIONS_MAX {
            // The oldest has waited for answers longest, and its wallet asks again.
            self.registrations.pop_first();
        }
        let registration = self.next_registration;
        self.next_registration += 1;
        let request = PeerRequest::AccountRequest { record: record.clone() };
        let started = Registration { session, id, record, acceptances: BTreeMap::new(), failures: 0 };
        self.registrations.insert(registration, started);
        self.ask_everyone(Tag::Account { registration }, &request);
        Ok(())
    }

    pub(crate) fn take_acceptance(&mut self, from: NodeId, registration: u64, reply: Option<PeerReply>) {
        let quorum = self.federation.quorum();
        let Some(open) = self.registrations.get_mut(&registration) else { return };
        match reply {
            Some(PeerReply::AccountResponse { signature })
                if open.record.verify_acceptance(&self.federation, from, &signature) =>
            {
                open.acceptances.insert(from, signature);
            }
            _bad_or_none => open.failures += 1,
        }
        if open.acceptances.len() >= usize::from(quorum.votes()) {
            let Some(open) = self.registrations.remove(&registration) else { return };
            let epoch = self.federation.epoch();
            let certificate =
                AccountCertificate { record: open.record, epoch, acceptances: open.acceptances };
            if self.verified_account(&certificate).is_ok() {
                self.send_client(open.session, open.id, ServerMessage::AccountCertified { certificate });
            }
        } else if open.failures >= usize::from(quorum.blocking()) {
            let Some(open) = self.registrations.remove(&registration) else { return };
            let message = "too few nodes are reachable to certify an account; try again";
            let error = WireError::passing(ErrorCode::NoNodeAvailable, Fault::Network, message);
            self.send_client(open.session, open.id, ServerMessage::Error { error });
        }
    }
}
