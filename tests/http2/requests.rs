//! What a client asks over HTTP/2 is what the origin gets over HTTP/1.1 (RFC 9113 §8), or it gets nothing.

use http::{HeaderMap, Request};

use crate::good::{self, Good, request};
use crate::raw::{self, END_HEADERS, END_STREAM, HEADERS, Outcome, PROTOCOL_ERROR, Raw, block, field, frame, pseudo};
use crate::recording;
use crate::support::by_hand::by_hand;
use crate::support::origin::{self, Requests, ok};
use crate::support::proxy::Builder;

/// The newest request at the origin.
fn newest(requests: &Requests) -> origin::Request {
    requests.lock().last().cloned().expect("a request at the origin")
}

#[tokio::test]
async fn a_request_arrives_with_its_fields_in_order() {
    let (teal, origin, requests) = recording().await;
    let mut client = Good::connect(teal.address).await;
    let asked = request("GET", "/a/b?c=d").header("accept", "text/html").header("x-one", "1").header("te", "trailers");
    let answer = client.ask(asked.body(()).expect("a request"), b"").await;
    assert_eq!((answer.status, answer.text(), answer.field("content-length")), (200, "ok", Some("2")));
    let head = newest(&requests).head;
    let id = newest(&requests).field("x-request-id").expect("an id").to_owned();
    let port = teal.address.port();
    assert_eq!(
        head,
        format!(
            "GET /a/b?c=d HTTP/1.1\r\nHost: test\r\naccept: text/html\r\nx-one: 1\r\nX-Forwarded-For: 127.0.0.1\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-Host: test\r\nX-Forwarded-Port: {port}\r\nX-Request-Id: {id}\r\n\
             Connection: TE\r\nTE: trailers"
        )
    );
    drop(origin);
}

/// RFC 9113 §8.3.1.
#[tokio::test]
async fn a_request_has_one_host() {
    let (teal, _origin, requests) = recording().await;
    let line = block(&[(":method", "GET"), (":scheme", "http"), (":path", "/")]);
    let with = |fields: &[(&str, &str)]| [line.clone(), block(fields)].concat();
    let cases: [(&str, Vec<u8>, Result<&str, u16>); 12] = [
        ("of :authority", with(&[(":authority", "a")]), Ok("a")),
        ("of Host alone", with(&[("host", "a")]), Ok("a")),
        ("said twice", with(&[(":authority", "a"), ("host", "a")]), Ok("a")),
        ("said twice with a port", with(&[(":authority", "a:80"), ("host", "a:80")]), Ok("a:80")),
        ("in another spelling", with(&[(":authority", "a.Example"), ("host", "A.example")]), Ok("a.Example")),
        ("two that differ", with(&[(":authority", "a"), ("host", "b")]), Err(400)),
        ("the other with a port", with(&[(":authority", "a"), ("host", "a:80")]), Err(400)),
        ("two fields", with(&[("host", "a"), ("host", "a")]), Err(400)),
        ("one and two fields", with(&[(":authority", "a"), ("host", "a"), ("host", "a")]), Err(400)),
        ("none", with(&[]), Err(400)),
        ("with a user", with(&[(":authority", "user@a")]), Err(400)),
        ("that is empty besides", with(&[(":authority", "a"), ("host", "")]), Err(400)),
    ];
    for (name, head, expected) in cases {
        requests.lock().clear();
        let mut client = Raw::connect(teal.address).await;
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, head)).await;
        let status = client.outcome(1).await.status();
        let host = requests.lock().first().map(|request| request.field("host").expect("a host").to_owned());
        assert_eq!(
            (status, host.as_deref()),
            expected.map_or_else(|status| (status, None), |host| (200, Some(host))),
            "{name}"
        );
    }
}

