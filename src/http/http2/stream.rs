//! One request and its answer on an HTTP/2 connection, as a byte stream of HTTP/1.1.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};

use crate::http::body::push_chunk_size;
use crate::http::decoder::Decoder;
use crate::http::head::Framing;
use crate::http::http2::UnderWay;
use crate::http::http2::text::{self, AnswerHead, HeadText, RequestText};
use crate::net::Multiplexed;

/// Octets of the head of an answer; the origin's was bounded before.
const MAX_HEAD: usize = 512 * 1024;
/// Octets of memory for text that a stream may keep.
const USUAL_HEAD: usize = 1024;
/// Asked for at once of the window that the client grants.
const STEP: usize = 16 * 1024;

/// Reads as the text of a request, takes the text of its answer. Dropped before the end of that, it resets the stream: a
/// broken answer never looks whole.
#[derive(Debug)]
pub(super) struct Exchange {
    request: Text,
    body: RecvStream,
    answer: Answer,
    respond: SendResponse<Bytes>,
    is_head: bool,
    connection: Arc<UnderWay>,
}

/// A message as text, as far as it has come in and not been read.
#[derive(Debug)]
pub(super) struct Text {
    /// Goes before `data`, from `at` on: a head, the size of a chunk, or the end.
    before: Vec<u8>,
    at: usize,
    data: Bytes,
    /// The line end behind a chunk, and the last one if it follows.
    after: &'static [u8],
    pub(super) state: Reading,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reading {
    /// A body as it is: its length is announced, or it is a WebSocket's.
    Plain,
    Chunked,
    /// The message is over.
    Over,
}

/// How far the answer has been written.
#[derive(Debug)]
enum Answer {
    Head(HeadText),
    Sending(Sending),
}

/// What of a message goes out behind its head.
#[derive(Debug)]
pub(super) enum Sending {
    Body(SendStream<Bytes>, Decoder),
    /// A WebSocket.
    Open(SendStream<Bytes>),
    /// Our side has ended; the other may go on.
    Done,
}

impl Sending {
    /// What can still be reset.
    pub(super) fn stream(&mut self) -> Option<&mut SendStream<Bytes>> {
        match self {
            Sending::Body(send, _) | Sending::Open(send) => Some(send),
            Sending::Done => None,
        }
    }

    /// Sends text as far as the other side grants, at least one octet.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let (count, send) = match self {
                Sending::Body(send, decoder) => {
                    let room = room(send, bytes.len());
                    (send_some(send, decoder, room, bytes)?, send)
                }
                Sending::Open(send) => (send_plain(send, bytes)?, send),
                Sending::Done => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
            if count == 0 {
                ready!(poll_grant(send, cx))?;
                continue;
            }
            self.note_end();
            return Poll::Ready(Ok(count));
        }
    }

    /// Sends what has come with the head of a request, up to one step, without waiting for a grant: there is none
    /// before the stream is open, and that is done by the connection's own task, later. `h2` keeps it until then. Says
    /// how much it was.
    pub(super) fn begin(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Sending::Body(send, decoder) = self else { return Ok(0) };
        let count = send_some(send, decoder, STEP, bytes)?;
        self.note_end();
        Ok(count)
    }

    fn note_end(&mut self) {
        if matches!(self, Sending::Body(_, decoder) if decoder.is_done()) {
            *self = Sending::Done;
        }
    }

    /// Ends what only its end delimits; anything else is not at its end then.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if let Sending::Open(send) | Sending::Body(send, Decoder::UntilClose) = self {
            send.send_data(Bytes::new(), true).map_err(broken)?;
            *self = Sending::Done;
        }
        Ok(())
    }
}

impl Exchange {
    pub(super) fn new(
        head: RequestText,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        is_head: bool,
        connection: Arc<UnderWay>,
    ) -> Exchange {
        let state = match (body.is_end_stream(), head.is_chunked) {
            (true, _) => Reading::Over,
            (false, true) => Reading::Chunked,
            (false, false) => Reading::Plain,
        };
        let request = Text::new(head.text, state);
        Exchange { request, body, answer: Answer::Head(HeadText::default()), respond, is_head, connection }
    }

