//! Rows whose contestants are measured in turns, and what a bench of such rows can be told.
//!
//! Rounds are short and interleaved (A B C D, B C D A, …), and ratios are taken within a round, so that a machine that
//! changes its pace changes it for all.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use super::contestant::{Contestant, MOST_CONNECTIONS, Name};
use super::document;
use super::load::{self, Load, Window};
use super::machine::Machine;
use super::process::Cores;
use super::report::{Outcome, Report, Row};
use super::stats::median;

/// Sockets that a row of idle ones opens.
pub(crate) const IDLE: usize = 5_000;

const WARM_UP: Duration = Duration::from_millis(1500);
const RAMP: Duration = Duration::from_millis(400);
const SETTLE: Duration = Duration::from_secs(2);

/// What is measured, and where the results go.
#[derive(Args)]
pub(crate) struct Plan<K: ValueEnum + Send + Sync + 'static> {
    /// Rounds per row; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Seconds per contestant and round
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// These rows only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<K>,
    /// These contestants only
    #[arg(long, value_enum, value_delimiter = ',')]
    contestants: Vec<Name>,
    /// Where to store the results
    #[arg(long)]
    json: Option<PathBuf>,
    /// A page to put the table into, between the marks with the bench's name
    #[arg(long)]
    doc: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

impl<K: ValueEnum + PartialEq + Send + Sync + 'static> Plan<K> {
    /// Those of `possible` that are wanted and installed.
    pub(crate) fn contestants(&self, possible: &[Name]) -> Result<Vec<Name>> {
        let is_wanted = |name: &Name| self.contestants.is_empty() || self.contestants.contains(name);
        let (present, missing): (Vec<_>, Vec<_>) =
            possible.iter().copied().filter(is_wanted).partition(|name| name.program().is_some());
        missing.iter().for_each(|name| println!("skipped: {} is not installed", name.as_str()));
        ensure!(!present.is_empty() && self.rounds > 0, "nothing to measure");
        Ok(present)
    }

    /// The report of all rows that are wanted; each is printed as soon as it is there.
    pub(crate) fn report(&self, contestants: &[Name], measure: impl Fn(&K) -> Result<Row>) -> Result<Report> {
        let machine = Machine::here(contestants);
        println!("{machine}");
        let is_wanted = |kind: &&K| self.only.is_empty() || self.only.contains(kind);
        let mut rows = Vec::new();
        for kind in K::value_variants().iter().filter(is_wanted) {
            let row = measure(kind)?;
            row.print();
            rows.push(row);
        }
        Ok(Report { machine, rounds: self.rounds, seconds: self.seconds, rows })
    }

    /// Stores the report where it is wanted; `bench` is the name of the marks in the page.
    pub(crate) fn store(&self, report: &Report, bench: &str) -> Result<()> {
        if let Some(file) = &self.json {
            report.write(file)?;
        }
        if let Some(file) = &self.doc {
            document::put(file, bench, &report.table())?;
        }
        Ok(())
    }
}

/// The rounds of one row after the other.
pub(crate) struct Rounds {
    pub(crate) contestants: Vec<Name>,
    pub(crate) cores: Cores,
    rounds: usize,
    counted: Duration,
}

impl Rounds {
    pub(crate) fn new<K>(contestants: Vec<Name>, plan: &Plan<K>) -> Result<Self>
    where
        K: ValueEnum + Send + Sync + 'static,
    {
        let counted = Duration::try_from_secs_f64(plan.seconds)?;
        Ok(Self { contestants, cores: Cores::choose()?, rounds: plan.rounds, counted })
    }

    /// Measures `among` the contestants under a load, and fills in the row.
    pub(crate) fn load_row(
        &self,
        mut row: Row,
        load: &Load,
        among: &[Name],
        start: impl Fn(Name) -> Result<Contestant>,
    ) -> Result<Row> {
        let mut running = Vec::new();
        for &name in among {
            running.push((name, start(name)?, Vec::new()));
        }
        for (_, contestant, _) in &running {
            self.window(load, contestant, WARM_UP)?;
        }
        for round in 0..self.rounds {
            for turn in 0..running.len() {
                let at = (round + turn) % running.len();
                let (name, contestant, windows) = &mut running[at];
                let window = self.window(load, contestant, self.counted)?;
                row.void.extend(complaint(*name, &window));
                windows.push(window);
            }
        }
        row.results = running.into_iter().map(|(name, _, windows)| outcome(name, &windows)).collect();
        row.conclude();
        Ok(row)
    }

