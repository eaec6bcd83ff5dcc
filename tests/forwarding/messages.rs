//! Requests and answers on connections: keep-alive, pipelining, versions, interim and early answers, clients that leave.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

use crate::support::by_hand::by_hand;
use crate::support::client::Client;
use crate::support::origin::{Origin, ok};
use crate::support::proxy::Builder;
use crate::support::soon;
use crate::support::streams::within_a_second;

/// An origin that answers with the request line that it got.
async fn echo() -> Origin {
    Origin::http(|request| async move { ok(request.line()) }).await
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.text(), "ok");
    }
    let requests = requests.lock();
    assert!(requests.iter().all(|request| request.connection == requests[0].connection), "the origin's is kept, too");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::http(|request| async move { ok(&format!("{} {}", request.line(), request.body.len())) }).await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    let request = |n: usize| match n % 3 {
        0 => format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        1 => format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: {n}\r\n\r\n{}", "x".repeat(n)),
        _ => format!("POST /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"),
    };
    client.send((0..100).map(request).collect::<String>()).await;
    for n in 0..100 {
        let (method, length) = [("GET", 0), ("POST", n), ("POST", 1)][n % 3];
        assert_eq!(client.answer().await.text(), format!("{method} /{n} HTTP/1.1 {length}"));
    }
}

#[tokio::test]
async fn a_head_may_arrive_octet_by_octet() {
    let origin = echo().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    for octet in b"GET /slow HTTP/1.1\r\nHost: a\r\nAccept: b\r\n\r\n" {
        client.send([*octet]).await;
    }
    assert_eq!(client.answer().await.text(), "GET /slow HTTP/1.1");
}

#[tokio::test]
async fn the_last_request_of_a_connection_is_told_so() {
    let origin = echo().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    let answer = client.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.field("connection"), Some("close"));
    assert_eq!(client.rest().await, (Vec::new(), true));
}

