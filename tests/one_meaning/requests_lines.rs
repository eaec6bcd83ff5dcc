//! Request lines: method, target, version, and the spaces between them.

use crate::row::{Row, answered, forwarded, refused, row};

/// Request lines that are refused, and how.
const BAD: [(&str, &str, &str, u16); 72] = [
    // White space.
    ("RFC 9112 §3", "two spaces before the target", "GET  / HTTP/1.1", 400),
    ("RFC 9112 §3", "two spaces before the version", "GET /  HTTP/1.1", 505),
    ("RFC 9112 §3", "space before the method", " GET / HTTP/1.1", 400),
    ("RFC 9112 §3", "space behind the version", "GET / HTTP/1.1 ", 400),
    ("RFC 9112 §3", "tab before the target", "GET\t/ HTTP/1.1", 400),
    ("RFC 9112 §3", "tab before the version", "GET /\tHTTP/1.1", 400),
    ("RFC 9112 §3", "tab behind the version", "GET / HTTP/1.1\t", 400),
    ("RFC 9112 §3", "vertical tab before the target", "GET\u{b}/ HTTP/1.1", 400),
    ("RFC 9112 §3", "form feed before the version", "GET /\u{c}HTTP/1.1", 400),
    ("RFC 9112 §3", "non-breaking space before the target", "GET\u{a0}/ HTTP/1.1", 400),
    ("RFC 9112 §3.2", "space in the target", "GET /a b HTTP/1.1", 505),
    ("RFC 9112 §3.2", "second version in the target", "GET / HTTP/1.1 HTTP/1.1", 400),
    ("RFC 9112 §3", "CR in the request line", "GET /\rHTTP/1.1", 400),
    ("RFC 9112 §3", "request line on two lines", "GET /\r\nHTTP/1.1", 400),
    // Methods.
    ("RFC 9112 §3.1", "no method", "/ HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with a space", "G ET / HTTP/1.1", 505),
    ("RFC 9110 §9.1", "method in quotes", "\"GET\" / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method in parentheses", "(GET) / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with a colon", "GET: / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with a comma", "GET,POST / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with a slash", "GET/POST / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with an at sign", "G@T / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with an equals sign", "GET=1 / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with brackets", "[GET] / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with braces", "{GET} / HTTP/1.1", 400),
    ("RFC 9110 §9.1", "method with an umlaut", "G\u{c4}T / HTTP/1.1", 400),
    ("RFC 9110 §9.3.6", "CONNECT", "CONNECT a:443 HTTP/1.1", 405),
    ("RFC 9110 §9.3.6", "CONNECT to a path", "CONNECT / HTTP/1.1", 405),
    ("RFC 9110 §9.3.6", "CONNECT to a URI", "CONNECT http://a/ HTTP/1.1", 405),
    ("RFC 9110 §9.3.6", "connect in lower case", "connect a:443 HTTP/1.1", 400),
    ("RFC 9110 §9.3.8", "TRACE", "TRACE / HTTP/1.1", 405),
    ("RFC 9110 §9.3.8", "TRACE of a URI", "TRACE http://a/ HTTP/1.1", 405),
    // Versions.
    ("RFC 9112 §2.3", "no version", "GET /", 400),
    ("RFC 9112 §2.3", "no version but a space", "GET / ", 505),
    ("RFC 9112 §2.3", "HTTP/0.9", "GET / HTTP/0.9", 505),
    ("RFC 9112 §2.3", "HTTP/1.2", "GET / HTTP/1.2", 505),
    ("RFC 9112 §2.3", "HTTP/1.9", "GET / HTTP/1.9", 505),
    ("RFC 9112 §2.3", "HTTP/2.0", "GET / HTTP/2.0", 505),
    ("RFC 9112 §2.3", "HTTP/3", "GET / HTTP/3", 505),
    ("RFC 9112 §2.3", "HTTP/1", "GET / HTTP/1", 505),
    ("RFC 9112 §2.3", "HTTP/1.", "GET / HTTP/1.", 505),
    ("RFC 9112 §2.3", "HTTP/1.10", "GET / HTTP/1.10", 400),
    ("RFC 9112 §2.3", "HTTP/01.1", "GET / HTTP/01.1", 505),
    ("RFC 9112 §2.3", "HTTP/1.01", "GET / HTTP/1.01", 400),
    ("RFC 9112 §2.3", "HTTP/11", "GET / HTTP/11", 505),
    ("RFC 9112 §2.3", "HTTP/1,1", "GET / HTTP/1,1", 505),
    ("RFC 9112 §2.3", "HTTP/-1.1", "GET / HTTP/-1.1", 505),
    ("RFC 9112 §2.3", "HTTP/+1.1", "GET / HTTP/+1.1", 505),
    ("RFC 9112 §2.3", "http/1.1 in lower case", "GET / http/1.1", 505),
    ("RFC 9112 §2.3", "version with a space", "GET / HTTP/ 1.1", 505),
    ("RFC 9112 §2.3", "HTTPS/1.1", "GET / HTTPS/1.1", 505),
    ("RFC 9112 §2.3", "another protocol as version", "GET / RTSP/1.0", 505),
    // Targets.
    ("RFC 9112 §3.2", "fragment", "GET /a#top HTTP/1.1", 400),
    ("RFC 9112 §3.2", "empty fragment", "GET /a# HTTP/1.1", 400),
    ("RFC 9112 §3.2", "fragment behind a query", "GET /a?b#/admin HTTP/1.1", 400),
    ("RFC 9112 §3.2", "only a fragment", "GET #a HTTP/1.1", 400),
    ("RFC 9112 §3.2.1", "target without slash", "GET a HTTP/1.1", 400),
    ("RFC 9112 §3.2.1", "relative target", "GET ../a HTTP/1.1", 400),
    ("RFC 9112 §3.2.1", "target that begins with a dot", "GET ./a HTTP/1.1", 400),
    ("RFC 9112 §3.2.1", "target that begins with a backslash", "GET \\a HTTP/1.1", 400),
    ("RFC 9112 §3.2.1", "encoded slash first", "GET %2fa HTTP/1.1", 400),
    ("RFC 9112 §3.2.1", "only a query", "GET ?a HTTP/1.1", 400),
    ("RFC 9112 §3.2.3", "authority with GET", "GET a:80 HTTP/1.1", 400),
    ("RFC 9112 §3.2.4", "star with GET", "GET * HTTP/1.1", 400),
    ("RFC 9112 §3.2.4", "star with POST", "POST * HTTP/1.1", 400),
    ("RFC 9112 §3.2.4", "star and more with OPTIONS", "OPTIONS *a HTTP/1.1", 400),
    ("RFC 9112 §3.2.4", "star and a query with OPTIONS", "OPTIONS *?a HTTP/1.1", 400),
    ("RFC 9112 §3.2.2", "ftp URI", "GET ftp://a/ HTTP/1.1", 400),
    ("RFC 9112 §3.2.2", "ws URI", "GET ws://a/ HTTP/1.1", 400),
    ("RFC 9112 §3.2.2", "URI without authority", "GET http:/a HTTP/1.1", 400),
    ("RFC 9112 §3.2.2", "URI without anything", "GET http: HTTP/1.1", 400),
    ("RFC 9112 §3.2.2", "script URI", "GET javascript:alert(1) HTTP/1.1", 400),
];

