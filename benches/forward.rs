//! What forwarding costs: CPU time per request, and memory per idle WebSocket, of teal, nginx, HAProxy and a bare
//! relay.
//!
//! `cargo bench --bench forward -- [--rounds N] [--seconds S] [--only ROW,…] [--json FILE] [--svg FILE] [--doc FILE]`
//!
//! Each contestant has one worker pinned to one core; origin and load run elsewhere. CPU time is what the kernel charged to the contestant's threads. A row with a single error is void. It
//! measures cost, not capacity: how many requests per second one core can take follows from it, latency does not.

mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use support::client::{self, WebSocket};
use support::contestant::{Contestant, HOST, Name, Setup, route};
use support::load::{Http, Load, Work};
use support::origin::{self, BIG, SMALL};
use support::report::{Report, Row};
use support::rounds::{self, Idle, Rounds, idle_memory};
use support::{chart, process};

const ROUTES: usize = 10_000;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    plan: rounds::Plan<Kind>,
    /// Where to draw the results
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Draw stored results instead of measuring
    #[arg(long)]
    from: Option<PathBuf>,
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
        None => measure(&options.plan)?,
    };
    options.plan.store(&report, "forward")?;
    if let Some(file) = &options.svg {
        chart::write(&report, file)?;
    }
    Ok(())
}

fn measure(plan: &rounds::Plan<Kind>) -> Result<Report> {
    let contestants = plan.contestants(&Name::ALL)?;
    let bench = Bench::new(contestants.clone(), plan)?;
    plan.report(&contestants, |kind| bench.row(*kind))
}

struct Bench {
    rounds: Rounds,
    origin: SocketAddr,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(contestants: Vec<Name>, plan: &rounds::Plan<Kind>) -> Result<Self> {
        let rounds = Rounds::new(contestants, plan)?;
        let origin = origin::start("origin", rounds.cores.origin)?;
        Ok(Self { rounds, origin, folder: tempfile::tempdir()? })
    }

    fn row(&self, kind: Kind) -> Result<Row> {
        let contestants = &self.rounds.contestants;
        if let Some(load) = kind.load() {
            return self.rounds.load_row(kind.row(), &load, contestants, |name| self.start(name, kind));
        }
        // What a relay keeps is its buffers: nothing to compare with.
        let among: Vec<_> = contestants.iter().copied().filter(|name| *name != Name::Relay).collect();
        // The bench is client and origin.
        self.rounds.idle_row(kind.row(), 2, &among, |name, sockets| {
            let contestant = self.start(name, kind)?;
            idle_memory(&contestant, sockets, || WebSocket::connect(contestant.address, HOST))
        })
    }

    fn start(&self, name: Name, kind: Kind) -> Result<Contestant> {
        let routes = if kind == Kind::Routes { ROUTES } else { 1 };
        let setup = Setup { routes, ..Setup::plain(self.origin, self.folder.path()) };
        Contestant::start(name, self.rounds.cores.proxy, &setup)
    }
}

impl Idle for WebSocket {
    async fn used(&mut self) -> std::io::Result<()> {
        self.echo().await
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
        Row::new(&self, title, unit)
    }

    fn load(self) -> Option<Load> {
        let get = |path, connection| vec![client::get(HOST, path, connection)];
        let is_fresh = self == Self::Connect;
        let http = |requests, length| Work::Http(Http { requests: Arc::new(requests), length, is_fresh, tls: None });
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
