//! The operator's HTTP face: status, evidence, health and metrics. It tells; it changes nothing.
//!
//! It listens on the loopback address unless the configuration says otherwise, because it names peers and counts payments.

use crate::{driver::Input, server::Live, succession::Progress};
use anyhow::Result;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use quorate_protocol::{
    evidence::EvidenceKind,
    wire::{ErrorCode, Fault, WireError},
};
use quorate_rules::{Standing, Status};
use serde::Serialize;
use std::net::SocketAddr;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

#[derive(Clone)]
struct Api {
    live: watch::Receiver<Option<Live>>,
}

/// Status of the machine, and of the epoch that is being prepared.
#[derive(Serialize)]
struct WholeStatus {
    #[serde(flatten)]
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_epoch: Option<Progress>,
}

/// Serves until the node ends.
pub(crate) async fn serve(address: SocketAddr, live: watch::Receiver<Option<Live>>) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(%address, "the operator's API is at http://{address}/api/v1/status");
    let app = Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/evidence", get(evidence))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(Api { live });
    Ok(axum::serve(listener, app).await?)
}

impl Api {
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Response> {
        let live = self.live.borrow().clone();
        let live = live.ok_or_else(|| refuse("the federation key is being generated; try again"))?;
        let inputs = live.inputs.ok_or_else(|| {
            let progress = live.news.progress().map(|progress| progress.step);
            let step = progress.unwrap_or("waiting for the plan that makes it one");
            refuse(&format!("this node is not a member yet: {step}"))
        })?;
        let (reply, answer) = oneshot::channel();
        inputs.send(question(reply)).await.map_err(|_| refuse("this node is stopping"))?;
        answer.await.map_err(|_| refuse("this node is stopping"))
    }
}

fn refuse(message: &str) -> Response {
    let error = WireError::passing(ErrorCode::NotReady, Fault::Receiver, message);
    (StatusCode::SERVICE_UNAVAILABLE, Json(error)).into_response()
}

async fn status(State(api): State<Api>) -> Response {
    match api.ask(|reply| Input::Status { reply }).await {
        Ok(status) => {
            let next_epoch = api.live.borrow().as_ref().and_then(|live| live.news.progress());
            Json(WholeStatus { status, next_epoch }).into_response()
        }
        Err(refusal) => refusal,
    }
}

async fn evidence(State(api): State<Api>) -> Response {
    match api.ask(|reply| Input::Evidence { reply }).await {
        Ok(file) => Json(file).into_response(),
        Err(refusal) => refusal,
    }
}

/// 200 if this node votes, 503 with the reason if it does not.
async fn health(State(api): State<Api>) -> Response {
    match api.ask(|reply| Input::Status { reply }).await {
        Ok(Status { standing: Standing::Voting, .. }) => "voting".into_response(),
        Ok(Status { standing, .. }) => (StatusCode::SERVICE_UNAVAILABLE, Json(standing)).into_response(),
        Err(refusal) => refusal,
    }
}

async fn metrics(State(api): State<Api>) -> Response {
    match api.ask(|reply| Input::Status { reply }).await {
        Ok(status) => metrics_text(&status).into_response(),
        Err(refusal) => refusal,
    }
}

fn metrics_text(status: &Status) -> String {
    let mut registry = Registry::with_prefix("quorate_node");
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let gauges = [
        ("voting", "1 if this node votes", i64::from(status.standing == Standing::Voting)),
        (
            "lost_its_vote",
            "1 if its memory cannot be trusted in this epoch",
            i64::from(matches!(status.standing, Standing::Lost { .. })),
        ),
        ("epoch", "the epoch that it is in", i64::try_from(status.epoch.0).unwrap_or(i64::MAX)),
        ("tip_height", "height of its chain", i64::from(status.tip.height)),
        ("transactions", "transactions with a record", count(status.held.transactions)),
        ("rounds", "outpoints with a vote, commit or round", count(status.held.rounds)),
        ("open_transactions", "transactions voted for and not ended", count(status.held.open)),
        ("coordinations", "transactions under coordination", count(status.held.coordinations)),
        ("releases", "releases being pushed", count(status.held.releases)),
        ("announcements", "final transactions not heard by all", count(status.held.announcements)),
        ("sessions", "sessions of wallets and bridges", count(status.held.sessions)),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(value));
    }
    registry.register("log_records", "records in the durable log", ConstCounter::new(status.log_records));
    for kind in EvidenceKind::ALL {
        let proven = count(status.evidence.get(&kind).copied().unwrap_or(0));
        registry.register(format!("evidence_{kind}"), "proven cheats", ConstGauge::new(proven));
    }
    for (node, silence) in &status.seconds_since_heard {
        let name = format!("peer_{node}_silence");
        registry.register_with_unit(
            name,
            "time since it was heard of",
            Unit::Seconds,
            ConstGauge::new(*silence),
        );
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_or_else(|error| error.to_string(), |()| text)
}
