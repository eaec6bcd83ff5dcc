//! A crowd of live streams with traffic is moved to and fro, and nobody notices but by a clean goodbye: no message is
//! torn, no answer and no event is lost, and there is no stampede of those that come back.
//!
//! `TEAL_TEST_SCALE=full` moves 3,000 streams twenty times.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use teal::config::Color;
use teal::service::Kind;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use support::proxy::Builder;
use support::streams::{EventSource, Heard, Stalls, Streams, chat, is_even};
use support::{PATIENCE, soon};

/// Clients that may open their first stream at the same time.
const AT_ONCE: usize = 32;
/// What a browser waits before it opens an event stream again, unless it was told otherwise.
const BROWSERS_RETRY: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
struct Scale {
    websockets: usize,
    event_streams: usize,
    switches: usize,
    spread: Duration,
    /// Between two messages of a client, and between two events.
    pause: Duration,
}

impl Scale {
    fn chosen() -> Scale {
        let is_full = std::env::var("TEAL_TEST_SCALE").is_ok_and(|scale| scale == "full");
        let pause = Duration::from_millis(300);
        let usual = Scale { websockets: 200, event_streams: 100, switches: 5, spread: Duration::from_secs(2), pause };
        let (spread, pause) = (Duration::from_secs(10), Duration::from_secs(1));
        let full = Scale { websockets: 2_000, event_streams: 1_000, switches: 20, spread, pause };
        if is_full { full } else { usual }
    }
}

/// What the clients have seen, all together.
#[derive(Default)]
struct Tally {
    is_over: AtomicBool,
    connected: [AtomicUsize; 3],
    /// When those who had been told goodbye came back, since the last switch.
    returns: Mutex<Vec<Instant>>,
    /// By path: echoes that have arrived.
    echoes: Mutex<Vec<(String, u64)>>,
    clean: AtomicU64,
    unclean: AtomicU64,
    torn: AtomicU64,
    sent: AtomicU64,
    unanswered: AtomicU64,
    events_cut: AtomicU64,
    events_astray: AtomicU64,
    /// Streams that could not be opened again.
    given_up: AtomicU64,
    troubles: Mutex<Vec<String>>,
}

impl Tally {
    fn trouble(&self, count: &AtomicU64, what: impl Into<String>) {
        count.fetch_add(1, Ordering::SeqCst);
        self.troubles.lock().push(what.into());
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn connected(&self, kind: Kind) -> usize {
        self.connected[kind as usize].load(Ordering::SeqCst)
    }
}

/// Somebody who is connected now.
struct Connected<'a>(&'a AtomicUsize);

