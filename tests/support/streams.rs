//! Streams whose clients and origins keep an account: WebSockets that echo, and event streams that go on behind the
//! last event that a client has seen.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use super::client::{Client, field};
use super::origin::{Origin, ok, read_head};
use super::{over, soon};

const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What all origins of a test share.
#[derive(Clone)]
pub struct Streams(Arc<Shared>);

struct Shared {
    /// The number of the newest event.
    newest: watch::Sender<u64>,
    /// By path: echoes that an origin has made.
    made: Mutex<HashMap<String, u64>>,
}

/// How an origin takes new streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    Ready,
    /// It accepts connections and answers nobody until its mood changes.
    Slow,
    /// 503.
    Refusing,
}

impl Streams {
    /// There is a new event every `pause`, as long as the test runs.
    pub fn new(pause: Duration) -> Streams {
        let streams = Streams(Arc::new(Shared { newest: watch::Sender::new(1), made: Mutex::default() }));
        let weak = Arc::downgrade(&streams.0);
        tokio::spawn(async move {
            while let Some(shared) = weak.upgrade() {
                shared.newest.send_modify(|newest| *newest += 1);
                drop(shared);
                tokio::time::sleep(pause).await;
            }
        });
        streams
    }

    /// An origin of these streams; the sender changes its mood.
    pub async fn origin(&self) -> (Origin, watch::Sender<Mood>) {
        let (streams, mood) = (self.0.clone(), watch::Sender::new(Mood::Ready));
        let moods = mood.clone();
        let origin = Origin::raw(move |stream| {
            let (streams, mut moods) = (streams.clone(), moods.subscribe());
            async move {
                // An error ends this connection, and that is what its client sees.
                let Some(head) = peek_head(&stream).await else { return };
                let _ = moods.wait_for(|mood| *mood != Mood::Slow).await;
                let is_refusing = *moods.borrow() == Mood::Refusing;
                if is_refusing {
                    refuse(stream).await;
                } else if field(&head, "upgrade").is_some() {
                    let _ = echo(stream, &streams, path(&head)).await;
                } else {
                    let _ = tell(stream, &streams).await;
                }
            }
        });
        (origin.await, mood)
    }

    /// Echoes that origins have made on this path.
    pub fn made(&self, path: &str) -> u64 {
        self.0.made.lock().get(path).copied().unwrap_or_default()
    }
}

fn path(head: &str) -> String {
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// The head, which stays to be read.
async fn peek_head(stream: &TcpStream) -> Option<String> {
    let mut buffer = [0; 4096];
    loop {
        let count = stream.peek(&mut buffer).await.ok().filter(|count| *count > 0)?;
        let text = String::from_utf8_lossy(&buffer[..count]);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            return Some(head.to_owned());
        }
        tokio::task::yield_now().await;
    }
}

/// The connection ends with it: another request may find another mood.
async fn refuse(mut stream: TcpStream) {
    if read_head(&mut stream, &mut Vec::new()).await.is_some() {
        let _ = stream.write_all(UNAVAILABLE.as_bytes()).await;
    }
}

async fn echo(stream: TcpStream, shared: &Shared, path: String) -> Result<(), Error> {
    let mut socket = accept_async(stream).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
            *shared.made.lock().entry(path.clone()).or_default() += 1;
        }
    }
    Ok(())
}

