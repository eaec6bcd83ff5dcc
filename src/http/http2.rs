//! A client's connection that speaks HTTP/2 (RFC 9113): it becomes one conversation after the other.
//!
//! Each request gets a task, a seat and a [`Client`] of its own, whose stream is an [`Exchange`](stream::Exchange): towards
//! the client it speaks frames, towards us the text of HTTP/1.1. So a request has one meaning whichever way it came, and
//! everything that is promised of a request is promised once. Frames, flow control and their abuse are left to `h2`.

pub(super) mod origin;
mod stream;
mod text;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::Client;
use crate::http::buffer::Buffer;
use crate::http::connection::serve;
use crate::net::Stream;
use crate::roster::{Interrupt, Seat};

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
}

/// One request's share of its connection.
#[derive(Debug)]
struct Share(Arc<UnderWay>);

impl Share {
    fn of(under_way: &Arc<UnderWay>) -> Share {
        under_way.count.fetch_add(1, Ordering::Relaxed);
        under_way.client.seat.without_limit();
        Share(under_way.clone())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let UnderWay { client, count } = &*self.0;
        if count.fetch_sub(1, Ordering::Relaxed) == 1 {
            client.seat.within(client.listener.limits.idle_timeout);
        }
    }
}

/// Serves the connection until the client leaves or is asked to.
pub async fn serve_http2(mut client: Client) {
    client.seat.take().await;
    client.seat.within(client.listener.limits.header_timeout);
    let wire = Wire { ahead: std::mem::take(&mut client.buffer), stream: client.stream.take() };
    let handshake = settings(&client).handshake::<_, Bytes>(wire);
    let Ok(Ok(mut connection)) = client.seat.guard(handshake).await else { return };
    client.seat.within(client.listener.limits.idle_timeout);
    let under_way = Arc::new(UnderWay { client, count: AtomicUsize::new(0) });
    let seat = &under_way.client.seat;
    let mut is_leaving = false;
    loop {
        match next(&mut connection, seat, is_leaving).await {
            Ok(Some(Ok((request, respond)))) => begin(&under_way, request, respond),
            Ok(None | Some(Err(_))) => return,
            Err(Interrupt::Cut) => return connection.abrupt_shutdown(Reason::NO_ERROR),
            Err(Interrupt::Timeout) if is_leaving => return,
            Err(Interrupt::Timeout | Interrupt::Leave) => {
                is_leaving = true;
                // Says goodbye twice: what is on its way when the first arrives is still served.
                connection.graceful_shutdown();
                if under_way.count.load(Ordering::Relaxed) == 0 {
                    seat.within(LAST_WORDS);
                }
            }
        }
    }
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

type Accepted = Option<Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>>;

/// The next request; drives everything else on the connection meanwhile.
async fn next(connection: &mut Connection<Wire, Bytes>, seat: &Seat, is_leaving: bool) -> Result<Accepted, Interrupt> {
    poll_fn(|cx| {
        if let Some(interrupt) = seat.interrupt() {
            return Poll::Ready(Err(interrupt));
        }
        if seat.is_leaving() && !is_leaving {
            return Poll::Ready(Err(Interrupt::Leave));
        }
        connection.poll_accept(cx).map(Ok)
    })
    .await
}

fn begin(under_way: &Arc<UnderWay>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, body) = request.into_parts();
    let Some(head) = text::request_head(&parts, &body) else {
        return respond.send_reset(Reason::PROTOCOL_ERROR);
    };
    let stream = stream::Exchange::new(head, body, respond, parts.method == http::Method::HEAD);
    let share = Box::new(Share::of(under_way));
    tokio::spawn(serve(under_way.client.beside(Stream::Multiplexed(Box::new(stream)), share)));
}

/// What HTTP/2 stands on: what was read already, then the rest.
struct Wire {
    ahead: Buffer,
    stream: Stream,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return AsyncRead::poll_read(Pin::new(&mut self.stream), cx, buffer);
        }
        let count = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.filled()[..count]);
        self.ahead.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write_vectored(Pin::new(&mut self.stream), cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_shutdown(cx)
    }
}
