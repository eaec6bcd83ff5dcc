//! What a client may not do: too much, too slowly, too ambiguously. It is told so, and nobody else notices.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use support::client::{Answer, Client, get};
use support::origin::{Origin, Requests};
use support::proxy::{Builder, Teal};
use support::{body, eventually, soon};
use teal::metrics::Rejection;

async fn start(listener: &str) -> (Teal, Origin, Requests) {
    let (origin, requests) = Origin::recording().await;
    let teal = Builder::app(&[&origin]).listener(listener).start().await;
    (teal, origin, requests)
}

/// The one answer to these bytes, after which the connection is over.
async fn last_answer(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Answer {
    let mut client = Client::connect(address).await;
    client.send(bytes).await;
    let answer = client.answer().await;
    let (rest, in_order) = client.rest().await;
    assert!(rest.is_empty() && in_order, "{:?} follows {answer:?}", String::from_utf8_lossy(&rest));
    assert_eq!(answer.field("connection"), Some("close"));
    answer
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Each could mean different things to different readers, or nothing at all.
#[tokio::test]
async fn ambiguous_requests_are_refused_and_reach_no_origin() {
    let chunked = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let field = |field: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n0\r\n\r\n");
    let line = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    let requests = [
        // Line ends.
        "GET / HTTP/1.1\nHost: a\n\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(),
        "GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned(),
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        field("X: a\rY: b"),
        field("X: a\r\r\nContent-Length: 5"),
        // Fields.
        field("X: a\r\n folded: b"),
        field("X: a\r\n\tfolded: b"),
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_owned(),
        field("Content-Length : 5"),
        field("Transfer-Encoding : chunked"),
        field("X Y: a"),
        field("no colon"),
        field(": no name"),
        field("X\0: a"),
        field("X: a\0b"),
        field("X: a\u{7f}b"),
        field("X: a\u{b}b"),
        // The request line.
        line("GET  / HTTP/1.1"),
        line("GET / HTTP/1.1 "),
        line("GET /a b HTTP/1.1"),
        line(" GET / HTTP/1.1"),
        line("GET\t/ HTTP/1.1"),
        line("GET / HTTP/1.10"),
        line("GET /"),
        line("GET x HTTP/1.1"),
        line("GET * HTTP/1.1"),
        line("GET /#top HTTP/1.1"),
        line("GET http:///x HTTP/1.1"),
        line("GET http://a?x HTTP/1.1"),
        line("GET ftp://a/x HTTP/1.1"),
        line("GET http://user@a/ HTTP/1.1"),
        line("GET http://b/ HTTP/1.1"),
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\r\n\r\n".to_owned(),
        // The host.
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        field("Host: a"),
        field("Host: b"),
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a,b\r\nHost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: :80\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n".to_owned(),
        // The framing.
        field("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        field("Transfer-Encoding: chunked\r\nContent-Length: 5"),
        field("Content-Length: 5\r\nContent-Length: 6"),
        field("Content-Length: 5\r\nContent-Length: 5"),
        field("Content-Length: 5, 5"),
        field("Content-Length: +5"),
        field("Content-Length: -5"),
        field("Content-Length: 0x5"),
        field("Content-Length: 5 5"),
        field("Content-Length: 5.0"),
        field("Content-Length:"),
        field("Content-Length: 18446744073709551616"),
        field("Transfer-Encoding: chunked, chunked"),
        field("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        field("Transfer-Encoding: gzip, chunked"),
        field("Transfer-Encoding: chunked, identity"),
        field("Transfer-Encoding: identity"),
        field("Transfer-Encoding: xchunked"),
        field("Transfer-Encoding: \"chunked\""),
        field("Transfer-Encoding: chunked;q=1"),
        field("Transfer-Encoding:"),
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        // What others rely on must not be taken away.
        field("Connection: content-length\r\nContent-Length: 5"),
        field("Connection: close, X-Forwarded-For"),
        field("Connection: Host"),
        // Chunks.
        chunked("x\r\nhello\r\n0\r\n\r\n"),
        chunked("-5\r\nhello\r\n0\r\n\r\n"),
        chunked("+5\r\nhello\r\n0\r\n\r\n"),
        chunked("0x5\r\nhello\r\n0\r\n\r\n"),
        chunked(" 5\r\nhello\r\n0\r\n\r\n"),
        chunked("\r\nhello\r\n0\r\n\r\n"),
        chunked(";x=y\r\n\r\n"),
        chunked("5\nhello\r\n0\r\n\r\n"),
        chunked("5\rhello\r\n0\r\n\r\n"),
        chunked("5;x=\ny\r\nhello\r\n0\r\n\r\n"),
        chunked("5;x=\0\r\nhello\r\n0\r\n\r\n"),
        chunked("5\r\nhello!\r\n0\r\n\r\n"),
        chunked("5\r\nhello\n0\r\n\r\n"),
        chunked("5\r\nhello0\r\n\r\n"),
        chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"),
        chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000))),
        chunked("0\r\nX: a\n\r\n"),
        chunked("0\r\nX: a\r\n folded\r\n\r\n"),
        chunked("0\r\nX : a\r\n\r\n"),
        chunked("0\r\nno colon\r\n\r\n"),
        chunked(&format!("0\r\n{}\r\n", "X: y\r\n".repeat(65))),
        chunked(&format!("0\r\nX: {}\r\n\r\n", "x".repeat(20_000))),
    ];
    let (teal, _origin, reached) = start("").await;
    for request in requests {
        let answer = last_answer(teal.address, format!("{request}{SMUGGLED}")).await;
        // A second space makes the rest of the target the version.
        let status = if request.starts_with("GET /a b ") { 505 } else { 400 };
        assert_eq!(answer.status, status, "{request:?}: {answer:?}");
        let reached = std::mem::take(&mut *reached.lock());
        assert!(reached.is_empty(), "{request:?} has reached the origin as {reached:?}");
    }
}

#[tokio::test]
async fn other_versions_are_505() {
    let (teal, _origin, reached) = start("").await;
    let lines = ["GET / HTTP/1.2", "GET / HTTP/2.0", "GET / HTTP/0.9", "GET / http/1.1", "PRI * HTTP/2.0"];
    for line in lines {
        assert_eq!(last_answer(teal.address, format!("{line}\r\nHost: a\r\n\r\n")).await.status, 505, "{line}");
    }
    assert!(reached.lock().is_empty());
}

#[tokio::test]
async fn odd_but_clear_requests_pass() {
    let requests = [
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1"),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1"),
        ("GET / HTTP/1.1\r\nHOST:a\r\n\r\n", "GET / HTTP/1.1"),
        ("GET / HTTP/1.1\r\nHost: \t a \t \r\n\r\n", "GET / HTTP/1.1"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / HTTP/1.1"),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / HTTP/1.1"),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n", "get / HTTP/1.1"),
        ("QUERY / HTTP/1.1\r\nHost: a\r\nContent-Length: 000\r\n\r\n", "QUERY / HTTP/1.1"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n", "POST / HTTP/1.1"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0000;x\r\nX: y\r\n\r\n", "POST / HTTP/1.1"),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, , x\r\n\r\n", "GET / HTTP/1.1"),
        ("GET /\u{fc}\"<>\\^`{|} HTTP/1.1\r\nHost: a\r\n\r\n", "GET /\u{fc}\"<>\\^`{|} HTTP/1.1"),
    ];
    let (teal, _origin, reached) = start("").await;
    let mut client = Client::connect(teal.address).await;
    for (request, line) in requests {
        assert_eq!(client.ask(request).await.status, 200, "{request:?}");
        assert_eq!(reached.lock().pop().expect("a request").line(), line);
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431() {
    let (teal, _origin, reached) = start("request_head = \"2KiB\"\nrequest_headers = 20").await;
    let long = |length: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(length));
    let many = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count));
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(4000));
    for request in [long(2048), long(100_000), many(20), many(200), endless] {
        let answer = last_answer(teal.address, &request).await;
        assert_eq!(answer.status, 431, "{} octets", request.len());
    }
    assert!(reached.lock().is_empty());
    for request in [long(2048 - long(0).len()), many(19)] {
        assert_eq!(Client::connect(teal.address).await.ask(request).await.status, 200);
    }
    let stats = &teal.state().listeners()[0].1;
    assert_eq!(stats.rejected(Rejection::HeadTooLarge), 5);
}

