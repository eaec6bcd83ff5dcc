//! The life of one request: snapshot, route, service, enter the generation, choose an endpoint, send, answer.

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;

use crate::access::Line;
use crate::config::{Access, Balance, Listener};
use crate::error::{Failure, Side};
use crate::http::attempt::{Progress, attempt, choose, knock_again, may_knock_again, may_repeat};
use crate::http::body::{Encoding, Pump};
use crate::http::event_stream::{RETURN, between};
use crate::http::exchange::Done;
use crate::http::head::{Framing, RequestHead, owned, tokens};
use crate::http::headers::{self, Origin, Outgoing};
use crate::http::log;
use crate::http::reply::{Reply, Wish, prefers_problem_json};
use crate::http::{Client, Worker};
use crate::metrics::{Class, ListenerStats, Rejection};
use crate::net::Stream;
use crate::quota::RateLimit;
use crate::roster::Seat;
use crate::router::Rules;
use crate::service::{Kind, Passage};
use crate::state::Readiness;
use crate::stream::tunnel::Tunnel;
use crate::stream::websocket;
use crate::tls::Session;
use crate::upstream::{Endpoint, Lease, hash_key};

/// What the `Accept` of an event source names. Prepared once: making a search costs as much as many searches.
static EVENT_STREAM: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new("text/event-stream"));
/// When the client of an event stream comes back that could not be had.
const COME_BACK: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5);

/// What has to be known of a request once its head has gone on.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) is_head: bool,
    pub(crate) is_http_10: bool,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
    /// Of a request for an upgrade to WebSocket.
    pub(crate) websocket_key: Option<Box<[u8]>>,
    framing: Framing,
    /// Trailers that `Connection` names.
    private: Vec<Box<[u8]>>,
    /// Doing it twice is the same as doing it once (RFC 9110 §9.2.2).
    pub(crate) is_idempotent: bool,
    /// WebSocket or event stream.
    pub(crate) asks_for: Option<Kind>,
    /// Of what the service balances by, if the request has it.
    pub(crate) key: Option<u64>,
    pub(crate) started: Instant,
    wish: Wish,
    pub(crate) line: Option<Box<Line>>,
}

/// A request that has entered its generation and waits for an endpoint.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) facts: Facts,
    pub(crate) passage: Passage,
    pub(crate) outgoing: Outgoing,
}

/// What a request head led to.
#[derive(Debug)]
pub(crate) enum Begun {
    Forward(Box<Request>),
    /// An answer made here; the connection goes on if the wish does not close it.
    Reply(Reply, Wish),
    /// It is no request: the connection goes on in HTTP/2.
    Http2,
}

/// What becomes of the client's connection after a request.
pub(crate) enum Next {
    Request,
    Close,
    /// Part of the request may not have been read: the close must not take the answer with it.
    CloseGently,
    /// Broken on purpose, so that half an answer cannot look whole.
    Abort,
    Tunnel(Box<Tunnel>),
}

/// Where a request head was read.
pub(crate) struct Place<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) listener: &'a Listener,
    pub(crate) stats: &'a ListenerStats,
    pub(crate) seat: &'a Seat,
    pub(crate) origin: Origin<'a>,
    /// Of the listener.
    pub(crate) rate: Option<&'a RateLimit>,
    pub(crate) session: Option<&'a Session>,
}

/// Decides what to do with a request: finds its service and enters the generation, all in one look at the snapshot.
pub(crate) fn begin(head: &RequestHead<'_>, place: &Place<'_>) -> Begun {
    let wish = wish(head, place);
    if head.path() == place.listener.ready_path {
        // Neither logged nor counted: the balancer asks all the time.
        let readiness = place.worker.state.readiness(place.listener.ready_when);
        return Begun::Reply(Reply::ready(readiness), closing_if_unclear(wish, head));
    }
    if let Err(failure) = count(head, place) {
        return refuse(&failure, Some(head), place, closing_if_unclear(wish, head));
    }
    if place.listener.redirect_to_https && !is_safe(head, &place.origin) && !is_challenge(head.path()) {
        return redirect(head, place, closing_if_unclear(wish, head));
    }
    match enter(head, place, wish) {
        Ok(request) => Begun::Forward(request),
        Err((failure, wish)) => refuse(&failure, Some(head), place, closing_if_unclear(wish, head)),
    }
}

