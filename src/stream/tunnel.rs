//! The relay of an upgraded connection.
//!
//! An idle tunnel owns no buffers: what comes in goes through the worker's scratch space, and only what the other side
//! does not take at once is kept. Each direction ends on its own, so a half-close arrives as one.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use crate::net::{Stream, with_scratch};
use crate::roster::{Interrupt, Seat};
use crate::service::Passage;
use crate::upstream::Lease;

/// How much is read at once, and so how much a slow receiver makes a tunnel keep.
const READ: usize = 64 * 1024;

/// One client and one origin that talk to each other.
#[derive(Debug)]
pub struct Tunnel {
    origin: Stream,
    passage: Passage,
    _lease: Lease,
    to_origin: Direction,
    to_client: Direction,
}

/// Bytes on their way from one side to the other.
#[derive(Debug)]
struct Direction {
    /// What the receiver has not taken yet, from `at` on.
    pending: Vec<u8>,
    at: usize,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Open,
    /// The sender has ended; the receiver has to learn it.
    Ending,
    Ended,
}

impl Tunnel {
    /// `to_origin` and `to_client` were read before the tunnel began.
    pub fn new(origin: Stream, passage: Passage, lease: Lease, to_origin: Vec<u8>, to_client: Vec<u8>) -> Tunnel {
        let direction = |pending| Direction { pending, at: 0, phase: Phase::Open };
        Tunnel { origin, passage, _lease: lease, to_origin: direction(to_origin), to_client: direction(to_client) }
    }

    /// Relays until both sides have ended, one breaks, or the drain of the generation is over. Takes over the seat.
    pub async fn run(mut self, mut client: Stream, seat: &Seat) {
        seat.take().await;
        seat.without_limit();
        let result = seat.guard(poll_fn(|cx| self.poll(cx, &mut client))).await;
        if let Err(Interrupt::Cut) = result {
            self.passage.cut();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Stream) -> Poll<io::Result<()>> {
        let up = self.to_origin.poll(cx, client, &mut self.origin)?;
        let down = self.to_client.poll(cx, &mut self.origin, client)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Direction {
    /// Ready when this direction has ended.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(cx, to))?;
            match self.phase {
                Phase::Open => ready!(self.poll_relay(cx, from, to))?,
                Phase::Ending => {
                    ready!(to.poll_shutdown(cx))?;
                    self.phase = Phase::Ended;
                }
                Phase::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        while self.at < self.pending.len() {
            match ready!(to.poll_write(cx, &self.pending[self.at..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.at += count,
            }
        }
        if self.at > 0 {
            (self.pending, self.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes what it can of that; nothing is pending before.
    fn poll_relay(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<io::Result<()>> {
        with_scratch(|scratch| {
            let count = ready!(from.poll_read(cx, &mut scratch[..READ]))?;
            if count == 0 {
                self.phase = Phase::Ending;
                return Poll::Ready(Ok(()));
            }
            let sent = match to.poll_write(cx, &scratch[..count]) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => 0,
            };
            self.pending.extend_from_slice(&scratch[sent..count]);
            Poll::Ready(Ok(()))
        })
    }
}