/// Sends every event behind the last one that the client has seen, in pieces that are no events.
async fn tell(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let head = read_head(&mut stream, &mut buffer).await.unwrap_or_default();
    if path(&head).ends_with("quick") {
        return stream.write_all(&ok("quick")).await;
    }
    let mut newest = shared.newest.subscribe();
    let seen = field(&head, "last-event-id").and_then(|id| id.parse().ok());
    let mut next = seen.map_or(*newest.borrow_and_update(), |seen: u64| seen + 1);
    stream.write_all(EVENTS.as_bytes()).await?;
    loop {
        let now = *newest.borrow_and_update();
        let text: String = (next..=now).map(event).collect();
        next = next.max(now + 1);
        let (first, second) = text.split_at(fastrand::usize(..=text.len()));
        for piece in [first, second].into_iter().filter(|piece| !piece.is_empty()) {
            stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await?;
            tokio::task::yield_now().await;
        }
        if newest.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn event(number: u64) -> String {
    format!("id: {number}\nevent: tick\ndata: {number}\n: in between\ndata: {number}\n\n")
}

/// Opens a WebSocket.
pub async fn chat(proxy: SocketAddr, path: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    Ok(client_async(format!("ws://test{path}"), stream).await?.0)
}

/// Reads to the end. True: a Close came, and then the end of the connection in order.
pub async fn farewell(socket: &mut WebSocketStream<TcpStream>) -> bool {
    let mut is_told = false;
    loop {
        match socket.next().await {
            Some(Ok(Message::Close(Some(_)))) => is_told = true,
            Some(Ok(_)) => {}
            Some(Err(_)) => return false,
            None => return is_told,
        }
    }
}

/// An event stream as a browser reads it.
pub struct EventSource {
    client: Client,
    /// What came behind the last whole event.
    text: String,
    /// The number of the last whole event.
    pub last_id: Option<u64>,
    pub retry: Option<Duration>,
    /// Events whose number was not the next one.
    pub astray: u64,
}

/// How a stream has gone on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// Something came.
    Something,
    /// The body ended as it should, between two events.
    End,
    /// The body ended as it should, but inside an event.
    EndInside,
    /// The connection broke.
    Broken,
}

impl EventSource {
    /// `None` when the answer is no event stream.
    pub async fn connect(proxy: SocketAddr, path: &str, last_id: Option<u64>) -> Option<EventSource> {
        let mut client = Client::connect(proxy).await;
        let id = last_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n{id}\r\n")).await;
        let head = client.head().await.filter(|head| head.starts_with("HTTP/1.1 200"))?;
        field(&head, "content-type").filter(|kind| *kind == "text/event-stream")?;
        Some(EventSource { client, text: String::new(), last_id, retry: None, astray: 0 })
    }

    /// The next piece; cancel-safe.
    pub async fn next(&mut self) -> Heard {
        loop {
            if let Some(piece) = self.chunk() {
                if piece.is_empty() {
                    return if self.text.is_empty() { Heard::End } else { Heard::EndInside };
                }
                self.text += &piece;
                self.dispatch();
                return Heard::Something;
            }
            if self.client.more().await.is_none() {
                return Heard::Broken;
            }
        }
    }

    /// Reads to the end.
    pub async fn farewell(&mut self) -> Heard {
        loop {
            let heard = self.next().await;
            if heard != Heard::Something {
                return heard;
            }
        }
    }

    /// The next chunk, if it is there.
    fn chunk(&mut self) -> Option<String> {
        let buffer = &mut self.client.buffer;
        let line = buffer.windows(2).position(|pair| pair == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&buffer[..line]).ok()?.trim(), 16).ok()?;
        let end = line + 2 + size;
        if buffer.len() < end + 2 {
            return None;
        }
        let piece = String::from_utf8_lossy(&buffer[line + 2..end]).into_owned();
        buffer.drain(..end + 2);
        Some(piece)
    }

    fn dispatch(&mut self) {
        while let Some((block, rest)) = self.text.split_once("\n\n") {
            let value = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            self.retry = value("retry").and_then(|retry| retry.parse().ok()).map(Duration::from_millis).or(self.retry);
            if let Some(id) = value("id").and_then(|id| id.parse::<u64>().ok()) {
                let is_whole = format!("{block}\n\n") == event(id);
                let is_next = self.last_id.is_none_or(|last| id == last + 1);
                self.astray += u64::from(!is_whole || !is_next);
                self.last_id = Some(id);
            }
            self.text = rest.to_owned();
        }
    }
}

/// How long the machine has kept this process from running; nobody's pace can be better than that.
pub struct Stalls {
    worst: Arc<AtomicU64>,
    tasks: [JoinHandle<()>; 2],
}

impl Stalls {
    pub fn watch() -> Stalls {
        const TICK: Duration = Duration::from_millis(5);
        let worst = Arc::new(AtomicU64::new(0));
        let watch = |noted: Arc<AtomicU64>| async move {
            loop {
                let before = Instant::now();
                tokio::time::sleep(TICK).await;
                let late = before.elapsed().saturating_sub(TICK);
                noted.fetch_max(u64::try_from(late.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
            }
        };
        // What stands between the clients and the proxy has a thread of its own.
        let tasks = [tokio::spawn(watch(worst.clone())), over::runtime().spawn(watch(worst.clone()))];
        Stalls { worst, tasks }
    }

    pub fn worst(&self) -> Duration {
        Duration::from_millis(self.worst.load(Ordering::SeqCst))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What is promised within a second: `event` comes in that time, but for what the machine has kept this process waiting.
pub async fn within_a_second<F: Future>(what: &str, event: F) -> F::Output {
    let (begun, stalls) = (Instant::now(), Stalls::watch());
    let output = soon(what, event).await;
    let took = begun.elapsed().saturating_sub(stalls.worst());
    assert!(took < Duration::from_secs(1), "{what}: not within a second, but in {took:?}");
    output
}

/// Whether there were never more than twice as many `times` as an even rate over `spread` gives; says how many times as
/// many there were. Looked at by the tenth of a second, or, where the machine has stalled, by so much more that it does
/// not matter.
pub fn is_even(times: &[Instant], spread: Duration, stalls: &Stalls) -> Result<f64, String> {
    let window = Duration::from_millis(100).max(stalls.worst() * 4).min(spread / 3);
    let even = times.len() as f64 * window.as_secs_f64() / spread.as_secs_f64();
    let most = most_within(times, window);
    let ratio = most as f64 / even.max(1.0);
    if ratio <= 2.0 {
        return Ok(ratio);
    }
    Err(format!("{most} of {} in {window:?}, an even rate has {even:.1}; stalls {:?}", times.len(), stalls.worst()))
}

/// The largest number of times within any window.
pub fn most_within(times: &[Instant], window: Duration) -> usize {
    let mut times = times.to_vec();
    times.sort_unstable();
    let within = |(n, first): (usize, &Instant)| times[n..].partition_point(|time| *time - *first < window);
    times.iter().enumerate().map(within).max().unwrap_or(0)
}
