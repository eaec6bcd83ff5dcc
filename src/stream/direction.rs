//! One direction of a tunnel: bytes on their way from one side to the other, and where in them a frame ends.

use std::io;
use std::task::{Context, Poll, ready};

use crate::net::{Stream, with_scratch};
use crate::stream::frames::{Frames, Place, Sender};

/// How much is read at once, and so how much a slow receiver makes a tunnel keep.
const READ: usize = 64 * 1024;

/// Bytes on their way from one side to the other.
#[derive(Debug)]
pub(super) struct Direction {
    /// What the receiver has not taken yet, from `at` on.
    pending: Vec<u8>,
    at: usize,
    phase: Phase,
    frames: Frames,
    /// Read beyond the place where a relay has stopped: nobody gets it, but frames end in it.
    beyond: Vec<u8>,
    /// Changes whenever something comes in.
    heard: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Open,
    /// The sender has ended; the receiver has to learn it.
    Ending,
    Ended,
}

/// Where a relay should stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// Where no message is half through, or before a Close frame of the origin.
    Message,
    /// Where no frame is half through.
    Frame,
    /// Before a Close frame of the origin.
    Close,
}

/// Why a relay has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// At the place that was asked for; the sender may have said more, which is gone.
    There,
    /// The sender has ended, one way or another.
    Ended,
}

impl Stop {
    /// `next` is what comes there, if it is known.
    fn is_at(self, place: Place, next: Option<u8>) -> bool {
        let is_close = next.is_some_and(Frames::begins_close);
        match place {
            Place::BetweenMessages => self != Stop::Close || is_close,
            Place::BetweenFragments => self == Stop::Frame || is_close,
            Place::Closed => true,
            Place::InsideFrame | Place::Unknown => false,
        }
    }
}

impl Direction {
    /// `early` was read before the tunnel began; `head` goes before it and is no part of the frames.
    pub(super) fn new(sender: Sender, mut head: Vec<u8>, early: &[u8]) -> Direction {
        let mut frames = Frames::new(sender);
        frames.follow(early);
        head.extend_from_slice(early);
        Direction { pending: head, at: 0, phase: Phase::Open, frames, beyond: Vec::new(), heard: 0 }
    }

    pub(super) fn place(&self) -> Place {
        self.frames.place()
    }

    /// Whether this side ends the conversation itself: by a Close frame or by its end.
    pub(super) fn is_ending(&self) -> bool {
        self.phase != Phase::Open || self.frames.is_closing()
    }

    /// Whether the sender has ended and the receiver knows it.
    pub(super) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Whether nothing waits for the receiver.
    pub(super) fn is_flushed(&self) -> bool {
        self.at == self.pending.len()
    }

    /// Changes whenever something comes in.
    pub(super) fn heard(&self) -> u32 {
        self.heard
    }

    /// Puts a frame of our own behind what is on its way. The place must be at a boundary.
    pub(super) fn insert(&mut self, frame: &[u8]) {
        self.pending.extend_from_slice(frame);
    }

    /// Relays; ready when this direction has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(cx, to))?;
            match self.phase {
                Phase::Open => ready!(self.poll_move(cx, from, to))?,
                Phase::Ending => {
                    ready!(to.poll_shutdown(cx))?;
                    self.phase = Phase::Ended;
                }
                Phase::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Relays up to a place where `stop` says so. What the sender says beyond it is dropped.
    ///
    /// # Errors
    /// When the receiver takes nothing any more.
    pub(super) fn poll_until(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        stop: Stop,
    ) -> Poll<io::Result<Stopped>> {
        if stop.is_at(self.place(), None) {
            return Poll::Ready(Ok(Stopped::There));
        }
        loop {
            ready!(self.poll_flush(cx, to))?;
            let stopped = with_scratch(|scratch| {
                let Ok(count @ 1..) = ready!(from.poll_read(cx, &mut scratch[..READ])) else {
                    return Poll::Ready(Some(Stopped::Ended));
                };
                self.heard = self.heard.wrapping_add(1);
                let (length, is_there) = self.follow_until(&scratch[..count], stop);
                self.pending.extend_from_slice(&scratch[..length]);
                self.beyond = scratch[length..count].to_vec();
                Poll::Ready(is_there.then_some(Stopped::There))
            });
            if let Some(stopped) = ready!(stopped) {
                return Poll::Ready(Ok(stopped));
            }
        }
    }

    /// How much of `bytes` comes before the place, and whether the place is there.
    fn follow_until(&mut self, bytes: &[u8], stop: Stop) -> (usize, bool) {
        let mut at = 0;
        while at < bytes.len() {
            let is_own_close = self.frames.sender() == Sender::Client && Frames::begins_close(bytes[at]);
            if stop.is_at(self.place(), Some(bytes[at])) && !is_own_close {
                return (at, true);
            }
            at += self.frames.advance(&bytes[at..]);
        }
        (at, stop.is_at(self.place(), None))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        while self.at < self.pending.len() {
            match ready!(to.poll_write(cx, &self.pending[self.at..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.at += count,
            }
        }
        if self.at > 0 {
            (self.pending, self.at) = (Vec::new(), 0);
        }
        to.poll_flush(cx)
    }

    /// Takes what the sender says and drops it; ready when it has said all: its Close frame, or its end.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, from: &mut Stream) -> Poll<()> {
        self.frames.follow(&std::mem::take(&mut self.beyond));
        while self.place() != Place::Closed && self.phase == Phase::Open {
            ready!(with_scratch(|scratch| {
                match ready!(from.poll_read(cx, &mut scratch[..READ])) {
                    Ok(count @ 1..) => self.frames.follow(&scratch[..count]),
                    _ => self.phase = Phase::Ended,
                }
                Poll::Ready(())
            }));
        }
        Poll::Ready(())
    }

    /// Reads once and writes what it can of that; nothing is pending before.
    fn poll_move(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<io::Result<()>> {
        with_scratch(|scratch| {
            let count = ready!(from.poll_read(cx, &mut scratch[..READ]))?;
            if count == 0 {
                self.phase = Phase::Ending;
                return Poll::Ready(Ok(()));
            }
            self.heard = self.heard.wrapping_add(1);
            self.frames.follow(&scratch[..count]);
            let sent = match to.poll_write(cx, &scratch[..count]) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => 0,
            };
            self.pending.extend_from_slice(&scratch[sent..count]);
            Poll::Ready(Ok(()))
        })
    }
}
