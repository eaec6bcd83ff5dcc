//! A client's connection: heads come in, one request after the other is forwarded.

use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use crate::error::Failure;
use crate::http::Client;
use crate::http::forward::{Begun, Next, Place, begin, forward, refuse};
use crate::http::head::{MAX_REQUEST_LINE, may_end, parse_request};
use crate::http::headers::{Origin, is_trusted, new_request_id};
use crate::http::http2::{self, serve_http2};
use crate::http::reply::{Reply, Wish};
use crate::metrics::{ListenerStats, Rejection};
use crate::net::with_scratch;
use crate::roster::Interrupt;
use crate::stream::tunnel::Tunnel;
use crate::tls::begins_handshake;

/// How long a proxy that stops waits for the first request of a connection that it has let in.
pub const FIRST_WORDS: Duration = Duration::from_secs(1);
/// How long a close waits for a client to stop sending.
const LINGER: Duration = Duration::from_secs(2);
/// Octets that it takes from the client meanwhile: what a fast connection may have under way, several times.
const MAX_LINGER: usize = 16 * 1024 * 1024;
/// How long a reply of our own may take to be sent.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the connection until either side ends it or the roster says so. The task of a WebSocket is another one.
pub async fn serve(mut client: Client) {
    let stats = client.stats.clone();
    let served = contained(pin!(requests(&mut client)), &stats).await;
    match served {
        Ok(Onwards::Tunnel(tunnel)) => drop(tokio::spawn(run_tunnel(client, tunnel))),
        Ok(Onwards::Http2) => drop(tokio::spawn(serve_http2(client))),
        Ok(Onwards::Over) => {}
        // Half an answer must not look whole.
        Err(Panicked) => client.stream.abort_on_close(),
    }
}

/// A panic that was contained.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Panicked;

/// Runs the work of one connection. A panic, which has been reported, ends that work and no other.
pub(super) async fn contained<F: Future>(mut work: Pin<&mut F>, stats: &ListenerStats) -> Result<F::Output, Panicked> {
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(polled) => polled.map(Ok),
        Err(_) => {
            stats.reject(Rejection::Panic);
            Poll::Ready(Err(Panicked))
        }
    })
    .await
}

/// What becomes of a connection that has served its requests.
enum Onwards {
    Over,
    Tunnel(Box<Tunnel>),
    Http2,
}

/// Serves requests, until the connection is over or becomes something else.
async fn requests(client: &mut Client) -> Onwards {
    client.seat.take().await;
    let mut is_first = true;
    loop {
        let next = match next_head(client, is_first).await {
            Some(Begun::Http2) => return Onwards::Http2,
            Some(Begun::Forward(request)) => forward(client, request).await,
            Some(Begun::Reply(reply, wish)) => answer(client, &reply, &wish).await,
            None => Next::Close,
        };
        is_first = false;
        match next {
            Next::Request => {}
            Next::Close => {
                client.stream.hang_up();
                return Onwards::Over;
            }
            Next::CloseGently => {
                linger(client).await;
                return Onwards::Over;
            }
            Next::Abort => {
                client.stream.abort_on_close();
                return Onwards::Over;
            }
            Next::Tunnel(tunnel) => return Onwards::Tunnel(tunnel),
        }
    }
}

/// The task of a tunnel: it owns no more than an idle WebSocket needs.
fn run_tunnel(client: Client, mut tunnel: Box<Tunnel>) -> impl Future<Output = ()> {
    let Client { mut stream, seat, stats, permit, .. } = client;
    async move {
        // After a panic there is nothing to save: a WebSocket without a Close frame does not look whole.
        let _ = contained(pin!(tunnel.run(&mut stream, &seat)), &stats).await;
        // The account is closed before the place is given back.
        drop(tunnel);
        drop(permit);
    }
}

