//! The relay of an upgraded connection.
//!
//! An idle tunnel owns no buffers: what comes in goes through the worker's scratch space, and only what the other side
//! does not take at once is kept. Each direction ends on its own, so a half-close arrives as one. When a drain asks for
//! it, the tunnel says [`goodbye`](super::goodbye).

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use crate::net::Stream;
use crate::roster::{Interrupt, Seat};
use crate::service::Passage;
use crate::stream::direction::Direction;
use crate::stream::frames::Sender;
use crate::stream::goodbye::{Ending, Goodbye, Pair};
use crate::upstream::Lease;

/// One client and one origin that talk to each other.
#[derive(Debug)]
pub struct Tunnel {
    pair: Pair,
    passage: Passage,
    _lease: Lease,
    goodbye: Option<Box<Goodbye>>,
}

impl Tunnel {
    /// `from_client` and `from_origin` were read before the tunnel began; `head` is the answer that begins it.
    pub fn new(
        origin: Stream,
        passage: Passage,
        lease: Lease,
        from_client: &[u8],
        head: Vec<u8>,
        from_origin: &[u8],
    ) -> Tunnel {
        let to_origin = Direction::new(Sender::Client, Vec::new(), from_client);
        let to_client = Direction::new(Sender::Server, head, from_origin);
        Tunnel { pair: Pair { origin, to_origin, to_client }, passage, _lease: lease, goodbye: None }
    }

    /// Relays until both sides have ended, one breaks, or the drain of the generation is over. Takes over the seat.
    pub async fn run(&mut self, client: &mut Stream, seat: &Seat) {
        seat.take().await;
        seat.without_limit();
        let result = seat.guard(poll_fn(|cx| self.poll(cx, client, seat))).await;
        if let Err(Interrupt::Cut) | Ok(Ok(Ending::Cut)) = result {
            self.passage.cut();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Stream, seat: &Seat) -> Poll<io::Result<Ending>> {
        if seat.is_told() != self.goodbye.is_some() {
            self.reconsider(seat.is_told());
        }
        match &mut self.goodbye {
            Some(goodbye) => goodbye.poll(cx, &mut self.pair, client),
            None => self.pair.poll(cx, client).map_ok(|()| Ending::Finished),
        }
    }

    /// The drain has just asked for a goodbye, or does not want it any more.
    fn reconsider(&mut self, is_told: bool) {
        match (&self.goodbye, &self.passage.service().config.drain.websocket) {
            (None, Some(settings)) if is_told => self.goodbye = Some(Box::new(Goodbye::new(settings, &self.pair))),
            (Some(goodbye), _) if !is_told && goodbye.may_be_recalled() => self.goodbye = None,
            _ => {}
        }
    }
}
