//! A WebSocket passes through: its handshake checked on both sides, its bytes untouched, for as long as both ends want.

mod support;

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use support::by_hand::{Call, Calls, by_hand};
use support::client::Client;
use support::origin::{Origin, accepted, ok};
use support::over::{self, Over};
use support::proxy::{Builder, Teal};
use support::streams::within_a_second;
use support::tight::{self, Tight};
use support::{body, eventually, soon};

/// The example of RFC 6455 §1.3.
const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

struct Chat {
    teal: Teal,
    client: Client,
    call: Call,
    calls: Calls,
    origin: Origin,
}

/// A tunnel between the test's own client and origin.
async fn chat(builder: impl FnOnce(Builder) -> Builder) -> Chat {
    let (origin, mut calls) = by_hand().await;
    let teal = builder(Builder::app(&[&origin])).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send(REQUEST).await;
    let mut call = calls.next().await;
    call.send(call.accepted()).await;
    assert!(client.head().await.expect("a head").starts_with("HTTP/1.1 101 "));
    Chat { teal, client, call, calls, origin }
}

/// Nobody would notice that the client is gone for good.
#[tokio::test]
async fn a_client_that_has_ended_does_not_hold_the_tunnel_for_ever() {
    let mut chat = chat(|builder| builder.listener("idle_timeout = \"3s\"")).await;
    chat.client.stream.shutdown().await.expect("an open connection");
    // As long as the origin speaks, it goes on.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        chat.call.send("word ").await;
        chat.client.expect("word ").await;
    }
    let open = || {
        let snapshot = chat.teal.state().load();
        snapshot.services[0].active_pool().endpoints()[0].in_flight()
    };
    assert_eq!(open(), 1);
    eventually("the tunnel is over", || open() == 0).await;
}

#[tokio::test]
async fn the_handshake_passes_both_ways() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    let more = "Sec-WebSocket-Protocol: chat, v2\r\nSec-WebSocket-Extensions: permessage-deflate\r\nCookie: a=b\r\n\
                Origin: http://a\r\n\r\n";
    client.send(REQUEST.replace("\r\n\r\n", &format!("\r\n{more}"))).await;
    let mut call = calls.next().await;
    let sent_on = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat, v2"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("cookie", "a=b"),
        ("origin", "http://a"),
        ("x-forwarded-for", "127.0.0.1"),
    ];
    for (name, value) in sent_on {
        assert_eq!(call.field(name), Some(value));
    }
    // Over HTTP/2 the client has none that could be sent on.
    if over::asked_for() != Over::Http2 {
        assert_eq!(call.field("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    }
    call.send(call.accepted().replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: v2\r\nX-Chat: 1\r\n\r\n")).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 101);
    let passed = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("sec-websocket-protocol", "v2"),
        ("x-chat", "1"),
    ];
    for (name, value) in passed {
        assert_eq!(answer.field(name), Some(value));
    }
}

#[tokio::test]
async fn a_handshake_that_is_invalid_reaches_no_origin() {
    if over::is_passed_over("the key of a handshake") {
        return;
    }
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).start().await;
    for key in ["", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ==x", "dGhlIHNhbXBsZSBub25j Q=="] {
        let request = REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", key);
        assert_eq!(Client::connect(teal.address).await.ask(request).await.status, 400, "{key:?}");
    }
    let request = REQUEST.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "");
    assert_eq!(Client::connect(teal.address).await.ask(request).await.status, 400);
    assert!(requests.lock().is_empty());
}

/// What only looks like an upgrade goes on as a request like any other.
#[tokio::test]
async fn what_cannot_be_upgraded_is_an_ordinary_request() {
    if over::is_passed_over("the field Upgrade") {
        return;
    }
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).start().await;
    let variants = [
        REQUEST.replace("GET", "POST"),
        REQUEST.replace("HTTP/1.1", "HTTP/1.0"),
        REQUEST.replace("Connection: Upgrade\r\n", ""),
        REQUEST.replace("websocket", "h2c"),
        REQUEST.replace("Host", "Content-Length: 2\r\nHost") + "hi",
    ];
    for request in variants {
        assert_eq!(Client::connect(teal.address).await.ask(&request).await.status, 200, "{request}");
        let request = requests.lock().pop().expect("a request");
        assert_eq!((request.field("upgrade"), request.field("connection")), (None, None), "{request:?}");
    }
}

