//! An answer that breaks off half way never looks whole to the client.

use std::time::Duration;

use socket2::SockRef;

use crate::support::by_hand::{Call, by_hand};
use crate::support::client::Client;
use crate::support::proxy::Builder;

/// How an origin may stop in the middle of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Close,
    Reset,
    /// It just says no more, until `body_timeout`.
    Silence,
    /// What it sends is no longer a chunk.
    Garbage,
}

impl End {
    async fn bring(self, mut call: Call) -> Option<Call> {
        match self {
            End::Close => return None,
            End::Reset => SockRef::from(&call.wire.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket"),
            End::Silence => return Some(call),
            End::Garbage => call.send("garbage\r\n").await,
        }
        None
    }
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
const CHUNKED_IN_CHUNK: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf";
const CHUNKED_IN_TRAILERS: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nX-Sum: ";
const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf";
const UNTIL_CLOSE: &str = "HTTP/1.1 200 OK\r\n\r\nhalf";

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let cases = [
        (LENGTH, End::Close),
        (LENGTH, End::Reset),
        (LENGTH, End::Silence),
        (CHUNKED, End::Close),
        (CHUNKED, End::Reset),
        (CHUNKED, End::Silence),
        (CHUNKED, End::Garbage),
        (CHUNKED_IN_CHUNK, End::Close),
        (CHUNKED_IN_TRAILERS, End::Close),
        (CHUNKED_IN_TRAILERS, End::Reset),
        (UNTIL_CLOSE, End::Reset),
        (UNTIL_CLOSE, End::Silence),
    ];
    let requests = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ];
    let (origin, mut calls) = by_hand().await;
    let teal =
        Builder::app(&[&origin]).listener("body_timeout = \"200ms\"").service("outlier = { consecutive_errors = 0 }");
    let teal = teal.start().await;
    for (answer, end) in cases {
        for request in requests {
            let mut client = Client::connect(teal.address).await;
            client.send(request).await;
            let mut call = calls.next().await;
            call.send(answer).await;
            client.head().await.expect("a head");
            let silent = end.bring(call).await;
            let (body, was_in_order) = client.rest().await;
            let is_chunked = request.contains("1.1") && !answer.contains("Length");
            let body = String::from_utf8_lossy(&body).into_owned();
            let looks_whole = match () {
                () if answer.contains("Length") => body.len() >= 8,
                () if is_chunked => body.ends_with("0\r\n\r\n"),
                () => was_in_order,
            };
            assert!(!looks_whole, "{request:?} {answer:?} {end:?}: {body:?}, in order: {was_in_order}");
            drop(silent);
        }
    }
}

#[tokio::test]
async fn an_answer_that_a_drain_cuts_never_looks_whole() {
    let (origin, mut calls) = by_hand().await;
    let green = crate::support::origin::Origin::saying("green").await;
    let service = format!("green = [{}]\ndrain = {{ timeout = \"0s\" }}", green.toml());
    let teal = Builder::app(&[&origin]).service(&service).start().await;
    let mut client = Client::connect(teal.address).await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let mut call = calls.next().await;
    call.send(UNTIL_CLOSE).await;
    client.head().await.expect("a head");
    teal.switch("app", teal::config::Color::Green).await.expect("a switch");
    assert!(!client.rest().await.1, "the end of a cut answer is a reset");
    call.gone().await;
}
