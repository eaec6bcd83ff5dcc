//! A way through the proxy on which next to nothing gets lost from sight in the buffers of sockets.

use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::proxy::{Builder, Teal};
use super::{body, soon};

/// A client and an origin with the proxy between them, all over unix sockets: unlike those of TCP their buffers do not
/// grow, so what disappears in them is little, and what disappears beyond is kept by the proxy.
pub struct Tight {
    pub client: UnixStream,
    pub origin: UnixStream,
    _proxy: (Teal, TempDir),
}

/// What four buffers of unix sockets may hold, and the proxy besides.
pub const HELD: usize = 2 * 1024 * 1024;

impl Tight {
    /// A request with this head has just reached the origin.
    pub async fn after(head: &str) -> Tight {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (front, back) = (dir.path().join("front.sock"), dir.path().join("back.sock"));
        let listener = UnixListener::bind(&back).expect("a socket");
        let services = format!(
            "[[listeners]]\nlisten = \"unix:{}\"\n[[routes]]\npath = \"/\"\nservice = \"a\"\n\
             [services.a]\nhealth = {{ interval = \"1h\" }}\nblue = [\"unix:{}\"]\n",
            front.display(),
            back.display()
        );
        let teal = Builder::new(&services).start().await;
        let mut client = UnixStream::connect(&front).await.expect("the proxy accepts");
        client.write_all(head.as_bytes()).await.expect("the proxy reads");
        loop {
            let (mut origin, _) = soon("the request", listener.accept()).await.expect("a connection");
            let mut head = Vec::new();
            // The probe of the endpoint says nothing.
            while !head.ends_with(b"\r\n\r\n") && origin.read_buf(&mut head).await.is_ok_and(|count| count > 0) {}
            if !head.is_empty() {
                return Tight { client, origin, _proxy: (teal, dir) };
            }
        }
    }
}

/// Writes until the other side has taken nothing for a while, and says how much it took.
pub async fn write_until_stuck(stream: &mut UnixStream, most: usize) -> usize {
    let nothing_moves = Duration::from_millis(500);
    let mut at = 0;
    while at < most {
        let piece = body::piece(at);
        match timeout(nothing_moves, stream.write(&piece[..piece.len().min(most - at)])).await {
            Ok(count) => at += count.expect("the proxy stays"),
            Err(_) => return at,
        }
    }
    at
}

/// Writes the body from `at` up to `end`.
pub async fn write_from(stream: &mut UnixStream, mut at: usize, end: usize) {
    while at < end {
        let piece = body::piece(at);
        at += stream.write(&piece[..piece.len().min(end - at)]).await.expect("the proxy reads on");
    }
}
