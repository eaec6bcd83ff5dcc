//! An event stream on its way to the client: where it can be ended, and how.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::stream::events::{Events, MARK, retry};

/// What browsers wait before they connect again, unless they are told otherwise.
const BROWSERS_RETRY: Duration = Duration::from_secs(3);

/// What a client may need to come back, beside the time that it was told.
pub(crate) const RETURN: Duration = Duration::from_secs(30);

/// Follows the events of one answer.
#[derive(Debug)]
pub(crate) struct EventStream {
    events: Events,
    /// What the client is told before the stream ends, once it is to end.
    last_words: Option<Vec<u8>>,
    /// The client may have been told when to come back, and has come.
    is_return: bool,
}

/// What becomes of a piece of the stream.
pub(crate) struct Passed {
    /// So much of it goes on.
    pub(crate) length: usize,
    /// To be put in, and where.
    pub(crate) insert: Option<(usize, Vec<u8>)>,
    /// The stream ends behind it.
    pub(crate) is_last: bool,
}

impl EventStream {
    /// `is_return`: the usual time to reconnect has to be restored. The origin's own `retry`, if it sends one, comes later
    /// and so is the one that counts.
    pub(crate) fn new(is_return: bool) -> EventStream {
        EventStream { events: Events::default(), last_words: None, is_return }
    }

    pub(crate) fn is_told(&self) -> bool {
        self.last_words.is_some()
    }

    /// The stream is to end between two events, with word to come back after `pause`; true: that is here.
    pub(crate) fn tell(&mut self, pause: Duration) -> bool {
        self.last_words = Some(retry(millis(pause)));
        self.events.is_between()
    }

    /// The stream may go on.
    pub(crate) fn recall(&mut self) {
        self.last_words = None;
    }

    /// What the client is told last.
    pub(crate) fn last_words(&mut self) -> Vec<u8> {
        self.last_words.take().unwrap_or_default()
    }

    /// Follows a piece of the stream.
    pub(crate) fn pass(&mut self, data: &[u8]) -> Passed {
        let insert = if self.is_return && !data.is_empty() { self.restore(data) } else { None };
        if self.last_words.is_none() {
            self.events.follow(data);
            return Passed { length: data.len(), insert, is_last: false };
        }
        let mut length = 0;
        while length < data.len() {
            length += self.events.advance(&data[length..]);
            if self.events.is_between() {
                return Passed { length, insert, is_last: true };
            }
        }
        Passed { length, insert, is_last: false }
    }

    /// The field goes behind a byte order mark. One that arrives in pieces is left alone, and so is the time then.
    fn restore(&mut self, data: &[u8]) -> Option<(usize, Vec<u8>)> {
        self.is_return = false;
        let at = if data.starts_with(MARK) { MARK.len() } else { 0 };
        let is_piece = at == 0 && MARK.starts_with(data);
        (!is_piece).then(|| (at, retry(millis(BROWSERS_RETRY))))
    }
}

/// Any time out of the range, so that not all come back at once.
pub(crate) fn between(range: &RangeInclusive<Duration>) -> Duration {
    *range.start() + (*range.end() - *range.start()).mul_f64(fastrand::f64())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
