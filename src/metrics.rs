//! Every count that teal keeps, and their Prometheus text.
//!
//! What a request touches is sharded by worker: plain relaxed additions on the worker's own cache lines, summed when
//! somebody scrapes. Labels come from closed sets: services, colors, endpoints and listeners of the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, Once};

use crate::config::{ByColor, Color, Tls};

/// Upper bounds of `teal_request_seconds`, in microseconds; the last bucket is unbounded.
pub const LATENCY_BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// How a request ended, as `teal_requests_total` labels it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// A final status; 101 counts as 1xx.
    Status(u16),
    /// The answer began and did not come to its end.
    Cut,
}

impl Class {
    pub const LABELS: [&'static str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "cut"];

    fn index(self) -> usize {
        match self {
            Class::Status(status) => usize::from(status / 100).clamp(1, 5) - 1,
            Class::Cut => 5,
        }
    }
}

/// The counts of one service.
#[derive(Debug)]
pub struct ServiceStats {
    shards: ByColor<Box<[CachePadded<ColorShard>]>>,
    pub retries: AtomicU64,
}

/// What one worker did for one color of one service.
#[derive(Debug, Default)]
pub struct ColorShard {
    /// By [`Class::LABELS`].
    pub classes: [AtomicU64; 6],
    /// By [`LATENCY_BOUNDS_US`], not cumulative, the unbounded one last.
    pub latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    pub latency_sum_us: AtomicU64,
    /// By kind: http, sse, websocket.
    pub in_flight: [AtomicI64; 3],
    pub connects: AtomicU64,
    pub connect_failures: AtomicU64,
    /// Requests that ask for a stream: begun, and those of them that have got a final answer or have failed.
    pub handshakes: Handshakes,
}

/// How a color takes the streams that come to it.
#[derive(Debug, Default)]
pub struct Handshakes {
    pub begun: AtomicU64,
    pub taken: AtomicU64,
    /// Answered with a 5xx, or not at all.
    pub failed: AtomicU64,
}

impl ServiceStats {
    pub fn new(workers: usize) -> ServiceStats {
        let shards = |_| (0..workers.max(1)).map(|_| CachePadded::new(ColorShard::default())).collect();
        ServiceStats { shards: ByColor::from_fn(shards), retries: AtomicU64::new(0) }
    }

    pub fn shard(&self, color: Color, worker: usize) -> &ColorShard {
        &self.shards[color][worker]
    }

    pub fn shards(&self, color: Color) -> impl Iterator<Item = &ColorShard> {
        self.shards[color].iter().map(|shard| &**shard)
    }
}

impl ColorShard {
    /// `kind` is the place in `in_flight`.
    pub fn begin(&self, kind: usize) {
        self.in_flight[kind].fetch_add(1, Ordering::Relaxed);
    }

    pub fn turn(&self, from: usize, to: usize) {
        self.in_flight[to].fetch_add(1, Ordering::Relaxed);
        self.in_flight[from].fetch_sub(1, Ordering::Relaxed);
    }

    pub fn end(&self, kind: usize) {
        self.in_flight[kind].fetch_sub(1, Ordering::Relaxed);
    }

    /// One attempt to open a connection to an endpoint that has ended.
    pub fn connected(&self, is_open: bool) {
        let counter = if is_open { &self.connects } else { &self.connect_failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One request that has ended.
    pub fn done(&self, class: Class, took: Duration) {
        self.classes[class.index()].fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < took);
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency_sum_us.fetch_add(took, Ordering::Relaxed);
    }
}

/// The counts of one listener.
#[derive(Debug, Default)]
pub struct ListenerStats {
    /// Open now.
    pub connections: AtomicI64,
    handshakes: [AtomicU64; Handshake::ALL.len()],
    rejected: [AtomicU64; Rejection::ALL.len()],
    /// What it ends TLS with. `None`: plain text, or closed.
    pub tls: ArcSwapOption<Tls>,
    /// Done when somebody has spoken TLS where nobody may, which is said once.
    pub first_tls_in_plain_text: Once,
}

/// How a TLS handshake ended, as `teal_tls_handshakes_total` labels it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handshake {
    Full,
    /// The client came back with a ticket.
    Resumed,
    /// It was none, or the two could not agree.
    Failed,
    Timeout,
    /// There were too many, or the listener closed.
    Dropped,
}

impl Handshake {
    pub const ALL: [Handshake; 5] =
        [Handshake::Full, Handshake::Resumed, Handshake::Failed, Handshake::Timeout, Handshake::Dropped];

