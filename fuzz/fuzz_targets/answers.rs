//! Whatever an origin answers: what teal makes of it is what a second reader makes of it, and what the client gets means
//! the same to that reader, and to teal.
#![no_main]

#[path = "../support/messages.rs"]
mod messages;
#[allow(dead_code, reason = "a target uses a part of it")]
#[path = "../support/reader.rs"]
mod reader;
#[allow(dead_code, reason = "a target uses a part of it")]
#[path = "../support/spelling.rs"]
mod spelling;

use libfuzzer_sys::fuzz_target;
use teal::http::fuzzing::{Answer, Body, answer};

use reader::Head;

/// Of an answer that teal reads.
const MOST_FIELDS: usize = 256;

fuzz_target!(|data: &[u8]| {
    let [settings, data @ ..] = data else { return };
    let [to_head, to_http_10, closes] = [1, 2, 4].map(|flag| settings & flag != 0);
    let bytes = spelling::spelt(data, messages::PIECES);
    let Ok(Some(understood)) = answer(&bytes, to_head, to_http_10, closes) else { return };
    let head = whole(&bytes[..understood.length]);
    let (status, _) = head.status_line().expect("a status line");
    assert_eq!(status, understood.status);
    assert_eq!(body(&head, status, to_head), understood.body);
    goes_on(&understood, to_head, to_http_10, closes);
});

fn goes_on(understood: &Answer, to_head: bool, to_http_10: bool, closes: bool) {
    let head = whole(&understood.sent);
    assert_eq!(head.status_line(), Some((understood.status, 1)));
    assert_eq!(body(&head, understood.status, to_head), understood.delivered);
    let framing = head.body().expect("one framing");
    assert!(!to_http_10 || framing != reader::Body::Chunked, "chunks for HTTP/1.0");
    let is_bare = understood.status < 200 || understood.status == 204;
    assert!(!is_bare || framing == reader::Body::Unsaid, "a body where there is none");
    connection(&head, understood, closes);
    for name in ["keep-alive", "proxy-connection"] {
        assert_eq!(head.only(name), Ok(None));
    }
    // With one of ours, the fields may be too many for a reader with our limit.
    if head.fields.len() > MOST_FIELDS {
        return;
    }
    let again = answer(&understood.sent, to_head, to_http_10, closes).expect("a valid answer").expect("a whole answer");
    assert_eq!((again.status, again.body), (understood.status, understood.delivered));
}

fn connection(head: &Head<'_>, understood: &Answer, closes: bool) {
    let options = head.only("connection").expect("one Connection at most");
    let ends = closes || understood.delivered == Body::UntilClose;
    match head.only("upgrade").expect("one Upgrade at most") {
        Some(protocol) => {
            assert_eq!((protocol, options, understood.status), (&b"websocket"[..], Some(&b"Upgrade"[..]), 101))
        }
        None if understood.status < 200 => assert_eq!(options, None),
        None => assert_eq!(options == Some(b"close"), ends),
    }
}

/// As RFC 9112 §6.3 says it.
fn body(head: &Head<'_>, status: u16, to_head: bool) -> Body {
    let framing = head.body().expect("one framing");
    if to_head || status < 200 || status == 204 || status == 304 {
        return Body::Empty;
    }
    match framing {
        reader::Body::None => Body::Empty,
        reader::Body::Length(length) => Body::Length(length),
        reader::Body::Chunked => Body::Chunked,
        reader::Body::Unsaid => Body::UntilClose,
    }
}

fn whole(bytes: &[u8]) -> Head<'_> {
    let head = reader::head(bytes).unwrap_or_else(|| panic!("no head: {}", bytes.escape_ascii()));
    assert_eq!(head.length, bytes.len(), "something follows: {}", bytes.escape_ascii());
    head
}
