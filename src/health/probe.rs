//! Asks one endpoint how it is: a connection that is accepted, or a `GET` that gets the status it should.
//!
//! Everything that is read is bounded, in size and in time, and an answer counts only if it is HTTP. What went wrong is
//! told in words that an operator can act on.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::ready;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Response, Status};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::config::{self, Address, Color, Probe, StatusRange, Upstream};
use crate::health::{Settings, is_due};
use crate::net::{Stream, with_scratch};
use crate::upstream::{Endpoint, Health, connect, is_ours};

/// Octets of an answer that are looked at for its head.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 256;
/// Octets that are read after the head.
const MAX_REST: usize = 64 * 1024;

/// Keeps the probes of all endpoints apart: however many there are and however often they should be probed, the control
/// thread has time for something else in between.
#[derive(Debug)]
pub(super) struct Pace {
    next: Mutex<Instant>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { next: Mutex::new(Instant::now()) }
    }
}

impl Pace {
    const GAP: Duration = Duration::from_micros(250);

    /// Resolves when it is the caller's turn, in the order of the calls.
    pub(super) async fn turn(&self) {
        let now = Instant::now();
        let turn = {
            let mut next = self.next.lock();
            let turn = now.max(*next);
            *next = turn + Pace::GAP;
            turn
        };
        if turn > now {
            sleep_until(turn).await;
        }
    }
}

/// Probes `endpoint` at once, and then every `interval` until the service is gone.
pub(super) async fn keep_probing(endpoint: Arc<Endpoint>, color: Color, mut settings: Settings, pace: Arc<Pace>) {
    loop {
        pace.turn().await;
        let last = Instant::now();
        let service = settings.borrow_and_update().clone();
        match probe(&endpoint, &service.health).await {
            Err(error) if error.is_ours() => tracing::debug!(endpoint = %endpoint.name(), %error, "cannot probe"),
            result => take_in(&service, color, &endpoint, result.map_err(|error| error.to_string())),
        }
        if !is_due(last, &mut settings, |service| service.health.interval).await {
            return;
        }
    }
}

fn take_in(service: &config::Service, color: Color, endpoint: &Endpoint, result: Result<(), String>) {
    let config::Health { rise, fall, .. } = service.health;
    let (old, reason) = (word(endpoint.health()), result.clone().err());
    let Some(new) = endpoint.probed(result, rise, fall).map(word) else { return };
    let (service, endpoint) = (&*service.name, &**endpoint.name());
    match reason {
        None => tracing::info!(service, %color, endpoint, old, new, "health changed"),
        Some(reason) => tracing::warn!(service, %color, endpoint, old, new, reason, "health changed"),
    }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Unknown => "unknown",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

/// Why a probe failed. Each message is whole, as it is all that people get to see.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("{}", reason(.0))]
    Connect(io::Error),
    #[error("no connection within {}", humantime::format_duration(*.0))]
    NoConnection(Duration),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    NoAnswer(Duration),
    #[error("connection broken: {}", reason(.0))]
    Broken(io::Error),
    #[error("connection closed before the answer was complete")]
    Closed,
    #[error("answer is not HTTP")]
    NotHttp,
    #[error("answer is not HTTP/2")]
    NotHttp2,
    #[error("head of the answer too large")]
    HeadTooLarge,
    #[error("status {found}, expected {}", Expected(expected))]
    Status { found: u16, expected: Vec<StatusRange> },
}

impl ProbeError {
    /// Whether it says nothing about the endpoint.
    fn is_ours(&self) -> bool {
        matches!(self, ProbeError::Connect(error) if is_ours(error))
    }
}

/// What the operating system says, as part of a sentence: `connection refused`.
pub(super) fn reason(error: &io::Error) -> String {
    let message = error.to_string();
    let message = message.split(" (os error").next().unwrap_or_default();
    let mut letters = message.chars();
    // Abbreviations stay as they are.
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(letters).collect(),
        _ => message.to_owned(),
    }
}

struct Expected<'a>(&'a [StatusRange]);

impl fmt::Display for Expected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, StatusRange { from, to }) in self.0.iter().enumerate() {
            f.write_str(if place > 0 { " or " } else { "" })?;
            match to - from {
                0 => write!(f, "{from}")?,
                99 if from % 100 == 0 => write!(f, "{}xx", from / 100)?,
                _ => write!(f, "{from}-{to}")?,
            }
        }
        Ok(())
    }
}

