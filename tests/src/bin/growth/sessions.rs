//! `npm run bench -- growth --sessions N`: what idle sessions cost a bridge, with its limits as they are by default.
//! The bridge is in this process, the clients are in another one.

use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use quorate::wire::{ClientMessage, encode_text, limits};
use quorate_tests::{
    Cluster,
    process::{cpu, memory},
    wallets::federation,
};
use serde_json::json;
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::Command,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

/// Sessions that are opened at a time.
const AT_A_TIME: usize = 64;
/// Time for which they are watched.
const WATCHED: Duration = Duration::from_secs(10);

pub(crate) async fn measure(cluster: &Cluster, count: usize, as_json: bool) -> Result<()> {
    // The first ones make what all of them share.
    let mut warm = dial(cluster, 16).await?;
    let me = std::process::id();
    let before = memory(me)?;
    let mut clients = dial(cluster, count).await?;
    let (after, idle) = (memory(me)?, cpu(me)?);
    tokio::time::sleep(WATCHED).await;
    let spent = (cpu(me)? - idle).as_secs_f64() / WATCHED.as_secs_f64();
    let each = after.saturating_sub(before) / u64::try_from(count)?;
    for client in [&mut warm, &mut clients] {
        client.kill().await?;
    }
    if as_json {
        println!("{}", json!({"sessions": count, "bytes_per_session": each, "cpu_while_idle": spent}));
        return Ok(());
    }
    println!("sessions  memory of each  CPU while idle");
    println!("{count:>8}  {each:>8} bytes  {:>12.2} %", spent * 1e2);
    Ok(())
}

/// Has another process open sessions and keep them.
async fn dial(cluster: &Cluster, count: usize) -> Result<tokio::process::Child> {
    let federation = federation(cluster).await?;
    let mut clients = Command::new(std::env::current_exe()?)
        .args(["--dial", &cluster.url(), "--federation", &federation.id().to_string()])
        .args(["--sessions", &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let told = BufReader::new(clients.stdout.take().context("its output")?).lines().next_line().await?;
    ensure!(told.as_deref() == Some("open"), "the sessions are not open: {told:?}");
    Ok(clients)
}

/// The other process: opens sessions and keeps them until its input ends.
pub(crate) async fn keep(url: &str, federation: &str, count: usize) -> Result<()> {
    let hello = encode_text(
        Some(1),
        &ClientMessage::Hello {
            protocol: limits::PROTOCOL_VERSION,
            federation: Some(federation.parse()?),
            agent: String::new(),
        },
    );
    let mut opening = JoinSet::new();
    let mut open = Vec::new();
    for _ in 0..count {
        let (url, hello) = (url.to_owned(), hello.clone());
        opening.spawn(async move {
            let (mut socket, _) = tokio_tungstenite::connect_async(url).await?;
            socket.send(Message::text(hello)).await?;
            socket.next().await.context("an answer")??;
            Ok::<_, anyhow::Error>(socket)
        });
        if opening.len() >= AT_A_TIME {
            open.push(opening.join_next().await.context("one of them")???);
        }
    }
    while let Some(opened) = opening.join_next().await {
        open.push(opened??);
    }
    println!("open");
    // A bridge asks from time to time whether its clients are there.
    let mut answering = JoinSet::new();
    for mut socket in open {
        answering.spawn(async move { while let Some(Ok(_)) = socket.next().await {} });
    }
    let mut nothing = Vec::new();
    tokio::io::stdin().read_to_end(&mut nothing).await?;
    Ok(())
}
