//! A connection from the accept to its first request: whose it is, whether there is a place for it, TLS, then HTTP.

use std::collections::hash_map::Entry;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use crate::config::{Listener, ProxyProtocol};
use crate::http::{self, Client, FIRST_WORDS, Worker, serve, serve_http2};
use crate::listener::proxy_header::{self, Opening, Passed};
use crate::listener::{Listening, Place};
use crate::metrics::{Handshake, Rejection};
use crate::net::{Stream, with_scratch};
use crate::roster::{Interrupt, Seat};
use crate::tls::{self, Session, Terminator};

const PLAIN_ON_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 50\r\nConnection: close\r\n\r\n400 plain HTTP on a TLS port: begin with https://\n";

/// A connection of which nothing has been read yet.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) stream: Stream,
    /// Whose connection it is: until a PROXY header says otherwise, the peer's. `None` on a unix socket.
    pub(super) client: Option<IpAddr>,
    /// The port that the client connected to.
    pub(super) port: Option<u16>,
    pub(super) seat: Seat,
    pub(super) worker: Arc<Worker>,
    /// As they were when it came.
    pub(super) settings: Arc<Listener>,
    pub(super) permit: Permit,
}

/// Why a connection ends before its first request.
#[derive(Debug)]
enum Unwelcome {
    Refused(Rejection, &'static str),
    /// It has ended by itself, having said nothing that would have to be refused.
    Gone,
}

/// Begins to serve a connection. What comes before HTTP, if anything does, has a task of its own: that of HTTP is as small as
/// an idle connection should be.
pub(super) fn begin(mut arrival: Arrival) {
    let is_plain = arrival.settings.tls.is_none() && arrival.settings.proxy_protocol == ProxyProtocol::Off;
    if !is_plain {
        tokio::spawn(introduce(arrival));
        return;
    }
    match arrival.find_place() {
        Ok(()) => drop(tokio::spawn(serve(arrival.into_client(None)))),
        Err(unwelcome) => arrival.turn_away(&unwelcome),
    }
}

/// What comes before HTTP, step by step.
async fn introduce(mut arrival: Arrival) {
    arrival.seat.take().await;
    let introduced = async {
        arrival.learn_client().await?;
        arrival.find_place()?;
        arrival.secure().await
    };
    match introduced.await {
        Ok(Some(session)) if session.is_http2 => drop(tokio::spawn(serve_http2(arrival.into_client(Some(session))))),
        Ok(session) => drop(tokio::spawn(serve(arrival.into_client(session)))),
        Err(unwelcome) => arrival.turn_away(&unwelcome),
    }
}

impl Arrival {
    fn turn_away(self, unwelcome: &Unwelcome) {
        let Unwelcome::Refused(rejection, why) = unwelcome else { return };
        self.permit.listening.stats.reject(*rejection);
        tracing::debug!(listener = %self.settings.listen, client = ?self.client, why, "connection refused");
    }

    /// Believes the PROXY header, where the listener wants one and the peer may send it.
    async fn learn_client(&mut self) -> Result<(), Unwelcome> {
        let refused = |why| Err(Unwelcome::Refused(Rejection::ProxyProtocol, why));
        let is_required = match self.settings.proxy_protocol {
            ProxyProtocol::Off => return Ok(()),
            ProxyProtocol::Accept => false,
            ProxyProtocol::Require => true,
        };
        match (self.is_from_balancer(), is_required) {
            (true, _) => {}
            // What it sends is read as a request, which a PROXY header is not.
            (false, false) => return Ok(()),
            (false, true) => return refused("not one of trusted_proxies"),
        }
        match self.opening().await? {
            Opening::Header { length, client } => {
                self.stream.skip(length).await.map_err(|_| Unwelcome::Gone)?;
                if let Some(Passed { from, to }) = client {
                    (self.client, self.port) = (Some(from), Some(to));
                }
                Ok(())
            }
            Opening::Other if !is_required => Ok(()),
            Opening::Other => refused("no PROXY header"),
            Opening::Broken(why) => refused(why),
        }
    }

    /// On a unix socket the permissions of its file say who may connect, and so be believed.
    fn is_from_balancer(&self) -> bool {
        self.client.is_none_or(|peer| self.settings.trusts(peer))
    }

    /// Waits until it is clear what the first octets are, and leaves them where they are: they may be the next layer's.
    async fn opening(&self) -> Result<Opening, Unwelcome> {
        let broken_off = |interrupt| match interrupt {
            Interrupt::Timeout if !self.seat.is_leaving() => {
                Unwelcome::Refused(Rejection::ProxyProtocol, "no PROXY header in time")
            }
            _ => Unwelcome::Gone,
        };
        let mut seen = 0;
        let peeking = self.stream.peek(proxy_header::LONGEST, |octets| {
            seen = octets.len();
            proxy_header::judge(octets)
        });
        let peeked = first_words(&self.seat, self.settings.limits.header_timeout, peeking).await;
        match peeked.map_err(broken_off)? {
            Ok(Some(opening)) => Ok(opening),
            // Balancers probe by connecting and going.
            Ok(None) if seen == 0 => Err(Unwelcome::Gone),
            Ok(None) => Err(Unwelcome::Refused(Rejection::ProxyProtocol, "half a PROXY header")),
            Err(_) => Err(Unwelcome::Gone),
        }
    }

