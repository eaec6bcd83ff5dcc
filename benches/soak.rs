//! Whether teal stays what it is under hostile clients and origins: half an hour of good and bad traffic, and a switch
//! every second.
//!
//! `cargo bench --bench soak -- [--minutes 30]`
//!
//! Good clients ask, upload, download, echo over WebSockets and follow events; hostile ones say nothing, say half, say
//! garbage, do not read, or break off, and one route leads to an origin that lies. The exit status says whether what is
//! promised is kept: no good request fails, every switch is confirmed, memory stays within 5 % after the warm-up, and
//! when all have left, teal has no more descriptors than before.

#[path = "soak/clients.rs"]
mod clients;
#[path = "soak/origins.rs"]
mod origins;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use clients::{Crowd, PATIENCE, Tally};
use support::contestant::{Name, free_addresses, wait_until_ready, written};
use support::machine::Machine;
use support::origin;
use support::process::{self, Cores, Process};
use support::report::figure;
use support::stats::{median, quantile};
use support::switchable::Color;

const MIB: f64 = 1024.0 * 1024.0;
const TICK: Duration = Duration::from_secs(1);
/// Idle connections to origins are kept for 30 s.
const REST: Duration = Duration::from_secs(90);
const WARM_UP: Duration = Duration::from_secs(300);
const WORKERS: usize = 2;
/// Pipes that a worker may keep for large bodies, two descriptors each.
const PIPES: usize = 16;
/// Parts of the time after the warm-up whose memory is compared.
const WINDOWS: usize = 10;
const FLAT: f64 = 0.05;

#[derive(Parser)]
struct Options {
    /// How long, without the rest at the end
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
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
    process::raise_open_files();
    println!("{}; {} minutes.", Machine::here(&[Name::Teal]), options.minutes);
    let mut stage = Stage::new()?;
    let before = stage.descriptors()?;
    let crowd = Crowd::start(stage.address, stage.cores.load)?;
    let watched = stage.watch(Duration::try_from_secs_f64(options.minutes * 60.0)?)?;
    let tallies = crowd.finish()?;
    let after = stage.rest(before)?;
    report(&tallies, &watched, before, after)
}

/// teal with two colors for requests and two for events, and an origin that lies.
struct Stage {
    address: SocketAddr,
    admin: SocketAddr,
    teal: Process,
    cores: Cores,
    _origins: [Process; 2],
    _folder: tempfile::TempDir,
}

/// What teal looked like over the time.
struct Watched {
    /// Octets, one for each second.
    resident: Vec<f64>,
    anonymous: Vec<f64>,
    warm_up: usize,
    /// Milliseconds until each switch was confirmed.
    switches: Vec<f64>,
    unconfirmed: u64,
    most_descriptors: usize,
}

/// Open files of teal.
#[derive(Clone, Copy, Debug)]
struct Descriptors {
    /// Ends of pipes, which workers keep.
    pipes: usize,
    others: usize,
}

impl std::fmt::Display for Descriptors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} and {} of pipes", self.others, self.pipes)
    }
}

impl Stage {
    fn new() -> Result<Self> {
        let (cores, folder) = (Cores::choose()?, tempfile::tempdir()?);
        let (blue, first) = origin::start_process("blue", cores.origin, folder.path())?;
        let (green, second) = origin::start_process("green", cores.origin, folder.path())?;
        let events = [origins::start(cores.origin, origins::events)?, origins::start(cores.origin, origins::events)?];
        let liar = origins::start(cores.origin, origins::lies)?;
        let [address, admin] = free_addresses()?;
        let config = config(folder.path(), (address, admin), [blue, green], events, liar);
        let arguments = ["run".into(), "--config".into(), written(folder.path(), "teal.toml", &config)?];
        let program = Name::Teal.program().context("teal is not built")?;
        let mut teal = Process::start(cores.proxy, &program, &arguments, &folder.path().join("output"))?;
        wait_until_ready(Name::Teal, address, &mut teal)?;
        let stage = Self { address, admin, teal, cores, _origins: [first, second], _folder: folder };
        // The connection that was asked on goes, and the one to the origin stays.
        thread::sleep(TICK);
        Ok(stage)
    }

