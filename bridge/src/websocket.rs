//! One wallet's WebSocket: reads frames into the machine, writes what the machine has for it.
//!
//! Nothing here waits for the wallet without an end: not a frame that it does not read, nor its part of closing.

use crate::{
    allowance::{AddressAllowance, Allowance, read_for},
    driver::Driver,
    interest::WalletId,
    session::Next,
};
use axum::{
    Error,
    body::Bytes,
    extract::ws::{CloseFrame, Message, WebSocket, close_code},
};
use quorate_protocol::wire::{ClientMessage, Envelope, ServerMessage, decode, encode_text, limits};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, interval_at, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::Error as Fault;

/// When a wallet should come back after a shutdown, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;
/// For the last words: the close frame, and the wallet's answer to it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two looks whether a wallet has been silent for too long.
const ALIVE_LOOK: Duration = Duration::from_secs(5);

/// Why a session ends.
enum End {
    /// The wallet closed it, or its connection is gone.
    Left,
    /// It does not read what it is sent.
    Stuck,
    /// This side closes it (RFC 6455, section 7.4.1).
    Close(u16, &'static str),
}

/// Serves a wallet until one side has enough.
pub(crate) async fn serve(
    mut socket: WebSocket,
    driver: Arc<Driver>,
    address: Option<AddressAllowance>,
    stopping: watch::Receiver<bool>,
) {
    let (session, writer) = driver.open(address.as_ref().map(AddressAllowance::address));
    let ear = Ear { driver: &driver, session, allowance: Allowance::new(Duration::ZERO), address };
    let end = converse(&mut socket, ear, &writer, stopping).await;
    driver.close(session);
    let frame = match end {
        End::Stuck => return,
        // The answer to its close frame leaves with the next look at the socket.
        End::Left => None,
        End::Close(code, reason) => Some(CloseFrame { code, reason: reason.into() }),
    };
    let closing = async {
        if let Some(frame) = frame
            && socket.send(Message::Close(Some(frame))).await.is_err()
        {
            return;
        }
        while let Some(Ok(_)) = socket.recv().await {}
    };
    let _had_its_time = timeout(CLOSE_TIMEOUT, closing).await;
}

async fn converse(
    socket: &mut WebSocket,
    mut ear: Ear<'_>,
    writer: &tokio::sync::Notify,
    mut stopping: watch::Receiver<bool>,
) -> End {
    let (driver, session) = (ear.driver, ear.session);
    let started = Instant::now();
    let mut ping = interval_at(started + limits::PING_INTERVAL, limits::PING_INTERVAL);
    let mut look = interval_at(started + ALIVE_LOOK, ALIVE_LOOK);
    let mut reads_at = started;
    loop {
        let reads = reads_at <= Instant::now();
        tokio::select! {
            message = socket.recv(), if reads => {
                let wait = match message {
                    Some(Ok(message)) => match ear.hear(started.elapsed(), message) {
                        Some(wait) => wait,
                        None => return End::Left,
                    },
                    Some(Err(error)) => return end_of(error),
                    None => return End::Left,
                };
                reads_at = Instant::now() + wait;
            }
            () = sleep_until(reads_at), if !reads => {}
            // One at a time, so that a wallet that reads slowly is still listened to.
            () = writer.notified() => match driver.with(|machine, _| machine.poll_message(session)) {
                Next::Frame(text) => {
                    reads_at = reads_at.max(Instant::now() + ear.told(started.elapsed(), text.as_str().len()));
                    if !send(socket, Message::Text(text)).await {
                        return End::Stuck;
                    }
                    writer.notify_one();
                }
                Next::Nothing => {}
                Next::Closed => {
                    return End::Close(close_code::POLICY, "silent, without Hello, or not reading its answers");
                }
            },
            // Between two pings, so that silence is not noticed one ping late.
            _ = look.tick() => driver.with(|machine, now| machine.check_alive(now, session)),
            _ = ping.tick() => {
                if !send(socket, Message::Ping(Bytes::new())).await {
                    return End::Stuck;
                }
            }
            () = stopped(&mut stopping) => {
                let message = ServerMessage::GoingAway { retry_after: RETRY_AFTER_MS };
                if !send(socket, Message::text(encode_text(None, &message))).await {
                    return End::Stuck;
                }
                return End::Close(close_code::AWAY, "the bridge stops");
            }
        }
    }
}

/// Where a wallet's frames come in.
struct Ear<'a> {
    driver: &'a Driver,
    session: WalletId,
    allowance: Allowance,
    address: Option<AddressAllowance>,
}

impl Ear<'_> {
    /// Hands a frame to the machine; gives the time for which nothing more is read, or nothing if it was the last one.
    fn hear(&mut self, now: Duration, message: Message) -> Option<Duration> {
        let (driver, session) = (self.driver, self.session);
        match message {
            // Read here, not under the lock that all wallets share.
            Message::Text(text) => match decode::<ClientMessage>(text.as_bytes()) {
                Ok(Envelope { id, body }) => {
                    let wait = self.wait(now, text.len(), Some(&body));
                    driver.with(|machine, now| machine.handle_message(now, session, id, body));
                    Some(wait)
                }
                Err((id, error)) => {
                    driver.with(|machine, now| machine.handle_malformed(now, session, id, error));
                    Some(self.wait(now, text.len(), None))
                }
            },
            Message::Binary(bytes) => {
                driver.with(|machine, now| machine.handle_binary(now, session));
                Some(self.wait(now, bytes.len(), None))
            }
            Message::Ping(bytes) | Message::Pong(bytes) => {
                driver.with(|machine, now| machine.handle_alive(now, session));
                Some(self.wait(now, bytes.len(), None))
            }
            Message::Close(_) => None,
        }
    }

    /// A frame is written; gives the time for which nothing more is read.
    fn told(&mut self, now: Duration, written: usize) -> Duration {
        let bytes = read_for(written);
        let shared = self.address.as_ref().map_or(Duration::ZERO, |address| address.take_bytes(bytes));
        self.allowance.take_bytes(now, bytes).max(shared)
    }

    fn wait(&mut self, now: Duration, bytes: usize, message: Option<&ClientMessage>) -> Duration {
        let shared = self.address.as_ref().map_or(Duration::ZERO, |address| address.take(bytes, message));
        self.allowance.take(now, bytes, message).max(shared)
    }
}

/// Writes a frame; `false` if the wallet does not take it for as long as it may be silent.
async fn send(socket: &mut WebSocket, message: Message) -> bool {
    matches!(timeout(limits::PING_INTERVAL, socket.send(message)).await, Ok(Ok(())))
}

/// What to say to a frame that is none.
fn end_of(error: Error) -> End {
    match error.into_inner().downcast_ref::<Fault>() {
        Some(Fault::Protocol(_)) => End::Close(close_code::PROTOCOL, "not a WebSocket frame"),
        Some(Fault::Utf8(_)) => End::Close(close_code::INVALID, "text is UTF-8"),
        Some(Fault::Capacity(_)) => End::Close(close_code::SIZE, "messages have at most 1 MiB"),
        // The connection is gone.
        _ => End::Left,
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _stopped = stopping.wait_for(|stopping| *stopping).await;
}
