//! The timeline of one payment, from the two wallets' own events.

use crate::Devnet;
use anyhow::{Context as _, Result};
use bitcoin::Txid;
use futures_util::StreamExt as _;
use quorate::{
    client::Client,
    session::{Event, PaymentState},
    wallet::PaymentRequest,
};
use serde::Serialize;
use std::{fmt, time::Instant};

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    name: String,
    ms: f64,
}

/// What happened, in milliseconds since the submission.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Timeline {
    txid: Txid,
    /// Whether the payee's wallet verified the finality itself.
    pub(crate) verified: bool,
    steps: Vec<Step>,
    n: u16,
    quorum: u16,
}

struct Recorder {
    started: Instant,
    steps: Vec<Step>,
}

impl Recorder {
    fn add(&mut self, name: String) {
        if !self.steps.iter().any(|step| step.name == name) {
            let ms = self.started.elapsed().as_secs_f64() * 1000.0;
            self.steps.push(Step { name, ms });
        }
    }
}

impl Timeline {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a timeline shows what it knows")]
    /// Makes the payment and records it, up to its block.
    pub(crate) async fn record(
        network: &Devnet,
        payer: &Client,
        payee: &Client,
        request: PaymentRequest,
    ) -> Result<Self> {
        let mut paying = payer.events();
        let mut receiving = payee.events();
        let mut recorder = Recorder { started: Instant::now(), steps: Vec::new() };
        let txid = payer.send(request).await?;
        let (mut verified, mut mined) = (false, false);
        while !mined {
            tokio::select! {
                event = paying.next() => match event.context("wallet A has ended")? {
                    Event::Payment { txid: of, state } if of == txid => payment_step(&mut recorder, &state)?,
                    Event::Disconnected { reason, .. } => anyhow::bail!("wallet A lost its bridge: {reason}"),
                    _other => {}
                },
                event = receiving.next() => match event.context("wallet B has ended")? {
                    Event::Received { txid: of, .. } if of == txid => {
                        verified = true;
                        recorder.add("verified by the payee".to_owned());
                    }
                    Event::Confirmed { txid: of, block } if of == txid => {
                        recorder.add(format!("mined in block {}", block.height));
                        mined = true;
                    }
                    Event::ServerMisbehaved { what } => anyhow::bail!("wallet B was sent something invalid: {what}"),
                    _other => {}
                },
                () = network.chain.in_mempool(txid), if verified && !mined => network.treasury.mine(1)?,
            }
        }
        let quorum = network.federation.quorum();
        Ok(Self { txid, verified, steps: recorder.steps, n: quorum.nodes(), quorum: quorum.votes() })
    }
}

fn payment_step(recorder: &mut Recorder, state: &PaymentState) -> Result<()> {
    match state {
        PaymentState::Submitted => recorder.add("submitted".to_owned()),
        PaymentState::Voting { votes, quorum, .. } => {
            if *votes == 1 {
                recorder.add("locked by the first node".to_owned());
            }
            recorder.add(format!("votes {votes}/{quorum}"));
        }
        PaymentState::Approved => recorder.add("approved, certificate checked by the payer".to_owned()),
        PaymentState::Signing { .. } => recorder.add("signing".to_owned()),
        PaymentState::Final { .. } => recorder.add("signed, final for the payer".to_owned()),
        PaymentState::Rejected { rejects, .. } => anyhow::bail!("the payment was rejected: {rejects:?}"),
        PaymentState::Failed { message, .. } => anyhow::bail!("the payment failed: {message}"),
        _later_states => {}
    }
    Ok(())
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nPayment {}\n", self.txid)?;
        for step in &self.steps {
            writeln!(f, "  {:>9.1} ms  {}", step.ms, step.name)?;
        }
        let verdict = if self.verified { "verified by the payee's own wallet" } else { "NOT verified" };
        writeln!(f, "\n  {} of {} nodes, {verdict}", self.quorum, self.n)
    }
}
