//! Reads an event stream as a browser does (WHATWG HTML, section 9.2.6): any line ending, comments, several `data`
//! lines, ids that stay until they change, and an event that is cut short is no event.

use std::time::Duration;

/// Longest line or event that is read.
const LIMIT: usize = 64 * 1024;

/// An event as it is dispatched.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
    /// The last id seen, of this event or an earlier one.
    pub(super) id: String,
}

/// A line or an event is longer than the reader takes.
#[derive(Debug, thiserror::Error)]
#[error("an event is longer than {LIMIT} octets")]
pub(super) struct TooLong;

/// The state between two pieces of one stream.
#[derive(Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    past_first_line: bool,
    event: Event,
    /// The delay before the next connection, if the stream set one.
    pub(super) retry: Option<Duration>,
}

impl Parser {
    /// A parser for a stream that goes on after `id`.
    pub(super) fn after(id: String) -> Parser {
        Parser { event: Event { id, ..Event::default() }, ..Parser::default() }
    }

    /// Takes the next piece of the stream and gives the events that it completes.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &octet in piece {
            let ends_crlf = octet == b'\n' && std::mem::take(&mut self.after_cr);
            if ends_crlf {
                continue;
            }
            self.after_cr = octet == b'\r';
            match octet {
                b'\r' | b'\n' => events.extend(self.end_line()),
                _ if self.line.len() + self.event.data.len() >= LIMIT => return Err(TooLong),
                _ => self.line.push(octet),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let mut line = String::from_utf8_lossy(&line).into_owned();
        if !std::mem::replace(&mut self.past_first_line, true) && line.starts_with('\u{feff}') {
            line.remove(0);
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        self.field(field, value.strip_prefix(' ').unwrap_or(value));
        None
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => self.event.name = value.to_owned(),
            "data" => {
                self.event.data.push_str(value);
                self.event.data.push('\n');
            }
            "id" if !value.contains('\0') => self.event.id = value.to_owned(),
            "retry" if value.bytes().all(|octet| octet.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) -> Option<Event> {
        let next = Event { id: self.event.id.clone(), ..Event::default() };
        let mut event = std::mem::replace(&mut self.event, next);
        // No data, no event; else each line of it ended with a line feed, and the last one is not part of it.
        event.data.pop().map(|_| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str, id: &str) -> Event {
        Event { name: name.into(), data: data.into(), id: id.into() }
    }

    fn all(pieces: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        pieces.iter().flat_map(|piece| parser.feed(piece).unwrap()).collect()
    }

    #[test]
    fn any_line_ending_in_any_pieces() {
        let text = b"\xef\xbb\xbfid: 1\r\ndata: a\r\r\nevent: x\ndata:b\ndata:  c\n\n";
        let expected = vec![event("", "a", "1"), event("x", "b\n c", "1")];
        assert_eq!(all(&[text]), expected);
        let octets: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(all(&octets), expected);
    }

    #[test]
    fn comments_and_events_without_data_are_silent_but_keep_their_id() {
        assert_eq!(all(&[b": hi\n\nid: 4\n\ndata\n\n"]), [event("", "", "4")]);
    }

    #[test]
    fn id_with_a_null_is_ignored() {
        assert_eq!(all(&[b"id: 4\ndata: a\n\nid: 5\0\ndata: b\n\n"]), [event("", "a", "4"), event("", "b", "4")]);
    }

    #[test]
    fn cut_event_is_no_event() {
        assert_eq!(all(&[b"data: a\n\nid: 2\ndata: b\n"]), [event("", "a", "")]);
    }

    #[test]
    fn retry_takes_digits_only() {
        let mut parser = Parser::default();
        parser.feed(b"retry: 250\nretry: 1s\nretry:\n").unwrap();
        assert_eq!(parser.retry, Some(Duration::from_millis(250)));
    }

    #[test]
    fn endless_line_is_refused() {
        let mut parser = Parser::default();
        assert!(parser.feed(&[b'x'; LIMIT]).is_ok());
        assert!(parser.feed(b"x").is_err());
    }
}
