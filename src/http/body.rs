//! Bodies: finding their end in what comes in, and moving them on without keeping them.
//!
//! A [`Decoder`] follows the framing of one side strictly; a [`Pump`] moves what it yields to the other side in that
//! side's framing. A pump holds at most what the receiver has not taken yet, and reads nothing more until it has.

use std::io;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use crate::http::buffer::Buffer;
use crate::http::event_stream::{EventStream, Passed};
use crate::http::head::{Framing, Known};
use crate::net::{Pipe, Stream, with_scratch};

/// Digits of a chunk size; more than any real chunk needs.
const MAX_SIZE_DIGITS: u8 = 16;
/// Octets of extensions after one chunk size.
const MAX_EXTENSION: usize = 4096;
/// Octets of a trailer section.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_FIELDS: usize = 64;
/// Pieces up to this size are collected with what goes before them into one write.
const SMALL: usize = 16 * 1024;

/// A body whose framing is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadBody(pub(crate) &'static str);

/// Follows a body to its end.
#[derive(Debug)]
pub(crate) enum Decoder {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Done,
}

#[derive(Debug)]
pub(crate) struct Chunked {
    at: At,
    trailers: Vec<u8>,
}

/// Where in the chunked coding (RFC 9112 §7.1) the next octet stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Size { value: u64, digits: u8 },
    Extension { value: u64, length: usize },
    SizeEnd { value: u64 },
    Data { left: u64 },
    DataReturn,
    DataEnd,
    Trailers,
}

/// What a decoder made of some input.
#[derive(Debug)]
struct Step {
    consumed: usize,
    data: Range<usize>,
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Decoder {
        match framing {
            Framing::Empty => Decoder::Done,
            Framing::Length(length) => Decoder::Length(length),
            Framing::Chunked => {
                Decoder::Chunked(Chunked { at: At::Size { value: 0, digits: 0 }, trailers: Vec::new() })
            }
            Framing::UntilClose => Decoder::UntilClose,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Decoder::Done)
    }

