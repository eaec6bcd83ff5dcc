//! WebSockets over HTTP/2 (RFC 8441) and event streams: with the goodbyes that they have over HTTP/1.1.

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::io::AsyncWriteExt;

use crate::good::{self, Good};
use crate::support::client::Client;
use crate::support::frames::{self, Colors, Frame, account};

const KEY_FIELD: &str = "sec-websocket-key";

/// A WebSocket of a client that speaks HTTP/2, and its other end.
struct Ends {
    _client: Good,
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Octets that have come and are no frame yet.
    buffer: Vec<u8>,
    origin: Client,
}

fn upgrade() -> Request<()> {
    let request =
        Request::builder().method("CONNECT").uri("http://test/chat").extension(Protocol::from_static("websocket"));
    request.header("sec-websocket-version", "13").header("origin", "http://test").body(()).expect("a request")
}

/// A client that knows that it may ask for WebSockets.
async fn connect(colors: &Colors) -> Good {
    let client = Good::connect(colors.teal.address).await;
    let allowed = || client.send.is_extended_connect_protocol_enabled();
    crate::support::eventually("extended CONNECT is allowed", allowed).await;
    client
}

impl Ends {
    async fn open(colors: &mut Colors) -> Ends {
        let mut client = connect(colors).await;
        let (waiting, send) = client.begin(upgrade(), true).await;
        let mut call = colors.blue.next().await;
        assert!(call.head.starts_with("GET /chat HTTP/1.1\r\n"), "{}", call.head);
        for (name, value) in [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")] {
            assert_eq!(call.field(name), Some(value));
        }
        let key = call.field(KEY_FIELD).expect("a key").to_owned();
        call.send(accepted(&key)).await;
        let answer = good::head(waiting).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!answer.headers().contains_key(name), "{name}");
        }
        assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
        Ends { _client: client, send, recv: answer.into_body(), buffer: Vec::new(), origin: call.wire }
    }

    fn say(&mut self, frame: &Frame) {
        self.send.send_data(frame.by_client().into(), false).expect("an open stream");
    }

    /// The next frame at the client.
    async fn hear(&mut self) -> Frame {
        loop {
            if let Some((frame, length)) = frames::parse(&self.buffer) {
                self.buffer.drain(..length);
                return frame;
            }
            let data = good::piece(&mut self.recv).await.expect("it goes on").expect("a connection");
            self.buffer.extend_from_slice(&data);
        }
    }

    /// Whether the stream has ended in order, with nothing more.
    async fn has_ended(&mut self) -> bool {
        self.buffer.is_empty() && good::piece(&mut self.recv).await.is_none()
    }
}

