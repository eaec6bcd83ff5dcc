//! The connections to an endpoint that the requests of one worker share, and the opening of more of them.
//!
//! A connection is opened for everybody who waits for a place, and belongs to nobody: who began it may leave, and it is there
//! for the others. So a burst at a cold endpoint, as behind every switch, opens as many connections as it needs places, and
//! not one for each request. Places are given in the order in which they were asked for.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::net::{Opener, Stream};
use crate::upstream::endpoint::MAX_IDLE_AGE;

/// Connections that may be opening at once. It begins with few, each that is open doubles it, and one that fails sets it back.
const MOST_OPENING: usize = 64;
const FEW_OPENING: usize = 4;
/// After so long without a result another opening is begun beside the one that is under way.
const PATIENCE: Duration = Duration::from_millis(250);
/// So many openings are begun one after the other within the time limit of one, if all of them stall.
const SLOTS: u32 = 32;
/// Places on a connection, as long as none has shown how many there are.
const CAPACITY: usize = 100;

/// How a connection to the endpoint is opened. It must end by itself.
pub type Open = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Opener>>> + Send>> + Send + Sync>;

/// What the requests of one worker share of one endpoint.
#[derive(Debug, Default)]
pub struct Sharing {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// In the order in which they were opened.
    connections: Vec<Connection>,
    /// In the order of their numbers.
    queue: VecDeque<Waiter>,
    next_number: u64,
    /// When each of the openings that are under way began.
    openings: Vec<Instant>,
    /// How many of those there may be.
    allowance: usize,
    /// Places on the newest connection.
    capacity: usize,
    failures_in_a_row: u32,
}

#[derive(Debug)]
struct Connection {
    opener: Box<dyn Opener>,
    opened: Instant,
    used: Instant,
}

/// A request that waits for a place.
#[derive(Debug)]
struct Waiter {
    number: u64,
    came: Instant,
    must_be_new: bool,
    place: oneshot::Sender<io::Result<Stream>>,
}

impl Default for State {
    fn default() -> State {
        State {
            connections: Vec::new(),
            queue: VecDeque::new(),
            next_number: 0,
            openings: Vec::new(),
            allowance: FEW_OPENING,
            capacity: CAPACITY,
            failures_in_a_row: 0,
        }
    }
}

impl Sharing {
    /// A place on a connection that is there already, unless others wait for one.
    pub fn share(&self) -> Option<Stream> {
        let mut state = self.state.lock();
        if state.queue.iter().all(|waiter| waiter.must_be_new) { state.share(None) } else { None }
    }

    /// A place on a connection, on one that is not there before this call if `must_be_new`. Waits for ever: bound it from
    /// outside. `limit` is that bound, and how long an opening is expected to take at most.
    ///
    /// # Errors
    /// When openings fail: one costs one request, the next two, four and so on.
    pub async fn place(self: &Arc<Self>, must_be_new: bool, limit: Duration, open: Open) -> io::Result<Stream> {
        let (ticket, mut place) = Ticket::draw(self, must_be_new);
        let patience = PATIENCE.min(limit / 4);
        // So that those that stall do not use up what may be opening.
        let pace = patience.max(limit / SLOTS);
        loop {
            self.open_more(pace, &open);
            if let Ok(place) = timeout(patience, &mut place).await {
                return place.unwrap_or_else(|_| Err(io::Error::other("it was given no place")));
            }
            self.state.lock().look(ticket.number);
        }
    }

    /// Begins the openings that those who wait need.
    fn open_more(self: &Arc<Self>, pace: Duration, open: &Open) {
        let begun: Vec<Instant> = {
            let mut state = self.state.lock();
            std::iter::from_fn(|| state.begin(pace)).collect()
        };
        for began in begun {
            let (opening, open) = (Opening { sharing: self.clone(), began }, open.clone());
            tokio::spawn(async move {
                let result = open().await;
                let sharing = opening.end(result);
                sharing.open_more(pace, &open);
            });
        }
    }

    /// Drops the connections that are over, or that nobody has used for long.
    pub fn sweep(&self) {
        let now = Instant::now();
        let is_of_use = |connection: &mut Connection| {
            let is_recent = now.saturating_duration_since(connection.used) < MAX_IDLE_AGE;
            !connection.opener.is_over() && (is_recent || connection.opener.in_use() > 0)
        };
        self.state.lock().connections.retain_mut(is_of_use);
    }
}

