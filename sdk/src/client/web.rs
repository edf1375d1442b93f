//! WebSocket to a bridge in browsers, workers and any runtime that has the standard `WebSocket`.

use super::{CHANNEL_FRAMES_MAX, Connecting, Connection, Transport, TransportError, hand_over};
use crate::wire::limits;
use tokio::sync::mpsc;
use wasm_bindgen::{JsCast as _, JsValue, closure::Closure};
use web_sys::{CloseEvent, MessageEvent};

/// Makes a socket from address and subprotocol: for runtimes whose `WebSocket` is not the global one.
pub type SocketFactory = js_sys::Function;

/// A bridge's address, `ws://` or `wss://`. Several addresses are tried in turn, so that a lost bridge is not a lost
/// session.
#[derive(Clone, Debug)]
pub struct WebSocket {
    urls: Vec<String>,
    factory: Option<SocketFactory>,
    next: usize,
}

impl WebSocket {
    /// One bridge.
    pub fn new(url: impl Into<String>) -> Self {
        Self { urls: vec![url.into()], factory: None, next: 0 }
    }

    /// Another bridge, for when the ones before cannot be reached.
    #[must_use]
    pub fn or(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
        self
    }

    /// Makes its sockets with `factory(url, protocol)` instead of the global constructor.
    #[must_use]
    pub fn with_factory(mut self, factory: Option<SocketFactory>) -> Self {
        self.factory = factory;
        self
    }

    fn open(&self, url: &str) -> Result<web_sys::WebSocket, JsValue> {
        match &self.factory {
            Some(factory) => {
                let socket = factory.call2(&JsValue::NULL, &url.into(), &limits::PROTOCOL.into())?;
                // Every implementation has the standard methods; few are the same class.
                Ok(socket.unchecked_into())
            }
            None => web_sys::WebSocket::new_with_str(url, limits::PROTOCOL),
        }
    }
}

impl Transport for WebSocket {
    fn connect(&mut self) -> Connecting {
        let url = self.urls.get(self.next % self.urls.len().max(1)).cloned().unwrap_or_default();
        self.next = self.next.wrapping_add(1);
        let opened = self.open(&url);
        Box::pin(async move {
            let socket = opened
                .map_err(|error| TransportError::broken(format!("cannot open {url}: {}", text_of(&error))))?;
            establish(Socket::new(socket), &url).await
        })
    }
}

enum Happened {
    Opened,
    Frame(String),
    Ended(String),
}

/// A socket with its handlers; closed and silent when dropped.
struct Socket {
    socket: web_sys::WebSocket,
    happened: mpsc::Receiver<Happened>,
    _handlers: [Closure<dyn FnMut(JsValue)>; 4],
}

impl Socket {
    fn new(socket: web_sys::WebSocket) -> Self {
        let (sender, happened) = mpsc::channel(CHANNEL_FRAMES_MAX);
        let tell = |what: fn(&JsValue) -> Happened| {
            let (sender, socket) = (sender.clone(), socket.clone());
            Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
                // A reader that is so far behind is better served by a new snapshot than by a full memory.
                if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(what(&event)) {
                    let _already_closing = socket.close();
                }
            })
        };
        let handlers = [tell(|_| Happened::Opened), tell(frame), tell(ended), tell(failed)];
        let [open, message, close, error] = &handlers;
        socket.set_onopen(Some(open.as_ref().unchecked_ref()));
        socket.set_onmessage(Some(message.as_ref().unchecked_ref()));
        socket.set_onclose(Some(close.as_ref().unchecked_ref()));
        socket.set_onerror(Some(error.as_ref().unchecked_ref()));
        Self { socket, happened, _handlers: handlers }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.socket.set_onopen(None);
        self.socket.set_onmessage(None);
        self.socket.set_onclose(None);
        // To close a socket that is still connecting is an error, which some runtimes throw unless somebody listens.
        let ignore = (self.socket.ready_state() == web_sys::WebSocket::CONNECTING)
            .then(|| Closure::once_into_js(|| {}).unchecked_into::<js_sys::Function>());
        self.socket.set_onerror(ignore.as_ref());
        let _already_closed = self.socket.close();
    }
}

async fn establish(mut socket: Socket, url: &str) -> Result<Connection, TransportError> {
    match socket.happened.recv().await {
        Some(Happened::Opened) => {}
        Some(Happened::Ended(reason)) => {
            return Err(TransportError::broken(format!("cannot connect to {url}: {reason}")));
        }
        Some(Happened::Frame(_)) | None => {
            return Err(TransportError::broken(format!("{url} does not speak WebSocket")));
        }
    }
    let (to_server, mut outgoing) = mpsc::channel::<String>(CHANNEL_FRAMES_MAX);
    let (incoming, from_server) = mpsc::channel(CHANNEL_FRAMES_MAX);
    super::runtime::spawn(async move {
        // What the driver has no room for yet. Sending goes on meanwhile: the driver may be waiting for just that.
        let mut read = None;
        loop {
            tokio::select! {
                frame = outgoing.recv() => match frame {
                    Some(text) if socket.socket.send_with_str(&text).is_ok() => {}
                    Some(_) | None => break,
                },
                room = incoming.reserve(), if read.is_some() => {
                    if !hand_over(room, &mut read) {
                        break;
                    }
                }
                happened = socket.happened.recv(), if read.is_none() => {
                    read = Some(match happened {
                        Some(Happened::Frame(text)) => Ok(text),
                        Some(Happened::Opened) => continue,
                        Some(Happened::Ended(reason)) => Err(TransportError::broken(reason)),
                        None => Err(TransportError::Closed),
                    });
                }
            }
        }
    });
    Ok(Connection { to_server, from_server })
}

fn frame(event: &JsValue) -> Happened {
    match event.unchecked_ref::<MessageEvent>().data().as_string() {
        Some(text) => Happened::Frame(text),
        None => Happened::Ended("the server sent a binary frame".to_owned()),
    }
}

fn ended(event: &JsValue) -> Happened {
    let event = event.unchecked_ref::<CloseEvent>();
    let reason = event.reason();
    Happened::Ended(if reason.is_empty() { format!("closed with code {}", event.code()) } else { reason })
}

fn failed(_: &JsValue) -> Happened {
    Happened::Ended("the connection failed".to_owned())
}

fn text_of(error: &JsValue) -> String {
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => error.as_string().unwrap_or_else(|| "no WebSocket in this runtime".to_owned()),
    }
}