#[tokio::test]
async fn a_request_line_that_is_too_long_is_414() {
    let (teal, _origin, reached) = start("").await;
    let line = |length: usize| format!("GET /{}", "x".repeat(length));
    for request in [format!("{} HTTP/1.1\r\nHost: a\r\n\r\n", line(16 * 1024)), line(20_000), line(63_000)] {
        assert_eq!(last_answer(teal.address, &request).await.status, 414);
    }
    assert!(reached.lock().is_empty());
    let longest = line(16 * 1024 - line(0).len() - " HTTP/1.1\r".len());
    let answer = Client::connect(teal.address).await.ask(format!("{longest} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413() {
    let (teal, _origin, reached) = start("request_body = \"10\"").await;
    let announced = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n";
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for request in [announced.to_owned(), format!("{chunked}b\r\n"), format!("{chunked}5\r\nhello\r\n6\r\nworld!")] {
        // A chunk that only announces too much is refused as soon as some of it is there.
        let request = if request.ends_with("b\r\n") { request + "hello world" } else { request };
        assert_eq!(last_answer(teal.address, &request).await.status, 413, "{request:?}");
    }
    assert!(reached.lock().is_empty());
    let mut client = Client::connect(teal.address).await;
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789".to_owned(),
        format!("{chunked}5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n"),
    ] {
        assert_eq!(client.ask(request).await.status, 200);
        assert_eq!(reached.lock().pop().expect("a request").body, b"0123456789");
    }
}

#[tokio::test]
async fn who_is_told_413_while_sending_sees_it() {
    const LENGTH: usize = 64 * 1024 * 1024;
    let (teal, _origin, _) = start("request_body = \"1MiB\"").await;
    for head in
        [format!("Content-Length: {LENGTH}\r\n\r\n"), format!("Transfer-Encoding: chunked\r\n\r\n{LENGTH:x}\r\n")]
    {
        let (mut reader, mut writer) = Client::connect(teal.address).await.stream.into_split();
        let sending = tokio::spawn(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}");
            writer.write_all(head.as_bytes()).await.expect("the head is read");
            body::write(&mut writer, LENGTH).await
        });
        let mut answer = Vec::new();
        while !answer.ends_with(b"413 the request body is too large\n") {
            let read = tokio::io::AsyncReadExt::read_buf(&mut reader, &mut answer);
            assert!(soon("the answer", read).await.expect("no reset before its end") > 0, "the answer is cut");
        }
        soon("the end of sending", sending).await.expect("no panic");
    }
}