/// What a path may be: as the origin gets it, or how it is refused.
#[tokio::test]
async fn a_path_goes_on_as_it_is_or_not_at_all() {
    let (teal, _origin, requests) = recording().await;
    let reset = Err(Outcome::Reset { status: 0, body: Vec::new(), code: PROTOCOL_ERROR });
    let cases: [(&str, &str, Result<&str, Outcome>); 14] = [
        ("GET", "/", Ok("GET / HTTP/1.1")),
        ("GET", "/a//b/../c?d?e", Ok("GET /a//b/../c?d?e HTTP/1.1")),
        ("GET", "/%00%0d%0a", Ok("GET /%00%0d%0a HTTP/1.1")),
        // A route for `/` is none for this.
        ("OPTIONS", "*", Err(Outcome::Answer { status: 404, body: Vec::new() })),
        // `h2` takes a fragment off, of which no server is told anyway; what is left has one meaning for all behind it.
        ("GET", "/a#b", Ok("GET /a HTTP/1.1")),
        ("GET", "", reset.clone()),
        ("GET", "/a b", reset.clone()),
        ("GET", "/a HTTP/1.1\r\nX: y", reset.clone()),
        ("GET", "/a\r\nX: y", reset.clone()),
        ("GET", "/a\n", reset.clone()),
        ("GET", "/a\0b", reset.clone()),
        ("GET", "*", Err(Outcome::Answer { status: 400, body: Vec::new() })),
        ("GET", "http://other/a", reset.clone()),
        ("GET", "a", reset.clone()),
    ];
    for (method, path, expected) in cases {
        requests.lock().clear();
        let mut client = Raw::connect(teal.address).await;
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, pseudo(method, path))).await;
        let outcome = match client.outcome(1).await {
            Outcome::Answer { status, .. } if status != 200 => Outcome::Answer { status, body: Vec::new() },
            other => other,
        };
        let line = requests.lock().first().map(|request| request.line().to_owned());
        match expected {
            Ok(expected) => assert_eq!(line.as_deref(), Some(expected), "{method} {path:?}: {outcome:?}"),
            Err(expected) => assert_eq!((outcome, line), (expected, None), "{method} {path:?}"),
        }
    }
}

