//! What forwarding costs: CPU time per request, and memory per idle WebSocket, of teal, nginx, HAProxy and a bare
//! relay.
//!
//! `cargo bench --bench forward -- [--rounds N] [--seconds S] [--only ROW,…] [--json FILE] [--svg FILE] [--doc FILE]`
//!
//! Each contestant has one worker pinned to one core; origin and load run elsewhere. Rounds are short and interleaved
//! (A B C D, B C D A, …), and ratios are taken within a round, so that a machine that changes its pace changes it for
//! all. CPU time is what the kernel charged to the contestant's threads. A row with a single error is void. It
//! measures cost, not capacity: how many requests per second one core can take follows from it, latency does not.

mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use support::client::{self, WebSocket};
use support::contestant::{Contestant, HOST, MOST_CONNECTIONS, Name, route};
use support::load::{self, Http, Load, Window, Work};
use support::machine::Machine;
use support::origin::{self, BIG, SMALL};
use support::process::{self, Cores};
use support::report::{Outcome, Report, Row};
use support::stats::median;
use support::{chart, document};

const WARM_UP: Duration = Duration::from_millis(1500);
const RAMP: Duration = Duration::from_millis(400);
const ROUTES: usize = 10_000;
const IDLE: usize = 5_000;
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Parser)]
struct Options {
    /// Rounds per row; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per contestant and round
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// These rows only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// These contestants only
    #[arg(long, value_enum, value_delimiter = ',')]
    contestants: Vec<Name>,
    /// Where to store the results
    #[arg(long)]
    json: Option<PathBuf>,
    /// A page to put the table into, between its marks `forward`
    #[arg(long)]
    doc: Option<PathBuf>,
    /// Where to draw the results
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Draw stored results instead of measuring
    #[arg(long)]
    from: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    KeepAlive,
    Connect,
    Download,
    Upload,
    Routes,
    Echo,
    Idle,
}

fn main() -> Result<()> {
    if let Some(outcome) = process::helper() {
        return outcome;
    }
    if !support::is_bench() {
        println!("nothing measured: use cargo bench");
        return Ok(());
    }
    let options = Options::parse();
    let report = match &options.from {
        Some(file) => Report::read(file)?,
        None => measure(&options)?,
    };
    if let Some(file) = &options.json {
        report.write(file)?;
    }
    if let Some(file) = &options.doc {
        document::put(file, "forward", &report.table())?;
    }
    if let Some(file) = &options.svg {
        chart::write(&report, file)?;
    }
    Ok(())
}

fn measure(options: &Options) -> Result<Report> {
    let contestants = present(&options.contestants);
    ensure!(!contestants.is_empty() && options.rounds > 0, "nothing to measure");
    let machine = Machine::here(&contestants);
    println!("{machine}");
    let bench = Bench::new(contestants, options)?;
    let is_wanted = |kind: &Kind| options.only.is_empty() || options.only.contains(kind);
    let mut rows = Vec::new();
    for &kind in Kind::value_variants().iter().filter(|kind| is_wanted(kind)) {
        let row = bench.row(kind)?;
        row.print();
        rows.push(row);
    }
    Ok(Report { machine, rounds: options.rounds, seconds: options.seconds, rows })
}

fn present(wanted: &[Name]) -> Vec<Name> {
    let is_wanted = |name: &Name| wanted.is_empty() || wanted.contains(name);
    let (present, missing): (Vec<_>, Vec<_>) =
        Name::ALL.into_iter().filter(is_wanted).partition(|name| name.program().is_some());
    missing.iter().for_each(|name| println!("skipped: {} is not installed", name.as_str()));
    present
}

struct Bench {
    contestants: Vec<Name>,
    rounds: usize,
    counted: Duration,
    cores: Cores,
    origin: SocketAddr,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(contestants: Vec<Name>, options: &Options) -> Result<Self> {
        let cores = Cores::choose()?;
        Ok(Self {
            contestants,
            rounds: options.rounds,
            counted: Duration::try_from_secs_f64(options.seconds)?,
            cores,
            origin: origin::start("origin", cores.origin)?,
            folder: tempfile::tempdir()?,
        })
    }

    fn row(&self, kind: Kind) -> Result<Row> {
        let mut row = kind.row();
        let windows = match kind.load() {
            Some(load) => self.load_row(kind, &load, &mut row)?,
            None => return self.idle_row(row),
        };
        row.results = self.contestants.iter().zip(windows).map(|(name, windows)| outcome(*name, &windows)).collect();
        row.conclude();
        Ok(row)
    }