/// The next request head, and what it leads to; `None` when the connection is over.
async fn next_head(client: &mut Client, is_first: bool) -> Option<Begun> {
    let limits = client.listener.clone();
    let limits = &limits.limits;
    let is_idle = !is_first && client.buffer.is_empty();
    client.seat.within(if is_idle { limits.idle_timeout } else { limits.header_timeout });
    let mut scanned = 0;
    let mut may_leave = true;
    loop {
        if !client.buffer.is_empty() && is_worth_parsing(client.buffer.filled(), scanned, limits.request_head) {
            match parse(client, is_first) {
                Ok(Some(begun)) => return Some(begun),
                Ok(None) => {}
                Err(failure) => return Some(refuse(&failure, None, &place(client), last_wish())),
            }
        }
        scanned = client.buffer.len();
        let was_empty = client.buffer.is_empty();
        match read(client, limits.request_head, may_leave).await {
            Ok(Ok(count)) if count > 0 => {}
            Ok(_) => return None,
            Err(Interrupt::Leave) if may_leave && (is_first || client.stream.has_input()) => {
                // A client that has just been let in takes a close for a failure, and does not repeat its request. Nor
                // is one turned away whose request is here and was not seen yet, now or after its time.
                may_leave = false;
                client.seat.within(limits.header_timeout.min(FIRST_WORDS));
                continue;
            }
            Err(Interrupt::Timeout) if is_idle && may_leave && was_empty && client.stream.has_input() => {
                may_leave = false;
                client.seat.within(limits.header_timeout);
                continue;
            }
            Err(Interrupt::Timeout) if (is_idle || !may_leave) && client.buffer.is_empty() => return None,
            Err(Interrupt::Timeout) => return Some(refuse(&Failure::HeadTimeout, None, &place(client), last_wish())),
            Err(Interrupt::Cut | Interrupt::Leave) => return None,
        }
        if was_empty {
            client.seat.within(limits.header_timeout);
        }
    }
}

/// Whether there is something to decide: a head that arrives in many pieces is not parsed again at each of them.
pub(super) fn is_worth_parsing(bytes: &[u8], scanned: usize, max: usize) -> bool {
    let has_grown_beyond = |limit: usize| scanned <= limit && bytes.len() > limit;
    scanned == 0 || bytes.len() >= max || has_grown_beyond(MAX_REQUEST_LINE) || may_end(bytes, scanned)
}

/// Parses what is there and decides about it.
fn parse(client: &mut Client, is_first: bool) -> Result<Option<Begun>, Failure> {
    if is_first && client.session.is_none() && client.buffer.filled().first().copied().is_some_and(begins_handshake) {
        let address = &client.listener.listen;
        client.stats.first_tls_in_plain_text.call_once(|| {
            tracing::warn!(%address, "a client speaks TLS to this listener, which has no tls; said once");
        });
        return Err(Failure::BadRequest("TLS on a port for plain HTTP: begin with http://"));
    }
    if is_first && client.may_begin_http2() {
        match http2::begins(client.buffer.filled()) {
            Some(true) => return Ok(Some(Begun::Http2)),
            None => return Ok(None),
            Some(false) => {}
        }
    }
    let place = place(client);
    let limits = &client.listener.limits;
    let parsed = parse_request(client.buffer.filled(), limits, |head, length| (begin(head, &place), length))?;
    Ok(parsed.map(|(begun, length)| {
        client.buffer.consume(length);
        begun
    }))
}

fn place(client: &Client) -> Place<'_> {
    let origin = Origin {
        peer: client.peer,
        is_trusted: is_trusted(&client.listener, client.peer),
        port: client.port,
        proto: if client.session.is_some() { "https" } else { "http" },
    };
    Place {
        worker: &client.worker,
        listener: &client.listener,
        stats: &client.stats,
        seat: &client.seat,
        origin,
        rate: client.rate.as_deref(),
        session: client.session.as_ref(),
    }
}

