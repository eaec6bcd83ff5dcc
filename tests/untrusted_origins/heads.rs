//! Status lines, and heads that are too large.

use crate::case::{check, passes, refused, send};

const REST: &str = "Content-Length: 2\r\n\r\nhi";

#[tokio::test]
async fn a_status_line_is_one_or_the_answer_is_none() {
    let rows = [
        ("RFC 9112 §2.3", "a major version that this is not", "HTTP/2.0 200 OK\r\n"),
        ("RFC 9112 §2.3", "a minor version that there is not", "HTTP/1.2 200 OK\r\n"),
        ("RFC 9112 §2.3", "HTTP/0.9", "HTTP/0.9 200 OK\r\n"),
        ("RFC 9112 §2.3", "two digits of a minor version", "HTTP/1.10 200 OK\r\n"),
        ("RFC 9112 §2.3", "no minor version", "HTTP/1 200 OK\r\n"),
        ("RFC 9112 §2.3", "a name in lower case", "http/1.1 200 OK\r\n"),
        ("RFC 9112 §2.3", "another protocol", "ICY 200 OK\r\n"),
        ("RFC 9112 §4", "a space in front", " HTTP/1.1 200 OK\r\n"),
        ("RFC 9112 §2.2", "a line feed in front", "\nHTTP/1.1 200 OK\r\n"),
        ("RFC 9112 §2.2", "an empty line in front", "\r\nHTTP/1.1 200 OK\r\n"),
        ("RFC 9112 §4", "two spaces before the status", "HTTP/1.1  200 OK\r\n"),
        ("RFC 9112 §4", "a tab before the status", "HTTP/1.1\t200 OK\r\n"),
        ("RFC 9112 §4", "no space before the status", "HTTP/1.1200 OK\r\n"),
        ("RFC 9112 §4", "a tab behind the status", "HTTP/1.1 200\tOK\r\n"),
        ("RFC 9112 §4", "no status", "HTTP/1.1\r\n"),
        ("RFC 9110 §15", "a status of two digits", "HTTP/1.1 99 OK\r\n"),
        ("RFC 9110 §15", "a status below 100", "HTTP/1.1 099 OK\r\n"),
        ("RFC 9110 §15", "a status of zero", "HTTP/1.1 000 OK\r\n"),
        ("RFC 9110 §15", "a status of four digits", "HTTP/1.1 1000 OK\r\n"),
        ("RFC 9110 §15", "a negative status", "HTTP/1.1 -20 OK\r\n"),
        ("RFC 9110 §15", "a status with a sign", "HTTP/1.1 +200 OK\r\n"),
        ("RFC 9110 §15", "a status with a letter", "HTTP/1.1 2O0 OK\r\n"),
        ("RFC 9110 §15", "a status with a fraction", "HTTP/1.1 200.1 OK\r\n"),
        ("CVE-2023-38709", "a carriage return in the reason", "HTTP/1.1 200 OK\rSet-Cookie: a=b\r\n"),
        ("CVE-2022-38150", "a NUL in the reason", "HTTP/1.1 200 O\0K\r\n"),
        ("CVE-2022-38150", "a control character in the reason", "HTTP/1.1 200 O\u{1}K\r\n"),
        ("CVE-2022-38150", "a DEL in the reason", "HTTP/1.1 200 O\u{7f}K\r\n"),
        ("CVE-2023-38709", "two carriage returns at its end", "HTTP/1.1 200 OK\r\r\n"),
        ("RFC 9112 §2.2", "a line feed for its end", "HTTP/1.1 200 OK\n"),
        ("RFC 9112 §2.2", "a line feed for its end, and no reason", "HTTP/1.1 200\n"),
        ("RFC 9112 §2.1", "a request", "GET / HTTP/1.1\r\nHost: a\r\n"),
    ];
    check(rows.map(|(source, name, line)| refused(source, name, format!("{line}{REST}")))).await;
}

#[tokio::test]
async fn an_odd_status_line_that_is_clear_goes_on() {
    let rows: [(_, _, &[u8], &[u8]); 7] = [
        ("RFC 9112 §4", "no reason", b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200 \r\n"),
        ("RFC 9112 §4", "no reason, and no space for it", b"HTTP/1.1 200\r\n", b"HTTP/1.1 200 \r\n"),
        ("RFC 9112 §4", "a tab in the reason", b"HTTP/1.1 200 O\tK\r\n", b"HTTP/1.1 200 O\tK\r\n"),
        ("CVE-2022-38150", "octets above ASCII in the reason", b"HTTP/1.1 200 \xffK\r\n", b"HTTP/1.1 200 \r\n"),
        ("RFC 9110 §15", "a status of no class", b"HTTP/1.1 999 Odd\r\n", b"HTTP/1.1 999 Odd\r\n"),
        ("RFC 9110 §15.3.6", "a 205 with a body", b"HTTP/1.1 205 Reset\r\n", b"HTTP/1.1 205 Reset\r\n"),
        (
            "RFC 9112 §2.3",
            "a reason that is a status line",
            b"HTTP/1.1 200 HTTP/1.1 500 \r\n",
            b"HTTP/1.1 200 HTTP/1.1 500 \r\n",
        ),
    ];
    let whole = |line: &[u8]| [line, REST.as_bytes()].concat();
    check(rows.map(|(source, name, line, client)| passes(source, name, whole(line), whole(client)))).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_no_answer() {
    const LARGE: usize = 300_000;
    let x = |count: usize| "x".repeat(count);
    let fields = |count: usize| "X: y\r\n".repeat(count);
    check([
        refused("CVE-2023-38039", "a value beyond 256 KiB", format!("HTTP/1.1 200 OK\r\nX: {}\r\n{REST}", x(LARGE))),
        refused("CVE-2023-38039", "a name beyond 256 KiB", format!("HTTP/1.1 200 OK\r\n{}: x\r\n{REST}", x(LARGE))),
        refused("CVE-2023-38039", "a reason beyond 256 KiB", format!("HTTP/1.1 200 {}", x(LARGE))),
        refused("CVE-2023-38039", "a value without end", format!("HTTP/1.1 200 OK\r\nX: {}", x(LARGE))),
        refused("CVE-2023-38039", "fields without end", format!("HTTP/1.1 200 OK\r\n{}", fields(LARGE / 6))),
        refused("CVE-2023-38039", "257 fields", format!("HTTP/1.1 200 OK\r\n{}{REST}", fields(256))),
        refused("RFC 9110 §15.2", "an interim answer beyond 256 KiB", format!("HTTP/1.1 103 Hi\r\nX: {}", x(LARGE))),
    ])
    .await;
}

#[tokio::test]
async fn a_large_or_slow_head_is_an_answer_like_others() {
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n{REST}", "x".repeat(250_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}{REST}", "X: y\r\n".repeat(255));
    let small = format!("HTTP/1.1 200 OK\r\nX: y\r\n{REST}");
    check([
        passes("RFC 9110 §5.4", "a value of 250,000 octets", &large, &large),
        passes("RFC 9110 §5.4", "256 fields", &many, &many),
        passes("RFC 9112 §2.1", "a head octet by octet", &small, &small).dribbled(),
        refused("RFC 9112 §5.1", "a broken head octet by octet", "HTTP/1.1 200 OK\r\nX : y\r\n\r\n").dribbled(),
        refused("RFC 9112 §3", "a head that trickles and does not end", "HTTP/1.1 200 OK\r\nX: y\r\n")
            .dribbled()
            .then(send("X: y\r\n"))
            .service("response_timeout = \"600ms\"")
            .late(),
    ])
    .await;
}
