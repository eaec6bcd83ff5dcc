//! The configuration as it is meant.
//!
//! `file` holds what was written; `meaning`, `services` and `release` make a [`Config`] of it, with the help of `reader` (tables),
//! `units` and `address` (values). That is the only step that can fail, and it reports every problem at once. No invalid
//! `Config` exists, so nothing downstream checks one again. `teal check`, `teal run` and a reload all come through
//! [`load`].

mod address;
mod file;
mod meaning;
mod origin;
pub mod problem;
mod reader;
mod release;
mod services;
mod tls;
mod units;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use file::{load, load_noting, parse};
pub use origin::{Protocol, UpstreamTls};
pub use problem::{Problem, Problems};
pub use reader::Expected;
pub use tls::{Certificate, CertificateFacts, ClientAuth, Tls, TlsVersion, date};
pub use units::{parse_duration, parse_size};

/// One of the two colors of a service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    Blue,
    Green,
}

impl Color {
    pub const BOTH: [Color; 2] = [Color::Blue, Color::Green];

    pub fn other(self) -> Color {
        match self {
            Color::Blue => Color::Green,
            Color::Green => Color::Blue,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Color::Blue => "blue",
            Color::Green => "green",
        }
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Color {
    type Err = UnknownColor;

    fn from_str(text: &str) -> Result<Color, UnknownColor> {
        match text {
            "blue" => Ok(Color::Blue),
            "green" => Ok(Color::Green),
            _ => Err(UnknownColor(text.to_owned())),
        }
    }
}

/// A word that is neither `blue` nor `green`.
#[derive(Debug, thiserror::Error)]
#[error("unknown color {0:?}, expected blue or green")]
pub struct UnknownColor(pub String);

/// A value for each color, indexed by [`Color`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ByColor<T> {
    pub blue: T,
    pub green: T,
}

impl<T> ByColor<T> {
    /// Makes the value of each color, blue first.
    pub fn from_fn(mut make: impl FnMut(Color) -> T) -> ByColor<T> {
        let blue = make(Color::Blue);
        ByColor { blue, green: make(Color::Green) }
    }
}

impl<T> std::ops::Index<Color> for ByColor<T> {
    type Output = T;

    fn index(&self, color: Color) -> &T {
        match color {
            Color::Blue => &self.blue,
            Color::Green => &self.green,
        }
    }
}

impl<T> std::ops::IndexMut<Color> for ByColor<T> {
    fn index_mut(&mut self, color: Color) -> &mut T {
        match color {
            Color::Blue => &mut self.blue,
            Color::Green => &mut self.green,
        }
    }
}

/// A whole valid configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    /// At least 1; "one per core" is resolved when the file is read.
    pub workers: usize,
    pub shutdown_timeout: Duration,
    pub shutdown_delay: Duration,
    /// `None` when `listen = "off"`.
    pub admin: Option<Admin>,
    pub log: Log,
    /// Connections of the whole process; each listener may have a limit of its own besides.
    pub connections: usize,
    /// At least one; no two share an address.
    pub listeners: Vec<Arc<Listener>>,
    pub services: BTreeMap<Arc<str>, Arc<Service>>,
    /// In file order. Each names a service that exists; no two have the same host and path.
    pub routes: Vec<Route>,
}

impl Config {
    /// What is allowed, and still not as it should be: keys that others may read, and certificates that have expired or
    /// are about to. One line each, none twice.
    pub fn warnings(&self, now: SystemTime) -> BTreeSet<String> {
        let tls = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let shown_to_endpoints = self.services.values().filter_map(|service| service.own_certificate());
        let mut warnings = BTreeSet::new();
        for certificate in tls.flat_map(|tls| &tls.certificates).chain(shown_to_endpoints) {
            if certificate.is_exposed {
                warnings.insert(exposed(&certificate.key));
            }
            warnings.extend(certificate.warning(now));
        }
        for service in self.services.values() {
            if service.upstream_tls.as_ref().is_some_and(|tls| !tls.is_verified) {
                let name = &service.name;
                warnings
                    .insert(format!("{name}: insecure = true: whoever answers passes for an endpoint; name its ca"));
            }
        }
        warnings
    }

