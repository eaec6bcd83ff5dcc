//! Who does not read keeps only himself waiting, and little of what is meant for him.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::good::{self, Good, get, post};
use crate::raw::{self, Outcome, Raw, setting};
use crate::support::by_hand::by_hand;
use crate::support::{body, soon};
use crate::{Builder, recording};

/// What the buffers of two sockets may hold between the origin and the proxy, and the proxy besides.
const HELD: usize = 16 * 1024 * 1024;
/// What cannot have happened within this time will not happen because of what was before it.
const A_WHILE: Duration = Duration::from_millis(300);
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];

/// RFC 9113 §5.2: a stream without a window waits, and it alone.
#[tokio::test]
async fn a_client_that_grants_nothing_stalls_its_own_stream_only() {
    const LENGTH: usize = 4 * HELD;
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Raw::with_settings(teal.address, &NO_WINDOW).await;
    client.send(raw::get(1, "/large")).await;
    let mut call = calls.next().await;
    call.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
    assert_eq!(client.expect(raw::HEADERS, 1).await.status(), 200);
    let mut sent = 0;
    while sent < LENGTH {
        let piece = body::piece(sent);
        let piece = &piece[..piece.len().min(LENGTH - sent)];
        match timeout(A_WHILE, call.wire.stream.write(piece)).await {
            Ok(count) => sent += count.expect("the proxy stays"),
            Err(_) => break,
        }
    }
    assert!(sent < HELD, "the origin could send {sent} octets that nobody takes");
    // Another stream of the same connection.
    client.send([raw::get(3, "/small"), raw::window_update(3, 1000)].concat()).await;
    calls.next().await.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsmall").await;
    assert_eq!(client.outcome(3).await, Outcome::Answer { status: 200, body: b"small".to_vec() });
    // It goes on as soon as it may, by as much as it may.
    for grant in [1, 2, 1000] {
        client.send(raw::window_update(1, grant)).await;
        let mut got = 0;
        while got < grant as usize {
            got += client.expect(raw::DATA, 1).await.payload.len();
        }
        assert_eq!(got, grant as usize);
    }
}