/// Whether the client speaks TLS, if only to a trusted proxy: redirecting that one would never end.
fn is_safe(head: &RequestHead<'_>, origin: &Origin<'_>) -> bool {
    let given = if origin.is_trusted { head.header("x-forwarded-proto") } else { None };
    let proto = given.and_then(|given| tokens(given).next()).unwrap_or(origin.proto.as_bytes());
    proto.eq_ignore_ascii_case(b"https") || proto.eq_ignore_ascii_case(b"wss")
}

/// Where certificates are had from (RFC 8555 §8.3): who asks there has reason to ask in plain text.
fn is_challenge(path: &str) -> bool {
    let is_token = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
    let token = path.strip_prefix("/.well-known/acme-challenge/");
    token.is_some_and(|token| !token.is_empty() && token.bytes().all(is_token))
}

fn redirect(head: &RequestHead<'_>, place: &Place<'_>, wish: Wish) -> Begun {
    let host = headers::without_port(head.host);
    if host.is_empty() {
        return refuse(&Failure::BadRequest("no host"), Some(head), place, wish);
    }
    let reply = Reply::redirect(host, head.target);
    log::answered_here(Some(head), place, &reply, &wish, None);
    Begun::Reply(reply, wish)
}

/// Answers a failure of the client's side before there is a request; `head` is `None` when it could not be read.
pub(crate) fn refuse(failure: &Failure, head: Option<&RequestHead<'_>>, place: &Place<'_>, wish: Wish) -> Begun {
    let why = match failure {
        Failure::HeadTooLarge | Failure::UriTooLong => Rejection::HeadTooLarge,
        Failure::HeadTimeout => Rejection::HeaderTimeout,
        Failure::BodyTooLarge => Rejection::BodyTooLarge,
        Failure::NoRoute => Rejection::NoRoute,
        Failure::TooMany(_) => Rejection::RateLimited,
        Failure::Forbidden => Rejection::Forbidden,
        Failure::Overload => Rejection::Overload,
        _ => Rejection::BadRequest,
    };
    place.stats.reject(why);
    let reply = refusal(failure, head);
    log::answered_here(head, place, &reply, &wish, Some(failure));
    Begun::Reply(reply, wish)
}

/// Who asks for an event stream at a bad moment must come back, here as in [`reply_to`].
fn refusal(failure: &Failure, head: Option<&RequestHead<'_>>) -> Reply {
    let is_event_source = || head.and_then(asks_for) == Some(Kind::Sse);
    if matches!(failure, Failure::Overload) && is_event_source() {
        return Reply::come_back(between(&COME_BACK));
    }
    Reply::to(failure).unwrap_or_else(|| Reply::ready(Readiness::Draining))
}

fn wish(head: &RequestHead<'_>, place: &Place<'_>) -> Wish {
    Wish {
        is_head: head.method == "HEAD",
        problem_json: head.accept.is_some_and(prefers_problem_json),
        closes: !head.keep_alive || place.seat.is_leaving(),
        to_http_10: head.is_http_10,
        id: headers::request_id(head, place.origin.is_trusted),
    }
}

/// A request that is answered here ends the connection where something else than a request may follow: a body that is not
/// read, or frames for whom an upgrade was meant.
fn closing_if_unclear(mut wish: Wish, head: &RequestHead<'_>) -> Wish {
    wish.closes |= head.framing != Framing::Empty || head.websocket_key.is_some();
    wish
}

/// Counts the request where the listener has a limit, whatever becomes of it.
fn count(head: &RequestHead<'_>, place: &Place<'_>) -> Result<(), Failure> {
    let Some(rate) = place.rate else { return Ok(()) };
    let Some(client) = headers::client_address(place.listener, head, place.origin.peer) else { return Ok(()) };
    rate.check(client).map_err(Failure::TooMany)
}

