//! Where an event stream is: follows `text/event-stream` (WHATWG HTML §9.2.6) to the places between two events.
//!
//! A place between events is one where whatever follows could be a new event: the start, after a blank line, and after
//! comments that stand alone. Lines end with LF, CR or CRLF; a byte order mark at the start belongs to nothing.

use memchr::memchr2;

/// A byte order mark in UTF-8.
pub const MARK: &[u8] = b"\xef\xbb\xbf";

/// Follows one event stream.
#[derive(Debug, Default)]
pub struct Events {
    /// Octets of a byte order mark so far; only at the start of the stream.
    mark: Mark,
    is_in_line: bool,
    /// The event that is under way has a field already.
    has_field: bool,
    /// A line feed now would belong to the line end before it.
    was_return: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mark {
    Expected(u8),
    Over,
}

impl Default for Mark {
    fn default() -> Mark {
        Mark::Expected(0)
    }
}

impl Events {
    /// Whether a new event could begin here.
    pub fn is_between(&self) -> bool {
        !self.is_in_line && !self.has_field && !matches!(self.mark, Mark::Expected(1..))
    }

    /// Follows all of `bytes`.
    pub fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.advance(bytes)..];
        }
    }

    /// Follows `bytes`, which are not empty, to the first place between events behind at least one octet, or all of them.
    /// Returns how many.
    pub fn advance(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            at += self.step(&bytes[at..]);
            if self.is_between() {
                break;
            }
        }
        at
    }

    /// One octet, or the rest of a line without its end.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if let Mark::Expected(count) = self.mark
            && self.is_mark(bytes[0], count)
        {
            return 1;
        }
        if self.is_in_line {
            let rest = memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
            if rest > 0 {
                return rest;
            }
        }
        match bytes[0] {
            b'\n' if self.was_return => self.was_return = false,
            end @ (b'\r' | b'\n') => {
                if !self.is_in_line {
                    self.has_field = false;
                }
                self.is_in_line = false;
                self.was_return = end == b'\r';
            }
            first => {
                self.is_in_line = true;
                self.has_field |= first != b':';
                self.was_return = false;
            }
        }
        1
    }

    /// Whether `octet` belongs to a byte order mark of which there were `count` octets.
    fn is_mark(&mut self, octet: u8, count: u8) -> bool {
        let is_mark = octet == MARK[usize::from(count)];
        self.mark = if is_mark && count < 2 { Mark::Expected(count + 1) } else { Mark::Over };
        if !is_mark && count > 0 {
            // What looked like a mark was the beginning of a field.
            self.is_in_line = true;
            self.has_field = true;
        }
        is_mark
    }
}

/// Tells the client of an event stream when to come back.
pub fn retry(after_ms: u64) -> Vec<u8> {
    format!("retry: {after_ms}\n\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Whether an event could begin behind all of `data`, found line by line.
    fn reference(data: &[u8]) -> bool {
        let mut rest = data.strip_prefix(MARK).unwrap_or(data);
        let mut has_field = MARK.starts_with(rest) && !rest.is_empty();
        while let Some(end) = rest.iter().position(|octet| b"\r\n".contains(octet)) {
            match rest[..end] {
                [] => has_field = false,
                [b':', ..] => {}
                _ => has_field = true,
            }
            let length = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
            rest = &rest[end + length..];
        }
        rest.is_empty() && !has_field
    }

    fn references(data: &[u8]) -> Vec<bool> {
        (0..=data.len()).map(|length| reference(&data[..length])).collect()
    }

    /// Lines of fields and comments with ends of all three kinds, marks at the start and elsewhere, and noise.
    fn said() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => prop::sample::select(vec!["\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n"]),
            4 => prop::sample::select(vec![":", ": alive", "data: 1", "data", "id: 7", "retry: 5", " ", "x:"]),
        ]
        .prop_map(|text| text.as_bytes().to_vec());
        let mark = (0..=MARK.len()).prop_map(|length| MARK[..length].to_vec());
        let noise = vec(any::<u8>(), 0..4);
        let start = prop_oneof![2 => Just(Vec::new()), 1 => mark.clone()];
        (start, vec(prop_oneof![12 => piece, 1 => mark, 1 => noise], 0..20))
            .prop_map(|(start, pieces)| [start, pieces.concat()].concat())
    }

    proptest! {
        #[test]
        fn an_event_could_begin_where_the_lines_say_so(data in said()) {
            let mut events = Events::default();
            let mut places = vec![events.is_between()];
            for octet in &data {
                events.follow(&[*octet]);
                places.push(events.is_between());
            }
            prop_assert_eq!(places, references(&data));
        }

        #[test]
        fn any_split_leads_to_the_same_place(
            data in said(),
            cuts in vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(data.len() + 1)).collect();
            cuts.extend([0, data.len()]);
            cuts.sort_unstable();
            let mut events = Events::default();
            for cut in cuts.windows(2) {
                events.follow(&data[cut[0]..cut[1]]);
                prop_assert_eq!(events.is_between(), reference(&data[..cut[1]]), "behind {} of {:?}", cut[1], cuts);
            }
        }

        #[test]
        fn an_advance_ends_at_the_next_place_between_events(
            data in said(),
            start in any::<prop::sample::Index>(),
        ) {
            let places = references(&data);
            let mut at = start.index(data.len() + 1);
            let mut events = Events::default();
            events.follow(&data[..at]);
            while at < data.len() {
                let next = places[at + 1..].iter().position(|place| *place).map(|distance| distance + 1);
                let length = events.advance(&data[at..]);
                prop_assert_eq!(length, next.unwrap_or(data.len() - at));
                at += length;
                prop_assert_eq!(events.is_between(), places[at]);
            }
        }

        #[test]
        fn what_is_not_text_is_no_reason_to_panic(pieces in vec(vec(any::<u8>(), 0..40), 0..8)) {
            let mut events = Events::default();
            pieces.iter().for_each(|piece| events.follow(piece));
            prop_assert_eq!(events.is_between(), reference(&pieces.concat()));
        }
    }

    #[test]
    fn an_event_could_begin_at_the_start_and_behind_blank_lines_and_lone_comments() {
        let between: [&[u8]; 9] = [
            b"",
            MARK,
            b"\n",
            b"data: 1\n\n",
            b"data: 1\r\r",
            b"data: 1\r\n\r\n",
            b"data: 1\r\n\r",
            b": alive\n",
            b"\xef\xbb\xbf: alive\n",
        ];
        let inside: [&[u8]; 9] = [
            b"data: 1",
            b"data: 1\n",
            b"data: 1\r\n",
            b"data: 1\n: a comment within\n",
            b": alive",
            b"data\n",
            b"\xef",
            b"\xef\xbbx\n",
            // The second mark is the name of a field.
            b"\xef\xbb\xbf\xef\xbb\xbf\n",
        ];
        for (data, expected) in between.map(|data| (data, true)).into_iter().chain(inside.map(|data| (data, false))) {
            let mut events = Events::default();
            events.follow(data);
            assert_eq!((events.is_between(), reference(data)), (expected, expected), "{}", data.escape_ascii());
        }
    }

    #[test]
    fn the_time_to_reconnect_is_an_event_of_its_own() {
        let data = retry(1500);
        assert_eq!(data, b"retry: 1500\n\n");
        for before in [&b""[..], b"data: 1\n\n", b"data: 1\r\n\r", b": alive\r"] {
            assert!(reference(&[before, &data].concat()), "{}", before.escape_ascii());
        }
    }
}
