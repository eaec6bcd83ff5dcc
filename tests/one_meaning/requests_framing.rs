//! Where a body ends: `Content-Length`, `Transfer-Encoding`, and what only looks like them.

use crate::row::{Row, chunked, forwarded, got_chunked, last, post, refused, row};

/// Values of `Content-Length` that are no number, with what stands before them.
const BAD_LENGTHS: [(&str, &str, &str); 37] = [
    ("CVE-2022-24761", "length with a plus", " +5"),
    ("RFC 9110 §8.6", "length with a minus", " -5"),
    ("RFC 9110 §8.6", "length below zero", " -1"),
    ("RFC 9110 §8.6", "length minus zero", " -0"),
    ("RFC 9110 §8.6", "hexadecimal length", " 0x5"),
    ("RFC 9110 §8.6", "octal length with prefix", " 0o5"),
    ("RFC 9110 §8.6", "binary length", " 0b101"),
    ("RFC 9110 §8.6", "hexadecimal digit as length", " a"),
    ("RFC 9110 §8.6", "length with a semicolon", " 5;"),
    ("RFC 9110 §8.6", "length with a parameter", " 5;x=y"),
    ("RFC 9110 §8.6", "list of equal lengths", " 5, 5"),
    ("RFC 9110 §8.6", "list of equal lengths without space", " 5,5"),
    ("RFC 9110 §8.6", "list of different lengths", " 5, 6"),
    ("RFC 9110 §8.6", "length with a comma behind it", " 5,"),
    ("RFC 9110 §8.6", "length with a comma before it", " ,5"),
    ("RFC 9110 §8.6", "only a comma as length", " ,"),
    ("RFC 9110 §8.6", "two lengths with a space", " 5 5"),
    ("RFC 9110 §8.6", "two lengths with a tab", " 5\t5"),
    ("RFC 9110 §8.6", "length with a fraction", " 5.0"),
    ("RFC 9110 §8.6", "length with an exponent", " 5e0"),
    ("RFC 9110 §8.6", "length with an underscore", " 0_5"),
    ("RFC 9110 §8.6", "length in quotes", " \"5\""),
    ("RFC 9110 §8.6", "length in single quotes", " '5'"),
    ("RFC 9110 §8.6", "length with a comment", " 5 (five)"),
    ("RFC 9110 §8.6", "length in words", " five"),
    ("RFC 9110 §8.6", "length in another script", " \u{665}"),
    ("RFC 9110 §8.6", "full-width length", " \u{ff15}"),
    ("RFC 9110 §8.6", "length behind a non-breaking space", " \u{a0}5"),
    ("RFC 9110 §8.6", "empty length", ""),
    ("RFC 9110 §8.6", "blank length", " \t "),
    ("RFC 9110 §5.5", "length behind a vertical tab", " \u{b}5"),
    ("RFC 9110 §5.5", "length before a form feed", " 5\u{c}"),
    ("RFC 9110 §5.5", "length with a NUL", " 5\0"),
    ("RFC 9112 §5.2", "folded length", "\r\n 5"),
    ("RFC 9110 §8.6", "length of 2^64", " 18446744073709551616"),
    ("RFC 9110 §8.6", "length of 2^64 and 5", " 18446744073709551621"),
    ("RFC 9110 §8.6", "length of thirty digits", " 999999999999999999999999999999"),
];

