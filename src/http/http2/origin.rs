//! HTTP/2 to an endpoint: a connection that many requests of a worker share, each a byte stream of HTTP/1.1.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, Reason, RecvStream};
use http::{Method, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::io::InspectReader;

use crate::http::decoder::Decoder;
use crate::http::http2::stream::{Reading, Sending, Text, broken};
use crate::http::http2::text::{self, HeadText, OriginHead};
use crate::net::{Multiplexed, Opener, Refused, Stream, Unsayable};

/// Requests that share a connection; more of them get another one.
const MOST_STREAMS: usize = 100;
/// Octets of answers that an endpoint may send ahead, per request and in all.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Octets of a request that wait in memory, per request.
const SEND_BUFFER: usize = 64 * 1024;
/// Octets of a head of an answer, as for HTTP/1.1.
const MAX_ANSWER_HEAD: u32 = 256 * 1024;
/// Octets of a head of a request of ours.
const MAX_HEAD: usize = 2 * 1024 * 1024;
/// How long a connection that nobody uses any more may take to send what is left.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Begins to speak HTTP/2 on a connection. It is driven by a task of its own, which ends with its last request once the
/// opener is gone.
///
/// # Errors
/// When the endpoint does not speak HTTP/2.
pub(crate) async fn begin(stream: Stream) -> io::Result<Box<dyn Opener>> {
    let is_secure = !stream.is_plain();
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_ANSWER_HEAD);
    let heard = Arc::new(AtomicU64::new(0));
    let counted = heard.clone();
    let stream = InspectReader::new(stream, move |octets: &[u8]| {
        counted.fetch_add(octets.len() as u64, Ordering::Relaxed);
    });
    let (send, mut connection) = builder.handshake(stream).await.map_err(broken)?;
    let pings = connection.ping_pong();
    let (users, left) = oneshot::channel();
    let line = Arc::new(Line { heard, is_silent: AtomicBool::new(false), _users: users });
    let driver = tokio::spawn(drive(connection, left));
    // Its settings come before anything else that it says: how many requests it takes, and whether WebSockets.
    if let Some(mut pings) = pings {
        pings.ping(Ping::opaque()).await.map_err(broken)?;
    }
    Ok(Box::new(Shared { send, line, is_secure, driver }))
}

/// Drives a connection to its end. Once nobody uses it, that is not waited for: an endpoint that reads nothing more would keep
/// it for ever.
async fn drive(connection: Connection<impl AsyncRead + AsyncWrite + Unpin>, left: oneshot::Receiver<()>) {
    let given_up = async {
        // Nothing is ever sent: an error is what is waited for.
        let _ = left.await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "HTTP/2 connection to an endpoint broke");
        },
        () = given_up => tracing::debug!("HTTP/2 connection to an endpoint did not end by itself"),
    }
}

/// What the requests on a connection have in common.
#[derive(Debug)]
struct Line {
    /// Octets that have come in.
    heard: Arc<AtomicU64>,
    /// Nothing came for as long as a request may wait for its answer: others must not wait here, too.
    is_silent: AtomicBool,
    /// Tells the driver, by being dropped, that there is nobody left.
    _users: oneshot::Sender<()>,
}

/// A connection that more requests may share.
#[derive(Debug)]
struct Shared {
    send: SendRequest<Bytes>,
    /// Cloned by every request under way.
    line: Arc<Line>,
    is_secure: bool,
    driver: tokio::task::JoinHandle<()>,
}

impl Opener for Shared {
    fn open(&mut self) -> Option<Stream> {
        if self.in_use() >= self.capacity() {
            return None;
        }
        let request = Asking::Head { text: HeadText::default(), send: self.send.clone(), is_secure: self.is_secure };
        Some(Stream::Multiplexed(Box::new(Conversation {
            request,
            answer: Answering::Nothing,
            is_head: false,
            key: None,
            heard_before: 0,
            line: self.line.clone(),
        })))
    }

    fn capacity(&self) -> usize {
        self.send.current_max_send_streams().min(MOST_STREAMS)
    }

    fn in_use(&self) -> usize {
        Arc::strong_count(&self.line) - 1
    }

    fn is_over(&mut self) -> bool {
        // First, for what a driver that has panicked leaves behind is not to be touched.
        if self.driver.is_finished() || self.line.is_silent.load(Ordering::Relaxed) {
            return true;
        }
        matches!(self.send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }
}

/// One request and its answer: takes the text of a request, reads as the text of the answer. Dropped before its end, it
/// resets the stream.
#[derive(Debug)]
struct Conversation {
    request: Asking,
    answer: Answering,
    is_head: bool,
    /// Of a request for a WebSocket.
    key: Option<Vec<u8>>,
    /// What had come in on the connection when the request went out.
    heard_before: u64,
    line: Arc<Line>,
}

#[derive(Debug)]
enum Asking {
    Head { text: HeadText, send: SendRequest<Bytes>, is_secure: bool },
    Sending(Sending),
}

#[derive(Debug)]
enum Answering {
    /// Nothing was asked yet.
    Nothing,
    /// The request could not be sent.
    Broken,
    /// Interim answers may be waiting.
    Head {
        response: ResponseFuture,
        interim: Bytes,
    },
    Body(Text, RecvStream),
}

impl Conversation {
    /// Takes the head, and what of the body has come with it.
    fn begin(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let head = self.take_head(bytes)?;
        match &mut self.request {
            Asking::Sending(sending) if head < bytes.len() => Ok(head + sending.begin(&bytes[head..])?),
            _ => Ok(head),
        }
    }

