//! Accepts connections and has them served as HTTP: an upgrade to a WebSocket, or small answers for some seconds. None
//! of them waits for anybody for long.

use crate::{
    admission::{Admission, ConnectionId, Refused, TurnedAway},
    allowance::AddressAllowance,
    tls::Certificates,
};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    time::{sleep, timeout},
};

/// From a connection to the end of its answer, TLS included: a node may have to be asked for the document.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's headers.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Wait after a connection could not be accepted: there are no descriptors, and others have to end first.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// Descriptors that are not for connections: the nodes, files, standard streams, and some to spare.
const DESCRIPTORS_RESERVED: usize = 32;

/// All connections, with what ends each.
#[derive(Debug)]
pub(crate) struct Door {
    state: Mutex<State>,
    /// Woken when somebody has left.
    left: Notify,
}

#[derive(Debug)]
struct State {
    admission: Admission,
    /// Ends connections that are no sessions yet.
    ends: HashMap<ConnectionId, Arc<Notify>>,
}

/// A connection's place; it is given back when the last holder drops it.
pub(crate) struct Seat {
    door: Arc<Door>,
    id: ConnectionId,
    /// Whom the connection is from, by TCP.
    pub(crate) peer: IpAddr,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.door.lock();
        state.admission.leave(self.id);
        state.ends.remove(&self.id);
        drop(state);
        self.door.left.notify_waiters();
    }
}

impl Seat {
    /// The connection becomes a session of an address.
    pub(crate) fn take(&self, from: IpAddr) -> Result<Option<AddressAllowance>, Refused> {
        self.door.lock().admission.seat(self.id, from)
    }
}

impl Door {
    /// With room for so many connections, or as many as there are descriptors for.
    pub(crate) fn new(connections_max: usize, per_address_max: usize) -> Arc<Self> {
        let descriptors = descriptors();
        let most = connections_max.min(descriptors.saturating_sub(DESCRIPTORS_RESERVED)).max(1);
        if most < connections_max {
            tracing::warn!(
                connections_max = most,
                descriptors,
                "fewer connections than configured: raise the hard limit of open files (`ulimit -Hn`, LimitNOFILE)"
            );
        }
        let admission = Admission::new(most, per_address_max);
        Arc::new(Self { state: Mutex::new(State { admission, ends: HashMap::new() }), left: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(self: &Arc<Self>, peer: IpAddr) -> (Seat, Arc<Notify>) {
        let end = Arc::new(Notify::new());
        let mut state = self.lock();
        let (id, goes) = state.admission.arrive(peer);
        if let Some(goes) = goes.and_then(|goes| state.ends.remove(&goes)) {
            goes.notify_one();
        }
        state.ends.insert(id, end.clone());
        drop(state);
        (Seat { door: self.clone(), id, peer }, end)
    }

    /// A page that may not use this bridge has tried to.
    pub(crate) fn refuse_page(&self) {
        self.lock().admission.refuse_page();
    }

    /// How many were turned away since the start.
    pub(crate) fn turned_away(&self) -> TurnedAway {
        self.lock().admission.turned_away()
    }

    /// Connections, and those of them that are sessions.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        self.lock().admission.sizes()
    }

    /// Waits until all connections have ended.
    pub(crate) async fn empty(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.sizes().0 == 0 {
                return;
            }
            left.await;
        }
    }
}

/// As many descriptors as the process may have; most systems give it fewer until it asks.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    let current = getrlimit(Resource::Nofile).current;
    current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Accepts connections until the bridge stops.
pub(crate) async fn run(
    listener: TcpListener,
    certificates: Option<Certificates>,
    door: Arc<Door>,
    app: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let mut short = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                short = false;
                // Before anything else: what is accepted counts.
                let (seat, end) = door.arrive(peer.ip());
                tokio::spawn(connection(stream, peer, certificates.clone(), (seat, end), app.clone()));
            }
            // A connection that was gone before it was accepted is nobody's fault.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !short {
                    tracing::warn!(%error, "connections cannot be accepted; it is tried again");
                }
                short = true;
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    certificates: Option<Certificates>,
    (seat, end): (Seat, Arc<Notify>),
    app: Router,
) {
    // Small frames that answer each other must not wait for acknowledgements.
    let _only_slower = stream.set_nodelay(true);
    let served = async {
        match certificates {
            None => request(stream, seat, app).await,
            Some(certificates) => {
                let acceptor = certificates.borrow().clone();
                match acceptor.accept(stream).await {
                    Ok(stream) => request(stream, seat, app).await,
                    Err(error) => tracing::debug!(%error, "no TLS"),
                }
            }
        }
    };
    tokio::select! {
        served = timeout(REQUEST_TIMEOUT, served) => {
            if served.is_err() {
                tracing::debug!(%peer, "no request, or nobody who reads its answer, in time");
            }
        }
        () = end.notified() => tracing::debug!(%peer, "closed for one that came later"),
    }
}

/// One request. An upgraded connection goes on without this.
async fn request<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, seat: Seat, app: Router) {
    let service = TowerToHyperService::new(app.layer(Extension(Arc::new(seat))));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT).max_buf_size(HEADER_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection failed");
    }
}
