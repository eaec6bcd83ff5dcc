//! What it costs to know where a stream could end, and to end it: the trackers of frames and events, and the goodbye of
//! thousands of WebSockets.
//!
//! `cargo bench --bench goodbye -- [--only follow,echo,farewell] [--rounds N] [--seconds S] [--sockets 1000,10000]
//! [--spread S] [--doc FILE]`
//!
//! *follow*: nanoseconds that a tracker takes, with nothing around it. *echo*: CPU time of a proxied 64-byte WebSocket echo,
//! on sockets that teal follows and on sockets whose first octets are no frame, so that it relays them blindly from then
//! on: one process, one path, and only the tracker makes the difference. *farewell*: all sockets of a service are told
//! goodbye after a switch, answer, and come back to the other color.

mod support;

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use teal::drain::{DrainReport, DrainState};
use teal::stream::events::Events;
use teal::stream::frames::{Frames, Place, Sender};

use support::contestant::{Contestant, HOST, Name, Setup, free_addresses, wait_until_ready, written};
use support::crowd::{Crowd, Farewell};
use support::load::{self, Load, Window, Work};
use support::machine::Machine;
use support::origin::{self, SMALL};
use support::process::{self, Cores, Process};
use support::report::figure;
use support::stats::{median, quantile};
use support::switchable::{Color, drained_teal, switch_teal};

const WARM_UP: Duration = Duration::from_millis(1500);
const RAMP: Duration = Duration::from_millis(400);
const CONNECTIONS: usize = 64;
const BATCHES: usize = 200;
/// Followed in each batch.
const OCTETS: usize = 1024 * 1024;
const GATHERING: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(2);
/// What a process needs beside the sockets.
const OTHER_FILES: usize = 400;
const RESTART: u16 = 1012;
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Parser)]
struct Options {
    /// These parts only
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Rounds of echoes
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of echoes per side and round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Say goodbye to so many sockets
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
    sockets: Vec<usize>,
    /// Seconds that the goodbyes are spread over
    #[arg(long, default_value_t = 10)]
    spread: u64,
    /// A page to put the tables into, between its marks `goodbye`
    #[arg(long)]
    doc: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    Follow,
    Echo,
    Farewell,
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
    let mut text = format!("{}.\n", Machine::here(&[Name::Teal]));
    print!("{text}");
    for &part in Part::value_variants().iter().filter(|part| options.only.is_empty() || options.only.contains(part)) {
        let table = match part {
            Part::Follow => follow()?,
            Part::Echo => echo(&options)?,
            Part::Farewell => farewells(&options)?,
        };
        print!("\n{table}");
        text += &format!("\n{table}");
    }
    options.doc.map_or(Ok(()), |file| support::document::put(&file, "goodbye", &text))
}

/// The trackers alone.
fn follow() -> Result<String> {
    let masked = |first| [&[first, 0x80 | SMALL as u8, 1, 2, 3, 4], [b'm'; SMALL].as_slice()].concat();
    let (question, broken) = (masked(0x82), masked(0x83));
    let answer = [&[0x82, SMALL as u8], [b'm'; SMALL].as_slice()].concat();
    let event = [b"data: ".as_slice(), &[b'e'; SMALL - 8], b"\n\n"].concat();
    let many = question.repeat(64 * 1024 / question.len());

    let mut table = "| what is followed | octets | median ns | least ns |\n|---|---:|---:|---:|\n".to_owned();
    let mut row = |what: &str, octets: usize, pass: &mut dyn FnMut() -> bool| -> Result<()> {
        ensure!(pass(), "{what}: not what it should be");
        let mut batches: Vec<f64> = (0..BATCHES).map(|_| batch(OCTETS / octets, pass)).collect();
        let (median, least) = (quantile(&mut batches, 0.5), quantile(&mut batches, 0.0));
        Ok(writeln!(table, "| {what} | {octets} | {} | {} |", figure(median), figure(least))?)
    };

    let (mut up, mut down) = (Frames::new(Sender::Client), Frames::new(Sender::Server));
    let (mut blind_up, mut blind_down) = (Frames::new(Sender::Client), Frames::new(Sender::Server));
    row("an echo: a message each way", question.len() + answer.len(), &mut || {
        black_box(&mut up).follow(black_box(&question));
        black_box(&mut down).follow(black_box(&answer));
        [up.place(), down.place()] == [Place::BetweenMessages; 2]
    })?;
    row("the same, blindly", 2 * broken.len(), &mut || {
        black_box(&mut blind_up).follow(black_box(&broken));
        black_box(&mut blind_down).follow(black_box(&broken));
        [blind_up.place(), blind_down.place()] == [Place::Unknown; 2]
    })?;
    row("a read full of messages", many.len(), &mut || {
        black_box(&mut up).follow(black_box(&many));
        up.place() == Place::BetweenMessages
    })?;
    let mut events = Events::default();
    row("an event", event.len(), &mut || {
        black_box(&mut events).follow(black_box(&event));
        events.is_between()
    })?;
    Ok(table)
}

