//! What a switch costs: from the call to its confirmation, and for the requests around it.
//!
//! `cargo bench --bench switch -- [--switches N] [--services 1,1000] [--loads paced,full] [--json FILE] [--doc FILE]`
//!
//! 64 connections ask one service without a break or at a pace that leaves the core mostly idle, while that service
//! is switched back and forth. Measured: call to confirmation; stale requests (began after the confirmation, answered
//! by the old color); failed requests; p99 latency within 50 ms of a switch, and in the time between. teal's own
//! threads share one core with its worker here, which is the worst case for the call. The least that a call can take is
//! what the disk takes for its two syncs, so that is measured, too; with a memory disk for `TMPDIR` it takes nothing.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde::Serialize;

use support::busy::{Busy, Sample, Seen, Stage};
use support::client;
use support::contestant::{HOST, Name};
use support::machine::Machine;
use support::origin;
use support::process::{self, Cores};
use support::stats::quantile;
use support::switchable::{Color, Colors, Switchable};

const CONNECTIONS: usize = 64;
const PAUSE: Duration = Duration::from_millis(8);
const WARM_UP: Duration = Duration::from_secs(2);
/// Around a switch: this long before and after it.
const NEAR: Duration = Duration::from_millis(50);
const HEAD: &str = "| | services | load | call p50 | p99 | max (ms) | stale | for (ms) | unanswered | \
     p99 near | steady (ms) | requests |\n|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|";
/// What a commit of one service writes: pages, one of them a head of which only some octets change.
const PAGE: usize = 4096;
const PAGES: usize = 12;
const HEAD_OCTETS: usize = 320;
const BETWEEN_COMMITS: Duration = Duration::from_millis(20);
const CONTESTANTS: [Name; 3] = [Name::Teal, Name::Haproxy, Name::Nginx];

#[derive(Parser)]
struct Options {
    /// Switches per measurement; nginx, which takes long, makes a tenth
    #[arg(long, default_value_t = 300)]
    switches: usize,
    /// Measure with so many services
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000])]
    services: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Load::Paced, Load::Full])]
    loads: Vec<Load>,
    /// These contestants only
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = CONTESTANTS)]
    contestants: Vec<Name>,
    /// A page to put the table into, between its marks `switch`
    #[arg(long)]
    doc: Option<PathBuf>,
    /// Where to store the results
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Load {
    /// About 8,000 requests per second
    Paced,
    /// As many as one core takes
    Full,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    measurements: Vec<Measurement>,
    /// What a commit of teal asks of the disk, and nothing else.
    disk_ms: Spread,
}

#[derive(Serialize)]
struct Measurement {
    contestant: &'static str,
    services: usize,
    load: Load,
    switches: usize,
    requests: usize,
    call_ms: Spread,
    /// Stale among the first requests after each confirmation, and among all others.
    stale_first: usize,
    stale: usize,
    /// How long after a confirmation the last stale request began.
    stale_for_ms: f64,
    failed: u64,
    p99_near_ms: f64,
    p99_steady_ms: f64,
}

#[derive(Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Spread {
    fn of(values: &mut [f64]) -> Self {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|at| quantile(values, at));
        Self { p50, p99, max }
    }
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
    let report = measure(&options)?;
    if let Some(file) = &options.doc {
        support::document::put(file, "switch", &report.table())?;
    }
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn measure(options: &Options) -> Result<Report> {
    let (present, missing): (Vec<Name>, Vec<Name>) =
        options.contestants.iter().partition(|name| name.program().is_some() && **name != Name::Relay);
    missing.iter().for_each(|name| println!("skipped: {} is not installed", name.as_str()));
    let machine = Machine::here(&present);
    let bench = Bench::new()?;
    println!("{machine}\n\n{HEAD}");
    let mut measurements = Vec::new();
    for &services in &options.services {
        for &load in &options.loads {
            for &name in &present {
                let measurement = bench.measurement(name, services, load, options.switches)?;
                println!("{measurement}");
                measurements.push(measurement);
            }
        }
    }
    let disk_ms = commits(bench.folder.path(), options.switches)?;
    println!("\n{}", beside(&disk_ms));
    Ok(Report { machine, measurements, disk_ms })
}

/// Pages and a head, each with a sync, as a switch writes them.
fn commits(folder: &Path, count: usize) -> Result<Spread> {
    let file = File::create(folder.join("commits"))?;
    let page = [b'x'; PAGE];
    file.write_all_at(&[0; PAGE * 2 * PAGES], 0)?;
    file.sync_all()?;
    let mut took = Vec::with_capacity(count);
    for number in 0..count {
        thread::sleep(BETWEEN_COMMITS);
        let begun = Instant::now();
        // What was committed before stays as it is.
        let first = 1 + (number % 2) * (PAGES - 1);
        (first..first + PAGES - 1).try_for_each(|at| file.write_all_at(&page, (at * PAGE) as u64))?;
        file.sync_data()?;
        file.write_all_at(&page[..HEAD_OCTETS], 0)?;
        file.sync_data()?;
        took.push(ms(begun.elapsed()));
    }
    Ok(Spread::of(&mut took))
}