    /// Whether there are private keys in the memory of a process that has it.
    pub fn has_keys(&self) -> bool {
        let of_ours = |service: &Arc<Service>| service.own_certificate().is_some();
        self.listeners.iter().any(|listener| listener.tls.is_some()) || self.services.values().any(of_ours)
    }
}

fn exposed(key: &Path) -> String {
    format!("{} is a private key that everybody on this machine may read: chmod o= it", key.display())
}

/// The admin API.
#[derive(Clone, PartialEq, Debug)]
pub struct Admin {
    pub listen: Address,
    /// Always present when `listen` is neither loopback nor a unix socket.
    pub token: Option<Secret>,
    /// Lower-case host names (with or without port) accepted besides the listen address.
    pub allowed_hosts: Vec<String>,
    /// Who may connect at all.
    pub access: Access,
}

/// A socket address to listen on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A secret value; prints as `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Arc<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Log {
    /// A `tracing` filter such as `info` or `teal=debug`; `RUST_LOG` wins over it.
    pub level: String,
    pub format: LogFormat,
    pub access: AccessLog,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where the line per request goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AccessLog {
    Off,
    /// JSON lines on standard output.
    Stdout,
    /// JSON lines appended to this file.
    File(PathBuf),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Listener {
    pub listen: Address,
    /// `None`: plain text.
    pub tls: Option<Arc<Tls>>,
    pub http2: bool,
    /// Whether a balancer says whose connection it passes on.
    pub proxy_protocol: ProxyProtocol,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    pub ready_path: String,
    /// Besides that the process lives and does not stop.
    pub ready_when: ReadyWhen,
    pub redirect_to_https: bool,
    /// `[limits]` with this listener's own values laid over them.
    pub limits: Limits,
}

impl Listener {
    /// Whether what `peer` says about others is believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&peer))
    }
}

/// What a listener makes of the PROXY protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyProtocol {
    Off,
    /// A trusted peer may send a header.
    Accept,
    /// Nobody comes in without one.
    Require,
}

/// What has to be well for `ready_path` to say so; each asks for more than the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ReadyWhen {
    /// Nothing but the process.
    Running,
    /// The active color of one service has a healthy endpoint.
    Any,
    /// That of every service.
    All,
}

/// Limits of one listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections of this listener; the process has its own limit besides.
    pub connections: usize,
    pub connections_per_ip: Option<usize>,
    /// Octets of a request head.
    pub request_head: usize,
    pub request_headers: usize,
    /// Octets of a request body.
    pub request_body: Option<u64>,
    /// Requests of one client.
    pub rate: Option<Rate>,
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
    pub body_timeout: Duration,
}

/// How many requests one client may make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    pub per_second: NonZeroU32,
    /// At once, after a time without any.
    pub burst: NonZeroU32,
}

/// Who may come in: nobody of `deny`, and of the others all, or those of `allow` if it names any.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
}

impl Access {
    /// Who has no address (on a unix socket) is let in.
    pub fn admits(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address.map(|address| address.to_canonical()) else { return true };
        let is_in = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    pub name: Arc<str>,
    /// What the file says; the state says which color is active.
    pub active: Color,
    /// No address twice in a pool.
    pub pools: ByColor<Vec<Upstream>>,
    pub protocol: Protocol,
    /// `None`: plain text.
    pub upstream_tls: Option<Arc<UpstreamTls>>,
    pub balance: Balance,
    pub host: HostHeader,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub retries: u32,
    pub queue_timeout: Duration,
    /// Per endpoint.
    pub max_in_flight: Option<usize>,
    pub resolve_interval: Duration,
    pub expose_color: bool,
    pub health: Health,
    pub outlier: Outlier,
    pub switch: Switch,
    pub drain: Drain,
}

impl Service {
    /// The certificate that endpoints are shown, if they are.
    pub fn own_certificate(&self) -> Option<&Certificate> {
        self.upstream_tls.as_ref()?.identity.as_ref()
    }
}

/// How the service changes its color.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Switch {
    pub mode: Mode,
    pub fence_timeout: Duration,
    pub min_healthy: MinHealthy,
}

