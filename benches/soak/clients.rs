//! The clients, good and hostile, and what came of them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::origins::EVENT;
use super::support::client::{self, Client};
use super::support::contestant::HOST;
use super::support::origin::{BIG, SMALL};
use super::support::process::pin;

/// No good client waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What a hostile client gives up after.
pub(crate) const BOREDOM: Duration = Duration::from_secs(6);
const UPLOAD: usize = 64 * 1024;

/// What came of one kind of client.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) name: &'static str,
    pub(crate) is_good: bool,
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) first: Mutex<Option<String>>,
}

impl Tally {
    fn note(&self, error: impl ToString) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first.lock() {
            first.get_or_insert_with(|| error.to_string());
        }
    }
}

/// All clients, good and hostile, on a thread for each.
pub(crate) struct Crowd {
    is_over: Arc<AtomicBool>,
    threads: [JoinHandle<Result<Vec<Arc<Tally>>>>; 2],
}

impl Crowd {
    pub(crate) fn start(proxy: SocketAddr, core: usize) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let start = |name: &str, is_good: bool| {
            let is_over = is_over.clone();
            thread::Builder::new().name(name.into()).spawn(move || {
                pin(core)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(drive(Seat { proxy, is_over, is_good }))
            })
        };
        let threads = [start("good", true)?, start("hostile", false)?];
        Ok(Self { is_over, threads })
    }

    pub(crate) fn finish(self) -> Result<Vec<Arc<Tally>>> {
        self.is_over.store(true, Ordering::SeqCst);
        let mut tallies = Vec::new();
        for thread in self.threads {
            tallies.extend(thread.join().expect("the clients do not panic")?);
        }
        Ok(tallies)
    }
}

#[derive(Clone)]
struct Seat {
    proxy: SocketAddr,
    is_over: Arc<AtomicBool>,
    is_good: bool,
}

