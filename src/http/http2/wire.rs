//! What HTTP/2 stands on: the stream of octets, and a count of the frames that come in on it.
//!
//! Most floods are `h2`'s to refuse. What it lets pass are frames that mean nothing and cost their sender next to nothing:
//! PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM and unknown ones (CVE-2019-9512 and its kin). A good client sends
//! few of them for what it asks and gets. Only the heads of frames are looked at, and nothing is kept.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

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
const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;

/// What was read already, then the rest.
pub(super) struct Wire {
    ahead: Buffer,
    stream: Stream,
    frames: Frames,
    is_flooded: Arc<AtomicBool>,
}

impl Wire {
    /// Of a connection that begins with a preface of so many octets. `is_flooded` is raised when too many idle frames have
    /// come; from then on nothing is read.
    pub(super) fn new(ahead: Buffer, stream: Stream, preface: usize, is_flooded: Arc<AtomicBool>) -> Wire {
        Wire { ahead, stream, frames: Frames::behind(preface), is_flooded }
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

    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &result {
            self.frames.wrote(*count);
        }
        result
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_flooded.load(Ordering::Relaxed) {
            // Its owner is to look at the flag.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let known = buffer.filled().len();
        let result = self.poll_fill(cx, buffer);
        self.frames.read(&buffer.filled()[known..]);
        if self.frames.are_too_many(Instant::now) {
            self.is_flooded.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.stream.poll_write(cx, bytes);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = AsyncWrite::poll_write_vectored(Pin::new(&mut self.stream), cx, pieces);
        self.wrote(result)
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

/// Follows the heads of frames (RFC 9113 §4.1).
#[derive(Debug)]
struct Frames {
    /// Octets up to the next head.
    skip: usize,
    head: [u8; 9],
    known: usize,
    /// Idle frames that nothing was good for.
    idle: u32,
    /// Octets written since the last that were good for one.
    written: u32,
    /// When what is allowed per second was last taken off.
    since: Instant,
}

impl Frames {
    fn behind(preface: usize) -> Frames {
        Frames { skip: preface, head: [0; 9], known: 0, idle: 0, written: 0, since: Instant::now() }
    }

    fn read(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let count = bytes.len().min(self.head.len() - self.known);
            if count == 0 {
                return;
            }
            self.head[self.known..self.known + count].copy_from_slice(&bytes[..count]);
            self.known += count;
            bytes = &bytes[count..];
            if self.known == self.head.len() {
                self.frame();
            }
        }
    }

    fn frame(&mut self) {
        let [a, b, c, kind, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        self.known = 0;
        match kind {
            // Windows and the budgets of `h2` bound it.
            DATA => {}
            HEADERS => self.idle = self.idle.saturating_sub(PER_REQUEST),
            // They make us answer.
            SETTINGS | PING => self.idle = self.idle.saturating_add(4),
            _ => self.idle = self.idle.saturating_add(1),
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
        let bytes = [vec![PING; 24], frame(SETTINGS, 6), frame(DATA, 300), frame(PING, 8), frame(0xb, 0)].concat();
        for size in [1, 2, 9, 10, 100, bytes.len()] {
            let mut frames = Frames::behind(24);
            bytes.chunks(size).for_each(|piece| frames.read(piece));
            assert_eq!((frames.idle, frames.skip, frames.known), (9, 0, 0), "in pieces of {size}");
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
