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
