//! Which unconfirmed transactions hang together, as far as this wallet knows: a mempool takes only so many of them, and
//! nodes vote for no more (rule V1). What strangers spend of them is not known here; a node's refusal tells.

use super::{Wallet, WalletError};
use crate::relay_policy::{CLUSTER_TRANSACTIONS_MAX, CLUSTER_VBYTES_MAX, signed_vbytes};
use bitcoin::{OutPoint, Transaction, Txid};
use std::collections::{BTreeMap, BTreeSet};

/// Places in a cluster that payments leave free, for children that lift it: one by the payer, one by the payee.
const LIFTS: usize = 2;

/// A size in transactions and virtual bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size {
    pub(super) transactions: usize,
    pub(super) vbytes: usize,
}

/// The clusters of a wallet's unconfirmed transactions.
#[derive(Clone, Debug, Default)]
pub(super) struct Clusters {
    /// The cluster of each transaction, named by one of its members.
    of: BTreeMap<Txid, Txid>,
    sizes: BTreeMap<Txid, Size>,
}

impl Clusters {
    pub(super) fn new(unconfirmed: &BTreeMap<Txid, &Transaction>) -> Self {
        let mut relatives: BTreeMap<Txid, BTreeSet<Txid>> = BTreeMap::new();
        for (txid, transaction) in unconfirmed {
            let parents = transaction.input.iter().map(|input| input.previous_output.txid);
            for parent in parents.filter(|parent| unconfirmed.contains_key(parent)) {
                relatives.entry(*txid).or_default().insert(parent);
                relatives.entry(parent).or_default().insert(*txid);
            }
        }
        let mut clusters = Self::default();
        for name in unconfirmed.keys() {
            let mut open = vec![*name];
            while let Some(txid) = open.pop() {
                let Some(transaction) = unconfirmed.get(&txid).filter(|_| !clusters.of.contains_key(&txid))
                else {
                    continue;
                };
                clusters.of.insert(txid, *name);
                let size = clusters.sizes.entry(*name).or_default();
                size.transactions += 1;
                size.vbytes += signed_vbytes(transaction);
                open.extend(relatives.get(&txid).into_iter().flatten());
            }
        }
        clusters
    }

    /// The cluster that a coin hangs on, if its transaction waits for a block.
    pub(super) fn of(&self, coin: &OutPoint) -> Option<Txid> {
        self.of.get(&coin.txid).copied()
    }

    /// Clusters that take one more payment, small ones first.
    pub(super) fn with_room(&self) -> Vec<Txid> {
        let room = self.sizes.iter().filter(|(_, size)| size.transactions + LIFTS < CLUSTER_TRANSACTIONS_MAX);
        let mut all: Vec<_> = room.map(|(name, size)| (*size, *name)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, name)| name).collect()
    }

    /// Whether a payment of so many virtual bytes may spend these coins together: it makes one cluster of theirs, and
    /// leaves room for what lifts it.
    pub(super) fn fit<'a>(&self, coins: impl IntoIterator<Item = &'a OutPoint>, vbytes: usize) -> bool {
        self.fit_within(coins, vbytes, CLUSTER_TRANSACTIONS_MAX - LIFTS)
    }

    /// The same of a transaction that lifts.
    pub(super) fn fit_lift(&self, coin: &OutPoint, vbytes: usize) -> bool {
        self.fit_within([coin], vbytes, CLUSTER_TRANSACTIONS_MAX)
    }

    fn fit_within<'a>(
        &self,
        coins: impl IntoIterator<Item = &'a OutPoint>,
        vbytes: usize,
        most: usize,
    ) -> bool {
        let joined: BTreeSet<Txid> = coins.into_iter().filter_map(|coin| self.of(coin)).collect();
        let mut size = Size { transactions: 1, vbytes };
        for joined in joined.iter().filter_map(|name| self.sizes.get(name)) {
            size.transactions += joined.transactions;
            size.vbytes += joined.vbytes;
        }
        joined.is_empty() || (size.transactions <= most && size.vbytes <= CLUSTER_VBYTES_MAX)
    }
}

impl Wallet {
    /// The clusters of what waits for a block, payments under way included.
    pub(super) fn clusters(&self) -> Clusters {
        let unconfirmed = self.book.waiting().filter_map(|entry| {
            let proven = self.proofs.get(&entry.txid).map(|proof| proof.transaction());
            let proposed = || self.proposals.get(&entry.txid).map(|checked| &checked.transaction);
            Some((entry.txid, proven.or_else(proposed)?))
        });
        Clusters::new(&unconfirmed.collect())
    }

    /// Remembers until the next block that nodes found the cluster of a payment too large: its coins are chosen last.
    pub(crate) fn crowded(&mut self, txid: Txid) {
        let Some(proposal) = self.proposals.get(&txid) else { return };
        let tip = self.chain.tip();
        let coins = proposal.transaction.input.iter().map(|input| input.previous_output);
        if self.crowded.0 != Some(tip) {
            self.crowded = (Some(tip), BTreeSet::new());
        }
        self.crowded.1.extend(coins);
    }

    /// Whether nodes found the cluster of a coin too large since the last block.
    pub(super) fn is_crowded(&self, coin: &OutPoint) -> bool {
        self.crowded.0 == Some(self.chain.tip()) && self.crowded.1.contains(coin)
    }
}

/// The refusal of what would make a cluster too large.
pub(super) fn too_large() -> WalletError {
    WalletError::UnconfirmedChain { transactions: CLUSTER_TRANSACTIONS_MAX, vbytes: CLUSTER_VBYTES_MAX }
}
