//! Who is connected: every open connection of a worker has a [`Seat`].
//!
//! Through its seat a connection can be reached from outside its task: asked to leave when it is idle, told to end its
//! stream at a good moment, cut because its generation's drain is over, or woken because its deadline has passed. A
//! request pays for all of that with a few relaxed stores: no timer is registered and no list is touched on its way.
//! Deadlines are kept by a coarse clock that the worker's own task moves on; they are never early, and late by at most a
//! quarter of the shortest timeout. Time in which the worker itself was kept from running does not count: nobody could
//! have been in time.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use slab::Slab;

/// A worker whose clock has not moved on for so long is stuck: many times the coarsest grain, and longer than a machine with
/// much to do makes it wait.
const STUCK: Duration = Duration::from_secs(2);
const NEVER: u64 = u64::MAX;
const NOBODY: u64 = 0;

/// The open connections of one worker.
#[derive(Debug)]
pub struct Roster {
    seats: Mutex<Slab<Arc<Inner>>>,
    clock: Arc<Clock>,
    is_closing: AtomicBool,
}

/// Milliseconds that the worker has been running, as of the last tick.
#[derive(Debug)]
struct Clock {
    start: Instant,
    /// When the last tick was, in milliseconds since the start.
    ticked: AtomicU64,
    now: AtomicU64,
    grain: AtomicU64,
}

impl Clock {
    fn new() -> Clock {
        Clock { start: Instant::now(), ticked: AtomicU64::new(0), now: AtomicU64::new(0), grain: AtomicU64::new(100) }
    }

    /// The reading at which `limit` has surely passed: the next tick may come at once and count for [`Clock::step`].
    fn after(&self, limit: Duration) -> u64 {
        let rounding = 1;
        let limit = u64::try_from(limit.as_millis()).unwrap_or(NEVER);
        self.now.load(Ordering::Relaxed).saturating_add(self.step() + rounding).saturating_add(limit)
    }

    /// The most that one tick counts for, however late it is. The reading that deadlines are set by is never older.
    fn step(&self) -> u64 {
        2 * self.grain.load(Ordering::Relaxed)
    }

    /// How long ago the last tick was.
    fn silence(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.ticked.load(Ordering::Relaxed)))
    }

    /// A tick at `time`, in milliseconds since the start. Returns the new reading.
    fn tick(&self, time: u64) -> u64 {
        let passed = time.saturating_sub(self.ticked.swap(time, Ordering::Relaxed));
        let now = self.now.load(Ordering::Relaxed).saturating_add(passed.min(self.step()));
        self.now.store(now, Ordering::Relaxed);
        now
    }
}

/// Why a connection's task was interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupt {
    /// The deadline set by [`Seat::within`] has passed.
    Timeout,
    /// The drain of the generation that it works for is over.
    Cut,
    /// It is idle and should leave: the listener closes.
    Leave,
}

impl Roster {
    pub fn new() -> Arc<Roster> {
        let seats = Mutex::new(Slab::new());
        Arc::new(Roster { seats, clock: Arc::new(Clock::new()), is_closing: AtomicBool::new(false) })
    }

    /// A seat for a new connection of the listener `listener`.
    pub fn sit(self: &Arc<Roster>, listener: u64) -> Seat {
        let mut seats = self.seats.lock();
        let inner = Arc::new(Inner {
            listener,
            clock: self.clock.clone(),
            deadline: AtomicU64::new(NEVER),
            generation: AtomicU64::new(NOBODY),
            cut: AtomicU64::new(NOBODY),
            kind: AtomicU8::new(0),
            told: AtomicU64::new(NOBODY),
            // Under the lock: a close that comes now either is seen here or finds the seat.
            is_leaving: AtomicBool::new(self.is_closing.load(Ordering::Acquire)),
            waker: Mutex::new(None),
        });
        let key = seats.insert(inner.clone());
        drop(seats);
        Seat { roster: self.clone(), key, inner }
    }

