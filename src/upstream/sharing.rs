//! The connections to an endpoint that the requests of one worker share, and the opening of more of them.
//!
//! A connection is opened for everybody who waits for a place, and belongs to nobody: who began it may leave, and it is there
//! for the others. So a burst at a cold endpoint, as behind every switch, opens as many connections as it needs places, and
//! not one for each request.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::net::{Opener, Stream};
use crate::upstream::endpoint::MAX_IDLE_AGE;

/// Connections that may be opening at once.
const MOST_OPENING: usize = 4;
/// After so long without a result another opening is begun beside the one that is under way.
const PATIENCE: Duration = Duration::from_millis(250);
/// Places on a connection, as long as none has shown how many there are.
const CAPACITY: usize = 100;

/// What the requests of one worker share of one endpoint.
#[derive(Debug, Default)]
pub struct Sharing {
    state: Mutex<State>,
    /// An opening has ended, one way or the other.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    connections: Vec<Connection>,
    /// When each of the openings that are under way began.
    openings: Vec<Instant>,
    /// Requests that wait for a place.
    waiting: usize,
    /// Places on the newest connection.
    capacity: Option<usize>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Connection {
    opener: Box<dyn Opener>,
    opened: Instant,
    used: Instant,
}

/// The opening that failed last.
#[derive(Debug)]
struct Failure {
    began: Instant,
    error: io::Error,
}

impl Sharing {
    /// A place on a connection that is there already.
    pub fn share(&self) -> Option<Stream> {
        self.state.lock().share(None)
    }

    /// A place on a connection, on one that is opened after this call if `must_be_new`. Waits for ever: bound it from outside,
    /// and `open` from inside.
    ///
    /// # Errors
    /// When an opening fails that has begun after this call.
    pub async fn place<F>(self: &Arc<Self>, must_be_new: bool, open: impl Fn() -> F) -> io::Result<Stream>
    where
        F: Future<Output = io::Result<Box<dyn Opener>>> + Send + 'static,
    {
        let came = Instant::now();
        let _waiting = Waiting::new(self);
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            let begun = {
                let mut state = self.state.lock();
                if let Some(stream) = state.share(must_be_new.then_some(came)) {
                    return Ok(stream);
                }
                if let Some(failure) = state.failure.as_ref().filter(|failure| failure.began >= came) {
                    return Err(copy_of(&failure.error));
                }
                state.begin()
            };
            if let Some(began) = begun {
                let opening = Opening { sharing: self.clone(), began };
                tokio::spawn(opening.run(open()));
            }
            // Whether something has ended or it took too long, it is looked again.
            let _ = timeout(PATIENCE, ended).await;
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
        let mut at = 0;
        // Only those that it meets are looked at: a burst may have left many behind.
        while let Some(Connection { opener, opened, used }) = self.connections.get_mut(at) {
            if opener.is_over() {
                self.connections.remove(at);
                continue;
            }
            if since.is_none_or(|since| *opened >= since)
                && let Some(stream) = opener.open()
            {
                *used = Instant::now();
                return Some(stream);
            }
            at += 1;
        }
        None
    }

    /// Begins an opening, unless those that are under way should do.
    fn begin(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let wanted = self.waiting.div_ceil(self.capacity.unwrap_or(CAPACITY).max(1));
        let is_promising = |began: &&Instant| now.saturating_duration_since(**began) < PATIENCE;
        let promising = self.openings.iter().filter(is_promising).count();
        if self.openings.len() >= MOST_OPENING || promising >= wanted {
            return None;
        }
        self.openings.push(now);
        Some(now)
    }
}

/// A connection that is being opened. However that ends, those who wait are told.
struct Opening {
    sharing: Arc<Sharing>,
    began: Instant,
}

impl Opening {
    async fn run(self, open: impl Future<Output = io::Result<Box<dyn Opener>>>) {
        let opened = open.await.and_then(|opener| match opener.capacity() {
            0 => Err(io::Error::other("the endpoint takes no request")),
            capacity => Ok((opener, capacity)),
        });
        let mut state = self.sharing.state.lock();
        match opened {
            Ok((opener, capacity)) => {
                let now = Instant::now();
                state.capacity = Some(capacity);
                state.connections.push(Connection { opener, opened: now, used: now });
            }
            Err(error) => state.failure = Some(Failure { began: self.began, error }),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut state = self.sharing.state.lock();
        if let Some(at) = state.openings.iter().position(|began| *began == self.began) {
            state.openings.swap_remove(at);
        }
        drop(state);
        self.sharing.ended.notify_waiters();
    }
}

/// Counts a request that waits for as long as it does.
struct Waiting<'a>(&'a Sharing);

impl<'a> Waiting<'a> {
    fn new(sharing: &'a Sharing) -> Waiting<'a> {
        sharing.state.lock().waiting += 1;
        Waiting(sharing)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use tokio::task::{JoinHandle, yield_now};
    use tokio::time::sleep;

    use super::*;
    use crate::net::Multiplexed;

    const SOON: Duration = Duration::from_millis(1);

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
        let (sharing, begun) = (sharing.clone(), begun.clone());
        tokio::spawn(async move { sharing.place(false, || open(begun.fetch_add(1, Ordering::SeqCst))).await })
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
        let waiting: Vec<_> = (0..1000).map(|_| asking(&sharing, &begun, |_| pending())).collect();
        sleep(PATIENCE * 20).await;
        assert_eq!(begun.load(Ordering::SeqCst), MOST_OPENING);
        waiting.iter().for_each(JoinHandle::abort);
        for one in waiting {
            assert!(one.await.is_err(), "it has left");
        }
        assert_eq!(sharing.state.lock().waiting, 0, "nobody is counted that has left");
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
    async fn all_who_wait_are_told_that_it_fails() {
        let (sharing, begun) = <(Arc<Sharing>, Arc<AtomicUsize>)>::default();
        let refused = |_| async {
            sleep(SOON).await;
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        let failed = all((0..50).map(|_| asking(&sharing, &begun, refused)).collect()).await;
        let is_refusal = |place: &io::Result<Stream>| {
            place.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        assert!(failed.iter().all(is_refusal));
        // Those who came when one was under way do not believe the first alone.
        assert!(begun.load(Ordering::SeqCst) <= 2, "{begun:?}");
        // Who comes later tries again.
        assert!(asking(&sharing, &begun, |_| ready(Fake::opener(1))).await.expect("no panic").is_ok());
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
        let new = sharing.place(true, || open(begun.fetch_add(1, Ordering::SeqCst))).await.expect("a place");
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        drop((old, new));
    }
}