    /// The request is over: the next thing to learn is that the client has given up, or that we are through.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let reset = match &mut self.answer {
            Answer::Head(_) => self.respond.poll_reset(cx),
            Answer::Sending(Sending::Body(send, _)) => send.poll_reset(cx),
            // Of a WebSocket it is an end, and no more than that.
            Answer::Sending(Sending::Done | Sending::Open(_)) => return Poll::Ready(Ok(0)),
        };
        match ready!(reset) {
            Ok(_) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }

    /// Takes text up to the end of a head, and sends it.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Answer::Head(text) = &mut self.answer else { return Ok(0) };
        let (count, head) = text.take(bytes, MAX_HEAD)?;
        if let Some(text) = head {
            let head = text::answer_head(&text).ok_or(io::ErrorKind::InvalidData)?;
            self.send_head(head, is_upgrade(&text))?;
        }
        Ok(count)
    }

    fn send_head(&mut self, head: AnswerHead, is_upgrade: bool) -> io::Result<()> {
        let AnswerHead { response, length, is_chunked } = head;
        let status = response.status();
        if status.is_informational() {
            // One that cannot be sent any more is not missed.
            let _ = self.respond.send_informational(response);
            return Ok(());
        }
        let is_empty = self.is_head || length == Some(0) || matches!(status.as_u16(), 204 | 304);
        let is_empty = is_empty && !is_upgrade;
        let send = self.respond.send_response(response, is_empty).map_err(broken)?;
        self.answer = Answer::Sending(match length {
            _ if is_upgrade => Sending::Open(send),
            _ if is_empty => Sending::Done,
            Some(length) => Sending::Body(send, Decoder::new(Framing::Length(length))),
            None if is_chunked => Sending::Body(send, Decoder::new(Framing::Chunked)),
            None => Sending::Body(send, Decoder::new(Framing::UntilClose)),
        });
        Ok(())
    }
}

fn is_upgrade(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/1.1 101 ")
}

/// Sends a piece of a body, at most `room` octets of data; says how much of `bytes` that was. What frames the body
/// takes nothing of the grant, so its end never waits for one.
fn send_some(send: &mut SendStream<Bytes>, decoder: &mut Decoder, room: usize, bytes: &[u8]) -> io::Result<usize> {
    let mut trailers = Vec::new();
    let step = decoder.step_within(room, bytes, &mut trailers).map_err(|_| io::ErrorKind::InvalidData)?;
    let data = &bytes[step.data.clone()];
    // The end goes with the last of the data, if it is known: a frame of its own costs as much as that.
    let mut consumed = step.consumed;
    if !data.is_empty() && consumed < bytes.len() {
        let rest = decoder.step_within(0, &bytes[consumed..], &mut trailers).map_err(|_| io::ErrorKind::InvalidData)?;
        consumed += rest.consumed;
    }
    let is_last = decoder.is_done();
    let fields = if trailers.len() > 2 { text::trailer_fields(&trailers) } else { None };
    let ends_here = is_last && fields.is_none();
    if !data.is_empty() || ends_here {
        send.send_data(Bytes::copy_from_slice(data), ends_here).map_err(broken)?;
    }
    if let (true, Some(fields)) = (is_last, fields) {
        send.send_trailers(fields).map_err(broken)?;
    }
    if consumed == bytes.len() && !is_last {
        give_back(send);
    }
    Ok(consumed)
}

/// Sends a piece of what has no framing.
fn send_plain(send: &mut SendStream<Bytes>, bytes: &[u8]) -> io::Result<usize> {
    let count = room(send, bytes.len()).min(bytes.len());
    if count > 0 {
        send.send_data(Bytes::copy_from_slice(&bytes[..count]), false).map_err(broken)?;
    }
    Ok(count)
}

/// Asks for `wanted` octets of the window that the client grants; says how many there are.
fn room(send: &mut SendStream<Bytes>, wanted: usize) -> usize {
    send.reserve_capacity(wanted.min(STEP));
    send.capacity()
}

/// Leaves to other streams what was asked for and not needed.
fn give_back(send: &mut SendStream<Bytes>) {
    if send.capacity() > 0 {
        send.reserve_capacity(0);
    }
}

/// Ready when the client may have granted more.
fn poll_grant(send: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    match ready!(send.poll_capacity(cx)) {
        Some(Ok(_)) => Poll::Ready(Ok(())),
        Some(Err(error)) => Poll::Ready(Err(broken(error))),
        None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
    }
}

