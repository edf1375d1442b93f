//! One wallet's WebSocket: reads frames into the machine, writes what the machine has for it.

use crate::{driver::Driver, session::Next};
use axum::extract::ws::{Message, WebSocket};
use quorate_protocol::wire::{ClientMessage, Envelope, ServerMessage, decode, encode_text, limits};
use std::sync::Arc;
use tokio::{
    sync::watch,
    time::{Instant, interval_at, timeout},
};

/// When a wallet should come back after a shutdown, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;

pub(crate) async fn serve(mut socket: WebSocket, driver: Arc<Driver>, mut stopping: watch::Receiver<bool>) {
    let (session, writer) = driver.open();
    let mut ping = interval_at(Instant::now() + limits::PING_INTERVAL, limits::PING_INTERVAL);
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                // Read here, not under the lock that all wallets share.
                Some(Ok(Message::Text(text))) => match decode::<ClientMessage>(text.as_bytes()) {
                    Ok(Envelope { id, body }) => {
                        driver.with(|machine, now| machine.handle_message(now, session, id, body));
                    }
                    Err((id, error)) => {
                        driver.with(|machine, now| machine.handle_malformed(now, session, id, error));
                    }
                },
                Some(Ok(Message::Binary(_))) => {
                    driver.with(|machine, now| machine.handle_binary(now, session));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                    driver.with(|machine, now| machine.handle_alive(now, session));
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
            // One at a time, so that a wallet that reads slowly is still listened to.
            () = writer.notified() => match driver.with(|machine, _| machine.poll_message(session)) {
                Next::Message(id, message) => {
                    let frame = Message::text(encode_text(id, &message));
                    if !matches!(timeout(limits::PING_INTERVAL, socket.send(frame)).await, Ok(Ok(()))) {
                        break;
                    }
                    writer.notify_one();
                }
                Next::Nothing => {}
                Next::Closed => break,
            },
            _ = ping.tick() => {
                driver.with(|machine, now| machine.check_alive(now, session));
                if socket.send(Message::Ping(axum::body::Bytes::new())).await.is_err() {
                    break;
                }
            }
            () = stopped(&mut stopping) => {
                let message = ServerMessage::GoingAway { retry_after: RETRY_AFTER_MS };
                let _gone = socket.send(Message::text(encode_text(None, &message))).await;
                break;
            }
        }
    }
    driver.close(session);
    let _gone = socket.send(Message::Close(None)).await;
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _stopped = stopping.wait_for(|stopping| *stopping).await;
}
