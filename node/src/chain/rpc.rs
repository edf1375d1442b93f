//! JSON-RPC over HTTP, as Bitcoin Core has it: one call, or many of one method in a few requests.

use super::{ChainError, DaemonError};
use reqwest::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long an answer may take; a wait for a block takes up to 20 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one to a question about all unspent outputs may take: minutes on a spinning disk.
const LONG_TIMEOUT: Duration = Duration::from_secs(1_800);
/// How long a connection waits for the next call: less than until the daemon closes it (`-rpcservertimeout`, 30 s), so
/// that no call is sent on one that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Bytes of an answer that is no JSON which are told.
const BODY_MAX: usize = 200;

/// Questions about coins and transactions that a daemon has at a time. Blocks and what the follower asks, who never
/// waits for others, are a few besides. Its work queue is bounded, and shared with others: Bitcoin Core before version
/// 30 has 4 threads and 16 places.
const AT_A_TIME: usize = 4;
/// Waits after each of which a daemon is asked again that has no room in its queue.
const BUSY: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Calls in one request.
const BATCH_MAX: usize = 50;
/// Bytes of one request, beyond which the next call goes into another one: Bitcoin Core takes 32 MiB.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// An endpoint.
#[derive(Clone)]
pub(super) struct Rpc {
    client: reqwest::Client,
    /// Takes a new connection for each call.
    afresh: reqwest::Client,
    url: String,
    /// User and password as they are set, or as the cookie file had them last.
    access: Arc<Mutex<(String, String)>>,
    cookie: Option<PathBuf>,
    turns: Arc<Semaphore>,
    timeout: Duration,
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    id: Value,
    result: Value,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: i64,
    message: String,
}

impl Reply {
    fn answer(self) -> Result<Value, DaemonError> {
        match self.error {
            Some(Refusal { code, message }) => Err(DaemonError { code, message }),
            None => Ok(self.result),
        }
    }
}

/// Why a call brought nothing.
pub(super) enum CallError {
    Transport(reqwest::Error),
    Malformed(serde_json::Error),
    Unmatched,
    Busy,
    Http { status: String, body: String },
    Unauthorized(String),
    Refused(DaemonError),
}

impl From<CallError> for ChainError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Transport(error) => Self::Backend(error.into()),
            CallError::Malformed(error) => Self::Backend(error.into()),
            CallError::Busy => Self::Backend("is busy with other questions of this node".into()),
            CallError::Unmatched => Self::Backend("answers that nobody asked for".into()),
            CallError::Http { status, body } => Self::Http { status, body },
            CallError::Unauthorized(what) => Self::Unauthorized(what),
            CallError::Refused(error) => Self::Daemon(error),
        }
    }
}

impl Rpc {
    /// An endpoint with its user and password.
    pub(super) fn new(url: &str, user: &str, password: &str) -> Self {
        let client = reqwest::Client::builder().pool_idle_timeout(IDLE_MAX).build();
        let afresh = reqwest::Client::builder().pool_max_idle_per_host(0).build();
        Self {
            // None of these settings can fail.
            client: client.unwrap_or_default(),
            afresh: afresh.unwrap_or_default(),
            url: url.to_owned(),
            access: Arc::new(Mutex::new((user.to_owned(), password.to_owned()))),
            cookie: None,
            turns: Arc::new(Semaphore::new(AT_A_TIME)),
            timeout: ANSWER_TIMEOUT,
        }
    }

    /// With a file that says user and password.
    pub(super) fn with_cookie(self, cookie: Option<PathBuf>) -> Self {
        Self { cookie, ..self }
    }

