//! The connections of a unix socket, dealt to the workers in turn.
//!
//! An address of TCP has a socket for each worker, and the kernel spreads what comes. Of a unix socket there is one for all:
//! who happens to be awake would take half of what comes and keep it.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::UnixStream;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::listener::BACKLOG;
use crate::listener::arrival::Permit;
use crate::net::Stream;

/// A connection on its way to the worker that will serve it; it has its place in the limits.
#[derive(Debug)]
pub(super) struct Dealt {
    stream: StdUnixStream,
    permit: Permit,
}

/// What one worker needs to deal and be dealt to.
#[derive(Debug)]
pub(super) struct Hand {
    own: usize,
    inbox: Receiver<Dealt>,
    /// One for each worker; empty when this one deals no more.
    outboxes: Vec<Sender<Dealt>>,
    turn: Arc<AtomicUsize>,
}

/// A hand for each worker.
pub(super) fn hands(workers: usize) -> Vec<Hand> {
    let (outboxes, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| channel(BACKLOG as usize)).unzip();
    let turn = Arc::new(AtomicUsize::new(0));
    let hand = |(own, inbox)| Hand { own, inbox, outboxes: outboxes.clone(), turn: turn.clone() };
    inboxes.into_iter().enumerate().map(hand).collect()
}

impl Hand {
    /// Gives the connection to the worker whose turn it is. Returns it if that is this one, or the other takes no more.
    pub(super) fn deal(&self, stream: Stream, permit: Permit) -> Option<(Stream, Permit)> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(self.outboxes.len());
        let (stream, outbox) = match (stream, turn.filter(|turn| *turn != self.own)) {
            (Stream::Unix(stream), Some(turn)) => (stream, &self.outboxes[turn]),
            (stream, _) => return Some((stream, permit)),
        };
        // One that cannot be taken out of this runtime or put back is broken, and gone.
        let stream = stream.into_std().ok()?;
        let refused = outbox.try_send(Dealt { stream, permit }).err()?;
        refused.into_inner().open()
    }

    /// The next one for this worker; `None` when nobody deals any more.
    pub(super) async fn next(&mut self) -> Option<(Stream, Permit)> {
        loop {
            if let Some(opened) = self.inbox.recv().await?.open() {
                return Some(opened);
            }
        }
    }

    /// Deals no more; what the others deal is still to be taken.
    pub(super) fn stop_dealing(&mut self) {
        self.outboxes.clear();
    }
}

impl Dealt {
    /// On the runtime of the running worker.
    fn open(self) -> Option<(Stream, Permit)> {
        Some((Stream::Unix(UnixStream::from_std(self.stream).ok()?), self.permit))
    }
}
