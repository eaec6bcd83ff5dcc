//! What heads of requests and answers have in common: fields, framing, and the strictness with which they are read.
//!
//! What could be understood in two ways is refused. `httparse` does the splitting; around it stand the checks that RFC 9112
//! leaves to the recipient: line ends are CRLF and nothing else, a message has one framing, one host, one meaning.

mod answer;
mod request;

use httparse::Header;

use crate::error::Failure;

pub(crate) use answer::{AnswerHead, parse_answer};
pub(crate) use request::{MAX_REQUEST_LINE, RequestHead, parse_request, split_port};

/// Fields that `Connection` may name: every other field is compared with each of them.
const MAX_NAMED: usize = 32;

/// How the end of a body is found (RFC 9112 §6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// An answer that the end of the connection ends.
    UntilClose,
}

/// Every line feed has its carriage return (RFC 9112 §2.2 lets a recipient be lax; an edge should not).
fn check_line_ends(head: &[u8]) -> Result<(), Failure> {
    // One pass without a branch, which the compiler turns into vector code.
    let pairs = head.iter().zip(head.iter().skip(1));
    let has_bare =
        pairs.fold(head.first() == Some(&b'\n'), |bare, (&before, &byte)| bare | (byte == b'\n' && before != b'\r'));
    if has_bare {
        return Err(Failure::BadRequest("line feed without carriage return"));
    }
    Ok(())
}

/// Whether a head may end in `bytes`, of which the first `scanned` have been looked at. A line end without its carriage
/// return counts: it is refused then, and need not be waited for.
pub(crate) fn may_end(bytes: &[u8], scanned: usize) -> bool {
    let rest = &bytes[scanned.saturating_sub(2)..];
    memchr::memchr_iter(b'\n', rest).any(|at| matches!(rest[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

/// Decides when a head that arrives in pieces is parsed: at each piece from its start would take the square of its length.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    scanned: usize,
    parsed: usize,
}

impl Scan {
    /// Whether `bytes`, all that has come of the head, are worth parsing: they may be whole, or too many, or may have been
    /// wrong for long.
    pub(crate) fn is_due(&mut self, bytes: &[u8], max: usize) -> bool {
        let is_due = bytes.len() / 2 >= self.parsed || bytes.len() >= max || may_end(bytes, self.scanned);
        self.scanned = bytes.len();
        if is_due {
            self.parsed = bytes.len();
        }
        is_due
    }
}

/// What the header fields say about the message itself.
#[derive(Default)]
struct Facts<'b> {
    host: Option<&'b [u8]>,
    length: Option<u64>,
    is_chunked: bool,
    closes: bool,
    keeps_alive: bool,
    upgrades: bool,
    to_websocket: bool,
    expects_continue: bool,
    accepts_trailers: bool,
    accept: Option<&'b [u8]>,
    request_id: Option<&'b [u8]>,
    websocket_key: Option<&'b [u8]>,
    named: Vec<&'b [u8]>,
}

impl<'b> Facts<'b> {
    fn read(headers: &'b [Header<'b>], is_http_10: bool) -> Result<Facts<'b>, Failure> {
        let mut facts = Facts::default();
        for header in headers {
            facts.add(Known::of(header.name), header.value, is_http_10)?;
        }
        if facts.is_chunked && facts.length.is_some() {
            return Err(Failure::BadRequest("both content-length and transfer-encoding"));
        }
        Ok(facts)
    }

    fn add(&mut self, known: Known, value: &'b [u8], is_http_10: bool) -> Result<(), Failure> {
        match known {
            Known::Host if self.host.is_some() => return Err(Failure::BadRequest("more than one host")),
            Known::Host => self.host = Some(value),
            Known::ContentLength if self.length.is_some() => {
                return Err(Failure::BadRequest("more than one content-length"));
            }
            Known::ContentLength => {
                self.length = Some(decimal(value).ok_or(Failure::BadRequest("invalid content-length"))?);
            }
            Known::TransferEncoding => self.transfer_encoding(value, is_http_10)?,
            Known::Connection => self.connection(value)?,
            Known::Upgrade => self.to_websocket |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"websocket")),
            Known::Expect if value.eq_ignore_ascii_case(b"100-continue") => self.expects_continue = true,
            Known::Accept => self.accept = self.accept.or(Some(value)),
            Known::RequestId => self.request_id = self.request_id.or(Some(value)),
            Known::Te => self.accepts_trailers |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"trailers")),
            Known::SecWebSocketKey => self.websocket_key = Some(value),
            _ => {}
        }
        Ok(())
    }

    /// Exactly one `chunked`, never in HTTP/1.0.
    fn transfer_encoding(&mut self, value: &[u8], is_http_10: bool) -> Result<(), Failure> {
        if is_http_10 {
            return Err(Failure::BadRequest("transfer-encoding in HTTP/1.0"));
        }
        if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Failure::BadRequest("transfer-encoding other than chunked"));
        }
        self.is_chunked = true;
        Ok(())
    }

    fn connection(&mut self, value: &'b [u8]) -> Result<(), Failure> {
        for token in tokens(value) {
            match () {
                () if token.eq_ignore_ascii_case(b"close") => self.closes = true,
                () if token.eq_ignore_ascii_case(b"keep-alive") => self.keeps_alive = true,
                () if token.eq_ignore_ascii_case(b"upgrade") => self.upgrades = true,
                () if is_essential(token) => {
                    return Err(Failure::BadRequest("connection names a field that is not hop-by-hop"));
                }
                () if self.named.len() == MAX_NAMED => {
                    return Err(Failure::BadRequest("connection names too many fields"));
                }
                () => self.named.push(token),
            }
        }
        Ok(())
    }
}

