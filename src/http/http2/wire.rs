//! What HTTP/2 stands on: the stream of octets, and a count of the frames that tell what kind of client it is.
//!
//! Most floods are `h2`'s to refuse. What it lets pass are frames that mean nothing and cost their sender next to nothing:
//! PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM and unknown ones (CVE-2019-9512 and its kin). A good client
//! sends few of them for what it asks and gets. What goes out tells how often it broke the rules. Only the heads of
//! frames are looked at, and nothing is kept.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::buffer::Buffer;
use crate::net::Stream;

/// Idle frames that a client may send at once, and that it may send per second besides.
const BURST: u32 = 10_000;
const PER_SECOND: u32 = 200;
/// What a head of a request is good for, and how many octets to the client are good for one.
const PER_REQUEST: u32 = 20;
const OCTETS_PER_FRAME: u32 = 8;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// What the wire has seen of its client.
#[derive(Debug, Default)]
pub(super) struct Seen {
    is_flooded: AtomicBool,
    is_amid_head: AtomicBool,
    errors: AtomicUsize,
}

impl Seen {
    /// Whether too many idle frames have come; from then on nothing is read.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded.load(Ordering::Relaxed)
    }

    /// Whether a list of header fields has begun to come in, and has not ended.
    pub(super) fn is_amid_head(&self) -> bool {
        self.is_amid_head.load(Ordering::Relaxed)
    }

    /// Streams that were reset because the client has broken the rules.
    pub(super) fn errors(&self) -> usize {
        self.errors.load(Ordering::Relaxed)
    }
}

/// What was read already, then the rest.
pub(super) struct Wire {
    ahead: Buffer,
    stream: Stream,
    frames: Frames,
    sent: Heads,
    seen: Arc<Seen>,
}

