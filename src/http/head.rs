//! Reads request and response heads, strictly: what could be understood in two ways is refused.
//!
//! `httparse` does the splitting; around it stand the checks that RFC 9112 leaves to the recipient: line ends are CRLF
//! and nothing else, a message has one framing, one host, one meaning.

use std::mem::MaybeUninit;

use httparse::{Header, Status};

use crate::config::Limits;
use crate::error::Failure;

/// Longest request line, octets.
pub(crate) const MAX_REQUEST_LINE: usize = 16 * 1024;
/// Header fields that a configuration may allow at most.
const MAX_HEADERS: usize = 1000;
/// Header fields of an answer.
const MAX_ANSWER_HEADERS: usize = 256;
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

/// A valid request head. Slices borrow from the bytes that were read.
#[derive(Debug)]
pub(crate) struct RequestHead<'b> {
    pub(crate) method: &'b str,
    /// Path and query as they are to be sent on; `*` only with OPTIONS.
    pub(crate) target: &'b str,
    pub(crate) is_http_10: bool,
    pub(crate) headers: &'b [Header<'b>],
    /// As the client names it, with port; empty if it does not (HTTP/1.0).
    pub(crate) host: &'b [u8],
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
    pub(crate) accepts_trailers: bool,
    pub(crate) accept: Option<&'b [u8]>,
    pub(crate) request_id: Option<&'b [u8]>,
    /// `Sec-WebSocket-Key` of a request for an upgrade to WebSocket.
    pub(crate) websocket_key: Option<&'b [u8]>,
    /// Names of fields that `Connection` takes along, besides those that are hop-by-hop anyway.
    pub(crate) named_by_connection: Vec<&'b [u8]>,
}

impl<'b> RequestHead<'b> {
    pub(crate) fn path(&self) -> &'b str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    /// The host without its port.
    pub(crate) fn host_name(&self) -> &'b [u8] {
        split_port(self.host).0
    }

    pub(crate) fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }
}

/// Parses the head at the front of `bytes` and gives it to `then`, with the head's length. `None`: not complete yet.
///
/// # Errors
/// A [`Failure`] of the client's side when the head is invalid, ambiguous or too large.
pub(crate) fn parse_request<T>(
    bytes: &[u8],
    limits: &Limits,
    then: impl FnOnce(&RequestHead<'_>, usize) -> T,
) -> Result<Option<T>, Failure> {
    let mut space = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let space = &mut space[..limits.request_headers.min(MAX_HEADERS)];
    let length = match request.parse_with_uninit_headers(bytes, space) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return check_partial(bytes, limits).map(|()| None),
        Err(error) => return Err(refuse_request(bytes, error)),
    };
    check_sizes(bytes, length, limits)?;
    check_line_ends(&bytes[..length])?;
    let head = understand(request)?;
    Ok(Some(then(&head, length)))
}

fn check_partial(bytes: &[u8], limits: &Limits) -> Result<(), Failure> {
    if bytes.len() > MAX_REQUEST_LINE && memchr::memchr(b'\n', &bytes[..MAX_REQUEST_LINE]).is_none() {
        return Err(Failure::UriTooLong);
    }
    if bytes.len() >= limits.request_head {
        return Err(Failure::HeadTooLarge);
    }
    Ok(())
}

fn check_sizes(bytes: &[u8], length: usize, limits: &Limits) -> Result<(), Failure> {
    let line = memchr::memchr(b'\n', bytes.trim_ascii_start()).unwrap_or(length);
    if line > MAX_REQUEST_LINE {
        return Err(Failure::UriTooLong);
    }
    if length > limits.request_head { Err(Failure::HeadTooLarge) } else { Ok(()) }
}

