//! The operator's HTTP face: status, evidence, health and metrics. It tells; it changes nothing.
//!
//! It listens on the loopback address unless the configuration says otherwise, because it names peers and counts
//! payments.

use super::metrics;
use crate::{
    chain::Chain,
    run::{input::Input, live::Live},
};
use anyhow::Result;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use quorate_protocol::wire::{ErrorCode, Fault, WireError};
use quorate_rules::{Progress, Standing, Status};
use serde::Serialize;
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

#[derive(Clone)]
struct Api {
    live: watch::Receiver<Option<Live>>,
    chain: Arc<dyn Chain>,
}

/// Status of the machine, and of the epoch that is being prepared.
#[derive(Serialize)]
struct WholeStatus {
    #[serde(flatten)]
    status: Status,
    /// Which of its backends is asked, in the order of `node.toml`: 0 is the preferred one.
    backend: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_epoch: Option<Progress>,
}

/// Serves until the node ends.
pub(crate) async fn serve(
    address: SocketAddr,
    live: watch::Receiver<Option<Live>>,
    chain: Arc<dyn Chain>,
) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(%address, "the operator's API is at http://{address}/api/v1/status");
    let app = Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/evidence", get(evidence))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .with_state(Api { live, chain });
    Ok(axum::serve(listener, app).await?)
}

impl Api {
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Response> {
        let live = self.live.borrow().clone();
        let live = live.ok_or_else(|| refuse("the federation key is being generated; try again"))?;
        let inputs = live.inputs.ok_or_else(|| {
            let progress = live.progress.borrow().as_ref().map(|progress| progress.step);
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
            let next_epoch = api.live.borrow().as_ref().and_then(|live| live.progress.borrow().clone());
            Json(WholeStatus { status, backend: api.chain.preference(), next_epoch }).into_response()
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
    match api.ask(|reply| Input::Metrics { reply }).await {
        Ok((status, commits)) => metrics::text(&status, api.chain.preference(), commits).into_response(),
        Err(refusal) => refusal,
    }
}