/// Values of `Transfer-Encoding` that are not exactly `chunked`, with what stands before them.
const BAD_CODINGS: [(&str, &str, &str); 35] = [
    ("RFC 9112 §6.1", "coding empty", ""),
    ("RFC 9112 §6.1", "coding blank", " \t "),
    ("RFC 9112 §6.1", "coding only a comma", " ,"),
    ("RFC 9112 §7.1", "chunked twice", " chunked, chunked"),
    ("RFC 9112 §6.1", "chunked with a comma behind it", " chunked,"),
    ("RFC 9112 §6.1", "chunked with a comma before it", " ,chunked"),
    ("CVE-2024-1135", "chunked before identity", " chunked, identity"),
    ("RFC 9112 §7", "identity before chunked", " identity, chunked"),
    ("RFC 9112 §7", "identity", " identity"),
    ("RFC 9112 §7.2", "gzip before chunked", " gzip, chunked"),
    ("RFC 9112 §6.3", "chunked before gzip", " chunked, gzip"),
    ("RFC 9112 §6.3", "gzip alone", " gzip"),
    ("RFC 9112 §6.1", "unknown coding before chunked", " x, chunked"),
    ("CVE-2022-1705", "xchunked", " xchunked"),
    ("RFC 9112 §6.1", "chunkedx", " chunkedx"),
    ("RFC 9112 §6.1", "chunk", " chunk"),
    ("RFC 9112 §7", "chunked with a weight", " chunked;q=1"),
    ("RFC 9112 §7.1", "chunked with a parameter", " chunked; a=b"),
    ("RFC 9112 §7.1", "chunked with an empty parameter", " chunked;"),
    ("RFC 9112 §7", "chunked in quotes", " \"chunked\""),
    ("RFC 9112 §7", "chunked in single quotes", " 'chunked'"),
    ("RFC 9112 §7", "chunked in brackets", " [chunked]"),
    ("RFC 9112 §7", "chunked with a comment", " chunked (really)"),
    ("RFC 9112 §7", "chunked percent-encoded", " %63hunked"),
    ("RFC 9112 §7", "chunked with a Kelvin sign", " chun\u{212a}ed"),
    ("RFC 9112 §6.1", "chunked and another word", " chunked x"),
    ("RFC 9112 §6.1", "another word and chunked", " x chunked"),
    ("RFC 9112 §7", "chunked behind a non-breaking space", " \u{a0}chunked"),
    ("CVE-2019-18277", "chunked behind a vertical tab", "\u{b}chunked"),
    ("CVE-2019-18277", "chunked behind a space and a vertical tab", " \u{b}chunked"),
    ("RFC 9110 §5.5", "chunked before a vertical tab", " chunked\u{b}"),
    ("RFC 9110 §5.5", "chunked behind a form feed", " \u{c}chunked"),
    ("RFC 9110 §5.5", "chunked with a NUL", " chunked\0"),
    ("CVE-2022-32215", "chunked on a folded line", "\r\n chunked"),
    ("CVE-2022-32215", "chunked, folded into nothing", " chunked\r\n , identity"),
];

/// Lines that another reader may take for `Content-Length` or `Transfer-Encoding`.
const BAD_LINES: [(&str, &str, &str); 27] = [
    ("CVE-2019-16869", "space before the colon of a coding", "Transfer-Encoding : chunked"),
    ("CVE-2019-16869", "tab before the colon of a coding", "Transfer-Encoding\t: chunked"),
    ("CVE-2021-22959", "space before the colon of a length", "Content-Length : 5"),
    ("RFC 9112 §5.1", "tab before the colon of a length", "Content-Length\t: 5"),
    ("CVE-2020-7238", "coding behind a space", "X: a\r\n Transfer-Encoding: chunked"),
    ("CVE-2020-7238", "coding behind a tab", "X: a\r\n\tTransfer-Encoding: chunked"),
    ("CVE-2024-27982", "length behind a space", "X: a\r\n Content-Length: 5"),
    ("CVE-2015-5739", "length with a space for its hyphen", "Content Length: 5"),
    ("RFC 9110 §5.1", "coding with a space for its hyphen", "Transfer Encoding: chunked"),
    ("RFC 9110 §5.1", "coding with another hyphen", "Transfer\u{2010}Encoding: chunked"),
    ("CVE-2019-20444", "coding without colon", "Transfer-Encoding"),
    ("CVE-2019-20444", "length without colon", "Content-Length 5"),
    ("RFC 9112 §5", "length with an equals sign", "Content-Length=5"),
    ("RFC 9110 §5.1", "vertical tab before a coding", "\u{b}Transfer-Encoding: chunked"),
    ("RFC 9110 §5.1", "vertical tab behind the name of a coding", "Transfer-Encoding\u{b}: chunked"),
    ("RFC 9110 §5.1", "NUL before a coding", "\0Transfer-Encoding: chunked"),
    ("RFC 9110 §5.1", "NUL behind the name of a length", "Content-Length\0: 5"),
    ("CVE-2023-30589", "coding behind a bare CR", "X: a\rTransfer-Encoding: chunked"),
    ("CVE-2023-30589", "length behind a bare CR", "X: a\rContent-Length: 5"),
    ("CVE-2022-32214", "coding behind a bare LF", "X: a\nTransfer-Encoding: chunked"),
    ("CVE-2022-32214", "length behind a bare LF", "X: a\nContent-Length: 5"),
    ("RFC 9112 §2.2", "coding behind CR CR LF", "X: a\r\r\nTransfer-Encoding: chunked"),
    ("RFC 9112 §2.2", "coding behind LF CR", "X: a\n\rTransfer-Encoding: chunked"),
    ("RFC 9112 §2.2", "coding with a bare CR behind it", "Transfer-Encoding: chunked\r\rX: a"),
    ("RFC 9112 §5.2", "name of a coding on two lines", "Transfer-\r\nEncoding: chunked"),
    ("RFC 9112 §5.2", "name of a length on two lines", "Content-\r\n Length: 5"),
    ("CVE-2023-25725", "length behind an empty name", ": x\r\nContent-Length: 5"),
];