/// Reads once. Between two requests the connection may be asked to leave; within a head it gets its time.
async fn read(client: &mut Client, max: usize, may_leave: bool) -> Result<io::Result<usize>, Interrupt> {
    let (stream, buffer, seat) = (&mut client.stream, &mut client.buffer, &client.seat);
    let is_between_requests = may_leave && buffer.is_empty();
    let reading = poll_fn(|cx| {
        let result = stream.poll_read(cx, buffer.spare(max));
        match &result {
            Poll::Ready(Ok(count)) => buffer.add(*count),
            _ => buffer.release_if_empty(),
        }
        result
    });
    if is_between_requests { seat.guard_idle(reading).await } else { seat.guard(reading).await }
}

/// What the sender of a head that cannot be read is assumed to want.
fn last_wish() -> Wish {
    Wish { is_head: false, problem_json: false, closes: true, to_http_10: false, id: new_request_id() }
}

async fn answer(client: &mut Client, reply: &Reply, wish: &Wish) -> Next {
    match (send(client, reply.bytes(wish)).await, wish.closes) {
        (true, false) => Next::Request,
        (true, true) => Next::CloseGently,
        (false, _) => Next::Close,
    }
}

/// Sends bytes of our own; false when the client does not take them.
pub(super) async fn send(client: &mut Client, bytes: Vec<u8>) -> bool {
    let (stream, seat) = (&mut client.stream, &client.seat);
    seat.within(REPLY_TIMEOUT);
    let mut sent = 0;
    let sending = poll_fn(|cx| {
        while sent < bytes.len() {
            match ready!(stream.poll_write(cx, &bytes[sent..])) {
                Ok(count) if count > 0 => sent += count,
                _ => return Poll::Ready(false),
            }
        }
        stream.poll_flush(cx).map(|flushed| flushed.is_ok())
    });
    seat.guard(sending).await.unwrap_or(false)
}