    fn take_head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Asking::Head { text, send, is_secure } = &mut self.request else { return Ok(0) };
        let (count, head) = text.take(bytes, MAX_HEAD)?;
        let Some(head) = head else { return Ok(count) };
        let OriginHead { request, framing, expects_continue, key } =
            text::origin_head(&head, *is_secure).ok_or_else(|| io::Error::other(Unsayable::Request))?;
        if key.is_some() && !send.is_extended_connect_protocol_enabled() {
            return Err(io::Error::other(Unsayable::WebSocket));
        }
        self.is_head = request.method() == Method::HEAD;
        let decoder = Decoder::new(framing);
        let is_over = decoder.is_done() && key.is_none();
        let (response, send) = send.send_request(request, is_over).map_err(refused)?;
        self.request = Asking::Sending(match () {
            () if key.is_some() => Sending::Open(send),
            () if is_over => Sending::Done,
            () => Sending::Body(send, decoder),
        });
        self.key = key;
        self.heard_before = self.line.heard.load(Ordering::Relaxed);
        let interim =
            if expects_continue { Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n") } else { Bytes::new() };
        self.answer = Answering::Head { response, interim };
        Ok(count)
    }

    /// The head of the answer as text.
    fn begin_answer(&mut self, response: Response<RecvStream>) {
        let (parts, body) = response.into_parts();
        let is_websocket = self.key.is_some() && parts.status == StatusCode::OK;
        if self.key.is_some() && !is_websocket {
            // A refusal ends what would have been the WebSocket.
            self.request = Asking::Sending(Sending::Done);
        }
        let has_body = !self.is_head && !body.is_end_stream() && !matches!(parts.status.as_u16(), 204 | 304);
        let accept = self.key.take().filter(|_| is_websocket).map(|key| derive_accept_key(&key));
        let (text, is_chunked) = text::answer_text(&parts, has_body, accept.as_deref(), self.is_head);
        let state = match (has_body || is_websocket, is_chunked) {
            (false, _) => Reading::Over,
            (true, true) => Reading::Chunked,
            (true, false) => Reading::Plain,
        };
        self.answer = Answering::Body(Text::new(text, state), body);
    }
}

/// An error before anything was processed may be met by asking elsewhere (RFC 9113 §8.7).
fn refused(error: h2::Error) -> io::Error {
    let is_untouched = error.reason() == Some(Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.reason() == Some(Reason::NO_ERROR));
    if is_untouched { io::Error::other(Refused(error.into())) } else { broken(error) }
}

impl Multiplexed for Conversation {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match &mut self.answer {
                Answering::Nothing => return Poll::Pending,
                Answering::Broken => return Poll::Ready(Ok(0)),
                Answering::Head { interim, .. } if !interim.is_empty() => {
                    let count = interim.len().min(buffer.len());
                    buffer[..count].copy_from_slice(&interim.split_to(count));
                    return Poll::Ready(Ok(count));
                }
                Answering::Head { response, interim } => match ready!(response.poll_informational(cx)) {
                    Some(early) => *interim = text::interim_text(&early.map_err(refused)?.into_parts().0).into(),
                    None => {
                        let response = ready!(Pin::new(response).poll(cx)).map_err(refused)?;
                        self.begin_answer(response);
                    }
                },
                Answering::Body(text, body) => return text.poll_read(cx, body, buffer),
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.request {
            Asking::Head { .. } => {
                let taken = self.begin(bytes);
                if taken.is_err() {
                    self.answer = Answering::Broken;
                }
                Poll::Ready(taken)
            }
            Asking::Sending(sending) => sending.poll_write(cx, bytes),
        }
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.request {
            Asking::Head { .. } => Poll::Ready(Ok(())),
            Asking::Sending(sending) => Poll::Ready(sending.end()),
        }
    }

    fn waited_in_vain(&mut self) {
        if self.line.heard.load(Ordering::Relaxed) == self.heard_before {
            self.line.is_silent.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Asking::Sending(sending) = &mut self.request
            && let Some(send) = sending.stream()
        {
            send.send_reset(Reason::CANCEL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_nobody_uses_ends_although_the_endpoint_reads_nothing() {
        // Room for the preface, and not for the settings behind it.
        let (stream, _endpoint) = tokio::io::duplex(32);
        let (send, connection) = Builder::new().handshake::<_, Bytes>(stream).await.expect("room for the preface");
        let (users, left) = oneshot::channel();
        let driver = tokio::spawn(drive(connection, left));
        drop((send, users));
        tokio::time::timeout(LAST_WORDS * 2, driver).await.expect("it ends").expect("and does not panic");
    }
}
