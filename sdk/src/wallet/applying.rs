//! What a wallet takes in of what a server says: claims as claims, proofs once they are checked.

use super::{Early, Wallet, WalletError};
use crate::{
    conflict::ConflictError,
    finality::{FinalityError, FinalityProof},
    headers::{Extension, HeaderError, ProofError},
    wire::{ConfirmedSpend, ConflictProof, RawTransactionProof, UtxoRecord},
};
use bitcoin::{OutPoint, Txid, block::Header};

impl Wallet {
    /// Forgets which coins are held by the word of a server that is gone; the next one says it anew.
    pub fn forget_claims(&mut self) {
        self.book.forget_claims();
        self.early.clear();
        self.forget_claimed();
    }

    /// Coins that nothing verified shows, and that the present server has not told of.
    pub(crate) fn unclaimed(&self) -> Vec<OutPoint> {
        self.book.unclaimed()
    }

    /// Forgets coins that somebody told of and nobody tells of any more. The present server has told everything.
    pub(crate) fn drop_unclaimed(&mut self) {
        self.book.drop_unclaimed();
    }

    /// Takes in what a server says about an output. Gives transactions whose place in the chain has to be proven.
    ///
    /// # Errors
    /// Addresses beyond the index limit.
    pub fn apply_record(&mut self, record: &UtxoRecord) -> Result<Vec<Txid>, WalletError> {
        let Some(address) = self.addresses.get(&record.script_pubkey) else { return Ok(Vec::new()) };
        let position = address.position;
        self.claim(position)?;
        Ok(self.book.apply_record(record, position, &self.chain))
    }

    /// Checks a proof of finality and takes in what it means for this wallet. Tells whether it was news.
    ///
    /// A payment from somebody else that is seen for the first time when its deadline has passed by the wallet's own
    /// chain (rule V10) is no news, and it counts by its block alone: its payer may have kept it back until a recovery
    /// path had opened.
    ///
    /// # Errors
    /// The proof does not hold; its sender is at fault.
    pub fn apply_proof(&mut self, proof: &FinalityProof) -> Result<bool, FinalityError> {
        if self.book.knows_final(proof.txid()) {
            return Ok(false);
        }
        proof.verify(&self.federation)?;
        let (txid, transaction) = (proof.txid(), proof.transaction());
        if !proof.holds_at(self.chain.tip().height) && !self.is_own_payment(proof) {
            self.keep_early(Early::Final(Box::new(proof.clone())));
            return Ok(false);
        }
        for output in &proof.transaction().output {
            // An index beyond the limit cannot have been given out.
            let _beyond_limit = self.mark_used(&output.script_pubkey);
        }
        self.proposals.remove(&txid);
        let deadline = proof.custody().deadline();
        let news = self.book.apply_final(transaction, proof.kind(), deadline, &self.addresses);
        if news {
            self.proofs.insert(txid, proof.clone());
            self.touched.proofs.insert(txid);
        } else {
            self.keep_early(Early::Final(Box::new(proof.clone())));
        }
        Ok(news)
    }

    /// Checks a transaction's place in the chain and takes it in. Tells whether it was news.
    ///
    /// # Errors
    /// The block is not known yet, or the proof does not hold.
    pub fn apply_inclusion(&mut self, txid: Txid, proof: &RawTransactionProof) -> Result<bool, ProofError> {
        let transaction = self.chain.verify(txid, proof)?;
        for output in &transaction.output {
            let _beyond_limit = self.mark_used(&output.script_pubkey);
        }
        let news = self.book.apply_block(&transaction, proof.block, &self.addresses);
        if !news && !self.knows(txid) {
            self.keep_early(Early::Mined(txid, Box::new(proof.clone())));
        }
        Ok(news)
    }

    /// Checks a proof that a transaction can be in no block any more, and takes it in with all that descends from it in
    /// this wallet. A block that undoes the conflict undoes it here.
    ///
    /// # Errors
    /// The block is not known yet, or the proof does not hold.
    pub fn apply_conflict(&mut self, txid: Txid, proof: &ConflictProof) -> Result<(), ConflictError> {
        let by = proof.verify(txid, &self.chain)?;
        self.book.apply_conflict(txid, by);
        Ok(())
    }

    /// Transactions of the history that were found dead since this was last called, with what a block has instead.
    pub(crate) fn take_conflicts(&mut self) -> Vec<(Txid, ConfirmedSpend)> {
        self.book.take_conflicts()
    }

    /// Takes in headers. After a reorganisation, gives the transactions whose place has to be proven again.
    ///
    /// # Errors
    /// The headers do not connect, or break a rule.
    pub fn apply_headers(&mut self, headers: &[Header]) -> Result<(Extension, Vec<Txid>), HeaderError> {
        let parent = headers.first().and_then(|first| self.chain.height_of(&first.prev_blockhash));
        let extension = self.chain.extend(headers)?;
        if let Some(from) = parent.filter(|_| extension != Extension::Unchanged).map(|height| height + 1) {
            self.touched.headers_from = Some(self.touched.headers_from.map_or(from, |other| other.min(from)));
        }
        let lost = match extension {
            Extension::Reorganised { .. } => {
                let lost = self.book.drop_blocks_outside(&self.chain);
                for (txid, proof) in &self.proofs {
                    self.book.restore_spends(*txid, proof.outpoints());
                }
                lost
            }
            Extension::Extended | Extension::Unchanged => Vec::new(),
        };
        Ok((extension, lost))
    }
}
