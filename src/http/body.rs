//! Moving bodies on without keeping them.
//!
//! A [`Decoder`] follows the framing of one side; a [`Pump`] moves what it yields to the other side in that
//! side's framing. A pump holds at most what the receiver has not taken yet, and reads nothing more until it has.

use std::io;
use std::task::{Context, Poll, ready};

use crate::http::buffer::Buffer;
use crate::http::decoder::{BadBody, Decoder, Step};
use crate::http::event_stream::{EventStream, Passed};
use crate::http::head::{Framing, Known};
use crate::net::{Pipe, Stream, with_scratch};

/// Fields of a trailer section.
pub(crate) const MAX_TRAILER_FIELDS: usize = 64;
/// Pieces up to this size are collected with what goes before them into one write.
const SMALL: usize = 16 * 1024;

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
/// copying many octets, and falls back when the receiver does not: what it has not taken has to be kept. Towards TLS it
/// stays: so much is sealed and sent by one system call, and is still in the cache then.
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
    /// Octets of the head that `pending` begins with, as long as all that was sent is still in there.
    kept: Option<usize>,
    /// Octets of data so far.
    pub(crate) moved: u64,
    /// Octets of data allowed.
    limit: u64,
    is_closed: bool,
    /// Of an event stream that may be ended between two events.
    events: Option<Box<EventStream>>,
    /// Ended here, and not by the sender.
    was_ended: bool,
    /// The receiver's connection ends with the message.
    is_last: bool,
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
            kept: None,
            moved: 0,
            limit: limit.unwrap_or(u64::MAX),
            is_closed: false,
            events: None,
            was_ended: false,
            is_last: false,
            pipe: None,
            private: Vec::new(),
        }
    }

    /// Keeps trailers of these names from the receiver.
    pub(crate) fn without_trailers(self, private: Vec<Box<[u8]>>) -> Pump {
        Pump { private, ..self }
    }

    /// Leaves the end of the message with the system until [`Stream::send_end`], if it is the connection's last.
    pub(crate) fn before_end(self, is_last: bool) -> Pump {
        Pump { is_last, ..self }
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
        self.decoder.is_done() && self.moved == 0 && self.can_resend()
    }

    /// Whether all that was sent of a message is still here to be sent again, and the rest to be read.
    pub(crate) fn can_resend(&self) -> bool {
        self.kept.is_some()
    }

    /// Starts over, with this head or with the one it had. Only while all that was sent is still here.
    pub(crate) fn restart(&mut self, head: Option<Vec<u8>>) {
        if let Some(mut head) = head {
            let length = head.len();
            head.extend_from_slice(&self.pending[self.kept.unwrap_or(0)..]);
            (self.pending, self.kept) = (head, Some(length));
        }
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
            let rest = &self.pending[self.at..];
            let is_end = self.is_last && self.decoder.is_done();
            let written = if is_end { to.poll_write_last(cx, rest) } else { to.poll_write(cx, rest) };
            match ready!(written) {
                Ok(0) => return Poll::Ready(Err(PumpError::Receiver(io::ErrorKind::WriteZero.into()))),
                Ok(count) => {
                    self.at += count;
                    *progress = true;
                }
                Err(error) => return Poll::Ready(Err(PumpError::Receiver(error))),
            }
        }
        to.poll_flush(cx).map_err(PumpError::Receiver)
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
        let is_large = matches!(self.decoder, Decoder::Length(LARGE..));
        if self.pipe.is_none() && is_large && buffered.is_empty() && from.is_plain() && to.is_plain() {
            self.pipe = Pipe::take();
            self.kept = None;
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
                } else if count == self.reach && to.is_plain() {
                    self.reach = (self.reach * 2).min(scratch_len);
                }
                if sent > 0 {
                    self.kept = None;
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

    /// Forgets what the receiver has taken; not a head of which nothing more has gone than itself.
    fn compact(&mut self) {
        if self.at == self.pending.len() && self.at > self.kept.unwrap_or(0) {
            self.pending.clear();
            (self.at, self.kept) = (0, None);
            // A burst must not be paid for as long as the stream lives.
            if self.pending.capacity() > 4 * SMALL {
                self.pending = Vec::new();
            }
        }
    }
}

#[cfg(fuzzing)]
impl Pump {
    /// Takes the next octets of the sender, and says how many.
    pub(crate) fn take(&mut self, input: &[u8]) -> Result<usize, PumpError> {
        self.collect(input)
    }

    /// All that the receiver would have got.
    pub(crate) fn taken(&self) -> &[u8] {
        &self.pending
    }
}

pub(crate) fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    push_chunk_size(out, data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The line before a chunk (RFC 9112 §7.1).
pub(crate) fn push_chunk_size(out: &mut Vec<u8>, length: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for shift in (0..digits).rev() {
        out.push(DIGITS[(length >> (shift * 4)) & 0xf]);
    }
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
    use super::*;

    #[test]
    fn the_size_of_a_chunk_is_its_shortest_hexadecimal_number() {
        for length in [0, 1, 9, 10, 15, 16, 255, 256, 4096, 0xabcdef, usize::MAX] {
            let mut line = Vec::new();
            push_chunk_size(&mut line, length);
            assert_eq!(line, format!("{length:x}\r\n").as_bytes());
        }
    }
}
