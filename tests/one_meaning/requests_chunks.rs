//! Chunked bodies: sizes, extensions, line ends, trailers.

use crate::row::{Row, chunked, cut, forwarded, got_chunked, post, refused, row};

/// Chunked bodies that are none.
const BAD: [(&str, &str, &str); 52] = [
    ("RFC 9112 §7.1", "size that is no digit", "x\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size with a minus", "-5\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2022-24761", "size with a plus", "+5\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2022-24761", "size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2022-24761", "size with 0X", "0X5\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size with h", "5h\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size with an underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size with a comma", "5,5\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size with a fraction", "5.0\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size in quotes", "\"5\"\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "full-width size", "\u{ff15}\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "space before a size", " 5\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "tab before a size", "\t5\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "space behind a size", "5 \r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "tab behind a size", "5\t\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "space within a size", "0 5\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1.1", "space before an extension", "5 ;x\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "NUL behind a size", "5\0\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "vertical tab behind a size", "5\u{b}\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "empty size", "\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "extension without size", ";x=y\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size of 2^64 and 5", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size of seventeen digits", "00000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size of thirty digits", "ffffffffffffffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-22871", "LF behind a size", "5\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-22871", "LF behind an extension", "5;x\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-22871", "LF behind the last size", "5\r\nhello\r\n0\n\r\n"),
    ("CVE-2025-22871", "LF as every line end", "5\nhello\n0\n\n"),
    ("RFC 9112 §7.1", "CR behind a size", "5\rhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "CR CR LF behind a size", "5\r\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "LF CR behind a size", "5\n\rhello\r\n0\r\n\r\n"),
    ("CVE-2025-55315", "LF within an extension", "5;x=\ny\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-55315", "CR within an extension", "5;x=\ry\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-55315", "CR right behind the semicolon", "5;\ry\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-55315", "CRLF within quotes of an extension", "5;x=\"\r\n\"\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2021-22960", "NUL within an extension", "5;x=\0\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2021-22960", "escape within an extension", "5;x=\u{1b}\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "chunk longer than its size", "5\r\nhello!\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "chunk shorter than its size", "6\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-43859", "chunk without line end", "5\r\nhello0\r\n\r\n"),
    ("CVE-2025-43859", "chunk with two other octets for its line end", "5\r\nhelloXX0\r\n\r\n"),
    ("CVE-2025-43859", "chunk with LF", "5\r\nhello\n0\r\n\r\n"),
    ("CVE-2025-43859", "chunk with CR", "5\r\nhello\r0\r\n\r\n"),
    ("CVE-2025-43859", "chunk with LF CR", "5\r\nhello\n\r0\r\n\r\n"),
    ("RFC 9112 §7.1", "empty line between chunks", "5\r\nhello\r\n\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "last size with a minus", "5\r\nhello\r\n-0\r\n\r\n"),
    ("RFC 9112 §7.1", "last size with 0x", "5\r\nhello\r\n0x0\r\n\r\n"),
    ("RFC 9112 §7.1", "space behind the last size", "5\r\nhello\r\n0 \r\n\r\n"),
    ("RFC 9112 §7.1.2", "LF for the last line", "5\r\nhello\r\n0\r\n\n"),
    ("RFC 9112 §7.1.2", "CR CR LF for the last line", "5\r\nhello\r\n0\r\n\r\r\n"),
    ("RFC 9112 §7.1.2", "CR for the last line", "5\r\nhello\r\n0\r\n\r"),
    ("RFC 9112 §7.1.2", "no last line", "5\r\nhello\r\n0\r\n"),
];

/// Trailers that are none.
const BAD_TRAILERS: [(&str, &str, &str); 14] = [
    ("RFC 9112 §2.2", "trailer with LF", "X: a\n\r\n"),
    ("RFC 9112 §2.2", "trailers that end in LF", "X: a\r\n\n"),
    ("RFC 9112 §2.2", "trailer with a bare CR", "X: a\rY: b\r\n\r\n"),
    ("RFC 9112 §5.2", "folded trailer", "X: a\r\n b\r\n\r\n"),
    ("RFC 9112 §5.2", "trailers that begin folded", " X: a\r\n\r\n"),
    ("RFC 9112 §5.1", "space before the colon of a trailer", "X : a\r\n\r\n"),
    ("RFC 9112 §5", "trailer without colon", "no colon\r\n\r\n"),
    ("CVE-2023-25725", "trailer without name", ": a\r\n\r\n"),
    ("RFC 9110 §5.1", "trailer with a bad name", "X Y: a\r\n\r\n"),
    ("RFC 9110 §5.1", "NUL in the name of a trailer", "X\0: a\r\n\r\n"),
    ("RFC 9110 §5.5", "NUL in a trailer", "X: \0\r\n\r\n"),
    ("RFC 9110 §5.5", "vertical tab in a trailer", "X: a\u{b}\r\n\r\n"),
    ("RFC 9112 §7.1.2", "request for a trailer", "GET /x HTTP/1.1\r\n\r\n"),
    ("RFC 9112 §7.1.2", "request behind a trailer", "X: a\r\nGET /x HTTP/1.1\r\n\r\n"),
];

/// Trailer fields that do not go on: they would change what the message means, or where it came from.
const DROPPED_TRAILERS: [(&str, &str, &str); 13] = [
    ("RFC 9110 §6.5.1", "Content-Length as trailer", "Content-Length: 9"),
    ("RFC 9110 §6.5.1", "Transfer-Encoding as trailer", "Transfer-Encoding: gzip"),
    ("RFC 9110 §6.5.1", "Host as trailer", "Host: evil"),
    ("RFC 9110 §6.5.1", "Connection as trailer", "Connection: close"),
    ("RFC 9110 §6.5.1", "Upgrade as trailer", "Upgrade: websocket"),
    ("RFC 9110 §6.5.1", "Expect as trailer", "Expect: 100-continue"),
    ("RFC 9110 §6.5.1", "Content-Type as trailer", "Content-Type: text/html"),
    ("RFC 9110 §6.5.1", "TE as trailer", "TE: trailers"),
    ("CVE-2016-5385", "Proxy as trailer", "Proxy: http://evil"),
    ("RFC 7239 §4", "Forwarded as trailer", "Forwarded: for=1.2.3.4"),
    ("RFC 7239 §7.4", "X-Forwarded-For as trailer", "X-Forwarded-For: 1.2.3.4"),
    ("RFC 9110 §6.5.1", "X-Request-Id as trailer", "X-Request-Id: x"),
    ("RFC 9110 §6.5.1", "content-length as trailer in lower case", "content-length: 9"),
];

/// What comes behind a chunk that the origin has got already.
const LATE: [(&str, &str, &str); 10] = [
    ("RFC 9112 §7.1", "bad size after a good chunk", "x\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "size below zero after a good chunk", "-1\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2022-24761", "0x after a good chunk", "0x5\r\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-22871", "LF behind a size after a good chunk", "5\nhello\r\n0\r\n\r\n"),
    ("CVE-2025-22871", "LF behind the last size after a good chunk", "0\n\r\n"),
    ("CVE-2025-55315", "LF in an extension after a good chunk", "5;\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "overflow after a good chunk", "10000000000000000\r\nhello\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1", "empty size after a good chunk", "\r\n0\r\n\r\n"),
    ("RFC 9112 §7.1.2", "bad trailer after a good chunk", "0\r\nno colon\r\n\r\n"),
    ("RFC 9112 §7.1.2", "LF in the trailers after a good chunk", "0\r\nX: a\n\r\n"),
];

pub(crate) fn rows() -> Vec<Row> {
    let bad = BAD.iter().map(|&(reference, name, body)| row(reference, name, chunked(body), refused(400)));
    let bad_trailers = BAD_TRAILERS.iter().map(|&(reference, name, trailers)| {
        row(reference, name, chunked(&format!("5\r\nhello\r\n0\r\n{trailers}")), refused(400))
    });
    let dropped = DROPPED_TRAILERS.iter().map(|&(reference, name, trailer)| {
        let sent = chunked(&format!("5\r\nhello\r\n0\r\nX: a\r\n{trailer}\r\nY: b\r\n\r\n"));
        row(reference, name, sent, forwarded(got_chunked("5\r\nhello\r\n0\r\nX: a\r\nY: b\r\n\r\n"))).without(trailer)
    });
    let late = LATE.iter().map(|&(reference, name, rest)| {
        cut(reference, name, (&chunked("5\r\nhello\r\n"), rest), 400, &got_chunked("5\r\nhello\r\n"))
    });
    bad.chain(bad_trailers).chain(dropped).chain(late).chain(long()).chain(good()).collect()
}

fn long() -> Vec<Row> {
    let extension = chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000)));
    let fields = chunked(&format!("5\r\nhello\r\n0\r\n{}\r\n", "X: y\r\n".repeat(65)));
    let trailer = format!("0\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    vec![
        row("RFC 9112 §7.1.1", "extension of 5,000 octets", extension, refused(400)),
        row("RFC 9112 §7.1.2", "65 trailers", fields, refused(400)),
        cut(
            "CVE-2023-46589",
            "trailers of 20,000 octets",
            (&chunked("5\r\nhello\r\n"), &trailer),
            400,
            &got_chunked("5\r\nhello\r\n"),
        ),
    ]
}

fn good() -> Vec<Row> {
    let passes = [
        ("RFC 9112 §7.1", "several chunks", "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "size with leading zeros", "0005\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        (
            "RFC 9112 §7.1",
            "size of sixteen digits",
            "0000000000000005\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        ("RFC 9112 §7.1", "size in upper case", "A\r\n0123456789\r\n0\r\n\r\n", "a\r\n0123456789\r\n0\r\n\r\n"),
        ("RFC 9112 §7.1", "last size of several zeros", "5\r\nhello\r\n000\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("RFC 9112 §7.1.1", "extension", "5;x=y\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("RFC 9112 §7.1.1", "extension with quotes", "5;x=\"a;b\"\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("RFC 9112 §7.1.1", "extension with spaces", "5; x = y\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("RFC 9112 §7.1.1", "empty extension", "5;\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("RFC 9112 §7.1.1", "extension of the last chunk", "5\r\nhello\r\n0;x\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("RFC 9112 §7.1", "line ends as data", "4\r\n\r\n\r\n\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "last chunk as data", "5\r\n0\r\n\r\n\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1", "request as data", "13\r\nGET /x HTTP/1.1\r\n\r\n\r\n0\r\n\r\n", ""),
        ("RFC 9112 §7.1.2", "trailer", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", ""),
        ("RFC 9112 §7.1.2", "trailers of one name", "5\r\nhello\r\n0\r\nX: 1\r\nX: 2\r\n\r\n", ""),
        ("RFC 9112 §5.1", "trailer in white space", "0\r\nX:\t a \t\r\n\r\n", "0\r\nX: a\r\n\r\n"),
    ];
    let passes = passes.map(|(reference, name, body, passed)| {
        let passed = if passed.is_empty() { body } else { passed };
        row(reference, name, chunked(body), forwarded(got_chunked(passed)))
    });
    let mut rows = Vec::from(passes);
    rows.push(row(
        "RFC 9110 §6.6.2",
        "announced trailer",
        post("Trailer: X-Sum\r\nTransfer-Encoding: chunked", "0\r\nX-Sum: 1\r\n\r\n"),
        forwarded(
            "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\n@a\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\nX-Sum: 1\r\n\r\n",
        ),
    ));
    rows.push(
        row(
            "RFC 9110 §7.6.1",
            "trailer that Connection names",
            post("Connection: X-Private\r\nTransfer-Encoding: chunked", "0\r\nX-Private: 1\r\nX-Sum: 1\r\n\r\n"),
            forwarded(got_chunked("0\r\nX-Sum: 1\r\n\r\n")),
        )
        .without("X-Private: 1"),
    );
    rows
}
