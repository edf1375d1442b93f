//! The devnet's face for browsers: the example wallet, what it needs to know to connect, and money to play with.

use crate::Treasury;
use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    routing::{get, post},
};
use bitcoin::{Address, Amount, Network, address::NetworkUnchecked};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::Path};
use tokio::net::TcpListener;
use tower_http::{
    cors::CorsLayer,
    services::{ServeDir, ServeFile},
    set_header::SetResponseHeaderLayer,
};

/// Most that one request is given: half of a reward.
const GIFT_MAX: Amount = Amount::from_sat(25 * 100_000_000);

/// Scripts, styles and WebAssembly of the page's own only; sockets to any bridge.
const CONTENT_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// The same of the page for leaving, which asks Esplora servers and no bridge.
const LEAVING_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self' https: http://127.0.0.1:* http://localhost:*; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'",
);

/// What a page needs to connect.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Description {
    /// The bridge's WebSocket address.
    pub(crate) bridge: String,
    /// The federation's id, to pin.
    pub(crate) federation: String,
    /// The network.
    pub(crate) network: Network,
}

#[derive(Clone, Debug)]
struct Site {
    description: Description,
    treasury: Treasury,
}

#[derive(Deserialize)]
struct Gift {
    address: Address<NetworkUnchecked>,
    #[serde(with = "bitcoin::amount::serde::as_sat")]
    amount: Amount,
}

/// Serves the pages in `pages` until the process ends.
pub(crate) async fn serve(
    listen: SocketAddr,
    pages: &Path,
    description: Description,
    treasury: Treasury,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let leaving = Router::new()
        .route_service("/recover.html", ServeFile::new(pages.join("recover.html")))
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, LEAVING_POLICY));
    let site = Router::new()
        .route("/devnet.json", get(describe))
        .route("/devnet/fund", post(give))
        .route("/devnet/mine", post(mine))
        .merge(leaving)
        .with_state(Site { description, treasury })
        // Play money is for pages of other servers too, such as the one of a developer.
        .layer(CorsLayer::permissive())
        .fallback_service(ServeDir::new(pages))
        .layer(SetResponseHeaderLayer::if_not_present(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY))
        .layer(SetResponseHeaderLayer::overriding(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache"),
        ));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, site).await {
            tracing::error!(%error, "the pages are no longer served");
        }
    });
    Ok(address)
}

async fn describe(State(site): State<Site>) -> Json<Description> {
    Json(site.description)
}

async fn give(State(site): State<Site>, Json(gift): Json<Gift>) -> Result<StatusCode, (StatusCode, String)> {
    let refused = |error: &dyn std::fmt::Display| (StatusCode::BAD_REQUEST, error.to_string());
    let address = gift.address.require_network(site.description.network).map_err(|error| refused(&error))?;
    if gift.amount > GIFT_MAX {
        return Err(refused(&format!("at most {GIFT_MAX} at a time")));
    }
    site.treasury.fund(&address, gift.amount).map_err(|error| refused(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn mine(State(site): State<Site>) -> Result<StatusCode, (StatusCode, String)> {
    site.treasury.mine(1).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}