#[tokio::test]
async fn a_stream_that_stalls_for_too_long_is_reset() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).listener("body_timeout = \"300ms\"\n").start().await;
    let mut client = Raw::with_settings(teal.address, &NO_WINDOW).await;
    client.send(raw::get(1, "/")).await;
    let mut call = calls.next().await;
    call.send([&b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"[..], &body::body(100_000)].concat()).await;
    let outcome = client.outcome(1).await;
    assert!(
        matches!(&outcome, Outcome::Reset { status: 200, body, code } if body.is_empty() && *code != raw::NO_ERROR),
        "{outcome:?}"
    );
    call.gone().await;
    assert!(client.settle().await, "the connection goes on");
}

/// RFC 9113 §6.9.2: a window may become smaller than nothing.
#[tokio::test]
async fn a_window_may_shrink_under_what_was_sent() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Raw::with_settings(teal.address, &setting(4, 1000)).await;
    client.send(raw::get(1, "/")).await;
    let mut call = calls.next().await;
    call.send([&b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n"[..], &body::body(3000)].concat()).await;
    let mut got = Vec::new();
    while got.len() < 1000 {
        got.extend(client.expect(raw::DATA, 1).await.payload);
    }
    client.send([raw::frame(raw::SETTINGS, 0, 0, NO_WINDOW), raw::window_update(1, 1500)].concat()).await;
    while got.len() < 1500 {
        got.extend(client.expect(raw::DATA, 1).await.payload);
    }
    assert_eq!(got.len(), 1500);
    client.send(raw::frame(raw::SETTINGS, 0, 0, setting(4, 3000))).await;
    while got.len() < 3000 {
        got.extend(client.expect(raw::DATA, 1).await.payload);
    }
    body::check(0, &got);
}

#[tokio::test]
async fn an_origin_that_does_not_read_stalls_the_upload_and_not_the_connection() {
    const LENGTH: usize = 4 * HELD;
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Good::connect(teal.address).await;
    let (waiting, mut send) = client.begin(post("/"), true).await;
    let mut call = calls.next().await;
    let mut sent = 0;
    while sent < LENGTH {
        send.reserve_capacity(16 * 1024);
        let Ok(granted) = timeout(A_WHILE, poll_fn(|cx| send.poll_capacity(cx))).await else { break };
        let count = granted.expect("an open stream").expect("a connection").min(LENGTH - sent);
        let piece = body::piece(sent);
        let count = count.min(piece.len());
        send.send_data(Bytes::copy_from_slice(&piece[..count]), false).expect("an open stream");
        sent += count;
    }
    assert!(sent < HELD, "the client could send {sent} octets that nobody takes");
    // Another request of the same connection, with a body.
    let (other, mut other_send) = client.begin(post("/other"), true).await;
    other_send.send_data("hello".into(), true).expect("an open stream");
    let mut second = calls.next().await;
    second.expect("5\r\nhello\r\n0\r\n\r\n").await;
    second.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(good::whole(other).await.expect("an answer").status, 204);
    // What was sent is there when it is read.
    send.send_data(Bytes::new(), true).expect("an open stream");
    let upload = soon("the upload", crate::support::origin::read_chunked(&mut call.wire.stream, &mut call.wire.buffer));
    let upload = upload.await.expect("a whole body");
    assert_eq!(upload.len(), sent);
    body::check(0, &upload);
    call.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(good::whole(waiting).await.expect("an answer").status, 204);
}

/// Streams share a connection's window, and what one has asked for and not used is the others'.
#[tokio::test]
async fn slow_streams_leave_the_window_of_the_connection_to_others() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    // Much for each stream, and 65535 octets for all.
    let mut client = Raw::with_settings(teal.address, &setting(4, 1 << 20)).await;
    let mut feeds = Vec::new();
    for n in 0..20 {
        client.send(raw::get(2 * n + 1, "/feed")).await;
        let mut call = calls.next().await;
        call.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        call.send([&b"64\r\n"[..], &body::body(100), b"\r\n"].concat()).await;
        assert_eq!(client.expect(raw::DATA, 2 * n + 1).await.payload.len(), 100);
        feeds.push(call);
    }
    let left = 65_535 - 20 * 100;
    client.send(raw::get(101, "/large")).await;
    let mut call = calls.next().await;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n");
    call.send([head.as_bytes(), &body::body(left)].concat()).await;
    assert!(matches!(client.outcome(101).await, Outcome::Answer { body, .. } if body.len() == left));
    drop(feeds);
}

#[tokio::test]
async fn a_client_that_leaves_ends_what_it_has_asked_for() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    // By a reset while the origin thinks, while it answers, and while it is being sent a body.
    let mut client = Raw::connect(teal.address).await;
    client.send([raw::get(1, "/"), raw::post(3, "/")].concat()).await;
    let (mut first, mut second) = (calls.next().await, calls.next().await);
    client.send([raw::reset(1, raw::CANCEL), raw::reset(3, raw::CANCEL)].concat()).await;
    first.gone().await;
    second.gone().await;
    client.send(raw::get(5, "/")).await;
    let mut third = calls.next().await;
    third.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    client.expect(raw::DATA, 5).await;
    client.send(raw::reset(5, raw::CANCEL)).await;
    third.gone().await;
    assert!(client.settle().await, "the connection goes on");
    // By leaving altogether.
    client.send([raw::get(7, "/"), raw::post(9, "/")].concat()).await;
    let (mut first, mut second) = (calls.next().await, calls.next().await);
    drop(client);
    first.gone().await;
    second.gone().await;
    let (teal, _origin, _) = recording().await;
    assert_eq!(
        good::whole(Good::connect(teal.address).await.begin(get("/"), false).await.0).await.expect("an answer").status,
        200
    );
}
