//! Distance between machines: relays on the loopback that hand on what they get some time later, in both directions.
//! A relay ends with the runtime that it was started on.

use anyhow::Result;
use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::Instant,
};

/// What is under way in one direction; more is lost, as on a full line.
const UNDER_WAY_MAX: usize = 16_384;
/// More than any datagram has.
const DATAGRAM_BYTES: usize = 65_536;

/// Where datagrams for `to` are taken, which arrive there after `one_way`, as do the answers.
///
/// # Errors
/// There is no port.
pub async fn datagrams(to: SocketAddr, one_way: Duration) -> Result<SocketAddr> {
    let near = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
    let address = near.local_addr()?;
    tokio::spawn(async move {
        // The far end of each who sends: to `to`, it is who sent.
        let mut far = HashMap::<SocketAddr, mpsc::Sender<(Instant, Vec<u8>)>>::new();
        let mut buffer = vec![0; DATAGRAM_BYTES];
        while let Ok((bytes, from)) = near.recv_from(&mut buffer).await {
            let Some(datagram) = buffer.get(..bytes) else { continue };
            let known = far.get(&from).filter(|way| !way.is_closed());
            let way = match known {
                Some(way) => way.clone(),
                None => {
                    let Ok(way) = far_end(near.clone(), from, to, one_way).await else { continue };
                    far.insert(from, way.clone());
                    way
                }
            };
            let _lost_on_a_full_line = way.try_send((Instant::now() + one_way, datagram.to_vec()));
        }
    });
    Ok(address)
}

/// A socket for one who sends, and the way to it.
async fn far_end(
    near: Arc<UdpSocket>,
    from: SocketAddr,
    to: SocketAddr,
    one_way: Duration,
) -> Result<mpsc::Sender<(Instant, Vec<u8>)>> {
    let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
    socket.connect(to).await?;
    let (way, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY_MAX);
    let (back, mut on_the_way_back) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY_MAX);
    let sending = socket.clone();
    tokio::spawn(async move {
        while let Some((at, datagram)) = under_way.recv().await {
            tokio::time::sleep_until(at).await;
            // Nobody may listen there at the moment.
            let _lost = sending.send(&datagram).await;
        }
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            // A port that nobody listens on is reported here, too.
            let Ok(bytes) = socket.recv(&mut buffer).await else { continue };
            let datagram = buffer.get(..bytes).unwrap_or_default().to_vec();
            if back.try_send((Instant::now() + one_way, datagram)).is_err() && back.is_closed() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, datagram)) = on_the_way_back.recv().await {
            tokio::time::sleep_until(at).await;
            let _lost = near.send_to(&datagram, from).await;
        }
    });
    Ok(way)
}

/// Where connections to `to` are taken, whose bytes arrive after `one_way` in both directions.
///
/// # Errors
/// There is no port.
pub async fn connections(to: SocketAddr, one_way: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(to).await else { continue };
            let small = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            if small.is_ok() {
                hand_on(near_read, far_write, one_way);
                hand_on(far_read, near_write, one_way);
            }
        }
    });
    Ok(address)
}

fn hand_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, one_way: Duration) {
    let (way, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY_MAX);
    tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
            let piece = buffer.get(..bytes).unwrap_or_default().to_vec();
            if way.send((Instant::now() + one_way, piece)).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, piece)) = under_way.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
}