fn enter(head: &RequestHead<'_>, place: &Place<'_>, wish: Wish) -> Result<Box<Request>, (Failure, Wish)> {
    if let Err(failure) = check(head, place) {
        return Err((failure, wish));
    }
    if place.worker.overload.sheds() {
        return Err((Failure::Overload, wish));
    }
    let snapshot = place.worker.state.load();
    let Some((service, target)) = snapshot.route(head.host_name(), head.path()) else {
        return Err((Failure::NoRoute, wish));
    };
    if let Err(failure) = admit(head, place, snapshot.rules(target)) {
        return Err((failure, wish));
    }
    let asks_for = asks_for(head);
    let passage = service.enter(place.worker.id, asks_for.is_some());
    place.seat.work_for(passage.generation_id());
    let outgoing = headers::outgoing(head, &service.config, &place.origin, target.strip, &wish.id);
    let facts = Facts {
        is_head: wish.is_head,
        is_http_10: head.is_http_10,
        keep_alive: head.keep_alive,
        expects_continue: head.expects_continue,
        websocket_key: head.websocket_key.map(Into::into),
        framing: head.framing,
        private: if head.framing == Framing::Chunked { owned(&head.named_by_connection) } else { Vec::new() },
        is_idempotent: matches!(head.method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE"),
        asks_for,
        key: balance_key(head, place, &service.config),
        started: Instant::now(),
        line: log::begun(head, place, service, &wish.id),
        wish,
    };
    Ok(Box::new(Request { facts, passage, outgoing }))
}

fn asks_for(head: &RequestHead<'_>) -> Option<Kind> {
    let is_event_source =
        || head.method == "GET" && head.accept.is_some_and(|accept| EVENT_STREAM.find(accept).is_some());
    if head.websocket_key.is_some() { Some(Kind::WebSocket) } else { is_event_source().then_some(Kind::Sse) }
}

/// What can be refused without knowing the service.
fn check(head: &RequestHead<'_>, place: &Place<'_>) -> Result<(), Failure> {
    if let (Framing::Length(length), Some(limit)) = (head.framing, place.listener.limits.request_body)
        && length > limit
    {
        return Err(Failure::BodyTooLarge);
    }
    if place.session.is_some_and(|session| session.is_misdirected(head.host_name())) {
        return Err(Failure::Misdirected);
    }
    if head.websocket_key.is_some_and(|key| !websocket::is_key(key)) {
        return Err(Failure::BadRequest("invalid sec-websocket-key"));
    }
    Ok(())
}

/// Whether this client may use the route now.
fn admit(head: &RequestHead<'_>, place: &Place<'_>, rules: &Rules) -> Result<(), Failure> {
    if rules.access == Access::default() && rules.rate.is_none() {
        return Ok(());
    }
    let client = headers::client_address(place.listener, head, place.origin.peer);
    if !rules.access.admits(client) {
        return Err(Failure::Forbidden);
    }
    let (Some(rate), Some(client)) = (&rules.rate, client) else { return Ok(()) };
    rate.check(client).map_err(Failure::TooMany)
}

fn balance_key(head: &RequestHead<'_>, place: &Place<'_>, service: &crate::config::Service) -> Option<u64> {
    let value = match &service.balance {
        Balance::LeastRequest | Balance::RoundRobin | Balance::Random => None,
        Balance::HashIp => {
            let client = headers::client_address(place.listener, head, place.origin.peer)?;
            return Some(hash_key(client.to_string().as_bytes()));
        }
        Balance::HashHeader(name) => head.header(name),
        Balance::HashCookie(name) => headers::cookie(head, name),
    };
    value.filter(|value| !value.is_empty()).map(hash_key)
}

/// Sends the request to an endpoint of its generation and the answer to the client; tries another endpoint where that
/// is safe. Dropping the future breaks both connections off.
pub(crate) async fn forward(client: &mut Client, mut request: Box<Request>) -> Next {
    let limit = client.listener.limits.request_body;
    let encoding = if request.facts.framing == Framing::Chunked { Encoding::Chunked } else { Encoding::Plain };
    let upload = Pump::new(Vec::new(), request.facts.framing, encoding, limit);
    let mut upload = upload.without_trailers(std::mem::take(&mut request.facts.private));
    let retries = request.passage.service().config.retries as usize;
    let mut failed: Vec<Arc<Endpoint>> = Vec::new();
    loop {
        let lease = match choose(client, &mut request, &failed).await {
            Ok(lease) => lease,
            Err(failure) if may_knock_again(&request, &failed, &failure) => {
                match knock_again(client, &mut request, &mut failed).await {
                    Ok(()) => continue,
                    Err(failure) => return give_up(client, request, &failure, Progress::default(), None).await,
                }
            }
            Err(failure) => return give_up(client, request, &failure, Progress::default(), None).await,
        };
        let mut attempt = attempt(client, &mut request, &mut upload, &lease, &failed).await;
        match attempt.result {
            Ok(Done::Answered { client_closes, .. }) => {
                finish(client, *request, &attempt.progress, Some(lease.endpoint()), None);
                return if !client_closes {
                    Next::Request
                } else if upload.is_read() && client.buffer.is_empty() {
                    client.stream.send_end();
                    Next::Close
                } else {
                    Next::CloseGently
                };
            }
            Ok(Done::Upgraded { head, early }) => {
                return tunnel(client, *request, lease, attempt.origin.take(), (head, &early));
            }
            Err(failure) if failed.len() < retries && may_repeat(&request, &upload, &failure, &attempt.progress) => {
                request.passage.service().stats.retries.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(endpoint = %lease.endpoint().name(), error = %failure, "retrying");
                failed.push(lease.endpoint().clone());
            }
            Err(failure) if may_knock_again(&request, &[], &failure) => {
                drop(lease);
                if let Err(failure) = knock_again(client, &mut request, &mut failed).await {
                    return give_up(client, request, &failure, Progress::default(), None).await;
                }
            }
            Err(failure) => return give_up(client, request, &failure, attempt.progress, Some(&lease)).await,
        }
    }
}

/// The exchange becomes a tunnel, in a task of its own that is as small as a tunnel is.
fn tunnel(
    client: &mut Client,
    mut request: Request,
    lease: Lease,
    origin: Option<Stream>,
    (head, from_origin): (Vec<u8>, &[u8]),
) -> Next {
    let Some(origin) = origin else { return Next::Abort };
    let from_client = client.buffer.filled().to_vec();
    client.buffer.consume(from_client.len());
    request.passage.turn(Kind::WebSocket);
    client.seat.turn(Kind::WebSocket as u8);
    let passage = finish_head(client, request, lease.endpoint());
    let patience = client.listener.limits.idle_timeout;
    Next::Tunnel(Box::new(Tunnel::new(origin, passage, lease, &from_client, head, from_origin, patience)))
}

/// Accounts for the handshake; what the tunnel does is no longer part of it.
fn finish_head(client: &Client, request: Request, endpoint: &Endpoint) -> Passage {
    let Request { facts, passage, .. } = request;
    let took = facts.started.elapsed();
    passage.stats().done(Class::Status(101), took);
    write_line(client, facts, Some(endpoint), &Progress { status: 101, ..Progress::default() }, took, None);
    passage
}

/// Answers with a reply of our own, if the client can still be answered.
async fn give_up(
    client: &mut Client,
    mut request: Box<Request>,
    failure: &Failure,
    mut progress: Progress,
    lease: Option<&Lease>,
) -> Next {
    let endpoint = lease.map(Lease::endpoint);
    if matches!(failure, Failure::Cut) {
        request.passage.cut();
    }
    note(&request, failure, endpoint);
    if failure.side() != Side::Client {
        request.passage.answered(false);
    }
    let is_begun = progress.status != 0;
    let reply = if is_begun || progress.was_mid_head { None } else { reply_to(&request, failure) };
    let Some(reply) = reply else {
        if !is_begun {
            progress.status = 499;
        }
        finish(client, *request, &progress, endpoint, Some(failure));
        return if progress.close_would_look_whole { Next::Abort } else { Next::Close };
    };
    let mut wish = request.facts.wish.clone();
    // What the origin was sent of the request, and what it did with it, is not known any more.
    let has_body = request.facts.framing != Framing::Empty;
    let is_upgrade = request.facts.websocket_key.is_some();
    wish.closes |= has_body || is_upgrade || progress.was_answering || client.seat.is_leaving();
    (progress.status, progress.bytes) = (reply.counts_as(), reply.octets(&wish));
    finish(client, *request, &progress, endpoint, Some(failure));
    match (super::connection::send(client, reply.bytes(&wish)).await, wish.closes) {
        (true, false) => Next::Request,
        (true, true) => Next::CloseGently,
        (false, _) => Next::Close,
    }
}

/// Who asks for a stream must come back: a browser's WebSocket does as it likes, but its EventSource gives up for good at any
/// status but 200.
fn reply_to(request: &Request, failure: &Failure) -> Option<Reply> {
    let service = request.passage.service();
    match (request.facts.asks_for, failure.side()) {
        (Some(Kind::Sse), Side::Origin | Side::Us) => {
            let settings = service.config.drain.sse.as_ref();
            let range = settings.map_or(COME_BACK, |settings| settings.retry.clone());
            service.returning.expect(*range.end() + RETURN);
            Some(Reply::come_back(between(&range)))
        }
        (Some(_), Side::Origin) if failure.was_never_sent() => Reply::to(&Failure::NoEndpoint),
        _ => Reply::to(failure),
    }
}

/// A client's fault is not our error; an origin's is worth a line.
fn note(request: &Request, failure: &Failure, endpoint: Option<&Arc<Endpoint>>) {
    let service = &request.passage.service().config.name;
    let endpoint = endpoint.map(|endpoint| endpoint.name().to_string());
    let cause = std::error::Error::source(failure).map(ToString::to_string);
    match failure.side() {
        Side::Client => tracing::debug!(%service, endpoint, error = %failure, cause, "request failed"),
        Side::Origin | Side::Us => tracing::warn!(%service, endpoint, error = %failure, cause, "request failed"),
    }
}

/// Accounts for a request whose answer is over, and leaves the generation.
fn finish(
    client: &Client,
    request: Request,
    progress: &Progress,
    endpoint: Option<&Arc<Endpoint>>,
    failure: Option<&Failure>,
) {
    let Request { facts, passage, .. } = request;
    let took = facts.started.elapsed();
    let is_broken = failure.is_some_and(|failure| failure.side() != Side::Client) && progress.was_answering;
    let class = if is_broken { Class::Cut } else { Class::Status(progress.status) };
    passage.stats().done(class, took);
    write_line(client, facts, endpoint.map(|endpoint| &**endpoint), progress, took, failure);
    client.seat.rest();
}

fn write_line(
    client: &Client,
    facts: Facts,
    endpoint: Option<&Endpoint>,
    progress: &Progress,
    took: Duration,
    failure: Option<&Failure>,
) {
    let (Some(access), Some(mut line)) = (&client.worker.access, facts.line) else { return };
    line.status = progress.status;
    line.bytes = progress.bytes;
    line.took_us = log::micros(took);
    line.endpoint = endpoint.map(|endpoint| endpoint.name().to_string());
    line.error = failure.map(ToString::to_string);
    access.log(*line);
}

#[cfg(test)]
mod tests {
    use crate::config::Limits;
    use crate::http::head::parse_request;

    use super::*;

    #[test]
    fn an_event_source_that_is_shed_comes_back() {
        let refused = |accept: &str, failure: &Failure| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n");
            let parsed = parse_request(head.as_bytes(), &Limits::default(), |head, _| refusal(failure, Some(head)));
            let reply = parsed.expect("a valid head").expect("a whole head");
            (reply.status, reply.counts_as())
        };
        assert_eq!(refused("text/event-stream", &Failure::Overload), (200, 503));
        assert_eq!(refused("text/html", &Failure::Overload), (503, 503));
        assert_eq!(refused("text/event-stream", &Failure::NoRoute), (404, 404));
    }
}
