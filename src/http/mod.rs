//! One HTTP/1.1 connection of a client, and the requests on it.
//!
//! [`connection`] reads heads and keeps the connection's timeouts; [`forward`] is the life of one request, [`attempt`] one
//! try of it at an endpoint; [`exchange`] moves it to the origin and the answer back. The codec is our own, on both sides,
//! so that every octet has one meaning ([`head`], [`decoder`], [`body`]) and spelling and order of header fields survive ([`headers`]).
//! [`reply`] makes the answers that come from teal itself.

mod attempt;
mod body;
mod buffer;
mod connection;
mod decoder;
mod event_stream;
mod exchange;
mod forward;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod headers;
mod http2;
mod log;
mod overload;
mod reply;

use std::net::IpAddr;
use std::sync::Arc;

use crate::access::AccessLog;
use crate::config;
use crate::metrics::ListenerStats;
use crate::net::Stream;
use crate::quota::RateLimit;
use crate::roster::{Roster, Seat};
use crate::state::State;
use crate::tls::{Handshakes, Session};

pub use connection::{FIRST_WORDS, serve};
pub use http2::serve_http2;
pub use overload::{Overload, Watch as OverloadWatch};

/// What the requests of one worker share.
#[derive(Debug)]
pub struct Worker {
    /// Place among the workers, from 0.
    pub id: usize,
    pub state: Arc<State>,
    pub roster: Arc<Roster>,
    pub access: Option<Arc<AccessLog>>,
    pub overload: Overload,
    pub handshakes: Handshakes,
}

impl Worker {
    pub fn new(id: usize, state: Arc<State>, roster: Arc<Roster>, access: Option<Arc<AccessLog>>) -> Worker {
        Worker { id, state, roster, access, overload: Overload::default(), handshakes: Handshakes::default() }
    }
}

/// A place in the limits on connections, given back when dropped.
pub trait Permit: std::fmt::Debug + Send + Sync {
    /// A place for one more conversation on the same connection. `None`: there are as many as may be.
    fn beside(&self) -> Option<Box<dyn Permit>>;
}

/// A client's connection and what was read of it.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    buffer: buffer::Buffer,
    seat: Seat,
    worker: Arc<Worker>,
    listener: Arc<config::Listener>,
    stats: Arc<ListenerStats>,
    rate: Option<Arc<RateLimit>>,
    /// `None`: plain text.
    session: Option<Session>,
    /// `None` on a unix socket.
    peer: Option<IpAddr>,
    /// Where it came in; `None` on a unix socket.
    port: Option<u16>,
    /// Gives the connection's place in the limits back when dropped.
    permit: Box<dyn Permit>,
}

impl Client {
    /// `peer` and `port` are `None` on a unix socket; `permit` is the connection's place in the limits, given back when it
    /// is dropped.
    #[expect(clippy::too_many_arguments, reason = "each is one fact of the connection, named where it is stored")]
    pub fn new(
        stream: Stream,
        peer: Option<IpAddr>,
        port: Option<u16>,
        seat: Seat,
        worker: Arc<Worker>,
        listener: Arc<config::Listener>,
        stats: Arc<ListenerStats>,
        rate: Option<Arc<RateLimit>>,
        session: Option<Session>,
        permit: Box<dyn Permit>,
    ) -> Client {
        let buffer = buffer::Buffer::default();
        Client { stream, buffer, seat, worker, listener, stats, rate, session, peer, port, permit }
    }

    /// Whether the first octets may say that it goes on in HTTP/2: inside TLS that was settled before.
    fn may_begin_http2(&self) -> bool {
        self.listener.http2 && self.session.is_none() && self.stream.is_plain()
    }

    /// Another conversation on the same connection.
    fn beside(&self, stream: Stream, permit: Box<dyn Permit>) -> Client {
        let Client { worker, listener, stats, rate, session, peer, port, .. } = self;
        Client {
            stream,
            buffer: buffer::Buffer::default(),
            seat: self.seat.beside(),
            worker: worker.clone(),
            listener: listener.clone(),
            stats: stats.clone(),
            rate: rate.clone(),
            session: session.clone(),
            peer: *peer,
            port: *port,
            permit,
        }
    }
}
