//! Runs one step of a payment some times over, for who counts its instructions (`scripts/instructions.mjs`): what is
//! prepared is the same however often it runs, so that two runs differ by the step alone. Seven nodes, one input.
//!
//! Each time is with another payment: a federation remembers the signatures that it has verified.

use anyhow::{Context as _, Result};
use bitcoin::{Amount, ScriptBuf};
use quorate::{
    NodeId,
    account::{Keychain, KeychainIndex},
    finality::FinalityProof,
    frost::{NodeNonces, SigningSession},
    proposal::JointProposal,
    testing::{World, federation, rng},
    vote::{SignedVote, Verdict},
};
use std::hint::black_box;

/// Times at most.
const MOST: usize = 4;
const NODES: u8 = 7;

struct Ground {
    world: World,
    proposals: Vec<JointProposal>,
    votes: Vec<SignedVote>,
    proofs: Vec<FinalityProof>,
    /// A session for each payment, with the nonces of the first node.
    sessions: Vec<(SigningSession, Vec<NodeNonces>)>,
}

type Step = fn(&mut Ground, usize) -> Result<()>;

const STEPS: [(&str, Step); 11] = [
    ("check-proposal", |ground, time| {
        let proposal = ground.proposals.get(time).context("a proposal")?;
        black_box(proposal.check(&ground.world.federation, &ground.world.account)?);
        Ok(())
    }),
    ("derive-address", |ground, time| {
        let index = u32::try_from(time)? + 100;
        let position = KeychainIndex { keychain: Keychain::Receive, index };
        black_box(ground.world.account.address(position)?);
        Ok(())
    }),
    ("sign-vote", |ground, time| {
        black_box(vote(&ground.world, ground.proposals.get(time).context("a proposal")?)?);
        Ok(())
    }),
    ("verify-vote", |ground, time| {
        let vote = ground.votes.get(time).context("a vote")?;
        anyhow::ensure!(vote.verify(&ground.world.federation), "it is good");
        Ok(())
    }),
    ("commit-to-nonces", |ground, time| {
        let share = ground.world.shares.first().context("a share")?;
        black_box(share.commit(&mut rng(u64::try_from(time)?)));
        Ok(())
    }),
    ("release-share", |ground, _| {
        let (session, nonces) = ground.sessions.pop().context("a session")?;
        let share = ground.world.shares.first().context("a share")?;
        black_box(share.sign(&session, nonces)?);
        Ok(())
    }),
    ("verify-proof", |ground, time| {
        ground.proofs.get(time).context("a proof")?.verify(&ground.world.federation)?;
        Ok(())
    }),
    ("proof-to-json", |ground, time| {
        black_box(serde_json::to_vec(ground.proofs.get(time).context("a proof")?)?);
        Ok(())
    }),
    ("proof-from-json", |ground, time| {
        let json = serde_json::to_vec(ground.proofs.get(time).context("a proof")?)?;
        black_box(serde_json::from_slice::<FinalityProof>(&json)?);
        Ok(())
    }),
    ("proof-to-bytes", |ground, time| {
        black_box(ground.proofs.get(time).context("a proof")?.to_bytes());
        Ok(())
    }),
    ("proof-from-bytes", |ground, time| {
        let bytes = ground.proofs.get(time).context("a proof")?.to_bytes();
        black_box(FinalityProof::from_bytes(&bytes)?);
        Ok(())
    }),
];

fn vote(world: &World, proposal: &JointProposal) -> Result<SignedVote> {
    let (context, key) = (world.federation.context(), world.keys.first().context("a key")?);
    Ok(SignedVote::sign(context, NodeId(1), key, world.target_of(proposal), Verdict::Approve))
}

fn ground() -> Result<Ground> {
    let world = federation(NODES);
    let to = ScriptBuf::from_hex(&format!("5120{}", "11".repeat(32)))?;
    let amounts = (1..).take(MOST).map(|time| Amount::from_sat(10_000 + time));
    let proposals: Vec<_> = amounts.map(|amount| world.proposal_to(to.clone(), amount)).collect();
    let votes = proposals.iter().map(|proposal| vote(&world, proposal)).collect::<Result<_>>()?;
    let proofs = proposals.iter().map(|proposal| world.finish(proposal)).collect();
    let quorum = world.federation.quorum().votes();
    let mut sessions = Vec::new();
    for proposal in &proposals {
        let plan = proposal.check(&world.federation, &world.account)?.plan;
        let (mut nonces, _) = world.commitments(&plan, |node| node.0 <= quorum);
        let (session, _, _) = world.shares(&plan, |node| node.0 <= quorum).map_err(anyhow::Error::msg)?;
        sessions.push((session, nonces.pop_first().context("a signer")?.1));
    }
    Ok(Ground { world, proposals, votes, proofs, sessions })
}

#[expect(clippy::print_stdout, reason = "the names of the steps")]
fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        STEPS.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    };
    let (_, step) = STEPS.into_iter().find(|(of, _)| *of == name).context("there is no such step")?;
    let times: usize = arguments.next().context("how many times")?.parse()?;
    anyhow::ensure!(times <= MOST, "{MOST} times at most");
    let mut ground = ground()?;
    (0..times).try_for_each(|time| step(&mut ground, time))
}
