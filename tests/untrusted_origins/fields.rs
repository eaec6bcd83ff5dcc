//! Fields through which an origin would say something else to the client than to the proxy.

use crate::case::{check, passes, refused};

#[tokio::test]
async fn a_field_is_one_or_the_answer_is_none() {
    let rows = [
        ("CVE-2024-24795", "a carriage return in a value", "X: a\rSet-Cookie: b=c\r\n"),
        ("CVE-2023-27522", "two carriage returns at the end of a value", "X: a\r\r\n"),
        ("CVE-2022-37436", "a carriage return at the start of a value", "X:\ra\r\n"),
        ("RFC 9112 §2.2", "a line feed for the end of a line", "X: a\nSet-Cookie: b=c\r\n"),
        ("RFC 9112 §2.2", "a line feed for the empty line", "X: a\r\n\n"),
        ("RFC 9112 §2.2", "two line feeds", "X: a\n\n"),
        ("RFC 9110 §5.5", "a NUL in a value", "X: a\0b\r\n"),
        ("RFC 9110 §5.5", "a NUL for a value", "X: \0\r\n"),
        ("RFC 9110 §5.5", "a DEL in a value", "X: a\u{7f}b\r\n"),
        ("RFC 9110 §5.5", "a vertical tab in a value", "X: a\u{b}b\r\n"),
        ("RFC 9110 §5.5", "an escape in a value", "X: \u{1b}[2J\r\n"),
        ("RFC 9112 §5.1", "a NUL in a name", "X\0: a\r\n"),
        ("RFC 9112 §5.1", "a space in a name", "X Y: a\r\n"),
        ("CVE-2019-16869", "a space before the colon", "Transfer-Encoding : chunked\r\n"),
        ("CVE-2019-16276", "a space before the colon of a length", "Content-Length : 0\r\n"),
        ("RFC 9112 §5.1", "a tab before the colon", "X\t: a\r\n"),
        ("CVE-2019-20444", "no colon", "X\r\n"),
        ("CVE-2019-20444", "a line of spaces", "  \r\n"),
        ("CVE-2023-25725", "no name", ": a\r\n"),
        ("RFC 9110 §5.1", "a name in quotes", "\"X\": a\r\n"),
        ("RFC 9110 §5.1", "a name in brackets", "[X]: a\r\n"),
        ("RFC 9110 §5.1", "a letter beyond ASCII in a name", "X\u{e9}: a\r\n"),
        ("RFC 9112 §5.2", "a folded line", "X: a\r\n b\r\n"),
        ("RFC 9112 §5.2", "a line folded by a tab", "X: a\r\n\tSet-Cookie: b=c\r\n"),
        ("CVE-2022-32215", "a folded transfer-encoding", "Transfer-Encoding:\r\n chunked\r\n"),
        ("RFC 9112 §2.2", "white space before the first field", " X: a\r\n"),
        ("RFC 9112 §2.2", "a tab before the first field", "\tX: a\r\n"),
        ("CVE-2022-45059", "Connection names Content-Length", "Connection: Content-Length\r\n"),
        ("CVE-2022-45059", "Connection names Transfer-Encoding", "Connection: close, transfer-encoding\r\n"),
        ("CVE-2022-45059", "Connection names Host", "Connection: Host\r\n"),
    ];
    let answer = |field: &str| format!("HTTP/1.1 200 OK\r\n{field}Content-Length: 2\r\n\r\nhi");
    let many = format!("Connection: {}\r\n", "x, ".repeat(33));
    let cases = rows.into_iter().map(|(source, name, field)| refused(source, name, answer(field)));
    check(cases.chain([refused("RFC 9110 §7.6.1", "Connection names 33 fields", answer(&many))])).await;
}

#[tokio::test]
async fn what_belongs_to_one_hop_stays_there_and_the_rest_goes_on_as_it_is() {
    let long = format!("Content-Length{}: 0\r\n", "0".repeat(260));
    let rows: [(_, _, &[u8], &[u8]); 13] = [
        (
            "RFC 9110 §7.6.1",
            "named by Connection",
            b"Connection: X-A, x-b\r\nX-A: 1\r\nx-B: 2\r\nX-C: 3\r\n",
            b"X-C: 3\r\n",
        ),
        ("RFC 9110 §7.6.1", "named by a second Connection", b"Connection: a\r\nX: 1\r\nConnection: x\r\n", b""),
        ("RFC 9110 §7.6.1", "named by what only looks like close", b"Connection: closed\r\nClosed: 1\r\n", b""),
        ("RFC 9110 §7.6.1", "Keep-Alive", b"Keep-Alive: timeout=5\r\n", b""),
        ("RFC 9110 §7.6.1", "Proxy-Connection", b"Proxy-Connection: close\r\n", b""),
        ("RFC 9110 §7.8", "an upgrade that is offered", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b""),
        ("RFC 9110 §7.6.1", "empty elements in Connection", b"Connection: , ,\r\n", b""),
        ("RFC 9110 §5.5", "octets above ASCII", b"X: \xff\xfe\r\n", b"X: \xff\xfe\r\n"),
        ("RFC 9110 §5.5", "an empty value", b"X:\r\n", b"X: \r\n"),
        ("RFC 9110 §5.5", "white space around a value", b"X: \t a\tb \t \r\n", b"X: a\tb\r\n"),
        ("RFC 9110 §5.1", "every character of a token", b"!#$%&'*+-.^_`|~09Az: a\r\n", b"!#$%&'*+-.^_`|~09Az: a\r\n"),
        (
            "RFC 9110 §5.3",
            "the same field twice",
            b"Set-Cookie: a\r\nSet-Cookie: a\r\n",
            b"Set-Cookie: a\r\nSet-Cookie: a\r\n",
        ),
        ("CVE-2021-40346", "a name that is a length when cut at 255", long.as_bytes(), long.as_bytes()),
    ];
    let answer = |field: &[u8]| [b"HTTP/1.1 200 OK\r\n", field, b"Content-Length: 2\r\n\r\nhi"].concat();
    check(rows.map(|(source, name, field, client)| passes(source, name, answer(field), answer(client)))).await;
}