/// Whether requests of two colors may overlap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// New requests go to the new color while the old one's run on.
    Instant,
    /// New requests are held until the old color's have ended.
    Fence,
}

/// How what a switch left behind comes to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drain {
    /// Then what is left is cut.
    pub timeout: Duration,
    /// `None`: WebSockets are left alone until then.
    pub websocket: Option<WebSockets>,
    /// `None`: event streams are left alone until then.
    pub sse: Option<EventStreams>,
}

/// When the streams of a kind are told goodbye.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Nobody is told before.
    pub hold: Duration,
    /// From then on, one after the other over this time.
    pub spread: Duration,
}

/// The goodbye of WebSockets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WebSockets {
    pub pace: Pace,
    /// How long a goodbye may wait for a moment without traffic.
    pub quiet: Duration,
    /// Of the Close frame that the client gets.
    pub code: u16,
    pub reason: Box<str>,
}

/// The goodbye of event streams.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventStreams {
    pub pace: Pace,
    /// A client is told to come back after a time out of this range.
    pub retry: RangeInclusive<Duration>,
}

/// An address as the pool of a color names it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Upstream {
    /// A literal IP address.
    Ip(SocketAddr),
    /// A DNS name, resolved again and again.
    Name {
        host: Arc<str>,
        port: u16,
    },
    Unix(PathBuf),
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Upstream::Ip(address) => address.fmt(f),
            Upstream::Name { host, port } => write!(f, "{host}:{port}"),
            Upstream::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Balance {
    LeastRequest,
    RoundRobin,
    Random,
    HashIp,
    HashCookie(Arc<str>),
    /// Lower-case header name.
    HashHeader(Arc<str>),
}

/// The `Host` that the origin sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostHeader {
    Preserve,
    Upstream,
    Fixed(Arc<str>),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Health {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
    /// `None`: the endpoint's own.
    pub port: Option<u16>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Probe {
    /// A connection that is accepted.
    Tcp,
    /// `GET path` that answers one of `status`.
    Http { path: String, status: Vec<StatusRange>, host: Option<String> },
}

/// Inclusive range of status codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusRange {
    pub from: u16,
    pub to: u16,
}

/// Passive health: ejection after consecutive errors.
#[derive(Clone, PartialEq, Debug)]
pub struct Outlier {
    /// `None`: off.
    pub consecutive_errors: Option<u32>,
    /// First ejection; doubles each time up to five minutes.
    pub eject: Duration,
}

/// Healthy endpoints that a switch target needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MinHealthy {
    All,
    Count(usize),
    /// 0–100, of the endpoints in the pool, rounded up.
    Percent(u8),
}

impl MinHealthy {
    /// The number of healthy endpoints needed out of `total`; at least 1.
    pub fn of(self, total: usize) -> usize {
        match self {
            MinHealthy::All => total,
            MinHealthy::Count(count) => count,
            MinHealthy::Percent(percent) => (total * usize::from(percent)).div_ceil(100),
        }
        .max(1)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    pub host: HostPattern,
    /// Starts with `/`; no trailing `/` unless it is the root.
    pub path: Arc<str>,
    pub service: Arc<str>,
    pub strip_prefix: bool,
    pub access: Access,
    /// Requests of one client on this route.
    pub rate: Option<Rate>,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum HostPattern {
    Any,
    /// Lower-case, without port.
    Exact(Arc<str>),
    /// `*.example.com`, kept as `example.com`; matches any name below it, not the name itself.
    Below(Arc<str>),
}
