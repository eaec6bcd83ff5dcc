//! Bytes that have come in and are not used yet. The memory is borrowed from the worker while there are any.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll};

use crate::net::{Stream, with_scratch};

/// Size of a buffer as borrowed; a large request head makes it grow.
pub(crate) const SIZE: usize = 16 * 1024;
/// Unused buffers that one worker keeps.
const KEPT: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A queue of bytes that owns memory only while it is in use.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Room to read into, to be confirmed by [`Buffer::add`]; empty when `max` bytes are waiting already.
    pub(crate) fn spare(&mut self, max: usize) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE]);
        }
        if self.end == self.bytes.len() {
            self.make_room(max);
        }
        let room = max.saturating_sub(self.len()).min(self.bytes.len() - self.end);
        &mut self.bytes[self.end..self.end + room]
    }

    /// `count` bytes have been written into the spare room.
    pub(crate) fn add(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.spare(usize::MAX);
        if self.bytes.len() - self.end < bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
            self.bytes.resize(self.bytes.len().max(self.end + bytes.len()), 0);
        }
        self.bytes[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Takes `count` bytes off the front; the memory goes back when nothing is left.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.is_empty() {
            self.release();
        }
    }

    fn make_room(&mut self, max: usize) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        } else if self.bytes.len() < max {
            self.bytes.resize((self.bytes.len() * 2).min(max), 0);
        }
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() == SIZE {
            // At the end of a thread the list may be gone already; then the memory just goes.
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < KEPT {
                    free.push(bytes);
                }
            });
        }
    }

    /// Takes in what the sender says before its turn, up to `max` octets in all.
    ///
    /// # Errors
    /// The sender has gone: with an error, or by closing its side.
    pub(crate) fn read_ahead(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        max: usize,
    ) -> Result<(), Option<io::Error>> {
        while self.len() < max {
            // Mostly there is nothing: then no memory is borrowed for it.
            let read = with_scratch(|scratch| {
                let room = scratch.len().min(max - self.len());
                let read = from.poll_read(cx, &mut scratch[..room]);
                read.map_ok(|count| {
                    self.extend(&scratch[..count]);
                    count
                })
            });
            match read {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(None),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(Some(error)),
            }
        }
        Ok(())
    }

    /// Gives the memory back if a read has found nothing to put in.
    pub(crate) fn release_if_empty(&mut self) {
        if self.is_empty() && !self.bytes.is_empty() {
            self.release();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.release();
        }
    }
}
