//! One attempt of a request at one endpoint: choosing it, connecting, and what may be tried again.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::config::{HostHeader, Upstream};
use crate::error::{Failure, Side};
use crate::http::body::Pump;
use crate::http::exchange::{Done, Exchange};
use crate::http::forward::Request;
use crate::http::http2::origin;
use crate::http::{Client, Worker};
use crate::net::{Refused, Stream};
use crate::roster::{Interrupt, Seat};
use crate::upstream::{self, Choice, Endpoint, Lease, Open};

/// Requests of one service that a fence holds; more are turned away.
const MOST_HELD: usize = 10_000;
/// A fence that is given up takes a moment to fall.
const HELD_LONGER: Duration = Duration::from_secs(1);
/// How long a request for a stream waits before it tries endpoints again that did not take its connection.
const KNOCK: Duration = Duration::from_millis(100);

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) status: u16,
    pub(crate) bytes: u64,
    pub(crate) was_answering: bool,
    pub(crate) was_mid_head: bool,
    pub(crate) close_would_look_whole: bool,
}

pub(crate) struct Attempt {
    pub(crate) result: Result<Done, Failure>,
    pub(crate) progress: Progress,
    /// The connection of an upgrade.
    pub(crate) origin: Option<Stream>,
}

/// One attempt at one endpoint. A first attempt may use an idle connection; later ones do not trust those, nor do they share
/// one with an endpoint that has `failed`.
pub(crate) async fn attempt(
    client: &mut Client,
    request: &mut Request,
    upload: &mut Pump,
    lease: &Lease,
    failed: &[Arc<Endpoint>],
) -> Attempt {
    let mut origin = match connection(client, request, lease.endpoint(), failed).await {
        Ok(origin) => origin,
        Err(failure) => {
            judge(request, lease.endpoint(), &Err(&failure), 0);
            return Attempt { result: Err(failure), progress: Progress::default(), origin: None };
        }
    };
    let is_shared = lease.endpoint().transport().protocol.is_http2();
    upload.restart(outgoing_head(request, lease.endpoint()));
    let (result, progress) = {
        let mut exchange = Exchange::new(client, &mut origin, &mut request.passage, &request.facts, upload);
        let result = poll_fn(|cx| exchange.poll(cx)).await;
        let progress = Progress {
            status: exchange.status,
            bytes: exchange.body_bytes(),
            was_answering: exchange.is_answering(),
            was_mid_head: exchange.is_mid_head(),
            close_would_look_whole: exchange.close_would_look_whole(),
        };
        (result, progress)
    };
    judge(request, lease.endpoint(), &result.as_ref().map(|_| ()), progress.status);
    if matches!(result, Err(Failure::AnswerTimeout)) {
        origin.waited_in_vain();
    }
    match &result {
        Ok(Done::Answered { origin_is_reusable: true, .. }) if !is_shared => {
            lease.endpoint().put_idle(client.worker.id, origin, Instant::now());
            Attempt { result, progress, origin: None }
        }
        Ok(Done::Upgraded { .. }) => Attempt { result, progress, origin: Some(origin) },
        _ => Attempt { result, progress, origin: None },
    }
}

/// A place at an endpoint; waits for one up to `queue_timeout`.
pub(crate) async fn choose(
    client: &mut Client,
    request: &mut Request,
    failed: &[Arc<Endpoint>],
) -> Result<Lease, Failure> {
    if let Some(lease) = choose_now(request, failed) {
        return Ok(lease);
    }
    if !failed.is_empty() {
        // A retry stays in its generation and does not queue.
        return Err(Failure::NoEndpoint);
    }
    let vacancy = request.passage.service().active_pool().vacancy().clone();
    if request.passage.service().is_held() && vacancy.waiting() >= MOST_HELD {
        return Err(Failure::NoEndpoint);
    }
    // Who has knocked in vain has waited already.
    let waited = if request.facts.asks_for.is_some() { request.facts.started.elapsed() } else { Duration::ZERO };
    set_limit(&client.seat, request, waited);
    let (worker, max) = (client.worker.clone(), client.listener.limits.request_head);
    let (seat, stream, buffer) = (&client.seat, &mut client.stream, &mut client.buffer);
    let mut waiting = pin!(vacancy.wait_for(|| {
        look_again(&worker, seat, request);
        choose_now(request, &[])
    }));
    poll_fn(|cx| {
        if let Some(interrupt) = seat.interrupt() {
            return Poll::Ready(Err(if interrupt == Interrupt::Cut { Failure::Cut } else { Failure::NoEndpoint }));
        }
        if let Poll::Ready(lease) = waiting.as_mut().poll(cx) {
            return Poll::Ready(Ok(lease));
        }
        buffer.read_ahead(cx, stream, max).map_err(Failure::ClientGone)?;
        Poll::Pending
    })
    .await
}

