//! The connections of a bridge.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Ping, SendStream};
use http::Request;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};

use super::broken;

/// Connections that are opened before one is shared, and clients that share one before there is another. The proxy takes
/// 128 streams on each.
const CONNECTIONS: usize = 2;
const MOST_CLIENTS: usize = 100;
/// Octets that the proxy may send ahead, in one stream and in all: one that nobody reads must not stop the others.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

pub(super) struct Pool {
    to: SocketAddr,
    connections: Mutex<Vec<Lease>>,
}

/// A share of a connection.
#[derive(Clone)]
pub(super) struct Lease {
    send: SendRequest<Bytes>,
    /// Cloned by every client.
    clients: Arc<()>,
    is_going: watch::Receiver<bool>,
}

impl Pool {
    pub(super) fn new(to: SocketAddr) -> Pool {
        Pool { to, connections: Mutex::default() }
    }

    /// A share of the connection that has the fewest clients.
    pub(super) async fn lease(&self) -> io::Result<Lease> {
        let mut connections = self.connections.lock().await;
        connections.retain(|lease| !lease.is_going());
        let least = connections.iter().min_by_key(|lease| Arc::strong_count(&lease.clients));
        let least = least.filter(|lease| Arc::strong_count(&lease.clients) <= MOST_CLIENTS);
        if let Some(lease) = least.filter(|_| connections.len() >= CONNECTIONS) {
            return Ok(lease.clone());
        }
        let lease = connect(self.to).await?;
        connections.push(lease.clone());
        Ok(lease)
    }
}

async fn connect(to: SocketAddr) -> io::Result<Lease> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut builder = Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW).enable_push(false);
    let (send, mut connection) = builder.handshake(stream).await.map_err(broken)?;
    let pings = connection.ping_pong();
    let (going, is_going) = watch::channel(false);
    let lease = Lease { send, clients: Arc::new(()), is_going };
    let of_driver = lease.send.clone();
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        std::future::poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            if is_over(&of_driver) {
                going.send_if_modified(|is_going| !std::mem::replace(is_going, true));
            }
            polled.map(drop)
        })
        .await;
    });
    // The settings come before the answer: whether WebSockets are taken.
    if let Some(mut pings) = pings {
        pings.ping(Ping::opaque()).await.map_err(broken)?;
    }
    Ok(lease)
}

impl Lease {
    /// Whether the proxy has said goodbye, or the connection is gone.
    pub(super) fn is_going(&self) -> bool {
        is_over(&self.send)
    }

    /// Resolves when the proxy says goodbye. Cancel-safe.
    pub(super) async fn goodbye(&mut self) {
        // An error means that the connection is gone.
        let _ = self.is_going.wait_for(|is_going| *is_going).await;
    }

    pub(super) async fn begin(
        &self,
        request: Request<()>,
        is_whole: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.send.clone().ready().await?.send_request(request, is_whole)
    }
}

/// Nothing more can be asked: that is how `h2` tells of a GOAWAY.
fn is_over(send: &SendRequest<Bytes>) -> bool {
    matches!(send.clone().poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
}