/// RFC 9113 §8.1.1, §8.2, §8.3: a malformed request is reset, and the connection goes on.
#[tokio::test]
async fn a_malformed_head_is_reset_and_no_more() {
    let (teal, _origin, requests) = recording().await;
    let and = |name: &str, value: &[u8]| [pseudo("GET", "/"), field(name, value)].concat();
    let only = |fields: &[(&str, &str)]| block(fields);
    let heads: [(&str, Vec<u8>); 27] = [
        ("connection", and("connection", b"close")),
        ("connection that names a field", and("connection", b"x-one")),
        ("keep-alive", and("keep-alive", b"timeout=5")),
        ("proxy-connection", and("proxy-connection", b"keep-alive")),
        ("transfer-encoding", and("transfer-encoding", b"chunked")),
        ("upgrade", and("upgrade", b"websocket")),
        ("te other than trailers", and("te", b"gzip")),
        ("te with more than trailers", and("te", b"trailers, gzip")),
        ("a name in upper case", and("X-One", b"1")),
        ("a name with a line break", and("x\r\ny", b"1")),
        ("a name with a colon", and("x:y", b"1")),
        ("a name with a space", and("x y", b"1")),
        ("an empty name", and("", b"1")),
        ("a value with a line feed", and("x", b"1\n2")),
        ("a value with a carriage return", and("x", b"1\r2")),
        ("a value with a line break", and("x", b"1\r\nHost: b")),
        ("a value with a NUL", and("x", b"1\x002")),
        ("a pseudo-header field behind others", [block(&[("x", "y")]), pseudo("GET", "/")].concat()),
        ("a pseudo-header field twice", [pseudo("GET", "/"), block(&[(":path", "/b")])].concat()),
        ("an unknown pseudo-header field", [pseudo("GET", "/"), block(&[(":color", "green")])].concat()),
        (":status", [pseudo("GET", "/"), block(&[(":status", "200")])].concat()),
        ("no :method", only(&[(":scheme", "http"), (":authority", "a"), (":path", "/")])),
        ("no :scheme", only(&[(":method", "GET"), (":authority", "a"), (":path", "/")])),
        ("no :path", only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a")])),
        (":protocol without CONNECT", [pseudo("GET", "/"), block(&[(":protocol", "websocket")])].concat()),
        ("a method that is none", pseudo("GE T", "/")),
        (
            "an :authority with a line break",
            only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a\r\nX: y"), (":path", "/")]),
        ),
    ];
    let mut ended = Vec::new();
    for (name, head) in heads {
        let mut client = Raw::connect(teal.address).await;
        client.send([frame(HEADERS, END_HEADERS | END_STREAM, 1, head), raw::get(3, "/")].concat()).await;
        let outcome = client.outcome(1).await;
        let is_refused = match &outcome {
            Outcome::Reset { status: 0, code, .. } => {
                // The connection goes on.
                assert_eq!(client.outcome(3).await.status(), 200, "{name}");
                *code == PROTOCOL_ERROR
            }
            // `h2` takes these for errors of compression: stricter than it has to be.
            Outcome::GoAway(code) => {
                ended.push(name);
                *code == PROTOCOL_ERROR
            }
            _ => false,
        };
        assert!(is_refused, "{name}: {outcome:?}");
        assert!(
            requests.lock().drain(..).all(|request| request.line() == "GET / HTTP/1.1" && request.field("x").is_none()),
            "{name}"
        );
        assert_eq!(good::get_once(teal.address, "/").await.status, 200);
        requests.lock().clear();
    }
    let other = ["an unknown pseudo-header field", "a method that is none"];
    let is_octet = |name: &str| name.starts_with("a name") || name.starts_with("a value") || name == "an empty name";
    assert!(ended.iter().all(|name| is_octet(name) || other.contains(name)) && ended.len() == 11, "{ended:?}");
}

/// RFC 9113 §8.2.3.
#[tokio::test]
async fn the_crumbs_of_a_cookie_make_one_field() {
    let (teal, _origin, requests) = recording().await;
    let mut client = Good::connect(teal.address).await;
    for count in [1, 2, 95] {
        let crumbs: Vec<String> = (0..count).map(|n| format!("crumb{n}=value{n}")).collect();
        let mut asked = request("GET", "/");
        for crumb in &crumbs {
            asked = asked.header("cookie", crumb);
        }
        assert_eq!(client.ask(asked.body(()).expect("a request"), b"").await.status, 200);
        assert_eq!(newest(&requests).field("cookie"), Some(crumbs.join("; ").as_str()));
    }
}

/// Framing is that of the frames: an announced length must agree with them (RFC 9113 §8.1.1).
#[tokio::test]
async fn a_body_is_as_long_as_its_head_says() {
    let (teal, _origin, requests) = recording().await;
    let length = |lengths: &[&str]| {
        let fields: Vec<(&str, &str)> = lengths.iter().map(|length| ("content-length", *length)).collect();
        [pseudo("POST", "/"), block(&fields)].concat()
    };
    let data = |bytes: &str, is_last: bool| frame(raw::DATA, if is_last { END_STREAM } else { 0 }, 1, bytes);
    let open = |head: Vec<u8>| frame(HEADERS, END_HEADERS, 1, head);
    let cases: [(&str, Vec<u8>, bool); 13] = [
        ("exact", [open(length(&["5"])), data("hello", true)].concat(), true),
        ("in pieces", [open(length(&["5"])), data("he", false), data("", false), data("llo", true)].concat(), true),
        ("ended by an empty frame", [open(length(&["5"])), data("hello", false), data("", true)].concat(), true),
        ("the same twice", [open(length(&["5", "5"])), data("hello", true)].concat(), false),
        ("two that differ", [open(length(&["5", "6"])), data("hello", true)].concat(), false),
        ("a list", [open(length(&["5, 5"])), data("hello", true)].concat(), false),
        ("signed", [open(length(&["+5"])), data("hello", true)].concat(), false),
        ("empty", [open(length(&[""])), data("hello", true)].concat(), false),
        ("too large a number", [open(length(&["18446744073709551621"])), data("hello", true)].concat(), false),
        ("too short", [open(length(&["6"])), data("hello", true)].concat(), false),
        ("too long", [open(length(&["4"])), data("hello", true)].concat(), false),
        ("none of it", frame(HEADERS, END_HEADERS | END_STREAM, 1, length(&["5"])), false),
        ("nothing announced", frame(HEADERS, END_HEADERS | END_STREAM, 1, length(&["0"])), true),
    ];
    for (name, bytes, is_served) in cases {
        requests.lock().clear();
        let mut client = Raw::connect(teal.address).await;
        client.send(bytes).await;
        let outcome = client.outcome(1).await;
        assert_eq!(outcome.status() == 200, is_served, "{name}: {outcome:?}");
        let bodies: Vec<Vec<u8>> = requests.lock().iter().map(|request| request.body.clone()).collect();
        // The origin may have seen the head of what was broken, but never a whole request.
        assert_eq!(bodies.len(), usize::from(is_served), "{name}");
    }
}

#[tokio::test]
async fn requests_without_a_body_are_framed_as_such() {
    let (teal, _origin, requests) = recording().await;
    for (method, length) in [
        ("GET", None),
        ("DELETE", None),
        ("OPTIONS", None),
        ("POST", Some("0")),
        ("PUT", Some("0")),
        ("PATCH", Some("0")),
    ] {
        let asked = request(method, "/").body(()).expect("a request");
        assert_eq!(Good::connect(teal.address).await.ask(asked, b"").await.status, 200);
        let newest = newest(&requests);
        assert_eq!((newest.field("content-length"), newest.field("transfer-encoding")), (length, None), "{method}");
    }
    // One whose end comes later, in a frame of its own.
    let mut client = Good::connect(teal.address).await;
    let (answer, mut send) = client.begin(good::post("/"), true).await;
    send.send_data(bytes::Bytes::new(), true).expect("an open stream");
    assert_eq!(good::whole(answer).await.expect("an answer").status, 200);
    let newest = newest(&requests);
    assert_eq!((newest.field("transfer-encoding"), newest.body.len()), (Some("chunked"), 0));
}

#[tokio::test]
async fn trailers_of_a_request_reach_the_origin() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Good::connect(teal.address).await;
    let (answer, mut send) = client.begin(good::post("/"), true).await;
    let mut call = calls.next().await;
    assert_eq!(call.field("transfer-encoding"), Some("chunked"));
    send.send_data("hello".into(), false).expect("an open stream");
    call.expect("5\r\nhello\r\n").await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("5d41"));
    // What would change the message is none of its trailers (RFC 9110 §6.5.1).
    trailers.insert("host", http::HeaderValue::from_static("other"));
    trailers.insert("content-length", http::HeaderValue::from_static("7"));
    send.send_trailers(trailers).expect("an open stream");
    call.expect("0\r\nx-sum: 5d41\r\n\r\n").await;
    call.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(good::whole(answer).await.expect("an answer").status, 204);
}