async fn probe(endpoint: &Endpoint, health: &config::Health) -> Result<(), ProbeError> {
    let deadline = Instant::now() + health.timeout;
    let address = target(endpoint.address(), health.port);
    let connected = timeout_at(deadline, connect(endpoint, &address)).await;
    let mut stream = connected.map_err(|_| ProbeError::NoConnection(health.timeout))?.map_err(ProbeError::Connect)?;
    let Probe::Http { path, status, host } = &health.probe else { return Ok(()) };
    let host = host.clone().unwrap_or_else(|| host_of(endpoint.upstream(), health.port));
    let no_answer = |_| ProbeError::NoAnswer(health.timeout);
    let found = if endpoint.transport().protocol.is_http2() {
        timeout_at(deadline, ask_http2(stream, path, &host)).await.map_err(no_answer)??
    } else {
        let found = timeout_at(deadline, ask(&mut stream, path, &host)).await.map_err(no_answer)??;
        // The result does not wait for it.
        tokio::spawn(timeout_at(deadline, hear_out(stream)));
        found
    };
    if status.iter().any(|range| (range.from..=range.to).contains(&found)) {
        Ok(())
    } else {
        Err(ProbeError::Status { found, expected: status.clone() })
    }
}

fn target(address: &Address, port: Option<u16>) -> Address {
    let mut address = address.clone();
    if let (Address::Tcp(address), Some(port)) = (&mut address, port) {
        address.set_port(port);
    }
    address
}

/// The `Host` of an endpoint, RFC 9110 section 7.2, as the configuration names it.
fn host_of(upstream: &Upstream, port: Option<u16>) -> String {
    match upstream {
        Upstream::Ip(address) => SocketAddr::new(address.ip(), port.unwrap_or(address.port())).to_string(),
        Upstream::Name { host, port: own } => format!("{host}:{}", port.unwrap_or(*own)),
        Upstream::Unix(_) => "localhost".to_owned(),
    }
}

/// The status that an origin answers that speaks HTTP/2.
async fn ask_http2(stream: Stream, path: &str, host: &str) -> Result<u16, ProbeError> {
    let scheme = if stream.is_plain() { "http" } else { "https" };
    let request = http::Request::get(format!("{scheme}://{host}{path}"))
        .header("user-agent", concat!("teal-health/", env!("CARGO_PKG_VERSION")))
        .body(())
        .map_err(|_| ProbeError::NotHttp2)?;
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).max_header_list_size(MAX_HEAD as u32);
    let (send, connection) = builder.handshake::<_, bytes::Bytes>(stream).await.map_err(|_| ProbeError::NotHttp2)?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut send = send.ready().await.map_err(|_| ProbeError::NotHttp2)?;
    let (answer, _) = send.send_request(request, true).map_err(|_| ProbeError::NotHttp2)?;
    Ok(answer.await.map_err(|_| ProbeError::NotHttp2)?.status().as_u16())
}

/// The status that the origin answers.
async fn ask(stream: &mut Stream, path: &str, host: &str) -> Result<u16, ProbeError> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: teal-health/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    write_all(stream, request.as_bytes()).await.map_err(ProbeError::Broken)?;
    let (mut answer, mut start) = (Vec::new(), 0);
    loop {
        while let Some((status, length)) = parse(&answer[start..])? {
            // An interim answer, RFC 9110 section 15.2; what was switched to by a 101 is not HTTP any more.
            if !(100..200).contains(&status) || status == 101 {
                return Ok(status);
            }
            start += length;
        }
        let room = MAX_HEAD - answer.len();
        if room == 0 {
            return Err(ProbeError::HeadTooLarge);
        }
        let read = read(stream, room, |octets| answer.extend_from_slice(octets)).await;
        if read.map_err(ProbeError::Broken)? == 0 {
            return Err(ProbeError::Closed);
        }
    }
}

/// The status of the head at the front of `octets` and the length of that head, or nothing if the head is not whole
/// yet.
fn parse(octets: &[u8]) -> Result<Option<(u16, usize)>, ProbeError> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = Response::new(&mut headers);
    match response.parse(octets) {
        Ok(Status::Complete(length)) => {
            let status = response.code.expect("a complete head has a status");
            if status < 100 { Err(ProbeError::NotHttp) } else { Ok(Some((status, length))) }
        }
        Ok(Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(ProbeError::HeadTooLarge),
        Err(_) => Err(ProbeError::NotHttp),
    }
}

