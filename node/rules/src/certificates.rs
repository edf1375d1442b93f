//! Approval certificates that have been verified, each once: a node meets the same one as it commits and in the proof.

use crate::recent::Recent;
use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use quorate_protocol::{
    Federation,
    vote::{ApprovalCertificate, CertificateError},
};

/// How many are remembered, some 100 bytes each.
const CERTIFICATES_MAX: usize = 16_384;

/// Certificates of the present epoch's federation that have been verified.
#[derive(Debug)]
pub(crate) struct Certificates(Recent<sha256::Hash, ()>);

impl Default for Certificates {
    fn default() -> Self {
        Self(Recent::new(CERTIFICATES_MAX))
    }
}

impl Certificates {
    /// # Errors
    /// It does not hold.
    pub(crate) fn verify(
        &mut self,
        federation: &Federation,
        certificate: &ApprovalCertificate,
    ) -> Result<(), CertificateError> {
        let key = key(certificate);
        if self.0.get(&key).is_none() {
            certificate.verify(federation)?;
            self.0.insert(key, (), 1);
        }
        Ok(())
    }
}

/// All that is verified: what was approved, by whom, and with which signatures.
fn key(certificate: &ApprovalCertificate) -> sha256::Hash {
    let mut engine = sha256::Hash::engine();
    engine.input(&certificate.target.hash().0);
    for (node, signature) in &certificate.approvals {
        engine.input(&node.0.to_be_bytes());
        engine.input(signature.as_ref());
    }
    sha256::Hash::from_engine(engine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::testing;

    #[test]
    fn another_certificate_of_the_same_target_is_verified_too() {
        let world = testing::federation(4);
        let target = world.payment_target();
        let good = world.approve(&target);
        let mut certificates = Certificates::default();
        for _ in 0..2 {
            certificates.verify(&world.federation, &good).expect("a good certificate");
        }
        let mut forged = good.clone();
        let (node, _) = forged.approvals.pop_first().expect("an approval");
        certificates.verify(&world.federation, &forged).expect_err("too few");
        let other = *forged.approvals.values().next().expect("an approval");
        forged.approvals.insert(node, other);
        certificates.verify(&world.federation, &forged).expect_err("another node's signature");
    }
}
