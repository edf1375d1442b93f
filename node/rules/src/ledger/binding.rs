//! What an outpoint is left to: by releases, by the epoch before, by the chain (V5, V6), and what an epoch ends with.

use super::{Coin, Ledger, coins::Leaving};
use crate::records::TxRecord;
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    Round,
    seal::SealedTransaction,
    vote::{ApprovalCertificate, VoteTarget},
    wire::{BlockRef, UtxoRecord},
};
use std::collections::BTreeSet;

impl Ledger {
    /// What alone may be voted for in the present round, unless other inputs show for every certificate that it is
    /// void (V6).
    pub(crate) fn forced(&self, outpoint: &OutPoint) -> Option<Txid> {
        let candidates = self.holding(outpoint);
        let is_void = |target: &VoteTarget| {
            target.inputs().keys().filter(|input| *input != outpoint).any(|input| self.voids(input, target))
        };
        candidates
            .iter()
            .find(|certificate| !is_void(&certificate.target))
            .map(|certificate| certificate.target.txid())
    }

    /// The certificates that an outpoint is left to.
    fn holding(&self, outpoint: &OutPoint) -> &[ApprovalCertificate] {
        match self.release(outpoint) {
            Some(release) => release.highest.as_slice(),
            None => self.inherited(outpoint).map_or(&[], std::slice::from_ref),
        }
    }

    /// Coins that decide what these outpoints are left to, and of which this node knows nothing: it may have forgotten
    /// them. These are other inputs of the certificates that hold them, and outpoints that were released once more.
    pub(crate) fn unknown_of_bound(&self, bound: &[OutPoint]) -> BTreeSet<OutPoint> {
        let named = bound.iter().flat_map(|outpoint| self.holding(outpoint));
        let inputs = named.flat_map(|certificate| certificate.target.inputs().keys());
        let unknown = inputs.chain(bound).filter(|input| !self.knows_origin(input));
        unknown.filter(|input| !self.forgotten.contains_key(*input)).copied().collect()
    }

    /// Outpoints that were released, or that the epoch before left to something.
    pub(crate) fn bound(&self) -> Vec<OutPoint> {
        self.rounds.bound()
    }

    /// What the archive has of coins that were forgotten: what spends them is so deep that it stays.
    pub(crate) fn note_forgotten<'a>(&mut self, coins: impl Iterator<Item = &'a UtxoRecord>) {
        let leaving = self.leaving.iter().filter_map(|one| Some((one.outpoint, Leaving::spender(one)?)));
        let archived = coins.filter_map(|coin| Some((coin.outpoint, coin.spent?.txid)));
        let spent = leaving.chain(archived).filter(|(outpoint, _)| !self.knows(outpoint));
        let spent: Vec<(OutPoint, Txid)> = spent.collect();
        for (outpoint, spender) in spent {
            self.forgotten.insert(outpoint, spender);
            // Its round was forgotten too, and goes again.
            if self.rounds.contains(&outpoint) {
                self.resting.insert(outpoint);
            }
        }
        self.forget_unnamed();
    }

    /// Forgets what was only kept for certificates that hold nothing any more.
    pub(super) fn forget_unnamed(&mut self) {
        if self.forgotten.is_empty() {
            return;
        }
        let named = self.named(&BTreeSet::new(), &BTreeSet::new());
        self.forgotten.retain(|outpoint, _| named.contains(outpoint));
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
        let confirmed = self.coin(outpoint).and_then(Coin::spent).map(|spent| spent.txid);
        confirmed.or_else(|| self.final_spend(outpoint))
    }

    /// The transaction that spends an outpoint and stays, whatever happens to the last blocks: final, or deep in the
    /// chain.
    pub(crate) fn spent_for_good(&self, outpoint: &OutPoint) -> Option<Txid> {
        let deep = || self.coin(outpoint)?.spent().filter(|spent| self.blocks.is_buried(spent.block));
        let forgotten = || self.forgotten.get(outpoint).copied();
        self.final_spend(outpoint).or_else(|| deep().map(|spent| spent.txid)).or_else(forgotten)
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
            if let Some(said) = self.coins.said_mut(outpoint) {
                said.spend = None;
            }
            self.rounds.forget(outpoint);
            self.transactions.forget_final_spend(outpoint);
        }
    }
}
