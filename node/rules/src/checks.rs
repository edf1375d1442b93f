//! What can be found out about a proposal without the ledger, once for all rules that ask, and aside if it takes long.
//!
//! Which are left aside and when is in `examining`.

use crate::{
    recent::Recent,
    scripts::{ScriptError, check_scripts},
};
use bitcoin::{Transaction, TxOut, Txid, Wtxid};
use quorate_protocol::{
    Federation,
    account::JointAccount,
    proposal::{CheckedProposal, JointProposal, ProposalError},
};
use std::sync::Arc;

/// Inputs and outputs of proposals that are remembered, some 200 bytes each.
const REMEMBERED_MAX: usize = 16_384;

/// Something to find out that takes long.
#[derive(Debug)]
pub struct Check(pub(crate) Work);

#[derive(Debug)]
pub(crate) enum Work {
    Joint { federation: Arc<Federation>, account: Box<JointAccount>, proposal: Box<JointProposal> },
    Scripts { transaction: Box<Transaction>, spent: Vec<TxOut> },
}

/// What was found out, for [`Machine::handle_checked`](crate::Machine::handle_checked).
#[derive(Clone, Debug)]
pub struct Checked(Found);

#[derive(Clone, Debug)]
enum Found {
    Joint(Box<JointProposal>, Result<Arc<CheckedProposal>, ProposalError>),
    Scripts(Box<Transaction>, Vec<TxOut>, Result<(), ScriptError>),
}

impl Check {
    /// Finds it out: computing time, up to some tenths of a second, and nothing else.
    pub fn run(self) -> Checked {
        Checked(match self.0 {
            Work::Joint { federation, account, proposal } => {
                let result = proposal.check(&federation, &account).map(Arc::new);
                Found::Joint(proposal, result)
            }
            Work::Scripts { transaction, spent } => {
                let result = check_scripts(&transaction, &spent);
                Found::Scripts(transaction, spent, result)
            }
        })
    }
}

/// What was found out last.
#[derive(Debug)]
pub(crate) struct Checks {
    joint: Recent<Txid, (JointProposal, Result<Arc<CheckedProposal>, ProposalError>)>,
    scripts: Recent<Wtxid, (Vec<TxOut>, Result<(), ScriptError>)>,
}

impl Default for Checks {
    fn default() -> Self {
        Self { joint: Recent::new(REMEMBERED_MAX), scripts: Recent::new(REMEMBERED_MAX) }
    }
}

impl Checks {
    pub(crate) fn joint(
        &self,
        proposal: &JointProposal,
    ) -> Option<&Result<Arc<CheckedProposal>, ProposalError>> {
        let (known, result) = self.joint.get(&proposal.psbt.unsigned_tx.compute_txid())?;
        (known == proposal).then_some(result)
    }

    pub(crate) fn scripts(
        &self,
        transaction: &Transaction,
        spent: &[TxOut],
    ) -> Option<Result<(), ScriptError>> {
        let (known, result) = self.scripts.get(&transaction.compute_wtxid())?;
        (known == spent).then_some(*result)
    }

    pub(crate) fn remember_joint(
        &mut self,
        proposal: JointProposal,
        result: Result<Arc<CheckedProposal>, ProposalError>,
    ) {
        let transaction = &proposal.psbt.unsigned_tx;
        let (txid, cost) = (transaction.compute_txid(), transaction.input.len() + transaction.output.len());
        self.joint.insert(txid, (proposal, result), cost);
    }

    /// Remembers what was found out aside.
    pub(crate) fn remember(&mut self, Checked(found): Checked) {
        match found {
            Found::Joint(proposal, result) => self.remember_joint(*proposal, result),
            Found::Scripts(transaction, spent, result) => {
                let cost = spent.len();
                self.scripts.insert(transaction.compute_wtxid(), (spent, result), cost);
            }
        }
    }
}
