//! The origins of event streams, and the one that lies.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::clients::BOREDOM;
use super::support::process::pin;

/// Runs `serve` for every connection, on a thread of its own and for as long as the bench.
pub(crate) fn start<F>(core: usize, serve: fn(TcpStream) -> F) -> Result<SocketAddr>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("origin".into()).spawn(move || -> Result<()> {
        pin(core)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            sender.send(listener.local_addr()?)?;
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(serve(stream));
            }
        })
    })?;
    Ok(receiver.recv()?)
}

async fn head(stream: &mut TcpStream) -> io::Result<bool> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

const EVENTS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
pub(crate) const EVENT: &[u8] = b"c\r\ndata: tick\n\n\r\n";

/// Events until nobody takes them.
pub(crate) async fn events(mut stream: TcpStream) -> io::Result<()> {
    if head(&mut stream).await? {
        stream.write_all(EVENTS).await?;
        loop {
            stream.write_all(EVENT).await?;
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

const LIES: [&[u8]; 14] = [
    b"",
    b"garbage\r\n\r\n",
    b"\x15\x03\x03\x00\x02\x02\x46",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nffffff\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nx",
    b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 204 No Content\r\n\r\nbody",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
];

/// Answers as it likes, and goes, stays or resets as it likes.
pub(crate) async fn lies(mut stream: TcpStream) -> io::Result<()> {
    while head(&mut stream).await? {
        let lie = LIES[fastrand::usize(..LIES.len())];
        for _ in 0..fastrand::usize(1..50) {
            stream.write_all(lie).await?;
        }
        match fastrand::u8(..4) {
            0 => return Ok(()),
            1 => return SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
            2 => drop(timeout(BOREDOM, stream.read_u8()).await),
            _ => {}
        }
    }
    Ok(())
}
