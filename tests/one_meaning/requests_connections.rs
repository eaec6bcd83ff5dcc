//! What follows what on a connection: pipelining, upgrades that come to nothing, and protocols that are not HTTP/1.1.

use crate::row::{Expected, Row, forwarded, get, got, last, refused, row};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

/// What other protocols begin with.
const OTHER_PROTOCOLS: [(&str, &str, &[u8], u16); 20] = [
    ("RFC 9113 §3.4", "preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 505),
    ("RFC 8446 §4.1.2", "TLS 1.3", b"\x16\x03\x01\x00\x0a\x01\x00\x00\x06\x03\x03abcd", 400),
    ("RFC 8446 §5.1", "TLS alert", b"\x15\x03\x03\x00\x02\x02\x28", 400),
    ("RFC 5246 §E.2", "TLS in the manner of SSL 2", b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", 400),
    ("RFC 9110 §9.1", "PROXY line", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 80\r\n", 505),
    ("RFC 9110 §9.1", "PROXY line of an unknown client", b"PROXY UNKNOWN\r\n", 400),
    ("RFC 9110 §9.1", "PROXY header of version 2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c12345678abcd", 400),
    ("RFC 4253 §4.2", "SSH", b"SSH-2.0-OpenSSH_9.2\r\n", 400),
    ("RFC 5321 §4.1.1", "SMTP", b"EHLO a\r\n", 400),
    ("RFC 1928 §3", "SOCKS 5", b"\x05\x01\x00", 400),
    ("RFC 1928 §1", "SOCKS 4", b"\x04\x01\x00\x50\x01\x02\x03\x04\0", 400),
    ("RFC 3261 §7.1", "SIP", b"OPTIONS sip:a SIP/2.0\r\nVia: SIP/2.0/UDP a\r\n\r\n", 505),
    ("RFC 7826 §20.2", "RTSP", b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n", 505),
    ("RFC 9112 §3", "Redis", b"*1\r\n$4\r\nPING\r\n", 400),
    ("RFC 9112 §3", "memcached", b"get a\r\n", 400),
    ("RFC 9112 §3", "JSON", b"{\"method\": \"GET\"}\r\n\r\n", 400),
    ("RFC 9112 §4", "an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
    ("RFC 9112 §3", "XML", b"<?xml version=\"1.0\"?>\r\n\r\n", 400),
    ("RFC 3629 §6", "byte order mark", b"\xef\xbb\xbfGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("RFC 9112 §2.2", "UTF-16", b"G\0E\0T\0 \0/\0", 400),
];

pub(crate) fn rows() -> Vec<Row> {
    let others =
        OTHER_PROTOCOLS.iter().map(|&(reference, name, sent, status)| row(reference, name, sent, refused(status)));
    others.chain(pipelined()).chain(closed()).chain(upgrades()).chain(refused_upgrades()).collect()
}

fn pipelined() -> Vec<Row> {
    let (simple, passed) = (get("X: 1"), got("X: 1"));
    let sized = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n{fields}\r\nhello");
    let chunks = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    let two = |received: String| Expected { statuses: vec![200, 200], ..forwarded(received) };
    let then = |status: u16| Expected { statuses: vec![200, status], goes_on: false, ..forwarded(&passed) };
    vec![
        row("RFC 9112 §9.3.2", "two requests", simple.repeat(2), two(passed.repeat(2))),
        row("RFC 9112 §2.2", "empty line between requests", format!("{simple}\r\n{simple}"), two(passed.repeat(2))),
        row(
            "RFC 9112 §9.3.2",
            "request behind a body of known length",
            format!("{}{simple}", sized("")),
            two(format!("{}{passed}", sized("@a\r\n"))),
        ),
        row(
            "RFC 9112 §9.3.2",
            "request behind a chunked body",
            format!("{head}{chunks}{simple}"),
            two(format!("{head}@a\r\n{chunks}{passed}")),
        ),
        row(
            "RFC 9112 §9.3.2",
            "chunked body behind a body of known length",
            format!("{}{head}{chunks}", sized("")),
            two(format!("{}{head}@a\r\n{chunks}", sized("@a\r\n"))),
        ),
        row("RFC 9112 §9.3.2", "bad line behind a request", format!("{simple}GET  / HTTP/1.1\r\n\r\n"), then(400)),
        row("RFC 9112 §9.3.2", "no host behind a request", format!("{simple}GET / HTTP/1.1\r\n\r\n"), then(400)),
        row(
            "RFC 9112 §9.3.2",
            "two lengths behind a request",
            simple.clone() + &sized("Content-Length: 5\r\n"),
            then(400),
        ),
        row(
            "RFC 9112 §9.3.2",
            "TRACE behind a request",
            format!("{simple}TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
            then(405),
        ),
        row(
            "RFC 9112 §9.3.2",
            "HTTP/2 behind a request",
            format!("{simple}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            then(505),
        ),
        row("RFC 9112 §9.3.2", "TLS behind a request", format!("{simple}\u{16}\u{3}\u{1}"), then(400)),
        row(
            "RFC 9112 §9.3.2",
            "bad chunk behind a request",
            format!("{simple}{head}{}", chunks.replace('5', "x")),
            then(400),
        ),
        row(
            "RFC 9112 §6.3",
            "body longer than its length",
            sized("") + ")",
            Expected { statuses: vec![200, 400], ..last(200, sized("@a\r\n")) },
        ),
    ]
}

/// What follows the last request of a connection is not read.
fn closed() -> Vec<Row> {
    let old = |fields: &str| format!("GET / HTTP/1.0\r\nHost: a\r\n{fields}\r\n");
    vec![
        row("RFC 9112 §9.6", "request behind close", get("Connection: close"), last(200, got(""))),
        row("RFC 9112 §9.6", "request behind Close", get("Connection: Close"), last(200, got(""))),
        row("RFC 9112 §9.6", "close beside keep-alive", get("Connection: keep-alive, close"), last(200, got(""))),
        row("RFC 9112 §9.6", "close before keep-alive", get("Connection: close, keep-alive"), last(200, got(""))),
        row(
            "RFC 9112 §9.6",
            "close in a second field",
            get("Connection: keep-alive\r\nConnection: close"),
            last(200, got("")),
        ),
        row("RFC 9112 §9.3", "request behind HTTP/1.0", old(""), last(200, got(""))),
        row(
            "RFC 9112 §9.3",
            "HTTP/1.0 with close and keep-alive",
            old("Connection: close, keep-alive\r\n"),
            last(200, got("")),
        ),
        row("RFC 9112 §9.3", "HTTP/1.0 with keep-alive", old("Connection: keep-alive\r\n"), forwarded(got(""))),
        row(
            "RFC 9112 §9.3",
            "HTTP/1.0 with Proxy-Connection",
            old("Proxy-Connection: keep-alive\r\n"),
            last(200, got("")),
        ),
    ]
}

/// A request for a WebSocket, with further lines of fields.
fn websocket(line: &str, fields: &str) -> String {
    format!("{line}\r\nHost: a\r\nSec-WebSocket-Version: 13\r\n{fields}\r\n\r\n")
}

/// Upgrades that are none, or none that is passed on.
fn upgrades() -> Vec<Row> {
    let line = "GET / HTTP/1.1";
    let ask = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let plain = |line: &str| format!("{line}\r\nHost: a\r\nSec-WebSocket-Version: 13\r\n{KEY}\r\n@a\r\n\r\n");
    let gone = "Upgrade: websocket";
    let length = format!("Content-Length: 5\r\n{ask}{KEY}");
    let with_body =
        format!("GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Version: 13\r\nContent-Length: 5\r\n{KEY}\r\n@a\r\n\r\n");
    vec![
        row(
            "RFC 6455 §4.1",
            "WebSocket with POST",
            websocket("POST / HTTP/1.1", &format!("{ask}{KEY}")),
            forwarded(plain("POST / HTTP/1.1")),
        )
        .without(gone),
        row(
            "RFC 6455 §4.1",
            "WebSocket in HTTP/1.0",
            websocket("GET / HTTP/1.0", &format!("{ask}{KEY}")),
            last(200, plain(line)),
        )
        .without(gone),
        row(
            "RFC 6455 §4.1",
            "WebSocket with a body",
            websocket(line, &length) + "hello",
            forwarded(with_body + "hello"),
        )
        .without(gone),
        row(
            "RFC 9110 §7.8",
            "WebSocket that Connection does not name",
            websocket(line, &format!("Upgrade: websocket\r\n{KEY}")),
            forwarded(plain(line)),
        ),
        row(
            "RFC 9110 §7.8",
            "upgrade to nothing",
            websocket(line, &format!("Connection: Upgrade\r\n{KEY}")),
            forwarded(plain(line)),
        ),
        row(
            "RFC 9110 §7.8",
            "upgrade to websocket/13",
            websocket(line, &format!("Connection: Upgrade\r\nUpgrade: websocket/13\r\n{KEY}")),
            forwarded(plain(line)),
        ),
        row(
            "RFC 9110 §7.8",
            "upgrade to something like websocket",
            websocket(line, &format!("Connection: Upgrade\r\nUpgrade: websockets\r\n{KEY}")),
            forwarded(plain(line)),
        ),
        row("RFC 6455 §4.1", "WebSocket without key", websocket(line, ask.trim_end()), refused(400)),
        row(
            "RFC 6455 §4.1",
            "WebSocket with a short key",
            websocket(line, &format!("{ask}Sec-WebSocket-Key: YQ==")),
            refused(400),
        ),
        row(
            "RFC 9110 §7.8",
            "WebSocket for the ready path",
            websocket("GET /.well-known/teal/ready HTTP/1.1", &format!("{ask}{KEY}")),
            last(200, ""),
        ),
    ]
}

/// Bytes behind an upgrade that the origin refuses may be meant for whoever it is upgraded to: they are no request.
fn refused_upgrades() -> Vec<Row> {
    let asks = [
        ("WebSocket", "Connection: Upgrade\r\nUpgrade: websocket"),
        ("WebSocket in mixed case", "Connection: uPGRADE\r\nUpgrade: WebSocket"),
        ("WebSocket beside keep-alive", "Connection: keep-alive, Upgrade\r\nUpgrade: websocket"),
        ("WebSocket or h2c", "Connection: Upgrade\r\nUpgrade: h2c, websocket"),
    ];
    let received = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Version: 13\r\n{KEY}\r\n@a\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    let asks = asks.map(|(name, ask)| {
        let sent = websocket("GET / HTTP/1.1", &format!("{ask}\r\n{KEY}"));
        row("RFC 9110 §7.8", format!("request behind a refused {name}"), sent, last(200, &received))
    });
    let answers = [
        (
            "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            403,
        ),
        (
            "HTTP/1.1 426 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 426 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            426,
        ),
    ];
    let answers = answers.map(|(given, returned, status)| {
        let sent = websocket("GET / HTTP/1.1", &format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{KEY}"));
        let name = format!("request behind a WebSocket refused with {status}");
        row("RFC 9110 §7.8", name, sent, last(status, &received)).answering(given, returned)
    });
    asks.into_iter().chain(answers).collect()
}