    /// How many octets may be read without running into the next message.
    fn wanted(&self) -> usize {
        match self {
            Decoder::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }

    /// The next piece of data at the front of `input`, which is not empty. Trailers are ready when it is done.
    fn step(&mut self, input: &[u8], trailers: &mut Vec<u8>) -> Result<Step, BadBody> {
        match self {
            Decoder::Done => Ok(Step { consumed: 0, data: 0..0 }),
            Decoder::UntilClose => Ok(Step { consumed: input.len(), data: 0..input.len() }),
            Decoder::Length(left) => {
                let count = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                if *left == 0 {
                    *self = Decoder::Done;
                }
                Ok(Step { consumed: count, data: 0..count })
            }
            Decoder::Chunked(chunked) => {
                let (step, is_done) = chunked.step(input)?;
                if is_done {
                    *trailers = std::mem::take(&mut chunked.trailers);
                    *self = Decoder::Done;
                }
                Ok(step)
            }
        }
    }

    /// The sender has closed its side; whether the body may end here.
    fn end(&mut self) -> bool {
        if matches!(self, Decoder::UntilClose) {
            *self = Decoder::Done;
        }
        self.is_done()
    }
}

impl Chunked {
    /// The next piece of data, and whether the body ends with it.
    fn step(&mut self, input: &[u8]) -> Result<(Step, bool), BadBody> {
        for (at, &byte) in input.iter().enumerate() {
            if let At::Data { left } = self.at {
                let count = (input.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - count as u64;
                self.at = if left == 0 { At::DataReturn } else { At::Data { left } };
                return Ok((Step { consumed: at + count, data: at..at + count }, false));
            }
            if self.octet(byte)? {
                return Ok((Step { consumed: at + 1, data: 0..0 }, true));
            }
        }
        Ok((Step { consumed: input.len(), data: 0..0 }, false))
    }

    /// Takes an octet that is not data; true when it was the last of the body.
    fn octet(&mut self, byte: u8) -> Result<bool, BadBody> {
        self.at = match (self.at, byte) {
            (At::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_SIZE_DIGITS {
                    return Err(BadBody("chunk size too long"));
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                At::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (At::Size { digits: 0, .. }, _) => return Err(BadBody("chunk without size")),
            (At::Size { value, .. }, b'\r') => At::SizeEnd { value },
            (At::Size { value, .. }, b';') => At::Extension { value, length: 0 },
            (At::Size { .. }, _) => return Err(BadBody("invalid chunk size")),
            (At::Extension { value, .. }, b'\r') => At::SizeEnd { value },
            (At::Extension { .. }, _) if byte.is_ascii_control() && byte != b'\t' => {
                return Err(BadBody("control character in a chunk extension"));
            }
            (At::Extension { length: MAX_EXTENSION, .. }, _) => return Err(BadBody("chunk extension too long")),
            (At::Extension { value, length }, _) => At::Extension { value, length: length + 1 },
            (At::SizeEnd { value: 0 }, b'\n') => At::Trailers,
            (At::SizeEnd { value }, b'\n') => At::Data { left: value },
            (At::DataReturn, b'\r') => At::DataEnd,
            (At::DataEnd, b'\n') => At::Size { value: 0, digits: 0 },
            (At::SizeEnd { .. } | At::DataReturn | At::DataEnd | At::Data { .. }, _) => {
                return Err(BadBody("chunk without its line end"));
            }
            (At::Trailers, _) => return self.trailer(byte),
        };
        Ok(false)
    }

    fn trailer(&mut self, byte: u8) -> Result<bool, BadBody> {
        if self.trailers.len() == MAX_TRAILERS {
            return Err(BadBody("trailers too long"));
        }
        self.trailers.push(byte);
        if byte == b'\n' && !self.trailers.ends_with(b"\r\n") {
            return Err(BadBody("line feed without carriage return in the trailers"));
        }
        Ok(self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n"))
    }
}

/// How a body is written to the receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Encoding {
    /// As it is: the length is announced, or the close ends it.
    Plain,
    Chunked,
}

/// Why a body did not come through.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The sender broke off before the end.
    Sender(Option<io::Error>),
    /// The sender broke its framing.
    Bad(BadBody),
    Receiver(io::Error),
    TooLarge,
}

/// How much is read at once at first. It doubles while both sides keep up, since each system call costs as much as
/// copying many octets, and falls back when the receiver does not: what it has not taken has to be kept.
const FIRST_READ: usize = 64 * 1024;

/// From so many announced octets on a body is moved by the kernel, if it goes on as it is.
const LARGE: u64 = 128 * 1024;

/// Moves one message, head first, from a sender to a receiver.
#[derive(Debug)]
pub(crate) struct Pump {
    reach: usize,
    decoder: Decoder,
    encoding: Encoding,
    /// What the receiver has not taken yet, from `at` on.
    pending: Vec<u8>,
    at: usize,
    /// Octets of data so far.
    pub(crate) moved: u64,
    /// Octets of data allowed.
    limit: u64,
    is_closed: bool,
    /// Of an event stream that may be ended between two events.
    events: Option<Box<EventStream>>,
    /// Ended here, and not by the sender.
    was_ended: bool,
    /// Of a large body.
    pipe: Option<Pipe>,
    /// Trailers that `Connection` names, and so not for the receiver (RFC 9110 §7.6.1).
    private: Vec<Box<[u8]>>,
}

impl Pump {
    /// A pump that sends `head` and then the body.
    pub(crate) fn new(head: Vec<u8>, framing: Framing, encoding: Encoding, limit: Option<u64>) -> Pump {
        let decoder = Decoder::new(framing);
        Pump {
            reach: FIRST_READ,
            decoder,
            encoding,
            pending: head,
            at: 0,
            moved: 0,
            limit: limit.unwrap_or(u64::MAX),
            is_closed: false,
            events: None,
            was_ended: false,
            pipe: None,
            private: Vec::new(),
        }
    }

    /// Keeps trailers of these names from the receiver.
    pub(crate) fn without_trailers(self, private: Vec<Box<[u8]>>) -> Pump {
        Pump { private, ..self }
    }

    /// Follows the body as an event stream, if it can be ended before the sender ends it: its length is not announced.
    pub(crate) fn follow_events(&mut self, events: EventStream) {
        let is_open_ended = matches!(self.decoder, Decoder::Chunked(_) | Decoder::UntilClose);
        self.events = is_open_ended.then(|| Box::new(events));
    }

    pub(crate) fn events(&mut self) -> Option<&mut EventStream> {
        self.events.as_deref_mut()
    }

    /// Ends the body here, between two events.
    pub(crate) fn end_events(&mut self) -> Result<(), PumpError> {
        let Some(mut events) = self.events.take() else { return Ok(()) };
        self.compact();
        self.push_data(&events.last_words());
        self.decoder = Decoder::Done;
        self.was_ended = true;
        self.close(&[])
    }

    /// Whether the sender did not come to its end.
    pub(crate) fn was_ended(&self) -> bool {
        self.was_ended
    }

    /// Whether the sender has nothing more to say.
    pub(crate) fn is_read(&self) -> bool {
        self.decoder.is_done()
    }

    /// Whether the receiver has something to take.
    pub(crate) fn is_waiting_for_receiver(&self) -> bool {
        self.at < self.pending.len() || self.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty())
    }

    /// Whether a message can be sent again from its start: it has no body.
    pub(crate) fn can_rewind(&self) -> bool {
        self.decoder.is_done() && self.moved == 0
    }

    /// Starts over, with this head or with the one it had. Only before any of the body has moved.
    pub(crate) fn restart(&mut self, head: Option<Vec<u8>>) {
        self.pending = head.unwrap_or_else(|| std::mem::take(&mut self.pending));
        self.at = 0;
    }

    /// Bytes for the receiver that do not come from the sender.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.compact();
        self.pending.extend_from_slice(bytes);
    }

