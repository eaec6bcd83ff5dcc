//! One upstream address: its health, its requests, its idle connections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::config::{Address, Protocol, Upstream, UpstreamTls};
use crate::net::Stream;
use crate::upstream::{Sharing, Vacancy};

const HEALTHY: u8 = 1;
const EJECTED: u8 = 2;
const PROBED: u8 = 4;

/// Idle connections that one worker keeps to one endpoint.
const MAX_IDLE: usize = 256;
/// How long an idle connection is kept; shorter than most origins keep theirs.
pub(super) const MAX_IDLE_AGE: Duration = Duration::from_secs(30);
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// What the last probes said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Unknown,
    Healthy,
    Unhealthy,
}

/// Lives as long as (service, color, address, transport) stays in the configuration, and for requests that still use it.
pub struct Endpoint {
    /// As the configuration names it.
    upstream: Upstream,
    address: Address,
    transport: Transport,
    /// How people and metrics call it.
    name: Arc<str>,
    state: AtomicU8,
    in_flight: AtomicUsize,
    requests: AtomicU64,
    failures_in_a_row: AtomicU32,
    ejection: Mutex<Ejection>,
    probes: Mutex<Probes>,
    idle: Box<[Mutex<Vec<Idle>>]>,
    /// By worker.
    sharing: Box<[Arc<Sharing>]>,
    vacancy: Arc<Vacancy>,
}

/// How an endpoint is spoken to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Transport {
    pub protocol: Protocol,
    /// `None`: plain text.
    pub tls: Option<Arc<UpstreamTls>>,
}

#[derive(Debug, Default)]
struct Ejection {
    until: Option<Instant>,
    times: u32,
}

#[derive(Clone, Debug, Default)]
struct Probes {
    in_a_row: u32,
    last: Option<ProbeResult>,
}

/// One probe, for people to read.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    pub at: SystemTime,
    pub error: Option<String>,
}

#[derive(Debug)]
struct Idle {
    stream: Stream,
    since: Instant,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("name", &self.name).field("health", &self.health()).finish_non_exhaustive()
    }
}

impl Endpoint {
    pub fn new(
        upstream: Upstream,
        address: Address,
        transport: Transport,
        workers: usize,
        vacancy: Arc<Vacancy>,
    ) -> Endpoint {
        let name = match (&upstream, &address) {
            (Upstream::Name { host, .. }, Address::Tcp(address)) => format!("{host}/{address}").into(),
            _ => upstream.to_string().into(),
        };
        Endpoint {
            upstream,
            address,
            transport,
            name,
            state: AtomicU8::new(0),
            in_flight: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            failures_in_a_row: AtomicU32::new(0),
            ejection: Mutex::default(),
            probes: Mutex::default(),
            idle: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
            sharing: (0..workers.max(1)).map(|_| Arc::default()).collect(),
            vacancy,
        }
    }

    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests sent to it so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn health(&self) -> Health {
        match self.state.load(Ordering::Acquire) {
            state if state & PROBED == 0 => Health::Unknown,
            state if state & HEALTHY != 0 => Health::Healthy,
            _ => Health::Unhealthy,
        }
    }

    /// Whether its probes say that it is well; an ejected endpoint may be.
    pub fn is_healthy(&self) -> bool {
        self.health() == Health::Healthy
    }

    pub fn is_ejected(&self) -> bool {
        self.state.load(Ordering::Acquire) & EJECTED != 0
    }

    /// Whether requests may be sent to it.
    pub fn is_available(&self) -> bool {
        self.state.load(Ordering::Acquire) & (HEALTHY | EJECTED) == HEALTHY
    }

    pub fn last_probe(&self) -> Option<ProbeResult> {
        self.probes.lock().last.clone()
    }

    /// Takes the result of a probe into account. The very first decides alone, then `rise` good or `fall` bad ones in a
    /// row turn the health. Returns the new health if it turned.
    pub fn probed(&self, result: Result<(), String>, rise: u32, fall: u32) -> Option<Health> {
        let before = self.health();
        let is_good = result.is_ok();
        let mut probes = self.probes.lock();
        probes.last = Some(ProbeResult { at: SystemTime::now(), error: result.err() });
        let agrees = (before == Health::Healthy) == is_good && before != Health::Unknown;
        probes.in_a_row = if agrees { 0 } else { probes.in_a_row + 1 };
        let needed = match before {
            Health::Unknown => 1,
            Health::Healthy => fall,
            Health::Unhealthy => rise,
        };
        if agrees || probes.in_a_row < needed {
            return None;
        }
        probes.in_a_row = 0;
        drop(probes);
        Some(self.turn(is_good))
    }

