//! One epoch of a running node, as its servers see it.

use super::input::Input;
use crate::{
    epoch::{
        news::{News, WholeSeal},
        repair::RepairDesk,
    },
    net::not_ready,
};
use quorate_protocol::{
    Epoch, Federation,
    wire::{PeerReply, SuccessionReply, SuccessionRequest},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{mpsc, oneshot};

/// One epoch of a running node.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) federation: Arc<Federation>,
    /// The machine's; absent at a newcomer whose epoch has not begun.
    pub(crate) inputs: Option<mpsc::Sender<Input>>,
    pub(crate) news: Arc<News>,
    pub(crate) desk: Option<Arc<RepairDesk>>,
    /// The seals that this node began the epoch with.
    pub(crate) past: Arc<Vec<WholeSeal>>,
}

impl Live {
    /// Asks the machine.
    pub(crate) async fn ask(&self, input: impl FnOnce(oneshot::Sender<PeerReply>) -> Input) -> PeerReply {
        let stopping = || not_ready("this node is stopping").into();
        let Some(inputs) = &self.inputs else { return stopping() };
        let (reply, answer) = oneshot::channel();
        if inputs.send(input(reply)).await.is_err() {
            return stopping();
        }
        answer.await.unwrap_or_else(|_| stopping())
    }

    /// Answers what is asked about the epoch that follows.
    pub(crate) async fn answer_succession(&self, request: SuccessionRequest) -> PeerReply {
        match request {
            SuccessionRequest::SuccessionPull { epoch } => self.news_of(epoch).into(),
            SuccessionRequest::SealRequest { succession, of, skip } => {
                let present = self.federation.epoch();
                if succession.plan.epoch > present {
                    return self.ask(|reply| Input::Seal { succession, of, skip, reply }).await;
                }
                let same = succession.plan.epoch == present;
                let past = self.past.iter().find(|past| same && past.seal.node == of);
                past.map(|past| past.page(skip))
                    .ok_or_else(|| not_ready("this node does not have that seal"))
                    .into()
            }
        }
    }

    /// What is known of the epoch that follows on `epoch`.
    fn news_of(&self, epoch: Epoch) -> SuccessionReply {
        if epoch == self.federation.epoch() {
            return self.news.answer();
        }
        let mut past = self.federation.document().successions.iter();
        let succession = past.find(|one| one.plan.epoch == epoch.next()).cloned();
        SuccessionReply::SuccessionNews {
            plan: [0; 32],
            approvals: BTreeMap::new(),
            succession: succession.map(Box::new),
        }
    }
}
