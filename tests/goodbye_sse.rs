//! A drain ends an event stream between two events and says when to come back; who comes back while nobody is there is
//! kept waiting, and then sent away for a while, but not for good.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use socket2::{Domain, Socket, Type};
use teal::config::Color;
use teal::drain::{DrainState, KindReport};
use teal::state::Record;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use support::by_hand::{Call, by_hand};
use support::client::{Answer, Client};
use support::frames::{Colors, REQUEST};
use support::origin::{accepted, ok, read_chunked};
use support::proxy::{Builder, Teal};
use support::{eventually, soon};

const AT_ONCE: &str = "drain = { timeout = \"10m\", sse = { spread = \"0s\" } }";
const GET: &str = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
const OLD_GET: &str = "GET /events HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const UNTIL_CLOSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream;charset=utf-8\r\n\r\n";
const OLD: &str = "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const A_WHILE: Duration = Duration::from_millis(400);
/// What a clock may take off a time.
const SHORT: Duration = Duration::from_millis(50);

/// An event stream with both ends in the test's hand.
struct Feed {
    client: Client,
    call: Call,
    is_chunked: bool,
}

impl Feed {
    async fn open(colors: &mut Colors, request: &str, head: &str) -> Feed {
        let mut client = Client::connect(colors.teal.address).await;
        client.send(request).await;
        let mut call = colors.blue.next().await;
        call.send(head).await;
        Feed { client, call, is_chunked: head.contains("chunked") }
    }

    /// Sends a piece of the stream.
    async fn say(&mut self, text: impl AsRef<[u8]>) {
        let bytes = self.bytes(text.as_ref());
        self.call.send(bytes).await;
    }

    /// The same, and waits until the client has got it: only then has the proxy seen it.
    async fn say_and_hear(&mut self, text: &str) {
        self.say(text).await;
        let client = &mut self.client;
        let has_come = |client: &Client| {
            let seen = String::from_utf8_lossy(&client.buffer);
            seen.split_once("\r\n\r\n").is_some_and(|(_, body)| body.contains(text))
        };
        soon(text, async { while !has_come(client) && client.more().await.is_some() {} }).await;
    }

    fn bytes(&self, text: &[u8]) -> Vec<u8> {
        if self.is_chunked { chunk(text) } else { text.to_vec() }
    }

    /// Reads the rest of a chunked body.
    async fn rest(&mut self) -> Vec<u8> {
        let body = read_chunked(&mut self.client.stream, &mut self.client.buffer);
        soon("the end of the body", body).await.expect("a clean end")
    }