    /// Switches every second, and looks at the process.
    fn watch(&mut self, length: Duration) -> Result<Watched> {
        let (begun, ticks) = (Instant::now(), length.as_secs().max(WINDOWS as u64));
        let warm_up = (length / 5).min(WARM_UP).as_secs() as usize;
        let (resident, anonymous, switches) = (Vec::new(), Vec::new(), Vec::new());
        let mut watched = Watched { resident, anonymous, warm_up, switches, unconfirmed: 0, most_descriptors: 0 };
        for tick in 1..=ticks {
            thread::sleep((TICK * tick as u32).saturating_sub(begun.elapsed()));
            let called = Instant::now();
            match switch(self.admin, Color::after(tick)) {
                Ok(()) => watched.switches.push(called.elapsed().as_secs_f64() * 1e3),
                Err(error) => {
                    watched.unconfirmed += 1;
                    eprintln!("switch {tick}: {error:#}");
                }
            }
            ensure!(!self.teal.has_ended(), "teal has ended:\n{}", self.teal.printed());
            let (resident, descriptors) = (self.teal.resident()? as f64, self.descriptors()?);
            let anonymous = self.teal.anonymous()? as f64;
            watched.resident.push(resident);
            watched.anonymous.push(anonymous);
            watched.most_descriptors = watched.most_descriptors.max(descriptors.pipes + descriptors.others);
            if tick % 60 == 0 {
                let [all, own] = [resident, anonymous].map(|octets| figure(octets / MIB));
                println!("{:>3} min: {all} MiB, {own} without files, descriptors: {descriptors}", tick / 60);
            }
        }
        Ok(watched)
    }

    /// Waits until teal has no more descriptors than before, or for as long as that may take.
    fn rest(&mut self, before: Descriptors) -> Result<Descriptors> {
        let deadline = Instant::now() + REST;
        loop {
            let now = self.descriptors()?;
            if now.others <= before.others || Instant::now() > deadline {
                ensure!(!self.teal.has_ended(), "teal has ended:\n{}", self.teal.printed());
                return Ok(now);
            }
            thread::sleep(TICK);
        }
    }

    fn descriptors(&self) -> Result<Descriptors> {
        let mut found = Descriptors { pipes: 0, others: 0 };
        for file in fs::read_dir(format!("/proc/{}/fd", self.teal.id()))? {
            // One may be closed between the listing and the reading.
            let Ok(target) = fs::read_link(file?.path()) else { continue };
            let count =
                if target.to_string_lossy().starts_with("pipe:") { &mut found.pipes } else { &mut found.others };
            *count += 1;
        }
        Ok(found)
    }
}

fn config(
    folder: &Path,
    (address, admin): (SocketAddr, SocketAddr),
    [blue, green]: [SocketAddr; 2],
    [blue_events, green_events]: [SocketAddr; 2],
    liar: SocketAddr,
) -> String {
    let goodbye = "{ timeout = \"5s\", websocket = { spread = \"300ms\" }, sse = { spread = \"300ms\" } }";
    format!(
        "state_dir = {:?}\nworkers = {WORKERS}\n[admin]\nlisten = \"{admin}\"\n\
         [limits]\nconnections = 4000\nrequest_body = \"1MiB\"\n\
         header_timeout = \"2s\"\nbody_timeout = \"2s\"\nidle_timeout = \"5s\"\n\
         [[listeners]]\nlisten = \"{address}\"\n\
         [[routes]]\npath = \"/\"\nservice = \"p0\"\n\
         [[routes]]\npath = \"/events\"\nservice = \"events\"\n\
         [[routes]]\npath = \"/liar\"\nservice = \"liar\"\n\
         [services.p0]\nactive = \"blue\"\nblue = [\"{blue}\"]\ngreen = [\"{green}\"]\ndrain = {goodbye}\n\
         [services.events]\nactive = \"blue\"\nblue = [\"{blue_events}\"]\ngreen = [\"{green_events}\"]\n\
         drain = {goodbye}\n\
         [services.liar]\nactive = \"blue\"\nblue = [\"{liar}\"]\ngreen = []\nresponse_timeout = \"2s\"\n\
         outlier = {{ consecutive_errors = 0 }}\n",
        folder.join("state"),
    )
}

