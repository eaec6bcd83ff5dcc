//! What TLS and HTTP/2 cost: CPU time per unit of work of teal, nginx and HAProxy, and memory per idle connection.
//!
//! `cargo bench --bench tls -- [--rounds N] [--seconds S] [--only ROW,…] [--json FILE] [--doc FILE]`
//!
//! All show the same certificate and speak the same cipher to clients that check every answer. Each has one worker
//! pinned to one core; origin and load run elsewhere, and rounds are interleaved as in `forward`. A handshake that is not
//! of the kind that its row is about is an error, and a row with a single error is void.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use support::client::{self, Client};
use support::contestant::{Contestant, HOST, Name, Setup};
use support::http2::{self, Call, Streams};
use support::load::{Http, Load, Work};
use support::origin::{self, BIG, SMALL};
use support::process;
use support::report::Row;
use support::rounds::{self, Idle, Rounds, idle_memory};
use support::tls::{Handshakes, Identity, Tls};

const CONTESTANTS: [Name; 3] = [Name::Teal, Name::Nginx, Name::Haproxy];
const STREAMS: usize = 10;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    plan: rounds::Plan<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    KeepAlive,
    Http2,
    Full,
    Resumed,
    Download,
    Upload,
    Grpc,
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
    let Options { plan } = Options::parse();
    let contestants = plan.contestants(&CONTESTANTS)?;
    let bench = Bench::new(contestants.clone(), &plan)?;
    let report = plan.report(&contestants, |kind| bench.row(*kind))?;
    plan.store(&report, "tls")
}

struct Bench {
    rounds: Rounds,
    origin: SocketAddr,
    origin_h2c: SocketAddr,
    identity: Identity,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(contestants: Vec<Name>, plan: &rounds::Plan<Kind>) -> Result<Self> {
        let rounds = Rounds::new(contestants, plan)?;
        let folder = tempfile::tempdir()?;
        Ok(Self {
            origin: origin::start("origin", rounds.cores.origin)?,
            origin_h2c: http2::start_origin(rounds.cores.origin)?,
            identity: Identity::made_in(folder.path())?,
            rounds,
            folder,
        })
    }

    fn row(&self, kind: Kind) -> Result<Row> {
        let contestants = &self.rounds.contestants;
        match kind.load(&self.identity)? {
            Some(load) => self.rounds.load_row(kind.row(), &load, contestants, |name| self.start(name, kind)),
            None => self.rounds.idle_row(kind.row(), 1, contestants, |name, sockets| self.idle(name, sockets)),
        }
    }

    fn start(&self, name: Name, kind: Kind) -> Result<Contestant> {
        let is_h2c = kind == Kind::Grpc;
        let origin = if is_h2c { self.origin_h2c } else { self.origin };
        let setup = Setup { is_h2c, identity: Some(&self.identity), ..Setup::plain(origin, self.folder.path()) };
        Contestant::start(name, self.rounds.cores.proxy, &setup)
    }

    fn idle(&self, name: Name, sockets: usize) -> Result<(f64, Option<String>)> {
        let contestant = self.start(name, Kind::Idle)?;
        let tls = Tls::new(&self.identity, "http/1.1", Handshakes::Full)?;
        idle_memory(&contestant, sockets, || async { Client::connect_tls(contestant.address, &mut tls.client()).await })
    }
}

impl Kind {
    fn row(self) -> Row {
        let (title, unit) = match self {
            Self::KeepAlive => ("64-byte answers, 64 kept connections", "CPU µs per request"),
            Self::Http2 => ("the same over HTTP/2, 16 connections of 10 streams", "CPU µs per request"),
            Self::Full => ("a new connection per request", "CPU µs per request"),
            Self::Resumed => ("the same by a ticket", "CPU µs per request"),
            Self::Download => ("1 MiB answers", "CPU µs per answer"),
            Self::Upload => ("1 MiB uploads", "CPU µs per upload"),
            Self::Grpc => ("unary gRPC to an h2c origin, 16 connections of 10 streams", "CPU µs per call"),
            Self::Idle => ("5,000 idle connections", "KiB per connection"),
        };
        Row::new(&self, title, unit)
    }

    fn load(self, identity: &Identity) -> Result<Option<Load>> {
        let handshakes = if self == Self::Resumed { Handshakes::Resumed } else { Handshakes::Full };
        let http1 = Tls::new(identity, "http/1.1", handshakes)?;
        let http2 = Tls::new(identity, "h2", handshakes)?;
        let http = |request, length| {
            let is_fresh = matches!(self, Self::Full | Self::Resumed);
            Work::Http(Http { requests: Arc::new(vec![request]), length, is_fresh, tls: Some(http1) })
        };
        let get = |path, connection| client::get(HOST, path, connection);
        let (connections, work) = match self {
            Self::KeepAlive => (64, http(get("/p0", "keep-alive"), SMALL)),
            Self::Full | Self::Resumed => (64, http(get("/p0", "close"), SMALL)),
            Self::Download => (8, http(get("/big", "keep-alive"), BIG)),
            Self::Upload => (8, http(client::put(HOST, "/upload", BIG), SMALL)),
            Self::Http2 => (16, Work::Streams(Streams { tls: http2, streams: STREAMS, call: Call::Get })),
            Self::Grpc => (16, Work::Streams(Streams { tls: http2, streams: STREAMS, call: Call::Grpc })),
            Self::Idle => return Ok(None),
        };
        Ok(Some(Load { connections, work }))
    }
}

impl Idle for Client {
    async fn used(&mut self) -> std::io::Result<()> {
        let answer = self.exchange(&client::get(HOST, "/p0", "keep-alive")).await?;
        let is_good = answer.status == 200 && answer.length == SMALL;
        if is_good { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
    }
}