    /// Says `rest` octet by octet, and then comments for as long as somebody listens; gives what the client got.
    async fn until_told(&mut self, rest: &[u8]) -> Answer {
        let octets: Vec<Vec<u8>> = rest.iter().map(|octet| self.bytes(&[*octet])).collect();
        let comment = self.bytes(b":\n");
        let Feed { client, call, .. } = self;
        let talk = async {
            for octet in octets {
                let _ = call.wire.stream.write_all(&octet).await;
            }
            loop {
                let _ = call.wire.stream.write_all(&comment).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            answer = client.answer() => answer,
            () = talk => unreachable!("it talks for ever"),
        }
    }
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

/// What stands before the last words, and the time that the client was told.
fn told(body: &[u8]) -> (&[u8], u64) {
    let at = body.windows(7).rposition(|window| window == b"retry: ").expect("a time to come back");
    let last_words = std::str::from_utf8(&body[at + 7..]).expect("a text");
    let retry = last_words.strip_suffix("\n\n").expect("an event of its own").parse();
    (&body[..at], retry.expect("a number"))
}

/// What has become of the event streams of a switch, once its drain is over.
async fn account(record: &Arc<Record>) -> KindReport {
    let drain = record.drain().expect("something was switched");
    soon("the end of the drain", drain.over()).await;
    drain.report().sse
}

fn finished(count: u64) -> KindReport {
    KindReport { at_switch: count, finished: count, ..KindReport::default() }
}

fn cut(count: u64) -> KindReport {
    KindReport { at_switch: count, cut: count, ..KindReport::default() }
}

#[tokio::test]
async fn a_stream_ends_well_in_every_framing_and_its_connection_goes_on() {
    let ranges = [("", 1000..=5000), (", retry = \"7s\"", 7000..=7000), (", retry = \"20ms..30ms\"", 20..=30)];
    for (retry, range) in ranges {
        let settings = format!("drain = {{ timeout = \"10m\", sse = {{ spread = \"0s\"{retry} }} }}");
        let mut colors = Colors::new(&settings).await;
        let mut feeds = Vec::new();
        for head in [CHUNKED, UNTIL_CLOSE, OLD] {
            for request in [GET, OLD_GET] {
                let mut feed = Feed::open(&mut colors, request, head).await;
                feed.say_and_hear("data: 1\n\ndata: 2\nid").await;
                feeds.push((feed, request == GET));
            }
        }
        let record = colors.switch().await;
        for (feed, is_keep_alive) in &mut feeds {
            let answer = feed.until_told(b": 2\n\n").await;
            let (events, retry) = told(&answer.body);
            let events = String::from_utf8_lossy(events);
            assert_eq!(events.trim_end_matches(":\n"), "data: 1\n\ndata: 2\nid: 2\n\n");
            assert!(range.contains(&retry), "{retry}");
            feed.call.gone().await;
            if *is_keep_alive {
                feed.client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
                colors.green.next().await.send(ok("green")).await;
                assert_eq!(feed.client.answer().await.text(), "green");
            } else {
                assert_eq!(feed.client.rest().await, (Vec::new(), true));
            }
        }
        assert_eq!(account(&record).await, finished(6));
    }
}

/// Pieces of a stream behind each of which another event could begin.
fn samples() -> Vec<Vec<Vec<u8>>> {
    let lines = [
        vec!["data: a\n\n", ":\n", ": comment\n", "\n", "event: b\ndata:\ndata: b\n\n"],
        vec!["data: a\r\r", ":\r", ": comment\r", "\r", "id: b\rdata: b\r\r"],
        vec!["data: a\r\n\r", "\n", ": comment\r", "\n", "retry: 5\r\n: no end\r\ndata\r\n\r", "\n"],
        vec!["data: a\r\n\n", "data: b\n\r", "\n", "data: c\r\r", "\n", "data: d\n\r", "\r"],
        vec!["\u{feff}", "data: a\n\n", "data: \u{feff}\n\n"],
    ];
    lines.map(|sample| sample.into_iter().map(|piece| piece.as_bytes().to_vec()).collect()).to_vec()
}

/// Streams of which the clients have got another part each when the switch comes, up to every octet.
#[tokio::test]
async fn wherever_a_stream_is_no_event_is_torn() {
    let mut colors = Colors::new(AT_ONCE).await;
    let mut feeds = Vec::new();
    for (n, sample) in samples().into_iter().enumerate() {
        let bytes = sample.concat();
        let mut places = vec![0];
        sample.iter().for_each(|piece| places.push(places[places.len() - 1] + piece.len()));
        for split in 0..=bytes.len() {
            let head = [CHUNKED, UNTIL_CLOSE][(n + split) % 2];
            let mut feed = Feed::open(&mut colors, GET, head).await;
            if split > 0 {
                feed.say(&bytes[..split]).await;
                let seen = async {
                    while !feed.client.buffer.ends_with(&chunk(&bytes[..split])) && feed.client.more().await.is_some() {
                    }
                };
                soon("the first part", seen).await;
            }
            feeds.push((feed, bytes.clone(), places.clone(), split));
        }
    }
    let count = feeds.len() as u64;
    let record = colors.switch().await;
    let endings = feeds.iter_mut().map(async |(feed, bytes, places, split)| {
        let answer = feed.until_told(&bytes[*split..]).await;
        let (events, _) = told(&answer.body);
        if let Some(comments) = events.strip_prefix(&bytes[..]) {
            assert!(comments.chunks(2).all(|comment| comment == b":\n"), "{comments:?}");
        } else {
            assert!(bytes.starts_with(events), "{events:?} of {bytes:?}");
            assert!(events.len() >= *split && places.contains(&events.len()), "{} after {split}", events.len());
        }
    });
    join_all(endings).await;
    assert_eq!(account(&record).await, finished(count));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_ended_between_events_is_left_alone_until_the_deadline() {
    let mut colors = Colors::new("drain = { timeout = \"4s\", sse = { spread = \"0s\" } }").await;
    let zipped = CHUNKED.replace("\r\n\r\n", "\r\nContent-Encoding: gzip\r\n\r\n");
    let measured = UNTIL_CLOSE.replace("\r\n\r\n", "\r\nContent-Length: 2000000\r\n\r\n");
    let mut feeds = Vec::new();
    for (head, text) in [(&*zipped, "\n\n"), (&*measured, "data: 1\n\n"), (CHUNKED, "data: no end"), (UNTIL_CLOSE, "d")]
    {
        let mut feed = Feed::open(&mut colors, GET, head).await;
        feed.say_and_hear(text).await;
        feeds.push((feed, text));
    }
    let switched = Instant::now();
    let record = colors.switch().await;
    let endings = feeds.into_iter().map(async |(feed, text)| {
        let Feed { mut client, mut call, is_chunked } = feed;
        let more = if text.ends_with('\n') { text.to_owned() } else { "x".repeat(1024 * 1024) };
        call.send(if is_chunked { chunk(more.as_bytes()) } else { more.clone().into_bytes() }).await;
        client.head().await.expect("a head");
        let (body, _) = client.rest().await;
        assert!(switched.elapsed() >= Duration::from_secs(4) - SHORT, "{:?}", switched.elapsed());
        let body = String::from_utf8_lossy(&body);
        assert!(!body.contains("retry") && !body.ends_with("0\r\n\r\n"), "{text:?}");
        assert!(body.len() >= text.len() + more.len(), "{text:?}");
    });
    join_all(endings).await;
    assert_eq!(account(&record).await, cut(4));
}

#[tokio::test]
async fn who_is_to_be_kept_is_left_alone_until_the_deadline() {
    let mut colors = Colors::new("drain = { timeout = \"2s\", sse = \"keep\" }").await;
    let mut feed = Feed::open(&mut colors, GET, CHUNKED).await;
    feed.client.head().await.expect("a head");
    let switched = Instant::now();
    let record = colors.switch().await;
    feed.say("data: 1\n\n").await;
    let (body, _) = feed.client.rest().await;
    assert_eq!(body, chunk(b"data: 1\n\n"));
    assert!(switched.elapsed() >= Duration::from_secs(2) - SHORT, "{:?}", switched.elapsed());
    assert_eq!(account(&record).await, cut(1));
}

#[tokio::test]
async fn a_rollback_recalls_a_goodbye_that_waits_for_the_end_of_an_event() {
    let mut colors = Colors::new(AT_ONCE).await;
    let mut witness = Feed::open(&mut colors, GET, CHUNKED).await;
    let mut feed = Feed::open(&mut colors, GET, CHUNKED).await;
    feed.client.head().await.expect("a head");
    feed.say("data: 1").await;
    feed.client.expect(chunk(b"data: 1")).await;
    let record = colors.switch().await;
    witness.client.answer().await;
    // Both were told at the same time, give or take.
    tokio::time::sleep(A_WHILE).await;
    colors.teal.switch("app", Color::Blue).await.expect("a rollback");
    assert_eq!(account(&record).await, KindReport { at_switch: 2, finished: 1, kept: 1, ..KindReport::default() });
    assert_eq!(record.drain().expect("a drain").report().state, DrainState::Kept);
    for event in ["\n\n", "data: 2\n\n"] {
        feed.say(event).await;
        feed.client.expect(chunk(event.as_bytes())).await;
    }
    assert!(timeout(A_WHILE, feed.client.more()).await.is_err());
    let record = colors.switch().await;
    let body = feed.rest().await;
    assert!(told(&body).0.is_empty(), "{body:?}");
    assert_eq!(account(&record).await, finished(1));
}

/// A browser keeps the time that it was told for as long as the page lives.
#[tokio::test]
async fn who_comes_back_gets_the_usual_time_back_before_what_the_origin_says() {
    let mut colors = Colors::new(AT_ONCE).await;
    let mut feed = Feed::open(&mut colors, GET, CHUNKED).await;
    feed.client.head().await.expect("a head");
    feed.say("data: 1\n\n").await;
    feed.client.expect(chunk(b"data: 1\n\n")).await;
    let record = colors.switch().await;
    told(&feed.rest().await);
    assert_eq!(account(&record).await, finished(1));
    let zipped = CHUNKED.replace("\r\n\r\n", "\r\nContent-Encoding: gzip\r\n\r\n");
    let cases = [
        (CHUNKED, "data: 2\n\n", "retry: 3000\n\ndata: 2\n\n"),
        (CHUNKED, "retry: 500\n\n", "retry: 3000\n\nretry: 500\n\n"),
        (UNTIL_CLOSE, "\u{feff}data: 2\n\n", "\u{feff}retry: 3000\n\ndata: 2\n\n"),
        (&zipped, "data: 2\n\n", "data: 2\n\n"),
    ];
    for (head, said, heard) in cases {
        feed.client.send(GET).await;
        let mut call = colors.green.next().await;
        call.send(head).await;
        let is_chunked = head.contains("chunked");
        call.send(if is_chunked { [chunk(said.as_bytes()), b"0\r\n\r\n".to_vec()].concat() } else { said.into() })
            .await;
        drop(call);
        assert_eq!(feed.client.answer().await.text(), heard);
    }
}

/// Requests that ask for a stream and find nobody.
struct Shield {
    teal: Teal,
    /// The one endpoint's socket: bound, so that nobody else has the port, but refusing until it listens.
    socket: Socket,
    called: Instant,
}

impl Shield {
    async fn new(keys: &str) -> Shield {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        let address = socket.local_addr().expect("a bound address").as_socket().expect("an IP address");
        let services =
            format!("[[routes]]\npath = \"/\"\nservice = \"app\"\n[services.app]\nblue = [\"{address}\"]\n{keys}\n");
        let teal = Builder::new(&services).start().await;
        Shield { teal, socket, called: Instant::now() }
    }

    /// The endpoint is taken to be there, but refuses.
    fn trusting(self) -> Shield {
        self.teal.set_health(0, true);
        self
    }

    async fn ask(&mut self, request: &str) -> Client {
        let mut client = Client::connect(self.teal.address).await;
        self.called = Instant::now();
        client.send(request).await;
        client
    }

    /// The client is told to come back, but not before its time in the queue is over.
    async fn sends_away(&mut self, request: &str, queue: Duration, range: std::ops::RangeInclusive<u64>) {
        let mut client = self.ask(request).await;
        let answer = client.answer().await;
        let waited = self.called.elapsed();
        assert!(waited + Duration::from_millis(200) >= queue, "{waited:?}");
        assert_eq!((answer.status, answer.field("content-type")), (200, Some("text/event-stream")), "{}", answer.head);
        let (events, retry) = told(&answer.body);
        assert!(events.is_empty() && range.contains(&retry), "{answer:?}");
        if request == GET {
            assert_eq!(client.ask(GET).await.status, 200, "the connection goes on");
        } else {
            assert_eq!(client.rest().await, (Vec::new(), true));
        }
    }

    async fn turns_away(&mut self, request: &str) {
        let answer = self.ask(request).await.answer().await;
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{}", answer.head);
    }

    /// Connections to the endpoint that failed.
    fn refusals(&self) -> u64 {
        let snapshot = self.teal.state().load();
        let stats = &snapshot.services[0].stats;
        stats.shards(Color::Blue).map(|shard| shard.connect_failures.load(Ordering::SeqCst)).sum()
    }

    /// The endpoint starts; the request reaches it.
    async fn starts(self, mut client: Client, answer: fn(&str) -> String) {
        self.socket.listen(16).expect("a bound socket");
        self.socket.set_nonblocking(true).expect("a socket");
        let listener = TcpListener::from_std(self.socket.into()).expect("a runtime");
        let serve = async {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let mut wire = Client::on(stream);
                // A probe says nothing.
                if let Some(head) = wire.head().await {
                    let answer = answer(&head);
                    wire.send(&answer).await;
                    return (wire, answer);
                }
            }
        };
        let (_wire, answer) = soon("the request", serve).await;
        let seen = client.head().await.expect("a head");
        assert_eq!(seen.lines().next(), answer.lines().next());
    }
}

const QUEUE: Duration = Duration::from_secs(1);
const HEALTH: &str = "health = { interval = \"1h\" }\nqueue_timeout = \"1s\"\n";

#[tokio::test]
async fn who_asks_for_a_stream_while_nobody_is_there_is_told_to_come_back() {
    let settings = [
        ("", 1000..=5000),
        ("drain = { sse = \"keep\" }", 1000..=5000),
        ("drain = { sse = { retry = \"7s\" } }", 7000..=7000),
    ];
    let shields = settings.map(async |(keys, range)| {
        let mut shield = Shield::new(&format!("{HEALTH}{keys}")).await;
        shield.sends_away(GET, QUEUE, range.clone()).await;
        shield.sends_away(OLD_GET, QUEUE, range).await;
        shield.turns_away(REQUEST).await;
        shield.turns_away("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    });
    join_all(shields).await;
}

#[tokio::test]
async fn who_asks_for_a_stream_while_connections_are_refused_is_told_to_come_back() {
    let mut shield = Shield::new(HEALTH).await.trusting();
    shield.sends_away(GET, QUEUE, 1000..=5000).await;
    shield.turns_away(REQUEST).await;
    let before = shield.refusals();
    shield.sends_away(OLD_GET, QUEUE, 1000..=5000).await;
    assert!(shield.refusals() > before + 1, "it knocks more than once");
}

#[tokio::test]
async fn an_endpoint_that_starts_in_time_is_waited_for() {
    let slow = "health = { interval = \"100ms\" }\nqueue_timeout = \"15s\"";
    let trusted = "health = { interval = \"1h\" }\nqueue_timeout = \"15s\"";
    for (request, answer) in [(GET, (|_| CHUNKED.to_owned()) as fn(&str) -> String), (REQUEST, accepted)] {
        let mut unhealthy = Shield::new(slow).await;
        let client = unhealthy.ask(request).await;
        unhealthy.starts(client, answer).await;

        let mut refusing = Shield::new(trusted).await.trusting();
        let client = refusing.ask(request).await;
        eventually("some were refused", || refusing.refusals() > 2).await;
        refusing.starts(client, answer).await;
    }
}

/// An origin that answers wrongly has been reached: that, too, is no reason for a browser to give up.
#[tokio::test]
async fn an_origin_that_breaks_off_sends_nobody_away_for_good() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).service("retries = 0").start().await;
    let mut client = Client::connect(teal.address).await;
    for nonsense in ["", "nonsense\r\n\r\n"] {
        client.send(GET).await;
        let mut call = calls.next().await;
        call.send(nonsense).await;
        drop(call);
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.field("content-type")), (200, Some("text/event-stream")));
        assert!(told(&answer.body).0.is_empty());
        if answer.field("connection") == Some("close") {
            client = Client::connect(teal.address).await;
        }
    }
}