    fn window(&self, load: &Load, contestant: &Contestant, counted: Duration) -> Result<Window> {
        let cpu = || contestant.process.cpu();
        load::window(load, contestant.address, self.cores.load, (RAMP, counted), cpu)
    }

    /// Measures the memory that each contestant `among` those present needs per idle socket, of which each takes
    /// `ends` from the bench.
    pub(crate) fn idle_row(
        &self,
        mut row: Row,
        ends: usize,
        among: &[Name],
        measure: impl Fn(Name, usize) -> Result<(f64, Option<String>)>,
    ) -> Result<Row> {
        let sockets = sockets_allowed(ends);
        if sockets < IDLE {
            row.notes.push(format!("only {sockets} sockets: the limit of open files allows no more"));
        }
        for &name in among {
            let (bytes, error) = measure(name, sockets)?;
            row.void.extend(error.map(|error| format!("{}: {error}", name.as_str())));
            row.results.push(Outcome::of(name, vec![bytes / 1024.0]));
        }
        row.conclude();
        Ok(row)
    }
}

/// A socket that is open and idle.
pub(crate) trait Idle: Sized {
    /// Uses it once; an answer that is not as it should be is an error.
    async fn used(&mut self) -> std::io::Result<()>;
}

/// Memory per socket in bytes, after each was used once, and whether every one of them was still alive afterwards.
pub(crate) fn idle_memory<I: Idle, F: Future<Output = std::io::Result<I>>>(
    contestant: &Contestant,
    sockets: usize,
    open: impl Fn() -> F,
) -> Result<(f64, Option<String>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut idle = runtime.block_on(opened(&open, 1))?;
    let before = contestant.process.memory()?;
    idle.extend(runtime.block_on(opened(&open, sockets))?);
    thread::sleep(SETTLE);
    let after = contestant.process.memory()?;
    let error = runtime.block_on(async {
        for socket in &mut idle {
            socket.used().await?;
        }
        std::io::Result::Ok(())
    });
    Ok(((after.saturating_sub(before)) as f64 / sockets as f64, error.err().map(|error| error.to_string())))
}

async fn opened<I: Idle, F: Future<Output = std::io::Result<I>>>(
    open: &impl Fn() -> F,
    sockets: usize,
) -> Result<Vec<I>> {
    let mut opened = Vec::with_capacity(sockets);
    for _ in 0..sockets {
        let mut socket = open().await?;
        socket.used().await?;
        opened.push(socket);
    }
    Ok(opened)
}

/// Each idle socket is up to two in the proxy, and `ends` in the bench.
fn sockets_allowed(ends: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    IDLE.min(MOST_CONNECTIONS).min(limit.saturating_sub(500) / ends.max(1))
}

fn outcome(name: Name, windows: &[Window]) -> Outcome {
    let per_unit = |window: &Window| window.cpu.as_secs_f64() * 1e6 / window.units as f64;
    let middle = |of: fn(&Window) -> f64| Some(median(&windows.iter().map(of).collect::<Vec<_>>()));
    Outcome {
        per_second: middle(|window| window.units as f64 / window.wall.as_secs_f64()),
        busy: middle(|window| window.cpu.as_secs_f64() / window.wall.as_secs_f64()),
        ..Outcome::of(name, windows.iter().map(per_unit).collect())
    }
}

fn complaint(name: Name, window: &Window) -> Option<String> {
    let error = window.first_error.as_deref().unwrap_or("no answers");
    let is_void = window.errors > 0 || window.units == 0;
    is_void.then(|| format!("{}: {} errors, first: {error}", name.as_str(), window.errors))
}
