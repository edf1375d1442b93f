//! One epoch of a running node, as its servers see it.

use super::{
    input::Input,
    queue::{Inputs, Speaker},
};
use crate::net::not_ready;
use quorate_protocol::{Federation, wire::PeerReply};
use quorate_rules::Progress;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// One epoch of a running node.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) federation: Arc<Federation>,
    /// The voter's; absent at a newcomer whose epoch has not begun.
    pub(crate) inputs: Option<Inputs>,
    /// How far the next epoch is.
    pub(crate) progress: watch::Receiver<Option<Progress>>,
}

/// Asks the voter, for somebody outside or for this node itself.
pub(crate) async fn ask_voter(
    voter: Option<&Inputs>,
    by: Option<Speaker>,
    input: impl FnOnce(oneshot::Sender<PeerReply>) -> Input,
) -> PeerReply {
    let stopping = || not_ready("this node is stopping").into();
    let Some(voter) = voter else { return stopping() };
    let (reply, answer) = oneshot::channel();
    let handed_in = match by {
        Some(by) => voter.said(by, input(reply)),
        None => voter.send(input(reply)).await,
    };
    if handed_in.is_err() {
        return stopping();
    }
    answer.await.unwrap_or_else(|_| stopping())
}
