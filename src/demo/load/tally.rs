//! What the clients found, counted.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Latency, Mark};

/// What the clients found.
#[derive(Default)]
pub(in crate::demo) struct Tally {
    pub(in crate::demo) requests: Counter,
    pub(in crate::demo) failed: Counter,
    /// Requests that started after a switch was acknowledged.
    pub(in crate::demo) after_ack: Counter,
    /// Those of them that the old color answered.
    pub(in crate::demo) stale: Counter,
    /// Answers of a color that the same client had seen replaced.
    pub(in crate::demo) back_again: Counter,
    pub(in crate::demo) confirmed: Counter,
    pub(in crate::demo) chat: Stream,
    pub(in crate::demo) alarms: Stream,
    /// Time of a read, away from a switch and near it.
    pub(in crate::demo) steady: Latency,
    pub(in crate::demo) near: Latency,
    pub(in crate::demo) trouble: Trouble,
}

/// What the clients of one kind of stream found.
#[derive(Default)]
pub(in crate::demo) struct Stream {
    /// Lines received, by all clients together.
    pub(in crate::demo) received: Counter,
    /// Messages sent.
    pub(in crate::demo) sent: Counter,
    pub(in crate::demo) missing: Counter,
    pub(in crate::demo) doubled: Counter,
    pub(in crate::demo) reconnects: Counter,
    /// Attempts to connect that were not welcome.
    pub(in crate::demo) refused: Counter,
}

impl Stream {
    /// Enters line `number` for a client that has seen `seen` before; says whether it is new to it.
    pub(super) fn receive(&self, mark: &Mark, number: u64) -> bool {
        let seen = mark.seen.load(Ordering::Relaxed);
        self.received.add(1);
        if number <= seen {
            self.doubled.add(1);
            return false;
        }
        self.missing.add(number - seen - 1);
        mark.seen.store(number, Ordering::Relaxed);
        true
    }
}

#[derive(Default)]
pub(in crate::demo) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(in crate::demo) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The first thing that went wrong, in words.
#[derive(Default)]
pub(in crate::demo) struct Trouble(OnceLock<String>);

impl Trouble {
    pub(super) fn note(&self, words: impl FnOnce() -> String) {
        self.0.get_or_init(words);
    }

    pub(in crate::demo) fn first(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::load::Log;

    #[test]
    fn gaps_and_repeats_are_counted() {
        let stream = Stream::default();
        let mark = Mark::new(Log::Chat);
        assert!([1, 2, 5].iter().all(|number| stream.receive(&mark, *number)));
        assert!(!stream.receive(&mark, 5));
        assert_eq!((stream.missing.count(), stream.doubled.count(), stream.received.count()), (2, 1, 4));
    }
}
