//! Prometheus metrics of a node. Who or what is counted is a label, never part of a name.

use crate::store::Commits;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};
use quorate_protocol::evidence::EvidenceKind;
use quorate_rules::{Standing, Status};
use std::sync::atomic::AtomicU64;

/// A node of the federation, by its number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: u16,
}

/// A kind of proven cheat.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

fn doubted_since(standing: &Standing) -> u64 {
    match standing {
        Standing::Following { since, .. } => since.unwrap_or(0),
        Standing::Asking { .. } | Standing::Voting | Standing::Lost { .. } | Standing::Sealed => 0,
    }
}

/// The metrics as text.
pub(crate) fn text(status: &Status, backend: usize, commits: Commits) -> String {
    let mut registry = Registry::with_prefix("quorate_node");
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let gauges = [
        ("voting", "1 if this node votes", i64::from(status.standing == Standing::Voting)),
        (
            "lost_its_vote",
            "1 if its memory cannot be trusted in this epoch",
            i64::from(matches!(status.standing, Standing::Lost { .. })),
        ),
        (
            "following",
            "1 if it does not vote because it is not at the tip of the chain",
            i64::from(matches!(status.standing, Standing::Following { .. })),
        ),
        (
            "following_since_seconds",
            "Unix time since when its backend is not believed to be at the tip; 0 if it is",
            i64::try_from(doubted_since(&status.standing)).unwrap_or(i64::MAX),
        ),
        ("backend", "which of its chain backends is asked: 0 is the preferred one", count(backend)),
        ("epoch", "the epoch that it is in", i64::try_from(status.epoch.0).unwrap_or(i64::MAX)),
        ("tip_height", "height of its chain", i64::from(status.tip.height)),
        ("transactions", "transactions with a record", count(status.held.transactions)),
        ("rounds", "outpoints with a vote, commit or round", count(status.held.rounds)),
        ("open_transactions", "transactions voted for and not ended", count(status.held.open)),
        ("coins", "coins in memory", count(status.held.coins)),
        ("scripts", "scripts whose outputs are indexed", count(status.held.scripts)),
        ("accounts", "accounts that are indexed", count(status.held.accounts)),
        ("coordinations", "transactions under coordination", count(status.held.coordinations)),
        ("releases", "releases being pushed", count(status.held.releases)),
        ("announcements", "final transactions not heard by all", count(status.held.announcements)),
        ("breaches", "enforced transactions that a block contradicts", count(status.breaches.len())),
        ("sessions", "sessions of wallets and bridges", count(status.held.sessions)),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(value));
    }
    registry.register("log_records", "records in the durable log", ConstCounter::new(status.log_records));
    let evidence = Family::<Kind, Gauge>::default();
    for kind in EvidenceKind::ALL {
        let proven = count(status.evidence.get(&kind).copied().unwrap_or(0));
        evidence.get_or_create(&Kind { kind: kind.to_string() }).set(proven);
    }
    registry.register("evidence", "proven cheats that are kept", evidence);
    let silence = Family::<Node, Gauge<f64, AtomicU64>>::default();
    for (node, seconds) in &status.seconds_since_heard {
        silence.get_or_create(&Node { node: node.0 }).set(*seconds);
    }
    registry.register(
        "store_commit_change_sets",
        "change sets that shared a sync of the store",
        commits.sets,
    );
    let help = "time that a commit of the store took, sync included";
    registry.register_with_unit("store_commit", help, Unit::Seconds, commits.seconds);
    registry.register_with_unit("peer_silence", "time since a peer was heard of", Unit::Seconds, silence);
    let mut text = String::new();
    encode(&mut text, &registry).map_or_else(|error| error.to_string(), |()| text)
}