impl State {
    /// A place on a connection that was opened at `since` or later.
    fn share(&mut self, since: Option<Instant>) -> Option<Stream> {
        let mut at = since.map_or(0, |since| self.connections.partition_point(|one| one.opened < since));
        // Only those that it meets are looked at: a burst may have left many behind.
        while let Some(Connection { opener, used, .. }) = self.connections.get_mut(at) {
            if opener.is_over() {
                self.connections.remove(at);
                continue;
            }
            if let Some(stream) = opener.open() {
                *used = Instant::now();
                return Some(stream);
            }
            at += 1;
        }
        None
    }

    /// A place may have been given back. Only the first looks: what it does not find is not there for the others.
    fn look(&mut self, number: u64) {
        if self.queue.front().is_some_and(|first| first.number == number) {
            self.serve();
        }
    }

    /// Gives places to those who wait, as far as there are any.
    fn serve(&mut self) {
        let (mut at, mut has_new) = (0, true);
        while let Some(&Waiter { must_be_new, came, .. }) = self.queue.get(at) {
            let place = if must_be_new && !has_new { None } else { self.share(must_be_new.then_some(came)) };
            match place {
                Some(stream) => {
                    if let Some(waiter) = self.queue.remove(at) {
                        // Who has left meanwhile leaves the place as well.
                        let _ = waiter.place.send(Ok(stream));
                    }
                }
                // There may still be an old one for the others; what is new to those who came later is new to this one, too.
                None if must_be_new => (at, has_new) = (at + 1, false),
                None => return,
            }
        }
    }

    /// Begins an opening, unless those that are under way should do.
    fn begin(&mut self, pace: Duration) -> Option<Instant> {
        let now = Instant::now();
        let wanted = self.queue.len().div_ceil(self.capacity);
        let is_promising = |began: &&Instant| now.saturating_duration_since(**began) < pace;
        let promising = self.openings.iter().filter(is_promising).count();
        // Where some do not get through, more are tried one by one.
        let allowance = if promising < self.openings.len() { 1 } else { self.allowance };
        if promising >= wanted.min(allowance) || self.openings.len() >= MOST_OPENING {
            return None;
        }
        self.openings.push(now);
        Some(now)
    }

    /// An opening has ended.
    fn conclude(&mut self, began: Instant, result: io::Result<Box<dyn Opener>>) {
        let opener = match result {
            Ok(opener) => opener,
            Err(error) => return self.failed(began, &error),
        };
        let (now, waiting) = (Instant::now(), self.queue.len());
        self.capacity = opener.capacity().max(1);
        self.connections.push(Connection { opener, opened: now, used: now });
        self.serve();
        if waiting > 0 && self.queue.len() == waiting {
            return self.failed(began, &io::Error::other("the endpoint takes no request"));
        }
        self.allowance = (self.allowance * 2).min(MOST_OPENING);
        self.failures_in_a_row = 0;
    }

    /// One that failed may be an accident, and others may be about to get through: it is told to few of those for whom it was
    /// begun, the next to more. One that took too long is told to nobody: they have a limit of their own.
    fn failed(&mut self, began: Instant, error: &io::Error) {
        // Places may have been given back meanwhile.
        self.serve();
        self.allowance = FEW_OPENING;
        if error.kind() == io::ErrorKind::TimedOut {
            return;
        }
        let told = 1_usize << self.failures_in_a_row.min(16);
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        for _ in 0..told {
            if self.queue.front().is_none_or(|first| first.came > began) {
                return;
            }
            if let Some(first) = self.queue.pop_front() {
                let _ = first.place.send(Err(copy_of(error)));
            }
        }
    }
}

/// A connection that is being opened, until it is there or is not.
struct Opening {
    sharing: Arc<Sharing>,
    began: Instant,
}

impl Opening {
    fn end(self, result: io::Result<Box<dyn Opener>>) -> Arc<Sharing> {
        self.sharing.state.lock().conclude(self.began, result);
        self.sharing.clone()
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut state = self.sharing.state.lock();
        if let Some(at) = state.openings.iter().position(|began| *began == self.began) {
            state.openings.swap_remove(at);
        }
    }
}

/// A place in the queue, until it is dropped.
struct Ticket<'a> {
    sharing: &'a Sharing,
    number: u64,
}

impl<'a> Ticket<'a> {
    fn draw(sharing: &'a Sharing, must_be_new: bool) -> (Ticket<'a>, oneshot::Receiver<io::Result<Stream>>) {
        let (place, given) = oneshot::channel();
        let ticket = {
            let mut state = sharing.state.lock();
            let number = state.next_number;
            state.next_number += 1;
            state.queue.push_back(Waiter { number, came: Instant::now(), must_be_new, place });
            Ticket { sharing, number }
        };
        // Nothing is there yet that is newer than who has just come.
        if !must_be_new {
            sharing.state.lock().serve();
        }
        (ticket, given)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.sharing.state.lock();
        if let Ok(at) = state.queue.binary_search_by_key(&self.number, |waiter| waiter.number) {
            state.queue.remove(at);
        }
    }
}