fn refuse_request(bytes: &[u8], error: httparse::Error) -> Failure {
    match error {
        httparse::Error::TooManyHeaders => Failure::HeadTooLarge,
        httparse::Error::Version if bytes.starts_with(b"PRI * HTTP/2.0") => Failure::Version,
        httparse::Error::Version => Failure::Version,
        httparse::Error::HeaderName => Failure::BadRequest("invalid header name"),
        httparse::Error::HeaderValue => Failure::BadRequest("invalid header value"),
        httparse::Error::NewLine => Failure::BadRequest("invalid line end"),
        _ if bytes.starts_with(&[0x16, 0x03]) => Failure::BadRequest("TLS on a plain-text port"),
        _ => Failure::BadRequest("invalid request line"),
    }
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

fn understand<'b>(request: httparse::Request<'b, 'b>) -> Result<RequestHead<'b>, Failure> {
    let headers: &'b [Header<'b>] = request.headers;
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Failure::BadRequest("invalid request line"));
    };
    let is_http_10 = version == 0;
    let facts = Facts::read(headers, is_http_10)?;
    check_method(method)?;
    let (target, authority) = split_target(method, target)?;
    let host = check_host(facts.host, authority, is_http_10)?;
    let framing = match (facts.is_chunked, facts.length) {
        (true, _) => Framing::Chunked,
        (false, Some(0) | None) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
    };
    let asks_upgrade = facts.upgrades && facts.to_websocket && method == "GET" && !is_http_10;
    let is_upgrade = asks_upgrade && framing == Framing::Empty;
    Ok(RequestHead {
        method,
        target,
        is_http_10,
        headers,
        host,
        framing,
        keep_alive: if is_http_10 { facts.keeps_alive && !facts.closes } else { !facts.closes },
        expects_continue: facts.expects_continue && !is_http_10,
        accepts_trailers: facts.accepts_trailers,
        accept: facts.accept,
        request_id: facts.request_id,
        websocket_key: if is_upgrade { Some(facts.websocket_key.unwrap_or_default()) } else { None },
        named_by_connection: facts.named,
    })
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

fn check_method(method: &str) -> Result<(), Failure> {
    match method {
        "CONNECT" => Err(Failure::Method("CONNECT")),
        "TRACE" => Err(Failure::Method("TRACE")),
        _ => Ok(()),
    }
}

