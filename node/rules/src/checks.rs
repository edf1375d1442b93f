//! What can be found out about a proposal without the ledger, aside if it takes long, and once if it holds.
//!
//! Which are left aside and when is in `examining`.

use crate::{
    recent::Recent,
    scripts::{ScriptError, check_scripts},
};
use bitcoin::{Transaction, TxOut, Txid};
use quorate_protocol::{
    AccountId, Federation,
    account::JointAccount,
    proposal::{CheckedProposal, JointProposal, ProposalError},
};
use std::sync::Arc;

/// Bytes of the proposals that are remembered, as they are on the wire; some ten times as much in memory.
const REMEMBERED_BYTES_MAX: usize = 1 << 20;

/// What comes of the checks of a joint proposal.
pub(crate) type JointResult = Result<Arc<CheckedProposal>, ProposalError>;

/// Something to find out that takes long.
#[derive(Debug)]
pub struct Check(Work);

#[derive(Debug)]
enum Work {
    Joint { federation: Arc<Federation>, account: Arc<JointAccount>, proposal: Box<JointProposal> },
    Scripts { transaction: Box<Transaction>, spent: Vec<TxOut> },
}

/// What was found out, for [`Machine::handle_checked`](crate::Machine::handle_checked).
#[derive(Clone, Debug)]
pub struct Checked(Found);

#[derive(Clone, Debug)]
enum Found {
    Joint { proposal: Box<JointProposal>, account: AccountId, result: JointResult },
    Scripts { transaction: Box<Transaction>, spent: Vec<TxOut>, result: Result<(), ScriptError> },
}

impl Check {
    pub(crate) fn of_joint(
        federation: Arc<Federation>,
        account: Arc<JointAccount>,
        proposal: JointProposal,
    ) -> Self {
        Self(Work::Joint { federation, account, proposal: Box::new(proposal) })
    }

    pub(crate) fn of_scripts(transaction: Transaction, spent: Vec<TxOut>) -> Self {
        Self(Work::Scripts { transaction: Box::new(transaction), spent })
    }

    /// The account that it is for, if any.
    pub fn account(&self) -> Option<AccountId> {
        match &self.0 {
            Work::Joint { account, .. } => Some(account.id()),
            Work::Scripts { .. } => None,
        }
    }

    /// Finds it out: computing time, up to some tenths of a second, and nothing else.
    pub fn run(self) -> Checked {
        Checked(match self.0 {
            Work::Joint { federation, account, proposal } => {
                let result = proposal.check(&federation, &account).map(Arc::new);
                Found::Joint { proposal, account: account.id(), result }
            }
            Work::Scripts { transaction, spent } => {
                let result = check_scripts(&transaction, &spent);
                Found::Scripts { transaction, spent, result }
            }
        })
    }
}

impl Checked {
    pub(crate) fn joint(&self, wanted: &JointProposal, of: AccountId) -> Option<&JointResult> {
        match &self.0 {
            Found::Joint { proposal, account, result } if **proposal == *wanted && *account == of => {
                Some(result)
            }
            Found::Joint { .. } | Found::Scripts { .. } => None,
        }
    }

    pub(crate) fn scripts(&self, wanted: &Transaction, of: &[TxOut]) -> Option<Result<(), ScriptError>> {
        match &self.0 {
            Found::Scripts { transaction, spent, result } if **transaction == *wanted && *spent == of => {
                Some(*result)
            }
            Found::Joint { .. } | Found::Scripts { .. } => None,
        }
    }
}

/// Joint proposals that were found good, the last ones.
#[derive(Debug)]
pub(crate) struct Checks(Recent<Txid, (JointProposal, Arc<CheckedProposal>)>);

impl Default for Checks {
    fn default() -> Self {
        Self(Recent::new(REMEMBERED_BYTES_MAX))
    }
}

impl Checks {
    /// The very same proposal, which names its account.
    pub(crate) fn get(&self, proposal: &JointProposal) -> Option<&Arc<CheckedProposal>> {
        let (known, checked) = self.0.get(&proposal.psbt.unsigned_tx.compute_txid())?;
        (known == proposal).then_some(checked)
    }

    /// Remembers one that is good: nobody can fill this with others, which may be of any size.
    pub(crate) fn remember(&mut self, proposal: &JointProposal, checked: &Arc<CheckedProposal>) {
        let bytes = proposal.psbt.serialize().len();
        self.0.insert(checked.plan.txid, (proposal.clone(), checked.clone()), bytes);
    }
}