/// RFC 9113 §8.1: behind the trailers there is nothing.
#[tokio::test]
async fn broken_trailers_break_the_request() {
    let (teal, _origin, requests) = recording().await;
    let data = frame(raw::DATA, 0, 1, "hello");
    let trailers = |flags: u8, fields: &[(&str, &str)]| frame(HEADERS, END_HEADERS | flags, 1, block(fields));
    let cases = [
        ("that do not end the stream", trailers(0, &[("x", "y")])),
        ("with a line break", trailers(END_STREAM, &[("x", "y\r\nz: 1")])),
        ("with a field of the connection", trailers(END_STREAM, &[("connection", "close")])),
    ];
    // Pseudo-header fields in trailers reach nobody: `h2` drops them.
    let (origin, mut calls) = by_hand().await;
    let by_hand = Builder::app(&[&origin]).start().await;
    let mut client = Raw::connect(by_hand.address).await;
    client.send([raw::post(1, "/"), trailers(END_STREAM, &[(":path", "/other"), ("x", "y")])].concat()).await;
    let mut call = calls.next().await;
    call.expect("0\r\nx: y\r\n\r\n").await;
    call.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.outcome(1).await.status(), 204);
    for (name, trailers) in cases {
        let mut client = Raw::connect(teal.address).await;
        client.send([raw::post(1, "/"), data.clone(), trailers].concat()).await;
        let outcome = client.outcome(1).await;
        assert!(matches!(outcome, Outcome::Reset { status: 0, .. } | Outcome::GoAway(_)), "{name}: {outcome:?}");
        assert!(requests.lock().is_empty(), "{name}");
    }
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused() {
    let (teal, _origin, requests) = recording().await;
    let cases: [(&str, &[(&str, &str)], u16); 3] = [
        ("CONNECT", &[(":method", "CONNECT"), (":authority", "a:443")], 405),
        ("TRACE", &[(":method", "TRACE"), (":scheme", "http"), (":authority", "a"), (":path", "/")], 405),
        (
            "a protocol that we do not know",
            &[
                (":method", "CONNECT"),
                (":protocol", "connect-udp"),
                (":scheme", "http"),
                (":authority", "a"),
                (":path", "/"),
            ],
            405,
        ),
    ];
    for (name, head, status) in cases {
        let mut client = Raw::connect(teal.address).await;
        client.send([frame(HEADERS, END_HEADERS, 1, block(head)), raw::get(3, "/")].concat()).await;
        assert_eq!(client.outcome(1).await.status(), status, "{name}");
        assert!(client.settle().await, "{name}");
    }
    assert!(requests.lock().iter().all(|request| request.line() == "GET / HTTP/1.1"));
}

#[tokio::test]
async fn requests_of_one_connection_run_beside_each_other() {
    let (origin, mut calls) = by_hand().await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Good::connect(teal.address).await;
    let mut waiting = Vec::new();
    for n in 0..100 {
        waiting
            .push(client.begin(Request::get(format!("http://test/{n}")).body(()).expect("a request"), false).await.0);
    }
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(calls.next().await);
    }
    // The last one first.
    for mut call in open.into_iter().rev() {
        let path = call.head.split(' ').nth(1).expect("a path").to_owned();
        call.send(ok(&path)).await;
    }
    for (n, answer) in waiting.into_iter().enumerate() {
        assert_eq!(good::whole(answer).await.expect("an answer").text(), format!("/{n}"));
    }
}