/// The target as it is sent on, and the authority of an absolute one (RFC 9112 §3.2).
fn split_target<'b>(method: &str, target: &'b str) -> Result<(&'b str, Option<&'b str>), Failure> {
    if target.bytes().any(|byte| byte == b'#') {
        return Err(Failure::BadRequest("fragment in the request target"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((target, None));
    }
    let is_scheme = |scheme: &str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let scheme = ["http://", "https://"].into_iter().find(|scheme| is_scheme(scheme));
    let rest = scheme.map(|scheme| &target[scheme.len()..]).ok_or(Failure::BadRequest("invalid request target"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    match (&rest[..end], &rest[end..]) {
        ("", _) => Err(Failure::BadRequest("absolute request target without host")),
        (authority, "") => Ok(("/", Some(authority))),
        (_, path) if path.starts_with('?') => Err(Failure::BadRequest("absolute request target without path")),
        (authority, path) => Ok((path, Some(authority))),
    }
}

fn check_host<'b>(host: Option<&'b [u8]>, authority: Option<&'b str>, is_http_10: bool) -> Result<&'b [u8], Failure> {
    if host.is_none() && !is_http_10 {
        return Err(Failure::BadRequest("no host"));
    }
    if let (Some(host), Some(authority)) = (host, authority)
        && !host.eq_ignore_ascii_case(authority.as_bytes())
    {
        return Err(Failure::BadRequest("host and request target disagree"));
    }
    let host = authority.map(str::as_bytes).or(host).unwrap_or_default();
    if is_valid_host(host) { Ok(host) } else { Err(Failure::BadRequest("invalid host")) }
}

/// `name`, `name:port`, `1.2.3.4`, `[v6]:port`, or nothing (RFC 9110 §7.2). No user information, no other character.
fn is_valid_host(host: &[u8]) -> bool {
    let (name, port) = split_port(host);
    let is_port = port.is_none_or(|port| port.len() <= 5 && port.iter().all(u8::is_ascii_digit));
    let is_name = match name.strip_prefix(b"[") {
        Some(address) => address.strip_suffix(b"]").is_some_and(|address| {
            !address.is_empty() && address.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
        }),
        None => name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte)),
    };
    is_name && is_port && (!name.is_empty() || host.is_empty())
}

/// Name and port of a host; the brackets of an IPv6 address stay.
pub(crate) fn split_port(host: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memrchr(b':', host) {
        Some(colon) if !host[colon..].contains(&b']') => (&host[..colon], Some(&host[colon + 1..])),
        _ => (host, None),
    }
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

/// A valid head of an answer.
#[derive(Debug)]
pub(crate) struct AnswerHead<'b> {
    pub(crate) status: u16,
    pub(crate) reason: &'b str,
    pub(crate) headers: &'b [Header<'b>],
    pub(crate) framing: Framing,
    /// Whether the connection can be used again after the body.
    pub(crate) keep_alive: bool,
    pub(crate) is_event_stream: bool,
    /// An event stream with a `Content-Encoding`: where an event ends cannot be seen.
    pub(crate) is_encoded: bool,
    /// A 101 that says `Upgrade: websocket` and `Connection: upgrade`.
    pub(crate) upgrades_to_websocket: bool,
    pub(crate) websocket_accept: Option<&'b [u8]>,
    pub(crate) named_by_connection: Vec<&'b [u8]>,
}

/// Parses the head of an answer at the front of `bytes`, as [`parse_request`] does. `to_head`: the request was a HEAD.
///
/// # Errors
/// [`Failure::BadAnswer`] when it is invalid, ambiguous, or larger than `max` octets.
pub(crate) fn parse_answer<T>(
    bytes: &[u8],
    to_head: bool,
    max: usize,
    then: impl FnOnce(&AnswerHead<'_>, usize) -> T,
) -> Result<Option<T>, Failure> {
    // The parser skips empty lines, which RFC 9112 §2.2 lets a server do, and nobody else.
    if let [b'\r' | b'\n', ..] = bytes {
        return Err(Failure::BadAnswer("empty line before the status line"));
    }
    let mut space = [const { MaybeUninit::uninit() }; MAX_ANSWER_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut space);
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() < max => return Ok(None),
        Ok(Status::Partial) => return Err(Failure::BadAnswer("head too large")),
        Err(httparse::Error::TooManyHeaders) => return Err(Failure::BadAnswer("too many header fields")),
        Err(_) => return Err(Failure::BadAnswer("invalid head")),
    };
    check_line_ends(&bytes[..length]).map_err(|_| Failure::BadAnswer("line feed without carriage return"))?;
    let head = understand_answer(response, to_head)?;
    Ok(Some(then(&head, length)))
}

fn understand_answer<'b>(response: httparse::Response<'b, 'b>, to_head: bool) -> Result<AnswerHead<'b>, Failure> {
    let headers: &'b [Header<'b>] = response.headers;
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err(Failure::BadAnswer("invalid status line"));
    };
    if !(100..=999).contains(&status) {
        return Err(Failure::BadAnswer("invalid status"));
    }
    let is_http_10 = version == 0;
    let facts = Facts::read(headers, is_http_10).map_err(|failure| match failure {
        Failure::BadRequest(what) => Failure::BadAnswer(what),
        other => other,
    })?;
    let has_body = !to_head && status >= 200 && status != 204 && status != 304;
    let framing = match (has_body, facts.is_chunked, facts.length) {
        (false, _, _) | (true, false, Some(0)) => Framing::Empty,
        (true, true, _) => Framing::Chunked,
        (true, false, Some(length)) => Framing::Length(length),
        (true, false, None) => Framing::UntilClose,
    };
    let find = |known: Known| headers.iter().find(|header| Known::of(header.name) == known).map(|header| header.value);
    let keep_alive = if is_http_10 { facts.keeps_alive && !facts.closes } else { !facts.closes };
    // HTTP/1.0 cannot switch (RFC 9110 §7.8), and who accepts twice accepts nothing (RFC 6455 §11.3.3).
    let accepts = || headers.iter().filter(|header| Known::of(header.name) == Known::SecWebSocketAccept).count();
    let is_upgrade = status == 101 && !is_http_10 && accepts() == 1;
    let is_event_stream = has_body && find(Known::ContentType).is_some_and(is_event_stream);
    Ok(AnswerHead {
        status,
        reason: response.reason.unwrap_or(""),
        headers,
        framing,
        keep_alive: keep_alive && framing != Framing::UntilClose,
        is_event_stream,
        is_encoded: is_event_stream && headers.iter().any(is_encoding),
        upgrades_to_websocket: is_upgrade && facts.upgrades && facts.to_websocket,
        websocket_accept: if is_upgrade { find(Known::SecWebSocketAccept) } else { None },
        named_by_connection: facts.named,
    })
}

fn is_encoding(header: &Header<'_>) -> bool {
    header.name.eq_ignore_ascii_case("content-encoding") && !header.value.eq_ignore_ascii_case(b"identity")
}