fn accepted(key: &str) -> String {
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_websocket_carries_frames_both_ways_and_ends_on_either_side() {
    let mut colors = Colors::new("").await;
    // The client ends it.
    let mut ends = Ends::open(&mut colors).await;
    for text in ["hello", &"x".repeat(40_000)] {
        ends.say(&Frame::text(text));
        ends.origin.expect(Frame::text(text).by_client()).await;
        ends.origin.send(Frame::text(text).by_server()).await;
        assert_eq!(ends.hear().await, Frame::text(text));
    }
    // One side at a time: what the other still says gets through.
    ends.send.send_data(Bytes::new(), true).expect("an open stream");
    assert_eq!(ends.origin.rest().await, (Vec::new(), true));
    ends.origin.send(Frame::text("last words").by_server()).await;
    assert_eq!(ends.hear().await, Frame::text("last words"));
    drop(ends.origin);
    assert!(good::piece(&mut ends.recv).await.is_none());
    // The other way round.
    let mut ends = Ends::open(&mut colors).await;
    ends.origin.stream.shutdown().await.expect("an open connection");
    assert!(good::piece(&mut ends.recv).await.is_none());
    for text in ["last words", &"x".repeat(40_000)] {
        ends.say(&Frame::text(text));
        ends.origin.expect(Frame::text(text).by_client()).await;
    }
    ends.send.send_data(Bytes::new(), true).expect("an open stream");
    assert_eq!(ends.origin.rest().await, (Vec::new(), true));
    // The origin ends it.
    let mut ends = Ends::open(&mut colors).await;
    ends.origin.send(Frame::close(1000, "").by_server()).await;
    assert_eq!(ends.hear().await, Frame::close(1000, ""));
    ends.say(&Frame::close(1000, ""));
    ends.origin.expect(Frame::close(1000, "").by_client()).await;
    drop(ends.origin);
    assert!(good::piece(&mut ends.recv).await.is_none());
}

#[tokio::test]
async fn a_client_that_resets_its_websocket_ends_it_for_the_origin() {
    let mut colors = Colors::new("").await;
    let mut ends = Ends::open(&mut colors).await;
    ends.send.send_reset(h2::Reason::CANCEL);
    ends.origin.rest().await;
}

#[tokio::test]
async fn a_drain_says_goodbye_to_a_websocket_and_loses_none_of_its_words() {
    let mut colors = Colors::new("drain = { timeout = \"10m\", websocket = { spread = \"0s\" } }").await;
    let mut ends = Ends::open(&mut colors).await;
    ends.say(&Frame::text("question"));
    ends.origin.expect(Frame::text("question").by_client()).await;
    let record = colors.switch().await;
    assert_eq!(frames::read(&mut ends.origin).await.closes(), Some((1001, String::new())));
    ends.origin.send(Frame::text("an answer").by_server()).await;
    assert_eq!(ends.hear().await, Frame::text("an answer"));
    ends.origin.send(Frame::close(1001, "").by_server()).await;
    let told = ends.hear().await;
    assert_eq!((told.closes(), told.is_masked), (Some((1012, "service restart".to_owned())), false));
    ends.say(&Frame::close(1012, ""));
    assert!(ends.has_ended().await);
    let account = account(&record).await;
    assert_eq!((account.at_switch, account.finished, account.cut), (1, 1, 0));
}

#[tokio::test]
async fn a_refused_websocket_passes_the_answer_on() {
    let mut colors = Colors::new("").await;
    for (answer, status, body) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403, "no"),
        ("HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n", 404, "yes"),
        ("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", 302, ""),
        // To the client that would be a WebSocket (RFC 8441 §5).
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n", 502, "502 "),
        ("HTTP/1.1 204 No Content\r\n\r\n", 502, "502 "),
        // Not what was asked for.
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
            502,
            "502 ",
        ),
    ] {
        let mut client = connect(&colors).await;
        let (waiting, _send) = client.begin(upgrade(), true).await;
        let mut call = colors.blue.next().await;
        call.send(answer).await;
        let answer = good::whole(waiting).await.expect("an answer");
        assert_eq!((answer.status, answer.text().starts_with(body)), (status, true), "{}", answer.text());
    }
}

const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

#[tokio::test]
async fn an_event_stream_begins_before_its_first_event_and_ends_between_two() {
    let mut colors = Colors::new("drain = { timeout = \"10m\", sse = { spread = \"0s\" } }").await;
    let mut client = Good::connect(colors.teal.address).await;
    let asked = good::request("GET", "/events").header("accept", "text/event-stream").body(()).expect("a request");
    let (waiting, _) = client.begin(asked, false).await;
    let mut call = colors.blue.next().await;
    call.send(EVENTS).await;
    let mut body = good::head(waiting).await.expect("a head without a body").into_body();
    call.send(chunk("data: 1\n\ndata: half")).await;
    assert_eq!(good::piece(&mut body).await.expect("an event").expect("a connection"), "data: 1\n\ndata: half");
    let record = colors.switch().await;
    call.send(chunk(" of it\n\n")).await;
    let mut rest = Vec::new();
    while let Some(data) = good::piece(&mut body).await {
        rest.extend_from_slice(&data.expect("an end in order"));
    }
    let rest = String::from_utf8(rest).expect("a text");
    assert!(rest.starts_with(" of it\n\n") && rest.contains("retry: ") && rest.ends_with("\n\n"), "{rest:?}");
    let drain = record.drain().expect("something was switched");
    crate::support::soon("the end of the drain", drain.over()).await;
    let sse = drain.report().sse;
    assert_eq!((sse.at_switch, sse.finished, sse.cut), (1, 1, 0));
}
