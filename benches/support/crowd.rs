//! The clients of a goodbye: many WebSockets, all of which answer their Close frame and come back at once.
//!
//! Each has echoed a message before, and echoes one after its return. Whoever is not told by a Close frame, or is not let
//! in again, is an error.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::client::WebSocket;
use super::contestant::HOST;
use super::process::pin;

/// How many open their first connection at the same time.
const AT_ONCE: usize = 64;
const LOOK: Duration = Duration::from_millis(20);

/// What one client has seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Farewell {
    /// When its Close frame came.
    pub(crate) told: Instant,
    pub(crate) code: u16,
    /// When it had an answer again.
    pub(crate) returned: Instant,
}

/// WebSockets on a thread of their own.
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    is_over: watch::Sender<bool>,
    thread: JoinHandle<Result<Vec<io::Result<Farewell>>>>,
    sockets: usize,
}

#[derive(Default)]
struct Shared {
    open: AtomicUsize,
    /// Has come back, or never will.
    done: AtomicUsize,
}

impl Crowd {
    /// Returns when all are open and have echoed.
    pub(crate) fn gather(sockets: usize, proxy: SocketAddr, core: usize, patience: Duration) -> Result<Self> {
        let (is_over, over) = watch::channel(false);
        let shared = Arc::new(Shared::default());
        let there = shared.clone();
        let thread = thread::Builder::new().name("crowd".into()).spawn(move || {
            pin(core)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(drive(sockets, proxy, &there, &over)))
        })?;
        let crowd = Self { shared, is_over, thread, sockets };
        crowd.wait_for(|shared| shared.open.load(Ordering::SeqCst), patience)?;
        Ok(crowd)
    }

    /// Returns when all have come back.
    pub(crate) fn wait_for_return(&self, patience: Duration) -> Result<()> {
        self.wait_for(|shared| shared.done.load(Ordering::SeqCst), patience)
    }

    /// Ends all connections.
    pub(crate) fn finish(self) -> Result<Vec<io::Result<Farewell>>> {
        self.is_over.send_replace(true);
        self.thread.join().expect("the clients do not panic")
    }

    fn wait_for(&self, count: fn(&Shared) -> usize, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while count(&self.shared) < self.sockets {
            if Instant::now() > deadline || self.thread.is_finished() {
                bail!("only {} of {} sockets within {patience:?}", count(&self.shared), self.sockets);
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

async fn drive(
    sockets: usize,
    proxy: SocketAddr,
    shared: &Arc<Shared>,
    over: &watch::Receiver<bool>,
) -> Vec<io::Result<Farewell>> {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut clients = JoinSet::new();
    for _ in 0..sockets {
        let (at_once, shared, mut over) = (at_once.clone(), shared.clone(), over.clone());
        clients.spawn(async move {
            let outcome = tokio::select! {
                outcome = client(proxy, &at_once, &shared) => outcome,
                _ = over.wait_for(|is_over| *is_over) => Err(io::ErrorKind::TimedOut.into()),
            };
            shared.done.fetch_add(1, Ordering::SeqCst);
            let (farewell, _open) = outcome?;
            let _ = over.wait_for(|is_over| *is_over).await;
            Ok(farewell)
        });
    }
    clients.join_all().await
}

/// One client up to its return, with the connection that it then has.
async fn client(proxy: SocketAddr, at_once: &Semaphore, shared: &Shared) -> io::Result<(Farewell, WebSocket)> {
    let permit = at_once.acquire().await.map_err(io::Error::other)?;
    let mut socket = opened(proxy).await?;
    drop(permit);
    shared.open.fetch_add(1, Ordering::SeqCst);
    let code = socket.closing().await?;
    let told = Instant::now();
    socket.leave(code).await?;
    let socket = opened(proxy).await?;
    Ok((Farewell { told, code, returned: Instant::now() }, socket))
}

async fn opened(proxy: SocketAddr) -> io::Result<WebSocket> {
    let mut socket = WebSocket::connect(proxy, HOST).await?;
    socket.echo().await?;
    Ok(socket)
}
