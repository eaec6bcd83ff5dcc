//! An event stream reaches the client as it is written, and lasts as long as both ends want.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;
use tokio::time::timeout;

use support::by_hand::{Call, by_hand};
use support::client::Client;
use support::proxy::{Builder, Teal};
use support::streams::within_a_second;
use support::{eventually, soon};

const GET: &str = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Sends one piece of an answer in the framing of its head.
async fn say(call: &mut Call, head: &str, text: &str) {
    let is_chunked = head.contains("chunked");
    call.send(if is_chunked { format!("{:x}\r\n{text}\r\n", text.len()) } else { text.to_owned() }).await;
}

/// Reads until the client has got `text`, and forgets what it has got.
async fn hear(client: &mut Client, text: &str) {
    let heard = |client: &Client| client.buffer.windows(text.len()).any(|window| window == text.as_bytes());
    soon("an event", async {
        while !heard(client) {
            client.more().await.unwrap_or_else(|| panic!("the stream ended before {text:?}"));
        }
    })
    .await;
    client.buffer.clear();
}

/// Event streams that the proxy counts as open.
fn open(teal: &Teal) -> i64 {
    const SSE: usize = 1;
    let snapshot = teal.state().load();
    let service = &snapshot.services[0];
    service.stats.shards(service.active).map(|shard| shard.in_flight[SSE].load(Ordering::SeqCst)).sum()
}

/// No clock is needed to see that nothing is held back: each piece is written only after the one before has arrived.
#[tokio::test]
async fn what_is_written_arrives_before_more_is_written() {
    let heads = [
        CHUNKED,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100000\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
    ];
    let requests =
        [GET, "GET /events HTTP/1.0\r\n\r\n", "POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"];
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    for head in heads {
        for request in requests {
            let mut client = Client::connect(teal.address).await;
            client.send(request).await;
            let mut call = calls.next().await;
            call.send(head).await;
            let seen = soon("the head before any event", client.head()).await.expect("a head");
            assert!(seen.starts_with("HTTP/1.1 200 OK"), "{seen}");
            let large = "x".repeat(10_000);
            for event in ["data: 1\n\n", "data: 2\nid: 2\n\n", ":\n\n", "data: half of", " an event\n\n", &large, "\n"]
            {
                say(&mut call, head, event).await;
                hear(&mut client, event).await;
            }
        }
    }
}

#[tokio::test]
async fn a_silent_stream_outlives_the_timeouts() {
    let limits = "body_timeout = \"50ms\"\nidle_timeout = \"50ms\"";
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).listener(limits).service("response_timeout = \"5s\"").start().await;
    let heads = [
        CHUNKED.to_owned(),
        CHUNKED.replace("text/event-stream", "Text/Event-Stream ; charset=utf-8"),
        CHUNKED.replace("Transfer-Encoding: chunked\r\n", ""),
    ];
    for head in heads {
        let mut client = Client::connect(teal.address).await;
        client.send(GET).await;
        let mut call = calls.next().await;
        call.send(&head).await;
        client.head().await.expect("a head");
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            let silence = Duration::from_millis(300);
            tokio::time::sleep(silence).await;
            say(&mut call, &head, event).await;
            hear(&mut client, event).await;
        }
        assert_eq!(open(&teal), 1);
        drop((client, call));
        eventually("the stream is over", || open(&teal) == 0).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_by_the_origin() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    for is_reset in [false, true] {
        for has_spoken in [false, true] {
            let mut client = Client::connect(teal.address).await;
            client.send(GET).await;
            let mut call = calls.next().await;
            call.send(CHUNKED).await;
            client.head().await.expect("a head");
            if has_spoken {
                say(&mut call, CHUNKED, "data: 1\n\n").await;
                hear(&mut client, "data: 1\n\n").await;
            }
            if is_reset {
                SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
            }
            drop(client);
            within_a_second("the origin notices", call.gone()).await;
        }
    }
    eventually("all streams are over", || open(&teal) == 0).await;
}

/// While the origin takes nothing of the request, the end of the client stands behind what nobody reads.
#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_request_is_not_waited_for() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).listener("body_timeout = \"500ms\"").start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n").await;
    let mut call = calls.next().await;
    call.send(CHUNKED).await;
    client.head().await.expect("a head");
    let nothing_moves = Duration::from_millis(100);
    while timeout(nothing_moves, support::body::write(&mut client.stream, 64 * 1024)).await.is_ok_and(|taken| taken) {}
    drop(client);
    eventually("the stream is over", || open(&teal) == 0).await;
}

#[tokio::test]
async fn a_stream_that_the_origin_ends_ends_well() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send(GET).await;
    let mut call = calls.next().await;
    call.send(format!("{CHUNKED}9\r\ndata: 1\n\n\r\n0\r\n\r\n")).await;
    assert_eq!(client.answer().await.text(), "data: 1\n\n");
    client.send(GET).await;
    assert!(call.wire.head().await.is_some(), "both connections go on");
    call.send(CHUNKED.replace("Transfer-Encoding: chunked", "Connection: close")).await;
    call.send("data: 2\n\n").await;
    drop(call);
    assert_eq!(client.answer().await.text(), "data: 2\n\n");
    eventually("the stream is over", || open(&teal) == 0).await;
}

#[tokio::test]
async fn a_stream_that_the_origin_breaks_off_does_not_end_well() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    for head in [CHUNKED.to_owned(), CHUNKED.replace("Transfer-Encoding: chunked\r\n", "")] {
        let mut client = Client::connect(teal.address).await;
        client.send(GET).await;
        let mut call = calls.next().await;
        call.send(&head).await;
        say(&mut call, &head, "data: 1\n\n").await;
        client.head().await.expect("a head");
        hear(&mut client, "data: 1\n\n").await;
        SockRef::from(&call.wire.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
        drop(call);
        let (rest, _) = client.rest().await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
    }
}

/// One that does not read must not take the worker's time or the others' events.
#[tokio::test]
async fn a_stuck_client_does_not_hold_up_the_others() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).workers(1).start().await;
    let mut stuck = Client::connect(teal.address).await;
    stuck.send(GET).await;
    let mut flood = calls.next().await;
    flood.send(CHUNKED.replace("Transfer-Encoding: chunked\r\n", "")).await;
    let flooding = tokio::spawn(async move { support::body::write(&mut flood.wire.stream, usize::MAX).await });
    let mut client = Client::connect(teal.address).await;
    client.send(GET).await;
    let mut call = calls.next().await;
    call.send(CHUNKED).await;
    client.head().await.expect("a head");
    for n in 0..50 {
        let event = format!("data: {n}\n\n");
        say(&mut call, CHUNKED, &event).await;
        hear(&mut client, &event).await;
    }
    drop(stuck);
    assert!(!soon("the flood to end", flooding).await.expect("no panic"));
}
