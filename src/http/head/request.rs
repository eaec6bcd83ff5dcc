//! Request heads.

use std::mem::MaybeUninit;

use httparse::{Header, Status};

use crate::config::Limits;
use crate::error::Failure;
use crate::http::head::{Facts, Framing, check_line_ends};

/// Longest request line, octets.
pub(crate) const MAX_REQUEST_LINE: usize = 16 * 1024;
/// Header fields that a configuration may allow at most.
const MAX_HEADERS: usize = 1000;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::http::head::MAX_NAMED;

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
