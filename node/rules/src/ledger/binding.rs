//! What an outpoint is left to: by releases, by the epoch before, by the chain (V5, V6), and what an epoch ends with.

use super::Ledger;
use crate::records::TxRecord;
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    Round,
    seal::SealedTransaction,
    vote::{ApprovalCertificate, VoteTarget},
    wire::BlockRef,
};

impl Ledger {
    /// What alone may be voted for in the present round, unless other inputs show for every certificate that it is
    /// void (V6).
    pub(crate) fn forced(&self, outpoint: &OutPoint) -> Option<Txid> {
        let candidates = match self.release(outpoint) {
            Some(release) => release.highest.as_slice(),
            None => std::slice::from_ref(self.inherited(outpoint)?),
        };
        let is_void = |target: &VoteTarget| {
            target.inputs().keys().filter(|input| *input != outpoint).any(|input| self.voids(input, target))
        };
        candidates
            .iter()
            .find(|certificate| !is_void(&certificate.target))
            .map(|certificate| certificate.target.txid())
    }

    /// The certificate that seals of the epoch before named for an outpoint, or a later one of the same transaction.
    fn inherited(&self, outpoint: &OutPoint) -> Option<&ApprovalCertificate> {
        self.transactions.get(&self.rounds.inherited(outpoint)?)?.certificate.as_ref()
    }

    /// Whether what is known of an input shows that the target's transaction did not become final under it: a release
    /// or a final spend (V6), or a certificate for another transaction that the epoch before reached in a later
    /// round. A spend that is only in a block does not show it before it is deep: one block can be undone, and the
    /// target may be final all the while.
    fn voids(&self, input: &OutPoint, target: &VoteTarget) -> bool {
        let other = |txid: Txid| txid != target.txid();
        self.release(input).is_some_and(|release| release.voids(target))
            || self.spent_for_good(input).is_some_and(other)
            || self.inherited(input).is_some_and(|certificate| {
                other(certificate.target.txid())
                    && certificate.target.inputs().get(input) >= target.inputs().get(input)
            })
    }

    /// What this node ends its epoch with: what it has committed to and what may be final by it, and what is final,
    /// unless it is dead or deep in the chain.
    pub(crate) fn sealed(&self) -> Vec<SealedTransaction> {
        let settled = |record: &&TxRecord| {
            let in_chain =
                self.block_of(&record.target.txid()).is_some_and(|block| self.blocks.is_buried(block));
            let dead = || {
                let conflict = record.proof.as_ref().and_then(|_| self.conflict(record.target.txid()));
                conflict.is_some_and(|conflict| self.blocks.is_buried(conflict.by.block))
            };
            let certified = record.certificate.as_ref().map(|certificate| &certificate.target);
            let open = match (&record.proof, certified) {
                (Some(_), _) => true,
                (None, Some(target)) => !target.inputs().keys().any(|input| self.voids(input, target)),
                (None, None) => false,
            };
            in_chain || !open || dead()
        };
        let mut records: Vec<&TxRecord> =
            self.transactions.all().map(|(_, record)| record).filter(|record| !settled(record)).collect();
        records.sort_unstable_by_key(|record| record.target.txid());
        records
            .into_iter()
            .map(|record| SealedTransaction {
                txid: record.target.txid(),
                proposal: record.proposal.clone().filter(|_| record.certificate.is_some()),
                account: record.account.clone().filter(|_| record.certificate.is_some()),
                spent: if record.certificate.is_some() { record.spent.clone() } else { Vec::new() },
                certificate: record.certificate.clone(),
                proof: record.proof.clone(),
            })
            .collect()
    }

    /// The final or confirmed transaction that spends an outpoint.
    pub(crate) fn spent_by(&self, outpoint: &OutPoint) -> Option<Txid> {
        let confirmed = self.coin(outpoint).and_then(|coin| coin.spent).map(|spent| spent.txid);
        confirmed.or_else(|| self.final_spend(outpoint))
    }

    /// The transaction that spends an outpoint and stays, whatever happens to the last blocks: final, or deep in the
    /// chain.
    pub(crate) fn spent_for_good(&self, outpoint: &OutPoint) -> Option<Txid> {
        let deep = || self.coin(outpoint)?.spent.filter(|spent| self.blocks.is_buried(spent.block));
        self.final_spend(outpoint).or_else(|| deep().map(|spent| spent.txid))
    }

    /// The block that has a transaction, if it is so deep that it stays.
    pub(crate) fn mined_for_good(&self, txid: &Txid) -> Option<BlockRef> {
        self.block_of(txid).filter(|block| self.blocks.is_buried(*block))
    }

    /// The final transaction that spends an outpoint.
    pub(crate) fn final_spend(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.transactions.final_spend(outpoint).map(|spend| spend.txid)
    }

    /// Forgets an approval without anybody's promise; no rule does.
    pub(crate) fn forget_approval(&mut self, outpoint: &OutPoint, round: Round) {
        self.rounds.forget_approval(outpoint, round);
    }

    /// Forgets final spends and what they locked; no rule does.
    pub(crate) fn forget_spends(&mut self, outpoints: &[OutPoint]) {
        for outpoint in outpoints {
            if let Some(coin) = self.coins.get_mut(outpoint) {
                coin.record.spend = None;
            }
            self.rounds.forget(outpoint);
            self.transactions.forget_final_spend(outpoint);
        }
    }
}