impl Seat {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    async fn connect(&self) -> Result<TcpStream> {
        let stream = timeout(PATIENCE, TcpStream::connect(self.proxy)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

async fn drive(seat: Seat) -> Result<Vec<Arc<Tally>>> {
    let (mut clients, mut tallies) = (JoinSet::new(), Vec::new());
    let mut tally = |name, is_good| {
        let tally = Arc::new(Tally { name, is_good, ..Tally::default() });
        tallies.push(tally.clone());
        tally
    };
    if seat.is_good {
        for kind in Good::ALL {
            let tally = tally(kind.name(), true);
            (0..kind.at_once()).for_each(|_| drop(clients.spawn(good(kind, seat.clone(), tally.clone()))));
        }
    } else {
        for nuisance in NUISANCES {
            let tally = tally(nuisance.name, false);
            (0..nuisance.at_once).for_each(|_| drop(clients.spawn(hostile(nuisance, seat.clone(), tally.clone()))));
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended?;
    }
    Ok(tallies)
}

/// Clients that behave; whatever goes wrong for one of them is teal's fault.
#[derive(Clone, Copy)]
enum Good {
    Kept,
    Fresh,
    Upload,
    Download,
    WebSocket,
    Events,
}

impl Good {
    const ALL: [Self; 6] = [Self::Kept, Self::Fresh, Self::Upload, Self::Download, Self::WebSocket, Self::Events];

    fn name(self) -> &'static str {
        match self {
            Self::Kept => "requests on kept connections",
            Self::Fresh => "requests on fresh connections",
            Self::Upload => "uploads of 64 KiB",
            Self::Download => "downloads of 1 MiB",
            Self::WebSocket => "echoes over WebSockets",
            Self::Events => "events",
        }
    }

    fn at_once(self) -> usize {
        match self {
            Self::Kept => 8,
            Self::Fresh | Self::Upload | Self::Download => 2,
            Self::WebSocket | Self::Events => 10,
        }
    }

    /// Until the connection has done its part; counts what came well.
    async fn act(self, seat: &Seat, done: &AtomicU64) -> Result<()> {
        let small = |connection| client::get(HOST, "/p0", connection);
        match self {
            Self::Kept => ask(seat, &small("keep-alive"), SMALL, 50, done).await,
            Self::Upload => ask(seat, &client::put(HOST, "/p0", UPLOAD), SMALL, 5, done).await,
            Self::Download => ask(seat, &client::get(HOST, "/big", "keep-alive"), BIG, 5, done).await,
            Self::Fresh => ask(seat, &small("close"), SMALL, 1, done).await,
            Self::WebSocket => echo(seat, done).await,
            Self::Events => follow(seat, done).await,
        }
    }
}

async fn good(kind: Good, seat: Seat, tally: Arc<Tally>) {
    while !seat.is_over() {
        if let Err(error) = kind.act(&seat, &tally.done).await {
            tally.note(format!("{error:#}"));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(seat: &Seat, request: &[u8], length: usize, times: usize, done: &AtomicU64) -> Result<()> {
    let mut client = Client::connect(seat.proxy).await?;
    for _ in 0..times {
        let answer = timeout(PATIENCE, client.exchange(request)).await.context("no answer")??;
        ensure!((answer.status, answer.length) == (200, length), "{answer:?}");
        done.fetch_add(1, Ordering::Relaxed);
        if answer.is_last || seat.is_over() {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Until a Close frame, which is answered.
async fn echo(seat: &Seat, done: &AtomicU64) -> Result<()> {
    let stream = seat.connect().await?;
    let opening = tokio_tungstenite::client_async(format!("ws://{HOST}/ws"), stream);
    let (mut socket, _) = timeout(PATIENCE, opening).await.context("no handshake")??;
    let message = Message::Binary(vec![b'm'; SMALL].into());
    while !seat.is_over() {
        timeout(PATIENCE, socket.send(message.clone())).await.context("nobody reads the message")??;
        match timeout(PATIENCE, socket.next()).await.context("no echo")?.context("no Close frame")?? {
            Message::Close(Some(close)) => {
                ensure!(u16::from(close.code) == 1012, "closed with {close:?}");
                // The library answers it while it is polled on, up to the end of the connection.
                while let Some(Ok(_)) = timeout(PATIENCE, socket.next()).await.context("no end")? {}
                return Ok(());
            }
            echo => ensure!(echo == message, "another echo: {echo:?}"),
        }
        done.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Until the end of the stream, which must be one.
async fn follow(seat: &Seat, done: &AtomicU64) -> Result<()> {
    let mut stream = seat.connect().await?;
    let request = format!("GET /events HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !seat.is_over() {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.context("no event")??;
        ensure!(read > 0, "the stream broke off: {:?}", String::from_utf8_lossy(&answer));
        if answer.ends_with(b"0\r\n\r\n") {
            return Ok(());
        }
        if answer.ends_with(b"data: tick\n\n\r\n") {
            ensure!(answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(EVENT), "not an event");
            answer.clear();
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A client that does not behave.
struct Nuisance {
    name: &'static str,
    at_once: usize,
    says: fn() -> Vec<u8>,
    then: Then,
}

/// What it does after it has said that.
enum Then {
    /// Reads whatever comes, to the end.
    Listens,
    /// Reads nothing, and resets.
    IsDeaf,
    /// Says no more, and reads to the end.
    HangsUp,
    /// Resets when it has read so much.
    Resets(usize),
    /// Says this again and again, and reads.
    Trickles(&'static [u8]),
    /// Says this again and again, as fast as it can, and does not read.
    Floods(&'static [u8]),
}

const fn nuisance(name: &'static str, at_once: usize, says: fn() -> Vec<u8>, then: Then) -> Nuisance {
    Nuisance { name, at_once, says, then }
}

static NUISANCES: &[Nuisance] = &[
    nuisance("silence", 20, Vec::new, Then::Listens),
    nuisance("slow heads", 40, || get("/p0", ""), Then::Trickles(b"X: y\r\n")),
    nuisance("half heads, open", 20, || get("/p0", ""), Then::Listens),
    nuisance("half heads, closed", 4, || get("/p0", ""), Then::HangsUp),
    nuisance("half heads, reset", 4, || get("/p0", ""), Then::Resets(0)),
    nuisance("large heads", 2, || get("/p0", &format!("X: {}\r\n\r\n", "x".repeat(100_000))), Then::Listens),
    nuisance("slow bodies", 20, || put("Content-Length: 100000\r\n\r\n"), Then::Trickles(b"x")),
    nuisance("slow chunks", 20, chunks, Then::Trickles(b"1\r\nx\r\n")),
    nuisance("half bodies, open", 10, || put("Content-Length: 100000\r\n\r\nhalf"), Then::Listens),
    nuisance("half bodies, closed", 4, || put("Content-Length: 100000\r\n\r\nhalf"), Then::HangsUp),
    nuisance("half bodies, reset", 4, || put("Content-Length: 100000\r\n\r\nhalf"), Then::Resets(0)),
    nuisance("bodies too large", 4, || put("Content-Length: 9999999\r\n\r\n"), Then::Floods(&[b'x'; 16_384])),
    nuisance("broken chunks", 4, || put("Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"), Then::Listens),
    nuisance(
        "two framings",
        4,
        || put("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        Then::Listens,
    ),
    nuisance("garbage", 8, garbage, Then::Listens),
    nuisance("TLS", 2, || b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Then::Listens),
    nuisance("requests, reset at once", 8, || get("/p0", "\r\n"), Then::Resets(0)),
    nuisance("downloads, not read", 10, || get("/big", "\r\n").repeat(10), Then::IsDeaf),
    nuisance("downloads, reset midway", 8, || get("/big", "\r\n"), Then::Resets(50_000)),
    nuisance("pipelined, not read", 4, || get("/p0", "\r\n").repeat(500), Then::IsDeaf),
    nuisance("WebSockets of garbage", 8, || [websocket(), garbage()].concat(), Then::Listens),
    nuisance("WebSockets that hear no Close", 10, websocket, Then::Trickles(b"\x82\x82\0\0\0\0hi")),
    nuisance("WebSockets that do not read", 4, websocket, Then::Floods(b"\x82\x82\0\0\0\0hi")),
    nuisance("WebSockets, reset", 4, websocket, Then::Resets(100)),
    nuisance("half frames", 8, || [websocket(), b"\x82\xfe\x01".to_vec()].concat(), Then::Listens),
    nuisance("events, not read", 10, || get("/events", "Accept: text/event-stream\r\n\r\n"), Then::IsDeaf),
    nuisance("events, reset", 8, || get("/events", "Accept: text/event-stream\r\n\r\n"), Then::Resets(200)),
    nuisance("an origin that lies", 16, || get("/liar", "\r\n").repeat(3), Then::Listens),
];

fn get(path: &str, rest: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{rest}").into_bytes()
}

fn put(rest: &str) -> Vec<u8> {
    format!("PUT /p0 HTTP/1.1\r\nHost: {HOST}\r\n{rest}").into_bytes()
}

/// To an origin that has begun to answer and does not read.
fn chunks() -> Vec<u8> {
    format!("POST /events HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes()
}

fn websocket() -> Vec<u8> {
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    get("/ws", &format!("{fields}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))
}

fn garbage() -> Vec<u8> {
    (0..fastrand::usize(1..5000)).map(|_| fastrand::u8(..)).collect()
}

async fn hostile(nuisance: &'static Nuisance, seat: Seat, tally: Arc<Tally>) {
    while !seat.is_over() {
        // What becomes of it is its own affair; only that it is not let in would be worth knowing.
        match seat.connect().await {
            Ok(stream) => drop(timeout(BOREDOM, nuisance.act(stream)).await),
            Err(error) => tally.note(format!("{error:#}")),
        }
        tally.done.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(20)).await;
    }
}

impl Nuisance {
    async fn act(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut scratch = vec![0; 4096];
        stream.write_all(&(self.says)()).await?;
        match &self.then {
            Then::Listens => while stream.read(&mut scratch).await? > 0 {},
            Then::HangsUp => {
                stream.shutdown().await?;
                while stream.read(&mut scratch).await? > 0 {}
            }
            Then::IsDeaf => {
                sleep(BOREDOM / 2).await;
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            }
            Then::Resets(after) => {
                let mut read = 0;
                while read < *after {
                    read += stream.read(&mut scratch).await?.max(1);
                }
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            }
            Then::Trickles(bytes) => loop {
                stream.write_all(bytes).await?;
                if let Ok(read) = timeout(Duration::from_millis(100), stream.read(&mut scratch)).await
                    && read? == 0
                {
                    break;
                }
            },
            Then::Floods(bytes) => loop {
                stream.write_all(bytes).await?;
                // As fast as it can, but the machine is for others, too.
                tokio::task::yield_now().await;
            },
        }
        Ok(())
    }
}
