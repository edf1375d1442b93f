//! A session of a wallet or a bridge: its messages go to the machine, and what the machine has for it goes out.

use super::{
    guests::Guest,
    not_ready,
    outgoing::{Frame, Outgoing, Seat, Turn, WeakOutgoing},
};
use crate::run::{
    input::Input,
    queue::{Inputs, Speaker},
};
use anyhow::Result;
use bytes::Bytes;
use quorate_protocol::wire::{
    ClientMessage, ErrorCode, Fault, PeerRequest, ServerMessage, WireError, decode, encode_frame,
};
use quorate_quic::{FrameReader, write_message};
use quorate_rules::SessionId;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Frames that are written at once.
const TOGETHER_MAX: usize = 64;
/// Why a session was ended that does not read what it is told.
const TOO_SLOW: quinn::VarInt = quinn::VarInt::from_u32(2);
/// Messages of a session that may stand in line for the machine, or have answers that wait for the store.
const SESSION_INPUTS_MAX: usize = 16;

/// Serves one of a certificate's sessions. `inputs` are the machine's, if there is one yet.
pub(super) async fn serve_session(
    mut send: quinn::SendStream,
    receive: quinn::RecvStream,
    session: SessionId,
    guest: &Arc<Guest>,
    inputs: Option<Inputs>,
) -> Result<()> {
    let refusal = |error| ServerMessage::Error { error };
    let Some(room) = guest.session() else {
        let message = "too many sessions with this certificate; end some, or try again";
        let error = WireError::passing(ErrorCode::LimitExceeded, Fault::Sender, message);
        write_message(&mut send, None, &refusal(error)).await?;
        return Ok(send.finish()?);
    };
    let Some(inputs) = inputs else {
        let error = not_ready("the federation key is being generated; try again");
        write_message(&mut send, None, &refusal(error)).await?;
        return Ok(send.finish()?);
    };
    let by = Speaker { guest: guest.number, session: session.number };
    let (frames, mut out) = Outgoing::new(guest.clone());
    // The dispatcher's decides how long the session lives; this one only answers frames that cannot be read.
    let local = frames.weak();
    let seat = Seat { _room: room, _guest: guest.clone() };
    inputs.said(by, Input::Opened { session, frames })?;
    let ended = tokio::select! {
        ended = read(receive, session, guest, &inputs, &local) => ended,
        () = write(&mut send, &mut out.frames) => Ok(()),
        () = out.slow.notified() => {
            // What waits is not worth its room any more. The stream may have ended.
            let _ended = send.reset(TOO_SLOW);
            Ok(())
        }
    };
    inputs.said(by, Input::Closed { session, seat: Some(seat) })?;
    ended
}

async fn write(send: &mut quinn::SendStream, outgoing: &mut mpsc::Receiver<Frame>) {
    // Those that wait go out together: the connection is woken once for them, and they share packets.
    let mut waiting = Vec::new();
    while outgoing.recv_many(&mut waiting, TOGETHER_MAX).await > 0 {
        let frames = waiting.drain(..).map(|Frame { bytes, held }| (Bytes::from(bytes), held));
        let (mut frames, held): (Vec<Bytes>, Vec<_>) = frames.unzip();
        if send.write_all_chunks(&mut frames).await.is_err() {
            return;
        }
        drop(held);
    }
    // The peer may be gone.
    let _gone = send.finish();
}

async fn read(
    receive: quinn::RecvStream,
    session: SessionId,
    guest: &Arc<Guest>,
    inputs: &Inputs,
    local: &WeakOutgoing,
) -> Result<()> {
    let by = Speaker { guest: guest.number, session: session.number };
    let mut frames = FrameReader::of::<ClientMessage>(receive);
    let places = Arc::new(Semaphore::new(SESSION_INPUTS_MAX));
    loop {
        local.has_read().await;
        let place = places.clone().acquire_owned().await?;
        let Some((json, room)) = guest.heard().next(&mut frames).await? else { return Ok(()) };
        match decode(&json) {
            Ok(envelope) => {
                drop(json);
                let turn = Turn { _place: place, _room: room, _guest: guest.clone() };
                let (id, message) = (envelope.id, envelope.body);
                inputs.said(by, Input::Client { session, id, message, turn })?;
            }
            Err((id, error)) => {
                let error = if decode::<PeerRequest>(&json).is_ok() {
                    WireError::sender(ErrorCode::WrongRole, "this message is for nodes only")
                } else {
                    error
                };
                // One that does not read its answers is closed with the next of the machine's.
                let _slow = local.send(encode_frame(id, &ServerMessage::Error { error }));
            }
        }
    }
}