    /// Moves on until the message is through or somebody has to wait. `buffered` holds what was read of the sender
    /// before; what follows the message stays or is put there. Sets `progress` whenever bytes have moved.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        buffered: &mut Buffer,
        to: &mut Stream,
        progress: &mut bool,
    ) -> Poll<Result<(), PumpError>> {
        while !self.decoder.is_done() && !buffered.is_empty() && self.pending.len() - self.at < SMALL {
            let consumed = self.collect(buffered.filled())?;
            buffered.consume(consumed);
        }
        loop {
            ready!(self.poll_flush(cx, to, progress))?;
            ready!(self.poll_pipe(cx, from, buffered, to, progress))?;
            if self.decoder.is_done() {
                return Poll::Ready(Ok(()));
            }
            if buffered.is_empty() {
                ready!(self.poll_move(cx, from, buffered, to, progress))?;
            } else {
                let consumed = self.collect(buffered.filled())?;
                buffered.consume(consumed);
            }
        }
    }

    /// Writes what is pending; keeps it, for a rewind, until something else becomes pending.
    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Stream,
        progress: &mut bool,
    ) -> Poll<Result<(), PumpError>> {
        while self.at < self.pending.len() {
            match ready!(to.poll_write(cx, &self.pending[self.at..])) {
                Ok(0) => return Poll::Ready(Err(PumpError::Receiver(io::ErrorKind::WriteZero.into()))),
                Ok(count) => {
                    self.at += count;
                    *progress = true;
                }
                Err(error) => return Poll::Ready(Err(PumpError::Receiver(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Moves a large body of announced length, from where nothing of it is kept here, to its end. Does nothing else: a
    /// length over the limit was refused with the head.
    fn poll_pipe(
        &mut self,
        cx: &mut Context<'_>,
        from: &Stream,
        buffered: &Buffer,
        to: &Stream,
        progress: &mut bool,
    ) -> Poll<Result<(), PumpError>> {
        if self.pipe.is_none() && matches!(self.decoder, Decoder::Length(LARGE..)) && buffered.is_empty() {
            self.pipe = Pipe::take();
        }
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        loop {
            ready!(pipe.poll_drain(cx, to, progress)).map_err(PumpError::Receiver)?;
            let Decoder::Length(left) = &mut self.decoder else { break };
            let most = usize::try_from(*left).unwrap_or(usize::MAX);
            let count = match ready!(pipe.poll_fill(cx, from, most)) {
                Ok(0) => return Poll::Ready(Err(PumpError::Sender(None))),
                Ok(count) => count as u64,
                Err(error) => return Poll::Ready(Err(PumpError::Sender(Some(error)))),
            };
            *progress = true;
            *left -= count.min(*left);
            if *left == 0 {
                self.decoder = Decoder::Done;
            }
            self.moved += count;
        }
        self.pipe = None;
        Poll::Ready(Ok(()))
    }

    /// Reads once, and writes what it can of that at once, without keeping it.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        buffered: &mut Buffer,
        to: &mut Stream,
        progress: &mut bool,
    ) -> Poll<Result<(), PumpError>> {
        with_scratch(|scratch| {
            let room = self.reach.min(scratch.len()).min(self.decoder.wanted());
            let count = match ready!(from.poll_read(cx, &mut scratch[..room])) {
                Ok(0) => return Poll::Ready(self.finish()),
                Ok(count) => count,
                Err(error) => return Poll::Ready(Err(PumpError::Sender(Some(error)))),
            };
            *progress = true;
            let scratch_len = scratch.len();
            let mut rest = &scratch[..count];
            if self.encoding == Encoding::Plain && !matches!(self.decoder, Decoder::Chunked(_)) && self.events.is_none()
            {
                let step = self.step(rest)?;
                let sent = match to.poll_write(cx, &rest[step.data.clone()]) {
                    Poll::Ready(Ok(sent)) => sent,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::Receiver(error))),
                    Poll::Pending => 0,
                };
                if sent < step.data.len() {
                    self.reach = FIRST_READ;
                } else if count == self.reach {
                    self.reach = (self.reach * 2).min(scratch_len);
                }
                self.push(&rest[step.data.start + sent..step.data.end]);
                rest = &rest[step.consumed..];
            }
            while !rest.is_empty() && !self.decoder.is_done() {
                let consumed = self.collect(rest)?;
                rest = &rest[consumed..];
            }
            buffered.extend(rest);
            Poll::Ready(Ok(()))
        })
    }

    /// Takes one piece of `input` into what is pending, in the receiver's framing.
    fn collect(&mut self, input: &[u8]) -> Result<usize, PumpError> {
        let mut trailers = Vec::new();
        let step = self.decoder.step(input, &mut trailers).map_err(PumpError::Bad)?;
        let data = &input[step.data.clone()];
        self.count(data.len())?;
        self.compact();
        match self.events.as_mut().map(|events| events.pass(data)) {
            None => self.push_data(data),
            Some(passed) => self.push_events(data, passed)?,
        }
        if self.decoder.is_done() {
            self.close(&trailers)?;
        }
        Ok(step.consumed)
    }

    fn push_events(&mut self, data: &[u8], passed: Passed) -> Result<(), PumpError> {
        let mut data = &data[..passed.length];
        if let Some((at, insert)) = passed.insert {
            let (before, after) = data.split_at(at.min(data.len()));
            self.push_data(before);
            self.push_data(&insert);
            data = after;
        }
        self.push_data(data);
        if passed.is_last { self.end_events() } else { Ok(()) }
    }

    /// In the receiver's framing.
    fn push_data(&mut self, data: &[u8]) {
        match self.encoding {
            Encoding::Plain => self.pending.extend_from_slice(data),
            Encoding::Chunked if data.is_empty() => {}
            Encoding::Chunked => push_chunk(&mut self.pending, data),
        }
    }

    /// One step of a body that is passed on as it is.
    fn step(&mut self, input: &[u8]) -> Result<Step, PumpError> {
        let step = self.decoder.step(input, &mut Vec::new()).map_err(PumpError::Bad)?;
        self.count(step.data.len())?;
        Ok(step)
    }

    fn count(&mut self, octets: usize) -> Result<(), PumpError> {
        self.moved += octets as u64;
        if self.moved > self.limit { Err(PumpError::TooLarge) } else { Ok(()) }
    }

    /// The sender has closed its side.
    fn finish(&mut self) -> Result<(), PumpError> {
        if !self.decoder.end() {
            return Err(PumpError::Sender(None));
        }
        self.close(&[])
    }

    /// Writes the end of a chunked body, with those trailers that may be passed on.
    fn close(&mut self, trailers: &[u8]) -> Result<(), PumpError> {
        if self.encoding == Encoding::Plain {
            // Nobody gets them, but a body with broken ones is broken for everybody.
            return push_trailers(&mut Vec::new(), trailers, &[]).map_err(PumpError::Bad);
        }
        if !self.is_closed {
            self.is_closed = true;
            self.push(b"0\r\n");
            push_trailers(&mut self.pending, trailers, &self.private).map_err(PumpError::Bad)?;
            self.pending.extend_from_slice(b"\r\n");
        }
        Ok(())
    }

    /// Forgets what the receiver has taken.
    fn compact(&mut self) {
        if self.at == self.pending.len() && self.at > 0 {
            self.pending.clear();
            self.at = 0;
            // A burst must not be paid for as long as the stream lives.
            if self.pending.capacity() > 4 * SMALL {
                self.pending = Vec::new();
            }
        }
    }
}

fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut started = false;
    for shift in (0..usize::BITS / 4).rev() {
        let digit = (data.len() >> (shift * 4)) & 0xf;
        started |= digit != 0;
        if started {
            out.push(DIGITS[digit]);
        }
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Passes on trailer fields, except those that change what the message means (RFC 9110 §6.5.1).
fn push_trailers(out: &mut Vec<u8>, section: &[u8], private: &[Box<[u8]>]) -> Result<(), BadBody> {
    if section.is_empty() || section == b"\r\n" {
        return Ok(());
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete((_, fields))) => {
            let is_private = |name: &str| private.iter().any(|named| named.eq_ignore_ascii_case(name.as_bytes()));
            for field in fields.iter().filter(|field| Known::of(field.name) == Known::Other && !is_private(field.name))
            {
                push_field(out, field.name, field.value);
            }
            Ok(())
        }
        _ => Err(BadBody("invalid trailers")),
    }
}

pub(crate) fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a decoder has made of its input.
    #[derive(PartialEq, Eq, Debug)]
    struct Decoded {
        data: Vec<u8>,
        trailers: Vec<u8>,
        /// Octets of the input that belong to the body.
        consumed: usize,
        is_done: bool,
    }

    fn decode(pieces: &[&[u8]]) -> Result<Decoded, BadBody> {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut decoded = Decoded { data: Vec::new(), trailers: Vec::new(), consumed: 0, is_done: false };
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() && !decoder.is_done() {
                let step = decoder.step(rest, &mut decoded.trailers)?;
                assert!(step.consumed > 0, "a step must get on");
                decoded.data.extend_from_slice(&rest[step.data]);
                decoded.consumed += step.consumed;
                rest = &rest[step.consumed..];
            }
        }
        decoded.is_done = decoder.is_done();
        Ok(decoded)
    }

    const SAMPLE: &[u8] =
        b"4\r\nWiki\r\n00b;a=\"b\"\r\npedia in\r\n\r\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\nGET / HTTP/1.1\r\n";

    #[test]
    fn a_chunked_body_means_the_same_in_every_three_pieces() {
        let whole = decode(&[SAMPLE]).expect("a valid body");
        assert_eq!(whole.data, b"Wikipedia in\r\n\r");
        assert_eq!(whole.trailers, b"X-Sum: 1\r\nY: 2\r\n\r\n");
        assert_eq!((whole.is_done, &SAMPLE[whole.consumed..]), (true, &b"GET / HTTP/1.1\r\n"[..]));
        for first in 0..=SAMPLE.len() {
            for second in first..=SAMPLE.len() {
                let pieces = [&SAMPLE[..first], &SAMPLE[first..second], &SAMPLE[second..]];
                assert_eq!(decode(&pieces).as_ref(), Ok(&whole), "split at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_chunked_body_is_done_at_its_very_last_octet() {
        let length = decode(&[SAMPLE]).expect("a valid body").consumed;
        for end in 0..length {
            assert_eq!(decode(&[&SAMPLE[..end]]).map(|decoded| decoded.is_done), Ok(false), "after {end} octets");
        }
    }

    fn pieces<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..6),
            follows in prop::collection::vec(any::<u8>(), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut bytes = Vec::new();
            chunks.iter().for_each(|chunk| push_chunk(&mut bytes, chunk));
            bytes.extend_from_slice(b"0\r\n\r\n");
            let length = bytes.len();
            bytes.extend_from_slice(&follows);
            let decoded = decode(&pieces(&bytes, &cuts)).expect("a valid body");
            prop_assert_eq!(decoded.data, chunks.concat());
            prop_assert_eq!((decoded.consumed, decoded.is_done), (length, true));
        }

        /// Valid or not: how bytes are cut into packets must not change what they mean.
        #[test]
        fn cuts_change_nothing(
            bytes in "([0-2aF]{0,2}(;[a=]{0,2})?\r?\n?[ab\r\n]{0,3}){0,6}(0\r\n)?(X: y\r\n)?(\r\n)?",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes = bytes.as_bytes();
            let octets: Vec<&[u8]> = bytes.chunks(1).collect();
            let whole = decode(&[bytes]);
            prop_assert_eq!(&decode(&octets), &whole);
            prop_assert_eq!(&decode(&pieces(bytes, &cuts)), &whole);
        }
    }
}