/// Closes so that the client gets what was sent: a close with unread input would be a reset, which destroys it.
async fn linger(client: &mut Client) {
    let (stream, seat) = (&mut client.stream, &client.seat);
    seat.within(LINGER);
    let mut left = MAX_LINGER;
    let draining = poll_fn(|cx| {
        // Idempotent: the second shutdown finds nothing to do.
        let _ = ready!(stream.poll_shutdown(cx));
        while left > 0 {
            match ready!(with_scratch(|scratch| stream.poll_read(cx, scratch))) {
                Ok(count) if count > 0 => left = left.saturating_sub(count),
                _ => return Poll::Ready(()),
            }
        }
        // No more is taken. A close now would be that reset, unless it is one of many streams, whose answer is safe: the client
        // gets its time, and is held up meanwhile.
        if stream.is_multiplexed() { Poll::Ready(()) } else { Poll::Pending }
    });
    let _ = seat.guard(draining).await;
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::sync::Arc;
    use std::task::Context;

    use crate::http::{Permit, Worker};
    use crate::net::{Multiplexed, Stream};
    use crate::roster::Roster;
    use crate::state::State;
    use crate::store::Store;

    use super::*;

    /// A connection that nobody counts.
    #[derive(Debug)]
    struct Uncounted;

    impl Permit for Uncounted {
        fn beside(&self) -> Option<Box<dyn Permit>> {
            Some(Box::new(Uncounted))
        }
    }

    const MAX: usize = 64 * 1024;

    #[tokio::test]
    async fn a_panic_is_counted_and_ends_the_work_of_its_connection_only() {
        let stats = Arc::new(ListenerStats::default());
        let work = |fails: bool| {
            let stats = stats.clone();
            tokio::spawn(async move {
                let work = async {
                    tokio::task::yield_now().await;
                    assert!(!fails, "on purpose");
                };
                contained(pin!(work), &stats).await
            })
        };
        let (bad, good) = (work(true), work(false));
        assert_eq!(bad.await.expect("the panic was contained"), Err(Panicked));
        assert_eq!(good.await.expect("no panic"), Ok(()));
        assert_eq!(stats.rejected(Rejection::Panic), 1);
    }

    #[test]
    fn what_can_only_be_refused_is_looked_at_when_it_has_grown_too_large() {
        let line = vec![b'x'; MAX];
        assert!(is_worth_parsing(&line[..MAX_REQUEST_LINE + 1], MAX_REQUEST_LINE, MAX));
        assert!(!is_worth_parsing(&line[..MAX_REQUEST_LINE + 2], MAX_REQUEST_LINE + 1, MAX));
        assert!(is_worth_parsing(&line, MAX - 1, MAX));
    }

    /// A client on this stream.
    fn client_on(stream: Stream, roster: &Arc<Roster>, state_dir: &Path) -> Client {
        let text = "[[listeners]]\nlisten = \"127.0.0.1:0\"\nidle_timeout = \"1ms\"\nheader_timeout = \"1h\"";
        let config = crate::config::parse(text, Path::new("test.toml")).expect("a valid config");
        let listener = config.listeners[0].clone();
        let store = Arc::new(Store::open(state_dir).expect("a new store"));
        let (state, _) = State::open(config, store, [roster.clone()].into()).expect("a new state");
        let worker = Worker::new(0, state, roster.clone(), None);
        let (seat, stats) = (roster.sit(1), Arc::default());
        Client::new(stream, None, None, seat, Arc::new(worker), listener, stats, None, None, Box::new(Uncounted))
    }

    /// A client between two requests, and the other end of its connection.
    fn idle_client(roster: &Arc<Roster>, state_dir: &Path) -> (Client, std::net::TcpStream) {
        let door = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = std::net::TcpStream::connect(door.local_addr().expect("an address")).expect("a listener");
        let (socket, _) = door.accept().expect("a connection");
        socket.set_nonblocking(true).expect("a TCP socket");
        let stream = Stream::Tcp(tokio::net::TcpStream::from_std(socket).expect("a runtime"));
        (client_on(stream, roster, state_dir), peer)
    }

    /// A stream on which everything fails.
    #[derive(Debug)]
    struct Failing;

    impl Multiplexed for Failing {
        fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            panic!("on purpose")
        }

        fn poll_write(&mut self, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            panic!("on purpose")
        }

        fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            panic!("on purpose")
        }
    }

    #[tokio::test]
    async fn a_panic_of_an_http2_connection_is_counted_and_ends_that_connection() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let roster = Roster::new();
        let client = client_on(Stream::Multiplexed(Box::new(Failing)), &roster, dir.path());
        let stats = client.stats.clone();
        tokio::spawn(serve_http2(client)).await.expect("the panic was contained");
        assert_eq!(stats.rejected(Rejection::Panic), 1);
        assert!(roster.is_empty(), "its seat was given back");
    }

    /// A client that never stops sending.
    #[derive(Debug)]
    struct Endless;

    impl Multiplexed for Endless {
        fn poll_read(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buffer.len()))
        }

        fn poll_write(&mut self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// It would keep the window of the others meanwhile.
    #[tokio::test]
    async fn a_stream_of_many_does_not_linger_beyond_its_fill() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut client = client_on(Stream::Multiplexed(Box::new(Endless)), &Roster::new(), dir.path());
        client.seat.take().await;
        assert!(poll_once(&mut Box::pin(linger(&mut client))).await.is_ready());
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx))).await
    }

    /// The system has the request, and the runtime has not said so yet: nothing is awaited in between.
    #[tokio::test]
    async fn a_close_never_overtakes_a_request_that_is_here() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (place, is_asked_to_leave, sent) in [(0, false, true), (1, true, true), (2, false, false), (3, true, false)]
        {
            let roster = Roster::new();
            roster.set_shortest_timeout(Duration::from_millis(1));
            let (mut client, mut peer) = idle_client(&roster, &dir.path().join(place.to_string()));
            client.seat.take().await;
            let mut next = Box::pin(next_head(&mut client, false));
            assert!(poll_once(&mut next).await.is_pending());
            if sent {
                peer.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("an open connection");
            }
            if is_asked_to_leave {
                Roster::close_all(std::slice::from_ref(&roster));
            } else {
                while roster.tick() == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            assert_eq!(poll_once(&mut next).await.is_pending(), sent, "it is closed although a request is here");
            if sent {
                assert!(next.await.is_some(), "the request is not read");
            }
        }
    }
}