/// For one more of those who are to be told of it.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use tokio::task::{JoinHandle, yield_now};
    use tokio::time::sleep;

    use super::*;
    use crate::net::Multiplexed;

    const SOON: Duration = Duration::from_millis(1);
    const LIMIT: Duration = Duration::from_secs(2);

    /// A connection with places, and a place on one.
    #[derive(Clone, Debug)]
    struct Fake {
        capacity: usize,
        users: Arc<()>,
    }

    impl Fake {
        fn opener(capacity: usize) -> io::Result<Box<dyn Opener>> {
            Ok(Box::new(Fake { capacity, users: Arc::default() }))
        }
    }

    impl Opener for Fake {
        fn open(&mut self) -> Option<Stream> {
            (self.in_use() < self.capacity).then(|| Stream::Multiplexed(Box::new(self.clone())))
        }

        fn capacity(&self) -> usize {
            self.capacity
        }

        fn in_use(&self) -> usize {
            Arc::strong_count(&self.users) - 1
        }

        fn is_over(&mut self) -> bool {
            false
        }
    }

    impl Multiplexed for Fake {
        fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_write(&mut self, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn waited_in_vain(&mut self) {}
    }

    /// Asks for a place, and opens by `open`, which is told how many were begun before.
    fn asking<F>(
        sharing: &Arc<Sharing>,
        begun: &Arc<AtomicUsize>,
        open: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> JoinHandle<io::Result<Stream>>
    where
        F: Future<Output = io::Result<Box<dyn Opener>>> + Send + 'static,
    {
        let (sharing, open) = (sharing.clone(), counted(begun, open));
        tokio::spawn(async move { sharing.place(false, LIMIT, open).await })
    }

    fn counted<F>(begun: &Arc<AtomicUsize>, open: impl Fn(usize) -> F + Send + Sync + 'static) -> Open
    where
        F: Future<Output = io::Result<Box<dyn Opener>>> + Send + 'static,
    {
        let begun = begun.clone();
        Arc::new(move || Box::pin(open(begun.fetch_add(1, Ordering::SeqCst))))
    }

    async fn all(asking: Vec<JoinHandle<io::Result<Stream>>>) -> Vec<io::Result<Stream>> {
        let mut results = Vec::new();
        for one in asking {
            results.push(one.await.expect("no panic"));
        }
        results
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_opens_no_more_than_it_needs() {
        for (requests, capacity, expected) in [(1, 100, 1), (100, 100, 1), (101, 100, 2), (250, 100, 3), (12, 4, 3)] {
            let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
            let open = move |_| async move {
                sleep(SOON).await;
                Fake::opener(capacity)
            };
            let places = all((0..requests).map(|_| asking(&sharing, &begun, open)).collect()).await;
            assert!(places.iter().all(Result::is_ok));
            assert_eq!(begun.load(Ordering::SeqCst), expected, "{requests} requests, {capacity} places each");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_opening_that_stalls_holds_nobody_up_for_long() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let open = |before| async move {
            if before == 0 {
                pending::<()>().await;
            }
            Fake::opener(100)
        };
        let came = Instant::now();
        let places = all((0..50).map(|_| asking(&sharing, &begun, open)).collect()).await;
        assert!(places.iter().all(Result::is_ok));
        assert!(came.elapsed() < PATIENCE * 2, "{:?}", came.elapsed());
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn openings_that_stall_are_few() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let is_well = Arc::new(AtomicBool::new(false));
        let health = is_well.clone();
        let open = move |_| {
            let is_well = health.load(Ordering::SeqCst);
            async move { if is_well { Fake::opener(2000) } else { pending().await } }
        };
        let waiting: Vec<_> = (0..1000).map(|_| asking(&sharing, &begun, open.clone())).collect();
        sleep(LIMIT - SOON).await;
        let stalled = begun.load(Ordering::SeqCst);
        assert!((FEW_OPENING + 1..=FEW_OPENING + 8).contains(&stalled), "{stalled}");
        is_well.store(true, Ordering::SeqCst);
        let came = Instant::now();
        assert!(all(waiting).await.iter().all(Result::is_ok));
        assert!(came.elapsed() <= PATIENCE, "{:?}", came.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_end_to_openings_that_stall() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let waiting: Vec<_> = (0..1000).map(|_| asking(&sharing, &begun, |_| pending())).collect();
        sleep(LIMIT * 60).await;
        assert_eq!(begun.load(Ordering::SeqCst), MOST_OPENING);
        for one in waiting {
            one.abort();
            assert!(one.await.is_err(), "it has left");
        }
        assert!(sharing.state.lock().queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_takes_no_opening_along() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let open = |_| async {
            sleep(SOON).await;
            Fake::opener(1)
        };
        let first = asking(&sharing, &begun, open);
        let second = asking(&sharing, &begun, open);
        yield_now().await;
        first.abort();
        assert!(second.await.expect("no panic").is_ok());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_costs_one_request() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let open = |before| async move {
            match before {
                3 => Err(io::ErrorKind::ConnectionReset.into()),
                _ => {
                    sleep(SOON).await;
                    Fake::opener(100)
                }
            }
        };
        let places = all((0..400).map(|_| asking(&sharing, &begun, open)).collect()).await;
        assert_eq!(places.iter().filter(|place| place.is_err()).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_are_told_when_all_fail() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let refused = |_| async {
            sleep(SOON).await;
            Err(io::Error::from_raw_os_error(111))
        };
        let failed = all((0..1000).map(|_| asking(&sharing, &begun, refused)).collect()).await;
        let is_refusal = |place: &io::Result<Stream>| {
            place.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        assert!(failed.iter().all(is_refusal));
        // 1 + 2 + 4 + ... and those that were under way.
        assert!(begun.load(Ordering::SeqCst) <= 10 + FEW_OPENING, "{begun:?}");
        // Who comes later, when all have ended, tries again.
        sleep(SOON * 2).await;
        assert!(asking(&sharing, &begun, |_| ready(Fake::opener(1))).await.expect("no panic").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_takes_no_request_is_a_failure() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let failed = asking(&sharing, &begun, |_| ready(Fake::opener(0))).await.expect("no panic");
        assert!(failed.is_err());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_connections_are_opened_side_by_side() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let open = |_| async {
            sleep(SOON * 30).await;
            Fake::opener(1)
        };
        let came = Instant::now();
        let places = all((0..1000).map(|_| asking(&sharing, &begun, open)).collect()).await;
        assert!(places.iter().all(Result::is_ok));
        assert!(came.elapsed() < LIMIT / 2, "{:?}", came.elapsed());
        assert_eq!(begun.load(Ordering::SeqCst), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_given_in_turn() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let place = asking(&sharing, &begun, |_| ready(Fake::opener(1))).await.expect("no panic").expect("a place");
        let waits = asking(&sharing, &begun, |_| pending());
        yield_now().await;
        drop(place);
        assert!(sharing.share().is_none(), "somebody has waited for it");
        let came = Instant::now();
        assert!(waits.await.expect("no panic").is_ok());
        assert!(came.elapsed() <= PATIENCE, "{:?}", came.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_told_of_a_failure_while_there_are_places() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let place = asking(&sharing, &begun, |_| ready(Fake::opener(1))).await.expect("no panic").expect("a place");
        let refused = |_| async {
            sleep(SOON).await;
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        let waits = asking(&sharing, &begun, refused);
        yield_now().await;
        drop(place);
        assert!(waits.await.expect("no panic").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_a_new_one_keeps_nobody_from_an_old_one() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let place = asking(&sharing, &begun, |_| ready(Fake::opener(1))).await.expect("no panic").expect("a place");
        sleep(SOON).await;
        let (waits, open) = (sharing.clone(), counted(&begun, |_| pending()));
        tokio::spawn(async move { waits.place(true, LIMIT, open).await });
        let behind = asking(&sharing, &begun, |_| pending());
        yield_now().await;
        drop(place);
        let place = behind.await.expect("no panic").expect("the old one's place");
        drop(place);
        assert!(sharing.share().is_some(), "nobody else waits for it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_of_an_opening_is_its_end() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let open = |before| async move {
            assert!(before > 0, "as somebody's mistake would");
            Fake::opener(1)
        };
        assert!(asking(&sharing, &begun, open).await.expect("no panic").is_ok());
        assert!(sharing.state.lock().openings.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_is_one_that_was_opened_since() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let open = |_| ready(Fake::opener(100));
        let old = asking(&sharing, &begun, open).await.expect("no panic").expect("a place");
        sleep(SOON).await;
        assert!(sharing.share().is_some(), "the old one has room");
        let new = sharing.place(true, LIMIT, counted(&begun, open)).await.expect("a place");
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        drop((old, new));
    }
}