#[tokio::test]
async fn a_refusal_passes_and_the_connection_goes_on() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send(REQUEST).await;
    let mut call = calls.next().await;
    for status in ["403 Forbidden", "426 Upgrade Required", "302 Found", "200 OK"] {
        call.send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nX-Why: so\r\n\r\nno")).await;
        let answer = client.answer().await;
        if over::asked_for() == Over::Http2 && status == "200 OK" {
            assert_eq!(answer.status, 502, "to the client it would be a WebSocket");
            break;
        }
        assert_eq!((answer.head.lines().next(), answer.text()), (Some(&*format!("HTTP/1.1 {status}")), "no"));
        assert_eq!((answer.field("x-why"), answer.field("connection")), (Some("so"), None));
        client.send(REQUEST).await;
        assert!(call.wire.head().await.is_some(), "the origin's connection goes on, too");
    }
}

/// What follows a refused handshake may be frames: nobody may take them for a request.
#[tokio::test]
async fn frames_that_follow_a_refused_handshake_are_no_request() {
    if over::is_passed_over("what stands behind a request on its connection") {
        return;
    }
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send(format!("{REQUEST}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.field("connection")), (403, Some("close")));
    assert_eq!(client.rest().await, (Vec::new(), true));
    assert!(calls.is_empty());
}

#[tokio::test]
async fn an_origin_that_accepts_wrongly_is_502() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let wrong: [fn(&str) -> String; 5] = [
        |right| right.replace("-Accept: ", "-Accept: A"),
        |right| right.replace("Sec-WebSocket-Accept", "X-Accept"),
        |right| right.replace("Upgrade: websocket\r\n", ""),
        |right| right.replace("websocket", "h2c"),
        |right| right.replace("Connection: Upgrade\r\n", ""),
    ];
    for wrong in wrong {
        let mut client = Client::connect(teal.address).await;
        client.send(REQUEST).await;
        let mut call = calls.next().await;
        let answer = wrong(&call.accepted());
        call.send(&answer).await;
        assert_eq!(client.answer().await.status, 502, "{answer}");
        call.gone().await;
    }
}

#[tokio::test]
async fn what_was_sent_ahead_arrives() {
    const LENGTH: usize = 1024 * 1024;
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send(format!("{REQUEST}frames")).await;
    let mut call = calls.next().await;
    assert!(call.wire.buffer.is_empty(), "not before the origin has agreed");
    let (mut reader, mut writer) = client.stream.into_split();
    let sending = tokio::spawn(async move { body::write(&mut writer, LENGTH).await });
    call.send(call.accepted() + "hello").await;
    call.expect("frames").await;
    soon("the frames", body::read(&mut call.wire.stream, &mut call.wire.buffer, LENGTH)).await;
    assert!(sending.await.expect("no panic"));
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nhello") {
        assert!(soon("the answer", reader.read_buf(&mut seen)).await.expect("no reset") > 0);
    }
}

#[tokio::test]
async fn either_side_may_end_first() {
    let Chat { mut client, mut call, teal, .. } = chat(|builder| builder).await;
    client.send("last words").await;
    client.stream.shutdown().await.expect("an open connection");
    assert_eq!(call.gone().await, b"last words");
    call.send("still here").await;
    client.expect("still here").await;
    call.send(", bye").await;
    call.wire.stream.shutdown().await.expect("an open connection");
    assert_eq!(client.rest().await, (b", bye".to_vec(), true));
    eventually("the tunnel is over", || open(&teal) == 0).await;

    let Chat { mut client, mut call, teal, .. } = chat(|builder| builder).await;
    call.send("last words").await;
    call.wire.stream.shutdown().await.expect("an open connection");
    assert_eq!(client.rest().await, (b"last words".to_vec(), true));
    client.send("still here").await;
    call.expect("still here").await;
    drop(client);
    assert!(call.gone().await.is_empty());
    eventually("the tunnel is over", || open(&teal) == 0).await;
}