/// Switches both services; returns when teal has confirmed it.
fn switch(admin: SocketAddr, to: Color) -> Result<()> {
    let color = to.as_str();
    let body = format!("{{\"services\":{{\"p0\":\"{color}\",\"events\":\"{color}\"}},\"actor\":\"soak\"}}");
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(
        format!(
            "POST /v1/switch HTTP/1.1\r\nHost: {admin}\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "teal refused: {answer}");
    Ok(())
}

fn report(tallies: &[Arc<Tally>], watched: &Watched, before: Descriptors, after: Descriptors) -> Result<()> {
    println!("\n| clients | done | failed |\n|---|---:|---:|");
    for tally in tallies {
        let (kind, done) = (if tally.is_good { "good" } else { "hostile" }, tally.done.load(Ordering::Relaxed));
        println!("| {kind}: {} | {done} | {} |", tally.name, tally.failed.load(Ordering::Relaxed));
    }
    let mut switches = watched.switches.clone();
    let mut late = watched.resident[watched.warm_up..].to_vec();
    let in_windows =
        |values: &[f64]| -> Vec<f64> { values.chunks(values.len().div_ceil(WINDOWS)).map(median).collect() };
    let (windows, own) = (in_windows(&late), in_windows(&watched.anonymous[watched.warm_up..]));
    let middle = median(&windows);
    let off = windows.iter().map(|window| window / middle - 1.0).fold(0.0, |most: f64, off| most.max(off.abs()));
    let row = |what: &str, value: String| println!("| {what} | {value} |");
    println!("\n| teal | |\n|---|---:|");
    row("switches", format!("{} confirmed, {} not", switches.len(), watched.unconfirmed));
    let [half, most] = [0.5, 1.0].map(|at| quantile(&mut switches, at));
    row("confirmed after (ms)", format!("p50 {}, max {}", figure(half), figure(most)));
    let listed = |windows: &[f64]| windows.iter().map(|window| figure(window / MIB)).collect::<Vec<_>>().join(" ");
    row("memory in ten windows (MiB)", listed(&windows));
    row("of that, what is not a part of a file", listed(&own));
    let [least, largest] = [0.0, 1.0].map(|at| figure(quantile(&mut late, at) / MIB));
    row("memory after the warm-up (MiB)", format!("{least} to {largest}, windows within {:.1} %", off * 100.0));
    row("descriptors", format!("{before} before, {} at most, {after} after", watched.most_descriptors));

    let mut broken = Vec::new();
    for tally in tallies.iter().filter(|tally| tally.failed.load(Ordering::Relaxed) > 0) {
        let first = tally.first.lock().ok().and_then(|first| first.clone()).unwrap_or_default();
        broken.push(format!("{}: {first}", tally.name));
    }
    for tally in tallies.iter().filter(|tally| tally.done.load(Ordering::Relaxed) == 0) {
        broken.push(format!("{}: none at all", tally.name));
    }
    if watched.unconfirmed > 0 {
        broken.push(format!("{} switches were not confirmed", watched.unconfirmed));
    }
    if off > FLAT {
        broken.push(format!("memory is off by {:.1} %", off * 100.0));
    }
    if after.others > before.others || after.pipes > before.pipes + 2 * PIPES * WORKERS {
        broken.push(format!("descriptors: {before} before, {after} after"));
    }
    if broken.is_empty() {
        println!("\nEvery promise is kept.");
        return Ok(());
    }
    bail!("broken promises:\n{}", broken.join("\n"))
}
