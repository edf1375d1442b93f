//! The driver: does what the session says, and nothing else.

use super::{
    Connecting, Connection, Store, StoreError, Transport, TransportError,
    runtime::{Instant, sleep_until, wall_time},
};
use crate::session::{Event, Now, Output, Session};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::{Notify, broadcast, mpsc, watch};

/// A connection that is not open after so long is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Gives a call its answer.
pub(super) type Reply = Box<dyn FnOnce() + Send>;
pub(super) type Command = Box<dyn FnOnce(&mut Session, Duration) -> Reply + Send>;

pub(super) struct Driver {
    pub(super) session: Session,
    pub(super) transport: Box<dyn Transport>,
    pub(super) connection: Option<Connection>,
    pub(super) connecting: Option<(Connecting, Instant)>,
    pub(super) store: Option<Box<dyn Store>>,
    pub(super) failed: Arc<OnceLock<StoreError>>,
    pub(super) stop: Arc<Notify>,
    pub(super) _alive: watch::Sender<()>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) started: Instant,
}

impl Driver {
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut reply: Option<Reply> = None;
        loop {
            if let Err(error) = self.drain().await {
                // Calls that are waiting end with this.
                let _first_failure = self.failed.set(error);
                return;
            }
            // What a caller is told, it can rely on after a crash: an answer waits until what it did is saved.
            if let Some(reply) = reply.take() {
                reply();
            }
            let timeout = self.session.poll_timeout().map(|at| self.started + at);
            let stop = self.stop.clone();
            tokio::select! {
                () = stop.notified() => return,
                command = commands.recv() => match command {
                    Some(command) => {
                        let now = self.now();
                        reply = Some(command(&mut self.session, now));
                    }
                    None => return,
                },
                frame = receive(&mut self.connection) => {
                    let now = self.now();
                    match frame {
                        Ok(text) => self.session.handle_text(now, &text),
                        Err(error) => {
                            self.connection = None;
                            self.session.handle_disconnected(now, &error.to_string());
                        }
                    }
                }
                opened = open(&mut self.connecting) => {
                    self.connecting = None;
                    let now = self.now();
                    match opened {
                        Ok(connection) => {
                            self.connection = Some(connection);
                            self.session.handle_connected(now);
                        }
                        Err(error) => self.session.handle_disconnected(now, &error.to_string()),
                    }
                }
                () = wake_at(timeout) => {
                    let now = self.now();
                    self.session.handle_timeout(now);
                }
            }
        }
    }

    /// The time, as the session is told it before anything that happens: the machine may have slept since the last.
    fn now(&mut self) -> Now {
        self.session.set_wall_time(wall_time());
        self.started.elapsed()
    }

    async fn drain(&mut self) -> Result<(), StoreError> {
        while let Some(output) = self.session.poll_output() {
            match output {
                // Connecting may take its time; calls, timers and the end do not wait for it.
                Output::Connect => {
                    self.connecting = Some((self.transport.connect(), Instant::now() + CONNECT_TIMEOUT));
                }
                Output::Send(text) => {
                    let sent = match &self.connection {
                        // A server that does not read cannot keep the client from ending.
                        Some(connection) => tokio::select! {
                            sent = connection.to_server.send(text) => sent.is_ok(),
                            () = self.stop.notified() => {
                                self.stop.notify_one();
                                false
                            }
                        },
                        None => true,
                    };
                    if !sent {
                        self.connection = None;
                        self.session.handle_disconnected(self.started.elapsed(), "the connection broke");
                    }
                }
                Output::Close => (self.connection, self.connecting) = (None, None),
                Output::Event(event) => {
                    // Nobody may be listening.
                    let _listeners = self.events.send(event);
                }
                Output::Save(change) => {
                    if let Some(store) = &mut self.store {
                        store.save(change).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

async fn receive(connection: &mut Option<Connection>) -> Result<String, TransportError> {
    match connection {
        Some(connection) => {
            let item = connection.from_server.recv().await;
            item.unwrap_or_else(|| Err(TransportError::Closed))
        }
        None => std::future::pending().await,
    }
}

async fn open(connecting: &mut Option<(Connecting, Instant)>) -> Result<Connection, TransportError> {
    match connecting {
        Some((connecting, deadline)) => tokio::select! {
            opened = connecting => opened,
            () = sleep_until(*deadline) => Err(TransportError::Silent),
        },
        None => std::future::pending().await,
    }
}

async fn wake_at(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
