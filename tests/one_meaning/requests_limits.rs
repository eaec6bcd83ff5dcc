//! What is too large, and what just fits: 32 KiB of head, 100 fields, 16 KiB of request line, 64 KiB of body.

use crate::row::{Row, forwarded, get, got, last, post, refused, row};

pub(crate) fn rows() -> Vec<Row> {
    let long = |length: usize| get(&format!("X: {}", "x".repeat(length)));
    let many = |count: usize| vec!["X: y"; count].join("\r\n");
    let line = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n", "x".repeat(length));
    let fits = 32 * 1024 - long(0).len();
    let longest = 16 * 1024 - "GET / HTTP/1.1\r".len();
    vec![
        row("RFC 6585 §5", "field of 32 KiB", long(32 * 1024), refused(431)),
        row("RFC 6585 §5", "head one octet too large", long(fits + 1), refused(431)),
        row("RFC 6585 §5", "head that just fits", long(fits), forwarded(got(&format!("X: {}", "x".repeat(fits))))),
        row("RFC 6585 §5", "field without end", &long(40_000)[..40_000], refused(431)),
        row("RFC 6585 §5", "name of 33,000 octets", get(&format!("{}: x", "X".repeat(33_000))), refused(431)),
        row("RFC 6585 §5", "101 fields", get(&many(100)), refused(431)),
        row("RFC 6585 §5", "2,000 fields", get(&many(2000)), refused(431)),
        row("RFC 6585 §5", "100 fields", get(&many(99)), forwarded(got(&many(99)))),
        row("RFC 6585 §5", "empty lines without end", "\r\n".repeat(20_000), refused(431)),
        row("RFC 9112 §3", "target of 17,000 octets", line(17_000) + "\r\n", refused(414)),
        row("RFC 9112 §3", "line one octet too long", line(longest + 1) + "\r\n", refused(414)),
        row("RFC 9112 §3", "line that just fits", line(longest) + "\r\n", forwarded(line(longest) + "@a\r\n\r\n")),
        row("RFC 9112 §3", "line without end", "x".repeat(40_000), refused(414)),
        row(
            "RFC 9112 §3",
            "method of 17,000 octets",
            format!("{} / HTTP/1.1\r\n\r\n", "M".repeat(17_000)),
            refused(414),
        ),
        row("RFC 9110 §15.5.14", "announced body one octet too large", post("Content-Length: 65537", ""), refused(413)),
        row("RFC 9110 §15.5.14", "body of 2^64-1", post("Content-Length: 18446744073709551615", ""), refused(413)),
        row(
            "RFC 9110 §15.5.14",
            "body too large in HTTP/1.0",
            "POST / HTTP/1.0\r\nContent-Length: 65537\r\n\r\n",
            refused(413),
        ),
        row(
            "RFC 9110 §15.5.14",
            "body that just fits",
            post("Content-Length: 65536", &"x".repeat(65_536)),
            forwarded(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n@a\r\n\r\n".to_owned() + &"x".repeat(65_536),
            ),
        ),
        row(
            "RFC 9110 §15.5.14",
            "no body in HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            last(200, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n@a\r\n\r\n"),
        ),
    ]
}
