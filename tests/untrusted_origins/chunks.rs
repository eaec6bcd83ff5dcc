//! Chunks that are none: the client has got the first one, and must see that the body is broken.

use crate::case::{Case, OLD_GET, Step, broken, check, passes};

const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const BEGUN: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
/// Comes through before the fault is there.
const HELLO: &str = "5\r\nhello\r\n";

fn row(source: &'static str, name: &str, rest: &str, then: &str) -> Case {
    broken(source, name, (BEGUN, rest), (BEGUN, then))
}

#[tokio::test]
async fn a_broken_chunk_breaks_the_body() {
    let rows = [
        ("RFC 9112 §7.1", "no size", "\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "no size but an extension", ";x=y\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a size that is none", "x\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a negative size", "-5\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a size with a plus", "+5\r\nhello\r\n0\r\n\r\n", ""),
        ("CVE-2022-24761", "a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n", ""),
        ("CVE-2022-24761", "a size with an underscore", "0_5\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a size in quotes", "\"5\"\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a space before the size", " 5\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a space behind the size", "5 \r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a tab behind the size", "5\t\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a NUL in the size", "5\0\r\nhello\r\n0\r\n\r\n", ""),
        ("CVE-2021-32714", "a size of 68 bits", "10000000000000005\r\nhello\r\n0\r\n\r\n", ""),
        ("CVE-2021-32714", "17 digits", "00000000000000005\r\nhello\r\n0\r\n\r\n", ""),
        ("CVE-2025-22871", "a line feed behind the size", "5\nhello\r\n0\r\n\r\n", ""),
        ("CVE-2025-22871", "a line feed behind an extension", "5;x\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §2.2", "a carriage return behind the size", "5\rhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §2.2", "two carriage returns behind the size", "5\r\r\nhello\r\n0\r\n\r\n", ""),
        ("CVE-2021-22960", "a line feed in an extension", "5;x=\ny\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1.1", "a carriage return in an extension", "5;x=\ry\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1.1", "a NUL in an extension", "5;x=\0\r\nhello\r\n0\r\n\r\n", ""),
        ("CVE-2025-43859", "two other octets behind the data", "5\r\nhelloXX0\r\n\r\n", HELLO),
        ("CVE-2025-43859", "nothing behind the data", "5\r\nhello0\r\n\r\n", HELLO),
        ("RFC 9112 §7.1", "more data than the size", "5\r\nhello!\r\n0\r\n\r\n", HELLO),
        ("CVE-2025-22871", "a line feed behind the data", "5\r\nhello\n0\r\n\r\n", HELLO),
        ("RFC 9112 §2.2", "a carriage return behind the data", "5\r\nhello\r0\r\n\r\n", HELLO),
        ("RFC 9112 §2.2", "line end the wrong way round", "5\r\nhello\n\r0\r\n\r\n", HELLO),
        ("CVE-2025-22871", "a line feed behind the last size", "0\n\r\n", ""),
        ("CVE-2025-22871", "line feeds for the end", "0\n\n", ""),
        ("RFC 9112 §7.1.2", "a line feed for the end of the trailers", "0\r\n\n", ""),
        ("RFC 9112 §7.1.2", "a line feed in the trailers", "0\r\nX: a\n\r\n", ""),
        ("RFC 9112 §7.1.2", "a folded trailer", "0\r\nX: a\r\n b\r\n\r\n", ""),
        ("RFC 9112 §7.1.2", "a space before the colon of a trailer", "0\r\nX : a\r\n\r\n", ""),
        ("RFC 9112 §7.1.2", "a trailer without a colon", "0\r\nX\r\n\r\n", ""),
        ("RFC 9112 §7.1.2", "a trailer without a name", "0\r\n: a\r\n\r\n", ""),
        ("CVE-2024-24795", "a carriage return in a trailer", "0\r\nX: a\rY: b\r\n\r\n", ""),
        ("RFC 9110 §5.5", "a NUL in a trailer", "0\r\nX: a\0\r\n\r\n", ""),
        ("CVE-2023-45648", "an answer for a trailer", "0\r\nHTTP/1.1 200 OK\r\n\r\n", ""),
    ];
    let long = [
        row(
            "CVE-2024-22019",
            "an extension of 5,000 octets",
            &format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000)),
            "",
        ),
        row("CVE-2024-22019", "an extension without end", &format!("5;{}", "x".repeat(100_000)), ""),
        row("CVE-2023-46589", "a trailer of 20,000 octets", &format!("0\r\nX: {}\r\n\r\n", "x".repeat(20_000)), ""),
        row("CVE-2023-46589", "trailers without end", &format!("0\r\n{}", "X: y\r\n".repeat(10_000)), ""),
        row("CVE-2023-46589", "65 trailers", &format!("0\r\n{}\r\n", "X: y\r\n".repeat(65)), ""),
    ];
    check(rows.into_iter().map(|(source, name, rest, then)| row(source, name, rest, then)).chain(long)).await;
}