    fn access(&self) -> (String, String) {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the cookie file, if there is one.
    fn read_cookie(&self) -> Result<(), CallError> {
        let Some(path) = &self.cookie else { return Ok(()) };
        let unreadable = |why: &str| CallError::Unauthorized(format!("{}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error.to_string()))?;
        let (user, password) = text.trim().split_once(':').ok_or_else(|| unreadable("is no cookie file"))?;
        let read = (user.to_owned(), password.to_owned());
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// Calls a method.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, CallError> {
        let body = json!({"jsonrpc": "1.0", "id": "quorate", "method": method, "params": params});
        let reply: Reply = self.ask(&body).await?;
        let result = reply.answer().map_err(CallError::Refused)?;
        serde_json::from_value(result).map_err(CallError::Malformed)
    }

    /// Calls a method that may take minutes, of which nobody calls several at a time.
    pub(super) async fn call_long<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, CallError> {
        Self { timeout: LONG_TIMEOUT, ..self.clone() }.call(method, params).await
    }

    /// Calls a method that many may want to call at a time, when there is a turn.
    pub(super) async fn call_in_turn<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, CallError> {
        let _turn = self.turn().await?;
        self.call(method, params).await
    }

    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, CallError> {
        let turn = tokio::time::timeout(ANSWER_TIMEOUT, self.turns.acquire()).await;
        // Never closed.
        turn.ok().and_then(Result::ok).ok_or(CallError::Busy)
    }

    /// Calls a method with each of these parameters, in order and one after the other, many in one request: a daemon
    /// that is busy takes its time for each request. Gives the answers in the same order.
    pub(super) async fn call_each(
        &self,
        method: &str,
        params: Vec<Value>,
    ) -> Result<Vec<Result<Value, DaemonError>>, CallError> {
        let mut answers = Vec::with_capacity(params.len());
        let mut params = params.into_iter().enumerate().peekable();
        while params.peek().is_some() {
            let (mut calls, mut bytes) = (Vec::new(), 0);
            while let Some((id, params)) =
                params.next_if(|_| calls.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX)
            {
                bytes += params.to_string().len();
                calls.push(json!({"jsonrpc": "1.0", "id": id, "method": method, "params": params}));
            }
            let asked = answers.len()..answers.len() + calls.len();
            let turn = self.turn().await?;
            let mut replies: Vec<Reply> = self.ask(&Value::Array(calls)).await?;
            drop(turn);
            // A server may answer them in any order.
            replies.sort_by_key(|reply| reply.id.as_u64());
            let ids = replies.iter().map(|reply| reply.id.as_u64());
            if !ids.eq(asked.map(|id| u64::try_from(id).ok())) {
                return Err(CallError::Unmatched);
            }
            answers.extend(replies.into_iter().map(Reply::answer));
        }
        Ok(answers)
    }

    async fn ask<T: DeserializeOwned>(&self, body: &Value) -> Result<T, CallError> {
        let used = self.access();
        let mut answer = self.post_patiently(body).await?;
        if answer.0 == StatusCode::UNAUTHORIZED {
            self.read_cookie()?;
            // Another call may have read it before this one.
            if self.access() == used {
                let user = self.access().0;
                return Err(CallError::Unauthorized(match &self.cookie {
                    Some(path) => format!("what {} says", path.display()),
                    None => format!("the password of user \"{user}\""),
                }));
            }
            answer = self.post_patiently(body).await?;
        }
        let (status, text) = answer;
        match serde_json::from_str(&text) {
            Ok(reply) => Ok(reply),
            Err(error) if status.is_success() => Err(CallError::Malformed(error)),
            // A work queue that stays full, a proxy, another service.
            Err(_) => {
                let body = text.trim().chars().filter(|one| !one.is_control()).take(BODY_MAX).collect();
                Err(CallError::Http { status: status.to_string(), body })
            }
        }
    }

    /// Sends a request, again after a while if there is no room in the work queue.
    async fn post_patiently(&self, body: &Value) -> Result<(StatusCode, String), CallError> {
        for wait in BUSY {
            let answer = self.post(body).await?;
            if answer.0 != StatusCode::SERVICE_UNAVAILABLE {
                return Ok(answer);
            }
            tokio::time::sleep(wait).await;
        }
        self.post(body).await
    }

    /// Sends a request; once more, on a new connection, if its own was closed at that moment: a daemon that was started
    /// again leaves several that are closed and not yet known to be. To have it twice does a daemon no harm: nothing
    /// that nodes ask for is done a second time.
    async fn post(&self, body: &Value) -> Result<(StatusCode, String), CallError> {
        let closed =
            |error: &reqwest::Error| error.is_request() && !error.is_timeout() && !error.is_connect();
        let answer = match self.send(&self.client, body).await {
            Err(error) if closed(&error) => self.send(&self.afresh, body).await,
            answer => answer,
        };
        answer.map_err(CallError::Transport)
    }

    async fn send(
        &self,
        client: &reqwest::Client,
        body: &Value,
    ) -> Result<(StatusCode, String), reqwest::Error> {
        let (user, password) = self.access();
        let request = client.post(&self.url).basic_auth(user, Some(password)).json(body);
        let answer = request.timeout(self.timeout).send().await?;
        let status = answer.status();
        Ok((status, answer.text().await?))
    }
}