/// Who sends all before reading gets the answer, if it is not too much; sending on for ever is of no use.
#[tokio::test]
async fn a_refused_body_is_read_up_to_a_bound() {
    const READ: usize = 8 * 1024 * 1024;
    // With what the buffers of the sockets hold.
    const MOST: usize = 64 * 1024 * 1024;
    let (teal, _origin, _) = start("request_body = \"1MiB\"").await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n";

    let mut client = Client::connect(teal.address).await;
    client.send(head).await;
    assert!(body::write(&mut client.stream, READ).await);
    assert_eq!(client.answer().await.status, 413);

    let mut client = Client::connect(teal.address).await;
    client.send(head).await;
    assert!(!soon("the end of reading", body::write(&mut client.stream, MOST)).await, "it was read to its end");
}

#[tokio::test]
async fn a_head_that_does_not_arrive_in_time_is_408() {
    let (teal, _origin, reached) = start("header_timeout = \"2s\"\nidle_timeout = \"1h\"").await;
    let beginnings = ["", "G", "GET / HTTP/1.1\r\nHost: a\r\n", "\r\n"].map(async |beginning| {
        let begun = Instant::now();
        assert_eq!(last_answer(teal.address, beginning).await.status, 408, "{beginning:?}");
        assert!(begun.elapsed() >= Duration::from_secs(2), "{beginning:?} had its time");
    });
    join_all(beginnings).await;
    let mut client = Client::connect(teal.address).await;
    assert_eq!(client.get("/").await.status, 200);
    client.send("GET / HT").await;
    assert_eq!(client.answer().await.status, 408, "later heads, too");
    assert_eq!(reached.lock().len(), 1);
    assert_eq!(teal.state().listeners()[0].1.rejected(Rejection::HeaderTimeout), 5);
}