    /// The windows of every contestant, in the order of `contestants`.
    fn load_row(&self, kind: Kind, load: &Load, row: &mut Row) -> Result<Vec<Vec<Window>>> {
        let mut running = Vec::new();
        for &name in &self.contestants {
            running.push((name, self.start(name, kind)?, Vec::new()));
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
        Ok(running.into_iter().map(|(_, _, windows)| windows).collect())
    }

    fn start(&self, name: Name, kind: Kind) -> Result<Contestant> {
        let routes = if kind == Kind::Routes { ROUTES } else { 1 };
        Contestant::start(name, self.cores.proxy, self.origin, routes, self.folder.path())
    }

    fn window(&self, load: &Load, contestant: &Contestant, counted: Duration) -> Result<Window> {
        let cpu = || contestant.process.cpu();
        load::window(load, contestant.address, self.cores.load, (RAMP, counted), cpu)
    }

    fn idle_row(&self, mut row: Row) -> Result<Row> {
        let sockets = sockets_allowed();
        if sockets < IDLE {
            row.notes.push(format!("only {sockets} sockets: the limit of open files allows no more"));
        }
        // What a relay keeps is its buffers: nothing to compare with.
        for &name in self.contestants.iter().filter(|name| **name != Name::Relay) {
            let contestant = self.start(name, Kind::Idle)?;
            let (bytes, error) = idle_memory(&contestant, sockets)?;
            row.void.extend(error.map(|error| format!("{}: {error}", name.as_str())));
            row.results.push(Outcome::of(name, vec![bytes / 1024.0]));
        }
        row.conclude();
        Ok(row)
    }
}

impl Kind {
    fn row(self) -> Row {
        let (title, unit) = match self {
            Self::KeepAlive => ("64-byte answers, 64 kept connections", "CPU µs per request"),
            Self::Connect => ("a new connection per request", "CPU µs per request"),
            Self::Download => ("1 MiB answers", "CPU µs per answer"),
            Self::Upload => ("1 MiB uploads", "CPU µs per upload"),
            Self::Routes => ("10,000 routes", "CPU µs per request"),
            Self::Echo => ("WebSocket echo, 64 bytes", "CPU µs per echo"),
            Self::Idle => ("5,000 idle WebSockets", "KiB per socket"),
        };
        let name = self.to_possible_value().expect("no row is hidden").get_name().to_owned();
        let (results, void, notes) = Default::default();
        Row { name, title: title.into(), unit: unit.into(), results, void, notes }
    }

    fn load(self) -> Option<Load> {
        let get = |path, connection| vec![client::get(HOST, path, connection)];
        let is_fresh = self == Self::Connect;
        let http = |requests, length| Work::Http(Http { requests: Arc::new(requests), length, is_fresh });
        let (connections, work) = match self {
            Self::KeepAlive => (64, http(get("/p0", "keep-alive"), SMALL)),
            Self::Connect => (64, http(get("/p0", "close"), SMALL)),
            Self::Download => (8, http(get("/big", "keep-alive"), BIG)),
            Self::Upload => (8, http(vec![client::put(HOST, "/upload", BIG)], SMALL)),
            Self::Routes => (64, http(route_requests(), SMALL)),
            Self::Echo => (64, Work::Echo { host: HOST.into() }),
            Self::Idle => return None,
        };
        Some(Load { connections, work })
    }
}

fn route_requests() -> Vec<Vec<u8>> {
    let request = |(host, path): (String, String)| client::get(&host, &format!("{path}/item"), "keep-alive");
    (0..ROUTES).map(route).map(request).collect()
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

/// Each idle socket is two in the proxy and two more in the bench, which is client and origin.
fn sockets_allowed() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    IDLE.min(MOST_CONNECTIONS).min(limit.saturating_sub(500) / 2)
}

/// Memory per socket in bytes, after each has echoed once, and whether every one of them was still alive afterwards.
fn idle_memory(contestant: &Contestant, sockets: usize) -> Result<(f64, Option<String>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut open = runtime.block_on(opened(contestant.address, 1))?;
    let before = contestant.process.memory()?;
    open.extend(runtime.block_on(opened(contestant.address, sockets))?);
    thread::sleep(SETTLE);
    let after = contestant.process.memory()?;
    let error = runtime.block_on(async {
        for socket in &mut open {
            socket.echo().await?;
        }
        std::io::Result::Ok(())
    });
    Ok(((after.saturating_sub(before)) as f64 / sockets as f64, error.err().map(|error| error.to_string())))
}

async fn opened(address: SocketAddr, sockets: usize) -> Result<Vec<WebSocket>> {
    let mut open = Vec::with_capacity(sockets);
    for _ in 0..sockets {
        let mut socket = WebSocket::connect(address, HOST).await?;
        socket.echo().await?;
        open.push(socket);
    }
    Ok(open)
}