impl<'a> Connected<'a> {
    fn new(tally: &'a Tally, kind: Kind) -> Connected<'a> {
        let count = &tally.connected[kind as usize];
        count.fetch_add(1, Ordering::SeqCst);
        Connected(count)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_streams_is_moved_to_and_fro_without_loss() {
    let scale = Scale::chosen();
    let streams = Streams::new(scale.pause);
    let ((blue, _), (green, _)) = (streams.origin().await, streams.origin().await);
    let spread = scale.spread.as_secs();
    let keys = format!(
        "green = [{}]\n[services.app.drain]\ntimeout = \"5m\"\nwebsocket = {{ spread = \"{spread}s\" }}\n\
         sse = {{ spread = \"{spread}s\", retry = \"200ms..1s\" }}",
        green.toml()
    );
    let teal = Builder::app(&[&blue]).service(&keys).start().await;
    let tally = Arc::new(Tally::default());
    let mut clients = gather(teal.address, scale, &tally).await;

    let mut looks = Vec::new();
    for n in 0..scale.switches {
        all_connected(&tally, scale).await;
        let stalls = Stalls::watch();
        let record = teal.switch("app", if n % 2 == 0 { Color::Green } else { Color::Blue }).await.expect("a switch");
        let drain = record.drain().expect("a drain");
        timeout(scale.spread + 2 * PATIENCE, drain.over()).await.expect("the drain ends soon after the spread");
        let report = drain.report();
        assert_eq!((report.websocket.at_switch, report.websocket.cut), (scale.websockets as u64, 0), "{report:?}");
        assert_eq!((report.sse.at_switch, report.sse.cut), (scale.event_streams as u64, 0), "{report:?}");
        all_connected(&tally, scale).await;
        looks.push(is_even(&std::mem::take(&mut *tally.returns.lock()), scale.spread, &stalls));
    }
    tally.is_over.store(true, Ordering::SeqCst);
    soon("the end of the clients", async {
        while let Some(client) = clients.join_next().await {
            client.expect("no panic")
        }
    })
    .await;
    judge(&tally, &streams, scale);
    println!("largest number of returns in 100 ms, as a multiple of the even rate: {looks:.2?}");
    // A machine that is busy with other things may spoil some of the measurements, but not most.
    assert!(looks.iter().filter(|look| look.is_err()).count() <= scale.switches / 2, "{looks:#?}");
}

async fn all_connected(tally: &Tally, scale: Scale) {
    let is_there =
        || tally.connected(Kind::WebSocket) == scale.websockets && tally.connected(Kind::Sse) == scale.event_streams;
    let deadline = Instant::now() + 3 * PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "not all came back: {:#?}", tally.troubles.lock());
        sleep(Duration::from_millis(5)).await;
    }
}

fn judge(tally: &Tally, streams: &Streams, scale: Scale) {
    let count = |count: &AtomicU64| count.load(Ordering::SeqCst);
    let lost: u64 = tally.echoes.lock().iter().map(|(path, heard)| streams.made(path).saturating_sub(*heard)).sum();
    let echoes: u64 = tally.echoes.lock().iter().map(|(_, heard)| heard).sum();
    println!(
        "{scale:?}: {} clean closes, {} others; messages: {} sent, {echoes} echoed, {} unanswered at a goodbye, {lost} \
         echoes lost, {} torn; events: {} cut inside, {} lost or torn; {} gave up",
        count(&tally.clean),
        count(&tally.unclean),
        count(&tally.sent),
        count(&tally.unanswered),
        count(&tally.torn),
        count(&tally.events_cut),
        count(&tally.events_astray),
        count(&tally.given_up),
    );
    let troubles = tally.troubles.lock();
    assert!(troubles.is_empty(), "{troubles:#?}");
    assert_eq!((lost, count(&tally.events_astray)), (0, 0));
    assert_eq!(count(&tally.clean), (scale.switches * (scale.websockets + scale.event_streams)) as u64);
    assert!(echoes > scale.websockets as u64, "the traffic was no traffic: {echoes} echoes");
}

/// Opens all streams; their clients go on until the test is over.
async fn gather(address: SocketAddr, scale: Scale, tally: &Arc<Tally>) -> JoinSet<()> {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut clients = JoinSet::new();
    for n in 0..scale.websockets {
        let (at_once, tally) = (at_once.clone(), tally.clone());
        clients.spawn(async move { Talker { tally: &tally, pause: scale.pause }.stay(address, n, &at_once).await });
    }
    for _ in 0..scale.event_streams {
        let (at_once, tally) = (at_once.clone(), tally.clone());
        clients.spawn(async move { listen(address, &tally, &at_once).await });
    }
    clients
}

/// Says something every now and then, and checks that it comes back as it was.
struct Talker<'a> {
    tally: &'a Tally,
    pause: Duration,
}

