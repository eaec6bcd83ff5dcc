//! The clients of `switch`: connections that notice which color answers, and how long it took.
//!
//! A request is stale if it began after the confirmation of a switch, ended before the next one was called, and was
//! still answered by the other color. That is the strictest thing that can be said without trusting anybody's clock
//! but ours.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::client::{self, Client};
use super::contestant::HOST;
use super::process::pin;
use super::switchable::Color;

/// How many switches were called and confirmed, written by the one who switches.
#[derive(Default)]
pub(crate) struct Stage {
    pub(crate) called: AtomicU64,
    pub(crate) confirmed: AtomicU64,
    is_over: AtomicBool,
}

/// One answered request.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) began: Instant,
    pub(crate) took: Duration,
    pub(crate) is_stale: bool,
}

/// All that the clients saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) samples: Vec<Sample>,
    /// Requests that were never answered, or with something else than a 200.
    pub(crate) failed: u64,
}

/// Busy connections on a thread of their own.
pub(crate) struct Busy {
    stage: Arc<Stage>,
    thread: JoinHandle<Result<Seen>>,
}

impl Busy {
    /// `pause` is the mean time that a connection rests between an answer and its next request.
    pub(crate) fn start(
        connections: usize,
        pause: Duration,
        proxy: SocketAddr,
        core: usize,
        stage: Arc<Stage>,
    ) -> Result<Self> {
        let stage_there = stage.clone();
        let thread = thread::Builder::new().name("busy".into()).spawn(move || {
            pin(core)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(drive(connections, pause, proxy, stage_there)))
        })?;
        Ok(Self { stage, thread })
    }

    pub(crate) fn finish(self) -> Result<Seen> {
        self.stage.is_over.store(true, Ordering::SeqCst);
        self.thread.join().expect("the clients do not panic")
    }
}

async fn drive(connections: usize, pause: Duration, proxy: SocketAddr, stage: Arc<Stage>) -> Seen {
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(connection(pause, proxy, stage.clone()));
    }
    let mut all = Seen::default();
    while let Some(seen) = tasks.join_next().await {
        let seen = seen.expect("the clients do not panic");
        all.samples.extend(seen.samples);
        all.failed += seen.failed;
    }
    all
}

async fn connection(pause: Duration, proxy: SocketAddr, stage: Arc<Stage>) -> Seen {
    let mut seen = Seen::default();
    while !stage.is_over.load(Ordering::SeqCst) {
        if requests(pause, proxy, &stage, &mut seen).await.is_err() {
            seen.failed += 1;
        }
    }
    seen
}

/// Requests over one connection, until the server announces its end or the bench is over.
async fn requests(pause: Duration, proxy: SocketAddr, stage: &Stage, seen: &mut Seen) -> io::Result<()> {
    let request = client::get(HOST, "/p0", "keep-alive");
    let mut client = Client::connect(proxy).await?;
    while !stage.is_over.load(Ordering::SeqCst) {
        let (confirmed, began) = (stage.confirmed.load(Ordering::SeqCst), Instant::now());
        let answer = client.exchange(&request).await?;
        let (took, called) = (began.elapsed(), stage.called.load(Ordering::SeqCst));
        if answer.status != 200 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let is_stale = called == confirmed && answer.first != Color::after(confirmed).initial();
        seen.samples.push(Sample { began, took, is_stale });
        if answer.is_last {
            break;
        }
        if !pause.is_zero() {
            // Jitter, or the timer's ticks would make the connections ask all at once.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        }
    }
    Ok(())
}
