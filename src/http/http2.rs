//! A client's connection that speaks HTTP/2 (RFC 9113): it becomes one conversation after the other.
//!
//! Each request gets a task, a seat and a [`Client`] of its own, whose stream is an [`Exchange`](stream::Exchange): towards
//! the client it speaks frames, towards us the text of HTTP/1.1. So a request has one meaning whichever way it came, and
//! everything that is promised of a request is promised once. Frames, flow control and most of their abuse are left to `h2`;
//! what it lets pass is counted by [`wire`] and by what clients give up.

pub(super) mod origin;
mod stream;
mod text;
mod wire;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;

use crate::http::connection::{contained, serve};
use crate::http::http2::wire::{Seen, Wire};
use crate::http::{Client, Permit};
use crate::metrics::Rejection;
use crate::net::Stream;
use crate::roster::Interrupt;

/// How a connection begins whose client knows that we speak HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests of one connection at a time.
const MOST_STREAMS: u32 = 128;
/// Octets of request bodies that a client may send ahead, in one stream and in all.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Octets of an answer that wait in memory for the client, per stream.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a client has reset and we have not looked at yet (CVE-2023-44487), and errors of its making that made us
/// reset one (CVE-2025-8671); more of either ends the connection.
const MOST_RESETS: usize = 20;
const MOST_ERRORS: usize = 256;
/// `h2` counts errors in the life of a connection: one that comes so far is asked to make place for a new one in time,
/// and loses nothing. A flood is faster than that.
const ERRORS_OF_A_LIFE: usize = MOST_ERRORS / 2;
/// Requests of one connection that its client may have given up before they were answered, unless they are fewer than those
/// that it waited for. Each has cost an origin something, however late the reset came.
const MOST_GIVEN_UP: usize = 500;
/// How long a client may take to answer a goodbye.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Whether a connection begins in HTTP/2; `None`: too early to say.
pub(super) fn begins(bytes: &[u8]) -> Option<bool> {
    let length = bytes.len().min(PREFACE.len());
    match bytes[..length] == PREFACE[..length] {
        true if length == PREFACE.len() => Some(true),
        true => None,
        false => Some(false),
    }
}

/// A connection and its requests that are under way.
#[derive(Debug)]
struct UnderWay {
    /// Without its stream.
    client: Client,
    count: AtomicUsize,
    /// Requests so far.
    begun: AtomicUsize,
    given_up: AtomicUsize,
}

impl UnderWay {
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// The client has lost interest in a request of its.
    fn give_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the client asks for much that it does not want.
    fn is_wasted(&self) -> bool {
        let given_up = self.given_up.load(Ordering::Relaxed);
        given_up > MOST_GIVEN_UP && given_up > self.begun.load(Ordering::Relaxed) / 2
    }
}