/// How long the request may wait: as long as a fence may stand, or for an endpoint.
fn set_limit(seat: &Seat, request: &Request, waited: Duration) {
    let config = &request.passage.service().config;
    let is_held = request.passage.service().is_held();
    seat.within(match is_held {
        true => config.switch.fence_timeout + HELD_LONGER,
        false => config.queue_timeout.saturating_sub(waited),
    });
}

fn choose_now(request: &Request, avoid: &[Arc<Endpoint>]) -> Option<Lease> {
    let service = request.passage.service();
    if service.is_held() {
        return None;
    }
    service.active_pool().choose(Choice { service: &service.config, key: request.facts.key, avoid })
}

/// A request that waits has not begun: if its service has changed meanwhile, it enters what is active now.
fn look_again(worker: &Worker, seat: &Seat, request: &mut Request) {
    let snapshot = worker.state.load();
    let Some(service) = snapshot.service(&request.passage.service().config.name) else { return };
    if !Arc::ptr_eq(service, request.passage.service()) {
        let was_held = request.passage.service().is_held();
        request.passage = service.enter(worker.id, request.facts.asks_for.is_some());
        seat.work_for(request.passage.generation_id());
        if was_held != service.is_held() {
            set_limit(seat, request, Duration::ZERO);
        }
        if let Some(line) = &mut request.facts.line {
            line.color = Some(service.active.as_str());
        }
    }
}

/// Whether a request for a stream, which nobody has seen yet, may wait until an endpoint takes connections again.
pub(crate) fn may_knock_again(request: &Request, failed: &[Arc<Endpoint>], failure: &Failure) -> bool {
    let is_unseen = failure.was_never_sent() || (matches!(failure, Failure::NoEndpoint) && !failed.is_empty());
    let limit = request.passage.service().config.queue_timeout;
    is_unseen && request.facts.asks_for.is_some() && request.facts.started.elapsed() + KNOCK <= limit
}

/// Waits a moment; then all endpoints of the color that is active by then may be tried again.
pub(crate) async fn knock_again(
    client: &mut Client,
    request: &mut Request,
    failed: &mut Vec<Arc<Endpoint>>,
) -> Result<(), Failure> {
    let max = client.listener.limits.request_head;
    client.seat.within(KNOCK * 10);
    let mut pause = pin!(tokio::time::sleep(KNOCK));
    let (seat, stream, buffer) = (&client.seat, &mut client.stream, &mut client.buffer);
    poll_fn(|cx| {
        if seat.interrupt().is_some() {
            return Poll::Ready(Err(Failure::Cut));
        }
        buffer.read_ahead(cx, stream, max).map_err(Failure::ClientGone)?;
        pause.as_mut().poll(cx).map(Ok)
    })
    .await?;
    failed.clear();
    look_again(&client.worker, &client.seat, request);
    Ok(())
}

