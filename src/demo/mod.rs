//! `teal demo`: a small shop in two colors, the proxy before it, and clients that notice everything.
//!
//! One process on the loopback address and in a temporary folder: it opens both colors, starts the real proxy, sends
//! load over HTTP, WebSocket and SSE, switches to green and back through the admin API, and holds what the clients
//! found against what teal promises. In this version the streams of the old color run on until `drain.timeout` cuts
//! them; the clients come back and take up where they were.

mod book;
mod client;
mod folder;
mod load;
mod outcome;
mod pipeline;
mod report;
mod sample;
mod shop;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{self, Address, Color, Problems};
use crate::run::{Proxy, StartError};

use book::Book;
use folder::Folder;
use load::Load;
use pipeline::{Pipeline, Switched};
use report::Screen;
use sample::{API_DRAIN, Sample, WEB_DRAIN};
use shop::Origin;

pub use outcome::{Outcome, Percentiles, Promise};
pub use pipeline::Refused;

/// What the demo can be told.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Keep the shop and the proxy running afterwards, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// Where the proxy listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Where the admin API listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,
    /// How long the load runs; longer if the two drains take longer
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Print one JSON document at the end instead
    #[arg(long)]
    pub json: bool,
}

/// Why the demo could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("no temporary folder for the state of the proxy")]
    Folder(#[source] io::Error),
    #[error("no port for the shop")]
    Shop(#[source] io::Error),
    #[error("no signal handler")]
    Signal(#[source] io::Error),
    #[error("the configuration of the demo")]
    Config(#[from] Problems),
    #[error("the proxy did not start")]
    Start(#[from] StartError),
    #[error("the proxy panicked")]
    Panicked(#[from] JoinError),
    #[error("the proxy has no TCP address to send load to")]
    NoAddress,
    #[error("a switch was refused")]
    Refused(#[from] Refused),
    #[error("interrupted")]
    Interrupted,
}

/// Shows the demo on standard output and says how it went; returns after Ctrl-C if it is to keep running. Leaves
/// nothing behind, however it ends.
///
/// # Errors
/// When it could not be shown to its end. A promise that is not kept is no error, but an [`Outcome`].
pub async fn run(options: Options) -> Result<Outcome, DemoError> {
    let mut interrupt = Interrupt::new().map_err(DemoError::Signal)?;
    let folder = Folder::create().map_err(DemoError::Folder)?;
    let mut screen = Screen::new(options.json);
    let stage = Stage::open(&options, &folder).await?;
    let shown = tokio::select! {
        shown = stage.show(&options, &mut screen) => shown,
        () = interrupt.come() => Err(DemoError::Interrupted),
    };
    if let (Ok(outcome), true) = (&shown, options.keep) {
        stage.keep(outcome, &screen, &mut interrupt).await;
    }
    stage.close().await?;
    shown
}

/// Everything that runs: the shop and the proxy before it.
struct Stage {
    book: Arc<Book>,
    blue: Origin,
    green: Origin,
    proxy: Proxy,
    /// Where clients reach the proxy and its admin API.
    web: SocketAddr,
    admin: SocketAddr,
    plan: Plan,
    config: String,
}

impl Stage {
    async fn open(options: &Options, folder: &Folder) -> Result<Stage, DemoError> {
        let book = Arc::new(Book::new());
        let blue = Origin::open(Color::Blue, &book).await.map_err(DemoError::Shop)?;
        let green = Origin::open(Color::Green, &book).await.map_err(DemoError::Shop)?;
        let plan = Plan::of(options.seconds);
        let sample = Sample {
            state_dir: &folder.path().join("state"),
            listen: options.listen,
            admin: options.admin,
            blue: blue.address,
            green: green.address,
        };
        let config = sample.written();
        let meant = config::parse(&config, Path::new("demo.toml"))?;
        let proxy = spawn_blocking(|| Proxy::start(meant)).await??;
        let web = proxy.addresses().first().and_then(reachable).ok_or(DemoError::NoAddress)?;
        let admin = proxy.admin().and_then(reachable).ok_or(DemoError::NoAddress)?;
        book.admin.get_or_init(|| admin);
        Ok(Stage { book, blue, green, proxy, web, admin, plan, config })
    }

    async fn show(&self, options: &Options, screen: &mut Screen) -> Result<Outcome, DemoError> {
        let pipeline = Pipeline { admin: self.admin };
        pipeline.rehearse(Color::Green).await?;
        screen.open(&self.facts(options.seconds));
        let load = Load::start(self.web, &self.book, Color::Blue);
        let world = load.world().clone();
        // The line that moves holds nothing that could be lost.
        let switches = tokio::select! {
            switches = self.release(&pipeline, &load, screen) => switches?,
            never = screen.follow(&world) => match never {},
        };
        let world = load.settle().await;
        screen.event(Color::Blue, "load ends", "");
        let outcome = Outcome::of(&world, &self.book, switches);
        screen.close(&outcome, WEB_DRAIN);
        screen.document(&Document { proxy: self.web, admin: self.admin, origins: self.origins(), outcome: &outcome });
        Ok(outcome)
    }

    /// To green and back, while the load runs.
    async fn release(&self, pipeline: &Pipeline, load: &Load, screen: &Screen) -> Result<Vec<Switched>, Refused> {
        let start = Instant::now();
        let course = &load.world().course;
        screen.event(Color::Blue, "load starts", "everybody is on blue");
        sleep_until(start + self.plan.switch).await;
        load.gather().await;
        let forth = pipeline.switch(course, Color::Green, "release 1.5.0").await?;
        screen.switched(&forth, "switch to green");
        let forth = self.drained(pipeline, forth, screen).await?;
        sleep_until(start + self.plan.rollback).await;
        load.gather().await;
        let back = pipeline.switch(course, Color::Blue, "green was only a demo").await?;
        screen.switched(&back, "rollback to blue");
        let back = self.drained(pipeline, back, screen).await?;
        sleep_until(start + self.plan.end).await;
        Ok(vec![forth, back])
    }

    async fn drained(&self, pipeline: &Pipeline, switched: Switched, screen: &Screen) -> Result<Switched, Refused> {
        let receipt = pipeline.drained(API_DRAIN + DRAIN_GRACE).await?;
        let left = switched.to.other();
        screen.event(switched.to, &format!("{left} is drained"), "");
        Ok(Switched { receipt, ..switched })
    }

    /// Stays until interrupted, with an alarm now and then for whoever looks at the page.
    async fn keep(&self, outcome: &Outcome, screen: &Screen, interrupt: &mut Interrupt) {
        screen.invite(self.web, self.admin, outcome, &self.config);
        tokio::select! {
            () = interrupt.come() => {}
            () = raise_alarms(&self.book) => {}
        }
    }

    async fn close(self) -> Result<(), DemoError> {
        Ok(spawn_blocking(move || self.proxy.stop()).await?)
    }

    fn facts(&self, seconds: u64) -> [(&'static str, String); 4] {
        let origin = |color: Color, origin: &Origin| format!("shop {} at {}", shop::release(color), origin.address);
        let [customers, members, listeners] = [load::CUSTOMERS, load::MEMBERS, load::LISTENERS];
        let load = format!("{customers} customers, {members} in the chat, {listeners} on the alarms, for {seconds} s");
        [
            ("proxy", format!("http://{}  (admin API at {})", self.web, self.admin)),
            ("blue", origin(Color::Blue, &self.blue)),
            ("green", origin(Color::Green, &self.green)),
            ("load", load),
        ]
    }

    fn origins(&self) -> [SocketAddr; 2] {
        [self.blue.address, self.green.address]
    }
}

/// How long past its deadline a drain may take to say that it is over.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Time between two alarms when nobody measures.
const KEEP_PAUSE: Duration = Duration::from_secs(1);

async fn raise_alarms(book: &Book) {
    for n in 0.. {
        sleep(KEEP_PAUSE).await;
        book.raise(n);
    }
}

/// What happens when, counted from the start of the load; a drain that takes longer puts off what comes after it.
#[derive(Clone, Copy)]
struct Plan {
    switch: Duration,
    rollback: Duration,
    end: Duration,
}

impl Plan {
    fn of(seconds: u64) -> Plan {
        let end = Duration::from_secs(seconds);
        Plan { switch: end / 6, rollback: end * 6 / 10, end }
    }
}

/// The document of `--json`.
#[derive(Serialize)]
struct Document<'a> {
    proxy: SocketAddr,
    admin: SocketAddr,
    /// Blue, green.
    origins: [SocketAddr; 2],
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// Where a client on this machine reaches what listens at `address`.
fn reachable(address: &Address) -> Option<SocketAddr> {
    let Address::Tcp(address) = address else { return None };
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some(SocketAddr::new(ip, address.port()))
}

/// Ctrl-C, or a polite kill.
struct Interrupt {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupt {
    fn new() -> io::Result<Interrupt> {
        Ok(Interrupt { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Resolves at the next one.
    async fn come(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
