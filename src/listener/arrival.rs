//! A connection from the accept to its first request: whose it is, whether there is a place for it, then HTTP.

use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::{Listener, ProxyProtocol};
use crate::http::{Client, FIRST_WORDS, Worker, serve};
use crate::listener::proxy_header::{self, Opening, Passed};
use crate::listener::{Listening, Place};
use crate::metrics::Rejection;
use crate::net::Stream;
use crate::roster::{Interrupt, Seat};

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

/// What comes before HTTP; then HTTP in a task of its own, which is as small as an idle connection should be.
pub(super) async fn welcome(arrival: Arrival) {
    if let Some(client) = introduce(arrival).await {
        tokio::spawn(serve(client));
    }
}

/// What comes before HTTP, step by step; `None` when one of them was the last.
async fn introduce(mut arrival: Arrival) -> Option<Client> {
    arrival.seat.take().await;
    let introduced = match arrival.learn_client().await {
        Ok(()) => arrival.find_place(),
        unwelcome => unwelcome,
    };
    match introduced {
        Ok(()) => Some(arrival.into_client()),
        Err(Unwelcome::Refused(rejection, why)) => {
            arrival.permit.listening.stats.reject(rejection);
            tracing::debug!(listener = %arrival.settings.listen, client = ?arrival.client, why, "connection refused");
            None
        }
        Err(Unwelcome::Gone) => None,
    }
}

impl Arrival {
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
        let timeout = self.settings.limits.header_timeout;
        let mut seen = 0;
        let peeked = {
            let mut peeking = pin!(self.stream.peek(proxy_header::LONGEST, |octets| {
                seen = octets.len();
                proxy_header::judge(octets)
            }));
            self.seat.within(timeout);
            match self.seat.guard_idle(peeking.as_mut()).await {
                Err(Interrupt::Leave) => {
                    // It has been let in: whoever speaks at once is served.
                    self.seat.within(timeout.min(FIRST_WORDS));
                    self.seat.guard(peeking).await
                }
                peeked => peeked,
            }
        };
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

    fn into_client(self) -> Client {
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
            Box::new(self.permit),
        )
    }
}

/// A connection's place in the limits.
#[derive(Debug)]
pub(super) struct Permit {
    listening: Arc<Listening>,
    /// The address whose connections it is counted among.
    counted: Option<IpAddr>,
    _own: Place,
    _process: Place,
}

impl Permit {
    pub(super) fn new(listening: &Arc<Listening>, own: Place, process: Place) -> Permit {
        listening.stats.connections.fetch_add(1, Ordering::Relaxed);
        Permit { listening: listening.clone(), counted: None, _own: own, _process: process }
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

impl Drop for Permit {
    fn drop(&mut self) {
        self.listening.stats.connections.fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.counted else { return };
        if let Entry::Occupied(mut count) = self.listening.by_ip.lock().entry(address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
