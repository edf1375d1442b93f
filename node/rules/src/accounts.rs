//! Accounts whose certificates have been verified, each once.

use crate::recent::Recent;
use quorate_protocol::{
    AccountId, Federation,
    account::{AccountCertificate, AccountError, JointAccount},
};

/// Verified accounts kept, 2 KB each; one that was dropped is verified again from its certificate.
const ACCOUNTS_MAX: usize = 16_384;

/// Accounts whose certificates have been verified.
#[derive(Debug)]
pub(crate) struct Accounts(Recent<AccountId, (JointAccount, AccountCertificate)>);

impl Default for Accounts {
    fn default() -> Self {
        Self(Recent::new(ACCOUNTS_MAX))
    }
}

impl Accounts {
    /// The certificate of an account, if one has been verified.
    pub(crate) fn certificate(&self, id: &AccountId) -> Option<&AccountCertificate> {
        self.0.get(id).map(|(_, certificate)| certificate)
    }

    /// The account of a certificate; verified if this very certificate has not been.
    pub(crate) fn verify(
        &mut self,
        federation: &Federation,
        certificate: &AccountCertificate,
    ) -> Result<JointAccount, AccountError> {
        let id = certificate.record.id(federation);
        if let Some((account, known)) = self.0.get(&id)
            && known == certificate
        {
            return Ok(account.clone());
        }
        let account = certificate.verify(federation)?;
        self.0.insert(id, (account.clone(), certificate.clone()), 1);
        Ok(account)
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
}