fn beside(disk: &Spread) -> String {
    let Spread { p50, p99, max } = disk;
    format!("The writes and syncs of such a switch by themselves: p50 {p50:.2}, p99 {p99:.2}, max {max:.2} ms.")
}

impl Report {
    fn table(&self) -> String {
        let lines: Vec<String> = self.measurements.iter().map(Measurement::to_string).collect();
        format!("{}.\n\n{HEAD}\n{}\n\n{}", self.machine, lines.join("\n"), beside(&self.disk_ms))
    }
}

struct Bench {
    cores: Cores,
    colors: Colors,
    folder: tempfile::TempDir,
}

/// When a switch was called and when it was confirmed.
struct Call {
    called: Instant,
    confirmed: Instant,
    is_first_stale: bool,
}

impl Bench {
    fn new() -> Result<Self> {
        let cores = Cores::choose()?;
        let blue = origin::start(Color::Blue.as_str(), cores.origin)?;
        let green = origin::start(Color::Green.as_str(), cores.origin)?;
        // The one who switches must not take time from the proxy's core.
        process::pin(cores.load)?;
        Ok(Self { cores, colors: Colors { blue, green }, folder: tempfile::tempdir()? })
    }

    fn measurement(&self, name: Name, services: usize, load: Load, switches: usize) -> Result<Measurement> {
        let mut proxy = Switchable::start(name, self.cores.proxy, self.colors, services, self.folder.path())?;
        let stage = Arc::new(Stage::default());
        let pause = if matches!(load, Load::Paced) { PAUSE } else { Duration::ZERO };
        let busy = Busy::start(CONNECTIONS, pause, proxy.address, self.cores.load, stage.clone())?;
        thread::sleep(WARM_UP);
        let (switches, rest) = match name {
            Name::Nginx => (switches.div_ceil(10), Duration::from_secs(1)),
            _ => (switches, 2 * NEAR + 2 * NEAR),
        };
        let calls = (0..switches).map(|_| call(&mut proxy, &stage, rest)).collect::<Result<Vec<_>>>()?;
        let seen = busy.finish()?;
        Ok(conclude((name, services, load), &calls, &seen))
    }
}

/// Rests, switches to the other color, and asks at once who answers now.
fn call(proxy: &mut Switchable, stage: &Stage, rest: Duration) -> Result<Call> {
    thread::sleep(rest.mul_f64(0.9 + 0.2 * fastrand::f64()));
    let number = stage.called.fetch_add(1, Ordering::SeqCst) + 1;
    let called = Instant::now();
    proxy.switch(Color::after(number))?;
    let confirmed = Instant::now();
    stage.confirmed.store(number, Ordering::SeqCst);
    let is_first_stale = first_byte(proxy.address)? != Color::after(number).initial();
    Ok(Call { called, confirmed, is_first_stale })
}

fn first_byte(address: SocketAddr) -> Result<u8> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&client::get(HOST, "/p0", "close"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let body = memchr::memmem::find(&answer, b"\r\n\r\n").context("an answer without an end of head")? + 4;
    answer.get(body).copied().context("an answer without a body")
}

fn conclude((name, services, load): (Name, usize, Load), calls: &[Call], seen: &Seen) -> Measurement {
    let mut took: Vec<f64> = calls.iter().map(|call| ms(call.confirmed - call.called)).collect();
    let (mut near, mut steady) = (Vec::new(), Vec::new());
    let mut stale_for = Duration::ZERO;
    for sample in &seen.samples {
        let before = calls.partition_point(|call| call.confirmed <= sample.began);
        if sample.is_stale && before > 0 {
            stale_for = stale_for.max(sample.began - calls[before - 1].confirmed);
        }
        let side = if is_near(calls, before, sample) { &mut near } else { &mut steady };
        side.push(ms(sample.took));
    }
    Measurement {
        contestant: name.as_str(),
        services,
        load,
        switches: calls.len(),
        requests: seen.samples.len(),
        call_ms: Spread::of(&mut took),
        stale_first: calls.iter().filter(|call| call.is_first_stale).count(),
        stale: seen.samples.iter().filter(|sample| sample.is_stale).count(),
        stale_for_ms: ms(stale_for),
        failed: seen.failed,
        p99_near_ms: quantile(&mut near, 0.99),
        p99_steady_ms: quantile(&mut steady, 0.99),
    }
}

/// Whether a request began close to a switch; `before` is how many were confirmed by then.
fn is_near(calls: &[Call], before: usize, sample: &Sample) -> bool {
    let after_last = before.checked_sub(1).map(|last| sample.began - calls[last].confirmed);
    let until_next = calls.get(before).map(|next| next.confirmed - sample.began);
    [after_last, until_next].into_iter().flatten().any(|distance| distance <= NEAR)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl std::fmt::Display for Measurement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Spread { p50, p99, max } = self.call_ms;
        write!(f, "| {} | {} | {:?} | {p50:.2} | {p99:.2} | {max:.2} |", self.contestant, self.services, self.load)?;
        write!(f, " {} | {:.0} | {} |", self.stale + self.stale_first, self.stale_for_ms, self.failed)?;
        write!(f, " {:.2} | {:.2} | {} |", self.p99_near_ms, self.p99_steady_ms, self.requests)
    }
}
