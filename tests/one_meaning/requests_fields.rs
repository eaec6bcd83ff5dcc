//! Field lines: line ends, names, values; and the fields that belong to one hop or to teal.

use crate::row::{Row, forwarded, get, got, last, refused, row};

/// Whole requests with line ends that are none.
const BAD_LINE_ENDS: [(&str, &str, &str); 12] = [
    ("CVE-2022-32214", "LF everywhere", "GET / HTTP/1.1\nHost: a\n\n"),
    ("CVE-2022-32214", "LF behind the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
    ("CVE-2022-32214", "LF behind a field", "GET / HTTP/1.1\r\nHost: a\n\r\n"),
    ("CVE-2022-32214", "LF for the empty line", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
    ("RFC 9112 §2.2", "LF before the request line", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("RFC 9112 §2.2", "CR before the request line", "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CVE-2023-30589", "CR everywhere", "GET / HTTP/1.1\rHost: a\r\r"),
    ("CVE-2023-30589", "CR behind the request line", "GET / HTTP/1.1\rHost: a\r\n\r\n"),
    ("CVE-2023-30589", "CR behind a field", "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
    ("CVE-2023-30589", "CR for the empty line", "GET / HTTP/1.1\r\nHost: a\r\n\r"),
    ("RFC 9112 §2.2", "CR CR LF behind the request line", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"),
    ("RFC 9112 §2.2", "LF CR for the empty line", "GET / HTTP/1.1\r\nHost: a\r\n\n\r"),
];

/// Field lines that are none.
const BAD_FIELDS: [(&str, &str, &str); 31] = [
    ("RFC 9112 §2.2", "CR CR LF behind a field", "X: a\r\r\nY: b"),
    ("RFC 9112 §2.2", "CR within a value", "X: a\rb"),
    ("RFC 9112 §2.2", "CR at the front of a value", "X:\ra"),
    ("RFC 9112 §2.2", "LF within a value", "X: a\nb"),
    ("RFC 9112 §2.2", "CR within a name", "X\rY: a"),
    ("RFC 9112 §2.2", "LF within a name", "X\nY: a"),
    ("RFC 9112 §5.2", "fold with a space", "X: a\r\n b"),
    ("RFC 9112 §5.2", "fold with a tab", "X: a\r\n\tb"),
    ("RFC 9112 §5.2", "fold into a field", "X: a\r\n Y: b"),
    ("RFC 9112 §5.2", "fold of nothing", "X:\r\n \r\nY: b"),
    ("RFC 9112 §5.2", "fold behind LF", "X: a\n b"),
    ("RFC 9112 §5.1", "space before a colon", "X : a"),
    ("RFC 9112 §5.1", "tab before a colon", "X\t: a"),
    ("RFC 9112 §5", "no colon", "X"),
    ("RFC 9112 §5", "no colon but a value", "X a"),
    ("CVE-2023-25725", "empty name", ": a"),
    ("CVE-2023-25725", "empty name and value", ":"),
    ("RFC 9110 §5.1", "space within a name", "X Y: a"),
    ("RFC 9110 §5.1", "brackets in a name", "X[0]: a"),
    ("RFC 9110 §5.1", "parentheses in a name", "X(a): a"),
    ("RFC 9110 §5.1", "braces in a name", "X{a}: a"),
    ("RFC 9110 §5.1", "slash in a name", "X/Y: a"),
    ("RFC 9110 §5.1", "backslash in a name", "X\\Y: a"),
    ("RFC 9110 §5.1", "comma in a name", "X,Y: a"),
    ("RFC 9110 §5.1", "semicolon in a name", "X;Y: a"),
    ("RFC 9110 §5.1", "equals sign in a name", "X=Y: a"),
    ("RFC 9110 §5.1", "at sign in a name", "X@Y: a"),
    ("RFC 9110 §5.1", "quotes in a name", "\"X\": a"),
    ("RFC 9110 §5.1", "angle brackets in a name", "<X>: a"),
    ("RFC 9110 §5.1", "umlaut in a name", "X\u{e4}: a"),
    ("RFC 9110 §5.1", "non-breaking space in a name", "X\u{a0}: a"),
];

/// Field lines that go on, and what the origin gets of them.
const GOOD_FIELDS: [(&str, &str, &str, &str); 14] = [
    ("RFC 9112 §5.1", "no white space", "X:a", "X: a"),
    ("RFC 9112 §5.1", "much white space", "X: \t a \t ", "X: a"),
    ("RFC 9110 §5.5", "empty value", "X:", "X: "),
    ("RFC 9110 §5.5", "blank value", "X: \t ", "X: "),
    ("RFC 9110 §5.5", "white space within a value", "X: a \t b", "X: a \t b"),
    ("RFC 9110 §5.5", "colons in a value", "X: a: b:c", "X: a: b:c"),
    ("RFC 9110 §5.5", "open quote in a value", "X: \"a", "X: \"a"),
    ("RFC 9110 §5.5", "other scripts in a value", "X: \u{e4}\u{20ac}", "X: \u{e4}\u{20ac}"),
    ("RFC 9110 §5.6.2", "every mark in a name", "!#$%&'*+-.^_`|~09aZ: a", "!#$%&'*+-.^_`|~09aZ: a"),
    ("RFC 9110 §5.1", "case of names", "x-LoWeR: a", "x-LoWeR: a"),
    ("RFC 9110 §5.3", "order and repetition", "X: 1\r\nY: 2\r\nx: 3\r\nX: 1", "X: 1\r\nY: 2\r\nx: 3\r\nX: 1"),
    ("RFC 9110 §5.1", "underscore in an unknown name", "X_Y: a", "X_Y: a"),
    ("RFC 6265 §5.4", "two cookies", "Cookie: a=b\r\nCookie: c=d", "Cookie: a=b\r\nCookie: c=d"),
    ("RFC 9110 §10.1.1", "expectation", "Expect: 100-continue", "Expect: 100-continue"),
];

pub(crate) fn rows() -> Vec<Row> {
    let line_ends = BAD_LINE_ENDS.iter().map(|&(reference, name, sent)| row(reference, name, sent, refused(400)));
    let bad = BAD_FIELDS.iter().map(|&(reference, name, fields)| row(reference, name, get(fields), refused(400)));
    let good = GOOD_FIELDS
        .iter()
        .map(|&(reference, name, fields, passed)| row(reference, name, get(fields), forwarded(got(passed))));
    line_ends.chain(bad).chain(good).chain(controls()).chain(first_line()).collect()
}

/// Every control octet in every place, but for tabs in values and line ends.
fn controls() -> impl Iterator<Item = Row> {
    let octets = (0..=0x1f_u8).chain([0x7f]).filter(|octet| !matches!(octet, b'\t' | b'\r' | b'\n'));
    octets.flat_map(|octet| {
        let octet_as_text = char::from(octet);
        let places = [
            ("a value", get(&format!("X: a{octet_as_text}b"))),
            ("front of a value", get(&format!("X:{octet_as_text}a"))),
            ("a name", get(&format!("X{octet_as_text}Y: a"))),
            ("the host", format!("GET / HTTP/1.1\r\nHost: a{octet_as_text}\r\n\r\n")),
            ("the target", format!("GET /a{octet_as_text}b HTTP/1.1\r\nHost: a\r\n\r\n")),
            ("the method", format!("G{octet_as_text}T / HTTP/1.1\r\nHost: a\r\n\r\n")),
            ("the end of the version", format!("GET / HTTP/1.1{octet_as_text}\r\nHost: a\r\n\r\n")),
        ];
        places.map(|(place, sent)| {
            row("RFC 9110 §5.5", format!("control octet in {place}: {octet:#04x}"), sent, refused(400))
        })
    })
}

/// White space where the first field should be: some take it for part of the request line.
fn first_line() -> Vec<Row> {
    let first = |line: &str| format!("GET / HTTP/1.1\r\n{line}\r\nHost: a\r\n\r\n");
    let latin = b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe4\xff\x80\r\n\r\n";
    vec![
        row("RFC 9112 §2.2", "space before the first field", first(" X: a"), refused(400)),
        row("RFC 9112 §2.2", "tab before the first field", first("\tX: a"), refused(400)),
        row("RFC 9112 §2.2", "only a space as the first field", first(" "), refused(400)),
        row(
            "RFC 9110 §5.5",
            "octets above 0x7f in a value",
            latin,
            forwarded(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe4\xff\x80\r\n@a\r\n\r\n"),
        ),
        row(
            "RFC 9112 §2.2",
            "octets above 0x7f in a name",
            b"GET / HTTP/1.1\r\nHost: a\r\nX\xe4: a\r\n\r\n",
            refused(400),
        ),
    ]
}

/// Fields that `Connection` must not take away.
const ESSENTIAL: [(&str, &str, &str); 16] = [
    ("RFC 9110 §7.6.1", "Connection names Host", "Connection: Host"),
    ("RFC 9110 §7.6.1", "Connection names host", "Connection: host"),
    ("RFC 9110 §7.6.1", "Connection names Host second", "Connection: keep-alive, Host"),
    ("RFC 9110 §7.6.1", "Connection names Host behind close", "Connection: close,Host"),
    ("RFC 9110 §7.6.1", "Connection names Host among empty elements", "Connection: ,, Host ,"),
    ("RFC 9110 §7.6.1", "a second Connection names Host", "Connection: keep-alive\r\nConnection: Host"),
    ("RFC 9110 §7.6.1", "Connection names Content-Length", "Connection: Content-Length\r\nContent-Length: 0"),
    ("RFC 9110 §7.6.1", "Connection names Content-Length that is not there", "Connection: Content-Length"),
    ("RFC 9110 §7.6.1", "Connection names Transfer-Encoding", "Connection: Transfer-Encoding"),
    ("RFC 7239 §4", "Connection names Forwarded", "Connection: Forwarded\r\nForwarded: for=1.2.3.4"),
    ("RFC 7239 §7.4", "Connection names X-Forwarded-For", "Connection: X-Forwarded-For"),
    ("RFC 7239 §7.4", "Connection names X-Forwarded-Proto", "Connection: close, x-forwarded-proto"),
    ("RFC 7239 §7.4", "Connection names X-Forwarded-Host", "Connection: X-Forwarded-Host"),
    ("RFC 7239 §7.4", "Connection names X-Forwarded-Port", "Connection: X-Forwarded-Port"),
    ("RFC 9110 §7.6.1", "Connection names X-Request-Id", "Connection: X-Request-ID"),
    ("RFC 9110 §7.6.1", "Connection names Expect", "Connection: Expect\r\nExpect: 100-continue"),
];

/// Fields that stay on their hop, the lines that go on, and what must not.
const DROPPED: [(&str, &str, &str, &str, &str); 26] = [
    ("RFC 9110 §7.6.1", "field that Connection names", "Connection: X-Private\r\nX-Private: 1", "", "X-Private: 1"),
    (
        "RFC 9110 §7.6.1",
        "field that Connection names later",
        "X-Private: 1\r\nConnection: X-Private",
        "",
        "X-Private: 1",
    ),
    ("RFC 9110 §7.6.1", "named field in another case", "Connection: x-private\r\nX-PRIVATE: 1", "", "X-PRIVATE: 1"),
    ("RFC 9110 §7.6.1", "two fields of the named name", "Connection: X\r\nX: 1\r\nY: 2\r\nX: 3", "Y: 2\r\n", "X: 3"),
    ("RFC 9110 §7.6.1", "several named fields", "Connection: X, Y\r\nX: 1\r\nY: 2\r\nZ: 3", "Z: 3\r\n", "Y: 2"),
    ("RFC 9110 §7.6.1", "named in two fields", "Connection: X\r\nConnection: Y\r\nX: 1\r\nY: 2", "", "Y: 2"),
    ("RFC 9110 §7.6.1", "named beside keep-alive", "Connection: keep-alive, X\r\nX: 1", "", "X: 1"),
    ("RFC 9110 §7.6.1", "named cookie", "Connection: Cookie\r\nCookie: a=b", "", "Cookie: a=b"),
    ("RFC 9110 §7.6.1", "named field that is not there", "Connection: X-Private\r\nY: 2", "Y: 2\r\n", "Connection: X"),
    ("RFC 9110 §7.6.1", "Connection itself", "Connection: keep-alive\r\nY: 2", "Y: 2\r\n", "Connection: keep-alive"),
    ("RFC 9112 §C.2.2", "Keep-Alive", "Keep-Alive: timeout=5\r\nY: 2", "Y: 2\r\n", "Keep-Alive: timeout=5"),
    ("RFC 9110 §7.6.1", "Proxy-Connection", "Proxy-Connection: close\r\nY: 2", "Y: 2\r\n", "Proxy-Connection: close"),
    ("RFC 9110 §10.1.4", "TE with a coding", "Connection: TE\r\nTE: gzip\r\nY: 2", "Y: 2\r\n", "TE: gzip"),
    ("RFC 9110 §7.8", "Upgrade without Connection", "Upgrade: websocket\r\nY: 2", "Y: 2\r\n", "Upgrade: websocket"),
    ("RFC 7540 §3.2", "Upgrade to h2c", "Connection: Upgrade\r\nUpgrade: h2c", "", "Upgrade: h2c"),
    (
        "RFC 7540 §3.2",
        "Upgrade to h2c with settings",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
    ),
    ("RFC 9110 §7.8", "Upgrade to TLS", "Connection: Upgrade\r\nUpgrade: TLS/1.0", "", "Upgrade: TLS/1.0"),
    ("RFC 9110 §7.8", "Upgrade to a later HTTP", "Connection: Upgrade\r\nUpgrade: HTTP/2.0", "", "Upgrade: HTTP/2.0"),
    ("CVE-2016-5385", "Proxy", "Proxy: http://evil\r\nY: 2", "Y: 2\r\n", "Proxy: http://evil"),
    ("CVE-2016-5385", "proxy in lower case", "proxy: http://evil\r\nY: 2", "Y: 2\r\n", "proxy: http://evil"),
    ("RFC 7239 §4", "Forwarded of a stranger", "Forwarded: for=1.2.3.4\r\nY: 2", "Y: 2\r\n", "Forwarded: for=1.2.3.4"),
    ("RFC 7239 §7.4", "X-Forwarded-For of a stranger", "X-Forwarded-For: 1.2.3.4", "", "X-Forwarded-For: 1.2.3.4"),
    ("RFC 7239 §7.4", "X-Forwarded-Proto of a stranger", "x-forwarded-proto: https", "", "x-forwarded-proto: https"),
    ("RFC 7239 §7.4", "X-Forwarded-Host of a stranger", "X-Forwarded-Host: evil", "", "X-Forwarded-Host: evil"),
    ("RFC 7239 §7.4", "X-Forwarded-Port of a stranger", "X-Forwarded-Port: 1", "", "X-Forwarded-Port: 1\r"),
    ("RFC 9110 §7.6.1", "X-Request-Id of a stranger", "X-Request-Id: x\r\nX-Request-ID: y", "", "X-Request-ID: y"),
];

/// Names that CGI and its kin cannot tell from those that teal vouches for.
const LOOKALIKES: [(&str, &str, &str); 5] = [
    ("CVE-2015-0219", "X_Forwarded_For", "X_Forwarded_For: 1.2.3.4"),
    ("CVE-2015-0219", "X-Forwarded_For", "X-Forwarded_For: 1.2.3.4"),
    ("CVE-2015-0219", "X_Forwarded_Proto", "X_Forwarded_Proto: https"),
    ("CVE-2015-0219", "X_Forwarded_Host", "X_Forwarded_Host: evil"),
    ("CVE-2015-0219", "X_Request_Id", "X_Request_Id: x"),
];

pub(crate) fn hop_by_hop() -> Vec<Row> {
    let essential = ESSENTIAL.iter().map(|&(reference, name, fields)| row(reference, name, get(fields), refused(400)));
    let dropped = DROPPED.iter().map(|&(reference, name, fields, passed, gone)| {
        row(reference, name, get(fields), forwarded(got(passed.trim_end()))).without(gone)
    });
    let lookalikes = LOOKALIKES.iter().map(|&(reference, name, field)| {
        row(reference, name, get(&format!("{field}\r\nY: 2")), forwarded(got("Y: 2"))).without(field)
    });
    essential.chain(dropped).chain(lookalikes).chain(others()).chain(both_ways()).collect()
}

fn others() -> Vec<Row> {
    let old = "GET / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n";
    let trailers = "GET / HTTP/1.1\r\nHost: a\r\n@a\r\nConnection: TE\r\nTE: trailers\r\n\r\n";
    let many = get(&format!("Connection: {}", "x,".repeat(33)));
    vec![
        row("RFC 9110 §7.6.1", "Connection names 33 fields", many, refused(400)),
        row("RFC 9110 §10.1.1", "expectation in HTTP/1.0", old, last(200, got(""))).without("Expect: 100-continue"),
        row("RFC 9110 §10.1.4", "TE with trailers", get("Connection: TE\r\nTE: gzip, trailers"), forwarded(trailers)),
        row("RFC 9110 §10.1.4", "TE without Connection", get("TE: trailers"), forwarded(trailers)),
    ]
}

/// What the origin says on its hop does not reach the client either.
fn both_ways() -> Vec<Row> {
    let answers = [
        (
            "field that the origin's Connection names",
            "HTTP/1.1 200 OK\r\nConnection: X-Private\r\nX-Private: 1\r\nY: 2\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nY: 2\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "Keep-Alive of the origin",
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "Proxy-Connection of the origin",
            "HTTP/1.1 200 OK\r\nProxy-Connection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "Upgrade that the origin offers",
            "HTTP/1.1 200 OK\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "close of the origin",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            "trailer that the origin's Connection names",
            "HTTP/1.1 200 OK\r\nConnection: X-Private\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\nX-Private: 1\r\nY: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nY: 2\r\n\r\n",
        ),
        (
            "chunks of the origin",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\nY: 2\r\n\r\n002;x\r\nok\r\n00\r\n\r\n",
            "HTTP/1.1 200 OK\r\nY: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
    ];
    let rows = answers.map(|(name, given, returned)| {
        row("RFC 9110 §7.6.1", name, get("X: a"), forwarded(got("X: a"))).answering(given, returned)
    });
    Vec::from(rows)
}
