//! Prometheus metrics of a bridge.

use crate::{admission::TurnedAway, machine::Machine};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

/// What they are sent as.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics as text.
pub(crate) fn text(
    machine: &Machine,
    connected: usize,
    connections: usize,
    turned_away: TurnedAway,
) -> String {
    let mut registry = Registry::with_prefix("quorate_bridge");
    let (sessions, relays) = machine.sizes();
    let gauges = [
        ("connections", "TCP connections of wallets", connections),
        ("sessions", "WebSocket sessions", sessions),
        ("relays", "requests that a node is answering", relays),
        ("keys", "keys that somebody is subscribed to", machine.keys()),
        ("nodes_connected", "nodes connected over QUIC", connected),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    }
    let counters = machine.counters();
    let counters = [
        ("notifications_forwarded", "notifications sent to sessions", counters.forwarded),
        ("notifications_duplicate", "copies from other nodes that were dropped", counters.duplicates),
        ("gaps", "subscriptions that lost notifications because a session was slow", counters.gaps),
        ("keys_refused", "keys for which a session, an address or the bridge had no room", counters.refused),
        (
            "accounts_refused",
            "accounts that an address wanted registered beyond its share",
            counters.accounts_refused,
        ),
        ("connections_evicted", "connections that made room before they were sessions", turned_away.evicted),
        ("sessions_refused_full", "sessions for which the bridge was full", turned_away.full),
        ("sessions_refused_address", "sessions of addresses that had all they may", turned_away.address),
        ("sessions_refused_page", "sessions of pages that may not use this bridge", turned_away.page),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, ConstCounter::new(value));
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_or_else(|error| error.to_string(), |()| text)
}
