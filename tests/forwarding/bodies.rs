//! Bodies stream through: byte for byte, in any framing, and no faster than the slower side takes them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::support::body;
use crate::support::by_hand::by_hand;
use crate::support::client::Client;
use crate::support::origin::{Origin, ok, read_head};
use crate::support::proxy::Builder;
use crate::support::soon;
use crate::support::tight::{self, Tight};

const LARGE: usize = 32 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_arrives_byte_for_byte() {
    let origin = Origin::raw(|mut stream| async move {
        let mut buffer = Vec::new();
        if read_head(&mut stream, &mut buffer).await.is_some() {
            body::read(&mut stream, &mut buffer, LARGE).await;
            let _ = stream.write_all(&ok("all of it")).await;
        }
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n")).await;
    assert!(body::write(&mut client.stream, LARGE).await);
    assert_eq!(client.answer().await.text(), "all of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_download_arrives_byte_for_byte() {
    let origin = Origin::raw(|mut stream| async move {
        while read_head(&mut stream, &mut Vec::new()).await.is_some() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
            if stream.write_all(head.as_bytes()).await.is_err() || !body::write(&mut stream, LARGE).await {
                return;
            }
        }
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await.expect("a head");
        soon("the body", body::read(&mut client.stream, &mut client.buffer, LARGE)).await;
    }
}

/// What was on its way when a client broke off must not reach another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_off_download_leaves_behind_reaches_nobody() {
    const LENGTH: usize = 2 * 1024 * 1024;
    let origin = Origin::raw(|mut stream| async move {
        while read_head(&mut stream, &mut Vec::new()).await.is_some() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
            if stream.write_all(head.as_bytes()).await.is_err() || !body::write(&mut stream, LENGTH).await {
                return;
            }
        }
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    // More than the worker keeps pipes, so that some are used again.
    for n in 0..40 {
        let mut client = Client::connect(teal.address).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await.expect("a head");
        let length = if n % 4 == 3 { LENGTH } else { LENGTH / 40 * n + 1 };
        soon("the body", body::read(&mut client.stream, &mut client.buffer, length)).await;
    }
}

/// Chunks of all sizes, extensions included, whole and in pieces.
#[tokio::test]
async fn chunked_bodies_come_through_both_ways() {
    let sizes = [1, 2, 15, 16, 17, 255, 4096, 16_383, 65_536, 100_000, 1];
    let length = sizes.iter().sum();
    let mut chunked = Vec::new();
    let mut at = 0;
    for size in sizes {
        chunked.extend_from_slice(format!("{size:X};name=\"value\"\r\n").as_bytes());
        chunked.extend_from_slice(&body::body(length)[at..at + size]);
        chunked.extend_from_slice(b"\r\n");
        at += size;
    }
    chunked.extend_from_slice(b"000\r\n\r\n");
    let answer = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &chunked[..]].concat();
    let origin = Origin::http(move |request| {
        body::check(0, &request.body);
        assert_eq!((request.body.len(), request.field("transfer-encoding")), (length, Some("chunked")));
        let answer = answer.clone();
        async { answer }
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    let request = [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", &chunked[..]].concat();
    for piece in [request.len(), 1000, 1] {
        for bytes in request.chunks(piece) {
            client.send(bytes).await;
        }
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.body.len()), (200, length));
        body::check(0, &answer.body);
    }
}

#[tokio::test]
async fn an_answer_that_the_close_ends_is_chunked_for_a_client_that_stays() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    for version in ["1.0", "1.1"] {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        calls.next().await.send(format!("HTTP/{version} 200 OK\r\n\r\nuntil the end")).await;
        let answer = client.answer().await;
        assert_eq!((answer.text(), answer.field("transfer-encoding")), ("until the end", Some("chunked")));
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_but_for_those_that_change_the_message() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Client::connect(teal.address).await;
    let trailers =
        "0\r\nX-Checksum: abc\r\nContent-Length: 7\r\nTransfer-Encoding: x\r\nHost: evil\r\nx-Other:  d \r\n\r\n";
    let passed = "0\r\nX-Checksum: abc\r\nx-Other: d\r\n\r\n";
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Checksum\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(format!("{head}2\r\nhi\r\n{trailers}")).await;
    let mut call = calls.next().await;
    assert_eq!(call.field("trailer"), Some("X-Checksum"));
    call.expect(format!("2\r\nhi\r\n{passed}")).await;
    call.send(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Checksum\r\n\r\n2\r\nho\r\n{trailers}"
    ))
    .await;
    assert!(client.head().await.unwrap().contains("\r\nTrailer: X-Checksum"));
    client.expect(format!("2\r\nho\r\n{passed}")).await;
}

#[tokio::test]
async fn an_origin_that_does_not_read_holds_the_client_back() {
    let mut ends = Tight::after(&format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n")).await;
    let taken = tight::write_until_stuck(&mut ends.client, LARGE).await;
    assert!(taken < tight::HELD, "{taken} bytes were taken of a body that nobody reads");
    let sending = tight::write_from(&mut ends.client, taken, LARGE);
    let mut buffer = Vec::new();
    let reading = body::read(&mut ends.origin, &mut buffer, LARGE);
    soon("the rest of the body", async { tokio::join!(sending, reading) }).await;

    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{LARGE:x}\r\n");
    let mut ends = Tight::after(&head).await;
    let taken = tight::write_until_stuck(&mut ends.client, LARGE).await;
    assert!(taken < tight::HELD, "{taken} bytes were taken of chunks that nobody reads");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_origin_back() {
    let framings = [
        format!("Content-Length: {LARGE}\r\n\r\n"),
        "X-Until: close\r\n\r\n".to_owned(),
        format!("Transfer-Encoding: chunked\r\n\r\n{LARGE:x}\r\n"),
    ];
    for framing in framings {
        let mut ends = Tight::after("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        ends.origin.write_all(format!("HTTP/1.1 200 OK\r\n{framing}").as_bytes()).await.expect("the proxy reads");
        let taken = tight::write_until_stuck(&mut ends.origin, LARGE).await;
        assert!(taken < tight::HELD, "{taken} bytes were taken of an answer that nobody reads");
        if framing.starts_with("Content-Length") {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(ends.client.read_u8().await.expect("a head"));
            }
            let sending = tight::write_from(&mut ends.origin, taken, LARGE);
            let mut buffer = Vec::new();
            let reading = body::read(&mut ends.client, &mut buffer, LARGE);
            soon("the rest of the body", async { tokio::join!(sending, reading) }).await;
        }
    }
}

/// Pipelined requests whose answers nobody reads must not pile up either.
#[tokio::test]
async fn a_client_that_only_asks_is_not_read_for_ever() {
    let origin = Origin::saying("hello").await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let front = dir.path().join("front.sock");
    let listener = format!("[[listeners]]\nlisten = \"unix:{}\"\n", front.display());
    let _teal = Builder::app(&[&origin]).service(&listener).start().await;
    let mut client = UnixStream::connect(&front).await.expect("the proxy accepts");
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let mut sent = 0;
    while sent < LARGE {
        let nothing_moves = Duration::from_secs(1);
        match timeout(nothing_moves, client.write(&request[sent % request.len()..])).await {
            Ok(count) => sent += count.expect("the proxy stays"),
            Err(_) => return assert!(sent < tight::HELD, "{sent} bytes were taken"),
        }
    }
    panic!("{sent} bytes were taken of requests whose answers nobody reads");
}