    pub fn as_str(self) -> &'static str {
        match self {
            Handshake::Full => "full",
            Handshake::Resumed => "resumed",
            Handshake::Failed => "failed",
            Handshake::Timeout => "timeout",
            Handshake::Dropped => "dropped",
        }
    }
}

/// Why a listener or the proxy itself turned something away, as `teal_rejected_total` labels it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejection {
    BadRequest,
    HeadTooLarge,
    HeaderTimeout,
    BodyTooLarge,
    NoRoute,
    ConnectionsPerIp,
    ProxyProtocol,
    RateLimited,
    Forbidden,
    Overload,
    /// A panic has ended the connection.
    Panic,
}

impl Rejection {
    pub const ALL: [Rejection; 11] = [
        Rejection::BadRequest,
        Rejection::HeadTooLarge,
        Rejection::HeaderTimeout,
        Rejection::BodyTooLarge,
        Rejection::NoRoute,
        Rejection::ConnectionsPerIp,
        Rejection::ProxyProtocol,
        Rejection::RateLimited,
        Rejection::Forbidden,
        Rejection::Overload,
        Rejection::Panic,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Rejection::BadRequest => "bad_request",
            Rejection::HeadTooLarge => "head_too_large",
            Rejection::HeaderTimeout => "header_timeout",
            Rejection::BodyTooLarge => "body_too_large",
            Rejection::NoRoute => "no_route",
            Rejection::ConnectionsPerIp => "connections_per_ip",
            Rejection::ProxyProtocol => "proxy_protocol",
            Rejection::RateLimited => "rate_limited",
            Rejection::Forbidden => "forbidden",
            Rejection::Overload => "overload",
            Rejection::Panic => "panic",
        }
    }
}

impl ListenerStats {
    pub fn handshake(&self, outcome: Handshake) {
        self.handshakes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn handshakes(&self, outcome: Handshake) -> u64 {
        self.handshakes[outcome as usize].load(Ordering::Relaxed)
    }

    pub fn reject(&self, why: Rejection) {
        self.rejected[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn rejected(&self, why: Rejection) -> u64 {
        self.rejected[why as usize].load(Ordering::Relaxed)
    }
}

/// What the control side counts.
#[derive(Debug, Default)]
pub struct ControlStats {
    pub reloads_applied: AtomicU64,
    pub reloads_rejected: AtomicU64,
    /// Key: service, to, trigger, outcome.
    switches: Mutex<BTreeMap<(Arc<str>, Color, &'static str, &'static str), u64>>,
    /// Call to ack, by [`LATENCY_BOUNDS_US`], the unbounded one last.
    pub switch_latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    pub switch_latency_sum_us: AtomicU64,
    /// Key: service, kind, outcome.
    drained: Mutex<BTreeMap<(Arc<str>, &'static str, &'static str), u64>>,
}

impl ControlStats {
    /// A switch of `service` that ended as `outcome` (`done` or `refused`).
    pub fn switch(&self, service: &Arc<str>, to: Color, trigger: &'static str, outcome: &'static str) {
        *self.switches.lock().entry((service.clone(), to, trigger, outcome)).or_default() += 1;
    }

    pub fn switch_took(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < took);
        self.switch_latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.switch_latency_sum_us.fetch_add(took, Ordering::Relaxed);
    }

    /// `count` exchanges of a drain that ended as `outcome` (`finished`, `kept` or `cut`).
    pub fn drained(&self, service: &Arc<str>, kind: &'static str, outcome: &'static str, count: u64) {
        *self.drained.lock().entry((service.clone(), kind, outcome)).or_default() += count;
    }

    /// Rows of `teal_switches_total`: service, to, trigger, outcome, count.
    pub fn switches(&self) -> Vec<(Arc<str>, Color, &'static str, &'static str, u64)> {
        self.switches
            .lock()
            .iter()
            .map(|((s, to, trigger, outcome), n)| (s.clone(), *to, *trigger, *outcome, *n))
            .collect()
    }

    /// Rows of `teal_drain_streams_total`: service, kind, outcome, count.
    pub fn drains(&self) -> Vec<(Arc<str>, &'static str, &'static str, u64)> {
        self.drained.lock().iter().map(|((s, kind, outcome), n)| (s.clone(), *kind, *outcome, *n)).collect()
    }
}
