//! The relay of an upgraded connection.
//!
//! An idle tunnel owns no buffers: what comes in goes through the worker's scratch space, and only what the other side
//! does not take at once is kept. Each direction ends on its own, so a half-close arrives as one; who then says nothing
//! for long is not waited for. When a drain asks for it, the tunnel says [`goodbye`](super::goodbye).

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::net::Stream;
use crate::roster::Seat;
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
    /// How long one side may be silent when the other has ended.
    patience: Duration,
    /// What had been heard when that time began.
    half_ended: Option<(u32, u32)>,
}

impl Tunnel {
    /// `from_client` and `from_origin` were read before the tunnel began; `head` is the answer that begins it. `patience`: how
    /// long one side may be silent when the other has ended.
    pub fn new(
        origin: Stream,
        passage: Passage,
        lease: Lease,
        from_client: &[u8],
        head: Vec<u8>,
        from_origin: &[u8],
        patience: Duration,
    ) -> Tunnel {
        let to_origin = Direction::new(Sender::Client, Vec::new(), from_client);
        let to_client = Direction::new(Sender::Server, head, from_origin);
        let pair = Pair { origin, to_origin, to_client };
        Tunnel { pair, passage, _lease: lease, goodbye: None, patience, half_ended: None }
    }

    /// Relays until both sides have ended, one breaks, or the drain of the generation is over. Takes over the seat.
    pub async fn run(&mut self, client: &mut Stream, seat: &Seat) {
        seat.take().await;
        seat.without_limit();
        let result = seat.guard(poll_fn(|cx| self.poll(cx, client, seat))).await;
        if let Err(_) | Ok(Ok(Ending::Cut)) = result {
            self.passage.cut();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Stream, seat: &Seat) -> Poll<io::Result<Ending>> {
        if seat.is_told() != self.goodbye.is_some() {
            self.reconsider(seat.is_told());
        }
        match &mut self.goodbye {
            Some(goodbye) => goodbye.poll(cx, &mut self.pair, client),
            None => {
                let ended = self.pair.poll(cx, client).map_ok(|()| Ending::Finished);
                self.limit(seat);
                ended
            }
        }
    }

    /// A side that has ended is not heard any more, not even that it has gone: the other one must go on, or it is over.
    fn limit(&mut self, seat: &Seat) {
        let half_ended = self.pair.half_ended();
        if half_ended.is_some() && half_ended != self.half_ended {
            self.half_ended = half_ended;
            seat.within(self.patience);
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