/// Fields that `Connection` must not take away, since others rely on them.
fn is_essential(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    matches!(
        Known::of(name),
        Known::Host
            | Known::ContentLength
            | Known::TransferEncoding
            | Known::Expect
            | Known::Forwarded
            | Known::ForwardedFor
            | Known::ForwardedProto
            | Known::ForwardedHost
            | Known::ForwardedPort
            | Known::RequestId
    )
}

/// Header fields that the proxy itself has to understand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    KeepAlive,
    ProxyConnection,
    Upgrade,
    Te,
    Proxy,
    Expect,
    Accept,
    ContentType,
    Forwarded,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    ForwardedPort,
    RequestId,
    SecWebSocketKey,
    SecWebSocketAccept,
    Other,
}

impl Known {
    pub(crate) fn of(name: &str) -> Known {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let Some(first) = name.bytes().next() else { return Known::Other };
        match (name.len(), first.to_ascii_lowercase()) {
            (2, b't') if is("te") => Known::Te,
            (4, b'h') if is("host") => Known::Host,
            (5, b'p') if is("proxy") => Known::Proxy,
            (6, b'a') if is("accept") => Known::Accept,
            (6, b'e') if is("expect") => Known::Expect,
            (7, b'u') if is("upgrade") => Known::Upgrade,
            (9, b'f') if is("forwarded") => Known::Forwarded,
            (10, b'c') if is("connection") => Known::Connection,
            (10, b'k') if is("keep-alive") => Known::KeepAlive,
            (12, b'c') if is("content-type") => Known::ContentType,
            (12, b'x') if is("x-request-id") => Known::RequestId,
            (14, b'c') if is("content-length") => Known::ContentLength,
            (15, b'x') if is("x-forwarded-for") => Known::ForwardedFor,
            (16, b'x') if is("x-forwarded-host") => Known::ForwardedHost,
            (16, b'x') if is("x-forwarded-port") => Known::ForwardedPort,
            (16, b'p') if is("proxy-connection") => Known::ProxyConnection,
            (17, b't') if is("transfer-encoding") => Known::TransferEncoding,
            (17, b'x') if is("x-forwarded-proto") => Known::ForwardedProto,
            (17, b's') if is("sec-websocket-key") => Known::SecWebSocketKey,
            (20, b's') if is("sec-websocket-accept") => Known::SecWebSocketAccept,
            _ => Known::Other,
        }
    }
}

/// The elements of a comma-separated list, without white space and empty ones.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Names that have to outlive their head.
pub(crate) fn owned(names: &[&[u8]]) -> Vec<Box<[u8]>> {
    names.iter().map(|&name| name.into()).collect()
}

/// A valid length as everybody reads it: some take a zero at its front for octal.
pub(crate) fn plain_decimal(length: &[u8]) -> &[u8] {
    let zeros = length.iter().take_while(|&&digit| digit == b'0').count();
    &length[zeros.min(length.len().saturating_sub(1))..]
}

/// Digits and nothing else, at most what 64 bits hold.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_end_of_a_head_is_seen_wherever_the_pieces_are_cut() {
        for head in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"HTTP/1.1 200 OK\nA: b\n\n", b"HTTP/1.1 200 OK\r\n\n"]
        {
            for cut in 0..head.len() {
                assert!(may_end(head, cut), "{} cut after {cut}", head.escape_ascii());
                assert!(!may_end(&head[..head.len() - 1], cut), "{} not whole, cut after {cut}", head.escape_ascii());
            }
        }
    }

    #[test]
    fn a_head_that_arrives_octet_by_octet_is_parsed_a_few_times() {
        const MAX: usize = 256 * 1024;
        let mut head = b"HTTP/1.1 200 OK\r\n".to_vec();
        while head.len() < MAX - 1024 {
            head.extend_from_slice(format!("X: {}\r\n", "y".repeat(1000)).as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        let mut scan = Scan::default();
        let parsed = (1..=head.len()).filter(|&end| scan.is_due(&head[..end], MAX));
        let octets: usize = parsed.inspect(|&end| assert!(end <= head.len())).sum();
        assert!(octets <= 3 * head.len(), "{octets} octets parsed of {}", head.len());
        assert_eq!(scan.parsed, head.len(), "the last octet is not waited beyond");
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_request(&bytes, &crate::config::Limits::default(), |_, _| ());
            let _ = parse_answer(&bytes, false, 100, |_, _| ());
        }
    }
}