/// Reads what follows the head until the origin closes. An origin that finds the connection closed while it still
/// writes would complain in its log, at every probe.
async fn hear_out(mut stream: Stream) {
    let mut room = MAX_REST;
    while let Ok(octets @ 1..) = read(&mut stream, room, |_| {}).await {
        room -= octets;
    }
}

/// Hands over what was read, at most `room` octets; 0 is the end, or no room.
async fn read(stream: &mut Stream, room: usize, mut hand_over: impl FnMut(&[u8])) -> io::Result<usize> {
    if room == 0 {
        return Ok(0);
    }
    poll_fn(|cx| {
        with_scratch(|space| {
            let room = room.min(space.len());
            let octets = ready!(stream.poll_read(cx, &mut space[..room]))?;
            hand_over(&space[..octets]);
            Ok(octets).into()
        })
    })
    .await
}

async fn write_all(stream: &mut Stream, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        match poll_fn(|cx| stream.poll_write(cx, octets)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => octets = &octets[written..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use std::net::TcpListener;

    use tokio::sync::watch;
    use tokio::task::JoinSet;
    use tokio::time::sleep;

    use super::*;
    use crate::health::tests::settings;
    use crate::upstream::Transport;

    #[test]
    fn reasons_are_part_of_a_sentence() {
        let refused = io::Error::from(Errno::CONNREFUSED);
        assert_eq!(reason(&refused), "connection refused");
        assert_eq!(reason(&io::Error::other("DNS is down")), "DNS is down");
        assert_eq!(reason(&io::Error::other("")), "");
        assert_eq!(ProbeError::Broken(refused).to_string(), "connection broken: connection refused");
        assert_eq!(ProbeError::NoConnection(Duration::from_millis(1500)).to_string(), "no connection within 1s 500ms");
    }

    #[test]
    fn what_this_process_lacks_says_nothing_about_an_endpoint() {
        assert!(ProbeError::Connect(Errno::MFILE.into()).is_ours());
        assert!(!ProbeError::Connect(Errno::CONNREFUSED.into()).is_ours());
        assert!(!ProbeError::NoAnswer(Duration::from_secs(1)).is_ours());
    }

    #[test]
    fn expected_statuses_are_shown_as_they_are_written() {
        let range = |from, to| StatusRange { from, to };
        let expected = [range(200, 200), range(300, 399), range(401, 403)];
        assert_eq!(Expected(&expected).to_string(), "200 or 3xx or 401-403");
    }

    #[test]
    fn the_host_is_what_the_configuration_says() {
        let host = |text: &str, port| host_of(&text.parse().expect(text), port);
        assert_eq!(host("10.0.0.1:80", None), "10.0.0.1:80");
        assert_eq!(host("[::1]:80", Some(81)), "[::1]:81");
        assert_eq!(host("api.internal:80", None), "api.internal:80");
        assert_eq!(host("api.internal:80", Some(81)), "api.internal:81");
        assert_eq!(host("unix:/run/api.sock", None), "localhost");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_one_after_the_other_and_a_late_one_at_once() {
        let (pace, start) = (Arc::new(Pace::default()), Instant::now());
        let take = |_| {
            let pace = pace.clone();
            async move {
                pace.turn().await;
                start.elapsed().as_millis()
            }
        };
        let taken = (0..=4_000).map(take).collect::<JoinSet<_>>().join_all().await;
        for within in [250, 500] {
            assert_eq!(taken.iter().filter(|taken| **taken <= within).count(), 4 * within as usize + 1);
        }
        assert_eq!(taken.iter().max(), Some(&1_000));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(take(0).await, 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_waits_for_its_turn() {
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let pace = Arc::new(Pace { next: Mutex::new(start + minute) });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let endpoint =
            Endpoint::new(Upstream::Ip(address), Address::Tcp(address), Transport::default(), 1, Arc::default());
        let endpoint = Arc::new(endpoint);
        let (_sender, settings) = watch::channel(settings("1h"));
        let probing = tokio::spawn(keep_probing(endpoint.clone(), Color::Blue, settings, pace));
        while endpoint.health() == Health::Unknown {
            sleep(Duration::from_millis(100)).await;
        }
        assert!(start.elapsed() >= minute, "{:?}", start.elapsed());
        probing.abort();
    }
}
