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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(1500);
    const EVENTS: &[u8] = b"data: 1\n\n: alive\ndata: 2\r\n\r\nid: 3\rdata: 3\r\rdata: 4\n: within\n\nretry: 9\n\n";

    /// What goes on of `pieces` when the stream is told to end before the piece `told`, and whether it has ended then.
    fn passed(pieces: &[&[u8]], told: usize) -> (Vec<u8>, bool) {
        let mut stream = EventStream::new(false);
        let mut sent = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            if at == told && stream.tell(PAUSE) {
                return (sent, true);
            }
            let Passed { length, insert, is_last } = stream.pass(piece);
            assert_eq!(insert, None);
            sent.extend_from_slice(&piece[..length]);
            if is_last {
                return (sent, true);
            }
        }
        (sent, false)
    }

    fn is_between(data: &[u8]) -> bool {
        let mut events = Events::default();
        events.follow(data);
        events.is_between()
    }

    proptest! {
        #[test]
        fn it_ends_at_the_first_place_between_events(
            cuts in vec(0..=EVENTS.len(), 1..6),
            told in any::<prop::sample::Index>(),
        ) {
            let mut cuts = cuts;
            cuts.extend([0, EVENTS.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &EVENTS[cut[0]..cut[1]]).collect();
            let told = told.index(pieces.len());
            let end = (cuts[told]..=EVENTS.len()).find(|end| is_between(&EVENTS[..*end]));
            prop_assert_eq!(passed(&pieces, told), (EVENTS[..end.expect("the last event ends")].to_vec(), true));
        }
    }

    #[test]
    fn nothing_is_held_back_or_put_in_unless_it_is_told() {
        let (sent, is_over) = passed(&[EVENTS, b"data: half", EVENTS], usize::MAX);
        assert_eq!((sent, is_over), ([EVENTS, b"data: half", EVENTS].concat(), false));
    }

    #[test]
    fn an_event_that_does_not_end_goes_on() {
        let mebibyte = vec![b'x'; 1024 * 1024];
        let (sent, is_over) = passed(&[b"data: ", &mebibyte, b"\ndata: more\n", b"data: more"], 1);
        assert_eq!((sent.len(), is_over), (6 + mebibyte.len() + 12 + 10, false));
    }

    #[test]
    fn the_last_words_say_when_to_come_back_and_are_said_once() {
        let mut stream = EventStream::new(false);
        assert!(!stream.is_told());
        assert!(stream.tell(PAUSE));
        assert!(stream.is_told());
        assert_eq!(stream.last_words(), b"retry: 1500\n\n");
        assert_eq!((stream.last_words(), stream.is_told()), (Vec::new(), false));
    }

    #[test]
    fn a_stream_that_is_recalled_goes_on_and_can_be_told_again() {
        let mut stream = EventStream::new(false);
        assert!(!stream.pass(b"data: 1\n").is_last);
        assert!(!stream.tell(PAUSE));
        stream.recall();
        let Passed { length, is_last, .. } = stream.pass(b"\ndata: 2\n");
        assert_eq!((length, is_last), (9, false));
        assert!(!stream.tell(PAUSE));
        let Passed { length, is_last, .. } = stream.pass(b"\ndata: 3\n\n");
        assert_eq!((length, is_last), (1, true));
    }

    #[test]
    fn a_client_that_returns_gets_the_usual_time_back_before_all_else() {
        let usual = b"retry: 3000\n\n".to_vec();
        for (first, expected) in [
            (&b"data: 1\n\n"[..], Some((0, usual.clone()))),
            (b"\xef\xbb\xbfdata: 1\n\n", Some((3, usual.clone()))),
            (MARK, Some((3, usual))),
            // The rest of a mark may follow, and nothing may stand before it.
            (b"\xef", None),
            (b"\xef\xbb", None),
        ] {
            let mut stream = EventStream::new(true);
            assert_eq!(stream.pass(b"").insert, None);
            assert_eq!(stream.pass(first).insert, expected, "{}", first.escape_ascii());
            assert_eq!(stream.pass(b"data: 2\n\n").insert, None);
        }
    }

    #[test]
    fn the_usual_time_comes_before_the_end_also_where_both_are_in_one_piece() {
        let mut stream = EventStream::new(true);
        // Not told yet: a stream is between two events before it begins.
        assert!(stream.tell(PAUSE));
        let Passed { length, insert, is_last } = stream.pass(b"\xef\xbb\xbfdata: 1\n\n");
        assert_eq!((length, insert.map(|(at, _)| at), is_last), (3, Some(3), true));
    }

    #[test]
    fn any_time_between_two_is_one_of_them_or_between() {
        let (least, most) = (Duration::from_millis(1000), Duration::from_millis(1004));
        assert!((0..1000).map(|_| between(&(least..=most))).all(|time| (least..=most).contains(&time)));
        assert_eq!(between(&(least..=least)), least);
    }

    #[test]
    fn not_all_are_told_the_same_time() {
        let range = Duration::from_secs(1)..=Duration::from_secs(5);
        let mut times: Vec<Duration> = (0..100).map(|_| between(&range)).collect();
        times.sort_unstable();
        times.dedup();
        assert!(times.len() > 90, "{} different times of 100", times.len());
        assert!(times[0] < Duration::from_secs(3) && times[times.len() - 1] > Duration::from_secs(3));
    }
}
