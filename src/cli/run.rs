//! `teal run` and `teal demo`: the commands that are a proxy themselves.
//!
//! `run` says `ready` when it accepts connections, to whoever reads its standard output and to systemd. SIGHUP reloads.
//! The first SIGTERM or SIGINT lets requests finish; the second ends the process at once, with 128 plus the number of
//! the signal as a shell would have it.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, anyhow};
use sd_notify::NotifyState;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

use crate::cli::Failure;
use crate::cli::terminal::{Paint, out};
use crate::config::{self, Address, Log, LogFormat};
use crate::demo;
use crate::run::{Proxy, StartError};
use crate::state::State;

/// How often to look whether a reload has come to its end, and for how long.
const LOOK: Duration = Duration::from_millis(20);
const RELOADED_WITHIN: Duration = Duration::from_secs(60);

/// Runs the proxy until a signal ends it.
///
/// # Errors
/// A bad config, or whatever keeps it from starting.
pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let _log = start_log(&config::load(path).map_err(Failure::Config)?.log)?;
    let runtime = Builder::new_current_thread().enable_all().build().context("no runtime")?;
    // Before the start, so that a signal during it is not lost.
    let (hangup, end) = {
        let _context = runtime.enter();
        (signal(SignalKind::hangup()).context("no signal handler")?, End::new().context("no signal handler")?)
    };
    let proxy = Proxy::start_watching(path)?;
    out(&ready(&proxy));
    notify(&[NotifyState::Ready]);
    runtime.block_on(serve(proxy, hangup, end))
}

/// Shows the demo.
///
/// # Errors
/// When it could not be shown, or a promise was not kept.
pub(super) fn demo(options: demo::Options) -> Result<(), Failure> {
    let _log = filter_from_env()?.map(|filter| log_to_stderr(filter, LogFormat::Text));
    let runtime = Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let outcome = runtime.block_on(demo::run(options)).map_err(anyhow::Error::new)?;
    if outcome.kept { Ok(()) } else { Err(anyhow!("not every promise was kept").into()) }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        match error {
            StartError::Config(problems) => Failure::Config(problems),
            error => anyhow::Error::new(error).into(),
        }
    }
}

fn start_log(log: &Log) -> Result<WorkerGuard, Failure> {
    let filter = filter_from_env()?.unwrap_or_else(|| EnvFilter::new(&log.level));
    Ok(log_to_stderr(filter, log.format))
}

fn filter_from_env() -> Result<Option<EnvFilter>, Failure> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.is_empty());
    let filter = wanted.map(EnvFilter::try_new).transpose();
    filter.map_err(|error| Failure::Usage(format!("RUST_LOG: {error}")))
}

/// A thread of its own writes: who reads standard error slowly loses lines rather than holding up requests. What waits is
/// written when the guard is dropped.
fn log_to_stderr(filter: EnvFilter, format: LogFormat) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal() && Paint::stderr().is_colored()).init(),
        LogFormat::Json => log.json().init(),
    }
    guard
}

/// The one line that says that connections are accepted, and where.
fn ready(proxy: &Proxy) -> String {
    let listeners: Vec<String> = proxy.addresses().iter().map(Address::to_string).collect();
    let admin = proxy.admin().map_or_else(|| "off".to_owned(), Address::to_string);
    format!("ready http={} admin={admin}\n", listeners.join(","))
}

async fn serve(proxy: Proxy, mut hangup: Signal, mut end: End) -> Result<(), Failure> {
    let mut died = std::pin::pin!(proxy.died());
    loop {
        // A signal that comes while another is dealt with is kept for the next call.
        tokio::select! {
            _ = hangup.recv() => reload(&proxy),
            _ = end.come() => break,
            part = &mut died => {
                // Not waited for: what is left of it may never end.
                std::mem::forget(proxy);
                return Err(anyhow!("{part} has died; the process ends so that its supervisor can start it again").into());
            }
        }
    }
    notify(&[NotifyState::Stopping]);
    let stopped = tokio::task::spawn_blocking(move || proxy.stop());
    tokio::select! {
        stopped = stopped => Ok(stopped.context("the proxy panicked")?),
        signal = end.come() => std::process::exit(128 + signal.as_raw_value()),
    }
}

fn reload(proxy: &Proxy) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
    let before = reloads(proxy.state());
    proxy.reload();
    tokio::spawn(ready_again(proxy.state().clone(), before));
}

/// Tells systemd when the reload is over, however it ended: a bad file leaves the proxy as ready as it was.
async fn ready_again(state: Arc<State>, before: u64) {
    let deadline = Instant::now() + RELOADED_WITHIN;
    while reloads(&state) == before && Instant::now() < deadline {
        sleep(LOOK).await;
    }
    notify(&[NotifyState::Ready]);
}

fn reloads(state: &State) -> u64 {
    let stats = &state.stats;
    stats.reloads_applied.load(Ordering::Relaxed) + stats.reloads_rejected.load(Ordering::Relaxed)
}

/// Tells systemd, where it asked to be told.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// The signals that end the process.
struct End {
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn new() -> io::Result<End> {
        Ok(End { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Resolves at the next one; cancel-safe.
    async fn come(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }
}