/// Fields each of which may be fine, but not all of them.
const CONFLICTS: [(&str, &str, &str); 19] = [
    ("CVE-2019-20445", "length and coding", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
    ("CVE-2019-20445", "coding and length", "Transfer-Encoding: chunked\r\nContent-Length: 5"),
    ("RFC 9112 §6.3", "zero length and coding", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
    ("RFC 9112 §6.3", "coding and zero length", "Transfer-Encoding: chunked\r\nContent-Length: 0"),
    ("RFC 9112 §6.3", "length, another field and coding", "Content-Length: 5\r\nX: a\r\nTransfer-Encoding: chunked"),
    ("RFC 9112 §6.3", "length and unknown coding", "Content-Length: 5\r\nTransfer-Encoding: x"),
    ("RFC 9112 §6.3", "length and identity", "Content-Length: 5\r\nTransfer-Encoding: identity"),
    ("RFC 9112 §6.3", "length and empty coding", "Content-Length: 5\r\nTransfer-Encoding:"),
    ("CVE-2019-18277", "length and hidden coding", "Content-Length: 5\r\nTransfer-Encoding:\u{b}chunked"),
    ("CVE-2015-5740", "two equal lengths", "Content-Length: 5\r\nContent-Length: 5"),
    ("CVE-2015-5740", "two different lengths", "Content-Length: 5\r\nContent-Length: 6"),
    ("RFC 9110 §8.6", "two lengths in different case", "Content-Length: 5\r\ncontent-length: 5"),
    ("RFC 9110 §8.6", "length and empty length", "Content-Length: 5\r\nContent-Length:"),
    ("RFC 9110 §8.6", "two lengths far apart", "Content-Length: 5\r\nX: a\r\nY: b\r\nContent-Length: 0"),
    ("RFC 9110 §8.6", "three lengths", "Content-Length: 5\r\nContent-Length: 5\r\nContent-Length: 5"),
    ("CVE-2020-8287", "two codings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    ("CVE-2020-8287", "two codings, the first unknown", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked"),
    ("CVE-2020-8287", "two codings, the last unknown", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
    ("RFC 9112 §6.1", "two codings far apart", "Transfer-Encoding: chunked\r\nX: a\r\ntransfer-encoding: chunked"),
];

const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

pub(crate) fn rows() -> Vec<Row> {
    let lengths = BAD_LENGTHS.iter().map(|&(reference, name, value)| {
        row(reference, name, post(&format!("Content-Length:{value}"), "hello"), refused(400))
    });
    let codings = BAD_CODINGS.iter().map(|&(reference, name, value)| {
        row(reference, name, post(&format!("Transfer-Encoding:{value}"), CHUNKS), refused(400))
    });
    let lines = BAD_LINES.iter().chain(&CONFLICTS);
    let lines = lines.map(|&(reference, name, fields)| row(reference, name, post(fields, CHUNKS), refused(400)));
    lengths.chain(codings).chain(lines).chain(http_1_0()).chain(good_lengths()).chain(good_codings()).collect()
}

/// HTTP/1.0 knows no codings.
fn http_1_0() -> Vec<Row> {
    let old = |fields: &str, body: &str| format!("POST / HTTP/1.0\r\nHost: a\r\n{fields}\r\n\r\n{body}");
    vec![
        row("RFC 9112 §6.1", "coding in HTTP/1.0", old("Transfer-Encoding: chunked", CHUNKS), refused(400)),
        row("RFC 9112 §6.1", "identity in HTTP/1.0", old("Transfer-Encoding: identity", "hello"), refused(400)),
        row(
            "RFC 9112 §6.1",
            "coding in HTTP/1.0 with keep-alive",
            old("Connection: keep-alive\r\nTransfer-Encoding: chunked", CHUNKS),
            refused(400),
        ),
        row(
            "RFC 9112 §6.1",
            "coding and length in HTTP/1.0",
            old("Content-Length: 5\r\nTransfer-Encoding: chunked", CHUNKS),
            refused(400),
        ),
        row(
            "RFC 9112 §6.3",
            "length in HTTP/1.0",
            old("Content-Length: 5", "hello"),
            last(200, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n@a\r\n\r\nhello"),
        ),
        row(
            "RFC 9112 §6.3",
            "no length in HTTP/1.0",
            old("X: a", "hello"),
            last(200, "POST / HTTP/1.1\r\nHost: a\r\nX: a\r\n@a\r\n\r\n"),
        ),
    ]
}

fn good_lengths() -> Vec<Row> {
    let long_name = format!("Content-Length0{}", "a".repeat(256));
    let passes = |fields: &str, passed: &str, body: &str| {
        let received = format!("POST / HTTP/1.1\r\nHost: a\r\n{passed}\r\n@a\r\n\r\n{body}");
        (post(fields, body), forwarded(received))
    };
    let rows = [
        ("RFC 9110 §8.6", "length", passes("Content-Length: 5", "Content-Length: 5", "hello")),
        ("RFC 9112 §5.1", "length without space", passes("Content-Length:5", "Content-Length: 5", "hello")),
        ("RFC 9112 §5.1", "length in white space", passes("Content-Length: \t 5 \t", "Content-Length: 5", "hello")),
        ("RFC 9110 §5.1", "length in lower case", passes("content-length: 5", "content-length: 5", "hello")),
        ("RFC 9110 §5.1", "length in upper case", passes("CONTENT-LENGTH: 5", "CONTENT-LENGTH: 5", "hello")),
        ("RFC 9110 §8.6", "length zero", passes("Content-Length: 0", "Content-Length: 0", "")),
        ("RFC 9110 §8.6", "length with leading zeros", passes("Content-Length: 005", "Content-Length: 5", "hello")),
        (
            "RFC 9110 §8.6",
            "length of many zeros",
            passes(&format!("Content-Length: {}", "0".repeat(40)), "Content-Length: 0", ""),
        ),
        ("RFC 9112 §6.3", "neither length nor coding", passes("X: a", "X: a", "")),
        (
            "RFC 9112 §6.3",
            "a request as body",
            passes("Content-Length: 19", "Content-Length: 19", "GET /x HTTP/1.1\r\n\r\n"),
        ),
        (
            "CVE-2021-40346",
            "length behind a name of 271 octets",
            passes(
                &format!("{long_name}:\r\nContent-Length: 5"),
                &format!("{long_name}: \r\nContent-Length: 5"),
                "hello",
            ),
        ),
    ];
    let mut rows: Vec<Row> =
        rows.into_iter().map(|(reference, name, (sent, expected))| row(reference, name, sent, expected)).collect();
    rows.push(row(
        "RFC 9110 §9.3.1",
        "length of a GET",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        forwarded("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n@a\r\n\r\nhello"),
    ));
    rows.push(
        row(
            "CVE-2015-0219",
            "length with an underscore for its hyphen",
            post("Content-Length: 5\r\nContent_Length: 9", "hello"),
            forwarded("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n@a\r\n\r\nhello"),
        )
        .without("Content_Length: 9"),
    );
    rows
}

fn good_codings() -> Vec<Row> {
    let passes = |fields: &str| (post(fields, CHUNKS), forwarded(got_chunked(CHUNKS)));
    let rows = [
        ("RFC 9112 §7.1", "chunked", passes("Transfer-Encoding: chunked")),
        ("RFC 9112 §7", "chunked in upper case", passes("Transfer-Encoding: CHUNKED")),
        ("RFC 9112 §7", "chunked in mixed case", passes("transfer-ENCODING: cHuNkEd")),
        ("RFC 9112 §5.1", "chunked without space", passes("Transfer-Encoding:chunked")),
        ("RFC 9112 §5.1", "chunked behind a tab", passes("Transfer-Encoding:\tchunked")),
        ("RFC 9112 §5.1", "chunked in white space", passes("Transfer-Encoding: \t chunked\t ")),
    ];
    let mut rows: Vec<Row> =
        rows.into_iter().map(|(reference, name, (sent, expected))| row(reference, name, sent, expected)).collect();
    rows.push(row("RFC 9112 §7.1", "empty chunked body", chunked("0\r\n\r\n"), forwarded(got_chunked("0\r\n\r\n"))));
    rows.push(row(
        "RFC 9110 §9.3.1",
        "chunked GET",
        format!("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}"),
        forwarded(format!("GET / HTTP/1.1\r\nHost: a\r\n@a\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}")),
    ));
    rows.push(
        row(
            "CVE-2015-0219",
            "coding with an underscore for its hyphen",
            post("Content-Length: 5\r\nTransfer_Encoding: chunked", "hello"),
            forwarded("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n@a\r\n\r\nhello"),
        )
        .without("Transfer_Encoding: chunked"),
    );
    rows
}
