//! The load: connections that ask again as soon as they were answered, on a thread and a core of their own.
//!
//! A window is a warm-up that is not counted and a time in which every answer is. Errors are counted from the first
//! moment to the last, because one of them makes the window worthless.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::{Answer, Client, WebSocket};
use super::http2::Streams;
use super::process::pin;
use super::tls::{Tls, TlsClient};

const STUCK: Duration = Duration::from_secs(10);

/// What every connection does.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) connections: usize,
    pub(crate) work: Work,
}

#[derive(Clone)]
pub(crate) enum Work {
    Http(Http),
    /// Requests over HTTP/2 inside TLS, several at a time.
    Streams(Streams),
    /// Echoes of one short message over a WebSocket.
    Echo {
        host: String,
    },
    /// The same, after something that is no frame.
    BlindEcho {
        host: String,
    },
}

/// Requests in turn over one connection, or each over its own; `length` is that of every answer's body.
#[derive(Clone)]
pub(crate) struct Http {
    pub(crate) requests: Arc<Vec<Vec<u8>>>,
    pub(crate) length: usize,
    pub(crate) is_fresh: bool,
    pub(crate) tls: Option<Tls>,
}

/// What one window saw.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) units: u64,
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}

#[derive(Default)]
pub(crate) struct Progress {
    is_over: AtomicBool,
    units: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
}

impl Progress {
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) {
        self.units.fetch_add(1, Ordering::Relaxed);
    }

    fn error(&self, error: impl ToString) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first_error.lock() {
            first.get_or_insert_with(|| error.to_string());
        }
    }
}

/// Runs one window against a proxy whose CPU clock is `cpu`.
pub(crate) fn window(
    load: &Load,
    proxy: SocketAddr,
    core: usize,
    (warm_up, counted): (Duration, Duration),
    cpu: impl Fn() -> Result<Duration>,
) -> Result<Window> {
    let progress = Arc::new(Progress::default());
    let worker = spawn(load.clone(), proxy, core, progress.clone())?;
    thread::sleep(warm_up);
    let (began, cpu_before, units_before) = (Instant::now(), cpu()?, progress.units.load(Ordering::Relaxed));
    thread::sleep(counted);
    let (units_after, cpu_after, wall) = (progress.units.load(Ordering::Relaxed), cpu()?, began.elapsed());
    progress.is_over.store(true, Ordering::Relaxed);
    worker.join().expect("the load does not panic")?;
    let first_error = progress.first_error.lock().ok().and_then(|mut first| first.take());
    Ok(Window {
        units: units_after - units_before,
        cpu: cpu_after.saturating_sub(cpu_before),
        wall,
        errors: progress.errors.load(Ordering::Relaxed),
        first_error,
    })
}

fn spawn(
    load: Load,
    proxy: SocketAddr,
    core: usize,
    progress: Arc<Progress>,
) -> io::Result<thread::JoinHandle<Result<()>>> {
    thread::Builder::new().name("load".into()).spawn(move || {
        pin(core)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(drive(load, proxy, progress));
        Ok(())
    })
}

async fn drive(load: Load, proxy: SocketAddr, progress: Arc<Progress>) {
    let mut connections = JoinSet::new();
    for seat in 0..load.connections {
        connections.spawn(connection(load.work.clone(), proxy, seat, progress.clone()));
    }
    while !progress.is_over() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if timeout(STUCK, connections.join_all()).await.is_err() {
        progress.error("a request without an answer");
    }
}

async fn connection(work: Work, proxy: SocketAddr, seat: usize, progress: Arc<Progress>) {
    while !progress.is_over() {
        let run = match &work {
            Work::Http(http) if http.is_fresh => http.fresh(proxy, seat, &progress).await,
            Work::Http(http) => http.keep_alive(proxy, seat, &progress).await,
            Work::Streams(streams) => streams.run(proxy, &progress).await,
            Work::Echo { host } => echo(host, false, proxy, &progress).await,
            Work::BlindEcho { host } => echo(host, true, proxy, &progress).await,
        };
        if let Err(error) = run {
            progress.error(error);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Http {
    /// Ends without an error when the load is over, or when the server announced that it closes.
    async fn keep_alive(&self, proxy: SocketAddr, seat: usize, progress: &Progress) -> io::Result<()> {
        let mut client = connect(proxy, &mut self.tls_client()).await?;
        for request in self.turns(seat) {
            if progress.is_over() {
                break;
            }
            let answer = client.exchange(request).await?;
            self.check(answer, progress)?;
            if answer.is_last {
                break;
            }
        }
        Ok(())
    }

    async fn fresh(&self, proxy: SocketAddr, seat: usize, progress: &Progress) -> io::Result<()> {
        let mut tls = self.tls_client();
        for request in self.turns(seat) {
            if progress.is_over() {
                break;
            }
            let mut client = connect(proxy, &mut tls).await?;
            let answer = client.exchange(request).await?;
            client.ended().await?;
            self.check(answer, progress)?;
        }
        Ok(())
    }

    fn tls_client(&self) -> Option<TlsClient> {
        self.tls.as_ref().map(Tls::client)
    }

    fn check(&self, answer: Answer, progress: &Progress) -> io::Result<()> {
        if answer.status != 200 || answer.length != self.length {
            return Err(io::Error::other(format!("an answer of {} with {} bytes", answer.status, answer.length)));
        }
        progress.count();
        Ok(())
    }

    /// All requests in an order that jumps, and that differs between connections.
    fn turns(&self, seat: usize) -> impl Iterator<Item = &[u8]> {
        const STRIDE: usize = 7_919; // a prime, so that every request has its turn
        let first = seat * 157;
        (0..).map(move |turn: usize| self.requests[(first + turn * STRIDE) % self.requests.len()].as_slice())
    }
}

async fn connect(proxy: SocketAddr, tls: &mut Option<TlsClient>) -> io::Result<Client> {
    match tls {
        Some(tls) => Client::connect_tls(proxy, tls).await,
        None => Client::connect(proxy).await,
    }
}

async fn echo(host: &str, is_blind: bool, proxy: SocketAddr, progress: &Progress) -> io::Result<()> {
    let mut socket = WebSocket::connect(proxy, host).await?;
    if is_blind {
        socket.break_framing().await?;
    }
    while !progress.is_over() {
        socket.echo().await?;
        progress.count();
    }
    Ok(())
}
