//! Answers that do not come, that are no HTTP, or that break off: a 502, a 504, or a body that is visibly broken.

use crate::case::{Case, GET, OLD_GET, Step, broken, check, gone, refused};

#[tokio::test]
async fn an_origin_that_goes_without_an_answer_is_502() {
    let heads = [
        ("nothing", ""),
        ("one octet", "H"),
        ("half a version", "HTTP/1."),
        ("half a status", "HTTP/1.1 20"),
        ("half a reason", "HTTP/1.1 200 O"),
        ("a status line", "HTTP/1.1 200 OK\r\n"),
        ("half a field", "HTTP/1.1 200 OK\r\nContent-Le"),
        ("all but the last line", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"),
        ("all but the last octet", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r"),
    ];
    let cases = heads.into_iter().flat_map(|(name, head)| {
        [Step::Close, Step::Reset].map(|end| gone("RFC 9112 §8", &format!("{name}, {end:?}"), head, end))
    });
    check(cases).await;
}

#[tokio::test]
async fn what_is_no_http_is_502() {
    let rows: [(_, _, &[u8]); 19] = [
        ("RFC 8446 §6", "a TLS alert", b"\x15\x03\x03\x00\x02\x02\x46"),
        ("RFC 8446 §5.1", "a TLS handshake", b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03hello"),
        ("RFC 9113 §3.4", "settings of HTTP/2", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"),
        ("RFC 9113 §3.4", "the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("RFC 4253 §4.2", "SSH", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("RFC 5321 §4.2", "SMTP", b"220 mail.example ESMTP\r\n"),
        ("RFC 9112 §4", "a document without a head", b"<!doctype html><p>hi"),
        ("RFC 9112 §4", "an error of another protocol", b"-ERR unknown command\r\n"),
        ("RFC 9112 §4", "words", b"garbage\r\n\r\n"),
        ("RFC 9112 §4", "a field", b"Content-Length: 0\r\n\r\n"),
        ("RFC 9112 §4", "a chunk", b"2\r\nhi\r\n0\r\n\r\n"),
        ("RFC 9112 §4", "a NUL", b"\0"),
        ("RFC 9112 §4", "many NULs", &[0; 10_000]),
        ("RFC 9112 §4", "a mark of byte order", b"\xef\xbb\xbfHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("RFC 9112 §4", "UTF-16", b"H\0T\0T\0P\0/\0"),
        ("RFC 9112 §4", "compressed octets", b"\x1f\x8b\x08\x00\x00\x00\x00\x00"),
        ("RFC 6455 §5.2", "a frame", b"\x81\x02hi"),
        ("RFC 3875 §6.2", "an answer of CGI", b"Status: 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("RFC 9112 §4", "carriage returns", b"\r\r\r\r"),
    ];
    let large = refused("RFC 9112 §4", "300,000 octets in no line", vec![b'x'; 300_000]);
    let empty = refused("RFC 9112 §2.2", "empty lines", "\r\n\r\n").then(Step::Close);
    check(rows.into_iter().map(|(source, name, octets)| refused(source, name, octets)).chain([large, empty])).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_never_looks_whole() {
    let length = |length: &str, body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    let (large, most) = ("x".repeat(300_000), u64::MAX.to_string());
    let lengths = [
        ("before its first octet", length("8", "")),
        ("in the middle", length("8", "half")),
        ("before its last octet", length("8", "halfhal")),
        ("of the largest length", length(&most, "half")),
        ("of a large one", length("1000000", &large)),
        ("of a large one at its start", length("1000000", "")),
    ];
    let row = |name: &str, answer: &str, to: &str, end: &Step| {
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let close = if to == OLD_GET { "\r\nConnection: close" } else { "" };
        let client = format!("{head}{close}\r\n\r\n{body}");
        broken("RFC 9112 §8", &format!("{name}, {end:?}"), (answer, ""), (client, "")).to(to).then(end.clone())
    };
    let with_length = lengths.iter().flat_map(|(name, answer)| {
        [(GET, Step::Close), (GET, Step::Reset), (OLD_GET, Step::Close), (OLD_GET, Step::Reset)]
            .map(|(to, end)| row(name, answer, to, &end))
    });
    let until_close = "HTTP/1.1 200 OK\r\n\r\nhalf";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let old = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf";
    let without: Vec<Case> = vec![
        broken("RFC 9112 §8", "without length, Reset", (until_close, ""), (chunked, "")).then(Step::Reset),
        broken("RFC 9112 §8", "without length for HTTP/1.0, Reset", (until_close, ""), (old, ""))
            .to(OLD_GET)
            .then(Step::Reset),
        broken("RFC 9112 §8", "in chunks for HTTP/1.0, Close", (chunked, ""), (old, "")).to(OLD_GET).then(Step::Close),
        broken("RFC 9112 §8", "in chunks for HTTP/1.0, Reset", (chunked, ""), (old, "")).to(OLD_GET).then(Step::Reset),
    ];
    check(with_length.chain(without)).await;
}

/// Who says nothing more is left, and who waits for it is told.
#[tokio::test]
async fn an_origin_that_falls_silent_is_given_up() {
    const ANSWER: &str = "response_timeout = \"600ms\"";
    const BODY: &str = "body_timeout = \"600ms\"";
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let old = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf";
    check([
        refused("RFC 9110 §15.6.5", "at once", "").service(ANSWER).late(),
        refused("RFC 9110 §15.6.5", "in the status line", "HTTP/1.1 2").service(ANSWER).late(),
        refused("RFC 9110 §15.6.5", "in a field", "HTTP/1.1 200 OK\r\nX: ").dribbled().service(ANSWER).late(),
        refused("RFC 9110 §15.6.5", "after a hint", "HTTP/1.1 103 Early Hints\r\n\r\n").service(ANSWER).late(),
        broken("RFC 9112 §8", "in a body of known length", (length, ""), (length, "")).listener(BODY),
        broken("RFC 9112 §8", "between two chunks", (chunked, ""), (chunked, "")).listener(BODY),
        broken("RFC 9112 §8", "in a chunk size", (chunked, "5\r"), (chunked, "")).listener(BODY),
        broken("RFC 9112 §8", "in the trailers", (chunked, "0\r\nX: y\r\n"), (chunked, "")).listener(BODY),
        broken("RFC 9112 §8", "for HTTP/1.0", (chunked, ""), (old, "")).to(OLD_GET).listener(BODY),
    ])
    .await;
}