pub(super) fn broken(error: h2::Error) -> io::Error {
    match error.is_io() {
        true => error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()),
        false => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

impl Text {
    pub(super) fn new(head: Vec<u8>, state: Reading) -> Text {
        Text { before: head, at: 0, data: Bytes::new(), after: b"", state }
    }

    fn is_empty(&self) -> bool {
        self.at == self.before.len() && self.data.is_empty() && self.after.is_empty()
    }

    /// Whether all of it has been read.
    pub(super) fn is_over(&self) -> bool {
        self.is_empty() && self.state == Reading::Over
    }

    /// Reads as much of it as is there; 0 when it is over. What was taken of the data may be sent again.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut RecvStream,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut count = 0;
        loop {
            if self.is_empty() && self.state != Reading::Over {
                match self.poll_fill(cx, body) {
                    Poll::Ready(Ok(())) => {}
                    // It says so again when it is asked again.
                    _ if count > 0 => return Poll::Ready(Ok(count)),
                    other => ready!(other)?,
                }
            }
            let (taken, data) = self.take(&mut buffer[count..]);
            if data > 0 {
                // Whoever does not read stalls its own stream: nothing is granted for it.
                let _ = body.flow_control().release_capacity(data);
            }
            count += taken;
            if count == buffer.len() || self.is_over() {
                return Poll::Ready(Ok(count));
            }
        }
    }

    /// Makes something to read, or finds the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, body: &mut RecvStream) -> Poll<io::Result<()>> {
        match (self.state, ready!(body.poll_data(cx))) {
            (Reading::Plain, Some(data)) => self.data = data.map_err(broken)?,
            (Reading::Chunked, Some(data)) => {
                self.data = data.map_err(broken)?;
                let is_last = body.is_end_stream();
                self.after = match (self.data.is_empty(), is_last) {
                    (true, false) => b"",
                    (true, true) => b"0\r\n\r\n",
                    (false, false) => b"\r\n",
                    (false, true) => b"\r\n0\r\n\r\n",
                };
                let length = self.data.len();
                if length > 0 {
                    push_chunk_size(self.anew(), length);
                }
                if is_last {
                    self.state = Reading::Over;
                }
            }
            (Reading::Chunked, None) => {
                let trailers = ready!(body.poll_trailers(cx)).map_err(broken)?;
                text::push_end(self.anew(), trailers.as_ref());
                self.state = Reading::Over;
            }
            (_, _) => self.state = Reading::Over,
        }
        Poll::Ready(Ok(()))
    }

    /// What goes before the next data, in memory that is there already; that of a large head is not kept for it.
    fn anew(&mut self) -> &mut Vec<u8> {
        self.before.clear();
        self.before.shrink_to(USUAL_HEAD);
        self.at = 0;
        &mut self.before
    }

    /// Moves what there is into `buffer`; says how much, and how much of that was data.
    fn take(&mut self, buffer: &mut [u8]) -> (usize, usize) {
        let before = fill(buffer, &self.before[self.at..]);
        self.at += before;
        let data = fill(&mut buffer[before..], &self.data);
        self.data.advance(data);
        // What is behind has to wait for the data: there is no room for it before.
        let after = fill(&mut buffer[before + data..], self.after);
        self.after = &self.after[after..];
        (before + data + after, data)
    }
}

/// Copies as much as there is room for; says how much.
fn fill(room: &mut [u8], from: &[u8]) -> usize {
    let count = from.len().min(room.len());
    room[..count].copy_from_slice(&from[..count]);
    count
}

impl Multiplexed for Exchange {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match ready!(self.request.poll_read(cx, &mut self.body, buffer))? {
            0 => self.poll_end(cx),
            count => Poll::Ready(Ok(count)),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.answer {
            Answer::Head(_) => Poll::Ready(self.take_head(bytes)),
            Answer::Sending(sending) => sending.poll_write(cx, bytes),
        }
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.answer {
            Answer::Head(_) => Poll::Ready(Ok(())),
            Answer::Sending(sending) => Poll::Ready(sending.end()),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut send = match &mut self.answer {
            Answer::Head(_) => None,
            Answer::Sending(sending) => match sending.stream() {
                Some(send) => Some(send),
                None => return,
            },
        };
        let mut cx = Context::from_waker(Waker::noop());
        let reset = match &mut send {
            Some(send) => send.poll_reset(&mut cx),
            None => self.respond.poll_reset(&mut cx),
        };
        match send {
            // By the client, or because it has broken the rules.
            _ if matches!(reset, Poll::Ready(Ok(_))) => self.connection.give_up(),
            Some(send) => send.send_reset(Reason::INTERNAL_ERROR),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}