/// Nanoseconds per pass.
fn batch(passes: usize, pass: &mut dyn FnMut() -> bool) -> f64 {
    let began = Instant::now();
    for _ in 0..passes {
        black_box(pass());
    }
    began.elapsed().as_secs_f64() * 1e9 / passes as f64
}

/// Sockets that are followed, sockets that are relayed blindly, and a bare relay, in turns.
fn echo(options: &Options) -> Result<String> {
    let (cores, folder) = (Cores::choose()?, tempfile::tempdir()?);
    let origin = origin::start("origin", cores.origin)?;
    let start = |name| Contestant::start(name, cores.proxy, &Setup::plain(origin, folder.path()));
    let (teal, relay) = (start(Name::Teal)?, start(Name::Relay)?);
    let host = || HOST.to_owned();
    let sides = [
        (&teal, Work::Echo { host: host() }),
        (&teal, Work::BlindEcho { host: host() }),
        (&relay, Work::Echo { host: host() }),
    ];
    let window = |(contestant, work): &(&Contestant, Work), counted| {
        let load = Load { connections: CONNECTIONS, work: work.clone() };
        load::window(&load, contestant.address, cores.load, (RAMP, counted), || contestant.process.cpu())
    };

    let mut rounds = [const { Vec::new() }; 3];
    let counted = Duration::try_from_secs_f64(options.seconds)?;
    for round in 0..=options.rounds {
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            let window = window(&sides[at], if round == 0 { WARM_UP } else { counted })?;
            let micros = per_echo(&window)?;
            if round > 0 {
                rounds[at].push(micros);
            }
        }
    }
    let [followed, blind, relay] = &rounds;
    let [to_blind, to_relay] = [blind, relay].map(|other| median(&ratios(followed, other)));
    Ok(format!(
        "| {} rounds of {} s | followed | blind | relay | followed to blind | to the relay |\n\
         |---|---:|---:|---:|---:|---:|\n\
         | WebSocket echo, 64 bytes (CPU µs per echo) | {} | {} | {} | {to_blind:.2} | {to_relay:.2} |\n",
        options.rounds,
        options.seconds,
        figure(median(followed)),
        figure(median(blind)),
        figure(median(relay)),
    ))
}

fn per_echo(window: &Window) -> Result<f64> {
    let error = window.first_error.as_deref().unwrap_or("no echoes");
    ensure!(window.errors == 0 && window.units > 0, "{} errors, first: {error}", window.errors);
    Ok(window.cpu.as_secs_f64() * 1e6 / window.units as f64)
}

fn ratios(one: &[f64], other: &[f64]) -> Vec<f64> {
    one.iter().zip(other).map(|(one, other)| one / other).collect()
}

/// Goodbyes of as many sockets as is asked for and possible.
fn farewells(options: &Options) -> Result<String> {
    // Two for each in the proxy, where each comes back a little before its old socket is gone for good.
    let possible = process::raise_open_files().saturating_sub(OTHER_FILES) / 2;
    let mut table =
        "| sockets | spread | to the last Close | most in 100 ms, to an even rate | back after, p50 | max (ms) | \
         CPU (s) | CPU µs per socket | memory before | at most | after (MiB) |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
            .to_owned();
    let mut notes = String::new();
    for &wanted in &options.sockets {
        if wanted > possible {
            writeln!(notes, "\nOnly {possible} sockets instead of {wanted}: the limit of open files allows no more.")?;
        }
        let moved = Stage::new(wanted.min(possible), options.spread)?.say_goodbye()?;
        table += &moved.line();
    }
    Ok(table + &notes)
}

/// teal with two colors, and sockets that are open on blue.
struct Stage {
    spread: Duration,
    teal: Process,
    admin: TcpStream,
    crowd: Crowd,
    _origins: [Process; 2],
    _folder: tempfile::TempDir,
}

/// What a goodbye has cost.
struct Moved {
    spread: Duration,
    /// When the switch was called.
    called: Instant,
    cpu: Duration,
    before: u64,
    peak: u64,
    after: u64,
    farewells: Vec<Farewell>,
}

