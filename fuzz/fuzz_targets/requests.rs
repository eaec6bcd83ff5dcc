//! Whatever a client sends: what teal makes of it is what a second reader makes of it, and what the origin gets means the
//! same to that reader, and to teal.
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
use teal::http::fuzzing::{Body, Refused, Request, request};

use reader::Head;

/// Fields that teal writes itself, with their values but for the host.
const OWN: [(&str, &str); 4] = [
    ("x-forwarded-for", "192.0.2.1"),
    ("x-forwarded-proto", "http"),
    ("x-forwarded-port", "80"),
    ("x-request-id", "id"),
];
/// Fields that stay on their hop, or that the client cannot vouch for.
const GONE: [&str; 4] = ["forwarded", "proxy", "keep-alive", "proxy-connection"];

fuzz_target!(|data: &[u8]| {
    let bytes = spelling::spelt(data, messages::PIECES);
    let Ok(Some(understood)) = request(&bytes) else { return };
    let head = &bytes[..understood.length];
    assert!(request(head).is_ok_and(|again| again.as_ref() == Some(&understood)), "what follows has changed it");
    came_in(head, &understood);
    goes_on(&understood);
});

/// The second reader understands the same.
fn came_in(mut bytes: &[u8], understood: &Request) {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    let head = whole(bytes);
    let (method, target, minor) = head.request_line().expect("a request line");
    let (authority, path) = split(target);
    assert_eq!((method, path), (understood.method.as_bytes(), understood.target.as_bytes()));
    let host = head.only("host").expect("one host at most");
    assert!(host.is_some() || minor == 0, "no host");
    let hosts = host.into_iter().chain(authority);
    hosts.for_each(|host| assert!(host.eq_ignore_ascii_case(&understood.host), "two hosts"));
    assert_eq!(body(&head), understood.body);
    assert!(minor == 1 || understood.body != Body::Chunked, "chunks in HTTP/1.0");
}

/// The authority and the path of a target.
fn split(target: &[u8]) -> (Option<&[u8]>, &[u8]) {
    if target.starts_with(b"/") || target == b"*" {
        return (None, target);
    }
    let start = reader::find(target, b"://").expect("a scheme") + 3;
    let rest = &target[start..];
    let end = rest.iter().position(|&octet| octet == b'/');
    end.map_or((Some(rest), b"/"), |end| (Some(&rest[..end]), &rest[end..]))
}

/// What the origin gets means what was understood.
fn goes_on(understood: &Request) {
    let head = whole(&understood.sent);
    let line = (understood.method.as_bytes(), understood.target.as_bytes(), 1);
    assert_eq!(head.request_line(), Some(line));
    assert_eq!(head.only("host"), Ok(Some(&understood.host[..])));
    assert_eq!(head.only("x-forwarded-host"), Ok(Some(&understood.host[..])));
    assert_eq!(body(&head), understood.body);
    for (name, value) in OWN {
        assert_eq!(head.only(name), Ok(Some(value.as_bytes())), "{name}");
    }
    connection(&head, understood);
    fields(&head, understood);
    let again = match request(&understood.sent) {
        // With the fields that teal has added there may be more than a client may send.
        Err(Refused(why)) if why == "request head too large" => return,
        again => again.expect("a valid request").expect("a whole request"),
    };
    let same = |request: &Request| (request.method.clone(), request.target.clone(), request.host.clone(), request.body);
    assert_eq!(same(&again), same(understood));
}

fn connection(head: &Head<'_>, understood: &Request) {
    let options = head.only("connection").expect("one Connection at most");
    let (upgrade, te) = (head.only("upgrade"), head.only("te"));
    match options {
        Some(b"Upgrade") => assert_eq!((upgrade, te), (Ok(Some(&b"websocket"[..])), Ok(None))),
        Some(b"TE") => assert_eq!((upgrade, te), (Ok(None), Ok(Some(&b"trailers"[..])))),
        other => assert_eq!((other, upgrade, te), (None, Ok(None), Ok(None))),
    }
    assert_eq!(understood.is_websocket, options == Some(b"Upgrade"));
}

fn fields(head: &Head<'_>, understood: &Request) {
    for &(name, _) in &head.fields {
        let name = std::str::from_utf8(name).expect("a token").to_ascii_lowercase();
        assert!(!GONE.contains(&&*name), "{name} goes on");
        let is_own = matches!(&*name, "connection" | "te" | "upgrade");
        let is_named = understood.named.iter().any(|named| named.eq_ignore_ascii_case(name.as_bytes()));
        assert!(is_own || !is_named, "{name}, which Connection names, goes on");
        let spelt = name.replace('_', "-");
        let is_taken = GONE.contains(&&*spelt) || OWN.iter().any(|own| own.0 == spelt) || spelt == "host";
        assert!(spelt == name || !is_taken, "{name} looks like {spelt}");
    }
}

fn body(head: &Head<'_>) -> Body {
    match head.body().expect("one framing") {
        reader::Body::None | reader::Body::Unsaid => Body::Empty,
        reader::Body::Length(length) => Body::Length(length),
        reader::Body::Chunked => Body::Chunked,
    }
}

fn whole(bytes: &[u8]) -> Head<'_> {
    let head = reader::head(bytes).unwrap_or_else(|| panic!("no head: {}", bytes.escape_ascii()));
    assert_eq!(head.length, bytes.len(), "something follows: {}", bytes.escape_ascii());
    head
}