    fn turn(&self, is_healthy: bool) -> Health {
        if is_healthy {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
            self.state.fetch_or(PROBED | HEALTHY, Ordering::AcqRel);
            self.vacancy.announce();
            Health::Healthy
        } else {
            self.state.fetch_and(!HEALTHY, Ordering::AcqRel);
            self.state.fetch_or(PROBED, Ordering::AcqRel);
            Health::Unhealthy
        }
    }

    pub fn succeeded(&self) {
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// Failures in a row, this one included.
    pub(super) fn count_failure(&self) -> u32 {
        self.failures_in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Takes it out of balancing for a while: `first`, then twice as long each time, until it has been well for long.
    pub(super) fn eject(&self, first: Duration) {
        let mut ejection = self.ejection.lock();
        let now = Instant::now();
        if ejection.until.is_some_and(|until| now.saturating_duration_since(until) > LONGEST_EJECTION) {
            ejection.times = 0;
        }
        let length = first.saturating_mul(1 << ejection.times.min(16)).min(LONGEST_EJECTION);
        *ejection = Ejection { until: Some(now + length), times: ejection.times.saturating_add(1) };
        self.state.fetch_or(EJECTED, Ordering::AcqRel);
        tracing::warn!(endpoint = %self.name, seconds = length.as_secs_f64(), "endpoint ejected");
    }

    /// Takes it back when its ejection is over. Called every now and then by the health module.
    pub fn end_ejection(&self, now: Instant) {
        let ejection = self.ejection.lock();
        if !self.is_ejected() || ejection.until.is_some_and(|until| now < until) {
            return;
        }
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.state.fetch_and(!EJECTED, Ordering::AcqRel);
        drop(ejection);
        self.vacancy.announce();
        tracing::info!(endpoint = %self.name, "endpoint taken back");
    }

    /// A place for one request, unless all `max` are taken.
    pub fn lease(self: &Arc<Endpoint>, max: Option<usize>) -> Option<Lease> {
        let has_room = |taken: usize| max.is_none_or(|max| taken < max).then_some(taken + 1);
        // Never over-counts for a moment: a waiter that looks just then would miss the place it was woken for.
        self.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, has_room).ok()?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        Some(Lease { endpoint: self.clone() })
    }

    /// An idle connection of `worker` on which nothing has come in, neither the end nor octets that would pass for the
    /// answer to the next request. A busy worker may not have been told of it yet: for a request that cannot be repeated,
    /// `is_careful`, the system is asked.
    pub fn take_idle(&self, worker: usize, is_careful: bool) -> Option<Stream> {
        let mut idle = self.idle[worker].lock();
        while let Some(Idle { mut stream, .. }) = idle.pop() {
            if stream.is_quiet() && !(is_careful && stream.has_input()) {
                return Some(stream);
            }
        }
        None
    }

    /// Keeps a connection for the next request of `worker`.
    pub fn put_idle(&self, worker: usize, stream: Stream, now: Instant) {
        let mut idle = self.idle[worker].lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { stream, since: now });
        }
    }

    /// The connections that requests of `worker` share.
    pub fn sharing(&self, worker: usize) -> &Arc<Sharing> {
        &self.sharing[worker]
    }

    /// Drops the connections of `worker` that are idle and old, or that the origin has closed.
    pub fn sweep(&self, worker: usize, now: Instant) {
        let mut idle = self.idle[worker].lock();
        idle.retain_mut(|idle| now.saturating_duration_since(idle.since) < MAX_IDLE_AGE && idle.stream.is_quiet());
        drop(idle);
        self.sharing[worker].sweep();
    }
}

/// One request's place at an endpoint.
#[derive(Debug)]
pub struct Lease {
    endpoint: Arc<Endpoint>,
}

impl Lease {
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.endpoint.vacancy.one_free();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_connection_on_which_something_has_come_in_is_not_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let endpoint =
            Endpoint::new(Upstream::Ip(address), Address::Tcp(address), Transport::default(), 1, Arc::default());
        let kept = || {
            let socket = TcpStream::connect(address).expect("a listener");
            socket.set_nonblocking(true).expect("a TCP socket");
            endpoint.put_idle(0, Stream::Tcp(socket.try_into().expect("a runtime")), Instant::now());
            listener.accept().expect("a connection").0
        };
        let _quiet = kept();
        assert!(endpoint.take_idle(0, true).is_some());
        // Nothing is awaited here, so the runtime learns nothing of what comes in.
        let mut origin = kept();
        origin.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("an open connection");
        assert!(endpoint.take_idle(0, true).is_none(), "an answer that nobody has asked for");
        drop(kept());
        assert!(endpoint.take_idle(0, true).is_none(), "the end");
    }
}
