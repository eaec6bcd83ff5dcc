//! Bytes that go from one socket to another without coming into our memory, by `splice(2)`.
//!
//! A worker keeps a few pipes for the large bodies that it moves at the moment; who finds none copies, as ever.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::net::{Direction, Stream};

/// What a pipe may hold, and so what a slow receiver makes the kernel keep. An unprivileged user has 64 MiB for all pipes.
const SIZE: usize = 512 * 1024;
/// Pipes of one worker, in use or not.
pub const MOST_PIPES: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static MADE: Cell<usize> = const { Cell::new(0) };
}

#[derive(Debug)]
struct Ends {
    output: OwnedFd,
    input: OwnedFd,
}

/// A pipe between two sockets; dropping it gives it back.
#[derive(Debug)]
pub struct Pipe {
    ends: Option<Ends>,
    filled: usize,
}

impl Pipe {
    /// `None` when all are in use or the system has none.
    pub fn take() -> Option<Pipe> {
        let free = FREE.with_borrow_mut(Vec::pop);
        let ends = free.or_else(|| if MADE.get() < MOST_PIPES { make() } else { None })?;
        Some(Pipe { ends: Some(ends), filled: 0 })
    }

    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Takes up to `most` octets from a socket; 0 is the end of the stream. Only when it is empty: a full pipe and an empty
    /// socket look the same.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &Stream, most: usize) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Ok(0)) };
        let count = ready!(from.poll_with(cx, Direction::Read, |from| shift(from, &ends.input, most)))?;
        self.filled += count;
        Poll::Ready(Ok(count))
    }

    /// Gives what it holds to a socket; ready when it is empty. Sets `progress` whenever bytes have moved.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>, to: &Stream, progress: &mut bool) -> Poll<io::Result<()>> {
        while let (Some(ends), 1..) = (&self.ends, self.filled) {
            match ready!(to.poll_with(cx, Direction::Write, |to| shift(&ends.output, to, self.filled)))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.filled = self.filled.saturating_sub(count),
            }
            *progress = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        // What somebody else's body has left in it must not reach the next. At the end of a thread the list is gone.
        let kept = self.filled == 0 && FREE.try_with(|free| free.borrow_mut().push(ends)).is_ok();
        if !kept {
            let _ = MADE.try_with(|made| made.set(made.get().saturating_sub(1)));
        }
    }
}

fn make() -> Option<Ends> {
    let (output, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    // A smaller one, where the user has used up what all pipes may hold, costs more calls than it saves.
    fcntl_setpipe_size(&input, SIZE).ok()?;
    MADE.set(MADE.get() + 1);
    Some(Ends { output, input })
}

fn shift(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}