/// One request's share of its connection, and its place in the limits: the first one has that of the connection.
#[derive(Debug)]
struct Share(Arc<UnderWay>, #[expect(dead_code, reason = "to be dropped")] Option<Box<dyn Permit>>);

impl Share {
    /// `None`: there is no place.
    fn of(under_way: &Arc<UnderWay>) -> Option<Share> {
        let client = &under_way.client;
        let place = if under_way.is_empty() { None } else { Some(client.permit.beside()?) };
        under_way.count.fetch_add(1, Ordering::Relaxed);
        under_way.begun.fetch_add(1, Ordering::Relaxed);
        client.seat.without_limit();
        Some(Share(under_way.clone(), place))
    }
}

impl Permit for Share {
    fn beside(&self) -> Option<Box<dyn Permit>> {
        None
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let UnderWay { client, count, .. } = &*self.0;
        if count.fetch_sub(1, Ordering::Relaxed) == 1 {
            let is_leaving = client.seat.is_leaving();
            client.seat.within(if is_leaving { LAST_WORDS } else { client.listener.limits.idle_timeout });
        }
    }
}

/// What happens on a connection besides requests.
enum Event {
    /// It has ended.
    Over,
    /// It costs more than it is good for.
    Abuse,
    Interrupt(Interrupt),
}

/// Serves the connection until the client leaves or is asked to.
pub async fn serve_http2(client: Client) {
    let stats = client.stats.clone();
    // A panic has ended the connection and what it carried with it.
    let _ = contained(pin!(conversations(client)), &stats).await;
}

/// Drives a connection from its first octets to its end.
async fn conversations(mut client: Client) {
    client.seat.take().await;
    client.seat.within(client.listener.limits.header_timeout);
    let seen = Arc::new(Seen::default());
    let ahead = std::mem::take(&mut client.buffer);
    let wire = Wire::new(ahead, client.stream.take(), PREFACE.len(), seen.clone());
    let handshake = settings(&client).handshake::<_, Bytes>(wire);
    let Ok(Ok(mut connection)) = client.seat.guard(handshake).await else { return };
    client.seat.within(client.listener.limits.idle_timeout);
    let [count, begun, given_up] = [const { AtomicUsize::new(0) }; 3];
    let under_way = Arc::new(UnderWay { client, count, begun, given_up });
    let seat = &under_way.client.seat;
    let mut is_leaving = false;
    loop {
        match converse(&mut connection, &under_way, is_leaving, &seen).await {
            Event::Over => return,
            Event::Abuse => break,
            Event::Interrupt(Interrupt::Cut) => return,
            Event::Interrupt(Interrupt::Timeout) if is_leaving => return,
            Event::Interrupt(interrupt) => {
                if interrupt == Interrupt::Timeout && under_way.is_empty() && seen.is_amid_head() {
                    under_way.client.stats.reject(Rejection::HeaderTimeout);
                }
                is_leaving = true;
                seat.leave();
                // Says goodbye twice: what is on its way when the first arrives is still served.
                connection.graceful_shutdown();
                if under_way.is_empty() {
                    seat.within(LAST_WORDS);
                }
            }
        }
    }
    tracing::debug!(client = ?under_way.client.peer, "HTTP/2 connection costs more than it is good for");
    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    seat.within(LAST_WORDS);
    let _ = seat.guard(poll_fn(|cx| connection.poll_closed(cx))).await;
}

fn settings(client: &Client) -> Builder {
    let mut builder = Builder::new();
    let head = u32::try_from(client.listener.limits.request_head).unwrap_or(u32::MAX);
    builder
        .max_concurrent_streams(MOST_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(head)
        .max_pending_accept_reset_streams(MOST_RESETS)
        .max_local_error_reset_streams(Some(MOST_ERRORS))
        .enable_connect_protocol();
    builder
}

/// Begins a conversation for each request, and drives everything else on the connection, until something else happens.
async fn converse(
    connection: &mut Connection<Wire, Bytes>,
    under_way: &Arc<UnderWay>,
    is_leaving: bool,
    seen: &Seen,
) -> Event {
    let seat = &under_way.client.seat;
    let has_lived = || seat.is_leaving() || seen.errors() >= ERRORS_OF_A_LIFE;
    let mut was_amid_head = false;
    poll_fn(|cx| {
        loop {
            if let Some(interrupt) = seat.interrupt() {
                return Poll::Ready(Event::Interrupt(interrupt));
            }
            if !is_leaving && has_lived() {
                return Poll::Ready(Event::Interrupt(Interrupt::Leave));
            }
            match connection.poll_accept(cx) {
                _ if seen.is_flooded() => return Poll::Ready(Event::Abuse),
                Poll::Ready(Some(Ok(_))) if under_way.is_wasted() => return Poll::Ready(Event::Abuse),
                Poll::Ready(Some(Ok((request, respond)))) => begin(under_way, request, respond),
                Poll::Ready(None | Some(Err(_))) => return Poll::Ready(Event::Over),
                // Seen while it was polled: nothing else would wake it for that.
                Poll::Pending if !is_leaving && has_lived() => return Poll::Ready(Event::Interrupt(Interrupt::Leave)),
                Poll::Pending => break,
            }
        }
        // While requests are under way, their limits are enough. What is left of the time goes on if no request comes of it.
        let is_amid_head = seen.is_amid_head() && under_way.is_empty() && !is_leaving;
        if is_amid_head && !was_amid_head {
            seat.within(under_way.client.listener.limits.header_timeout);
        }
        was_amid_head = is_amid_head;
        Poll::Pending
    })
    .await
}

fn begin(under_way: &Arc<UnderWay>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let Some(head) = text::request_head(&parts, &body) else {
        return respond.send_reset(Reason::PROTOCOL_ERROR);
    };
    // Nothing has been done for it, and its client knows.
    let Some(share) = Share::of(under_way) else { return respond.send_reset(Reason::REFUSED_STREAM) };
    let is_head = parts.method == http::Method::HEAD;
    let stream = stream::Exchange::new(head, body, respond, is_head, under_way.clone());
    let client = under_way.client.beside(Stream::Multiplexed(Box::new(stream)), Box::new(share));
    // The runtime moves a task when it begins and when it ends: no more than a pointer then.
    tokio::spawn(Box::pin(serve(client)));
}