/// WebSockets that the proxy counts as open.
fn open(teal: &Teal) -> i64 {
    const WEBSOCKET: usize = 2;
    let snapshot = teal.state().load();
    let service = &snapshot.services[0];
    service
        .stats
        .shards(service.active)
        .map(|shard| shard.in_flight[WEBSOCKET].load(std::sync::atomic::Ordering::SeqCst))
        .sum()
}

#[tokio::test]
async fn an_idle_tunnel_outlives_every_timeout() {
    let limits = "header_timeout = \"2s\"\nidle_timeout = \"50ms\"\nbody_timeout = \"50ms\"";
    let service = "response_timeout = \"2s\"\nconnect_timeout = \"2s\"\nqueue_timeout = \"50ms\"";
    let Chat { mut client, mut call, teal, .. } = chat(|builder| builder.listener(limits).service(service)).await;
    let nobody_speaks = Duration::from_secs(4);
    tokio::time::sleep(nobody_speaks).await;
    client.send("ping").await;
    call.expect("ping").await;
    call.send("pong").await;
    client.expect("pong").await;
    assert_eq!(open(&teal), 1);
}

#[tokio::test]
async fn an_origin_that_dies_ends_the_tunnel() {
    let Chat { mut client, mut call, teal, .. } = chat(|builder| builder).await;
    call.send("half a fra").await;
    SockRef::from(&call.wire.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    drop(call);
    let (seen, _) = within_a_second("the client notices", client.rest()).await;
    assert!(b"half a fra".starts_with(&seen), "{seen:?}");
    eventually("the tunnel is over", || open(&teal) == 0).await;
}

#[tokio::test]
async fn a_client_that_dies_ends_the_tunnel() {
    let Chat { client, mut call, teal, .. } = chat(|builder| builder).await;
    SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    drop(client);
    within_a_second("the origin notices", call.gone()).await;
    eventually("the tunnel is over", || open(&teal) == 0).await;
}

#[tokio::test]
async fn a_tunnel_keeps_its_place_at_the_endpoint_until_it_ends() {
    let limits = "max_in_flight = 1\nqueue_timeout = \"50ms\"";
    let Chat { client, call, teal, mut calls, origin: _origin } = chat(|builder| builder.service(limits)).await;
    let mut other = Client::connect(teal.address).await;
    assert_eq!(other.get("/").await.status, 503);
    drop((client, call));
    eventually("the tunnel is over", || open(&teal) == 0).await;
    other.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    calls.next().await.send(ok("free again")).await;
    assert_eq!(other.answer().await.text(), "free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_flows_arrive_byte_for_byte_in_both_directions_at_once() {
    const LENGTH: usize = 16 * 1024 * 1024;
    let Chat { client, call, teal: _teal, .. } = chat(|builder| builder).await;
    let both = |stream: TcpStream| {
        let (mut reader, mut writer) = stream.into_split();
        tokio::spawn(async move {
            let mut buffer = Vec::new();
            let reading = body::read(&mut reader, &mut buffer, LENGTH);
            assert!(tokio::join!(body::write(&mut writer, LENGTH), reading).0, "all of it is taken");
        })
    };
    let (one, other) = (both(client.stream), both(call.wire.stream));
    soon("both flows", one).await.expect("the client's side");
    soon("both flows", other).await.expect("the origin's side");
}

#[tokio::test]
async fn who_does_not_read_holds_the_other_side_back() {
    const LENGTH: usize = 16 * 1024 * 1024;
    let mut ends = Tight::after(REQUEST).await;
    ends.origin.write_all(accepted(REQUEST).as_bytes()).await.expect("the proxy reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(ends.client.read_u8().await.expect("a head"));
    }
    let Tight { client, origin, .. } = &mut ends;
    is_held_back(client, origin, LENGTH).await;
    is_held_back(origin, client, LENGTH).await;
}

async fn is_held_back(from: &mut UnixStream, to: &mut UnixStream, length: usize) {
    let taken = tight::write_until_stuck(from, length).await;
    assert!(taken < tight::HELD, "{taken} bytes were taken that nobody reads");
    let mut buffer = Vec::new();
    let flow = async { tokio::join!(tight::write_from(from, taken, length), body::read(to, &mut buffer, length)) };
    soon("the rest", flow).await;
}

/// An origin that sends every message back.
async fn echo() -> Origin {
    Origin::raw(|stream| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_real_client_and_a_real_server_understand_each_other() {
    let origin = echo().await;
    let teal = Builder::app(&[&origin]).start().await;
    let stream = TcpStream::connect(teal.address).await.expect("the proxy accepts");
    let (mut socket, answer) =
        tokio_tungstenite::client_async("ws://shop.test/chat", stream).await.expect("a WebSocket");
    assert_eq!(answer.status(), 101);
    for length in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let message = Message::Binary(body::body(length).into());
        socket.send(message.clone()).await.expect("an open socket");
        assert_eq!(socket.next().await.expect("a message").expect("an open socket"), message);
    }
    for (n, piece) in ["frag", "ment", "ed"].into_iter().enumerate() {
        let kind = OpCode::Data(if n == 0 { Data::Text } else { Data::Continue });
        socket.send(Message::Frame(Frame::message(piece, kind, n == 2))).await.expect("an open socket");
        socket.send(Message::Ping(Bytes::from_static(b"in between"))).await.expect("an open socket");
    }
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(socket.next().await.expect("a message").expect("an open socket"));
    }
    assert!(seen.contains(&Message::text("fragmented")), "{seen:?}");
    assert_eq!(seen.iter().filter(|message| message.is_pong()).count(), 3, "{seen:?}");
    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    socket.close(Some(goodbye.clone())).await.expect("an open socket");
    assert_eq!(socket.next().await.expect("a message").expect("a close"), Message::Close(Some(goodbye)));
    assert!(socket.next().await.is_none());
    drop(socket);
    eventually("the tunnel is over", || open(&teal) == 0).await;
}

#[tokio::test]
async fn many_sockets_at_once_do_not_mix() {
    let origin = echo().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut sockets = Vec::new();
    for _ in 0..50 {
        let stream = TcpStream::connect(teal.address).await.expect("the proxy accepts");
        sockets.push(tokio_tungstenite::client_async("ws://a/", stream).await.expect("a WebSocket").0);
    }
    for round in 0..5 {
        for (n, socket) in sockets.iter_mut().enumerate() {
            socket.send(Message::text(format!("{n} {round}"))).await.expect("an open socket");
        }
        for (n, socket) in sockets.iter_mut().enumerate() {
            let message = socket.next().await.expect("a message").expect("an open socket");
            assert_eq!(message, Message::text(format!("{n} {round}")));
        }
    }
    assert_eq!(open(&teal), 50);
    drop(sockets);
    eventually("all tunnels are over", || open(&teal) == 0).await;
}

/// What stands behind the head may be frames for whom the upgrade was meant: they must not be read as a request.
#[tokio::test]
async fn nothing_is_read_behind_an_upgrade_that_teal_refuses() {
    if over::is_passed_over("what stands behind a request on its connection") {
        return;
    }
    let (origin, reached) = Origin::recording().await;
    let services = format!(
        "[[routes]]\npath = \"/\"\nservice = \"app\"\n[[routes]]\npath = \"/gone\"\nservice = \"gone\"\n\
         [[routes]]\npath = \"/closed\"\nservice = \"app\"\nallow = [\"192.0.2.0/24\"]\n\
         [services.app]\nhealth = {{ interval = \"1h\" }}\nblue = [{}]\n\
         [services.gone]\nqueue_timeout = \"1ms\"\nblue = []\n",
        origin.toml()
    );
    let teal = Builder::new(&services).start().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (path, status) in [("/gone", 503), ("/closed", 403)] {
        let mut client = Client::connect(teal.address).await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n{smuggled}")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.field("connection")), (status, Some("close")), "{path}");
        let (rest, in_order) = client.rest().await;
        assert!(rest.is_empty() && in_order, "{path}: {}", rest.escape_ascii());
    }
    assert!(reached.lock().is_empty());
}