#[tokio::test]
async fn http_1_0_closes_unless_it_asks_for_keep_alive() {
    let origin = echo().await;
    let teal = Builder::app(&[&origin]).start().await;

    let mut client = Client::connect(teal.address).await;
    assert_eq!(client.ask("GET /once HTTP/1.0\r\n\r\n").await.text(), "GET /once HTTP/1.1");
    assert_eq!(client.rest().await, (Vec::new(), true));

    let mut client = Client::connect(teal.address).await;
    for _ in 0..2 {
        let answer = client.ask("GET /again HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(answer.text(), "GET /again HTTP/1.1");
        assert_eq!(answer.field("connection"), Some("keep-alive"));
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_ends_with_the_connection_for_http_1_0() {
    let origin = Origin::http(|_| async {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n".to_vec()
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    let answer = client.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(answer.text(), "abcde");
    assert_eq!((answer.field("transfer-encoding"), answer.field("connection")), (None, Some("close")));
}

/// Heads that speak of a body which the protocol does not allow, each with the request that leads to it.
#[tokio::test]
async fn answers_without_body_have_none() {
    let heads = [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"),
        ("HEAD", "HTTP/1.1 200 OK\r\nX-Length: unknown"),
        ("GET", "HTTP/1.1 204 No Content"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\""),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0"),
    ];
    let connections = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = connections.clone();
    let origin = Origin::http(move |request| {
        seen.lock().insert(request.connection);
        let place: usize = request.field("x-place").unwrap().parse().unwrap();
        async move { format!("{}\r\n\r\n", heads[place].1).into_bytes() }
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    for (place, (method, head)) in heads.iter().enumerate() {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nX-Place: {place}\r\n\r\n")).await;
        let answer = client.answer_to_head().await;
        assert_eq!(answer.head.lines().next(), head.lines().next());
        assert_eq!(answer.field("content-length"), head.lines().find_map(|line| line.strip_prefix("Content-Length: ")));
    }
    assert_eq!(connections.lock().len(), 1, "none of them spoils the origin's connection");
}

#[tokio::test]
async fn one_hundred_continue_passes_through() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    let mut call = calls.next().await;
    assert_eq!(call.field("expect"), Some("100-continue"));
    call.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.send("abc").await;
    call.expect("abc").await;
    call.send(ok("done")).await;
    assert_eq!(client.answer().await.text(), "done");
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(call.wire.head().await.unwrap().starts_with("GET /next "), "both connections go on");
}

#[tokio::test]
async fn a_client_that_waits_for_100_is_not_blamed_for_a_slow_origin() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).listener("body_timeout = \"2s\"").service("response_timeout = \"20s\"");
    let teal = teal.start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    let mut call = calls.next().await;
    let an_origin_that_thinks = Duration::from_secs(4);
    tokio::time::sleep(an_origin_that_thinks).await;
    call.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.send("abc").await;
    call.expect("abc").await;
    call.send(ok("done")).await;
    assert_eq!(client.answer().await.text(), "done");
}

#[tokio::test]
async fn early_hints_pass_through_before_the_answer_exists() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut call = calls.next().await;
    for hint in ["</a.css>; rel=preload", "</b.js>; rel=preload"] {
        let interim = format!("HTTP/1.1 103 Early Hints\r\nLink: {hint}\r\n\r\n");
        call.send(&interim).await;
        client.expect(&interim).await;
    }
    call.send(ok("page")).await;
    assert_eq!(client.answer().await.text(), "page");
}

#[tokio::test]
async fn http_1_0_is_spared_interim_answers() {
    let origin =
        Origin::http(|_| async { [&b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"[..], &ok("page")].concat() });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let answer = Client::connect(teal.address).await.ask("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!((answer.status, answer.text()), (200, "page"));
}

#[tokio::test]
async fn a_refusal_that_comes_before_the_body_arrives_whole() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n").await;
    calls.next().await.send("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 4\r\n\r\nmuch").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.text(), answer.field("connection")), (413, "much", Some("close")));
}

/// The client sends all the time; the origin answers after the first part, and reads no more.
#[tokio::test]
async fn a_refusal_arrives_whole_while_the_body_is_still_coming() {
    // The origin's close is a reset, which destroys what it has not sent yet: only what fits into the first window is safe.
    for (length, closes_at_once) in [(100_000, false), (32 * 1024, true)] {
        refusal_amid_a_body(length, closes_at_once).await;
    }
}

/// The answer has `length` octets; the origin closes behind it, or when the client has it.
async fn refusal_amid_a_body(length: usize, closes_at_once: bool) {
    const LENGTH: usize = 64 * 1024 * 1024;
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let client = Client::connect(teal.address).await;
    let (mut reader, mut writer) = client.stream.into_split();
    let sending = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
        writer.write_all(head.as_bytes()).await.expect("an open connection");
        crate::support::body::write(&mut writer, LENGTH).await
    });
    let mut call = calls.next().await;
    let text = "x".repeat(length);
    call.send(format!("HTTP/1.1 413 Payload Too Large\r\nContent-Length: {length}\r\n\r\n{text}")).await;
    let call = (!closes_at_once).then_some(call);
    let mut answer = Vec::new();
    while !answer.ends_with(text.as_bytes()) {
        let read = tokio::io::AsyncReadExt::read_buf(&mut reader, &mut answer);
        assert!(soon("the answer", read).await.expect("no reset before its end") > 0, "the answer is cut");
    }
    assert!(answer.starts_with(b"HTTP/1.1 413 "));
    drop(call);
    // How much of the rest is taken depends on how fast it comes; that it ends, does not.
    soon("the end of sending", sending).await.expect("no panic");
}

#[tokio::test]
async fn both_directions_stream_at_once() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 200 OK"));
    for n in 0..10 {
        let piece = format!("3\r\n {n} \r\n");
        client.send(&piece).await;
        call.expect(&piece).await;
        call.send(&piece).await;
        client.expect(&piece).await;
    }
    client.send("0\r\n\r\n").await;
    call.expect("0\r\n\r\n").await;
    call.send("0\r\n\r\n").await;
    client.expect("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_leaves_while_the_origin_thinks_is_noticed() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let requests = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for request in requests {
        let mut client = Client::connect(teal.address).await;
        client.send(request).await;
        let mut call = calls.next().await;
        drop(client);
        within_a_second(request, call.gone()).await;
    }
    assert!(calls.is_empty(), "what was sent ahead does not go on without its client");
}

#[tokio::test]
async fn a_client_that_leaves_during_the_answer_is_noticed() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun").await;
    client.head().await.expect("a head");
    client.expect("begun").await;
    drop(client);
    within_a_second("the origin notices", call.gone()).await;
}

/// The origin sends without pause; the client reads a little and goes.
#[tokio::test]
async fn a_client_that_leaves_a_busy_download_is_noticed() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 200 OK\r\n\r\n").await;
    let sending = tokio::spawn(async move { crate::support::body::write(&mut call.wire.stream, usize::MAX).await });
    client.head().await.expect("a head");
    drop(client);
    assert!(!soon("the origin to notice", sending).await.unwrap());
}

#[tokio::test]
async fn the_head_arrives_before_the_first_byte_of_the_body_exists() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let framings = ["Content-Length: 3", "Transfer-Encoding: chunked", "X-Until: close"];
    for framing in framings {
        let mut client = Client::connect(teal.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut call = calls.next().await;
        call.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n")).await;
        let head = soon("the head", client.head()).await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{framing}: {head}");
    }
}