impl Wire {
    /// Of a connection that begins with a preface of so many octets.
    pub(super) fn new(ahead: Buffer, stream: Stream, preface: usize, seen: Arc<Seen>) -> Wire {
        Wire { ahead, stream, frames: Frames::behind(preface), sent: Heads::behind(0), seen }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return AsyncRead::poll_read(Pin::new(&mut self.stream), cx, buffer);
        }
        let count = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.filled()[..count]);
        self.ahead.consume(count);
        Poll::Ready(Ok(()))
    }

    /// Of `pieces` so many octets have been written.
    fn wrote(&mut self, pieces: &[io::IoSlice<'_>], count: usize) {
        self.frames.wrote(count);
        let mut left = count;
        for piece in pieces {
            let piece = &piece[..piece.len().min(left)];
            left -= piece.len();
            self.sent.follow(piece, |head| {
                if is_complaint(head) {
                    self.seen.errors.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.seen.is_flooded() {
            // Its owner is to look at the flag.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let known = buffer.filled().len();
        let result = self.poll_fill(cx, buffer);
        self.frames.read(&buffer.filled()[known..]);
        self.seen.is_amid_head.store(self.frames.are_amid_head(), Ordering::Relaxed);
        if self.frames.are_too_many(Instant::now) {
            self.seen.is_flooded.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(self.stream.poll_write(cx, bytes))?;
        self.wrote(&[io::IoSlice::new(bytes)], count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(AsyncWrite::poll_write_vectored(Pin::new(&mut self.stream), cx, pieces))?;
        self.wrote(pieces, count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_shutdown(cx)
    }
}

/// Octets of a head (RFC 9113 §4.1), and of one with the code of an RST_STREAM.
const HEAD: usize = 9;
const RESET: usize = HEAD + 4;

/// Whether it is an RST_STREAM that says that the other side has broken the rules. Refusals and what ends for reasons
/// of an origin or of ours are none.
fn is_complaint(head: &[u8; RESET]) -> bool {
    let [.., a, b, c, d] = *head;
    let code = Reason::from(u32::from_be_bytes([a, b, c, d]));
    let is_broken_rule = matches!(
        code,
        Reason::PROTOCOL_ERROR | Reason::FLOW_CONTROL_ERROR | Reason::STREAM_CLOSED | Reason::FRAME_SIZE_ERROR
    );
    head[3] == RST_STREAM && is_broken_rule
}

/// Finds the heads of frames.
#[derive(Debug)]
struct Heads {
    /// Octets up to the next head.
    skip: usize,
    head: [u8; RESET],
    known: usize,
}

impl Heads {
    fn behind(preface: usize) -> Heads {
        Heads { skip: preface, head: [0; RESET], known: 0 }
    }

    /// Calls `each` for every head that the next octets complete.
    fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8; RESET])) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = if self.known >= HEAD { RESET } else { HEAD };
            let count = bytes.len().min(wanted - self.known);
            if count == 0 {
                return;
            }
            self.head[self.known..self.known + count].copy_from_slice(&bytes[..count]);
            self.known += count;
            bytes = &bytes[count..];
            if self.known == RESET || (self.known == HEAD && self.head[3] != RST_STREAM) {
                let [a, b, c, ..] = self.head;
                self.skip = (u32::from_be_bytes([0, a, b, c]) as usize).saturating_sub(self.known - HEAD);
                self.known = 0;
                each(&self.head);
            }
        }
    }
}

/// Where in a list of header fields the newest frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fields {
    None,
    /// More frames of it must follow.
    Open,
    Last,
}

/// Counts the frames that come in.
#[derive(Debug)]
struct Frames {
    heads: Heads,
    /// Idle frames that nothing was good for.
    idle: u32,
    /// Octets written since the last that were good for one.
    written: u32,
    fields: Fields,
    /// When what is allowed per second was last taken off.
    since: Instant,
}

impl Frames {
    fn behind(preface: usize) -> Frames {
        Frames { heads: Heads::behind(preface), idle: 0, written: 0, fields: Fields::None, since: Instant::now() }
    }

    fn read(&mut self, bytes: &[u8]) {
        let (idle, fields) = (&mut self.idle, &mut self.fields);
        self.heads.follow(bytes, |head| {
            *fields = match head[3] {
                HEADERS | CONTINUATION if head[4] & END_HEADERS == 0 => Fields::Open,
                HEADERS | CONTINUATION => Fields::Last,
                // In between there may be nothing else, but `h2` says so only when all of it is here.
                _ if *fields == Fields::Open => Fields::Open,
                _ => Fields::None,
            };
            match head[3] {
                // Windows and the budgets of `h2` bound it.
                DATA => {}
                HEADERS => *idle = idle.saturating_sub(PER_REQUEST),
                // They make us answer.
                SETTINGS | PING => *idle = idle.saturating_add(4),
                _ => *idle = idle.saturating_add(1),
            }
        });
    }

    fn are_amid_head(&self) -> bool {
        match self.fields {
            Fields::None => false,
            Fields::Open => true,
            Fields::Last => self.heads.skip > 0,
        }
    }

    fn wrote(&mut self, count: usize) {
        let written = self.written.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.idle = self.idle.saturating_sub(written / OCTETS_PER_FRAME);
        self.written = written % OCTETS_PER_FRAME;
    }

    /// Looks at the clock only when it matters.
    fn are_too_many(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.idle <= BURST {
            return false;
        }
        let now = now();
        let seconds = u32::try_from(now.duration_since(self.since).as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.idle = self.idle.saturating_sub(seconds.saturating_mul(PER_SECOND));
            self.since = now;
        }
        self.idle > BURST
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("a small payload").to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 0], &vec![PING; payload]].concat()
    }

    #[test]
    fn frames_are_counted_wherever_their_octets_are_cut() {
        let frames = [frame(SETTINGS, 6), frame(DATA, 300), frame(RST_STREAM, 4), frame(PING, 8), frame(0xb, 0)];
        let bytes = [vec![PING; 24], frames.concat()].concat();
        for size in [1, 2, 9, 10, 100, bytes.len()] {
            let mut frames = Frames::behind(24);
            bytes.chunks(size).for_each(|piece| frames.read(piece));
            assert_eq!((frames.idle, frames.heads.skip, frames.heads.known), (10, 0, 0), "in pieces of {size}");
        }
    }

    #[test]
    fn a_head_is_amid_from_its_first_frame_to_the_last_octet_of_its_last() {
        let with_flags = |kind: u8, flags: u8| {
            let mut frame = frame(kind, 5);
            frame[4] = flags;
            frame
        };
        let pieces = [with_flags(HEADERS, 1), with_flags(CONTINUATION, 0), with_flags(CONTINUATION, END_HEADERS)];
        let head = pieces.concat();
        let mut frames = Frames::behind(0);
        frames.read(&[frame(SETTINGS, 6), frame(DATA, 30)[..20].to_vec()].concat());
        assert!(!frames.are_amid_head(), "in a body");
        frames.read(&frame(DATA, 30)[20..]);
        for (at, octet) in head.iter().enumerate() {
            assert_eq!(frames.are_amid_head(), at >= HEAD, "after {at} octets");
            frames.read(&[*octet]);
        }
        assert!(!frames.are_amid_head(), "behind it");
        frames.read(&[&pieces[0][..], &frame(0xb, 30)[..HEAD]].concat());
        assert!(frames.are_amid_head(), "nothing else ends it");
    }

    #[test]
    fn only_what_the_client_is_to_blame_for_is_a_complaint() {
        let reset = |code: Reason| [&frame(RST_STREAM, 4)[..HEAD], &u32::from(code).to_be_bytes()].concat();
        let blame = [Reason::PROTOCOL_ERROR, Reason::FLOW_CONTROL_ERROR, Reason::STREAM_CLOSED];
        let others = [Reason::NO_ERROR, Reason::REFUSED_STREAM, Reason::CANCEL, Reason::INTERNAL_ERROR];
        let codes = blame.into_iter().chain(others).map(reset);
        let bytes = codes.chain([frame(DATA, 300), frame(PING, 8)]).collect::<Vec<_>>().concat();
        for size in [1, 2, 13, 100, bytes.len()] {
            let (mut heads, mut complaints) = (Heads::behind(0), 0);
            bytes
                .chunks(size)
                .for_each(|piece| heads.follow(piece, |head| complaints += usize::from(is_complaint(head))));
            assert_eq!(complaints, blame.len(), "in pieces of {size}");
        }
    }

    #[test]
    fn idle_frames_are_too_many_unless_something_comes_of_them() {
        let mut frames = Frames::behind(0);
        let start = frames.since;
        let pings = |frames: &mut Frames, count: u32| (0..count).for_each(|_| frames.read(&frame(PING, 8)));
        pings(&mut frames, BURST / 4);
        assert!(!frames.are_too_many(|| start));
        pings(&mut frames, 1);
        assert!(frames.are_too_many(|| start));
        // Time passes, an answer is sent, a request comes.
        assert!(!frames.are_too_many(|| start + Duration::from_secs(1)));
        pings(&mut frames, PER_SECOND / 4);
        assert!(frames.are_too_many(|| start + Duration::from_secs(1)));
        frames.wrote(32);
        assert!(!frames.are_too_many(|| start + Duration::from_secs(1)));
        pings(&mut frames, 2);
        assert!(frames.are_too_many(|| start + Duration::from_secs(1)));
        frames.read(&frame(HEADERS, 1));
        assert!(!frames.are_too_many(|| start + Duration::from_secs(1)));
    }
}