/// The time is for the whole head, however busily it trickles.
#[tokio::test]
async fn a_head_that_trickles_is_408() {
    let (teal, _origin, _) = start("header_timeout = \"2s\"").await;
    let (reader, mut writer) = Client::connect(teal.address).await.stream.into_split();
    let trickling = tokio::spawn(async move {
        let between_octets = Duration::from_millis(10);
        let _ = writer.write_all(b"GET / HTTP/1.1\r\n").await;
        while writer.write_all(b"X: y\r\n").await.is_ok() {
            tokio::time::sleep(between_octets).await;
        }
    });
    let mut answer = Vec::new();
    let mut reader = reader;
    let reading = async {
        while !answer.ends_with(b"in time\n")
            && tokio::io::AsyncReadExt::read_buf(&mut reader, &mut answer).await.unwrap() > 0
        {}
    };
    soon("the answer", reading).await;
    assert!(answer.starts_with(b"HTTP/1.1 408 "));
    trickling.abort();
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let (teal, _origin, _) = start("idle_timeout = \"100ms\"\nheader_timeout = \"1h\"").await;
    let mut client = Client::connect(teal.address).await;
    let idle = Instant::now();
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.rest().await, (Vec::new(), true));
    assert!(idle.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_body_that_stalls_is_408() {
    let (teal, _origin, reached) = start("body_timeout = \"100ms\"").await;
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let requests = [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nha".to_owned(),
        chunked.to_owned(),
        format!("{chunked}4\r\nha"),
        format!("{chunked}4\r\nhalf\r\n"),
    ];
    for request in requests {
        assert_eq!(last_answer(teal.address, &request).await.status, 408, "{request:?}");
    }
    assert!(reached.lock().is_empty(), "no whole request");
}

/// The silence counts, not the length of the body.
#[tokio::test]
async fn a_slow_body_that_moves_on_is_no_stalled_one() {
    let (teal, _origin, reached) = start("body_timeout = \"3s\"").await;
    let mut client = Client::connect(teal.address).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\n").await;
    for _ in 0..35 {
        let a_slow_client = Duration::from_millis(100);
        tokio::time::sleep(a_slow_client).await;
        client.send("x").await;
    }
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(reached.lock()[0].body.len(), 35);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let origin = Origin::saying("ok").await;
    let settings = [
        Builder::app(&[&origin]).listener("connections = 2"),
        Builder::app(&[&origin]).service("[limits]\nconnections = 2"),
    ];
    for builder in settings {
        let teal = builder.start().await;
        let (mut first, mut second) = (Client::connect(teal.address).await, Client::connect(teal.address).await);
        assert_eq!((first.get("/").await.status, second.get("/").await.status), (200, 200));
        let mut third = Client::connect(teal.address).await;
        third.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let it_waits = Duration::from_millis(100);
        assert!(tokio::time::timeout(it_waits, third.more()).await.is_err(), "it is not served yet");
        assert_eq!(first.get("/").await.status, 200, "the others are");
        drop(first);
        assert_eq!(third.answer().await.status, 200);
    }
}

#[tokio::test]
async fn an_address_has_only_as_many_connections_as_it_may() {
    let (teal, _origin, _) = start("connections_per_ip = 2").await;
    let (mut first, mut second) = (Client::connect(teal.address).await, Client::connect(teal.address).await);
    assert_eq!((first.get("/").await.status, second.get("/").await.status), (200, 200));
    let mut third = Client::connect(teal.address).await;
    assert!(third.rest().await.0.is_empty(), "it is closed");
    let stats = teal.state().listeners()[0].1.clone();
    assert_eq!(stats.rejected(Rejection::ConnectionsPerIp), 1);
    drop(first);
    eventually("the place is free again", || stats.connections.load(Ordering::SeqCst) == 1).await;
    assert_eq!(get(teal.address, "/").await.status, 200);
}

#[tokio::test]
async fn two_hundred_slow_clients_do_not_keep_a_good_one_waiting() {
    let origin = Origin::saying("ok").await;
    let teal =
        Builder::app(&[&origin]).listener("header_timeout = \"1h\"\nbody_timeout = \"1h\"").workers(1).start().await;
    let mut slow = Vec::new();
    for n in 0..200 {
        let mut client = Client::connect(teal.address).await;
        let head = ["", "GET / HTTP/1.1\r\nHost: a\r\n", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"];
        client.send(head[n % head.len()]).await;
        slow.push(client);
    }
    let mut good = Client::connect(teal.address).await;
    for _ in 0..50 {
        assert_eq!(good.get("/").await.status, 200);
    }
    assert_eq!(get(teal.address, "/").await.status, 200, "new ones are served, too");
    drop(slow);
    let stats = &teal.state().listeners()[0].1;
    drop(good);
    eventually("everybody has left", || stats.connections.load(Ordering::SeqCst) == 0).await;
}