/// Request lines that go on as they are.
const GOOD: [(&str, &str, &str); 12] = [
    ("RFC 9110 §9.1", "method in lower case", "get / HTTP/1.1"),
    ("RFC 9110 §9.1", "method in mixed case", "Get / HTTP/1.1"),
    ("RFC 9110 §9.1", "unknown method", "QUERY / HTTP/1.1"),
    ("RFC 9110 §9.1", "method with a hyphen", "M-SEARCH / HTTP/1.1"),
    ("RFC 9110 §5.6.2", "method of every mark", "!#$%&'*+-.^_`|~09 / HTTP/1.1"),
    ("RFC 9110 §9.1", "method of one letter", "X / HTTP/1.1"),
    ("RFC 9110 §9.1", "method that begins as POST", "POSTX / HTTP/1.1"),
    ("RFC 9112 §3.2", "query with everything", "GET /?a=/../b&c=http://d/?e=%00;f@g:h HTTP/1.1"),
    ("RFC 9112 §3.2", "empty query", "GET /? HTTP/1.1"),
    ("RFC 9112 §3.2", "marks that URIs do not allow", "GET /\"<>\\^`{|} HTTP/1.1"),
    ("RFC 9112 §3.2", "other scripts in the target", "GET /\u{e4}?\u{20ac} HTTP/1.1"),
    ("RFC 9112 §3.2.4", "OPTIONS of a path", "OPTIONS /a HTTP/1.1"),
];

pub(crate) fn rows() -> Vec<Row> {
    let whole = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    let bad = BAD.iter().map(|&(reference, name, line, status)| row(reference, name, whole(line), refused(status)));
    let good = GOOD.iter().map(|&(reference, name, line)| {
        row(reference, name, whole(line), forwarded(format!("{line}\r\nHost: a\r\n@a\r\n\r\n")))
    });
    bad.chain(good).chain(others()).collect()
}

fn others() -> Vec<Row> {
    let long = format!("{} / HTTP/1.1\r\nHost: a\r\n", "M".repeat(1000));
    let options = |fields: &str, body: &str| format!("OPTIONS * HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}");
    let latin = b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n";
    let overlong = b"GET /\xc0\xae\xc0\xae/ HTTP/1.1\r\nHost: a\r\n\r\n";
    let simple = "GET / HTTP/1.1\r\nHost: a\r\n";
    vec![
        row("RFC 9110 §9.1", "method of 1,000 letters", format!("{long}\r\n"), forwarded(format!("{long}@a\r\n\r\n"))),
        row("RFC 3986 §2.5", "target that is no UTF-8", latin, refused(400)),
        row("RFC 3629 §3", "target with overlong dots", overlong, refused(400)),
        row("RFC 9112 §2.2", "empty line first", format!("\r\n{simple}\r\n"), forwarded(format!("{simple}@a\r\n\r\n"))),
        row(
            "RFC 9112 §2.2",
            "three empty lines first",
            format!("\r\n\r\n\r\n{simple}\r\n"),
            forwarded(format!("{simple}@a\r\n\r\n")),
        ),
        // teal itself has nothing to say about the server as a whole, and no route begins with a star.
        row("RFC 9110 §9.3.7", "OPTIONS of the server", options("", ""), answered(404)),
        // Whoever answers without reading the body must not read it as the next request.
        row("CVE-2025-4366", "body of what teal answers", options("Content-Length: 5\r\n", "hello"), refused(404)),
        row(
            "CVE-2025-4366",
            "request as body of what teal answers",
            options("Content-Length: 28\r\n", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"),
            refused(404),
        ),
        row(
            "CVE-2025-4366",
            "chunked body of what teal answers",
            options("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            refused(404),
        ),
    ]
}