/// Without chunks of its own the client can see it only by a reset.
#[tokio::test]
async fn a_broken_chunk_breaks_the_body_for_http_1_0() {
    let begun = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf";
    let rows = [
        ("CVE-2025-43859", "two other octets behind the data", "5\r\nhelloXX0\r\n\r\n", "hello"),
        ("CVE-2025-22871", "a line feed behind the size", "5\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "a size that is none", "x\r\nhello\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1.2", "a broken trailer", "0\r\nX\r\n\r\n", ""),
    ];
    check(rows.map(|(source, name, rest, then)| broken(source, name, (BEGUN, rest), (begun, then)).to(OLD_GET))).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_looks_broken() {
    let rests =
        ["", "5", "5\r", "5\r\n", "5\r\nhel", "5\r\nhello", "5\r\nhello\r", "5\r\nhello\r\n", "0", "0\r\n", "0\r\n\r"]
            .into_iter()
            .chain(["0\r\nX: y\r\n", "0\r\nX: y\r\n\r", "ffffffffffffffff\r\nhel"]);
    let then = |rest: &str| match rest.find("hel") {
        Some(at) => {
            let data = rest[at..].trim_end();
            format!("{:x}\r\n{data}\r\n", data.len())
        }
        None => String::new(),
    };
    let cases = rests.flat_map(|rest| {
        let case = row("RFC 9112 §8", &format!("the end behind {rest:?}"), rest, &then(rest));
        [case.clone().then(Step::Close), case.then(Step::Reset)]
    });
    check(cases).await;
}

#[tokio::test]
async fn odd_chunks_that_are_clear_go_on_as_plain_ones() {
    let body = |body: &str| format!("{HEAD}{body}");
    let hello = body("5\r\nhello\r\n0\r\n\r\n");
    let rows = [
        ("RFC 9112 §7.1.1", "extensions", "5;a;b=c;d=\"e;f\"\r\nhello\r\n0;g\r\n\r\n"),
        ("RFC 9112 §7.1.1", "white space in an extension", "5;\tx y\r\nhello\r\n0\r\n\r\n"),
        ("RFC 9112 §7.1", "zeros before the sizes", "0000000000000005\r\nhello\r\n000\r\n\r\n"),
        (
            "RFC 9110 §6.5.1",
            "trailers that change the framing",
            "5\r\nhello\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: x\r\n\r\n",
        ),
        (
            "RFC 9110 §6.5.1",
            "trailers that change the route",
            "5\r\nhello\r\n0\r\nHost: evil\r\nForwarded: for=x\r\nX-Forwarded-For: x\r\n\r\n",
        ),
        (
            "RFC 9110 §7.6.1",
            "trailers of one hop",
            "5\r\nhello\r\n0\r\nConnection: close\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\n\r\n",
        ),
        (
            "RFC 9110 §6.5.1",
            "a trailer that says what the body is",
            "5\r\nhello\r\n0\r\nContent-Type: text/html\r\n\r\n",
        ),
    ];
    let named = "HTTP/1.1 200 OK\r\nConnection: X-Private\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5\r\nhello\r\n0\r\nX-Private: 1\r\n\r\n";
    let others = [
        passes("RFC 9110 §7.6.1", "a trailer that Connection names", named, &hello),
        passes(
            "RFC 9112 §7.1",
            "digits in both cases",
            body("a\r\n0123456789\r\nB\r\n0123456789A\r\n0\r\n\r\n"),
            body("a\r\n0123456789\r\nb\r\n0123456789A\r\n0\r\n\r\n"),
        ),
        passes(
            "RFC 9112 §7.1.2",
            "a trailer",
            body("5\r\nhello\r\n0\r\nX:  a \r\n\r\n"),
            body("5\r\nhello\r\n0\r\nX: a\r\n\r\n"),
        ),
        passes("RFC 9112 §7.1", "no data", body("0\r\n\r\n"), body("0\r\n\r\n")),
        passes(
            "RFC 9112 §7.1",
            "data that look like chunks",
            body("7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n"),
            body("7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n"),
        ),
        passes(
            "RFC 9112 §7.1",
            "octet by octet",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n0\r\n\r\n",
            body("1\r\nh\r\n0\r\n\r\n"),
        )
        .dribbled(),
        passes(
            "RFC 9112 §7.1",
            "chunks for HTTP/1.0",
            body("5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        )
        .to(OLD_GET)
        .and_last(),
        passes("RFC 9112 §6.3", "octets behind the end", body("5\r\nhello\r\n0\r\n\r\n0\r\n\r\n"), &hello).once(),
    ];
    check(rows.into_iter().map(|(source, name, chunks)| passes(source, name, body(chunks), &hello)).chain(others))
        .await;
}
