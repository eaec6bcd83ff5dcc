//! The clients of the shop: customers over HTTP, members of the chat over WebSocket, listeners to the alarms over SSE.
//!
//! Each client verifies every answer by what it knows of the shop and writes what it finds into one [`Tally`]; the
//! [`Course`] tells it which color may answer. Clients come back when their stream ends, as a browser or a good
//! library would, and go on where they were. Nothing here trusts the proxy's own numbers.

mod alarms;
mod chat;
mod course;
mod customer;
mod latency;
mod sse;
mod tally;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::config::Color;

use super::book::Book;

use tally::Tally;

pub(super) use course::Course;
pub(super) use latency::Latency;
pub(super) use tally::Stream;

pub(super) const CUSTOMERS: u64 = 24;
pub(super) const MEMBERS: u64 = 8;
pub(super) const LISTENERS: u64 = 8;

/// Time between two alarms.
const ALARM_PAUSE: Duration = Duration::from_millis(20);

/// How long the streams have to come back before a switch, and to catch up after the last message; what is missing then
/// is lost.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Running clients; they end when this is dropped.
pub(super) struct Load {
    world: Arc<World>,
    stop: watch::Sender<bool>,
    customers: JoinSet<()>,
    streams: JoinSet<()>,
    marks: Vec<Arc<Mark>>,
}

/// What all clients see.
pub(super) struct World {
    proxy: SocketAddr,
    book: Arc<Book>,
    pub(super) tally: Tally,
    pub(super) course: Course,
}

impl Load {
    /// Sends every client to the shop at `proxy`, where `color` is active.
    pub(super) fn start(proxy: SocketAddr, book: &Arc<Book>, color: Color) -> Load {
        let world = World { proxy, book: book.clone(), tally: Tally::default(), course: Course::new(color) };
        let mut load = Load {
            world: Arc::new(world),
            stop: watch::Sender::new(false),
            customers: JoinSet::new(),
            streams: JoinSet::new(),
            marks: Vec::new(),
        };
        for id in 0..CUSTOMERS {
            load.customers.spawn(customer::shop(load.world.clone(), load.stop.subscribe(), id));
        }
        load.customers.spawn(raise_alarms(book.clone(), load.stop.subscribe()));
        for id in 0..MEMBERS {
            let mark = load.mark(Log::Chat);
            load.streams.spawn(chat::talk(load.world.clone(), load.stop.subscribe(), mark, id));
        }
        for _ in 0..LISTENERS {
            let mark = load.mark(Log::Alarms);
            load.streams.spawn(alarms::listen(load.world.clone(), mark));
        }
        load
    }

    pub(super) fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Waits until every stream is open, so that a switch meets them all.
    pub(super) async fn gather(&self) {
        let gathered = wait_until(|| self.marks.iter().all(|mark| mark.is_open.load(Ordering::Relaxed)));
        // Who stays away is found by the promises, not here.
        let _ = timeout(CATCH_UP, gathered).await;
    }

    /// Ends the load: no new requests and messages, then every stream may catch up; what it still misses is entered as
    /// lost.
    pub(super) async fn settle(mut self) -> Arc<World> {
        self.stop.send_replace(true);
        while self.customers.join_next().await.is_some() {}
        let caught_up = wait_until(|| self.marks.iter().all(|mark| self.world.missing(mark) == 0));
        // Late is not an error here: what is missing is counted next.
        let _ = timeout(CATCH_UP, caught_up).await;
        self.streams.shutdown().await;
        self.marks.iter().for_each(|mark| self.world.enter_missing(mark));
        self.world
    }

    fn mark(&mut self, log: Log) -> Arc<Mark> {
        let mark = Arc::new(Mark::new(log));
        self.marks.push(mark.clone());
        mark
    }
}

async fn wait_until(is_so: impl Fn() -> bool) {
    while !is_so() {
        sleep(Duration::from_millis(5)).await;
    }
}

async fn raise_alarms(book: Arc<Book>, stop: watch::Receiver<bool>) {
    for n in 0.. {
        if *stop.borrow() {
            return;
        }
        book.raise(n);
        sleep(ALARM_PAUSE).await;
    }
}

/// How far one stream client has come.
struct Mark {
    log: Log,
    is_open: AtomicBool,
    /// Number of the newest line it has seen; 0 before the first.
    seen: AtomicU64,
    /// Messages it sent that have not come back.
    unanswered: AtomicU64,
}

impl Mark {
    fn new(log: Log) -> Mark {
        Mark { log, is_open: AtomicBool::new(false), seen: AtomicU64::new(0), unanswered: AtomicU64::new(0) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    Chat,
    Alarms,
}

impl World {
    fn missing(&self, mark: &Mark) -> u64 {
        let last = match mark.log {
            Log::Chat => self.book.chat.last(),
            Log::Alarms => self.book.alarms.last(),
        };
        last.saturating_sub(mark.seen.load(Ordering::Relaxed)) + mark.unanswered.load(Ordering::Relaxed)
    }

    fn enter_missing(&self, mark: &Mark) {
        match mark.log {
            Log::Chat => self.tally.chat.missing.add(self.missing(mark)),
            Log::Alarms => self.tally.alarms.missing.add(self.missing(mark)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::outcome::Outcome;
    use crate::demo::shop::Origin;

    /// A shop without a proxy before it cannot switch, so a switch that claims to be done is a lie.
    #[tokio::test]
    async fn old_color_after_the_ack_breaks_that_promise_and_no_other() {
        let book = Arc::new(Book::new());
        let blue = Origin::open(Color::Blue, &book).await.unwrap();
        let load = Load::start(blue.address, &book, Color::Blue);
        load.world().course.depart();
        load.world().course.arrive(Color::Green);
        let lie = async {
            while load.world().tally.stale.count() < CUSTOMERS * 8 {
                sleep(Duration::from_millis(1)).await
            }
        };
        timeout(Duration::from_secs(30), lie).await.expect("every customer is lied to");
        let world = load.settle().await;
        let outcome = Outcome::of(&world, &book, Vec::new());
        let kept: Vec<_> = outcome.promises.iter().filter(|promise| promise.kept).map(|promise| promise.name).collect();
        assert!(!outcome.kept);
        assert_eq!(kept, ["requests", "no_way_back", "orders", "chat", "alarms"], "{outcome:#?}");
    }
}
