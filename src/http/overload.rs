//! Sheds new requests when a worker has more to do than it can.
//!
//! A worker is overloaded when its tasks wait long for their turn although it is running all the time: a machine that gives
//! it no time is not its fault, and turning requests away would not help. Then a growing share of new requests is
//! answered 503 at once, so that the others are served in time, until the wait is short again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A task that waits longer for its turn is late.
const LATE: Duration = Duration::from_millis(200);
/// The share of time that a busy worker spends running.
const BUSY: f64 = 0.8;
/// Late looks in a row before anything is shed.
const PATIENCE: u32 = 3;
/// By how much the share that is shed grows and falls, in 1/1000.
const STEP: u32 = 50;
const MOST: u32 = 900;

/// How much of its work a worker sheds; written by its own task.
#[derive(Debug, Default)]
pub struct Overload {
    /// In 1/1000 of new requests.
    share: AtomicU32,
}

/// What the last look saw.
#[derive(Debug)]
pub struct Watch {
    looked: Instant,
    ran: Duration,
    late: u32,
}

impl Overload {
    /// Of a worker that has had far too much to do for long: sheds as much as any ever does, until the next look.
    pub fn at_its_worst() -> Overload {
        Overload { share: AtomicU32::new(MOST) }
    }

    /// Whether the request that has just come in is one too many.
    pub fn sheds(&self) -> bool {
        let share = self.share.load(Ordering::Relaxed);
        share > 0 && fastrand::u32(..1000) < share
    }

    /// Takes into account how late a task of the worker was that asked to wait for `pause`.
    pub fn look(&self, watch: &mut Watch, pause: Duration) {
        let (now, ran) = (Instant::now(), running_time());
        let (passed, busy) = (now.duration_since(watch.looked), ran.saturating_sub(watch.ran));
        (watch.looked, watch.ran) = (now, ran);
        watch.late = if is_late(passed.saturating_sub(pause), busy, passed) { watch.late.saturating_add(1) } else { 0 };
        self.judge(watch.late);
    }

    fn judge(&self, late: u32) {
        let share = self.share.load(Ordering::Relaxed);
        let next = match late {
            0 => share.saturating_sub(STEP),
            PATIENCE.. => (share + STEP).min(MOST),
            _ => share,
        };
        if (share == 0) != (next == 0) {
            tracing::warn!(shedding = next > 0, "overload");
        }
        self.share.store(next, Ordering::Relaxed);
    }
}

impl Watch {
    /// To be made on the worker's own thread.
    pub fn new() -> Watch {
        Watch { looked: Instant::now(), ran: running_time(), late: 0 }
    }
}

impl Default for Watch {
    fn default() -> Watch {
        Watch::new()
    }
}

fn is_late(by: Duration, busy: Duration, passed: Duration) -> bool {
    by > LATE && busy.as_secs_f64() > BUSY * passed.as_secs_f64()
}

/// How long this thread has been running.
fn running_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shed_before_it_has_been_late_again_and_again() {
        let overload = Overload::default();
        (0..PATIENCE).for_each(|late| overload.judge(late));
        assert!((0..1000).all(|_| !overload.sheds()));
        (0..100).for_each(|_| overload.judge(PATIENCE));
        let shed = (0..10_000).filter(|_| overload.sheds()).count();
        assert!((8_500..9_500).contains(&shed), "{shed} of 10,000: some are served however bad it is");
        (0..100).for_each(|_| overload.judge(0));
        assert!((0..1000).all(|_| !overload.sheds()));
    }

    #[test]
    fn a_thread_that_only_waited_was_not_busy() {
        let [short, second] = [Duration::from_millis(100), Duration::from_secs(1)];
        assert!(is_late(second, second, second));
        assert!(!is_late(second, short, second), "the machine gave it no time");
        assert!(!is_late(short, second, second), "the wait was short");
        let (overload, mut watch) = (Overload::default(), Watch::new());
        for _ in 0..10 {
            watch.looked -= second;
            overload.look(&mut watch, short);
        }
        assert!(!overload.sheds() && watch.late == 0);
    }
}