impl Talker<'_> {
    /// Comes back, at once, as often as it is told goodbye.
    async fn stay(&self, address: SocketAddr, client: usize, at_once: &Semaphore) {
        let mut turn = at_once.acquire().await.ok();
        for n in 0.. {
            let path = format!("/{client}/{n}");
            let mut socket = match chat(address, &path).await {
                Ok(socket) => socket,
                Err(error) => return self.tally.trouble(&self.tally.given_up, format!("{path}: {error}")),
            };
            drop(turn.take());
            let connected = Connected::new(self.tally, Kind::WebSocket);
            let heard = self.converse(&mut socket, &path).await;
            drop(connected);
            self.tally.echoes.lock().push((path, heard));
            if self.tally.is_over() {
                return;
            }
            self.tally.returns.lock().push(Instant::now());
        }
    }

    /// Talks until one side says goodbye; gives how many echoes have come.
    async fn converse(&self, socket: &mut WebSocketStream<TcpStream>, path: &str) -> u64 {
        let (mut said, mut heard, mut is_leaving) = (0, 0, false);
        let mut next = Instant::now() + self.pause.mul_f64(fastrand::f64());
        loop {
            // A message that has been read in part stays in the socket.
            let Ok(message) = tokio::time::timeout_at(next, socket.next()).await else {
                next = Instant::now() + self.pause.mul_f64(0.5 + fastrand::f64());
                if self.tally.is_over() && heard == said && !is_leaving {
                    is_leaving = true;
                    // A goodbye of the other side may have come first.
                    let _ = socket.close(None).await;
                } else if !self.tally.is_over() && socket.send(Message::text(words(said))).await.is_ok() {
                    said += 1;
                }
                continue;
            };
            match message {
                Some(Ok(Message::Text(text))) if text.as_str() == words(heard) => heard += 1,
                Some(Ok(Message::Close(frame))) => {
                    let is_told = frame.is_some_and(|frame| frame.code == CloseCode::Restart);
                    if !is_told && !is_leaving {
                        self.tally.trouble(&self.tally.unclean, format!("{path}: another close"));
                    }
                }
                Some(Ok(other)) => self.tally.trouble(&self.tally.torn, format!("{path}: {other:?}")),
                Some(Err(error)) => {
                    self.tally.trouble(&self.tally.unclean, format!("{path}: {error}"));
                    break;
                }
                None => {
                    self.tally.clean.fetch_add(u64::from(!is_leaving), Ordering::SeqCst);
                    break;
                }
            }
        }
        self.tally.sent.fetch_add(said, Ordering::SeqCst);
        self.tally.unanswered.fetch_add(said - heard, Ordering::SeqCst);
        heard
    }
}

/// The message of this number; some are long.
fn words(number: u64) -> String {
    let length = if number % 8 == 7 { 20_000 } else { 60 };
    format!("{number}: {}", "teal ".repeat(length / 5))
}

/// Reads an event stream as a browser does, and comes back when it was told to.
async fn listen(address: SocketAddr, tally: &Tally, at_once: &Semaphore) {
    let mut turn = at_once.acquire().await.ok();
    let mut last_id = None;
    loop {
        let Some(mut source) = EventSource::connect(address, "/events", last_id).await else {
            return tally.trouble(&tally.given_up, "no event stream");
        };
        drop(turn.take());
        let connected = Connected::new(tally, Kind::Sse);
        let heard = loop {
            match timeout(Duration::from_millis(250), source.next()).await {
                Err(_) | Ok(Heard::Something) if tally.is_over() => return check_events(tally, &source),
                Err(_) | Ok(Heard::Something) => {}
                Ok(end) => break end,
            }
        };
        drop(connected);
        check_events(tally, &source);
        match heard {
            Heard::End => drop(tally.clean.fetch_add(1, Ordering::SeqCst)),
            Heard::EndInside => tally.trouble(&tally.events_cut, "cut inside an event"),
            Heard::Broken | Heard::Something => tally.trouble(&tally.unclean, "an event stream broke"),
        }
        last_id = source.last_id;
        sleep(source.retry.unwrap_or(BROWSERS_RETRY)).await;
        tally.returns.lock().push(Instant::now());
    }
}

fn check_events(tally: &Tally, source: &EventSource) {
    tally.events_astray.fetch_add(source.astray, Ordering::SeqCst);
}
