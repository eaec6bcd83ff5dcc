//! Whether clients that were sent away are on their way back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A moment in the life of a service until which clients of event streams may come back that were told when to.
#[derive(Debug)]
pub struct Returning {
    start: Instant,
    /// Milliseconds since the start.
    until: AtomicU64,
}

impl Default for Returning {
    fn default() -> Returning {
        Returning { start: Instant::now(), until: AtomicU64::new(0) }
    }
}

impl Returning {
    /// A client was told to come back; it will have done so by `at_the_latest` from now.
    pub fn expect(&self, at_the_latest: Duration) {
        self.until.fetch_max(self.millis() + u64::try_from(at_the_latest.as_millis()).unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether somebody may still be on the way.
    pub fn is_expected(&self) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        until > 0 && self.millis() <= until
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }
}