    pub fn len(&self) -> usize {
        self.seats.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those connections of `kind` that work for `generation` and have not been told to end, in no order.
    pub fn untold(&self, generation: u64, kind: u8) -> Vec<Seated> {
        let seats = self.seats.lock();
        let is_meant = |seat: &Inner| {
            seat.generation.load(Ordering::Acquire) == generation
                && seat.kind.load(Ordering::Relaxed) == kind
                && seat.told.load(Ordering::Relaxed) != generation
        };
        seats.iter().filter(|(_, seat)| is_meant(seat)).map(|(_, seat)| Seated(seat.clone())).collect()
    }

    /// Takes back what those who work for `generation` were told, as far as they have not acted on it.
    pub fn recall(&self, generation: u64) {
        self.tell(|seat| seat.told.compare_exchange(generation, NOBODY, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    }

    /// Cuts every exchange that works for `generation`; says how many.
    pub fn cut(&self, generation: u64) -> usize {
        self.tell(|seat| {
            let is_meant = seat.generation.load(Ordering::Acquire) == generation;
            if is_meant {
                seat.cut.store(generation, Ordering::Release);
            }
            is_meant
        })
    }

    /// Cuts every exchange there is.
    pub fn cut_all(&self) -> usize {
        self.tell(|seat| {
            seat.cut.store(NEVER, Ordering::Release);
            true
        })
    }

    /// Asks every connection of all workers, of now and later, to leave as soon as it is idle.
    ///
    /// All workers know before anybody leaves: the place of the first may be taken at another worker, by one who is to
    /// leave as well.
    pub fn close_all(rosters: &[Arc<Roster>]) {
        rosters.iter().for_each(|roster| roster.is_closing.store(true, Ordering::Release));
        rosters.iter().for_each(|roster| roster.dismiss(|_| true));
    }

    /// Whether [`Roster::close_all`] was called.
    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Asks the connections of one listener to leave as soon as they are idle.
    pub fn close_listener(&self, listener: u64) {
        self.dismiss(|seat| seat.listener == listener);
    }

    /// Moves the clock on and wakes whoever is past its deadline; says how many. To be called every [`Roster::grain`].
    pub fn tick(&self) -> usize {
        let now = self.clock.tick(u64::try_from(self.clock.start.elapsed().as_millis()).unwrap_or(NEVER));
        self.tell(|seat| seat.deadline.load(Ordering::Relaxed) <= now)
    }

    /// Whether the worker does nothing any more, as anybody else may ask.
    pub fn is_stuck(&self) -> bool {
        self.clock.silence() > STUCK
    }

    pub fn grain(&self) -> Duration {
        Duration::from_millis(self.clock.grain.load(Ordering::Relaxed))
    }

    /// Sets how finely deadlines are kept, by the shortest timeout that is in use.
    pub fn set_shortest_timeout(&self, shortest: Duration) {
        let grain = (shortest / 12).clamp(Duration::from_millis(5), Duration::from_millis(250));
        self.clock.grain.store(u64::try_from(grain.as_millis()).unwrap_or(250), Ordering::Relaxed);
    }

    fn dismiss(&self, is_meant: impl Fn(&Inner) -> bool) {
        self.tell(|seat| {
            let is_meant = is_meant(seat);
            if is_meant {
                seat.is_leaving.store(true, Ordering::Release);
            }
            is_meant
        });
    }

    /// Wakes those for whom `tell` says so. Wakers run after the list is unlocked.
    fn tell(&self, tell: impl Fn(&Inner) -> bool) -> usize {
        let told: Vec<Waker> = {
            let seats = self.seats.lock();
            seats.iter().filter(|(_, seat)| tell(seat)).filter_map(|(_, seat)| seat.waker.lock().clone()).collect()
        };
        let count = told.len();
        told.into_iter().for_each(Waker::wake);
        count
    }
}

/// What both sides of a seat share.
#[derive(Debug)]
struct Inner {
    listener: u64,
    clock: Arc<Clock>,
    deadline: AtomicU64,
    generation: AtomicU64,
    cut: AtomicU64,
    /// What the connection does for the generation; the numbers are its owner's.
    kind: AtomicU8,
    /// The generation on whose behalf it should end at a good moment.
    told: AtomicU64,
    is_leaving: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// A connection as its drain sees it.
#[derive(Debug)]
pub struct Seated(Arc<Inner>);

impl Seated {
    /// Asks it to end at a good moment, if it still works for `generation`; whether it does.
    pub fn tell(&self, generation: u64) -> bool {
        let is_there = self.0.generation.load(Ordering::Acquire) == generation;
        if is_there {
            self.0.told.store(generation, Ordering::Release);
            let waker = self.0.waker.lock().clone();
            waker.into_iter().for_each(Waker::wake);
        }
        is_there
    }
}

/// A connection's place in the roster of its worker; dropping it gives the place back.
#[derive(Debug)]
pub struct Seat {
    roster: Arc<Roster>,
    key: usize,
    inner: Arc<Inner>,
}

impl Seat {
    /// Makes the running task the one that is woken. To be called first in every task that the connection moves to.
    pub async fn take(&self) {
        poll_fn(|cx| {
            *self.inner.waker.lock() = Some(cx.waker().clone());
            Poll::Ready(())
        })
        .await;
    }

    /// One more seat for the same connection, which has several conversations.
    pub fn beside(&self) -> Seat {
        let seat = self.roster.sit(self.inner.listener);
        if self.is_leaving() {
            seat.leave();
        }
        seat
    }

    /// From now on the connection works for `generation`.
    pub fn work_for(&self, generation: u64) {
        self.inner.kind.store(0, Ordering::Relaxed);
        self.inner.generation.store(generation, Ordering::Release);
    }

    /// What it does for its generation from now on.
    pub fn turn(&self, kind: u8) {
        self.inner.kind.store(kind, Ordering::Relaxed);
    }

    /// Whether the exchange should end at the next good moment.
    pub fn is_told(&self) -> bool {
        let told = self.inner.told.load(Ordering::Acquire);
        told != NOBODY && told == self.inner.generation.load(Ordering::Relaxed)
    }

    pub fn rest(&self) {
        self.inner.generation.store(NOBODY, Ordering::Release);
    }

    /// Sets the deadline that [`Seat::interrupt`] and [`Seat::guard`] keep.
    pub fn within(&self, limit: Duration) {
        self.inner.deadline.store(self.inner.clock.after(limit), Ordering::Relaxed);
    }

    pub fn without_limit(&self) {
        self.inner.deadline.store(NEVER, Ordering::Relaxed);
    }

    /// The connection should end as soon as it is idle.
    pub fn leave(&self) {
        self.inner.is_leaving.store(true, Ordering::Release);
    }

    /// Whether the connection should end at the next occasion.
    pub fn is_leaving(&self) -> bool {
        self.inner.is_leaving.load(Ordering::Acquire)
    }

    /// What should stop the exchange at this moment, if anything.
    pub fn interrupt(&self) -> Option<Interrupt> {
        let cut = self.inner.cut.load(Ordering::Acquire);
        if cut != NOBODY && (cut == NEVER || cut == self.inner.generation.load(Ordering::Relaxed)) {
            return Some(Interrupt::Cut);
        }
        let is_late = self.inner.deadline.load(Ordering::Relaxed) <= self.inner.clock.now.load(Ordering::Relaxed);
        is_late.then_some(Interrupt::Timeout)
    }

    /// Runs `future` until an interrupt stops it. What it had done by then is lost with it.
    pub async fn guard<F: Future>(&self, future: F) -> Result<F::Output, Interrupt> {
        let mut future = pin!(future);
        poll_fn(|cx| match self.interrupt() {
            Some(interrupt) => Poll::Ready(Err(interrupt)),
            None => future.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    /// As [`Seat::guard`], for an idle connection: being asked to leave stops it, too.
    pub async fn guard_idle<F: Future>(&self, future: F) -> Result<F::Output, Interrupt> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => match self.interrupt() {
                Some(interrupt) => Poll::Ready(Err(interrupt)),
                None if self.is_leaving() => Poll::Ready(Err(Interrupt::Leave)),
                None => Poll::Pending,
            },
        })
        .await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.rest();
        self.roster.seats.lock().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However irregularly the worker runs, a deadline is never early, and late only by what the worker was.
        #[test]
        fn a_deadline_is_never_early(
            pauses in prop::collection::vec(prop_oneof![9 => 1u64..120, 1 => 1u64..5_000], 1..200),
            set_after in 0u64..1_000,
            limit in 0u64..2_000,
        ) {
            let clock = Clock::new();
            let (mut time, mut deadline) = (0, None);
            for pause in pauses {
                // What happens between two ticks sees the reading of the first.
                if deadline.is_none() && time + pause > set_after {
                    let set_at = set_after.max(time);
                    deadline = Some((set_at, clock.after(Duration::from_millis(limit))));
                }
                time += pause;
                let now = clock.tick(time);
                if let Some((set_at, deadline)) = deadline {
                    prop_assert!(now < deadline || time >= set_at + limit, "early: {time} for {set_at} and {limit}");
                }
            }
        }
    }

    #[test]
    fn a_deadline_is_late_by_a_quarter_of_the_shortest_timeout_at_most() {
        let roster = Roster::new();
        let shortest = Duration::from_millis(600);
        roster.set_shortest_timeout(shortest);
        let grain = u64::try_from(roster.grain().as_millis()).expect("a short time");
        let deadline = roster.clock.after(shortest);
        let mut time = 0;
        while roster.clock.tick(time) < deadline {
            time += grain;
        }
        assert!((600..=750 + 2).contains(&time), "{time}");
    }

    /// Whoever is woken by a close and leaves makes room for another, at another worker.
    #[test]
    fn who_comes_after_the_first_has_left_is_to_leave_as_well() {
        struct Room(Arc<Roster>, Mutex<Option<bool>>);
        impl Wake for Room {
            fn wake(self: Arc<Room>) {
                *self.1.lock() = Some(self.0.sit(1).is_leaving());
            }
        }
        for place in 0..2 {
            let rosters = [Roster::new(), Roster::new()];
            let first = rosters[place].sit(1);
            let room = Arc::new(Room(rosters[1 - place].clone(), Mutex::default()));
            *first.inner.waker.lock() = Some(Waker::from(room.clone()));
            Roster::close_all(&rosters);
            assert_eq!(*room.1.lock(), Some(true), "the newcomer is to leave");
        }
    }

    #[test]
    fn a_worker_is_stuck_when_its_clock_has_stood_for_seconds() {
        let roster_since = |ago: Duration| {
            let clock = Clock { start: Instant::now() - ago, ..Clock::new() };
            Roster { seats: Mutex::default(), clock: Arc::new(clock), is_closing: AtomicBool::new(false) }
        };
        assert!(!Roster::new().is_stuck(), "it has had no time to tick yet");
        let roster = roster_since(STUCK + Duration::from_millis(1));
        assert!(roster.is_stuck());
        roster.tick();
        assert!(!roster.is_stuck());
    }
}