impl Stage {
    fn new(sockets: usize, spread: u64) -> Result<Self> {
        let (cores, folder) = (Cores::choose()?, tempfile::tempdir()?);
        let (blue, first) = origin::start_process("blue", cores.origin, folder.path())?;
        let (green, second) = origin::start_process("green", cores.origin, folder.path())?;
        let [address, admin] = free_addresses()?;
        let config = config(folder.path(), (address, admin), (blue, green), sockets, spread);
        let arguments = ["run".into(), "--config".into(), written(folder.path(), "teal.toml", &config)?];
        let program = Name::Teal.program().context("teal is not built")?;
        let mut teal = Process::start(cores.proxy, &program, &arguments, &folder.path().join("output"))?;
        wait_until_ready(Name::Teal, address, &mut teal)?;
        let admin = TcpStream::connect(admin)?;
        admin.set_nodelay(true)?;
        let crowd = Crowd::gather(sockets, address, cores.load, GATHERING)?;
        let spread = Duration::from_secs(spread);
        Ok(Self { spread, teal, admin, crowd, _origins: [first, second], _folder: folder })
    }

    fn say_goodbye(mut self) -> Result<Moved> {
        thread::sleep(SETTLE);
        self.teal.forget_peak()?;
        let (before, cpu, called) = (self.teal.resident()?, self.teal.cpu()?, Instant::now());
        switch_teal(&mut self.admin, Color::Green)?;
        self.crowd.wait_for_return(self.spread + GATHERING)?;
        let drain = drained_teal(&mut self.admin)?;
        let (cpu, peak) = (self.teal.cpu()?.saturating_sub(cpu), self.teal.peak()?);
        thread::sleep(SETTLE);
        let after = self.teal.resident()?;
        let farewells = self.crowd.finish()?.into_iter().collect::<io::Result<Vec<Farewell>>>()?;
        check(&drain, &farewells)?;
        Ok(Moved { spread: self.spread, called, cpu, before, peak, after, farewells })
    }
}

fn config(
    folder: &Path,
    (address, admin): (SocketAddr, SocketAddr),
    (blue, green): (SocketAddr, SocketAddr),
    sockets: usize,
    spread: u64,
) -> String {
    format!(
        "state_dir = {:?}\nworkers = 1\n[admin]\nlisten = \"{admin}\"\n[limits]\nconnections = {}\n\
         [[listeners]]\nlisten = \"{address}\"\n[[routes]]\npath = \"/\"\nservice = \"p0\"\n\
         [services.p0]\nactive = \"blue\"\nblue = [\"{blue}\"]\ngreen = [\"{green}\"]\n\
         drain = {{ timeout = \"{}s\", websocket = {{ spread = \"{spread}s\" }} }}\n",
        folder.join("state"),
        sockets + OTHER_FILES,
        spread + GATHERING.as_secs(),
    )
}

/// A goodbye that was not one for everybody is not worth measuring.
fn check(drain: &DrainReport, farewells: &[Farewell]) -> Result<()> {
    let sockets = farewells.len() as u64;
    let is_clean = drain.state == DrainState::Drained
        && (drain.websocket.at_switch, drain.websocket.finished) == (sockets, sockets)
        && farewells.iter().all(|farewell| farewell.code == RESTART);
    ensure!(is_clean, "not a clean goodbye: {drain:?}");
    Ok(())
}

impl Moved {
    fn line(&self) -> String {
        let told: Vec<f64> = self.seconds(|farewell| farewell.told - self.called);
        let mut away: Vec<f64> = self.seconds(|farewell| farewell.returned - farewell.told);
        let even = told.len() as f64 / self.spread.as_secs_f64() / 10.0;
        let [before, peak, after] = [self.before, self.peak, self.after].map(|bytes| figure(bytes as f64 / MIB));
        format!(
            "| {} | {} s | {:.2} s | {:.2} | {:.1} | {:.1} | {:.2} | {:.0} | {before} | {peak} | {after} |\n",
            told.len(),
            self.spread.as_secs(),
            told.iter().copied().fold(0.0, f64::max),
            most_within(&told, 0.1) as f64 / even,
            quantile(&mut away, 0.5) * 1e3,
            quantile(&mut away, 1.0) * 1e3,
            self.cpu.as_secs_f64(),
            self.cpu.as_secs_f64() * 1e6 / told.len() as f64,
        )
    }

    fn seconds(&self, of: impl Fn(&Farewell) -> Duration) -> Vec<f64> {
        self.farewells.iter().map(|farewell| of(farewell).as_secs_f64()).collect()
    }
}

/// The largest number of moments within any so many seconds.
fn most_within(moments: &[f64], seconds: f64) -> usize {
    let mut sorted = moments.to_vec();
    sorted.sort_by(f64::total_cmp);
    let after = |from: &f64| sorted.partition_point(|moment| *moment < from + seconds);
    sorted.iter().enumerate().map(|(at, from)| after(from) - at).max().unwrap_or(0)
}