/// A connection to the endpoint, an idle one if there is one and it may be used.
async fn connection(
    client: &Client,
    request: &Request,
    endpoint: &Arc<Endpoint>,
    failed: &[Arc<Endpoint>],
) -> Result<Stream, Failure> {
    let worker = client.worker.id;
    let is_shared = endpoint.transport().protocol.is_http2();
    let may_reuse = match is_shared {
        true => !failed.iter().any(|failed| Arc::ptr_eq(failed, endpoint)),
        false => failed.is_empty(),
    };
    let known = match may_reuse {
        true if is_shared => endpoint.sharing(worker).share(),
        true => endpoint.take_idle(worker, !request.facts.is_idempotent),
        false => None,
    };
    if let Some(known) = known {
        return Ok(known);
    }
    let limit = request.passage.service().config.connect_timeout;
    client.seat.within(limit);
    // Boxed, since few requests wait for a connection: in place, every client's task would be three times as large for it.
    let connecting = Box::pin(async {
        if is_shared {
            return endpoint.sharing(worker).place(!may_reuse, limit, open(request, endpoint, worker)).await;
        }
        upstream::connect(endpoint, endpoint.address()).await
    });
    let result = match client.seat.guard(connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if upstream::is_ours(&error) => Err(Failure::Exhausted(error)),
        Ok(Err(error)) => Err(Failure::Connect(error)),
        Err(Interrupt::Timeout) => Err(Failure::ConnectTimeout),
        Err(Interrupt::Cut | Interrupt::Leave) => Err(Failure::Cut),
    };
    if !is_shared {
        request.passage.stats().connected(result.is_ok());
    }
    result
}

/// How connections that requests can share are opened, each within `connect_timeout`, and counted. What that needs of the
/// request it takes with it: it goes on without it.
fn open(request: &Request, endpoint: &Arc<Endpoint>, worker: usize) -> Open {
    let service = request.passage.service();
    let (stats, color, limit) = (service.stats.clone(), service.active, service.config.connect_timeout);
    let endpoint = endpoint.clone();
    Arc::new(move || {
        let (endpoint, stats) = (endpoint.clone(), stats.clone());
        Box::pin(async move {
            let opening = async {
                let opener = origin::begin(upstream::connect(&endpoint, endpoint.address()).await?).await?;
                match opener.capacity() {
                    0 => Err(io::Error::other("the endpoint takes no request")),
                    _ => Ok(opener),
                }
            };
            let late = |_| Err(io::ErrorKind::TimedOut.into());
            let result = tokio::time::timeout(limit, opening).await.unwrap_or_else(late);
            stats.shard(color, worker).connected(result.is_ok());
            result
        })
    })
}

/// The head for this endpoint, if it is not the one that the upload has already.
fn outgoing_head(request: &mut Request, endpoint: &Endpoint) -> Option<Vec<u8>> {
    match request.passage.service().config.host {
        HostHeader::Upstream => request.outgoing.take(Some(&upstream_host(endpoint.upstream()))),
        HostHeader::Preserve | HostHeader::Fixed(_) => request.outgoing.take(None),
    }
}

/// The path of a unix socket is no host.
fn upstream_host(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Ip(_) | Upstream::Name { .. } => upstream.to_string(),
        Upstream::Unix(_) => "localhost".to_owned(),
    }
}

/// Passive health: what the attempt says about the endpoint.
fn judge(request: &Request, endpoint: &Endpoint, result: &Result<(), &Failure>, status: u16) {
    match result {
        Ok(_) if matches!(status, 502..=504) => note_failure(request, endpoint),
        Ok(_) => endpoint.succeeded(),
        Err(failure) if failure.side() == Side::Origin => note_failure(request, endpoint),
        Err(_) => {}
    }
}

fn note_failure(request: &Request, endpoint: &Endpoint) {
    let service = request.passage.service();
    service.active_pool().failed(endpoint, &service.config.outlier);
}

/// Whether the origin cannot have executed the request, or executing it again does no harm; and whether all of it is
/// still there. Nothing of an answer may have been seen.
pub(crate) fn may_repeat(request: &Request, upload: &Pump, failure: &Failure, progress: &Progress) -> bool {
    if failure.side() != Side::Origin || progress.was_answering {
        return false;
    }
    match failure {
        Failure::Broken(Some(error)) if Refused::is_in(error) => upload.can_resend(),
        Failure::Broken(_) => request.facts.is_idempotent && upload.can_rewind(),
        failure => failure.was_never_sent(),
    }
}
