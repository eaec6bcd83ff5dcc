//! What the origin answers over HTTP/1.1 is what the client gets over HTTP/2.

use std::future::poll_fn;

use crate::Builder;
use crate::good::{self, Good, get, post, request};
use crate::raw::{self, NO_ERROR, Outcome, Raw};
use crate::support::by_hand::{Calls, by_hand};
use crate::support::origin::Origin;
use crate::support::proxy::Teal;
use crate::support::{body, soon};

async fn stage() -> (Teal, Origin, Calls) {
    let (origin, calls) = by_hand().await;
    (Builder::app(&[&origin]).start().await, origin, calls)
}

#[tokio::test]
async fn an_answer_is_the_same_whatever_its_framing() {
    let (teal, _origin, mut calls) = stage().await;
    let mut client = Good::connect(teal.address).await;
    for (name, answer, field) in [
        ("length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Some("5")),
        ("chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", None),
        ("close", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", None),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nhello", None),
    ] {
        let (waiting, _) = client.begin(get("/"), false).await;
        let mut call = calls.next().await;
        call.send(answer).await;
        drop(call);
        let answer = good::whole(waiting).await.expect("a whole answer");
        assert_eq!((answer.status, answer.text(), answer.field("content-length")), (200, "hello", field), "{name}");
        for gone in ["connection", "transfer-encoding", "keep-alive", "upgrade"] {
            assert_eq!(answer.field(gone), None, "{name}");
        }
    }
}

#[tokio::test]
async fn fields_of_the_hop_stay_behind_and_the_others_come() {
    let (teal, _origin, mut calls) = stage().await;
    let mut client = Good::connect(teal.address).await;
    let (waiting, _) = client.begin(get("/"), false).await;
    calls
        .next()
        .await
        .send(
            "HTTP/1.1 418 I'm a teapot\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Connection: close\r\nUpgrade: h2c\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Empty:\r\n\
             X-Odd: ~ \u{fc}\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
    let answer = good::whole(waiting).await.expect("a whole answer");
    assert_eq!(answer.status, 418);
    let mut names: Vec<&str> = answer.fields.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "set-cookie", "set-cookie", "x-empty", "x-odd"]);
    assert_eq!(answer.fields["x-odd"].as_bytes(), "~ \u{fc}".as_bytes());
    let cookies: Vec<_> = answer.fields.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

/// An answer without a body ends with its head, whatever length it announces.
#[tokio::test]
async fn answers_without_a_body_end_with_their_head() {
    let (teal, _origin, mut calls) = stage().await;
    for (method, answer, status, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", 200, Some("12345")),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, None),
        ("HEAD", "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", 404, Some("9")),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 12345\r\n\r\n", 304, Some("12345")),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, Some("0")),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, None),
    ] {
        let mut client = Good::connect(teal.address).await;
        let (waiting, _) = client.begin(request(method, "/").body(()).expect("a request"), false).await;
        calls.next().await.send(answer).await;
        let got = good::whole(waiting).await.expect("a whole answer");
        assert_eq!((got.status, got.body.len(), got.field("content-length")), (status, 0, length), "{method} {answer}");
    }
}

#[tokio::test]
async fn interim_answers_reach_the_client_before_the_final_one() {
    let (teal, _origin, mut calls) = stage().await;
    let mut client = Good::connect(teal.address).await;
    let (mut waiting, _) = client.begin(get("/"), false).await;
    let mut call = calls.next().await;
    for hint in ["/a.css", "/b.css"] {
        call.send(format!("HTTP/1.1 103 Early Hints\r\nLink: <{hint}>; rel=preload\r\n\r\n")).await;
        let interim = soon("an interim answer", poll_fn(|cx| waiting.poll_informational(cx))).await;
        let interim = interim.expect("there is one").expect("a connection");
        assert_eq!(interim.status(), 103);
        assert_eq!(interim.headers()["link"], format!("<{hint}>; rel=preload"));
    }
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(good::whole(waiting).await.expect("an answer").text(), "ok");
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it() {
    let (teal, _origin, mut calls) = stage().await;
    let mut client = Good::connect(teal.address).await;
    let asked = request("POST", "/").header("expect", "100-continue").header("content-length", "5");
    let (mut waiting, mut send) = client.begin(asked.body(()).expect("a request"), true).await;
    let mut call = calls.next().await;
    assert_eq!(call.field("expect"), Some("100-continue"));
    call.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    let interim = soon("an interim answer", poll_fn(|cx| waiting.poll_informational(cx))).await;
    assert_eq!(interim.expect("there is one").expect("a connection").status(), 100);
    send.send_data("hello".into(), true).expect("an open stream");
    call.expect("hello").await;
    call.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(good::whole(waiting).await.expect("an answer").text(), "ok");
}

#[tokio::test]
async fn trailers_of_an_answer_reach_the_client() {
    let (teal, _origin, mut calls) = stage().await;
    for pieces in [1, 7, usize::MAX] {
        let mut client = Good::connect(teal.address).await;
        let (waiting, _) = client.begin(get("/"), false).await;
        let mut call = calls.next().await;
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\n\
                      X-Sum: 5d41\r\nX-Status: 0\r\n\r\n";
        for piece in answer.as_bytes().chunks(pieces.min(answer.len())) {
            call.send(piece).await;
            tokio::task::yield_now().await;
        }
        let answer = good::whole(waiting).await.expect("a whole answer");
        let trailers = answer.trailers.expect("trailers");
        assert_eq!((answer.body.as_slice(), trailers.len()), (&b"hello"[..], 2));
        assert!(trailers["x-sum"] == "5d41" && trailers["x-status"] == "0");
    }
}

/// An answer that comes while the request is still being sent is whole, and the rest of the request is not wanted: RFC 9113
/// §8.1 has a code for that.
#[tokio::test]
async fn an_early_answer_comes_whole_and_ends_the_upload() {
    let (teal, _origin, mut calls) = stage().await;
    for length in [2, 200_000] {
        let mut client = Good::connect(teal.address).await;
        let (waiting, mut send) = client.begin(post("/"), true).await;
        send.send_data("the first of it".into(), false).expect("an open stream");
        let mut call = calls.next().await;
        let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        call.send([head.as_bytes(), &body::body(length)].concat()).await;
        let answer = good::whole(waiting).await.expect("a whole answer");
        assert_eq!((answer.status, answer.body.len()), (403, length));
        body::check(0, &answer.body);
        let reset = soon("the end of the upload", poll_fn(|cx| send.poll_reset(cx))).await;
        assert_eq!(reset.expect("a reset"), h2::Reason::NO_ERROR);
        let answering = async { calls.next().await.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await };
        assert_eq!(tokio::join!(client.get("/other"), answering).0.status, 200);
    }
}

/// Some clients see an answer only when they have sent their request (the one of Java 17 is deaf to that reset): they may,
/// within bounds, as over HTTP/1.1.
#[tokio::test]
async fn who_does_not_stop_its_upload_at_an_early_answer_may_end_it() {
    let (teal, _origin, mut calls) = stage().await;
    let mut client = Good::connect(teal.address).await;
    let (waiting, mut send) = client.begin(post("/"), true).await;
    send.send_data("the first of it".into(), false).expect("an open stream");
    calls.next().await.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert_eq!(good::whole(waiting).await.expect("a whole answer").status, 403);
    // More than the window that each stream begins with.
    let mut left = 600_000;
    while left > 0 {
        send.reserve_capacity(left.min(16 * 1024));
        let granted = soon("room for the rest", poll_fn(|cx| send.poll_capacity(cx))).await;
        let granted = granted.expect("an open stream").expect("no reset").min(left);
        left -= granted;
        send.send_data(vec![b'x'; granted].into(), left == 0).expect("an open stream");
    }
    let answering = async { calls.next().await.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await };
    assert_eq!(tokio::join!(client.get("/other"), answering).0.status, 200);
}

/// What the client must not take for a whole answer: the origin broke off, or broke its framing.
#[tokio::test]
async fn half_an_answer_is_reset_wherever_it_is_cut() {
    let (teal, _origin, mut calls) = stage().await;
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
    let cases: [(&str, String); 14] = [
        ("no chunk", chunked.to_owned()),
        ("inside a chunk's size", format!("{chunked}1")),
        ("behind a chunk's size", format!("{chunked}5\r\n")),
        ("inside a chunk", format!("{chunked}5\r\nhel")),
        ("behind a chunk", format!("{chunked}5\r\nhello")),
        ("inside a chunk's line end", format!("{chunked}5\r\nhello\r")),
        ("between two chunks", format!("{chunked}5\r\nhello\r\n")),
        ("inside the last chunk", format!("{chunked}5\r\nhello\r\n0\r\n")),
        ("inside the trailers", format!("{chunked}5\r\nhello\r\n0\r\nX-Sum: 5d41\r\n")),
        ("a chunk that is none", format!("{chunked}5\r\nhello\r\nxyz\r\n")),
        ("a chunk that is too long", format!("{chunked}5\r\nhello world\r\n0\r\n\r\n")),
        ("nothing of a length", length.to_owned()),
        ("half of a length", format!("{length}hello")),
        ("all but one of a length", format!("{length}hello wor")),
    ];
    for (name, answer) in cases {
        let mut client = Raw::connect(teal.address).await;
        client.send(raw::get(1, "/")).await;
        let mut call = calls.next().await;
        call.send(answer).await;
        drop(call);
        let outcome = client.outcome(1).await;
        // The reset may overtake what was sent before it.
        let Outcome::Reset { status: 0 | 200, body, code } = outcome else { panic!("{name}: {outcome:?}") };
        assert!(b"hello world".starts_with(&body), "{name}: {body:?}");
        assert_ne!(code, NO_ERROR, "{name}");
        assert!(client.settle().await, "the connection goes on");
    }
}

#[tokio::test]
async fn a_head_that_breaks_off_or_is_none_is_a_gateways_failure() {
    let (teal, _origin, mut calls) = stage().await;
    for answer in ["", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "SSH-2.0-x\r\n\r\n"] {
        let mut client = Good::connect(teal.address).await;
        let (waiting, _) = client.begin(post("/"), false).await;
        let mut call = calls.next().await;
        call.send(answer).await;
        drop(call);
        assert_eq!(good::whole(waiting).await.expect("an answer").status, 502, "{answer:?}");
    }
}

/// What an origin sends behind the end of its answer is nobody's.
#[tokio::test]
async fn nothing_behind_the_end_of_an_answer_reaches_a_client() {
    let (teal, _origin, mut calls) = stage().await;
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n",
    ] {
        let mut client = Raw::connect(teal.address).await;
        client.send(raw::get(1, "/")).await;
        calls.next().await.send([answer, smuggled].concat()).await;
        let outcome = client.outcome(1).await;
        let Outcome::Answer { body, .. } = outcome else { panic!("{outcome:?}") };
        assert!(body == b"ok" || body.is_empty(), "{body:?}");
        client.send(raw::get(3, "/next")).await;
        let mut call = calls.next().await;
        call.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await;
        assert_eq!(client.outcome(3).await, Outcome::Answer { status: 200, body: b"next".to_vec() });
    }
}

/// The end of a body needs no window of the client's.
#[tokio::test]
async fn a_window_that_just_fits_the_body_suffices() {
    let (teal, _origin, mut calls) = stage().await;
    for (framing, ending) in [("Content-Length: 65535", ""), ("Transfer-Encoding: chunked", "\r\n0\r\n\r\n")] {
        let mut client = Raw::connect(teal.address).await;
        client.send(raw::get(1, "/")).await;
        let mut call = calls.next().await;
        let size = if ending.is_empty() { "" } else { "ffff\r\n" };
        let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{size}");
        call.send([head.as_bytes(), &body::body(65_535), ending.as_bytes()].concat()).await;
        let outcome = client.outcome(1).await;
        let Outcome::Answer { status: 200, body } = outcome else { panic!("{framing}: not answered in order") };
        body::check(0, &body);
        assert_eq!(body.len(), 65_535);
    }
    // Trailers need none either.
    let mut client = Raw::connect(teal.address).await;
    client.send(raw::get(1, "/")).await;
    let mut call = calls.next().await;
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n".as_bytes();
    call.send([head, &body::body(65_535), b"\r\n0\r\nX-Sum: 1\r\n\r\n"].concat()).await;
    assert!(matches!(client.outcome(1).await, Outcome::Answer { status: 200, body } if body.len() == 65_535));
}

/// A chunk of the origin's is not torn into more frames than it has to be.
#[tokio::test]
async fn a_small_chunk_is_one_frame() {
    let (teal, _origin, mut calls) = stage().await;
    let mut client = Raw::connect(teal.address).await;
    client.send(raw::get(1, "/")).await;
    let mut call = calls.next().await;
    call.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for _ in 0..20 {
        call.send([b"64\r\n", &body::body(100)[..], b"\r\n"].concat()).await;
        assert_eq!(client.expect(raw::DATA, 1).await.payload.len(), 100);
    }
    drop(client);
}

#[tokio::test]
async fn large_bodies_come_through_both_ways() {
    const LENGTH: usize = 1_000_000;
    let origin = Origin::http(|request| async move {
        body::check(0, &request.body);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len());
        [head.as_bytes(), &request.body].concat()
    });
    let origin = origin.await;
    let teal = Builder::app(&[&origin]).start().await;
    let mut client = Good::connect(teal.address).await;
    for announced in [false, true] {
        let mut asked = request("POST", "/");
        if announced {
            asked = asked.header("content-length", LENGTH);
        }
        let answer = client.ask(asked.body(()).expect("a request"), &body::body(LENGTH)).await;
        assert_eq!((answer.status, answer.body.len()), (200, LENGTH));
        body::check(0, &answer.body);
    }
    // Padding counts against the window, and must be given back, too.
    let mut raw = Raw::connect(teal.address).await;
    raw.send(raw::post(1, "/")).await;
    raw.expect(raw::SETTINGS, 0).await;
    for at in 0..100_usize {
        let padded = [&[255][..], &body::body(LENGTH)[at * 10_000..(at + 1) * 10_000], &[0; 255]].concat();
        assert!(raw.send(raw::frame(raw::DATA, raw::PADDED, 1, padded)).await);
        if at % 10 == 9 {
            assert!(raw.settle().await, "the window holds");
        }
    }
    raw.send([raw::window_update(0, 10_000_000), raw::window_update(1, 10_000_000)].concat()).await;
    raw.send(raw::frame(raw::DATA, raw::END_STREAM, 1, "")).await;
    let outcome = raw.outcome(1).await;
    assert!(matches!(outcome, Outcome::Answer { status: 200, body } if body.len() == 1_000_000));
}
