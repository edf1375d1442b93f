//! Accounts that were derived from their records, each once, and whose certificates have been verified.

use crate::recent::Recent;
use quorate_protocol::{
    AccountId, Federation,
    account::{AccountCertificate, AccountError, AccountRecord, JointAccount},
};
use std::sync::Arc;

/// Accounts kept, 2 KB each; one that was dropped is derived, or verified, again.
const ACCOUNTS_MAX: usize = 16_384;

#[derive(Debug)]
struct Known {
    account: Arc<JointAccount>,
    /// The one that was verified, if one was.
    certificate: Option<AccountCertificate>,
}

/// Accounts with their keys.
#[derive(Debug)]
pub(crate) struct Accounts(Recent<AccountId, Known>);

impl Default for Accounts {
    fn default() -> Self {
        Self(Recent::new(ACCOUNTS_MAX))
    }
}

impl Accounts {
    /// The certificate of an account, if one has been verified.
    pub(crate) fn certificate(&self, id: &AccountId) -> Option<&AccountCertificate> {
        self.0.get(id)?.certificate.as_ref()
    }

    /// The account of a certificate; verified if this very certificate has not been.
    pub(crate) fn verify(
        &mut self,
        federation: &Federation,
        certificate: &AccountCertificate,
    ) -> Result<Arc<JointAccount>, AccountError> {
        let id = certificate.record.id(federation);
        if let Some(Known { account, certificate: Some(known) }) = self.0.get(&id)
            && known == certificate
        {
            return Ok(account.clone());
        }
        let account = Arc::new(certificate.verify(federation)?);
        let certificate = Some(certificate.clone());
        self.0.insert(id, Known { account: account.clone(), certificate }, 1);
        Ok(account)
    }

    /// The account of a record that this node has checked before, which it has under this id.
    pub(crate) fn derive(
        &mut self,
        federation: &Federation,
        id: AccountId,
        record: impl FnOnce() -> Option<AccountRecord>,
    ) -> Option<Arc<JointAccount>> {
        if let Some(known) = self.0.get(&id) {
            return Some(known.account.clone());
        }
        let account = Arc::new(JointAccount::new(federation, record()?).ok()?);
        self.0.insert(account.id(), Known { account: account.clone(), certificate: None }, 1);
        Some(account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::testing;

    #[test]
    fn another_certificate_of_a_known_account_is_verified_too() {
        let world = testing::federation(4);
        let certificate = world.certificate();
        let mut accounts = Accounts::default();
        accounts.verify(&world.federation, &certificate).expect("a good certificate");
        accounts.verify(&world.federation, &certificate).expect("the same again");
        let mut forged = certificate.clone();
        while forged.acceptances.len() >= usize::from(world.federation.quorum().votes()) {
            forged.acceptances.pop_first();
        }
        accounts
            .verify(&world.federation, &forged)
            .expect_err("too few acceptances, however well the account is known");
        let id = certificate.record.id(&world.federation);
        assert_eq!(accounts.certificate(&id), Some(&certificate));
    }

    #[test]
    fn an_account_that_was_derived_has_no_certificate_before_one_was_verified() {
        let world = testing::federation(4);
        let certificate = world.certificate();
        let id = certificate.record.id(&world.federation);
        let mut accounts = Accounts::default();
        let record = || Some(certificate.record.clone());
        let derived = accounts.derive(&world.federation, id, record).expect("derives");
        assert_eq!(*derived, world.account);
        assert!(accounts.derive(&world.federation, id, || None).is_some(), "once");
        assert_eq!(accounts.certificate(&id), None);
        accounts.verify(&world.federation, &certificate).expect("a good certificate");
        assert_eq!(accounts.certificate(&id), Some(&certificate));
    }
}