fn is_event_stream(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// The elements of a comma-separated list, without white space and empty ones.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Names that have to outlive their head.
pub(crate) fn owned(names: &[&[u8]]) -> Vec<Box<[u8]>> {
    names.iter().map(|&name| name.into()).collect()
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

    const LIMITS: Limits = Limits {
        connections: 1,
        connections_per_ip: None,
        request_head: 64 * 1024,
        request_headers: 100,
        request_body: None,
        rate: None,
        header_timeout: std::time::Duration::ZERO,
        idle_timeout: std::time::Duration::ZERO,
        body_timeout: std::time::Duration::ZERO,
    };

    /// The head as text, with its length.
    fn parse(bytes: &[u8]) -> Result<Option<(String, usize)>, String> {
        parse_request(bytes, &LIMITS, |head, length| (format!("{head:?}"), length))
            .map_err(|failure| failure.to_string())
    }

    fn answer<T>(head: &str, to_head: bool, look: impl FnOnce(&AnswerHead<'_>) -> T) -> T {
        let head = format!("{head}\r\n\r\n");
        parse_answer(head.as_bytes(), to_head, 1000, |head, _| look(head)).expect("valid").expect("whole")
    }

    #[test]
    fn a_head_is_whole_at_its_very_last_octet() {
        let head = b"POST /a?b=c HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\n";
        let bytes = [head, &b"hello"[..]].concat();
        let whole = parse(&bytes).expect("valid").expect("whole");
        assert_eq!(whole.1, head.len());
        for end in 1..head.len() {
            assert_eq!(parse(&bytes[..end]), Ok(None), "after {end} octets");
        }
        assert_eq!(parse(head), Ok(Some(whole)));
    }

    proptest! {
        /// One octet of a valid head is replaced: whatever becomes of it, it does not depend on what follows, and what is
        /// taken for a head was none before its end.
        #[test]
        fn what_follows_a_head_does_not_change_it(
            at in any::<prop::sample::Index>(),
            octet in prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b' '), Just(b':'), Just(b',')],
            follows in "[A-Z: \r\n]{0,20}",
        ) {
            let mut bytes = b"POST http://a/b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n".to_vec();
            let at = at.index(bytes.len());
            bytes[at] = octet;
            if let Ok(Some((head, length))) = parse(&bytes) {
                prop_assert!(bytes[..length].ends_with(b"\r\n\r\n"));
                prop_assert_eq!(parse(&bytes[..length]), Ok(Some((head.clone(), length))));
                prop_assert_eq!(parse(&[&bytes[..length], follows.as_bytes()].concat()), Ok(Some((head, length))));
                for end in 1..length {
                    prop_assert!(!matches!(parse(&bytes[..end]), Ok(Some(_))), "a head after {} octets", end);
                }
            }
        }

        #[test]
        fn no_octets_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse_answer(&bytes, false, 100, |_, _| ());
        }
    }

    #[test]
    fn the_body_of_an_answer_is_framed_as_rfc_9112_says() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", false, Framing::Length(5)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0", false, Framing::Empty),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", false, Framing::Chunked),
            ("HTTP/1.1 200 OK", false, Framing::UntilClose),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", true, Framing::Empty),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", true, Framing::Empty),
            ("HTTP/1.1 103 Early Hints\r\nContent-Length: 5", false, Framing::Empty),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5", false, Framing::Empty),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", false, Framing::Empty),
        ];
        for (head, to_head, framing) in cases {
            assert_eq!(answer(head, to_head, |head| head.framing), framing, "{head}");
        }
    }

    #[test]
    fn a_connection_is_kept_only_where_both_know_it() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive, close", false),
            ("HTTP/1.1 200 OK", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive", true),
        ];
        for (head, is_kept) in cases {
            assert_eq!(answer(head, false, |head| head.keep_alive), is_kept, "{head}");
        }
    }

    #[test]
    fn an_event_stream_is_known_by_its_media_type() {
        let cases = [
            ("text/event-stream", true),
            ("Text/Event-Stream ; charset=utf-8", true),
            ("text/event-streams", false),
            ("text/plain, text/event-stream", false),
        ];
        for (content_type, is_event_stream) in cases {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}");
            assert_eq!(answer(&head, false, |head| head.is_event_stream), is_event_stream, "{content_type}");
        }
    }

    #[test]
    fn a_connection_field_names_a_bounded_number_of_others() {
        let head = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {}\r\n\r\n", "x,".repeat(count));
        assert!(matches!(parse(head(MAX_NAMED).as_bytes()), Ok(Some(_))));
        assert_eq!(parse(head(MAX_NAMED + 1).as_bytes()), Err("connection names too many fields".to_owned()));
    }

    #[test]
    fn the_port_of_a_host_is_what_follows_the_last_colon_outside_brackets() {
        let cases: [(&str, &str, Option<&str>); 5] = [
            ("a", "a", None),
            ("a:80", "a", Some("80")),
            ("[::1]", "[::1]", None),
            ("[::1]:80", "[::1]", Some("80")),
            ("", "", None),
        ];
        for (host, name, port) in cases {
            assert_eq!(split_port(host.as_bytes()), (name.as_bytes(), port.map(str::as_bytes)), "{host}");
        }
    }
}