    /// One of those that its address may have.
    fn find_place(&mut self) -> Result<(), Unwelcome> {
        let (limit, refused) = (self.settings.limits.connections_per_ip, Rejection::ConnectionsPerIp);
        match (self.client, limit) {
            (Some(client), Some(limit)) if !self.permit.count(client, limit) => {
                Err(Unwelcome::Refused(refused, "its address has as many connections as it may"))
            }
            _ => Ok(()),
        }
    }

    /// The handshake, where the listener speaks TLS.
    async fn secure(&mut self) -> Result<Option<Session>, Unwelcome> {
        if self.settings.tls.is_none() {
            return Ok(None);
        }
        // A reload may have come between; nobody is served in plain text then.
        let Some(terminator) = self.permit.listening.terminator.load_full() else { return Err(Unwelcome::Gone) };
        let ended = {
            let mut turn = self.worker.handshakes.begin();
            let shaking = shake_hands(&mut self.stream, &terminator);
            let mut shaking = pin!(first_words(&self.seat, self.settings.limits.header_timeout, shaking));
            let ended = poll_fn(|cx| match shaking.as_mut().poll(cx) {
                Poll::Pending => Pin::new(&mut turn.pushed_out).poll(cx).map(|_| Err(Interrupt::Cut)),
                ended => ended,
            });
            ended.await
        };
        let outcome = match &ended {
            Ok(Ok(Some(session))) if session.is_resumed => Handshake::Resumed,
            Ok(Ok(Some(_))) => Handshake::Full,
            Ok(_) => Handshake::Failed,
            Err(Interrupt::Timeout) if !self.seat.is_leaving() => Handshake::Timeout,
            Err(_) => Handshake::Dropped,
        };
        self.permit.listening.stats.handshake(outcome);
        match ended {
            Ok(Ok(Some(session))) => return Ok(Some(session)),
            Ok(Ok(None)) => self.say_that_it_is_tls().await,
            Ok(Err(error)) => {
                tracing::debug!(listener = %self.settings.listen, client = ?self.client, %error, "no TLS handshake");
            }
            Err(_) => {}
        }
        Err(Unwelcome::Gone)
    }

    /// For a person who has typed `http://` before the name and the port.
    async fn say_that_it_is_tls(&mut self) {
        let (stream, seat) = (&mut self.stream, &self.seat);
        let answer = poll_fn(|cx| stream.poll_write(cx, PLAIN_ON_TLS));
        let _ = seat.guard(answer).await;
        // What the client has said is read, as far as it is there: a close that leaves it unread would be a reset.
        let reading = poll_fn(|cx| {
            let _ = stream.poll_shutdown(cx);
            with_scratch(|scratch| stream.poll_read(cx, scratch))
        });
        seat.within(FIRST_WORDS);
        let _ = seat.guard(reading).await;
    }

    fn into_client(self, session: Option<Session>) -> Client {
        let listening = self.permit.listening.clone();
        Client::new(
            self.stream,
            self.client,
            self.port,
            self.seat,
            self.worker,
            self.settings,
            listening.stats.clone(),
            listening.rate.load_full(),
            session,
            Box::new(self.permit),
        )
    }
}

/// Waits for what a connection begins with. Who has been let in is not turned away because the listener closes: who speaks at
/// once is served.
async fn first_words<F: Future>(seat: &Seat, timeout: Duration, words: F) -> Result<F::Output, Interrupt> {
    seat.within(timeout);
    let mut words = pin!(words);
    match seat.guard_idle(words.as_mut()).await {
        Err(Interrupt::Leave) => {
            seat.within(timeout.min(FIRST_WORDS));
            seat.guard(words).await
        }
        ended => ended,
    }
}

/// Puts TLS into the stream; `None` when the client speaks something else, of which nothing has been read.
async fn shake_hands(stream: &mut Stream, terminator: &Terminator) -> io::Result<Option<Session>> {
    match stream.peek(1, |octets| octets.first().copied()).await? {
        Some(first) if tls::begins_handshake(first) => {
            let (secured, session) = terminator.accept(stream.take()).await?;
            *stream = secured;
            Ok(Some(session))
        }
        Some(_) => Ok(None),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A connection's place in the limits.
#[derive(Debug)]
pub(super) struct Permit {
    listening: Arc<Listening>,
    /// The address whose connections it is counted among.
    counted: Option<IpAddr>,
    _own: Place,
    process: Place,
}

impl Permit {
    pub(super) fn new(listening: &Arc<Listening>, own: Place, process: Place) -> Permit {
        listening.stats.connections.fetch_add(1, Ordering::Relaxed);
        Permit { listening: listening.clone(), counted: None, _own: own, process }
    }

    /// Counts it among the connections of `address`, unless there are `limit` already.
    fn count(&mut self, address: IpAddr, limit: usize) -> bool {
        let mut by_ip = self.listening.by_ip.lock();
        let count = by_ip.entry(address).or_default();
        let has_room = *count < limit;
        if has_room {
            *count += 1;
            self.counted = Some(address);
        }
        has_room
    }
}

impl http::Permit for Permit {
    fn beside(&self) -> Option<Box<dyn http::Permit>> {
        self.process.beside()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(address) = self.counted
            && let Entry::Occupied(mut count) = self.listening.by_ip.lock().entry(address)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        // Last: whoever sees that it is gone may take its place.
        self.listening.stats.connections.fetch_sub(1, Ordering::Release);
    }
}
